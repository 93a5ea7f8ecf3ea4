//! The node service: BlueShift makes commits of live trees, RedShift makes live trees of commits.

mod again;
pub mod archive;
pub mod blueshift;
pub mod detach;
mod error;
mod freezer;
pub mod keeper;
pub mod metrics;
pub mod owner;
pub mod progress;
mod quiesce;
mod reclaim;
pub mod recording;
pub mod redshift;
mod repair;
pub mod serve;
pub mod service;
#[cfg(test)]
mod tests;
mod tree;
pub mod watch;

pub use error::{Error, Result};
pub use keeper::Keeper;
pub use progress::Progress;
pub use reclaim::{Reclaimed, Schedule};
pub use repair::rescue;
