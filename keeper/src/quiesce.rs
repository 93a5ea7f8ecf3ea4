//! What an application does before and after it is recorded (`diffkeeper.io/pre-commit`, `post-commit`).

use std::{io, time::Duration};

use crate::blueshift::Freezer;

/// The application has been told that it is about to be recorded; it is told that this is over when this goes, whatever
/// became of it.
pub struct Quiesced<'a> {
    freezer: &'a dyn Freezer,
    /// Whether the application has made itself ready.
    ready: bool,
    /// Why it has not.
    doubt: Option<Doubt>,
    told: bool,
}

impl<'a> Quiesced<'a> {
    /// Tells it, if it wants to be told.
    pub fn begin(freezer: &'a dyn Freezer) -> Quiesced<'a> {
        let told = freezer.quiesce();
        Quiesced {
            freezer,
            ready: matches!(told, Ok(true)),
            // It may want to be told of the end alone.
            told: true,
            doubt: told.err().map(|error| Doubt::hook(&error)),
        }
    }

    /// Tells it that it is over. Says whether it was ready all the time, and what went wrong, first of all.
    pub fn end(mut self) -> (bool, Option<Doubt>) {
        let failed = self.release();
        (self.ready, self.doubt.take().or(failed))
    }

    fn release(&mut self) -> Option<Doubt> {
        if !std::mem::take(&mut self.told) {
            return None;
        }
        let error = self.freezer.release().err()?;
        // It has gone on before.
        self.ready &= error.kind() != io::ErrorKind::TimedOut;
        Some(Doubt::hook(&error))
    }
}

impl Drop for Quiesced<'_> {
    fn drop(&mut self) {
        self.release();
    }
}

/// Why a commit is not what it might be. What stands before the colon is one of a few.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Doubt {
    /// The container could not be made to stand still.
    #[error("not stopped: {0}")]
    NotStopped(String),
    /// It went on before all was read.
    #[error("too much changed: {} ms (max-pause) were not enough to read it", .0.as_millis())]
    TooMuch(Duration),
    /// It was let go on by somebody else.
    #[error("interrupted: somebody else let the container go on")]
    Interrupted,
    /// It was taken by a container meanwhile.
    #[error("interrupted: a container began to write meanwhile")]
    Disturbed,
    /// What the application was to do has failed.
    #[error("hook: {0}")]
    Hook(String),
}

/// The most characters that are kept of what a hook has said.
const TOLD: usize = 400;

impl Doubt {
    /// The container's own words are shown to people, and kept in the commit: no more of them than anybody reads, and
    /// nothing that a terminal obeys.
    fn hook(error: &io::Error) -> Doubt {
        let told = error.to_string();
        let plain = |c: char| if c.is_control() { ' ' } else { c };
        Doubt::Hook(told.chars().take(TOLD).map(plain).collect())
    }
}
