//! The node service: BlueShift makes commits of live trees, RedShift makes live trees of commits.

mod again;
pub mod archive;
pub mod blueshift;
pub mod detach;
mod error;
mod freezer;
pub mod keeper;
pub mod metrics;
mod named;
pub mod owner;
mod parts;
mod place;
mod pressure;
pub mod progress;
mod quiesce;
mod reclaim;
mod recompact;
mod recorder;
pub mod recording;
pub mod redshift;
mod repair;
mod samples;
pub mod serve;
pub mod service;
mod sound;
mod stats;
mod still;
#[cfg(test)]
mod tests;
mod totals;
mod tree;
mod tune;
pub mod watch;
pub mod watcher;
pub mod watching;

pub use error::{Error, Result};
pub use keeper::Keeper;
pub use progress::Progress;
pub use reclaim::{Reclaimed, Schedule};
pub use repair::rescue;
pub use sound::Flaw;
