//! Trees of a container's making, read and written by directory descriptor: no link in them is ever followed.

use std::{
    ffi::OsStr,
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use nix::{
    dir::Dir,
    fcntl::{AtFlags, OFlag, open, openat},
    sys::stat::{FileStat, Mode, fstatat},
};
use store::{Look, format::Xattr};

/// A directory and no link.
pub(crate) const DIR: OFlag = OFlag::O_RDONLY
    .union(OFlag::O_DIRECTORY)
    .union(OFlag::O_NOFOLLOW)
    .union(OFlag::O_CLOEXEC);
/// Something to look at, whatever it is.
const LOOK: OFlag = OFlag::O_PATH.union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);
/// Deeper than any program makes on purpose; each level costs two descriptors.
pub(crate) const DEEPEST: usize = 400;
/// The longest key that the store takes.
pub(crate) const LONGEST_KEY: usize = 32 * 1024;

/// Opens the top of a tree.
pub(crate) fn top(path: &Path) -> io::Result<OwnedFd> {
    Ok(open(path, DIR, Mode::empty())?)
}

/// How an entry looks, so that a change of it is seen.
pub(crate) fn look(stat: &FileStat) -> Look {
    let nanos = |seconds: i64, nanos: i64| seconds.saturating_mul(1_000_000_000).saturating_add(nanos);
    Look {
        inode: stat.st_ino,
        size: stat.st_size.cast_unsigned(),
        mtime: nanos(stat.st_mtime, stat.st_mtime_nsec),
        ctime: nanos(stat.st_ctime, stat.st_ctime_nsec),
    }
}

/// One entry, as a walk finds it.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub key: Vec<u8>,
    pub stat: FileStat,
}

/// A directory on the way down.
struct Level {
    dir: OwnedFd,
    /// What is to come, the next one last.
    names: Vec<Vec<u8>>,
    key: Vec<u8>,
}

impl Level {
    fn open(dir: OwnedFd, key: Vec<u8>) -> io::Result<Level> {
        let mut names = names(&dir)?;
        names.sort_unstable_by(|a, b| b.cmp(a));
        Ok(Level { dir, names, key })
    }
}

/// The names in a directory, in no order.
pub(crate) fn names(dir: &OwnedFd) -> io::Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    let mut reader = Dir::from_fd(dir.try_clone()?)?;
    for entry in reader.iter() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.to_vec());
        }
    }
    Ok(names)
}

/// Sockets are not kept.
pub(crate) fn is_socket(stat: &FileStat) -> bool {
    stat.st_mode & libc::S_IFMT == libc::S_IFSOCK
}

/// Whether an entry is deeper or its key longer than the store takes.
pub(crate) fn is_beyond(key: &[u8]) -> bool {
    let deep = || key.iter().filter(|b| **b == 0).count() >= DEEPEST;
    key.len() > LONGEST_KEY || key.len() > DEEPEST && deep()
}

/// Every entry of a tree in the order of its key, the top first. What vanishes on the way is left out. `wanted` says
/// which keys are looked at, and below which nothing is.
///
/// # Errors
/// A directory that cannot be read; names deeper or longer than the store takes.
pub(crate) fn walk(
    path: &Path,
    key: &[u8],
    wanted: impl Fn(&[u8]) -> bool,
    each: impl FnMut(Seen) -> io::Result<()>,
) -> io::Result<()> {
    walk_from(top(path)?, key, wanted, each)
}

/// The same from a directory that is open.
pub(crate) fn walk_from(
    top: OwnedFd,
    key: &[u8],
    wanted: impl Fn(&[u8]) -> bool,
    each: impl FnMut(Seen) -> io::Result<()>,
) -> io::Result<()> {
    walk_opening(top, key, wanted, each, |_, _| Ok(()))
}

/// The same, with somebody who wants every directory while it is open.
pub(crate) fn walk_opening(
    top: OwnedFd,
    key: &[u8],
    wanted: impl Fn(&[u8]) -> bool,
    mut each: impl FnMut(Seen) -> io::Result<()>,
    mut opened: impl FnMut(&OwnedFd, &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    each(Seen {
        key: key.to_vec(),
        stat: nix::sys::stat::fstat(&top)?,
    })?;
    opened(&top, key)?;
    let mut stack = vec![Level::open(top, key.to_vec())?];
    while let Some(level) = stack.last_mut() {
        let Some(name) = level.names.pop() else {
            stack.pop();
            continue;
        };
        let name = OsStr::from_bytes(&name);
        let gone = |error: nix::Error| {
            matches!(
                error,
                nix::Error::ENOENT | nix::Error::ENOTDIR | nix::Error::ELOOP
            )
        };
        let stat = match fstatat(level.dir.as_fd(), name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(error) if gone(error) => continue,
            Err(error) => return Err(error.into()),
        };
        let mut key = level.key.clone();
        key.push(0);
        key.extend_from_slice(name.as_bytes());
        if !wanted(&key) {
            continue;
        }
        if is_beyond(&key) {
            return Err(io::Error::other(format!(
                "{} is deeper or longer than can be recorded ({DEEPEST} levels, {LONGEST_KEY} bytes)",
                store::format::Shown(&key)
            )));
        }
        let directory = stat.st_mode & libc::S_IFMT == libc::S_IFDIR;
        let below = match stack.last() {
            Some(level) if directory => match openat(&level.dir, name, DIR, Mode::empty()) {
                Ok(below) => {
                    opened(&below, &key)?;
                    Some(Level::open(below, key.clone())?)
                }
                Err(error) if gone(error) => continue,
                Err(error) => return Err(error.into()),
            },
            _ => None,
        };
        each(Seen { key, stat })?;
        stack.extend(below);
    }
    Ok(())
}

/// Opens an entry of a tree to look at it; links on the way are refused.
pub(crate) fn find(top: &OwnedFd, path: &[u8]) -> io::Result<OwnedFd> {
    Near::default().find(top, path)
}

/// Opens entries of one tree; those of one directory, one after the other, without the way there.
#[derive(Default)]
pub(crate) struct Near {
    /// The directory of the last one, by its path.
    last: Option<(Vec<u8>, OwnedFd)>,
}

impl Near {
    /// As [`find`]; always with the same top.
    pub(crate) fn find(&mut self, top: &OwnedFd, path: &[u8]) -> io::Result<OwnedFd> {
        let (dir, name) = match path.iter().rposition(|b| *b == b'/') {
            Some(at) => path.split_at(at),
            None => ([].as_slice(), path),
        };
        let name = name.strip_prefix(b"/").unwrap_or(name);
        if name.is_empty() {
            return top.try_clone();
        }
        if self.last.as_ref().is_none_or(|(last, _)| last != dir) {
            let mut at = top.try_clone()?;
            for name in dir.split(|b| *b == b'/').filter(|name| !name.is_empty()) {
                at = openat(&at, OsStr::from_bytes(name), LOOK, Mode::empty())?;
            }
            self.last = Some((dir.to_vec(), at));
        }
        let from = self.last.as_ref().map_or(top, |(_, dir)| dir);
        Ok(openat(from, OsStr::from_bytes(name), LOOK, Mode::empty())?)
    }
}

/// The path by which the kernel knows an open file of ours.
pub(crate) fn by_descriptor(fd: impl AsFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd()))
}

/// Opens for reading what was opened to be looked at: the very same file.
pub(crate) fn reopen(fd: &OwnedFd) -> io::Result<std::fs::File> {
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let path = by_descriptor(fd);
    let opened = match open(&path, flags | OFlag::O_NOATIME, Mode::empty()) {
        Err(nix::Error::EPERM) => open(&path, flags, Mode::empty())?,
        opened => opened?,
    };
    Ok(opened.into())
}

/// The extended attributes that belong to the content, by name, and whether it is an opaque directory: overlayfs's own
/// are not the container's, SELinux's label is the mount's.
pub(crate) fn xattrs(fd: impl AsFd) -> io::Result<(Vec<Xattr>, bool)> {
    let mut found = all_xattrs(fd)?;
    let opaque = |xattr: &Xattr| xattr.name == b"trusted.overlay.opaque" && xattr.value == b"y";
    let opaque = found.iter().any(opaque);
    found.retain(|xattr| !xattr.name.starts_with(b"trusted.overlay.") && xattr.name != b"security.selinux");
    Ok((found, opaque))
}

/// All extended attributes, by name. What is open to be read is asked itself, what is open to be looked at by its path.
pub(crate) fn all_xattrs(fd: impl AsFd) -> io::Result<Vec<Xattr>> {
    let fd = fd.as_fd();
    use rustix::io::Errno;
    let path = by_descriptor(fd);
    let mut names = vec![0u8; 512];
    let length = loop {
        let listed = match rustix::fs::flistxattr(fd, &mut names) {
            Err(Errno::BADF) => rustix::fs::listxattr(&path, &mut names),
            listed => listed,
        };
        match listed {
            Ok(length) => break length,
            Err(Errno::RANGE) if names.len() < 1 << 20 => names.resize(names.len() * 4, 0),
            Err(Errno::OPNOTSUPP | Errno::NODATA) => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        }
    };
    names.truncate(length);
    let mut found = Vec::new();
    let mut value = Vec::new();
    for name in names.split(|b| *b == 0).filter(|name| !name.is_empty()) {
        value.resize(65_536, 0);
        match rustix::fs::getxattr(&path, name, &mut value) {
            Ok(length) => value.truncate(length),
            // Taken away meanwhile.
            Err(Errno::NODATA) => continue,
            Err(error) => return Err(error.into()),
        }
        found.push(Xattr {
            name: name.to_vec(),
            value: value.clone(),
        });
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// An entry of a tree, by a path that means it whatever becomes of its name, as long as what is returned is there.
pub(crate) fn pinned(top_of: &Path, path: &[u8]) -> io::Result<(OwnedFd, PathBuf)> {
    let found = find(&top(top_of)?, path)?;
    let path = by_descriptor(&found);
    Ok((found, path))
}

/// Every directory of a tree, by a path that means it whatever becomes of its name.
///
/// # Errors
/// As [`walk`], and what `each` says.
pub(crate) fn directories(path: &Path, mut each: impl FnMut(&Path) -> io::Result<()>) -> io::Result<()> {
    let open = top(path)?;
    walk(
        path,
        b"",
        |key| !is_beyond(key),
        |seen| {
            if seen.stat.st_mode & libc::S_IFMT == libc::S_IFDIR {
                let (_, below) = store::format::place(&seen.key);
                // Gone already is a change that the next look sees.
                if let Ok(found) = find(&open, &below) {
                    each(&by_descriptor(&found))?;
                }
            }
            Ok(())
        },
    )
}
