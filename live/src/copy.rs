//! Copying a tree that a container or an image made: by directory descriptor, following no link, with everything
//! that a file system can hold. Sockets are not copied.
//!
//! One thread walks and makes what is no file; the files, where they are worth it, are copied by others beside it, a
//! batch of one directory at a time. Whoever is the last to need a directory gives it its attributes.

use std::{
    collections::HashMap,
    ffi::{OsStr, OsString},
    fs::File,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread::{self, Scope, ScopedJoinHandle},
};

use nix::{
    dir::Dir,
    errno::Errno,
    fcntl::{AtFlags, OFlag, openat, readlinkat},
    sys::{
        stat::{
            FchmodatFlags, FileStat, Mode, SFlag, UtimensatFlags, fchmodat, fstat, fstatat, mkdirat, mknodat,
            utimensat,
        },
        time::TimeSpec,
    },
    unistd::{Gid, LinkatFlags, Uid, fchownat, linkat, symlinkat},
};

use crate::{
    error::{Context, Result},
    sys,
    tree::{self, DIR},
};

/// Deeper than any program makes on purpose; each level costs three descriptors.
const DEEPEST: usize = 400;
/// A start should not take a whole node.
const MOST_THREADS: usize = 4;
/// What making a file costs, in bytes that could be copied meanwhile.
const COST_OF_FILE: u64 = 64 << 10;
/// What is handed over at once costs about this much.
const BATCH: u64 = 2 << 20;
/// Below this a tree is copied before another thread would have begun.
const LIGHT: u64 = 4 << 20;

/// A directory and its copy.
struct Pair {
    from: OwnedFd,
    to: OwnedFd,
    stat: FileStat,
    /// Relative to the top, for hard links and messages.
    path: PathBuf,
}

/// Files of one directory.
struct Batch {
    dir: Arc<Pair>,
    names: Vec<OsString>,
    cost: u64,
}

/// One directory on the way down.
struct Level {
    entries: nix::dir::OwningIter,
    batch: Batch,
}

/// What a look at an entry led to.
enum Found {
    Copied,
    Directory(Level),
    /// Of this size, to be copied with others of its directory.
    File(u64),
}

/// What all threads have in common.
struct Job<'a> {
    /// What errors call the top.
    from: &'a Path,
    /// Whether the file system may be able to share content.
    shares: AtomicBool,
    queue: Mutex<Receiver<Batch>>,
}

/// The thread that walks.
struct Walk<'scope, 'env> {
    job: &'env Job<'env>,
    scope: &'scope Scope<'scope, 'env>,
    send: SyncSender<Batch>,
    helpers: Vec<ScopedJoinHandle<'scope, Result<()>>>,
    most_helpers: usize,
    cost: u64,
    top: OwnedFd,
    /// Where the first of several names of a file was put.
    links: HashMap<(u64, u64), PathBuf>,
    buffer: Vec<u8>,
}

/// Copies what is in `from` into the directory `to`, which exists and is empty, and gives `to` its owner, mode, times
/// and attributes. Content is shared where the file system can.
///
/// # Errors
/// The first entry that cannot be read or made.
pub fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    copy_dir(tree::open_dir(from)?, from, to)
}

/// The same of a directory that is open; `from` is what errors call it.
pub(crate) fn copy_dir(source: OwnedFd, from: &Path, to: &Path) -> Result<()> {
    let threads = thread::available_parallelism().map_or(1, |n| n.get().min(MOST_THREADS));
    let top = tree::open_dir(to)?;
    // Each batch that waits holds two descriptors.
    let (send, queue) = sync_channel(threads);
    let job = Job {
        from,
        shares: AtomicBool::new(true),
        queue: Mutex::new(queue),
    };
    thread::scope(|scope| {
        let walk = Walk {
            job: &job,
            scope,
            send,
            helpers: Vec::new(),
            most_helpers: threads - 1,
            cost: 0,
            top: top.try_clone().on("open", to)?,
            links: HashMap::new(),
            buffer: Vec::new(),
        };
        walk.run(Level::open(source, top, PathBuf::new()).on("read", from)?)
    })
}

impl Level {
    fn open(from: OwnedFd, to: OwnedFd, path: PathBuf) -> io::Result<Level> {
        let stat = fstat(&from)?;
        let entries = Dir::from_fd(from.try_clone()?)?.into_iter();
        let dir = Arc::new(Pair { from, to, stat, path });
        Ok(Level {
            entries,
            batch: Batch::of(dir),
        })
    }
}

impl Batch {
    fn of(dir: Arc<Pair>) -> Batch {
        Batch {
            dir,
            names: Vec::new(),
            cost: 0,
        }
    }
}

impl Pair {
    /// A directory's attributes come last: making entries in it changes its times, and a default ACL would be theirs.
    fn finish(&self) -> io::Result<()> {
        sys::copy_xattrs(self.from.as_fd(), self.to.as_fd())?;
        attributes(&self.to, OsStr::new("."), &self.stat)
    }

    fn file(&self, name: &OsStr, shares: &AtomicBool, buffer: &mut Vec<u8>) -> io::Result<()> {
        let read = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let make = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let from = File::from(openat(&self.from, name, read, Mode::empty())?);
        let stat = fstat(&from)?;
        // Looked at before it was opened: only what is a file still is copied.
        if stat.st_mode & libc::S_IFMT != libc::S_IFREG {
            return Err(Errno::ESTALE.into());
        }
        let to = File::from(openat(&self.to, name, make, Mode::S_IRUSR | Mode::S_IWUSR)?);
        let size = u64::try_from(stat.st_size).unwrap_or_default();
        if size > 0 && !shared(&from, &to, shares) {
            let holes = u64::try_from(stat.st_blocks).unwrap_or_default() * 512 < size;
            if holes {
                sys::copy_ranges(&from, &to, buffer)?;
            } else {
                sys::copy_range(&from, &to, 0..size, buffer)?;
            }
        }
        // Through the descriptor an owner's change would clear capabilities that were copied before it.
        let owner = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
        nix::unistd::fchown(&to, Some(owner.0), Some(owner.1))?;
        sys::copy_xattrs(from.as_fd(), to.as_fd())?;
        nix::sys::stat::fchmod(&to, Mode::from_bits_truncate(stat.st_mode & 0o7777))?;
        let at = TimeSpec::new(stat.st_atime, stat.st_atime_nsec);
        let mt = TimeSpec::new(stat.st_mtime, stat.st_mtime_nsec);
        nix::sys::stat::futimens(&to, &at, &mt)?;
        Ok(())
    }
}

/// Shares a file's content, unless the file system has said that it never can.
fn shared(from: &File, to: &File, shares: &AtomicBool) -> bool {
    if !shares.load(Ordering::Relaxed) {
        return false;
    }
    let done = sys::clone_file(from, to);
    let never = [Some(libc::EOPNOTSUPP), Some(libc::EXDEV)];
    if let Err(error) = &done
        && never.contains(&error.raw_os_error())
    {
        shares.store(false, Ordering::Relaxed);
    }
    done.is_ok()
}

/// Makes what is neither a file nor a directory once more; `all` of its attributes where it stays in its tree.
pub(crate) fn special(
    from: (&OwnedFd, &OsStr),
    to: (&OwnedFd, &OsStr),
    stat: &FileStat,
    kind: SFlag,
    all: bool,
) -> io::Result<()> {
    if kind == SFlag::S_IFLNK {
        symlinkat(readlinkat(from.0, from.1)?.as_os_str(), to.0, to.1)?;
    } else {
        mknodat(to.0, to.1, kind, Mode::S_IRUSR | Mode::S_IWUSR, stat.st_rdev)?;
    }
    sys::copy_special_xattrs((from.0.as_fd(), from.1), (to.0.as_fd(), to.1), all)?;
    attributes(to.0, to.1, stat)
}

/// Owner, mode and times. The owner first: changing it takes set-id bits away.
fn attributes(dir: &OwnedFd, name: &OsStr, stat: &FileStat) -> io::Result<()> {
    let link = stat.st_mode & libc::S_IFMT == libc::S_IFLNK;
    let owner = (Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)));
    fchownat(dir, name, owner.0, owner.1, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    if !link {
        // There is no fchmodat that does not follow on old kernels; what stands here is no link.
        let mode = Mode::from_bits_truncate(stat.st_mode & 0o7777);
        fchmodat(dir, name, mode, FchmodatFlags::FollowSymlink)?;
    }
    let at = TimeSpec::new(stat.st_atime, stat.st_atime_nsec);
    let mt = TimeSpec::new(stat.st_mtime, stat.st_mtime_nsec);
    utimensat(dir, name, &at, &mt, UtimensatFlags::NoFollowSymlink)?;
    Ok(())
}

impl Job<'_> {
    /// Copies what is handed over until nothing more will be.
    fn help(&self, buffer: &mut Vec<u8>) -> Result<()> {
        loop {
            let next = self.queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
            match next {
                Ok(batch) => self.copy(batch, buffer)?,
                Err(_) => return Ok(()),
            }
        }
    }

    fn copy(&self, batch: Batch, buffer: &mut Vec<u8>) -> Result<()> {
        let Batch { dir, names, .. } = batch;
        for name in names {
            let copied = dir.file(&name, &self.shares, buffer);
            copied.on("copy", &self.from.join(&dir.path).join(&name))?;
        }
        self.finish(dir)
    }

    /// Whoever comes last does it.
    fn finish(&self, dir: Arc<Pair>) -> Result<()> {
        let Some(dir) = Arc::into_inner(dir) else {
            return Ok(());
        };
        dir.finish()
            .on("copy the attributes of", &self.from.join(&dir.path))
    }
}

impl<'scope> Walk<'scope, '_> {
    fn run(mut self, top: Level) -> Result<()> {
        let walked = self.walk(top);
        // The helpers end when the queue is empty and nobody can fill it any more.
        drop(self.send);
        let helped = match walked {
            Ok(()) => self.job.help(&mut self.buffer),
            failed => failed,
        };
        let ended = self.helpers.into_iter().map(|helper| {
            let panicked = |_| Err(io::Error::other("a thread has panicked")).on("copy", self.job.from);
            helper.join().unwrap_or_else(panicked)
        });
        // Every one of them is waited for, whatever the first says.
        ended.fold(helped, |first, next| first.and(next))
    }

    fn walk(&mut self, top: Level) -> Result<()> {
        let from = self.job.from;
        let mut stack = vec![top];
        loop {
            let depth = stack.len();
            let Some(level) = stack.last_mut() else {
                return Ok(());
            };
            let Some(entry) = level.entries.next() else {
                if let Some(done) = stack.pop() {
                    self.hand_over(done.batch)?;
                }
                continue;
            };
            let entry = entry.on("read", from)?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name == "." || name == ".." {
                continue;
            }
            let path = level.batch.dir.path.join(name);
            let found = self.entry(&level.batch.dir, name, &path);
            match found.on("copy", &from.join(&path))? {
                Found::Copied => {}
                Found::Directory(_) if depth >= DEEPEST => {
                    return Err(Errno::ENAMETOOLONG).on("copy", &from.join(&path));
                }
                Found::Directory(below) => stack.push(below),
                Found::File(size) => {
                    level.batch.names.push(name.to_owned());
                    level.batch.cost = level.batch.cost.saturating_add(size).saturating_add(COST_OF_FILE);
                    if level.batch.cost >= BATCH {
                        let next = Batch::of(Arc::clone(&level.batch.dir));
                        let full = std::mem::replace(&mut level.batch, next);
                        self.hand_over(full)?;
                    }
                }
            }
        }
    }

    /// Gives files to whoever has time for them: a helper, or this thread.
    fn hand_over(&mut self, batch: Batch) -> Result<()> {
        if batch.names.is_empty() {
            return self.job.finish(batch.dir);
        }
        self.cost = self.cost.saturating_add(batch.cost);
        let job = self.job;
        if self.cost >= LIGHT && self.helpers.len() < self.most_helpers {
            let help = move || job.help(&mut Vec::new());
            self.helpers.push(self.scope.spawn(help));
        }
        if self.helpers.is_empty() {
            return job.copy(batch, &mut self.buffer);
        }
        match self.send.try_send(batch) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(batch) | TrySendError::Disconnected(batch)) => {
                job.copy(batch, &mut self.buffer)
            }
        }
    }

    /// Copies one entry, unless it is a directory to be gone into or a file to be handed over.
    fn entry(&mut self, dir: &Pair, name: &OsStr, path: &Path) -> io::Result<Found> {
        let stat = fstatat(&dir.from, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        let kind = SFlag::from_bits_truncate(stat.st_mode & libc::S_IFMT);
        if kind == SFlag::S_IFDIR {
            mkdirat(&dir.to, name, Mode::S_IRWXU)?;
            let open = |above: &OwnedFd| openat(above, name, DIR, Mode::empty());
            let below = Level::open(open(&dir.from)?, open(&dir.to)?, path.to_owned())?;
            return Ok(Found::Directory(below));
        }
        let id = (stat.st_dev, stat.st_ino);
        if stat.st_nlink > 1
            && let Some(first) = self.links.get(&id)
        {
            linkat(&self.top, first.as_path(), &dir.to, name, LinkatFlags::empty())?;
            return Ok(Found::Copied);
        }
        match kind {
            SFlag::S_IFREG if stat.st_nlink == 1 => {
                return Ok(Found::File(u64::try_from(stat.st_size).unwrap_or_default()));
            }
            // Its other names are to find it.
            SFlag::S_IFREG => dir.file(name, &self.job.shares, &mut self.buffer)?,
            SFlag::S_IFLNK | SFlag::S_IFIFO | SFlag::S_IFCHR | SFlag::S_IFBLK => {
                special((&dir.from, name), (&dir.to, name), &stat, kind, false)?;
            }
            // A socket is nothing without who listens.
            _ => return Ok(Found::Copied),
        }
        if stat.st_nlink > 1 {
            self.links.insert(id, path.to_owned());
        }
        Ok(Found::Copied)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink},
        process::Command,
    };

    use super::*;

    #[test]
    fn everything_is_copied_and_nothing_followed() {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: everything_is_copied_and_nothing_followed needs root (owners, device nodes)");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::create_dir_all(from.join("a/b")).unwrap();
        fs::create_dir(&to).unwrap();
        fs::write(dir.path().join("outside"), b"outside").unwrap();
        fs::write(from.join("a/file"), b"content").unwrap();
        fs::hard_link(from.join("a/file"), from.join("hard")).unwrap();
        symlink("/etc/passwd", from.join("link")).unwrap();
        symlink(dir.path(), from.join("way-out")).unwrap();
        let sparse = File::create(from.join("sparse")).unwrap();
        sparse.set_len(64 << 20).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&sparse, b"end", (64 << 20) - 3).unwrap();
        nix::unistd::mkfifo(&from.join("fifo"), Mode::S_IRWXU).unwrap();
        nix::sys::stat::mknod(
            &from.join("null"),
            SFlag::S_IFCHR,
            Mode::S_IRUSR,
            nix::sys::stat::makedev(1, 3),
        )
        .unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(from.join("socket")).unwrap();
        std::os::unix::fs::chown(from.join("a/file"), Some(1234), Some(5678)).unwrap();
        fs::set_permissions(from.join("a/file"), fs::Permissions::from_mode(0o4751)).unwrap();
        sys::set_xattr(&from.join("a/file"), c"user.note", b"kept").unwrap();
        sys::set_xattr(&from.join("a"), c"user.note", b"kept").unwrap();
        fs::set_permissions(&from, fs::Permissions::from_mode(0o1750)).unwrap();
        std::os::unix::fs::chown(&from, Some(7), Some(8)).unwrap();
        assert!(
            Command::new("touch")
                .args(["-h", "-d", "2001-02-03 04:05:06.123456789"])
                .args([from.join("link"), from.join("a/b"), from.join("a/file")])
                .status()
                .unwrap()
                .success()
        );

        copy_tree(&from, &to).unwrap();
        let look = |path: &str| fs::symlink_metadata(to.join(path)).unwrap();
        let (file, hard) = (look("a/file"), look("hard"));
        assert_eq!((file.ino(), file.nlink()), (hard.ino(), 2));
        assert_eq!(
            (file.uid(), file.gid(), file.mode() & 0o7777),
            (1234, 5678, 0o4751)
        );
        for path in ["a/file", "a/b", "link"] {
            assert_eq!(
                (look(path).mtime(), look(path).mtime_nsec()),
                (981173106, 123456789),
                "{path}"
            );
        }
        assert_eq!(fs::read(to.join("a/file")).unwrap(), b"content");
        assert_eq!(fs::read_link(to.join("link")).unwrap(), Path::new("/etc/passwd"));
        assert!(look("way-out").is_symlink() && look("fifo").file_type().is_fifo());
        assert_eq!(look("null").rdev(), nix::sys::stat::makedev(1, 3));
        assert!(!to.join("socket").exists());
        assert_eq!(look("sparse").len(), 64 << 20);
        assert!(
            look("sparse").blocks() < 100,
            "{} blocks",
            look("sparse").blocks()
        );
        let top = fs::metadata(&to).unwrap();
        assert_eq!((top.uid(), top.gid(), top.mode() & 0o7777), (7, 8, 0o1750));
        let note = |path: &str| {
            let open = File::open(to.join(path)).unwrap();
            sys::has_xattr(open.as_fd(), |name| name == b"user.note").unwrap()
        };
        assert!(note("a/file") && note("a"));
        // What is there already is not written over.
        assert!(copy_tree(&from, &to).is_err());
    }

    /// Enough for more than one thread: small files in many directories, one that holds only directories, a large file.
    #[test]
    fn a_large_tree_is_copied_as_exactly() {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: a_large_tree_is_copied_as_exactly needs root (trusted xattrs)");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        let old = std::time::UNIX_EPOCH + std::time::Duration::new(981_173_106, 123_456_789);
        let mut directories = vec![from.clone(), from.join("sub")];
        for n in 0..60 {
            let below = from.join(format!("sub/d{n}"));
            fs::create_dir_all(&below).unwrap();
            for file in 0..40 {
                fs::write(below.join(file.to_string()), format!("{n} {file}").repeat(n)).unwrap();
            }
            fs::hard_link(below.join("7"), below.join("again")).unwrap();
            directories.push(below);
        }
        let large: Vec<u8> = (0..9_000_000u32).map(|n| (n / 7) as u8).collect();
        fs::write(from.join("large"), &large).unwrap();
        for made in &directories {
            File::open(made).unwrap().set_modified(old).unwrap();
            fs::set_permissions(made, fs::Permissions::from_mode(0o550)).unwrap();
        }
        fs::create_dir(&to).unwrap();
        copy_tree(&from, &to).unwrap();
        assert!(fs::read(to.join("large")).unwrap() == large);
        for made in &directories {
            let copied = fs::metadata(to.join(made.strip_prefix(&from).unwrap())).unwrap();
            let at = made.display();
            assert_eq!(copied.modified().unwrap(), old, "{at}");
            assert_eq!(copied.mode() & 0o7777, 0o550, "{at}");
        }
        for n in 0..60 {
            let below = to.join(format!("sub/d{n}"));
            for file in 0..40 {
                let content = fs::read_to_string(below.join(file.to_string())).unwrap();
                assert_eq!(content, format!("{n} {file}").repeat(n));
            }
            let ino = |name: &str| fs::metadata(below.join(name)).unwrap().ino();
            assert_eq!(
                (ino("7"), fs::read_dir(&below).unwrap().count()),
                (ino("again"), 41)
            );
        }

        // Whichever thread meets it: what cannot be made is told.
        let other = dir.path().join("other");
        fs::create_dir(&other).unwrap();
        fs::write(other.join("large"), b"in the way").unwrap();
        let told = copy_tree(&from, &other).unwrap_err().to_string();
        assert!(told.contains("from/large"), "{told}");
    }
}
