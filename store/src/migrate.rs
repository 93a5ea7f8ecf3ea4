//! Bringing an older store up to date, where it is.
//!
//! Until its last step, the renaming of the file `format`, a store is what it was: the version that made it can open it, and
//! whatever ends the process is gone on from when it is opened next. What the steps add is nothing that it minds.

use std::ops::ControlFlow;

use crate::{
    error::Result,
    fault,
    pack::Object,
    store::{FORMAT, Store, write_format},
};

/// How far a migration has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Migrating {
    /// The format that it comes from.
    pub from: u32,
    /// Commits that were looked at.
    pub commits: u64,
    /// Of so many.
    pub of: u64,
}

/// So many commits at a time become durable.
const STEP: u64 = 256;

impl Store {
    /// Brings the store from a format to the next, until it is of [`FORMAT`].
    pub(crate) fn migrate(&self, from: u32, mut told: impl FnMut(&Migrating)) -> Result<()> {
        let states = self.states()?;
        let of = states.iter().filter_map(|state| state.head).map(|(_, n)| n).sum();
        let mut done = Migrating { from, commits: 0, of };
        // 1 -> 2: packs hold every commit, those whose content is given up too, so that histories can be found again
        // without the catalog; and the catalog's batches are counted.
        for state in states.iter().filter(|_| from < 2) {
            let session = self.session(state.domain);
            self.log(state, u64::MAX, |recorded| {
                let bytes = prost::Message::encode_to_vec(&recorded.commit);
                session.put(Object::Commit, recorded.id, &bytes, None)?;
                done.commits += 1;
                if done.commits.is_multiple_of(STEP) {
                    session.flush()?;
                    told(&done);
                }
                Ok(ControlFlow::Continue(()))
            })?;
            session.flush()?;
            fault::point("migrate-flushed");
            told(&done);
        }
        // 2 -> 3: objects may stand on others; those that are there stand on none.
        self.count_batches()?;
        done.commits = of;
        told(&done);
        fault::point("migrate-counted");
        write_format(self.dir(), FORMAT)?;
        fault::point("migrate-renamed");
        Ok(())
    }
}
