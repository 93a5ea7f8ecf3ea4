//! Relatives: chunks with much in common, wherever in the domain they are kept. A file that was copied and edited, or renamed
//! and edited, follows no version of itself; its chunks find what they came from by their features ([`delta::features`]).
//!
//! Only chunks that stand on nothing, or on a dictionary, are noted: one of each family. What follows an older version has that one, and what found a
//! relative is not noted itself, so that the catalog grows with what is new. A note is a hint: what it names is read, compared
//! and read back as any other base. It goes before the chunk does, and while something is erased none is followed.

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::{
    catalog::{Batch, Name, name_of},
    error::Result,
    fault,
    id::Id,
    pack::Object,
    reach::Reached,
    store::{Session, Store},
};

/// What is shorter is not worth the rows.
const SHORTEST: usize = 8 << 10;

/// By domain and feature: the chunks that no batch has noted yet.
#[derive(Default)]
pub(crate) struct Relatives(Mutex<HashMap<(u32, u64), Id>>);

impl Relatives {
    fn fresh(&self) -> MutexGuard<'_, HashMap<(u32, u64), Id>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts what is not noted yet into a batch. Should that fail, a hint is lost.
    pub fn name(&self, batch: &mut Batch) {
        for ((domain, feature), chunk) in self.fresh().drain() {
            batch.feature(domain, feature, name_of(chunk));
        }
    }

    /// What was added since the last batch is lost.
    pub fn abandon(&self) {
        self.fresh().clear();
    }
}

/// What a chunk may share with its relatives; none where it is not worth a look.
pub(crate) fn features(object: Object, bytes: &[u8]) -> Option<[u64; delta::FEATURES]> {
    let worth = object == Object::Chunk && bytes.len() >= SHORTEST;
    worth.then(|| delta::features(bytes)).flatten()
}

impl Session<'_> {
    /// The chunk that shares most of these features.
    pub(crate) fn relative(&self, features: &[u64]) -> Result<Option<Id>> {
        if self.store.dictionaries.is_erasing() {
            return Ok(None);
        }
        let fresh: Vec<Option<Id>> = {
            let fresh = self.store.relatives.fresh();
            let of = |feature: &u64| fresh.get(&(self.domain, *feature)).copied();
            features.iter().map(of).collect()
        };
        let mut found: Vec<(Id, usize)> = Vec::new();
        for (feature, fresh) in features.iter().zip(fresh) {
            let chunk = match fresh {
                Some(fresh) => Some(fresh),
                None => match self.store.catalog.feature(self.domain, *feature)? {
                    Some(name) => self.store.catalog.chunk_like(self.domain, name)?,
                    None => None,
                },
            };
            let Some(chunk) = chunk else { continue };
            match found.iter_mut().find(|(id, _)| *id == chunk) {
                Some((_, shared)) => *shared += 1,
                None => found.push((chunk, 1)),
            }
        }
        Ok(found
            .into_iter()
            .max_by_key(|(_, shared)| *shared)
            .map(|(id, _)| id))
    }

    /// A chunk without relatives has these features: later ones may be its.
    pub(crate) fn note_features(&self, chunk: Id, features: &[u64]) {
        let mut fresh = self.store.relatives.fresh();
        fresh.extend(features.iter().map(|feature| ((self.domain, *feature), chunk)));
    }
}

impl Store {
    /// Forgets the features of chunks that nobody needs.
    pub(crate) fn forget_relatives(
        &self,
        domain: u32,
        needed: [&Reached; 2],
        batch: &mut Batch,
    ) -> Result<()> {
        fault::point("relatives-left");
        let objects = needed.into_iter().flatten();
        let chunks = objects.filter(|(object, _)| *object == Object::Chunk);
        let names: HashSet<Name> = chunks.map(|(_, id)| name_of(*id)).collect();
        self.catalog.features(domain, |feature, name| {
            if !names.contains(&name) {
                batch.forget_feature(domain, feature);
            }
        })
    }
}

#[cfg(test)]
mod tests;
