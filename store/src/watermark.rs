//! How far the catalog had come: a small file beside it.
//!
//! fjall takes a journal whose last batches are damaged for one that ended before them: the newest commits would be missing, and
//! nothing would say so. So every batch has a number, a row of the catalog says the last, and so does this file, a moment
//! later. A catalog that says less than the file has lost batches. The file is not waited for: it may lag behind after a
//! power cut, and can never be ahead of what the disk had.
//!
//! Two slots, in sectors of their own, are written in turn: one is always whole.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

use crate::{
    error::{Context, Result},
    id::Hash,
    sys,
};

const MAGIC: &[u8; 8] = b"DKWATER\n";
const SLOT: usize = 48;
const SECTOR: u64 = 512;

/// What the file says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Watermark {
    /// The store.
    pub store: [u8; 16],
    /// Its hash.
    pub hash: Hash,
    /// The last batch of the catalog that was on the disk.
    pub batch: u64,
}

impl Watermark {
    /// A slot: 8 of magic, 16 of the store, 8 of the hash's number, 8 of the batch, 8 of the BLAKE3 of all this. Numbers
    /// are little-endian.
    fn write(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&self.store);
        bytes.extend_from_slice(&(self.hash as u64).to_le_bytes());
        bytes.extend_from_slice(&self.batch.to_le_bytes());
        let sum = blake3::hash(&bytes);
        bytes.extend(sum.as_bytes().iter().take(8));
        bytes
    }

    fn read(slot: &[u8]) -> Option<Watermark> {
        let (magic, rest) = slot.split_first_chunk::<8>()?;
        let (store, rest) = rest.split_first_chunk::<16>()?;
        let (hash, rest) = rest.split_first_chunk::<8>()?;
        let (batch, _) = rest.split_first_chunk::<8>()?;
        let found = Watermark {
            store: *store,
            hash: Hash::of_number(u32::try_from(u64::from_le_bytes(*hash)).ok()?)?,
            batch: u64::from_le_bytes(*batch),
        };
        (magic == MAGIC && found.write() == slot).then_some(found)
    }

    /// What a store's file says; none where there is none, or nothing in it is whole.
    pub fn of(dir: &Path) -> Result<Option<Watermark>> {
        let path = path(dir);
        let bytes = match std::fs::read(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            read => read.on("read", &path)?,
        };
        let slots = bytes.chunks(SECTOR as usize).take(2);
        let whole = slots.filter_map(|sector| Watermark::read(sector.get(..SLOT)?));
        Ok(whole.max_by_key(|found| found.batch))
    }
}

fn path(dir: &Path) -> PathBuf {
    dir.join("watermark")
}

/// The file, open.
pub(crate) struct Writer {
    file: File,
    path: PathBuf,
    /// What it says.
    pub last: Watermark,
}

impl Writer {
    /// Makes the file anew.
    ///
    /// # Errors
    /// A full or failing disk.
    pub fn create(dir: &Path, first: Watermark) -> Result<Writer> {
        let path = path(dir);
        sys::replace(&path, &first.write())?;
        let file = sys::reopen(&path)?;
        Ok(Writer {
            file,
            path,
            last: first,
        })
    }

    /// Says that the next batch is on the disk. That it cannot be written does not make the batch less durable.
    pub fn rise(&mut self) {
        self.last.batch += 1;
        let at = self.last.batch % 2 * SECTOR;
        if let Err(error) = sys::write(&self.file, &self.path, &self.last.write(), at) {
            tracing::warn!(%error, "how far the catalog has come is not noted");
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // Not waited for at each batch (it would take a fifth of a small commit), but at the end.
        if let Err(error) = sys::sync(&self.file, &self.path) {
            tracing::warn!(%error, "how far the catalog has come is not noted");
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_last_whole_slot_counts() {
        let dir = tempfile::tempdir().unwrap();
        let first = Watermark {
            store: [7; 16],
            hash: Hash::Sha256,
            batch: 41,
        };
        let mut writer = Writer::create(dir.path(), first).unwrap();
        for batch in 42..50 {
            writer.rise();
            let found = Watermark::of(dir.path()).unwrap().unwrap();
            assert_eq!(found, Watermark { batch, ..first });
        }
        // A slot that was cut while it was written: the other one is what counts.
        let file = path(dir.path());
        let mut bytes = std::fs::read(&file).unwrap();
        bytes[SECTOR as usize + 33] ^= 1;
        std::fs::write(&file, bytes).unwrap();
        assert_eq!(Watermark::of(dir.path()).unwrap().unwrap().batch, 48);
        std::fs::write(&file, b"nothing").unwrap();
        assert_eq!(Watermark::of(dir.path()).unwrap(), None);
    }

    proptest! {
        #[test]
        fn crafted_slots_never_panic(bytes: Vec<u8>) {
            let _ = Watermark::read(&bytes);
        }
    }
}
