//! What is known to be as it was is taken over unread: whole lists where a new one would begin where they do.

use crate::{
    content::{BEHIND, Lists, Pieces, Source},
    error::{Result, damaged},
    format::{Child, Piece},
    id::Id,
    pack::Object,
    store::Session,
};
use prost::Message;

/// A part of old content that was not changed.
enum Part {
    Piece(Piece),
    List { level: usize, id: Id, length: u64 },
}

impl Session<'_> {
    /// Takes over what stands at `at` and is known to be as it was; answers with where that ends.
    pub(super) fn kept(
        &self,
        source: &(impl Source + ?Sized),
        mut at: u64,
        lists: &mut Lists<'_, '_>,
        old: &mut Option<Pieces<'_>>,
    ) -> Result<u64> {
        let until = source.same_until(at);
        if until <= at {
            return Ok(at);
        }
        loop {
            let part = match old {
                Some(old) => old.part(at, until, lists.closed())?,
                None => None,
            };
            match part {
                Some(Part::Piece(piece)) => {
                    let id = Id::from_slice(&piece.chunk);
                    // One that is lost is written again, where there is something to read it from.
                    if let Some(id) = id
                        && !self.has(Object::Chunk, id)?
                    {
                        return Ok(at);
                    }
                    lists.push(id, piece.length, old)?;
                    at += piece.length;
                    if let Some(old) = old {
                        old.passed();
                    }
                }
                Some(Part::List { level, id, length }) => {
                    lists.push_list(level, id, length, old)?;
                    at += length;
                }
                None => return Ok(at),
            }
        }
    }
}

impl Lists<'_, '_> {
    /// On how many levels, from the lowest, no list is open.
    fn closed(&self) -> usize {
        match self.levels.iter().position(|items| !items.is_empty()) {
            Some(open) => open,
            None => usize::MAX,
        }
    }

    /// Takes over a list, where none is open on its level or below.
    fn push_list(&mut self, level: usize, id: Id, length: u64, old: &Option<Pieces<'_>>) -> Result<()> {
        while self.levels.len() <= level {
            self.levels.push(Vec::new());
            self.counts.push(0);
        }
        // It stands for several pieces.
        self.pieces = self.pieces.saturating_add(2);
        self.at += length;
        self.last = None;
        let child = Child {
            key: Vec::new(),
            id: id.0.to_vec(),
            count: length,
        };
        let decides = id.0.first().copied().unwrap_or(0);
        self.item(level + 1, child.encode_to_vec(), length, decides, old)
    }
}

impl Pieces<'_> {
    /// What begins at a place and ends before another: a list, if one begins there on fewer than so many levels from the
    /// lowest, else a piece, which stays until it was [`Pieces::passed`]. None where nothing does.
    fn part(&mut self, at: u64, until: u64, closed: usize) -> Result<Option<Part>> {
        while self.ahead.front().is_some_and(|(begins, _)| *begins < at) {
            self.passed();
        }
        while self.ahead.is_empty() && self.at < at && self.look()? {
            if self.at > at {
                break;
            }
            self.passed();
        }
        if self.ahead.is_empty() && self.at == at {
            if let Some(list) = self.list(until, closed)? {
                return Ok(Some(list));
            }
            self.look()?;
        }
        // What follows a piece decides how it ends: if that is not known it is cut anew.
        let within = self
            .ahead
            .front()
            .filter(|(begins, piece)| *begins == at && at.saturating_add(piece.length) < until);
        Ok(within.map(|(_, piece)| Part::Piece(piece.clone())))
    }

    /// The foremost piece is gone past.
    fn passed(&mut self) {
        if self.behind.len() == BEHIND {
            self.behind.pop_front();
        }
        self.behind.extend(self.ahead.pop_front());
    }

    /// The list that begins where nothing was looked at.
    fn list(&mut self, until: u64, closed: usize) -> Result<Option<Part>> {
        loop {
            let Some((node, next)) = self.stack.last_mut() else {
                return Ok(None);
            };
            let Some(level) = node.level.checked_sub(1) else {
                // Pieces follow, unless there are none left of this list.
                if *next < node.items.len() {
                    return Ok(None);
                }
                self.stack.pop();
                continue;
            };
            let Some(item) = node.items.get(*next) else {
                self.stack.pop();
                continue;
            };
            let child = Child::decode(item.as_slice()).map_err(|e| damaged("a list's child", e))?;
            let id = Id::from_slice(&child.id)
                .ok_or_else(|| damaged("a list's child", "its name has another length"))?;
            let end = self
                .at
                .checked_add(child.count)
                .ok_or_else(|| damaged("a list", "it is longer than anything can be"))?;
            *next += 1;
            if (level as usize) < closed && end < until && child.count > 0 {
                self.at = end;
                self.behind.clear();
                return Ok(Some(Part::List {
                    level: level as usize,
                    id,
                    length: child.count,
                }));
            }
            let below = self.store.node(self.domain, id)?;
            if below.level != level {
                return Err(damaged("a list", "a node stands on the wrong level"));
            }
            self.entered(&below, id);
            self.stack.push((below, 0));
        }
    }
}

#[cfg(test)]
#[path = "kept_tests.rs"]
mod tests;
