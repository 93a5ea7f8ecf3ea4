//! Past the kernel's page cache: what is written once and in bulk is not read again soon, and would push out what the
//! node's containers do read. It is the faster way too: the kernel neither finds pages for it nor copies into them.
//!
//! The kernel wants the place in the file, the place in memory and the length to be multiples of a block. So only the
//! middle of a stretch goes this way, and its ends, less than a block each, the ordinary one.

use std::{
    fs::{File, OpenOptions},
    io,
    os::{
        fd::AsRawFd,
        unix::fs::{FileExt, OpenOptionsExt},
    },
};

/// What places and lengths must be multiples of, in bytes: no disk has longer blocks.
pub const BLOCK: usize = 4096;

/// The same open file, past the page cache; none where its file system has no such way.
#[must_use]
pub fn of(file: &File) -> Option<File> {
    OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(format!("/proc/self/fd/{}", file.as_raw_fd()))
        .ok()
}

/// How many bytes of a stretch that begins at `at` go the ordinary way, and how many after them past the page cache.
fn split(bytes: &[u8], at: u64) -> (usize, usize) {
    let into = |n: u64| usize::try_from(n % BLOCK as u64).unwrap_or(0);
    let head = (BLOCK - into(at)) % BLOCK;
    let alike = bytes.as_ptr().addr() % BLOCK == into(at);
    let body = bytes.len().saturating_sub(head) / BLOCK * BLOCK;
    if alike && body > 0 {
        (head, body)
    } else {
        (bytes.len(), 0)
    }
}

/// Writes a stretch of bytes at a place, as far as it can past the page cache.
///
/// # Errors
/// A full or failing disk.
pub fn write_all(file: &File, direct: Option<&File>, bytes: &[u8], at: u64) -> io::Result<()> {
    let Some(direct) = direct else {
        return file.write_all_at(bytes, at);
    };
    let (head, body) = split(bytes, at);
    let (head, rest) = bytes.split_at(head);
    let (body, tail) = rest.split_at(body);
    let middle = at + head.len() as u64;
    file.write_all_at(head, at)?;
    match direct.write_all_at(body, middle) {
        // Blocks that are longer after all, or what remained of a part of it.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => file.write_all_at(body, middle)?,
        done => done?,
    }
    file.write_all_at(tail, middle + body.len() as u64)
}

/// How much of a stretch that begins at `at` is whole blocks to its end.
#[must_use]
pub(crate) fn whole(bytes: &[u8], at: u64) -> usize {
    let (head, body) = split(bytes, at);
    head + body
}

/// Bytes that lie in memory as they will in a file's blocks.
#[derive(Debug, Default)]
pub struct Buffer {
    bytes: Vec<u8>,
    skipped: usize,
}

impl Buffer {
    /// Empties it, for up to `capacity` bytes that will stand at `at`. With more it is still right, and written the
    /// ordinary way.
    pub fn begin(&mut self, capacity: usize, at: u64) {
        self.bytes.clear();
        self.bytes.reserve(capacity + BLOCK);
        let into = usize::try_from(at % BLOCK as u64).unwrap_or(0);
        self.skipped = (into + BLOCK - self.bytes.as_ptr().addr() % BLOCK) % BLOCK;
        self.bytes.resize(self.skipped, 0);
    }

    /// Adds bytes at the end.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// What it has.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(self.skipped..).unwrap_or_default()
    }

    /// How much that is.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len() - self.skipped
    }

    /// Whether that is nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Keeps the first `length` bytes.
    pub fn truncate(&mut self, length: usize) {
        self.bytes.truncate(self.skipped + length);
    }

    /// Forgets the first bytes, which stood at `at`; the rest lies as it must.
    pub fn forget(&mut self, first: usize, at: u64, capacity: usize) {
        let rest = self.bytes().get(first..).unwrap_or_default().to_vec();
        self.begin(capacity, at + first as u64);
        self.push(&rest);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_file_is_written_both_ways() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let file = File::create_new(&path).unwrap();
        let direct = of(&file);
        let content: Vec<u8> = (0..100_000u32).flat_map(u32::to_le_bytes).collect();
        let (mut at, mut buffer) = (0, Buffer::default());
        for part in content.chunks(33_333) {
            buffer.begin(part.len(), at as u64);
            buffer.push(part);
            write_all(&file, direct.as_ref(), buffer.bytes(), at as u64).unwrap();
            at += part.len();
        }
        // Not as it will lie: the ordinary way.
        write_all(&file, direct.as_ref(), &content[1..50_001], 1).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), content);
    }

    proptest! {
        #[test]
        fn what_is_gathered_lies_as_it_will(at in 0u64..100_000, length in 0usize..20_000, first in 0usize..20_000) {
            let content: Vec<u8> = (0..length).map(|n| n.to_le_bytes()[0]).collect();
            let mut buffer = Buffer::default();
            buffer.begin(20_000, at);
            buffer.push(&content);
            prop_assert_eq!(buffer.bytes(), &content);
            let (head, body) = split(buffer.bytes(), at);
            prop_assert!(body % BLOCK == 0 && head + body <= length);
            if body > 0 {
                let place = at + head as u64;
                prop_assert_eq!(place % BLOCK as u64, 0);
                prop_assert_eq!(buffer.bytes()[head..].as_ptr().addr() % BLOCK, 0);
            } else {
                prop_assert_eq!(head, length);
                prop_assert!(length < 2 * BLOCK);
            }
            let first = first.min(length);
            buffer.forget(first, at, 20_000);
            prop_assert_eq!(buffer.bytes(), &content[first..]);
            prop_assert!(split(buffer.bytes(), at + first as u64).1 > 0 || length - first < 2 * BLOCK);
        }
    }
}
