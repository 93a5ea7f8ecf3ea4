//! Putting what is there already into a project, so that a live tree that was begun without a limit can have one.
//!
//! No name may go from one project to another, but only where the directory hands its project down: so first all entries
//! get the number, and only then do the directories begin to hand it down. A walk that ends early leaves a tree that works
//! as it did before, and the next one finds most of it done. What cannot be opened (symlinks, fifos, devices, whiteouts)
//! cannot be given a number either, and is made again by a directory that hands it down.

use std::{
    collections::HashMap,
    ffi::OsStr,
    fs::File,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
    time::Instant,
};

use nix::{
    dir::{Dir, OwningIter},
    errno::Errno,
    fcntl::{AtFlags, OFlag, openat, renameat},
    sys::{
        stat::{FileStat, Mode, SFlag, fstat, fstatat, futimens},
        time::TimeSpec,
    },
    unistd::{LinkatFlags, linkat},
};

use crate::{
    copy,
    error::{Context, Result},
    layout::make,
    sys,
    tree::{self, DIR},
};

/// Deeper than any program makes on purpose; each level costs two descriptors.
const DEEPEST: usize = 400;

/// Puts all that is below `top` into a project that hands itself down, and then `top`; nobody uses the tree. `scratch` is
/// no directory yet, on the same file system. False where there was no time for all of it.
///
/// # Errors
/// An entry that cannot be changed, a full disk.
pub(crate) fn take_in(top: &Path, scratch: &Path, project: u32, until: Instant) -> Result<bool> {
    // From the second walk on only a part hands the project down, and no container may have it so: there is no limit.
    let ending = scratch.with_extension("ending");
    let until = if ending.exists() {
        Instant::now() + FOREVER
    } else {
        until
    };
    // Left by one that was killed.
    tree::delete(scratch).on("delete", scratch)?;
    make(scratch)?;
    let open = File::from(tree::open_dir(scratch)?);
    sys::set_project(&open, project, true).on("set the project of", scratch)?;
    let mut numbers = Numbers {
        project,
        scratch: open.into(),
        links: HashMap::new(),
    };
    let all = walk(top, until, |dir, name, stat| numbers.give(dir, name, stat));
    tree::delete(scratch).on("delete", scratch)?;
    if !all? {
        return Ok(false);
    }
    File::create(&ending)
        .on("create", &ending)?
        .sync_all()
        .on("sync", &ending)?;
    // From here on it is to be whole, and there is little left to do.
    walk(top, Instant::now() + FOREVER, |dir, name, stat| {
        if kind(stat) == SFlag::S_IFDIR {
            sys::set_project(&opened(dir, name, DIR)?, project, true)?;
        }
        Ok(false)
    })?;
    let done = File::from(tree::open_dir(top)?);
    sys::set_project(&done, project, true).on("set the project of", top)?;
    std::fs::remove_file(&ending).on("remove", &ending)?;
    Ok(true)
}

/// Longer than any walk.
const FOREVER: std::time::Duration = std::time::Duration::from_secs(1 << 30);

struct Numbers {
    project: u32,
    /// Hands the project down.
    scratch: OwnedFd,
    /// What was made again and has other names: the name in `scratch`, by the inode.
    links: HashMap<u64, String>,
}

impl Numbers {
    /// Gives an entry its number. True where its directory was changed for it.
    fn give(&mut self, dir: &OwnedFd, name: &OsStr, stat: &FileStat) -> io::Result<bool> {
        let file = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let open = match kind(stat) {
            SFlag::S_IFREG => opened(dir, name, file)?,
            SFlag::S_IFDIR => opened(dir, name, DIR)?,
            kind => return self.make_again(dir, name, stat, kind).map(|()| true),
        };
        if sys::project(&open)?.number != self.project {
            sys::set_project(&open, self.project, false)?;
        }
        Ok(false)
    }

    fn make_again(&mut self, dir: &OwnedFd, name: &OsStr, stat: &FileStat, kind: SFlag) -> io::Result<()> {
        const ONE: &str = "one";
        // Each name that is replaced is one less: the last of several looks as if it were the only one.
        if stat.st_nlink > 1 || self.links.contains_key(&stat.st_ino) {
            let kept = match self.links.get(&stat.st_ino) {
                Some(kept) => kept,
                None => {
                    let kept = self.links.len().to_string();
                    copy::special((dir, name), (&self.scratch, OsStr::new(&kept)), stat, kind)?;
                    self.links.entry(stat.st_ino).or_insert(kept)
                }
            };
            let scratch = &self.scratch;
            linkat(scratch, kept.as_str(), scratch, ONE, LinkatFlags::empty())?;
        } else {
            copy::special((dir, name), (&self.scratch, OsStr::new(ONE)), stat, kind)?;
        }
        Ok(renameat(&self.scratch, ONE, dir, name)?)
    }
}

fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & libc::S_IFMT)
}

fn opened(dir: &OwnedFd, name: &OsStr, how: OFlag) -> io::Result<File> {
    Ok(File::from(openat(dir, name, how, Mode::empty())?))
}

/// One directory on the way down.
struct Level {
    dir: OwnedFd,
    entries: OwningIter,
    stat: FileStat,
    /// An entry of it was replaced, which its times are not to tell.
    changed: bool,
}

impl Level {
    fn of(dir: OwnedFd) -> io::Result<Level> {
        let entries = Dir::from_fd(dir.try_clone()?)?.into_iter();
        let stat = fstat(&dir)?;
        Ok(Level {
            dir,
            entries,
            stat,
            changed: false,
        })
    }

    fn leave(&self) -> io::Result<()> {
        if self.changed {
            let stat = &self.stat;
            let accessed = TimeSpec::new(stat.st_atime, stat.st_atime_nsec);
            let modified = TimeSpec::new(stat.st_mtime, stat.st_mtime_nsec);
            futimens(self.dir.as_fd(), &accessed, &modified)?;
        }
        Ok(())
    }
}

/// Shows every entry below `top`, following no link; it answers whether it has changed the directory. False where the time
/// was up before the end.
fn walk(
    top: &Path,
    until: Instant,
    mut each: impl FnMut(&OwnedFd, &OsStr, &FileStat) -> io::Result<bool>,
) -> Result<bool> {
    let mut stack = vec![Level::of(tree::open_dir(top)?).on("read", top)?];
    let mut path = PathBuf::from(top);
    loop {
        let depth = stack.len();
        let Some(level) = stack.last_mut() else {
            return Ok(true);
        };
        if Instant::now() >= until {
            let left: io::Result<()> = stack.iter().try_for_each(Level::leave);
            left.on("set the times below", top)?;
            return Ok(false);
        }
        let Some(entry) = level.entries.next() else {
            level.leave().on("set the times of", &path)?;
            stack.pop();
            path.pop();
            continue;
        };
        let entry = entry.on("read", &path)?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name == "." || name == ".." {
            continue;
        }
        let here = path.join(name);
        let stat = fstatat(level.dir.as_fd(), name, AtFlags::AT_SYMLINK_NOFOLLOW).on("look at", &here)?;
        level.changed |= each(&level.dir, name, &stat).on("set the project of", &here)?;
        if kind(&stat) == SFlag::S_IFDIR {
            if depth >= DEEPEST {
                return Err(Errno::ENAMETOOLONG).on("go into", &here);
            }
            let below = openat(&level.dir, name, DIR, Mode::empty()).on("open", &here)?;
            stack.push(Level::of(below).on("read", &here)?);
            path = here;
        }
    }
}
