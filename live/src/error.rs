//! The error type.

use std::{io, path::Path};

use crate::lease::Holder;

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong with live trees.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another container has the lease.
    #[error("state {state} is in use by container {:?} of containerd's namespace {:?}: stop that one, or give this one a state of its own with the annotation diffkeeper.io/state=<name>", .holder.container_id, .holder.namespace)]
    InUse {
        /// The state's name.
        state: String,
        /// Who has it.
        holder: Box<Holder>,
    },
    /// An overlay still stands on the upper directory although its holder is gone.
    #[error("the live tree of state {state} is still mounted somewhere{}: end what uses it and try again", listed(.pids))]
    StillInUse {
        /// The state's name.
        state: String,
        /// Processes that are known to use it.
        pids: Vec<i32>,
    },
    /// The directory for live trees cannot be used.
    #[error("{path} cannot hold live trees: {problem}")]
    Unfit {
        /// The directory.
        path: String,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// There is no such state.
    #[error("there is no state {0}")]
    Missing(String),
    /// There is one already.
    #[error("there is a state {0} already: try again, or remove that one")]
    Exists(String),
    /// Directories of a live tree hand a project down, and others do not.
    #[error(
        "the size limit is half set in {tree}, and could not be taken back ({error}): a container could not rename all of its files there. Once the disk is mended a start finishes it; diffkeeper restore makes the tree anew"
    )]
    Halfway {
        /// Where the live tree is.
        tree: String,
        /// What was in the way.
        error: Box<Error>,
    },
    /// A system call failed.
    #[error("{context}: {source}")]
    Io {
        /// What was tried, on what.
        context: String,
        /// What the kernel said.
        source: io::Error,
    },
}

fn listed(pids: &[i32]) -> String {
    if pids.is_empty() {
        String::new()
    } else {
        format!(" by the processes {pids:?}")
    }
}

/// Adds what was tried, and on what.
pub(crate) trait Context<T> {
    fn on(self, verb: &str, path: &Path) -> Result<T>;
}

impl<T, E: Into<io::Error>> Context<T> for Result<T, E> {
    fn on(self, verb: &str, path: &Path) -> Result<T> {
        self.map_err(|e| Error::Io {
            context: format!("{verb} {}", path.display()),
            source: e.into(),
        })
    }
}
