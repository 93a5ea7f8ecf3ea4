//! Pure logic of a DiffKeeper container: what its bundle, annotations and configuration say, and what follows
//! from it. Nothing here opens a file or starts a process.

pub mod annotations;
pub mod bundle;
pub mod config;
pub mod docker;
pub mod duration;
mod error;
pub mod mount;
pub mod name;
pub mod roots;
pub mod size;

pub use error::Error;
