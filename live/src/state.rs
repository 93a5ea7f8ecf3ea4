//! One state: its record and its directories.

use std::{
    fs::File,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use runtime_spec::{config::Reclaim, name::StateName};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    error::{Context, Error, Result},
    exclude::Trash,
    layout::{Node, make},
    lease::Holder,
    probe,
    root::RootDir,
    sys,
};

/// The version of the records in a state's directory.
pub const FORMAT: u32 = 1;

/// Beside the roots, and no name of one: what a live tree is that was put in place.
const NOTE: &str = "note";

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
    /// How many lives in a row, the last one included, failed at their start.
    #[serde(default)]
    pub failed_starts: u32,
    /// The image that the last life stood on.
    #[serde(default)]
    pub image: Option<Image>,
    /// The roots that were mounted in the last life, by the names of their directories.
    #[serde(default)]
    pub roots: Vec<String>,
    /// Paths in the container that are not kept from one container to the next, and not recorded.
    #[serde(default)]
    pub exclude: Vec<PathBuf>,
    /// How often its history is to grow, in milliseconds; 0 for never, none for as the keeper is configured.
    #[serde(default)]
    pub capture: Option<u64>,
}

/// An image, as far as it is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Its layers, the topmost first: path, inode and birth of each.
    pub layers: Vec<String>,
    /// Its digest, where somebody asked for it.
    pub digest: Option<String>,
}

/// How a container's life ended, as far as its start is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// It never came up, or fell over soon after and nobody had asked it to.
    Failed,
    /// It had come up.
    Fine,
    /// Nobody can tell: it was never started, or its shim died.
    Unknown,
}

/// What a container that takes a state makes of it.
#[derive(Debug)]
pub struct Life<'a> {
    /// A person chose the name.
    pub chosen: bool,
    /// When the state is to be forgotten.
    pub reclaim: Policy,
    /// The container's id.
    pub container: &'a str,
    /// What is mounted of it.
    pub roots: &'a [RootDir],
    /// What it stands on.
    pub image: Option<Image>,
    /// What is not kept.
    pub exclude: &'a [PathBuf],
    /// As [`Record::capture`].
    pub capture: Option<u64>,
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

    /// Whether there is a live tree.
    #[must_use]
    pub fn exists(&self) -> bool {
        let there = |root: &RootDir| root.upper().is_dir() || root.tree().is_dir();
        self.roots().iter().any(there)
    }

    /// The record; none where there is none or it is damaged: a power cut may tear it, and the live tree
    /// matters more than its label.
    #[must_use]
    pub fn record(&self) -> Option<Record> {
        read_record(&self.dir)
    }

    /// Records that a container has taken it.
    ///
    /// # Errors
    /// A full or read-only disk.
    pub fn attached(&self, life: &Life<'_>, now: SystemTime) -> Result<()> {
        let now = seconds(now);
        let before = self.record();
        let roots = life.roots.iter().map(|root| root.root.dir_name());
        let roots = roots.map(|name| Ok(name?.to_string_lossy().into_owned()));
        let record = Record {
            format: FORMAT,
            chosen: life.chosen,
            created: before.as_ref().map_or(now, |r| r.created),
            last_used: before.as_ref().map_or(now, |r| r.last_used.max(now)),
            last_container: Some(life.container.into()),
            failed_starts: before.as_ref().map_or(0, |r| r.failed_starts),
            reclaim: life.reclaim,
            roots: roots.collect::<Result<_>>()?,
            image: life.image.clone(),
            exclude: life.exclude.to_vec(),
            capture: life.capture,
        };
        write_json(&self.dir.join("state.json"), &record)
    }

    /// Records that its container has left it.
    ///
    /// # Errors
    /// A full or read-only disk.
    pub fn detached(&self, ending: Ending, now: SystemTime) -> Result<()> {
        match self.record() {
            Some(record) => write_json(
                &self.dir.join("state.json"),
                &Record {
                    failed_starts: match ending {
                        Ending::Failed => record.failed_starts.saturating_add(1),
                        Ending::Fine => 0,
                        Ending::Unknown => record.failed_starts,
                    },
                    // A clock that went backwards, as that of a node without a battery does at each boot, must not
                    // let the state expire when it is put right.
                    last_used: record.last_used.max(seconds(now)),
                    ..record
                },
            ),
            None => Ok(()),
        }
    }

    /// Records the digest of the image that the present life stands on. The caller has the lease.
    ///
    /// # Errors
    /// A full or read-only disk.
    pub fn learn_digest(&self, digest: String) -> Result<()> {
        let Some(record) = self.record() else {
            return Ok(());
        };
        let image = record.image.map(|image| Image {
            digest: Some(digest),
            ..image
        });
        write_json(&self.dir.join("state.json"), &Record { image, ..record })
    }

    /// Says that the live tree was made on another image than the last life's. The caller has the lease.
    ///
    /// # Errors
    /// A full or read-only disk.
    pub fn stands_on(&self, digest: &str) -> Result<()> {
        let Some(record) = self.record() else {
            return Ok(());
        };
        if record.image.as_ref().and_then(|image| image.digest.as_deref()) == Some(digest) {
            return Ok(());
        }
        // Its layers are not known: whatever comes is compared by the digest.
        let image = Some(Image {
            layers: Vec::new(),
            digest: Some(digest.to_owned()),
        });
        write_json(&self.dir.join("state.json"), &Record { image, ..record })
    }

    /// Whether the kernel says that an overlay stands on one of the upper directories.
    pub(crate) fn is_mounted(&self) -> Result<bool> {
        for root in self.overlays() {
            if probe::in_use(&root.upper())? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Who uses it, if anybody has the lease.
    #[must_use]
    pub fn in_use_by(&self) -> Option<Holder> {
        let lock = File::open(self.dir.join("lock")).ok()?;
        let locked = sys::is_locked(&lock).unwrap_or(false);
        locked.then(|| read_json(&self.dir.join("holder.json")).unwrap_or_default())
    }

    /// Where a live tree is made that is to take this one's place; its `roots` hold what [`State::root`] says. With the
    /// tree comes a note of what it is, for whoever is to record it.
    ///
    /// # Errors
    /// A full or read-only disk.
    pub fn begin_restore(&self, note: &[u8]) -> Result<PathBuf> {
        let fresh = self.dir.join("restoring");
        if fresh.exists() {
            Trash::take(&self.node, &fresh)?.delete()?;
        }
        make(&fresh.join("roots"))?;
        self.prepare_limit(&fresh.join("roots"))?;
        let path = fresh.join("roots").join(NOTE);
        std::fs::write(&path, note).on("write", &path)?;
        Ok(fresh)
    }

    /// Puts what was made in [`State::begin_restore`]'s directory in the place of the live tree, in one step: whatever
    /// happens, it is the old one or the new one. The caller has the lease, nothing is mounted, and the new tree is on
    /// the disk. The old one is where the new one was, until [`State::clear_restore`].
    ///
    /// # Errors
    /// A disk that cannot be written.
    pub fn finish_restore(&self, fresh: &Path) -> Result<()> {
        let (new, old) = (fresh.join("roots"), self.dir.join("roots"));
        if old.exists() {
            sys::exchange(&new, &old).on("exchange the roots of", &self.dir)?;
        } else {
            std::fs::rename(&new, &old).on("put in place", &old)?;
        }
        File::open(&self.dir)
            .and_then(|d| d.sync_all())
            .on("sync", &self.dir)
    }

    /// The note of a live tree that was put in place and that nobody has recorded yet.
    #[must_use]
    pub fn unrecorded(&self) -> Option<Vec<u8>> {
        std::fs::read(self.dir.join("roots").join(NOTE)).ok()
    }

    /// Says that the live tree that was put in place is recorded.
    ///
    /// # Errors
    /// A disk that cannot be written.
    pub fn recorded(&self) -> Result<()> {
        let note = self.dir.join("roots").join(NOTE);
        match std::fs::remove_file(&note) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e).on("remove", &note),
            _ => Ok(()),
        }
    }

    /// Deletes what is in [`State::begin_restore`]'s directory: what was given up, or the live tree before.
    ///
    /// # Errors
    /// A disk that cannot be written.
    pub fn clear_restore(&self, fresh: &Path) -> Result<()> {
        Trash::take(&self.node, fresh)?.delete()
    }

    /// Says that the next start must not begin before the keeper has been asked, or that it may.
    ///
    /// # Errors
    /// A disk that cannot be written.
    pub fn set_restore_wanted(&self, wanted: bool) -> Result<()> {
        let marker = self.dir.join("restore-wanted");
        if wanted {
            make(&self.dir)?;
            return std::fs::write(&marker, b"").on("write", &marker);
        }
        match std::fs::remove_file(&marker) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e).on("remove", &marker),
            _ => Ok(()),
        }
    }

    /// Whether the keeper must be asked before the next start.
    #[must_use]
    pub fn restore_wanted(&self) -> bool {
        self.dir.join("restore-wanted").exists()
    }

    /// Gives the whole live tree to a new state of another name, which nobody uses, and leaves this one as if it had
    /// never been. The caller has the lease, and nothing is mounted.
    ///
    /// # Errors
    /// A full or read-only disk, a state of that name.
    pub fn set_aside(&self, name: &StateName, reclaim: Policy, now: SystemTime) -> Result<()> {
        let other = self.node.state(name);
        if other.dir.exists() {
            return Err(Error::Exists(name.to_string()));
        }
        make(&other.dir)?;
        let record = self.record().map(|record| Record {
            last_used: seconds(now),
            reclaim,
            ..record
        });
        // Before the tree: a tree without a record would never expire, a record without one is nothing.
        if let Some(record) = record {
            write_json(&other.dir.join("state.json"), &record)?;
        }
        for part in ["roots", "aside"] {
            let (from, to) = (self.dir.join(part), other.dir.join(part));
            match std::fs::rename(&from, &to) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e).on("set aside", &from),
                _ => {}
            }
        }
        match std::fs::remove_file(self.dir.join("state.json")) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(e).on("remove the record of", &self.dir)
            }
            _ => Ok(()),
        }
    }

    /// Asks the kernel whether an overlay stands on an upper directory.
    ///
    /// # Errors
    /// [`Error::StillInUse`] if so.
    pub fn refuse_if_mounted(&self) -> Result<()> {
        if self.is_mounted()? {
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

    /// Where what had to make way is set aside: a directory named by the time.
    #[must_use]
    pub fn aside(&self, now: SystemTime) -> PathBuf {
        self.dir.join("aside").join(seconds(now).to_string())
    }
}

/// Seconds since 1970; 0 before.
pub(crate) fn seconds(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// A time from seconds since 1970; none beyond what a clock can show.
pub(crate) fn time(seconds: u64) -> Option<SystemTime> {
    UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

/// The record in a state's directory, if this version can read it.
pub(crate) fn read_record(dir: &Path) -> Option<Record> {
    read_json(&dir.join("state.json")).filter(|record: &Record| record.format == FORMAT)
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
