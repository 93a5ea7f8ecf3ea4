//! A container's cgroup: statistics, out-of-memory events, membership.
//!
//! Statistics are the stock shim's, field by field, on cgroup v1 and v2: plain reads of the kernel's files into
//! one reused buffer. Where a file is missing the stock shim leaves fields out in its own way, and so do
//! `v1` and `v2`; clients compare.

mod files;
mod freezer;
mod members;
mod oom;
pub mod oom_score;
mod sys;
mod v1;
mod v2;

#[cfg(test)]
mod tests;

use std::{
    borrow::Cow,
    fs,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use protobuf::{Message, well_known_types::any::Any};

pub use self::{freezer::Frozen, oom::OomWatch};
use crate::error::{Context, Error, Result};

/// Which cgroup hierarchies this host has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// cgroup v2 alone.
    Unified,
    /// cgroup v1 alone (or none at all: then every call fails as it does on a v1 host without mounts).
    Legacy,
    /// cgroup v1, with a v2 hierarchy beside it; the controllers are v1's.
    Hybrid,
}

/// The host's mode, looked up once.
pub fn mode() -> Mode {
    static MODE: OnceLock<Mode> = OnceLock::new();
    *MODE.get_or_init(|| mode_of(Path::new("/sys/fs/cgroup")))
}

fn mode_of(root: &Path) -> Mode {
    let is_v2 = |path: &Path| {
        nix::sys::statfs::statfs(path)
            .is_ok_and(|found| found.filesystem_type() == nix::sys::statfs::CGROUP2_SUPER_MAGIC)
    };
    if is_v2(root) {
        Mode::Unified
    } else if is_v2(&root.join("unified")) {
        Mode::Hybrid
    } else {
        Mode::Legacy
    }
}

/// Where the kernel's files are; other than the real places only in tests.
#[derive(Clone, Debug)]
struct Host {
    /// The v2 hierarchy's mount point. v1's are found in `mountinfo`.
    cgroup: Cow<'static, Path>,
    /// `/proc`
    proc: Cow<'static, Path>,
    /// The directory that names the huge page sizes.
    hugepages: Cow<'static, Path>,
}

impl Host {
    fn real() -> Self {
        Host {
            cgroup: Cow::Borrowed(Path::new("/sys/fs/cgroup")),
            proc: Cow::Borrowed(Path::new("/proc")),
            hugepages: Cow::Borrowed(Path::new("/sys/kernel/mm/hugepages")),
        }
    }

    /// Whether this process is in a user namespace, where some cgroup and `oom_score_adj` writes are refused
    /// even to root.
    fn in_user_namespace(&self) -> bool {
        let Ok(map) = fs::read_to_string(self.proc.join("self/uid_map")) else {
            return false;
        };
        if map.is_empty() {
            return true; // a new user namespace whose map is not written yet
        }
        let first = map.lines().next().unwrap_or_default();
        !first.split_whitespace().eq(["0", "0", "4294967295"])
    }
}

/// A cgroup that exists or has existed.
#[derive(Clone, Debug)]
pub struct Cgroup {
    host: Host,
    version: Version,
}

#[derive(Clone, Debug)]
enum Version {
    V1(v1::Group),
    V2(v2::Group),
}

impl Cgroup {
    /// The cgroup that process `pid` is in.
    ///
    /// # Errors
    /// [`Error::NotFound`] when the cgroup is gone, [`Error::Io`] when the process is.
    pub fn of_process(pid: u32) -> Result<Self> {
        Self::of_process_on(Host::real(), mode(), pid)
    }

    /// The cgroup at `path`, which starts with `/` and is relative to the hierarchies' mount points. On v1 it
    /// is that path in every controller that has it.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a path that is not absolute and clean (v2), [`Error::NotFound`] when no
    /// v1 controller has it. A v2 cgroup that does not exist shows at its first use.
    pub fn load(path: &str) -> Result<Self> {
        Self::load_on(Host::real(), mode(), path)
    }

    fn of_process_on(host: Host, mode: Mode, pid: u32) -> Result<Self> {
        let file = host.proc.join(pid.to_string()).join("cgroup");
        let text = fs::read_to_string(&file).context(|| format!("read {}", file.display()))?;
        let version = match mode {
            Mode::Unified => Version::V2(v2::Group::of_process(&host, pid, &text)?),
            Mode::Legacy | Mode::Hybrid => Version::V1(v1::Group::of_process(&host, pid, &text)?),
        };
        Ok(Cgroup { host, version })
    }

    fn load_on(host: Host, mode: Mode, path: &str) -> Result<Self> {
        let version = match mode {
            Mode::Unified => Version::V2(v2::Group::load(&host, path)?),
            Mode::Legacy | Mode::Hybrid => Version::V1(v1::Group::load(&host, path)?),
        };
        Ok(Cgroup { host, version })
    }

    /// The statistics, as `io.containerd.cgroups.v1.Metrics` or `io.containerd.cgroups.v2.Metrics`.
    ///
    /// # Errors
    /// When a file that is there cannot be read or has an unknown form. Missing files are left out.
    pub fn stats(&self) -> Result<Any> {
        let (type_url, value) = match &self.version {
            Version::V1(group) => {
                let metrics = group
                    .metrics(&self.host)
                    .context(|| "read cgroup statistics".to_owned())?;
                ("io.containerd.cgroups.v1.Metrics", metrics.write_to_bytes())
            }
            Version::V2(group) => {
                let metrics = group
                    .metrics(&self.host)
                    .context(|| "read cgroup statistics".to_owned())?;
                ("io.containerd.cgroups.v2.Metrics", metrics.write_to_bytes())
            }
        };
        let value = value.map_err(|error| Error::Other(format!("encode cgroup statistics: {error}")))?;
        Ok(Any {
            type_url: type_url.to_owned(),
            value,
            ..Any::default()
        })
    }

    /// Lets this cgroup use every controller that the host has: written to all its parents (v2; on v1 there
    /// is nothing to do).
    ///
    /// # Errors
    /// When the immediate parent refuses. Refusals further up do not matter where the controller is already
    /// enabled there, as it is for a user without privileges.
    pub fn enable_controllers(&self) -> Result<()> {
        match &self.version {
            Version::V1(_) => Ok(()),
            Version::V2(group) => group.enable_controllers(&self.host),
        }
    }

    /// Moves process `pid` into this cgroup, on v1 into each of its controllers.
    ///
    /// # Errors
    /// When the kernel refuses, or the cgroup or the process does not exist.
    pub fn add_process(&self, pid: u32) -> Result<()> {
        match &self.version {
            Version::V1(group) => group.directories().try_for_each(|dir| members::add(dir, pid)),
            Version::V2(group) => members::add(group.directory(), pid),
        }
    }

    /// Every process in this cgroup and those below it; none when it is gone.
    ///
    /// # Errors
    /// When the files cannot be read, or the cgroup is the hierarchy's root.
    pub fn pids(&self) -> Result<Vec<u32>> {
        members::pids(self.own_directory()?)
    }

    /// Whether no process is left in this cgroup and those below it. One that is gone is empty.
    ///
    /// # Errors
    /// As [`Cgroup::pids`].
    pub fn is_empty(&self) -> Result<bool> {
        Ok(self.pids()?.is_empty())
    }

    /// Sends SIGKILL to every process in this cgroup and those below it, frozen ones too, so that none can
    /// slip away by forking. Does not wait for them to be gone.
    ///
    /// # Errors
    /// As [`Cgroup::pids`], or when a signal is refused.
    pub fn kill_all(&self) -> Result<()> {
        let dir = self.own_directory()?;
        match &self.version {
            Version::V1(group) => members::kill_v1(dir, group.controller("freezer")),
            Version::V2(_) => members::kill_v2(dir),
        }
    }

    /// Whether a signal to its processes takes effect only once somebody thaws them: a frozen v1 cgroup, or one
    /// that cannot be looked at. On v2 a frozen process dies of SIGKILL.
    #[must_use]
    pub fn holds_signals_back(&self) -> bool {
        match &self.version {
            Version::V1(group) => group.controller("freezer").is_none_or(|dir| {
                fs::read_to_string(dir.join("freezer.state")).map_or(true, |state| state.trim() != "THAWED")
            }),
            Version::V2(_) => false,
        }
    }

    /// The directory that tells membership. A process that was never moved is in the root of a hierarchy,
    /// together with everything else on the host: that one is never anyone's own.
    fn own_directory(&self) -> Result<&Path> {
        let dir = match &self.version {
            Version::V1(group) => group.own_directory(),
            Version::V2(group) => group.own_directory(&self.host),
        };
        dir.ok_or_else(|| {
            Error::FailedPrecondition(
                "this is the root cgroup, which holds every process of the host: give the container a cgroup \
                 of its own"
                    .to_owned(),
            )
        })
    }
}

/// `path` with `.`, `..` and double slashes resolved by text alone; always absolute.
fn clean(path: &str) -> PathBuf {
    let mut clean = PathBuf::from("/");
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                clean.pop();
            }
            name => clean.push(name),
        }
    }
    clean
}
