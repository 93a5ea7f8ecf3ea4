//! The histories of states: commits one after the other, tags, and versions as people write them.

use std::{ops::ControlFlow, sync::PoisonError};

use prost::Message;

use crate::{
    catalog::{Batch, StateRow},
    error::{Error, Result, damaged},
    format::{COMMIT, Commit},
    id::Id,
    pack::Object,
    store::{Session, Store},
};

/// A state as the store has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Its name.
    pub name: String,
    /// Its number: rows go by it.
    pub number: u64,
    /// The number of its dedup domain.
    pub domain: u32,
    /// Its newest commit, and how many there are with it.
    pub head: Option<(Id, u64)>,
    /// The commit that its next start is to begin with.
    pub wanted: Option<Id>,
    /// The last value of the annotation that asked for a restore.
    pub asked: String,
    /// For how many seconds its history stays without a live tree; none for ever.
    pub reclaim: Option<u64>,
    /// When it was first found without one, seconds since 1970.
    pub orphaned: Option<u64>,
}

impl Known {
    fn new(name: &str, row: &StateRow) -> Known {
        Known {
            name: name.to_owned(),
            number: row.number,
            domain: row.domain,
            head: Id::from_slice(&row.head).map(|id| (id, row.sequence)),
            wanted: Id::from_slice(&row.wanted),
            asked: row.asked.clone(),
            reclaim: row.reclaim.checked_sub(1),
            orphaned: Some(row.orphaned).filter(|at| *at > 0),
        }
    }

    pub(crate) fn row(&self) -> StateRow {
        StateRow {
            number: self.number,
            domain: self.domain,
            sequence: self.head.map_or(0, |(_, sequence)| sequence),
            head: self.head.map(|(id, _)| id.0.to_vec()).unwrap_or_default(),
            wanted: self.wanted.map(|id| id.0.to_vec()).unwrap_or_default(),
            asked: self.asked.clone(),
            reclaim: self.reclaim.map_or(0, |seconds| seconds.saturating_add(1)),
            orphaned: self.orphaned.unwrap_or(0),
        }
    }

    /// Its newest commit.
    ///
    /// # Errors
    /// A state without any.
    pub fn newest(&self) -> Result<Id> {
        let none = || {
            Error::NotFound(format!(
                "{} has no history yet: diffkeeper commit {0} makes the first",
                self.name
            ))
        };
        self.head.map(|(id, _)| id).ok_or_else(none)
    }
}

/// A commit with its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    /// Its name.
    pub id: Id,
    /// What it says.
    pub commit: Commit,
}

/// A point in a state's history, as people write it behind the `@`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Version {
    /// `head`, or nothing: the newest.
    Head,
    /// `~3`: three before the newest.
    Back(u64),
    /// The newest at this time: nanoseconds since 1970.
    At(i64),
    /// A tag, or the beginning of a commit's name.
    Named(String),
}

impl Store {
    /// A state; none where nothing was ever recorded of it.
    ///
    /// # Errors
    /// A failing disk.
    pub fn state(&self, name: &str) -> Result<Option<Known>> {
        Ok(self.catalog.state(name)?.map(|row| Known::new(name, &row)))
    }

    /// Every state.
    ///
    /// # Errors
    /// A failing disk.
    pub fn states(&self) -> Result<Vec<Known>> {
        let states = self.catalog.states()?;
        Ok(states.iter().map(|(name, row)| Known::new(name, row)).collect())
    }

    /// A state, made where it is missing.
    ///
    /// # Errors
    /// A full or failing disk.
    pub fn make_state(&self, name: &str, domain: &str) -> Result<Known> {
        let domain = self.domain(domain)?;
        let _one = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = self.state(name)? {
            return Ok(known);
        }
        let mut batch = self.catalog.batch();
        let row = StateRow {
            number: self.next_state(&mut batch),
            domain,
            ..StateRow::default()
        };
        batch.state(name, &row);
        self.catalog.write(batch)?;
        Ok(Known::new(name, &row))
    }

    /// Changes what is known of a state besides its history.
    ///
    /// # Errors
    /// No such state, a full or failing disk.
    pub fn change_state(&self, name: &str, change: impl FnOnce(&mut Known)) -> Result<Known> {
        let _one = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        let mut known = self
            .state(name)?
            .ok_or_else(|| Error::NotFound(format!("nothing was recorded of {name}")))?;
        let before = (known.number, known.domain, known.head);
        change(&mut known);
        (known.number, known.domain, known.head) = before;
        let mut batch = self.catalog.batch();
        batch.state(name, &known.row());
        self.catalog.write(batch)?;
        Ok(known)
    }

    /// Forgets a state with its whole history; the space comes back with the next gc.
    ///
    /// # Errors
    /// No such state, a full or failing disk.
    pub fn forget_state(&self, name: &str) -> Result<()> {
        let _one = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        let known = self
            .state(name)?
            .ok_or_else(|| Error::NotFound(format!("nothing was recorded of {name}")))?;
        let mut batch = self.catalog.batch();
        self.catalog.commits(known.number, u64::MAX, |commit, bytes| {
            batch.forget_commit(known.number, commit.sequence, self.hash.commit(bytes));
            Ok(true)
        })?;
        for (tag, _) in self.catalog.tags(known.number)? {
            batch.forget_tag(known.number, &tag);
        }
        for tombstone in self.catalog.tombstones(known.number)? {
            batch.forget_tombstone(known.number, tombstone.sequence);
        }
        self.catalog.looks(known.number, |entry, _| {
            batch.forget_look(known.number, entry);
            Ok(())
        })?;
        batch.forget_work(known.number);
        batch.forget_state(name);
        self.catalog.write(batch)
    }

    /// A commit of whatever state.
    ///
    /// # Errors
    /// No such commit, a failing disk, a commit that is not what its name says.
    pub fn commit(&self, id: Id) -> Result<Recorded> {
        let (state, sequence) = self
            .catalog
            .commit_place(id)?
            .ok_or_else(|| Error::NotFound(format!("there is no commit {}", id.short())))?;
        let bytes = self
            .catalog
            .commit(state, sequence)?
            .ok_or_else(|| Error::Missing(format!("commit {id}")))?;
        if self.hash.commit(&bytes) != id {
            return Err(damaged(format!("commit {id}"), "it is not what its name says"));
        }
        Ok(Recorded {
            id,
            commit: Commit::read(&bytes)?,
        })
    }

    /// A commit that retention has not taken the content from.
    ///
    /// # Errors
    /// One that it has; as [`Store::commit`].
    pub fn with_content(&self, id: Id) -> Result<Recorded> {
        let recorded = self.commit(id)?;
        let Some(state) = self.state(&recorded.commit.state)? else {
            return Ok(recorded);
        };
        let gone = self.tombstones(&state)?;
        match gone.iter().find(|gone| gone.sequence == recorded.commit.sequence) {
            Some(gone) if gone.gave_all_up() => Err(Error::Refused(format!(
                "the content of {}@{} was given up ({}): diffkeeper log {0} shows which versions have theirs",
                state.name,
                id.short(),
                gone.rule
            ))),
            _ => Ok(recorded),
        }
    }

    /// A commit of which nothing is gone.
    ///
    /// # Errors
    /// One of which a repair found something nowhere; as [`Store::with_content`].
    pub fn whole(&self, id: Id) -> Result<Recorded> {
        let recorded = self.with_content(id)?;
        let Some(state) = self.state(&recorded.commit.state)? else {
            return Ok(recorded);
        };
        let gone = self.tombstones(&state)?;
        match gone.iter().find(|gone| gone.sequence == recorded.commit.sequence) {
            Some(gone) => Err(Error::Refused(format!(
                "{}@{} is damaged, this is lost: {}; take out of it what is there with --path, or another version",
                state.name,
                id.short(),
                gone.what
            ))),
            None => Ok(recorded),
        }
    }

    /// The commits of a state, newest first, from sequence `from` down.
    ///
    /// # Errors
    /// A failing disk, a damaged commit, and what `each` says.
    pub fn log(
        &self,
        state: &Known,
        from: u64,
        mut each: impl FnMut(Recorded) -> Result<ControlFlow<()>>,
    ) -> Result<()> {
        self.catalog.commits(state.number, from, |commit, bytes| {
            let id = self.hash.commit(bytes);
            Ok(each(Recorded { id, commit })?.is_continue())
        })
    }

    /// The tags of a state.
    ///
    /// # Errors
    /// A failing disk.
    pub fn tags(&self, state: &Known) -> Result<Vec<(String, Id)>> {
        self.catalog.tags(state.number)
    }

    /// Gives a commit a name of its own within its state; `None` takes the name away.
    ///
    /// # Errors
    /// A name that would be read as something else, one that is taken, a full or failing disk.
    pub fn tag(&self, state: &Known, name: &str, commit: Option<Id>) -> Result<()> {
        check_tag(name)?;
        let mut batch = self.catalog.batch();
        match (commit, self.catalog.tag(state.number, name)?) {
            (Some(_), Some(old)) => {
                return Err(Error::Refused(format!(
                    "{name} is the name of commit {} already: diffkeeper tag --delete {}@{name} first",
                    old.short(),
                    state.name
                )));
            }
            (Some(commit), None) => batch.tag(state.number, name, commit),
            (None, Some(_)) => batch.forget_tag(state.number, name),
            (None, None) => return Err(Error::NotFound(format!("{} has no tag {name}", state.name))),
        }
        self.catalog.write(batch)
    }

    /// The commit that a version means.
    ///
    /// # Errors
    /// None that it means, or several.
    pub fn resolve(&self, state: &Known, version: &Version) -> Result<Recorded> {
        let (_, newest) = match state.head {
            Some(head) => head,
            None => (state.newest()?, 0),
        };
        let missing = |what: String| Error::NotFound(format!("{}: {what}", state.name));
        let found = match version {
            Version::Head => Some(state.newest()?),
            Version::Back(back) => {
                let mut found = None;
                let mut left = *back;
                self.log(state, newest, |recorded| {
                    found = (left == 0).then_some(recorded.id);
                    left = left.saturating_sub(1);
                    Ok(if found.is_some() {
                        ControlFlow::Break(())
                    } else {
                        ControlFlow::Continue(())
                    })
                })?;
                Some(found.ok_or_else(|| missing(format!("there are no {back} commits before the newest")))?)
            }
            Version::At(time) => {
                let mut found = None;
                self.log(state, newest, |recorded| {
                    let there = recorded.commit.time <= *time;
                    found = there.then_some(recorded.id);
                    Ok(if there {
                        ControlFlow::Break(())
                    } else {
                        ControlFlow::Continue(())
                    })
                })?;
                Some(found.ok_or_else(|| missing("its history does not reach back that far".into()))?)
            }
            Version::Named(name) => self.named(state, name)?,
        };
        match found {
            Some(id) => self.commit(id),
            None => Err(missing(format!(
                "there is no tag and no commit {version:?}; diffkeeper log {0} lists them",
                state.name,
                version = match version {
                    Version::Named(name) => name.as_str(),
                    _ => "",
                }
            ))),
        }
    }

    fn named(&self, state: &Known, name: &str) -> Result<Option<Id>> {
        if let Some(id) = self.catalog.tag(state.number, name)? {
            return Ok(Some(id));
        }
        // Four digits at least: fewer are more likely a slip.
        if name.len() < 4 || name.len() > 64 || !name.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Ok(None);
        }
        let name = name.to_ascii_lowercase();
        let whole: Option<Vec<u8>> = name
            .as_bytes()
            .chunks_exact(2)
            .map(|two| u8::from_str_radix(std::str::from_utf8(two).ok()?, 16).ok())
            .collect();
        let candidates = self.catalog.commits_like(&whole.unwrap_or_default())?;
        let mut of_state = candidates
            .into_iter()
            .filter(|(id, of, _)| *of == state.number && id.to_string().starts_with(&name));
        match (of_state.next(), of_state.next()) {
            (Some((id, ..)), None) => Ok(Some(id)),
            (Some(_), Some(_)) => Err(Error::Unclear(format!(
                "several commits of {} begin with {name}: give more digits",
                state.name
            ))),
            (None, _) => Ok(None),
        }
    }
}

/// Whether a name can be a tag: what would be read as a time, a number of commits or a commit's name cannot.
fn check_tag(name: &str) -> Result<()> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    let hexadecimal = name.len() >= 4 && name.bytes().all(|b| b.is_ascii_hexdigit());
    let taken = name == "head" || name.starts_with('-') || hexadecimal;
    let digit = name.starts_with(|c: char| c.is_ascii_digit()) && name.contains('-') && name.len() >= 10;
    if name.is_empty() || name.len() > 128 || !name.bytes().all(plain) || taken || digit {
        return Err(Error::Refused(format!(
            "{name:?} cannot be a tag: one to 128 of A-Z a-z 0-9 . _ -, and nothing that reads as a time, as head or as the \
             beginning of a commit's name"
        )));
    }
    Ok(())
}

impl Session<'_> {
    /// Makes a commit the newest of a state: everything added so far is durable, and the commit visible, when this
    /// returns. `commit` needs no format, sequence or previous. `more` puts the looks of entries into the same batch.
    ///
    /// # Errors
    /// A full or failing disk: then nothing has changed. A state that another commit was made of meanwhile.
    pub fn commit(
        &self,
        state: &Known,
        mut commit: Commit,
        more: impl FnOnce(&mut Batch),
    ) -> Result<Recorded> {
        let _one = self.store.names.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self
            .store
            .state(&state.name)?
            .ok_or_else(|| Error::NotFound(format!("{} was forgotten meanwhile", state.name)))?;
        if now.head != state.head || now.number != state.number {
            return Err(Error::Refused(format!(
                "another commit of {} was made meanwhile: try again",
                state.name
            )));
        }
        // Where its tree comes from must be there still: gc goes by what the histories say.
        if let Some(origin) = Id::from_slice(&commit.origin) {
            self.store.whole(origin)?;
        }
        commit.format = COMMIT;
        commit.state.clone_from(&state.name);
        commit.sequence = state.head.map_or(0, |(_, sequence)| sequence) + 1;
        commit.previous = state.head.map(|(id, _)| id.0.to_vec()).unwrap_or_default();
        commit.written = self.written();
        let bytes = commit.encode_to_vec();
        let id = self.store.hash.commit(&bytes);
        // A second copy, beside what it names: history can be found again without the catalog.
        self.put(Object::Commit, id, &bytes, None)?;
        let after = Known {
            head: Some((id, commit.sequence)),
            ..now
        };
        let spent = self.store.catalog.spent(state.number)?;
        self.publish(|batch| {
            batch.spent(state.number, &self.meter.take(spent));
            batch.commit(state.number, commit.sequence, id, &bytes);
            if let Some(signer) = self.store.signer.get() {
                batch.signature(id, &signer.sign(self.store.hash, id));
            }
            batch.state(&state.name, &after.row());
            more(batch);
            Ok(())
        })?;
        Ok(Recorded { id, commit })
    }

    /// Makes what was added so far durable, without naming it: a commit of much is not lost whole.
    ///
    /// # Errors
    /// A full or failing disk.
    pub fn flush(&self) -> Result<()> {
        self.publish(|_| Ok(()))
    }
}

impl Store {
    /// How the entries of a state's live tree looked when they were recorded, in the order of their keys.
    ///
    /// # Errors
    /// A failing disk.
    pub fn looks(&self, state: &Known, each: impl FnMut(&[u8], crate::Look) -> Result<()>) -> Result<()> {
        self.catalog.looks(state.number, each)
    }

    /// How one entry of a state's live tree looked when it was recorded.
    ///
    /// # Errors
    /// A failing disk.
    pub fn look(&self, state: &Known, entry: &[u8]) -> Result<Option<crate::Look>> {
        self.catalog.look(state.number, entry)
    }

    /// How the entries below a directory of a state's live tree looked when they were recorded, in the order of their keys.
    ///
    /// # Errors
    /// A failing disk.
    pub fn looks_below(
        &self,
        state: &Known,
        dir: &[u8],
        each: impl FnMut(&[u8], crate::Look) -> Result<()>,
    ) -> Result<()> {
        self.catalog.looks_below(state.number, dir, each)
    }

    /// Records how entries look, without a commit.
    ///
    /// # Errors
    /// A full or failing disk.
    pub fn record_looks(&self, more: impl FnOnce(&mut Batch)) -> Result<()> {
        let mut batch = self.catalog.batch();
        more(&mut batch);
        self.catalog.write(batch)
    }

    /// Forgets how a state's entries looked: its live tree is another now.
    ///
    /// # Errors
    /// A full or failing disk.
    pub fn forget_looks(&self, state: &Known) -> Result<()> {
        let mut batch = self.catalog.batch();
        self.catalog.looks(state.number, |entry, _| {
            batch.forget_look(state.number, entry);
            Ok(())
        })?;
        self.catalog.write(batch)
    }
}
