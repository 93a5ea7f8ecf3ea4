//! Walking trees of a container's making, by directory descriptor.

use std::{
    collections::HashSet,
    ffi::{CStr, OsStr},
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Component, Path},
    time::Instant,
};

use nix::{
    dir::Dir,
    errno::Errno,
    fcntl::{AT_FDCWD, AtFlags, OFlag, open, openat, renameat},
    sys::stat::{FileStat, Mode, fstatat},
    unistd::{UnlinkatFlags, unlink, unlinkat},
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
/// Deeper than any program makes on purpose; each level costs two descriptors.
const DEEPEST: usize = 128;
/// How deep a deletion goes before it moves things up; each level costs two descriptors.
const RECURSION: usize = 32;

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

/// Deletes whatever is at `path`, following no link, whatever its depth and names. Others may be deleting it too.
pub(crate) fn delete(path: &Path) -> nix::Result<()> {
    let gone = |done| if done == Err(Errno::ENOENT) { Ok(()) } else { done };
    match unlink(path) {
        Err(Errno::EISDIR) => {}
        done => return gone(done),
    }
    let mut count = 0;
    loop {
        match unlinkat(AT_FDCWD, path, UnlinkatFlags::RemoveDir) {
            Err(Errno::ENOTEMPTY) => {}
            done => return gone(done),
        }
        match open(path, DIR, Mode::empty()) {
            Ok(top) => clear(&top, &top, 0, &mut count)?,
            Err(Errno::ENOENT) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

/// Deletes what is in a directory. What lies deep is moved up to `top` instead, for the next round: neither stack nor
/// descriptors grow with a tree's depth.
fn clear(dir: &OwnedFd, top: &OwnedFd, depth: usize, count: &mut u64) -> nix::Result<()> {
    for entry in Dir::openat(dir, c".", DIR, Mode::empty())?.iter() {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        match remove(dir, name, top, depth, count) {
            // Another deleter was first, or has moved something up into it.
            Ok(()) | Err(Errno::ENOENT | Errno::ENOTEMPTY) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn remove(dir: &OwnedFd, name: &CStr, top: &OwnedFd, depth: usize, count: &mut u64) -> nix::Result<()> {
    match unlinkat(dir, name, UnlinkatFlags::NoRemoveDir) {
        Err(Errno::EISDIR) => {}
        done => return done,
    }
    // Before it is entered, for this is also refused where something is mounted (EBUSY): what is there is not ours.
    match unlinkat(dir, name, UnlinkatFlags::RemoveDir) {
        Err(Errno::ENOTEMPTY) => {}
        done => return done,
    }
    if depth == RECURSION {
        loop {
            *count += 1;
            match renameat(dir, name, top, count.to_string().as_str()) {
                // The container had that name too.
                Err(Errno::EEXIST | Errno::ENOTEMPTY | Errno::ENOTDIR) => {}
                done => return done,
            }
        }
    }
    let below = openat(dir, name, DIR, Mode::empty())?;
    clear(&below, top, depth + 1, count)?;
    unlinkat(dir, name, UnlinkatFlags::RemoveDir)
}

/// What a tree takes on the disk. What vanishes meanwhile does not count.
pub(crate) fn size(path: &Path) -> Result<Size> {
    Ok(size_until(path, None)?.unwrap_or_default())
}

/// The same; none where it is not told in time.
pub(crate) fn size_until(path: &Path, until: Option<Instant>) -> Result<Option<Size>> {
    let root = match open(path, DIR, Mode::empty()) {
        Err(Errno::ENOENT) => return Ok(Some(Size::default())),
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
        if until.is_some_and(|until| Instant::now() >= until) {
            return Ok(None);
        }
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
    Ok(Some(size))
}
