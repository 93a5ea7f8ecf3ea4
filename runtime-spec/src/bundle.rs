//! What we look at of a bundle's `config.json`.
//!
//! Only the fields needed, and leniently: a bundle that runc would run must never fail here.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use serde::{Deserialize, Deserializer};
use serde_json::value::{RawValue, to_raw_value};

use crate::Error;

fn null_is_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(d: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(d)?.unwrap_or_default())
}

/// An OCI runtime configuration.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub struct Bundle {
    /// The container's annotations.
    #[serde(default, deserialize_with = "null_is_default")]
    pub annotations: BTreeMap<String, String>,
    /// Its root file system.
    #[serde(default, deserialize_with = "null_is_default")]
    pub root: Root,
    /// Its mounts, in order.
    #[serde(default, deserialize_with = "null_is_default")]
    pub mounts: Vec<Mount>,
    /// Its first process.
    #[serde(default, deserialize_with = "null_is_default")]
    pub process: Process,
    /// What is particular to Linux.
    #[serde(default, deserialize_with = "null_is_default")]
    pub linux: Linux,
}

/// What a shim changes of a `config.json` before the runtime reads it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Edits {
    /// Another root path.
    pub root_path: Option<String>,
    /// Other sources of mounts, by their place in the list.
    pub sources: BTreeMap<usize, PathBuf>,
    /// Mounts whose files have the container's ids where the engine's had the host's, by their place in the list: they
    /// get the container's own mappings.
    pub mapped: BTreeSet<usize>,
    /// Bind mounts to be made before all others.
    pub binds: Vec<Bind>,
}

/// A bind mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind {
    /// Absolute in the container.
    pub destination: PathBuf,
    /// A directory of the host.
    pub source: PathBuf,
}

/// The root file system.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub struct Root {
    /// Absolute, or relative to the bundle.
    #[serde(default)]
    pub path: PathBuf,
    /// Mounted read-only for the container.
    #[serde(default)]
    pub readonly: bool,
}

/// One mount inside the container.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub struct Mount {
    /// Where in the container.
    #[serde(default)]
    pub destination: PathBuf,
    /// The type; empty or `bind` for a bind mount.
    #[serde(default, rename = "type", deserialize_with = "null_is_default")]
    pub kind: String,
    /// What is mounted.
    #[serde(default, deserialize_with = "null_is_default")]
    pub source: PathBuf,
    /// As in fstab.
    #[serde(default, deserialize_with = "null_is_default")]
    pub options: Vec<String>,
    /// User mappings of its own.
    #[serde(default, rename = "uidMappings", deserialize_with = "null_is_default")]
    pub uid_mappings: Vec<IdMapping>,
}

/// The first process.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub struct Process {
    /// Its environment.
    #[serde(default, deserialize_with = "null_is_default")]
    pub env: Vec<String>,
}

/// What is particular to Linux.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub struct Linux {
    /// User mappings.
    #[serde(default, rename = "uidMappings", deserialize_with = "null_is_default")]
    pub uid_mappings: Vec<IdMapping>,
    /// Group mappings.
    #[serde(default, rename = "gidMappings", deserialize_with = "null_is_default")]
    pub gid_mappings: Vec<IdMapping>,
    /// The namespaces.
    #[serde(default, deserialize_with = "null_is_default")]
    pub namespaces: Vec<Namespace>,
    /// The cgroup.
    #[serde(default, rename = "cgroupsPath", deserialize_with = "null_is_default")]
    pub cgroups_path: String,
    /// The SELinux label of the container's mounts.
    #[serde(default, rename = "mountLabel", deserialize_with = "null_is_default")]
    pub mount_label: String,
}

/// One range of ids.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub struct IdMapping {
    /// First id in the container.
    #[serde(default, rename = "containerID")]
    pub container_id: u32,
    /// First id on the host.
    #[serde(default, rename = "hostID")]
    pub host_id: u32,
    /// How many.
    #[serde(default)]
    pub size: u32,
}

/// One namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Namespace {
    /// `pid`, `user`, `mount`, ...
    #[serde(default, rename = "type")]
    pub kind: String,
    /// The namespace to join; empty for a new one.
    #[serde(default, deserialize_with = "null_is_default")]
    pub path: PathBuf,
}

impl Bundle {
    /// Parses `config.json`.
    ///
    /// # Errors
    /// When it is not JSON of an OCI configuration's shape.
    pub fn parse(json: &[u8]) -> Result<Bundle, Error> {
        serde_json::from_slice(json).map_err(|e| Error::Bundle(e.to_string()))
    }

    /// `config.json` with these changes, all else as it was.
    ///
    /// # Errors
    /// When it is not a JSON object of an OCI configuration's shape.
    pub fn edit(json: &[u8], edits: &Edits) -> Result<Vec<u8>, Error> {
        let bad = |e: serde_json::Error| Error::Bundle(e.to_string());
        // Raw, because numbers that are read and written again may be others.
        type Fields = BTreeMap<String, Box<RawValue>>;
        let mut all: Fields = serde_json::from_slice(json).map_err(bad)?;
        let linux = all
            .get("linux")
            .map(|linux| serde_json::from_str::<Fields>(linux.get()));
        let linux = linux.and_then(Result::ok).unwrap_or_default();
        if let Some(path) = &edits.root_path {
            let root = all.get("root").map(|root| serde_json::from_str(root.get()));
            let mut root: Fields = root.and_then(Result::ok).unwrap_or_default();
            root.insert("path".into(), to_raw_value(path).map_err(bad)?);
            all.insert("root".into(), to_raw_value(&root).map_err(bad)?);
        }
        if !edits.sources.is_empty() || !edits.binds.is_empty() {
            let old = all.get("mounts").map(|mounts| serde_json::from_str(mounts.get()));
            let old: Vec<Fields> = old.transpose().map_err(bad)?.unwrap_or_default();
            // Ours first: what is mounted below them stays reachable.
            let mut mounts = Vec::with_capacity(edits.binds.len() + old.len());
            for bind in &edits.binds {
                mounts.push(Fields::from([
                    (
                        "destination".into(),
                        to_raw_value(&bind.destination).map_err(bad)?,
                    ),
                    ("type".into(), to_raw_value("bind").map_err(bad)?),
                    ("source".into(), to_raw_value(&bind.source).map_err(bad)?),
                    (
                        "options".into(),
                        to_raw_value(&["rbind", "rprivate", "rw"]).map_err(bad)?,
                    ),
                ]));
            }
            for (index, mut mount) in old.into_iter().enumerate() {
                if let Some(source) = edits.sources.get(&index) {
                    mount.insert("source".into(), to_raw_value(source).map_err(bad)?);
                }
                if edits.mapped.contains(&index) {
                    let maps = ["uidMappings", "gidMappings"].map(|key| Some((key, linux.get(key)?.clone())));
                    mount.extend(maps.into_iter().flatten().map(|(key, map)| (key.into(), map)));
                }
                mounts.push(mount);
            }
            all.insert("mounts".into(), to_raw_value(&mounts).map_err(bad)?);
        }
        serde_json::to_vec(&all).map_err(bad)
    }

    /// An annotation's value.
    #[must_use]
    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.get(key).map(String::as_str)
    }

    /// Whether the container's ids are not the host's.
    #[must_use]
    pub fn has_user_namespace(&self) -> bool {
        !self.linux.uid_mappings.is_empty() && self.linux.namespaces.iter().any(|n| n.kind == "user")
    }

    /// Whether its cgroup is systemd's to make: `kubepods-pod7.slice:cri-containerd:4f1a` is its slice, prefix and
    /// name. As a path it would lie beside the slice, out of reach of the pod's limits.
    #[must_use]
    pub fn wants_systemd_cgroup(&self) -> bool {
        let parts: Vec<&str> = self.linux.cgroups_path.split(':').collect();
        matches!(parts[..], [slice, _, name] if slice.ends_with(".slice") && !slice.contains('/') && !name.is_empty())
    }

    /// Whether init's death leaves others alive: only a new pid namespace takes them with it.
    #[must_use]
    pub fn shares_pid_namespace(&self) -> bool {
        !self
            .linux
            .namespaces
            .iter()
            .any(|n| n.kind == "pid" && n.path.as_os_str().is_empty())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn root(path: &str) -> Edits {
        Edits {
            root_path: Some(path.into()),
            ..Edits::default()
        }
    }

    #[test]
    fn cgroups_of_systemd() {
        let wants = |path: &str| {
            let mut bundle = Bundle::default();
            bundle.linux.cgroups_path = path.into();
            bundle.wants_systemd_cgroup()
        };
        for path in [
            "kubepods-burstable-pod7.slice:cri-containerd:4f1a",
            "system.slice:docker:4f1a",
        ] {
            assert!(wants(path), "{path}");
        }
        for path in [
            "",
            "/kubepods/burstable/pod7/4f1a",
            "/default/a.slice:b:c",
            "a:b:c",
            "a.slice:b",
            "a.slice:b:",
        ] {
            assert!(!wants(path), "{path}");
        }
    }

    #[test]
    fn mounts_get_other_sources_and_ours_come_first() {
        let json = br#"{"mounts":[{"destination":"/proc","type":"proc"},{"destination":"/d","source":"/old","uidMappings":[{"size":1}]}]}"#;
        let edits = Edits {
            sources: BTreeMap::from([(1, "/new".into())]),
            binds: vec![Bind {
                destination: "/p".into(),
                source: "/live".into(),
            }],
            ..Edits::default()
        };
        let value: serde_json::Value = serde_json::from_slice(&Bundle::edit(json, &edits).unwrap()).unwrap();
        assert_eq!(
            value,
            serde_json::json!({"mounts": [
                {"destination": "/p", "type": "bind", "source": "/live", "options": ["rbind", "rprivate", "rw"]},
                {"destination": "/proc", "type": "proc"},
                {"destination": "/d", "source": "/new", "uidMappings": [{"size": 1}]},
            ]})
        );
    }

    #[test]
    fn mounts_get_the_containers_mappings() {
        let json =
            br#"{"linux":{"uidMappings":[{"containerID":0,"hostID":7,"size":9}],"gidMappings":[{"size":1}]},
            "mounts":[{"destination":"/a"},{"destination":"/b"}]}"#;
        let edits = Edits {
            sources: BTreeMap::from([(0, "/new".into()), (1, "/other".into())]),
            mapped: BTreeSet::from([1]),
            ..Edits::default()
        };
        let value: serde_json::Value = serde_json::from_slice(&Bundle::edit(json, &edits).unwrap()).unwrap();
        assert_eq!(
            value["mounts"],
            serde_json::json!([
                {"destination": "/a", "source": "/new"},
                {"destination": "/b", "source": "/other", "uidMappings": [{"containerID": 0, "hostID": 7, "size": 9}],
                 "gidMappings": [{"size": 1}]},
            ])
        );
    }

    #[test]
    fn nulls_and_unknown_fields_are_nothing() {
        let b = Bundle::parse(br#"{"ociVersion":"9.9","annotations":null,"mounts":null,"linux":{"new":1,"namespaces":[{"type":"pid"}]},"x":[]}"#)
            .unwrap();
        assert!(!b.shares_pid_namespace() && !b.has_user_namespace());
        assert!(Bundle::parse(b"{}").unwrap().shares_pid_namespace());
        assert!(Bundle::parse(b"7").is_err());
        assert!(Bundle::parse(b"").is_err());
    }

    #[test]
    fn a_joined_pid_namespace_is_shared() {
        let b =
            Bundle::parse(br#"{"linux":{"namespaces":[{"type":"pid","path":"/proc/1/ns/pid"}]}}"#).unwrap();
        assert!(b.shares_pid_namespace());
    }

    #[test]
    fn the_root_path_is_replaced_and_the_rest_kept() {
        let json = br#"{"z":1,"root":{"readonly":true,"path":"/x"},"a":{"b":[1.5,null]}}"#;
        let edited = Bundle::edit(json, &root("rootfs")).unwrap();
        let value: serde_json::Value = serde_json::from_slice(&edited).unwrap();
        assert_eq!(
            value,
            serde_json::json!({"z":1,"root":{"readonly":true,"path":"rootfs"},"a":{"b":[1.5,null]}})
        );
    }

    #[test]
    fn numbers_are_not_rounded() {
        let edited = Bundle::edit(br#"{"root":null,"x":[184467440473709551615,1e999]}"#, &root("r")).unwrap();
        assert_eq!(
            edited,
            br#"{"root":{"path":"r"},"x":[184467440473709551615,1e999]}"#
        );
    }

    proptest! {
        #[test]
        fn never_panics(json: Vec<u8>) {
            let _ = Bundle::parse(&json);
            let _ = Bundle::edit(&json, &root("r"));
        }
    }
}
