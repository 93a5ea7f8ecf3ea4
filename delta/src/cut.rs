//! Where content is cut: FastCDC (Xia et al., "The Design of Fast Content-Defined Chunking for Data Deduplication
//! Based Storage Systems", 2020), by the crate of that name, without a seed: what is cut alike in two stores can be
//! shared by them.

use std::sync::LazyLock;

use fastcdc::v2020::{Normalization, cut as gear, select_masks};

/// The shortest chunk but the last of a content, in bytes.
pub const SHORTEST: usize = 16 * 1024;
/// The length that chunks tend to, in bytes: a database's page of 8 KiB changes two hundredths of a megabyte,
/// and the index of 10 GiB has 160,000 entries.
pub const AVERAGE: usize = 64 * 1024;
/// The longest chunk, in bytes.
pub const LONGEST: usize = 256 * 1024;

static MASKS: LazyLock<(u64, u64)> = LazyLock::new(|| select_masks(AVERAGE, Normalization::Level2));

/// The length of the chunk that begins where `bytes` does; `bytes` is the content to its end, or at least
/// [`LONGEST`] of it. Zero only where there are no bytes.
#[must_use]
pub fn cut(bytes: &[u8]) -> usize {
    if bytes.len() <= SHORTEST {
        return bytes.len();
    }
    let (small, large) = *MASKS;
    let (_, length) = gear(
        bytes,
        SHORTEST,
        AVERAGE,
        LONGEST,
        small,
        large,
        small << 1,
        large << 1,
    );
    length.clamp(1, bytes.len())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::noise;

    fn cuts(bytes: &[u8]) -> Vec<usize> {
        let (mut at, mut found) = (0, Vec::new());
        while at < bytes.len() {
            at += cut(&bytes[at..]);
            found.push(at);
        }
        found
    }

    #[test]
    fn chunks_are_of_the_promised_lengths() {
        let bytes = noise(8 << 20, 7);
        let found = cuts(&bytes);
        let mut before = 0;
        for at in &found[..found.len() - 1] {
            assert!((SHORTEST..=LONGEST).contains(&(at - before)), "{}", at - before);
            before = *at;
        }
        let average = bytes.len() / found.len();
        assert!((AVERAGE / 2..AVERAGE * 2).contains(&average), "{average}");
        // The same for ever: what is stored is found again only while this holds.
        assert_eq!(&found[..3], &[83_334, 155_995, 222_590]);
        // The worst content still ends at the longest.
        assert_eq!(cut(&vec![0; LONGEST * 2]), LONGEST);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn an_insertion_moves_few_boundaries(at in 0usize..1 << 20, what in proptest::collection::vec(any::<u8>(), 1..200)) {
            let before = noise(1 << 20, 42);
            let mut after = before.clone();
            after.splice(at..at, what.iter().copied());
            let (old, new) = (cuts(&before), cuts(&after));
            // From the end both are counted alike.
            let tail = |cuts: &[usize], length: usize| cuts.iter().map(|c| length - c).collect::<std::collections::HashSet<_>>();
            let (a, b) = (tail(&old, before.len()), tail(&new, after.len()));
            let later = old.iter().filter(|c| **c > at + 4 * LONGEST).count();
            prop_assert!(a.intersection(&b).count() >= later);
            prop_assert!(old.iter().take_while(|c| **c <= at).eq(new.iter().take_while(|c| **c <= at).take(old.iter().filter(|c| **c <= at).count())));
        }

        #[test]
        fn a_cut_needs_no_more_than_the_longest(seed: u64, more in 0usize..100_000) {
            let bytes = noise(LONGEST + more, seed);
            prop_assert_eq!(cut(&bytes), cut(&bytes[..LONGEST]));
        }
    }
}
