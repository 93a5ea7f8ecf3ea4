//! Content, cut into chunks and encoded: pure functions of bytes. `docs/delta.md` says how they come together.
//!
//! Cutting is content-defined ([`cut`]): where a boundary falls depends on the bytes before it alone, so that
//! what was inserted or removed changes the chunks around it and no others; or fixed, for content that is made of pages
//! ([`cut_fixed`], [`page_size`]).
//!
//! Encoding ([`encode`]) keeps the shorter of the bytes themselves and their zstd form; [`encode_as`] writes the form
//! that it is told, which may be one against a base: the bytes of another chunk, without which it cannot be read.
//! [`choose`] says which form is worth its price, [`features`] finds bases, [`train`] makes dictionaries.

mod choice;
mod class;
mod codec;
mod cut;
mod estimate;
mod features;
mod gear;
mod pages;
mod training;

pub use choice::{Bases, Budget, Experience, candidates, choose, encode_shortest, encode_within};
pub use class::{Class, class};
pub use codec::{DICTIONARY_LEVEL, Dictionary, Encoding, Error, LEVEL, decode, encode, encode_as};
pub use cut::{AVERAGE, LONGEST, SHORTEST, cut};
pub use estimate::{Likeness, incompressible, likeness};
pub use features::{FEATURES, features};
pub use pages::{cut_fixed, page_size, page_size_of_writes};
pub use training::{LONGEST_DICTIONARY, MOST_SAMPLES, SHORTEST_SAMPLE, pays, saves, train};

/// Bytes that look random and are always the same.
#[cfg(test)]
fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut x = seed | 1;
    (0..length)
        .map(|_| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            x.to_le_bytes()[3]
        })
        .collect()
}
