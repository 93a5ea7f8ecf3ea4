//! bsdiff (Percival, "Naive Differences of Executable Code", 2003), by the crate qbsdiff: parts of the base that are
//! nearly the same, as differences. The smallest of the encodings for programs, whose addresses all change a little,
//! and by far the slowest to write: for what is small, and for when there is nothing else to do.
//!
//! Only its instructions are kept: bsdiff's own files are three of bzip2, which are longer than one zstd frame of the
//! same, slower to read, and can be crafted to be read for ever.
//!
//! The payload: the length of the instructions; for each the length of a difference to the base, the length of the
//! bytes behind it, and how far the base's next part is from where this one ended; then all differences; then all bytes.

use std::io::{self, Read};

use bzip2::read::BzDecoder;
use qbsdiff::{Bsdiff, ParallelScheme};

use super::{
    Error,
    payload::{self, Reader, extend, part},
    room,
};

/// Of each of its numbers: 63 bits, the lowest byte first, and a sign.
const NUMBER: usize = 8;
const HEAD: usize = 4 * NUMBER;

/// Writes `bytes` as differences to parts of `base`.
pub(super) fn write(level: i32, bytes: &[u8], base: &[u8], to: &mut Vec<u8>) -> Result<(), Error> {
    let mut patch = Vec::new();
    Bsdiff::new(base, bytes)
        .parallel_scheme(ParallelScheme::Never)
        .compression_level(1)
        .compare(&mut patch)
        .map_err(Error::Bsdiff)?;
    let payload = repacked(&patch).map_err(Error::Bsdiff)?;
    payload::write(level, &payload, bytes.len(), to)
}

/// bsdiff's file as a payload of ours.
fn repacked(mut patch: &[u8]) -> io::Result<Vec<u8>> {
    let mut take = |length: usize| {
        let (taken, rest) = patch
            .split_at_checked(length)
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        patch = rest;
        Ok::<_, io::Error>(taken)
    };
    let head: Vec<usize> = take(HEAD)?
        .chunks_exact(NUMBER)
        .map(|number| usize::try_from(signed(number)).map_err(io::Error::other))
        .collect::<Result<_, _>>()?;
    let [_, controls, differences, _] = head[..] else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    let (controls, differences) = (take(controls)?, take(differences)?);
    let mut instructions = Vec::new();
    for control in unpacked(controls)?.chunks_exact(3 * NUMBER) {
        let mut numbers = control.chunks_exact(NUMBER).map(signed);
        payload::push(numbers.next().unwrap_or(0).cast_unsigned(), &mut instructions);
        payload::push(numbers.next().unwrap_or(0).cast_unsigned(), &mut instructions);
        payload::push_signed(numbers.next().unwrap_or(0), &mut instructions);
    }
    let mut payload = Vec::new();
    payload::push(instructions.len() as u64, &mut payload);
    payload.append(&mut instructions);
    payload.append(&mut unpacked(differences)?);
    payload.append(&mut unpacked(patch)?);
    Ok(payload)
}

fn unpacked(stream: &[u8]) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    BzDecoder::new(stream).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn signed(number: &[u8]) -> i64 {
    let all = number
        .iter()
        .rev()
        .fold(0u64, |all, byte| all << 8 | u64::from(*byte));
    let size = (all & (u64::MAX >> 1)).cast_signed();
    if all >> 63 == 0 { size } else { -size }
}

/// Reads what [`write`] wrote.
pub(super) fn read(written: &[u8], base: &[u8], length: usize) -> Result<Vec<u8>, Error> {
    let payload = payload::read(written, length)?;
    let mut payload = Reader(&payload);
    let instructions = payload.length()?;
    let instructions = Reader(payload.bytes(instructions)?);
    // How many differences there are is known when all instructions have been read.
    let mut each = Reader(instructions.0);
    let mut all = 0usize;
    while !each.0.is_empty() {
        all = all.saturating_add(each.length()?);
        each.number()?;
        each.signed()?;
    }
    let mut differences = Reader(payload.bytes(all)?);
    let mut bytes = room(length)?;
    let (mut each, mut place) = (instructions, 0i64);
    while !each.0.is_empty() {
        let (changed, new) = (each.length()?, each.length()?);
        let old = part(base, place, changed)?;
        let begin = bytes.len();
        extend(&mut bytes, length, differences.bytes(changed)?)?;
        let to = bytes.get_mut(begin..).unwrap_or_default();
        to.iter_mut()
            .zip(old)
            .for_each(|(to, old)| *to = to.wrapping_add(*old));
        extend(&mut bytes, length, payload.bytes(new)?)?;
        place = place.wrapping_add(changed as i64).wrapping_add(each.signed()?);
    }
    Ok(bytes)
}
