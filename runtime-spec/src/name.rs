//! Who a container is: the name of its state.

use std::{fmt, path::PathBuf, str::FromStr};

use crate::{Error, bundle::Bundle, config::Config, docker};

/// The longest component of a name, in bytes.
pub const LONGEST_COMPONENT: usize = 128;

/// The environment variable that may name a state, where the configuration allows it.
const ENV_VARIABLE: &str = "DIFFKEEPER_STATE";
/// The annotation that names a state.
pub const STATE: &str = "diffkeeper.io/state";
/// The value that opts out.
const NONE: &str = "none";

/// The kinds of engine, which are the first components of names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Engine {
    /// CRI: `k8s/<namespace>/<pod or state>/<container>`.
    Kubernetes,
    /// Docker: `docker/<name>`.
    Docker,
    /// Any other client of containerd: `ctr/<containerd namespace>/<name>`.
    Containerd,
}

impl Engine {
    const ALL: [(Engine, &'static str, usize); 3] = [
        (Engine::Kubernetes, "k8s", 4),
        (Engine::Docker, "docker", 2),
        (Engine::Containerd, "ctr", 3),
    ];
}

/// The name of a state: an engine and as many components as the engine has.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StateName {
    engine: Engine,
    text: String,
}

impl StateName {
    /// Builds a name from components that are each checked.
    fn new(engine: Engine, parts: &[(&str, &str)]) -> Result<StateName, Error> {
        let word = Engine::ALL
            .iter()
            .find(|(e, ..)| *e == engine)
            .map_or("", |(_, word, _)| word);
        let mut text = word.to_owned();
        for (source, part) in parts {
            check_component(source, part)?;
            text.push('/');
            text.push_str(part);
        }
        Ok(StateName { engine, text })
    }

    /// Which engine's container it is.
    #[must_use]
    pub fn engine(&self) -> Engine {
        self.engine
    }

    /// The parts, the engine's word first.
    pub fn components(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.text.split('/')
    }

    /// The namespace that it belongs to: Kubernetes' own, containerd's, or Docker's one.
    #[must_use]
    pub fn namespace(&self) -> &str {
        match self.engine {
            Engine::Docker => docker::NAMESPACE,
            _ => self.components().nth(1).unwrap_or_default(),
        }
    }

    /// The namespace with its engine before it: namespaces of one name have nothing in common where their engines are not the
    /// same.
    #[must_use]
    pub fn engine_namespace(&self) -> &str {
        let parts = match self.engine {
            Engine::Docker => 1,
            _ => 2,
        };
        let mut ends = self.text.match_indices('/').map(|(at, _)| at);
        let end = ends.nth(parts - 1).unwrap_or(self.text.len());
        self.text.get(..end).unwrap_or_default()
    }

    /// The last part.
    #[must_use]
    pub fn leaf(&self) -> &str {
        self.components().next_back().unwrap_or_default()
    }

    /// The name as a relative path: one directory for each part.
    #[must_use]
    pub fn as_path(&self) -> PathBuf {
        PathBuf::from(&self.text)
    }

    /// The name under which this state's live tree is set aside, `seconds` after 1970: it can be used as any other, by
    /// the annotation that names a state.
    ///
    /// # Errors
    /// None that a name of ours can give.
    pub fn set_aside(&self, seconds: u64) -> Result<StateName, Error> {
        // In Kubernetes the pod's part is what the annotation gives.
        let at = if self.engine == Engine::Kubernetes {
            2
        } else {
            self.components().count() - 1
        };
        let suffix = format!(".before-{seconds}");
        let mut parts: Vec<String> = self.components().map(str::to_owned).collect();
        if let Some(part) = parts.get_mut(at) {
            part.truncate(LONGEST_COMPONENT - suffix.len());
            part.push_str(&suffix);
        }
        parts.join("/").parse()
    }

    /// Another state that a container of this one may name: of the same namespace, whatever is written. In Kubernetes the
    /// pod's part, with this container's name, or `POD/CONTAINER`; elsewhere the last part.
    ///
    /// # Errors
    /// What is no such name.
    pub fn beside(&self, written: &str) -> Result<StateName, Error> {
        const SOURCE: &str = "annotation diffkeeper.io/from";
        let namespace = (SOURCE, self.namespace());
        match (self.engine, written.split_once('/')) {
            (Engine::Docker, _) => StateName::new(self.engine, &[(SOURCE, written)]),
            (Engine::Containerd, _) => StateName::new(self.engine, &[namespace, (SOURCE, written)]),
            (Engine::Kubernetes, None) => StateName::new(
                self.engine,
                &[namespace, (SOURCE, written), (SOURCE, self.leaf())],
            ),
            (Engine::Kubernetes, Some((pod, container))) => {
                StateName::new(self.engine, &[namespace, (SOURCE, pod), (SOURCE, container)])
            }
        }
    }

    /// Whether `tail` is a whole-component end of the name: `web` of `ctr/default/web`.
    #[must_use]
    pub fn matches_tail(&self, tail: &str) -> bool {
        self.text == tail
            || (!tail.is_empty()
                && self
                    .text
                    .strip_suffix(tail)
                    .is_some_and(|head| head.ends_with('/')))
    }
}

impl fmt::Display for StateName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for StateName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let parts: Vec<&str> = text.split('/').collect();
        let known = Engine::ALL
            .iter()
            .find(|(_, word, n)| parts.first() == Some(word) && parts.len() == *n);
        let Some((engine, ..)) = known else {
            return Err(Error::Name {
                source_of: "the name".into(),
                value: text.into(),
                problem: "it is none of ctr/<namespace>/<name>, k8s/<namespace>/<pod>/<container>, docker/<name>",
            });
        };
        let parts: Vec<(&str, &str)> = parts.iter().skip(1).map(|p| ("the name's part", *p)).collect();
        StateName::new(*engine, &parts)
    }
}

fn check_component(source: &str, part: &str) -> Result<(), Error> {
    let problem = if part.is_empty() {
        "it is empty"
    } else if part.len() > LONGEST_COMPONENT {
        "it is longer than 128 bytes"
    } else if part == "." || part == ".." {
        "it would name a directory above"
    } else if part.contains('/') {
        "it has a slash, and a name is one component"
    } else if !part
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
    {
        "it has a character that a name cannot have"
    } else {
        return Ok(());
    };
    Err(Error::Name {
        source_of: source.into(),
        value: part.into(),
        problem,
    })
}

/// Why the end of a name names no state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TailError {
    /// No state's name ends so.
    NotFound,
    /// Several do.
    Ambiguous(Vec<StateName>),
}

/// The one state whose name is, or else ends in, `tail`.
///
/// # Errors
/// When there is none or more than one.
pub fn resolve_tail<'a>(
    names: impl IntoIterator<Item = &'a StateName>,
    tail: &str,
) -> Result<&'a StateName, TailError> {
    let found: Vec<&StateName> = names.into_iter().filter(|name| name.matches_tail(tail)).collect();
    match found.as_slice() {
        [] => Err(TailError::NotFound),
        [one] => Ok(one),
        several => match several.iter().find(|name| name.text == tail) {
            Some(exact) => Ok(exact),
            None => Err(TailError::Ambiguous(several.iter().copied().cloned().collect())),
        },
    }
}

/// Why a container is left alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// A pod's pause container.
    Sandbox,
    /// An annotation says `none`.
    OptedOut,
    /// Docker gave the container its name, and itself keeps its upper across restarts: a build must see its own.
    Unnamed,
    /// Docker's record of the container was not found, so nobody knows its name.
    Unknown,
}

/// Who a container is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Identity {
    /// It is run as the stock shim runs it.
    PassThrough(Reason),
    /// It has a state.
    State {
        /// The state's name.
        name: StateName,
        /// A person chose the name, so it does not expire by itself.
        chosen: bool,
    },
}

impl Identity {
    /// Reads it from the bundle, and for a container of Docker's from its record.
    ///
    /// # Errors
    /// A name that is wrong.
    pub fn of(
        bundle: &Bundle,
        namespace: &str,
        container_id: &str,
        config: &Config,
        docker: Option<&docker::Record>,
    ) -> Result<Identity, Error> {
        let kind = bundle.annotation("io.kubernetes.cri.container-type");
        // Anybody can put these annotations on a container of another namespace; there they mean nothing.
        if config.cri_namespaces.iter().any(|n| n == namespace)
            && let Some(kind) = kind
        {
            return if kind == "sandbox" {
                Ok(Identity::PassThrough(Reason::Sandbox))
            } else {
                Self::of_cri(bundle)
            };
        }
        let from_env = config.allow_env_state.then(|| environment(bundle)).flatten();
        let supplied = bundle
            .annotation(STATE)
            .map(|value| (format!("annotation {STATE}"), value))
            .or_else(|| from_env.map(|value| (format!("environment variable {ENV_VARIABLE}"), value)));
        if docker::is_namespace(namespace) {
            return Self::of_docker(supplied, docker);
        }
        match &supplied {
            Some((_, NONE)) => Ok(Identity::PassThrough(Reason::OptedOut)),
            Some((source, value)) => {
                let name = StateName::new(
                    Engine::Containerd,
                    &[("containerd namespace", namespace), (source, value)],
                )?;
                Ok(Identity::State { name, chosen: true })
            }
            None => {
                let parts = [
                    ("containerd namespace", namespace),
                    ("container id", container_id),
                ];
                Ok(Identity::State {
                    name: StateName::new(Engine::Containerd, &parts)?,
                    chosen: false,
                })
            }
        }
    }

    fn of_docker(
        supplied: Option<(String, &str)>,
        record: Option<&docker::Record>,
    ) -> Result<Identity, Error> {
        let (source, name) = match (supplied, record) {
            (Some((_, NONE)), _) => return Ok(Identity::PassThrough(Reason::OptedOut)),
            (Some(supplied), _) => supplied,
            (None, None) => return Ok(Identity::PassThrough(Reason::Unknown)),
            (None, Some(record)) if docker::is_generated(&record.name) => {
                return Ok(Identity::PassThrough(Reason::Unnamed));
            }
            (None, Some(record)) => ("container name".to_owned(), record.name.as_str()),
        };
        let name = StateName::new(Engine::Docker, &[(source.as_str(), name)])?;
        Ok(Identity::State { name, chosen: true })
    }

    fn of_cri(bundle: &Bundle) -> Result<Identity, Error> {
        let cri = |key: &str| {
            bundle
                .annotation(&format!("io.kubernetes.cri.{key}"))
                .unwrap_or_default()
        };
        let container = cri("container-name");
        let key = format!("{STATE}.{container}");
        let supplied = bundle
            .annotation(&key)
            .map(|value| (format!("annotation {key}"), value))
            .or_else(|| {
                bundle
                    .annotation(STATE)
                    .map(|value| (format!("annotation {STATE}"), value))
            });
        if matches!(supplied, Some((_, NONE))) {
            return Ok(Identity::PassThrough(Reason::OptedOut));
        }
        let chosen = supplied.is_some();
        let (source, pod) = supplied.unwrap_or_else(|| ("pod name".to_owned(), cri("sandbox-name")));
        let parts = [
            ("pod namespace", cri("sandbox-namespace")),
            (source.as_str(), pod),
            ("container name", container),
        ];
        Ok(Identity::State {
            name: StateName::new(Engine::Kubernetes, &parts)?,
            chosen,
        })
    }
}

fn environment(bundle: &Bundle) -> Option<&str> {
    let entries = bundle.process.env.iter();
    entries
        .filter_map(|entry| entry.strip_prefix(ENV_VARIABLE)?.strip_prefix('='))
        .next_back()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bundle(annotations: &[(&str, &str)], env: &[&str]) -> Bundle {
        let mut b = Bundle::default();
        b.annotations.extend(
            annotations
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned())),
        );
        b.process.env.extend(env.iter().map(ToString::to_string));
        b
    }

    fn named(namespace: &str, annotations: &[(&str, &str)]) -> Result<Identity, Error> {
        Identity::of(
            &bundle(annotations, &[]),
            namespace,
            "c1",
            &Config::default(),
            None,
        )
    }

    fn state(text: &str, chosen: bool) -> Identity {
        Identity::State {
            name: text.parse().unwrap(),
            chosen,
        }
    }

    const POD: [(&str, &str); 4] = [
        ("io.kubernetes.cri.container-type", "container"),
        ("io.kubernetes.cri.sandbox-namespace", "shop"),
        ("io.kubernetes.cri.sandbox-name", "db-0"),
        ("io.kubernetes.cri.container-name", "postgres"),
    ];

    fn pod(more: &[(&str, &str)]) -> Vec<(&'static str, String)> {
        let leak = |s: &str| -> &'static str { Box::leak(s.to_owned().into_boxed_str()) };
        POD.iter()
            .chain(more)
            .map(|(k, v)| (leak(k), (*v).to_owned()))
            .collect()
    }

    fn of_pod(namespace: &str, more: &[(&str, &str)]) -> Result<Identity, Error> {
        let all = pod(more);
        let all: Vec<(&str, &str)> = all.iter().map(|(k, v)| (*k, v.as_str())).collect();
        named(namespace, &all)
    }

    #[test]
    fn containerds_clients() {
        assert_eq!(named("default", &[]).unwrap(), state("ctr/default/c1", false));
        assert_eq!(
            named("default", &[(STATE, "web")]).unwrap(),
            state("ctr/default/web", true)
        );
        assert_eq!(
            named("default", &[(STATE, "none")]).unwrap(),
            Identity::PassThrough(Reason::OptedOut)
        );
        assert_eq!(
            named("moby", &[]).unwrap(),
            Identity::PassThrough(Reason::Unknown)
        );
        let of = |name: &str, annotations: &[(&str, &str)]| {
            let record = docker::Record {
                name: name.into(),
                ..docker::Record::default()
            };
            Identity::of(
                &bundle(annotations, &[]),
                "moby",
                "5d",
                &Config::default(),
                Some(&record),
            )
            .unwrap()
        };
        assert_eq!(of("web", &[]), state("docker/web", true));
        assert_eq!(of("elated_kare", &[]), Identity::PassThrough(Reason::Unnamed));
        assert_eq!(of("elated_kare", &[(STATE, "db")]), state("docker/db", true));
        assert_eq!(
            of("web", &[(STATE, "none")]),
            Identity::PassThrough(Reason::OptedOut)
        );
    }

    #[test]
    fn pods() {
        assert_eq!(
            of_pod("k8s.io", &[]).unwrap(),
            state("k8s/shop/db-0/postgres", false)
        );
        assert_eq!(
            of_pod("k8s.io", &[(STATE, "db")]).unwrap(),
            state("k8s/shop/db/postgres", true)
        );
        let other = [(STATE, "db"), ("diffkeeper.io/state.postgres", "pg")];
        assert_eq!(
            of_pod("k8s.io", &other).unwrap(),
            state("k8s/shop/pg/postgres", true)
        );
        let out = [(STATE, "db"), ("diffkeeper.io/state.postgres", "none")];
        assert_eq!(
            of_pod("k8s.io", &out).unwrap(),
            Identity::PassThrough(Reason::OptedOut)
        );
        let sidecar = [(STATE, "none"), ("diffkeeper.io/state.postgres", "pg")];
        assert_eq!(
            of_pod("k8s.io", &sidecar).unwrap(),
            state("k8s/shop/pg/postgres", true)
        );
        let pause = [("io.kubernetes.cri.container-type", "sandbox")];
        assert_eq!(
            named("k8s.io", &pause).unwrap(),
            Identity::PassThrough(Reason::Sandbox)
        );
    }

    #[test]
    fn cri_annotations_elsewhere_reach_no_pod() {
        assert_eq!(of_pod("default", &[]).unwrap(), state("ctr/default/c1", false));
    }

    #[test]
    fn the_environment_counts_only_where_allowed() {
        let b = bundle(&[], &["DIFFKEEPER_STATE=web"]);
        let of = |config: &Config| Identity::of(&b, "default", "c1", config, None).unwrap();
        assert_eq!(of(&Config::default()), state("ctr/default/c1", false));
        assert_eq!(
            of(&Config {
                allow_env_state: true,
                ..Config::default()
            }),
            state("ctr/default/web", true)
        );
    }

    #[test]
    fn names_that_are_refused() {
        for bad in [
            "",
            ".",
            "..",
            "../x",
            "a/b",
            "/etc",
            "a\0b",
            "a b",
            "ü",
            &"x".repeat(129),
            &"x".repeat(300),
            "k8s/shop/db",
        ] {
            let error = named("default", &[(STATE, bad)]).unwrap_err().to_string();
            assert!(error.contains(STATE) && !error.contains('\0'), "{error}");
            assert!(of_pod("k8s.io", &[(STATE, bad)]).is_err());
        }
        assert!(named("a/b", &[]).is_err());
    }

    #[test]
    fn refusals_keep_to_one_line() {
        let container = ("io.kubernetes.cri.container-name", "a\n\x1b[31mb");
        let state = ("diffkeeper.io/state.a\n\x1b[31mb", "no/name");
        let error = of_pod("k8s.io", &[container, state]).unwrap_err().to_string();
        assert!(
            error.contains("no/name") && !error.contains(char::is_control),
            "{error}"
        );
    }

    #[test]
    fn tails() {
        let names: Vec<StateName> = ["ctr/default/web", "ctr/other/web", "ctr/default/db"]
            .iter()
            .map(|n| n.parse().unwrap())
            .collect();
        assert_eq!(resolve_tail(&names, "db").unwrap().to_string(), "ctr/default/db");
        assert_eq!(
            resolve_tail(&names, "other/web").unwrap().to_string(),
            "ctr/other/web"
        );
        assert_eq!(resolve_tail(&names, "eb"), Err(TailError::NotFound));
        assert_eq!(resolve_tail(&names, ""), Err(TailError::NotFound));
        assert!(matches!(resolve_tail(&names, "web"), Err(TailError::Ambiguous(c)) if c.len() == 2));
    }

    proptest! {
        #[test]
        fn whatever_is_supplied_stays_one_component(value: String) {
            if let Ok(Identity::State { name, .. }) = named("default", &[(STATE, &value)]) {
                let path = name.as_path();
                prop_assert_eq!(path.components().count(), 3);
                prop_assert!(path.components().all(|c| matches!(c, std::path::Component::Normal(_))));
                prop_assert!(path.starts_with("ctr/default"));
                prop_assert_eq!(name.to_string().parse::<StateName>().unwrap(), name);
            }
        }
    }
}
