//! Entries of a live tree, read into the store.
//!
//! Stores to mapped memory move a file's times only when its page was clean before: so files are flushed before they
//! are read, and one that was read while it could not be flushed is looked at again next time, whatever its times say.

use std::{
    collections::HashMap,
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::PathBuf,
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use nix::sys::stat::{FileStat, fstat};
use rayon::prelude::*;
use store::{
    Id, Look, Session, Store,
    content::Source,
    format::{Entry, Kind, Shown, place},
};

use crate::{
    blueshift::{Capture, nanos},
    error::{Context, Error, Result},
    named::several,
    progress::Progress,
    quiesce::Quiesced,
    samples,
    tree::{self, Near, Seen},
    watcher::pages::{Hinted, Pages, Reading},
};

/// A change this close to when it is looked at may be followed by another that moves no time: the kernel's clock for
/// files ticks in milliseconds.
const YOUNG: Duration = Duration::from_millis(20);

/// A file of at most this many bytes is not asked for its holes where it has a block for each byte: a longer one may have
/// room that was only promised to it.
const SMALL: u64 = 64 << 10;

/// An entry that was read.
pub(crate) struct Read {
    pub entry: Entry,
    /// How it looked when that began; none where it must be looked at again next time.
    pub look: Option<Look>,
    pub inode: u64,
    /// Bytes of content.
    pub bytes: u64,
}

impl Read {
    /// It was not flushed: a later store to a page that is dirty now would move no time.
    pub(crate) fn unflushed(&mut self) {
        if self.entry.what() == Kind::File {
            self.look = None;
        }
    }
}

/// Whether what looks so at a time had not changed for so long that no later change can look the same.
pub(crate) fn old(look: &Look, at: SystemTime) -> bool {
    let young = i64::try_from(YOUNG.as_nanos()).unwrap_or(0);
    look.ctime < nanos(at).saturating_sub(young)
}

pub(crate) fn is_file(seen: &Seen) -> bool {
    seen.stat.st_mode & libc::S_IFMT == libc::S_IFREG
}

/// Which names are of one file.
pub(crate) struct Links(HashMap<(u64, u64), Vec<u8>>);

impl Links {
    /// The first key of each file that has several.
    pub(crate) fn of(seen: &[Seen]) -> Links {
        let mut first: HashMap<(u64, u64), Vec<u8>> = HashMap::new();
        for seen in seen {
            if several(&seen.stat) {
                let id = (seen.stat.st_dev, seen.stat.st_ino);
                first.entry(id).or_insert_with(|| seen.key.clone());
            }
        }
        Links(first)
    }

    pub(crate) fn first(&self, seen: &Seen) -> Option<&Vec<u8>> {
        self.0
            .get(&(seen.stat.st_dev, seen.stat.st_ino))
            .filter(|first| **first != seen.key)
    }
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

/// Reads what is to be recorded.
pub(crate) struct Recorder<'a, 's> {
    pub capture: &'a Capture<'a>,
    pub store: &'s Store,
    pub session: &'a Session<'s>,
    pub old: Option<Id>,
    pub progress: &'a Progress,
    /// The application, which belongs to the commit: it may be looked more than once.
    pub quiesced: &'a Quiesced<'a>,
    /// Large files, as they were read for this commit, and how many bytes that took: each time what has changed since is read.
    pub large: Mutex<HashMap<Vec<u8>, (Entry, u64)>>,
}

impl Recorder<'_, '_> {
    /// Reads entries, several at a time. What has vanished or turned into something else is left out: whoever made it
    /// so has moved a time, and the next look sees it.
    pub(crate) fn read(
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
        // Not while somebody stands still: nothing is flushed then.
        if flush || self.capture.freezer.is_none() {
            samples::learn(self.session, &tops, seen)?;
        }
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
        let found = found?;
        // With room for all: growing took a sixth of the time that one thread alone is at work.
        let mut read = HashMap::with_capacity(found.len());
        read.extend(
            found
                .into_iter()
                .flatten()
                .map(|read| (read.entry.key.clone(), read)),
        );
        Ok(read)
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
        // Another thing stands there now: whoever looks next is told of that.
        let kind_of = |stat: &FileStat| stat.st_mode & libc::S_IFMT;
        let directory = kind_of(&stat) == libc::S_IFDIR;
        if kind_of(&stat) != kind_of(&seen.stat) || directory && stat.st_ino != seen.stat.st_ino {
            return Ok(None);
        }
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
            let mut readable = None;
            if kind == Kind::File {
                let file = &*readable.insert(tree::reopen(open).on("open", &shown)?);
                let reading = self.pages().and_then(|pages| pages.begin(file, &stat, flush));
                if flush {
                    let flushed = write_back(file);
                    if let Some(reading) = reading.as_ref().filter(|_| !flushed) {
                        reading.unflushed();
                    }
                    stat = fstat(file).on("look at", &shown)?;
                    look = Some(tree::look(&stat));
                }
                let size = stat.st_size.cast_unsigned();
                let earlier = self.large().get(&seen.key).cloned();
                let (before, took) = match (earlier, self.old) {
                    (Some((entry, took)), _) => (Some(entry), took),
                    (None, Some(old)) if size > 0 => {
                        (self.store.entry(self.capture.state.domain, old, &seen.key)?, 0)
                    }
                    _ => (None, 0),
                };
                let what = shown.display().to_string();
                let since = |reading: &Reading<'_>| reading.since(before.as_ref()?, size);
                let hinted = reading
                    .as_ref()
                    .and_then(since)
                    .map(|ranges| Hinted::new(file, ranges));
                let content = if let Some(hinted) = &hinted {
                    self.session.content(hinted, size, before.as_ref(), &what)?
                } else if stat.st_blocks.saturating_mul(512) >= stat.st_size && size <= SMALL {
                    self.session.content(&Dense(file), size, before.as_ref(), &what)?
                } else {
                    self.session.content(file, size, before.as_ref(), &what)?
                };
                bytes = took + hinted.map_or(content.size, |hinted| hinted.read());
                let large = reading.is_some();
                if let Some(reading) = reading {
                    reading.end(&content);
                }
                content.set(&mut entry);
                if large {
                    self.large().insert(seen.key.clone(), (entry.clone(), bytes));
                }
            }
            let about = readable.as_ref().map_or(open.as_fd(), AsFd::as_fd);
            self.attributes(about, &stat, kind, &mut entry)
                .on("look at", &shown)?;
        }
        Ok(Some(Read {
            inode: stat.st_ino,
            look: look.filter(|look| old(look, at)),
            entry,
            bytes,
        }))
    }

    fn pages(&self) -> Option<&Pages> {
        self.capture.watch.as_ref()?.watching.pages().ok()
    }

    fn large(&self) -> std::sync::MutexGuard<'_, HashMap<Vec<u8>, (Entry, u64)>> {
        self.large.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn attributes(
        &self,
        open: BorrowedFd<'_>,
        stat: &FileStat,
        kind: Kind,
        entry: &mut Entry,
    ) -> io::Result<()> {
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
fn write_back(file: &File) -> bool {
    // Where it fails the disk does, and reading will say so.
    sys::write_back(file.as_raw_fd()).is_ok()
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
