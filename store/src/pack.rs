//! Packs: append-only files of records. See `docs/format.md`.
//!
//! A pack begins with [`Header`]; then record follows record, each a [`Record`] and its bytes. Nothing stands at the
//! end: what a pack holds is what the catalog names, and a walk over the records finds it without the catalog.

use std::{
    cell::OnceCell,
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use delta::Encoding;

use crate::{
    direct::{self, Buffer},
    error::{Context, Result, damaged},
    format::Node,
    id::{Hash, Id},
    sys,
};

/// Where a pack is closed and the next begun, in bytes: what gc rewrites at a time.
pub const FULL: u64 = 32 << 20;
/// The longest bytes of one record: a node of long names, a chunk that did not get shorter.
pub const LONGEST: u32 = 16 << 20;

const MAGIC: &[u8; 8] = b"DKPACK\x01\n";
/// The length of a pack's header, in bytes.
pub const HEADER: usize = 40;
/// The length of a record's header, in bytes.
pub const RECORD: usize = 44;
/// The length of a base's name, in bytes: the bytes of a record that stands on one begin with it.
pub const BASE: usize = 32;

/// What a record holds. The numbers are on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Object {
    /// A part of a file's content.
    Chunk = 0,
    /// A node of a tree, or of a content's list.
    Node = 1,
    /// A commit.
    Commit = 2,
}

impl Object {
    /// The object of this number.
    #[must_use]
    pub fn of_number(number: u8) -> Option<Object> {
        match number {
            0 => Some(Object::Chunk),
            1 => Some(Object::Node),
            2 => Some(Object::Commit),
            _ => None,
        }
    }
}

/// What kinds of objects a pack holds: those that restore one file and those that list them are read apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Class {
    /// Chunks.
    Data = 0,
    /// Nodes and commits.
    Meta = 1,
}

impl From<Object> for Class {
    fn from(object: Object) -> Class {
        match object {
            Object::Chunk => Class::Data,
            Object::Node | Object::Commit => Class::Meta,
        }
    }
}

/// The head of a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The store that it belongs to.
    pub store: [u8; 16],
    /// Its number in the store, never used again.
    pub pack: u32,
    /// The dedup domain whose objects it holds.
    pub domain: u32,
    /// What it holds.
    pub class: Class,
}

impl Header {
    /// Its bytes: 8 of magic with the version, 16 of the store, 4 of the pack, 4 of the domain, 1 of the class,
    /// 7 of nothing. Numbers are little-endian.
    #[must_use]
    pub fn write(&self) -> [u8; HEADER] {
        let mut bytes = Vec::with_capacity(HEADER);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&self.store);
        bytes.extend_from_slice(&self.pack.to_le_bytes());
        bytes.extend_from_slice(&self.domain.to_le_bytes());
        bytes.push(self.class as u8);
        let mut header = [0; HEADER];
        for (to, from) in header.iter_mut().zip(bytes) {
            *to = from;
        }
        header
    }

    /// Reads it back; none where these are no such bytes.
    #[must_use]
    pub fn read(bytes: &[u8; HEADER]) -> Option<Header> {
        let (magic, rest) = bytes.split_first_chunk::<8>()?;
        let (store, rest) = rest.split_first_chunk::<16>()?;
        let (pack, rest) = rest.split_first_chunk::<4>()?;
        let (domain, rest) = rest.split_first_chunk::<4>()?;
        let (class, rest) = rest.split_first()?;
        let class = match class {
            0 => Class::Data,
            1 => Class::Meta,
            _ => return None,
        };
        let nothing = rest.iter().all(|b| *b == 0);
        (magic == MAGIC && nothing).then_some(Header {
            store: *store,
            pack: u32::from_le_bytes(*pack),
            domain: u32::from_le_bytes(*domain),
            class,
        })
    }
}

/// The head of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// What it holds.
    pub object: Object,
    /// How its bytes are encoded.
    pub encoding: Encoding,
    /// How many objects have to be read before it: its base, that one's, and so on. 0 where it has none.
    pub depth: u8,
    /// The length of what it holds, in bytes.
    pub length: u32,
    /// The length of its bytes.
    pub stored: u32,
    /// The name of what it holds.
    pub id: Id,
}

impl Record {
    /// Its bytes: 1 of the object, 1 of the encoding, 1 of the depth, 1 of nothing, 4 of the length, 4 of the stored
    /// length, 32 of the name. Numbers are little-endian.
    #[must_use]
    pub fn write(&self) -> [u8; RECORD] {
        let mut bytes = vec![self.object as u8, self.encoding as u8, self.depth, 0];
        bytes.extend_from_slice(&self.length.to_le_bytes());
        bytes.extend_from_slice(&self.stored.to_le_bytes());
        bytes.extend_from_slice(&self.id.0);
        let mut record = [0; RECORD];
        for (to, from) in record.iter_mut().zip(bytes) {
            *to = from;
        }
        record
    }

    /// Reads it back; none where these are no such bytes.
    #[must_use]
    pub fn read(bytes: &[u8; RECORD]) -> Option<Record> {
        let [object, encoding, depth, 0, rest @ ..] = bytes else {
            return None;
        };
        let (length, rest) = rest.split_first_chunk::<4>()?;
        let (stored, rest) = rest.split_first_chunk::<4>()?;
        let record = Record {
            object: Object::of_number(*object)?,
            encoding: Encoding::try_from(*encoding).ok()?,
            depth: *depth,
            length: u32::from_le_bytes(*length),
            stored: u32::from_le_bytes(*stored),
            id: Id::from_slice(rest)?,
        };
        let stands = record.depth > 0;
        let right = record.length <= LONGEST
            && record.stored <= LONGEST
            && stands == record.encoding.needs_base()
            && (!stands || record.stored as usize >= BASE && record.object != Object::Commit);
        right.then_some(record)
    }

    /// The name of its base, where it has one, and what is encoded: both from the bytes that follow the head.
    #[must_use]
    pub fn split<'b>(&self, bytes: &'b [u8]) -> Option<(Option<Id>, &'b [u8])> {
        if self.depth == 0 {
            return Some((None, bytes));
        }
        let (base, encoded) = bytes.split_first_chunk::<BASE>()?;
        Some((Some(Id(*base)), encoded))
    }
}

/// Where a pack's file is.
#[must_use]
pub fn path(dir: &Path, pack: u32) -> PathBuf {
    dir.join(format!("{pack:08x}.pack"))
}

/// A pack that is being written.
#[derive(Debug)]
pub struct Writer {
    file: File,
    path: PathBuf,
    /// Which it is.
    pub header: Header,
    /// Up to here it is written.
    pub length: u64,
    /// Up to here the disk has it.
    pub synced: u64,
    /// Up to here the catalog names it.
    pub named: u64,
    buffer: Buffer,
    /// The same file, past the page cache, once there was that much to write at a time; none where that cannot be.
    direct: OnceCell<Option<File>>,
}

/// So much is gathered before the kernel is asked to write it.
const BUFFER: usize = 1 << 20;
/// The most that is gathered: the record that fills it comes whole.
const GATHERED: usize = 2 * BUFFER;

impl Writer {
    /// Begins a pack.
    ///
    /// # Errors
    /// A full disk, a pack of this number.
    pub fn create(dir: &Path, header: Header) -> Result<Writer> {
        let path = path(dir, header.pack);
        let file = sys::create(&path)?;
        let mut writer = Writer {
            file,
            path,
            header,
            length: 0,
            synced: 0,
            named: 0,
            buffer: Buffer::default(),
            direct: OnceCell::new(),
        };
        writer.push(&header.write());
        // Its name must outlive a power cut, as its content does.
        sys::sync_dir(dir)?;
        Ok(writer)
    }

    /// Goes on with a pack up to whose `length` everything is known to be on the disk; what a crash left behind that is
    /// cut off. None where the file is not what it should be: that is for `verify` to tell.
    ///
    /// # Errors
    /// A failing disk.
    pub fn reopen(dir: &Path, pack: u32, length: u32) -> Result<Option<Writer>> {
        let Ok((_, header)) = open(dir, pack) else {
            return Ok(None);
        };
        let path = path(dir, pack);
        let file = sys::reopen(&path)?;
        let length = u64::from(length);
        let found = file.metadata().on("look at", &path)?.len();
        if found < length {
            return Ok(None);
        }
        if found > length {
            sys::set_length(&file, &path, length)?;
        }
        Ok(Some(Writer {
            file,
            path,
            header,
            length,
            synced: length,
            named: length,
            buffer: Buffer::default(),
            direct: OnceCell::new(),
        }))
    }

    fn push(&mut self, bytes: &[u8]) {
        if self.buffer.is_empty() {
            self.buffer.begin(GATHERED, self.length);
        }
        self.buffer.push(bytes);
        self.length += bytes.len() as u64;
    }

    /// Appends a record and says where it begins.
    ///
    /// # Errors
    /// A full disk. It is then as if this record had not come: while a disk stays full, memory must not fill too.
    pub fn append(&mut self, record: &Record, bytes: &[u8]) -> Result<u32> {
        let at = u32::try_from(self.length).map_err(|_| damaged(self.path.display(), "it is too long"))?;
        let gathered = self.buffer.len();
        self.push(&record.write());
        self.push(bytes);
        if self.buffer.len() >= BUFFER
            && let Err(error) = self.stream()
        {
            self.buffer.truncate(gathered);
            self.length = u64::from(at);
            return Err(error);
        }
        Ok(at)
    }

    /// Writes what is gathered, but for the beginning of a block.
    fn stream(&mut self) -> Result<()> {
        let direct = self.direct.get_or_init(|| direct::of(&self.file));
        let Some(direct) = direct else {
            let at = self.length - self.buffer.len() as u64;
            let length = self.buffer.len();
            self.flush()?;
            sys::begin_writing(&self.file, at, length);
            return Ok(());
        };
        let at = self.length - self.buffer.len() as u64;
        let most = direct::whole(self.buffer.bytes(), at);
        let some = self.buffer.bytes().get(..most).unwrap_or_default();
        sys::write_past(&self.file, Some(direct), &self.path, some, at)?;
        self.buffer.forget(most, at, GATHERED);
        Ok(())
    }

    /// Hands what is gathered to the kernel.
    ///
    /// # Errors
    /// A full disk; tried again at the next call.
    pub fn flush(&mut self) -> Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let at = self.length - self.buffer.len() as u64;
        sys::write(&self.file, &self.path, self.buffer.bytes(), at)?;
        self.buffer.truncate(0);
        Ok(())
    }

    /// Waits until the disk has all of it.
    ///
    /// # Errors
    /// A full or failing disk. After a sync that failed nobody knows what the disk has, and the kernel says of the next one
    /// that it went well: the pack is to be abandoned.
    pub fn sync(&mut self) -> Result<()> {
        if self.synced == self.length {
            return Ok(());
        }
        self.flush()?;
        sys::sync(&self.file, &self.path)?;
        self.synced = self.length;
        Ok(())
    }

    /// Gives up what the catalog does not name: the file ends before it, or goes.
    pub fn abandon(self) {
        let done = match self.named {
            0 => sys::remove(&self.path),
            named => sys::set_length(&self.file, &self.path, named),
        };
        if let Err(error) = done {
            tracing::warn!(%error, "a pack stays longer than it should until the store is opened next");
        }
    }

    /// Reads a record that may not have been handed to the kernel yet.
    ///
    /// # Errors
    /// A failing disk.
    pub fn read(&mut self, at: u32, stored: u32) -> Result<Vec<u8>> {
        self.flush()?;
        read(&self.file, &self.path, at, stored)
    }
}

/// Reads a record's head and bytes.
///
/// # Errors
/// A failing disk, a file that ends before.
pub fn read(file: &File, path: &Path, at: u32, stored: u32) -> Result<Vec<u8>> {
    let mut bytes = vec![0; RECORD + stored as usize];
    match file.read_exact_at(&mut bytes, u64::from(at)) {
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Err(damaged(
            path.display(),
            format!("it ends before byte {}", u64::from(at) + bytes.len() as u64),
        )),
        done => done.on("read", path).map(|()| bytes),
    }
}

/// What a record holds, from its bytes and what its base holds: checked against its name; else how they differ.
pub(crate) fn content(
    hash: Hash,
    record: &Record,
    bytes: &[u8],
    base: Option<&[u8]>,
) -> std::result::Result<Vec<u8>, String> {
    let (_, encoded) = record.split(bytes).ok_or("it is too short")?;
    checked(
        hash,
        record,
        delta::decode(record.encoding, encoded, base, record.length as usize),
    )
}

/// What was decoded, if it is what its name says.
pub(crate) fn checked(
    hash: Hash,
    record: &Record,
    decoded: std::result::Result<Vec<u8>, delta::Error>,
) -> std::result::Result<Vec<u8>, String> {
    let bytes = decoded.map_err(|error| error.to_string())?;
    let found = match record.object {
        Object::Chunk => hash.chunk(&bytes),
        Object::Commit => hash.commit(&bytes),
        Object::Node => {
            let node: Node = prost::Message::decode(bytes.as_slice())
                .map_err(|error: prost::DecodeError| error.to_string())?;
            hash.name_of(&node)
        }
    };
    if found != record.id {
        return Err(format!("its content is that of {found}"));
    }
    Ok(bytes)
}

/// Walks the records of a pack up to `end`: where each begins, and its head.
///
/// # Errors
/// A failing disk, a damaged head: what follows it cannot be found.
pub fn walk(
    file: &File,
    path: &Path,
    end: u64,
    mut each: impl FnMut(u32, Record) -> Result<()>,
) -> Result<()> {
    let mut at = HEADER as u64;
    while at < end {
        let mut head = [0; RECORD];
        let wrong = |problem: &str| damaged(format!("{} at byte {at}", path.display()), problem);
        match file.read_exact_at(&mut head, at) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(wrong("it ends within a record"));
            }
            done => done.on("read", path)?,
        }
        let record = Record::read(&head).ok_or_else(|| wrong("there is no record"))?;
        let next = at + (RECORD as u64) + u64::from(record.stored);
        if next > end {
            return Err(wrong("the record reaches beyond the pack's end"));
        }
        each(u32::try_from(at).map_err(|_| wrong("it is too long"))?, record)?;
        at = next;
    }
    Ok(())
}

/// Opens a pack for reading and checks its head.
///
/// # Errors
/// A pack that is not there, or is another.
pub fn open(dir: &Path, pack: u32) -> Result<(File, Header)> {
    let path = path(dir, pack);
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW)
        .open(&path)
        .on("open", &path)?;
    let mut head = [0; HEADER];
    match file.read_exact_at(&mut head, 0) {
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
            return Err(damaged(path.display(), "it is shorter than a pack's head"));
        }
        done => done.on("read", &path)?,
    }
    match Header::read(&head) {
        Some(header) if header.pack == pack => Ok((file, header)),
        Some(_) => Err(damaged(path.display(), "it is another pack, by its head")),
        None => Err(damaged(path.display(), "it has no pack's head")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn heads_are_read_as_written(store: [u8; 16], pack: u32, domain: u32, meta: bool, id: [u8; 32], length in 0..LONGEST, stored in 0..LONGEST) {
            let class = if meta { Class::Meta } else { Class::Data };
            let header = Header { store, pack, domain, class };
            prop_assert_eq!(Header::read(&header.write()), Some(header));
            let mut record = Record { object: Object::Node, encoding: Encoding::Zstd, depth: 0, length, stored, id: Id(id) };
            prop_assert_eq!(Record::read(&record.write()), Some(record));
            // One that stands on another says on which, and no other does.
            record.depth = 3;
            prop_assert_eq!(Record::read(&record.write()), None);
            record.encoding = Encoding::Prefix;
            let long = stored as usize >= BASE;
            prop_assert_eq!(Record::read(&record.write()), long.then_some(record));
            record.object = Object::Commit;
            prop_assert_eq!(Record::read(&record.write()), None);
        }

        #[test]
        fn crafted_heads_never_panic(a: [u8; HEADER], b: [u8; RECORD]) {
            let _ = Header::read(&a);
            let _ = Record::read(&b);
        }
    }
}
