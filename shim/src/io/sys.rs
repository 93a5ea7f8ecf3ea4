//! The raw system calls of the streams.
#![allow(unsafe_code)]

use tokio::io::{Interest, unix::AsyncFd};

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    os::unix::process::CommandExt,
    process::Command,
};

/// Receives one descriptor over a Unix socket.
///
/// # Errors
/// When the peer closed or sent none.
pub fn receive_fd(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
    let mut byte = [0u8; 4096];
    let mut iov = [io::IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!([RawFd; 1]);
    let message = recvmsg::<()>(
        socket.as_raw_fd(),
        &mut iov,
        Some(&mut space),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )?;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = control {
            let mut owned = fds.into_iter().map(|fd| {
                // SAFETY: the kernel has just installed these descriptors for us and nobody else knows them.
                unsafe { OwnedFd::from_raw_fd(fd) }
            });
            if let Some(first) = owned.next() {
                return Ok(first);
            }
        }
    }
    Err(io::Error::new(
        io::ErrorKind::UnexpectedEof,
        "no descriptor was sent",
    ))
}

/// Sets a terminal's size.
///
/// # Errors
/// As ioctl(2).
pub fn set_window_size(terminal: BorrowedFd<'_>, width: u16, height: u16) -> io::Result<()> {
    let size = libc::winsize {
        ws_row: height,
        ws_col: width,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: TIOCSWINSZ reads one winsize, which lives across the call.
    let done = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    if done < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Gives the child these descriptors as 3, 4 and 5: the protocol of `binary://` loggers.
pub fn inherit_from_three(command: &mut Command, fds: [OwnedFd; 3]) {
    // SAFETY: between fork and exec only fcntl and dup2 are called, which are async-signal-safe. The closure owns
    // the descriptors, so they are open when it runs.
    unsafe {
        command.pre_exec(move || {
            // Moved out of the way first: one of them may itself be 3, 4 or 5.
            let mut high = [0; 3];
            for (slot, fd) in high.iter_mut().zip(&fds) {
                *slot = libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 16);
                if *slot < 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            for (target, fd) in (3..).zip(high) {
                if libc::dup2(fd, target) < 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
}

/// Puts a descriptor on the event loop.
///
/// # Errors
/// A descriptor that cannot be polled.
pub fn poll_fd(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is open and stays the same descriptor until it is dropped, which the AsyncFd does after
    // taking it off the event loop.
    unsafe { AsyncFd::register_with_interest(fd, interest) }.map_err(io::Error::from)
}
