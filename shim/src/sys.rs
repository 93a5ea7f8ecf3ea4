//! The few raw system calls of the shim's core, each behind a safe function.
#![allow(unsafe_code)]

use std::{
    ffi::CStr,
    io::{self, Seek, SeekFrom, Write},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::Command,
};

use nix::fcntl::OFlag;

/// A pipe whose ends are closed on exec; the read end does not block.
///
/// # Errors
/// When the process is out of descriptors.
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    nix::fcntl::fcntl(&read, nix::fcntl::FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok((read, write))
}

/// An anonymous file with this content, read from its start.
///
/// # Errors
/// When memory or descriptors run out.
pub fn memory_file(name: &CStr, content: &[u8]) -> io::Result<OwnedFd> {
    // SAFETY: `name` is a C string; the call returns a new descriptor or -1.
    let fd = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else owns it.
    let mut file = unsafe { std::fs::File::from_raw_fd(fd) };
    file.write_all(content)?;
    file.seek(SeekFrom::Start(0))?;
    Ok(file.into())
}

/// The child is killed when this process dies, so that no half-made container outlives its shim.
pub fn die_with_parent(command: &mut Command) {
    // SAFETY: between fork and exec only prctl is called, which is async-signal-safe.
    unsafe {
        command.pre_exec(|| {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) == 0 {
                Ok(())
            } else {
                Err(io::Error::last_os_error())
            }
        });
    }
}

/// Passes `fd` to the child as descriptor 3 and gives it a process group of its own.
pub fn inherit_as_three(command: &mut Command, fd: &OwnedFd) {
    let raw = fd.as_raw_fd();
    command.process_group(0);
    // SAFETY: between fork and exec only dup2 and fcntl are called, which are async-signal-safe; the caller
    // keeps `fd` open until the spawn has returned.
    unsafe {
        command.pre_exec(move || {
            let done = if raw == 3 {
                libc::fcntl(3, libc::F_SETFD, 0)
            } else {
                libc::dup2(raw, 3)
            };
            if done < 0 {
                Err(io::Error::last_os_error())
            } else {
                Ok(())
            }
        });
    }
}

/// Takes over the listening socket that `start` left as descriptor 3.
///
/// # Errors
/// When descriptor 3 is not a listening Unix socket: the server was not started by `start`.
pub fn inherited_socket() -> io::Result<std::os::unix::net::UnixListener> {
    let listening = {
        // SAFETY: borrowed for one query only; an invalid descriptor gives EBADF.
        let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(3) };
        nix::sys::socket::getsockopt(&fd, nix::sys::socket::sockopt::AcceptConn)?
    };
    if !listening {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    // SAFETY: descriptor 3 is the socket that `start` passed; nothing else in this process owns it.
    let listener = unsafe { std::os::unix::net::UnixListener::from_raw_fd(3) };
    nix::fcntl::fcntl(
        &listener,
        nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC),
    )?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Makes a process group share a core-scheduling cookie (`SCHED_CORE`), so that hyperthreads are not shared
/// with others.
///
/// # Errors
/// When the kernel has no core scheduling.
pub fn core_schedule_group() -> io::Result<()> {
    const PIDTYPE_PGID: libc::c_ulong = 2;
    // SAFETY: no pointers are passed.
    let done = unsafe {
        libc::prctl(
            libc::PR_SCHED_CORE,
            libc::PR_SCHED_CORE_CREATE,
            0,
            PIDTYPE_PGID,
            0,
        )
    };
    if done < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Keeps the C allocator to one arena and returns free memory to the kernel early: an idle shim's size is a
/// promise.
pub fn frugal_allocator() {
    // SAFETY: called before any thread is started; the parameters are plain integers.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 64 * 1024);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 64 * 1024);
    }
}

/// Gives unused heap back to the kernel.
pub fn trim_heap() {
    // SAFETY: no pointers are passed; glibc locks its own state.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// kill(2) with any signal number, realtime ones included.
///
/// # Errors
/// As kill(2).
pub fn kill(pid: nix::unistd::Pid, signal: i32) -> nix::Result<()> {
    // SAFETY: no pointers are passed.
    nix::errno::Errno::result(unsafe { libc::kill(pid.as_raw(), signal) }).map(drop)
}
