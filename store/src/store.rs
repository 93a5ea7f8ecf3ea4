//! The store as a whole: opening it, objects in and out.

use std::{
    collections::{HashMap, HashSet},
    fs::{DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

use delta::Encoding;
use prost::Message;
use quick_cache::{Weighter, sync::Cache};

use crate::{
    base::{self, Bases, Encoded, stands_on},
    catalog::{Batch, Catalog, PackRow, Place, StoreRow},
    dictionary::{Dictionaries, InUse},
    error::{Context, Error, Result, damaged},
    fault,
    format::Node,
    gate::{Alone, Gate, Within},
    id::{Hash, Id},
    migrate::Migrating,
    pack::{self, Class, FULL, Header, LONGEST, Object, RECORD, Record, Writer},
    pressure::Pressure,
    relatives::Relatives,
    salvage,
    sign::Signer,
    spent::Meter,
    sys,
    watermark::{self, Watermark},
};

/// The format of stores that this version writes, and the newest that it reads.
pub const FORMAT: u32 = 3;

/// Nodes that are kept in memory, in bytes.
const NODES: u64 = 16 << 20;

/// What a node takes in memory.
#[derive(Clone)]
struct Weight;

impl Weighter<(u32, Id), Arc<Node>> for Weight {
    fn weight(&self, _: &(u32, Id), node: &Arc<Node>) -> u64 {
        // Each item is an allocation of its own.
        node.items.iter().map(|item| item.len() as u64 + 48).sum::<u64>() + 128
    }
}

/// An object within its dedup domain.
pub(crate) type Key = (u32, Object, Id);

/// A store that is open.
pub struct Store {
    dir: PathBuf,
    pub(crate) hash: Hash,
    pub(crate) catalog: Catalog,
    writing: Mutex<Writing>,
    /// Objects that are in a pack and not yet in the catalog.
    pending: RwLock<HashMap<Key, Place>>,
    files: Cache<u32, Arc<File>>,
    nodes: Cache<(u32, Id), Arc<Node>, Weight>,
    pub(crate) bases: Bases,
    pub(crate) dictionaries: Dictionaries,
    pub(crate) relatives: Relatives,
    pub(crate) pressure: Pressure,
    /// Passed by whoever adds objects; gc has it alone for the moment in which it removes some.
    gate: Gate,
    /// Held by the one gc that there is at a time.
    pub(crate) collecting: Mutex<()>,
    /// How many wait for that to be theirs: a recompaction gives way to a gc.
    pub(crate) awaited: AtomicU64,
    /// What was found to be there already while gc looked for what nobody needs.
    pub(crate) spared: Mutex<Option<HashSet<Key>>>,
    /// Signs commits, where somebody wants it.
    pub(crate) signer: OnceLock<Signer>,
    /// One at a time changes what a state's name means.
    pub(crate) names: Mutex<()>,
    /// The lock on the whole; the kernel drops it with the process.
    _lock: File,
}

struct Writing {
    row: StoreRow,
    open: HashMap<(u32, Class), Writer>,
    /// Full ones that the disk may not have yet.
    full: Vec<Writer>,
    /// How often a sync failed, and with it what was added since the last.
    lost: u64,
    /// How it failed the last time.
    failed: String,
}

impl Writing {
    /// Refuses what was begun before something was lost.
    fn same(&self, lost: u64) -> Result<()> {
        if lost == self.lost {
            return Ok(());
        }
        Err(Error::Refused(format!(
            "the disk failed while this was recorded, and a part of it may be gone: it is to be tried again ({})",
            self.failed
        )))
    }

    /// Syncs what no batch has named yet, and names it.
    fn sync(&mut self, batch: &mut Batch) -> Result<()> {
        for writer in self.open.values_mut().chain(self.full.iter_mut()) {
            if writer.named != writer.length {
                writer.sync()?;
                let row = PackRow {
                    domain: writer.header.domain,
                    class: writer.header.class,
                    length: u32::try_from(writer.length).map_err(|_| damaged("a pack", "it is too long"))?,
                };
                batch.pack(writer.header.pack, &row);
            }
        }
        Ok(())
    }
}

/// What nobody can be told about twice: a lock whose holder panicked is a bug that was told already.
fn locked<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Store {
    /// Opens a store, and makes it where there is none; `hash` is of a new one. One of an older format is brought up to date.
    ///
    /// # Errors
    /// A store that is open elsewhere, of a newer format, damaged; a full or read-only disk.
    pub fn open(dir: &Path, hash: Hash) -> Result<Store> {
        Store::open_telling(dir, hash, |done| {
            tracing::info!(
                store = %dir.display(), from = done.from, to = FORMAT, commits = done.commits, of = done.of,
                "the store is brought up to date"
            );
        })
    }

    /// As [`Store::open`]; `told` gets how far a migration has come.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_telling(dir: &Path, hash: Hash, told: impl FnMut(&Migrating)) -> Result<Store> {
        let packs = dir.join("packs");
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&packs)
            .on("make", &packs)?;
        let lock = lock(dir)?;
        let format = format_of(dir)?;
        let catalog = Catalog::open(&dir.join("catalog"))?;
        let watermark = Watermark::of(dir)?;
        let row = match catalog.store()? {
            Some(row) => row,
            // Packs that no row names are removed below: not those of a catalog that was lost.
            None if watermark.is_some() || salvage::packs(&packs)?.next().is_some() => {
                return Err(damaged(
                    dir.join("catalog").display(),
                    "it knows nothing of the packs beside it: `diffkeeper repair` makes it anew from them",
                ));
            }
            None => {
                let mut id = [0u8; 16];
                let random = Path::new("/dev/urandom");
                File::open(random)
                    .and_then(|mut f| io::Read::read_exact(&mut f, &mut id))
                    .on("read", random)?;
                let row = StoreRow {
                    id: id.to_vec(),
                    hash: hash as u32,
                    next_pack: 1,
                    next_domain: 1,
                    next_state: 1,
                };
                let mut batch = catalog.batch();
                batch.store(&row);
                catalog.write(batch)?;
                row
            }
        };
        let hash =
            Hash::of_number(row.hash).ok_or_else(|| damaged("the store's row", "its hash is unknown"))?;
        if let Some(watermark) = watermark.filter(|found| found.store.as_slice() == row.id) {
            let missing = watermark.batch.saturating_sub(catalog.batches()?);
            if missing > 0 {
                return Err(Error::Behind {
                    path: dir.display().to_string(),
                    batches: missing,
                });
            }
        }
        let open = recover(&packs, &catalog, &row)?;
        let store = Store {
            dir: dir.to_owned(),
            hash,
            catalog,
            writing: Mutex::new(Writing {
                row,
                open,
                full: Vec::new(),
                lost: 0,
                failed: String::new(),
            }),
            pending: RwLock::default(),
            files: Cache::new(64),
            nodes: Cache::with_weighter(2048, NODES, Weight),
            bases: base::bases(),
            dictionaries: Dictionaries::default(),
            relatives: Relatives::default(),
            pressure: Pressure::default(),
            gate: Gate::default(),
            collecting: Mutex::default(),
            awaited: AtomicU64::default(),
            spared: Mutex::default(),
            signer: OnceLock::new(),
            names: Mutex::default(),
            _lock: lock,
        };
        if format == FORMAT {
            store.count_batches()?;
        } else {
            store.migrate(format, told)?;
        }
        Ok(store)
    }

    /// From now on the catalog's batches are counted, and the file beside it says how many there were.
    pub(crate) fn count_batches(&self) -> Result<()> {
        let mut store = [0; 16];
        let id = self.id();
        store.iter_mut().zip(&id).for_each(|(to, from)| *to = *from);
        let first = Watermark {
            store,
            hash: self.hash,
            batch: self.catalog.batches()?,
        };
        self.catalog.count(watermark::Writer::create(&self.dir, first)?);
        Ok(())
    }

    /// From now on commits are signed.
    pub fn sign_with(&self, signer: Signer) {
        // A second key would be a second wish of the same configuration: the first stays.
        let _ = self.signer.set(signer);
    }

    /// Its directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its hash.
    #[must_use]
    pub fn hash(&self) -> Hash {
        self.hash
    }

    pub(crate) fn packs_dir(&self) -> PathBuf {
        self.dir.join("packs")
    }

    /// The number of a dedup domain, made where it is missing.
    ///
    /// # Errors
    /// A full or failing disk.
    pub fn domain(&self, name: &str) -> Result<u32> {
        if let Some(number) = self.catalog.domain(name)? {
            return Ok(number);
        }
        let mut writing = locked(&self.writing);
        if let Some(number) = self.catalog.domain(name)? {
            return Ok(number);
        }
        let number = writing.row.next_domain;
        writing.row.next_domain += 1;
        let mut batch = self.catalog.batch();
        batch.store(&writing.row);
        batch.domain(name, number);
        self.catalog.write(batch)?;
        Ok(number)
    }

    /// The next number of a state; the row that says so is put into the batch.
    pub(crate) fn next_state(&self, batch: &mut Batch) -> u64 {
        let mut writing = locked(&self.writing);
        let number = writing.row.next_state;
        writing.row.next_state += 1;
        batch.store(&writing.row);
        number
    }

    pub(crate) fn place(&self, domain: u32, object: Object, id: Id) -> Result<Option<Place>> {
        let key = (domain, object, id);
        let pending = self.pending.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = pending.get(&key) {
            return Ok(Some(*place));
        }
        drop(pending);
        self.catalog.place(domain, object, id)
    }

    /// The bytes of an object, checked against its name.
    pub(crate) fn object(&self, domain: u32, object: Object, id: Id) -> Result<Vec<u8>> {
        let there = || {
            self.place(domain, object, id)?
                .ok_or_else(|| Error::Missing(format!("{object:?} {id}")))
        };
        let mut place = there()?;
        loop {
            match self.record(domain, object, id, place) {
                Ok(bytes) => return Ok(bytes),
                // gc may have moved it between the look-up and the reading, or what it stood on.
                Err(error) => match there()? {
                    now if now == place => return Err(error),
                    now => place = now,
                },
            }
        }
    }

    pub(crate) fn record(&self, domain: u32, object: Object, id: Id, place: Place) -> Result<Vec<u8>> {
        let name = || format!("{object:?} {id} in pack {:08x}", place.pack);
        if place.stored > LONGEST || place.length > LONGEST {
            return Err(damaged(
                name(),
                "its lengths in the catalog are beyond all bounds",
            ));
        }
        let written = self.written(domain, object.into(), place)?;
        let (head, bytes) = written
            .split_first_chunk::<RECORD>()
            .ok_or_else(|| damaged(name(), "it is too short"))?;
        let expected = place.record(object, id);
        if Record::read(head) != Some(expected) {
            return Err(damaged(
                name(),
                "the head of its record is not what the catalog says",
            ));
        }
        let (base, encoded) = expected
            .split(bytes)
            .ok_or_else(|| damaged(name(), "it is too short"))?;
        if base != place.base.map(|base| base.id) {
            return Err(damaged(
                name(),
                "it stands on another object than the catalog says",
            ));
        }
        let length = place.length as usize;
        let on = |error| stands_on(name, error);
        let decoded = match place.base {
            Some(base) if place.encoding == Encoding::Dictionary && object == Object::Chunk => {
                let ready = self.dictionary(domain, base).map_err(on)?;
                ready.dictionary.decode(encoded, length)
            }
            Some(base) => {
                let under = self.base(domain, object, base).map_err(on)?;
                delta::decode(place.encoding, encoded, Some(&under), length)
            }
            None => delta::decode(place.encoding, encoded, None, length),
        };
        pack::checked(self.hash, &expected, decoded).map_err(|problem| damaged(name(), problem))
    }

    /// An object as it is written, and what it holds is what its name says.
    pub(crate) fn as_written(&self, domain: u32, object: Object, id: Id, place: Place) -> Result<Encoded> {
        self.record(domain, object, id, place)?;
        let written = self.written(domain, object.into(), place)?;
        Ok(Encoded {
            record: place.record(object, id),
            base: place.base.map(|base| base.id),
            bytes: written.get(RECORD..).unwrap_or_default().to_vec(),
            features: None,
        })
    }

    fn written(&self, domain: u32, class: Class, place: Place) -> Result<Vec<u8>> {
        if let Some(file) = self.files.get(&place.pack) {
            return pack::read(
                &file,
                &pack::path(&self.packs_dir(), place.pack),
                place.at,
                place.stored,
            );
        }
        let mut writing = locked(&self.writing);
        let Writing { open, full, .. } = &mut *writing;
        let mut writers = open.get_mut(&(domain, class)).into_iter().chain(full);
        if let Some(writer) = writers.find(|w| w.header.pack == place.pack) {
            return writer.read(place.at, place.stored);
        }
        drop(writing);
        let (file, _) = pack::open(&self.packs_dir(), place.pack)?;
        let file = Arc::new(file);
        self.files.insert(place.pack, Arc::clone(&file));
        pack::read(
            &file,
            &pack::path(&self.packs_dir(), place.pack),
            place.at,
            place.stored,
        )
    }

    /// A node, from memory where it was read before.
    pub(crate) fn node(&self, domain: u32, id: Id) -> Result<Arc<Node>> {
        if let Some(node) = self.nodes.get(&(domain, id)) {
            return Ok(node);
        }
        let bytes = self.object(domain, Object::Node, id)?;
        let node = Node::decode(bytes.as_slice()).map_err(|e| damaged(format!("node {id}"), e))?;
        let node = Arc::new(node);
        self.nodes.insert((domain, id), Arc::clone(&node));
        Ok(node)
    }

    /// Begins to add objects of a domain.
    #[must_use]
    pub fn session(&self, domain: u32) -> Session<'_> {
        Session {
            store: self,
            domain,
            _gate: Some(self.gate.enter()),
            lost: locked(&self.writing).lost,
            written: AtomicU64::new(0),
            meter: Meter::default(),
            in_use: InUse::default(),
        }
    }

    /// Keeps all sessions out, after those that there are.
    pub(crate) fn alone(&self) -> Alone<'_> {
        self.gate.alone()
    }

    #[cfg(test)]
    pub(crate) fn is_waited_for(&self) -> bool {
        self.gate.is_waited_for()
    }

    /// As [`Store::session`], for whoever keeps all others out already.
    pub(crate) fn session_alone(&self, domain: u32) -> Session<'_> {
        Session {
            store: self,
            domain,
            _gate: None,
            lost: locked(&self.writing).lost,
            written: AtomicU64::new(0),
            meter: Meter::default(),
            in_use: InUse::default(),
        }
    }

    fn append(&self, key: Key, encoded: &Encoded, again: bool, lost: u64) -> Result<u64> {
        let (domain, object, id) = key;
        let mut writing = locked(&self.writing);
        // What it stands on may be gone, and another session would publish it.
        writing.same(lost)?;
        // Another thread may have had the same content. What was published since the caller looked is written a second
        // time: rare, and harmless.
        let there = self
            .pending
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .contains_key(&key);
        if there {
            return Ok(0);
        }
        // But nothing may come to stand deeper than it did: others may stand on it by now.
        if !again && encoded.base.is_some() && self.catalog.place(domain, object, id)?.is_some() {
            return Ok(0);
        }
        let Some(place) = self.write(&mut writing, domain, encoded)? else {
            return Ok(0);
        };
        self.pending
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(key, place);
        Ok((RECORD + encoded.bytes.len()) as u64)
    }

    /// Puts objects in the place of those that are there, all at once: nobody sees one of them stand on what another was.
    fn exchange(&self, domain: u32, objects: impl Iterator<Item = Encoded>) -> Result<u64> {
        let mut writing = locked(&self.writing);
        let (mut places, mut written) = (Vec::new(), 0);
        for encoded in objects {
            if let Some(place) = self.write(&mut writing, domain, &encoded)? {
                places.push(((domain, encoded.record.object, encoded.record.id), place));
                written += (RECORD + encoded.bytes.len()) as u64;
            }
        }
        self.pending
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(places);
        Ok(written)
    }

    /// Writes an object's record to the pack that is open for it.
    fn write(&self, writing: &mut Writing, domain: u32, encoded: &Encoded) -> Result<Option<Place>> {
        let record = &encoded.record;
        let class = Class::from(record.object);
        if writing
            .open
            .get(&(domain, class))
            .is_some_and(|w| w.length + (RECORD + encoded.bytes.len()) as u64 > FULL && w.length > 1 << 10)
            && let Some(full) = writing.open.remove(&(domain, class))
        {
            writing.full.push(full);
        }
        if !writing.open.contains_key(&(domain, class)) {
            let writer = self.begin(writing, domain, class)?;
            writing.open.insert((domain, class), writer);
        }
        let Some(writer) = writing.open.get_mut(&(domain, class)) else {
            return Ok(None);
        };
        let pack = writer.header.pack;
        let at = match writer.append(record, &encoded.bytes) {
            Ok(at) => at,
            Err(error) => {
                // Whoever shares a full disk is not to wait for the room until the store is opened next.
                self.abandon(writing, &error);
                return Err(error);
            }
        };
        Ok(Some(Place::of(record, encoded.base, pack, at)))
    }

    fn begin(&self, writing: &mut Writing, domain: u32, class: Class) -> Result<Writer> {
        let mut store = [0; 16];
        store
            .iter_mut()
            .zip(&writing.row.id)
            .for_each(|(to, from)| *to = *from);
        let header = Header {
            store,
            pack: writing.row.next_pack,
            domain,
            class,
        };
        // The number counts as used from here on; the row is written with the first batch that names the pack.
        writing.row.next_pack += 1;
        Writer::create(&self.packs_dir(), header)
    }

    /// Makes everything that was added so far durable and visible, together with what `more` puts into the batch.
    pub(crate) fn publish(&self, more: impl FnOnce(&mut Batch) -> Result<()>) -> Result<()> {
        self.publish_since(None, more)
    }

    /// As [`Store::publish`]; `lost` is how often a sync had failed when what is published was begun.
    fn publish_since(&self, lost: Option<u64>, more: impl FnOnce(&mut Batch) -> Result<()>) -> Result<()> {
        let mut batch = self.catalog.batch();
        more(&mut batch)?;
        let mut writing = locked(&self.writing);
        if let Some(lost) = lost {
            writing.same(lost)?;
        }
        fault::point("packs-before-sync");
        if let Err(error) = writing.sync(&mut batch) {
            self.abandon(&mut writing, &error);
            return Err(error);
        }
        fault::point("packs-synced");
        let pending = {
            let pending = self.pending.read().unwrap_or_else(PoisonError::into_inner);
            for ((domain, object, id), place) in pending.iter() {
                batch.place(*domain, *object, *id, place);
            }
            pending.len()
        };
        if pending > 0 {
            batch.store(&writing.row);
        }
        let learned = self.dictionaries.name(&mut batch);
        self.relatives.name(&mut batch);
        self.catalog.write(batch)?;
        fault::point("batch-written");
        self.dictionaries.named(learned);
        writing.full.clear();
        for writer in writing.open.values_mut() {
            writer.named = writer.length;
        }
        // Nothing was added meanwhile: adding takes the same lock.
        self.pending
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
        Ok(())
    }

    /// As a disk that fails at a sync does.
    #[cfg(test)]
    pub(crate) fn fail(&self) {
        let error = Error::Refused("a test".into());
        self.abandon(&mut locked(&self.writing), &error);
    }

    /// Forgets what was added since the last batch: which of it the disk has nobody knows.
    fn abandon(&self, writing: &mut Writing, why: &Error) {
        writing.lost += 1;
        writing.failed = why.to_string();
        let open: HashMap<_, Writer> = std::mem::take(&mut writing.open);
        let full = std::mem::take(&mut writing.full);
        for (key, writer) in open {
            if writer.named == writer.length {
                writing.open.insert(key, writer);
            } else {
                self.files.remove(&writer.header.pack);
                writer.abandon();
            }
        }
        for writer in full {
            self.files.remove(&writer.header.pack);
            writer.abandon();
        }
        let mut pending = self.pending.write().unwrap_or_else(PoisonError::into_inner);
        pending.clear();
        self.dictionaries.abandon();
        self.relatives.abandon();
    }

    /// Which store this is: its packs say the same.
    pub(crate) fn id(&self) -> Vec<u8> {
        locked(&self.writing).row.id.clone()
    }

    /// A pack of its own, for what gc keeps.
    pub(crate) fn begin_pack(&self, domain: u32, class: Class) -> Result<Writer> {
        self.begin(&mut locked(&self.writing), domain, class)
    }

    /// The number of the pack that is begun next.
    pub(crate) fn next_pack(&self) -> u32 {
        locked(&self.writing).row.next_pack
    }

    /// Puts the row with the numbers that are given out into a batch.
    pub(crate) fn counted(&self, batch: &mut Batch) {
        batch.store(&locked(&self.writing).row);
    }

    /// As [`Store::close_packs`], of every domain; and forgets what is in memory of their content.
    pub(crate) fn close_all(&self) -> Result<()> {
        self.publish(|_| Ok(()))?;
        locked(&self.writing).open.clear();
        self.nodes.clear();
        self.bases.clear();
        self.dictionaries.clear();
        Ok(())
    }

    /// Forgets what is in memory of packs that gc has removed.
    pub(crate) fn dropped(&self, pack: u32) {
        self.files.remove(&pack);
    }

    /// Packs that are being written: gc leaves them alone.
    pub(crate) fn open_packs(&self) -> HashSet<u32> {
        let writing = locked(&self.writing);
        let writers = writing.open.values().chain(&writing.full);
        writers.map(|w| w.header.pack).collect()
    }

    /// Closes the packs of a domain that are being written, so that gc may look at them; the next object begins new
    /// ones.
    pub(crate) fn close_packs(&self, domain: u32) -> Result<()> {
        self.publish(|_| Ok(()))?;
        locked(&self.writing).open.retain(|(of, _), _| *of != domain);
        Ok(())
    }

    /// Tells gc, if it looks for what nobody needs, that somebody does.
    pub(crate) fn spare(&self, key: Key) {
        if let Some(spared) = &mut *locked(&self.spared) {
            spared.insert(key);
        }
    }
}

/// Adds objects to one domain. While it lives, gc removes nothing.
pub struct Session<'s> {
    pub(crate) store: &'s Store,
    pub(crate) domain: u32,
    _gate: Option<Within<'s>>,
    lost: u64,
    written: AtomicU64,
    /// What encoding took.
    pub(crate) meter: Meter,
    pub(crate) in_use: InUse,
}

impl Session<'_> {
    /// Bytes that were added to packs.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Makes what was added durable and visible, together with what `more` puts into the batch.
    pub(crate) fn publish(&self, more: impl FnOnce(&mut Batch) -> Result<()>) -> Result<()> {
        self.store.publish_since(Some(self.lost), more)
    }

    /// Adds a chunk, at most [`delta::LONGEST`] bytes, unless it is there; `old` is one that it follows.
    ///
    /// # Errors
    /// A full or failing disk.
    pub fn chunk(&self, bytes: &[u8], old: Option<Id>) -> Result<Id> {
        self.chunk_of(bytes, old, "")
    }

    /// As [`Session::chunk`], of the file of this name.
    pub(crate) fn chunk_of(&self, bytes: &[u8], old: Option<Id>, name: &str) -> Result<Id> {
        let id = self.store.hash.chunk(bytes);
        self.put_of(Object::Chunk, id, bytes, old, name)?;
        Ok(id)
    }

    pub(crate) fn node(&self, node: &Node, old: Option<Id>) -> Result<Id> {
        let id = self.store.hash.name_of(node);
        self.put(Object::Node, id, &node.encode_to_vec(), old)?;
        Ok(id)
    }

    pub(crate) fn put(&self, object: Object, id: Id, bytes: &[u8], old: Option<Id>) -> Result<()> {
        self.put_of(object, id, bytes, old, "")
    }

    fn put_of(&self, object: Object, id: Id, bytes: &[u8], old: Option<Id>, name: &str) -> Result<()> {
        if self.has(object, id)? {
            return Ok(());
        }
        let encoded = self.meter.of(|| self.encoded(object, id, bytes, old, name))?;
        self.add(&encoded, false)
    }

    /// As [`Session::put`] without what it follows, also where the catalog says that it is there: that may be damaged.
    pub(crate) fn put_again(&self, object: Object, id: Id, bytes: &[u8]) -> Result<()> {
        self.add(
            &Encoded::alone(self.store.budget_for(object), object, id, bytes)?,
            true,
        )
    }

    /// Adds an object as it is written; `again` also where the catalog says that it is there.
    pub(crate) fn add(&self, encoded: &Encoded, again: bool) -> Result<()> {
        let key = (self.domain, encoded.record.object, encoded.record.id);
        self.store.spare(key);
        let added = self.store.append(key, encoded, again, self.lost)?;
        self.written.fetch_add(added, Ordering::Relaxed);
        Ok(())
    }

    /// Puts objects in the place of those that are there, all at once.
    pub(crate) fn exchange(&self, objects: impl Iterator<Item = Encoded>) -> Result<()> {
        let written = self.store.exchange(self.domain, objects)?;
        self.written.fetch_add(written, Ordering::Relaxed);
        Ok(())
    }

    /// Whether it is there; then gc spares it.
    pub(crate) fn has(&self, object: Object, id: Id) -> Result<bool> {
        let there = self.store.place(self.domain, object, id)?.is_some();
        if there {
            self.store.spare((self.domain, object, id));
        }
        Ok(there)
    }
}

pub(crate) fn lock(dir: &Path) -> Result<File> {
    let path = dir.join("lock");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(&path)
        .on("open", &path)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(Error::Locked(dir.display().to_string())),
        Err(std::fs::TryLockError::Error(error)) => Err(error).on("lock", &path),
    }
}

/// The file `format` says what the rest is; it is looked at before anything else is.
pub(crate) fn format_of(dir: &Path) -> Result<u32> {
    let path = dir.join("format");
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            if dir.join("catalog").exists() {
                return Err(damaged(path.display(), "it is missing, and the catalog is there"));
            }
            write_format(dir, FORMAT)?;
            return Ok(FORMAT);
        }
        Err(e) => return Err(e).on("read", &path),
    };
    let number = text
        .strip_prefix("diffkeeper store ")
        .and_then(|n| n.trim_end().parse().ok());
    match number {
        Some(found) if (1..=FORMAT).contains(&found) => Ok(found),
        Some(found) => Err(Error::Newer {
            path: dir.display().to_string(),
            found,
            known: FORMAT,
        }),
        None => Err(damaged(path.display(), "it does not say a format")),
    }
}

/// Says of which format a store is from now on.
pub(crate) fn write_format(dir: &Path, format: u32) -> Result<()> {
    sys::replace(
        &dir.join("format"),
        format!("diffkeeper store {format}\n").as_bytes(),
    )
}

/// Puts the packs right after whatever ended the last process: bytes that no batch named were never promised.
/// Packs that are not full are gone on with.
fn recover(dir: &Path, catalog: &Catalog, store: &StoreRow) -> Result<HashMap<(u32, Class), Writer>> {
    let named: HashMap<u32, PackRow> = catalog.packs()?.into_iter().collect();
    for (number, path) in salvage::packs(dir)? {
        if !named.contains_key(&number) {
            sys::remove(&path)?;
        }
    }
    let mut open: HashMap<(u32, Class), Writer> = HashMap::new();
    for (number, row) in named {
        // Not only what is gone on with: gc may have begun a newer one while this was written.
        if u64::from(row.length) >= FULL {
            continue;
        }
        let Some(writer) = Writer::reopen(dir, number, row.length)? else {
            continue;
        };
        let right = writer.header.store.as_slice() == store.id
            && writer.header.domain == row.domain
            && writer.header.class == row.class;
        let newest = open
            .get(&(row.domain, row.class))
            .is_none_or(|w| w.header.pack < number);
        if right && newest {
            open.insert((row.domain, row.class), writer);
        }
    }
    Ok(open)
}
