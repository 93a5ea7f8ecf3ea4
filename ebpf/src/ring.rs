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

/// How often a record is asked for that another CPU has begun, which takes it less than a microsecond: some milliseconds,
/// for the machine that this one is emulated by may have something else to do.
const PATIENCE: u32 = 1 << 17;

/// Takes records in, by a function that answers with how long the next one is, until so much of the ring was taken; false
/// where one is not complete: it keeps back all that stand behind it.
pub(crate) fn take(taken: &mut u64, until: u64, mut next: impl FnMut() -> Option<usize>) -> bool {
    let mut patience = PATIENCE;
    while *taken < until {
        match (next(), patience) {
            (Some(length), _) => *taken += (HEADER + length as u64).next_multiple_of(8),
            (None, 0) => return false,
            (None, _) => {
                patience -= 1;
                std::hint::spin_loop();
            }
        }
    }
    true
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_that_is_not_complete_is_waited_for_and_then_missed() {
        let mut taken = 0;
        // Of 24 and 5 bytes, the second one late.
        let mut asked = 0;
        assert!(take(&mut taken, 48, || {
            asked += 1;
            match asked {
                1 => Some(24),
                2..5 => None,
                _ => Some(5),
            }
        }));
        assert_eq!((taken, asked), (48, 5));
        // What was begun later is left for the next time.
        assert!(take(&mut taken, 48, || panic!("there is no more")));
        assert!(!take(&mut taken, 80, || None));
        assert_eq!(taken, 48);
    }
}
