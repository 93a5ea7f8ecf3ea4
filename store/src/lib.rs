//! The history of states.
//!
//! Objects (chunks of content, nodes of trees, commits) are named by what they are and kept in packs, append-only
//! files; the catalog, a fjall database, says where each is and which commits a state has. Something is in the store
//! when its catalog batch is synced, and a pack is synced before the catalog names what is in it. `docs/format.md` has
//! every byte.

mod audit;
mod base;
mod catalog;
pub mod content;
mod dictionary;
pub mod direct;
mod error;
pub mod fault;
pub mod format;
mod gate;
mod gc;
mod history;
mod id;
mod migrate;
pub mod pack;
mod pressure;
mod reach;
mod recompact;
mod relatives;
mod repair;
mod rescue;
mod retention;
mod salvage;
mod sign;
mod spent;
mod store;
mod sys;
#[cfg(test)]
mod tests;
mod told;
pub mod tree;
mod tune;
mod usage;
mod verify;
mod watermark;

pub use audit::Audited;
pub use catalog::{Batch, Look};
pub use dictionary::Sample;
pub use error::{Error, Result};
pub use gc::{Collected, Thorough};
pub use history::{Known, Recorded, Version};
pub use id::{Hash, Id};
pub use migrate::Migrating;
pub use recompact::Recompacted;
pub use repair::{Lost, Plan, Surveyed};
pub use rescue::Rescue;
pub use retention::{DAMAGED, Retention, Rule, Tombstone};
pub use sign::{PublicKey, Signer};
pub use store::{FORMAT, Session, Store};
pub use told::Answer;
pub use tune::{Strategy, Tuned};
pub use usage::{Form, Part, Stored, Usage};
pub use verify::{Problem, Verified};
