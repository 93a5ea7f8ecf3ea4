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
            let mut bytes = vec![0; usize::try_from(*LENGTHS.end()).ok()?];
            let length = Source::read_at(&tree::reopen(&open).ok()?, &mut bytes, 0).ok()?;
            bytes.truncate(length);
            let name = String::from_utf8_lossy(&path).into_owned();
            Some(Sample { name, bytes })
        })
        .flatten()
        .collect();
    Ok(session.learn(&samples)?)
}
