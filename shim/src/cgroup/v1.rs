//! cgroup v1: a directory per controller.

mod statistics;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{Host, clean};
use crate::error::{Context, Error, Result};

/// The controllers that the stock shim knows, in its order. `devices` is not used in a user namespace.
const CONTROLLERS: [&str; 14] = [
    "systemd",
    "freezer",
    "pids",
    "net_cls",
    "net_prio",
    "perf_event",
    "cpuset",
    "cpu",
    "cpuacct",
    "memory",
    "blkio",
    "rdma",
    "devices",
    "hugetlb",
];

/// The same cgroup in each controller that has it.
#[derive(Clone, Debug)]
pub(super) struct Group {
    controllers: Vec<Controller>,
}

#[derive(Clone, Debug)]
struct Controller {
    name: &'static str,
    directory: PathBuf,
    /// The directory is the whole hierarchy.
    is_root: bool,
}

impl Group {
    /// The cgroup of process `pid`, whose `/proc/PID/cgroup` holds `membership`.
    pub(super) fn of_process(host: &Host, pid: u32, membership: &str) -> Result<Self> {
        let mounts = Mounts::read(host)?;
        let mut paths = Vec::new();
        for line in membership.lines() {
            let mut fields = line.splitn(3, ':');
            let (Some(_), Some(names), Some(path)) = (fields.next(), fields.next(), fields.next()) else {
                return Err(Error::Other(format!(
                    "/proc/{pid}/cgroup: unknown form: {line:?}"
                )));
            };
            for name in names.split(',') {
                // Mounted for a part of the hierarchy only, as inside a container, the path starts there.
                if let Some(root) = mounts.root_of(name) {
                    paths.push((name.strip_prefix("name=").unwrap_or(name), below(root, path)));
                }
            }
        }
        let path_of = |name: &str| {
            paths
                .iter()
                .find(|(found, _)| *found == name)
                .map(|(_, path)| path.clone())
        };
        Self::find(host, &mounts, path_of).context_gone(|| format!("the cgroup of process {pid}"))
    }

    /// The cgroup at `path` in all controllers.
    pub(super) fn load(host: &Host, path: &str) -> Result<Self> {
        let (mounts, path) = (Mounts::read(host)?, clean(path));
        Self::find(host, &mounts, |_| Some(path.clone()))
            .context_gone(|| format!("cgroup {}", path.display()))
    }

    fn find(host: &Host, mounts: &Mounts, path_of: impl Fn(&str) -> Option<PathBuf>) -> Result<Option<Self>> {
        let point = mounts.point()?;
        let mut controllers = Vec::new();
        for name in CONTROLLERS {
            if name == "devices" && host.in_user_namespace() || name == "hugetlb" && !host.hugepages.exists()
            {
                continue;
            }
            let Some(path) = path_of(name) else { continue };
            let below = path.strip_prefix("/").unwrap_or(&path);
            let directory = point.join(name).join(below);
            match fs::symlink_metadata(&directory) {
                Ok(_) => controllers.push(Controller {
                    name,
                    directory,
                    is_root: below.as_os_str().is_empty(),
                }),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error).context(|| format!("look at {}", directory.display())),
            }
        }
        Ok((!controllers.is_empty()).then_some(Group { controllers }))
    }

    /// The directory of one controller.
    pub(super) fn controller(&self, name: &str) -> Option<&Path> {
        self.controllers
            .iter()
            .find(|found| found.name == name)
            .map(|found| &*found.directory)
    }

    /// The directories of all controllers.
    pub(super) fn directories(&self) -> impl Iterator<Item = &Path> {
        self.controllers.iter().map(|found| &*found.directory)
    }

    /// A directory that is not a whole hierarchy, the freezer's before others.
    pub(super) fn own_directory(&self) -> Option<&Path> {
        let mut own = self
            .controllers
            .iter()
            .filter(|found| !found.is_root && found.name != "systemd");
        own.next().map(|found| &*found.directory)
    }
}

/// Says what is gone where nothing was found.
trait ContextGone<T> {
    fn context_gone(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T> ContextGone<T> for Result<Option<T>> {
    fn context_gone(self, what: impl FnOnce() -> String) -> Result<T> {
        self?.ok_or_else(|| Error::NotFound(format!("{} is gone: no controller has it", what())))
    }
}

/// The v1 mounts among this process's mounts.
struct Mounts {
    table: String,
}

impl Mounts {
    fn read(host: &Host) -> Result<Self> {
        let path = host.proc.join("self/mountinfo");
        let table = fs::read_to_string(&path).context(|| format!("read {}", path.display()))?;
        Ok(Mounts { table })
    }

    /// Root, mount point and superblock options of each.
    fn each(&self) -> impl Iterator<Item = (&str, &str, &str)> {
        self.table.lines().filter_map(|line| {
            let mut front = line.split(' ');
            let (root, point) = (front.nth(3)?, front.next()?);
            let mut back = line.rsplit(' ');
            let options = back.next()?;
            (back.nth(1)? == "cgroup").then_some((root, point, options))
        })
    }

    /// The directory that holds a mount per controller.
    fn point(&self) -> Result<&Path> {
        let first = self
            .each()
            .next()
            .and_then(|(_, point, _)| Path::new(point).parent());
        first
            .ok_or_else(|| Error::NotFound("no cgroup hierarchy is mounted: mount /sys/fs/cgroup".to_owned()))
    }

    /// Which directory of the hierarchy its mount shows.
    fn root_of(&self, controller: &str) -> Option<&str> {
        let mut mounts = self.each();
        mounts
            .find(|(_, _, options)| options.split(',').any(|option| option == controller))
            .map(|(root, _, _)| root)
    }
}

/// `path` as seen from a mount that shows `root`.
fn below(root: &str, path: &str) -> PathBuf {
    let (root, path) = (clean(root), clean(path));
    if root == path {
        return path;
    }
    let shared = root
        .components()
        .zip(path.components())
        .take_while(|(a, b)| a == b)
        .count();
    Path::new("/").join(path.components().skip(shared).collect::<PathBuf>())
}
