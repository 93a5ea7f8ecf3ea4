//! Commits of what a watcher names, and what is remembered of a state between two looks.
//!
//! What is looked at is the sum of four: what the watcher was told of; what the container has open for writing or mapped, of
//! which nobody is told before it is closed; what was written lately, or looked as if a later write could look the same; and
//! all names of a file that has several. Whenever one of them cannot be had, all is looked at.
//!
//! All is looked at from time to time besides, and what turns up there alone is counted.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use store::{Id, Known, Look, Store, format::Kind};

use crate::{
    blueshift::{Beyond, Capture, Outcome, nanos, unread},
    error::{Context, Error, Result},
    named::{Found, Looking, Names, Recorded, Short},
    recorder::{Links, Read, Recorder},
    still::{self, Stood, Stop},
    tree::{self, Seen},
    watcher::{Fanotify, Handle, Hints, Pages, Trees, Watcher, writers::Writers},
};

/// How many looks a file that was written is looked at again, whoever says nothing of it.
const LATELY: u8 = 8;
/// Of so many at most; what cannot be trusted is not counted.
const MOST: usize = 1024;
/// The shortest time after which all is looked at again.
const WHOLE: Duration = Duration::from_secs(2);
/// And at most this part of the time is spent on it.
const PART: u32 = 200;

/// What is remembered of a state.
struct Memory {
    head: Id,
    /// Which directories its trees were.
    tops: Vec<(u64, u64)>,
    excluded: Vec<Vec<u8>>,
    names: Names,
    /// What was written lately, and for how many more looks it counts.
    lately: HashMap<Vec<u8>, u8>,
    /// What was told already and not yet looked at.
    pending: Hints,
    whole: Instant,
    took: Duration,
}

/// The watcher of a node, and what is remembered of its states.
pub struct Watching {
    fanotify: std::result::Result<Fanotify, String>,
    pages: std::result::Result<Arc<Pages>, String>,
    memory: Mutex<HashMap<u64, Memory>>,
    looks: [AtomicU64; 2],
    missed: AtomicU64,
}

/// What is not wanted.
const UNWANTED: &str = "the configuration does not want it (`[history] watcher`)";

impl Watching {
    fn with(
        fanotify: std::result::Result<Fanotify, String>,
        pages: std::result::Result<Arc<Pages>, String>,
    ) -> Watching {
        Watching {
            fanotify,
            pages,
            memory: Mutex::default(),
            looks: Default::default(),
            missed: AtomicU64::new(0),
        }
    }

    /// For live trees below a directory, as far as the kernel lets it: eBPF programs, and fanotify, which is relied on only
    /// with them. `scratch` is a directory on the same file system to try it in.
    #[must_use]
    pub fn auto(root: &Path, scratch: &Path) -> Watching {
        let pages = Pages::open(root).map(Arc::new);
        let fanotify = match &pages {
            Ok(pages) => pages
                .attributes()
                .and_then(|()| Fanotify::open(root, scratch, Some(Arc::clone(pages)))),
            Err(why) => Err(why.clone()),
        };
        Watching::with(fanotify, pages)
    }

    /// fanotify alone.
    #[must_use]
    pub fn fanotify_alone(root: &Path, scratch: &Path) -> Watching {
        Watching::with(Fanotify::open(root, scratch, None), Err(UNWANTED.into()))
    }

    /// Nobody says where to look.
    #[must_use]
    pub fn scan() -> Watching {
        Watching::with(Err(UNWANTED.into()), Err(UNWANTED.into()))
    }

    /// What tells of the pages of large files that are written to, or why nothing does.
    ///
    /// # Errors
    /// Why nothing does.
    pub fn pages(&self) -> std::result::Result<&Pages, &str> {
        self.pages.as_deref().map_err(String::as_str)
    }

    /// The watcher, or why there is none.
    ///
    /// # Errors
    /// Why there is none.
    pub fn fanotify(&self) -> std::result::Result<&Fanotify, &str> {
        self.fanotify.as_ref().map_err(String::as_str)
    }

    /// Looks at all of a tree, looks at what was named, and changes that the first found alone.
    pub(crate) fn counts(&self) -> (u64, u64, u64) {
        let [whole, named] = &self.looks;
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        (read(whole), read(named), read(&self.missed))
    }

    fn memory(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Memory>> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing is known of a state: all of it is looked at next time.
    pub(crate) fn forget(&self, state: u64) {
        self.memory().remove(&state);
        if let Ok(fanotify) = &self.fanotify {
            fanotify.forget(state);
        }
    }
}

/// How a state that is recorded is watched.
pub struct Watched<'a> {
    /// The watcher of the node.
    pub watching: &'a Watching,
    /// What the container has open so that it can write to it.
    pub writers: &'a (dyn Fn() -> io::Result<Writers> + Sync),
    /// This is to be a look at everything, and the last for a while.
    pub last: bool,
}

/// What is known before everything is looked at.
pub(crate) struct Before {
    /// What would have been looked at; none where that was not known.
    named: Option<Hints>,
    /// What happens from then on will be told.
    pub(crate) learning: bool,
    began: Instant,
}

impl Watched<'_> {
    /// What the container may write to, and what was written lately; none where that is not known.
    fn also(&self, memory: &Memory) -> Option<Hints> {
        let mut hints = self.open()?;
        for key in memory.lately.keys() {
            hints.add(key.clone());
        }
        Some(hints)
    }

    fn open(&self) -> Option<Hints> {
        let writers = match (self.writers)() {
            Ok(writers) if !writers.hidden => writers,
            Ok(_) => return None,
            Err(error) => {
                tracing::debug!(%error, "what a container has open is not known");
                return None;
            }
        };
        let mut hints = Hints::default();
        writers.keys.into_iter().for_each(|key| hints.look_at(key));
        Some(hints)
    }

    fn told(&self, state: u64) -> Option<Hints> {
        self.watching.fanotify.as_ref().ok()?.since(state)
    }
}

/// How entries looked: as this commit has read them, else as they were recorded.
struct Looks<'a> {
    store: &'a Store,
    state: &'a Known,
    read: &'a BTreeMap<Vec<u8>, Read>,
    gone: &'a BTreeSet<Vec<u8>>,
}

/// How something looks that must be looked at again whatever it looks like.
pub(crate) fn distrusted(inode: u64) -> Look {
    Look {
        inode,
        ..Look::default()
    }
}

impl Recorded for Looks<'_> {
    fn look(&self, key: &[u8]) -> Result<Option<Look>> {
        if self.gone.contains(key) {
            return Ok(None);
        }
        match self.read.get(key) {
            Some(read) => Ok(Some(read.look.unwrap_or(distrusted(read.inode)))),
            None => Ok(self.store.look(self.state, key)?),
        }
    }

    fn below(&self, key: &[u8]) -> Result<BTreeMap<Vec<u8>, Look>> {
        let mut below = BTreeMap::new();
        self.store.looks_below(self.state, key, |entry, look| {
            if !self.gone.contains(entry) {
                below.insert(entry.to_vec(), look);
            }
            Ok(())
        })?;
        let first = [key, &[0]].concat();
        let read = self.read.range(first.clone()..);
        for (entry, read) in read.take_while(|(entry, _)| entry.starts_with(&first)) {
            below.insert(entry.clone(), read.look.unwrap_or(distrusted(read.inode)));
        }
        Ok(below)
    }
}

/// A commit in the making.
struct Making<'a, 'c, 's> {
    capture: &'a Capture<'c>,
    store: &'s Store,
    recorder: &'a Recorder<'a, 's>,
    watched: &'a Watched<'c>,
    fanotify: &'a Fanotify,
    excluded: &'a [Vec<u8>],
    /// When it was last looked.
    at: SystemTime,
    memory: Memory,
    read: BTreeMap<Vec<u8>, Read>,
    gone: BTreeSet<Vec<u8>>,
    /// What was found and not read when it came to that; it may have been read before or since.
    missed: HashSet<Vec<u8>>,
}

impl Making<'_, '_, '_> {
    fn look(&self, hints: &Hints) -> std::result::Result<Found, Short> {
        let tops: Result<HashMap<&[u8], _>> = self
            .capture
            .tops
            .iter()
            .map(|top| Ok((top.name.as_slice(), tree::top(&top.path).on("open", &top.path)?)))
            .collect();
        let beyond = Cell::new(false);
        let looking = Looking {
            tops: tops?,
            wanted: &|key| {
                let wanted = !self.excluded.iter().any(|excluded| excluded == key);
                if wanted && tree::is_beyond(key) {
                    beyond.set(true);
                    return false;
                }
                wanted
            },
            recorded: &Looks {
                store: self.store,
                state: self.capture.state,
                read: &self.read,
                gone: &self.gone,
            },
            names: &self.memory.names,
            find: &|handle| self.fanotify.find(handle),
        };
        let found = looking.look(hints)?;
        match beyond.get() {
            true => Err(Short::Beyond),
            false => Ok(found),
        }
    }

    /// Where to look again.
    fn hints(&self) -> std::result::Result<Hints, Short> {
        let told = self.watched.told(self.capture.state.number);
        let mut hints = told.ok_or(Short::Unknown)?;
        hints.extend(self.watched.also(&self.memory).ok_or(Short::Unknown)?);
        for (key, _) in self.read.iter().filter(|(_, read)| read.look.is_none()) {
            hints.add(key.clone());
        }
        Ok(hints)
    }

    /// Looks where it is told to, and reads what is found.
    fn taken(&mut self, hints: &Hints, flush: bool) -> std::result::Result<(), Short> {
        let found = self.look(hints)?;
        Ok(self.take(found, self.at, flush)?)
    }

    /// Reads what was found.
    fn take(&mut self, found: Found, at: SystemTime, flush: bool) -> Result<()> {
        for key in &found.gone {
            if found.changed.contains_key(key) {
                continue;
            }
            self.read.remove(key);
            self.memory.names.is_not(key);
            self.memory.lately.remove(key);
            self.gone.insert(key.clone());
        }
        let changed: Vec<Seen> = found.changed.into_values().collect();
        for seen in &changed {
            self.gone.remove(&seen.key);
            self.memory.names.is(seen);
            // What vanishes before it is read is looked at again.
            self.memory.lately.insert(seen.key.clone(), 2);
        }
        let links = Links::of(&changed);
        let seen: Vec<&Seen> = changed.iter().collect();
        let mut read = self.recorder.read(&seen, &links, at, flush)?;
        self.missed.extend(unread(&seen, &read));
        if !flush && self.capture.freezer.is_some() {
            read.values_mut().for_each(Read::unflushed);
        }
        self.read.extend(read);
        Ok(())
    }

    /// What may be another name of what was read or is gone. What was missed stays as it was recorded, and the names of
    /// files are as they were when it was found.
    fn names(&self) -> Result<Vec<Vec<u8>>> {
        let mut files: BTreeSet<u64> = self.read.values().map(|read| read.inode).collect();
        for key in self.read.keys().chain(&self.gone) {
            files.extend(self.store.look(self.capture.state, key)?.map(|look| look.inode));
        }
        let names = files.into_iter().flat_map(|file| self.memory.names.inode(file));
        Ok(names.chain(&self.missed).cloned().collect())
    }

    /// What it looks at next time.
    fn remember(&mut self) {
        let lately = &mut self.memory.lately;
        lately.retain(|key, looks| {
            *looks -= 1;
            *looks > 0 && !self.read.contains_key(key)
        });
        self.memory.lately.extend(remembered(&self.read));
    }
}

/// What is to be looked at again of what was read.
pub(crate) fn remembered<'a>(
    read: impl IntoIterator<Item = (&'a Vec<u8>, &'a Read)>,
) -> HashMap<Vec<u8>, u8> {
    let mut lately = HashMap::new();
    for (key, read) in read {
        let file = read.entry.what() == Kind::File;
        if read.look.is_none() || (file && lately.len() < MOST) {
            lately.insert(key.clone(), LATELY);
        }
    }
    lately
}

impl still::Looking for Making<'_, '_, '_> {
    type Error = Short;

    fn again(&mut self) -> std::result::Result<(), Short> {
        self.at = SystemTime::now();
        let hints = self.hints()?;
        self.taken(&hints, true)
    }

    fn last(&mut self, stop: &mut Stop<'_>) -> std::result::Result<(), Short> {
        // From before it is asked what is open: what is opened after that is told.
        if !self.fanotify.opens(true) {
            return Err(Short::Unknown);
        }
        let looked = self.hints().and_then(|also| {
            stop.during(|| {
                self.at = SystemTime::now();
                let told = self.watched.told(self.capture.state.number);
                let mut hints = told.ok_or(Short::Unknown)?;
                hints.extend(also);
                self.taken(&hints, false)
            })
        });
        self.fanotify.opens(false);
        looked
    }
}

fn tops(capture: &Capture<'_>) -> Vec<(u64, u64)> {
    let of = |path: &PathBuf| std::fs::symlink_metadata(path).map_or((0, 0), |top| (top.dev(), top.ino()));
    capture.tops.iter().map(|top| of(&top.path)).collect()
}

impl Capture<'_> {
    /// All that is excluded.
    fn all_excluded(&self) -> Vec<Vec<u8>> {
        self.tops.iter().flat_map(|top| self.excluded(top)).collect()
    }

    /// What is remembered, if it is of this tree and may be gone by.
    fn remembered(&self, watched: &Watched<'_>) -> Option<Memory> {
        let memory = watched.watching.memory().remove(&self.state.number)?;
        let same = self.state.head.map(|(head, _)| head) == Some(memory.head)
            && tops(self) == memory.tops
            && self.all_excluded() == memory.excluded;
        same.then_some(memory)
    }

    /// Makes a commit of what is named; none where all must be looked at instead.
    pub(crate) fn named(&self, store: &Store, recorder: &Recorder<'_, '_>) -> Result<Option<Outcome>> {
        let Some(watched) = self.watch.as_ref().filter(|watched| !watched.last) else {
            return Ok(None);
        };
        let Ok(fanotify) = watched.watching.fanotify.as_ref() else {
            return Ok(None);
        };
        let Some(memory) = self.remembered(watched) else {
            return Ok(None);
        };
        if memory.whole.elapsed() > WHOLE.max(memory.took * PART) {
            // Still needed, to tell what this one alone has found.
            watched.watching.memory().insert(self.state.number, memory);
            return Ok(None);
        }
        let excluded = self.all_excluded();
        let mut making = Making {
            capture: self,
            store,
            recorder,
            watched,
            fanotify,
            excluded: &excluded,
            at: SystemTime::now(),
            memory,
            read: BTreeMap::new(),
            gone: BTreeSet::new(),
            missed: HashSet::new(),
        };
        match self.make_of(&mut making) {
            Ok(outcome) => {
                let [_, named] = &watched.watching.looks;
                named.fetch_add(1, Ordering::Relaxed);
                watched.watching.memory().insert(self.state.number, making.memory);
                Ok(Some(outcome))
            }
            Err(why @ (Short::Names | Short::Beyond | Short::Unknown)) => {
                tracing::debug!(state = self.state.name, %why, "all is looked at");
                // It need not wait while a whole tree is read; it is told again before it is stopped.
                recorder.quiesced.end();
                Ok(None)
            }
            Err(Short::Failed(error)) => Err(error),
            Err(Short::Io(source)) => Err(Error::Io {
                context: "look at what has changed".into(),
                source,
            }),
        }
    }

    fn make_of(&self, making: &mut Making<'_, '_, '_>) -> std::result::Result<Outcome, Short> {
        let began = Instant::now();
        making.at = SystemTime::now();
        let told = making.watched.told(self.state.number);
        let mut hints = told.ok_or(Short::Unknown)?;
        let also = making.watched.also(&making.memory).ok_or(Short::Unknown)?;
        hints.extend(std::mem::take(&mut making.memory.pending));
        hints.extend(also);
        let found = making.look(&hints)?;
        tracing::debug!(
            state = self.state.name,
            named = hints.0.len(),
            changed = found.changed.len(),
            gone = found.gone.len(),
            "looked where it was told to"
        );
        let nothing = found.changed.is_empty() && found.gone.is_empty() && self.message.is_none();
        making.take(found, making.at, self.freezer.is_some())?;
        let stood = match self.freezer {
            _ if nothing => Stood::quiet(),
            None => self.by_itself(),
            Some(freezer) => self.standing_still(freezer, making.recorder.quiesced, began, making)?,
        };
        let names = making.names()?;
        making.remember();
        Ok(Outcome {
            names,
            read: std::mem::take(&mut making.read).into_iter().collect(),
            gone: std::mem::take(&mut making.gone).into_iter().collect(),
            nothing,
            at: nanos(making.at),
            stood,
            watcher: making.fanotify.kind(),
            beyond: Beyond::default(),
        })
    }

    /// Everything is about to be looked at.
    pub(crate) fn before(&self) -> Option<Before> {
        let watched = self.watch.as_ref()?;
        let [whole, _] = &watched.watching.looks;
        whole.fetch_add(1, Ordering::Relaxed);
        let fanotify = watched.watching.fanotify.as_ref().ok()?;
        let named = self.remembered(watched).and_then(|memory| {
            let mut named = watched.told(self.state.number)?;
            named.extend(watched.also(&memory)?);
            named.extend(memory.pending);
            Some(named)
        });
        let tops = self.tops.iter().map(|top| (top.name.clone(), top.path.clone()));
        let trees = Trees {
            name: self.state.name.clone(),
            tops: tops.collect(),
            excluded: self.all_excluded(),
        };
        Some(Before {
            named,
            learning: !watched.last && fanotify.begin(self.state.number, trees),
            began: Instant::now(),
        })
    }

    /// It was walked, and these are its directories.
    pub(crate) fn learned(&self, dirs: Vec<(Handle, Vec<u8>)>) {
        if let Some(Ok(fanotify)) = self.watch.as_ref().map(|watched| &watched.watching.fanotify) {
            fanotify.learned(self.state.number, dirs);
        }
    }

    /// Everything was looked at: `seen` is what there is, `changes` are keys that differ from the commit before.
    pub(crate) fn after(
        &self,
        before: Option<Before>,
        head: Id,
        seen: &[Seen],
        lately: HashMap<Vec<u8>, u8>,
        changes: &[Vec<u8>],
    ) {
        let (Some(watched), Some(before)) = (&self.watch, before) else {
            return;
        };
        let mut memory = Memory {
            head,
            tops: tops(self),
            excluded: self.all_excluded(),
            names: Names::of(seen.iter()),
            lately,
            pending: Hints::default(),
            whole: Instant::now(),
            took: before.began.elapsed(),
        };
        if let Some(mut named) = before.named {
            let told = match before.learning {
                true => watched.told(self.state.number),
                false => Some(Hints::default()),
            };
            if let (Some(told), Some(open)) = (told, watched.open()) {
                memory.pending = told.clone();
                named.extend(told);
                named.extend(open);
                let written: Vec<&Vec<u8>> = changes.iter().filter(|key| !named.covers(key)).collect();
                for key in &written {
                    tracing::warn!(state = self.state.name, key = %store::format::Shown(key), "changed, and nobody told");
                }
                watched
                    .watching
                    .missed
                    .fetch_add(written.len() as u64, Ordering::Relaxed);
            } else if before.learning {
                watched.watching.forget(self.state.number);
                return;
            }
        }
        if before.learning {
            watched.watching.memory().insert(self.state.number, memory);
        } else {
            watched.watching.forget(self.state.number);
        }
    }

    /// A commit was made of what was named.
    pub(crate) fn moved_on(&self, head: Id) {
        if let Some(watched) = &self.watch
            && let Some(memory) = watched.watching.memory().get_mut(&self.state.number)
        {
            memory.head = head;
        }
    }
}

#[cfg(test)]
mod pages_faults;
#[cfg(test)]
mod pages_tests;
#[cfg(test)]
mod tests;
