//! The raw system calls.
#![allow(unsafe_code)]

use std::{
    ffi::{CStr, CString},
    fs::File,
    io,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

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

/// Sets an extended attribute, not following a link.
///
/// # Errors
/// As setxattr(2).
pub fn set_xattr(path: &Path, name: &CStr, value: &[u8]) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: both strings and the value live across the call, the value's length is passed with it.
    let done = unsafe {
        libc::lsetxattr(
            path.as_ptr(),
            name.as_ptr(),
            value.as_ptr().cast(),
            value.len(),
            0,
        )
    };
    if done < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Whether an open file or directory has extended attributes of these prefixes.
///
/// # Errors
/// As flistxattr(2).
pub fn has_xattr(fd: BorrowedFd<'_>, wanted: impl Fn(&[u8]) -> bool) -> io::Result<bool> {
    let mut names = vec![0u8; 65536];
    // SAFETY: the buffer's length is passed with it.
    let n = unsafe { libc::flistxattr(fd.as_raw_fd(), names.as_mut_ptr().cast(), names.len()) };
    let n = usize::try_from(n).map_err(|_| io::Error::last_os_error())?;
    names.truncate(n);
    Ok(names
        .split(|b| *b == 0)
        .any(|name| !name.is_empty() && wanted(name)))
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
