//! The rows of dictionaries.

use super::{Batch, Catalog, key, row_damaged};
use crate::{error::Result, id::Id};

/// A dictionary that a domain has learned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Dictionary {
    /// The kind of content that it is for, [`delta::Class`].
    pub class: u8,
    /// Of several of one kind the highest serves.
    pub number: u32,
    /// The chunk that it is.
    pub id: Id,
    /// The chunks that it was learned from.
    pub samples: Vec<Id>,
}

const PREFIX: &[u8] = b"dictionary";

fn key_of(domain: u32, dictionary: &Dictionary) -> Vec<u8> {
    let Dictionary { class, number, .. } = dictionary;
    key(
        b'M',
        &[PREFIX, &domain.to_be_bytes(), &[*class], &number.to_be_bytes()],
    )
}

impl Batch {
    pub(crate) fn dictionary(&mut self, domain: u32, dictionary: &Dictionary) {
        let ids = std::iter::once(&dictionary.id).chain(&dictionary.samples);
        let row: Vec<u8> = ids.flat_map(|id| id.0).collect();
        self.put(key_of(domain, dictionary), row);
    }

    pub(crate) fn forget_dictionary(&mut self, domain: u32, dictionary: &Dictionary) {
        self.remove(key_of(domain, dictionary));
    }
}

impl Catalog {
    /// The dictionaries of a domain, by their kinds and numbers.
    pub(crate) fn dictionaries(&self, domain: u32) -> Result<Vec<Dictionary>> {
        let mut found = Vec::new();
        self.under(&key(b'M', &[PREFIX, &domain.to_be_bytes()]), |rest, row| {
            let wrong = || row_damaged("a dictionary");
            let (class, number) = rest.split_first().ok_or_else(wrong)?;
            let (ids, more) = row.as_chunks::<32>();
            let (id, samples) = ids.split_first().filter(|_| more.is_empty()).ok_or_else(wrong)?;
            found.push(Dictionary {
                class: *class,
                number: u32::from_be_bytes(number.try_into().map_err(|_| wrong())?),
                id: Id(*id),
                samples: samples.iter().map(|id| Id(*id)).collect(),
            });
            Ok(())
        })?;
        Ok(found)
    }
}
