//! Which commits keep their content.
//!
//! A commit that loses it stays in the chain: its row says what was recorded and when, its tombstone by which rule the
//! content went, so that a history still proves itself.

use std::{collections::HashSet, ops::ControlFlow};

use prost::Message;

use crate::{error::Result, format::Commit, history::Known, store::Store};

/// Says that a commit's content is gone.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Tombstone {
    /// The commit's place in its state's history.
    #[prost(uint64, tag = "1")]
    pub sequence: u64,
    /// When it went: nanoseconds since 1970.
    #[prost(sint64, tag = "2")]
    pub time: i64,
    /// By which rule, as a person reads it.
    #[prost(string, tag = "3")]
    pub rule: String,
    /// What is gone, where it is not all.
    #[prost(string, tag = "4")]
    pub what: String,
}

/// The rule of a commit of which a repair found something nowhere: the rest is kept.
pub const DAMAGED: &str = "damaged";

impl Tombstone {
    /// Whether all of the content may be gone; else only what could not be repaired is.
    #[must_use]
    pub fn gave_all_up(&self) -> bool {
        self.rule != DAMAGED
    }
}

/// "Of the commits up to so old, one for each so long."
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// How old, in seconds.
    pub age: u64,
    /// One for each so many seconds; 0 for all.
    pub every: u64,
}

/// What is kept of a history besides its newest commit and all that are tagged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retention {
    /// Youngest first; what is older than the last loses its content.
    pub rules: Vec<Rule>,
}

const HOUR: u64 = 3600;
const DAY: u64 = 24 * HOUR;

impl Default for Retention {
    /// All of the last hour, one a minute for a day, one an hour for a month, one a day for a year.
    fn default() -> Self {
        let rule = |age, every| Rule { age, every };
        Retention {
            rules: vec![
                rule(HOUR, 0),
                rule(DAY, 60),
                rule(31 * DAY, HOUR),
                rule(366 * DAY, DAY),
            ],
        }
    }
}

const SECOND: i64 = 1_000_000_000;

impl Retention {
    /// Which of these commits, newest first, lose their content at this time (nanoseconds since 1970). Of each stretch
    /// of time the newest is kept, and what was said by hand and before a restore counts as any other. Stretches are
    /// counted from 1970, so that the same ones are chosen at each run.
    #[must_use]
    pub fn expired<'c>(&self, commits: &'c [Commit], tagged: &HashSet<u64>, now: i64) -> Vec<&'c Commit> {
        let mut kept: HashSet<(u64, i64)> = HashSet::new();
        let newest = commits.first().map(|commit| commit.sequence);
        let mut lost = Vec::new();
        for commit in commits {
            let age = u64::try_from(now.saturating_sub(commit.time) / SECOND).unwrap_or(0);
            let rule = self.rules.iter().find(|rule| age <= rule.age);
            let keep = match rule {
                Some(rule) if rule.every == 0 => true,
                Some(rule) => {
                    let every = i64::try_from(rule.every)
                        .unwrap_or(i64::MAX)
                        .saturating_mul(SECOND);
                    kept.insert((rule.every, commit.time.div_euclid(every)))
                }
                None => false,
            };
            if !keep && Some(commit.sequence) != newest && !tagged.contains(&commit.sequence) {
                lost.push(commit);
            }
        }
        lost
    }
}

impl Store {
    /// What content is gone of a state's history.
    ///
    /// # Errors
    /// A failing disk.
    pub fn tombstones(&self, state: &Known) -> Result<Vec<Tombstone>> {
        self.catalog.tombstones(state.number)
    }

    /// The sequences of the commits that have no content any more.
    pub(crate) fn given_up(&self, state: &Known) -> Result<HashSet<u64>> {
        let gone = self.tombstones(state)?.into_iter();
        Ok(gone
            .filter(Tombstone::gave_all_up)
            .map(|gone| gone.sequence)
            .collect())
    }

    /// Takes the content from commits that the rules do not keep; the space comes back with the next gc. Answers with
    /// how many there were.
    ///
    /// # Errors
    /// A full or failing disk.
    pub fn expire(&self, state: &Known, retention: &Retention, now: i64, dry: bool) -> Result<u64> {
        let gone: HashSet<u64> = self.given_up(state)?;
        let mut tagged = HashSet::new();
        let tags: HashSet<_> = self.tags(state)?.into_iter().map(|(_, id)| id).collect();
        let mut commits = Vec::new();
        self.log(state, u64::MAX, |recorded| {
            if tags.contains(&recorded.id) || state.wanted == Some(recorded.id) {
                tagged.insert(recorded.commit.sequence);
            }
            if !gone.contains(&recorded.commit.sequence) {
                commits.push(recorded.commit);
            }
            Ok(ControlFlow::Continue(()))
        })?;
        let lost = retention.expired(&commits, &tagged, now);
        let count = lost.len() as u64;
        if dry || lost.is_empty() {
            return Ok(count);
        }
        let mut batch = self.catalog.batch();
        for commit in lost {
            let tombstone = Tombstone {
                sequence: commit.sequence,
                time: now,
                rule: "retention".into(),
                what: String::new(),
            };
            batch.tombstone(state.number, &tombstone);
        }
        self.catalog.write(batch)?;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(sequence: u64, seconds: i64) -> Commit {
        Commit {
            sequence,
            time: seconds * SECOND,
            ..Commit::default()
        }
    }

    #[test]
    fn what_the_rules_keep() {
        let now = 2_000_000_000;
        let mut commits: Vec<Commit> = Vec::new();
        // One a second for two hours, newest first.
        for n in 0..7200u64 {
            commits.push(at(10_000 - n, now - n.cast_signed()));
        }
        let old = at(5, now - 400 * 86_400);
        let tagged = at(4, now - 401 * 86_400);
        commits.push(old.clone());
        commits.push(tagged);
        let lost = Retention::default().expired(&commits, &HashSet::from([4]), now * SECOND);
        let kept = commits.len() - lost.len();
        // An hour of seconds, an hour of minutes, the tag.
        assert!((3600 + 60..=3600 + 63).contains(&kept), "{kept}");
        assert!(lost.contains(&&old));
        // Doing it again takes nothing more.
        let left: Vec<Commit> = commits.iter().filter(|c| !lost.contains(c)).cloned().collect();
        assert!(
            Retention::default()
                .expired(&left, &HashSet::from([4]), now * SECOND)
                .is_empty()
        );
        // The newest stays, however old.
        assert!(
            Retention { rules: vec![] }
                .expired(&[old], &HashSet::new(), now * SECOND)
                .is_empty()
        );
    }
}
