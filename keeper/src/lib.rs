//! The node service: BlueShift makes commits of live trees, RedShift makes live trees of commits.

pub mod blueshift;
mod error;
pub mod redshift;
#[cfg(test)]
mod tests;
mod tree;

pub use error::{Error, Result};
