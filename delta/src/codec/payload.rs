//! What our own encodings have in common: numbers, and a frame of known length around them.

use super::{Error, frame};

const TOO_LONG: Error = Error::Damaged("its instructions are longer than what they make");

/// The longest payload for content of this length: an instruction takes less than the shortest part that is worth one,
/// and whoever crafts longer ones gets no memory for them.
fn longest(length: usize) -> usize {
    length.saturating_mul(2).saturating_add(64)
}

/// Appends a number: seven bits a byte, the lowest first, the eighth says that more follow.
pub(super) fn push(mut number: u64, to: &mut Vec<u8>) {
    while number >= 0x80 {
        to.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    to.push(number as u8);
}

/// Appends a number with a sign: as `push` does twice its distance from zero, one less if it is below.
pub(super) fn push_signed(number: i64, to: &mut Vec<u8>) {
    push(((number << 1) ^ (number >> 63)).cast_unsigned(), to);
}

/// Takes bytes from the front.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn number(&mut self) -> Result<u64, Error> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self
                .0
                .split_first()
                .ok_or(Error::Damaged("it ends within a number"))?;
            self.0 = rest;
            number |= u64::from(byte & 0x7f) << shift;
            if *byte < 0x80 {
                return Ok(number);
            }
        }
        Err(Error::Damaged("a number is too long"))
    }

    pub(super) fn length(&mut self) -> Result<usize, Error> {
        usize::try_from(self.number()?).map_err(|_| Error::Damaged("a length is beyond all memory"))
    }

    pub(super) fn signed(&mut self) -> Result<i64, Error> {
        let number = self.number()?;
        Ok((number >> 1).cast_signed() ^ -(number & 1).cast_signed())
    }

    pub(super) fn bytes(&mut self, length: usize) -> Result<&'a [u8], Error> {
        let (taken, rest) = self
            .0
            .split_at_checked(length)
            .ok_or(Error::Damaged("it ends within its bytes"))?;
        self.0 = rest;
        Ok(taken)
    }
}

/// The payload's length, and its frame; the content has `length` bytes.
pub(super) fn write(level: i32, payload: &[u8], length: usize, to: &mut Vec<u8>) -> Result<(), Error> {
    if payload.len() > longest(length) {
        return Err(TOO_LONG);
    }
    let begin = to.len();
    push(payload.len() as u64, to);
    frame::write(level, payload, &[], to).inspect_err(|_| to.truncate(begin))
}

/// The payload of content of `length` bytes.
pub(super) fn read(written: &[u8], length: usize) -> Result<Vec<u8>, Error> {
    let mut reader = Reader(written);
    let payload = reader.length()?;
    if payload > longest(length) {
        return Err(TOO_LONG);
    }
    let bytes = frame::read(reader.0, &[], payload)?;
    if bytes.len() != payload {
        return Err(Error::Damaged("its instructions have another length"));
    }
    Ok(bytes)
}

/// A part of the base that an instruction names.
pub(super) fn part(base: &[u8], at: i64, length: usize) -> Result<&[u8], Error> {
    usize::try_from(at)
        .ok()
        .and_then(|at| base.get(at..)?.get(..length))
        .ok_or(Error::Damaged("it refers to what its base does not have"))
}

/// Appends, but never beyond what was declared.
pub(super) fn extend(bytes: &mut Vec<u8>, length: usize, more: &[u8]) -> Result<(), Error> {
    if more.len() > length.saturating_sub(bytes.len()) {
        return Err(Error::Damaged("it makes more bytes than recorded"));
    }
    bytes.extend_from_slice(more);
    Ok(())
}
