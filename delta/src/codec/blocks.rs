//! Block match: parts of the base, wherever they stand now, and the bytes between them. For content in which things move
//! by any number of bytes, at a speed that a search for every repetition does not have.
//!
//! The base is remembered by the hash of each of its blocks; a hash that rolls over the content finds them again, and
//! their bytes are compared, which proves more than a second hash would. What is found is extended to both sides. A hash
//! has one place at most and no byte is matched twice: no content takes longer than its length.
//!
//! The payload: the length of the instructions; for each the length of the bytes before, of the part, and how far the
//! part begins from where the last one ended; then all the bytes.

use super::{
    Error,
    payload::{self, Reader, extend, part},
    room,
};
use crate::gear::roll;

/// What is remembered of the base, in bytes; a move is found if it is nearly twice as long.
const BLOCK: usize = 32;
/// What did not move is looked for at every so many bytes, and found if it is twice as long.
const STAYED: usize = 8;
/// A base has at most two to the power of this slots.
const LARGEST: u32 = 24;

/// A part of the base in the content.
struct Found {
    /// Where in the content.
    at: usize,
    /// Where in the base.
    place: usize,
    length: usize,
}

/// Where each block of a base stands.
struct Places<'a> {
    base: &'a [u8],
    /// By its upper bits a block's hash, and the block's number and one; zero where there is none.
    slots: Vec<(u32, u32)>,
    /// How much of a hash is no slot's number.
    shift: u32,
}

impl<'a> Places<'a> {
    fn new(base: &'a [u8]) -> Places<'a> {
        let wanted = (base.len() / BLOCK * 4).max(256);
        let bits = wanted.next_power_of_two().ilog2().min(LARGEST);
        let mut places = Places {
            base,
            slots: vec![(0, 0); 1 << bits],
            shift: u32::BITS - bits,
        };
        for (number, block) in (1..).zip(base.chunks_exact(BLOCK)) {
            let hash = block.iter().fold(0, |hash, byte| roll(hash, *byte)) as u32;
            let slot = (hash >> places.shift) as usize;
            if let Some(free) = places.slots.get_mut(slot).filter(|slot| slot.1 == 0) {
                *free = (hash, number);
            }
        }
        places
    }

    /// Where a block of this hash stands. The gear hash's lower half is of the last 32 bytes alone.
    #[inline]
    fn get(&self, hash: u64) -> Option<usize> {
        let hash = hash as u32;
        let (found, number) = *self.slots.get((hash >> self.shift) as usize)?;
        (found == hash && number != 0).then(|| (number as usize - 1) * BLOCK)
    }

    /// The first part of the base from `begin` on; where nothing moved, `begin` is at `place` in the base.
    fn find(&self, bytes: &[u8], begin: usize, place: usize) -> Option<Found> {
        let (content, base) = (bytes.get(begin..)?, self.base.get(place..)?);
        if stayed(content, base) {
            return Some(self.extended(bytes, begin, begin, place));
        }
        let (head, tail) = content.split_at_checked(BLOCK - 1)?;
        let mut hash = head.iter().fold(0, |hash, byte| roll(hash, *byte));
        for (at, byte) in (begin..).zip(tail) {
            hash = roll(hash, *byte);
            if let Some(place) = self.get(hash)
                && let Some(block) = self.base.get(place..place + BLOCK)
                && bytes.get(at..at + BLOCK) == Some(block)
            {
                return Some(self.extended(bytes, begin, at, place));
            }
            let behind = at - begin;
            if behind.is_multiple_of(STAYED)
                && stayed(
                    content.get(behind..).unwrap_or_default(),
                    base.get(behind..).unwrap_or_default(),
                )
            {
                return Some(self.extended(bytes, begin, at, place + behind));
            }
        }
        None
    }

    /// As much as is the same, to both sides, but not to before `begin`.
    fn extended(&self, bytes: &[u8], begin: usize, at: usize, place: usize) -> Found {
        let before = bytes.get(begin..at).unwrap_or_default().iter().rev();
        let back = before
            .zip(self.base.get(..place).unwrap_or_default().iter().rev())
            .take_while(|(a, b)| a == b)
            .count();
        let (at, place) = (at - back, place - back);
        Found {
            at,
            place,
            length: common(
                bytes.get(at..).unwrap_or_default(),
                self.base.get(place..).unwrap_or_default(),
            ),
        }
    }
}

#[inline]
fn stayed(bytes: &[u8], base: &[u8]) -> bool {
    let here = bytes.first_chunk::<{ 2 * STAYED }>();
    here.is_some() && here == base.first_chunk()
}

/// How much two begin with alike.
fn common(a: &[u8], b: &[u8]) -> usize {
    let blocks = a.as_chunks::<BLOCK>().0.iter().zip(b.as_chunks().0);
    let same = blocks.take_while(|(a, b)| a == b).count() * BLOCK;
    let (a, b) = (
        a.get(same..).unwrap_or_default(),
        b.get(same..).unwrap_or_default(),
    );
    same + a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// Writes `bytes` as parts of `base` and what is between them.
pub(super) fn write(level: i32, bytes: &[u8], base: &[u8], to: &mut Vec<u8>) -> Result<(), Error> {
    let places = Places::new(base);
    let (mut instructions, mut between) = (Vec::new(), Vec::new());
    let (mut begin, mut ended) = (0, 0);
    while let Some(found) = places.find(bytes, begin, ended) {
        payload::push((found.at - begin) as u64, &mut instructions);
        payload::push(found.length as u64, &mut instructions);
        payload::push_signed(found.place as i64 - ended as i64, &mut instructions);
        between.extend_from_slice(bytes.get(begin..found.at).unwrap_or_default());
        begin = found.at + found.length;
        ended = found.place + found.length;
    }
    between.extend_from_slice(bytes.get(begin..).unwrap_or_default());
    let mut all = room(instructions.len() + between.len() + 10)?;
    payload::push(instructions.len() as u64, &mut all);
    all.append(&mut instructions);
    all.append(&mut between);
    payload::write(level, &all, bytes.len(), to)
}

/// Reads what [`write`] wrote.
pub(super) fn read(written: &[u8], base: &[u8], length: usize) -> Result<Vec<u8>, Error> {
    let payload = payload::read(written, length)?;
    let mut between = Reader(&payload);
    let instructions = between.length()?;
    let mut instructions = Reader(between.bytes(instructions)?);
    let mut bytes = room(length)?;
    let mut ended = 0i64;
    while !instructions.0.is_empty() {
        let before = instructions.length()?;
        let taken = instructions.length()?;
        let place = ended.wrapping_add(instructions.signed()?);
        extend(&mut bytes, length, between.bytes(before)?)?;
        extend(&mut bytes, length, part(base, place, taken)?)?;
        ended = place.wrapping_add(taken as i64);
    }
    extend(&mut bytes, length, between.0)?;
    Ok(bytes)
}
