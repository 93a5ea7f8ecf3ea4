//! How a chunk is written: as it is, or as a zstd frame.

use std::{cell::RefCell, io};

use zstd::bulk::{Compressor, Decompressor};

/// zstd's level: what is captured while a container runs must not cost it the machine.
pub const LEVEL: i32 = 3;

/// What a chunk was written as. The numbers are on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Encoding {
    /// The bytes themselves.
    Raw = 0,
    /// One zstd frame without checksum and without content size: the hash names the content, the record its length.
    Zstd = 1,
}

impl TryFrom<u8> for Encoding {
    type Error = Error;

    fn try_from(number: u8) -> Result<Self, Error> {
        match number {
            0 => Ok(Encoding::Raw),
            1 => Ok(Encoding::Zstd),
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
    /// Not of this length.
    #[error("it has {found} bytes where {expected} are recorded")]
    Length {
        /// What the record says.
        expected: usize,
        /// What came out.
        found: usize,
    },
    /// Not a zstd frame of at most this length.
    #[error("it cannot be decompressed: {0}")]
    Zstd(#[source] io::Error),
}

thread_local! {
    // A context costs more than a small chunk's compression.
    static COMPRESSOR: RefCell<Option<Compressor<'static>>> = const { RefCell::new(None) };
    static DECOMPRESSOR: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
}

/// Writes a chunk to the end of `to`, in the shorter form; says which.
///
/// # Errors
/// zstd's own: no memory.
pub fn encode(bytes: &[u8], to: &mut Vec<u8>) -> Result<Encoding, Error> {
    // A frame's head and its smallest block make tiny contents longer.
    if bytes.len() > 32 {
        let packed = COMPRESSOR.with_borrow_mut(|slot| {
            let compressor = match slot {
                Some(ready) => ready,
                None => slot.insert(fresh_compressor()?),
            };
            compressor.compress(bytes)
        });
        let packed = packed.map_err(Error::Zstd)?;
        // A few bytes saved are not worth a decompression at each read.
        if packed.len() + packed.len() / 32 < bytes.len() {
            to.extend_from_slice(&packed);
            return Ok(Encoding::Zstd);
        }
    }
    to.extend_from_slice(bytes);
    Ok(Encoding::Raw)
}

fn fresh_compressor() -> io::Result<Compressor<'static>> {
    let mut compressor = Compressor::new(LEVEL)?;
    compressor.include_checksum(false)?;
    compressor.include_contentsize(false)?;
    compressor.include_dictid(false)?;
    Ok(compressor)
}

/// Reads a chunk of `length` bytes. What was written by nobody of ours is refused; no more than `length` bytes are
/// ever allocated for it.
///
/// # Errors
/// Damaged or crafted bytes.
pub fn decode(encoding: Encoding, written: &[u8], length: usize) -> Result<Vec<u8>, Error> {
    let bytes = match encoding {
        Encoding::Raw => written.to_vec(),
        Encoding::Zstd => DECOMPRESSOR
            .with_borrow_mut(|slot| {
                let decompressor = match slot {
                    Some(ready) => ready,
                    None => slot.insert(Decompressor::new()?),
                };
                decompressor.decompress(written, length)
            })
            .map_err(Error::Zstd)?,
    };
    if bytes.len() != length {
        return Err(Error::Length {
            expected: length,
            found: bytes.len(),
        });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_shorter_form_is_kept() {
        let mut to = Vec::new();
        assert_eq!(encode(&[7; 10_000], &mut to).unwrap(), Encoding::Zstd);
        assert!(to.len() < 100, "{}", to.len());
        assert_eq!(decode(Encoding::Zstd, &to, 10_000).unwrap(), [7; 10_000]);
        // One byte short, one too many: not what was recorded.
        assert!(decode(Encoding::Zstd, &to, 9_999).is_err());
        assert!(decode(Encoding::Zstd, &to, 10_001).is_err());
        to.clear();
        assert_eq!(encode(b"tiny", &mut to).unwrap(), Encoding::Raw);
        assert!(Encoding::try_from(2).is_err());
    }

    proptest! {
        #[test]
        fn what_was_encoded_is_decoded(bytes in proptest::collection::vec(0u8..4, 0..5000), head: u8) {
            let mut to = vec![head];
            let encoding = encode(&bytes, &mut to).unwrap();
            prop_assert_eq!(to[0], head);
            prop_assert_eq!(decode(encoding, &to[1..], bytes.len()).unwrap(), bytes);
        }

        #[test]
        fn crafted_bytes_are_refused_or_of_the_length(bytes: Vec<u8>, length in 0usize..10_000, kind in 0u8..2) {
            if let Ok(out) = decode(Encoding::try_from(kind).unwrap(), &bytes, length) {
                prop_assert_eq!(out.len(), length);
            }
        }
    }
}
