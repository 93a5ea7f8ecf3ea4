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

use crate::{error::Result, progress::Progress};

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

    /// The first key below a directory that is asked for.
    fn below(&self, key: &[u8], asked: &dyn Fn(&[u8]) -> bool) -> Result<Option<Vec<u8>>>;
}

/// One that is in a store.
pub(crate) struct Tree<'s> {
    pub store: &'s Store,
    pub domain: u32,
    /// None where nothing was committed yet.
    pub top: Option<Id>,
    pub progress: &'s Progress,
}

impl Old for Tree<'_> {
    fn entry(&self, key: &[u8]) -> Result<Option<Entry>> {
        self.progress.go_on()?;
        match self.top {
            Some(top) => Ok(self.store.entry(self.domain, top, key)?),
            None => Ok(None),
        }
    }

    fn below(&self, key: &[u8], asked: &dyn Fn(&[u8]) -> bool) -> Result<Option<Vec<u8>>> {
        let mut found = None;
        let first = [key, &[0]].concat();
        if let Some(top) = self.top {
            self.store.entries(self.domain, top, &first, |entry| {
                if !entry.key.starts_with(&first) {
                    return Ok(ControlFlow::Break(()));
                }
                if asked(&entry.key) {
                    found = Some(entry.key);
                    return Ok(ControlFlow::Break(()));
                }
                Ok(self.progress.flow())
            })?;
            self.progress.go_on()?;
        }
        Ok(found)
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
    // A directory that is gone with all that was below it, which follows it.
    let mut gone: Option<&[u8]> = None;
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
        let with = gone.and_then(|above| change.key.strip_prefix(above));
        let asked = with.is_some_and(|rest| rest.first() == Some(&0));
        if was && !asked && !change.after.as_ref().is_some_and(is_directory) {
            if let Some(lost) = old.below(&change.key, &|key| new.change(key).is_none())? {
                return Ok(Some(Flaw::Lost(lost)));
            }
            gone = Some(&change.key);
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
    use std::{
        cell::Cell,
        collections::{BTreeMap, BTreeSet},
    };

    use proptest::prelude::*;

    use super::*;

    type Entries = BTreeMap<Vec<u8>, Entry>;

    impl Old for Entries {
        fn entry(&self, key: &[u8]) -> Result<Option<Entry>> {
            Ok(self.get(key).cloned())
        }

        fn below(&self, key: &[u8], asked: &dyn Fn(&[u8]) -> bool) -> Result<Option<Vec<u8>>> {
            let first = [key, &[0]].concat();
            let below = self.range(first.clone()..).map(|(key, _)| key);
            let mut below = below.take_while(|key| key.starts_with(&first));
            Ok(below.find(|key| asked(key)).cloned())
        }
    }

    /// Counts how many keys were listed.
    struct Counted(Entries, Cell<usize>);

    impl Old for Counted {
        fn entry(&self, key: &[u8]) -> Result<Option<Entry>> {
            self.0.entry(key)
        }

        fn below(&self, key: &[u8], asked: &dyn Fn(&[u8]) -> bool) -> Result<Option<Vec<u8>>> {
            self.0.below(key, &|key| {
                self.1.set(self.1.get() + 1);
                asked(key)
            })
        }
    }

    #[test]
    fn what_is_gone_with_all_its_directories_is_listed_once() {
        let top = Entries::from([(b"r".to_vec(), entry(b"r", Kind::Directory, b""))]);
        let deep = |name: &[u8]| -> Entries {
            let key = |depth| [&b"r"[..], &[&b"\0"[..], name].concat().repeat(depth)].concat();
            let keys = (1..=100).map(key);
            keys.map(|key| (key.clone(), entry(&key, Kind::Directory, b"")))
                .collect()
        };
        let old: Entries = top
            .clone()
            .into_iter()
            .chain(deep(b"a"))
            .chain(deep(b"a-"))
            .collect();
        let mut left = top.clone();
        let (lost, directory) = deep(b"a-").pop_last().unwrap();
        left.insert(lost.clone(), directory);
        for (new, flaw) in [(top, None), (left, Some(Flaw::Lost(lost)))] {
            let changes = changes(&old, &new);
            let counted = Counted(old.clone(), Cell::new(0));
            assert_eq!(super::flaw(&counted, &changes, &[]).unwrap(), flaw);
            assert_eq!(counted.1.get(), 2 * 99);
        }
    }

    #[test]
    fn a_stop_ends_the_asking() {
        let dir = tempfile::tempdir().unwrap();
        let upper = dir.path().join("upper");
        std::fs::create_dir_all(upper.join("d/below")).unwrap();
        let store = crate::tests::store(dir.path());
        let recorded = crate::tests::capture(&store, &upper, None, None).unwrap();
        let progress = Progress::default();
        let old = Tree {
            store: &store,
            domain: store.state("ctr/default/web").unwrap().unwrap().domain,
            top: recorded.commit.tree_id().ok(),
            progress: &progress,
        };
        let below = || old.below(b"rootfs", &|key| key == b"rootfs\0d\0below");
        assert_eq!(below().unwrap(), Some(b"rootfs\0d\0below".to_vec()));
        progress.stop();
        assert!(below().is_err() && old.entry(b"rootfs").is_err());
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
