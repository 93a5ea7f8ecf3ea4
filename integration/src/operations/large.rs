//! Random ways of writing to large files: those of which a commit compares only what was told to have been written.
//!
//! What a standing still could cut in two is no longer than a page.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::PathBuf,
};

use rustix::fs::FallocateFlags;

use super::{Operations, opened};

/// Files of one directory.
const FILES: [&str; 2] = ["large", "larger"];
const PAGE: usize = 4096;
/// No file is longer, or is asked to be.
const LARGEST: usize = 768 * PAGE;
/// Nor is it asked to be shorter, as a rule, in bytes; files of a MiB and less are always compared whole.
pub const SMALLEST: u64 = 300 * PAGE as u64;

impl Operations {
    /// By turns files are written in every way, and few pages of one of them in those ways that tell which.
    fn few_pages(&self) -> bool {
        self.done / 512 % 2 == 1
    }

    fn large(&mut self) -> PathBuf {
        let files = if self.few_pages() { 1 } else { FILES.len() };
        self.dir.join(FILES[self.random.below(files)])
    }

    /// A place in every file that is long enough.
    fn place(&mut self) -> usize {
        self.random.below(if self.few_pages() {
            16 * PAGE
        } else {
            SMALLEST as usize
        })
    }

    fn opened_large(&mut self) -> io::Result<File> {
        let path = self.large();
        opened(OpenOptions::new().read(true).write(true), &path)
    }

    fn length(&mut self) -> u64 {
        SMALLEST + self.random.below(LARGEST - SMALLEST as usize) as u64
    }

    /// Where a page begins, in every file that is long enough.
    fn page(&mut self) -> u64 {
        (self.place() / PAGE * PAGE) as u64
    }

    /// So many bytes that no other operation writes.
    fn bytes(&mut self, length: usize) -> Vec<u8> {
        let word = self.done.to_le_bytes();
        word.iter().copied().cycle().take(length).collect()
    }

    pub(super) fn change_large(&mut self) -> io::Result<()> {
        match self.random.below(if self.few_pages() { 9 } else { 18 }) {
            0..=2 => {
                let (at, length) = (self.place() as u64, self.random.below(4 * PAGE));
                let bytes = self.bytes(length);
                self.opened_large()?.write_at(&bytes, at).map(drop)
            }
            3 | 4 => {
                let (path, at) = (self.large(), self.place() / 8 * 8);
                self.store_to(&path, at)
            }
            5 | 6 => {
                let (path, at) = (self.large(), self.page());
                let direct = rustix::fs::OFlags::DIRECT.bits().cast_signed();
                let file = OpenOptions::new().write(true).custom_flags(direct).open(path)?;
                let mut room = vec![0; 2 * PAGE];
                let begin = room.as_ptr().align_offset(PAGE);
                let bytes = self.bytes(PAGE);
                let aligned = room.get_mut(begin..begin + PAGE).ok_or(io::ErrorKind::Other)?;
                aligned.copy_from_slice(&bytes);
                file.write_at(aligned, at).map(drop)
            }
            7 => {
                let (file, mut at, bytes) = (self.opened_large()?, self.page(), self.bytes(PAGE));
                let (from, to) = nix::unistd::pipe()?;
                nix::unistd::write(&to, &bytes)?;
                let flags = rustix::pipe::SpliceFlags::empty();
                rustix::pipe::splice(&from, None, file, Some(&mut at), PAGE, flags)?;
                Ok(())
            }
            8 => {
                let (file, at, bytes) = (self.opened_large()?, self.page(), self.bytes(PAGE));
                match by_ring(&file, at, &bytes) {
                    // Not every container may, and the same must be written everywhere.
                    Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                        file.write_at(&bytes, at).map(drop)
                    }
                    done => done,
                }
            }
            9 => File::create_new(self.large()).map(drop),
            10 => {
                let length = self.length();
                self.opened_large()?.set_len(length)
            }
            11 => {
                let length = self.length().cast_signed();
                Ok(nix::unistd::truncate(&self.large(), length)?)
            }
            12 if self.random.below(8) == 0 => {
                let path = self.large();
                opened(OpenOptions::new().write(true).truncate(true), &path).map(drop)
            }
            12 | 13 => {
                let (at, length) = (self.page(), self.random.below(LARGEST / 16));
                let bytes = self.bytes(length);
                self.opened_large()?.write_at(&bytes, at).map(drop)
            }
            14 | 15 => self.allocate(),
            _ => {
                let (from, to) = (self.opened_large()?, self.opened_large()?);
                let (mut here, mut there) = (self.page(), self.page());
                rustix::fs::copy_file_range(from, Some(&mut here), to, Some(&mut there), PAGE)?;
                Ok(())
            }
        }
    }

    fn allocate(&mut self) -> io::Result<()> {
        let flags = [
            FallocateFlags::KEEP_SIZE,
            FallocateFlags::KEEP_SIZE | FallocateFlags::PUNCH_HOLE,
            FallocateFlags::ZERO_RANGE,
            FallocateFlags::COLLAPSE_RANGE,
            FallocateFlags::INSERT_RANGE,
        ];
        let flags = flags[self.random.below(flags.len())];
        let (file, mut at) = (self.opened_large()?, self.page());
        let mut length = (1 + self.random.below(8)) * PAGE;
        if flags.contains(FallocateFlags::INSERT_RANGE) && file.metadata()?.len() > LARGEST as u64 {
            return Ok(());
        }
        if !flags.intersects(FallocateFlags::COLLAPSE_RANGE | FallocateFlags::INSERT_RANGE) {
            at += self.random.below(PAGE) as u64;
            length += self.random.below(PAGE);
        }
        Ok(rustix::fs::fallocate(file, flags, at, length as u64)?)
    }
}

/// Written by io_uring.
fn by_ring(file: &File, at: u64, bytes: &[u8]) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let mut ring = io_uring::IoUring::new(2)?;
    let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    let fd = io_uring::types::Fd(file.as_raw_fd());
    let write = io_uring::opcode::Write::new(fd, bytes.as_ptr(), length).offset(at);
    // SAFETY: the bytes live until the ring says that they were written.
    unsafe { ring.submission().push(&write.build()) }.map_err(io::Error::other)?;
    let done = loop {
        // What was submitted is waited for, whatever comes in between: the bytes must live.
        match ring.submit_and_wait(1) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            waited => {
                waited?;
                if let Some(done) = ring.completion().next() {
                    break done.result();
                }
            }
        }
    };
    match done {
        0.. => Ok(()),
        error => Err(io::Error::from_raw_os_error(-error)),
    }
}
