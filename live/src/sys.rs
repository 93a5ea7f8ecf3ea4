//! The raw system calls.
#![allow(unsafe_code)]

mod xattr;

use std::{
    ffi::{CStr, CString},
    fs::File,
    io,
    ops::Range,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

pub use xattr::{copy_special_xattrs, copy_xattrs, has_xattr, set_xattr};

/// Takes an open-file-description lock on the whole file; false when another has it.
///
/// # Errors
/// As fcntl(2).
pub fn try_lock(file: &File) -> io::Result<bool> {
    let lock = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    // SAFETY: F_OFD_SETLK reads one flock, which lives across the call.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) } == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => Ok(false),
        _ => Err(error),
    }
}

/// Gives up the lock of [`try_lock`], for every process that shares the open file.
///
/// # Errors
/// As fcntl(2).
pub fn unlock(file: &File) -> io::Result<()> {
    let lock = libc::flock {
        l_type: libc::F_UNLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    // SAFETY: F_OFD_SETLK reads one flock, which lives across the call.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) } == 0 {
        return Ok(());
    }
    Err(io::Error::last_os_error())
}

/// Makes two names of one file system change places.
///
/// # Errors
/// As renameat2(2).
pub fn exchange(a: &Path, b: &Path) -> io::Result<()> {
    let (a, b) = (
        CString::new(a.as_os_str().as_bytes())?,
        CString::new(b.as_os_str().as_bytes())?,
    );
    // SAFETY: both strings live across the call.
    let done = unsafe {
        libc::renameat2(
            libc::AT_FDCWD,
            a.as_ptr(),
            libc::AT_FDCWD,
            b.as_ptr(),
            libc::RENAME_EXCHANGE,
        )
    };
    if done < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Shares the whole content of one file with another (a reflink).
///
/// # Errors
/// As ioctl_ficlonerange(2): most file systems cannot.
pub fn clone_file(from: &File, to: &File) -> io::Result<()> {
    const FICLONE: libc::Ioctl = 0x4004_9409_u32 as libc::Ioctl;
    // SAFETY: the argument is a descriptor.
    if unsafe { libc::ioctl(to.as_raw_fd(), FICLONE, from.as_raw_fd()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Up to this many bytes are read and written.
const SMALL: u64 = 64 << 10;

/// Copies the content of a file and leaves its holes holes. `buffer` is scratch that callers use again.
///
/// # Errors
/// As copy_file_range(2), read(2), write(2).
pub fn copy_ranges(from: &File, to: &File, buffer: &mut Vec<u8>) -> io::Result<()> {
    let length = from.metadata()?.len();
    to.set_len(length)?;
    let seek = |at: u64, whence| -> io::Result<Option<u64>> {
        let at = i64::try_from(at).map_err(io::Error::other)?;
        // SAFETY: no pointers are passed.
        match unsafe { libc::lseek(from.as_raw_fd(), at, whence) } {
            -1 => match io::Error::last_os_error() {
                e if e.raw_os_error() == Some(libc::ENXIO) => Ok(None),
                e => Err(e),
            },
            found => Ok(u64::try_from(found).ok()),
        }
    };
    let mut at = 0;
    while at < length {
        let Some(data) = seek(at, libc::SEEK_DATA)? else {
            break;
        };
        let end = seek(data, libc::SEEK_HOLE)?.unwrap_or(length).min(length);
        copy_range(from, to, data..end, buffer)?;
        at = end;
    }
    Ok(())
}

/// Copies one range of a file, as far as there still is one. `buffer` is scratch that callers use again.
///
/// # Errors
/// As copy_file_range(2), read(2), write(2).
pub fn copy_range(from: &File, to: &File, range: Range<u64>, buffer: &mut Vec<u8>) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    const BUFFER: usize = 256 * 1024;
    // For a small file the kernel's way is the longer one.
    let mut in_kernel = range.end.saturating_sub(range.start) > SMALL;
    let mut at = range.start;
    while at < range.end {
        let wanted = usize::try_from(range.end - at).unwrap_or(usize::MAX).min(1 << 30);
        if in_kernel {
            let (mut i, mut o) = (at.cast_signed(), at.cast_signed());
            // SAFETY: both offsets live across the call.
            let n = unsafe {
                libc::copy_file_range(
                    from.as_raw_fd(),
                    &raw mut i,
                    to.as_raw_fd(),
                    &raw mut o,
                    wanted,
                    0,
                )
            };
            match u64::try_from(n) {
                Ok(n) if n > 0 => at += n,
                // The file got shorter, or the file systems cannot do it among themselves.
                _ => in_kernel = false,
            }
            continue;
        }
        buffer.resize(BUFFER, 0);
        let Some(part) = buffer.get_mut(..wanted.min(BUFFER)) else {
            break;
        };
        let n = from.read_at(part, at)?;
        if n == 0 {
            break;
        }
        to.write_all_at(part.get(..n).unwrap_or_default(), at)?;
        at += n as u64;
    }
    Ok(())
}

/// Opens below a directory as if it were `/`: links inside it cannot lead out.
///
/// # Errors
/// As openat2(2).
pub fn open_in_root(root: BorrowedFd<'_>, path: &Path, flags: i32, follow_last: bool) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct OpenHow {
        flags: u64,
        mode: u64,
        resolve: u64,
    }
    const RESOLVE_NO_MAGICLINKS: u64 = 0x02;
    const RESOLVE_IN_ROOT: u64 = 0x10;
    let last = if follow_last { 0 } else { libc::O_NOFOLLOW };
    let how = OpenHow {
        flags: u64::from((flags | last | libc::O_CLOEXEC).cast_unsigned()),
        mode: 0,
        resolve: RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS,
    };
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: the path and `how` live across the call, its size is passed with it.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_openat2,
            root.as_raw_fd(),
            path.as_ptr(),
            &raw const how,
            size_of::<OpenHow>(),
        )
    };
    owned(fd)
}

/// A descriptor that means this process and no later one of the same pid.
///
/// # Errors
/// As pidfd_open(2).
pub fn pidfd(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: no pointers are passed.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })
}

/// Kills the process behind a descriptor.
///
/// # Errors
/// As pidfd_send_signal(2).
pub fn kill(pidfd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the siginfo pointer may be null.
    let done = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            libc::SIGKILL,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    if done < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

fn owned(fd: libc::c_long) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Whether somebody else has the lock of [`try_lock`], without taking it for an instant.
///
/// # Errors
/// As fcntl(2).
pub fn is_locked(file: &File) -> io::Result<bool> {
    let mut lock = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    // SAFETY: F_OFD_GETLK reads and writes one flock, which lives across the call.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &raw mut lock) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(i32::from(lock.l_type) != libc::F_UNLCK)
}

/// A file system being configured (fsopen(2)).
pub struct FsContext(OwnedFd);

impl FsContext {
    /// Begins.
    ///
    /// # Errors
    /// As fsopen(2).
    pub fn open(kind: &CStr) -> io::Result<FsContext> {
        // SAFETY: `kind` is a C string that lives across the call.
        owned(unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), 1) }).map(FsContext)
    }

    /// Sets one option. Values of more than 255 bytes are refused by the kernel.
    ///
    /// # Errors
    /// As fsconfig(2).
    pub fn set(&self, key: &CStr, value: &str) -> io::Result<()> {
        const FSCONFIG_SET_STRING: u32 = 1;
        let value = CString::new(value)?;
        // SAFETY: both strings live across the call.
        let done = unsafe {
            libc::syscall(
                libc::SYS_fsconfig,
                self.0.as_raw_fd(),
                FSCONFIG_SET_STRING,
                key.as_ptr(),
                value.as_ptr(),
                0,
            )
        };
        if done < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }

    /// Makes the superblock.
    ///
    /// # Errors
    /// As fsconfig(2), and what the file system itself says.
    pub fn create(&self) -> io::Result<()> {
        const FSCONFIG_CMD_CREATE: u32 = 6;
        let nothing = std::ptr::null::<libc::c_char>();
        // SAFETY: this command takes no key and no value.
        let done = unsafe {
            libc::syscall(
                libc::SYS_fsconfig,
                self.0.as_raw_fd(),
                FSCONFIG_CMD_CREATE,
                nothing,
                nothing,
                0,
            )
        };
        if done < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }

    /// The root directory of the made file system, mounted nowhere.
    ///
    /// # Errors
    /// As fsmount(2).
    pub fn mount(&self) -> io::Result<OwnedFd> {
        // SAFETY: no pointers are passed.
        owned(unsafe { libc::syscall(libc::SYS_fsmount, self.0.as_raw_fd(), 1, 0) })
    }
}

/// What linux/fs.h calls struct fsxattr.
#[repr(C)]
#[derive(Default)]
struct Fsxattr {
    flags: u32,
    extent_size: u32,
    extents: u32,
    project: u32,
    cow_extent_size: u32,
    pad: [u8; 8],
}

const FS_IOC_FSGETXATTR: libc::Ioctl = 0x801c_581f_u32 as libc::Ioctl;
const FS_IOC_FSSETXATTR: libc::Ioctl = 0x401c_5820_u32 as libc::Ioctl;
const FS_XFLAG_PROJINHERIT: u32 = 0x200;

fn fsxattr(file: &File) -> io::Result<Fsxattr> {
    let mut found = Fsxattr::default();
    // SAFETY: the kernel writes one such struct.
    if unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FSGETXATTR, &raw mut found) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(found)
}

/// What a file belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Project {
    /// Its number; 0 for none.
    pub number: u32,
    /// What is made in the directory from now on belongs to it, too.
    pub handed_down: bool,
}

/// The project that an open file or directory belongs to.
///
/// # Errors
/// As ioctl(2): ENOTTY or EOPNOTSUPP where its file system has no projects.
pub fn project(file: &File) -> io::Result<Project> {
    let found = fsxattr(file)?;
    Ok(Project {
        number: found.project,
        handed_down: found.flags & FS_XFLAG_PROJINHERIT != 0,
    })
}

/// Puts an open file or directory into a project; what is made in it from now on only if it is to be handed down.
///
/// # Errors
/// As ioctl(2).
pub fn set_project(file: &File, project: u32, hand_down: bool) -> io::Result<()> {
    let found = fsxattr(file)?;
    let inherit = if hand_down { FS_XFLAG_PROJINHERIT } else { 0 };
    let wanted = Fsxattr {
        project,
        flags: found.flags & !FS_XFLAG_PROJINHERIT | inherit,
        ..found
    };
    // SAFETY: the kernel reads one such struct.
    if unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FSSETXATTR, &raw const wanted) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// What linux/quota.h calls struct if_dqblk.
#[repr(C)]
#[derive(Default)]
struct Dqblk {
    /// In KiB, as the next.
    hard: u64,
    soft: u64,
    /// In bytes.
    used: u64,
    inodes_hard: u64,
    inodes_soft: u64,
    inodes: u64,
    time: u64,
    inodes_time: u64,
    valid: u32,
}

const Q_GETQUOTA: u32 = 0x0080_0007;
const Q_SETQUOTA: u32 = 0x0080_0008;
/// Q_XGETQSTAT, which file systems other than XFS answer, too.
const Q_STATE: u32 = 0x5805;
const QIF_BLIMITS: u32 = 1;
const PROJECTS: u32 = 2;
/// Of Q_STATE's flags: limits of projects are enforced.
const ENFORCED: u16 = 1 << 5;

/// quotactl of projects, on the file system of an open file.
fn quotactl(file: &File, command: u32, id: u32, about: *mut libc::c_void) -> io::Result<()> {
    let command = (command << 8) | PROJECTS;
    // SAFETY: the callers' pointers are to what the command reads or writes.
    let done = unsafe { libc::syscall(libc::SYS_quotactl_fd, file.as_raw_fd(), command, id, about) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Whether the file system of an open file enforces limits of projects. Kernels before 5.14 cannot be asked.
#[must_use]
pub fn limits_projects(file: &File) -> bool {
    // struct fs_quota_stat is smaller; its flags are the second 16 bits.
    let mut state = [0_u64; 32];
    let asked = quotactl(file, Q_STATE, 0, state.as_mut_ptr().cast());
    let [_, _, low, high, ..] = state.first().copied().unwrap_or(0).to_ne_bytes();
    asked.is_ok() && u16::from_ne_bytes([low, high]) & ENFORCED != 0
}

/// What a project takes and may take on the file system of an open file, in bytes; 0 for no limit.
///
/// # Errors
/// As quotactl(2).
pub fn quota(file: &File, project: u32) -> io::Result<(u64, u64)> {
    let mut found = Dqblk::default();
    match quotactl(file, Q_GETQUOTA, project, (&raw mut found).cast()) {
        // XFS: nobody has asked for it yet.
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok((0, 0)),
        Err(e) => Err(e),
        Ok(()) => Ok((found.used, found.hard.saturating_mul(1024))),
    }
}

/// Limits what a project may take, in bytes; 0 for not at all.
///
/// # Errors
/// As quotactl(2).
pub fn set_quota(file: &File, project: u32, limit: u64) -> io::Result<()> {
    let mut wanted = Dqblk {
        // Not 0, which is no limit.
        hard: limit.div_ceil(1024),
        valid: QIF_BLIMITS,
        ..Dqblk::default()
    };
    quotactl(file, Q_SETQUOTA, project, (&raw mut wanted).cast())
}
