//! The raw system call that nix lacks.
#![allow(unsafe_code)]

use std::{fs::File, os::fd::AsRawFd};

/// Has the kernel begin to write a stretch of a file to the disk, without waiting: while the next chunks are compressed the
/// disk need not idle. It promises nothing; the sync at the end does.
pub fn begin_writing(file: &File, at: u64, length: usize) {
    let (Ok(at), Ok(length)) = (i64::try_from(at), i64::try_from(length)) else {
        return;
    };
    // SAFETY: no pointers are passed. What it answers is of no interest: where it cannot, the sync writes all.
    unsafe { libc::sync_file_range(file.as_raw_fd(), at, length, libc::SYNC_FILE_RANGE_WRITE) };
}
