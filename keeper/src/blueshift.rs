//! BlueShift: live tree to commit.
//!
//! The scan is the truth: what differs from the looks that the last commit recorded is read, the rest is taken as it
//! was. While a container runs, most is read before it is stopped; then, with the container frozen, the tree is looked
//! at once more, and what has changed since is read again: a commit is what a power cut would have left.

use std::{
    cell::RefCell,
    collections::{HashMap, HashSet},
    io,
    ops::ControlFlow,
    os::fd::OwnedFd,
    path::PathBuf,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use store::{
    Id, Known, Look, Recorded, Session, Store,
    format::{Commit, Reason, Shown, Watcher},
};

use crate::{
    again::{Again, Difference, is_directory, merged},
    error::{Context, Error, Result},
    named::several,
    progress::Progress,
    quiesce::Quiesced,
    recorder::{Links, Read, Recorder, is_file, old},
    sound::{self, Change, Flaw, Old as _},
    still::{Looking, Stood, Stop},
    tree::{self, Seen},
    watcher::{Handle, handle_at},
    watching::{Before, Watched, distrusted, remembered},
};

/// One tree to record.
#[derive(Debug, Clone)]
pub struct Top {
    /// The name that its keys begin with.
    pub name: Vec<u8>,
    /// Where it is.
    pub path: PathBuf,
    /// It is an overlay's upper: character device 0/0 is a whiteout there.
    pub overlay: bool,
}

/// Stops the writers of a tree for a moment.
pub trait Freezer: Sync {
    /// Stops them; false where there is none. Whoever does it lets them go on after `limit` by itself.
    ///
    /// # Errors
    /// When they cannot be stopped: the commit is made all the same, and says so.
    fn freeze(&self, limit: Duration) -> io::Result<bool>;

    /// Lets them go on; says whether they stood still all the time.
    fn thaw(&self) -> bool;

    /// Has them make themselves ready to be recorded; false where they have no way to.
    ///
    /// # Errors
    /// When they try and fail.
    fn quiesce(&self) -> io::Result<bool> {
        Ok(false)
    }

    /// Tells them that it is over, once for each [`Freezer::quiesce`].
    ///
    /// # Errors
    /// When what they do then fails.
    fn release(&self) -> io::Result<()> {
        Ok(())
    }
}

/// How often it is looked for one commit, where what was read is no tree; the last time all is read, whatever is known of it.
const LOOKS: usize = 3;

/// What is to be recorded, and how.
pub struct Capture<'a> {
    /// The state.
    pub state: &'a Known,
    /// Its trees.
    pub tops: &'a [Top],
    /// Paths in the container that are not recorded.
    pub exclude: &'a [PathBuf],
    /// Stops the container; none where nothing writes.
    pub freezer: Option<&'a dyn Freezer>,
    /// Where nothing writes: whether that is still so, asked at the end.
    pub undisturbed: &'a (dyn Fn() -> bool + Sync),
    /// How long it may stand still.
    pub max_pause: Duration,
    /// Why.
    pub reason: Reason,
    /// What a person says of it: then a commit is made even where nothing has changed.
    pub message: Option<&'a str>,
    /// The image's digest.
    pub image: &'a str,
    /// The node's name.
    pub node: &'a str,
    /// The boot.
    pub boot: &'a str,
    /// How the trees are watched; where they are not, everything is looked at.
    pub watch: Option<Watched<'a>>,
}

/// What has become of a tree, and how that was found out.
pub(crate) struct Outcome {
    /// What was read, by key.
    pub read: HashMap<Vec<u8>, Read>,
    /// What was recorded and is no more.
    pub gone: Vec<Vec<u8>>,
    /// Nothing looked otherwise, and nobody asked for a commit.
    pub nothing: bool,
    /// When.
    pub at: i64,
    pub stood: Stood,
    pub watcher: Watcher,
    /// What is not in it.
    pub beyond: Beyond,
    /// Keys that may be other names of what was read or is gone.
    pub names: Vec<Vec<u8>>,
}

/// What is in directories too deep to be recorded: how much, and the first.
#[derive(Debug, Default)]
pub(crate) struct Beyond {
    count: u64,
    first: Vec<u8>,
}

impl Beyond {
    /// Nothing is.
    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }

    fn add(&mut self, key: &[u8]) {
        if self.count == 0 {
            self.first = key.to_vec();
        }
        self.count += 1;
    }

    /// A commit's message, which says of what is not in it.
    fn told(&self, message: &str) -> String {
        if self.count == 0 {
            return message.to_owned();
        }
        // A name at the end of a path that is 32 KiB long is not what anybody reads it for.
        let shown: String = Shown(&self.first).to_string().chars().take(80).collect();
        let told = format!(
            "left out, too deep or too long to be recorded: {} beginning with {shown}...",
            self.count
        );
        match message {
            "" => told,
            message => format!("{message} ({told})"),
        }
    }
}

/// All that a walk found.
struct Scan {
    seen: Vec<Seen>,
    at: SystemTime,
    /// The directories, where they are to be watched.
    dirs: Vec<(Handle, Vec<u8>)>,
    /// What was found, and could not be read: it is gone, or a directory on the way to it was elsewhere for a moment, which
    /// leaves no mark on it.
    missed: HashSet<Vec<u8>>,
}

impl Scan {
    /// Makes ready to look again. What was read is told by how it looked when it was read; that may have been after the walk,
    /// which had listed the directories: one that had changed by then is listed again.
    fn again(&self, read: &HashMap<Vec<u8>, Read>) -> Again<'_> {
        Again::new(&self.seen, |seen| match read.get(&seen.key) {
            Some(read) => read
                .look
                .filter(|look| !is_directory(&seen.stat) || *look == tree::look(&seen.stat)),
            None if self.missed.contains(&seen.key) => None,
            None => Some(tree::look(&seen.stat)).filter(|look| self.old(look)),
        })
    }

    /// Whether an entry had not changed for so long that no later change can look the same.
    fn old(&self, look: &Look) -> bool {
        old(look, self.at)
    }
}

pub(crate) fn nanos(at: SystemTime) -> i64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

impl Capture<'_> {
    /// Makes a commit; none where nothing has changed and nobody asked for one.
    ///
    /// # Errors
    /// A tree that cannot be read, a full or failing disk.
    pub fn run(&self, store: &Store) -> Result<Option<Recorded>> {
        self.watched(store, &Progress::default())
    }

    /// The same, with somebody who wants to know how far it is.
    ///
    /// # Errors
    /// The same, and a stop.
    pub fn watched(&self, store: &Store, progress: &Progress) -> Result<Option<Recorded>> {
        let quiesced = Quiesced::new(self.freezer);
        let mut looks = 0;
        loop {
            looks += 1;
            let made = self.make(store, progress, &quiesced, looks == LOOKS);
            if made.is_err()
                && let Some(watched) = &self.watch
            {
                watched.watching.forget(self.state.number);
            }
            match made {
                Err(Error::Torn { state, flaw }) if looks < LOOKS => {
                    tracing::warn!(state, %flaw, "what was read is no tree: it is looked again");
                }
                made => return made,
            }
        }
    }

    /// Looks, and makes a commit of what was found. `anew`: whatever is known, all is read.
    fn make(
        &self,
        store: &Store,
        progress: &Progress,
        quiesced: &Quiesced<'_>,
        anew: bool,
    ) -> Result<Option<Recorded>> {
        let _span = tracing::debug_span!("commit", state = self.state.name).entered();
        progress.begin("looking");
        let old = match &self.state.head {
            Some((id, _)) => Some(store.commit(*id)?.commit.tree_id()?),
            None => None,
        };
        let session = store.session(self.state.domain);
        let recorder = Recorder {
            capture: self,
            store,
            session: &session,
            old,
            progress,
            quiesced,
            large: Default::default(),
        };
        if let Some(outcome) = self.named(store, &recorder)? {
            if outcome.nothing {
                return Ok(None);
            }
            let changes = self.changes(store, old, progress, &outcome)?;
            let made = self.conclude(store, session, old, changes, outcome, &HashMap::new())?;
            if let Some(made) = &made {
                self.moved_on(made.id);
            }
            return Ok(made);
        }
        let before = self.before();
        let looks = match anew {
            true => HashMap::new(),
            false => self.looks(store)?,
        };
        let (mut outcome, seen) = self.whole(&recorder, &looks, before.as_ref())?;
        if !outcome.nothing {
            let there: HashSet<&[u8]> = seen.iter().map(|seen| seen.key.as_slice()).collect();
            // What was read and is gone again has never been.
            outcome.read.retain(|key, _| there.contains(key.as_slice()));
            self.gone(store, old, &there, &looks, &mut outcome.gone)?;
            outcome.names = names(&outcome, &there, &looks);
        }
        let changes = match outcome.nothing {
            true => Vec::new(),
            false => self.changes(store, old, progress, &outcome)?,
        };
        // A directory that is too deep cannot be watched.
        let before = before.filter(|_| outcome.beyond.is_empty());
        if let Some(watched) = self.watch.as_ref().filter(|_| before.is_none()) {
            watched.watching.forget(self.state.number);
        }
        let changed: Vec<Vec<u8>> = match &self.watch {
            Some(_) => changes.iter().map(|change| change.key.clone()).collect(),
            None => Vec::new(),
        };
        let lately = remembered(&outcome.read);
        let made = match outcome.nothing {
            true => None,
            false => self.conclude(store, session, old, changes, outcome, &looks)?,
        };
        let head = made
            .as_ref()
            .map(|made| made.id)
            .or(self.state.head.map(|(id, _)| id));
        if let Some(head) = head {
            self.after(before, head, &seen, lately, &changed);
        }
        Ok(made)
    }

    /// Looks at everything.
    fn whole(
        &self,
        recorder: &Recorder<'_, '_>,
        looks: &HashMap<Vec<u8>, Look>,
        before: Option<&Before>,
    ) -> Result<(Outcome, Vec<Seen>)> {
        let learning = before.is_some_and(|before| before.learning);
        let began = Instant::now();
        let (mut first, beyond) = tracing::debug_span!("look").in_scope(|| self.scan(learning))?;
        if learning && beyond.is_empty() {
            self.learned(std::mem::take(&mut first.dirs));
        }
        let suspects = suspects(&first.seen, looks);
        // As many as there were, and each looks as it did.
        let still = suspects.is_empty() && first.seen.len() == looks.len();
        let outcome = |read, at, stood| Outcome {
            read,
            gone: Vec::new(),
            nothing: false,
            at: nanos(at),
            stood,
            watcher: Watcher::Scan,
            beyond,
            names: Vec::new(),
        };
        if still && self.message.is_none() && recorder.old.is_some() {
            let mut nothing = outcome(HashMap::new(), first.at, Stood::quiet());
            nothing.nothing = true;
            return Ok((nothing, first.seen));
        }
        let links = Links::of(&first.seen);
        tracing::debug!(
            state = self.state.name,
            entries = first.seen.len(),
            suspects = suspects.len(),
            "looked"
        );
        recorder.progress.begin("recording");
        let size = |seen: &&Seen| u64::try_from(seen.stat.st_size).unwrap_or(0);
        let files = suspects
            .iter()
            .filter(|seen| links.first(seen).is_none() && is_file(seen));
        recorder
            .progress
            .expect(suspects.len() as u64, files.map(size).sum());
        let flush = self.freezer.is_some();
        let read =
            tracing::debug_span!("read").in_scope(|| recorder.read(&suspects, &links, first.at, flush))?;
        first.missed = unread(&suspects, &read);
        let Some(freezer) = self.freezer else {
            return Ok((outcome(read, first.at, self.by_itself()), first.seen));
        };
        let mut all = All {
            capture: self,
            recorder,
            last: first,
            links,
            read,
        };
        let stood = self.standing_still(freezer, recorder.quiesced, began, &mut all)?;
        Ok((outcome(all.read, all.last.at, stood), all.last.seen))
    }

    /// Makes the commit, if there is anything to say in it.
    fn conclude(
        &self,
        store: &Store,
        session: Session<'_>,
        old: Option<Id>,
        changes: Vec<Change>,
        outcome: Outcome,
        looks: &HashMap<Vec<u8>, Look>,
    ) -> Result<Option<Recorded>> {
        let stood = &outcome.stood;
        if let Some(doubt) = &stood.doubt {
            let consistency = stood.consistency;
            tracing::warn!(state = self.state.name, %consistency, %doubt, "a commit is not what it might be");
        }
        let bytes = outcome.read.values().map(|read| read.bytes).sum();
        let renew = |batch: &mut store::Batch| {
            for read in outcome.read.values() {
                let look = read.look.unwrap_or(distrusted(read.inode));
                batch.look(self.state.number, &read.entry.key, &look);
            }
            for key in &outcome.gone {
                batch.forget_look(self.state.number, key);
            }
        };
        if changes.is_empty() && self.message.is_none() && old.is_some() {
            drop(session);
            let newer = |read: &Read| {
                read.look
                    .is_some_and(|look| looks.get(&read.entry.key) != Some(&look))
            };
            if outcome.read.values().any(newer) || !outcome.gone.is_empty() {
                store.record_looks(renew)?;
            }
            return Ok(None);
        }
        let changed = changes.len() as u64;
        let changes = changes.into_iter().map(|change| (change.key, change.after));
        let top = tracing::debug_span!("tree").in_scope(|| session.tree(old, changes))?;
        let commit = Commit {
            tree: top.id.0.to_vec(),
            entries: top.entries,
            changed,
            read: bytes,
            time: outcome.at,
            monotonic: monotonic(),
            node: self.node.into(),
            boot: self.boot.into(),
            image: self.image.into(),
            consistency: stood.consistency as i32,
            reason: self.reason as i32,
            message: outcome.beyond.told(self.message.unwrap_or_default()),
            pause: u64::try_from(stood.pause.as_nanos()).unwrap_or(u64::MAX),
            doubt: stood.doubt.as_ref().map(ToString::to_string).unwrap_or_default(),
            watcher: outcome.watcher as i32,
            ..Commit::default()
        };
        let made = tracing::debug_span!("publish").in_scope(|| session.commit(self.state, commit, renew))?;
        Ok(Some(made))
    }

    fn looks(&self, store: &Store) -> Result<HashMap<Vec<u8>, Look>> {
        let mut looks = HashMap::new();
        store.looks(self.state, |key, look| {
            looks.insert(key.to_vec(), look);
            Ok(())
        })?;
        Ok(looks)
    }

    /// What there is, and what is too deep to be recorded.
    fn scan(&self, learning: bool) -> Result<(Scan, Beyond)> {
        let at = SystemTime::now();
        let mut seen = Vec::new();
        let mut dirs = Vec::new();
        let beyond = RefCell::<Beyond>::default();
        let mut tops: Vec<&Top> = self.tops.iter().collect();
        tops.sort_by(|a, b| a.name.cmp(&b.name));
        for top in tops {
            let excluded = self.excluded(top);
            let wanted = |key: &[u8]| {
                let wanted = !excluded.iter().any(|excluded| excluded == key);
                if wanted && tree::is_beyond(key) {
                    beyond.borrow_mut().add(key);
                    return false;
                }
                wanted
            };
            let each = |found: Seen| {
                if !tree::is_socket(&found.stat) {
                    seen.push(found);
                }
                Ok(())
            };
            let opened = |dir: &OwnedFd, key: &[u8]| {
                if learning {
                    dirs.push((handle_at(dir, b"")?, key.to_vec()));
                }
                Ok(())
            };
            tree::top(&top.path)
                .and_then(|open| tree::walk_opening(open, &top.name, wanted, each, opened))
                .on("walk", &top.path)?;
        }
        let scan = Scan {
            seen,
            at,
            dirs,
            missed: HashSet::new(),
        };
        Ok((scan, beyond.into_inner()))
    }

    /// The keys of what is excluded of a tree.
    pub(crate) fn excluded(&self, top: &Top) -> Vec<Vec<u8>> {
        use std::os::unix::ffi::OsStrExt;
        let root = live::Root::of_dir_name(&String::from_utf8_lossy(&top.name));
        let at = root
            .as_ref()
            .map_or(std::path::Path::new("/"), live::Root::destination);
        let below = self.exclude.iter().filter_map(|path| path.strip_prefix(at).ok());
        below
            .filter(|path| !path.as_os_str().is_empty())
            .map(|path| store::format::key(&top.name, path.as_os_str().as_bytes()))
            .collect()
    }

    /// What has become of the tree since the last look.
    fn difference(&self, again: &Again<'_>) -> Result<Difference> {
        let excluded: HashMap<&[u8], Vec<Vec<u8>>> = self
            .tops
            .iter()
            .map(|top| (top.name.as_slice(), self.excluded(top)))
            .collect();
        let open = |name: &[u8]| match self.tops.iter().find(|top| top.name == name) {
            Some(top) => tree::top(&top.path),
            None => Err(io::ErrorKind::NotFound.into()),
        };
        let wanted = |key: &[u8]| {
            let of = excluded.iter().find(|(name, _)| {
                key.strip_prefix(**name)
                    .is_some_and(|rest| rest.first().is_none_or(|b| *b == 0))
            });
            !of.is_some_and(|(_, excluded)| excluded.iter().any(|excluded| excluded == key))
                && !tree::is_beyond(key)
        };
        let of = self.tops.first().map(|top| top.path.clone()).unwrap_or_default();
        again.look(open, &wanted).on("look again at", &of)
    }

    /// Which names are of one file may be another thing now; answers with those of them that look as they did.
    fn follow(&self, first: &Scan, difference: &Difference, links: &mut Links) -> Vec<Seen> {
        let gone = difference.gone.iter().filter_map(|gone| first.seen.get(*gone));
        let touched = difference.changed.iter().chain(gone);
        let touched: HashSet<u64> = inodes_of_several(touched).collect();
        if touched.is_empty() {
            return Vec::new();
        }
        let now = merged(first.seen.clone(), difference);
        *links = Links::of(&now);
        let looked_at: HashSet<&[u8]> = difference
            .changed
            .iter()
            .map(|seen| seen.key.as_slice())
            .collect();
        let others = now.into_iter().filter(|seen| {
            let of = several(&seen.stat) && touched.contains(&seen.stat.st_ino);
            of && !looked_at.contains(seen.key.as_slice())
        });
        others.collect()
    }

    /// What differs from the old tree, in the order of its keys.
    ///
    /// # Errors
    /// [`Error::Torn`] where it does not make a tree of it.
    pub(crate) fn changes(
        &self,
        store: &Store,
        old: Option<Id>,
        progress: &Progress,
        outcome: &Outcome,
    ) -> Result<Vec<Change>> {
        let old = sound::Tree {
            store,
            domain: self.state.domain,
            top: old,
            progress,
        };
        let mut changes = Vec::new();
        for (key, read) in &outcome.read {
            let before = old.entry(key)?;
            if before.as_ref() != Some(&read.entry) {
                changes.push(Change {
                    key: key.clone(),
                    before,
                    after: Some(read.entry.clone()),
                });
            }
        }
        for key in &outcome.gone {
            if let Some(before) = old.entry(key)? {
                changes.push(Change {
                    key: key.clone(),
                    before: Some(before),
                    after: None,
                });
            }
        }
        changes.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        match sound::flaw(&old, &changes, &outcome.names)? {
            Some(flaw) => Err(self.torn(flaw)),
            None => Ok(changes),
        }
    }

    fn torn(&self, flaw: Flaw) -> Error {
        Error::Torn {
            state: self.state.name.clone(),
            flaw,
        }
    }

    /// What was there and is gone. Without looks (another live tree) all of the old tree is asked.
    fn gone(
        &self,
        store: &Store,
        old: Option<Id>,
        there: &HashSet<&[u8]>,
        looks: &HashMap<Vec<u8>, Look>,
        gone: &mut Vec<Vec<u8>>,
    ) -> Result<()> {
        let mut asked = |key: &[u8]| {
            if !there.contains(key) {
                gone.push(key.to_vec());
            }
        };
        match old {
            Some(old) if looks.is_empty() => store.entries(self.state.domain, old, b"", |entry| {
                asked(&entry.key);
                Ok(ControlFlow::Continue(()))
            })?,
            _ => looks.keys().for_each(|key| asked(key)),
        }
        Ok(())
    }
}

/// What there is that may be another name of what was read or is gone: it was read as one, or was the same file when it was
/// recorded. What was neither read nor is known by its look may be of any file.
fn names(outcome: &Outcome, there: &HashSet<&[u8]>, looks: &HashMap<Vec<u8>, Look>) -> Vec<Vec<u8>> {
    let touched = outcome.read.keys().chain(&outcome.gone);
    let touched: HashSet<u64> = touched.filter_map(|key| Some(looks.get(key)?.inode)).collect();
    let may = |key: &[u8]| match outcome.read.get(key) {
        Some(read) => !read.entry.link.is_empty(),
        None => looks.get(key).is_none_or(|look| touched.contains(&look.inode)),
    };
    there
        .iter()
        .filter(|key| may(key))
        .map(|key| key.to_vec())
        .collect()
}

/// The files of several names among these.
fn inodes_of_several<'s>(seen: impl Iterator<Item = &'s Seen>) -> impl Iterator<Item = u64> {
    seen.filter(|seen| several(&seen.stat))
        .map(|seen| seen.stat.st_ino)
}

/// What does not look as it did. A name that moves with its directory leaves no mark on the file and its other names, and
/// they are told by the first of all: with one of them go all.
fn suspects<'s>(seen: &'s [Seen], looks: &HashMap<Vec<u8>, Look>) -> Vec<&'s Seen> {
    let differs = |seen: &&Seen| looks.get(&seen.key) != Some(&tree::look(&seen.stat));
    let mut touched: HashSet<u64> = inodes_of_several(seen.iter().filter(differs)).collect();
    if inodes_of_several(seen.iter()).next().is_some() {
        let there: HashSet<&[u8]> = seen.iter().map(|seen| seen.key.as_slice()).collect();
        let gone = looks.iter().filter(|(key, _)| !there.contains(key.as_slice()));
        touched.extend(gone.map(|(_, look)| look.inode));
    }
    seen.iter()
        .filter(|seen| differs(seen) || several(&seen.stat) && touched.contains(&seen.stat.st_ino))
        .collect()
}

/// A whole tree that is looked at.
struct All<'a, 'c, 's> {
    capture: &'a Capture<'c>,
    recorder: &'a Recorder<'a, 's>,
    last: Scan,
    links: Links,
    read: HashMap<Vec<u8>, Read>,
}

/// What another look has found.
struct Anew {
    difference: Difference,
    read: HashMap<Vec<u8>, Read>,
    missed: HashSet<Vec<u8>>,
}

impl All<'_, '_, '_> {
    /// What was found, and read of it, at a time.
    fn take(&mut self, found: Anew, at: SystemTime) {
        self.read.extend(found.read);
        self.last = Scan {
            seen: merged(std::mem::take(&mut self.last.seen), &found.difference),
            at,
            dirs: Vec::new(),
            // What was missed before has been found again, or is gone.
            missed: found.missed,
        };
    }
}

/// What was to be read and was not.
pub(crate) fn unread(seen: &[&Seen], read: &HashMap<Vec<u8>, Read>) -> HashSet<Vec<u8>> {
    let missed = seen.iter().filter(|seen| !read.contains_key(&seen.key));
    missed.map(|seen| seen.key.clone()).collect()
}

/// Reads what differs.
fn differing(
    capture: &Capture<'_>,
    recorder: &Recorder<'_, '_>,
    again: &Again<'_>,
    last: &Scan,
    links: &mut Links,
    at: SystemTime,
    flush: bool,
) -> Result<Anew> {
    let difference = capture.difference(again)?;
    let others = capture.follow(last, &difference, links);
    let changed: Vec<&Seen> = difference.changed.iter().chain(&others).collect();
    let read = recorder.read(&changed, links, at, flush)?;
    let missed = unread(&changed, &read);
    Ok(Anew {
        difference,
        read,
        missed,
    })
}

impl Looking for All<'_, '_, '_> {
    type Error = Error;

    fn again(&mut self) -> Result<()> {
        let at = SystemTime::now();
        let again = self.last.again(&self.read);
        let found = differing(
            self.capture,
            self.recorder,
            &again,
            &self.last,
            &mut self.links,
            at,
            true,
        )?;
        self.take(found, at);
        Ok(())
    }

    fn last(&mut self, stop: &mut Stop<'_>) -> Result<()> {
        let again = self.last.again(&self.read);
        let (at, found) = stop.during(|| {
            let at = SystemTime::now();
            let found = differing(
                self.capture,
                self.recorder,
                &again,
                &self.last,
                &mut self.links,
                at,
                false,
            );
            (at, found)
        });
        let mut found = found?;
        found.read.values_mut().for_each(Read::unflushed);
        self.take(found, at);
        Ok(())
    }
}

/// Nanoseconds since the boot.
pub(crate) fn monotonic() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME);
    now.map(|t| t.tv_sec().cast_unsigned().saturating_mul(1_000_000_000) + t.tv_nsec().cast_unsigned())
        .unwrap_or(0)
}

#[cfg(test)]
mod torn_tests;
