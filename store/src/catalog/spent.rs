//! The rows of what was spent on a state's chunks.

use delta::Encoding;

use super::{Batch, Catalog, key, row_damaged};
use crate::error::Result;

/// Nanoseconds of a processor, by encoding.
pub(crate) type Spent = [u64; Encoding::COUNT];

fn key_of(state: u64) -> Vec<u8> {
    key(b'M', &[b"spent", &state.to_be_bytes()])
}

impl Batch {
    pub(crate) fn spent(&mut self, state: u64, spent: &Spent) {
        let row: Vec<u8> = spent.iter().flat_map(|n| n.to_le_bytes()).collect();
        self.put(key_of(state), row);
    }

    /// Forgets what was done for a state's chunks, and up to where.
    pub(crate) fn forget_work(&mut self, state: u64) {
        self.remove(key_of(state));
        self.remove(key(b'M', &[b"recompacted", &state.to_be_bytes()]));
    }
}

impl Catalog {
    /// What was spent on a state's chunks so far.
    pub(crate) fn spent(&self, state: u64) -> Result<Spent> {
        let mut spent = Spent::default();
        if let Some(row) = self.get(key_of(state))? {
            // A later version may have more encodings, this one may have more than an earlier.
            let (numbers, rest) = row.as_chunks::<8>();
            if !rest.is_empty() {
                return Err(row_damaged("what was spent on a state"));
            }
            for (spent, number) in spent.iter_mut().zip(numbers) {
                *spent = u64::from_le_bytes(*number);
            }
        }
        Ok(spent)
    }
}
