//! Finding the records of packs without the catalog, and of packs that are damaged.

use std::path::{Path, PathBuf};

use crate::{
    error::{Context, Result},
    id::{Hash, Id},
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

/// A record that was found.
pub(crate) struct Found {
    /// Where it begins.
    pub at: u32,
    /// Its head.
    pub record: Record,
    /// What it holds; or the name of what it stands on: whether it is whole, that tells.
    pub holds: Holds,
    /// Every record before it ended where the next began. Else it may have been written by a container, into a file: its
    /// content is what its name says all the same, but nobody may go by a commit that nothing else names.
    pub trusted: bool,
}

/// What a record holds.
pub(crate) enum Holds {
    /// This, which is what its name says.
    Content(Vec<u8>),
    /// Something that only this object leads to.
    On(Id),
}

/// What stands somewhere in a pack.
enum Seen {
    /// A record that is whole, as far as it can tell by itself.
    Record(Record, Holds),
    /// One whose content is damaged.
    Damaged(Record),
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
    let after = |at: usize, record: &Record| at + RECORD + record.stored as usize;
    let begins =
        |at: usize| at == bytes.len() || matches!(seen(hash, class, bytes, at), Some(Seen::Record(..)));
    let certain = |at: usize| match seen(hash, class, bytes, at) {
        Some(Seen::Record(_, Holds::Content(_))) => true,
        Some(Seen::Record(record, Holds::On(_))) => begins(after(at, &record)),
        _ => false,
    };
    let (mut at, mut end, mut trusted) = (at, at, true);
    while at < bytes.len() {
        let next = match seen(hash, class, bytes, at) {
            Some(Seen::Record(record, holds)) => {
                let next = after(at, &record);
                end = next;
                let known = matches!(holds, Holds::Content(_)) || begins(next);
                each(Found {
                    at: u32::try_from(at).unwrap_or(u32::MAX),
                    record,
                    holds,
                    trusted,
                })?;
                known.then_some(next)
            }
            // Only its content is damaged: the next begins where it should.
            Some(Seen::Damaged(record)) => Some(after(at, &record)).filter(|next| begins(*next)),
            None => None,
        };
        at = next.unwrap_or_else(|| {
            trusted = false;
            let found = (at + 1..bytes.len()).find(|next| certain(*next));
            found.unwrap_or(bytes.len())
        });
    }
    Ok(end)
}

/// The head of the record that begins here, and its bytes.
fn head(class: Class, bytes: &[u8], at: usize) -> Option<(Record, &[u8])> {
    let (head, rest) = bytes.get(at..)?.split_first_chunk::<RECORD>()?;
    let record = Record::read(head).filter(|record| Class::from(record.object) == class)?;
    Some((record, rest.get(..record.stored as usize)?))
}

fn seen(hash: Hash, class: Class, bytes: &[u8], at: usize) -> Option<Seen> {
    let (record, stored) = head(class, bytes, at)?;
    Some(match record.split(stored) {
        Some((Some(base), _)) => Seen::Record(record, Holds::On(base)),
        _ => match pack::content(hash, &record, stored, None) {
            Ok(content) => Seen::Record(record, Holds::Content(content)),
            Err(_) => Seen::Damaged(record),
        },
    })
}
