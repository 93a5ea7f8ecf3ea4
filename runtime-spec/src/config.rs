//! `config.toml`.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, time::Duration};

use crate::{
    Error,
    annotations::{OnImageChange, check_path},
    duration, size,
};

/// When a state is forgotten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reclaim {
    /// Never by itself.
    Keep,
    /// As soon as its container is gone.
    Delete,
    /// This long after its last container.
    After(Duration),
}

impl Reclaim {
    /// `keep`, `delete` or a duration.
    #[must_use]
    pub fn parse(text: &str) -> Option<Reclaim> {
        match text {
            "keep" => Some(Reclaim::Keep),
            "delete" => Some(Reclaim::Delete),
            _ => duration::parse(text).map(Reclaim::After),
        }
    }
}

/// Every setting. `config.toml.example` says what each is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Where the live trees are.
    pub root: PathBuf,
    /// An image's or client's environment may name a state.
    pub allow_env_state: bool,
    /// The OCI runtime, where a container's options name none; empty for runc.
    pub runtime: String,
    /// The only paths that are kept; all when there are none.
    pub paths: Vec<PathBuf>,
    /// What to do when a container comes with another image than the state's last one.
    pub on_image_change: OnImageChange,
    /// Paths that start empty in each container.
    pub exclude: Vec<PathBuf>,
    /// How long a state in use is waited for.
    pub lease_wait: Duration,
    /// The same under CRI, where a pod's successor may overlap it.
    pub lease_wait_cri: Duration,
    /// containerd namespaces whose containers are CRI's.
    pub cri_namespaces: Vec<String>,
    /// What a state's live tree may take, in bytes.
    pub size_limit: Option<u64>,
    /// What the live trees of a namespace may take together, in bytes, for a new state to begin in it.
    pub total_limit: Option<u64>,
    /// A container whose limit the disk cannot hold does not start.
    pub require_quota: bool,
    /// When a state whose name nobody chose is forgotten.
    pub reclaim_unchosen: Reclaim,
    /// When a state whose name was chosen is forgotten.
    pub reclaim_chosen: Reclaim,
    /// The keeper's socket.
    pub keeper: PathBuf,
    /// A shim that finds no keeper starts one.
    pub start_keeper: bool,
    /// What the keeper does.
    pub history: History,
    /// What differs in single namespaces: Kubernetes' own, or elsewhere containerd's.
    pub namespaces: BTreeMap<String, Namespace>,
}

/// How much is said in a log: what its name says, and everything that is worse.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Log {
    /// What went wrong.
    Error,
    /// What may go wrong.
    Warn,
    /// What was done.
    #[default]
    Info,
    /// How.
    Debug,
}

impl Log {
    /// Its word.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Log::Error => "error",
            Log::Warn => "warn",
            Log::Info => "info",
            Log::Debug => "debug",
        }
    }
}

/// How a keeper finds what has changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Watcher {
    /// The best that the kernel allows: eBPF programs with fanotify, else it looks at everything.
    Auto,
    /// It looks at everything.
    #[default]
    Scan,
    /// It looks where the kernel's fanotify says, which does not tell of every change.
    Fanotify,
}

/// What the keeper does: `[history]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct History {
    /// How often a state's history grows while something changes; zero for never.
    pub interval: Duration,
    /// How long a container may stand still for it.
    pub max_pause: Duration,
    /// Where the store is; below [`Config::root`] where it is not given.
    pub store: Option<PathBuf>,
    /// Identical content is stored once on the whole node, not once in each namespace.
    pub share: bool,
    /// SHA-256 instead of BLAKE3, for a store that is made new.
    pub sha256: bool,
    /// Where metrics are served; none for nowhere.
    pub metrics: Option<SocketAddr>,
    /// How much the keeper says in its log.
    pub log: Log,
    /// Which commits keep their content, the youngest first.
    pub retention: Vec<Keep>,
    /// Who says where to look for what has changed.
    pub watcher: Watcher,
    /// The key that signs commits, where they are signed.
    pub signing_key: Option<PathBuf>,
}

/// Of the commits up to an age, one for each so long: `1m for 1d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// One for each so long; zero for all.
    pub every: Duration,
    /// How old.
    pub age: Duration,
}

impl Keep {
    /// `1m for 1d`, `all for 1h`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Keep> {
        let (every, age) = text.split_once(" for ")?;
        let every = match every {
            "all" => Duration::ZERO,
            every => duration::parse(every).filter(|every| *every >= Duration::from_secs(1))?,
        };
        Some(Keep {
            every,
            age: duration::parse(age)?,
        })
    }
}

impl Default for History {
    fn default() -> Self {
        History {
            interval: Duration::from_secs(1),
            max_pause: Duration::from_millis(500),
            store: None,
            share: false,
            sha256: false,
            metrics: Some(SocketAddr::from(([127, 0, 0, 1], 9911))),
            log: Log::default(),
            retention: ["all for 1h", "1m for 1d", "1h for 31d", "1d for 366d"]
                .iter()
                .filter_map(|rule| Keep::parse(rule))
                .collect(),
            watcher: Watcher::default(),
            signing_key: None,
        }
    }
}

/// What differs in one namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Namespace {
    /// As [`Config::paths`].
    pub paths: Option<Vec<PathBuf>>,
    /// As [`Config::exclude`].
    pub exclude: Option<Vec<PathBuf>>,
    /// As [`Config::on_image_change`].
    pub on_image_change: Option<OnImageChange>,
    /// As [`Config::size_limit`]; none in it where there is to be none.
    pub size_limit: Option<Option<u64>>,
    /// As [`Config::total_limit`]; none in it where there is to be none.
    pub total_limit: Option<Option<u64>>,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            root: "/var/lib/diffkeeper".into(),
            allow_env_state: false,
            runtime: String::new(),
            paths: Vec::new(),
            on_image_change: OnImageChange::Keep,
            exclude: ["/run", "/var/run", "/tmp"].map(PathBuf::from).to_vec(),
            lease_wait: Duration::ZERO,
            lease_wait_cri: Duration::from_secs(10),
            cri_namespaces: vec!["k8s.io".into()],
            size_limit: None,
            total_limit: None,
            require_quota: false,
            reclaim_unchosen: Reclaim::After(Duration::from_secs(7 * 86_400)),
            reclaim_chosen: Reclaim::Keep,
            keeper: "/run/diffkeeper/keeper.sock".into(),
            start_keeper: true,
            history: History::default(),
            namespaces: BTreeMap::new(),
        }
    }
}

impl Config {
    /// Parses the file's text; a key that is not given keeps its default.
    ///
    /// # Errors
    /// TOML that does not parse, an unknown key, a value of the wrong kind: each with its key and line.
    pub fn parse(text: &str) -> Result<Config, Error> {
        let table: toml::Table = text
            .parse()
            .map_err(|e: toml::de::Error| Error::Config(e.to_string().trim_end().to_owned()))?;
        let mut config = Config::default();
        for (key, value) in &table {
            let at = Key {
                text,
                section: None,
                key,
            };
            match key.as_str() {
                "root" => config.root = at.absolute(value)?,
                "allow-env-state" => config.allow_env_state = at.boolean(value)?,
                "runtime" => config.runtime = at.string(value)?.to_owned(),
                "paths" => config.paths = at.paths(value)?,
                "on-image-change" => {
                    config.on_image_change = at.image_change(value)?;
                }
                "exclude" => config.exclude = at.paths(value)?,
                "lease-wait" => config.lease_wait = at.duration(value)?,
                "lease-wait-cri" => config.lease_wait_cri = at.duration(value)?,
                "size-limit" => config.size_limit = at.size(value)?,
                "total-limit" => config.total_limit = at.size(value)?,
                "without-quota" => {
                    config.require_quota = match at.string(value)? {
                        "warn" => false,
                        "refuse" => true,
                        _ => return Err(at.wrong("warn or refuse")),
                    }
                }
                "cri-namespaces" => config.cri_namespaces = at.strings(value)?,
                "reclaim" => {
                    let section = value.as_table().ok_or_else(|| at.wrong("a table: [reclaim]"))?;
                    for (key, value) in section {
                        let at = Key {
                            text,
                            section: Some("reclaim"),
                            key,
                        };
                        match key.as_str() {
                            "unchosen" => config.reclaim_unchosen = at.reclaim(value)?,
                            "chosen" => config.reclaim_chosen = at.reclaim(value)?,
                            _ => return Err(at.unknown("unchosen, chosen")),
                        }
                    }
                }
                "keeper" => config.keeper = at.absolute(value)?,
                "start-keeper" => config.start_keeper = at.boolean(value)?,
                "history" => {
                    let section = value.as_table().ok_or_else(|| at.wrong("a table: [history]"))?;
                    config.history = History::parse(text, section)?;
                }
                "namespaces" => {
                    let all = value
                        .as_table()
                        .ok_or_else(|| at.wrong("a table: [namespaces.NAME]"))?;
                    for (name, section) in all {
                        let section = section
                            .as_table()
                            .ok_or_else(|| at.wrong("a table: [namespaces.NAME]"))?;
                        config
                            .namespaces
                            .insert(name.clone(), Namespace::parse(text, name, section)?);
                    }
                }
                _ => {
                    return Err(at.unknown(
                        "root, runtime, allow-env-state, paths, exclude, on-image-change, lease-wait, lease-wait-cri, cri-namespaces, size-limit, total-limit, without-quota, keeper, start-keeper, [history] interval, max-pause, store, share, hash, log, metrics, retention, watcher, signing-key, [reclaim] unchosen, chosen, [namespaces.NAME] paths, exclude, on-image-change, size-limit, total-limit",
                    ));
                }
            }
        }
        Ok(config)
    }
}

impl History {
    fn parse(text: &str, section: &toml::Table) -> Result<History, Error> {
        let mut history = History::default();
        for (key, value) in section {
            let at = Key {
                text,
                section: Some("history"),
                key,
            };
            match key.as_str() {
                "interval" if value.as_str() == Some("off") => history.interval = Duration::ZERO,
                "interval" => history.interval = at.duration(value)?,
                "max-pause" => history.max_pause = at.duration(value)?,
                "store" => history.store = Some(at.absolute(value)?),
                "share" => {
                    history.share = match at.string(value)? {
                        "namespace" => false,
                        "node" => true,
                        _ => return Err(at.wrong("namespace or node")),
                    }
                }
                "hash" => {
                    history.sha256 = match at.string(value)? {
                        "blake3" => false,
                        "sha256" => true,
                        _ => return Err(at.wrong("blake3 or sha256")),
                    }
                }
                "log" => {
                    history.log = match at.string(value)? {
                        "error" => Log::Error,
                        "warn" => Log::Warn,
                        "info" => Log::Info,
                        "debug" => Log::Debug,
                        _ => return Err(at.wrong("error, warn, info or debug")),
                    }
                }
                "watcher" => {
                    history.watcher = match at.string(value)? {
                        "auto" => Watcher::Auto,
                        "scan" => Watcher::Scan,
                        "fanotify" => Watcher::Fanotify,
                        _ => return Err(at.wrong("auto, scan or fanotify")),
                    }
                }
                "metrics" if value.as_str() == Some("off") => history.metrics = None,
                "metrics" => {
                    let address = at.string(value)?.parse();
                    history.metrics =
                        Some(address.map_err(|_| at.wrong("off, or an address such as 127.0.0.1:9911"))?);
                }
                "retention" => {
                    let rules = at.strings(value)?;
                    let rules: Option<Vec<Keep>> = rules.iter().map(|rule| Keep::parse(rule)).collect();
                    let mut rules =
                        rules.ok_or_else(|| at.wrong("rules such as \"all for 1h\" or \"1m for 1d\""))?;
                    rules.sort_by_key(|rule| rule.age);
                    history.retention = rules;
                }
                "signing-key" => history.signing_key = Some(at.absolute(value)?),
                _ => {
                    return Err(at.unknown(
                        "interval, max-pause, store, share, hash, log, metrics, retention, watcher, signing-key",
                    ));
                }
            }
        }
        Ok(history)
    }
}

impl Namespace {
    fn parse(text: &str, name: &str, section: &toml::Table) -> Result<Namespace, Error> {
        let mut namespace = Namespace::default();
        let named = format!("namespaces.{name}");
        for (key, value) in section {
            let at = Key {
                text,
                section: Some(&named),
                key,
            };
            match key.as_str() {
                "paths" => namespace.paths = Some(at.paths(value)?),
                "exclude" => namespace.exclude = Some(at.paths(value)?),
                "on-image-change" => namespace.on_image_change = Some(at.image_change(value)?),
                "size-limit" => namespace.size_limit = Some(at.size(value)?),
                "total-limit" => namespace.total_limit = Some(at.size(value)?),
                _ => return Err(at.unknown("paths, exclude, on-image-change, size-limit, total-limit")),
            }
        }
        Ok(namespace)
    }
}

impl Config {
    /// The configuration with what differs in this namespace in its place.
    #[must_use]
    pub fn in_namespace(mut self, name: &str) -> Config {
        if let Some(own) = self.namespaces.remove(name) {
            self.paths = own.paths.unwrap_or(self.paths);
            self.exclude = own.exclude.unwrap_or(self.exclude);
            self.on_image_change = own.on_image_change.unwrap_or(self.on_image_change);
            self.size_limit = own.size_limit.unwrap_or(self.size_limit);
            self.total_limit = own.total_limit.unwrap_or(self.total_limit);
        }
        self
    }

    /// What the live trees of a namespace may take together.
    #[must_use]
    pub fn total_limit_of(&self, namespace: &str) -> Option<u64> {
        let own = self.namespaces.get(namespace);
        own.and_then(|own| own.total_limit).unwrap_or(self.total_limit)
    }
}

/// A key, for messages.
struct Key<'a> {
    text: &'a str,
    section: Option<&'a str>,
    key: &'a str,
}

impl Key<'_> {
    /// The line that the key stands on: the first that begins with it, in its section.
    fn line(&self) -> usize {
        let mut inside = self.section.is_none();
        for (number, line) in self.text.lines().enumerate() {
            let line = line.trim_start();
            if let Some(section) = self.section
                && line.starts_with('[')
            {
                inside = line.trim_start_matches('[').starts_with(section);
            }
            let bare = line.trim_start_matches(['[', '"', '\'']);
            let dotted = self
                .section
                .and_then(|s| bare.strip_prefix(s))
                .map_or(bare, |rest| rest.trim_start_matches('.'));
            if (inside || dotted != bare) && dotted.starts_with(self.key) {
                return number + 1;
            }
        }
        1
    }

    fn name(&self) -> String {
        self.section
            .map_or_else(|| self.key.to_owned(), |s| format!("{s}.{}", self.key))
    }

    fn unknown(&self, known: &str) -> Error {
        Error::Config(format!(
            "line {}: unknown key {:?}; there are {known}",
            self.line(),
            self.name()
        ))
    }

    fn wrong(&self, expected: &str) -> Error {
        Error::Config(format!(
            "line {}: {} must be {expected}",
            self.line(),
            self.name()
        ))
    }

    fn string<'v>(&self, value: &'v toml::Value) -> Result<&'v str, Error> {
        value.as_str().ok_or_else(|| self.wrong("a string"))
    }

    fn absolute(&self, value: &toml::Value) -> Result<PathBuf, Error> {
        let path = self.string(value)?;
        check_path(path).map_err(|_| self.wrong("an absolute path without . or .."))?;
        Ok(path.into())
    }

    fn boolean(&self, value: &toml::Value) -> Result<bool, Error> {
        value.as_bool().ok_or_else(|| self.wrong("true or false"))
    }

    fn strings(&self, value: &toml::Value) -> Result<Vec<String>, Error> {
        let list = value.as_array().ok_or_else(|| self.wrong("a list of strings"))?;
        list.iter()
            .map(|v| {
                v.as_str()
                    .map(str::to_owned)
                    .ok_or_else(|| self.wrong("a list of strings"))
            })
            .collect()
    }

    fn paths(&self, value: &toml::Value) -> Result<Vec<PathBuf>, Error> {
        let list = self.strings(value)?;
        for path in &list {
            check_path(path)
                .map_err(|problem| self.wrong(&format!("a list of absolute paths: {problem}")))?;
        }
        Ok(list.into_iter().map(PathBuf::from).collect())
    }

    fn duration(&self, value: &toml::Value) -> Result<Duration, Error> {
        duration::parse(self.string(value)?).ok_or_else(|| self.wrong("a duration such as \"10s\""))
    }

    /// A size, or none for `none`.
    fn size(&self, value: &toml::Value) -> Result<Option<u64>, Error> {
        match self.string(value)? {
            "none" => Ok(None),
            text => size::parse(text)
                .map(Some)
                .ok_or_else(|| self.wrong("\"none\" or a size such as \"10GiB\"")),
        }
    }

    fn image_change(&self, value: &toml::Value) -> Result<OnImageChange, Error> {
        OnImageChange::parse(self.string(value)?)
            .ok_or_else(|| self.wrong("\"keep\", \"fresh\" or \"refuse\""))
    }

    fn reclaim(&self, value: &toml::Value) -> Result<Reclaim, Error> {
        Reclaim::parse(self.string(value)?)
            .ok_or_else(|| self.wrong("\"keep\", \"delete\" or a duration such as \"7d\""))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_example_is_the_defaults() {
        let example = include_str!("../../config.toml.example");
        assert_eq!(Config::parse(example).unwrap(), Config::default());
        // Its settings are commented out with a single '#'; prose has a blank after it.
        let settings: String = example
            .lines()
            .map(|line| match line.strip_prefix('#') {
                Some(rest) if rest.starts_with(|c: char| c.is_ascii_alphabetic() || c == '[') => {
                    format!("{rest}\n")
                }
                _ => format!("{line}\n"),
            })
            .collect();
        assert_eq!(Config::parse(&settings).unwrap(), Config::default());
        for key in [
            "root",
            "allow-env-state",
            "runtime",
            "paths",
            "exclude",
            "on-image-change",
            "lease-wait",
            "lease-wait-cri",
            "cri-namespaces",
            "size-limit",
            "total-limit",
            "without-quota",
            "unchosen",
            "chosen",
            "keeper",
            "start-keeper",
            "interval",
            "max-pause",
            "share",
            "hash",
            "log",
            "metrics",
            "retention",
            "watcher",
        ] {
            assert!(
                settings.lines().any(|l| l.starts_with(&format!("{key} = "))),
                "{key} is not in the example"
            );
        }
    }

    #[test]
    fn fanotify_alone_is_asked_for() {
        assert_eq!(History::default().watcher, Watcher::Scan);
        for (word, watcher) in [
            ("auto", Watcher::Auto),
            ("scan", Watcher::Scan),
            ("fanotify", Watcher::Fanotify),
        ] {
            let config = Config::parse(&format!("[history]\nwatcher = \"{word}\"")).unwrap();
            assert_eq!(config.history.watcher, watcher);
        }
    }

    #[test]
    fn refusals_name_key_and_line() {
        for (text, line, word) in [
            ("[history]\ninterval = 3", "line 2", "history.interval"),
            ("[history]\nshare = \"all\"", "line 2", "namespace or node"),
            ("[history]\nmetrics = \"9911\"", "line 2", "127.0.0.1:9911"),
            (
                "[history]\nlog = \"loud\"",
                "line 2",
                "error, warn, info or debug",
            ),
            (
                "[history]\nwatcher = \"inotify\"",
                "line 2",
                "auto, scan or fanotify",
            ),
            ("[history]\nretention = [\"1d\"]", "line 2", "history.retention"),
            ("[history]\nevery = \"1s\"", "line 2", "history.every"),
            ("\nlease = \"1s\"", "line 2", "lease"),
            ("[reclaim]\nnever = 1", "line 2", "reclaim.never"),
            ("root = 1", "line 1", "root"),
            ("root = \"x\"", "line 1", "root"),
            ("exclude = [\"tmp\"]", "line 1", "tmp"),
            ("size-limit = \"10 GB\"", "line 1", "10GiB"),
            ("without-quota = \"no\"", "line 1", "warn or refuse"),
            ("lease-wait = \"fast\"", "line 1", "lease-wait"),
            ("\n\n[reclaim]\nchosen = \"never\"", "line 4", "reclaim.chosen"),
            (
                "[namespaces.shop]\nroot = \"/x\"",
                "line 2",
                "namespaces.shop.root",
            ),
            (
                "[namespaces.a]\npaths = []\n[namespaces.b]\npaths = [\"x\"]",
                "line 4",
                "namespaces.b.paths",
            ),
            ("a = ", "line 1", ""),
        ] {
            let error = Config::parse(text).unwrap_err().to_string();
            assert!(error.contains(line) && error.contains(word), "{text:?}: {error}");
        }
    }

    #[test]
    fn a_namespace_differs_in_what_it_says() {
        let text = "exclude = [\"/tmp\"]\n[namespaces.shop]\npaths = [\"/var/lib/app\"]\non-image-change = \"refuse\"";
        let config = Config::parse(text).unwrap();
        let other = config.clone().in_namespace("other");
        assert!(other.paths.is_empty());
        let shop = config.in_namespace("shop");
        assert_eq!(shop.paths, [PathBuf::from("/var/lib/app")]);
        assert_eq!(shop.exclude, [PathBuf::from("/tmp")]);
        assert_eq!(shop.on_image_change, OnImageChange::Refuse);
    }

    #[test]
    fn a_namespace_may_have_a_limit_of_its_own_or_none() {
        let text = "size-limit = \"1GiB\"\n[namespaces.a]\nsize-limit = \"2Gi\"\n[namespaces.b]\nsize-limit = \"none\"";
        let totals = text.replace("size-limit", "total-limit");
        let config = Config::parse(text).unwrap();
        for (namespace, limit) in [("a", Some(2 << 30)), ("b", None), ("c", Some(1 << 30))] {
            assert_eq!(
                config.clone().in_namespace(namespace).size_limit,
                limit,
                "{namespace}"
            );
            let config = Config::parse(&totals).unwrap();
            assert_eq!(config.total_limit_of(namespace), limit);
            assert_eq!(config.in_namespace(namespace).total_limit, limit);
        }
    }

    proptest! {
        #[test]
        fn never_panics(text: String) {
            let _ = Config::parse(&text);
        }
    }
}
