//! Finding the records of packs without the catalog, and of packs that are damaged.

use std::path::{Path, PathBuf};

use crate::{
    error::{Context, Result},
    id::Hash,
    pack::{self, Class, RECORD, Record},
};

/// The packs in a directory.
pub(crate) fn packs(dir: &Path) -> Result<impl Iterator<Item = (u32, PathBuf)>> {
    let mut found = Vec::new();
    for file in std::fs::read_dir(dir).on("read", dir)? {
        let path = file.on("read", dir)?.path();
        let number = path
            .file_stem()
            .and_then(|stem| u32::from_str_radix(stem.to_str()?, 16).ok())
            .filter(|_| path.extension().is_some_and(|e| e == "pack"));
        found.extend(number.map(|number| (number, path)));
    }
    found.sort();
    Ok(found.into_iter())
}

/// A record that was found, and what it holds is what its name says.
pub(crate) struct Found {
    /// Where it begins.
    pub at: u32,
    /// Its head.
    pub record: Record,
    /// What it holds.
    pub content: Vec<u8>,
    /// Every record before it ended where the next began. Else it may have been written by a container, into a file: its
    /// content is what its name says all the same, but nobody may go by a commit that nothing else names.
    pub trusted: bool,
}

/// Every record of a pack's bytes from `at` that is whole. Where one is damaged, the next bytes that read as a record of this
/// class and hold what they name go on. Answers with where the last one ends.
pub(crate) fn records(
    hash: Hash,
    class: Class,
    bytes: &[u8],
    at: usize,
    mut each: impl FnMut(Found) -> Result<()>,
) -> Result<usize> {
    let (mut at, mut end, mut trusted) = (at, at, true);
    while at < bytes.len() {
        match whole(hash, class, bytes, at) {
            Ok((record, content)) => {
                let begin = u32::try_from(at).unwrap_or(u32::MAX);
                at += RECORD + record.stored as usize;
                end = at;
                each(Found {
                    at: begin,
                    record,
                    content,
                    trusted,
                })?;
            }
            // Only its content is damaged: the next begins where it should.
            Err(Some(next)) if next == bytes.len() || whole(hash, class, bytes, next).is_ok() => at = next,
            Err(_) => {
                trusted = false;
                let next = (at + 1..bytes.len()).find(|next| whole(hash, class, bytes, *next).is_ok());
                at = next.unwrap_or(bytes.len());
            }
        }
    }
    Ok(end)
}

/// The record that begins here, with what it holds; or where it ends, if its head can be read.
fn whole(
    hash: Hash,
    class: Class,
    bytes: &[u8],
    at: usize,
) -> std::result::Result<(Record, Vec<u8>), Option<usize>> {
    let rest = bytes.get(at..).unwrap_or_default();
    let (head, rest) = rest.split_first_chunk::<RECORD>().ok_or(None)?;
    let record = Record::read(head)
        .filter(|record| Class::from(record.object) == class)
        .ok_or(None)?;
    let stored = rest.get(..record.stored as usize).ok_or(None)?;
    match pack::content(hash, &record, stored) {
        Ok(content) => Ok((record, content)),
        Err(_) => Err(Some(at + RECORD + record.stored as usize)),
    }
}
