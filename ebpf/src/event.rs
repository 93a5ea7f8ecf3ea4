//! What the programs say, byte by byte in the machine's own order: `struct range` and `struct named` of `written.bpf.c`.
//!
//! | range | bytes | named | bytes |
//! |---|---|---|---|
//! | inode | 8 | inode | 8 |
//! | begins at | 8 | its directory's inode | 8 |
//! | ends before | 8 | generation | 4 |
//! | | | the directory's generation | 4 |
//! | | | name there, and a zero | 2 to 256 |

/// The number of an inode, and which of those that had it one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Inode {
    /// Its number.
    pub number: u64,
    /// Its generation.
    pub generation: u32,
}

/// What a program says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// Bytes of a file that is followed may be written to.
    Range {
        /// The file's inode.
        inode: u64,
        /// The first byte.
        begin: u64,
        /// Behind the last byte.
        end: u64,
    },
    /// Attributes were set.
    Named {
        /// Whose.
        inode: Inode,
        /// The directory that it is in.
        dir: Inode,
        /// Its name there; one of its names if it has several.
        name: Vec<u8>,
    },
}

const RANGE: usize = 24;

fn part<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

impl Told {
    /// Reads it; none where it is not what it should be.
    #[must_use]
    pub fn read(bytes: &[u8]) -> Option<Told> {
        let long = |at| part(bytes, at).map(u64::from_ne_bytes);
        if bytes.len() == RANGE {
            return Some(Told::Range {
                inode: long(0)?,
                begin: long(8)?,
                end: long(16)?,
            });
        }
        let generation = |at| part(bytes, at).map(u32::from_ne_bytes);
        let (zero, name) = bytes.get(24..)?.split_last()?;
        if *zero != 0 || name.is_empty() || name.iter().any(|b| matches!(b, 0 | b'/')) {
            return None;
        }
        Some(Told::Named {
            inode: Inode {
                number: long(0)?,
                generation: generation(16)?,
            },
            dir: Inode {
                number: long(8)?,
                generation: generation(20)?,
            },
            name: name.to_vec(),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_said_is_understood() {
        let words: Vec<u8> = [5_u64, 4096, 8192].iter().flat_map(|n| n.to_ne_bytes()).collect();
        let range = Told::Range {
            inode: 5,
            begin: 4096,
            end: 8192,
        };
        assert_eq!(Told::read(&words), Some(range));
        let mut named: Vec<u8> = [5_u64, 2].iter().flat_map(|n| n.to_ne_bytes()).collect();
        named.extend([7_u32, 8].iter().flat_map(|n| n.to_ne_bytes()));
        named.extend(b"a name\0");
        let inode = |number, generation| Inode { number, generation };
        let told = Told::Named {
            inode: inode(5, 7),
            dir: inode(2, 8),
            name: b"a name".to_vec(),
        };
        assert_eq!(Told::read(&named), Some(told));
    }

    proptest! {
        #[test]
        fn whatever_is_said_does_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Some(Told::Named { name, .. }) = Told::read(&bytes) {
                prop_assert!(!name.is_empty() && !name.contains(&0) && !name.contains(&b'/'));
            }
        }
    }
}
