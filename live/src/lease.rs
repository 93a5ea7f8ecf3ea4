//! The lease: the right to be the one writer of a state.
//!
//! A lock that the kernel drops with the process that holds it, and a record that outlives it: who finds the lock
//! free and a record there knows that the holder died without cleaning up (see [`crate::survivor`]).

use std::{
    fs::{File, OpenOptions},
    io::ErrorKind,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{
    error::{Context, Error, Result},
    layout::make,
    state::{State, read_json, write_json},
    survivor, sys,
};

/// A container's first process, told from any later one of the same pid by its start time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Init {
    /// Its pid.
    pub pid: i32,
    /// Field 22 of `/proc/PID/stat`: clock ticks after boot.
    pub start_time: u64,
}

/// `holder.json`: who has the lease.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The container.
    pub container_id: String,
    /// containerd's namespace.
    pub namespace: String,
    /// The bundle's directory.
    pub bundle: PathBuf,
    /// The shim.
    pub shim_pid: u32,
    /// The boot in which all this holds.
    pub boot_id: String,
    /// The container's first process.
    pub init: Option<Init>,
    /// The control groups that its first process was put in, as `/proc/PID/cgroup` said then: it may have left them for
    /// others below, and what it starts need not follow.
    #[serde(default)]
    pub groups: String,
    /// Where the root is mounted; below the bundle unless an engine had mounted it elsewhere.
    #[serde(default)]
    pub root: PathBuf,
    /// The shim's socket: the keeper asks there for a standstill.
    #[serde(default)]
    pub socket: PathBuf,
    /// Device number (major, minor) of the overlay, which nothing else has while it stands anywhere.
    pub overlay: Option<(u32, u32)>,
}

impl Holder {
    /// A container that this process is the shim of.
    #[must_use]
    pub fn new(container_id: &str, namespace: &str, bundle: &Path) -> Holder {
        Holder {
            container_id: container_id.into(),
            namespace: namespace.into(),
            bundle: bundle.into(),
            root: bundle.join("rootfs"),
            socket: PathBuf::new(),
            shim_pid: std::process::id(),
            boot_id: survivor::boot_id(),
            init: None,
            groups: String::new(),
            overlay: None,
        }
    }

    /// Notes the container's first process.
    pub fn set_init(&mut self, pid: u32) {
        let pid = pid.cast_signed();
        self.groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        self.init = survivor::start_time(pid).map(|start_time| Init { pid, start_time });
    }
}

/// What came of trying to take a lease.
#[derive(Debug)]
pub enum Attempt {
    /// It is ours.
    Held(Lease),
    /// It is another's.
    Busy(Holder),
}

/// A lease that is held until it is released, or the process ends.
#[derive(Debug)]
pub struct Lease {
    file: PathBuf,
    holder: Holder,
    previous: Option<Box<Holder>>,
    lock: File,
}

impl State {
    /// Tries to take the lease, without waiting.
    ///
    /// # Errors
    /// A disk that cannot be written.
    pub fn acquire(&self, holder: Holder) -> Result<Attempt> {
        let path = self.dir().join("lock");
        let record = self.dir().join("holder.json");
        loop {
            let lock = self.open_lock(&path)?;
            if !sys::try_lock(&lock).on("lock", &path)? {
                // Between its lock and its record a holder has no name yet.
                return Ok(Attempt::Busy(read_json(&record).unwrap_or_default()));
            }
            // Whoever removed the state meanwhile removed this lock file with it.
            let ours = lock.metadata().on("look at", &path)?.ino();
            if std::fs::metadata(&path).is_ok_and(|m| m.ino() == ours) {
                let previous = read_json(&record).map(Box::new);
                return Ok(Attempt::Held(Lease {
                    file: record,
                    holder,
                    previous,
                    lock,
                }));
            }
        }
    }

    /// Whoever removes the state at this moment takes the directory, and empty ones above it, from under us:
    /// tried again, but not for ever, for the disk itself may be gone.
    fn open_lock(&self, path: &Path) -> Result<File> {
        let open = || {
            make(self.dir())?;
            OpenOptions::new()
                .create(true)
                .truncate(false)
                .read(true)
                .write(true)
                .mode(0o600)
                .custom_flags(libc::O_NOFOLLOW)
                .open(path)
                .on("open", path)
        };
        for _ in 0..100 {
            match open() {
                // AlreadyExists: it was there for the making and not for the look after it.
                Err(Error::Io { source, .. })
                    if matches!(source.kind(), ErrorKind::NotFound | ErrorKind::AlreadyExists) => {}
                opened => return opened,
            }
        }
        open()
    }
}

impl Lease {
    /// Who has it: this process's container.
    #[must_use]
    pub fn holder(&self) -> &Holder {
        &self.holder
    }

    /// The holder who died without releasing the lease.
    #[must_use]
    pub fn previous(&self) -> Option<&Holder> {
        self.previous.as_deref()
    }

    /// Changes and writes the record.
    ///
    /// # Errors
    /// A disk that cannot be written.
    pub fn update(&mut self, change: impl FnOnce(&mut Holder)) -> Result<()> {
        change(&mut self.holder);
        write_json(&self.file, &self.holder)
    }

    /// The open lock file, as a process has it that is just being started.
    #[cfg(test)]
    pub(crate) fn share(&self) -> File {
        self.lock.try_clone().unwrap()
    }

    /// Gives it up.
    ///
    /// # Errors
    /// A record that cannot be removed; the lock is given up all the same.
    pub fn release(self) -> Result<()> {
        let forgotten = match std::fs::remove_file(&self.file) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(e).on("remove", &self.file),
            _ => Ok(()),
        };
        // Not left to the closing: a process that is just being started has the lock too, until its exec.
        let unlocked = sys::unlock(&self.lock).on("unlock the lease of", &self.file);
        forgotten.and(unlocked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Node;

    fn state(dir: &Path) -> Option<State> {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: leases need root (trusted xattrs)");
            return None;
        }
        let node = Node::open(&dir.join("root")).unwrap();
        Some(node.state(&"ctr/default/web".parse().unwrap()))
    }

    #[test]
    fn one_of_fifty_wins() {
        let dir = tempfile::tempdir().unwrap();
        let Some(state) = state(dir.path()) else { return };
        let attempts: Vec<Attempt> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..50)
                .map(|n| {
                    let state = &state;
                    scope.spawn(move || {
                        state
                            .acquire(Holder::new(&format!("c{n}"), "default", Path::new("/b")))
                            .unwrap()
                    })
                })
                .collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        assert_eq!(
            attempts.iter().filter(|a| matches!(a, Attempt::Held(_))).count(),
            1
        );
    }

    #[test]
    fn the_record_names_the_holder_and_goes_with_the_release() {
        let dir = tempfile::tempdir().unwrap();
        let Some(state) = state(dir.path()) else { return };
        let Attempt::Held(mut lease) = state
            .acquire(Holder::new("a", "default", Path::new("/b")))
            .unwrap()
        else {
            panic!("a new state is free");
        };
        lease.update(|h| h.set_init(std::process::id())).unwrap();
        let Attempt::Busy(holder) = state
            .acquire(Holder::new("b", "default", Path::new("/b")))
            .unwrap()
        else {
            panic!("it is taken");
        };
        assert_eq!(
            (holder.container_id.as_str(), holder.init.unwrap().pid),
            ("a", std::process::id().cast_signed())
        );
        let told = state.busy(holder).to_string();
        assert!(
            told.contains("ctr/default/web")
                && told.contains("\"a\"")
                && told.contains("diffkeeper.io/state"),
            "{told}"
        );
        lease.release().unwrap();
        let Attempt::Held(lease) = state
            .acquire(Holder::new("b", "default", Path::new("/b")))
            .unwrap()
        else {
            panic!("it was released");
        };
        assert!(lease.previous().is_none());
    }
}
