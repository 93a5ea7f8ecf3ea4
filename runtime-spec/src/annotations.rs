//! `diffkeeper.io/…` annotations, the state's name apart (see [`crate::name`]).

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use crate::{Error, config::Reclaim, duration, size};

const PREFIX: &str = "diffkeeper.io/";
/// Keys with a meaning in this version, without the prefix.
const KNOWN: [&str; 15] = [
    "state",
    "paths",
    "exclude",
    "include-mounts",
    "on-image-change",
    "after-crashes",
    "reclaim",
    "lease-wait",
    "when-missing",
    "capture",
    "size-limit",
    "restore",
    "from",
    "pre-commit",
    "post-commit",
];
/// Keys with a meaning in a later one: refused, so that nobody relies on what is not there.
const LATER: [&str; 2] = ["retention", "interval"];

/// What to do on a node that does not have the state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum WhenMissing {
    /// Begin a new one.
    #[default]
    Create,
    /// Do not start the container.
    Refuse,
}

/// What to do when a container comes with another image than the state's last one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OnImageChange {
    /// What the container wrote wins, everything else comes from the new image.
    #[default]
    Keep,
    /// The live tree is set aside, and the container starts from the image.
    Fresh,
    /// The container does not start.
    Refuse,
}

impl OnImageChange {
    /// `keep`, `fresh` or `refuse`.
    #[must_use]
    pub fn parse(text: &str) -> Option<OnImageChange> {
        match text {
            "keep" => Some(OnImageChange::Keep),
            "fresh" => Some(OnImageChange::Fresh),
            "refuse" => Some(OnImageChange::Refuse),
            _ => None,
        }
    }
}

/// The annotations of one container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Annotations {
    /// The only paths that are kept; the configuration's where it is not given.
    pub paths: Option<Vec<PathBuf>>,
    /// Mounts that a person declared and that are kept all the same.
    pub include_mounts: Vec<PathBuf>,
    /// What to do when the container comes with another image.
    pub on_image_change: Option<OnImageChange>,
    /// After this many failed starts in a row the container starts fresh; never where it is not given.
    pub after_crashes: Option<u32>,
    /// Paths that start empty in each container; the configuration's where it is not given.
    pub exclude: Option<Vec<PathBuf>>,
    /// When the state expires; the configuration's where it is not given.
    pub reclaim: Option<Reclaim>,
    /// How long a state in use is waited for; the configuration's where it is not given.
    pub lease_wait: Option<Duration>,
    /// What to do on a node without the state.
    pub when_missing: WhenMissing,
    /// How often its history is to grow; zero for never, the keeper's configuration where it is not given.
    pub capture: Option<Duration>,
    /// What its live tree may take, in bytes; the configuration's where that is less.
    pub size_limit: Option<u64>,
    /// The version that the container is to begin with, once for each value.
    pub restore: Option<String>,
    /// What a state that is new begins with.
    pub from: Option<From>,
    /// A command that is run in the container before a commit; empty for none.
    pub pre_commit: Vec<String>,
    /// A command that is run in the container after one; empty for none.
    pub post_commit: Vec<String>,
}

/// A version of another state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct From {
    /// The state, as [`StateName::beside`](crate::name::StateName::beside) reads it.
    pub state: String,
    /// Its version; empty for the newest.
    pub version: String,
}

impl Annotations {
    /// Parses those that are ours.
    ///
    /// # Errors
    /// A key that does not exist (a typing error must not cost anybody their data) or a value that is wrong.
    pub fn parse(all: &BTreeMap<String, String>) -> Result<Annotations, Error> {
        let mut parsed = Annotations::default();
        for (key, value) in all {
            let Some(short) = key.strip_prefix(PREFIX) else {
                continue;
            };
            let bad = |problem: String| Error::Annotation {
                key: key.clone(),
                value: value.clone(),
                problem,
            };
            match short {
                "paths" if value == "all" => parsed.paths = Some(Vec::new()),
                "paths" => parsed.paths = Some(paths(value).map_err(bad)?),
                "include-mounts" => parsed.include_mounts = paths(value).map_err(bad)?,
                "on-image-change" => {
                    let what = OnImageChange::parse(value)
                        .ok_or_else(|| bad("expected keep, fresh or refuse".into()))?;
                    parsed.on_image_change = Some(what);
                }
                "after-crashes" => {
                    let count = value.parse().ok().filter(|n| *n > 0);
                    parsed.after_crashes = Some(
                        count.ok_or_else(|| bad("expected a number of failed starts, 1 or more".into()))?,
                    );
                }
                "exclude" if value == "none" => parsed.exclude = Some(Vec::new()),
                "exclude" => parsed.exclude = Some(paths(value).map_err(bad)?),
                "reclaim" => {
                    let policy = Reclaim::parse(value).ok_or_else(|| {
                        bad("expected keep, delete or a duration such as 7d or 12h30m".into())
                    })?;
                    parsed.reclaim = Some(policy);
                }
                "lease-wait" => {
                    let wait = duration::parse(value)
                        .ok_or_else(|| bad("expected a duration such as 10s or 2m".into()))?;
                    parsed.lease_wait = Some(wait);
                }
                "when-missing" => {
                    parsed.when_missing = match value.as_str() {
                        "create" => WhenMissing::Create,
                        "refuse" => WhenMissing::Refuse,
                        _ => return Err(bad("expected create or refuse".into())),
                    };
                }
                "size-limit" => {
                    let limit = size::parse(value)
                        .ok_or_else(|| bad("expected a size such as 10Gi or 500MiB".into()))?;
                    parsed.size_limit = Some(limit);
                }
                "capture" if value == "off" => parsed.capture = Some(Duration::ZERO),
                "capture" => {
                    let interval = duration::parse(value).filter(|interval| !interval.is_zero());
                    let interval =
                        interval.ok_or_else(|| bad("expected off or a duration such as 1s or 5m".into()))?;
                    parsed.capture = Some(interval);
                }
                "restore" => {
                    // What is meant must not depend on when it is read: a template keeps it.
                    let relative = value.is_empty() || value == "head" || value.starts_with(['~', '-']);
                    if relative {
                        return Err(bad(
                            "expected a commit's name, a tag or a time: what it means must stay the same"
                                .into(),
                        ));
                    }
                    parsed.restore = Some(value.clone());
                }
                "from" => {
                    let (state, version) = value.split_once('@').unwrap_or((value, ""));
                    if state.is_empty() {
                        return Err(bad(
                            "expected a state of the same namespace, or STATE@VERSION".into()
                        ));
                    }
                    parsed.from = Some(From {
                        state: state.to_owned(),
                        version: version.to_owned(),
                    });
                }
                "pre-commit" => parsed.pre_commit = command(value).map_err(bad)?,
                "post-commit" => parsed.post_commit = command(value).map_err(bad)?,
                _ if short == "state" || short.starts_with("state.") => {}
                _ if LATER.contains(&short) => {
                    return Err(bad("this version does not support it yet".into()));
                }
                _ => {
                    let known = KNOWN.map(|k| format!("{PREFIX}{k}")).join(", ");
                    return Err(bad(format!("there is no such annotation; there are {known}")));
                }
            }
        }
        Ok(parsed)
    }
}

/// A command: a JSON array of its words, or words as a shell splits them. No shell runs it.
fn command(text: &str) -> Result<Vec<String>, String> {
    let words = if text.trim_start().starts_with('[') {
        serde_json::from_str(text).map_err(|e| format!("expected a JSON array of words: {e}"))?
    } else {
        shlex::split(text).ok_or("a quote is not closed, or nothing follows a backslash")?
    };
    match words.first() {
        // JSON can spell what no text holds.
        Some(program) if !program.is_empty() && !words.iter().any(|word| word.contains('\0')) => Ok(words),
        _ => Err("expected a command".into()),
    }
}

/// A longer list of paths is a mistake, or worse.
const LONGEST_LIST: usize = 16 * 1024;

/// Absolute paths with commas between, none of them the root or leading above it.
pub(crate) fn paths(text: &str) -> Result<Vec<PathBuf>, String> {
    if text.len() > LONGEST_LIST {
        return Err(format!(
            "{} bytes are too many for a list of paths: at most {LONGEST_LIST}",
            text.len()
        ));
    }
    let list = text.split(',').map(str::trim).filter(|p| !p.is_empty());
    list.map(|p| check_path(p).map(|()| PathBuf::from(p))).collect()
}

pub(crate) fn check_path(path: &str) -> Result<(), String> {
    let parts = || path.split('/').skip(1);
    if !path.starts_with('/') || path.contains('\0') {
        return Err(format!("{path:?} is not an absolute path"));
    }
    if path == "/" || parts().any(|p| p.is_empty() || p == "." || p == "..") {
        return Err(format!("{path:?} is not a plain path below /"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(key: &str, value: &str) -> Result<Annotations, Error> {
        Annotations::parse(&BTreeMap::from([
            (key.to_owned(), value.to_owned()),
            ("other".into(), "x".into()),
        ]))
    }

    #[test]
    fn values() {
        assert_eq!(
            parse("diffkeeper.io/reclaim", "12h").unwrap().reclaim,
            Some(Reclaim::After(Duration::from_secs(43_200)))
        );
        assert_eq!(
            parse("diffkeeper.io/lease-wait", "3s").unwrap().lease_wait,
            Some(Duration::from_secs(3))
        );
        for (value, state, version) in [
            ("web@good", "web", "good"),
            ("web", "web", ""),
            ("db-0/app@~2", "db-0/app", "~2"),
        ] {
            let from = parse("diffkeeper.io/from", value).unwrap().from.unwrap();
            assert_eq!((from.state.as_str(), from.version.as_str()), (state, version));
        }
        parse("diffkeeper.io/from", "@head").unwrap_err();
        assert_eq!(
            parse("diffkeeper.io/when-missing", "refuse")
                .unwrap()
                .when_missing,
            WhenMissing::Refuse
        );
        assert_eq!(
            parse("diffkeeper.io/exclude", "/tmp, /var/cache")
                .unwrap()
                .exclude
                .unwrap()
                .len(),
            2
        );
        assert_eq!(
            parse("diffkeeper.io/exclude", "none").unwrap().exclude,
            Some(vec![])
        );
        assert_eq!(parse("diffkeeper.io/exclude", "").unwrap().exclude, Some(vec![]));
        assert!(parse("diffkeeper.io/state.web", "x").is_ok());
        for value in [r#"sh -c "sync; date""#, r#" ["sh", "-c", "sync; date"]"#] {
            let hook = parse("diffkeeper.io/pre-commit", value).unwrap().pre_commit;
            assert_eq!(hook, ["sh", "-c", "sync; date"]);
        }
    }

    #[test]
    fn refusals_name_key_and_value() {
        for (key, value) in [
            ("reclaim", "soon"),
            ("lease-wait", "10"),
            ("when-missing", "maybe"),
            ("exclude", "tmp"),
            ("exclude", "/"),
            ("exclude", "/a/../b"),
            ("exlude", "/tmp"),
            ("paths", "data"),
            ("include-mounts", "/a//b"),
            ("on-image-change", "ask"),
            ("after-crashes", "0"),
            ("restore", "head"),
            ("pre-commit", "sh -c 'sync"),
            ("pre-commit", "[1]"),
            ("post-commit", " "),
        ] {
            let error = parse(&format!("diffkeeper.io/{key}"), value)
                .unwrap_err()
                .to_string();
            assert!(error.contains(key) && error.contains(value), "{error}");
        }
    }

    #[test]
    fn no_word_of_a_command_ends_early() {
        assert!(parse("diffkeeper.io/pre-commit", r#"["sh", "a\u0000b"]"#).is_err());
    }

    proptest! {
        #[test]
        fn never_panics(key: String, value: String) {
            let _ = parse(&format!("diffkeeper.io/{key}"), &value);
            let _ = parse("diffkeeper.io/exclude", &value);
        }
    }
}
