//! Id-mapped clones: the same directory, seen with other owners.

use std::{
    fs::File,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use runtime_spec::bundle::IdMapping;

use super::sys;
use crate::error::{Context, Error, Result};

/// User and group mappings of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IdMaps {
    /// For users.
    pub uids: Vec<IdMapping>,
    /// For groups.
    pub gids: Vec<IdMapping>,
}

impl IdMaps {
    /// Parses overlay's `uidmap=0:100000:65536` in containerd's spelling.
    ///
    /// # Errors
    /// Anything but numbers in threes.
    pub fn parse(uids: &str, gids: &str) -> Result<IdMaps> {
        let parse = |text: &str| -> Option<Vec<IdMapping>> {
            text.split(',')
                .map(|one| {
                    let mut numbers = one.split(':').map(|n| n.parse().ok());
                    let (c, h, s) = (numbers.next()??, numbers.next()??, numbers.next()??);
                    numbers.next().is_none().then_some(IdMapping {
                        container_id: c,
                        host_id: h,
                        size: s,
                    })
                })
                .collect()
        };
        let bad = || Error::InvalidArgument(format!("bad id mapping uidmap={uids} gidmap={gids}"));
        Ok(IdMaps {
            uids: parse(uids).ok_or_else(bad)?,
            gids: parse(gids).ok_or_else(bad)?,
        })
    }
}

/// Where an id-mapped upper shows the host's root: overlayfs itself makes its work directory as root, and cannot
/// where root is mapped to nothing. No container's file has this id.
const HOST_ROOT: u32 = u32::MAX - 1;

impl IdMaps {
    /// The same mappings, with a place for the host's root unless they have one.
    #[must_use]
    pub fn with_host_root(&self) -> IdMaps {
        let with = |maps: &[IdMapping]| {
            let mut maps = maps.to_vec();
            if !maps.iter().any(|m| m.host_id == 0) {
                maps.push(IdMapping {
                    container_id: HOST_ROOT,
                    host_id: 0,
                    size: 1,
                });
            }
            maps
        };
        IdMaps {
            uids: with(&self.uids),
            gids: with(&self.gids),
        }
    }
}

impl IdMaps {
    /// From the host's ids to the container's.
    #[must_use]
    pub fn inverse(&self) -> IdMaps {
        let swap = |maps: &[IdMapping]| {
            let swapped = maps.iter().map(|m| IdMapping {
                container_id: m.host_id,
                host_id: m.container_id,
                size: m.size,
            });
            swapped.collect()
        };
        IdMaps {
            uids: swap(&self.uids),
            gids: swap(&self.gids),
        }
    }
}

/// A user namespace with these mappings, to be referred to by descriptor.
///
/// # Errors
/// Mappings that the kernel refuses.
pub fn user_namespace(maps: &IdMaps) -> Result<OwnedFd> {
    let (pid, pipe) = sys::child_in_user_namespace().context(|| "make a user namespace".into())?;
    let made = (|| {
        for (file, map) in [("uid_map", &maps.uids), ("gid_map", &maps.gids)] {
            let text: String = map
                .iter()
                .map(|m| format!("{} {} {}\n", m.container_id, m.host_id, m.size))
                .collect();
            std::fs::write(format!("/proc/{pid}/{file}"), &text)
                .context(|| format!("set {file} to {text:?}"))?;
        }
        File::open(format!("/proc/{pid}/ns/user"))
            .map(OwnedFd::from)
            .context(|| "open a user namespace".into())
    })();
    drop(pipe);
    // In a server its reaper may be first.
    let _ = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(pid), None);
    made
}

/// A detached clone of the mount at `path`, seen through the mappings.
///
/// # Errors
/// A kernel or file system that cannot, with the version that can.
pub fn mapped_clone(path: &Path, namespace: &OwnedFd) -> Result<OwnedFd> {
    let tree = sys::clone_tree(path).context(|| format!("clone the mount at {}", path.display()))?;
    sys::map_ids(tree.as_fd(), namespace.as_fd()).context(|| {
        format!("map the owners in {} (id-mapped overlays need kernel 5.19 and a file system such as ext4 or XFS)", path.display())
    })?;
    Ok(tree)
}
