//! What chunks with much in common share, so that a relative is found by look-up wherever it is kept: super-features of
//! content-defined samples (Zou et al., "Odess: Speeding up Resemblance Detection for Redundancy Elimination by Fast
//! Content-Defined Sampling", 2021; Broder, "Identifying and Filtering Near-Duplicate Documents", 2000).
//!
//! The gear hash of the last 64 bytes picks a sample every 128 bytes or so, and the same ones wherever those bytes stand.
//! A feature is the largest of all samples after a multiplication and an addition of its own: two chunks have the same
//! one as probably as a sample of both is in both. Four make a super-feature: of chunks that are alike by nine tenths 96
//! of a hundred share at least one of three, of those alike by a third 4.

use crate::gear::roll;

/// How many super-features a chunk has.
pub const FEATURES: usize = 3;
/// How many features a super-feature is made of.
const EACH: usize = 4;
/// The hash's bits that are zero at a sample, spread over its upper half: there each has seen at least 32 bytes.
const SAMPLE: u64 = 0x4924_8100_0000_0000;
/// With fewer samples chance decides.
const FEWEST: usize = 8;
/// Only what was made for it has more than one in so many bytes; that much is looked at and no more.
const MOST: usize = 16;

/// A multiplication and an addition for each feature, the same for ever.
static WAYS: [(u64, u64); FEATURES * EACH] = ways();

const fn ways() -> [(u64, u64); FEATURES * EACH] {
    let mut all = [(0, 0); FEATURES * EACH];
    let mut n = 0;
    while n < all.len() {
        all[n] = (number(2 * n as u64) | 1, number(2 * n as u64 + 1));
        n += 1;
    }
    all
}

/// splitmix64 from a beginning of its own.
const fn number(n: u64) -> u64 {
    let mut x = (n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x6665_6174_7572_6573;
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// A chunk's super-features: who shares one with another is most likely worth being its base. None for what is too short
/// or too uniform to tell. They are the same for ever: they may be kept.
#[must_use]
pub fn features(bytes: &[u8]) -> Option<[u64; FEATURES]> {
    let mut largest = [0u64; FEATURES * EACH];
    let (mut hash, mut samples, mut last) = (0, 0, 0);
    for byte in bytes {
        hash = roll(hash, *byte);
        // What repeats itself is one sample.
        if hash & SAMPLE == 0 && hash != last {
            last = hash;
            samples += 1;
            if samples * MOST > bytes.len() {
                break;
            }
            for (largest, (times, plus)) in largest.iter_mut().zip(WAYS.iter()) {
                *largest = (*largest).max(hash.wrapping_mul(*times).wrapping_add(*plus));
            }
        }
    }
    if samples < FEWEST {
        return None;
    }
    let mut each = largest.chunks_exact(EACH);
    Some(std::array::from_fn(|_| {
        let four = each.next().unwrap_or_default();
        four.iter().fold(0, |all: u64, one| {
            (all.rotate_left(17) ^ one).wrapping_mul(0x9e37_79b9_7f4a_7c15)
        })
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise;

    fn share(a: &[u8], b: &[u8]) -> bool {
        let (a, b) = (features(a).unwrap(), features(b).unwrap());
        a.iter().any(|feature| b.contains(feature))
    }

    /// So many of a hundred pairs that share one.
    fn shared(edit: impl Fn(u64, &mut Vec<u8>)) -> usize {
        (1..=100)
            .filter(|seed| {
                let before = noise(65_536, *seed);
                let mut after = before.clone();
                edit(*seed, &mut after);
                share(&before, &after)
            })
            .count()
    }

    #[test]
    fn edited_chunks_share_one() {
        let inserted = shared(|seed, bytes| drop(bytes.splice(1000..1000, noise(100, seed + 1000))));
        assert!(inserted > 95, "{inserted}");
        let cut = shared(|_, bytes| drop(bytes.drain(..5000)));
        assert!(cut > 90, "{cut}");
        let tenth = shared(|seed, bytes| bytes[20_000..26_000].copy_from_slice(&noise(6000, seed + 1000)));
        assert!(tenth > 85, "{tenth}");
    }

    #[test]
    fn others_do_not() {
        assert_eq!(shared(|seed, bytes| *bytes = noise(65_536, seed + 1000)), 0);
        let third = shared(|seed, bytes| bytes[20_000..].copy_from_slice(&noise(45_536, seed + 1000)));
        assert!(third < 25, "{third}");
        let text = |what: &str| -> Vec<u8> {
            (0..4000u32)
                .flat_map(|n| format!("{what} {}\n", n.wrapping_mul(2_654_435_761)).into_bytes())
                .collect()
        };
        assert!(!share(&text("orders"), &text("a line of a log")));
    }

    #[test]
    fn what_says_nothing_has_none() {
        assert_eq!(features(b""), None);
        assert_eq!(features(&[0; 65_536]), None);
        assert_eq!(features(&noise(200, 1)), None);
    }

    #[test]
    fn they_are_the_same_for_ever() {
        assert_eq!(
            features(&noise(65_536, 1)),
            Some([
                1_248_243_490_426_714_604,
                7_496_481_016_878_734_490,
                15_340_875_946_390_651_527
            ])
        );
    }
}
