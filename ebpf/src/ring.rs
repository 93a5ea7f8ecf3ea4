//! How far the kernel has come in a ring. The ring's reader stops at a record that is begun and not complete, and does not
//! say whether that was why.

#![allow(unsafe_code)]

use std::{
    ffi::c_void,
    io,
    num::NonZeroUsize,
    os::fd::BorrowedFd,
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering},
};

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// What stands before each record.
const HEADER: u64 = 8;

/// What a record of so many bytes takes there.
pub(crate) fn length(bytes: usize) -> u64 {
    (HEADER + bytes as u64).next_multiple_of(8)
}

/// Where the next record will begin, counted from the ring's first one: the first word of its second page.
pub(crate) struct End {
    page: NonNull<c_void>,
    size: NonZeroUsize,
}

impl End {
    pub(crate) fn of(ring: BorrowedFd<'_>) -> io::Result<End> {
        let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)?;
        let size = page
            .and_then(|page| usize::try_from(page).ok())
            .and_then(NonZeroUsize::new);
        let size = size.ok_or(io::ErrorKind::Unsupported)?;
        // SAFETY: the mapping is new, and nothing else knows of it.
        let page = unsafe {
            mmap(
                None,
                size,
                ProtFlags::PROT_READ,
                MapFlags::MAP_SHARED,
                ring,
                size.get().cast_signed() as i64,
            )?
        };
        Ok(End { page, size })
    }

    pub(crate) fn now(&self) -> u64 {
        // SAFETY: the mapping is a page long and lives as long as this; the kernel alone writes there, whole words.
        let word = unsafe { self.page.cast::<AtomicU64>().as_ref() };
        word.load(Ordering::Acquire)
    }
}

impl Drop for End {
    fn drop(&mut self) {
        // SAFETY: this was mapped, and is used no more.
        let _ = unsafe { munmap(self.page, self.size.get()) };
    }
}

// SAFETY: what is behind the pointer belongs to this alone, and is only read.
unsafe impl Send for End {}
