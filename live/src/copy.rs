//! Copying a tree that a container or an image made: by directory descriptor, following no link, with everything
//! that a file system can hold. Sockets are not copied.

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
};

use nix::{
    dir::Dir,
    errno::Errno,
    fcntl::{AtFlags, OFlag, openat, readlinkat},
    sys::{
        stat::{
            FchmodatFlags, FileStat, Mode, SFlag, UtimensatFlags, fchmodat, fstatat, mkdirat, mknodat,
            utimensat,
        },
        time::TimeSpec,
    },
    unistd::{Gid, LinkatFlags, Uid, fchownat, linkat, symlinkat},
};

use crate::{
    error::{Context, Error, Result},
    sys,
    tree::{self, DIR},
};

/// Deeper than any program makes on purpose; each level costs two descriptors.
const DEEPEST: usize = 400;

/// One directory on the way down.
struct Level {
    from: OwnedFd,
    to: OwnedFd,
    entries: nix::dir::OwningIter,
    stat: FileStat,
    /// Relative to the top, for hard links and messages.
    path: PathBuf,
}

struct Copy {
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
    let top = tree::open_dir(to)?;
    let mut copy = Copy {
        top: top.try_clone().on("open", to)?,
        links: HashMap::new(),
        buffer: Vec::new(),
    };
    let mut stack = vec![Level::open(source, top, PathBuf::new()).on("read", from)?];
    while let Some(level) = stack.last_mut() {
        let Some(entry) = level.entries.next() else {
            // A directory's own times come last: making entries in it changes them.
            if let Some(done) = stack.pop() {
                done.finish()
                    .on("copy the attributes of", &from.join(&done.path))?;
            }
            continue;
        };
        let entry = entry.on("read", from)?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name == "." || name == ".." {
            continue;
        }
        let path = level.path.join(name);
        let below = copy.entry(level, name, &path).on("copy", &from.join(&path))?;
        if let Some(below) = below {
            if stack.len() >= DEEPEST {
                return Err(Error::Io {
                    context: format!("copy {}", from.join(&path).display()),
                    source: Errno::ENAMETOOLONG.into(),
                });
            }
            stack.push(below);
        }
    }
    Ok(())
}

impl Level {
    fn open(from: OwnedFd, to: OwnedFd, path: PathBuf) -> io::Result<Level> {
        let stat = nix::sys::stat::fstat(&from)?;
        let entries = Dir::from_fd(from.try_clone()?)?.into_iter();
        Ok(Level {
            from,
            to,
            entries,
            stat,
            path,
        })
    }

    fn finish(&self) -> io::Result<()> {
        sys::copy_xattrs(self.from.as_fd(), self.to.as_fd())?;
        attributes(&self.to, OsStr::new("."), &self.stat)
    }
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

impl Copy {
    /// Copies one entry; of a directory only itself, to be gone into.
    fn entry(&mut self, level: &Level, name: &OsStr, path: &Path) -> io::Result<Option<Level>> {
        let stat = fstatat(level.from.as_fd(), name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        let kind = SFlag::from_bits_truncate(stat.st_mode & libc::S_IFMT);
        if kind == SFlag::S_IFDIR {
            mkdirat(&level.to, name, Mode::S_IRWXU)?;
            let open = |dir: &OwnedFd| openat(dir, name, DIR, Mode::empty());
            return Level::open(open(&level.from)?, open(&level.to)?, path.to_owned()).map(Some);
        }
        let id = (stat.st_dev, stat.st_ino);
        if stat.st_nlink > 1
            && let Some(first) = self.links.get(&id)
        {
            linkat(&self.top, first.as_path(), &level.to, name, LinkatFlags::empty())?;
            return Ok(None);
        }
        match kind {
            SFlag::S_IFREG => self.file(level, name, &stat)?,
            SFlag::S_IFLNK => {
                symlinkat(readlinkat(&level.from, name)?.as_os_str(), &level.to, name)?;
                attributes(&level.to, name, &stat)?;
            }
            SFlag::S_IFIFO | SFlag::S_IFCHR | SFlag::S_IFBLK => {
                mknodat(&level.to, name, kind, Mode::S_IRUSR | Mode::S_IWUSR, stat.st_rdev)?;
                attributes(&level.to, name, &stat)?;
            }
            // A socket is nothing without who listens.
            _ => return Ok(None),
        }
        if stat.st_nlink > 1 {
            self.links.insert(id, path.to_owned());
        }
        Ok(None)
    }

    fn file(&mut self, level: &Level, name: &OsStr, stat: &FileStat) -> io::Result<()> {
        let read = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let make = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let from = File::from(openat(&level.from, name, read, Mode::empty())?);
        let to = File::from(openat(&level.to, name, make, Mode::S_IRUSR | Mode::S_IWUSR)?);
        // Looked at before it was opened: only what is a file still is copied.
        if !from.metadata()?.is_file() {
            return Err(Errno::ESTALE.into());
        }
        if stat.st_size > 0 && sys::clone_file(&from, &to).is_err() {
            sys::copy_ranges(&from, &to, &mut self.buffer)?;
        }
        // Through the descriptor an owner's change would clear capabilities that were copied before it.
        nix::unistd::fchown(
            &to,
            Some(Uid::from_raw(stat.st_uid)),
            Some(Gid::from_raw(stat.st_gid)),
        )?;
        sys::copy_xattrs(from.as_fd(), to.as_fd())?;
        nix::sys::stat::fchmod(&to, Mode::from_bits_truncate(stat.st_mode & 0o7777))?;
        let at = TimeSpec::new(stat.st_atime, stat.st_atime_nsec);
        let mt = TimeSpec::new(stat.st_mtime, stat.st_mtime_nsec);
        nix::sys::stat::futimens(&to, &at, &mt)?;
        Ok(())
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
}
