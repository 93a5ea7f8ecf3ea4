//! What encoding would gain, told from samples: at a small part of encoding's cost.
//!
//! Samples lie at equal distances, so that all of a content counts. A wrong guess costs bytes, never content.

use std::ops::Range;

/// Less is encoded sooner than estimated.
const LEAST: usize = 2048;
/// So many stretches of so many bytes tell how often each byte occurs.
const STRETCHES: usize = 16;
const STRETCH: usize = 256;
/// Words are remembered at every so many bytes; as many places in a row meet one of them, if the bytes are the same.
const STEP: usize = 64;
/// So many such rows are looked up.
const ROWS: usize = 32;

/// Whether neither the bytes' frequencies nor repetitions are likely to make it shorter by more than a few hundredths:
/// what is encrypted, compressed already, or random.
#[must_use]
pub fn incompressible(bytes: &[u8]) -> bool {
    bytes.len() >= LEAST && even(bytes) && {
        let words = Words::of(bytes);
        rows(bytes).all(|row| words.find(bytes, row, true).is_none())
    }
}

/// Whether all bytes occur about as often: how often two of a sample are the same, beside how often they would be by
/// chance. A few hundredths above one are Huffman's gain.
fn even(bytes: &[u8]) -> bool {
    let mut counts = [0u32; 256];
    for stretch in spread(bytes.len(), STRETCHES, STRETCH) {
        for byte in bytes.get(stretch).unwrap_or_default() {
            if let Some(count) = counts.get_mut(usize::from(*byte)) {
                *count += 1;
            }
        }
    }
    let all: u64 = counts.iter().map(|count| u64::from(*count)).sum();
    let pairs: u64 = counts.iter().map(|count| u64::from(*count).pow(2)).sum::<u64>() - all;
    // Of all * (all - 1) pairs one in 256 is expected; chance alone makes it one or two hundredths more.
    pairs * 256 * 100 <= all * all.saturating_sub(1) * 115
}

/// How much of a content its base has, in percent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Likeness {
    /// Bytes that are the same at the same place.
    pub stayed: u8,
    /// Short stretches that are anywhere in the base.
    pub found: u8,
}

/// Compares samples of a content with a base.
#[must_use]
pub fn likeness(bytes: &[u8], base: &[u8]) -> Likeness {
    let (mut all, mut same) = (0, 0);
    for stretch in spread(bytes.len(), 4 * STRETCHES, STEP) {
        all += stretch.len();
        let here = bytes.get(stretch.clone()).unwrap_or_default();
        let there = base.get(stretch.start..).unwrap_or_default();
        same += here.iter().zip(there).filter(|(a, b)| a == b).count();
    }
    let words = Words::of(base);
    let (looked, found) = rows(bytes).fold((0, 0), |(looked, found), row| {
        let hit = words.find(bytes, row, false).is_some();
        (looked + 1, found + usize::from(hit))
    });
    Likeness {
        stayed: percent(same, all),
        found: percent(found, looked),
    }
}

fn percent(part: usize, all: usize) -> u8 {
    u8::try_from(part * 100 / all.max(1)).unwrap_or(100)
}

/// Stretches at equal distances from the beginning to the end.
fn spread(length: usize, count: usize, each: usize) -> impl Iterator<Item = Range<usize>> {
    let each = each.min(length);
    let last = length - each;
    let count = count.min(length / each.max(1)).max(1);
    (0..count).map(move |n| {
        let begin = last * n / (count - 1).max(1);
        begin..begin + each
    })
}

/// Rows of places.
fn rows(bytes: &[u8]) -> impl Iterator<Item = Range<usize>> {
    // Not where words are remembered from: each would meet itself in the same place.
    spread(bytes.len(), ROWS, STEP)
}

/// The words of a content at every [`STEP`] bytes.
struct Words<'a> {
    bytes: &'a [u8],
    /// By a word's hash its number, the last of those that share one.
    slots: Vec<u32>,
    shift: u32,
}

impl<'a> Words<'a> {
    fn of(bytes: &'a [u8]) -> Words<'a> {
        let bits = (bytes.len() / STEP * 4)
            .max(64)
            .next_power_of_two()
            .ilog2()
            .min(24);
        let mut words = Words {
            bytes,
            slots: vec![u32::MAX; 1 << bits],
            shift: u64::BITS - bits,
        };
        for (number, place) in (0u32..).zip((0..bytes.len()).step_by(STEP)) {
            if let Some(word) = word(bytes, place)
                && let Some(slot) = words.slots.get_mut(hash(word, words.shift))
            {
                *slot = number;
            }
        }
        words
    }

    /// Where a word of this row is remembered; among its `own` words not that very place.
    fn find(&self, of: &[u8], row: Range<usize>, own: bool) -> Option<usize> {
        row.into_iter().find_map(|place| {
            let here = word(of, place)?;
            let number = *self.slots.get(hash(here, self.shift))?;
            let there = (number as usize).checked_mul(STEP)?;
            let itself = own && there == place;
            (!itself && word(self.bytes, there) == Some(here)).then_some(there)
        })
    }
}

#[inline]
fn word(bytes: &[u8], at: usize) -> Option<u64> {
    bytes
        .get(at..)?
        .first_chunk()
        .map(|word| u64::from_le_bytes(*word))
}

#[inline]
fn hash(word: u64, shift: u32) -> usize {
    (word.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> shift) as usize
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::{Encoding, LEVEL, encode_as, noise};

    fn zstd(bytes: &[u8]) -> usize {
        let mut to = Vec::new();
        encode_as(Encoding::Zstd, LEVEL, bytes, None, &mut to).unwrap();
        to.len()
    }

    #[test]
    fn noise_is_told_from_what_only_looks_so() {
        for length in [LEAST, 5000, 65_536, 262_144, 1 << 20] {
            assert!(incompressible(&noise(length, 5)), "{length}");
            assert!(!incompressible(&vec![0; length]));
            let counted: Vec<u8> = (0..=255).cycle().take(length).collect();
            assert!(!incompressible(&counted), "every byte as often as the others");
            let twice = noise(length / 2, 5).repeat(2);
            assert!(!incompressible(&twice), "{length}");
            let hexadecimal: Vec<u8> = noise(length, 5)
                .iter()
                .map(|byte| b"0123456789abcdef"[usize::from(byte % 16)])
                .collect();
            assert!(!incompressible(&hexadecimal));
        }
        let packed = {
            let text: Vec<u8> = (0..200_000u64)
                .flat_map(|n| (n * n).to_string().into_bytes())
                .collect();
            let mut to = Vec::new();
            encode_as(Encoding::Zstd, LEVEL, &text, None, &mut to).unwrap();
            to
        };
        assert!(incompressible(&packed));
        assert!(!incompressible(b""));
    }

    #[test]
    fn likeness_tells_what_stayed_from_what_moved() {
        let base = noise(65_536, 5);
        let same = likeness(&base, &base);
        assert!(same.stayed == 100 && same.found > 85, "{same:?}");
        let mut changed = base.clone();
        changed[20_000..30_000].copy_from_slice(&noise(10_000, 6));
        let some = likeness(&changed, &base);
        assert!(
            (80..95).contains(&some.stayed) && (75..95).contains(&some.found),
            "{some:?}"
        );
        let moved = [b"inserted".as_slice(), &base].concat();
        let moved = likeness(&moved, &base);
        assert!(moved.stayed < 5 && moved.found > 85, "{moved:?}");
        let other = likeness(&noise(65_536, 9), &base);
        assert!(other.stayed < 5 && other.found == 0, "{other:?}");
        for (bytes, base) in [(&b""[..], &b""[..]), (b"", b"base"), (b"bytes", b"")] {
            assert_eq!(likeness(bytes, base), Likeness { stayed: 0, found: 0 });
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn what_is_passed_over_would_have_gained_little(
            parts in vec((0usize..30_000, any::<u64>(), 0u8..8), 1..6),
        ) {
            // Noise of eight bits down to one, and runs.
            let bytes: Vec<u8> = parts
                .iter()
                .flat_map(|(length, seed, bits)| noise(*length, *seed).into_iter().map(move |byte| byte >> bits))
                .collect();
            if incompressible(&bytes) {
                prop_assert!(zstd(&bytes) * 100 > bytes.len() * 85, "{} of {}", zstd(&bytes), bytes.len());
            }
        }
    }
}
