//! Proving a history: that nothing was altered, and nothing removed but what a tombstone names.

use std::{collections::HashMap, ops::ControlFlow};

use crate::{
    error::{Error, Result, damaged},
    history::Known,
    id::Id,
    sign::PublicKey,
    store::Store,
    told::{Answer, heed},
};

/// What an audit found.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Audited {
    /// Commits, from the first to the newest.
    pub commits: u64,
    /// Of so many a repair found nothing, not even what they said: the chain is not proven across them.
    pub lost: u64,
    /// How many are signed by one of the keys that were given.
    pub signed: u64,
    /// Those that nobody signed, newest first.
    pub unsigned: Vec<Id>,
}

impl Store {
    /// Walks a state's chain of commits and checks that each is what its successor calls it, and that none is missing. With
    /// keys, each signature has to be of one of them.
    ///
    /// # Errors
    /// The first commit that is not what it should be.
    pub fn audit(&self, state: &Known, keys: &[PublicKey]) -> Result<Audited> {
        self.audit_watched(state, keys, |_, _| {})
    }

    /// The same; `told` gets how many commits were walked, of how many, and may end it.
    ///
    /// # Errors
    /// The same.
    pub fn audit_watched<A: Answer>(
        &self,
        state: &Known,
        keys: &[PublicKey],
        mut told: impl FnMut(u64, u64) -> A,
    ) -> Result<Audited> {
        let Some((head, sequence)) = state.head else {
            return Ok(Audited::default());
        };
        let mut audited = Audited {
            commits: sequence,
            ..Audited::default()
        };
        let damages: HashMap<u64, bool> = self
            .tombstones(state)?
            .into_iter()
            .map(|gone| (gone.sequence, !gone.gave_all_up()))
            .collect();
        let (mut expected, mut at) = (Some(head), sequence);
        self.log(state, u64::MAX, |recorded| {
            heed(told(sequence.saturating_sub(at), sequence))?;
            // What a repair says to be lost may be missing: who came before it, nobody can tell.
            while at > recorded.commit.sequence && damages.get(&at) == Some(&true) {
                (audited.lost, at, expected) = (audited.lost + 1, at - 1, None);
            }
            if expected.is_some_and(|expected| expected != recorded.id) || recorded.commit.sequence != at {
                let what = format!("commit {at} of {}", state.name);
                return Err(damaged(what, "another stands in its place"));
            }
            if !keys.is_empty() {
                match self.catalog.signature(recorded.id)? {
                    None => audited.unsigned.push(recorded.id),
                    Some(signature)
                        if keys
                            .iter()
                            .any(|key| key.signed(self.hash, recorded.id, &signature)) =>
                    {
                        audited.signed += 1;
                    }
                    Some(_) => {
                        return Err(Error::Signature(format!(
                            "commit {at} of {} ({})",
                            state.name,
                            recorded.id.short()
                        )));
                    }
                }
            }
            expected = Id::from_slice(&recorded.commit.previous);
            at = at.saturating_sub(1);
            Ok(ControlFlow::Continue(()))
        })?;
        while at > 0 && damages.get(&at) == Some(&true) {
            (audited.lost, at, expected) = (audited.lost + 1, at - 1, None);
        }
        if at != 0 || expected.is_some() {
            return Err(damaged(format!("commit {at} of {}", state.name), "it is missing"));
        }
        Ok(audited)
    }
}
