//! A look at what a watcher names, and nothing else.
//!
//! Each key is asked how it looks, and compared with how it looked when it was recorded. One that turned from or into a
//! directory, or that came into the tree with all below it, is walked; names of one file are looked at together.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    ffi::OsStr,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
};

use nix::{
    fcntl::{AtFlags, openat},
    sys::stat::{FileStat, Mode, fstat, fstatat},
};
use store::Look;

use crate::{
    again::is_directory,
    tree::{self, DIR, Seen},
    watcher::{Handle, Hint, Hints, handle_at},
};

/// How entries looked when they were recorded.
pub(crate) trait Recorded {
    /// One of them.
    fn look(&self, key: &[u8]) -> crate::Result<Option<Look>>;
    /// Those below a directory.
    fn below(&self, key: &[u8]) -> crate::Result<BTreeMap<Vec<u8>, Look>>;
}

/// Names of files that have several, and how many of them are not in the tree.
#[derive(Debug, Default)]
pub(crate) struct Names {
    names: HashMap<u64, BTreeSet<Vec<u8>>>,
    of: HashMap<Vec<u8>, u64>,
    /// As many names were missing when all was looked at: they are excluded, or outside.
    outside: HashMap<u64, u64>,
}

/// Whether something may have several names that belong together. Whiteouts may be one file, which means nothing.
pub(crate) fn several(stat: &FileStat) -> bool {
    let whiteout = stat.st_mode & libc::S_IFMT == libc::S_IFCHR && stat.st_rdev == 0;
    stat.st_nlink > 1 && !whiteout && stat.st_mode & libc::S_IFMT != libc::S_IFDIR
}

impl Names {
    /// Of a whole tree.
    pub(crate) fn of<'a>(seen: impl Iterator<Item = &'a Seen>) -> Names {
        let mut names = Names::default();
        let mut links: HashMap<u64, u64> = HashMap::new();
        for seen in seen.filter(|seen| several(&seen.stat)) {
            names.is(seen);
            links.insert(seen.stat.st_ino, seen.stat.st_nlink);
        }
        for (inode, links) in links {
            let known = names.names.get(&inode).map_or(0, BTreeSet::len) as u64;
            if known < links {
                names.outside.insert(inode, links - known);
            }
        }
        names
    }

    /// What is at a key now.
    pub(crate) fn is(&mut self, seen: &Seen) {
        self.is_not(&seen.key);
        if several(&seen.stat) {
            self.of.insert(seen.key.clone(), seen.stat.st_ino);
            self.names
                .entry(seen.stat.st_ino)
                .or_default()
                .insert(seen.key.clone());
        }
    }

    /// Nothing is at a key, or another thing.
    pub(crate) fn is_not(&mut self, key: &[u8]) {
        let Some(inode) = self.of.remove(key) else {
            return;
        };
        if let Some(names) = self.names.get_mut(&inode) {
            names.remove(key);
            if names.is_empty() {
                self.names.remove(&inode);
                self.outside.remove(&inode);
            }
        }
    }

    /// The names of a file.
    pub(crate) fn inode(&self, inode: u64) -> impl Iterator<Item = &Vec<u8>> {
        self.names.get(&inode).into_iter().flatten()
    }

    fn known(&self, key: &[u8]) -> impl Iterator<Item = &Vec<u8>> {
        self.of.get(key).into_iter().flat_map(|inode| self.inode(*inode))
    }
}

/// What was found.
#[derive(Default)]
pub(crate) struct Found {
    /// What is new, or looks otherwise, by key.
    pub changed: BTreeMap<Vec<u8>, Seen>,
    /// What was recorded and is there no more.
    pub gone: BTreeSet<Vec<u8>>,
}

/// Why a look at names is not enough.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Short {
    /// A file has names that are not known.
    #[error("a file has names that are not known")]
    Names,
    /// Something is too deep to be recorded, which a commit says.
    #[error("something is too deep to be recorded")]
    Beyond,
    /// The watcher, or what the container has open, is not known.
    #[error("anything may have changed")]
    Unknown,
    /// The tree or the store cannot be read.
    #[error(transparent)]
    Failed(#[from] crate::Error),
    /// The same.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Looks at keys.
pub(crate) struct Looking<'a> {
    pub tops: HashMap<&'a [u8], OwnedFd>,
    pub wanted: &'a dyn Fn(&[u8]) -> bool,
    pub recorded: &'a dyn Recorded,
    pub names: &'a Names,
    /// Opens what has a handle.
    pub find: &'a dyn Fn(&Handle) -> io::Result<OwnedFd>,
}

fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP)
    )
}

/// A key's directory and last name.
fn split(key: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = key.iter().rposition(|b| *b == 0)?;
    Some((key.get(..at)?, key.get(at + 1..)?))
}

impl Looking<'_> {
    /// Looks where it is told to.
    pub(crate) fn look(&self, hints: &Hints) -> Result<Found, Short> {
        let mut found = Found::default();
        let mut inodes: HashSet<u64> = HashSet::new();
        let mut handles: Vec<&Handle> = Vec::new();
        self.keys(hints, &mut found, &mut handles, &mut inodes)?;
        // Names of one file stand for each other: which is the first may be another now.
        let mut more = Hints::default();
        for (key, seen) in &found.changed {
            let of = self.names.known(key).chain(self.names.inode(seen.stat.st_ino));
            of.for_each(|key| more.look_at(key.clone()));
        }
        for key in &found.gone {
            self.names.known(key).for_each(|key| more.look_at(key.clone()));
        }
        self.forced(&more, &mut found, &mut inodes)?;
        self.all_named(&found)?;
        for handle in handles {
            let stat = match (self.find)(handle) {
                Ok(file) => fstat(&file).map_err(io::Error::from)?,
                // Its last name has gone, and nobody has it open.
                Err(_) => continue,
            };
            let elsewhere = stat.st_nlink > 0 && !inodes.contains(&stat.st_ino);
            if elsewhere {
                let mut more = Hints::default();
                self.names
                    .inode(stat.st_ino)
                    .for_each(|key| more.look_at(key.clone()));
                if more.0.is_empty() {
                    return Err(Short::Names);
                }
                self.forced(&more, &mut found, &mut inodes)?;
                self.all_named(&found)?;
            }
        }
        Ok(found)
    }

    /// A file of several names that are not all known: some were recorded as if it had one.
    fn all_named(&self, found: &Found) -> Result<(), Short> {
        let mut known: HashMap<u64, (u64, u64)> = HashMap::new();
        for seen in found.changed.values().filter(|seen| several(&seen.stat)) {
            let (names, _) = known.entry(seen.stat.st_ino).or_insert((0, seen.stat.st_nlink));
            *names += 1;
        }
        let short = known.into_iter().any(|(inode, (names, links))| {
            names + self.names.outside.get(&inode).copied().unwrap_or(0) < links
        });
        if short { Err(Short::Names) } else { Ok(()) }
    }

    fn wanted(&self, key: &[u8]) -> bool {
        let above = key.iter().enumerate().filter(|(_, b)| **b == 0);
        (self.wanted)(key)
            && above
                .filter_map(|(at, _)| key.get(..at))
                .all(|above| (self.wanted)(above))
    }

    /// Looks at names in any case, as if they had changed.
    fn forced(&self, hints: &Hints, found: &mut Found, inodes: &mut HashSet<u64>) -> Result<(), Short> {
        let mut dir = Opened::default();
        for key in hints.0.keys().filter(|key| self.wanted(key)) {
            match self.stat(key, &mut dir)? {
                Some(stat) => {
                    inodes.insert(stat.st_ino);
                    found.changed.insert(
                        key.clone(),
                        Seen {
                            key: key.clone(),
                            stat,
                        },
                    );
                }
                None => drop(found.gone.insert(key.clone())),
            }
        }
        Ok(())
    }

    /// What is at a key; sockets are nothing.
    fn stat(&self, key: &[u8], dir: &mut Opened) -> io::Result<Option<FileStat>> {
        let stat = match split(key) {
            None => match self.tops.get(key) {
                Some(top) => fstat(top)?,
                None => return Ok(None),
            },
            Some((above, name)) => {
                let Some(dir) = self.directory(above, dir)? else {
                    return Ok(None);
                };
                match fstatat(dir.as_fd(), OsStr::from_bytes(name), AtFlags::AT_SYMLINK_NOFOLLOW) {
                    Ok(stat) => stat,
                    Err(error) if is_gone(&error.into()) => return Ok(None),
                    Err(error) => return Err(error.into()),
                }
            }
        };
        Ok((!tree::is_socket(&stat)).then_some(stat))
    }

    fn directory<'d>(&self, key: &[u8], last: &'d mut Opened) -> io::Result<Option<&'d OwnedFd>> {
        if last.key.as_deref() != Some(key) {
            let (name, path) = store::format::place(key);
            let opened = match self.tops.get(name) {
                Some(top) => match tree::find(top, &path) {
                    Ok(dir) => Some(dir),
                    Err(error) if is_gone(&error) => None,
                    Err(error) => return Err(error),
                },
                None => None,
            };
            *last = Opened {
                key: Some(key.to_vec()),
                dir: opened,
            };
        }
        Ok(last.dir.as_ref())
    }

    fn keys<'h>(
        &self,
        hints: &'h Hints,
        found: &mut Found,
        handles: &mut Vec<&'h Handle>,
        inodes: &mut HashSet<u64>,
    ) -> Result<(), Short> {
        let mut dir = Opened::default();
        // What was walked: what follows below it has been seen.
        let mut walked: Option<&[u8]> = None;
        for (key, hint) in &hints.0 {
            if !self.wanted(key) {
                continue;
            }
            let inside = walked.is_some_and(|above| {
                key.strip_prefix(above)
                    .is_some_and(|rest| rest.first() == Some(&0))
            });
            let stat = self.stat(key, &mut dir)?;
            if let Some(stat) = &stat {
                inodes.insert(stat.st_ino);
            }
            self.handles(key, hint, stat.is_some(), &mut dir, handles);
            if inside {
                continue;
            }
            if self.one(key, hint.deep, stat, &mut dir, found, inodes)? {
                walked = Some(key);
            }
        }
        Ok(())
    }

    /// Handles that were told of under a name which is not theirs now.
    fn handles<'h>(
        &self,
        key: &[u8],
        hint: &'h Hint,
        there: bool,
        dir: &mut Opened,
        handles: &mut Vec<&'h Handle>,
    ) {
        if hint.handles.is_empty() {
            return;
        }
        let now = match (there, split(key), &dir.dir) {
            (true, Some((_, name)), Some(dir)) => handle_at(dir, name).ok(),
            _ => None,
        };
        handles.extend(hint.handles.iter().filter(|handle| Some(*handle) != now.as_ref()));
    }

    /// One key; says whether all below it was looked at.
    fn one(
        &self,
        key: &[u8],
        deep: bool,
        stat: Option<FileStat>,
        dir: &mut Opened,
        found: &mut Found,
        inodes: &mut HashSet<u64>,
    ) -> Result<bool, Short> {
        let before = self.recorded.look(key)?;
        let Some(stat) = stat else {
            // What is gone with a directory above it was found with that, and so was all that is below it.
            if before.is_some() && found.gone.insert(key.to_vec()) {
                found.gone.extend(self.recorded.below(key)?.into_keys());
            }
            return Ok(false);
        };
        let another = before.is_none_or(|before| before.inode != stat.st_ino);
        if before != Some(tree::look(&stat)) {
            found.changed.insert(
                key.to_vec(),
                Seen {
                    key: key.to_vec(),
                    stat,
                },
            );
        }
        if !is_directory(&stat) {
            // The recorded look may be of this commit; what lies below is of the one before.
            if before != Some(tree::look(&stat)) {
                found.gone.extend(self.recorded.below(key)?.into_keys());
            }
            return Ok(false);
        }
        if !deep && !another {
            return Ok(false);
        }
        let mut below = self.recorded.below(key)?;
        let opened = match (split(key), &dir.dir) {
            (Some((_, name)), Some(dir)) => openat(dir, OsStr::from_bytes(name), DIR, Mode::empty()),
            _ => match self.tops.get(key) {
                Some(top) => openat(top, ".", DIR, Mode::empty()),
                None => return Ok(false),
            },
        };
        let opened = match opened.map_err(io::Error::from) {
            Ok(opened) => opened,
            // It has just gone, and of that more is told.
            Err(error) if is_gone(&error) => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        tree::walk_from(
            opened,
            key,
            |key| (self.wanted)(key),
            |seen| {
                if seen.key == key || tree::is_socket(&seen.stat) {
                    return Ok(());
                }
                inodes.insert(seen.stat.st_ino);
                let before = below.remove(&seen.key);
                if before != Some(tree::look(&seen.stat)) {
                    found.changed.insert(seen.key.clone(), seen);
                }
                Ok(())
            },
        )?;
        found.gone.extend(below.into_keys());
        Ok(true)
    }
}

/// The directory that was looked in last: keys come in order.
#[derive(Default)]
struct Opened {
    key: Option<Vec<u8>>,
    dir: Option<OwnedFd>,
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// Entries that were recorded, and how many were listed.
    struct Counted(BTreeMap<Vec<u8>, Look>, Cell<usize>);

    impl Recorded for Counted {
        fn look(&self, key: &[u8]) -> crate::Result<Option<Look>> {
            Ok(self.0.get(key).copied())
        }

        fn below(&self, key: &[u8]) -> crate::Result<BTreeMap<Vec<u8>, Look>> {
            let first = [key, &[0]].concat();
            let below = self.0.iter().filter(|(key, _)| key.starts_with(&first));
            let below: BTreeMap<_, _> = below.map(|(key, look)| (key.clone(), *look)).collect();
            self.1.set(self.1.get() + below.len());
            Ok(below)
        }
    }

    #[test]
    fn what_is_gone_with_all_its_directories_is_listed_once() {
        let dir = tempfile::tempdir().unwrap();
        let deep = (1..=100).map(|depth| [&b"r"[..], &b"\0d".repeat(depth)].concat());
        let deep: BTreeSet<Vec<u8>> = deep.collect();
        let looks = deep.iter().map(|key| (key.clone(), Look::default())).collect();
        let recorded = Counted(looks, Cell::new(0));
        let mut hints = Hints::default();
        deep.iter().for_each(|key| hints.look_at(key.clone()));
        let looking = Looking {
            tops: HashMap::from([(&b"r"[..], tree::top(dir.path()).unwrap())]),
            wanted: &|_| true,
            recorded: &recorded,
            names: &Names::default(),
            find: &|_| Err(io::ErrorKind::NotFound.into()),
        };
        assert_eq!(looking.look(&hints).unwrap().gone, deep);
        assert_eq!(recorded.1.get(), 99);
    }
}
