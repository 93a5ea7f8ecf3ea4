//! What is written: the messages of `docs/format.md`, in protobuf's encoding.
//!
//! Messages that are hashed are canonical: fields in the order of their numbers, none with its default value, no
//! maps, repeated fields in an order that is said here. prost writes them so; what is read is compared by the hash of
//! the bytes as they are, never of a second encoding.

use std::fmt;

use prost::Message;

use crate::{
    error::{Result, damaged},
    id::Id,
};

/// What an entry of a tree is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Kind {
    /// A regular file.
    File = 0,
    /// A directory.
    Directory = 1,
    /// A symbolic link.
    Symlink = 2,
    /// A named pipe.
    Fifo = 3,
    /// A character device.
    Character = 4,
    /// A block device.
    Block = 5,
    /// An overlay's mark that something of the image is gone.
    Whiteout = 6,
}

/// An extended attribute.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Xattr {
    /// Its name, the class included: `user.note`.
    #[prost(bytes = "vec", tag = "1")]
    pub name: Vec<u8>,
    /// Its value.
    #[prost(bytes = "vec", tag = "2")]
    pub value: Vec<u8>,
}

/// One entry of a tree.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Entry {
    /// Where it is: the name of its root's directory and the names on the way, joined by a zero byte, which no name
    /// holds and which sorts below all others: a directory comes right before what is in it.
    #[prost(bytes = "vec", tag = "1")]
    pub key: Vec<u8>,
    /// What it is.
    #[prost(enumeration = "Kind", tag = "2")]
    pub kind: i32,
    /// Permissions, set-id and sticky bits.
    #[prost(uint32, tag = "3")]
    pub mode: u32,
    /// Its owner.
    #[prost(uint32, tag = "4")]
    pub uid: u32,
    /// Its group.
    #[prost(uint32, tag = "5")]
    pub gid: u32,
    /// When it was last modified: seconds since 1970.
    #[prost(sint64, tag = "6")]
    pub mtime: i64,
    /// And nanoseconds.
    #[prost(uint32, tag = "7")]
    pub mtime_nanos: u32,
    /// The length of a file, in bytes.
    #[prost(uint64, tag = "8")]
    pub size: u64,
    /// Extended attributes, by name.
    #[prost(message, repeated, tag = "9")]
    pub xattrs: Vec<Xattr>,
    /// What a link points to, or a short file's content ([`INLINE`]).
    #[prost(bytes = "vec", tag = "10")]
    pub inline: Vec<u8>,
    /// A longer file's content: the name of its only chunk, or of the top of its list.
    #[prost(bytes = "vec", tag = "11")]
    pub content: Vec<u8>,
    /// How many levels of lists there are above the chunks: 0 where `content` names a chunk.
    #[prost(uint32, tag = "12")]
    pub height: u32,
    /// A device's number, as `makedev` has it.
    #[prost(uint64, tag = "13")]
    pub device: u64,
    /// The key of the first of several names of this file; content, owner and all else stand there.
    #[prost(bytes = "vec", tag = "14")]
    pub link: Vec<u8>,
    /// A directory that hides the image's of the same name.
    #[prost(bool, tag = "15")]
    pub opaque: bool,
}

/// The longest content that stands in its entry, in bytes.
pub const INLINE: usize = 128;
/// The deepest tree: of 16 items in each node it holds more than a disk.
pub const HIGHEST: u32 = 16;

impl Entry {
    /// Reads an entry.
    ///
    /// # Errors
    /// Bytes that are none.
    pub fn read(bytes: &[u8]) -> Result<Entry> {
        let entry = Entry::decode(bytes).map_err(|e| damaged("an entry of a tree", e))?;
        if Kind::try_from(entry.kind).is_err() {
            return Err(damaged(
                format!("the entry of {}", Shown(&entry.key)),
                "its kind is unknown",
            ));
        }
        Ok(entry)
    }

    /// What it is.
    #[must_use]
    pub fn what(&self) -> Kind {
        Kind::try_from(self.kind).unwrap_or(Kind::File)
    }

    /// Whether content stands elsewhere.
    #[must_use]
    pub fn content_id(&self) -> Option<Id> {
        Id::from_slice(&self.content)
    }

    /// The name of its root's directory, and the path below it.
    #[must_use]
    pub fn place(&self) -> (&[u8], Vec<u8>) {
        place(&self.key)
    }
}

/// The root and the path of a key.
#[must_use]
pub fn place(key: &[u8]) -> (&[u8], Vec<u8>) {
    let mut parts = key.split(|byte| *byte == 0);
    let root = parts.next().unwrap_or_default();
    (root, parts.collect::<Vec<_>>().join(&b'/'))
}

/// The key of a path below a root.
#[must_use]
pub fn key(root: &[u8], path: &[u8]) -> Vec<u8> {
    let mut key = root.to_vec();
    for part in path.split(|byte| *byte == b'/').filter(|part| !part.is_empty()) {
        key.push(0);
        key.extend_from_slice(part);
    }
    key
}

/// A key, for people.
pub struct Shown<'a>(pub &'a [u8]);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (root, path) = place(self.0);
        write!(f, "{}:/{}", root.escape_ascii(), path.escape_ascii())
    }
}

/// An item of a node above the lowest level.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Child {
    /// The first key below it. Lists have none.
    #[prost(bytes = "vec", tag = "1")]
    pub key: Vec<u8>,
    /// The node's name.
    #[prost(bytes = "vec", tag = "2")]
    pub id: Vec<u8>,
    /// How many entries are below it, or bytes.
    #[prost(uint64, tag = "3")]
    pub count: u64,
}

/// An item of a content's lowest lists: a chunk, or a hole.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Piece {
    /// The chunk's name; of a hole nothing.
    #[prost(bytes = "vec", tag = "1")]
    pub chunk: Vec<u8>,
    /// Its length, in bytes.
    #[prost(uint64, tag = "2")]
    pub length: u64,
}

/// A node of a tree or of a list.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Node {
    /// 0 where its items are entries or pieces, else how far above.
    #[prost(uint32, tag = "1")]
    pub level: u32,
    /// Entries, pieces or children, in order.
    #[prost(bytes = "vec", repeated, tag = "2")]
    pub items: Vec<Vec<u8>>,
}

/// Why a commit was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum Reason {
    /// Time had passed and something had changed.
    Interval = 0,
    /// The container had ended.
    Exit = 1,
    /// Somebody asked for it.
    Manual = 2,
    /// What was there before a restore.
    BeforeRestore = 3,
    /// A restore.
    Restore = 4,
    /// The first of a fork.
    Fork = 5,
    /// Brought from outside.
    Import = 6,
    /// What was left of a damaged one.
    Repair = 7,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Reason::Interval => "interval",
            Reason::Exit => "exit",
            Reason::Manual => "manual",
            Reason::BeforeRestore => "before-restore",
            Reason::Restore => "restore",
            Reason::Fork => "fork",
            Reason::Import => "import",
            Reason::Repair => "repair",
        })
    }
}

/// How what a commit holds was come by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum Consistency {
    /// Nothing ran: as the last writer left it.
    Quiet = 0,
    /// The container stood still: as a power cut would have left it.
    Crash = 1,
    /// Files were read while they might have changed.
    Fuzzy = 2,
    /// The container stood still, and what ran in it had made itself ready.
    Application = 3,
}

impl fmt::Display for Consistency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Consistency::Quiet => "quiet",
            Consistency::Crash => "crash",
            Consistency::Fuzzy => "fuzzy",
            Consistency::Application => "application",
        })
    }
}

/// Who said where to look for what had changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum Watcher {
    /// Nobody was asked: nothing was looked at for it, or a version made it that does not say.
    None = 0,
    /// All was looked at.
    Scan = 1,
    /// The kernel's fanotify.
    Fanotify = 2,
    /// The same, with eBPF programs that tell what it does not.
    Ebpf = 3,
}

impl fmt::Display for Watcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Watcher::None => "",
            Watcher::Scan => "scan",
            Watcher::Fanotify => "fanotify",
            Watcher::Ebpf => "ebpf",
        })
    }
}

/// One recorded version of a live tree.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Commit {
    /// The version of this message: 1.
    #[prost(uint32, tag = "1")]
    pub format: u32,
    /// The state's name when it was made.
    #[prost(string, tag = "2")]
    pub state: String,
    /// Its place in the state's history: 1, 2, 3...
    #[prost(uint64, tag = "3")]
    pub sequence: u64,
    /// The commit before it in the state's history: the chain that `audit` walks. The first has none.
    #[prost(bytes = "vec", tag = "4")]
    pub previous: Vec<u8>,
    /// Where its content came from besides: the commit that was restored or forked.
    #[prost(bytes = "vec", tag = "5")]
    pub origin: Vec<u8>,
    /// The top of its tree.
    #[prost(bytes = "vec", tag = "6")]
    pub tree: Vec<u8>,
    /// When, by the wall's clock: nanoseconds since 1970.
    #[prost(sint64, tag = "7")]
    pub time: i64,
    /// When, by a clock that never jumps: nanoseconds since the boot.
    #[prost(uint64, tag = "8")]
    pub monotonic: u64,
    /// The node's name.
    #[prost(string, tag = "9")]
    pub node: String,
    /// The boot.
    #[prost(string, tag = "10")]
    pub boot: String,
    /// The image's digest, where it is known.
    #[prost(string, tag = "11")]
    pub image: String,
    /// How it was come by.
    #[prost(enumeration = "Consistency", tag = "12")]
    pub consistency: i32,
    /// Why.
    #[prost(enumeration = "Reason", tag = "13")]
    pub reason: i32,
    /// What a person said of it.
    #[prost(string, tag = "14")]
    pub message: String,
    /// Entries in the tree.
    #[prost(uint64, tag = "15")]
    pub entries: u64,
    /// Entries that differ from the commit before.
    #[prost(uint64, tag = "16")]
    pub changed: u64,
    /// Bytes that were read for it.
    #[prost(uint64, tag = "17")]
    pub read: u64,
    /// Bytes that it added to the store.
    #[prost(uint64, tag = "18")]
    pub written: u64,
    /// How long the container stood still: nanoseconds.
    #[prost(uint64, tag = "19")]
    pub pause: u64,
    /// Who said where to look.
    #[prost(enumeration = "Watcher", tag = "20")]
    pub watcher: i32,
    /// Why it is not of a better consistency.
    #[prost(string, tag = "21")]
    pub doubt: String,
}

/// The version of commits that is written.
pub const COMMIT: u32 = 1;

impl Commit {
    /// Reads a commit.
    ///
    /// # Errors
    /// Bytes that are none, or of a newer version.
    pub fn read(bytes: &[u8]) -> Result<Commit> {
        let commit = Commit::decode(bytes).map_err(|e| damaged("a commit", e))?;
        if commit.format != COMMIT {
            return Err(damaged(
                format!("commit {} of {}", commit.sequence, commit.state),
                format!("its format is {}, and this version reads {COMMIT}", commit.format),
            ));
        }
        Ok(commit)
    }

    /// The top of its tree.
    ///
    /// # Errors
    /// A commit that names none.
    pub fn tree_id(&self) -> Result<Id> {
        Id::from_slice(&self.tree).ok_or_else(|| {
            damaged(
                format!("commit {} of {}", self.sequence, self.state),
                "it names no tree",
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_bytes_are_these_for_ever() {
        let entry = Entry {
            key: key(b"rootfs", b"etc/hosts"),
            kind: Kind::File as i32,
            mode: 0o644,
            uid: 1,
            size: 3,
            inline: b"abc".to_vec(),
            xattrs: vec![Xattr {
                name: b"user.a".to_vec(),
                value: b"b".to_vec(),
            }],
            ..Entry::default()
        };
        let hex: String = entry.encode_to_vec().iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(
            hex,
            "0a10726f6f7466730065746300686f73747318a403200140034a0b0a06757365722e61120162\
             5203616263"
        );
        assert_eq!(Shown(&entry.key).to_string(), "rootfs:/etc/hosts");
    }

    #[test]
    fn a_directory_comes_before_its_content_and_after_nothing_of_it() {
        let keys = ["a", "a/b", "a/b/c", "a-b", "a.b", "b"].map(|path| key(b"rootfs", path.as_bytes()));
        assert!(keys.is_sorted());
    }

    proptest! {
        #[test]
        fn crafted_bytes_never_panic(bytes: Vec<u8>) {
            let _ = Entry::read(&bytes);
            let _ = Commit::read(&bytes);
            let _ = Node::decode(bytes.as_slice());
        }

        #[test]
        fn keys_are_places(path in "[a-z]{1,4}(/[a-z.-]{1,4}){0,4}") {
            let key = key(b"volume@data", path.as_bytes());
            prop_assert_eq!(place(&key), (&b"volume@data"[..], path.into_bytes()));
        }
    }
}
