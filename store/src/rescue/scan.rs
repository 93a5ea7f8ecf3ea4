//! What the packs hold, without the catalog.

use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
};

use crate::{
    catalog::{Catalog, PackRow, Place, StoreRow},
    error::{Context, Error, Result, damaged},
    format::Commit,
    id::{Hash, Id},
    pack::{self, HEADER, Header, Object, RECORD},
    rescue::hash_of,
    salvage::{self, Holds},
    store::Key,
    watermark::Watermark,
};

/// A commit that was found.
pub(super) struct Candidate {
    pub commit: Commit,
    pub bytes: Vec<u8>,
    pub domain: u32,
    /// It stands where records are expected: a container cannot have made it up.
    pub trusted: bool,
}

/// Where objects are.
pub(super) type Places = HashMap<Key, Place>;

/// A record that stands on another: its domain, object and place.
type Standing = (u32, Object, Id, Place);

/// What was found.
pub(super) struct Scan {
    pub store: [u8; 16],
    pub hash: Hash,
    pub places: Places,
    pub packs: Vec<(u32, PackRow)>,
    pub commits: HashMap<Id, Candidate>,
    /// Packs that no domain can be told of.
    pub aside: Vec<PathBuf>,
    /// The highest number of a pack.
    pub highest: u32,
}

impl Scan {
    /// Reads the packs, of those that are `named` only what lies behind that; `catalog` says where the rest of those is.
    pub fn of(
        dir: &Path,
        row: Option<&StoreRow>,
        watermark: Option<Watermark>,
        named: &HashMap<u32, PackRow>,
        catalog: Option<&Catalog>,
    ) -> Result<Scan> {
        let mut heads = Vec::new();
        let mut highest = named.keys().max().copied().unwrap_or(0);
        for (number, path) in salvage::packs(dir)? {
            highest = highest.max(number);
            let bytes = std::fs::read(&path).on("read", &path)?;
            let header = bytes.first_chunk::<HEADER>().and_then(Header::read);
            heads.push((number, path, header.filter(|header| header.pack == number)));
        }
        let of_row = row.and_then(|row| row.id.as_slice().try_into().ok());
        let first = heads
            .iter()
            .find_map(|(.., header)| header.map(|header| header.store));
        let store = of_row
            .or(watermark.map(|watermark| watermark.store))
            .or(first)
            .ok_or_else(|| damaged(dir.display(), "no pack says of which store it is"))?;
        let hash = match hash_of(row, watermark) {
            Some(hash) => hash,
            None => guess(&heads)?,
        };
        let mut scan = Scan {
            store,
            hash,
            places: Places::new(),
            packs: Vec::new(),
            commits: HashMap::new(),
            aside: Vec::new(),
            highest,
        };
        let mut standing = Vec::new();
        for (number, path, header) in heads {
            let known = named.get(&number);
            match header.filter(|header| header.store == store) {
                Some(header) => scan.pack(number, &path, &header, known, &mut standing)?,
                // A pack that is named is for a repair to look at.
                None if known.is_none() => scan.aside.push(path),
                None => {}
            }
        }
        scan.stand(dir, catalog, standing)?;
        Ok(scan)
    }

    /// Adds what stands on others, where those are there: the lowest first, as their bases are lower.
    fn stand(&mut self, dir: &Path, catalog: Option<&Catalog>, mut standing: Vec<Standing>) -> Result<()> {
        standing.sort_by_key(|(.., place)| place.depth());
        for (domain, object, id, place) in standing {
            // A copy that stands lower serves all that stand on it.
            if !self.places.contains_key(&(domain, object, id))
                && self.content(dir, catalog, domain, object, id, place)?.is_some()
            {
                self.places.insert((domain, object, id), place);
            }
        }
        Ok(())
    }

    /// What a record holds that may stand on others, if they are all whole.
    fn content(
        &self,
        dir: &Path,
        catalog: Option<&Catalog>,
        domain: u32,
        object: Object,
        id: Id,
        place: Place,
    ) -> Result<Option<Vec<u8>>> {
        let under = match place.base {
            None => None,
            Some(base) => {
                let below = match (self.places.get(&(domain, object, base.id)), catalog) {
                    (Some(below), _) => Some(*below),
                    (None, Some(catalog)) => catalog.place(domain, object, base.id)?,
                    (None, None) => None,
                };
                let Some(below) = below.filter(|below| below.depth() < base.depth) else {
                    return Ok(None);
                };
                let under = self.content(dir, catalog, domain, object, base.id, below)?;
                let Some(under) = under else {
                    return Ok(None);
                };
                Some(under)
            }
        };
        let Ok((file, _)) = pack::open(dir, place.pack) else {
            return Ok(None);
        };
        let bytes = match pack::read(&file, &pack::path(dir, place.pack), place.at, place.stored) {
            // What stands on it is left out, and nothing else.
            Err(Error::Damaged { .. }) => return Ok(None),
            read => read?,
        };
        let record = place.record(object, id);
        let bytes = bytes.get(RECORD..).unwrap_or_default();
        Ok(pack::content(self.hash, &record, bytes, under.as_deref()).ok())
    }

    fn pack(
        &mut self,
        number: u32,
        path: &Path,
        header: &Header,
        known: Option<&PackRow>,
        standing: &mut Vec<Standing>,
    ) -> Result<()> {
        let bytes = std::fs::read(path).on("read", path)?;
        let begin = known.map_or(HEADER, |row| row.length as usize);
        let (places, commits) = (&mut self.places, &mut self.commits);
        let mut seen = HashSet::new();
        let end = salvage::records(self.hash, header.class, &bytes, begin, |found| {
            let record = found.record;
            let content = match found.holds {
                Holds::Content(content) => content,
                Holds::On(base) => {
                    let place = Place::of(&record, Some(base), number, found.at);
                    standing.push((header.domain, record.object, record.id, place));
                    return Ok(());
                }
            };
            if record.object == Object::Commit
                && let Ok(commit) = Commit::read(&content)
            {
                let candidate = Candidate {
                    commit,
                    bytes: content,
                    domain: header.domain,
                    trusted: found.trusted,
                };
                let known = commits.get(&record.id).is_some_and(|known| known.trusted);
                if !known {
                    commits.insert(record.id, candidate);
                }
            }
            if seen.insert((record.object, record.id)) {
                let place = Place::of(&record, None, number, found.at);
                places.insert((header.domain, record.object, record.id), place);
            }
            Ok(())
        })?;
        if end > begin {
            let row = PackRow {
                domain: header.domain,
                class: header.class,
                length: u32::try_from(end).map_err(|_| damaged(path.display(), "it is too long"))?,
            };
            self.packs.push((number, row));
        } else if known.is_none() && bytes.len() > HEADER + RECORD {
            // Nothing in it is whole: it is not thrown away all the same.
            self.aside.push(path.to_owned());
        }
        Ok(())
    }
}

/// Which hash the first records are named by.
fn guess(heads: &[(u32, PathBuf, Option<Header>)]) -> Result<Hash> {
    for (_, path, header) in heads {
        let Some(header) = header else { continue };
        let bytes = std::fs::read(path).on("read", path)?;
        for hash in [Hash::Blake3, Hash::Sha256] {
            let mut fits = false;
            salvage::records(hash, header.class, &bytes, HEADER, |found| {
                fits |= matches!(found.holds, Holds::Content(_));
                Ok(())
            })?;
            if fits {
                return Ok(hash);
            }
        }
    }
    Err(damaged("every pack", "no record in it is whole"))
}
