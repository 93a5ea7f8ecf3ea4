//! How far long work is, and whether it is still wanted.

use std::{
    ops::ControlFlow,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use crate::error::{Error, Result};

/// How far something is.
#[derive(Debug, Default)]
pub struct Progress {
    step: Mutex<&'static str>,
    /// Entries, objects or packs that are done.
    pub entries: AtomicU64,
    /// Bytes that are done.
    pub bytes: AtomicU64,
    of_entries: AtomicU64,
    of_bytes: AtomicU64,
    stopped: AtomicBool,
}

/// What a [`Progress`] is at one moment; zeros where it is not known.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// What is being done.
    pub step: &'static str,
    /// Entries, objects or packs that are done.
    pub entries: u64,
    /// Of so many.
    pub of_entries: u64,
    /// Bytes that are done.
    pub bytes: u64,
    /// Of so many.
    pub of_bytes: u64,
}

impl Progress {
    /// Another step begins, and counts from nothing.
    pub fn begin(&self, step: &'static str) {
        *self.step.lock().unwrap_or_else(PoisonError::into_inner) = step;
        self.set(0, 0);
        self.of_entries.store(0, Ordering::Relaxed);
        self.of_bytes.store(0, Ordering::Relaxed);
    }

    /// So much more is to be done in this step.
    pub fn expect(&self, entries: u64, bytes: u64) {
        self.of_entries.fetch_add(entries, Ordering::Relaxed);
        self.of_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// So many bytes turned out to be no work: a hole in a file.
    pub(crate) fn spare(&self, bytes: u64) {
        let _ = self
            .of_bytes
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |all| {
                Some(all.saturating_sub(bytes))
            });
    }

    pub(crate) fn add(&self, entries: u64, bytes: u64) {
        self.entries.fetch_add(entries, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// So much is done, of so many entries.
    pub(crate) fn at(&self, entries: u64, of: u64, bytes: u64) {
        self.set(entries, bytes);
        self.of_entries.store(of, Ordering::Relaxed);
    }

    fn set(&self, entries: u64, bytes: u64) {
        self.entries.store(entries, Ordering::Relaxed);
        self.bytes.store(bytes, Ordering::Relaxed);
    }

    /// Ends the work at the next place where that leaves nothing half done.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// Whether to go on.
    ///
    /// # Errors
    /// When it was stopped.
    pub fn go_on(&self) -> Result<()> {
        if self.stopped.load(Ordering::Relaxed) {
            return Err(Error::Store(store::Error::Stopped));
        }
        Ok(())
    }

    /// Whether to go on, for whoever asks in the store's way.
    pub(crate) fn flow(&self) -> ControlFlow<()> {
        if self.go_on().is_ok() {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    }

    /// How far it is now.
    #[must_use]
    pub fn read(&self) -> Reading {
        Reading {
            step: *self.step.lock().unwrap_or_else(PoisonError::into_inner),
            entries: self.entries.load(Ordering::Relaxed),
            of_entries: self.of_entries.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            of_bytes: self.of_bytes.load(Ordering::Relaxed),
        }
    }
}
