//! Putting what is there already into a project, so that a live tree that was begun without a limit can have one.
//!
//! No name may go from one project to another, but only where the directory hands its project down: so first all entries
//! get the number, and only then do the directories begin to hand it down. A walk that ends early leaves a tree that works
//! as it did before, and the next one goes on where it ended: to ask for every number again would take a third of the time
//! that giving it takes. What a container has made meanwhile behind its back gets its number by a walk that looks at all,
//! in one start: where anything is in the way of a project, that is found while no directory hands it down. What cannot be
//! opened (symlinks, fifos, devices, whiteouts) cannot be given a number either, and is made again by a directory that
//! hands it down. That it has been, the kernel says, who links it there or does not.

use std::{
    collections::HashMap,
    ffi::{OsStr, OsString},
    fs::File,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::{OsStrExt, OsStringExt},
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
    error::{Context, Error, Result},
    layout::make,
    sys,
    tree::{self, DIR},
};

/// Deeper than any program makes on purpose; each level costs two descriptors.
const DEEPEST: usize = 400;

/// In the tree's own top, so that it goes where the tree goes: where the last walk had come to.
const REACHED: &str = "reached";

/// There, too: all has its number, and directories have begun to hand it down.
pub(crate) const ENDING: &str = "ending";

/// Puts all that is below `top` into a project that hands itself down, and then `top`; nobody uses the tree. `scratch` is
/// no directory yet, on the same file system. False where there was no time for all of it: then it is to be begun again.
///
/// # Errors
/// An entry that cannot be changed, a full disk: nothing hands the project down then. [`Error::Halfway`] if something does:
/// no container may have it so.
pub(crate) fn take_in(top: &Path, scratch: &Path, project: u32, until: Instant) -> Result<bool> {
    let ending = top.join(ENDING);
    let clear = || tree::delete(&ending).on("remove", &ending);
    let resumed = ending.exists();
    if !resumed {
        if !number(top, scratch, project, until)? {
            return Ok(false);
        }
        let noted = File::create(&ending).and_then(|file| file.sync_all());
        if let Err(error) = noted {
            // Whoever found it would not look at what a container makes from now on.
            clear()?;
            return Err(error).on("write", &ending);
        }
    }
    if let Err(error) = hand_down(top, project, true) {
        let taken_back = hand_down(top, project, false).and_then(|()| clear());
        return Err(match taken_back {
            Ok(()) => error,
            Err(error) => Error::Halfway {
                tree: top.display().to_string(),
                error: Box::new(error),
            },
        });
    }
    // Since it was noted the disk may have been mounted without projects, and the tree used.
    if resumed && !number(top, scratch, project, until)? {
        return Ok(false);
    }
    clear()?;
    Ok(true)
}

/// Gives all that is below `top` its number; false where there was no time for it. True only after all was looked at by
/// one walk: what an earlier one has passed, a container may have changed since.
pub(crate) fn number(top: &Path, scratch: &Path, project: u32, until: Instant) -> Result<bool> {
    let reached = top.join(REACHED);
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
    let mut give = |from: &OsStr| {
        walk(top, Path::new(from), until, |dir, name, stat| {
            numbers.give(dir, name, stat)
        })
    };
    let from = std::fs::read(&reached)
        .map(OsString::from_vec)
        .unwrap_or_default();
    let all = match give(&from)? {
        Some(at) => {
            std::fs::write(&reached, at.as_os_str().as_bytes()).on("write", &reached)?;
            false
        }
        None => {
            // If there is no time for this, the next start has all of its own for it.
            tree::delete(&reached).on("remove", &reached)?;
            from.is_empty() || give(OsStr::new(""))?.is_none()
        }
    };
    tree::delete(scratch).on("delete", scratch)?;
    Ok(all)
}

/// Lets all directories hand the project down, and then `top`, or none of them.
fn hand_down(top: &Path, project: u32, down: bool) -> Result<()> {
    let set = |open: &File| match sys::project(open)?.handed_down == down {
        true => Ok(()),
        false => sys::set_project(open, project, down),
    };
    walk(top, Path::new(""), Instant::now() + FOREVER, |dir, name, stat| {
        if kind(stat) == SFlag::S_IFDIR {
            set(&opened(dir, name, DIR)?)?;
        }
        Ok(false)
    })?;
    set(&File::from(tree::open_dir(top)?)).on("set the project of", top)
}

/// Longer than any walk.
const FOREVER: Duration = Duration::from_secs(1 << 30);

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
    /// Gives an entry its number. True where it was replaced in its directory for it.
    fn give(&mut self, dir: &OwnedFd, name: &OsStr, stat: &FileStat) -> io::Result<bool> {
        let file = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let open = match kind(stat) {
            SFlag::S_IFREG => opened(dir, name, file)?,
            SFlag::S_IFDIR => opened(dir, name, DIR)?,
            _ if self.has(dir, name)? => return Ok(false),
            kind => return self.make_again(dir, name, stat, kind).map(|()| true),
        };
        if sys::project(&open)?.number != self.project {
            sys::set_project(&open, self.project, false)?;
        }
        Ok(false)
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
    /// What comes before this was shown by an earlier walk.
    from: Option<OsString>,
    /// An entry of it was replaced, which its times are not to tell.
    changed: bool,
}

impl Level {
    fn of(dir: OwnedFd, from: Option<&OsStr>) -> io::Result<Level> {
        Ok(Level {
            entries: entries(&dir)?,
            stat: fstat(&dir)?,
            dir,
            from: from.map(OsStr::to_owned),
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

/// From the first on.
fn entries(dir: &OwnedFd) -> io::Result<OwningIter> {
    Ok(Dir::openat(dir, c".", DIR, Mode::empty())?.into_iter())
}

/// Shows every entry below `top`, following no link, from behind the one on that an earlier walk has answered with; it says
/// whether the directory was changed for it. Answers with where it was when the time was up, below `top`: one entry further
/// at least.
fn walk(
    top: &Path,
    from: &Path,
    until: Instant,
    each: impl FnMut(&OwnedFd, &OsStr, &FileStat) -> io::Result<bool>,
) -> Result<Option<PathBuf>> {
    let first = from.iter().next();
    let mut stack = vec![Level::of(tree::open_dir(top)?, first).on("read", top)?];
    let walked = down(top, from, &mut stack, until, each);
    // Wherever it ended.
    let left: io::Result<()> = stack.iter().try_for_each(Level::leave);
    let ended = walked?;
    left.on("set the times below", top)?;
    Ok(ended)
}

fn down(
    top: &Path,
    from: &Path,
    stack: &mut Vec<Level>,
    until: Instant,
    mut each: impl FnMut(&OwnedFd, &OsStr, &FileStat) -> io::Result<bool>,
) -> Result<Option<PathBuf>> {
    let mut path = PathBuf::new();
    loop {
        let depth = stack.len();
        let Some(level) = stack.last_mut() else {
            return Ok(None);
        };
        let at = |path: &Path| top.join(path);
        let Some(entry) = level.entries.next() else {
            if level.from.take().is_some() {
                // It is gone: so nobody knows what came before it.
                level.entries = entries(&level.dir).on("read", &at(&path))?;
                continue;
            }
            level.leave().on("set the times of", &at(&path))?;
            stack.pop();
            path.pop();
            continue;
        };
        let entry = entry.on("read", &at(&path))?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name == "." || name == ".." || level.from.as_ref().is_some_and(|from| name != from) {
            continue;
        }
        let known = level.from.take().is_some();
        path.push(name);
        let stat =
            fstatat(level.dir.as_fd(), name, AtFlags::AT_SYMLINK_NOFOLLOW).on("look at", &at(&path))?;
        if !known {
            level.changed |= each(&level.dir, name, &stat).on("set the project of", &at(&path))?;
            if Instant::now() >= until {
                return Ok(Some(path));
            }
        }
        if kind(&stat) != SFlag::S_IFDIR {
            path.pop();
            continue;
        }
        if depth >= DEEPEST {
            return Err(Errno::ENAMETOOLONG).on("go into", &at(&path));
        }
        let below = openat(&level.dir, name, DIR, Mode::empty()).on("open", &at(&path))?;
        let next = from.iter().nth(depth).filter(|_| known);
        stack.push(Level::of(below, next).on("read", &at(&path))?);
    }
}
