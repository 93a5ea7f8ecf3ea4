//! What Docker's own record of a container says: `<data root>/containers/<id>/config.v2.json` and `hostconfig.json`.
//!
//! Asking the engine from inside `create` could wait for a lock that it holds meanwhile; its record does not.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Deserializer};

use crate::Error;

/// containerd's namespace of Docker's containers.
pub const NAMESPACE: &str = "moby";

/// Whether this is containerd's namespace of a Docker's containers: `moby`, or where the daemon maps users to others
/// (`userns-remap`) `moby-<uid>.<gid>`.
#[must_use]
pub fn is_namespace(namespace: &str) -> bool {
    let number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let of_remapped = |rest: &str| {
        rest.strip_prefix('-')?
            .split_once('.')
            .map(|(u, g)| number(u) && number(g))
    };
    match namespace.strip_prefix(NAMESPACE) {
        Some("") => true,
        Some(rest) => of_remapped(rest) == Some(true),
        None => false,
    }
}

/// First words of the names that Docker gives to containers that nobody named: `elated_kare`, and after a collision
/// `elated_kare3`.
const FIRST_WORDS: &str = "admiring adoring affectionate agitated amazing angry awesome beautiful blissful bold \
    boring brave busy charming clever compassionate competent condescending confident cool cranky crazy dazzling \
    determined distracted dreamy eager ecstatic elastic elated elegant eloquent epic exciting fervent festive \
    flamboyant focused friendly frosty funny gallant gifted goofy gracious great happy hardcore heuristic hopeful \
    hungry infallible inspiring intelligent interesting jolly jovial keen kind laughing loving lucid magical modest \
    musing mystifying naughty nervous nice nifty nostalgic objective optimistic peaceful pedantic pensive practical \
    priceless quirky quizzical recursing relaxed reverent romantic sad serene sharp silly sleepy stoic strange \
    stupefied suspicious sweet tender thirsty trusting unruffled upbeat vibrant vigilant vigorous wizardly wonderful \
    xenodochial youthful yucky zealous zen";

/// Whether this is a name such as Docker gives to a container that nobody named.
#[must_use]
pub fn is_generated(name: &str) -> bool {
    let Some((first, second)) = name.split_once('_') else {
        return false;
    };
    let second = second
        .strip_suffix(|c: char| c.is_ascii_digit())
        .unwrap_or(second);
    FIRST_WORDS.split_whitespace().any(|word| word == first)
        && !second.is_empty()
        && second.bytes().all(|b| b.is_ascii_lowercase())
}

/// A container, as Docker recorded it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Record {
    /// Its name, without the slash.
    pub name: String,
    /// The image's id, `sha256:...`.
    pub image: String,
    /// Volumes that Docker made for the image's `VOLUME`s, as far as this container's own record tells.
    pub anonymous: Vec<AnonymousVolume>,
}

/// A volume that nobody named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnonymousVolume {
    /// Its name: 64 hexadecimal digits.
    pub name: String,
    /// Where it is mounted.
    pub destination: PathBuf,
}

fn null_is_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(d: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(d)?.unwrap_or_default())
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ConfigV2 {
    name: String,
    #[serde(default, deserialize_with = "null_is_default")]
    image: String,
    #[serde(default, deserialize_with = "null_is_default")]
    config: Inner,
    #[serde(default, deserialize_with = "null_is_default")]
    mount_points: BTreeMap<PathBuf, MountPoint>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Inner {
    /// The image's `VOLUME`s, and those of `-v /path`.
    #[serde(default, deserialize_with = "null_is_default")]
    volumes: BTreeMap<PathBuf, serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct MountPoint {
    #[serde(default, deserialize_with = "null_is_default")]
    name: String,
    #[serde(default, deserialize_with = "null_is_default")]
    driver: String,
    #[serde(default, rename = "Type", deserialize_with = "null_is_default")]
    kind: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HostConfig {
    #[serde(default, deserialize_with = "null_is_default")]
    binds: Vec<String>,
    #[serde(default, deserialize_with = "null_is_default")]
    volumes_from: Vec<String>,
    #[serde(default, deserialize_with = "null_is_default")]
    mounts: Vec<HostMount>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HostMount {
    #[serde(default, deserialize_with = "null_is_default")]
    target: PathBuf,
}

impl Record {
    /// Reads the two files.
    ///
    /// # Errors
    /// Text that is not Docker's.
    pub fn parse(config: &[u8], host: &[u8]) -> Result<Record, Error> {
        let bad =
            |file: &str, e: serde_json::Error| Error::Engine(format!("Docker's {file} does not parse: {e}"));
        let config: ConfigV2 = serde_json::from_slice(config).map_err(|e| bad("config.v2.json", e))?;
        let host: HostConfig = serde_json::from_slice(host).map_err(|e| bad("hostconfig.json", e))?;
        let by_person = |destination: &Path| {
            let of_bind = |bind: &String| bind.split(':').any(|part| Path::new(part) == destination);
            host.binds.iter().any(of_bind) || host.mounts.iter().any(|m| m.target == destination)
        };
        // Volumes of other containers are theirs.
        let borrows = !host.volumes_from.is_empty();
        let anonymous = config.mount_points.iter().filter(|(destination, point)| {
            point.kind == "volume"
                && point.driver == "local"
                && is_random(&point.name)
                && config.config.volumes.contains_key(*destination)
                && !by_person(destination)
                && !borrows
        });
        Ok(Record {
            anonymous: anonymous
                .map(|(destination, point)| AnonymousVolume {
                    name: point.name.clone(),
                    destination: destination.clone(),
                })
                .collect(),
            name: config.name.trim_start_matches('/').to_owned(),
            image: config.image,
        })
    }
}

/// Docker's word for when it starts a container again that ended, from the container's `hostconfig.json`; `no` where it
/// removes the container instead.
///
/// # Errors
/// Text that is not Docker's.
pub fn restart_policy(host: &[u8]) -> Result<String, Error> {
    #[derive(Default, Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Policy {
        #[serde(default, deserialize_with = "null_is_default")]
        name: String,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Host {
        #[serde(default, deserialize_with = "null_is_default")]
        restart_policy: Policy,
        #[serde(default, deserialize_with = "null_is_default")]
        auto_remove: bool,
    }
    let host: Host = serde_json::from_slice(host)
        .map_err(|e| Error::Engine(format!("Docker's hostconfig.json does not parse: {e}")))?;
    Ok(if host.auto_remove {
        "no".into()
    } else {
        host.restart_policy.name
    })
}

/// The signal that is to end a container, from its `config.v2.json`: the image's `STOPSIGNAL`, or what a person chose. None
/// where neither says.
///
/// # Errors
/// Text that is not Docker's.
pub fn stop_signal(config: &[u8]) -> Result<Option<String>, Error> {
    #[derive(Default, Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Inner {
        #[serde(default, deserialize_with = "null_is_default")]
        stop_signal: String,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Config {
        #[serde(default, deserialize_with = "null_is_default")]
        config: Inner,
    }
    let config: Config = serde_json::from_slice(config)
        .map_err(|e| Error::Engine(format!("Docker's config.v2.json does not parse: {e}")))?;
    Ok(Some(config.config.stop_signal).filter(|signal| !signal.is_empty()))
}

/// The name of a volume that nobody named.
fn is_random(name: &str) -> bool {
    name.len() == 64
        && name
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RANDOM: &str = "8936bbe301d59f78f2c04980a8e57b5a016234fd6290ac3a0482c4b76bcff464";

    fn record(host: &str) -> Record {
        let point =
            |name: &str| format!(r#"{{"Name":"{name}","Driver":"local","Type":"volume","Spec":{{}}}}"#);
        let config = format!(
            r#"{{"ID":"5d","Name":"/web","Image":"sha256:9f","Config":{{"Volumes":{{"/data":{{}},"/named":{{}}}}}},
                "MountPoints":{{"/data":{},"/named":{},"/other":{},"/bind":{{"Type":"bind","Name":"","Driver":""}}}}}}"#,
            point(RANDOM),
            point("mine"),
            point(RANDOM),
        );
        Record::parse(config.as_bytes(), host.as_bytes()).unwrap()
    }

    #[test]
    fn stop_signals() {
        for (text, signal) in [
            (r#"{"Config":{"StopSignal":"SIGQUIT"}}"#, Some("SIGQUIT")),
            (r#"{"Config":{"StopSignal":""}}"#, None),
            (r#"{"Config":{"StopSignal":null}}"#, None),
            (r#"{"Config":null}"#, None),
            ("{}", None),
        ] {
            assert_eq!(stop_signal(text.as_bytes()).unwrap().as_deref(), signal, "{text}");
        }
        assert!(stop_signal(b"[").is_err());
    }

    #[test]
    fn restart_policies() {
        for (text, policy) in [
            (
                r#"{"RestartPolicy":{"Name":"always","MaximumRetryCount":0}}"#,
                "always",
            ),
            (r#"{"RestartPolicy":{"Name":"always"},"AutoRemove":true}"#, "no"),
            (r#"{"RestartPolicy":null}"#, ""),
            ("{}", ""),
        ] {
            assert_eq!(restart_policy(text.as_bytes()).unwrap(), policy, "{text}");
        }
        assert!(restart_policy(b"no json").is_err());
    }

    #[test]
    fn only_what_nobody_declared_is_anonymous() {
        let r = record(r#"{"Binds":null,"Mounts":null,"VolumesFrom":null}"#);
        assert_eq!((r.name.as_str(), r.image.as_str()), ("web", "sha256:9f"));
        assert_eq!(
            r.anonymous,
            [AnonymousVolume {
                name: RANDOM.into(),
                destination: "/data".into()
            }]
        );
        for declared in [
            format!(r#"{{"Binds":["{RANDOM}:/data:rw"]}}"#),
            r#"{"Mounts":[{"Type":"volume","Target":"/data"}]}"#.into(),
            r#"{"VolumesFrom":["other"]}"#.into(),
        ] {
            assert!(record(&declared).anonymous.is_empty(), "{declared}");
        }
    }

    #[test]
    fn generated_names() {
        for name in ["elated_kare", "zen_lovelace3", "boring_x"] {
            assert!(is_generated(name), "{name}");
        }
        for name in [
            "web",
            "my_db",
            "happy",
            "happy_",
            "happy_3",
            "happy_app_1",
            "elated_Kare",
            "zen-garden",
            "zen_a-b",
        ] {
            assert!(!is_generated(name), "{name}");
        }
    }

    #[test]
    fn namespaces() {
        for ours in ["moby", "moby-300000.300000"] {
            assert!(is_namespace(ours), "{ours}");
        }
        for other in [
            "default", "mobydick", "moby-", "moby-1", "moby-1.", "moby-.1", "moby-1.x", "moby.1.2",
        ] {
            assert!(!is_namespace(other), "{other}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(config: Vec<u8>, host: Vec<u8>, name: String) {
            let _ = Record::parse(&config, &host);
            let _ = Record::parse(&config, b"{}");
            let _ = is_generated(&name);
        }
    }
}
