//! Doing what a plan says.

use crate::{
    error::{Error, Result},
    fault,
    format::{Commit, Reason},
    history::Known,
    id::Id,
    pack,
    repair::{Plan, now},
    store::Store,
    sys,
};

impl Plan<'_> {
    /// Does it. Whatever ends the process meanwhile leaves a store that opens, and a plan that begins again.
    ///
    /// # Errors
    /// A full or failing disk.
    pub fn run(mut self) -> Result<()> {
        let store = self.store;
        let dir = store.packs_dir();
        store.close_all()?;
        for found in &mut self.domains {
            let session = store.session_alone(found.domain);
            for pack in self.packs.keys() {
                for (object, id, place) in found.whole_in(*pack) {
                    session.add(&store.as_written(found.domain, *object, *id, *place)?, true)?;
                }
            }
            let again: Vec<_> = found.again().copied().collect();
            for (object, id) in again {
                let bytes = found
                    .bytes(object, id)?
                    .ok_or_else(|| Error::Missing(format!("{object:?} {id}")))?;
                session.put_again(object, id, &bytes)?;
            }
        }
        fault::point("repair-copied");
        // A second name first: what no row names is removed when a store is opened.
        for number in self.packs.keys() {
            let path = pack::path(&dir, *number);
            if path.exists() {
                sys::link(&path, &path.with_extension("pack.damaged"))?;
            }
        }
        sys::sync_dir(&dir)?;
        fault::point("repair-linked");
        self.switch(store)?;
        fault::point("repair-switched");
        for number in self.packs.keys() {
            store.dropped(*number);
            sys::remove(&pack::path(&dir, *number))?;
        }
        sys::sync_dir(&dir)?;
        fault::point("repair-removed");
        for (state, left) in self.fixes.heads {
            let session = store.session_alone(state.domain);
            let changes = left.into_iter().map(|(key, entry)| (key, Some(entry)));
            let top = session.tree(None, changes)?;
            let commit = Commit {
                tree: top.id.0.to_vec(),
                entries: top.entries,
                time: now(),
                reason: Reason::Repair as i32,
                message: format!("what is left of {}", named(&state)),
                ..Commit::default()
            };
            let state = store.state(&state.name)?.unwrap_or(state);
            session.commit(&state, commit, |_| {})?;
        }
        Ok(())
    }

    /// One batch that changes over.
    fn switch(&self, store: &Store) -> Result<()> {
        let fixes = &self.fixes;
        let mut wanted = Vec::new();
        for name in &fixes.unwanted {
            wanted.extend(store.state(name)?);
        }
        let mut looks = Vec::new();
        for state in &fixes.looks {
            store.looks(state, |entry, _| {
                looks.push((state.number, entry.to_vec()));
                Ok(())
            })?;
        }
        store.publish(|batch| {
            for found in &self.domains {
                for (object, id) in found.newly_lost() {
                    batch.lost(found.domain, *object, *id);
                }
                for (object, id) in found.unneeded() {
                    batch.forget_object(found.domain, *object, *id);
                }
            }
            for pack in self.packs.keys() {
                batch.forget_pack(*pack);
            }
            for (state, mark) in &fixes.marks {
                batch.tombstone(*state, mark);
            }
            for (state, sequence) in &fixes.healed {
                batch.forget_tombstone(*state, *sequence);
            }
            for (state, sequence, id, bytes) in &fixes.commits {
                batch.commit(*state, *sequence, *id, bytes);
            }
            for (state, tag) in &fixes.tags {
                batch.forget_tag(*state, tag);
            }
            for state in wanted {
                batch.state(
                    &state.name,
                    &Known {
                        wanted: None,
                        ..state.clone()
                    }
                    .row(),
                );
            }
            for (state, entry) in &looks {
                batch.forget_look(*state, entry);
            }
            Ok(())
        })
    }
}

fn named(state: &Known) -> String {
    let head = state.head.map(|(id, _)| Id::short(&id)).unwrap_or_default();
    format!("{}@{head}", state.name)
}
