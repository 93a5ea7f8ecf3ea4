//! Bringing a state back to a version.

use std::{
    collections::HashMap,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::PoisonError,
};

use live::{Attempt, Holder, Lease, State};
use runtime_spec::name::StateName;
use store::{
    Id, Known, Recorded,
    format::{Commit, Entry, Reason},
};

use super::{Keeper, version::now};
use crate::{
    error::{Error, Result},
    owner,
    progress::Progress,
    redshift::{self, Plan, Present},
};

/// How long an owner may take to start a container again before nobody waits for it: a kubelet that has seen it end often
/// takes longer.
const RESTART: std::time::Duration = std::time::Duration::from_secs(60);

/// What a restore did.
#[derive(Debug, Clone)]
pub struct Restored {
    /// What head was before it.
    pub before: Recorded,
    /// The commit that says what was restored; none where it waits for the next start.
    pub after: Option<Recorded>,
    /// The container was ended for it, and its owner has started it again.
    pub restarted: bool,
}

/// What is restored, and for whom.
#[derive(Debug, Clone, Copy, Default)]
pub struct Restore<'a> {
    /// The annotation's value that asks for it: once for each.
    pub asked: Option<&'a str>,
    /// A shim asks, which holds the lease.
    pub leased: bool,
    /// Only this path in the container.
    pub path: Option<&'a [u8]>,
    /// End the container that uses the state, so that its owner starts it again; it has this long to end well.
    pub now: Option<std::time::Duration>,
}

impl Keeper {
    /// Brings a state back to a version. What is there now is recorded first. A state in use is restored when it starts
    /// next.
    ///
    /// # Errors
    /// A version without content, a state that is in use in another way, a full or failing disk: the live tree is as it
    /// was then.
    pub fn restore(&self, said: &str, version: &str, how: Restore<'_>) -> Result<Restored> {
        self.restore_watched(said, version, how, &Progress::default())
    }

    /// The same, with somebody who wants to know how far it is.
    ///
    /// # Errors
    /// The same, and a stop.
    pub fn restore_watched(
        &self,
        said: &str,
        version: &str,
        how: Restore<'_>,
        progress: &Progress,
    ) -> Result<Restored> {
        let begun = std::time::Instant::now();
        let done = match how.now {
            Some(grace) => self.restore_and_restart(said, version, how, grace, progress),
            None => self.restore_to(said, version, how, progress),
        };
        self.counts.restored(done.is_ok(), begun.elapsed());
        done
    }

    /// Restores a state whose container is ended for it, and waits until its owner has started it again.
    fn restore_and_restart(
        &self,
        said: &str,
        version: &str,
        how: Restore<'_>,
        grace: std::time::Duration,
        progress: &Progress,
    ) -> Result<Restored> {
        let name = self.named(said)?;
        let holder = self.node.state(&name).in_use_by();
        if let Some(holder) = &holder {
            owner::restarts(&name, holder)?;
        }
        let done = self.restore_to(said, version, how, progress)?;
        let Some(holder) = holder.filter(|_| done.after.is_none()) else {
            return Ok(done);
        };
        owner::end(&holder, grace, progress)?;
        progress.begin("waiting for its owner to start it again");
        let since = std::time::Instant::now();
        while since.elapsed() < RESTART {
            let known = self.known(&name.to_string())?;
            if known.wanted.is_none() {
                let after = Some(self.store.commit(known.newest()?)?);
                return Ok(Restored {
                    after,
                    restarted: true,
                    ..done
                });
            }
            if progress.go_on().is_err() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        Ok(done)
    }

    fn restore_to(
        &self,
        said: &str,
        version: &str,
        how: Restore<'_>,
        progress: &Progress,
    ) -> Result<Restored> {
        progress.begin("waiting for its turn");
        let known = self.known(said)?;
        let name: StateName = known
            .name
            .parse()
            .map_err(|e: runtime_spec::Error| Error::Refused(e.to_string()))?;
        let turn = self.turn(&known.name);
        let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
        let state = self.node.state(&name);
        let head = |known: &Known| self.store.commit(known.newest()?);
        if let Some(asked) = how.asked
            && known.asked == asked
        {
            // A template keeps its annotation: what it asked for was done.
            let before = head(&known)?;
            return Ok(Restored {
                after: Some(before.clone()),
                before,
                restarted: false,
            });
        }
        let target = match (how.leased && how.asked.is_none(), known.wanted) {
            (true, Some(wanted)) => self.store.commit(wanted)?,
            (true, None) => {
                // Called off meanwhile.
                state.set_restore_wanted(false)?;
                let before = head(&known)?;
                return Ok(Restored {
                    after: Some(before.clone()),
                    before,
                    restarted: false,
                });
            }
            (false, _) => self.resolve(&known, version)?,
        };
        let target = match how.path {
            Some(_) => self.store.with_content(target.id)?,
            None => self.store.whole(target.id)?,
        };
        let lease = match how.leased {
            true => None,
            false => match state.acquire(Holder::new("diffkeeper restore", "", Path::new("/")))? {
                Attempt::Held(lease) => Some(lease),
                Attempt::Busy(_) if how.path.is_some() => {
                    return Err(Error::Refused(format!(
                        "{name} is in use, and a single path is not changed under a running container: stop it, or \
                         take the file out with --to DIR"
                    )));
                }
                Attempt::Busy(_) => {
                    let before = head(&known)?;
                    self.store
                        .change_state(&known.name, |known| known.wanted = Some(target.id))?;
                    state.set_restore_wanted(true)?;
                    return Ok(Restored {
                        before,
                        after: None,
                        restarted: false,
                    });
                }
            },
        };
        let done = self.restore_now(&state, &name, &target, how, lease.as_ref(), progress);
        if let Some(lease) = lease {
            lease.release()?;
        }
        done
    }

    /// The caller has the lease: nobody writes.
    #[allow(clippy::too_many_arguments)]
    fn restore_now(
        &self,
        state: &State,
        name: &StateName,
        target: &Recorded,
        how: Restore<'_>,
        lease: Option<&Lease>,
        progress: &Progress,
    ) -> Result<Restored> {
        if let Some(lease) = lease {
            state.evict(lease, std::time::Duration::from_secs(10))?;
        }
        if state.exists() {
            self.record_before(state, name, progress)?;
        }
        let known = self.store.make_state(&name.to_string(), &self.domain(name))?;
        let before = self.store.commit(known.newest()?)?;
        let domain = self.source_domain(target)?;
        let tree = match how.path {
            None => target.commit.tree_id()?,
            Some(path) => self.tree_with(&known, &before, domain, target, path)?,
        };
        let entries = self.put_in_place(state, &known, domain, tree, progress)?;
        if how.path.is_none() && !target.commit.image.is_empty() {
            state.stands_on(&target.commit.image)?;
        }
        let session = self.store.session(known.domain);
        let commit = Commit {
            tree: tree.0.to_vec(),
            origin: target.id.0.to_vec(),
            entries,
            time: now(),
            monotonic: crate::blueshift::monotonic(),
            node: self.node_name.clone(),
            boot: self.boot.clone(),
            image: target.commit.image.clone(),
            consistency: target.commit.consistency,
            reason: Reason::Restore as i32,
            message: match how.path {
                None => format!("{} of {}", target.id.short(), target.commit.state),
                Some(path) => format!("{} of {}", path.escape_ascii(), target.id.short()),
            },
            ..Commit::default()
        };
        let after = session.commit(&known, commit, |_| {})?;
        drop(session);
        self.store.change_state(&known.name, |known| {
            known.wanted = None;
            if let Some(asked) = how.asked {
                known.asked = asked.to_owned();
            }
        })?;
        state.set_restore_wanted(false)?;
        Ok(Restored {
            before,
            after: Some(after),
            restarted: false,
        })
    }

    /// Records what is there before it is replaced. The caller has the lease.
    pub(crate) fn record_before(&self, state: &State, name: &StateName, progress: &Progress) -> Result<()> {
        // The lease is held.
        let before = self.live(state, name, None, &|| true)?;
        before.record(Reason::BeforeRestore, None, progress)?;
        Ok(())
    }

    /// Makes a tree the live tree of a state. The caller has the lease: nobody writes. Answers with how many entries there
    /// are.
    pub(crate) fn put_in_place(
        &self,
        state: &State,
        known: &Known,
        domain: u32,
        tree: Id,
        progress: &Progress,
    ) -> Result<u64> {
        let fresh = state.begin_restore()?;
        let tops = self.places(domain, tree, &fresh)?;
        let plan = Plan {
            domain,
            tree,
            below: None,
            tops: tops
                .iter()
                .map(|(name, at)| (name.clone(), at.made.clone()))
                .collect(),
            overlay: true,
            sync: true,
        };
        progress.begin("restoring");
        let present = self.present(state, known)?;
        let made = plan.run_beside(present.as_ref(), &self.store, progress);
        if let Err(error) = made.and_then(|()| progress.go_on()) {
            // The next one begins anew; until then it would only take room.
            state.abandon_restore(&fresh)?;
            return Err(error);
        }
        let looks = redshift::looks(&plan.tops)?;
        // The looks first: should this end here, they differ from the old tree, and all of it is looked at again.
        self.store.forget_looks(known)?;
        self.store.record_looks(|batch| {
            looks
                .iter()
                .for_each(|(key, look)| batch.look(known.number, key, look))
        })?;
        state.finish_restore(&fresh)?;
        Ok(looks.len() as u64)
    }

    /// What lies there now: what head says, as far as anybody knows.
    fn present(&self, state: &State, known: &Known) -> Result<Option<Present>> {
        let Some((head, _)) = known.head else {
            return Ok(None);
        };
        Ok(Some(Present {
            domain: known.domain,
            tree: self.store.commit(head)?.commit.tree_id()?,
            tops: super::tops(state)?
                .into_iter()
                .map(|top| (top.name, top.path))
                .collect(),
        }))
    }

    /// A state restores from its own history, whose domain is its own.
    fn source_domain(&self, target: &Recorded) -> Result<u32> {
        let known = self.store.state(&target.commit.state)?;
        known
            .map(|known| known.domain)
            .ok_or_else(|| Error::NotFound(format!("{} was forgotten", target.commit.state)))
    }

    /// Head's tree with one path as another version has it.
    fn tree_with(
        &self,
        known: &Known,
        head: &Recorded,
        domain: u32,
        target: &Recorded,
        path: &[u8],
    ) -> Result<Id> {
        if domain != known.domain {
            return Err(Error::Refused(
                "a path is restored from the state's own history only".into(),
            ));
        }
        let key = self.key_of(domain, target, path)?;
        let mut changes: Vec<(Vec<u8>, Option<Entry>)> = Vec::new();
        let below = |key: &[u8], top: &[u8]| {
            key.strip_prefix(top)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(&[0]))
        };
        let mut gather = |tree: Id, there: bool| {
            self.store.entries(domain, tree, &key, |entry| {
                if !below(&entry.key, &key) {
                    return Ok(ControlFlow::Break(()));
                }
                changes.push((entry.key.clone(), there.then_some(entry)));
                Ok(ControlFlow::Continue(()))
            })
        };
        gather(head.commit.tree_id()?, false)?;
        gather(target.commit.tree_id()?, true)?;
        for (_, entry) in &mut changes {
            // A further name of a file that stays what it is gets what it was of its own.
            if let Some(entry) = entry
                && !entry.link.is_empty()
                && !below(&entry.link, &key)
                && let Some(first) = self.store.entry(domain, target.commit.tree_id()?, &entry.link)?
            {
                *entry = Entry {
                    key: entry.key.clone(),
                    ..first
                };
            }
        }
        // The directories above, where they are gone.
        let mut above = key.as_slice();
        while let Some(at) = above.iter().rposition(|b| *b == 0) {
            above = above.get(..at).unwrap_or_default();
            if self.store.entry(domain, head.commit.tree_id()?, above)?.is_none()
                && let Some(entry) = self.store.entry(domain, target.commit.tree_id()?, above)?
            {
                changes.push((above.to_vec(), Some(entry)));
            }
        }
        let session = self.store.session(domain);
        let top = session.tree(Some(head.commit.tree_id()?), changes)?;
        session.flush()?;
        Ok(top.id)
    }

    fn places(&self, domain: u32, tree: Id, fresh: &Path) -> Result<HashMap<Vec<u8>, Place>> {
        use std::os::unix::ffi::OsStrExt;
        let roots = self.roots(domain, tree)?.into_iter().map(|(name, root)| {
            let kind = if matches!(root, live::Root::Volume(_)) {
                "tree"
            } else {
                "upper"
            };
            let dir = fresh.join("roots").join(std::ffi::OsStr::from_bytes(&name));
            (name, Place { made: dir.join(kind) })
        });
        Ok(roots.collect())
    }

    /// Gives a restore up that waits for the next start.
    ///
    /// # Errors
    /// None that waits.
    pub fn cancel(&self, said: &str) -> Result<()> {
        let known = self.known(said)?;
        let name: StateName = known
            .name
            .parse()
            .map_err(|e: runtime_spec::Error| Error::Refused(e.to_string()))?;
        if known.wanted.is_none() {
            return Err(Error::NotFound(format!(
                "no restore of {} waits for its next start",
                known.name
            )));
        }
        self.store
            .change_state(&known.name, |known| known.wanted = None)?;
        Ok(self.node.state(&name).set_restore_wanted(false)?)
    }
}

struct Place {
    made: PathBuf,
}
