//! Which parts of large files may have been written to, as eBPF programs tell ([`ebpf`]).
//!
//! A file that was read is followed from then on: of a content that was read of it (a *base*) it is kept what has been told
//! since. When it is read again, and what the commit before recorded is one of its bases, only that is compared.
//!
//! A page tells when it turns dirty, and not again before it was written out. So what is told is taken in, then the file is
//! flushed, then read; what is stored after the flush is told of anew. What is read without a flush may hold pages that
//! were dirty already: then all that was told since the last flush counts still.
//!
//! Some things are told when they begin: punching a hole, cloning into a file. The kernel does them with the
//! inode locked. To look for data, and to read, waits for that lock, on ext4 and on XFS: after both what was told has happened.
//!
//! What was told before the keeper started, or while the ring was full, is not known: then files are compared whole.

use std::{
    collections::HashMap,
    fmt,
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use ebpf::{FileSystem, Inode, Programs, Told};
use nix::sys::stat::FileStat;
use store::{
    content::{Source, Written},
    format::Entry,
};

use super::{
    ranges::Ranges,
    record::{Event, Handle},
    sys,
};
use crate::tree;

/// Files of at most so many bytes are compared whole: it costs as little.
const SMALL: u64 = 1 << 20;
/// So many files are followed at most, fewer than the programs' map holds; those that were read longest ago are given up.
const FILES: usize = 8000;
/// So many contents of a file are remembered: what the last commit holds, and what this one has read of it so far.
const BASES: usize = 3;

/// What is told of the files of one file system.
pub struct Pages {
    told: Mutex<State>,
    device: u64,
    /// How the file system's handles look.
    like: Handle,
    events: OwnedFd,
}

impl fmt::Debug for Pages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pages").finish_non_exhaustive()
    }
}

struct State {
    programs: Programs,
    files: HashMap<u64, Followed>,
    /// Counts readings.
    now: u64,
    /// Attributes that were set, of which nobody has been told yet.
    set: Vec<Event>,
    /// There was more.
    more: bool,
    /// So many files are followed at most.
    most: usize,
}

/// A file that is followed.
struct Followed {
    handle: Handle,
    read: u64,
    /// What was told since before the last flush; none where it was never flushed.
    flushed: Option<Ranges>,
    bases: Vec<Base>,
}

/// A content, and what was told since it was read.
struct Base {
    size: u64,
    content: Vec<u8>,
    since: Ranges,
}

/// Events that nobody has asked for: everything is looked at instead of keeping more.
const EVENTS: usize = 1 << 16;

impl State {
    /// Takes in what is told.
    fn drain(&mut self, like: &Handle) {
        let State {
            programs,
            files,
            set,
            more,
            ..
        } = self;
        let whole = programs.drain(|told| match told {
            Told::Range { inode, begin, end } => {
                if let Some(file) = files.get_mut(&inode) {
                    file.add(begin, end);
                }
            }
            Told::Named { inode, dir, name } => {
                let handles = of_inode(like, inode).zip(of_inode(like, dir));
                match handles.filter(|_| set.len() < EVENTS) {
                    Some((itself, dir)) => set.push(Event {
                        mask: libc::FAN_ATTRIB,
                        dir: Some(dir),
                        name,
                        itself: Some(itself),
                    }),
                    None => *more = true,
                }
            }
        });
        if !whole {
            tracing::debug!("more was written than could be told of: files are compared whole");
            files.values_mut().for_each(Followed::unknown);
            *more = true;
        }
    }
}

impl Followed {
    fn add(&mut self, begin: u64, end: u64) {
        let kept = self.bases.iter_mut().map(|base| &mut base.since);
        for ranges in kept.chain(self.flushed.as_mut()) {
            ranges.add(begin..end);
        }
    }

    /// Anything may have been written.
    fn unknown(&mut self) {
        self.flushed = None;
        self.bases.clear();
    }
}

/// The handle of an inode, made as another one of its file system is: its number in 4 or 8 bytes, its generation in 4.
fn of_inode(like: &Handle, inode: Inode) -> Option<Handle> {
    let (kind, bytes) = like.parts();
    let generation = inode.generation.to_ne_bytes();
    match bytes.len() {
        8 => {
            let number = u32::try_from(inode.number).ok()?.to_ne_bytes();
            Some(Handle::new(kind, &[number, generation].concat()))
        }
        12 => Some(Handle::new(
            kind,
            &[inode.number.to_ne_bytes().as_slice(), &generation].concat(),
        )),
        _ => None,
    }
}

/// Says why, and what lies behind it.
fn chain(error: &dyn std::error::Error) -> String {
    let mut told = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        told = format!("{told}: {error}");
        cause = error.source();
    }
    told
}

impl Pages {
    /// Of the file system that a directory is on.
    ///
    /// # Errors
    /// What it, or the kernel, has against it, in words.
    pub fn open(root: &Path) -> Result<Pages, String> {
        let looked = |error: io::Error| format!("{} cannot be looked at: {error}", root.display());
        let (system, device) = FileSystem::of(root).map_err(looked)??;
        let top = tree::top(root).map_err(looked)?;
        let like = sys::handle_of(&top, c"").map_err(looked)?;
        let programs = Programs::load(system, device).map_err(|error| chain(&error))?;
        programs.ranges().map_err(|error| chain(error))?;
        Ok(Pages {
            events: programs.as_fd().try_clone_to_owned().map_err(looked)?,
            told: Mutex::new(State {
                programs,
                files: HashMap::new(),
                now: 0,
                set: Vec::new(),
                more: false,
                most: FILES,
            }),
            device: nix::sys::stat::fstat(&top)
                .map_err(|error| looked(error.into()))?
                .st_dev,
            like,
        })
    }

    /// Follows fewer files than it could.
    #[cfg(test)]
    pub(crate) fn follow_at_most(&self, files: usize) {
        self.told().most = files;
    }

    /// Follows files that are not there, until the programs take no more.
    #[cfg(test)]
    pub(crate) fn fill(&self) {
        let mut told = self.told();
        let mut numbers = (0..u64::MAX).rev();
        assert!(numbers.any(|number| told.programs.follow(number).is_err()));
    }

    fn told(&self) -> MutexGuard<'_, State> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it is told of attributes that are set.
    ///
    /// # Errors
    /// Why not, in words.
    pub fn attributes(&self) -> Result<(), String> {
        self.told().programs.attributes().map_err(|error| chain(error))
    }

    /// Attributes that were set since this was last asked; false where there may have been more.
    pub(crate) fn set(&self) -> (Vec<Event>, bool) {
        let mut told = self.told();
        told.drain(&self.like);
        let more = std::mem::take(&mut told.more);
        (std::mem::take(&mut told.set), !more)
    }

    /// What is readable when something was told.
    pub(crate) fn events(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }

    /// A file is about to be flushed, if it is to be, and read; none of one that is not worth it.
    pub(crate) fn begin(&self, file: &File, stat: &FileStat, flush: bool) -> Option<Reading<'_>> {
        if stat.st_size.cast_unsigned() <= SMALL || stat.st_dev != self.device {
            return None;
        }
        let handle = handle_of(file).ok()?;
        let mut told = self.told();
        told.now += 1;
        let now = told.now;
        if told
            .files
            .get(&stat.st_ino)
            .is_none_or(|file| file.handle != handle)
        {
            told.follow(stat.st_ino, handle.clone()).ok()?;
        }
        told.drain(&self.like);
        let followed = told.files.get_mut(&stat.st_ino)?;
        followed.read = now;
        let bases = followed.bases.iter();
        let bases = bases.map(|base| (base.size, base.content.clone(), base.since.clone()));
        let bases = bases.collect();
        if flush {
            followed.flushed = Some(Ranges::default());
        }
        drop(told);
        Some(Reading {
            pages: self,
            inode: stat.st_ino,
            handle,
            bases,
            settled: settled(file),
        })
    }
}

/// Waits for what has begun with a file; false where that cannot be done.
fn settled(file: &File) -> bool {
    let sought = nix::unistd::lseek(file, 0, nix::unistd::Whence::SeekData);
    let sought = matches!(sought, Ok(_) | Err(nix::Error::ENXIO));
    sought && std::os::unix::fs::FileExt::read_at(file, &mut [0], 0).is_ok()
}

fn handle_of(file: &File) -> io::Result<Handle> {
    sys::handle_of(&file.as_fd().try_clone_to_owned()?, c"")
}

impl State {
    fn follow(&mut self, inode: u64, handle: Handle) -> Result<(), ebpf::Error> {
        if self.files.len() >= self.most
            && let Some(oldest) = self
                .files
                .iter()
                .min_by_key(|(_, file)| file.read)
                .map(|(n, _)| *n)
        {
            self.files.remove(&oldest);
            self.programs.forget(oldest);
        }
        self.programs.follow(inode)?;
        let followed = Followed {
            handle,
            read: self.now,
            flushed: None,
            bases: Vec::new(),
        };
        self.files.insert(inode, followed);
        Ok(())
    }
}

/// A file that is being read.
pub(crate) struct Reading<'p> {
    pages: &'p Pages,
    inode: u64,
    handle: Handle,
    bases: Vec<(u64, Vec<u8>, Ranges)>,
    settled: bool,
}

impl Reading<'_> {
    /// Where it may differ, now that it has so many bytes, from an entry's content; none where that is not known.
    pub(crate) fn since(&self, before: &Entry, size: u64) -> Option<Ranges> {
        let base =
            |(of, content, _): &&(u64, Vec<u8>, Ranges)| *of == before.size && *content == before.content;
        let (_, _, ranges) = self.bases.iter().find(base).filter(|_| self.settled)?;
        let mut ranges = ranges.clone();
        if size != before.size {
            ranges.add(size.min(before.size)..u64::MAX);
        }
        Some(ranges)
    }

    /// It was not flushed after all.
    pub(crate) fn unflushed(&self) {
        let mut told = self.pages.told();
        if let Some(file) = told.files.get_mut(&self.inode) {
            file.unknown();
        }
    }

    /// It was read.
    pub(crate) fn end(self, content: &Written) {
        let mut told = self.pages.told();
        let file = told.files.get_mut(&self.inode);
        let Some(file) = file.filter(|file| file.handle == self.handle && self.settled) else {
            return;
        };
        let Some(since) = file.flushed.clone().filter(|_| !content.content.is_empty()) else {
            return;
        };
        file.bases
            .retain(|base| base.size != content.size || base.content != content.content);
        if file.bases.len() == BASES {
            file.bases.remove(0);
        }
        file.bases.push(Base {
            size: content.size,
            content: content.content.clone(),
            since,
        });
    }
}

/// A file of which it is known where it may differ from what it was.
pub(crate) struct Hinted<'f> {
    file: &'f File,
    ranges: Ranges,
    read: AtomicU64,
}

impl<'f> Hinted<'f> {
    pub(crate) fn new(file: &'f File, ranges: Ranges) -> Hinted<'f> {
        Hinted {
            file,
            ranges,
            read: AtomicU64::new(0),
        }
    }

    /// How many bytes were read.
    pub(crate) fn read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }
}

impl Source for Hinted<'_> {
    fn data(&self, at: u64, length: u64) -> io::Result<Option<(u64, u64)>> {
        Source::data(self.file, at, length)
    }

    fn length(&self) -> io::Result<u64> {
        Source::length(self.file)
    }

    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        let n = Source::read_at(self.file, buffer, at)?;
        self.read.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }

    fn same_until(&self, at: u64) -> u64 {
        self.ranges.none_until(at)
    }

    fn changed_until(&self, at: u64) -> u64 {
        self.ranges.one_until(at)
    }
}
