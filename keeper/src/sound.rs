//! What is committed is a tree.
//!
//! Entries are read one by one, and a container that does not stand still moves them meanwhile: a file may have been read in a
//! directory that nobody came to read. A commit of such entries could not be restored, so none is made: it is looked again.
//! This is asked of every commit, whatever its consistency, and of what has changed alone: the rest is of a commit that was
//! asked before.

use std::{collections::HashSet, ops::ControlFlow};

use store::{
    Id, Store,
    format::{Entry, Kind, Shown},
};

use crate::error::Result;

/// An entry that differs from the commit before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Change {
    pub key: Vec<u8>,
    pub before: Option<Entry>,
    pub after: Option<Entry>,
}

/// The tree of the commit before.
pub(crate) trait Old {
    /// One of its entries.
    fn entry(&self, key: &[u8]) -> Result<Option<Entry>>;

    /// The keys of all below a directory.
    fn below(&self, key: &[u8]) -> Result<Vec<Vec<u8>>>;
}

/// One that is in a store.
pub(crate) struct Tree<'s> {
    pub store: &'s Store,
    pub domain: u32,
    /// None where nothing was committed yet.
    pub top: Option<Id>,
}

impl Old for Tree<'_> {
    fn entry(&self, key: &[u8]) -> Result<Option<Entry>> {
        match self.top {
            Some(top) => Ok(self.store.entry(self.domain, top, key)?),
            None => Ok(None),
        }
    }

    fn below(&self, key: &[u8]) -> Result<Vec<Vec<u8>>> {
        let mut below = Vec::new();
        let first = [key, &[0]].concat();
        if let Some(top) = self.top {
            self.store.entries(self.domain, top, &first, |entry| {
                if !entry.key.starts_with(&first) {
                    return Ok(ControlFlow::Break(()));
                }
                below.push(entry.key);
                Ok(ControlFlow::Continue(()))
            })?;
        }
        Ok(below)
    }
}

/// Why entries are no tree.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    /// It is in no directory.
    #[error("{} is in no directory", Shown(.0))]
    Lost(Vec<u8>),
    /// It is another name of something that is not there.
    #[error("{} is another name of {}, which is not there", Shown(.0), Shown(.1))]
    Nameless(Vec<u8>, Vec<u8>),
}

fn is_directory(entry: &Entry) -> bool {
    entry.what() == Kind::Directory && entry.link.is_empty()
}

/// What becomes of a tree.
struct New<'a> {
    old: &'a dyn Old,
    /// In the order of their keys.
    changes: &'a [Change],
}

impl New<'_> {
    fn change(&self, key: &[u8]) -> Option<&Change> {
        let at = self
            .changes
            .binary_search_by(|change| change.key.as_slice().cmp(key))
            .ok()?;
        self.changes.get(at)
    }

    /// Whether what is at a key is so.
    fn is(&self, key: &[u8], so: impl Fn(&Entry) -> bool) -> Result<bool> {
        Ok(match self.change(key) {
            Some(change) => change.after.as_ref().is_some_and(so),
            None => self.old.entry(key)?.as_ref().is_some_and(so),
        })
    }

    /// Another name stands beside the first, which is of the same kind and says all else.
    fn named(&self, entry: &Entry) -> Result<Option<Flaw>> {
        let first = |first: &Entry| first.link.is_empty() && first.kind == entry.kind && !is_directory(first);
        let sound = entry.link.is_empty() || self.is(&entry.link, first)?;
        Ok((!sound).then(|| Flaw::Nameless(entry.key.clone(), entry.link.clone())))
    }
}

/// What is wrong with the tree that changes, in the order of their keys, make of another; none where it is one. `names` are
/// keys that have not changed and may be other names of what has.
pub(crate) fn flaw(old: &dyn Old, changes: &[Change], names: &[Vec<u8>]) -> Result<Option<Flaw>> {
    let new = New { old, changes };
    let mut directories: HashSet<&[u8]> = HashSet::new();
    for change in changes {
        if let Some(after) = &change.after {
            let above = change.key.iter().rposition(|b| *b == 0);
            let inside = match above.and_then(|at| change.key.get(..at)) {
                Some(above) if directories.contains(above) => true,
                Some(above) if new.is(above, is_directory)? => directories.insert(above),
                Some(_) => false,
                // The top of all.
                None => is_directory(after),
            };
            if !inside {
                return Ok(Some(Flaw::Lost(change.key.clone())));
            }
            if let Some(flaw) = new.named(after)? {
                return Ok(Some(flaw));
            }
        }
        let was = change.before.as_ref().is_some_and(is_directory);
        if was && !change.after.as_ref().is_some_and(is_directory) {
            let left = old.below(&change.key)?;
            if let Some(lost) = left.into_iter().find(|key| new.change(key).is_none()) {
                return Ok(Some(Flaw::Lost(lost)));
            }
        }
    }
    for name in names.iter().filter(|name| new.change(name).is_none()) {
        if let Some(entry) = old.entry(name)?
            && let Some(flaw) = new.named(&entry)?
        {
            return Ok(Some(flaw));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    type Entries = BTreeMap<Vec<u8>, Entry>;

    impl Old for Entries {
        fn entry(&self, key: &[u8]) -> Result<Option<Entry>> {
            Ok(self.get(key).cloned())
        }

        fn below(&self, key: &[u8]) -> Result<Vec<Vec<u8>>> {
            let first = [key, &[0]].concat();
            let below = self.range(first.clone()..).map(|(key, _)| key);
            Ok(below.take_while(|key| key.starts_with(&first)).cloned().collect())
        }
    }

    fn entry(key: &[u8], kind: Kind, link: &[u8]) -> Entry {
        Entry {
            key: key.to_vec(),
            kind: kind as i32,
            link: link.to_vec(),
            ..Entry::default()
        }
    }

    /// All that a tree must be, asked of each entry.
    fn is_tree(tree: &Entries) -> bool {
        tree.values().all(|entry| {
            let above = entry.key.iter().rposition(|b| *b == 0).map(|at| &entry.key[..at]);
            let inside = match above {
                Some(above) => tree.get(above).is_some_and(is_directory),
                None => is_directory(entry),
            };
            let first =
                |first: &Entry| first.link.is_empty() && first.kind == entry.kind && !is_directory(first);
            inside && (entry.link.is_empty() || tree.get(&entry.link).is_some_and(first))
        })
    }

    fn changes(old: &Entries, new: &Entries) -> Vec<Change> {
        let keys: BTreeSet<&Vec<u8>> = old.keys().chain(new.keys()).collect();
        let differ = keys.into_iter().filter(|key| old.get(*key) != new.get(*key));
        let change = |key: &Vec<u8>| Change {
            key: key.clone(),
            before: old.get(key).cloned(),
            after: new.get(key).cloned(),
        };
        differ.map(change).collect()
    }

    /// The names that are left of files of which a name has changed.
    fn names(old: &Entries) -> Vec<Vec<u8>> {
        let names = old.values().filter(|entry| !entry.link.is_empty());
        names.map(|entry| entry.key.clone()).collect()
    }

    fn key(number: u8) -> Vec<u8> {
        const KEYS: [&[u8]; 8] = [
            b"r",
            b"r\0a",
            b"r\0a\0b",
            b"r\0a\0b\0c",
            b"r\0a\0d",
            b"r\0a-",
            b"r\0e",
            b"r\0e\0f",
        ];
        KEYS[usize::from(number % 8)].to_vec()
    }

    fn tree() -> impl Strategy<Value = Entries> {
        let one = (any::<u8>(), 0..6u8, any::<u8>());
        proptest::collection::vec(one, 0..12).prop_map(|all| {
            let mut tree = Entries::from([(key(0), entry(&key(0), Kind::Directory, b""))]);
            for (at, kind, link) in all {
                let made = match kind {
                    0..3 => entry(&key(at), Kind::Directory, b""),
                    3 => entry(&key(at), Kind::Fifo, b""),
                    4 => entry(&key(at), Kind::File, b""),
                    _ => entry(&key(at), Kind::File, &key(link)),
                };
                tree.insert(key(at), made);
            }
            tree
        })
    }

    /// A tree of what is none, so that there is something to change.
    fn grown(mut tree: Entries) -> Entries {
        while !is_tree(&tree) {
            let all: Vec<Vec<u8>> = tree.keys().cloned().collect();
            for key in all {
                let mut without = tree.clone();
                let is = without.remove(&key).unwrap();
                let above = key.iter().rposition(|b| *b == 0).map(|at| &key[..at]);
                let inside = above.is_none_or(|above| tree.get(above).is_some_and(is_directory));
                let first = |first: &Entry| first.link.is_empty() && first.kind == is.kind;
                let named = is.link.is_empty() || tree.get(&is.link).is_some_and(first);
                if above.is_none() {
                    tree.insert(key.clone(), entry(&key, Kind::Directory, b""));
                } else if !inside || !named {
                    tree = without;
                }
            }
        }
        tree
    }

    proptest! {
        #[test]
        fn whatever_is_no_tree_is_found(old in tree(), new in tree()) {
            let old = grown(old);
            let found = flaw(&old, &changes(&old, &new), &names(&old)).unwrap();
            prop_assert_eq!(found.is_none(), is_tree(&new), "{:?}", found);
            let new = grown(new);
            prop_assert_eq!(flaw(&old, &changes(&old, &new), &names(&old)).unwrap(), None);
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let tree = |entries: &[Entry]| -> Entries {
            entries
                .iter()
                .map(|entry| (entry.key.clone(), entry.clone()))
                .collect()
        };
        let top = entry(b"r", Kind::Directory, b"");
        let dir = entry(b"r\0d", Kind::Directory, b"");
        let file = entry(b"r\0d\0f", Kind::File, b"");
        let name = entry(b"r\0n", Kind::File, b"r\0d\0f");
        let whole = tree(&[top.clone(), dir.clone(), file.clone(), name.clone()]);
        let found = |old: &Entries, new: &Entries| flaw(old, &changes(old, new), &names(old)).unwrap();
        assert_eq!(found(&Entries::new(), &whole), None);
        let lost = tree(&[top.clone(), file.clone()]);
        let told = found(&Entries::new(), &lost).unwrap();
        assert_eq!(told.to_string(), "r:/d/f is in no directory");
        assert_eq!(
            found(&whole, &tree(&[top.clone(), file, name.clone()])),
            Some(told)
        );
        let nameless = found(&whole, &tree(&[top, dir, name])).unwrap();
        assert_eq!(
            nameless.to_string(),
            "r:/n is another name of r:/d/f, which is not there"
        );
    }
}
