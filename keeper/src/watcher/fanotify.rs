//! fanotify on the file system that the live trees are on.
//!
//! One group with one mark for all states. From 6.5 on the kernel tells there of what is written through an overlay; a
//! mark on the overlay itself would keep it from being unmounted while an event is unread, and there is none. Nor is
//! there any of MODIFY: it makes small writes two to three times slower.

use std::{
    collections::HashMap,
    ffi::CString,
    fs::{self, File},
    io::{self, Write},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use nix::{
    fcntl::{OFlag, openat},
    sys::{
        fanotify::{EventFFlags, Fanotify as Group, InitFlags, MarkFlags, MaskFlags},
        stat::{Mode, UtimensatFlags, fstat, utimensat},
        time::TimeSpec,
    },
};
use store::format::Watcher as Kind;

use super::{
    Pages, Trees, Watcher,
    index::{Hints, Index},
    record::{self, Event, Handle},
    sys,
};
use crate::tree;

/// What is told of.
const WHAT: MaskFlags = MaskFlags::FAN_CREATE
    .union(MaskFlags::FAN_DELETE)
    .union(MaskFlags::FAN_MOVED_FROM)
    .union(MaskFlags::FAN_MOVED_TO)
    .union(MaskFlags::FAN_ATTRIB)
    .union(MaskFlags::FAN_CLOSE_WRITE)
    .union(MaskFlags::FAN_ONDIR);

/// Some hundreds of events; the longest is below five hundred bytes.
const BUFFER: usize = 64 * 1024;

/// The events of one file system.
#[derive(Debug)]
pub struct Fanotify {
    group: Group,
    root: PathBuf,
    device: u64,
    told: Mutex<Told>,
    /// Tell of attributes that are set, of which the group is not told in every case.
    pages: Option<Arc<Pages>>,
    /// How many want to be told of files that are opened.
    opens: Mutex<usize>,
}

#[derive(Debug, Default)]
struct Told {
    index: Index,
    trees: HashMap<u64, Trees>,
    buffer: Vec<u8>,
}

impl Fanotify {
    /// Of the file system that a directory is on, if the kernel tells there of what is written through an overlay: that is
    /// tried, in `scratch`. With pages, they too tell of attributes that are set.
    ///
    /// # Errors
    /// What the kernel says against it, in words.
    pub fn open(root: &Path, scratch: &Path, pages: Option<Arc<Pages>>) -> Result<Fanotify, String> {
        let report = InitFlags::from_bits_retain(libc::FAN_REPORT_DFID_NAME_TARGET);
        let flags = InitFlags::FAN_CLASS_NOTIF | InitFlags::FAN_CLOEXEC | InitFlags::FAN_NONBLOCK | report;
        let group = Group::init(flags, EventFFlags::O_RDONLY | EventFFlags::O_CLOEXEC)
            .map_err(|error| format!("the kernel makes no fanotify group with names: {error}"))?;
        group
            .mark(
                MarkFlags::FAN_MARK_ADD | MarkFlags::FAN_MARK_FILESYSTEM,
                WHAT,
                nix::fcntl::AT_FDCWD,
                Some(root),
            )
            .map_err(|error| format!("{} cannot be watched: {error}", root.display()))?;
        let device = tree::top(root)
            .and_then(|top| Ok(fstat(&top)?.st_dev))
            .map_err(|error| format!("{} cannot be looked at: {error}", root.display()))?;
        let fanotify = Fanotify {
            group,
            root: root.to_owned(),
            device,
            told: Mutex::default(),
            pages,
            opens: Mutex::default(),
        };
        match fanotify.sees_overlays(scratch) {
            Ok(None) => Ok(fanotify),
            Ok(Some(what)) => Err(format!(
                "the kernel does not tell of {what} through an overlay (6.5 does)"
            )),
            Err(error) => Err(format!("an overlay to try it with cannot be made: {error}")),
        }
    }

    /// Writes a file through an overlay that nobody else sees, and listens; answers with what it was not told of.
    fn sees_overlays(&self, scratch: &Path) -> io::Result<Option<&'static str>> {
        const STATE: u64 = 0;
        let scratch = tempfile::Builder::new().prefix(".probe-").tempdir_in(scratch)?;
        for dir in ["lower", "upper", "work"] {
            fs::create_dir(scratch.path().join(dir))?;
        }
        let upper = scratch.path().join("upper");
        let overlay = live::overlay_of(scratch.path()).map_err(io::Error::other)?;
        let flags = OFlag::O_CREAT | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
        let mut file: File = openat(&overlay, "file", flags, Mode::S_IRUSR | Mode::S_IWUSR)?.into();
        {
            let mut told = self.told();
            self.drain(&mut told);
            told.index.begin(STATE);
            let dirs = vec![(sys::handle_of(&tree::top(&upper)?, c"")?, Vec::new())];
            told.index.learned(STATE, dirs, &mut |_, _| Ok(Vec::new()));
        }
        file.write_all(b"written")?;
        drop(file);
        let seen = || {
            let mut told = self.told();
            self.drain(&mut told);
            told.index.take(STATE).unwrap_or_default().covers(b"\0file")
        };
        let written = seen();
        let long_ago = TimeSpec::new(1, 0);
        utimensat(
            &overlay,
            "file",
            &TimeSpec::UTIME_OMIT,
            &long_ago,
            UtimensatFlags::FollowSymlink,
        )?;
        let set = self.pages.is_none() || seen();
        self.told().index.forget(STATE);
        Ok(match (written, set) {
            (true, true) => None,
            (true, false) => Some("a time that is set"),
            (false, _) => Some("what is written"),
        })
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in all that there is to be read.
    fn drain(&self, told: &mut Told) {
        // Before the others: those tell of the directories that these are in.
        let set = self.pages.as_ref().map(|pages| pages.set());
        self.read(told);
        if let Some((set, all)) = set {
            self.apply(set, told);
            if !all {
                told.index.overflow();
            }
        }
    }

    fn apply(&self, events: Vec<Event>, told: &mut Told) {
        let Told { index, trees, .. } = told;
        let mut list = |state: u64, key: &[u8]| match trees.get(&state) {
            Some(trees) => trees.directories(key),
            None => Ok(Vec::new()),
        };
        events.into_iter().for_each(|event| index.apply(event, &mut list));
    }

    /// Takes in what the group is told.
    fn read(&self, told: &mut Told) {
        told.buffer.resize(BUFFER, 0);
        loop {
            match nix::unistd::read(&self.group, &mut told.buffer) {
                Ok(0) | Err(nix::Error::EAGAIN) => return,
                Ok(read) => match record::events(told.buffer.get(..read).unwrap_or_default()) {
                    Some(events) => self.apply(events, told),
                    None => told.index.overflow(),
                },
                Err(nix::Error::EINTR) => {}
                Err(error) => {
                    tracing::warn!(%error, "events cannot be read: all live trees are walked");
                    told.index.overflow();
                    return;
                }
            }
        }
    }

    /// What is readable when there is something to [`Fanotify::pump`].
    pub fn events(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let pages = self.pages.iter().map(|pages| pages.events());
        std::iter::once(self.group.as_fd()).chain(pages)
    }

    /// Takes events in; answers with the states that something new was told of.
    pub fn pump(&self) -> Vec<String> {
        let mut told = self.told();
        self.drain(&mut told);
        let news = told.index.news();
        let name = |state: &u64| told.trees.get(state).map(|trees| trees.name.clone());
        news.iter().filter_map(name).collect()
    }
}

impl Watcher for Fanotify {
    fn kind(&self) -> Kind {
        match self.pages {
            Some(_) => Kind::Ebpf,
            None => Kind::Fanotify,
        }
    }

    fn begin(&self, state: u64, trees: Trees) -> bool {
        let here = |path: &PathBuf| {
            let top = tree::top(path).ok().and_then(|top| fstat(&top).ok());
            top.is_some_and(|top| top.st_dev == self.device)
        };
        if !trees.tops.values().all(here) {
            self.forget(state);
            return false;
        }
        let mut told = self.told();
        // What is read before the walk begins, the walk sees.
        self.drain(&mut told);
        told.index.begin(state);
        told.trees.insert(state, trees);
        true
    }

    fn learned(&self, state: u64, dirs: Vec<(Handle, Vec<u8>)>) {
        let mut told = self.told();
        self.drain(&mut told);
        let Told { index, trees, .. } = &mut *told;
        index.learned(state, dirs, &mut |state, key| match trees.get(&state) {
            Some(trees) => trees.directories(key),
            None => Ok(Vec::new()),
        });
    }

    fn since(&self, state: u64) -> Option<Hints> {
        let mut told = self.told();
        self.drain(&mut told);
        told.index.take(state)
    }

    fn doubt(&self, state: u64) {
        self.told().index.doubt(state);
    }

    fn forget(&self, state: u64) {
        let mut told = self.told();
        told.index.forget(state);
        told.trees.remove(&state);
    }

    fn opens(&self, told: bool) -> bool {
        let mut wanted = self.opens.lock().unwrap_or_else(PoisonError::into_inner);
        let (how, more) = match told {
            true => (MarkFlags::FAN_MARK_ADD, *wanted + 1),
            false => (MarkFlags::FAN_MARK_REMOVE, wanted.saturating_sub(1)),
        };
        let first = (*wanted).max(more) == 1;
        *wanted = more;
        let flags = how | MarkFlags::FAN_MARK_FILESYSTEM;
        let mark = || {
            self.group
                .mark(flags, MaskFlags::FAN_OPEN, nix::fcntl::AT_FDCWD, Some(&self.root))
        };
        !first || mark().is_ok()
    }

    fn find(&self, handle: &Handle) -> io::Result<OwnedFd> {
        sys::by_handle(&tree::top(&self.root)?, handle)
    }
}

impl Trees {
    /// The directories at a key and below it, if there is one.
    fn directories(&self, key: &[u8]) -> io::Result<Vec<(Handle, Vec<u8>)>> {
        let mut found = Vec::new();
        let (name, path) = store::format::place(key);
        let Some(top) = self.tops.get(name) else {
            return Ok(found);
        };
        let opened = tree::top(top)
            .and_then(|top| tree::find(&top, &path))
            .and_then(|dir| Ok(openat(&dir, ".", tree::DIR, Mode::empty())?));
        let dir = match opened {
            Ok(dir) => dir,
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP)
                ) =>
            {
                return Ok(found);
            }
            Err(error) => return Err(error),
        };
        let wanted = |key: &[u8]| !self.excluded.iter().any(|excluded| excluded == key);
        if !wanted(key) {
            return Ok(found);
        }
        tree::walk_opening(
            dir,
            key,
            wanted,
            |_| Ok(()),
            |dir, key| {
                found.push((sys::handle_of(dir, c"")?, key.to_vec()));
                Ok(())
            },
        )?;
        Ok(found)
    }
}

/// The handle of what stands at a name in a directory.
pub(crate) fn handle_at(dir: &OwnedFd, name: &[u8]) -> io::Result<Handle> {
    sys::handle_of(dir, &CString::new(name)?)
}
