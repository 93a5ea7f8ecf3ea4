//! Dictionaries: what small contents of one kind have in common, learned from samples of what a domain is about to hold.
//!
//! A dictionary is a chunk, and the base of those that are written by it: whoever reads, verifies, repairs or collects treats
//! it as any other base. The catalog says besides which one serves which kind of content, and from which chunks it was
//! learned: parts of them stand in it. It serves until it no longer pays; a later one leaves those be that were written by it.
//! When one of the chunks that it was learned from is erased, it goes too, and what was written by it is written anew.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
};

use delta::{Class, Encoding};
use quick_cache::sync::Cache;
use rayon::prelude::*;

use crate::{
    base::Encoded,
    catalog::{Base, Batch, Dictionary},
    error::{Result, damaged},
    id::Id,
    pack::Object,
    reach::Reached,
    store::{Session, Store},
};

/// Longer content says enough about itself.
const LONGEST: usize = 32 << 10;
/// With fewer samples nothing is learned.
const FEWEST: usize = 64;
/// More are not learned from: their names stand in the catalog.
const MOST: usize = 400;
/// One chunk in so many, by its name, is written without the dictionary too, to see what that gives.
const TRIED: u8 = 32;
/// After so many trials it is known whether a dictionary pays.
const KNOWN: u32 = 32;
/// After samples that gave nothing, so many others are not looked at.
const REST: u32 = 16;
/// Dictionaries that are kept ready, 0.4 MB each.
const READY: usize = 12;

/// A content that is about to be added.
pub struct Sample {
    /// Its file's name, which tells the kind.
    pub name: String,
    /// All of it.
    pub bytes: Vec<u8>,
}

/// A dictionary that is used.
pub(crate) struct Ready {
    id: Id,
    pub(crate) dictionary: delta::Dictionary,
    trials: Mutex<Trials>,
}

/// What trials gave lately.
#[derive(Default)]
struct Trials {
    contents: u32,
    with: usize,
    without: usize,
}

impl Ready {
    fn note(&self, with: usize, without: usize) {
        let mut trials = self.trials.lock().unwrap_or_else(PoisonError::into_inner);
        trials.contents += 1;
        trials.with += with;
        trials.without += without;
        // What is new counts as much as all that was before.
        if trials.contents >= 2 * KNOWN {
            trials.contents /= 2;
            trials.with /= 2;
            trials.without /= 2;
        }
    }

    fn pays(&self) -> bool {
        let trials = self.trials.lock().unwrap_or_else(PoisonError::into_inner);
        trials.contents < KNOWN || trials.with < trials.without - trials.without / 32
    }
}

/// What a store knows of dictionaries beside its catalog.
pub(crate) struct Dictionaries {
    ready: Cache<(u32, Id), Arc<Ready>>,
    /// By domain: what no batch has named yet.
    learned: Mutex<Vec<(u32, Dictionary)>>,
    /// By domain and kind: how often nothing is to be learned.
    resting: Mutex<HashMap<(u32, u8), u32>>,
    /// Something is being erased: none is used that may hold parts of it.
    erasing: AtomicBool,
}

impl Default for Dictionaries {
    fn default() -> Self {
        Dictionaries {
            ready: Cache::new(READY),
            learned: Mutex::default(),
            resting: Mutex::default(),
            erasing: AtomicBool::new(false),
        }
    }
}

impl Dictionaries {
    fn learned(&self) -> std::sync::MutexGuard<'_, Vec<(u32, Dictionary)>> {
        self.learned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts what was learned into a batch; says how many.
    pub(crate) fn name(&self, batch: &mut Batch) -> usize {
        let learned = self.learned();
        for (domain, dictionary) in &*learned {
            batch.dictionary(*domain, dictionary);
        }
        learned.len()
    }

    /// A batch with so many is written.
    pub(crate) fn named(&self, count: usize) {
        let mut learned = self.learned();
        let count = count.min(learned.len());
        learned.drain(..count);
    }

    /// What no batch has named is lost.
    pub(crate) fn abandon(&self) {
        self.learned().clear();
    }

    /// Forgets what is in memory: it may be damaged on the disk.
    pub(crate) fn clear(&self) {
        self.ready.clear();
    }

    pub(crate) fn erasing(&self, erasing: bool) {
        self.erasing.store(erasing, Ordering::Release);
    }

    pub(crate) fn is_erasing(&self) -> bool {
        self.erasing.load(Ordering::Acquire)
    }

    /// Whether samples of a kind are to be looked at.
    fn awake(&self, domain: u32, class: Class) -> bool {
        let mut resting = self.resting.lock().unwrap_or_else(PoisonError::into_inner);
        match resting.get_mut(&(domain, class as u8)) {
            Some(left) if *left > 0 => {
                *left -= 1;
                false
            }
            _ => true,
        }
    }

    fn rest(&self, domain: u32, class: Class) {
        let mut resting = self.resting.lock().unwrap_or_else(PoisonError::into_inner);
        resting.insert((domain, class as u8), REST);
    }
}

/// The dictionaries that a session uses, by kind.
pub(crate) type InUse = RwLock<Option<HashMap<Class, Arc<Ready>>>>;

impl Store {
    /// A dictionary that something stands on.
    pub(crate) fn dictionary(&self, domain: u32, base: Base) -> Result<Arc<Ready>> {
        if let Some(ready) = self.dictionaries.ready.get(&(domain, base.id)) {
            return Ok(ready);
        }
        let bytes = self.base(domain, Object::Chunk, base)?;
        Ok(self.make_ready(domain, base.id, bytes.to_vec()))
    }

    fn make_ready(&self, domain: u32, id: Id, bytes: Vec<u8>) -> Arc<Ready> {
        let ready = Arc::new(Ready {
            id,
            dictionary: delta::Dictionary::new(bytes),
            trials: Mutex::default(),
        });
        self.dictionaries.ready.insert((domain, id), Arc::clone(&ready));
        ready
    }

    /// Which dictionaries stay although something is erased: those that were learned from nothing but what commits need.
    /// The others no longer serve.
    pub(crate) fn give_dictionaries_up(&self, domain: u32, reached: &mut Reached) -> Result<()> {
        let mut batch = self.catalog.batch();
        for dictionary in self.catalog.dictionaries(domain)? {
            let mut samples = dictionary.samples.iter();
            if samples.all(|sample| reached.contains(&(Object::Chunk, *sample))) {
                reached.insert((Object::Chunk, dictionary.id));
            } else if !reached.contains(&(Object::Chunk, dictionary.id)) {
                batch.forget_dictionary(domain, &dictionary);
            }
        }
        match batch.is_empty() {
            true => Ok(()),
            false => self.catalog.write(batch),
        }
    }
}

impl Session<'_> {
    /// The dictionaries that serve now. While this session lives, gc leaves them.
    fn serving(&self) -> Result<HashMap<Class, Arc<Ready>>> {
        let mut serving = HashMap::new();
        if self.store.dictionaries.is_erasing() {
            return Ok(serving);
        }
        for row in self.store.catalog.dictionaries(self.domain)? {
            let Some(class) = Class::ALL.into_iter().find(|class| *class as u8 == row.class) else {
                continue;
            };
            // What is written by it stands one step above it.
            let place = self.store.place(self.domain, Object::Chunk, row.id)?;
            if !self.has(Object::Chunk, row.id)? || place.is_none_or(|place| place.depth() > 0) {
                continue;
            }
            match self.store.dictionary(self.domain, Base { id: row.id, depth: 1 }) {
                Ok(ready) => {
                    serving.insert(class, ready);
                }
                Err(error) if error.is_damage() => {
                    tracing::warn!(%error, "what would be written by this dictionary is written without");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(serving)
    }

    /// The dictionary that serves a kind of content, which is asked for only if there are any.
    fn serves(&self, class: impl FnOnce() -> Class) -> Result<Option<Arc<Ready>>> {
        let of = |known: &HashMap<Class, Arc<Ready>>| match known.is_empty() {
            true => None,
            false => known.get(&class()).cloned(),
        };
        let known = self.in_use.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = &*known {
            return Ok(of(known));
        }
        drop(known);
        let mut known = self.in_use.write().unwrap_or_else(PoisonError::into_inner);
        match &mut *known {
            Some(known) => Ok(of(known)),
            none => Ok(of(none.insert(self.serving()?))),
        }
    }

    /// A chunk without what it follows, by the dictionary of its kind where that makes it shorter.
    pub(crate) fn by_itself(&self, object: Object, id: Id, bytes: &[u8], name: &str) -> Result<Encoded> {
        if object == Object::Chunk
            && bytes.len() <= LONGEST
            && let Some(ready) = self.serves(|| delta::class(bytes, name.as_bytes()))?
            && ready.pays()
            && !delta::incompressible(bytes)
        {
            let Some(encoded) = by_dictionary(&ready, id, bytes)? else {
                return Encoded::alone(self.store.budget_for(object), object, id, bytes);
            };
            let (with, length) = (encoded.bytes.len(), bytes.len());
            if id.0.first().is_some_and(|first| first.is_multiple_of(TRIED)) {
                let alone = Encoded::alone(self.store.budget_for(object), object, id, bytes)?;
                ready.note(with, alone.bytes.len());
                return Ok(if with < alone.bytes.len() { encoded } else { alone });
            }
            // A few bytes saved are not worth a decompression at each read.
            if with + with / 32 < length {
                return Ok(encoded);
            }
        }
        Encoded::alone(self.store.budget_for(object), object, id, bytes)
    }

    /// Learns dictionaries for those kinds of content that have none, or none that pays: from samples of what is about to
    /// be added to the domain.
    ///
    /// # Errors
    /// A full or failing disk, a damaged catalog.
    pub fn learn(&self, samples: &[Sample]) -> Result<()> {
        let mut by_class: BTreeMap<Class, Vec<&[u8]>> = BTreeMap::new();
        for Sample { name, bytes } in samples {
            let class = delta::class(bytes, name.as_bytes());
            by_class.entry(class).or_default().push(bytes);
        }
        let mut wanting = Vec::new();
        for (class, mut samples) in by_class {
            let serves = self.serves(|| class)?.is_some_and(|ready| ready.pays());
            if !serves && samples.len() >= FEWEST && self.store.dictionaries.awake(self.domain, class) {
                // From all parts of them, however many there are.
                let step = samples.len().div_ceil(MOST);
                samples = samples.into_iter().step_by(step).collect();
                wanting.push((class, samples));
            }
        }
        let trained: Vec<_> = wanting
            .par_iter()
            .map(|(_, samples)| delta::train(samples))
            .collect();
        for ((class, samples), trained) in wanting.iter().zip(trained) {
            match trained {
                Some(bytes) => self.teach(*class, bytes, samples)?,
                None => self.store.dictionaries.rest(self.domain, *class),
            }
        }
        Ok(())
    }

    fn teach(&self, class: Class, bytes: Vec<u8>, samples: &[&[u8]]) -> Result<()> {
        let id = self.chunk(&bytes, None)?;
        let place = self.store.place(self.domain, Object::Chunk, id)?;
        if place.is_none_or(|place| place.depth() > 0) {
            // A file has the same content, and stands on another.
            return Ok(());
        }
        let mut learned = self.store.dictionaries.learned();
        // In this order: what is named meanwhile is found there or here.
        let known = self.store.catalog.dictionaries(self.domain)?;
        let waiting = learned.iter().filter(|(domain, _)| *domain == self.domain);
        let all = known.iter().chain(waiting.map(|(_, known)| known));
        let of_class = all.filter(|known| known.class == class as u8);
        let number = of_class
            .map(|known| known.number)
            .max()
            .map_or(1, |number| number.saturating_add(1));
        let row = Dictionary {
            class: class as u8,
            number,
            id,
            samples: samples
                .iter()
                .map(|sample| self.store.hash.chunk(sample))
                .collect(),
        };
        tracing::debug!(
            ?class,
            number,
            bytes = bytes.len(),
            samples = samples.len(),
            "a dictionary is learned"
        );
        learned.push((self.domain, row));
        drop(learned);
        let ready = self.store.make_ready(self.domain, id, bytes);
        let mut in_use = self.in_use.write().unwrap_or_else(PoisonError::into_inner);
        in_use.get_or_insert_default().insert(class, ready);
        Ok(())
    }
}

/// None where it is not read back.
fn by_dictionary(ready: &Ready, id: Id, bytes: &[u8]) -> Result<Option<Encoded>> {
    let mut written = ready.id.0.to_vec();
    let encoded = ready.dictionary.encode(bytes, &mut written);
    encoded.map_err(|error| damaged(format!("dictionary {}", ready.id), error))?;
    // Before anything relies on it.
    let encoded = written.get(ready.id.0.len()..).unwrap_or_default();
    let read = ready.dictionary.decode(encoded, bytes.len());
    if !read.is_ok_and(|read| read == bytes) {
        tracing::error!(%id, dictionary = %ready.id, "what was written by a dictionary is not read back: it is stored without");
        return Ok(None);
    }
    let base = Base {
        id: ready.id,
        depth: 1,
    };
    Encoded::new(
        Object::Chunk,
        id,
        bytes.len(),
        Encoding::Dictionary,
        Some(base),
        written,
    )
    .map(Some)
}

#[cfg(test)]
mod tests;
