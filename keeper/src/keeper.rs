//! What the keeper does with the states of a node: commits, restores, forks.

#[cfg(test)]
mod many;
mod restore;
#[cfg(test)]
mod restore_kills;
mod version;

use std::{
    collections::HashMap,
    fs::File,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, OnceLock, PoisonError, TryLockError},
};

use live::{Node, State};
use runtime_spec::{
    config::{Config, History, Watcher},
    name::{StateName, TailError, resolve_tail},
};
use store::{
    Hash, Id, Known, Recorded, Store, Version,
    format::{Commit, Consistency, Reason},
};

use crate::{
    blueshift::{Capture, Freezer, Top},
    error::{Context, Error, Result},
    freezer::Shim,
    place::Place,
    progress::Progress,
    redshift::Plan,
    watcher::writers::{Writers, writers},
    watching::{Watched, Watching},
};

pub(crate) use self::version::now;
pub use self::{
    restore::{Restore, Restored},
    version::parse_version,
};

/// The keeper of a node.
pub struct Keeper {
    node: Node,
    store: Store,
    history: History,
    config: Config,
    node_name: String,
    boot: String,
    /// One thing at a time for each state.
    busy: Mutex<HashMap<String, Arc<Mutex<()>>>>,
    watching: OnceLock<Watching>,
    /// What was done, in numbers.
    pub counts: crate::metrics::Counts,
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
        let pressure = crate::pressure::Pressure::default();
        store.follow(move || pressure.now());
        let boot = Path::new("/proc/sys/kernel/random/boot_id");
        let boot = std::fs::read_to_string(boot).on("read", boot)?;
        let name = nix::unistd::gethostname().on("ask for", Path::new("the node's name"))?;
        Ok(Keeper {
            node,
            store,
            history: config.history.clone(),
            config: config.clone(),
            node_name: name.to_string_lossy().into_owned(),
            boot: boot.trim().to_owned(),
            busy: Mutex::default(),
            watching: OnceLock::new(),
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

    /// Who says where to look in the live trees, if they are to be watched: found out the first time this is asked. Until then
    /// all is looked at.
    pub fn watching(&self) -> &Watching {
        self.watching.get_or_init(|| match self.history.watcher {
            Watcher::Auto => Watching::auto(self.node.root(), &self.node.trash()),
            Watcher::Scan => Watching::scan(),
            Watcher::Fanotify => Watching::fanotify_alone(self.node.root(), &self.node.trash()),
        })
    }

    /// Paths in a state's live tree that its container may write to without a word; none where that is not known.
    pub(crate) fn written_in_silence(&self, name: &StateName) -> Option<Vec<(PathBuf, Vec<u8>)>> {
        let state = self.node.state(name);
        let open = writers(&state.in_use_by()?, &named_roots(&state).ok()?).ok()?;
        let tops = tops(&state).ok()?;
        let found = open.keys.iter().filter_map(|key| {
            let (root, path) = store::format::place(key);
            let top = tops.iter().find(|top| top.name == root)?;
            Some((top.path.clone(), path))
        });
        Some(found.collect())
    }

    /// The settings.
    #[must_use]
    pub fn settings(&self) -> &History {
        &self.history
    }

    /// What the live trees of a namespace may take together.
    pub(crate) fn total_limit(&self, namespace: &str) -> Option<u64> {
        self.config.total_limit_of(namespace)
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
        self.commit_at(name, reason, message, progress, None)
    }

    /// The same, from a place that is left while somebody else is waited for.
    pub(crate) fn commit_from(
        &self,
        name: &StateName,
        reason: Reason,
        place: &Place<'_>,
    ) -> Result<Option<Recorded>> {
        self.commit_at(name, reason, None, &Progress::default(), Some(place))
    }

    fn commit_at(
        &self,
        name: &StateName,
        reason: Reason,
        message: Option<&str>,
        progress: &Progress,
        place: Option<&Place<'_>>,
    ) -> Result<Option<Recorded>> {
        progress.begin("waiting for its turn");
        let turn = self.turn(&name.to_string());
        let _turn = match turn.try_lock() {
            Ok(turn) => turn,
            Err(TryLockError::Poisoned(turn)) => turn.into_inner(),
            Err(TryLockError::WouldBlock) => {
                let _away = place.map(Place::leave);
                turn.lock().unwrap_or_else(PoisonError::into_inner)
            }
        };
        let begun = std::time::Instant::now();
        let made = self.capture(name, reason, message, progress, place);
        self.counts.captured(&made, begun.elapsed());
        made
    }

    fn capture(
        &self,
        name: &StateName,
        reason: Reason,
        message: Option<&str>,
        progress: &Progress,
        place: Option<&Place<'_>>,
    ) -> Result<Option<Recorded>> {
        let state = self.node.state(name);
        if !state.exists() {
            return Err(Error::NotFound(format!("{name} has no live tree on this node")));
        }
        let holder = state.in_use_by();
        let shim = holder.as_ref().map(|holder| Shim::new(holder, place));
        let freezer = shim.as_ref().map(|shim| shim as &dyn Freezer);
        let undisturbed = || state.in_use_by().is_none();
        self.catch_up(&state, name, freezer, progress)?;
        let mut live = self.live(&state, name, freezer, &undisturbed)?;
        let roots: Vec<(Vec<u8>, live::Root)> = named_roots(&state)?;
        let open = || match &holder {
            Some(holder) => writers(holder, &roots),
            None => Ok(Writers::default()),
        };
        live.watch = self.watching.get().map(|watching| Watched {
            watching,
            writers: &open,
            last: holder.is_none() || !matches!(reason, Reason::Interval | Reason::Manual),
        });
        live.record(reason, message, progress)
    }

    /// A state's live tree, made ready to be recorded.
    fn live<'a>(
        &'a self,
        state: &State,
        name: &StateName,
        freezer: Option<&'a dyn Freezer>,
        undisturbed: &'a (dyn Fn() -> bool + Sync),
    ) -> Result<Live<'a>> {
        let record = state.record();
        let known = self.store.make_state(&name.to_string(), &self.domain(name))?;
        Ok(Live {
            keeper: self,
            known: self.note_reclaim(known, record.as_ref())?,
            tops: tops(state)?,
            image: record
                .as_ref()
                .and_then(|record| record.image.as_ref()?.digest.clone()),
            exclude: record.map(|record| record.exclude).unwrap_or_default(),
            freezer,
            undisturbed,
            watch: None,
        })
    }

    /// Whether a state is to be recorded at all, and how often: nanoseconds; none for never.
    #[must_use]
    pub fn interval(&self, name: &StateName) -> Option<std::time::Duration> {
        let asked = self.node.state(name).record().and_then(|record| record.capture);
        let interval = asked.map_or(self.history.interval, std::time::Duration::from_millis);
        (!interval.is_zero()).then_some(interval)
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
    /// No such history, a full or failing disk; where it is to be erased, also damage in what is to go.
    pub fn forget(&self, said: &str, erase: bool, progress: &Progress) -> Result<store::Collected> {
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
        match erase {
            true => self.erase(progress).map_err(|error| match error {
                Error::Refused(why) => Error::Refused(format!("{} is forgotten, but {why}", known.name)),
                other => other,
            }),
            false => Ok(store::Collected::default()),
        }
    }

    /// Takes what no commit needs out of the store's bytes.
    ///
    /// # Errors
    /// Damage in what is to go: all else is erased. A full or failing disk.
    pub fn erase(&self, progress: &Progress) -> Result<store::Collected> {
        // Whoever wants it erased does not want half of it erased: this is not stopped.
        progress.begin("erasing");
        let told = |done: &store::Collected| progress.at(done.looked_at, done.of_packs, done.copied);
        match self.store.erase(told) {
            Err(error) if error.is_damage() => Err(Error::Refused(format!(
                "not all that no commit needs is erased: {error}. After a repair `diffkeeper gc --erase` goes on with it"
            ))),
            done => Ok(done?),
        }
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

/// A live tree that is to be recorded.
struct Live<'a> {
    keeper: &'a Keeper,
    known: Known,
    tops: Vec<Top>,
    exclude: Vec<PathBuf>,
    image: Option<String>,
    freezer: Option<&'a dyn Freezer>,
    undisturbed: &'a (dyn Fn() -> bool + Sync),
    watch: Option<Watched<'a>>,
}

impl Live<'_> {
    fn record(self, reason: Reason, message: Option<&str>, progress: &Progress) -> Result<Option<Recorded>> {
        let capture = Capture {
            state: &self.known,
            tops: &self.tops,
            exclude: &self.exclude,
            freezer: self.freezer,
            undisturbed: self.undisturbed,
            max_pause: self.keeper.history.max_pause,
            reason,
            message,
            image: self.image.as_deref().unwrap_or_default(),
            node: &self.keeper.node_name,
            boot: &self.keeper.boot,
            watch: self.watch,
        };
        capture.watched(&self.keeper.store, progress)
    }
}

/// The roots of a state, by the names that their keys begin with.
fn named_roots(state: &State) -> Result<Vec<(Vec<u8>, live::Root)>> {
    use std::os::unix::ffi::OsStrExt;
    let roots = state.roots().into_iter();
    roots
        .map(|dir| Ok((dir.root.dir_name()?.as_bytes().to_vec(), dir.root)))
        .collect()
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

/// What a commit's numbers mean.
#[must_use]
pub fn words(commit: &Commit) -> (String, String) {
    let consistency = Consistency::try_from(commit.consistency).map(|c| c.to_string());
    let reason = Reason::try_from(commit.reason).map(|r| r.to_string());
    (consistency.unwrap_or_default(), reason.unwrap_or_default())
}
