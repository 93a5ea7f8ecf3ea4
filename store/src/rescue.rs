//! A catalog that is damaged, gone or behind, made whole from the packs.
//!
//! Packs hold every object with its domain, commits among them, and those say state, place in its history and predecessor:
//! objects and histories are found again without the catalog. What only the catalog had is kept where it can still be read (tags,
//! tombstones, waiting restores, the names of domains), and else is gone. A catalog that is behind gets what it lacks in one
//! batch; any other is made anew beside the old one and takes its place by one rename.

mod chain;
mod scan;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt,
    fs::File,
    path::{Path, PathBuf},
};

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use prost::Message;

use crate::{
    catalog::{Catalog, PackRow, Place, StateRow, StoreRow},
    error::{Context, Error, Result},
    id::{Hash, Id},
    pack::Object,
    retention::Tombstone,
    salvage,
    store::{FORMAT, Key, format_of, lock},
    sys,
    watermark::{self, Watermark},
};
use scan::{Places, Scan};

/// How a catalog is made whole, before it is done.
pub struct Rescue {
    dir: PathBuf,
    _lock: File,
    /// The catalog, where only its newest batches are missing.
    behind: Option<Catalog>,
    watermark: Watermark,
    rows: Rows,
    aside: Vec<PathBuf>,
    /// What is wrong with the catalog.
    pub why: String,
    /// Commits that come back, `web@1a2b3c4d5e6f`.
    pub commits: Vec<String>,
    /// Commits that are found nowhere, by state and sequence.
    pub gaps: Vec<(String, u64)>,
    /// Objects that are found in packs.
    pub objects: u64,
    /// Packs that they are in.
    pub packs: u64,
}

/// What is put into the catalog.
#[derive(Default)]
struct Rows {
    store: StoreRow,
    domains: BTreeMap<String, u32>,
    places: Vec<(u32, Object, Id, Place)>,
    packs: Vec<(u32, PackRow)>,
    /// Packs that are not to be known any more.
    gone: Vec<u32>,
    states: BTreeMap<String, StateRow>,
    commits: Vec<(u64, u64, Id, Vec<u8>)>,
    tombstones: Vec<(u64, Tombstone)>,
    tags: Vec<(u64, String, Id)>,
    signatures: Vec<(Id, Vec<u8>)>,
    /// States whose looks are of before what comes back.
    looks: Vec<u64>,
}

impl Rescue {
    /// Looks at the catalog of a store that nobody has open, and at the packs if it needs them; none where it is whole.
    /// `domain` says what content of a state is shared within, where the catalog no longer does.
    ///
    /// # Errors
    /// A store that is open elsewhere or of a newer format, a failing disk.
    pub fn plan(dir: &Path, domain: impl Fn(&str) -> String) -> Result<Option<Rescue>> {
        if !dir.join("packs").is_dir() {
            return Ok(None);
        }
        let lock = lock(dir)?;
        if !dir.join("format").exists() {
            // It is written first, and once: a store without was never there, or lost it.
            return Err(Error::Refused(format!(
                "{} does not say of which format the store is: if it is this version's, write \"diffkeeper store {FORMAT}\" \
                 into it",
                dir.join("format").display()
            )));
        }
        format_of(dir)?;
        let watermark = Watermark::of(dir)?;
        let path = dir.join("catalog");
        let (catalog, why) = match path.exists().then(|| Catalog::open(&path)) {
            None => (None, Some("it is gone".to_owned())),
            Some(Err(error)) => (None, Some(error.to_string())),
            Some(Ok(catalog)) => {
                let unsound = catalog.sound().err().map(|error| error.to_string());
                (Some(catalog), unsound)
            }
        };
        let packs = dir.join("packs");
        let row = catalog
            .as_ref()
            .and_then(|catalog| catalog.store().ok().flatten());
        let behind = match (&catalog, &row, &why) {
            (Some(catalog), Some(_), None) => {
                let reached = watermark.map_or(0, |watermark| watermark.batch);
                match reached.saturating_sub(catalog.batches()?) {
                    0 => return Ok(None),
                    n => Some(n),
                }
            }
            _ => None,
        };
        if row.is_none() && watermark.is_none() && salvage::packs(&packs)?.next().is_none() {
            return Ok(None);
        }
        let why = match (behind, why) {
            (Some(n), _) => format!("its newest {n} batches are missing"),
            (None, Some(why)) => why,
            (None, None) => "it does not know its store".to_owned(),
        };
        let mut rows = match (&catalog, behind) {
            (Some(catalog), None) => catalog.salvage(),
            _ => Rows::default(),
        };
        if let (Some(catalog), Some(_)) = (&catalog, behind) {
            rows.domains = catalog.domains()?.into_iter().collect();
            rows.states = catalog.states()?.into_iter().collect();
        }
        let named: HashMap<u32, PackRow> = match (&catalog, behind) {
            (Some(catalog), Some(_)) => catalog.packs()?.into_iter().collect(),
            _ => HashMap::new(),
        };
        let scan = Scan::of(
            &packs,
            row.as_ref(),
            watermark,
            &named,
            catalog.as_ref().filter(|_| behind.is_some()),
        )?;
        rows.store = row.unwrap_or_default();
        rows.store.id = scan.store.to_vec();
        rows.store.hash = scan.hash as u32;
        rows.store.next_pack = rows.store.next_pack.max(scan.highest + 1);
        let batch = catalog.as_ref().and_then(|catalog| catalog.batches().ok());
        let mut rescue = Rescue {
            dir: dir.to_owned(),
            _lock: lock,
            behind: catalog.filter(|_| behind.is_some()),
            watermark: Watermark {
                store: scan.store,
                hash: scan.hash,
                batch: batch.max(watermark.map(|watermark| watermark.batch)).unwrap_or(0),
            },
            rows,
            aside: scan.aside.clone(),
            why,
            commits: Vec::new(),
            gaps: Vec::new(),
            objects: 0,
            packs: scan.packs.len() as u64,
        };
        rescue.histories(&scan)?;
        rescue.objects(scan)?;
        rescue.domains(domain);
        Ok(Some(rescue))
    }

    /// Rows of the objects that were found, where the catalog does not have them.
    fn objects(&mut self, scan: Scan) -> Result<()> {
        let dir = self.dir.join("packs");
        let there: HashSet<u32> = salvage::packs(&dir)?.map(|(number, _)| number).collect();
        let places = match &self.behind {
            Some(catalog) => together(catalog, &scan.places, &there)?,
            None => scan.places,
        };
        if let Some(catalog) = &self.behind {
            self.rows.gone = unused(catalog, &places, &there)?;
        }
        self.objects = places.len() as u64;
        let rows = places.into_iter();
        self.rows.places = rows
            .map(|((domain, object, id), place)| (domain, object, id, place))
            .collect();
        self.rows.packs = scan.packs;
        Ok(())
    }

    /// Every domain that is used has a name: its own where the catalog still says it.
    fn domains(&mut self, name: impl Fn(&str) -> String) {
        let mut used: BTreeMap<u32, String> = BTreeMap::new();
        for (_, pack) in &self.rows.packs {
            used.entry(pack.domain)
                .or_insert_with(|| format!("domain-{}", pack.domain));
        }
        for (state, row) in &self.rows.states {
            used.insert(row.domain, name(state));
        }
        let numbers: HashSet<u32> = self.rows.domains.values().copied().collect();
        for (number, name) in used {
            if !numbers.contains(&number) {
                let name = match self.rows.domains.contains_key(&name) {
                    true => format!("domain-{number}"),
                    false => name,
                };
                self.rows.domains.insert(name, number);
            }
        }
        let highest = self.rows.domains.values().max().copied().unwrap_or(0);
        self.rows.store.next_domain = self.rows.store.next_domain.max(highest + 1);
    }

    /// Does it. Whatever ends the process meanwhile leaves the old catalog or the new one.
    ///
    /// # Errors
    /// A full or failing disk.
    pub fn run(self) -> Result<()> {
        let packs = self.dir.join("packs");
        for path in &self.aside {
            sys::rename(path, &path.with_extension("pack.damaged"))?;
        }
        sys::sync_dir(&packs)?;
        if let Some(catalog) = &self.behind {
            catalog.count(watermark::Writer::create(&self.dir, self.watermark)?);
            return self.rows.write(catalog);
        }
        let (old, new) = (self.dir.join("catalog"), self.dir.join("catalog.new"));
        remove_all(&new)?;
        let catalog = Catalog::open(&new)?;
        catalog.count(watermark::Writer::create(&self.dir, self.watermark)?);
        self.rows.write(&catalog)?;
        drop(catalog);
        sys::sync_dir(&new)?;
        if old.exists() {
            renameat2(AT_FDCWD, &new, AT_FDCWD, &old, RenameFlags::RENAME_EXCHANGE).on("exchange", &old)?;
            sys::sync_dir(&self.dir)?;
            let aside = self.dir.join("catalog.damaged");
            remove_all(&aside)?;
            sys::rename(&new, &aside)?;
        } else {
            sys::rename(&new, &old)?;
        }
        sys::sync_dir(&self.dir)
    }
}

/// Which of the places that were found the catalog is to have: those of what it does not know, or knows in a pack that is
/// gone, for gc may have moved it since; and of what could else not be read together with those. A recompaction puts what
/// bore something on that.
fn together(catalog: &Catalog, found: &Places, there: &HashSet<u32>) -> Result<Places> {
    let mut taken = Places::new();
    let mut both = Vec::new();
    for ((domain, object, id), place) in found {
        match catalog.place(*domain, *object, *id)? {
            Some(known) if there.contains(&known.pack) => both.push(((*domain, *object, *id), known)),
            _ => {
                taken.insert((*domain, *object, *id), *place);
            }
        }
    }
    let lies_at = |taken: &Places, key: &Key| match taken.get(key) {
        Some(place) => Ok(Some(*place)),
        None => catalog.place(key.0, key.1, key.2),
    };
    // What is known of an object is right as long as what it stands on stands lower; that is looked at first.
    both.sort_by_key(|(_, known)| known.depth());
    for (key, known) in both {
        let Some(base) = known.base else { continue };
        let below = lies_at(&taken, &(key.0, key.1, base.id))?;
        if below.is_none_or(|below| below.depth() >= base.depth)
            && let Some(place) = found.get(&key)
        {
            taken.insert(key, *place);
        }
    }
    // And what was found is right where that is so, too; what serves it then stands lower than before, which harms nobody.
    let mut next: Vec<Key> = taken.keys().copied().collect();
    while let Some(key) = next.pop() {
        let Some(base) = taken.get(&key).and_then(|place| place.base) else {
            continue;
        };
        let below = (key.0, key.1, base.id);
        if lies_at(&taken, &below)?.is_none_or(|now| now.depth() >= base.depth)
            && let Some(place) = found.get(&below)
            && taken.insert(below, *place).is_none()
        {
            next.push(below);
        }
    }
    Ok(taken)
}

/// Packs that are gone, and that nobody misses: all that the catalog had in them was found elsewhere.
fn unused(catalog: &Catalog, taken: &Places, there: &HashSet<u32>) -> Result<Vec<u32>> {
    let mut gone: HashSet<u32> = catalog.packs()?.into_iter().map(|(number, _)| number).collect();
    gone.retain(|number| !there.contains(number));
    for (_, domain) in catalog.domains()? {
        catalog.objects(domain, |object, id, place| {
            if !taken.contains_key(&(domain, object, id)) {
                gone.remove(&place.pack);
            }
            Ok(())
        })?;
    }
    Ok(gone.into_iter().collect())
}

fn remove_all(dir: &Path) -> Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e).on("remove", dir),
        _ => Ok(()),
    }
}

impl Rows {
    fn write(&self, catalog: &Catalog) -> Result<()> {
        let mut batch = catalog.batch();
        batch.store(&self.store);
        for (name, number) in &self.domains {
            batch.domain(name, *number);
        }
        for (domain, object, id, place) in &self.places {
            batch.place(*domain, *object, *id, place);
        }
        for (number, row) in &self.packs {
            batch.pack(*number, row);
        }
        for number in &self.gone {
            batch.forget_pack(*number);
        }
        for (name, row) in &self.states {
            batch.state(name, row);
        }
        for (state, sequence, id, bytes) in &self.commits {
            batch.commit(*state, *sequence, *id, bytes);
        }
        for (state, tombstone) in &self.tombstones {
            batch.tombstone(*state, tombstone);
        }
        for (state, name, id) in &self.tags {
            batch.tag(*state, name, *id);
        }
        for (commit, signature) in &self.signatures {
            batch.signature(*commit, signature);
        }
        for state in &self.looks {
            catalog.looks(*state, |entry, _| {
                batch.forget_look(*state, entry);
                Ok(())
            })?;
        }
        catalog.write(batch)
    }
}

impl Catalog {
    /// Reads every row.
    fn sound(&self) -> Result<()> {
        self.strangers()?;
        self.store()?;
        self.batches()?;
        self.packs()?;
        for (_, domain) in self.domains()? {
            self.objects(domain, |_, _, _| Ok(()))?;
        }
        for (_, state) in self.states()? {
            self.commits(state.number, u64::MAX, |_, _| Ok(true))?;
            self.tags(state.number)?;
            self.tombstones(state.number)?;
            self.looks(state.number, |_, _| Ok(()))?;
        }
        Ok(())
    }

    /// What can still be read of what only the catalog has: of each kind of row as many as come before one that cannot.
    fn salvage(&self) -> Rows {
        let mut rows = Rows::default();
        // Where a kind of row ends early, the rest is lost, and that is all that can be said.
        let _ = self.under(b"D", |name, row| {
            if let (Ok(name), Ok(number)) = (std::str::from_utf8(name), row.try_into()) {
                rows.domains.insert(name.to_owned(), u32::from_be_bytes(number));
            }
            Ok(())
        });
        let _ = self.under(b"S", |name, row| {
            if let (Ok(name), Ok(row)) = (std::str::from_utf8(name), StateRow::decode(row)) {
                rows.states.insert(name.to_owned(), row);
            }
            Ok(())
        });
        let number = |key: &[u8]| key.first_chunk::<8>().map(|number| u64::from_be_bytes(*number));
        let _ = self.under(b"T", |key, row| {
            if let (Some(state), Ok(tombstone)) = (number(key), Tombstone::decode(row)) {
                rows.tombstones.push((state, tombstone));
            }
            Ok(())
        });
        let _ = self.under(b"R", |key, row| {
            let name = std::str::from_utf8(key.get(8..).unwrap_or_default());
            if let (Some(state), Ok(name), Some(id)) = (number(key), name, Id::from_slice(row)) {
                rows.tags.push((state, name.to_owned(), id));
            }
            Ok(())
        });
        let _ = self.under(b"G", |key, row| {
            let commit = Id::from_slice(key);
            rows.signatures
                .extend(commit.map(|commit| (commit, row.to_vec())));
            Ok(())
        });
        let _ = self.under(b"H", |key, row| {
            let sequence = key.get(8..).and_then(number);
            if let (Some(state), Some(sequence)) = (number(key), sequence) {
                // Its name is not known yet: by which hash, the packs say.
                rows.commits.push((state, sequence, Id([0; 32]), row.to_vec()));
            }
            Ok(())
        });
        rows
    }
}

impl fmt::Display for Rescue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "the catalog: {}", self.why)?;
        let how = if self.behind.is_some() {
            "is completed"
        } else {
            "is made anew"
        };
        writeln!(
            f,
            "it {how} from {} packs, with {} objects and {} commits",
            self.packs,
            self.objects,
            self.commits.len()
        )?;
        for path in &self.aside {
            writeln!(f, "put aside, nothing can be told of it: {}", path.display())?;
        }
        for (state, sequence) in &self.gaps {
            writeln!(
                f,
                "lost: commit {sequence} of {state}: all of it, what it said included"
            )?;
        }
        for commit in self.commits.iter().filter(|_| self.behind.is_some()) {
            writeln!(f, "comes back: {commit}")?;
        }
        Ok(())
    }
}

/// The hash that the names of objects are of.
fn hash_of(row: Option<&StoreRow>, watermark: Option<Watermark>) -> Option<Hash> {
    row.and_then(|row| Hash::of_number(row.hash))
        .or(watermark.map(|watermark| watermark.hash))
}
