//! Looking whether everything is there, and what it was.

use std::{collections::HashSet, ops::ControlFlow};

use prost::Message;

use crate::{
    catalog::PackRow,
    error::{Context, Error, Result},
    format::{Piece, Shown},
    id::Id,
    pack::{self, Object},
    reach::{child_of, entries_of},
    store::Store,
    told::{Answer, heed},
};

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// What, as a person reads it.
    pub what: String,
    /// The versions and paths that need it: `web@1a2b3c rootfs:/etc/hosts`. Of very many the first ones.
    pub needed_by: Vec<String>,
}

/// What a verification found.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Verified {
    /// Commits whose trees were walked.
    pub commits: u64,
    /// Objects that were looked up.
    pub objects: u64,
    /// Of so many.
    pub of_objects: u64,
    /// Bytes that were read and compared with their names.
    pub read: u64,
    /// What is wrong.
    pub problems: Vec<Problem>,
}

/// One version that is walked.
struct Walk<'a> {
    domain: u32,
    version: &'a str,
    /// A repair has marked it.
    known: bool,
    bad: &'a HashSet<(u32, Object, Id)>,
}

/// So many places are named for one problem.
const NAMED: usize = 20;

impl Store {
    /// Verifies the structure: the chain of every history, every tree, that every chunk has a place in a pack that is
    /// long enough. With `data`, that share (1 to 100 percent) of all chunks is read as well. Commits may go on
    /// meanwhile. `told` gets what was done so far, and may end it.
    ///
    /// # Errors
    /// A disk or catalog that cannot be read at all; what is damaged is a [`Problem`].
    pub fn verify<A: Answer>(&self, data: u8, mut told: impl FnMut(&Verified) -> A) -> Result<Verified> {
        let mut done = Verified::default();
        // What is in memory may be damaged on the disk.
        self.bases.clear();
        self.dictionaries.clear();
        self.verify_packs(&mut done)?;
        let strangers = self.catalog.strangers()?;
        if strangers > 0 {
            done.wrong(
                format!("{strangers} rows of the catalog are of no known kind"),
                None,
            );
        }
        let mut bad: HashSet<(u32, Object, Id)> = HashSet::new();
        for (_, domain) in self.catalog.domains()? {
            let mut objects = Vec::new();
            self.catalog.objects(domain, |object, id, place| {
                objects.push((object, id, place));
                Ok(())
            })?;
            objects.sort_by_key(|(.., place)| (place.pack, place.at));
            done.of_objects += objects.len() as u64;
            for (object, id, place) in objects {
                done.objects += 1;
                if let Some(base) = place.base
                    && let below = self.place(domain, object, base.id)?
                    && below.is_none_or(|below| below.depth() >= base.depth)
                    && self.place(domain, object, id)? == Some(place)
                {
                    bad.insert((domain, object, id));
                    let problem = match below {
                        None => "is missing",
                        Some(_) => "does not stand lower",
                    };
                    done.wrong(
                        format!("{object:?} {id} stands on {}, which {problem}", base.id),
                        None,
                    );
                    continue;
                }
                // Which chunks a share is of, their names decide: another share next time is no use to whoever asks
                // for the same again.
                let chosen = u32::from(id.0[31]) * 100 < u32::from(data) * 256;
                if object == Object::Chunk && !chosen {
                    continue;
                }
                match self.record(domain, object, id, place) {
                    Ok(bytes) => done.read += bytes.len() as u64,
                    // Moved by gc since.
                    Err(_) if self.place(domain, object, id)? != Some(place) => {}
                    Err(error) => {
                        bad.insert((domain, object, id));
                        done.wrong(error.to_string(), None);
                    }
                }
                heed(told(&done))?;
            }
        }
        for state in self.states()? {
            if let Err(error) = self.audit(&state, &[]) {
                done.wrong(error.to_string(), Some(state.name.clone()));
            }
            self.log(&state, u64::MAX, |recorded| {
                if self.place(state.domain, Object::Commit, recorded.id)?.is_none() {
                    done.wrong(
                        format!("the packs have no copy of commit {}", recorded.id.short()),
                        Some(state.name.clone()),
                    );
                }
                Ok(ControlFlow::Continue(()))
            })?;
        }
        for (_, domain) in self.catalog.domains()? {
            let mut seen = HashSet::new();
            // Behind what a repair has marked may lie what it found nowhere: that was said then.
            let marked = self.marked(domain)?;
            for (id, commit) in self.live_commits(domain)? {
                done.commits += 1;
                let version = format!("{}@{}", commit.state, id.short());
                let known = marked.contains(&id);
                match commit.tree_id() {
                    Ok(top) => {
                        let walk = Walk {
                            domain,
                            version: &version,
                            known,
                            bad: &bad,
                        };
                        self.verify_node(top, &walk, None, &mut seen, &mut done)?;
                    }
                    Err(error) => done.wrong(error.to_string(), Some(version)),
                }
                heed(told(&done))?;
            }
        }
        Ok(done)
    }

    /// Goes down a tree or list; `within` is the file whose list it is. False where something below is wrong: such nodes
    /// are gone into for every version, so that each that needs them is named.
    fn verify_node(
        &self,
        id: Id,
        walk: &Walk<'_>,
        within: Option<&str>,
        seen: &mut HashSet<Id>,
        done: &mut Verified,
    ) -> Result<bool> {
        if seen.contains(&id) {
            return Ok(true);
        }
        let Walk { domain, version, .. } = *walk;
        let place = || match within {
            Some(path) => format!("{version} {path}"),
            None => version.to_owned(),
        };
        let node = match self.node(domain, id) {
            Ok(node) => node,
            Err(Error::Catalog { context, source }) => return Err(Error::Catalog { context, source }),
            Err(_) if walk.known && self.catalog.is_lost(domain, Object::Node, id)? => return Ok(false),
            Err(error) => {
                done.wrong(error.to_string(), Some(place()));
                return Ok(false);
            }
        };
        let mut right = true;
        if node.level > 0 {
            for item in &node.items {
                right &= match child_of(item) {
                    Ok(child) => self.verify_node(child, walk, within, seen, done)?,
                    Err(error) => {
                        done.wrong(error.to_string(), Some(place()));
                        false
                    }
                };
            }
        } else if let Some(path) = within {
            for item in &node.items {
                let chunk = Piece::decode(item.as_slice())
                    .ok()
                    .map(|piece| (Id::from_slice(&piece.chunk), piece.chunk.is_empty()));
                right &= match chunk {
                    Some((Some(chunk), _)) => self.verify_chunk(chunk, walk, path, done)?,
                    Some((None, true)) => true,
                    _ => {
                        done.wrong(format!("a piece of list {id}"), Some(place()));
                        false
                    }
                };
            }
        } else {
            let mut before: Option<Vec<u8>> = None;
            for entry in entries_of(&node) {
                let entry = match entry {
                    Ok(entry) => entry,
                    Err(error) => {
                        done.wrong(error.to_string(), Some(place()));
                        right = false;
                        continue;
                    }
                };
                if before.as_ref().is_some_and(|before| *before >= entry.key) {
                    done.wrong(
                        format!("the entries of node {id} are not in order"),
                        Some(place()),
                    );
                    right = false;
                }
                let path = Shown(&entry.key).to_string();
                right &= match entry.content_id() {
                    Some(chunk) if entry.height == 0 => self.verify_chunk(chunk, walk, &path, done)?,
                    Some(list) => self.verify_node(list, walk, Some(&path), seen, done)?,
                    None => true,
                };
                before = Some(entry.key);
            }
        }
        if right {
            seen.insert(id);
        }
        Ok(right)
    }

    fn verify_chunk(&self, id: Id, walk: &Walk<'_>, path: &str, done: &mut Verified) -> Result<bool> {
        let domain = walk.domain;
        let problem = if walk.bad.contains(&(domain, Object::Chunk, id)) {
            format!("chunk {id} is damaged")
        } else if self.place(domain, Object::Chunk, id)?.is_some() {
            return Ok(true);
        } else if walk.known && self.catalog.is_lost(domain, Object::Chunk, id)? {
            return Ok(false);
        } else {
            format!("chunk {id} is missing")
        };
        done.wrong(problem, Some(format!("{} {path}", walk.version)));
        Ok(false)
    }

    /// The commits of a domain that a repair has marked.
    fn marked(&self, domain: u32) -> Result<HashSet<Id>> {
        let mut found = HashSet::new();
        for state in self.states()?.iter().filter(|state| state.domain == domain) {
            for mark in self.tombstones(state)?.iter().filter(|gone| !gone.gave_all_up()) {
                let bytes = self.catalog.commit(state.number, mark.sequence)?;
                found.extend(bytes.map(|bytes| self.hash.commit(&bytes)));
            }
        }
        Ok(found)
    }

    /// Every pack is there, is itself, and as long as the catalog says.
    fn verify_packs(&self, done: &mut Verified) -> Result<()> {
        for (number, row) in self.catalog.packs()? {
            for problem in self.pack_problems(number, row)? {
                done.wrong(problem, None);
            }
        }
        Ok(())
    }

    /// What is wrong with a pack as a whole.
    pub(crate) fn pack_problems(&self, number: u32, row: PackRow) -> Result<Vec<String>> {
        let dir = self.packs_dir();
        let (file, header) = match pack::open(&dir, number) {
            Ok(opened) => opened,
            Err(error) => return Ok(vec![error.to_string()]),
        };
        let mut problems = Vec::new();
        let path = pack::path(&dir, number);
        let length = file.metadata().on("look at", &path)?.len();
        if header.domain != row.domain || header.class != row.class || header.store.as_slice() != self.id() {
            problems.push(format!("{} is another pack, by its head", path.display()));
        }
        let open = self.open_packs().contains(&number);
        if length < u64::from(row.length) || length > u64::from(row.length) && !open {
            problems.push(format!(
                "{} has {length} bytes where {} are recorded",
                path.display(),
                row.length
            ));
        }
        // Each record where the last ended: bytes between them would be nobody's.
        let walked = pack::walk(&file, &path, u64::from(row.length).min(length), |_, _| Ok(()));
        problems.extend(walked.err().map(|error| error.to_string()));
        Ok(problems)
    }
}

impl Verified {
    fn wrong(&mut self, what: String, needed_by: Option<String>) {
        if let Some(known) = self.problems.iter_mut().find(|known| known.what == what) {
            if known.needed_by.len() < NAMED {
                known.needed_by.extend(needed_by);
            }
            return;
        }
        self.problems.push(Problem {
            what,
            needed_by: needed_by.into_iter().collect(),
        });
    }
}
