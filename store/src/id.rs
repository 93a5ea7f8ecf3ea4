//! Names of objects: what they are is what they are called.

use std::{fmt, str::FromStr};

use sha2::{Digest, Sha256};

/// The name of an object: 32 bytes of a hash.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id(pub [u8; 32]);

impl Id {
    /// The id in a field of a message; none where it has another length.
    #[must_use]
    pub fn from_slice(bytes: &[u8]) -> Option<Id> {
        Some(Id(bytes.try_into().ok()?))
    }

    /// Its first digits, as people are shown them.
    #[must_use]
    pub fn short(&self) -> String {
        self.to_string().chars().take(12).collect()
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Id {
    type Err = String;

    fn from_str(text: &str) -> Result<Id, String> {
        let wrong = || format!("{text:?} is not 64 hexadecimal digits");
        let mut id = [0; 32];
        if text.len() != 64 || !text.is_ascii() {
            return Err(wrong());
        }
        for (byte, digits) in id.iter_mut().zip(text.as_bytes().chunks(2)) {
            let digits = std::str::from_utf8(digits).map_err(|_| wrong())?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_| wrong())?;
        }
        Ok(Id(id))
    }
}

/// The hash of a store, chosen when it is made. The numbers are on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum Hash {
    /// BLAKE3.
    #[default]
    Blake3 = 1,
    /// SHA-256, for sites that must.
    Sha256 = 2,
}

/// What stands before hashed bytes, so that nothing that a container can write is taken for a part of a tree
/// (as RFC 6962 does it). Chunks have no prefix: a chunk is called what `b3sum` calls it.
#[derive(Debug, Clone, Copy)]
#[repr(u8)]
enum Prefix {
    Item = 0,
    Pair = 1,
    Node = 2,
    Commit = 3,
    Key = 4,
}

impl Hash {
    /// The hash of this number.
    #[must_use]
    pub fn of_number(number: u32) -> Option<Hash> {
        match number {
            1 => Some(Hash::Blake3),
            2 => Some(Hash::Sha256),
            _ => None,
        }
    }

    fn of(self, parts: &[&[u8]]) -> Id {
        match self {
            Hash::Blake3 => {
                let mut hasher = blake3::Hasher::new();
                for part in parts {
                    hasher.update(part);
                }
                Id(*hasher.finalize().as_bytes())
            }
            Hash::Sha256 => {
                let mut hasher = Sha256::new();
                for part in parts {
                    hasher.update(part);
                }
                Id(hasher.finalize().into())
            }
        }
    }

    /// The name of a chunk.
    #[must_use]
    pub fn chunk(self, bytes: &[u8]) -> Id {
        self.of(&[bytes])
    }

    /// The name of a commit.
    #[must_use]
    pub fn commit(self, bytes: &[u8]) -> Id {
        self.of(&[&[Prefix::Commit as u8], bytes])
    }

    /// Where a node of a tree ends: see [`crate::tree`].
    pub(crate) fn boundary(self, level: u32, key: &[u8]) -> u32 {
        let Id([a, b, c, d, ..]) = self.of(&[&[Prefix::Key as u8], &level.to_le_bytes(), key]);
        u32::from_le_bytes([a, b, c, d])
    }

    /// The hash of one item of a node.
    #[must_use]
    pub fn item(self, bytes: &[u8]) -> Id {
        self.of(&[&[Prefix::Item as u8], bytes])
    }

    /// The hash of two hashes, side by side.
    #[must_use]
    pub fn pair(self, left: Id, right: Id) -> Id {
        self.of(&[&[Prefix::Pair as u8], &left.0, &right.0])
    }

    /// The name of a node whose items come together in `top`.
    #[must_use]
    pub fn node(self, level: u32, count: usize, top: Id) -> Id {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        self.of(&[
            &[Prefix::Node as u8],
            &level.to_le_bytes(),
            &count.to_le_bytes(),
            &top.0,
        ])
    }

    /// The name of a node: the top of its items' hashes, its level and their number.
    #[must_use]
    pub fn name_of(self, node: &crate::format::Node) -> Id {
        let items: Vec<Id> = node.items.iter().map(|item| self.item(item)).collect();
        self.node(node.level, items.len(), self.top(&items))
    }

    /// What the items of a node come together in: a binary tree over their hashes, the left side of each pair full.
    /// Of no items, the hash of nothing.
    #[must_use]
    pub fn top(self, items: &[Id]) -> Id {
        match items {
            [] => self.of(&[]),
            [one] => *one,
            more => {
                let (left, right) = more.split_at(half(more.len()));
                self.pair(self.top(left), self.top(right))
            }
        }
    }

    /// The hashes that lead from item `at` to the top, the lowest first.
    #[must_use]
    pub fn path(self, items: &[Id], at: usize) -> Vec<Id> {
        if items.len() < 2 {
            return Vec::new();
        }
        let (left, right) = items.split_at(half(items.len()));
        let (mut path, beside) = if at < left.len() {
            (self.path(left, at), self.top(right))
        } else {
            (self.path(right, at - left.len()), self.top(left))
        };
        path.push(beside);
        path
    }

    /// Where a path leads that begins at `item`, the `at`th of `count`; none where it has another length.
    #[must_use]
    pub fn follow(self, item: Id, at: usize, count: usize, path: &[Id]) -> Option<Id> {
        if at >= count {
            return None;
        }
        let Some((beside, below)) = path.split_last() else {
            return (count == 1).then_some(item);
        };
        if count < 2 {
            return None;
        }
        let left = half(count);
        if at < left {
            Some(self.pair(self.follow(item, at, left, below)?, *beside))
        } else {
            Some(self.pair(*beside, self.follow(item, at - left, count - left, below)?))
        }
    }
}

/// The largest power of two below `count`, which is at least 2.
fn half(count: usize) -> usize {
    count.next_power_of_two() / 2
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn paths_lead_to_the_top(count in 1usize..300, at in 0usize..300, sha: bool, other in 0usize..300) {
            let hash = if sha { Hash::Sha256 } else { Hash::Blake3 };
            let items: Vec<Id> = (0..count).map(|n| hash.item(&n.to_le_bytes())).collect();
            let at = at % count;
            let path = hash.path(&items, at);
            prop_assert_eq!(hash.follow(items[at], at, count, &path), Some(hash.top(&items)));
            let other = other % count;
            if other != at {
                prop_assert_ne!(hash.follow(items[other], at, count, &path), Some(hash.top(&items)));
                prop_assert_ne!(hash.follow(items[at], other, count, &path), Some(hash.top(&items)));
            }
        }

        #[test]
        fn an_id_is_read_as_it_is_written(bytes: [u8; 32], text: String) {
            prop_assert_eq!(Id(bytes).to_string().parse(), Ok(Id(bytes)));
            prop_assert!(text.len() == 64 || text.parse::<Id>().is_err());
        }
    }
}
