//! The catalog: one fjall keyspace whose keys begin with a letter that says what they are of. One, because an idle
//! keyspace keeps journals from being removed, and each costs memory of its own. See `docs/format.md`.

mod dictionaries;
mod relatives;
mod spent;

use std::{
    ops::RangeBounds,
    path::Path,
    sync::{Mutex, PoisonError},
};

use delta::Encoding;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use prost::Message;
use rayon::slice::ParallelSliceMut;

use crate::{
    error::{InCatalog, Result, damaged},
    format::{Commit, Shown},
    id::Id,
    pack::{Class, Object, Record},
    retention::Tombstone,
    watermark,
};

/// Blocks of the index that are kept in memory, in bytes: a keeper must be small, and the kernel caches too.
const CACHE: u64 = 8 << 20;
/// Rows that are gathered before they are written out, in bytes.
const MEMTABLE: u64 = 4 << 20;
/// Journals on the disk, in bytes: the least that fjall allows.
const JOURNALS: u64 = 64 << 20;
/// A longer batch, in bytes, becomes tables at once: in the journal it would stay beside them until 64 MB have gathered.
const BULK: usize = 1 << 20;

pub(crate) use dictionaries::Dictionary;
pub(crate) use relatives::{Name, name_of};
pub(crate) use spent::Spent;

/// The catalog of a store.
pub struct Catalog {
    db: Database,
    rows: Keyspace,
    /// Counts the batches; none in a store of format 1.
    watermark: Mutex<Option<watermark::Writer>>,
}

/// Where an object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The pack.
    pub pack: u32,
    /// Where its record begins.
    pub at: u32,
    /// The length of its bytes as they are stored.
    pub stored: u32,
    /// Its own length.
    pub length: u32,
    /// How it is encoded.
    pub encoding: Encoding,
    /// What it is encoded against.
    pub base: Option<Base>,
}

/// The object that another stands on: one of the same kind and domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Base {
    /// Its name.
    pub id: Id,
    /// How many objects have to be read before the one that stands on it: more than before the base itself.
    pub depth: u8,
}

impl Place {
    /// Of an object that a repair found nowhere. Packs are numbered from 1.
    const LOST: Place = Place {
        pack: 0,
        at: 0,
        stored: 0,
        length: 0,
        encoding: Encoding::Raw,
        base: None,
    };

    /// Where a record stands, by its head and the name of its base.
    pub fn of(record: &Record, base: Option<Id>, pack: u32, at: u32) -> Place {
        Place {
            pack,
            at,
            stored: record.stored,
            length: record.length,
            encoding: record.encoding,
            base: base.map(|id| Base {
                id,
                depth: record.depth,
            }),
        }
    }

    /// The head of the record that stands here.
    pub fn record(&self, object: Object, id: Id) -> Record {
        Record {
            object,
            encoding: self.encoding,
            depth: self.depth(),
            length: self.length,
            stored: self.stored,
            id,
        }
    }

    /// How many objects have to be read before it.
    pub fn depth(&self) -> u8 {
        self.base.map_or(0, |base| base.depth)
    }

    fn write(&self) -> Vec<u8> {
        let numbers = [self.pack, self.at, self.stored, self.length];
        let mut row: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
        row.push(self.encoding as u8);
        if let Some(base) = &self.base {
            row.push(base.depth);
            row.extend_from_slice(&base.id.0);
        }
        row
    }

    fn read(row: &[u8]) -> Option<Place> {
        let (pack, row) = row.split_first_chunk::<4>()?;
        let (at, row) = row.split_first_chunk::<4>()?;
        let (stored, row) = row.split_first_chunk::<4>()?;
        let (length, row) = row.split_first_chunk::<4>()?;
        let (encoding, row) = row.split_first()?;
        let base = match row {
            [] => None,
            [0, ..] => return None,
            [depth, id @ ..] => Some(Base {
                id: Id::from_slice(id)?,
                depth: *depth,
            }),
        };
        let encoding = Encoding::try_from(*encoding).ok()?;
        (encoding.needs_base() == base.is_some()).then_some(Place {
            pack: u32::from_le_bytes(*pack),
            at: u32::from_le_bytes(*at),
            stored: u32::from_le_bytes(*stored),
            length: u32::from_le_bytes(*length),
            encoding,
            base,
        })
    }
}

/// What is known of a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackRow {
    /// The dedup domain.
    pub domain: u32,
    /// What it holds.
    pub class: Class,
    /// Up to here it is synced and named; what the file holds beyond was never promised.
    pub length: u32,
}

impl PackRow {
    fn write(&self) -> Vec<u8> {
        let mut row = self.domain.to_le_bytes().to_vec();
        row.extend_from_slice(&self.length.to_le_bytes());
        row.push(self.class as u8);
        row
    }

    fn read(row: &[u8]) -> Option<PackRow> {
        let (domain, row) = row.split_first_chunk::<4>()?;
        let (length, row) = row.split_first_chunk::<4>()?;
        let class = match row {
            [0] => Class::Data,
            [1] => Class::Meta,
            _ => return None,
        };
        Some(PackRow {
            domain: u32::from_le_bytes(*domain),
            class,
            length: u32::from_le_bytes(*length),
        })
    }
}

/// What is known of the store as a whole.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct StoreRow {
    /// Which store it is: packs say the same.
    #[prost(bytes = "vec", tag = "1")]
    pub id: Vec<u8>,
    /// Its hash ([`crate::Hash`]).
    #[prost(uint32, tag = "2")]
    pub hash: u32,
    /// The number of the next pack.
    #[prost(uint32, tag = "3")]
    pub next_pack: u32,
    /// The number of the next domain.
    #[prost(uint32, tag = "4")]
    pub next_domain: u32,
    /// The number of the next state.
    #[prost(uint64, tag = "5")]
    pub next_state: u64,
}

/// What is known of a state.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct StateRow {
    /// Its number: its rows go by it.
    #[prost(uint64, tag = "1")]
    pub number: u64,
    /// Its dedup domain.
    #[prost(uint32, tag = "2")]
    pub domain: u32,
    /// The sequence of its newest commit; 0 before the first.
    #[prost(uint64, tag = "3")]
    pub sequence: u64,
    /// Its newest commit.
    #[prost(bytes = "vec", tag = "4")]
    pub head: Vec<u8>,
    /// The restore that the next start is to begin with: a commit.
    #[prost(bytes = "vec", tag = "5")]
    pub wanted: Vec<u8>,
    /// The last value of the annotation that asked for a restore: it is done once for each.
    #[prost(string, tag = "6")]
    pub asked: String,
    /// One more than the seconds for which its history stays without a live tree; 0 for ever.
    #[prost(uint64, tag = "7")]
    pub reclaim: u64,
    /// When it was first found without a live tree, seconds since 1970; 0 while it has one.
    #[prost(uint64, tag = "8")]
    pub orphaned: u64,
}

/// How a file looked when its content was recorded: while it looks so, it is not read again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Look {
    /// Inode.
    pub inode: u64,
    /// Length in bytes.
    pub size: u64,
    /// Last modification, nanoseconds since 1970.
    pub mtime: i64,
    /// Last change, nanoseconds since 1970.
    pub ctime: i64,
}

impl Look {
    const LENGTH: usize = 32;

    fn write(&self) -> [u8; Look::LENGTH] {
        let numbers = [
            self.inode,
            self.size,
            self.mtime.cast_unsigned(),
            self.ctime.cast_unsigned(),
        ];
        let mut row = [0; Look::LENGTH];
        for (to, from) in row.iter_mut().zip(numbers.iter().flat_map(|n| n.to_le_bytes())) {
            *to = from;
        }
        row
    }

    fn read(row: &[u8]) -> Option<Look> {
        let (inode, row) = row.split_first_chunk::<8>()?;
        let (size, row) = row.split_first_chunk::<8>()?;
        let (mtime, row) = row.split_first_chunk::<8>()?;
        let ctime: [u8; 8] = row.try_into().ok()?;
        Some(Look {
            inode: u64::from_le_bytes(*inode),
            size: u64::from_le_bytes(*size),
            mtime: i64::from_le_bytes(*mtime),
            ctime: i64::from_le_bytes(ctime),
        })
    }
}

fn key(letter: u8, parts: &[&[u8]]) -> Vec<u8> {
    let mut key = vec![letter];
    parts.iter().for_each(|part| key.extend_from_slice(part));
    key
}

fn index_key(domain: u32, object: Object, id: Id) -> Vec<u8> {
    key(b'I', &[&domain.to_be_bytes(), &[object as u8], &id.0])
}

fn row_damaged(what: &str) -> crate::Error {
    damaged(format!("the catalog's row of {what}"), "it has another form")
}

/// Rows that appear together or not at all.
#[derive(Default)]
pub struct Batch {
    /// By key: what it becomes, if not nothing. Of several of one key the last counts.
    rows: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    /// The bytes of all of them.
    bytes: usize,
}

impl Batch {
    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    fn put(&mut self, key: Vec<u8>, row: impl Into<Vec<u8>>) {
        let row = row.into();
        self.bytes += key.len() + row.len();
        self.rows.push((key, Some(row)));
    }

    fn remove(&mut self, key: Vec<u8>) {
        self.bytes += key.len();
        self.rows.push((key, None));
    }

    pub(crate) fn store(&mut self, row: &StoreRow) {
        self.put(key(b'M', &[b"store"]), row.encode_to_vec());
    }

    /// Records up to which commit a state is recompacted.
    pub(crate) fn recompacted(&mut self, state: u64, sequence: u64) {
        let key = key(b'M', &[b"recompacted", &state.to_be_bytes()]);
        self.put(key, sequence.to_be_bytes());
    }

    pub(crate) fn domain(&mut self, name: &str, number: u32) {
        self.put(key(b'D', &[name.as_bytes()]), number.to_be_bytes());
    }

    pub(crate) fn place(&mut self, domain: u32, object: Object, id: Id, place: &Place) {
        self.put(index_key(domain, object, id), place.write());
    }

    pub(crate) fn forget_object(&mut self, domain: u32, object: Object, id: Id) {
        self.remove(index_key(domain, object, id));
    }

    /// Says that an object is nowhere.
    pub(crate) fn lost(&mut self, domain: u32, object: Object, id: Id) {
        self.place(domain, object, id, &Place::LOST);
    }

    pub(crate) fn pack(&mut self, pack: u32, row: &PackRow) {
        self.put(key(b'P', &[&pack.to_be_bytes()]), row.write());
    }

    pub(crate) fn forget_pack(&mut self, pack: u32) {
        self.remove(key(b'P', &[&pack.to_be_bytes()]));
    }

    /// Records what is known of a state.
    pub(crate) fn state(&mut self, name: &str, row: &StateRow) {
        self.put(key(b'S', &[name.as_bytes()]), row.encode_to_vec());
    }

    pub(crate) fn forget_state(&mut self, name: &str) {
        self.remove(key(b'S', &[name.as_bytes()]));
    }

    pub(crate) fn commit(&mut self, state: u64, sequence: u64, id: Id, bytes: &[u8]) {
        self.put(key(b'H', &[&state.to_be_bytes(), &sequence.to_be_bytes()]), bytes);
        let mut at = state.to_be_bytes().to_vec();
        at.extend_from_slice(&sequence.to_be_bytes());
        self.put(key(b'C', &[&id.0]), at);
    }

    pub(crate) fn forget_commit(&mut self, state: u64, sequence: u64, id: Id) {
        let history = key(b'H', &[&state.to_be_bytes(), &sequence.to_be_bytes()]);
        self.remove(history);
        self.remove(key(b'C', &[&id.0]));
        self.remove(key(b'G', &[&id.0]));
    }

    pub(crate) fn signature(&mut self, commit: Id, signature: &[u8]) {
        self.put(key(b'G', &[&commit.0]), signature);
    }

    pub(crate) fn tag(&mut self, state: u64, name: &str, commit: Id) {
        self.put(key(b'R', &[&state.to_be_bytes(), name.as_bytes()]), commit.0);
    }

    pub(crate) fn forget_tag(&mut self, state: u64, name: &str) {
        self.remove(key(b'R', &[&state.to_be_bytes(), name.as_bytes()]));
    }

    pub(crate) fn tombstone(&mut self, state: u64, tombstone: &Tombstone) {
        let key = key(b'T', &[&state.to_be_bytes(), &tombstone.sequence.to_be_bytes()]);
        self.put(key, tombstone.encode_to_vec());
    }

    pub(crate) fn forget_tombstone(&mut self, state: u64, sequence: u64) {
        let key = key(b'T', &[&state.to_be_bytes(), &sequence.to_be_bytes()]);
        self.remove(key);
    }

    /// Records how a live tree's entry looks.
    pub fn look(&mut self, state: u64, entry: &[u8], look: &Look) {
        self.put(key(b'L', &[&state.to_be_bytes(), entry]), look.write());
    }

    /// Forgets how an entry looked.
    pub fn forget_look(&mut self, state: u64, entry: &[u8]) {
        self.remove(key(b'L', &[&state.to_be_bytes(), entry]));
    }
}

impl Catalog {
    /// Opens or makes the catalog.
    pub(crate) fn open(dir: &Path) -> Result<Catalog> {
        // fjall asserts some of what it reads in a journal; a disk that flips bits is no bug of anybody's.
        std::panic::catch_unwind(|| Catalog::open_or_panic(dir))
            .unwrap_or_else(|_| Err(damaged(dir.display(), "fjall gives up on its journal")))
    }

    fn open_or_panic(dir: &Path) -> Result<Catalog> {
        let db = Database::builder(dir)
            .cache_size(CACHE)
            .max_journaling_size(JOURNALS)
            .max_cached_files(Some(64))
            .worker_threads(1)
            .open()
            .catalog("be opened")?;
        let rows = db
            .keyspace("rows", || {
                KeyspaceCreateOptions::default().max_memtable_size(MEMTABLE)
            })
            .catalog("open its rows")?;
        Ok(Catalog {
            db,
            rows,
            watermark: Mutex::default(),
        })
    }

    pub(crate) fn batch(&self) -> Batch {
        Batch::default()
    }

    /// Writes a batch; it is on the disk when this returns.
    pub(crate) fn write(&self, mut batch: Batch) -> Result<()> {
        let mut watermark = self.watermark.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(watermark) = &*watermark {
            let number = watermark.last.batch + 1;
            batch.put(key(b'M', &[b"batch"]), number.to_le_bytes());
        }
        let written = match batch.bytes {
            BULK.. => self.ingest(batch),
            _ => self.journal(batch),
        };
        written.catalog("write a batch")?;
        if let Some(watermark) = &mut *watermark {
            watermark.rise();
        }
        Ok(())
    }

    fn journal(&self, batch: Batch) -> fjall::Result<()> {
        let mut written = self.db.batch().durability(Some(PersistMode::SyncAll));
        for (key, row) in batch.rows {
            match row {
                Some(row) => written.insert(&self.rows, key, row),
                None => written.remove(&self.rows, key),
            }
        }
        written.commit()
    }

    /// Writes tables, and syncs them; what names them is renamed into place last.
    fn ingest(&self, mut batch: Batch) -> fjall::Result<()> {
        // Stable: of one key the last stays the last.
        batch.rows.par_sort_by(|(a, _), (b, _)| a.cmp(b));
        let mut tables = self.rows.start_ingestion()?;
        let mut rows = batch.rows.into_iter().peekable();
        while let Some((key, row)) = rows.next() {
            if rows.peek().is_some_and(|(next, _)| *next == key) {
                continue;
            }
            match row {
                Some(row) => tables.write(key, row)?,
                None => tables.write_tombstone(key)?,
            }
        }
        tables.finish()
    }

    /// The number of the last batch that was counted.
    pub(crate) fn batches(&self) -> Result<u64> {
        let Some(row) = self.get(key(b'M', &[b"batch"]))? else {
            return Ok(0);
        };
        let number = (*row).try_into().map_err(|_| row_damaged("the last batch"))?;
        Ok(u64::from_le_bytes(number))
    }

    /// From now on batches are counted.
    pub(crate) fn count(&self, watermark: watermark::Writer) {
        *self.watermark.lock().unwrap_or_else(PoisonError::into_inner) = Some(watermark);
    }

    fn get(&self, key: Vec<u8>) -> Result<Option<fjall::UserValue>> {
        self.rows.get(key).catalog("look up a row")
    }

    fn each<R: RangeBounds<Vec<u8>>>(
        &self,
        range: R,
        mut each: impl FnMut(&[u8], &[u8]) -> Result<bool>,
    ) -> Result<()> {
        for guard in self.rows.range(range) {
            let (key, row) = guard.into_inner().catalog("read its rows")?;
            if !each(&key, &row)? {
                break;
            }
        }
        Ok(())
    }

    pub(crate) fn under(
        &self,
        prefix: &[u8],
        mut each: impl FnMut(&[u8], &[u8]) -> Result<()>,
    ) -> Result<()> {
        for guard in self.rows.prefix(prefix) {
            let (key, row) = guard.into_inner().catalog("read its rows")?;
            each(key.get(prefix.len()..).unwrap_or_default(), &row)?;
        }
        Ok(())
    }

    pub(crate) fn store(&self) -> Result<Option<StoreRow>> {
        let row = self.get(key(b'M', &[b"store"]))?;
        row.map(|row| StoreRow::decode(&*row).map_err(|_| row_damaged("the store")))
            .transpose()
    }

    /// Up to which commit a state is recompacted.
    pub(crate) fn recompacted(&self, state: u64) -> Result<u64> {
        let row = self.get(key(b'M', &[b"recompacted", &state.to_be_bytes()]))?;
        let number = row.map(|row| (*row).try_into().map_err(|_| row_damaged("what is recompacted")));
        Ok(number.transpose()?.map_or(0, u64::from_be_bytes))
    }

    pub(crate) fn domain(&self, name: &str) -> Result<Option<u32>> {
        let row = self.get(key(b'D', &[name.as_bytes()]))?;
        row.map(|row| {
            let number = (*row).try_into().map_err(|_| row_damaged("a domain"))?;
            Ok(u32::from_be_bytes(number))
        })
        .transpose()
    }

    pub(crate) fn domains(&self) -> Result<Vec<(String, u32)>> {
        let mut found = Vec::new();
        self.under(b"D", |name, row| {
            let number = row.try_into().map_err(|_| row_damaged("a domain"))?;
            found.push((
                String::from_utf8_lossy(name).into_owned(),
                u32::from_be_bytes(number),
            ));
            Ok(())
        })?;
        Ok(found)
    }

    fn row_of(&self, domain: u32, object: Object, id: Id) -> Result<Option<Place>> {
        let row = self.get(index_key(domain, object, id))?;
        row.map(|row| Place::read(&row).ok_or_else(|| row_damaged("an object")))
            .transpose()
    }

    pub(crate) fn place(&self, domain: u32, object: Object, id: Id) -> Result<Option<Place>> {
        let row = self.row_of(domain, object, id)?;
        Ok(row.filter(|place| *place != Place::LOST))
    }

    /// Whether a repair found it nowhere.
    pub(crate) fn is_lost(&self, domain: u32, object: Object, id: Id) -> Result<bool> {
        Ok(self.row_of(domain, object, id)? == Some(Place::LOST))
    }

    fn index(&self, domain: u32, mut each: impl FnMut(Object, Id, Place) -> Result<()>) -> Result<()> {
        self.under(&key(b'I', &[&domain.to_be_bytes()]), |key, row| {
            let (object, id) = key.split_first().ok_or_else(|| row_damaged("an object"))?;
            let object = Object::of_number(*object).ok_or_else(|| row_damaged("an object"))?;
            let id = Id::from_slice(id).ok_or_else(|| row_damaged("an object"))?;
            each(
                object,
                id,
                Place::read(row).ok_or_else(|| row_damaged("an object"))?,
            )
        })
    }

    /// Every object of a domain.
    pub(crate) fn objects(
        &self,
        domain: u32,
        mut each: impl FnMut(Object, Id, Place) -> Result<()>,
    ) -> Result<()> {
        self.index(domain, |object, id, place| match place {
            Place::LOST => Ok(()),
            place => each(object, id, place),
        })
    }

    /// The objects of a domain that a repair found nowhere.
    pub(crate) fn lost(&self, domain: u32) -> Result<Vec<(Object, Id)>> {
        let mut found = Vec::new();
        self.index(domain, |object, id, place| {
            found.extend((place == Place::LOST).then_some((object, id)));
            Ok(())
        })?;
        Ok(found)
    }

    pub(crate) fn packs(&self) -> Result<Vec<(u32, PackRow)>> {
        let mut found = Vec::new();
        self.under(b"P", |key, row| {
            let pack = key.try_into().map_err(|_| row_damaged("a pack"))?;
            let row = PackRow::read(row).ok_or_else(|| row_damaged("a pack"))?;
            found.push((u32::from_be_bytes(pack), row));
            Ok(())
        })?;
        Ok(found)
    }

    pub(crate) fn state(&self, name: &str) -> Result<Option<StateRow>> {
        let row = self.get(key(b'S', &[name.as_bytes()]))?;
        row.map(|row| StateRow::decode(&*row).map_err(|_| row_damaged(name)))
            .transpose()
    }

    pub(crate) fn states(&self) -> Result<Vec<(String, StateRow)>> {
        let mut found = Vec::new();
        self.under(b"S", |name, row| {
            let name = String::from_utf8_lossy(name).into_owned();
            let row = StateRow::decode(row).map_err(|_| row_damaged(&name))?;
            found.push((name, row));
            Ok(())
        })?;
        Ok(found)
    }

    /// A commit's bytes, by its place in a state's history.
    pub(crate) fn commit(&self, state: u64, sequence: u64) -> Result<Option<Vec<u8>>> {
        let row = self.get(key(b'H', &[&state.to_be_bytes(), &sequence.to_be_bytes()]))?;
        Ok(row.map(|row| row.to_vec()))
    }

    /// The commits of a state, newest first, from `from` down, until `each` has had enough.
    pub(crate) fn commits(
        &self,
        state: u64,
        from: u64,
        mut each: impl FnMut(Commit, &[u8]) -> Result<bool>,
    ) -> Result<()> {
        let first = key(b'H', &[&state.to_be_bytes(), &0u64.to_be_bytes()]);
        let last = key(b'H', &[&state.to_be_bytes(), &from.to_be_bytes()]);
        for guard in self.rows.range(first..=last).rev() {
            let (_, row) = guard.into_inner().catalog("read a history")?;
            if !each(Commit::read(&row)?, &row)? {
                break;
            }
        }
        Ok(())
    }

    /// Whose commit it is, and which.
    pub(crate) fn commit_place(&self, id: Id) -> Result<Option<(u64, u64)>> {
        let row = self.get(key(b'C', &[&id.0]))?;
        row.map(|row| place_of_commit(&row)).transpose()
    }

    /// The signature of a commit.
    pub(crate) fn signature(&self, commit: Id) -> Result<Option<Vec<u8>>> {
        Ok(self.get(key(b'G', &[&commit.0]))?.map(|row| row.to_vec()))
    }

    /// Commits whose names begin so.
    pub(crate) fn commits_like(&self, prefix: &[u8]) -> Result<Vec<(Id, u64, u64)>> {
        let mut found = Vec::new();
        self.under(&key(b'C', &[prefix]), |rest, row| {
            let mut id = prefix.to_vec();
            id.extend_from_slice(rest);
            let id = Id::from_slice(&id).ok_or_else(|| row_damaged("a commit"))?;
            let (state, sequence) = place_of_commit(row)?;
            found.push((id, state, sequence));
            Ok(())
        })?;
        Ok(found)
    }

    pub(crate) fn tag(&self, state: u64, name: &str) -> Result<Option<Id>> {
        let row = self.get(key(b'R', &[&state.to_be_bytes(), name.as_bytes()]))?;
        row.map(|row| Id::from_slice(&row).ok_or_else(|| row_damaged("a tag")))
            .transpose()
    }

    pub(crate) fn tags(&self, state: u64) -> Result<Vec<(String, Id)>> {
        let mut found = Vec::new();
        self.under(&key(b'R', &[&state.to_be_bytes()]), |name, row| {
            let id = Id::from_slice(row).ok_or_else(|| row_damaged("a tag"))?;
            found.push((String::from_utf8_lossy(name).into_owned(), id));
            Ok(())
        })?;
        Ok(found)
    }

    pub(crate) fn tombstones(&self, state: u64) -> Result<Vec<Tombstone>> {
        let mut found = Vec::new();
        self.under(&key(b'T', &[&state.to_be_bytes()]), |_, row| {
            found.push(Tombstone::decode(row).map_err(|_| row_damaged("a tombstone"))?);
            Ok(())
        })?;
        Ok(found)
    }

    /// How one entry of a live tree looked.
    pub(crate) fn look(&self, state: u64, entry: &[u8]) -> Result<Option<Look>> {
        let row = self.get(key(b'L', &[&state.to_be_bytes(), entry]))?;
        let look =
            |row: &[u8]| Look::read(row).ok_or_else(|| row_damaged(&format!("the look of {}", Shown(entry))));
        row.map(|row| look(&row)).transpose()
    }

    /// How the entries below a directory of a live tree looked, in the order of their keys.
    pub(crate) fn looks_below(
        &self,
        state: u64,
        dir: &[u8],
        mut each: impl FnMut(&[u8], Look) -> Result<()>,
    ) -> Result<()> {
        self.under(&key(b'L', &[&state.to_be_bytes(), dir, &[0]]), |rest, row| {
            let entry = [dir, &[0], rest].concat();
            let look =
                Look::read(row).ok_or_else(|| row_damaged(&format!("the look of {}", Shown(&entry))))?;
            each(&entry, look)
        })
    }

    /// How the entries of a live tree looked, in the order of their keys.
    pub(crate) fn looks(&self, state: u64, mut each: impl FnMut(&[u8], Look) -> Result<()>) -> Result<()> {
        self.under(&key(b'L', &[&state.to_be_bytes()]), |entry, row| {
            let look =
                Look::read(row).ok_or_else(|| row_damaged(&format!("the look of {}", Shown(entry))))?;
            each(entry, look)
        })
    }

    /// Whether there is a row whose letter is unknown: of a newer version, or damaged.
    pub(crate) fn strangers(&self) -> Result<u64> {
        let mut found = 0;
        self.each(.., |key, _| {
            if !matches!(
                key.first(),
                Some(b'M' | b'D' | b'I' | b'P' | b'S' | b'H' | b'C' | b'R' | b'T' | b'L' | b'G' | b'F')
            ) {
                found += 1;
            }
            Ok(true)
        })?;
        Ok(found)
    }
}

pub(crate) fn place_of_commit(row: &[u8]) -> Result<(u64, u64)> {
    let wrong = || row_damaged("a commit");
    let (state, row) = row.split_first_chunk::<8>().ok_or_else(wrong)?;
    let sequence: [u8; 8] = row.try_into().map_err(|_| wrong())?;
    Ok((u64::from_be_bytes(*state), u64::from_be_bytes(sequence)))
}

#[cfg(test)]
mod tests;
