//! Bringing a state back to a version.

use std::{
    collections::HashMap,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::PoisonError,
};

use live::{Attempt, Holder, Lease, State};
use prost::Message;
use runtime_spec::name::StateName;
use store::{
    Id, Known, Recorded, Session, fault,
    format::{Commit, Entry, Reason},
};

use super::{Keeper, version::now};
use crate::{
    blueshift::Freezer,
    error::{Error, Result},
    freezer::Shim,
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
        owner::end(&name, &holder, grace, progress)?;
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
        fault::point("restore-begun");
        if state.exists() {
            self.record_before(state, name, progress)?;
        }
        let known = self.store.make_state(&name.to_string(), &self.domain(name))?;
        let before = self.store.commit(known.newest()?)?;
        let domain = self.source_domain(target)?;
        let (tree, image, session) = match how.path {
            None => (target.commit.tree_id()?, &target.commit.image, None),
            Some(path) => {
                let session = self.store.session(domain);
                let tree = self.tree_with(&session, &known, &before, target, path)?;
                (tree, &before.commit.image, Some(session))
            }
        };
        let commit = Commit {
            tree: tree.0.to_vec(),
            origin: target.id.0.to_vec(),
            image: image.clone(),
            consistency: target.commit.consistency,
            reason: Reason::Restore as i32,
            message: match how.path {
                None => format!("{} of {}", target.id.short(), target.commit.state),
                Some(path) => format!("{} of {}", path.escape_ascii(), target.id.short()),
            },
            ..Commit::default()
        };
        let after = self.put_in_place(state, &known, domain, session, commit, progress)?;
        self.store.change_state(&known.name, |known| {
            known.wanted = None;
            if let Some(asked) = how.asked {
                known.asked = asked.to_owned();
            }
        })?;
        state.set_restore_wanted(false)?;
        fault::point("restore-told");
        Ok(Restored {
            before,
            after: Some(after),
            restarted: false,
        })
    }

    /// Records what is there before it is replaced; answers with the commit, where that was not recorded already. The
    /// caller has the lease.
    pub(crate) fn record_before(
        &self,
        state: &State,
        name: &StateName,
        progress: &Progress,
    ) -> Result<Option<Id>> {
        let head = || -> Result<Option<Id>> {
            let known = self.store.state(&name.to_string())?;
            Ok(known.and_then(|known| known.head).map(|(id, _)| id))
        };
        let before = head()?;
        self.catch_up(state, name, None, progress)?;
        // The lease is held.
        let live = self.live(state, name, None, &|| true)?;
        live.record(Reason::BeforeRestore, None, progress)?;
        Ok(head()?.filter(|now| before != Some(*now)))
    }

    /// Makes a commit's tree the live tree of a state, and then the commit. The caller has the lease: nobody writes. Where
    /// only this session knows what the tree is of, it is held until then.
    pub(crate) fn put_in_place(
        &self,
        state: &State,
        known: &Known,
        domain: u32,
        session: Option<Session<'_>>,
        commit: Commit,
        progress: &Progress,
    ) -> Result<Recorded> {
        let mut commit = Commit {
            previous: known.head.map(|(id, _)| id.0.to_vec()).unwrap_or_default(),
            time: now(),
            monotonic: crate::blueshift::monotonic(),
            node: self.node_name.clone(),
            boot: self.boot.clone(),
            ..commit
        };
        let tree = commit.tree_id()?;
        let fresh = state.begin_restore(&commit.encode_to_vec())?;
        fault::point("restore-noted");
        let plan = Plan {
            domain,
            tree,
            below: None,
            tops: self.places(domain, tree, &fresh)?,
            overlay: true,
            sync: true,
        };
        progress.begin("restoring");
        let present = self.present(state, known)?;
        let made = plan.run_beside(present.as_ref(), &self.store, progress);
        if let Err(error) = made.and_then(|()| progress.go_on()) {
            // The next one begins anew; until then it would only take room.
            state.clear_restore(&fresh)?;
            return Err(error);
        }
        fault::point("restore-made");
        let looks = redshift::looks(&plan.tops)?;
        // They are of the old tree, and head says what is in that: from here on all of it is looked at again, whatever
        // happens, until the commit brings the looks of the new one with it.
        self.store.forget_looks(known)?;
        fault::point("restore-forgotten");
        state.finish_restore(&fresh)?;
        fault::point("restore-switched");
        commit.entries = looks.len() as u64;
        if !commit.image.is_empty() {
            state.stands_on(&commit.image)?;
        }
        let session = session.unwrap_or_else(|| self.store.session(known.domain));
        let made = session.commit(known, commit, |batch| {
            looks
                .iter()
                .for_each(|(key, look)| batch.look(known.number, key, look));
        })?;
        drop(session);
        fault::point("restore-recorded");
        state.recorded()?;
        state.clear_restore(&fresh)?;
        Ok(made)
    }

    /// Records what was put in place and not recorded: whoever did it was killed in between. `freezer` is of the container
    /// that has taken it since.
    pub(crate) fn catch_up(
        &self,
        state: &State,
        name: &StateName,
        freezer: Option<&dyn Freezer>,
        progress: &Progress,
    ) -> Result<()> {
        let Some(note) = state.unrecorded() else {
            return Ok(());
        };
        let known = self.store.make_state(&name.to_string(), &self.domain(name))?;
        let head = known.head.map(|(id, _)| id.0.to_vec()).unwrap_or_default();
        let note = Commit::decode(note.as_slice())
            .ok()
            .filter(|note| note.previous == head);
        // Else it is in the history already, or came here with a tree of another state.
        if let Some(note) = note {
            if !note.image.is_empty() && freezer.is_none() {
                state.stands_on(&note.image)?;
            }
            let origin = Id::from_slice(&note.origin).and_then(|origin| self.store.whole(origin).ok());
            if origin.is_some_and(|origin| origin.commit.tree == note.tree) {
                self.store.session(known.domain).commit(&known, note, |_| {})?;
            } else {
                // What only that session knew may be gone from the store; the live tree has it.
                let undisturbed = || state.in_use_by().is_none();
                let live = self.live(state, name, freezer, &undisturbed)?;
                live.record(note.reason(), Some(&note.message), progress)?;
            }
            tracing::info!(state = %name, "a live tree that was put in place before this keeper began is recorded");
        }
        Ok(state.recorded()?)
    }

    /// Records, when a keeper begins, what another one had put in place and not recorded.
    ///
    /// # Errors
    /// Live trees that cannot be listed; what keeps a single one from being recorded is logged.
    pub fn catch_up_all(&self) -> Result<()> {
        for info in self.node.states()? {
            let state = self.node.state(&info.name);
            if state.unrecorded().is_none() {
                continue;
            }
            let turn = self.turn(&info.name.to_string());
            let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
            let holder = state.in_use_by();
            let shim = holder.as_ref().map(|holder| Shim::new(holder, None));
            let freezer = shim.as_ref().map(|shim| shim as &dyn Freezer);
            if let Err(error) = self.catch_up(&state, &info.name, freezer, &Progress::default()) {
                tracing::error!(state = %info.name, %error, "what was restored is not recorded yet");
            }
        }
        Ok(())
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
        session: &Session<'_>,
        known: &Known,
        head: &Recorded,
        target: &Recorded,
        path: &[u8],
    ) -> Result<Id> {
        let domain = self.source_domain(target)?;
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
        let top = session.tree(Some(head.commit.tree_id()?), changes)?;
        session.flush()?;
        Ok(top.id)
    }

    fn places(&self, domain: u32, tree: Id, fresh: &Path) -> Result<HashMap<Vec<u8>, PathBuf>> {
        use std::os::unix::ffi::OsStrExt;
        let roots = self.roots(domain, tree)?.into_iter().map(|(name, root)| {
            let kind = if matches!(root, live::Root::Volume(_)) {
                "tree"
            } else {
                "upper"
            };
            let dir = fresh.join("roots").join(std::ffi::OsStr::from_bytes(&name));
            (name, dir.join(kind))
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
