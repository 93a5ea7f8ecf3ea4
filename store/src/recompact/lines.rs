//! Which chunk follows which: what stood at its place in the file's last version.

use std::{
    collections::{HashMap, HashSet},
    ops::ControlFlow,
};

use crate::{
    content::Pieces,
    error::{Error, Result},
    format::{Entry, Kind},
    history::Known,
    id::Id,
    pack::Object,
    store::Store,
};

/// The chunks of a state, and what each follows.
#[derive(Default)]
pub(crate) struct Lines {
    /// In the order in which they came.
    order: Vec<Id>,
    known: HashMap<Id, Chunk>,
}

struct Chunk {
    /// The number of the commit that it came with.
    came: u64,
    follows: Option<Id>,
    followed_by: Vec<Id>,
    /// How many follow each other from here on at most.
    long: usize,
    /// The next of those.
    next: Option<Id>,
}

impl Chunk {
    /// Whether nothing follows what follows another.
    fn hangs(&self) -> bool {
        self.long == 1 && self.follows.is_some()
    }
}

/// A part of a file, and how long it is.
type Part = (Id, u64);

impl Lines {
    /// Of all versions of a state that have content.
    pub fn of(store: &Store, state: &Known, told: &mut impl FnMut() -> Result<()>) -> Result<Lines> {
        let gone = store.given_up(state)?;
        let mut trees = Vec::new();
        store.log(state, u64::MAX, |recorded| {
            if !gone.contains(&recorded.commit.sequence) {
                trees.push((recorded.commit.sequence, recorded.commit.tree_id()?));
            }
            Ok(ControlFlow::Continue(()))
        })?;
        let mut lines = Lines::default();
        let mut before = None;
        for (sequence, tree) in trees.into_iter().rev() {
            told()?;
            let compared = store.differences(state.domain, before, tree, &[], |difference| {
                if let Some(after) = difference.after.as_ref().filter(|after| is_file(after)) {
                    let old = match difference.before.as_ref().filter(|before| is_file(before)) {
                        Some(before) if before.content == after.content => {
                            return Ok(ControlFlow::Continue(()));
                        }
                        Some(before) => parts(store, state.domain, before)?,
                        None => Vec::new(),
                    };
                    let new = parts(store, state.domain, after)?;
                    lines.file(store, state.domain, sequence, &old, &new)?;
                }
                Ok(ControlFlow::Continue(()))
            });
            before = match compared {
                // What a repair could not mend is no reason to leave the others as they are.
                Err(Error::Missing(_) | Error::Damaged { .. }) => None,
                compared => compared.map(|_| Some(tree))?,
            };
        }
        lines.measure();
        Ok(lines)
    }

    fn file(&mut self, store: &Store, domain: u32, sequence: u64, old: &[Part], new: &[Part]) -> Result<()> {
        for (id, candidates) in stood(old, new) {
            if self.known.contains_key(&id) {
                continue;
            }
            let follows = match candidates.as_slice() {
                // What has nothing at its place may have found a relative.
                [] => store
                    .place(domain, Object::Chunk, id)?
                    .and_then(|place| place.base.map(|base| base.id)),
                [one] => Some(*one),
                several => most_like(store, domain, id, several)?,
            };
            // What is damaged or was given up is nobody's predecessor.
            let follows = follows.filter(|old| self.known.contains_key(old));
            if let Some(before) = follows.and_then(|old| self.known.get_mut(&old)) {
                before.followed_by.push(id);
            }
            self.order.push(id);
            let chunk = Chunk {
                came: sequence,
                follows,
                followed_by: Vec::new(),
                long: 1,
                next: None,
            };
            self.known.insert(id, chunk);
        }
        Ok(())
    }

    fn measure(&mut self) {
        for id in self.order.iter().rev() {
            let Some((long, follows)) = self.known.get(id).map(|chunk| (chunk.long, chunk.follows)) else {
                continue;
            };
            // Of several as long the first.
            if let Some(before) = follows.and_then(|old| self.known.get_mut(&old))
                && before.long <= long + 1
            {
                (before.long, before.next) = (long + 1, Some(*id));
            }
        }
    }

    /// Every chunk in the order in which they came, and what it follows.
    pub fn in_order(&self) -> impl Iterator<Item = (Id, Option<Id>)> {
        let follows = |id: &Id| self.known.get(id).and_then(|chunk| chunk.follows);
        self.order.iter().map(move |id| (*id, follows(id)))
    }

    /// Those of these chunks.
    pub fn only(mut self, wanted: &HashSet<Id>) -> Lines {
        self.order.retain(|id| wanted.contains(id));
        self.known.retain(|id, _| wanted.contains(id));
        for chunk in self.known.values_mut() {
            chunk.follows = chunk.follows.filter(|old| wanted.contains(old));
            chunk.followed_by.retain(|next| wanted.contains(next));
            (chunk.long, chunk.next) = (1, None);
        }
        self.measure();
        self
    }

    /// How many chunks there are.
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// The commit that a chunk came with.
    pub fn came(&self, id: Id) -> u64 {
        self.known.get(&id).map_or(0, |chunk| chunk.came)
    }

    /// Every chunk once, in lines that follow each other; what goes off one for long has its own, before it.
    pub fn all(&self) -> Vec<Vec<Id>> {
        let mut found = Vec::new();
        for id in &self.order {
            let Some(chunk) = self.known.get(id) else { continue };
            let begins = || chunk.follows.is_none_or(|old| self.goes_on(old) != Some(*id));
            if chunk.hangs() || !begins() {
                continue;
            }
            let (mut line, mut at) = (vec![*id], *id);
            while let Some(next) = self.goes_on(at) {
                line.push(next);
                at = next;
            }
            found.push(line);
        }
        // What goes off is newer than where it does.
        found.reverse();
        found
    }

    /// What follows a chunk beside its line, and nothing follows.
    pub fn beside(&self, id: Id) -> impl Iterator<Item = Id> {
        let next = self.known.get(&id).map(|chunk| chunk.followed_by.as_slice());
        let main = self.goes_on(id);
        let beside = next
            .unwrap_or_default()
            .iter()
            .filter(move |next| main != Some(**next));
        beside
            .filter(|next| self.known.get(*next).is_some_and(Chunk::hangs))
            .copied()
    }

    fn goes_on(&self, id: Id) -> Option<Id> {
        self.known.get(&id)?.next
    }
}

fn is_file(entry: &Entry) -> bool {
    entry.what() == Kind::File && entry.content_id().is_some()
}

fn parts(store: &Store, domain: u32, entry: &Entry) -> Result<Vec<Part>> {
    let mut found = Vec::new();
    if let Some(mut pieces) = Pieces::new(store, domain, entry)? {
        while let Some((_, piece)) = pieces.next_piece()? {
            // A hole keeps its place.
            let id = Id::from_slice(&piece.chunk).unwrap_or(Id([0; 32]));
            found.push((id, piece.length));
        }
    }
    Ok(found)
}

/// The new parts, and what each may follow: what stood as far behind the last part that both have, and as far before the next.
fn stood(old: &[Part], new: &[Part]) -> Vec<(Id, Vec<Id>)> {
    let places: HashMap<Id, usize> = old.iter().enumerate().map(|(n, (id, _))| (*id, n)).collect();
    let mut found = Vec::new();
    // Up to here both have been gone through.
    let (mut begin, mut from) = (0, 0);
    while begin < new.len() {
        let rest = new.get(begin..).unwrap_or_default();
        // Where both have the same again, behind where they had.
        let gap = rest
            .iter()
            .position(|(id, _)| places.get(id).is_some_and(|at| *at >= from))
            .unwrap_or(rest.len());
        let until = rest
            .get(gap)
            .and_then(|(id, _)| places.get(id))
            .copied()
            .unwrap_or(old.len());
        let (added, gone) = (
            rest.get(..gap).unwrap_or_default(),
            old.get(from..until).unwrap_or_default(),
        );
        beside(added, gone, &mut found);
        begin += gap + 1;
        from = until + 1;
    }
    found
}

/// Parts that came in the place of others.
fn beside(added: &[Part], gone: &[Part], found: &mut Vec<(Id, Vec<Id>)>) {
    let length = |parts: &[Part]| parts.iter().map(|(_, length)| length).sum::<u64>();
    let (longer, shorter) = (length(added), length(gone));
    let mut at = 0;
    for (id, length) in added {
        let from_end = longer - at - length;
        let mut candidates: Vec<Id> = Vec::new();
        let by_begin = most_of(gone, at, at + length);
        let by_end = shorter
            .checked_sub(from_end)
            .and_then(|end| most_of(gone, end.saturating_sub(*length), end));
        for candidate in [by_begin, by_end].into_iter().flatten() {
            if !candidates.contains(&candidate) && candidate != Id([0; 32]) {
                candidates.push(candidate);
            }
        }
        if *id != Id([0; 32]) {
            found.push((*id, candidates));
        }
        at += length;
    }
}

/// The part that has most of what lies between two places.
fn most_of(parts: &[Part], begin: u64, end: u64) -> Option<Id> {
    let (mut at, mut best) = (0, None);
    for (id, length) in parts {
        let shared = end.min(at + length).saturating_sub(begin.max(at));
        if shared > best.map_or(0, |(most, _)| most) {
            best = Some((shared, *id));
        }
        at += length;
        if at >= end {
            break;
        }
    }
    best.map(|(_, id)| id)
}

/// Of several that it may follow the one that has most of it.
fn most_like(store: &Store, domain: u32, id: Id, several: &[Id]) -> Result<Option<Id>> {
    let Ok(bytes) = store.object(domain, Object::Chunk, id) else {
        return Ok(None);
    };
    let mut best = None;
    for candidate in several {
        let Ok(old) = store.object(domain, Object::Chunk, *candidate) else {
            continue;
        };
        let like = delta::likeness(&bytes, &old);
        let found = like.found.max(like.stayed);
        if found > best.map_or(0, |(most, _)| most) {
            best = Some((found, *candidate));
        }
    }
    Ok(best.map(|(_, id)| id))
}
