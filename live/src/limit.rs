//! How much a live tree may take on its disk.
//!
//! Where the file system has project quota, the directory of a state's roots is a project of its own, and all that is made
//! below it belongs to that: a container that has reached the limit sees a full disk. What was made before is of no
//! project, and no file may be renamed from one to the other, so a tree that was begun without a limit gets one when it is
//! made anew. A tree that is to take another's place is a project of its own from the start.

use std::{
    fs::File,
    io::{Read, Seek, Write},
    path::Path,
};

use serde::{Deserialize, Serialize};

use crate::{
    error::{Context, Result},
    layout::{Node, make},
    reclaim::StateInfo,
    state::{State, read_json, write_json},
    sys,
};

/// Projects of ours begin here: what an administrator numbers by hand is smaller.
const FIRST: u32 = 0x4446_0000;

/// A limit that nothing reaches: what is being made for a project is not held to its own yet.
const NONE_YET: u64 = 1 << 50;

/// What becomes of a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limited {
    /// There is none.
    Not,
    /// The disk holds the container to it.
    Held,
    /// The live tree was begun without one: it is held to it as soon as it is made anew, by a restore for one.
    Later,
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
        let mut next = text.trim().parse().unwrap_or(FIRST).max(FIRST);
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
fn ours(dir: &File) -> Option<u32> {
    sys::project(dir).ok().filter(|project| *project >= FIRST)
}

impl State {
    /// Limits what the live tree may take, from [`State::enforce_limit`] on. The caller has the lease, and calls this before
    /// it makes or mounts any root: overlayfs makes a directory as it is mounted, and stays read-only where it cannot, so that
    /// whoever has reached the limit could not even remove something.
    ///
    /// # Errors
    /// A full or read-only disk.
    pub fn limit(&self, bytes: Option<u64>) -> Result<Limited> {
        let (record, roots) = (self.dir().join("limit.json"), self.dir().join("roots"));
        match bytes {
            Some(bytes) => {
                make(&roots)?;
                write_json(&record, &Limit { bytes })?;
            }
            None => {
                if let Err(e) = std::fs::remove_file(&record)
                    && e.kind() != std::io::ErrorKind::NotFound
                {
                    return Err(e).on("remove", &record);
                }
                if !roots.is_dir() {
                    return Ok(Limited::Not);
                }
            }
        }
        self.hold(&roots, bytes.map(|_| NONE_YET))
    }

    /// From now on the live tree is held to its limit: everything is mounted.
    ///
    /// # Errors
    /// A disk whose quota cannot be set.
    pub fn enforce_limit(&self) -> Result<()> {
        match self.wanted_limit() {
            Some(bytes) => self.hold(&self.dir().join("roots"), Some(bytes)).map(drop),
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

    /// Holds what is made below a directory to a limit.
    pub(crate) fn hold(&self, roots: &Path, bytes: Option<u64>) -> Result<Limited> {
        let open = File::open(roots).on("open", roots)?;
        let able = sys::limits_projects(&open);
        if let Some(project) = ours(&open).filter(|_| able) {
            sys::set_quota(&open, project, bytes.unwrap_or(0)).on("set the quota of", roots)?;
            return Ok(bytes.map_or(Limited::Not, |_| Limited::Held));
        }
        let Some(bytes) = bytes else {
            return Ok(Limited::Not);
        };
        // One that an administrator has given it counts for more than itself.
        if !able || sys::project(&open).on("ask for the project of", roots)? != 0 {
            return Ok(Limited::Unable);
        }
        if std::fs::read_dir(roots).on("read", roots)?.next().is_some() {
            return Ok(Limited::Later);
        }
        let project = self.node().new_project(&open)?;
        sys::set_quota(&open, project, bytes).on("set the quota of", roots)?;
        sys::set_project(&open, project).on("set the project of", roots)?;
        Ok(Limited::Held)
    }
}

impl StateInfo {
    /// What it may take; none where it is not limited.
    #[must_use]
    pub fn quota(&self) -> Option<Quota> {
        let limit: Limit = read_json(&self.dir().join("limit.json"))?;
        let used = || {
            let roots = File::open(self.dir().join("roots")).ok()?;
            let (used, held) = sys::quota(&roots, ours(&roots)?).ok()?;
            (held > 0).then_some(used)
        };
        Some(Quota {
            limit: limit.bytes,
            used: used(),
        })
    }
}
