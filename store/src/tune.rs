//! What a state's history would take by each way to store it: measured with its own chunks.
//!
//! Chunks are replayed in the order in which they came, each against what it followed, under the same bounds on how many are
//! read before one. What others had in common with it (relatives, dictionaries) is not replayed.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use delta::{Budget, Encoding, LEVEL};

use crate::{
    base::{Encoded, above, pays, steps, unwritable, worth},
    catalog::{Base, Place},
    error::{Error, Result},
    history::Known,
    id::Id,
    pack::Object,
    recompact::{Lines, planned},
    spent::timed,
    store::Store,
    told::{Answer, heed},
};

/// So much content is replayed at most.
const MOST: u64 = 8 << 20;

/// A way to store a history, and what it gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Strategy {
    /// How it is called.
    pub name: String,
    /// What the chunks take.
    pub stored: u64,
    /// How long a processor works to write them.
    pub spent: Duration,
    /// How many others have to be read before one of them, all added up.
    pub steps: u64,
    /// How long a processor works to read each by itself, with all that it stands on.
    pub read: Duration,
    /// Commits go by it now.
    pub used: bool,
}

/// What a replay gave.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tuned {
    /// Chunks that were replayed.
    pub chunks: u64,
    /// Of so many.
    pub of_chunks: u64,
    /// Their content, in bytes.
    pub content: u64,
    /// What they take as they are stored.
    pub stored: u64,
    /// How many others are read before one of them as they are stored, all added up.
    pub steps: u64,
    /// Every way.
    pub strategies: Vec<Strategy>,
}

/// How a chunk is written.
#[derive(Clone, Copy)]
enum Way {
    /// By itself, at this level of zstd.
    Alone(Encoding, i32),
    /// Against what it follows, where that pays.
    On(Encoding),
    /// As commits do under this budget.
    Commits(Budget),
    /// As a recompaction does: against a neighbour, in the shortest form.
    Recompacted,
}

const WAYS: [(&str, Way); 11] = [
    ("raw", Way::Alone(Encoding::Raw, LEVEL)),
    ("zstd -1", Way::Alone(Encoding::Zstd, -1)),
    ("zstd 3", Way::Alone(Encoding::Zstd, LEVEL)),
    ("zstd 19", Way::Alone(Encoding::Zstd, 19)),
    ("xor", Way::On(Encoding::Xor)),
    ("match", Way::On(Encoding::Match)),
    ("prefix", Way::On(Encoding::Prefix)),
    ("bsdiff", Way::On(Encoding::Bsdiff)),
    ("commits, busy", Way::Commits(Budget::Busy)),
    ("commits", Way::Commits(Budget::Ordinary)),
    ("recompaction", Way::Recompacted),
];

impl Store {
    /// Replays a state's history, or as many of its chunks as can be in reasonable time, by every way to store it. `told` gets
    /// how many of all chunks of all ways are done, and may end it.
    ///
    /// # Errors
    /// A damaged tree or chunk, a failing disk.
    pub fn tune<A: Answer>(&self, state: &Known, mut told: impl FnMut(u64, u64) -> A) -> Result<Tuned> {
        let lines = Lines::of(self, state, &mut || heed(told(0, 0)))?;
        let mut tuned = Tuned {
            of_chunks: lines.len() as u64,
            ..Tuned::default()
        };
        let wanted = self.sample(state.domain, &lines)?;
        let lines = lines.only(&wanted);
        let mut contents = HashMap::new();
        for (id, _) in lines.in_order() {
            let bytes = self.object(state.domain, Object::Chunk, id)?;
            let place = self.place(state.domain, Object::Chunk, id)?;
            tuned.chunks += 1;
            tuned.content += bytes.len() as u64;
            tuned.stored += place.map_or(0, |place| u64::from(place.stored));
            tuned.steps += place.map_or(0, |place| u64::from(steps(place.depth())));
            contents.insert(id, bytes);
        }
        let now = self.budget();
        let of = tuned.chunks * WAYS.len() as u64;
        let mut done = 0;
        for (name, way) in WAYS {
            let mut replay = Replay {
                contents: &contents,
                places: HashMap::new(),
                reading: HashMap::new(),
                spent: Duration::ZERO,
            };
            let order: Vec<(Id, Option<Base>)> = match way {
                Way::Recompacted => planned(&lines),
                _ => lines
                    .in_order()
                    .map(|(id, old)| (id, old.map(|id| Base { id, depth: 0 })))
                    .collect(),
            };
            for (id, on) in order {
                replay.write(way, id, on)?;
                done += 1;
                heed(told(done, of))?;
            }
            tuned.strategies.push(Strategy {
                name: name.to_owned(),
                stored: replay.places.values().map(|place| u64::from(place.stored)).sum(),
                spent: replay.spent,
                steps: replay
                    .places
                    .values()
                    .map(|place| u64::from(steps(place.depth())))
                    .sum(),
                read: replay.reading.values().sum(),
                used: matches!(way, Way::Commits(budget) if budget == now),
            });
        }
        Ok(tuned)
    }

    /// Families of chunks that follow each other, from all over the history, as many as are replayed.
    fn sample(&self, domain: u32, lines: &Lines) -> Result<HashSet<Id>> {
        let (mut families, mut all) = (HashMap::new(), 0);
        let mut members: Vec<(Id, usize, u64)> = Vec::new();
        for (id, old) in lines.in_order() {
            let next = families.len();
            let family = old.and_then(|old| families.get(&old)).copied().unwrap_or(next);
            families.insert(id, family);
            let place = self.place(domain, Object::Chunk, id)?;
            let length = place.map_or(0, |place| u64::from(place.length));
            all += length;
            members.push((id, family, length));
        }
        // A family's number is that of its first chunk: of these one in so many.
        let step = usize::try_from(all / MOST)
            .unwrap_or(usize::MAX)
            .saturating_add(1);
        let mut firsts: Vec<usize> = members.iter().map(|(_, family, _)| *family).collect();
        firsts.sort_unstable();
        firsts.dedup();
        let taken: HashSet<usize> = firsts.into_iter().step_by(step).collect();
        let mut left = MOST;
        let fits = |(id, family, length): (Id, usize, u64)| {
            let fits = taken.contains(&family) && length <= left;
            left -= if fits { length } else { 0 };
            fits.then_some(id)
        };
        Ok(members.into_iter().filter_map(fits).collect())
    }
}

/// Chunks as they would be stored.
struct Replay<'c> {
    contents: &'c HashMap<Id, Vec<u8>>,
    places: HashMap<Id, Place>,
    /// How long each is read, with what it stands on.
    reading: HashMap<Id, Duration>,
    spent: Duration,
}

impl<'c> Replay<'c> {
    fn write(&mut self, way: Way, id: Id, on: Option<Base>) -> Result<()> {
        let bytes = self.content(id)?;
        let base = match way {
            Way::Alone(..) => None,
            // One step above where that has come to stand, which may be nowhere.
            Way::Recompacted => on.map(|base| Base {
                depth: self.places.get(&base.id).map_or(0, Place::depth) + 1,
                ..base
            }),
            Way::On(_) | Way::Commits(_) => match on {
                Some(old) => above(old.id, |id| Ok(self.places.get(&id).copied()))?,
                None => None,
            },
        };
        let under = match base {
            Some(base) => Some((base, self.content(base.id)?)),
            None => None,
        };
        let (encoded, spent) = timed(|| encode(way, id, bytes, under));
        let encoded = encoded?;
        self.spent += spent;
        let begin = if encoded.base.is_some() { id.0.len() } else { 0 };
        let stored = encoded.bytes.get(begin..).unwrap_or_default();
        let below = encoded.base.and(under);
        let encoding = encoded.record.encoding;
        let (read, mut reading) =
            timed(|| delta::decode(encoding, stored, below.map(|(_, bytes)| bytes), bytes.len()));
        read.map_err(unwritable)?;
        if let Some((base, _)) = below {
            reading += self.reading.get(&base.id).copied().unwrap_or_default();
        }
        self.reading.insert(id, reading);
        self.places
            .insert(id, Place::of(&encoded.record, encoded.base, 0, 0));
        Ok(())
    }

    fn content(&self, id: Id) -> Result<&'c [u8]> {
        let bytes = self.contents.get(&id).map(Vec::as_slice);
        bytes.ok_or_else(|| Error::Missing(format!("Chunk {id}")))
    }
}

fn encode(way: Way, id: Id, bytes: &[u8], under: Option<(Base, &[u8])>) -> Result<Encoded> {
    let object = Object::Chunk;
    let alone = |encoding: Encoding, level: i32| {
        let mut to = Vec::new();
        delta::encode_as(encoding, level, bytes, None, &mut to).map_err(unwritable)?;
        match to.len() < bytes.len() {
            true => Encoded::new(object, id, bytes.len(), encoding, None, to),
            false => Encoded::new(object, id, bytes.len(), Encoding::Raw, None, bytes.to_vec()),
        }
    };
    let (budget, how) = match way {
        Way::Alone(encoding, level) => return alone(encoding, level),
        Way::Recompacted => return Encoded::shortest(object, id, bytes, under),
        Way::On(encoding) => (Budget::Ordinary, under.map(|_| (encoding, LEVEL))),
        Way::Commits(budget) => (budget, under.and_then(|(_, base)| worth(budget, bytes, base))),
    };
    let based = match under.zip(how) {
        Some(((base, under), (encoding, level))) => {
            let mut to = base.id.0.to_vec();
            delta::encode_as(encoding, level, bytes, Some(under), &mut to).map_err(unwritable)?;
            Some(Encoded::new(object, id, bytes.len(), encoding, Some(base), to)?)
        }
        None => None,
    };
    let alone = Encoded::alone(budget, object, id, bytes)?;
    Ok(based.filter(|based| pays(based, &alone)).unwrap_or(alone))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{commit, known, noise, put, store, write};

    const STATE: &str = "ctr/default/web";

    #[test]
    fn every_way_is_measured_with_the_states_own_chunks() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        let mut bytes: Vec<u8> = noise(6_000, 1)
            .iter()
            .flat_map(|byte| [byte % 16, byte / 16, 7])
            .collect();
        let mut before = None;
        for n in 0..12 {
            bytes[n * 1_000..n * 1_000 + 40].fill(0xee);
            commit(&store, STATE, |s| {
                let entry = write(s, "file", &bytes, before.as_ref());
                before = Some(entry.clone());
                vec![put(entry)]
            });
        }
        let state = known(&store, STATE);
        let mut last = (0, 0);
        let tuned = store.tune(&state, |done, of| last = (done, of)).unwrap();
        assert_eq!(last, (12 * WAYS.len() as u64, 12 * WAYS.len() as u64));
        assert_eq!(
            (tuned.chunks, tuned.of_chunks, tuned.content),
            (12, 12, 12 * 18_000)
        );
        let of = |name: &str| tuned.strategies.iter().find(|way| way.name == name).unwrap();
        assert_eq!(of("raw").stored, tuned.content);
        assert!(of("zstd 19").stored <= of("zstd 3").stored && of("zstd 3").stored < of("raw").stored);
        // What commits do is what was done.
        assert_eq!(
            (of("commits").stored, of("commits").steps),
            (tuned.stored, tuned.steps)
        );
        assert_eq!(of("commits").stored, of("prefix").stored);
        assert!(of("commits").stored * 4 < of("zstd 19").stored);
        assert!(of("recompaction").stored <= of("commits").stored);
        let used: Vec<_> = tuned
            .strategies
            .iter()
            .filter(|way| way.used)
            .map(|way| &way.name)
            .collect();
        assert_eq!(used, ["commits"]);
        for way in &tuned.strategies {
            assert!(way.steps <= 12 * 8 && way.read > Duration::ZERO, "{way:?}");
        }
        // Nothing was written, and others that wait are told.
        assert_eq!(
            store
                .forms(&state)
                .unwrap()
                .iter()
                .map(|form| form.stored)
                .sum::<u64>(),
            tuned.stored
        );
        store.follow(|| Some(60.0));
        let tuned = store.tune(&state, |_, _| {}).unwrap();
        assert!(
            tuned
                .strategies
                .iter()
                .all(|way| way.used == (way.name == "commits, busy"))
        );
        let stop = |_, _| std::ops::ControlFlow::Break(());
        assert!(matches!(store.tune(&state, stop), Err(Error::Stopped)));
    }

    /// What is planned on a version that nothing has in common with stands alone, and what is above it one step lower.
    #[test]
    fn a_recompaction_is_replayed_with_the_steps_that_it_takes() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        let mut before = None;
        for (seed, change) in [(1, 0), (1, 1), (2, 0), (3, 0), (3, 1)] {
            let mut bytes = noise(3_000, seed);
            bytes[0] ^= change;
            commit(&store, STATE, |s| {
                let entry = write(s, "file", &bytes, before.as_ref());
                before = Some(entry.clone());
                vec![put(entry)]
            });
        }
        let tuned = store.tune(&known(&store, STATE), |_, _| {}).unwrap();
        let replayed = tuned
            .strategies
            .iter()
            .find(|way| way.name == "recompaction")
            .unwrap();
        assert_eq!(replayed.steps, 2);
        assert!(replayed.stored < 9_200, "{replayed:?}");
    }

    #[test]
    fn of_much_a_part_is_replayed() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        commit(&store, STATE, |s| {
            vec![put(write(s, "file", &noise(20 << 20, 1), None))]
        });
        let state = known(&store, STATE);
        let lines = Lines::of(&store, &state, &mut || Ok(())).unwrap();
        let taken = store.sample(state.domain, &lines).unwrap();
        let bytes = taken
            .iter()
            .map(|id| store.chunk(state.domain, *id).unwrap().len() as u64);
        let bytes: u64 = bytes.sum();
        assert!(bytes <= MOST && bytes > MOST / 2, "{bytes}");
        // From its end as well.
        let last = lines.in_order().collect::<Vec<_>>();
        assert!(last.iter().rev().take(4).any(|(id, _)| taken.contains(id)));
    }
}
