//! Who says where to look: what may have changed in a live tree since it was last looked at.
//!
//! What a watcher says is a hint. What has changed is decided by how an entry looks, and where the watcher cannot tell,
//! all is looked at. See `docs/capture.md`.

pub mod fanotify;
pub mod index;
pub mod pages;
pub mod ranges;
pub mod record;
mod sys;
pub mod writers;

use std::{collections::HashMap, io, os::fd::OwnedFd, path::PathBuf};

use store::format::Watcher as Kind;

pub(crate) use self::fanotify::handle_at;
pub use self::{
    fanotify::Fanotify,
    index::{Hint, Hints},
    pages::Pages,
    record::Handle,
};

/// The trees of a state that is watched.
#[derive(Debug, Clone)]
pub struct Trees {
    /// The state's name.
    pub name: String,
    /// Where each of its trees is, by the name that its keys begin with.
    pub tops: HashMap<Vec<u8>, PathBuf>,
    /// Keys at and below which nothing is recorded.
    pub excluded: Vec<Vec<u8>>,
}

/// Tells what may have changed in live trees. States go by their numbers in the store.
pub trait Watcher: Send + Sync {
    /// Which it is.
    fn kind(&self) -> Kind;

    /// All of a state is about to be walked: what happens from now on is told, once it is [`Watcher::learned`]. False where
    /// its trees cannot be watched.
    fn begin(&self, state: u64, trees: Trees) -> bool;

    /// The walk is done, and these are the state's directories.
    fn learned(&self, state: u64, dirs: Vec<(Handle, Vec<u8>)>);

    /// What may have changed since this was last asked, or since the walk; none where anything may.
    fn since(&self, state: u64) -> Option<Hints>;

    /// What was told was not made use of: anything may have changed.
    fn doubt(&self, state: u64);

    /// The state is watched no longer.
    fn forget(&self, state: u64);

    /// Whether it is told of files that are opened, too. False where that cannot be had.
    fn opens(&self, told: bool) -> bool;

    /// Opens what has a handle, to be looked at.
    ///
    /// # Errors
    /// It is no more.
    fn find(&self, handle: &Handle) -> io::Result<OwnedFd>;
}
