//! How much a live tree may take on its disk.
//!
//! Where the file system has project quota, the directory of a state's roots is a project of its own, and all that is made
//! below it belongs to that: a container that has reached the limit sees a full disk. What was made before is of no
//! project, and no file may be renamed from one to the other, so a tree that was begun without a limit is put into one as a
//! whole, before a container takes it: see project.rs. A tree that is to take another's place is a project of its own from
//! the start.

use std::{
    fs::File,
    hash::{BuildHasher, Hasher, RandomState},
    io::{Read, Seek, Write},
    path::Path,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use crate::{
    error::{Context, Error, Result},
    layout::{Node, make},
    project,
    reclaim::StateInfo,
    state::{State, read_json, write_json},
    sys, tree,
};

/// Projects of ours begin here: what an administrator numbers by hand is smaller.
const FIRST: u32 = 0x4446_0000;

/// Where a node's own begin is left to chance, so that two nodes on one disk, one in a container of the other, do not
/// choose the same at the same time.
const SPREAD: u32 = 1 << 30;

/// How long a start may take to put a tree into its project that was begun without one. The next one goes on with it.
const PATIENCE: Duration = Duration::from_secs(10);

/// A limit that nothing reaches: what is being made for a project is not held to its own yet.
const NONE_YET: u64 = 1 << 50;

/// What becomes of a limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Limited {
    /// There is none.
    Not,
    /// The disk holds the container to it.
    Held,
    /// The live tree was begun without one, and could not be put into a project for this reason: it is held to it in a later
    /// life, or as soon as it is made anew, by a restore for one.
    Later(String),
    /// The disk has no project quota.
    Unable,
}

/// `limit.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Limit {
    bytes: u64,
}

/// What a state takes and may take, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    /// What it may take.
    pub limit: u64,
    /// What the disk counts; none where it does not hold it to the limit.
    pub used: Option<u64>,
}

/// What the disk may count otherwise than the files tell: blocks of its own, what is being written.
const SLACK: u64 = 4 << 20;

impl Node {
    /// Whether the disk can hold live trees to a limit.
    #[must_use]
    pub fn can_limit(&self) -> bool {
        File::open(self.live()).is_ok_and(|live| sys::limits_projects(&live))
    }

    /// A project that nobody has. It is written down before it is used, and never given twice.
    fn new_project(&self, on: &File) -> Result<u32> {
        let path = self.live().with_file_name("next-project");
        let mut file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)
            .on("open", &path)?;
        // Released with the file.
        file.lock().on("lock", &path)?;
        let mut text = String::new();
        file.read_to_string(&mut text).on("read", &path)?;
        let anywhere = || FIRST + (RandomState::new().build_hasher().finish() as u32) % SPREAD;
        let mut next = text.trim().parse().unwrap_or_else(|_| anywhere()).max(FIRST);
        // Somebody else's, or of a node whose list was lost.
        while sys::quota(on, next).on("ask for the quota on", self.live().as_path())? != (0, 0) {
            next += 1;
        }
        file.set_len(0).on("write", &path)?;
        file.rewind().on("write", &path)?;
        writeln!(file, "{}", next + 1).on("write", &path)?;
        file.sync_all().on("sync", &path)?;
        Ok(next)
    }
}

/// The project of a directory, if it is one of ours.
fn ours(dir: &File) -> Option<sys::Project> {
    sys::project(dir).ok().filter(|project| project.number >= FIRST)
}

/// The project that all of a live tree belongs to.
fn whole(roots: &File) -> Option<u32> {
    let project = ours(roots).filter(|project| project.handed_down);
    project.map(|project| project.number)
}

impl State {
    /// Limits what the live tree may take, from [`State::enforce_limit`] on. The caller has the lease, nothing is mounted,
    /// and no root is made yet: overlayfs makes a directory as it is mounted, and stays read-only where it cannot, so that
    /// whoever has reached the limit could not even remove something.
    ///
    /// # Errors
    /// A full or read-only disk; [`Error::Halfway`], with which no container may have the live tree.
    pub fn limit(&self, bytes: Option<u64>) -> Result<Limited> {
        self.want_limit(bytes)?;
        let roots = self.dir().join("roots");
        match bytes {
            Some(_) => make(&roots)?,
            None if !roots.is_dir() => return Ok(Limited::Not),
            None => {}
        }
        self.hold(&roots, bytes.map(|_| NONE_YET))
    }

    /// Writes down what the live tree may take: what is made to take its place is held to it. The caller has the lease.
    ///
    /// # Errors
    /// A full or read-only disk.
    pub fn want_limit(&self, bytes: Option<u64>) -> Result<()> {
        let record = self.dir().join("limit.json");
        match bytes {
            Some(bytes) => {
                make(self.dir())?;
                write_json(&record, &Limit { bytes })
            }
            None => match std::fs::remove_file(&record) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e).on("remove", &record),
                _ => Ok(()),
            },
        }
    }

    /// From now on the live tree is held to its limit: everything is mounted.
    ///
    /// # Errors
    /// A disk whose quota cannot be set.
    pub fn enforce_limit(&self) -> Result<()> {
        let Some(bytes) = self.wanted_limit() else {
            return Ok(());
        };
        let roots = self.dir().join("roots");
        let open = File::open(&roots).on("open", &roots)?;
        match whole(&open).filter(|_| sys::limits_projects(&open)) {
            Some(project) => sys::set_quota(&open, project, bytes).on("set the quota of", &roots),
            None => Ok(()),
        }
    }

    /// The limit that was asked for last.
    pub(crate) fn wanted_limit(&self) -> Option<u64> {
        read_json(&self.dir().join("limit.json")).map(|limit: Limit| limit.bytes)
    }

    /// Makes a directory a project of its own, where there is a limit. What takes the present tree's place is held to it in
    /// its next life: a version that was made at the limit, or before it, comes back all the same.
    pub(crate) fn prepare_limit(&self, roots: &Path) -> Result<()> {
        self.hold(roots, self.wanted_limit().map(|_| NONE_YET)).map(drop)
    }

    /// Holds what is below a directory to a limit.
    pub(crate) fn hold(&self, roots: &Path, bytes: Option<u64>) -> Result<Limited> {
        let open = File::open(roots).on("open", roots)?;
        let able = sys::limits_projects(&open);
        let begun = ours(&open).filter(|_| able);
        let number = match (begun, bytes) {
            (Some(project), _) => project.number,
            (None, None) => return Ok(Limited::Not),
            // One that an administrator has given it counts for more than itself.
            (None, Some(_))
                if !able || sys::project(&open).on("ask for the project of", roots)?.number != 0 =>
            {
                return Ok(Limited::Unable);
            }
            (None, Some(_)) => self.node().new_project(&open)?,
        };
        sys::set_quota(&open, number, bytes.unwrap_or(0)).on("set the quota of", roots)?;
        if whole(&open).is_none() {
            // Whose it is to be: whoever comes after one that was killed goes on with it.
            sys::set_project(&open, number, false).on("set the project of", roots)?;
            let scratch = self.dir().join("taking-in");
            match project::take_in(roots, &scratch, number, Instant::now() + PATIENCE) {
                Ok(true) => {}
                Ok(false) => {
                    return Ok(Limited::Later(format!(
                        "it takes longer than {} s, and the next start goes on with it",
                        PATIENCE.as_secs()
                    )));
                }
                Err(error @ Error::Halfway { .. }) => return Err(error),
                Err(error) => return Ok(Limited::Later(error.to_string())),
            }
        }
        Ok(bytes.map_or(Limited::Not, |_| Limited::Held))
    }
}

impl StateInfo {
    /// What of the live tree the disk does not count towards the limit, because a file's owner has taken it out of the
    /// project; none where there is no such limit. Walks the tree.
    ///
    /// # Errors
    /// A directory of ours that cannot be read.
    pub fn uncounted(&self) -> Result<Option<u64>> {
        let Some(used) = self.quota().and_then(|quota| quota.used) else {
            return Ok(None);
        };
        let there = tree::size(&self.dir().join("roots"))?.allocated;
        let more = there.saturating_sub(used);
        Ok((more > SLACK.max(there / 20)).then_some(more))
    }

    /// What it may take; none where it is not limited.
    #[must_use]
    pub fn quota(&self) -> Option<Quota> {
        let limit: Limit = read_json(&self.dir().join("limit.json"))?;
        let used = || {
            let roots = File::open(self.dir().join("roots")).ok()?;
            let (used, held) = sys::quota(&roots, whole(&roots)?).ok()?;
            (held > 0).then_some(used)
        };
        Some(Quota {
            limit: limit.bytes,
            used: used(),
        })
    }
}
