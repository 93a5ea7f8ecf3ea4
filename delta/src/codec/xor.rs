//! Against the base at the same place: what did not change becomes zeros, of which a frame makes next to nothing. For
//! pages that change where they are; the cheapest of the encodings with a base.

use super::{Error, frame, room};

/// A frame of `bytes` XOR `base`; what the base is too short for as it is, what it has beyond goes unused.
pub(super) fn write(level: i32, bytes: &[u8], base: &[u8], to: &mut Vec<u8>) -> Result<(), Error> {
    let mut difference = room(bytes.len())?;
    difference.extend(bytes.iter().zip(base).map(|(a, b)| a ^ b));
    difference.extend_from_slice(bytes.get(difference.len()..).unwrap_or_default());
    frame::write(level, &difference, &[], to)
}

/// Reads what [`write`] wrote.
pub(super) fn read(written: &[u8], base: &[u8], length: usize) -> Result<Vec<u8>, Error> {
    let mut bytes = frame::read(written, &[], length)?;
    bytes.iter_mut().zip(base).for_each(|(a, b)| *a ^= b);
    Ok(bytes)
}
