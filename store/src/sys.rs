//! What the store asks of its disk: every file that it makes, every write, sync, rename and removal goes through here,
//! so that a test can have any of them fail ([`crate::fault::fail_disk`]).
#![allow(unsafe_code)]

use std::{
    fs::{File, OpenOptions},
    io,
    os::{
        fd::AsRawFd,
        unix::fs::{FileExt, OpenOptionsExt},
    },
    path::Path,
};

use crate::{
    direct,
    error::{Context, Result},
    fault,
};

fn ask<T>(verb: &str, path: &Path, call: impl FnOnce() -> io::Result<T>) -> Result<T> {
    fault::disk().and_then(|()| call()).on(verb, path)
}

/// Makes a file that is not there yet, root's alone.
pub(crate) fn create(path: &Path) -> Result<File> {
    ask("make", path, || {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o600);
        options.open(path)
    })
}

/// Opens a file that is there, to go on writing to it; a link is not followed.
pub(crate) fn reopen(path: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_NOFOLLOW);
    options.open(path).on("open", path)
}

/// Writes all bytes at a place.
pub(crate) fn write(file: &File, path: &Path, bytes: &[u8], at: u64) -> Result<()> {
    write_past(file, None, path, bytes, at)
}

/// The same, where there is a way past the page cache by that as far as the bytes lie for it.
pub(crate) fn write_past(
    file: &File,
    direct: Option<&File>,
    path: &Path,
    bytes: &[u8],
    at: u64,
) -> Result<()> {
    if let Err(error) = fault::disk() {
        // A disk that fails has often taken a part.
        let _ = file.write_all_at(bytes.get(..bytes.len() / 2).unwrap_or_default(), at);
        return Err(error).on("write to", path);
    }
    direct::write_all(file, direct, bytes, at).on("write to", path)
}

/// Waits until the disk has what was written to a file.
pub(crate) fn sync(file: &File, path: &Path) -> Result<()> {
    ask("sync", path, || file.sync_data())
}

/// Waits until the disk has the names in a directory.
pub(crate) fn sync_dir(dir: &Path) -> Result<()> {
    ask("sync", dir, || File::open(dir)?.sync_all())
}

/// Cuts a file, or makes it longer.
pub(crate) fn set_length(file: &File, path: &Path, length: u64) -> Result<()> {
    ask("shorten", path, || file.set_len(length))
}

/// Writes a whole file in place of what has its name: whatever happens, one of both is there.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let fresh = path.with_extension("new");
    remove(&fresh)?;
    let file = create(&fresh)?;
    write(&file, &fresh, bytes, 0)?;
    sync(&file, &fresh)?;
    rename(&fresh, path)?;
    path.parent().map_or(Ok(()), sync_dir)
}

/// Renames a file.
pub(crate) fn rename(from: &Path, to: &Path) -> Result<()> {
    ask("rename to", to, || std::fs::rename(from, to))
}

/// Gives a file a second name, unless it has it.
pub(crate) fn link(from: &Path, to: &Path) -> Result<()> {
    ask("link to", to, || match std::fs::hard_link(from, to) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        done => done,
    })
}

/// Removes a file, if it is there.
pub(crate) fn remove(path: &Path) -> Result<()> {
    ask("remove", path, || match std::fs::remove_file(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    })
}

/// Has the kernel begin to write a stretch of a file to the disk, without waiting: while the next chunks are compressed the
/// disk need not idle. It promises nothing; the sync at the end does.
pub(crate) fn begin_writing(file: &File, at: u64, length: usize) {
    let (Ok(at), Ok(length)) = (i64::try_from(at), i64::try_from(length)) else {
        return;
    };
    // SAFETY: no pointers are passed. What it answers is of no interest: where it cannot, the sync writes all.
    unsafe { libc::sync_file_range(file.as_raw_fd(), at, length, libc::SYNC_FILE_RANGE_WRITE) };
}
