//! Merkle search trees of entries.
//!
//! The entries of a tree, in the order of their keys, are cut into nodes of 16 to 256 items; the first keys of those
//! nodes with the nodes' names are the items of the level above, and so on until one node is left: the top. Where a
//! node ends is decided by the hash of an item's key (`ends`), so that the same entries always make the same tree,
//! whatever order they came in, and so that one changed entry changes one node on each level. A least and a greatest
//! number keep whoever chooses the names from making the tree deep or its nodes large.

use std::{collections::BTreeMap, ops::ControlFlow, sync::Arc};

use prost::Message;

use crate::{
    error::{Error, Result, damaged},
    format::{Child, Commit, Entry, HIGHEST, Node},
    id::{Hash, Id},
    store::{Session, Store},
};

/// The fewest items of a node but the last of its level.
const FEWEST: usize = 16;
/// The most.
const MOST: usize = 256;
/// One key in so many ends a node.
const SPREAD: u32 = 64;

/// Whether a node ends after this item, its `count`th.
fn ends(hash: Hash, level: u32, key: &[u8], count: usize) -> bool {
    count >= MOST || count >= FEWEST && hash.boundary(level, key).is_multiple_of(SPREAD)
}

/// What changes on one level: items to put in place of what has their key, keys to remove.
type Changes = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

/// The top of a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Top {
    /// Its node.
    pub id: Id,
    /// How many entries there are.
    pub entries: u64,
}

/// A node with what stands above it, as a child has it.
struct Built {
    key: Vec<u8>,
    id: Id,
    count: u64,
}

/// Cuts items into nodes.
struct Builder<'s, 'a> {
    session: &'a Session<'s>,
    level: u32,
    node: Node,
    /// The old node that the next new one follows.
    old: Option<Id>,
    first: Vec<u8>,
    count: u64,
    built: Vec<Built>,
}

impl<'s, 'a> Builder<'s, 'a> {
    fn new(session: &'a Session<'s>, level: u32) -> Self {
        Builder {
            session,
            level,
            node: Node {
                level,
                items: Vec::new(),
            },
            old: None,
            first: Vec::new(),
            count: 0,
            built: Vec::new(),
        }
    }

    fn between_nodes(&self) -> bool {
        self.node.items.is_empty()
    }

    fn push(&mut self, key: &[u8], item: Vec<u8>) -> Result<()> {
        if self.node.items.is_empty() {
            self.first = key.to_vec();
        }
        self.count += match self.level {
            0 => 1,
            _ => child(&item)?.count,
        };
        self.node.items.push(item);
        if ends(self.session.store.hash, self.level, key, self.node.items.len()) {
            self.end()?;
        }
        Ok(())
    }

    fn end(&mut self) -> Result<()> {
        if self.node.items.is_empty() {
            return Ok(());
        }
        let id = self.session.node(&self.node, self.old)?;
        self.node.items.clear();
        self.built.push(Built {
            key: std::mem::take(&mut self.first),
            id,
            count: std::mem::take(&mut self.count),
        });
        Ok(())
    }
}

fn child(item: &[u8]) -> Result<Child> {
    Child::decode(item).map_err(|e| damaged("a node's child", e))
}

fn child_id(child: &Child) -> Result<Id> {
    Id::from_slice(&child.id).ok_or_else(|| damaged("a node's child", "its name has another length"))
}

/// The key of an item, where it stands first, as it does in all that was written here: a search need not read the rest.
fn first_key(item: &[u8]) -> Option<&[u8]> {
    // Field 1, bytes; then the length, one or more groups of seven bits.
    let mut rest = item.strip_prefix(&[0x0a])?;
    let mut length = 0usize;
    for shift in (0..28).step_by(7) {
        let (byte, after) = rest.split_first()?;
        rest = after;
        length |= usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return rest.get(..length);
        }
    }
    None
}

/// The key of an item.
fn key_of(level: u32, item: &[u8]) -> Result<Vec<u8>> {
    if let Some(key) = first_key(item) {
        return Ok(key.to_vec());
    }
    Ok(match level {
        0 => Entry::read(item)?.key,
        _ => child(item)?.key,
    })
}

impl Session<'_> {
    /// The tree that `old` becomes by these changes, sorted by key: entries that are put in place of what has their
    /// key, keys whose entry goes. Reads and writes what the changes touch, no more.
    ///
    /// # Errors
    /// A damaged tree, a full or failing disk.
    pub fn tree(
        &self,
        old: Option<Id>,
        changes: impl IntoIterator<Item = (Vec<u8>, Option<Entry>)>,
    ) -> Result<Top> {
        let mut changes: Changes = changes
            .into_iter()
            .map(|(key, entry)| (key, entry.map(|entry| entry.encode_to_vec())))
            .collect();
        let old = match old {
            Some(id) => Some((id, self.store.node(self.domain, id)?)),
            None => None,
        };
        let highest = old.as_ref().map_or(0, |(_, node)| node.level);
        if highest > HIGHEST {
            return Err(damaged("a tree", "it is too deep"));
        }
        if let Some((id, node)) = &old
            && changes.is_empty()
        {
            let entries = match node.level {
                0 => node.items.len() as u64,
                _ => node
                    .items
                    .iter()
                    .try_fold(0, |sum, item| Ok(sum + child(item)?.count))?,
            };
            return Ok(Top { id: *id, entries });
        }
        let mut level = 0;
        loop {
            let built = match &old {
                Some((top, _)) if level <= highest => self.change_level(*top, level, &changes)?,
                _ => self.new_level(level, &changes)?,
            };
            // What the level above has to change; at the top of the old tree and beyond, all that there is.
            let whole = old.is_none() || level >= highest;
            if whole {
                let nodes: Vec<&Built> = built.values().flatten().collect();
                match nodes.as_slice() {
                    [] => return self.empty(),
                    [only] => return self.lowest(only),
                    _ => {}
                }
            }
            changes = built
                .into_iter()
                .map(|(key, built)| {
                    let item = built.map(|built| {
                        Child {
                            key: built.key,
                            id: built.id.0.to_vec(),
                            count: built.count,
                        }
                        .encode_to_vec()
                    });
                    (key, item)
                })
                .collect();
            if whole {
                changes.retain(|_, item| item.is_some());
            }
            level += 1;
        }
    }

    fn empty(&self) -> Result<Top> {
        let id = self.node(&Node::default(), None)?;
        Ok(Top { id, entries: 0 })
    }

    /// A top with one child only is no top.
    fn lowest(&self, top: &Built) -> Result<Top> {
        let mut id = top.id;
        loop {
            let node = self.store.node(self.domain, id)?;
            match node.items.as_slice() {
                [only] if node.level > 0 => id = child_id(&child(only)?)?,
                _ => {
                    return Ok(Top {
                        id,
                        entries: top.count,
                    });
                }
            }
        }
    }

    fn new_level(&self, level: u32, changes: &Changes) -> Result<BTreeMap<Vec<u8>, Option<Built>>> {
        let mut builder = Builder::new(self, level);
        for (key, item) in changes {
            if let Some(item) = item {
                builder.push(key, item.clone())?;
            }
        }
        builder.end()?;
        Ok(builder
            .built
            .into_iter()
            .map(|b| (b.key.clone(), Some(b)))
            .collect())
    }

    /// Changes one level of an old tree; answers with the nodes of it that are new, and the keys of those that are gone.
    fn change_level(
        &self,
        top: Id,
        level: u32,
        changes: &Changes,
    ) -> Result<BTreeMap<Vec<u8>, Option<Built>>> {
        let mut found: BTreeMap<Vec<u8>, Option<Built>> = BTreeMap::new();
        let mut changes = changes.iter().peekable();
        while let Some((first, _)) = changes.peek() {
            // From the node that the first change falls into, until a node ends where an old one did.
            let mut cursor = Cursor::seek(self.store, self.domain, top, level, first)?;
            let mut builder = Builder::new(self, level);
            let mut replaced = Vec::new();
            while let Some((key, (id, node))) = cursor.next_node()? {
                replaced.push(key);
                builder.old = Some(id);
                for item in &node.items {
                    let at = key_of(level, item)?;
                    while let Some((key, change)) = changes.next_if(|(key, _)| **key < at) {
                        if let Some(new) = change {
                            builder.push(key, new.clone())?;
                        }
                    }
                    match changes.next_if(|(key, _)| **key == at) {
                        Some((key, Some(new))) => builder.push(key, new.clone())?,
                        Some((_, None)) => {}
                        None => builder.push(&at, item.clone())?,
                    }
                }
                let next = cursor.peek_key()?;
                // What comes before the next node belongs to the run of this one.
                while let Some((key, change)) =
                    changes.next_if(|(key, _)| next.as_ref().is_none_or(|n| *key < n))
                {
                    if let Some(new) = change {
                        builder.push(key, new.clone())?;
                    }
                }
                let goes_on = changes.peek().is_some_and(|(key, _)| {
                    // The next change falls into the very next node: no need to seek.
                    cursor.peek_end_after(key)
                });
                if builder.between_nodes() && !goes_on {
                    break;
                }
            }
            builder.end()?;
            for key in replaced {
                found.entry(key).or_insert(None);
            }
            for built in builder.built {
                found.insert(built.key.clone(), Some(built));
            }
        }
        Ok(found)
    }
}

/// A node and its name.
type Named = (Id, Arc<Node>);

/// Walks the nodes of one level from left to right.
struct Cursor<'s> {
    store: &'s Store,
    domain: u32,
    level: u32,
    /// The way down: nodes above the level, with the place of the next child of each.
    above: Vec<(Arc<Node>, usize)>,
    /// The top itself, where it is of this level.
    top: Option<Named>,
}

impl<'s> Cursor<'s> {
    /// Before the node of `level` into which `key` falls.
    fn seek(store: &'s Store, domain: u32, top: Id, level: u32, key: &[u8]) -> Result<Cursor<'s>> {
        let mut node = store.node(domain, top)?;
        let mut cursor = Cursor {
            store,
            domain,
            level,
            above: Vec::new(),
            top: None,
        };
        if node.level == level {
            cursor.top = Some((top, node));
            return Ok(cursor);
        }
        loop {
            let at = place_in(&node, key)?;
            cursor.above.push((Arc::clone(&node), at));
            if node.level <= level + 1 {
                return Ok(cursor);
            }
            let below = below(store, domain, &node, at)?;
            // The upper cursor stands after the child that was gone into.
            if let Some((_, next)) = cursor.above.last_mut() {
                *next += 1;
            }
            node = below;
        }
    }

    fn next_child(&mut self) -> Result<Option<Child>> {
        loop {
            let Some((node, at)) = self.above.last_mut() else {
                return Ok(None);
            };
            let Some(item) = node.items.get(*at) else {
                self.above.pop();
                continue;
            };
            let child = child(item)?;
            *at += 1;
            if node.level == self.level + 1 {
                return Ok(Some(child));
            }
            let below = self.store.node(self.domain, child_id(&child)?)?;
            if below.level + 1 != node.level {
                return Err(damaged("a tree", "a node stands on the wrong level"));
            }
            self.above.push((below, 0));
        }
    }

    /// The next node: its first key as the level above has it, its name, and itself.
    fn next_node(&mut self) -> Result<Option<(Vec<u8>, Named)>> {
        if let Some(top) = self.top.take() {
            let key = match top.1.items.first() {
                Some(item) => key_of(self.level, item)?,
                None => Vec::new(),
            };
            return Ok(Some((key, top)));
        }
        let Some(child) = self.next_child()? else {
            return Ok(None);
        };
        let id = child_id(&child)?;
        let node = self.store.node(self.domain, id)?;
        if node.level != self.level {
            return Err(damaged("a tree", "a node stands on the wrong level"));
        }
        Ok(Some((child.key, (id, node))))
    }

    /// The first key of the next node.
    fn peek_key(&mut self) -> Result<Option<Vec<u8>>> {
        if self.top.is_some() {
            return Ok(None);
        }
        let Some(child) = self.next_child()? else {
            return Ok(None);
        };
        if let Some((_, at)) = self.above.last_mut() {
            *at -= 1;
        }
        Ok(Some(child.key))
    }

    /// Whether `key` falls into the next node for certain.
    fn peek_end_after(&self, key: &[u8]) -> bool {
        let Some((node, at)) = self.above.last() else {
            return false;
        };
        let key_at = |at: usize| {
            node.items
                .get(at)
                .and_then(|item| child(item).ok())
                .map(|c| c.key)
        };
        key_at(*at).is_some_and(|first| first.as_slice() <= key)
            && key_at(*at + 1).is_some_and(|after| key < after.as_slice())
    }
}

/// The place of the child of a node that `key` falls into: the last whose first key is not beyond it, else the first.
fn place_in(node: &Node, key: &[u8]) -> Result<usize> {
    let (mut low, mut high) = (0, node.items.len());
    while low < high {
        let middle = low + (high - low) / 2;
        let item = node.items.get(middle).map(Vec::as_slice).unwrap_or_default();
        let not_beyond = match first_key(item) {
            Some(first) => first <= key,
            None => key_of(node.level, item)?.as_slice() <= key,
        };
        if not_beyond {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    Ok(low.saturating_sub(1))
}

fn below(store: &Store, domain: u32, node: &Node, at: usize) -> Result<Arc<Node>> {
    let item = node
        .items
        .get(at)
        .ok_or_else(|| damaged("a tree", "a node above the lowest level is empty"))?;
    let below = store.node(domain, child_id(&child(item)?)?)?;
    if below.level + 1 != node.level {
        return Err(damaged("a tree", "a node stands on the wrong level"));
    }
    Ok(below)
}

/// A change between two trees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The entry before; none where it is new.
    pub before: Option<Entry>,
    /// The entry after; none where it is gone.
    pub after: Option<Entry>,
}

impl Difference {
    /// The key of both.
    #[must_use]
    pub fn key(&self) -> &[u8] {
        let entry = self.after.as_ref().or(self.before.as_ref());
        entry.map(|e| e.key.as_slice()).unwrap_or_default()
    }
}

impl Store {
    /// The entry of this key.
    ///
    /// # Errors
    /// A damaged tree, a failing disk.
    pub fn entry(&self, domain: u32, top: Id, key: &[u8]) -> Result<Option<Entry>> {
        let mut node = self.node(domain, top)?;
        while node.level > 0 {
            let at = place_in(&node, key)?;
            node = below(self, domain, &node, at)?;
        }
        let at = place_in(&node, key)?;
        let Some(item) = node.items.get(at) else {
            return Ok(None);
        };
        let entry = Entry::read(item)?;
        Ok((entry.key == key).then_some(entry))
    }

    /// Every entry from key `from` on, in order, until `each` breaks.
    ///
    /// # Errors
    /// A damaged tree, a failing disk, and what `each` says.
    pub fn entries(
        &self,
        domain: u32,
        top: Id,
        from: &[u8],
        mut each: impl FnMut(Entry) -> Result<ControlFlow<()>>,
    ) -> Result<()> {
        let mut cursor = Cursor::seek(self, domain, top, 0, from)?;
        let mut before: Option<Vec<u8>> = None;
        while let Some((_, (_, node))) = cursor.next_node()? {
            for item in &node.items {
                let entry = Entry::read(item)?;
                if before.as_ref().is_some_and(|before| *before >= entry.key) {
                    return Err(damaged("a tree", "its entries are not in order"));
                }
                before = Some(entry.key.clone());
                if entry.key.as_slice() >= from && each(entry)?.is_break() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// What differs between two trees of a domain, by key, behind key `behind`; what they share is not read.
    ///
    /// # Errors
    /// A damaged tree, a failing disk, and what `each` says.
    pub fn differences(
        &self,
        domain: u32,
        before: Option<Id>,
        after: Id,
        behind: &[u8],
        mut each: impl FnMut(Difference) -> Result<ControlFlow<()>>,
    ) -> Result<()> {
        if before == Some(after) {
            return Ok(());
        }
        // Items of both sides in order; a node that both have at the same place is skipped whole.
        let mut left = Side::new(self, domain, before, behind)?;
        let mut right = Side::new(self, domain, Some(after), behind)?;
        loop {
            left.skip_with(&mut right)?;
            let (a, b) = (left.peek()?, right.peek()?);
            let difference = match (a, b) {
                (None, None) => return Ok(()),
                (Some(a), Some(b)) if a.key == b.key => {
                    left.next();
                    right.next();
                    if a == b {
                        continue;
                    }
                    Difference {
                        before: Some(a),
                        after: Some(b),
                    }
                }
                (Some(a), b) if b.as_ref().is_none_or(|b| a.key < b.key) => {
                    left.next();
                    Difference {
                        before: Some(a),
                        after: None,
                    }
                }
                (_, Some(b)) => {
                    right.next();
                    Difference {
                        before: None,
                        after: Some(b),
                    }
                }
                (Some(_), None) => return Err(damaged("a tree", "its entries are not in order")),
            };
            // A node that begins before may have been opened for what is behind.
            let wanted = behind.is_empty() || difference.key() > behind;
            if wanted && each(difference)?.is_break() {
                return Ok(());
            }
        }
    }
}

/// One of two trees that are walked side by side: nodes that are not opened before they must be.
struct Side<'s> {
    store: &'s Store,
    domain: u32,
    /// What ends before this is left out.
    behind: Vec<u8>,
    /// What is to come, the next one last: nodes by name and level, entries by their bytes.
    stack: Vec<Step>,
}

#[derive(Clone)]
enum Step {
    Node(Id, u32),
    Item(Vec<u8>),
}

impl<'s> Side<'s> {
    fn new(store: &'s Store, domain: u32, top: Option<Id>, behind: &[u8]) -> Result<Side<'s>> {
        let stack = match top {
            Some(top) => vec![Step::Node(top, store.node(domain, top)?.level)],
            None => Vec::new(),
        };
        Ok(Side {
            store,
            domain,
            behind: behind.to_vec(),
            stack,
        })
    }

    /// Opens the next node.
    fn open(&mut self) -> Result<()> {
        if let Some(Step::Node(id, level)) = self.stack.last().cloned() {
            self.stack.pop();
            let node = self.store.node(self.domain, id)?;
            if node.level != level {
                return Err(damaged("a tree", "a node stands on the wrong level"));
            }
            let first = if self.behind.is_empty() {
                0
            } else {
                place_in(&node, &self.behind)?
            };
            for item in node.items.iter().skip(first).rev() {
                self.stack.push(match level {
                    0 => Step::Item(item.clone()),
                    _ => Step::Node(child_id(&child(item)?)?, level - 1),
                });
            }
        }
        Ok(())
    }

    fn level(&self) -> Option<u32> {
        match self.stack.last() {
            Some(Step::Node(_, level)) => Some(*level),
            _ => None,
        }
    }

    /// Goes past what is the same on both sides, as long as both stand before a node of the same name.
    fn skip_with(&mut self, other: &mut Side<'_>) -> Result<()> {
        loop {
            match (self.stack.last(), other.stack.last()) {
                (Some(Step::Node(a, _)), Some(Step::Node(b, _))) if a == b => {
                    self.stack.pop();
                    other.stack.pop();
                }
                (Some(Step::Node(..)), Some(Step::Node(..))) => {
                    // The higher one is opened, so that both come to the same level.
                    if self.level() >= other.level() {
                        self.open()?;
                    } else {
                        other.open()?;
                    }
                }
                _ => return Ok(()),
            }
        }
    }

    fn peek(&mut self) -> Result<Option<Entry>> {
        loop {
            match self.stack.last() {
                None => return Ok(None),
                Some(Step::Item(item)) => return Entry::read(item).map(Some),
                Some(Step::Node(..)) => self.open()?,
            }
        }
    }

    fn next(&mut self) {
        self.stack.pop();
    }
}

/// That an entry is in a commit, without the rest of the commit's tree: see `docs/format.md`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Proof {
    /// The version of this message: 1.
    #[prost(uint32, tag = "1")]
    pub format: u32,
    /// The store's hash.
    #[prost(uint32, tag = "2")]
    pub hash: u32,
    /// The commit's bytes.
    #[prost(bytes = "vec", tag = "3")]
    pub commit: Vec<u8>,
    /// From the entry to the top.
    #[prost(message, repeated, tag = "4")]
    pub steps: Vec<ProofStep>,
}

/// One node on the way up.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ProofStep {
    /// The item: the entry, then children.
    #[prost(bytes = "vec", tag = "1")]
    pub item: Vec<u8>,
    /// Its place among the node's items.
    #[prost(uint32, tag = "2")]
    pub at: u32,
    /// Their number.
    #[prost(uint32, tag = "3")]
    pub count: u32,
    /// The hashes beside the way, the lowest first, 32 bytes each.
    #[prost(bytes = "vec", tag = "4")]
    pub beside: Vec<u8>,
}

impl Store {
    /// Proves that an entry is in the tree of a commit.
    ///
    /// # Errors
    /// No such entry, a damaged tree.
    pub fn prove(&self, domain: u32, commit: &Commit, key: &[u8]) -> Result<Proof> {
        let mut steps = Vec::new();
        let mut node = self.node(domain, commit.tree_id()?)?;
        loop {
            let at = place_in(&node, key)?;
            let missing = || {
                Error::NotFound(format!(
                    "nothing is at {} in that commit",
                    crate::format::Shown(key)
                ))
            };
            let item = node.items.get(at).ok_or_else(missing)?;
            let hashes: Vec<Id> = node.items.iter().map(|item| self.hash.item(item)).collect();
            let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
            steps.push(ProofStep {
                item: item.clone(),
                at: number(at),
                count: number(node.items.len()),
                beside: self.hash.path(&hashes, at).iter().flat_map(|id| id.0).collect(),
            });
            if node.level == 0 {
                if Entry::read(item)?.key != key {
                    return Err(missing());
                }
                break;
            }
            node = below(self, domain, &node, at)?;
        }
        steps.reverse();
        Ok(Proof {
            format: 1,
            hash: self.hash as u32,
            commit: commit.encode_to_vec(),
            steps,
        })
    }
}

impl Proof {
    /// Its bytes, as they are handed on.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        self.encode_to_vec()
    }

    /// Reads them back.
    ///
    /// # Errors
    /// Bytes that are no proof.
    pub fn read(bytes: &[u8]) -> Result<Proof> {
        Proof::decode(bytes).map_err(|e| damaged("a proof", e))
    }

    /// Checks it, without a store, and answers with the commit's name, the commit and the entry that is in it. That the
    /// commit is the one meant is for whoever knows its name to say.
    ///
    /// # Errors
    /// A proof that proves nothing.
    pub fn check(&self) -> Result<(Id, Commit, Entry)> {
        let wrong = |why: &str| Error::Refused(format!("this proves nothing: {why}"));
        let hash = Hash::of_number(self.hash).ok_or_else(|| wrong("its hash is unknown"))?;
        if self.format != 1 {
            return Err(wrong("it is of another version"));
        }
        let commit = Commit::read(&self.commit)?;
        let first = self.steps.first().ok_or_else(|| wrong("it has no steps"))?;
        let entry = Entry::read(&first.item)?;
        let mut name: Option<Id> = None;
        for (level, step) in self.steps.iter().enumerate() {
            if let Some(name) = name
                && child_id(&child(&step.item)?)? != name
            {
                return Err(wrong("its steps do not hang together"));
            }
            let beside: Option<Vec<Id>> = step.beside.chunks(32).map(Id::from_slice).collect();
            let beside = beside.ok_or_else(|| wrong("a hash has another length"))?;
            let (at, count) = (step.at as usize, step.count as usize);
            if beside.len() > 32 {
                return Err(wrong("a way is too long"));
            }
            let top = hash
                .follow(hash.item(&step.item), at, count, &beside)
                .ok_or_else(|| wrong("a way has another length"))?;
            let level = u32::try_from(level).map_err(|_| wrong("it is too deep"))?;
            name = Some(hash.node(level, count, top));
        }
        if name != Some(commit.tree_id()?) {
            return Err(wrong("its steps do not lead to the commit's tree"));
        }
        Ok((hash.commit(&self.commit), commit, entry))
    }
}
