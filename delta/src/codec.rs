//! How a chunk is written: as it is, as a zstd frame, or against a base, the bytes of another chunk.

mod blocks;
mod bsdiff;
mod dictionary;
mod frame;
mod payload;
mod xor;

use std::io;

use crate::estimate::incompressible;
pub use dictionary::{DICTIONARY_LEVEL, Dictionary};

/// zstd's level: what is captured while a container runs must not cost it the machine.
pub const LEVEL: i32 = 3;

/// What a chunk was written as. The numbers are on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Encoding {
    /// The bytes themselves.
    Raw = 0,
    /// One zstd frame without checksum and without content size: the hash names the content, the record its length.
    Zstd = 1,
    /// The same with the base as the frame's prefix: it refers to the base as if that stood before the content.
    Prefix = 2,
    /// XOR with the base at the same place, then a frame: what did not change is zeros.
    Xor = 3,
    /// Parts of the base, wherever they stand, and the bytes between them, in a frame.
    Match = 4,
    /// Differences to parts of the base, and the bytes between them, in a frame.
    Bsdiff = 5,
    /// A frame by a dictionary, which is the base: what contents of its kind have in common.
    Dictionary = 6,
}

impl Encoding {
    /// So many there are.
    pub const COUNT: usize = 7;

    /// Whether it can only be read with the base that it was written with.
    #[must_use]
    pub fn needs_base(self) -> bool {
        match self {
            Encoding::Raw | Encoding::Zstd => false,
            Encoding::Prefix | Encoding::Xor | Encoding::Match | Encoding::Bsdiff | Encoding::Dictionary => {
                true
            }
        }
    }
}

impl TryFrom<u8> for Encoding {
    type Error = Error;

    fn try_from(number: u8) -> Result<Self, Error> {
        match number {
            0 => Ok(Encoding::Raw),
            1 => Ok(Encoding::Zstd),
            2 => Ok(Encoding::Prefix),
            3 => Ok(Encoding::Xor),
            4 => Ok(Encoding::Match),
            5 => Ok(Encoding::Bsdiff),
            6 => Ok(Encoding::Dictionary),
            other => Err(Error::Unknown(other)),
        }
    }
}

/// What cannot be encoded or decoded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Written by a newer version, or damaged.
    #[error("encoding {0} is unknown: it is damaged, or of a newer version of diffkeeper")]
    Unknown(u8),
    /// Its base was not given.
    #[error("it is written against a base ({0:?}), which is not there")]
    NoBase(Encoding),
    /// What its instructions say cannot be.
    #[error("it is damaged: {0}")]
    Damaged(&'static str),
    /// More than this machine has.
    #[error("there is no memory for its {0} bytes")]
    Memory(usize),
    /// Not of this length.
    #[error("it has {found} bytes where {expected} are recorded")]
    Length {
        /// What the record says.
        expected: usize,
        /// What came out.
        found: usize,
    },
    /// The base is none.
    #[error("its dictionary is damaged")]
    Dictionary,
    /// The search for differences failed.
    #[error("its differences cannot be found: {0}")]
    Bsdiff(#[source] io::Error),
    /// Not a zstd frame of at most this length.
    #[error("it cannot be decompressed: {0}")]
    Zstd(#[source] io::Error),
}

/// Writes a chunk to the end of `to`, in the shorter form; says which.
///
/// # Errors
/// zstd's own: no memory.
pub fn encode(bytes: &[u8], to: &mut Vec<u8>) -> Result<Encoding, Error> {
    let begin = to.len();
    // A frame's head and its smallest block make tiny contents longer.
    if bytes.len() > 32 && !incompressible(bytes) {
        encode_as(Encoding::Zstd, LEVEL, bytes, None, to)?;
        let packed = to.len() - begin;
        // A few bytes saved are not worth a decompression at each read.
        if packed + packed / 32 < bytes.len() {
            return Ok(Encoding::Zstd);
        }
        to.truncate(begin);
    }
    to.extend_from_slice(bytes);
    Ok(Encoding::Raw)
}

/// Writes a chunk to the end of `to` in this form, be it shorter or not; `level` is zstd's. Encodings that need a base
/// must get it, others pass over it.
///
/// # Errors
/// No base, or zstd's own: no memory, no such level. `to` is as it was then.
pub fn encode_as(
    encoding: Encoding,
    level: i32,
    bytes: &[u8],
    base: Option<&[u8]>,
    to: &mut Vec<u8>,
) -> Result<(), Error> {
    match encoding {
        Encoding::Raw => {
            to.extend_from_slice(bytes);
            Ok(())
        }
        Encoding::Zstd => frame::write(level, bytes, &[], to),
        Encoding::Prefix => frame::write(level, bytes, of(encoding, base)?, to),
        Encoding::Xor => xor::write(level, bytes, of(encoding, base)?, to),
        Encoding::Match => blocks::write(level, bytes, of(encoding, base)?, to),
        Encoding::Bsdiff => bsdiff::write(level, bytes, of(encoding, base)?, to),
        Encoding::Dictionary => dictionary::write(level, bytes, of(encoding, base)?, to),
    }
}

/// Reads a chunk of `length` bytes; `base` is what it was encoded with. What was written by nobody of ours, or with
/// another base, is refused or becomes other bytes of that length, which their name tells; no more than some multiple of
/// `length` is ever allocated for it.
///
/// # Errors
/// Damaged or crafted bytes, no base.
pub fn decode(
    encoding: Encoding,
    written: &[u8],
    base: Option<&[u8]>,
    length: usize,
) -> Result<Vec<u8>, Error> {
    let bytes = match encoding {
        Encoding::Raw if written.len() == length => written.to_vec(),
        Encoding::Raw => {
            return Err(Error::Length {
                expected: length,
                found: written.len(),
            });
        }
        Encoding::Zstd => frame::read(written, &[], length)?,
        Encoding::Prefix => frame::read(written, of(encoding, base)?, length)?,
        Encoding::Xor => xor::read(written, of(encoding, base)?, length)?,
        Encoding::Match => blocks::read(written, of(encoding, base)?, length)?,
        Encoding::Bsdiff => bsdiff::read(written, of(encoding, base)?, length)?,
        Encoding::Dictionary => dictionary::read(written, of(encoding, base)?, length)?,
    };
    of_length(bytes, length)
}

fn of_length(bytes: Vec<u8>, length: usize) -> Result<Vec<u8>, Error> {
    if bytes.len() != length {
        return Err(Error::Length {
            expected: length,
            found: bytes.len(),
        });
    }
    Ok(bytes)
}

fn of(encoding: Encoding, base: Option<&[u8]>) -> Result<&[u8], Error> {
    base.ok_or(Error::NoBase(encoding))
}

/// An empty vector for so many bytes.
fn room(length: usize) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    bytes
        .try_reserve_exact(length)
        .map_err(|_| Error::Memory(length))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::noise;

    const ALL: [Encoding; Encoding::COUNT] = [
        Encoding::Raw,
        Encoding::Zstd,
        Encoding::Prefix,
        Encoding::Xor,
        Encoding::Match,
        Encoding::Bsdiff,
        Encoding::Dictionary,
    ];

    #[test]
    fn the_shorter_form_is_kept() {
        let mut to = Vec::new();
        assert_eq!(encode(&[7; 10_000], &mut to).unwrap(), Encoding::Zstd);
        assert!(to.len() < 100, "{}", to.len());
        assert_eq!(decode(Encoding::Zstd, &to, None, 10_000).unwrap(), [7; 10_000]);
        // One byte short, one too many: not what was recorded.
        assert!(decode(Encoding::Zstd, &to, None, 9_999).is_err());
        assert!(decode(Encoding::Zstd, &to, None, 10_001).is_err());
        to.clear();
        assert_eq!(encode(b"tiny", &mut to).unwrap(), Encoding::Raw);
    }

    #[test]
    fn numbers_are_for_ever() {
        for (number, encoding) in (0u8..).zip(ALL) {
            assert_eq!(Encoding::try_from(number).unwrap(), encoding);
            assert_eq!(encoding as u8, number);
        }
        assert!(Encoding::try_from(u8::try_from(ALL.len()).unwrap()).is_err());
    }

    #[test]
    fn a_base_that_is_not_there_is_an_error() {
        for encoding in ALL.into_iter().filter(|encoding| encoding.needs_base()) {
            let mut to = vec![1];
            let error = encode_as(encoding, LEVEL, b"bytes", None, &mut to).unwrap_err();
            assert!(matches!(error, Error::NoBase(_)), "{error}");
            assert_eq!(to, [1]);
            encode_as(encoding, LEVEL, b"bytes", Some(b""), &mut to).unwrap();
            assert!(matches!(
                decode(encoding, &to[1..], None, 5),
                Err(Error::NoBase(_))
            ));
        }
    }

    #[test]
    fn a_changed_byte_costs_a_few() {
        // Noise: nothing but the base can make it shorter.
        for length in [10_000, 200_000, 1 << 20] {
            let base = noise(length, 7);
            let mut bytes = base.clone();
            bytes[length / 2] ^= 1;
            for encoding in ALL.into_iter().filter(|encoding| encoding.needs_base()) {
                let mut to = Vec::new();
                encode_as(encoding, LEVEL, &bytes, Some(&base), &mut to).unwrap();
                assert!(
                    to.len() < 64 + length / 500,
                    "{encoding:?}: {} of {length}",
                    to.len()
                );
                assert_eq!(decode(encoding, &to, Some(&base), length).unwrap(), bytes);
            }
        }
    }

    #[test]
    fn a_length_that_no_memory_has_is_an_error() {
        for encoding in ALL {
            assert!(decode(encoding, b"crafted", Some(b"base"), usize::MAX).is_err());
        }
    }

    /// A base, and what became of it: parts of it in another order, with other bytes between.
    fn versions() -> impl Strategy<Value = (Vec<u8>, Vec<u8>)> {
        let base = prop_oneof![vec(any::<u8>(), 0..4000), vec(0u8..4, 0..4000)];
        let parts = vec(
            (
                any::<prop::sample::Index>(),
                0usize..2000,
                vec(any::<u8>(), 0..40),
            ),
            0..6,
        );
        (base, parts).prop_map(|(base, parts)| {
            let mut bytes = Vec::new();
            for (at, length, more) in parts {
                let at = at.index(base.len() + 1);
                bytes.extend_from_slice(&base[at..(at + length).min(base.len())]);
                bytes.extend(more);
            }
            (base, bytes)
        })
    }

    proptest! {
        #[test]
        fn what_was_encoded_is_decoded(bytes in vec(0u8..4, 0..5000), head: u8) {
            let mut to = vec![head];
            let encoding = encode(&bytes, &mut to).unwrap();
            prop_assert_eq!(to[0], head);
            prop_assert_eq!(decode(encoding, &to[1..], None, bytes.len()).unwrap(), bytes);
        }

        #[test]
        fn every_encoding_gives_back_what_it_got((base, bytes) in versions(), level in -5i32..12) {
            for encoding in ALL {
                let mut to = vec![1, 2];
                encode_as(encoding, level, &bytes, Some(&base), &mut to).unwrap();
                prop_assert_eq!(&to[..2], [1, 2]);
                prop_assert_eq!(&decode(encoding, &to[2..], Some(&base), bytes.len()).unwrap(), &bytes);
            }
        }

        #[test]
        fn a_shared_dictionary_is_the_same((base, bytes) in versions(), other in vec(any::<u8>(), 0..200)) {
            let shared = Dictionary::new(base.clone());
            let mut to = vec![1];
            shared.encode(&bytes, &mut to).unwrap();
            prop_assert_eq!(&shared.decode(&to[1..], bytes.len()).unwrap(), &bytes);
            prop_assert_eq!(&decode(Encoding::Dictionary, &to[1..], Some(&base), bytes.len()).unwrap(), &bytes);
            to.clear();
            encode_as(Encoding::Dictionary, LEVEL, &bytes, Some(&base), &mut to).unwrap();
            prop_assert_eq!(&shared.decode(&to, bytes.len()).unwrap(), &bytes);
            if let Ok(out) = shared.decode(&other, bytes.len()) {
                prop_assert_eq!(out.len(), bytes.len());
            }
        }

        #[test]
        fn another_base_or_damage_never_gives_another_length(
            (base, bytes) in versions(),
            other in vec(any::<u8>(), 0..2000),
            at: prop::sample::Index,
            flip in 1u8..,
        ) {
            for encoding in ALL {
                let mut to = Vec::new();
                encode_as(encoding, LEVEL, &bytes, Some(&base), &mut to).unwrap();
                if let Ok(out) = decode(encoding, &to, Some(&other), bytes.len()) {
                    prop_assert_eq!(out.len(), bytes.len());
                }
                if to.is_empty() {
                    continue;
                }
                let at = at.index(to.len());
                prop_assert!(decode(encoding, &to[..at], Some(&base), bytes.len()).is_err() || bytes.is_empty());
                to[at] ^= flip;
                if let Ok(out) = decode(encoding, &to, Some(&base), bytes.len()) {
                    prop_assert_eq!(out.len(), bytes.len());
                }
            }
        }

        #[test]
        fn crafted_bytes_are_refused_or_of_the_length(bytes: Vec<u8>, base: Vec<u8>, length in 0usize..10_000) {
            for encoding in ALL {
                if let Ok(out) = decode(encoding, &bytes, Some(&base), length) {
                    prop_assert_eq!(out.len(), length);
                }
            }
        }
    }
}
