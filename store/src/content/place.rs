//! Content that changes where it is, all over: there is nothing that has not changed to tell that nothing has moved.

use super::{Piece, Pieces};
use crate::{error::Result, id::Id};

/// A chunk of which so much stands where it stood, in percent, has changed in its place.
const IN_PLACE: u8 = 50;
/// And so has the beginning of the next, in bytes.
const BEHIND: usize = 4096;

impl Pieces<'_> {
    /// How long the chunk is that begins here, and whether that is so because most of an old one still stands there:
    /// what changes where it is moves no boundary, though it changes what decides on them.
    pub(super) fn boundary(&mut self, bytes: &[u8], at: u64, last: bool) -> Result<(usize, bool)> {
        let cut = delta::cut(bytes);
        if !self.begins_at(at)? {
            return Ok((cut, false));
        }
        // One more than is asked for: the last of a stretch is cut anew when that has grown.
        while self.at <= at + cut as u64 && self.look()? {}
        let boundary = |(begins, piece): &(u64, Piece)| *begins == at + cut as u64 && !piece.chunk.is_empty();
        if self.ahead.iter().any(boundary) {
            return Ok((cut, false));
        }
        let Some((_, piece)) = self.ahead.front() else {
            return Ok((cut, false));
        };
        let length = usize::try_from(piece.length).unwrap_or(usize::MAX);
        let (now, behind) = match bytes.split_at_checked(length) {
            Some(split) if length <= delta::LONGEST => split,
            _ => return Ok((cut, false)),
        };
        let next = self.ahead.get(1).filter(|(_, next)| !next.chunk.is_empty());
        let stayed = self.stands(piece, now, now.len())
            && match next {
                // What was inserted has moved what is behind it.
                Some((_, next)) => self.stands(next, behind, BEHIND),
                None => last && behind.is_empty(),
            };
        Ok(if stayed { (length, true) } else { (cut, false) })
    }

    /// Whether most of the first bytes of a piece are the same now. What cannot be read is no measure.
    fn stands(&self, piece: &Piece, now: &[u8], bytes: usize) -> bool {
        let before = Id::from_slice(&piece.chunk).and_then(|id| self.store.chunk(self.domain, id).ok());
        let before = before.unwrap_or_default();
        let bytes = bytes.min(before.len()).min(now.len());
        let parts = now.get(..bytes).zip(before.get(..bytes));
        bytes > 0 && parts.is_some_and(|(now, before)| delta::likeness(now, before).stayed >= IN_PLACE)
    }

    /// Whether the piece that is next is what these bytes begin with.
    pub(super) fn begins_with(&self, bytes: &[u8]) -> bool {
        let Some((_, piece)) = self.ahead.front() else {
            return false;
        };
        let now = usize::try_from(piece.length)
            .ok()
            .and_then(|length| bytes.get(..length));
        now.is_none_or(|now| self.store.hash.chunk(now).0.as_slice() == piece.chunk)
    }
}
