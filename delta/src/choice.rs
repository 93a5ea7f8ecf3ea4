//! Which encoding a chunk gets: by a sample of it, by what its kind of content gave lately, and by what may be spent.

use crate::{
    codec::{Encoding, Error, LEVEL, encode_as},
    estimate::{incompressible, likeness},
};

/// What may be spent on a chunk now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Budget {
    /// Others wait for the processors: the cheapest that is not wasteful.
    Busy,
    /// While containers run.
    #[default]
    Ordinary,
    /// Nobody needs the processors: the smallest form, at any price.
    Idle,
}

impl Budget {
    /// By the pressure on the processors: for how much of the last time, in percent, something had to wait for one (PSI's
    /// `some avg10`). Idle is never told by that alone: whoever has nothing else to do says so.
    #[must_use]
    pub fn of(pressure: f32) -> Budget {
        // At a quarter a container loses what it would notice.
        if pressure >= 25.0 {
            Budget::Busy
        } else {
            Budget::Ordinary
        }
    }

    /// zstd's level.
    fn level(self) -> i32 {
        match self {
            Budget::Busy => -1,
            Budget::Ordinary => LEVEL,
            Budget::Idle => 19,
        }
    }
}

/// What a chunk may be written against.
#[derive(Debug, Clone, Copy, Default)]
pub struct Bases<'a> {
    /// A chunk that is most likely similar: what stood there before, or has the same features.
    pub like: Option<&'a [u8]>,
    /// A dictionary that was trained with its kind.
    pub dictionary: Option<&'a [u8]>,
}

impl<'a> Bases<'a> {
    /// The one that this encoding is against.
    #[must_use]
    pub fn of(&self, encoding: Encoding) -> Option<&'a [u8]> {
        match encoding {
            Encoding::Dictionary => self.dictionary,
            other if other.needs_base() => self.like,
            _ => None,
        }
    }
}

/// Beyond this content says enough about itself.
const DICTIONARY_PAYS: usize = 32 << 10;
/// A base that has less of a content, in percent, is none.
const ALIKE: u8 = 10;
/// From so much at the same place on, in percent, what changed may be told by XOR.
const IN_PLACE: u8 = 50;
/// bsdiff takes a tenth or two of a second for each megabyte.
const BSDIFF_PAYS: usize = 1 << 20;

/// The encodings that are worth a trial, each with its level; the most promising first.
#[must_use]
pub fn candidates(bytes: &[u8], bases: Bases<'_>, budget: Budget) -> Vec<(Encoding, i32)> {
    let level = budget.level();
    let mut found = Vec::new();
    if let Some(base) = bases.like {
        let like = likeness(bytes, base);
        let in_place = like.stayed >= IN_PLACE;
        match budget {
            _ if !in_place && like.found < ALIKE => {}
            Budget::Busy if in_place => found.push((Encoding::Xor, level)),
            Budget::Busy => found.push((Encoding::Match, level)),
            Budget::Ordinary if in_place => {
                found.extend([(Encoding::Prefix, level), (Encoding::Xor, level)]);
            }
            Budget::Ordinary => found.extend([(Encoding::Match, level), (Encoding::Prefix, level)]),
            Budget::Idle => {
                found.extend([(Encoding::Prefix, level), (Encoding::Match, level)]);
                if in_place {
                    found.push((Encoding::Xor, level));
                }
                if bytes.len() <= BSDIFF_PAYS {
                    found.push((Encoding::Bsdiff, level));
                }
            }
        }
    }
    if found.is_empty() {
        if bytes.len() <= DICTIONARY_PAYS && bases.dictionary.is_some() {
            found.push((Encoding::Dictionary, level));
        }
        if incompressible(bytes) {
            found.push((Encoding::Raw, level));
        } else {
            found.push((Encoding::Zstd, level));
        }
    }
    found
}

/// What chunks of one kind gave lately, by encoding. Whoever encodes keeps one for each kind.
#[derive(Debug, Clone, Copy, Default)]
pub struct Experience {
    turn: u32,
    tried: [Option<Tried>; Encoding::COUNT],
}

#[derive(Debug, Clone, Copy)]
struct Tried {
    /// What was left of the content, of 1.
    left: f32,
    turn: u32,
}

/// The weight of the newest: what counts are some 16 chunks.
const NEWEST: f32 = 1.0 / 16.0;
/// An encoding that did worse is tried again after so many chunks.
const AGAIN: u32 = 64;

impl Experience {
    /// A chunk of `length` bytes was written in `stored`.
    pub fn note(&mut self, encoding: Encoding, length: usize, stored: usize) {
        self.turn = self.turn.wrapping_add(1);
        let now = stored as f32 / length.max(1) as f32;
        if let Some(slot) = self.tried.get_mut(encoding as usize) {
            let left = slot.map_or(now, |tried| tried.left + (now - tried.left) * NEWEST);
            *slot = Some(Tried {
                left,
                turn: self.turn,
            });
        }
    }

    /// What an encoding has left of contents lately, of 1; none where it was never tried.
    #[must_use]
    pub fn left(&self, encoding: Encoding) -> Option<f32> {
        self.tried.get(encoding as usize)?.map(|tried| tried.left)
    }

    /// Of these the one that left least lately; one that was not tried for long goes first.
    fn pick(&self, candidates: &[(Encoding, i32)]) -> Option<(Encoding, i32)> {
        let tried = |encoding: Encoding| self.tried.get(encoding as usize).copied().flatten();
        let stale = |(encoding, _): &&(Encoding, i32)| {
            tried(*encoding).is_none_or(|tried| self.turn.wrapping_sub(tried.turn) >= AGAIN)
        };
        let left = |(encoding, _): &(Encoding, i32)| tried(*encoding).map_or(1.0, |tried| tried.left);
        let best = || candidates.iter().min_by(|a, b| left(a).total_cmp(&left(b)));
        match candidates {
            [one] => Some(*one),
            _ => candidates.iter().find(stale).or_else(best).copied(),
        }
    }
}

/// The encoding for a chunk, and zstd's level.
#[must_use]
pub fn choose(bytes: &[u8], bases: Bases<'_>, budget: Budget, experience: &Experience) -> (Encoding, i32) {
    let found = candidates(bytes, bases, budget);
    experience.pick(&found).unwrap_or((Encoding::Zstd, LEVEL))
}

/// Writes a chunk to the end of `to` as [`choose`] says, or as it is where that does not make it shorter; says how, and
/// notes it.
///
/// # Errors
/// As [`encode_as`].
pub fn encode_within(
    budget: Budget,
    bytes: &[u8],
    bases: Bases<'_>,
    experience: &mut Experience,
    to: &mut Vec<u8>,
) -> Result<Encoding, Error> {
    let (encoding, level) = choose(bytes, bases, budget, experience);
    let begin = to.len();
    encode_as(encoding, level, bytes, bases.of(encoding), to)?;
    experience.note(encoding, bytes.len(), to.len() - begin);
    Ok(or_raw(encoding, bytes, begin, to))
}

/// Writes a chunk to the end of `to` in the shortest form that can be found within the budget; says which. `to` holds
/// two forms at times.
///
/// # Errors
/// As [`encode_as`]; a form that cannot be written is passed over if there is another.
pub fn encode_shortest(
    budget: Budget,
    bytes: &[u8],
    bases: Bases<'_>,
    to: &mut Vec<u8>,
) -> Result<Encoding, Error> {
    let begin = to.len();
    let mut best = None;
    let mut failed = None;
    for (encoding, level) in candidates(bytes, bases, budget) {
        let next = to.len();
        if let Err(error) = encode_as(encoding, level, bytes, bases.of(encoding), to) {
            failed = Some(error);
        } else if best.is_some() && to.len() - next >= next - begin {
            to.truncate(next);
        } else {
            to.drain(begin..next);
            best = Some(encoding);
        }
    }
    match (best, failed) {
        (Some(encoding), _) => Ok(or_raw(encoding, bytes, begin, to)),
        (None, Some(error)) => Err(error),
        (None, None) => Ok(or_raw(Encoding::Raw, bytes, begin, to)),
    }
}

/// A few bytes saved are not worth a decompression at each read, let alone one of the base.
fn or_raw(encoding: Encoding, bytes: &[u8], begin: usize, to: &mut Vec<u8>) -> Encoding {
    let stored = to.len() - begin;
    if encoding != Encoding::Raw && stored + stored / 32 < bytes.len() {
        return encoding;
    }
    to.truncate(begin);
    to.extend_from_slice(bytes);
    Encoding::Raw
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::{decode, noise};

    fn against(base: &[u8]) -> Bases<'_> {
        Bases {
            like: Some(base),
            dictionary: None,
        }
    }

    #[test]
    fn a_base_is_used_where_it_has_something() {
        let base = noise(65_536, 1);
        let mut changed = base.clone();
        changed[1000] ^= 1;
        let moved = [b"inserted".as_slice(), &base].concat();
        let first = |bytes: &[u8], budget| candidates(bytes, against(&base), budget)[0].0;
        assert_eq!(first(&changed, Budget::Busy), Encoding::Xor);
        assert_eq!(first(&moved, Budget::Busy), Encoding::Match);
        assert_eq!(first(&changed, Budget::Ordinary), Encoding::Prefix);
        assert_eq!(first(&moved, Budget::Ordinary), Encoding::Match);
        assert_eq!(first(&noise(65_536, 2), Budget::Ordinary), Encoding::Raw);
        assert_eq!(first(&[7; 65_536], Budget::Ordinary), Encoding::Zstd);
    }

    #[test]
    fn what_gave_most_lately_is_chosen() {
        // Numbers that changed a little: only XOR sees that.
        let numbers = (0..16_384u32).map(|n| n.wrapping_mul(0x9e37_79b9) & !0xff);
        let base: Vec<u8> = numbers.flat_map(u32::to_le_bytes).collect();
        let mut bytes = base.clone();
        bytes
            .iter_mut()
            .step_by(4)
            .for_each(|low| *low = low.wrapping_add(1));
        let mut experience = Experience::default();
        let mut chosen = Vec::new();
        for _ in 0..128 {
            let mut to = Vec::new();
            let encoding =
                encode_within(Budget::Ordinary, &bytes, against(&base), &mut experience, &mut to).unwrap();
            assert_eq!(decode(encoding, &to, Some(&base), bytes.len()).unwrap(), bytes);
            chosen.push(choose(&bytes, against(&base), Budget::Ordinary, &experience).0);
        }
        let xor = chosen
            .iter()
            .filter(|encoding| **encoding == Encoding::Xor)
            .count();
        assert!(
            (120..128).contains(&xor),
            "the other is tried again at times: {xor}"
        );
        assert!(experience.left(Encoding::Xor) < experience.left(Encoding::Prefix));
        assert_eq!(experience.left(Encoding::Raw), None);
    }

    #[test]
    fn pressure_makes_it_cheaper() {
        assert_eq!(Budget::of(0.0), Budget::Ordinary);
        assert_eq!(Budget::of(60.0), Budget::Busy);
        let text = b"some words, again and again; ".repeat(1000);
        let level = |budget| candidates(&text, Bases::default(), budget)[0].1;
        assert!(
            level(Budget::Busy) < level(Budget::Ordinary) && level(Budget::Ordinary) < level(Budget::Idle)
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn whatever_is_chosen_comes_back(
            base in vec(0u8..16, 0..6000),
            at: prop::sample::Index,
            other in vec(any::<u8>(), 0..3000),
            dictionary: bool,
        ) {
            let at = at.index(base.len() + 1);
            let bytes = [&base[..at], &other, &base[at..]].concat();
            let bases = Bases { like: Some(&base), dictionary: dictionary.then_some(&other) };
            for budget in [Budget::Busy, Budget::Ordinary, Budget::Idle] {
                let mut experience = Experience::default();
                for _ in 0..3 {
                    let mut to = vec![7];
                    let encoding = encode_within(budget, &bytes, bases, &mut experience, &mut to).unwrap();
                    prop_assert!(to.len() <= bytes.len() + 1);
                    prop_assert_eq!(&decode(encoding, &to[1..], bases.of(encoding), bytes.len()).unwrap(), &bytes);
                    let mut shortest = vec![7];
                    let encoding = encode_shortest(budget, &bytes, bases, &mut shortest).unwrap();
                    prop_assert!(shortest.len() <= to.len());
                    prop_assert_eq!(&decode(encoding, &shortest[1..], bases.of(encoding), bytes.len()).unwrap(), &bytes);
                }
            }
        }
    }
}
