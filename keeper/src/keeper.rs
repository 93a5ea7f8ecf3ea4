//! What the keeper does with the states of a node: commits, restores, forks.

use std::{
    collections::HashMap,
    fs::File,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use live::{Attempt, Holder, Lease, Node, State};
use runtime_spec::{
    config::{Config, History},
    name::{StateName, TailError, resolve_tail},
};
use store::{
    Hash, Id, Known, Recorded, Store, Version,
    format::{Commit, Consistency, Entry, Reason},
};

use crate::{
    blueshift::{Capture, Freezer, Top},
    error::{Context, Error, Result},
    freezer::Shim,
    owner,
    progress::Progress,
    redshift::{self, Plan},
};

/// The keeper of a node.
pub struct Keeper {
    node: Node,
    store: Store,
    history: History,
    node_name: String,
    boot: String,
    /// One thing at a time for each state.
    busy: Mutex<HashMap<String, Arc<Mutex<()>>>>,
    /// What was done, in numbers.
    pub counts: crate::metrics::Counts,
}

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
    /// Opens the store of a node.
    ///
    /// # Errors
    /// A store in use, damaged or of a newer version; a disk that cannot hold it.
    pub fn open(config: &Config) -> Result<Keeper> {
        Keeper::with(config, Node::open(&config.root)?)
    }

    /// Opens the store, beside these live trees.
    pub(crate) fn with(config: &Config, node: Node) -> Result<Keeper> {
        let dir = store_of(config);
        let hash = if config.history.sha256 {
            Hash::Sha256
        } else {
            Hash::Blake3
        };
        // Before the store: a key that cannot be used is to be put right first.
        let signer = config.history.signing_key.as_deref().map(store::Signer::read);
        let signer = signer.transpose()?;
        let store = Store::open(&dir, hash)?;
        if let Some(signer) = signer {
            store.sign_with(signer);
        }
        let boot = Path::new("/proc/sys/kernel/random/boot_id");
        let boot = std::fs::read_to_string(boot).on("read", boot)?;
        let name = nix::unistd::gethostname().on("ask for", Path::new("the node's name"))?;
        Ok(Keeper {
            node,
            store,
            history: config.history.clone(),
            node_name: name.to_string_lossy().into_owned(),
            boot: boot.trim().to_owned(),
            busy: Mutex::default(),
            counts: crate::metrics::Counts::default(),
        })
    }

    /// The store.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The node's name, and its boot.
    pub(crate) fn place(&self) -> (&str, &str) {
        (&self.node_name, &self.boot)
    }

    /// The live trees.
    #[must_use]
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// The settings.
    #[must_use]
    pub fn settings(&self) -> &History {
        &self.history
    }

    pub(crate) fn turn(&self, state: &str) -> Arc<Mutex<()>> {
        let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        busy.retain(|_, turn| Arc::strong_count(turn) > 1);
        busy.entry(state.to_owned()).or_default().clone()
    }

    /// Every name that means a state here: with a live tree, or with a history.
    ///
    /// # Errors
    /// A failing disk.
    pub fn names(&self) -> Result<Vec<String>> {
        let mut names: Vec<String> = self.store.states()?.into_iter().map(|state| state.name).collect();
        names.extend(self.node.states()?.into_iter().map(|info| info.name.to_string()));
        names.sort();
        names.dedup();
        Ok(names)
    }

    /// The state that a person means: its whole name, or the shortest end of it that is unambiguous.
    ///
    /// # Errors
    /// None, or several.
    pub fn named(&self, said: &str) -> Result<StateName> {
        let names: Vec<StateName> = self
            .names()?
            .iter()
            .filter_map(|name| name.parse().ok())
            .collect();
        resolve_tail(&names, said).cloned().map_err(|error| match error {
            TailError::NotFound => {
                Error::NotFound(format!("there is no state {said}; diffkeeper states lists them"))
            }
            TailError::Ambiguous(several) => {
                let list: Vec<String> = several.iter().map(ToString::to_string).collect();
                Error::Refused(format!(
                    "{said} may be any of {}: say more of it",
                    list.join(", ")
                ))
            }
        })
    }

    /// What the store knows of a state.
    ///
    /// # Errors
    /// A state without history.
    pub fn known(&self, said: &str) -> Result<Known> {
        let name = self.named(said)?.to_string();
        self.store.state(&name)?.ok_or_else(|| {
            Error::NotFound(format!(
                "{name} has no history yet: diffkeeper commit {name} makes its first commit"
            ))
        })
    }

    /// A version of a state.
    ///
    /// # Errors
    /// None that it means.
    pub fn version(&self, said: &str, version: &str) -> Result<(Known, Recorded)> {
        let known = self.known(said)?;
        let recorded = self.resolve(&known, version)?;
        Ok((known, recorded))
    }

    fn resolve(&self, known: &Known, version: &str) -> Result<Recorded> {
        let version = match version.strip_prefix('+') {
            Some(since) => Version::At(self.since(known, since)?),
            None => parse_version(version)?,
        };
        Ok(self.store.resolve(known, &version)?)
    }

    /// A time since the first commit: nanoseconds since 1970. Without milliseconds the whole second counts.
    fn since(&self, known: &Known, text: &str) -> Result<i64> {
        let since = runtime_spec::duration::parse(text).ok_or_else(|| {
            Error::Refused(format!(
                "\"+{text}\" is not a version: a duration such as 2m14s or 2m14s300ms follows the +"
            ))
        })?;
        let mut first = known.newest()?;
        self.store.log(known, 1, |recorded| {
            first = recorded.id;
            Ok(ControlFlow::Break(()))
        })?;
        let within = if text.contains("ms") { 0 } else { 999_999_999 };
        let since = i64::try_from(since.as_nanos()).unwrap_or(i64::MAX);
        let first = self.store.commit(first)?.commit.time;
        Ok(first.saturating_add(since).saturating_add(within))
    }

    /// The dedup domain of a state: tenants neither learn of nor harm each other.
    pub(crate) fn domain(&self, name: &StateName) -> String {
        domain_of(self.history.share, &name.to_string())
    }

    /// Records a state's live tree; none where nothing has changed and no message asks for it.
    ///
    /// # Errors
    /// No live tree, one that cannot be read, a full or failing disk.
    pub fn commit(
        &self,
        name: &StateName,
        reason: Reason,
        message: Option<&str>,
    ) -> Result<Option<Recorded>> {
        self.commit_watched(name, reason, message, &Progress::default())
    }

    /// The same, with somebody who wants to know how far it is.
    ///
    /// # Errors
    /// The same, and a stop.
    pub fn commit_watched(
        &self,
        name: &StateName,
        reason: Reason,
        message: Option<&str>,
        progress: &Progress,
    ) -> Result<Option<Recorded>> {
        progress.begin("waiting for its turn");
        let turn = self.turn(&name.to_string());
        let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
        let begun = std::time::Instant::now();
        let made = self.capture(name, reason, message, progress);
        self.counts.captured(&made, begun.elapsed());
        made
    }

    fn capture(
        &self,
        name: &StateName,
        reason: Reason,
        message: Option<&str>,
        progress: &Progress,
    ) -> Result<Option<Recorded>> {
        let state = self.node.state(name);
        if !state.exists() {
            return Err(Error::NotFound(format!("{name} has no live tree on this node")));
        }
        let record = state.record();
        let known = self.store.make_state(&name.to_string(), &self.domain(name))?;
        let tops = tops(&state)?;
        let holder = state.in_use_by();
        let shim = holder.as_ref().map(Shim::new);
        let digest = record.as_ref().and_then(|r| r.image.as_ref()?.digest.clone());
        let capture = Capture {
            state: &known,
            tops: &tops,
            exclude: record.as_ref().map_or(&[], |r| r.exclude.as_slice()),
            freezer: shim.as_ref().map(|shim| shim as &dyn Freezer),
            undisturbed: &|| state.in_use_by().is_none(),
            max_pause: self.history.max_pause,
            reason,
            message,
            image: digest.as_deref().unwrap_or_default(),
            node: &self.node_name,
            boot: &self.boot,
        };
        capture.watched(&self.store, progress)
    }

    /// Whether a state is to be recorded at all, and how often: nanoseconds; none for never.
    #[must_use]
    pub fn interval(&self, name: &StateName) -> Option<std::time::Duration> {
        let asked = self.node.state(name).record().and_then(|record| record.capture);
        let interval = asked.map_or(self.history.interval, std::time::Duration::from_millis);
        (!interval.is_zero()).then_some(interval)
    }

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
        let reason = Reason::BeforeRestore;
        let known = self.store.make_state(&name.to_string(), &self.domain(name))?;
        let tops = tops(state)?;
        let record = state.record();
        let capture = Capture {
            state: &known,
            tops: &tops,
            exclude: record.as_ref().map_or(&[], |r| r.exclude.as_slice()),
            freezer: None,
            // The lease is held.
            undisturbed: &|| true,
            max_pause: self.history.max_pause,
            reason,
            message: None,
            image: &record
                .as_ref()
                .and_then(|r| r.image.as_ref()?.digest.clone())
                .unwrap_or_default(),
            node: &self.node_name,
            boot: &self.boot,
        };
        capture.watched(&self.store, progress)?;
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
        if let Err(error) = plan.run(&self.store, progress).and_then(|()| progress.go_on()) {
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

    /// Where a path of the container is in a version: below the root that stands deepest on the way.
    ///
    /// # Errors
    /// A path that is not in it.
    pub fn key_of(&self, domain: u32, recorded: &Recorded, path: &[u8]) -> Result<Vec<u8>> {
        let tree = recorded.commit.tree_id()?;
        let mut roots = self.roots(domain, tree)?;
        roots.sort_by_key(|(_, root)| std::cmp::Reverse(root.destination().as_os_str().len()));
        use std::os::unix::ffi::OsStrExt;
        let said = Path::new(std::ffi::OsStr::from_bytes(path));
        let said = Path::new("/").join(said.strip_prefix("/").unwrap_or(said));
        for (name, root) in roots {
            if let Ok(below) = said.strip_prefix(root.destination()) {
                let key = store::format::key(&name, below.as_os_str().as_bytes());
                if self.store.entry(domain, tree, &key)?.is_some() {
                    return Ok(key);
                }
            }
        }
        Err(Error::NotFound(format!(
            "{} does not have {}: what the image holds and the container never changed is not recorded",
            recorded.commit.state,
            said.display()
        )))
    }

    /// The roots that a tree has.
    ///
    /// # Errors
    /// A damaged tree.
    pub fn roots(&self, domain: u32, tree: Id) -> Result<Vec<(Vec<u8>, live::Root)>> {
        let mut found = Vec::new();
        let mut from = Vec::new();
        loop {
            let mut next: Option<Vec<u8>> = None;
            self.store.entries(domain, tree, &from, |entry| {
                next = Some(entry.place().0.to_vec());
                Ok(ControlFlow::Break(()))
            })?;
            let Some(name) = next else {
                return Ok(found);
            };
            if let Some(root) = live::Root::of_dir_name(&String::from_utf8_lossy(&name)) {
                found.push((name.clone(), root));
            }
            from = name;
            // Behind everything that is in it.
            from.push(1);
        }
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

    /// Begins a state with a version of another: it shares all content, and has a history of its own from here on.
    ///
    /// # Errors
    /// A name that is taken, or of another dedup domain.
    pub fn fork(&self, said: &str, version: &str, name: &str, leased: bool) -> Result<Recorded> {
        let (known, target) = self.version(said, version)?;
        let target = self.store.whole(target.id)?;
        let name = match known.name.rsplit_once('/') {
            Some((above, _)) if !name.contains('/') => format!("{above}/{name}"),
            _ => name.to_owned(),
        };
        let name: StateName = name
            .parse()
            .map_err(|e: runtime_spec::Error| Error::Refused(e.to_string()))?;
        let domain = self.domain(&name);
        if self.domain(
            &known
                .name
                .parse()
                .map_err(|e: runtime_spec::Error| Error::Refused(e.to_string()))?,
        ) != domain
        {
            return Err(Error::Refused(format!(
                "{name} is of another namespace than {}, and they share nothing: export it, and import it there",
                known.name
            )));
        }
        let there = self.store.state(&name.to_string())?.and_then(|there| there.head);
        if let Some((head, _)) = there.filter(|_| leased) {
            return Ok(self.store.commit(head)?);
        }
        if !leased && self.names()?.contains(&name.to_string()) {
            return Err(Error::Refused(format!(
                "there is a state {name} already: choose another name"
            )));
        }
        let fork = self.store.make_state(&name.to_string(), &domain)?;
        let session = self.store.session(fork.domain);
        let commit = Commit {
            origin: target.id.0.to_vec(),
            time: now(),
            monotonic: crate::blueshift::monotonic(),
            node: self.node_name.clone(),
            boot: self.boot.clone(),
            reason: Reason::Fork as i32,
            message: format!("{} of {}", target.id.short(), target.commit.state),
            changed: 0,
            read: 0,
            pause: 0,
            ..target.commit.clone()
        };
        let made = session.commit(&fork, commit, |_| {})?;
        drop(session);
        // Its live tree is made when it is first wanted.
        self.store
            .change_state(&fork.name, |known| known.wanted = Some(made.id))?;
        self.node.state(&name).set_restore_wanted(true)?;
        Ok(made)
    }

    /// Puts a version, or a part of it, into a directory that is empty or not there.
    ///
    /// # Errors
    /// No such version or path, a directory with something in it, a full disk, a stop: the directory is empty again then.
    pub fn export(
        &self,
        said: &str,
        version: &str,
        path: &[u8],
        to: &Path,
        progress: &Progress,
    ) -> Result<()> {
        progress.begin("exporting");
        let (known, recorded) = self.version(said, version)?;
        let recorded = match path {
            b"" | b"/" => self.store.whole(recorded.id)?,
            _ => self.store.with_content(recorded.id)?,
        };
        if !to.is_absolute() {
            return Err(Error::Refused(format!(
                "{} is not an absolute path",
                to.display()
            )));
        }
        std::fs::create_dir_all(to).on("make", to)?;
        if std::fs::read_dir(to).on("read", to)?.next().is_some() {
            return Err(Error::Refused(format!(
                "{} is not empty: name one that is, or a new one",
                to.display()
            )));
        }
        let tree = recorded.commit.tree_id()?;
        let below = match path {
            b"" | b"/" => None,
            path => Some(self.key_of(known.domain, &recorded, path)?),
        };
        let roots = self.roots(known.domain, tree)?;
        let tops = match &below {
            Some(key) => {
                let (root, _) = store::format::place(key);
                HashMap::from([(root.to_vec(), to.to_owned())])
            }
            // Each root where it was in the container; a root below another comes after it.
            None => roots
                .iter()
                .map(|(name, root)| {
                    (
                        name.clone(),
                        to.join(root.destination().strip_prefix("/").unwrap_or(Path::new(""))),
                    )
                })
                .collect(),
        };
        let plan = |tops: HashMap<Vec<u8>, PathBuf>| Plan {
            domain: known.domain,
            tree,
            below: below.as_deref(),
            tops,
            overlay: false,
            sync: false,
        };
        // The root first: the others' directories may be among what it holds.
        let mut sorted: Vec<(Vec<u8>, PathBuf)> = tops.into_iter().collect();
        sorted.sort_by(|a, b| a.1.cmp(&b.1));
        for (name, at) in sorted {
            if let Err(error) = plan(HashMap::from([(name, at)])).run(&self.store, progress) {
                // A part must not be taken for the whole; that it cannot be cleared away says less than the error.
                let _ = empty(to);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Forgets a state's history; its live tree is the node's own affair.
    ///
    /// # Errors
    /// No such history, a full or failing disk.
    pub fn forget(&self, said: &str, erase: bool, progress: &Progress) -> Result<u64> {
        progress.begin("waiting for its turn");
        let known = self.known(said)?;
        let turn = self.turn(&known.name);
        let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
        if let Ok(name) = known.name.parse::<StateName>() {
            let state = self.node.state(&name);
            if state.restore_wanted() {
                state.set_restore_wanted(false)?;
            }
        }
        self.store.forget_state(&known.name)?;
        if !erase {
            return Ok(0);
        }
        // Whoever wants it erased does not want half of it erased: this is not stopped.
        progress.begin("erasing");
        let told = |done: &store::Collected| progress.at(done.looked_at, done.of_packs, done.copied);
        Ok(self.store.gc(store::Thorough::Erase, false, told)?.freed)
    }

    /// Takes the content from old commits by the configured rules, and gets the space back. Answers with how many commits
    /// lost theirs, and what the gc did.
    ///
    /// # Errors
    /// A damaged tree, a full or failing disk.
    pub fn tidy(&self, dry: bool, progress: &Progress) -> Result<(u64, store::Collected)> {
        progress.begin("looking for what no commit needs");
        let rules = self.history.retention.iter().map(|keep| store::Rule {
            age: keep.age.as_secs(),
            every: keep.every.as_secs(),
        });
        let retention = store::Retention {
            rules: rules.collect(),
        };
        let mut expired = 0;
        for known in self.store.states()? {
            progress.go_on()?;
            expired += self.store.expire(&known, &retention, now(), dry)?;
        }
        let told = |done: &store::Collected| {
            if progress.read().of_entries == 0 {
                progress.begin("packing anew");
            }
            progress.at(done.looked_at, done.of_packs, done.copied);
            progress.flow()
        };
        let done = self.store.gc(store::Thorough::Worthwhile, dry, told)?;
        Ok((expired, done))
    }

    /// Verifies the store, and that share (1 to 100 percent) of its content.
    ///
    /// # Errors
    /// A disk or catalog that cannot be read at all, a stop; what is damaged is a problem in the answer.
    pub fn verify(&self, percent: u8, progress: &Progress) -> Result<store::Verified> {
        progress.begin("verifying");
        let done = self.store.verify(percent, |done| {
            if done.commits == 1 && progress.read().step == "verifying" {
                progress.begin("walking trees");
            }
            match done.commits {
                0 => progress.at(done.objects, done.of_objects, done.read),
                commits => progress.at(commits, 0, done.read),
            }
            progress.flow()
        })?;
        Ok(done)
    }

    /// Free space of the store's disk, in bytes.
    ///
    /// # Errors
    /// A failing disk.
    pub fn free(&self) -> Result<u64> {
        let dir = File::open(self.store.dir()).on("open", self.store.dir())?;
        let stat = nix::sys::statvfs::fstatvfs(&dir).on("look at", self.store.dir())?;
        Ok(stat.blocks_available() * stat.fragment_size())
    }
}

/// Removes what is in a directory.
fn empty(dir: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            std::fs::remove_dir_all(entry.path())?;
        } else {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Where the store of a node is.
pub(crate) fn store_of(config: &Config) -> PathBuf {
    let store = config.history.store.clone();
    store.unwrap_or_else(|| config.root.join("store"))
}

/// The dedup domain of a state: tenants neither learn of nor harm each other.
pub(crate) fn domain_of(share: bool, state: &str) -> String {
    if share {
        return "node".into();
    }
    match state.split('/').collect::<Vec<_>>().as_slice() {
        // Of Kubernetes the namespace; a pod is no tenant of its own.
        ["k8s", namespace, _, ..] => format!("k8s/{namespace}"),
        [above @ .., _] if !above.is_empty() => above.join("/"),
        _ => state.to_owned(),
    }
}

struct Place {
    made: PathBuf,
}

/// The trees of a state.
fn tops(state: &State) -> Result<Vec<Top>> {
    let mut tops = Vec::new();
    for root in state.roots() {
        let name = root.root.dir_name()?;
        let (upper, tree) = (root.upper(), root.tree());
        let (path, overlay) = if upper.is_dir() {
            (upper, true)
        } else {
            (tree, false)
        };
        if path.is_dir() {
            use std::os::unix::ffi::OsStrExt;
            tops.push(Top {
                name: name.as_bytes().to_vec(),
                path,
                overlay,
            });
        }
    }
    Ok(tops)
}

/// Reads a version as people write it behind the `@`: `head`, `~3`, `-5m`, a time, a tag, the beginning of a commit's
/// name.
///
/// # Errors
/// What is none.
pub fn parse_version(text: &str) -> Result<Version> {
    let wrong = |why: &str| Error::Refused(format!("{text:?} is not a version: {why}"));
    if text.is_empty() || text == "head" {
        return Ok(Version::Head);
    }
    if let Some(back) = text.strip_prefix('~') {
        let back = back
            .parse()
            .map_err(|_| wrong("a number of commits follows the ~"))?;
        return Ok(Version::Back(back));
    }
    if let Some(ago) = text.strip_prefix('-') {
        let ago = runtime_spec::duration::parse(ago)
            .ok_or_else(|| wrong("a duration such as 5m or 1h30m follows the -"))?;
        return Ok(Version::At(
            now().saturating_sub(i64::try_from(ago.as_nanos()).unwrap_or(i64::MAX)),
        ));
    }
    let dated = text.len() >= 10
        && text.bytes().take(4).all(|b| b.is_ascii_digit())
        && text.as_bytes().get(4) == Some(&b'-');
    if dated {
        let time = parse_time(text).ok_or_else(|| wrong("a time is written 2026-11-20T19:02:11Z, or without zone in the node's own: 2026-11-20 19:02:11"))?;
        return Ok(Version::At(time));
    }
    Ok(Version::Named(text.to_owned()))
}

/// Nanoseconds since 1970; of a time without zone, in this node's. A time without fractions is the whole second: what
/// was recorded within it counts.
fn parse_time(text: &str) -> Option<i64> {
    let at = match text.parse::<jiff::Timestamp>() {
        Ok(at) => at,
        Err(_) => {
            let civil: jiff::civil::DateTime = text.parse().ok()?;
            civil.to_zoned(jiff::tz::TimeZone::system()).ok()?.timestamp()
        }
    };
    let nanos = i64::try_from(at.as_nanosecond()).ok()?;
    Some(if nanos % 1_000_000_000 == 0 && !text.contains('.') {
        nanos.saturating_add(999_999_999)
    } else {
        nanos
    })
}

/// Nanoseconds since 1970.
pub(crate) fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// What a commit's numbers mean.
#[must_use]
pub fn words(commit: &Commit) -> (String, String) {
    let consistency = Consistency::try_from(commit.consistency).map(|c| c.to_string());
    let reason = Reason::try_from(commit.reason).map(|r| r.to_string());
    (consistency.unwrap_or_default(), reason.unwrap_or_default())
}
