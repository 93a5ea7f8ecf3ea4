//! RedShift: commit to tree.
//!
//! A tree is made in a directory of its own, every chunk checked against its name as it is read, and is on the disk
//! before anybody is told that it is there. Nothing in it can lead out of it: names are made one by one below
//! directories that this process has just made.

mod reflink;
#[cfg(test)]
mod reflink_tests;

use std::{
    collections::{HashMap, HashSet},
    ffi::OsStr,
    fs::File,
    io,
    ops::ControlFlow,
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use nix::{
    fcntl::{AtFlags, OFlag, openat},
    sys::{
        stat::{FchmodatFlags, Mode, SFlag, UtimensatFlags, fchmodat, mkdirat, mknodat, utimensat},
        time::TimeSpec,
    },
    unistd::{Gid, LinkatFlags, Uid, fchownat, linkat, symlinkat},
};
use rayon::prelude::*;
use store::{
    Id, Look, Store,
    content::Stretch,
    direct,
    format::{Entry, Kind, Shown, place},
};

pub use self::reflink::Present;
use self::reflink::Reflinks;
pub use crate::progress::Progress;
use crate::{
    error::{Context, Error, Result},
    tree::{self, DIR},
};

/// Files of this length and longer are written past the page cache.
const LONG: u64 = 16 << 20;

/// What of a tree is made, and where.
pub struct Plan<'a> {
    /// The dedup domain.
    pub domain: u32,
    /// The tree.
    pub tree: Id,
    /// Only what has this key or is below it.
    pub below: Option<&'a [u8]>,
    /// Where the roots' directories are: what a root's top becomes. Files outside those roots are left out.
    pub tops: HashMap<Vec<u8>, PathBuf>,
    /// Whiteouts and opaque directories are made as overlayfs has them; else they are left out.
    pub overlay: bool,
    /// The disk has all of it before this returns.
    pub sync: bool,
}

impl Plan<'_> {
    /// Makes the tree in directories that are empty, or not there.
    ///
    /// # Errors
    /// Missing or damaged content, a full or failing disk, a stop: what was made is not to be used then.
    pub fn run(&self, store: &Store, progress: &Progress) -> Result<()> {
        self.run_beside(None, store, progress)
    }

    /// The same beside a tree that is there, with which content is shared where the file system can.
    ///
    /// # Errors
    /// The same.
    pub fn run_beside(&self, present: Option<&Present>, store: &Store, progress: &Progress) -> Result<()> {
        let entries = self.entries(store)?;
        progress.expect(
            entries.len() as u64,
            entries.iter().filter(|e| e.link.is_empty()).map(|e| e.size).sum(),
        );
        let mut tops = HashMap::new();
        for (name, path) in &self.tops {
            std::fs::create_dir_all(path).on("make", path)?;
            tops.insert(name.as_slice(), tree::top(path).on("open", path)?);
        }
        let with_whiteouts: HashSet<&[u8]> = entries
            .iter()
            .filter(|entry| entry.what() == Kind::Whiteout)
            .filter_map(|entry| parent(&entry.key))
            .collect();
        let reflinks = tops
            .values()
            .next()
            .and_then(|top| Reflinks::new(store, self.domain, &entries, top, present));
        let make = &Make {
            plan: self,
            store,
            tops: &tops,
            reflinks: reflinks.as_ref(),
            progress,
            whole: self.below.is_none(),
        };
        // Directories first, from the top; then what is in them, many at a time; then further names; then what making
        // all that has changed about directories, from the bottom.
        let directories = || {
            entries
                .iter()
                .filter(|entry| entry.what() == Kind::Directory && entry.link.is_empty())
        };
        for entry in directories() {
            progress.go_on()?;
            make.directory(entry).on("make", &shown(entry))?;
        }
        let others = |copies: bool| {
            entries
                .par_iter()
                .filter(|entry| entry.what() != Kind::Directory && entry.link.is_empty())
                .filter(move |entry| make.original(entry).is_some() == copies)
                .try_for_each(|entry| {
                    progress.go_on()?;
                    make.other(entry)
                })
        };
        others(false)?;
        others(true)?;
        for entry in entries.iter().filter(|entry| !entry.link.is_empty()) {
            make.link(entry).on("link", &shown(entry))?;
        }
        let from_the_bottom: Vec<&Entry> = directories().collect();
        for entry in from_the_bottom.into_iter().rev() {
            make.finish(entry, with_whiteouts.contains(entry.key.as_slice()))
                .on("set the attributes of", &shown(entry))?;
        }
        if self.sync {
            progress.begin("writing to the disk");
            for (name, top) in &tops {
                nix::unistd::syncfs(top).on("write to disk", Path::new(OsStr::from_bytes(name)))?;
            }
        }
        Ok(())
    }

    fn entries(&self, store: &Store) -> Result<Vec<Entry>> {
        let mut found = Vec::new();
        let from = self.below.unwrap_or_default();
        store.entries(self.domain, self.tree, from, |entry| {
            if let Some(below) = self.below
                && !is_below(&entry.key, below)
            {
                return Ok(ControlFlow::Break(()));
            }
            let (root, _) = entry.place();
            if self.tops.contains_key(root) && (self.overlay || entry.what() != Kind::Whiteout) {
                found.push(entry);
            }
            Ok(ControlFlow::Continue(()))
        })?;
        if let Some(below) = self.below {
            if found.is_empty() {
                return Err(Error::NotFound(format!(
                    "there is no {} in that version",
                    Shown(below)
                )));
            }
            // A file whose first name lies elsewhere takes its content from there.
            for entry in &mut found {
                if !entry.link.is_empty() && !is_below(&entry.link, below) {
                    let first = store.entry(self.domain, self.tree, &entry.link)?;
                    let missing = || Error::NotFound(format!("{} is missing", Shown(&entry.link)));
                    let first = first.ok_or_else(missing)?;
                    *entry = Entry {
                        key: entry.key.clone(),
                        ..first
                    };
                }
            }
        }
        Ok(found)
    }
}

fn is_below(key: &[u8], top: &[u8]) -> bool {
    key.strip_prefix(top)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(&[0]))
}

fn parent(key: &[u8]) -> Option<&[u8]> {
    let at = key.iter().rposition(|b| *b == 0)?;
    key.get(..at)
}

fn shown(entry: &Entry) -> PathBuf {
    PathBuf::from(Shown(&entry.key).to_string())
}

struct Make<'a> {
    plan: &'a Plan<'a>,
    store: &'a Store,
    tops: &'a HashMap<&'a [u8], OwnedFd>,
    reflinks: Option<&'a Reflinks<'a>>,
    progress: &'a Progress,
    whole: bool,
}

impl Make<'_> {
    /// The directory that an entry is in, and its name there; the tops themselves have none.
    fn parent<'e>(&self, entry: &'e Entry) -> io::Result<Option<(OwnedFd, &'e OsStr)>> {
        self.at(&entry.key)
    }

    fn at<'k>(&self, key: &'k [u8]) -> io::Result<Option<(OwnedFd, &'k OsStr)>> {
        let (root, _) = place(key);
        let top = self.tops.get(root).ok_or(io::ErrorKind::NotFound)?;
        // Where only a part is made, that part is the top.
        let skipped = self.plan.below.and_then(parent).map_or(root.len(), <[u8]>::len);
        let Some(rest) = key.get(skipped..).filter(|rest| !rest.is_empty()) else {
            return Ok(None);
        };
        let mut names = rest.split(|b| *b == 0).filter(|name| !name.is_empty());
        let Some(last) = names.next_back() else {
            return Ok(None);
        };
        if last == b"." || last == b".." || last.contains(&b'/') {
            return Err(io::Error::other("a name that no file system has"));
        }
        let mut dir = top.try_clone()?;
        for name in names {
            dir = openat(&dir, OsStr::from_bytes(name), DIR, Mode::empty())?;
        }
        Ok(Some((dir, OsStr::from_bytes(last))))
    }

    fn count(&self) {
        self.progress.add(1, 0);
    }

    fn directory(&self, entry: &Entry) -> io::Result<()> {
        if let Some((dir, name)) = self.parent(entry)? {
            mkdirat(&dir, name, Mode::S_IRWXU)?;
        }
        self.count();
        Ok(())
    }

    /// Everything but directories and further names.
    fn other(&self, entry: &Entry) -> Result<()> {
        let place = shown(entry);
        let Some((dir, name)) = self.parent(entry).on("find the directory of", &place)? else {
            return Err(Error::Refused(format!(
                "the top of {} is not a directory",
                place.display()
            )));
        };
        match entry.what() {
            Kind::File => self.file(&dir, name, entry, &place)?,
            _ => self.special(&dir, name, entry).on("make", &place)?,
        }
        self.count();
        Ok(())
    }

    fn file(&self, dir: &OwnedFd, name: &OsStr, entry: &Entry, place: &Path) -> Result<()> {
        let make = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = File::from(openat(dir, name, make, Mode::S_IRUSR | Mode::S_IWUSR).on("make", place)?);
        if !self.shared(entry, &file, place)? {
            self.write(entry, &file, place)?;
        }
        self.attributes(&file.into(), entry)
            .on("set the attributes of", place)
    }

    /// The other file of this tree that an entry is a copy of.
    fn original(&self, entry: &Entry) -> Option<&Entry> {
        self.reflinks.and_then(|reflinks| reflinks.first(entry))
    }

    /// Fills a file with content that is on the disk already; says whether there is any.
    fn shared(&self, entry: &Entry, file: &File, place: &Path) -> Result<bool> {
        let Some(reflinks) = self.reflinks else {
            return Ok(false);
        };
        if let Some(original) = reflinks.first(entry) {
            let read = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            // This has just been written, byte for byte what is to be here. Where it cannot be shared, it is written again.
            if let Ok(Some((dir, name))) = self.at(&original.key)
                && let Ok(original) = openat(&dir, name, read, Mode::empty())
                && reflink::clone(&original, file).is_ok()
            {
                self.progress.add(0, entry.size);
                return Ok(true);
            }
        }
        reflinks.fill(entry, file, place, self.progress)
    }

    /// Fills a file from the store.
    fn write(&self, entry: &Entry, file: &File, place: &Path) -> Result<()> {
        // What is so long is not in memory when the container asks for it first, whichever way it was written; but what
        // other containers had there still is.
        let direct = if entry.size >= LONG {
            direct::of(file)
        } else {
            None
        };
        let sparse = AtomicBool::new(false);
        let failed = Mutex::new(None);
        let read = self.store.read_parallel(self.plan.domain, entry, |at, stretch| {
            match stretch {
                Stretch::Hole(length) => {
                    sparse.store(true, Ordering::Relaxed);
                    self.progress.spare(length);
                }
                Stretch::Bytes(bytes) => {
                    if let Err(error) = direct::write_all(file, direct.as_ref(), bytes, at) {
                        *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                        return Err(store::Error::Refused("the disk failed".into()));
                    }
                    self.progress.add(0, bytes.len() as u64);
                    if self.progress.go_on().is_err() {
                        return Err(store::Error::Stopped);
                    }
                }
            }
            Ok(())
        });
        if let Some(error) = failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
            return Err(error).on("write", place);
        }
        read?;
        if sparse.into_inner() {
            file.set_len(entry.size).on("lengthen", place)?;
        }
        Ok(())
    }

    fn special(&self, dir: &OwnedFd, name: &OsStr, entry: &Entry) -> io::Result<()> {
        let user = Mode::S_IRUSR | Mode::S_IWUSR;
        match entry.what() {
            Kind::Symlink => symlinkat(OsStr::from_bytes(&entry.inline), dir, name)?,
            Kind::Fifo => mknodat(dir, name, SFlag::S_IFIFO, user, 0)?,
            Kind::Character => mknodat(dir, name, SFlag::S_IFCHR, user, entry.device)?,
            Kind::Block => mknodat(dir, name, SFlag::S_IFBLK, user, entry.device)?,
            Kind::Whiteout => {
                mknodat(dir, name, SFlag::S_IFCHR, Mode::empty(), 0)?;
                return Ok(());
            }
            Kind::File | Kind::Directory => {}
        }
        let look = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        self.attributes(&openat(dir, name, look, Mode::empty())?, entry)
    }

    fn link(&self, entry: &Entry) -> io::Result<()> {
        let (Some((from, old)), Some((to, new))) = (self.at(&entry.link)?, self.parent(entry)?) else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        linkat(&from, old, &to, new, LinkatFlags::empty())?;
        self.count();
        Ok(())
    }

    fn finish(&self, entry: &Entry, whiteouts: bool) -> io::Result<()> {
        let open = match self.parent(entry)? {
            Some((dir, name)) => openat(&dir, name, DIR, Mode::empty())?,
            None if self.whole => {
                let top = self.tops.get(entry.place().0).ok_or(io::ErrorKind::NotFound)?;
                top.try_clone()?
            }
            None => return Ok(()),
        };
        if self.plan.overlay {
            let path = tree::by_descriptor(&open);
            let set = |name: &str, value: &[u8]| {
                rustix::fs::setxattr(&path, name, value, rustix::fs::XattrFlags::empty())
            };
            if entry.opaque {
                set("trusted.overlay.opaque", b"y")?;
            } else if whiteouts {
                // Without it overlayfs shows the whiteouts where the image lacks the directory.
                set("trusted.overlay.origin", b"")?;
            }
        }
        self.attributes(&open, entry)
    }

    /// The owner first: changing it takes set-id bits and capabilities away.
    fn attributes(&self, open: &OwnedFd, entry: &Entry) -> io::Result<()> {
        let owner = (Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)));
        match fchownat(open, "", owner.0, owner.1, AtFlags::AT_EMPTY_PATH) {
            // As with tar: what a person may not give away stays that person's.
            Err(nix::Error::EPERM) if !nix::unistd::geteuid().is_root() => {}
            done => done?,
        }
        let path = tree::by_descriptor(open);
        for xattr in &entry.xattrs {
            rustix::fs::setxattr(
                &path,
                xattr.name.as_slice(),
                &xattr.value,
                rustix::fs::XattrFlags::empty(),
            )?;
        }
        if entry.what() != Kind::Symlink {
            let mode = Mode::from_bits_truncate(entry.mode);
            fchmodat(nix::fcntl::AT_FDCWD, &path, mode, FchmodatFlags::FollowSymlink)?;
        }
        let time = TimeSpec::new(entry.mtime, i64::from(entry.mtime_nanos));
        // By way of the descriptor, which is the thing itself also where that is a link.
        utimensat(
            nix::fcntl::AT_FDCWD,
            &path,
            &time,
            &time,
            UtimensatFlags::FollowSymlink,
        )?;
        Ok(())
    }
}

/// How the entries of a tree look that was just made and that nobody else has: what the next commit begins with.
///
/// # Errors
/// A directory that cannot be read.
pub fn looks(tops: &HashMap<Vec<u8>, PathBuf>) -> Result<Vec<(Vec<u8>, Look)>> {
    // Whoever writes to it after this moves its times beyond what is read here.
    std::thread::sleep(std::time::Duration::from_millis(25));
    let mut found = Vec::new();
    for (name, path) in tops {
        tree::walk(
            path,
            name,
            |_| true,
            |seen| {
                found.push((seen.key, tree::look(&seen.stat)));
                Ok(())
            },
        )
        .on("walk", path)?;
    }
    Ok(found)
}
