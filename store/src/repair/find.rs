//! What is there of a dedup domain, and where else it stands.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs::File,
    path::PathBuf,
    rc::Rc,
};

use prost::Message;

use crate::{
    catalog::Place,
    error::{Context, Result},
    format::{Child, Commit, Entry, Kind, Node, Piece, Shown, key, place},
    id::Id,
    pack::{self, Class, HEADER, Header, Object, RECORD, Record},
    salvage::{self, Holds},
    store::Store,
    told::{Answer, heed},
};

/// Where an object stands a second time.
#[derive(Clone)]
struct Spare {
    path: PathBuf,
    at: u32,
    record: Record,
    base: Option<Id>,
}

/// What gives an object that its row does not lead to.
#[derive(Clone)]
enum Copy {
    /// The catalog itself.
    Row(Vec<u8>),
    /// The same content in another domain.
    Domain(u32, Place),
    /// Its own record, whose base another copy gives.
    Own(Place),
    /// Bytes that no row leads to.
    Spare(Spare),
}

/// What was found of a domain.
pub(super) struct Found<'s> {
    store: &'s Store,
    pub domain: u32,
    rows: Vec<(Object, Id, Place)>,
    /// Objects whose row leads to nothing, or to something else.
    bad: HashSet<(Object, Id)>,
    /// Those of them of which nothing more is known than that they stand on such a one.
    standing: HashMap<(Object, Id), Place>,
    /// Objects of which another copy is being looked for: none gives itself.
    sought: HashSet<(Object, Id)>,
    /// Where all that no row names stands; looked for when it is first needed.
    spares: Option<HashMap<(Object, Id), Spare>>,
    /// Objects that another copy gives.
    again: HashMap<(Object, Id), Copy>,
    /// Objects that are nowhere, and that commits need.
    lost: HashSet<(Object, Id)>,
    /// By node of a tree: what is lost below it.
    below: HashMap<Id, Rc<Vec<String>>>,
    lists: HashMap<Id, bool>,
}

impl<'s> Found<'s> {
    pub fn new(store: &'s Store, domain: u32) -> Result<Found<'s>> {
        let mut rows = Vec::new();
        store.catalog.objects(domain, |object, id, place| {
            rows.push((object, id, place));
            Ok(())
        })?;
        rows.sort_by_key(|(.., place)| (place.pack, place.at));
        Ok(Found {
            store,
            domain,
            rows,
            bad: HashSet::new(),
            standing: HashMap::new(),
            sought: HashSet::new(),
            spares: None,
            again: HashMap::new(),
            lost: HashSet::new(),
            below: HashMap::new(),
            lists: HashMap::new(),
        })
    }

    /// Reads every object; answers with the packs in which one is damaged.
    pub fn read_all<A: Answer>(
        &mut self,
        mut told: impl FnMut(u64, u64) -> A,
    ) -> Result<BTreeMap<u32, String>> {
        let mut packs = BTreeMap::new();
        let of = self.rows.len() as u64;
        for (done, (object, id, place)) in (0..).zip(&self.rows) {
            heed(told(done, of))?;
            if let Err(error) = self.store.record(self.domain, *object, *id, *place) {
                self.bad.insert((*object, *id));
                match place.base {
                    Some(base) if self.store.base(self.domain, *object, base).is_err() => {
                        self.standing.insert((*object, *id), *place);
                    }
                    _ => {
                        packs.entry(place.pack).or_insert(error.to_string());
                    }
                }
            }
        }
        Ok(packs)
    }

    /// How many objects another copy gives.
    pub fn recovered(&self) -> u64 {
        self.again.len() as u64
    }

    /// Whether no object needs anything.
    pub fn nothing(&self) -> bool {
        self.bad.is_empty() && self.again.is_empty() && self.newly_lost().next().is_none()
    }

    /// Objects of a pack that are whole.
    pub fn whole_in(&self, pack: u32) -> impl Iterator<Item = &(Object, Id, Place)> {
        let of_pack = self.rows.iter().filter(move |(.., place)| place.pack == pack);
        of_pack.filter(|(object, id, _)| !self.bad.contains(&(*object, *id)))
    }

    /// Objects that another copy gives.
    pub fn again(&self) -> impl Iterator<Item = &(Object, Id)> {
        self.again.keys()
    }

    /// Objects that are nowhere, and of which that was not known.
    pub fn newly_lost(&self) -> impl Iterator<Item = &(Object, Id)> {
        let known = |(object, id): &(Object, Id)| self.store.catalog.is_lost(self.domain, *object, *id);
        self.lost.iter().filter(move |lost| !known(lost).unwrap_or(false))
    }

    /// Rows that lead nowhere, of objects that nobody needs.
    pub fn unneeded(&self) -> impl Iterator<Item = &(Object, Id)> {
        self.bad
            .iter()
            .filter(|bad| !self.again.contains_key(bad) && !self.lost.contains(bad))
    }

    /// Whether an object is there, or anywhere else.
    fn has(&mut self, object: Object, id: Id) -> Result<bool> {
        let what = (object, id);
        if self.lost.contains(&what) {
            return Ok(false);
        }
        if self.again.contains_key(&what) {
            return Ok(true);
        }
        if !self.bad.contains(&what) && self.store.catalog.place(self.domain, object, id)?.is_some() {
            return Ok(true);
        }
        match self.elsewhere(object, id)? {
            Some(copy) => {
                self.again.insert(what, copy);
                Ok(true)
            }
            None => {
                self.lost.insert(what);
                Ok(false)
            }
        }
    }

    /// What an object holds, wherever it is.
    pub fn bytes(&mut self, object: Object, id: Id) -> Result<Option<Vec<u8>>> {
        if !self.has(object, id)? {
            // Of a commit's copy nothing hangs on.
            if object == Object::Commit {
                self.lost.remove(&(object, id));
            }
            return Ok(None);
        }
        match self.again.get(&(object, id)) {
            Some(copy) => self.copied(object, id, copy.clone()),
            None => self.store.object(self.domain, object, id).map(Some),
        }
    }

    fn copied(&mut self, object: Object, id: Id, copy: Copy) -> Result<Option<Vec<u8>>> {
        let (path, at, record, base) = match copy {
            Copy::Row(bytes) => return Ok(Some(bytes)),
            Copy::Domain(domain, place) => return Ok(self.store.record(domain, object, id, place).ok()),
            Copy::Own(place) => (
                pack::path(&self.store.packs_dir(), place.pack),
                place.at,
                place.record(object, id),
                place.base.map(|base| base.id),
            ),
            Copy::Spare(spare) => (spare.path, spare.at, spare.record, spare.base),
        };
        let under = match base {
            None => None,
            Some(base) => match self.sought_bytes(object, base)? {
                None => return Ok(None),
                under => under,
            },
        };
        let file = File::open(&path).on("open", &path)?;
        let bytes = pack::read(&file, &path, at, record.stored)?;
        let bytes = bytes.get(RECORD..).unwrap_or_default();
        Ok(pack::content(self.store.hash, &record, bytes, under.as_deref()).ok())
    }

    /// What a base holds. That it is nowhere matters to what stands on it alone.
    fn sought_bytes(&mut self, object: Object, base: Id) -> Result<Option<Vec<u8>>> {
        let what = (object, base);
        if self.sought.contains(&what) {
            return Ok(None);
        }
        let known = self.lost.contains(&what);
        let bytes = self.bytes(object, base)?;
        if bytes.is_none() && !known {
            self.lost.remove(&what);
        }
        Ok(bytes)
    }

    /// A commit's copy in the packs is made good from the catalog.
    pub fn refill(&mut self, id: Id, bytes: Vec<u8>) -> Result<()> {
        let what = (Object::Commit, id);
        let there = self.store.catalog.place(self.domain, what.0, id)?.is_some();
        if !there || self.bad.contains(&what) {
            self.again.insert(what, Copy::Row(bytes));
        }
        Ok(())
    }

    /// The same object in another domain, or where no row leads.
    fn elsewhere(&mut self, object: Object, id: Id) -> Result<Option<Copy>> {
        for (_, domain) in self.store.catalog.domains()? {
            if domain != self.domain
                && let Some(place) = self.store.catalog.place(domain, object, id)?
                && self.store.record(domain, object, id, place).is_ok()
            {
                return Ok(Some(Copy::Domain(domain, place)));
            }
        }
        if self.spares.is_none() {
            self.spares = Some(spares(self.store)?);
        }
        let what = (object, id);
        let spare = self.spares.as_ref().and_then(|all| all.get(&what)).cloned();
        let own = self.standing.get(&what).copied().map(Copy::Own);
        self.sought.insert(what);
        let mut found = None;
        for copy in own.into_iter().chain(spare.map(Copy::Spare)) {
            if self.copied(object, id, copy.clone())?.is_some() {
                found = Some(copy);
                break;
            }
        }
        self.sought.remove(&what);
        Ok(found)
    }

    /// What of a commit is lost.
    pub fn commit(&mut self, commit: &Commit) -> Result<Vec<String>> {
        let Ok(top) = commit.tree_id() else {
            return Ok(vec!["its tree has no name".into()]);
        };
        Ok(match self.tree(top)? {
            Some(lost) => lost.to_vec(),
            None => vec![format!("all {} entries", commit.entries)],
        })
    }

    fn node(&mut self, id: Id) -> Result<Option<Node>> {
        let bytes = self.bytes(Object::Node, id)?;
        Ok(bytes.and_then(|bytes| Node::decode(bytes.as_slice()).ok()))
    }

    /// What is lost below a node; nothing where it is lost itself.
    fn tree(&mut self, id: Id) -> Result<Option<Rc<Vec<String>>>> {
        if let Some(known) = self.below.get(&id) {
            return Ok(Some(known.clone()));
        }
        let Some(node) = self.node(id)? else {
            return Ok(None);
        };
        let mut lost = Vec::new();
        for item in &node.items {
            if node.level == 0 {
                match Entry::read(item) {
                    Ok(entry) if self.content(&entry)? => {}
                    Ok(entry) => lost.push(Shown(&entry.key).to_string()),
                    Err(error) => lost.push(error.to_string()),
                }
                continue;
            }
            let Ok(child) = Child::decode(item.as_slice()) else {
                lost.push("entries of a node that cannot be read".into());
                continue;
            };
            let below = match Id::from_slice(&child.id) {
                Some(id) => self.tree(id)?,
                None => None,
            };
            match below {
                Some(below) => lost.extend(below.iter().cloned()),
                None => lost.push(format!("{} entries from {} on", child.count, Shown(&child.key))),
            }
        }
        let lost = Rc::new(lost);
        self.below.insert(id, lost.clone());
        Ok(Some(lost))
    }

    /// Whether all of a file's content is there.
    fn content(&mut self, entry: &Entry) -> Result<bool> {
        match entry.content_id() {
            Some(chunk) if entry.height == 0 => self.has(Object::Chunk, chunk),
            Some(list) => self.list(list),
            None => Ok(true),
        }
    }

    fn list(&mut self, id: Id) -> Result<bool> {
        if let Some(known) = self.lists.get(&id) {
            return Ok(*known);
        }
        let mut whole = true;
        match self.node(id)? {
            None => whole = false,
            // All of it is looked at: what is lost is to be known.
            Some(node) => {
                for item in &node.items {
                    whole &= if node.level == 0 {
                        let piece = Piece::decode(item.as_slice()).unwrap_or_default();
                        match Id::from_slice(&piece.chunk) {
                            Some(chunk) => self.has(Object::Chunk, chunk)?,
                            None => piece.chunk.is_empty(),
                        }
                    } else {
                        let child = Child::decode(item.as_slice()).unwrap_or_default();
                        match Id::from_slice(&child.id) {
                            Some(list) => self.list(list)?,
                            None => false,
                        }
                    };
                }
            }
        }
        self.lists.insert(id, whole);
        Ok(whole)
    }

    /// The entries of a commit that are left: those with their content, and a directory above each.
    pub fn entries(&mut self, commit: &Commit) -> Result<BTreeMap<Vec<u8>, Entry>> {
        let mut left = BTreeMap::new();
        if let Ok(top) = commit.tree_id() {
            self.gather(top, &mut left)?;
        }
        let firsts: HashSet<Vec<u8>> = left.keys().cloned().collect();
        left.retain(|_, entry| entry.link.is_empty() || firsts.contains(&entry.link));
        let mut above = BTreeMap::new();
        for entry_key in left.keys() {
            let (root, path) = place(entry_key);
            let mut end = path.len();
            loop {
                end = path
                    .get(..end)
                    .and_then(|path| path.iter().rposition(|byte| *byte == b'/'))
                    .unwrap_or(0);
                let directory = key(root, path.get(..end).unwrap_or_default());
                if *entry_key != directory && !left.contains_key(&directory) {
                    let entry = Entry {
                        key: directory.clone(),
                        kind: Kind::Directory as i32,
                        mode: 0o755,
                        ..Entry::default()
                    };
                    above.insert(directory, entry);
                }
                if end == 0 {
                    break;
                }
            }
        }
        left.extend(above);
        Ok(left)
    }

    fn gather(&mut self, id: Id, left: &mut BTreeMap<Vec<u8>, Entry>) -> Result<()> {
        let Some(node) = self.node(id)? else {
            return Ok(());
        };
        for item in &node.items {
            if node.level > 0 {
                let child = Child::decode(item.as_slice()).unwrap_or_default();
                if let Some(id) = Id::from_slice(&child.id) {
                    self.gather(id, left)?;
                }
            } else if let Ok(entry) = Entry::read(item)
                && self.content(&entry)?
            {
                left.insert(entry.key.clone(), entry);
            }
        }
        Ok(())
    }
}

/// Every whole record that no row leads to: written twice, not needed when it was last looked, of a pack that was put aside.
fn spares(store: &Store) -> Result<HashMap<(Object, Id), Spare>> {
    let dir = store.packs_dir();
    let mut found = HashMap::new();
    for file in std::fs::read_dir(&dir).on("read", &dir)? {
        let path = file.on("read", &dir)?.path();
        let bytes = std::fs::read(&path).on("read", &path)?;
        let header = bytes.first_chunk::<HEADER>().and_then(Header::read);
        let classes: &[Class] = match &header {
            Some(header) if header.store.as_slice() != store.id() => continue,
            Some(header) => &[header.class],
            None => &[Class::Data, Class::Meta],
        };
        for class in classes {
            salvage::records(store.hash, *class, &bytes, HEADER, |record| {
                let salvage::Found {
                    at, record, holds, ..
                } = record;
                let base = match holds {
                    Holds::Content(_) => None,
                    Holds::On(base) => Some(base),
                };
                let named = match &header {
                    Some(header) => store.catalog.place(header.domain, record.object, record.id)?,
                    None => None,
                };
                let here = |place: Place| Some(place.pack) == header.map(|h| h.pack) && place.at == at;
                let aside = path.extension().is_none_or(|extension| extension != "pack");
                if aside || !named.is_some_and(here) {
                    let spare = Spare {
                        path: path.clone(),
                        at,
                        record,
                        base,
                    };
                    // The less it takes to read it, the better.
                    let known = found.get(&(record.object, record.id));
                    if known.is_none_or(|known: &Spare| known.record.depth >= record.depth) {
                        found.insert((record.object, record.id), spare);
                    }
                }
                Ok(())
            })?;
        }
    }
    Ok(found)
}
