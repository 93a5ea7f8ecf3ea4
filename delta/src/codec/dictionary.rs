//! Frames with a trained dictionary: what contents of one kind have in common, for those that are too short to say it
//! themselves.

use std::{cell::RefCell, sync::OnceLock};

use zstd::zstd_safe::{CDict, DDict};

use super::{Error, frame};

/// zstd's level with a dictionary that is shared: it is both faster than [`crate::LEVEL`] without, and shorter.
pub const DICTIONARY_LEVEL: i32 = 1;

/// A dictionary that all threads share, made ready once.
pub struct Dictionary {
    bytes: Vec<u8>,
    writer: OnceLock<Option<CDict<'static>>>,
    reader: OnceLock<Option<DDict<'static>>>,
}

impl Dictionary {
    /// Of what [`crate::train`] made.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Dictionary {
        Dictionary {
            bytes,
            writer: OnceLock::new(),
            reader: OnceLock::new(),
        }
    }

    /// Its bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// As [`crate::encode_as`] with [`crate::Encoding::Dictionary`], at a level of its own.
    ///
    /// # Errors
    /// No memory; bytes that are no dictionary.
    pub fn encode(&self, bytes: &[u8], to: &mut Vec<u8>) -> Result<(), Error> {
        let ready = self
            .writer
            .get_or_init(|| CDict::try_create(&self.bytes, DICTIONARY_LEVEL));
        frame::write_with(ready.as_ref().ok_or(Error::Dictionary)?, bytes, to)
    }

    /// As [`crate::decode`] with [`crate::Encoding::Dictionary`].
    ///
    /// # Errors
    /// Damaged or crafted bytes; bytes that are no dictionary.
    pub fn decode(&self, written: &[u8], length: usize) -> Result<Vec<u8>, Error> {
        let ready = self.reader.get_or_init(|| DDict::try_create(&self.bytes));
        let bytes = frame::read_with(written, ready.as_ref().ok_or(Error::Dictionary)?, length)?;
        super::of_length(bytes, length)
    }
}

/// So many dictionaries a thread keeps ready for writing, and as many for reading: at 128 KiB and level 3 each takes
/// 670 KB, at level 19 4.3 MB; for reading 160 KB.
const READY: usize = 4;

/// Dictionaries that are ready, the last used first. To be made ready takes longer than most chunks do.
struct Shelf<D>(Vec<(i32, Vec<u8>, D)>);

impl<D> Shelf<D> {
    fn get(&mut self, level: i32, bytes: &[u8], make: impl FnOnce() -> Option<D>) -> Result<&D, Error> {
        match self.0.iter().position(|(l, b, _)| *l == level && b == bytes) {
            Some(found) => self.0[..=found].rotate_right(1),
            None => {
                let made = make().ok_or(Error::Dictionary)?;
                self.0.truncate(READY - 1);
                self.0.insert(0, (level, bytes.to_vec(), made));
            }
        }
        self.0.first().map(|(_, _, ready)| ready).ok_or(Error::Dictionary)
    }
}

thread_local! {
    static WRITERS: RefCell<Shelf<CDict<'static>>> = const { RefCell::new(Shelf(Vec::new())) };
    static READERS: RefCell<Shelf<DDict<'static>>> = const { RefCell::new(Shelf(Vec::new())) };
}

/// A frame of `bytes` by a dictionary.
pub(super) fn write(level: i32, bytes: &[u8], dictionary: &[u8], to: &mut Vec<u8>) -> Result<(), Error> {
    WRITERS.with_borrow_mut(|shelf| {
        let ready = shelf.get(level, dictionary, || CDict::try_create(dictionary, level))?;
        frame::write_with(ready, bytes, to)
    })
}

/// Reads what [`write`] wrote.
pub(super) fn read(written: &[u8], dictionary: &[u8], length: usize) -> Result<Vec<u8>, Error> {
    READERS.with_borrow_mut(|shelf| {
        let ready = shelf.get(0, dictionary, || DDict::try_create(dictionary))?;
        frame::read_with(written, ready, length)
    })
}
