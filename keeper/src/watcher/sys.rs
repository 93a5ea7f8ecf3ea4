//! File handles, and whose open files are whose: what nix lacks of them.
#![allow(unsafe_code)]

use std::{
    ffi::CStr,
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use super::record::Handle;

/// The most bytes a handle has (`MAX_HANDLE_SZ`).
const LONGEST: usize = 128;

/// `struct file_handle` with room for its bytes.
#[repr(C)]
struct Raw {
    bytes: u32,
    kind: i32,
    handle: [u8; LONGEST],
}

/// The handle of what has a name in a directory, links not followed; of the directory itself for an empty name.
///
/// # Errors
/// As name_to_handle_at(2).
pub fn handle_of(dir: &OwnedFd, name: &CStr) -> io::Result<Handle> {
    let mut raw = Raw {
        bytes: LONGEST as u32,
        kind: 0,
        handle: [0; LONGEST],
    };
    let mut mount = 0;
    // SAFETY: `raw` is a file_handle with the room it says, `name` a C string; both live across the call.
    nix::errno::Errno::result(unsafe {
        libc::name_to_handle_at(
            dir.as_raw_fd(),
            name.as_ptr(),
            (&raw mut raw).cast(),
            &raw mut mount,
            libc::AT_EMPTY_PATH,
        )
    })?;
    let bytes = raw.handle.get(..raw.bytes as usize).unwrap_or_default();
    Ok(Handle::new(raw.kind, bytes))
}

/// Opens what has a handle, to be looked at, on the file system of `on`.
///
/// # Errors
/// As open_by_handle_at(2): ESTALE where it is no more.
pub fn by_handle(on: &OwnedFd, handle: &Handle) -> io::Result<OwnedFd> {
    let (kind, bytes) = handle.parts();
    let mut raw = Raw {
        bytes: u32::try_from(bytes.len()).unwrap_or(u32::MAX),
        kind,
        handle: [0; LONGEST],
    };
    let Some(room) = raw.handle.get_mut(..bytes.len()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    room.copy_from_slice(bytes);
    // SAFETY: `raw` is a file_handle with as many bytes as it says, and lives across the call.
    let fd = nix::errno::Errno::result(unsafe {
        libc::open_by_handle_at(
            on.as_raw_fd(),
            (&raw mut raw).cast(),
            libc::O_PATH | libc::O_CLOEXEC,
        )
    })?;
    // SAFETY: the kernel has just made this descriptor for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Whether two threads have the same open files; not where the kernel does not say.
#[must_use]
pub fn share_files(one: i32, other: i32) -> bool {
    const KCMP_FILES: libc::c_long = 2;
    // SAFETY: kcmp(2) takes numbers alone.
    let compared = unsafe {
        libc::syscall(
            libc::SYS_kcmp,
            libc::c_long::from(one),
            libc::c_long::from(other),
            KCMP_FILES,
            0 as libc::c_long,
            0 as libc::c_long,
        )
    };
    compared == 0
}
