//! Walking trees of a container's making, by directory descriptor.

use std::{
    collections::HashSet,
    ffi::OsStr,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Component, Path},
};

use nix::{
    dir::Dir,
    errno::Errno,
    fcntl::{AtFlags, OFlag, open, openat},
    sys::stat::{FileStat, Mode, fstatat},
};

use crate::{
    error::{Context, Result},
    reclaim::Size,
};

/// A directory and no link.
pub(crate) const DIR: OFlag = OFlag::O_RDONLY
    .union(OFlag::O_DIRECTORY)
    .union(OFlag::O_NOFOLLOW)
    .union(OFlag::O_CLOEXEC);
/// Deeper than any program makes on purpose; each level costs a descriptor.
const DEEPEST: usize = 512;

/// Opens a directory, not following a link.
pub(crate) fn open_dir(path: &Path) -> Result<OwnedFd> {
    open(path, DIR, Mode::empty()).on("open", path)
}

/// Opens the directory of `path` below `root`, following no link, and answers with the last component. None when
/// the way there is not of directories.
pub(crate) fn parent_of<'p>(root: &OwnedFd, path: &'p Path) -> Option<(OwnedFd, &'p OsStr)> {
    let mut names = path.components().filter_map(|c| match c {
        Component::Normal(name) => Some(name),
        _ => None,
    });
    let last = names.next_back()?;
    let mut dir = root.try_clone().ok()?;
    for name in names {
        dir = openat(&dir, name, DIR, Mode::empty()).ok()?;
    }
    Some((dir, last))
}

/// Looks at one entry, not following a link; none when it is not there.
pub(crate) fn entry(dir: &OwnedFd, name: &OsStr) -> Option<FileStat> {
    fstatat(dir.as_fd(), name, AtFlags::AT_SYMLINK_NOFOLLOW).ok()
}

/// What a tree takes on the disk. What vanishes meanwhile does not count.
pub(crate) fn size(path: &Path) -> Result<Size> {
    let root = match open(path, DIR, Mode::empty()) {
        Err(Errno::ENOENT) => return Ok(Size::default()),
        opened => opened.on("open", path)?,
    };
    let mut size = Size::default();
    let mut seen = HashSet::new();
    let level = |fd: OwnedFd| -> nix::Result<_> {
        let same = fd.try_clone().map_err(|_| Errno::EMFILE)?;
        Ok((fd, Dir::from_fd(same)?.into_iter()))
    };
    let mut stack = vec![level(root).on("read", path)?];
    loop {
        let depth = stack.len();
        let Some((here, entries)) = stack.last_mut() else {
            break;
        };
        let Some(entry) = entries.next() else {
            stack.pop();
            continue;
        };
        let Ok(entry) = entry else { continue };
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name == "." || name == ".." {
            continue;
        }
        let Ok(stat) = fstatat(here.as_fd(), name, AtFlags::AT_SYMLINK_NOFOLLOW) else {
            continue;
        };
        size.entries += 1;
        if stat.st_nlink == 1
            || stat.st_mode & libc::S_IFMT == libc::S_IFDIR
            || seen.insert((stat.st_dev, stat.st_ino))
        {
            size.allocated += u64::try_from(stat.st_blocks).unwrap_or_default() * 512;
            size.apparent += u64::try_from(stat.st_size).unwrap_or_default();
        }
        if stat.st_mode & libc::S_IFMT == libc::S_IFDIR
            && depth < DEEPEST
            && let Ok(below) = openat(here.as_fd(), name, DIR, Mode::empty())
            && let Ok(below) = level(below)
        {
            stack.push(below);
        }
    }
    Ok(size)
}
