//! Histories from the commits that were found: each names the one before it.

use std::collections::{BTreeMap, HashMap};

use crate::{
    catalog::StateRow,
    error::Result,
    format::Commit,
    id::Id,
    rescue::{
        Rescue,
        scan::{Candidate, Scan},
    },
    retention::{DAMAGED, Tombstone},
};

impl Rescue {
    /// Puts the histories together: from the newest commit of each state down.
    pub(super) fn histories(&mut self, scan: &Scan) -> Result<()> {
        let mut old: HashMap<u64, Vec<(Id, Commit, Vec<u8>)>> = HashMap::new();
        for (state, _, _, bytes) in std::mem::take(&mut self.rows.commits) {
            if let Ok(commit) = Commit::read(&bytes) {
                let id = scan.hash.commit(&bytes);
                old.entry(state).or_default().push((id, commit, bytes));
            }
        }
        let mut by_state: BTreeMap<&str, Vec<(Id, &Candidate)>> = BTreeMap::new();
        for (id, candidate) in &scan.commits {
            by_state
                .entry(&candidate.commit.state)
                .or_default()
                .push((*id, candidate));
        }
        let mut next_state = self.rows.store.next_state.max(1);
        for row in self.rows.states.values() {
            next_state = next_state.max(row.number + 1);
        }
        // States of which only the catalog knows anything are gone through too.
        let mut names: Vec<String> = by_state.keys().map(|name| (*name).to_owned()).collect();
        names.extend(self.rows.states.keys().cloned());
        names.sort();
        names.dedup();
        for name in names {
            let found = by_state.get(name.as_str()).map_or(&[][..], Vec::as_slice);
            let row = self.rows.states.get(&name).cloned();
            let kept = row
                .as_ref()
                .and_then(|row| old.remove(&row.number))
                .unwrap_or_default();
            let chain = Chain::new(found, kept);
            let head = row
                .as_ref()
                .and_then(|row| Some((Id::from_slice(&row.head)?, row.sequence)));
            let Some(tip) = chain.tip(head) else { continue };
            let mut row = row.unwrap_or_else(|| {
                next_state += 1;
                StateRow {
                    number: next_state - 1,
                    domain: chain.domain(tip.0),
                    ..StateRow::default()
                }
            });
            let from = match &self.behind {
                Some(_) => head.map_or(0, |(_, sequence)| sequence),
                None => 0,
            };
            if tip.1 == from {
                continue;
            }
            self.history(&name, &row, &chain, tip, from);
            (row.head, row.sequence) = (tip.0.0.to_vec(), tip.1);
            self.rows.looks.push(row.number);
            self.rows.states.insert(name, row);
        }
        self.rows.store.next_state = next_state;
        Ok(())
    }

    fn history(&mut self, name: &str, row: &StateRow, chain: &Chain<'_>, tip: (Id, u64), from: u64) {
        let mut expected = Some(tip.0);
        for sequence in (from + 1..=tip.1).rev() {
            let found = match expected {
                Some(id) => chain.all.get(&id).map(|found| (id, found)),
                None => chain.at(sequence),
            };
            let Some((id, found)) = found else {
                self.gaps.push((name.to_owned(), sequence));
                let mark = Tombstone {
                    sequence,
                    time: found_at(chain),
                    rule: DAMAGED.into(),
                    what: "all of it".into(),
                };
                self.rows
                    .tombstones
                    .retain(|(state, old)| (*state, old.sequence) != (row.number, sequence));
                self.rows.tombstones.push((row.number, mark));
                expected = None;
                continue;
            };
            self.commits.push(format!("{name}@{}", id.short()));
            self.rows
                .commits
                .push((row.number, sequence, id, found.bytes.to_vec()));
            expected = Id::from_slice(&found.commit.previous);
        }
    }
}

/// When the newest commit that was found was made.
fn found_at(chain: &Chain<'_>) -> i64 {
    chain
        .all
        .values()
        .map(|found| found.commit.time)
        .max()
        .unwrap_or(0)
}

struct Link<'a> {
    commit: std::borrow::Cow<'a, Commit>,
    bytes: std::borrow::Cow<'a, [u8]>,
    domain: u32,
    trusted: bool,
}

/// Every commit that was found of a state.
struct Chain<'a> {
    all: HashMap<Id, Link<'a>>,
}

impl<'a> Chain<'a> {
    fn new(found: &[(Id, &'a Candidate)], kept: Vec<(Id, Commit, Vec<u8>)>) -> Chain<'a> {
        use std::borrow::Cow;
        let mut all = HashMap::new();
        for (id, candidate) in found {
            let link = Link {
                commit: Cow::Borrowed(&candidate.commit),
                bytes: Cow::Borrowed(candidate.bytes.as_slice()),
                domain: candidate.domain,
                trusted: candidate.trusted,
            };
            all.insert(*id, link);
        }
        for (id, commit, bytes) in kept {
            let domain = all.get(&id).map_or(0, |link: &Link<'_>| link.domain);
            let link = Link {
                commit: Cow::Owned(commit),
                bytes: Cow::Owned(bytes),
                domain,
                trusted: true,
            };
            all.insert(id, link);
        }
        Chain { all }
    }

    fn trusted(&self) -> impl Iterator<Item = (Id, &Link<'a>)> {
        let all = self.all.iter().map(|(id, link)| (*id, link));
        all.filter(|(_, link)| link.trusted)
    }

    /// The newest commit: from `head`, or else from the youngest of which nobody else is the successor, as far as it goes.
    fn tip(&self, head: Option<(Id, u64)>) -> Option<(Id, u64)> {
        let youngest = || {
            let tip = self
                .trusted()
                .max_by_key(|(id, link)| (link.commit.time, link.commit.sequence, *id))?;
            Some((tip.0, tip.1.commit.sequence))
        };
        let mut tip = head.or_else(youngest)?;
        while let Some((id, link)) = self
            .trusted()
            .filter(|(_, link)| link.commit.sequence == tip.1 + 1 && link.commit.previous == tip.0.0)
            .max_by_key(|(id, link)| (link.commit.time, *id))
        {
            tip = (id, link.commit.sequence);
        }
        Some(tip)
    }

    /// The commit of a place in the history, where no successor names it: the youngest.
    fn at(&self, sequence: u64) -> Option<(Id, &Link<'a>)> {
        self.trusted()
            .filter(|(_, link)| link.commit.sequence == sequence)
            .max_by_key(|(id, link)| (link.commit.time, *id))
    }

    fn domain(&self, tip: Id) -> u32 {
        self.all.get(&tip).map_or(0, |link| link.domain)
    }
}
