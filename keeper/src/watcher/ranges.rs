//! Ranges of a file that may have been written to.

use std::ops::Range;

/// Of more than so many all of the file is compared: that takes less than to keep them.
const MOST: usize = 4096;

/// Bytes of a file, as ranges that neither touch nor overlap, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ranges(Vec<Range<u64>>);

impl Ranges {
    /// All there is.
    #[must_use]
    pub fn whole() -> Ranges {
        Ranges(std::iter::once(0..u64::MAX).collect())
    }

    /// These bytes too.
    pub fn add(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        // Those that it touches or overlaps.
        let first = self.0.partition_point(|one| one.end < range.start);
        let end = self.0.partition_point(|one| one.start <= range.end);
        let touched = self.0.get(first..end).unwrap_or_default();
        let begin = touched
            .first()
            .map_or(range.start, |one| one.start.min(range.start));
        let last = touched.last().map_or(range.end, |one| one.end.max(range.end));
        self.0.splice(first..end, std::iter::once(begin..last));
        if self.0.len() > MOST {
            *self = Ranges::whole();
        }
    }

    /// Up to where, from `at` on, there are none.
    #[must_use]
    pub fn none_until(&self, at: u64) -> u64 {
        let next = self.0.partition_point(|one| one.end <= at);
        self.0.get(next).map_or(u64::MAX, |one| one.start.max(at))
    }

    /// Up to where, from `at` on, one goes; `at` where there is none.
    #[must_use]
    pub fn one_until(&self, at: u64) -> u64 {
        let next = self.0.partition_point(|one| one.end <= at);
        match self.0.get(next) {
            Some(one) if one.start <= at => one.end,
            _ => at,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn ranges_are_their_bytes(added in proptest::collection::vec((0..64_u64, 0..16_u64), 0..24)) {
            let (mut ranges, mut bytes) = (Ranges::default(), BTreeSet::new());
            for (begin, length) in added {
                ranges.add(begin..begin + length);
                bytes.extend(begin..begin + length);
            }
            prop_assert!(ranges.0.windows(2).all(|two| two[0].end < two[1].start));
            for at in 0..100 {
                let next = bytes.range(at..).next().copied().unwrap_or(u64::MAX);
                prop_assert_eq!(ranges.none_until(at), next);
                let end = (at..).find(|at| !bytes.contains(at)).unwrap();
                prop_assert_eq!(ranges.one_until(at), end);
            }
        }
    }

    #[test]
    fn more_than_can_be_kept_is_all() {
        let mut ranges = Ranges::default();
        for n in 0..=MOST as u64 {
            ranges.add(2 * n..2 * n + 1);
        }
        assert_eq!(ranges, Ranges::whole());
    }
}
