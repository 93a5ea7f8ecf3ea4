//! Samples of many small files, for the store to learn from what they have in common before it is to hold them.

use std::{collections::HashMap, os::fd::OwnedFd};

use rayon::prelude::*;
use store::{
    Sample, Session,
    content::Source,
    format::{Kind, place},
};

use crate::{
    error::Result,
    recorder::{is_file, kind},
    tree::{self, Near, Seen},
};

/// Shorter files have little to say; longer ones say enough about themselves.
const LENGTHS: std::ops::RangeInclusive<i64> = 1 << 10..=16 << 10;
/// Of fewer files nothing is learned: it would take longer than it spares.
const FEWEST: usize = 512;
/// One in so many files is looked at, and no more than so many.
const PART: usize = 4;
const MOST: usize = 1600;

/// Has the session learn from files that are about to be read, evenly spread over all of them. A file that cannot be read
/// is no sample.
pub(crate) fn learn(
    session: &Session<'_>,
    tops: &HashMap<&[u8], (OwnedFd, bool)>,
    seen: &[&Seen],
) -> Result<()> {
    let small = |seen: &&&Seen| is_file(seen) && LENGTHS.contains(&seen.stat.st_size);
    let small: Vec<&Seen> = seen.iter().filter(small).copied().collect();
    if small.len() < FEWEST {
        return Ok(());
    }
    let step = PART.max(small.len().div_ceil(MOST));
    let chosen: Vec<&Seen> = small.into_iter().step_by(step).collect();
    let samples: Vec<Sample> = chosen
        .par_iter()
        .map_init(HashMap::<&[u8], Near>::new, |near, seen| {
            let (name, path) = place(&seen.key);
            let (top, _) = tops.get(name)?;
            let open = near.entry(name).or_default().find(top, &path).ok()?;
            // What it is now, not what it was when it was looked at.
            let stat = nix::sys::stat::fstat(&open).ok()?;
            (kind(&stat, false) == Some(Kind::File)).then_some(())?;
            let mut bytes = vec![0; usize::try_from(stat.st_size.min(*LENGTHS.end())).ok()?];
            let length = Source::read_at(&tree::reopen(&open).ok()?, &mut bytes, 0).ok()?;
            bytes.truncate(length);
            let name = String::from_utf8_lossy(&path).into_owned();
            Some(Sample { name, bytes })
        })
        .flatten()
        .collect();
    Ok(session.learn(&samples)?)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink, path::Path};

    use store::Store;

    use super::{FEWEST, PART};
    use crate::tests::{capture, materialise, store};

    fn document(n: usize) -> String {
        let rows = (0..16).map(|row| {
            let x = (n * 16 + row).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
            format!(
                "{{\"identifier\": {x}, \"customer_name\": \"c{}\", \"is_active\": {}}}\n",
                x % 9973,
                x % 2
            )
        });
        rows.collect()
    }

    fn made_of_documents(upper: &Path, count: usize) {
        for n in 0..count {
            let dir = upper.join(format!("data/{}", n / 100));
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join(format!("{n}.json")), document(n)).unwrap();
        }
        // What is no file is no sample, whatever its size says.
        symlink("x".repeat(2000), upper.join("data/link")).unwrap();
    }

    fn by_dictionary(store: &Store) -> u64 {
        let forms = store.usage().unwrap().forms;
        let of = forms.iter().find(|form| form.encoding == "dictionary");
        of.map_or(0, |form| form.chunks)
    }

    #[test]
    fn many_small_files_are_learned_from() {
        let dir = tempfile::tempdir().unwrap();
        let (upper, to) = (dir.path().join("upper"), dir.path().join("to"));
        fs::create_dir(&upper).unwrap();
        made_of_documents(&upper, FEWEST - 1);
        let store = store(dir.path());
        capture(&store, &upper, None, Some("few")).unwrap();
        assert_eq!(by_dictionary(&store), 0);
        fs::remove_dir_all(&upper).unwrap();
        fs::create_dir(&upper).unwrap();
        let count = FEWEST * PART;
        made_of_documents(&upper, count);
        let recorded = capture(&store, &upper, None, Some("many")).unwrap();
        let by = by_dictionary(&store);
        // Those that were there already stay as they are.
        assert!(by as usize * 10 > (count - FEWEST) * 9, "{by}");
        materialise(&store, &recorded, &to);
        for n in 0..count {
            let found = fs::read_to_string(to.join(format!("data/{}/{n}.json", n / 100))).unwrap();
            assert_eq!(found, document(n));
        }
        assert_eq!(store.verify(100, |_| {}).unwrap().problems, []);
    }
}
