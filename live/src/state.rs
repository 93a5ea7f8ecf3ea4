//! One state: its record and its directories.

use std::{
    fs::Metadata,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use runtime_spec::{config::Reclaim, name::StateName};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    error::{Context, Error, Result},
    layout::{Node, make},
    lease::Holder,
    probe,
};

/// The version of the records in a state's directory.
pub const FORMAT: u32 = 1;

/// When a state is forgotten, as recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// Never by itself.
    Keep,
    /// With its container.
    Delete,
    /// This many seconds after its last use.
    After(u64),
}

impl From<Reclaim> for Policy {
    fn from(reclaim: Reclaim) -> Self {
        match reclaim {
            Reclaim::Keep => Policy::Keep,
            Reclaim::Delete => Policy::Delete,
            Reclaim::After(time) => Policy::After(time.as_secs()),
        }
    }
}

/// `state.json`: what is known of a state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The version of this record: 1.
    pub format: u32,
    /// A person chose the name.
    pub chosen: bool,
    /// When it began, in seconds since 1970.
    pub created: u64,
    /// When a container last took or left it, in seconds since 1970.
    pub last_used: u64,
    /// The container that last took it.
    pub last_container: Option<String>,
    /// When it is forgotten.
    pub reclaim: Policy,
}

/// A state on this node.
#[derive(Debug, Clone)]
pub struct State {
    node: Node,
    name: StateName,
    dir: PathBuf,
}

impl State {
    pub(crate) fn new(node: Node, name: StateName) -> State {
        let dir = node.live().join(name.as_path());
        State { node, name, dir }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &StateName {
        &self.name
    }

    pub(crate) fn node(&self) -> &Node {
        &self.node
    }

    /// Its directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The overlay's upper directory.
    #[must_use]
    pub fn upper(&self) -> PathBuf {
        self.dir.join("roots/rootfs/upper")
    }

    /// The overlay's work directory.
    #[must_use]
    pub fn work(&self) -> PathBuf {
        self.dir.join("roots/rootfs/work")
    }

    /// Whether there is a live tree.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.upper().is_dir()
    }

    /// The record; none where there is none or it is damaged: a power cut may tear it, and the live tree
    /// matters more than its label.
    #[must_use]
    pub fn record(&self) -> Option<Record> {
        read_json(&self.dir.join("state.json")).filter(|r: &Record| r.format == FORMAT)
    }

    /// Makes the directories of a new state; `/` in the container takes owner and mode of `like`, the image's.
    ///
    /// # Errors
    /// A full or read-only disk.
    pub fn prepare(&self, like: &Metadata, owner: (u32, u32)) -> Result<()> {
        let upper = self.upper();
        if !upper.is_dir() {
            make(&self.work())?;
            // Renamed into place when it is right: a crash in between leaves no `/` with a wrong owner.
            let fresh = self.dir.join("roots/rootfs/fresh");
            make(&fresh)?;
            std::os::unix::fs::chown(&fresh, Some(owner.0), Some(owner.1)).on("set the owner of", &fresh)?;
            let mode = std::fs::Permissions::from_mode(like.mode() & 0o7777);
            std::fs::set_permissions(&fresh, mode).on("set the mode of", &fresh)?;
            std::fs::rename(&fresh, &upper).on("make", &upper)?;
        }
        make(&self.work())
    }

    /// Records that a container has taken it.
    ///
    /// # Errors
    /// A full or read-only disk.
    pub fn attached(&self, chosen: bool, reclaim: Policy, container: &str, now: SystemTime) -> Result<()> {
        let now = seconds(now);
        let created = self.record().map_or(now, |r| r.created);
        let record = Record {
            format: FORMAT,
            chosen,
            created,
            last_used: now,
            last_container: Some(container.into()),
            reclaim,
        };
        write_json(&self.dir.join("state.json"), &record)
    }

    /// Records that its container has left it.
    ///
    /// # Errors
    /// A full or read-only disk.
    pub fn detached(&self, now: SystemTime) -> Result<()> {
        match self.record() {
            Some(record) => write_json(
                &self.dir.join("state.json"),
                &Record {
                    last_used: seconds(now),
                    ..record
                },
            ),
            None => Ok(()),
        }
    }

    /// Asks the kernel whether an overlay stands on the upper directory.
    ///
    /// # Errors
    /// [`Error::StillInUse`] if so.
    pub fn refuse_if_mounted(&self) -> Result<()> {
        let upper = self.upper();
        if upper.is_dir() && probe::in_use(&upper)? {
            return Err(Error::StillInUse {
                state: self.name.to_string(),
                pids: Vec::new(),
            });
        }
        Ok(())
    }

    /// The error that names the holder.
    #[must_use]
    pub fn busy(&self, holder: Holder) -> Error {
        Error::InUse {
            state: self.name.to_string(),
            holder: Box::new(holder),
        }
    }

    /// Sets an entry of the upper aside, under the time, and answers where.
    pub(crate) fn aside(&self, now: SystemTime) -> PathBuf {
        self.dir.join("aside").join(seconds(now).to_string())
    }
}

/// Seconds since 1970; 0 before.
pub(crate) fn seconds(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// A time from seconds since 1970.
pub(crate) fn time(seconds: u64) -> SystemTime {
    UNIX_EPOCH
        .checked_add(Duration::from_secs(seconds))
        .unwrap_or(UNIX_EPOCH)
}

pub(crate) fn read_json<T: DeserializeOwned>(file: &Path) -> Option<T> {
    serde_json::from_slice(&std::fs::read(file).ok()?).ok()
}

/// Replaces a record in one step. It is not synced: a holder or placeholder record means nothing after a reboot
/// (the boot id differs, the mounts are gone), and `state.json` can be done without.
pub(crate) fn write_json<T: Serialize>(file: &Path, value: &T) -> Result<()> {
    let text = serde_json::to_vec(value)
        .map_err(std::io::Error::other)
        .on("encode", file)?;
    let fresh = file.with_extension("json.new");
    std::fs::write(&fresh, text).on("write", &fresh)?;
    std::fs::rename(&fresh, file).on("replace", file)
}
