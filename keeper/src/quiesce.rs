//! What an application does before and after it is recorded (`diffkeeper.io/pre-commit`, `post-commit`).

use std::{
    io,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use crate::blueshift::Freezer;

/// The application of one commit: told once that it is about to be recorded, however often it is looked, and once that this
/// is over, when this goes at the latest and whatever became of it.
pub struct Quiesced<'a> {
    freezer: Option<&'a dyn Freezer>,
    told: Mutex<Told>,
}

/// What it was told, and said.
#[derive(Default)]
struct Told {
    begun: bool,
    ended: bool,
    /// Whether the application has made itself ready.
    ready: bool,
    /// Why it has not.
    doubt: Option<Doubt>,
}

impl<'a> Quiesced<'a> {
    /// Nothing was told yet; where nothing can be stopped, nobody is.
    pub fn new(freezer: Option<&'a dyn Freezer>) -> Quiesced<'a> {
        Quiesced {
            freezer,
            told: Mutex::default(),
        }
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells it that it is about to be recorded, if it wants to be told and was not.
    pub fn begin(&self) {
        let mut told = self.told();
        let Some(freezer) = self.freezer.filter(|_| !told.begun) else {
            return;
        };
        // It may want to be told of the end alone.
        told.begun = true;
        let ready = freezer.quiesce();
        told.ready = matches!(ready, Ok(true));
        told.doubt = ready.err().map(|error| Doubt::hook(&error));
    }

    /// Tells it that it is over. Says whether it was ready all the time until then, and what went wrong, first of all.
    pub fn end(&self) -> (bool, Option<Doubt>) {
        let mut told = self.told();
        let failed = self.release(&mut told);
        (std::mem::take(&mut told.ready), told.doubt.take().or(failed))
    }

    fn release(&self, told: &mut Told) -> Option<Doubt> {
        let freezer = self.freezer.filter(|_| told.begun && !told.ended)?;
        told.ended = true;
        let error = freezer.release().err()?;
        // It has gone on before.
        told.ready &= error.kind() != io::ErrorKind::TimedOut;
        Some(Doubt::hook(&error))
    }
}

impl Drop for Quiesced<'_> {
    fn drop(&mut self) {
        let mut told = self.told();
        self.release(&mut told);
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
