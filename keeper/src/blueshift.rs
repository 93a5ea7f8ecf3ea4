//! BlueShift: live tree to commit.
//!
//! The scan is the truth: what differs from the looks that the last commit recorded is read, the rest is taken as it
//! was. While a container runs, most is read before it is stopped; then, with the container frozen, the tree is looked
//! at once more, and what has changed since is read again: a commit is what a power cut would have left.
//!
//! Stores to mapped memory move a file's times only when its page was clean before: so files are flushed before they
//! are read, and one that was read while it could not be flushed is looked at again next time, whatever its times say.

use std::{
    cell::RefCell,
    collections::{HashMap, HashSet},
    fs::File,
    io,
    ops::ControlFlow,
    os::fd::{AsRawFd, OwnedFd},
    path::PathBuf,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use nix::sys::stat::{FileStat, fstat};
use rayon::prelude::*;
use store::{
    Id, Known, Look, Recorded, Session, Store,
    content::Source,
    format::{Commit, Consistency, Entry, Kind, Reason, Shown, place},
};

use crate::{
    again::{Again, Difference, merged},
    error::{Context, Error, Result},
    progress::Progress,
    quiesce::{Doubt, Quiesced},
    tree::{self, Near, Seen},
};

/// A change this close to when it is looked at may be followed by another that moves no time: the kernel's clock for
/// files ticks in milliseconds.
const YOUNG: Duration = Duration::from_millis(20);

/// While reading took longer than this, what has changed meanwhile is read before the container is stopped for the rest.
const CALM: Duration = Duration::from_millis(20);
/// A file of at most this many bytes is not asked for its holes where it has a block for each byte: a longer one may have
/// room that was only promised to it.
const SMALL: u64 = 64 << 10;
/// One that writes faster than it can be read is not caught up with.
const ROUNDS: usize = 4;
/// How often the container is stopped for one commit, where it could not be read in the time that it may stand still.
const STOPS: usize = 3;

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
}

/// An entry that was read.
struct Read {
    entry: Entry,
    /// How it looked when that began; none where it must be looked at again next time.
    look: Option<Look>,
    /// Bytes of content.
    bytes: u64,
}

/// What is in directories too deep to be recorded: how much, and the first.
#[derive(Debug, Default)]
struct Beyond {
    count: u64,
    first: Vec<u8>,
}

impl Beyond {
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
}

impl Scan {
    /// Makes ready to look again. What was read is told by how it looked when it was read; that may have been after the walk.
    fn again(&self, read: &HashMap<Vec<u8>, Read>) -> Again<'_> {
        Again::new(&self.seen, |seen| match read.get(&seen.key) {
            Some(read) => read.look,
            None => Some(tree::look(&seen.stat)).filter(|look| self.old(look)),
        })
    }

    /// Whether an entry had not changed for so long that no later change can look the same.
    fn old(&self, look: &Look) -> bool {
        old(look, self.at)
    }
}

/// Whether what looks so at a time had not changed for so long that no later change can look the same.
fn old(look: &Look, at: SystemTime) -> bool {
    let young = i64::try_from(YOUNG.as_nanos()).unwrap_or(0);
    look.ctime < nanos(at).saturating_sub(young)
}

fn nanos(at: SystemTime) -> i64 {
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
        progress.begin("looking");
        let old = match &self.state.head {
            Some((id, _)) => Some(store.commit(*id)?.commit.tree_id()?),
            None => None,
        };
        let looks = self.looks(store)?;
        let session = store.session(self.state.domain);
        let recorder = Recorder {
            capture: self,
            store,
            session: &session,
            old,
            progress,
        };
        let mut began = Instant::now();
        let (first, beyond) = self.scan()?;
        let suspects = first.seen.iter().filter(|seen| {
            let look = tree::look(&seen.stat);
            looks.get(&seen.key) != Some(&look)
        });
        let suspects: Vec<&Seen> = suspects.collect();
        // As many as there were, and each looks as it did.
        let still = suspects.is_empty() && first.seen.len() == looks.len();
        if still && self.message.is_none() && old.is_some() {
            return Ok(None);
        }
        let mut links = Links::of(&first.seen);
        tracing::debug!(
            state = self.state.name,
            entries = first.seen.len(),
            suspects = suspects.len(),
            "looked"
        );
        progress.begin("recording");
        let size = |seen: &&Seen| u64::try_from(seen.stat.st_size).unwrap_or(0);
        let files = suspects
            .iter()
            .filter(|seen| links.first(seen).is_none() && is_file(seen));
        progress.expect(suspects.len() as u64, files.map(size).sum());
        let flush = self.freezer.is_some();
        let mut read = recorder.read(&suspects, &links, first.at, flush)?;
        let mut first = first;
        let mut pause = Duration::ZERO;
        let mut doubt = None;
        let consistency = match self.freezer {
            None if (self.undisturbed)() => Consistency::Quiet,
            None => {
                doubt = Some(Doubt::Disturbed);
                Consistency::Fuzzy
            }
            Some(freezer) => {
                let quiesced = Quiesced::begin(freezer);
                let mut stops = 0;
                let outcome = loop {
                    stops += 1;
                    for _ in 0..ROUNDS {
                        if began.elapsed() < CALM {
                            break;
                        }
                        began = Instant::now();
                        let at = SystemTime::now();
                        let again = first.again(&read);
                        let difference = self.difference(&again)?;
                        self.follow(&first, &difference, &mut links);
                        let changed: Vec<&Seen> = difference.changed.iter().collect();
                        read.extend(recorder.read(&changed, &links, at, flush)?);
                        first = Scan {
                            seen: merged(first.seen, &difference),
                            at,
                        };
                    }
                    let again = first.again(&read);
                    // Most is behind us: what is lost if this takes long is the rest.
                    let frozen = freezer.freeze(self.max_pause);
                    let stopped = Instant::now();
                    let at = SystemTime::now();
                    let found = self.difference(&again).and_then(|difference| {
                        self.follow(&first, &difference, &mut links);
                        let changed: Vec<&Seen> = difference.changed.iter().collect();
                        let fresh = recorder.read(&changed, &links, at, false)?;
                        Ok((difference, fresh))
                    });
                    pause = stopped.elapsed();
                    let stood = freezer.thaw();
                    let (difference, mut fresh) = found?;
                    for again in fresh.values_mut() {
                        // Not flushed: a later store to a page that is dirty now would move no time.
                        if again.entry.what() == Kind::File {
                            again.look = None;
                        }
                    }
                    read.extend(fresh);
                    first = Scan {
                        seen: merged(first.seen, &difference),
                        at,
                    };
                    match frozen {
                        Ok(true) if !stood && stops < STOPS => began = stopped,
                        Ok(true) if stood => break Ok(Consistency::Crash),
                        Ok(false) => break Ok(Consistency::Quiet),
                        Ok(true) if pause >= self.max_pause => break Err(Doubt::TooMuch(self.max_pause)),
                        Ok(true) => break Err(Doubt::Interrupted),
                        Err(error) => break Err(Doubt::NotStopped(error.to_string())),
                    }
                };
                let ready = quiesced.ready;
                doubt = quiesced.end();
                match outcome {
                    Ok(Consistency::Crash) if ready => Consistency::Application,
                    Ok(consistency) => consistency,
                    Err(why) => {
                        doubt = Some(why);
                        Consistency::Fuzzy
                    }
                }
            }
        };
        if let Some(doubt) = &doubt {
            tracing::warn!(state = self.state.name, %consistency, %doubt, "a commit is not what it might be");
        }
        if !matches!(consistency, Consistency::Crash | Consistency::Application) {
            pause = Duration::ZERO;
        }
        let last = first;
        // What was read and is gone again has never been.
        let there: HashSet<&[u8]> = last.seen.iter().map(|seen| seen.key.as_slice()).collect();
        read.retain(|key, _| there.contains(key.as_slice()));
        let changes = self.changes(store, old, &there, &looks, &read)?;
        let bytes = read.values().map(|read| read.bytes).sum();
        let renew = |batch: &mut store::Batch| {
            for read in read.values() {
                batch.look(self.state.number, &read.entry.key, &read.look.unwrap_or_default());
            }
            for key in looks.keys().filter(|key| !there.contains(key.as_slice())) {
                batch.forget_look(self.state.number, key);
            }
        };
        if changes.is_empty() && self.message.is_none() && old.is_some() {
            drop(session);
            if read.values().any(|read| {
                read.look
                    .is_some_and(|look| looks.get(&read.entry.key) != Some(&look))
            }) {
                store.record_looks(renew)?;
            }
            return Ok(None);
        }
        let changed = changes.len() as u64;
        let top = session.tree(old, changes)?;
        let commit = Commit {
            tree: top.id.0.to_vec(),
            entries: top.entries,
            changed,
            read: bytes,
            time: nanos(last.at),
            monotonic: monotonic(),
            node: self.node.into(),
            boot: self.boot.into(),
            image: self.image.into(),
            consistency: consistency as i32,
            reason: self.reason as i32,
            message: beyond.told(self.message.unwrap_or_default()),
            pause: u64::try_from(pause.as_nanos()).unwrap_or(u64::MAX),
            doubt: doubt.map(|doubt| doubt.to_string()).unwrap_or_default(),
            ..Commit::default()
        };
        Ok(Some(session.commit(self.state, commit, renew)?))
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
    fn scan(&self) -> Result<(Scan, Beyond)> {
        let at = SystemTime::now();
        let mut seen = Vec::new();
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
            tree::walk(&top.path, &top.name, wanted, |found| {
                if !tree::is_socket(&found.stat) {
                    seen.push(found);
                }
                Ok(())
            })
            .on("walk", &top.path)?;
        }
        Ok((Scan { seen, at }, beyond.into_inner()))
    }

    /// The keys of what is excluded of a tree.
    fn excluded(&self, top: &Top) -> Vec<Vec<u8>> {
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

    /// Which names are of one file may be another thing now.
    fn follow(&self, first: &Scan, difference: &Difference, links: &mut Links) {
        let several =
            |seen: &Seen| seen.stat.st_nlink > 1 && seen.stat.st_mode & libc::S_IFMT != libc::S_IFDIR;
        let gone = difference.gone.iter().filter_map(|gone| first.seen.get(*gone));
        if difference.changed.iter().chain(gone).any(several) {
            *links = Links::of(&merged(first.seen.clone(), difference));
        }
    }

    /// What differs from the old tree.
    fn changes(
        &self,
        store: &Store,
        old: Option<Id>,
        there: &HashSet<&[u8]>,
        looks: &HashMap<Vec<u8>, Look>,
        read: &HashMap<Vec<u8>, Read>,
    ) -> Result<Vec<(Vec<u8>, Option<Entry>)>> {
        let mut changes = Vec::new();
        for (key, read) in read {
            let before = match old {
                Some(old) => store.entry(self.state.domain, old, key)?,
                None => None,
            };
            if before.as_ref() != Some(&read.entry) {
                changes.push((key.clone(), Some(read.entry.clone())));
            }
        }
        // What was there and is gone. Without looks (another live tree) all of the old tree is asked.
        let mut gone = |key: &[u8]| {
            if !there.contains(key) {
                changes.push((key.to_vec(), None));
            }
        };
        match old {
            Some(old) if looks.is_empty() => store.entries(self.state.domain, old, b"", |entry| {
                gone(&entry.key);
                Ok(ControlFlow::Continue(()))
            })?,
            Some(_) => looks.keys().for_each(|key| gone(key)),
            None => {}
        }
        Ok(changes)
    }
}

fn is_file(seen: &Seen) -> bool {
    seen.stat.st_mode & libc::S_IFMT == libc::S_IFREG
}

/// A file without holes.
struct Dense<'f>(&'f File);

impl Source for Dense<'_> {
    fn data(&self, at: u64, length: u64) -> io::Result<Option<(u64, u64)>> {
        Ok((at < length).then_some((at, length)))
    }

    fn length(&self) -> io::Result<u64> {
        Source::length(self.0)
    }

    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        Source::read_at(self.0, buffer, at)
    }
}

/// Which names are of one file.
struct Links(HashMap<(u64, u64), Vec<u8>>);

impl Links {
    /// The first key of each file that has several.
    fn of(seen: &[Seen]) -> Links {
        let mut first: HashMap<(u64, u64), Vec<u8>> = HashMap::new();
        for seen in seen {
            let directory = seen.stat.st_mode & libc::S_IFMT == libc::S_IFDIR;
            if seen.stat.st_nlink > 1 && !directory {
                let id = (seen.stat.st_dev, seen.stat.st_ino);
                first.entry(id).or_insert_with(|| seen.key.clone());
            }
        }
        Links(first)
    }

    fn first(&self, seen: &Seen) -> Option<&Vec<u8>> {
        self.0
            .get(&(seen.stat.st_dev, seen.stat.st_ino))
            .filter(|first| **first != seen.key)
    }
}

struct Recorder<'a, 's> {
    capture: &'a Capture<'a>,
    store: &'s Store,
    session: &'a Session<'s>,
    old: Option<Id>,
    progress: &'a Progress,
}

impl Recorder<'_, '_> {
    /// Reads entries, several at a time. What has vanished or turned into something else is left out: whoever made it
    /// so has moved a time, and the next look sees it.
    fn read(
        &self,
        seen: &[&Seen],
        links: &Links,
        at: SystemTime,
        flush: bool,
    ) -> Result<HashMap<Vec<u8>, Read>> {
        let tops: Result<HashMap<&[u8], (OwnedFd, bool)>> = self
            .capture
            .tops
            .iter()
            .map(|top| {
                let open = tree::top(&top.path).on("open", &top.path)?;
                Ok((top.name.as_slice(), (open, top.overlay)))
            })
            .collect();
        let tops = tops?;
        let found: Result<Vec<Option<Read>>> = seen
            .par_iter()
            .map_init(HashMap::<&[u8], Near>::new, |near, seen| {
                let (name, path) = place(&seen.key);
                let Some((top, overlay)) = tops.get(name) else {
                    return Ok(None);
                };
                self.progress.go_on()?;
                let near = near.entry(name).or_default();
                let done = near
                    .find(top, &path)
                    .on("open", std::path::Path::new(&Shown(&seen.key).to_string()))
                    .and_then(|open| self.one(&open, *overlay, seen, links, at, flush));
                self.progress.add(
                    1,
                    done.as_ref()
                        .map_or(0, |read| read.as_ref().map_or(0, |read| read.bytes)),
                );
                match done {
                    Err(Error::Io { source, .. })
                        if matches!(
                            source.raw_os_error(),
                            Some(libc::ENOENT | libc::ENOTDIR | libc::ESTALE | libc::ELOOP | libc::ENXIO)
                        ) =>
                    {
                        Ok(None)
                    }
                    done => done,
                }
            })
            .collect();
        let read = found?.into_iter().flatten();
        Ok(read.map(|read| (read.entry.key.clone(), read)).collect())
    }

    fn one(
        &self,
        open: &OwnedFd,
        overlay: bool,
        seen: &Seen,
        links: &Links,
        at: SystemTime,
        flush: bool,
    ) -> Result<Option<Read>> {
        let shown = PathBuf::from(Shown(&seen.key).to_string());
        let mut stat = fstat(open).on("look at", &shown)?;
        let Some(kind) = kind(&stat, overlay) else {
            return Ok(None);
        };
        let mut entry = Entry {
            key: seen.key.clone(),
            kind: kind as i32,
            ..Entry::default()
        };
        let mut bytes = 0;
        let mut look = Some(tree::look(&stat));
        if let Some(first) = links.first(seen) {
            entry.link.clone_from(first);
        } else {
            if kind == Kind::File {
                let file = tree::reopen(open).on("open", &shown)?;
                if flush {
                    write_back(&file);
                    stat = fstat(&file).on("look at", &shown)?;
                    look = Some(tree::look(&stat));
                }
                let size = stat.st_size.cast_unsigned();
                let before = match self.old {
                    Some(old) if size > 0 => self.store.entry(self.capture.state.domain, old, &seen.key)?,
                    _ => None,
                };
                let what = shown.display().to_string();
                // Nothing of it can be a hole.
                let content = if stat.st_blocks.saturating_mul(512) >= stat.st_size && size <= SMALL {
                    self.session
                        .content(&Dense(&file), size, before.as_ref(), &what)?
                } else {
                    self.session.content(&file, size, before.as_ref(), &what)?
                };
                bytes = content.size;
                content.set(&mut entry);
            }
            self.attributes(open, &stat, kind, &mut entry)
                .on("look at", &shown)?;
        }
        Ok(Some(Read {
            look: look.filter(|look| old(look, at)),
            entry,
            bytes,
        }))
    }

    fn attributes(&self, open: &OwnedFd, stat: &FileStat, kind: Kind, entry: &mut Entry) -> io::Result<()> {
        if kind == Kind::Whiteout {
            // Its owner and times mean nothing.
            return Ok(());
        }
        entry.mode = stat.st_mode & 0o7777;
        entry.uid = stat.st_uid;
        entry.gid = stat.st_gid;
        entry.mtime = stat.st_mtime;
        entry.mtime_nanos = u32::try_from(stat.st_mtime_nsec).unwrap_or(0);
        match kind {
            Kind::Symlink => {
                use std::os::unix::ffi::OsStringExt;
                entry.inline = nix::fcntl::readlinkat(open, "")?.into_vec();
            }
            Kind::Character | Kind::Block => entry.device = stat.st_rdev,
            _ => {}
        }
        let (xattrs, opaque) = tree::xattrs(open)?;
        entry.xattrs = xattrs;
        entry.opaque = opaque && kind == Kind::Directory;
        Ok(())
    }
}

/// What an entry is; none for what is not recorded.
pub(crate) fn kind(stat: &FileStat, overlay: bool) -> Option<Kind> {
    Some(match stat.st_mode & libc::S_IFMT {
        libc::S_IFREG => Kind::File,
        libc::S_IFDIR => Kind::Directory,
        libc::S_IFLNK => Kind::Symlink,
        libc::S_IFIFO => Kind::Fifo,
        libc::S_IFCHR if overlay && stat.st_rdev == 0 => Kind::Whiteout,
        libc::S_IFCHR => Kind::Character,
        libc::S_IFBLK => Kind::Block,
        _ => return None,
    })
}

/// Has the kernel write a file's dirty pages out, and with that notice the next store to each: fdatasync would do, and
/// would wait for the disk's own cache too.
fn write_back(file: &File) {
    // Where it fails the disk does, and reading will say so.
    let _ = sys::write_back(file.as_raw_fd());
}

mod sys {
    #![allow(unsafe_code)]

    /// sync_file_range(2) over the whole file, waiting before and after.
    pub fn write_back(fd: i32) -> nix::Result<()> {
        let flags = libc::SYNC_FILE_RANGE_WAIT_BEFORE
            | libc::SYNC_FILE_RANGE_WRITE
            | libc::SYNC_FILE_RANGE_WAIT_AFTER;
        // SAFETY: no pointers are passed.
        nix::errno::Errno::result(unsafe { libc::sync_file_range(fd, 0, 0, flags) }).map(drop)
    }
}

/// Nanoseconds since the boot.
pub(crate) fn monotonic() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME);
    now.map(|t| t.tv_sec().cast_unsigned().saturating_mul(1_000_000_000) + t.tv_nsec().cast_unsigned())
        .unwrap_or(0)
}
