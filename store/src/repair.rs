//! Making a damaged store whole again: what another copy gives is kept, what is provably lost is dropped and named.
//!
//! A [`Plan`] is made first, and can be shown; nothing is changed before it runs, and nobody else adds or removes anything
//! meanwhile. Objects that are whole are copied out of damaged packs, those that are not are taken from wherever the same
//! content stands a second time. One batch then changes over: the rows of what is nowhere say so, and commits that need it get a
//! tombstone of the rule [`DAMAGED`], which keeps what is left of them. Damaged packs stay aside, as `.pack.damaged`.

mod find;
mod run;

use std::{collections::BTreeMap, fmt, os::unix::fs::MetadataExt, path::Path};

use crate::{
    error::{Context, Error, Result},
    format::{Commit, Entry},
    gate::Alone,
    history::Known,
    id::Id,
    pack::Object,
    retention::{DAMAGED, Tombstone},
    store::Store,
    sys,
    told::{Answer, heed},
};
use find::Found;

/// Versions of a state, one after the other, that lose the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    /// The state.
    pub state: String,
    /// The oldest of them: its sequence and name.
    pub first: (u64, Id),
    /// The newest.
    pub last: (u64, Id),
    /// How many.
    pub versions: u64,
    /// What of them: `rootfs:/etc/hosts`; nothing where not even the commit is left.
    pub paths: Vec<String>,
}

/// How far a repair has looked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Surveyed {
    /// Objects of a dedup domain that were read.
    pub objects: u64,
    /// Of so many.
    pub of_objects: u64,
    /// Commits whose trees were walked, of all domains.
    pub commits: u64,
}

/// What a repair is going to do.
pub struct Plan<'s> {
    store: &'s Store,
    _alone: Alone<'s>,
    /// Packs that are damaged or lost, and how it shows.
    pub packs: BTreeMap<u32, String>,
    /// What is lost.
    pub lost: Vec<Lost>,
    /// Versions that were damaged and are whole again.
    pub healed: Vec<String>,
    /// Rows of the catalog that point nowhere, and go.
    pub rows: Vec<String>,
    /// Objects that another copy gives.
    pub recovered: u64,
    domains: Vec<Found<'s>>,
    fixes: Fixes,
}

/// What becomes of the catalog besides its rows of objects.
#[derive(Default)]
struct Fixes {
    /// Marks, by their states' numbers.
    marks: Vec<(u64, Tombstone)>,
    healed: Vec<(u64, u64)>,
    tags: Vec<(u64, String)>,
    /// States whose wanted commit is not there.
    unwanted: Vec<String>,
    /// Rows of commits: found in packs, or whose name was not listed.
    commits: Vec<(u64, u64, Id, Vec<u8>)>,
    /// States whose looks no longer say what was recorded.
    looks: Vec<Known>,
    /// States whose newest commit is damaged, and what is left of it.
    heads: Vec<(Known, BTreeMap<Vec<u8>, Entry>)>,
}

impl Store {
    /// Reads everything and says what a repair has to do. Whoever wants to add something waits as long as the plan is there.
    ///
    /// # Errors
    /// A failing disk, a catalog that cannot be read: [`crate::Rescue`] makes it anew.
    pub fn repair(&self) -> Result<Plan<'_>> {
        self.repair_watched(|_| {})
    }

    /// The same; `told` gets how far it is, and may end it.
    ///
    /// # Errors
    /// The same.
    pub fn repair_watched<A: Answer>(&self, mut told: impl FnMut(&Surveyed) -> A) -> Result<Plan<'_>> {
        let mut surveyed = Surveyed::default();
        let alone = self.alone();
        // What a session added that came to nothing is looked at too.
        self.publish(|_| Ok(()))?;
        // What is in memory may be damaged on the disk.
        self.bases.clear();
        self.dictionaries.clear();
        let mut plan = Plan {
            store: self,
            _alone: alone,
            packs: BTreeMap::new(),
            lost: Vec::new(),
            healed: Vec::new(),
            rows: Vec::new(),
            recovered: 0,
            domains: Vec::new(),
            fixes: Fixes::default(),
        };
        for (number, row) in self.catalog.packs()? {
            if let Some(problem) = self.pack_problems(number, row)?.first() {
                plan.packs.insert(number, problem.clone());
            }
        }
        let states = self.states()?;
        let mut domains: Vec<u32> = self.catalog.domains()?.into_iter().map(|(_, n)| n).collect();
        domains.extend(states.iter().map(|state| state.domain));
        domains.sort_unstable();
        domains.dedup();
        for domain in domains {
            let mut found = Found::new(self, domain)?;
            let damaged = found.read_all(|objects, of| {
                (surveyed.objects, surveyed.of_objects) = (objects, of);
                told(&surveyed)
            })?;
            for (pack, problem) in damaged {
                plan.packs.entry(pack).or_insert(problem);
            }
            for state in states.iter().filter(|state| state.domain == domain) {
                plan.state(state, &mut found, || {
                    surveyed.commits += 1;
                    told(&surveyed)
                })?;
            }
            plan.recovered += found.recovered();
            plan.domains.push(found);
        }
        Ok(plan)
    }
}

impl Store {
    /// Removes the packs and the catalog that repairs have put aside; with `dry` only says how many bytes they are.
    ///
    /// # Errors
    /// A failing disk.
    pub fn discard(&self, dry: bool) -> Result<u64> {
        let mut bytes = 0;
        for dir in [self.packs_dir(), self.dir().join("catalog.damaged")] {
            bytes += discard(&dir, dry, dir != self.packs_dir())?;
        }
        Ok(bytes)
    }
}

/// Goes through a folder; of packs only those that were put aside.
fn discard(dir: &Path, dry: bool, all: bool) -> Result<u64> {
    let mut bytes = 0;
    let files = match std::fs::read_dir(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(0),
        files => files.on("read", dir)?,
    };
    for file in files {
        let file = file.on("read", dir)?;
        let path = file.path();
        let about = file.metadata().on("look at", &path)?;
        if about.is_dir() {
            bytes += discard(&path, dry, all)?;
        } else if all || path.extension().is_some_and(|extension| extension == "damaged") {
            bytes += about.blocks() * 512;
            if !dry {
                sys::remove(&path)?;
            }
        }
    }
    if all && !dry {
        std::fs::remove_dir(dir).on("remove", dir)?;
    }
    Ok(bytes)
}

impl Plan<'_> {
    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let fixes = &self.fixes;
        self.packs.is_empty()
            && self.domains.iter().all(Found::nothing)
            && fixes.marks.is_empty()
            && fixes.healed.is_empty()
            && fixes.commits.is_empty()
            && fixes.heads.is_empty()
            && self.rows.is_empty()
    }

    /// Walks a state's history and every tree in it.
    fn state<A: Answer>(
        &mut self,
        state: &Known,
        found: &mut Found<'_>,
        mut told: impl FnMut() -> A,
    ) -> Result<()> {
        let store = self.store;
        let marks: BTreeMap<u64, Tombstone> = store
            .tombstones(state)?
            .into_iter()
            .map(|gone| (gone.sequence, gone))
            .collect();
        let (mut expected, newest) = match state.head {
            Some((id, sequence)) => (Some(id), sequence),
            None => (None, 0),
        };
        let mut left = None;
        for sequence in (1..=newest).rev() {
            heed(told())?;
            let mark = marks.get(&sequence);
            let Some((id, commit)) = self.commit(state, sequence, expected, found)? else {
                self.mark(state, sequence, expected.unwrap_or(Id([0; 32])), &[], mark);
                if sequence == newest {
                    left = Some(BTreeMap::new());
                }
                expected = None;
                continue;
            };
            expected = Id::from_slice(&commit.previous);
            if mark.is_some_and(Tombstone::gave_all_up) {
                continue;
            }
            let paths = found.commit(&commit)?;
            if !paths.is_empty() {
                self.mark(state, sequence, id, &paths, mark);
                if sequence == newest {
                    left = Some(found.entries(&commit)?);
                }
            } else if mark.is_some() {
                self.healed.push(format!("{}@{}", state.name, id.short()));
                self.fixes.healed.push((state.number, sequence));
            }
            // With the newest a version is lost that the next commit would begin with: the newest that is whole serves.
            if sequence < newest
                && paths.is_empty()
                && let Some(left) = left.as_mut().filter(|left| left.is_empty())
            {
                *left = found.entries(&commit)?;
            }
        }
        if let Some(left) = left {
            self.fixes.heads.push((state.clone(), left));
        }
        self.pointers(state)
    }

    /// A commit of a history: as the catalog has it, else as the packs do.
    fn commit(
        &mut self,
        state: &Known,
        sequence: u64,
        expected: Option<Id>,
        found: &mut Found<'_>,
    ) -> Result<Option<(Id, Commit)>> {
        let store = self.store;
        let right = |bytes: &[u8]| {
            let id = store.hash.commit(bytes);
            let commit = Commit::read(bytes).ok()?;
            (expected.is_none_or(|expected| expected == id) && commit.sequence == sequence)
                .then_some((id, commit))
        };
        if let Some(bytes) = store.catalog.commit(state.number, sequence)?
            && let Some((id, commit)) = right(&bytes)
        {
            if store.catalog.commit_place(id).ok().flatten() != Some((state.number, sequence)) {
                self.fixes
                    .commits
                    .push((state.number, sequence, id, bytes.clone()));
            }
            found.refill(id, bytes)?;
            return Ok(Some((id, commit)));
        }
        let Some(bytes) = expected.map_or(Ok(None), |id| found.bytes(Object::Commit, id))? else {
            return Ok(None);
        };
        let Some((id, commit)) = right(&bytes) else {
            return Ok(None);
        };
        self.fixes.commits.push((state.number, sequence, id, bytes));
        Ok(Some((id, commit)))
    }

    /// Says what a version loses, unless that was said before.
    fn mark(&mut self, state: &Known, sequence: u64, id: Id, paths: &[String], before: Option<&Tombstone>) {
        let mut what = match paths {
            [] => "all of it".to_owned(),
            paths => paths.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", "),
        };
        if paths.len() > SHOWN {
            what.push_str(&format!(" and {} more", paths.len() - SHOWN));
        }
        if before.is_some_and(|before| before.what == what) {
            return;
        }
        let mark = Tombstone {
            sequence,
            time: now(),
            rule: DAMAGED.into(),
            what,
        };
        self.fixes.marks.push((state.number, mark));
        if !self.fixes.looks.iter().any(|known| known.number == state.number) {
            self.fixes.looks.push(state.clone());
        }
        match self.lost.last_mut() {
            Some(run) if run.state == state.name && run.first.0 == sequence + 1 && run.paths == paths => {
                run.first = (sequence, id);
                run.versions += 1;
            }
            _ => self.lost.push(Lost {
                state: state.name.clone(),
                first: (sequence, id),
                last: (sequence, id),
                versions: 1,
                paths: paths.to_vec(),
            }),
        }
    }

    /// Tags and wishes that name no commit.
    fn pointers(&mut self, state: &Known) -> Result<()> {
        let catalog = &self.store.catalog;
        let fixes = &mut self.fixes;
        let there = |id: Id, fixes: &Fixes| {
            let found = fixes.commits.iter().any(|(.., known, _)| *known == id);
            Ok::<_, Error>(found || catalog.commit_place(id)?.is_some())
        };
        for (tag, id) in catalog.tags(state.number)? {
            if !there(id, fixes)? {
                self.rows.push(format!("the tag {tag} of {}", state.name));
                fixes.tags.push((state.number, tag));
            }
        }
        if let Some(wanted) = state.wanted
            && !there(wanted, fixes)?
        {
            self.rows.push(format!(
                "the restore that the next start of {} was to begin with",
                state.name
            ));
            fixes.unwanted.push(state.name.clone());
        }
        Ok(())
    }
}

/// So many paths stand in a mark; all are in the plan.
const SHOWN: usize = 20;

fn now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.state, self.last.1.short())?;
        if self.versions > 1 {
            write!(
                f,
                " and {} versions before it, down to {}",
                self.versions - 1,
                self.first.1.short()
            )?;
        }
        match self.paths.as_slice() {
            [] => write!(f, ": all of it, what it said included"),
            paths => paths.iter().try_for_each(|path| write!(f, "\n    {path}")),
        }
    }
}

impl fmt::Display for Plan<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (pack, problem) in &self.packs {
            writeln!(f, "pack {pack:08x}: {problem}")?;
        }
        for row in &self.rows {
            writeln!(f, "points nowhere: {row}")?;
        }
        for lost in &self.lost {
            writeln!(f, "lost: {lost}")?;
        }
        for version in &self.healed {
            writeln!(f, "whole again: {version}")?;
        }
        if self.recovered > 0 {
            writeln!(f, "{} objects come from another copy", self.recovered)?;
        }
        Ok(())
    }
}
