//! Objects that stand on others: what follows an older version of itself is written against that, its base, where this is
//! clearly shorter. A base is of the same kind and domain, and stands lower.
//!
//! How deep an object stands is 16 for every far step down to one that has no base, and 1 for every near one. A new object
//! stands one near step above what it follows; after [`NEAR`] of those it stands a far step above where they began, so
//! that after 24 versions of 25 each is read in at most 8 steps, and only the 26th is written whole again. What a near step
//! spans is one version, a far one five: to write every ninth whole would cost more wherever less than a tenth changes.

use std::sync::Arc;

use delta::{Budget, Encoding, LEVEL};
use quick_cache::{Weighter, sync::Cache};

use crate::{
    catalog::{Base, Place},
    error::{Error, Result, damaged},
    id::Id,
    pack::{LONGEST, Object, Record},
    relatives,
    store::{Key, Session, Store},
};

/// The most near steps after one another.
const NEAR: u8 = 4;
/// The most far ones.
const FAR: u8 = 4;
/// What a far step counts.
const STEP: u8 = 16;
/// What is shorter is not worth another object's name.
const SHORTEST: usize = 256;
/// Bases that are kept in memory, in bytes.
const KEPT: u64 = 8 << 20;

/// What was read, or written last, that others may stand on.
pub(crate) type Bases = Cache<Key, Arc<Vec<u8>>, Weight>;

#[derive(Clone)]
pub(crate) struct Weight;

impl Weighter<Key, Arc<Vec<u8>>> for Weight {
    fn weight(&self, _: &Key, bytes: &Arc<Vec<u8>>) -> u64 {
        bytes.len() as u64 + 128
    }
}

pub(crate) fn bases() -> Bases {
    Cache::with_weighter(256, KEPT, Weight)
}

impl Store {
    /// What a base holds.
    ///
    /// # Errors
    /// One that is missing, damaged, or does not stand lower than what stands on it.
    pub(crate) fn base(&self, domain: u32, object: Object, base: Base) -> Result<Arc<Vec<u8>>> {
        let key = (domain, object, base.id);
        if let Some(bytes) = self.bases.get(&key) {
            return Ok(bytes);
        }
        let name = || format!("{object:?} {}", base.id);
        let place = self
            .place(domain, object, base.id)?
            .ok_or_else(|| Error::Missing(name()))?;
        // So a chain ends, whatever the catalog says.
        if place.depth() >= base.depth {
            return Err(damaged(name(), "it does not stand lower than what stands on it"));
        }
        let bytes = Arc::new(self.object(domain, object, base.id)?);
        self.bases.insert(key, Arc::clone(&bytes));
        Ok(bytes)
    }
}

/// An error of a base, as one of what stands on it.
pub(crate) fn stands_on(name: impl Fn() -> String, error: Error) -> Error {
    match error {
        Error::Damaged { what, problem } => damaged(name(), format!("it stands on {what}: {problem}")),
        Error::Missing(what) => damaged(name(), format!("it stands on {what}, which is missing")),
        other => other,
    }
}

/// How many objects are read before one that stands so deep.
pub(crate) fn steps(depth: u8) -> u8 {
    depth / STEP + depth % STEP
}

/// An object as it is written.
pub(crate) struct Encoded {
    /// The head of its record.
    pub record: Record,
    /// What it stands on.
    pub base: Option<Id>,
    /// The bytes of its record: the base's name, if it has one, and what is encoded.
    pub bytes: Vec<u8>,
    /// What later ones may find it by, where that is to be noted with it.
    pub features: Option<[u64; delta::FEATURES]>,
}

impl Encoded {
    pub fn new(
        object: Object,
        id: Id,
        length: usize,
        encoding: Encoding,
        base: Option<Base>,
        bytes: Vec<u8>,
    ) -> Result<Encoded> {
        let long = |what: usize| {
            u32::try_from(what)
                .ok()
                .filter(|n| *n <= LONGEST)
                .ok_or_else(|| Error::Refused(format!("an object of {what} bytes is too long to be stored")))
        };
        let record = Record {
            object,
            encoding,
            depth: base.map_or(0, |base| base.depth),
            length: long(length)?,
            stored: long(bytes.len())?,
            id,
        };
        let base = base.map(|base| base.id);
        let features = None;
        Ok(Encoded {
            record,
            base,
            bytes,
            features,
        })
    }

    /// Written by itself.
    pub fn alone(budget: Budget, object: Object, id: Id, bytes: &[u8]) -> Result<Encoded> {
        let (mut written, none) = (Vec::new(), delta::Bases::default());
        let encoding = delta::encode_shortest(budget, bytes, none, &mut written).map_err(unwritable)?;
        Encoded::new(object, id, bytes.len(), encoding, None, written)
    }

    /// The shortest form at any price: on a base, if that is given and makes it clearly shorter, or by itself.
    pub fn shortest(object: Object, id: Id, bytes: &[u8], base: Option<(Base, &[u8])>) -> Result<Encoded> {
        let on = |base: Option<(Base, &[u8])>| {
            let mut written = base.map_or(Vec::new(), |(base, _)| base.id.0.to_vec());
            let begin = written.len();
            let like = base.map(|(_, bytes)| bytes);
            let bases = delta::Bases {
                like,
                dictionary: None,
            };
            let encoding =
                delta::encode_shortest(Budget::Idle, bytes, bases, &mut written).map_err(unwritable)?;
            // Read back before anything relies on it.
            let encoded = written.get(begin..).unwrap_or_default();
            let read = delta::decode(encoding, encoded, bases.of(encoding), bytes.len());
            if !read.is_ok_and(|read| read == bytes) {
                return Err(damaged(
                    format!("{object:?} {id}"),
                    format!("{encoding:?} does not read it back"),
                ));
            }
            if encoding.needs_base() {
                Encoded::new(
                    object,
                    id,
                    bytes.len(),
                    encoding,
                    base.map(|(base, _)| base),
                    written,
                )
            } else {
                Encoded::new(object, id, bytes.len(), encoding, None, encoded.to_vec())
            }
        };
        let based = on(base.filter(|_| bytes.len() >= SHORTEST))?;
        // What is so short need not be compared.
        if based.base.is_none() || based.bytes.len() < bytes.len() / 4 {
            return Ok(based);
        }
        let alone = on(None)?;
        Ok(if pays(&based, &alone) { based } else { alone })
    }
}

/// How a chunk is written on this base, and at which level of zstd; none where the base has too little of it to be worth the
/// time.
pub(crate) fn worth(budget: Budget, bytes: &[u8], base: &[u8]) -> Option<(Encoding, i32)> {
    if budget != Budget::Busy {
        return Some((Encoding::Prefix, LEVEL));
    }
    let bases = delta::Bases {
        like: Some(base),
        dictionary: None,
    };
    let mut found = delta::candidates(bytes, bases, budget).into_iter();
    found.next().filter(|(encoding, _)| encoding.needs_base())
}

pub(crate) fn unwritable(error: delta::Error) -> Error {
    damaged("an object to be stored", error)
}

impl Session<'_> {
    /// How an object is written that may follow `old`; a file's `name` tells of which kind its content is.
    pub(crate) fn encoded(
        &self,
        object: Object,
        id: Id,
        bytes: &[u8],
        old: Option<Id>,
        name: &str,
    ) -> Result<Encoded> {
        let on = |old: Option<Id>| match old {
            Some(old) => self.on_base(object, id, bytes, old),
            None => Ok(None),
        };
        let following = on(old)?;
        // What is so short need not be compared.
        let following = match following {
            Some(short) if short.bytes.len() < bytes.len() / 16 => return Ok(short),
            following => following,
        };
        let alone = self.by_itself(object, id, bytes, name)?;
        let pays = |based: &Encoded| pays(based, &alone);
        if let Some(following) = following.filter(pays) {
            return Ok(following);
        }
        // Noise is like nothing; and whoever waits for the processors does not wait for a search.
        if alone.record.encoding == Encoding::Raw || self.store.budget() == Budget::Busy {
            return Ok(alone);
        }
        let Some(features) = relatives::features(object, bytes) else {
            return Ok(alone);
        };
        match on(self.relative(&features)?)?.filter(pays) {
            Some(related) => Ok(related),
            None => {
                self.note_features(id, &features);
                Ok(alone)
            }
        }
    }

    /// Written against what it follows, or what that stands on.
    fn on_base(&self, object: Object, id: Id, bytes: &[u8], old: Id) -> Result<Option<Encoded>> {
        if bytes.len() < SHORTEST || old == id {
            return Ok(None);
        }
        let place_of = |id| self.store.place(self.domain, object, id);
        let Some(base) = above(old, place_of)? else {
            return Ok(None);
        };
        let under = match self.store.base(self.domain, object, base) {
            Ok(under) => under,
            // That an old version is damaged is no reason to lose the new one.
            Err(error) if error.is_damage() => {
                tracing::warn!(%error, "what follows it is stored whole");
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let Some((encoding, level)) = worth(self.store.budget_for(object), bytes, &under) else {
            return Ok(None);
        };
        let mut written = base.id.0.to_vec();
        delta::encode_as(encoding, level, bytes, Some(&under), &mut written).map_err(unwritable)?;
        // Read back before anything relies on it: a tenth of what the writing costs.
        let encoded = written.get(base.id.0.len()..).unwrap_or_default();
        let read = delta::decode(encoding, encoded, Some(&under), bytes.len());
        if !read.is_ok_and(|read| read == bytes) {
            tracing::error!(%id, base = %base.id, "what was written against a base is not read back: it is stored whole");
            return Ok(None);
        }
        self.store
            .bases
            .insert((self.domain, object, id), Arc::new(bytes.to_vec()));
        Encoded::new(object, id, bytes.len(), encoding, Some(base), written).map(Some)
    }
}

/// What an object stands on that follows `old`, and how deep it stands then; none where it is to be written whole.
pub(crate) fn above(old: Id, place_of: impl Fn(Id) -> Result<Option<Place>>) -> Result<Option<Base>> {
    let Some(mut place) = place_of(old)? else {
        return Ok(None);
    };
    let (far, near) = (place.depth() / STEP, place.depth() % STEP);
    if near < NEAR {
        let depth = place.depth() + 1;
        return Ok(Some(Base { id: old, depth }));
    }
    if far >= FAR {
        return Ok(None);
    }
    // Down to where the near steps began.
    let mut id = old;
    while !place.depth().is_multiple_of(STEP)
        && place.encoding != Encoding::Dictionary
        && let Some(base) = place.base
    {
        id = base.id;
        place = match place_of(id)? {
            Some(place) => place,
            None => return Ok(None),
        };
    }
    let depth = (place.depth() / STEP + 1) * STEP;
    Ok(Some(Base { id, depth }))
}

/// Whether a form on a base is worth what reading the base costs: a quarter less.
pub(crate) fn pays(based: &Encoded, alone: &Encoded) -> bool {
    based.bytes.len() + based.bytes.len() / 3 < alone.bytes.len()
}

#[cfg(test)]
mod tests;
