//! The live trees of a node: where they are, who may write to them, what a life leaves behind, and when they go.
//!
//! Everything inside a live tree is a container's, and hostile: it is walked by directory descriptor, and no link
//! in it is ever followed.

mod copy;
mod error;
mod exclude;
mod layout;
mod lease;
mod limit;
mod placeholder;
mod probe;
mod project;
mod reclaim;
mod root;
mod state;
mod survivor;
mod sys;
#[cfg(test)]
mod tests;
mod total;
mod tree;

pub use copy::copy_tree;
pub use error::{Error, Result};
pub use exclude::Trash;
pub use layout::Node;
pub use lease::{Attempt, Holder, Init, Lease};
pub use limit::{Limited, Quota};
pub use placeholder::{Misfit, Want};
pub use probe::{in_use, overlay_of};
pub use reclaim::{Size, StateInfo};
pub use root::{Root, RootDir, look_inside};
pub use state::{Ending, Image, Life, Policy, Record, State};
pub use survivor::Evicted;
pub use total::Total;
