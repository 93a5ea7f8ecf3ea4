//! Putting what is there already into a project, so that a live tree that was begun without a limit can have one.
//!
//! No name may go from one project to another, but only where the directory hands its project down: so first all entries
//! get the number, and only then do the directories begin to hand it down. A walk that ends early leaves a tree that works
//! as it did before, and the next one goes past what is done, which takes a fraction of doing it: only the doing counts
//! towards the time that it may take, so that each comes further, however large the tree. What cannot be opened (symlinks,
//! fifos, devices, whiteouts) cannot be given a number either, and is made again by a directory that hands it down. That it
//! has been, the kernel says, who links it there or does not.

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
    time::{Duration, Instant},
};

use nix::{
    dir::{Dir, OwningIter},
    errno::Errno,
    fcntl::{AtFlags, OFlag, openat, renameat},
    sys::{
        stat::{FileStat, Mode, SFlag, fstat, fstatat, futimens},
        time::TimeSpec,
    },
    unistd::{LinkatFlags, UnlinkatFlags, linkat, unlinkat},
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
/// no directory yet, on the same file system. False where there is more to do than can be done in this time: but something
/// always is.
///
/// # Errors
/// An entry that cannot be changed, a full disk.
pub(crate) fn take_in(top: &Path, scratch: &Path, project: u32, patience: Duration) -> Result<bool> {
    // From the second walk on only a part hands the project down, and no container may have it so: there is no limit.
    let ending = scratch.with_extension("ending");
    let patience = if ending.exists() { FOREVER } else { patience };
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
    let all = walk(top, patience, |dir, name, stat| numbers.give(dir, name, stat));
    tree::delete(scratch).on("delete", scratch)?;
    if !all? {
        return Ok(false);
    }
    File::create(&ending)
        .on("create", &ending)?
        .sync_all()
        .on("sync", &ending)?;
    // From here on it is to be whole, and there is little left to do.
    walk(top, FOREVER, |dir, name, stat| {
        if kind(stat) == SFlag::S_IFDIR {
            sys::set_project(&opened(dir, name, DIR)?, project, true)?;
        }
        Ok(Given::Already)
    })?;
    let done = File::from(tree::open_dir(top)?);
    sys::set_project(&done, project, true).on("set the project of", top)?;
    std::fs::remove_file(&ending).on("remove", &ending)?;
    Ok(true)
}

/// Longer than any walk.
const FOREVER: Duration = Duration::from_secs(1 << 30);

/// What became of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Given {
    /// It had its number.
    Already,
    Now,
    /// And for that was replaced in its directory.
    Replaced,
}

/// A name in `scratch`, for a moment.
const ONE: &str = "one";

struct Numbers {
    project: u32,
    /// Hands the project down.
    scratch: OwnedFd,
    /// What was made again and has other names: the name in `scratch`, by the inode.
    links: HashMap<u64, String>,
}

impl Numbers {
    /// Gives an entry its number.
    fn give(&mut self, dir: &OwnedFd, name: &OsStr, stat: &FileStat) -> io::Result<Given> {
        let file = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let open = match kind(stat) {
            SFlag::S_IFREG => opened(dir, name, file)?,
            SFlag::S_IFDIR => opened(dir, name, DIR)?,
            _ if self.has(dir, name)? => return Ok(Given::Already),
            kind => return self.make_again(dir, name, stat, kind).map(|()| Given::Replaced),
        };
        if sys::project(&open)?.number == self.project {
            return Ok(Given::Already);
        }
        sys::set_project(&open, self.project, false)?;
        Ok(Given::Now)
    }

    /// Whether something that cannot be opened may go where the project is handed down. (To newer kernels some of it may
    /// that has no number at all: it takes no space either.)
    fn has(&self, dir: &OwnedFd, name: &OsStr) -> io::Result<bool> {
        match linkat(dir, name, &self.scratch, ONE, LinkatFlags::empty()) {
            Ok(()) => {
                unlinkat(&self.scratch, ONE, UnlinkatFlags::NoRemoveDir)?;
                Ok(true)
            }
            // As many links as there can be: that it is made again says what is wrong, if anything is.
            Err(Errno::EXDEV | Errno::EMLINK) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn make_again(&mut self, dir: &OwnedFd, name: &OsStr, stat: &FileStat, kind: SFlag) -> io::Result<()> {
        // Each name that is replaced is one less: the last of several looks as if it were the only one.
        if stat.st_nlink > 1 || self.links.contains_key(&stat.st_ino) {
            let kept = match self.links.get(&stat.st_ino) {
                Some(kept) => kept,
                None => {
                    let kept = self.links.len().to_string();
                    copy::special((dir, name), (&self.scratch, OsStr::new(&kept)), stat, kind, true)?;
                    self.links.entry(stat.st_ino).or_insert(kept)
                }
            };
            let scratch = &self.scratch;
            linkat(scratch, kept.as_str(), scratch, ONE, LinkatFlags::empty())?;
        } else {
            copy::special((dir, name), (&self.scratch, OsStr::new(ONE)), stat, kind, true)?;
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

/// Shows every entry below `top`, following no link. False where what is done to them took too long before the end.
fn walk(
    top: &Path,
    patience: Duration,
    each: impl FnMut(&OwnedFd, &OsStr, &FileStat) -> io::Result<Given>,
) -> Result<bool> {
    let mut stack = vec![Level::of(tree::open_dir(top)?).on("read", top)?];
    let walked = down(top, &mut stack, patience, each);
    // Wherever it ended.
    let left: io::Result<()> = stack.iter().try_for_each(Level::leave);
    let all = walked?;
    left.on("set the times below", top)?;
    Ok(all)
}

fn down(
    top: &Path,
    stack: &mut Vec<Level>,
    patience: Duration,
    mut each: impl FnMut(&OwnedFd, &OsStr, &FileStat) -> io::Result<Given>,
) -> Result<bool> {
    let mut path = PathBuf::from(top);
    let mut taken = Duration::ZERO;
    loop {
        let depth = stack.len();
        let Some(level) = stack.last_mut() else {
            return Ok(true);
        };
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
        let began = Instant::now();
        let given = each(&level.dir, name, &stat).on("set the project of", &here)?;
        level.changed |= given == Given::Replaced;
        if given != Given::Already {
            taken += began.elapsed();
            if taken >= patience {
                return Ok(false);
            }
        }
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
