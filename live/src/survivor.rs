//! What outlives a shim: a container whose shim was killed may go on writing.
//!
//! Only what provably belongs to the dead holder is killed. Proof is the start time of its init, or, while the
//! kernel says that an overlay stands on our upper, a root directory on the overlay that the holder recorded:
//! as long as it stands, its device number is nobody else's. A cgroup is no proof, it may be shared or reused.

use std::{
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::Path,
    time::{Duration, Instant},
};

use nix::{
    mount::{MntFlags, umount2},
    sys::stat::{major, minor},
};

use crate::{
    error::{Error, Result},
    lease::{Holder, Lease},
    root::Root,
    state::State,
    sys,
};

const POLL: Duration = Duration::from_millis(10);

/// What was ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evicted {
    /// The holder whose shim had died.
    pub holder: Holder,
    /// The processes that were killed.
    pub killed: Vec<i32>,
}

impl State {
    /// Makes sure that the live tree is free: ends what the last holder left, if it died without releasing the
    /// lease, until the kernel says so.
    ///
    /// # Errors
    /// [`Error::StillInUse`] when it is not free in time: something uses it that is not provably the holder's.
    pub fn evict(&self, lease: &Lease, limit: Duration) -> Result<Option<Evicted>> {
        self.unmount_paths();
        let since = Instant::now();
        let mut killed = Vec::new();
        // After a reboot nothing of it can be alive.
        let dead = lease.previous().filter(|holder| holder.boot_id == boot_id());
        while self.is_mounted()? {
            let Some(holder) = dead else {
                return Err(Error::StillInUse {
                    state: self.name().to_string(),
                    pids: killed,
                });
            };
            unmount_leftover(holder);
            for (pid, handle) in survivors(holder) {
                thaw(pid);
                if sys::kill(handle.as_fd()).is_ok() && !killed.contains(&pid) {
                    killed.push(pid);
                }
            }
            if since.elapsed() > limit {
                return Err(Error::StillInUse {
                    state: self.name().to_string(),
                    pids: killed,
                });
            }
            std::thread::sleep(POLL);
        }
        Ok(lease.previous().map(|holder| Evicted {
            holder: holder.clone(),
            killed,
        }))
    }
}

impl State {
    /// Unmounts the overlays of kept paths, wherever a shim left them: they stand in the state's own directory.
    pub fn unmount_paths(&self) {
        for root in self.overlays().filter(|root| root.root != Root::Rootfs) {
            // Mostly there is nothing.
            while umount2(&root.merged(), MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW).is_ok() {}
        }
    }
}

impl Holder {
    /// A descriptor of the container's first process, if that still runs.
    #[must_use]
    pub fn first_process(&self) -> Option<OwnedFd> {
        let init = self.init.filter(|_| self.boot_id == boot_id())?;
        // Opened before it is looked at: what is looked at is then what it means.
        let handle = sys::pidfd(init.pid).ok()?;
        (start_time(init.pid) == Some(init.start_time)).then_some(handle)
    }
}

/// Processes that are provably the holder's, by descriptors that mean no other.
fn survivors(holder: &Holder) -> Vec<(i32, OwnedFd)> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    let pids = entries
        .flatten()
        .filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(|pid| {
        // Opened before it is looked at: what is looked at is then what will be killed.
        let handle = sys::pidfd(pid).ok()?;
        belongs(pid, holder).then_some((pid, handle))
    })
    .collect()
}

fn belongs(pid: i32, holder: &Holder) -> bool {
    if holder
        .init
        .is_some_and(|init| init.pid == pid && start_time(pid) == Some(init.start_time))
    {
        return true;
    }
    let root = std::fs::metadata(format!("/proc/{pid}/root")).map(|m| (major(m.dev()), minor(m.dev())));
    holder
        .overlay
        .is_some_and(|(a, b)| root.is_ok_and(|dev| dev == (u64::from(a), u64::from(b))))
}

/// A frozen process of cgroup v1 does not die of SIGKILL.
fn thaw(pid: i32) {
    let Ok(groups) = std::fs::read_to_string(format!("/proc/{pid}/cgroup")) else {
        return;
    };
    let path = groups
        .lines()
        .find_map(|line| line.split_once(":freezer:").map(|(_, path)| path));
    if let Some(path) = path {
        let file = Path::new("/sys/fs/cgroup/freezer")
            .join(path.trim_start_matches('/'))
            .join("freezer.state");
        // No such file at the hierarchy's root, where nothing can be frozen.
        if std::fs::read_to_string(&file).is_ok_and(|state| state.starts_with("FR")) {
            let _ = std::fs::write(&file, "THAWED");
        }
    }
}

/// The mount that the dead shim made for the container, if it is still that one.
fn unmount_leftover(holder: &Holder) {
    let rootfs = &holder.root;
    let device = std::fs::symlink_metadata(rootfs).map(|m| (major(m.dev()), minor(m.dev())));
    if holder
        .overlay
        .is_some_and(|(a, b)| device.is_ok_and(|dev| dev == (u64::from(a), u64::from(b))))
    {
        // If it does not go, the kernel says so at the next look.
        let _ = umount2(rootfs, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
    }
}

/// When a process started, in clock ticks after boot.
pub(crate) fn start_time(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command's name may hold anything, parentheses too; field 3 follows the last one.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// This boot.
pub(crate) fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|id| id.trim().to_owned())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reused_pid_is_not_the_holders() {
        let me = std::process::id().cast_signed();
        let mut holder = Holder::new("c", "n", Path::new("/b"));
        holder.set_init(std::process::id());
        assert!(belongs(me, &holder));
        if let Some(init) = &mut holder.init {
            init.start_time += 1;
        }
        assert!(!belongs(me, &holder));
    }

    #[test]
    fn start_times() {
        assert!(start_time(std::process::id().cast_signed()).unwrap() > 0);
        assert_eq!(start_time(-1), None);
    }
}
