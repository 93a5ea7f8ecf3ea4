//! The rows of features, by which chunks with much in common are found.

use super::{Batch, Catalog, key, row_damaged};
use crate::{error::Result, id::Id, pack::Object};

/// So much of a chunk's name stands in a row: two that begin alike would cost a comparison.
const NAME: usize = 8;

/// The beginning of a chunk's name.
pub(crate) type Name = [u8; NAME];

/// How a chunk's name begins.
pub(crate) fn name_of(chunk: Id) -> Name {
    let mut name = Name::default();
    name.iter_mut().zip(chunk.0).for_each(|(to, from)| *to = from);
    name
}

fn key_of(domain: u32, feature: u64) -> Vec<u8> {
    key(b'F', &[&domain.to_be_bytes(), &feature.to_be_bytes()])
}

fn name_in(row: &[u8]) -> Result<Name> {
    row.try_into().map_err(|_| row_damaged("a feature"))
}

impl Batch {
    pub(crate) fn feature(&mut self, domain: u32, feature: u64, chunk: Name) {
        self.put(key_of(domain, feature), chunk);
    }

    pub(crate) fn forget_feature(&mut self, domain: u32, feature: u64) {
        self.remove(key_of(domain, feature));
    }
}

impl Catalog {
    /// How the chunk's name begins that has a feature.
    pub(crate) fn feature(&self, domain: u32, feature: u64) -> Result<Option<Name>> {
        let row = self.get(key_of(domain, feature))?;
        row.map(|row| name_in(&row)).transpose()
    }

    /// Every feature of a domain, and how the name of its chunk begins.
    pub(crate) fn features(&self, domain: u32, mut each: impl FnMut(u64, Name)) -> Result<()> {
        self.under(&key(b'F', &[&domain.to_be_bytes()]), |feature, row| {
            let feature = feature.try_into().map_err(|_| row_damaged("a feature"))?;
            each(u64::from_be_bytes(feature), name_in(row)?);
            Ok(())
        })
    }

    /// The chunk whose name begins so.
    pub(crate) fn chunk_like(&self, domain: u32, name: Name) -> Result<Option<Id>> {
        let first = key(b'I', &[&domain.to_be_bytes(), &[Object::Chunk as u8], &name]);
        let mut found = None;
        self.each(first.clone().., |key, _| {
            if key.starts_with(&first) {
                found = key
                    .split_at_checked(first.len() - NAME)
                    .map(|(_, id)| id.to_vec());
            }
            Ok(false)
        })?;
        Ok(found.and_then(|id| Id::from_slice(&id)))
    }
}
