//! What can go wrong with a store.

use std::{fmt::Display, io, path::Path};

/// What can go wrong with a store.
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
    /// The catalog.
    #[error("the catalog cannot {context}: {source}")]
    Catalog {
        /// What was tried.
        context: &'static str,
        /// What fjall said.
        source: fjall::Error,
    },
    /// Something that is not what was written.
    #[error("{what} is damaged: {problem}; `diffkeeper verify --read-data` lists all that is")]
    Damaged {
        /// What, by its name.
        what: String,
        /// How it shows.
        problem: String,
    },
    /// A commit that somebody else has signed.
    #[error(
        "the signature of {0} is by none of the keys that were given: name every key that its node has signed with; \
         else somebody else has signed it"
    )]
    Signature(String),
    /// Something that should be there and is not.
    #[error("{0} is missing from the store; `diffkeeper verify` lists all that is")]
    Missing(String),
    /// A store that this version cannot read.
    #[error(
        "the store {path} has format {found}, and this version reads up to {known}: install a newer diffkeeper"
    )]
    Newer {
        /// The store.
        path: String,
        /// Its format.
        found: u32,
        /// The newest that is known.
        known: u32,
    },
    /// A catalog that has lost its newest batches.
    #[error(
        "the catalog of the store {path} is {batches} batches behind what was on the disk: its journal is damaged at its \
         end; `diffkeeper repair --dry-run` says what the packs hold of them, `diffkeeper repair` brings it back"
    )]
    Behind {
        /// The store.
        path: String,
        /// How many are missing.
        batches: u64,
    },
    /// Another process has it open.
    #[error(
        "the store {0} is in use by another process, most likely the keeper: stop that, or talk to it instead"
    )]
    Locked(String),
    /// No such state, commit or ref.
    #[error("{0}")]
    NotFound(String),
    /// A version or name that means nothing, or more than one thing.
    #[error("{0}")]
    Unclear(String),
    /// Something that would not be right.
    #[error("{0}")]
    Refused(String),
    /// Somebody who heard how far it was ended it.
    #[error("stopped as asked, before the end")]
    Stopped,
}

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Says what was tried.
pub(crate) trait Context<T> {
    /// Wraps an error with a verb and a path.
    fn on(self, verb: &str, path: &Path) -> Result<T>;
}

impl<T> Context<T> for io::Result<T> {
    fn on(self, verb: &str, path: &Path) -> Result<T> {
        self.map_err(|source| Error::Io {
            context: format!("{verb} {}", path.display()),
            source,
        })
    }
}

impl<T> Context<T> for nix::Result<T> {
    fn on(self, verb: &str, path: &Path) -> Result<T> {
        self.map_err(io::Error::from).on(verb, path)
    }
}

impl Error {
    /// Whether what is stored is damaged or missing; nothing else keeps it from being read.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        matches!(self, Error::Damaged { .. } | Error::Missing(_))
    }

    /// Whether nothing can be written any more until the store is opened anew: fjall refuses every batch after a journal
    /// that it could not write.
    #[must_use]
    pub fn wants_opening(&self) -> bool {
        matches!(
            self,
            Error::Catalog {
                source: fjall::Error::Poisoned,
                ..
            }
        )
    }
}

/// Says what was asked of the catalog.
pub(crate) trait InCatalog<T> {
    /// Wraps an error with a verb phrase: "look up a chunk".
    fn catalog(self, context: &'static str) -> Result<T>;
}

impl<T> InCatalog<T> for fjall::Result<T> {
    fn catalog(self, context: &'static str) -> Result<T> {
        self.map_err(|source| Error::Catalog { context, source })
    }
}

/// Something that is not what was written.
pub(crate) fn damaged(what: impl Display, problem: impl Display) -> Error {
    Error::Damaged {
        what: what.to_string(),
        problem: problem.to_string(),
    }
}
