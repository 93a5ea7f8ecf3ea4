//! What an application does before and after it is recorded (`diffkeeper.io/pre-commit`, `post-commit`).

use std::{
    io,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use crate::blueshift::Freezer;

/// The application of one commit: told before each look that stops it that it is about to be recorded, and after each that
/// this is over, at the latest when this goes. Where it has failed once it is told no more: the commit says that.
pub struct Quiesced<'a> {
    freezer: Option<&'a dyn Freezer>,
    told: Mutex<Told>,
}

/// What it was told, and said.
#[derive(Default)]
struct Told {
    /// It waits to be told of the end.
    begun: bool,
    /// Whether the application has made itself ready.
    ready: bool,
    /// What went wrong, first of all.
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

    /// Tells it that it is about to be recorded, if it wants to be told and does not know.
    pub fn begin(&self) {
        let mut told = self.told();
        let tell = !told.begun && told.doubt.is_none();
        let Some(freezer) = self.freezer.filter(|_| tell) else {
            return;
        };
        // It may want to be told of the end alone.
        told.begun = true;
        let ready = freezer.quiesce();
        told.ready = matches!(ready, Ok(true));
        told.doubt = ready.err().map(|error| Doubt::hook(&error));
    }

    /// Tells it that it is over. Says whether it was ready all the time until then, and what has gone wrong, first of all.
    pub fn end(&self) -> (bool, Option<Doubt>) {
        let mut told = self.told();
        self.release(&mut told);
        (std::mem::take(&mut told.ready), told.doubt.clone())
    }

    fn release(&self, told: &mut Told) {
        let Some(freezer) = self.freezer.filter(|_| std::mem::take(&mut told.begun)) else {
            return;
        };
        if let Err(error) = freezer.release() {
            // It has gone on before.
            told.ready &= error.kind() != io::ErrorKind::TimedOut;
            told.doubt.get_or_insert_with(|| Doubt::hook(&error));
        }
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
