//! What can go wrong in the keeper.

use std::{io, path::Path};

/// What can go wrong in the keeper.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The disk.
    #[error("cannot {context}: {source}")]
    Io {
        /// What was tried, and on what.
        context: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The live trees.
    #[error(transparent)]
    Live(#[from] live::Error),
    /// What was to take a live tree's place did not, or not wholly, and what that held had been recorded for it.
    #[error("{error}. What {state} held was recorded before that: commit {commit}")]
    Recorded {
        /// The state.
        state: String,
        /// The commit, by its short name.
        commit: String,
        /// What went wrong.
        error: Box<Error>,
    },
    /// Something that is not to be done so.
    #[error("{0}")]
    Refused(String),
    /// What was read of a live tree is no tree, and was not, however often it was looked.
    #[error(
        "{state} is not recorded: {flaw} in what was read. Its container moves directories faster than they are read, and \
         could not be stopped meanwhile; it is tried again as long as it runs, and when it ends"
    )]
    Torn {
        /// The state.
        state: String,
        /// What is wrong.
        flaw: crate::Flaw,
    },
    /// No such state, version or path.
    #[error("{0}")]
    NotFound(String),
}

impl Error {
    /// What went wrong, whatever was recorded before.
    #[must_use]
    pub fn cause(&self) -> &Error {
        match self {
            Error::Recorded { error, .. } => error.cause(),
            error => error,
        }
    }
}

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Says what was tried.
pub(crate) trait Context<T> {
    /// Wraps an error with a verb and a path.
    fn on(self, verb: &str, path: &Path) -> Result<T>;
}

impl<T, E: Into<io::Error>> Context<T> for std::result::Result<T, E> {
    fn on(self, verb: &str, path: &Path) -> Result<T> {
        self.map_err(|source| Error::Io {
            context: format!("{verb} {}", path.display()),
            source: source.into(),
        })
    }
}
