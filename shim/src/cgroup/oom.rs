//! Out-of-memory kills in a cgroup, told as they happen and counted when asked.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    sys::{
        eventfd::{EfdFlags, EventFd},
        inotify::{AddWatchFlags, InitFlags, Inotify},
    },
    unistd,
};
use tokio::io::unix::AsyncFd;

use super::{Cgroup, Version, files::Files, members, sys};
use crate::error::{Context, Error, Result};

/// Tells of out-of-memory kills in one cgroup from the moment it is made. An OOM is told once, by
/// [`OomWatch::next`] or by [`OomWatch::pending`], whichever comes first.
///
/// A shim promises TaskOOM before the TaskExit that it caused. `pending` looks at the kernel's own counters, so
/// calling it when init has exited finds an OOM that `next` has not delivered yet.
#[derive(Debug)]
pub struct OomWatch {
    directory: PathBuf,
    events: AsyncFd<OwnedFd>,
    source: Source,
}

/// v1 and v2 differ in what wakes the watch and in what is counted.
#[derive(Debug)]
enum Source {
    /// An eventfd that the kernel adds to *before* it kills, also when the limit that was hit is a parent's,
    /// and once more when the cgroup is removed.
    ///
    /// Beside it stands the counter of kills: it alone counts processes killed because the whole host ran out
    /// of memory, but not those in cgroups below this one.
    V1 {
        /// Kills before the watch.
        before: u64,
        /// Notifications taken from the eventfd, and kills told without one.
        told: u64,
    },
    /// inotify on `memory.events`, whose counter covers everything below, and on `cgroup.events`, which changes
    /// when the last process is gone.
    V2 {
        /// The counter when last told.
        told: u64,
    },
}

impl OomWatch {
    /// Watches a cgroup. Needs a tokio runtime.
    ///
    /// # Errors
    /// When the cgroup is gone or has no memory controller.
    pub fn new(cgroup: &Cgroup) -> Result<Self> {
        match &cgroup.version {
            Version::V1(group) => {
                let directory = group.controller("memory").ok_or_else(|| {
                    Error::NotFound(
                        "the container has no memory cgroup: OOM kills will not be reported".to_owned(),
                    )
                })?;
                Self::v1(directory).context(|| format!("watch {} for OOM kills", directory.display()))
            }
            Version::V2(group) => {
                let directory = group.directory();
                Self::v2(directory).context(|| format!("watch {} for OOM kills", directory.display()))
            }
        }
    }

    pub(super) fn v1(directory: &Path) -> io::Result<Self> {
        let event = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let control = File::open(directory.join("memory.oom_control"))?;
        let before = kills(directory, "memory.oom_control")?;
        let request = format!("{} {} ", event.as_fd().as_raw_fd(), control.as_raw_fd());
        members::write(&directory.join("cgroup.event_control"), &request)?;
        let source = Source::V1 { before, told: 0 };
        Self::over(directory, event.into(), source)
    }

    pub(super) fn v2(directory: &Path) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        for file in ["memory.events", "cgroup.events"] {
            inotify.add_watch(&directory.join(file), AddWatchFlags::IN_MODIFY)?;
        }
        let source = Source::V2 {
            told: kills(directory, "memory.events")?,
        };
        Self::over(directory, inotify.into(), source)
    }

    fn over(directory: &Path, events: OwnedFd, source: Source) -> io::Result<Self> {
        let events = sys::readable(events)?;
        Ok(OomWatch {
            directory: directory.to_owned(),
            events,
            source,
        })
    }

    /// Waits for the next OOM. Several that happen at once are told once. None when the cgroup is gone or, on
    /// v2, has become empty: there will be no more. May be cancelled at any time.
    pub async fn next(&mut self) -> Option<()> {
        loop {
            let mut ready = self.events.readable().await.ok()?;
            let Ok(taken) = ready.try_io(|events| take(events.get_ref())) else {
                continue;
            };
            let taken = taken.ok()?;
            drop(ready);
            // A notification of removal looks like one of an OOM.
            if !self.directory.exists() {
                return None;
            }
            if let Source::V1 { told, .. } = &mut self.source {
                *told += taken;
                return Some(());
            }
            if self.more_kills() {
                return Some(());
            }
            if self.is_deserted() {
                return None;
            }
        }
    }

    /// Whether there was an OOM that has not been told yet. From then on it counts as told.
    pub fn pending(&mut self) -> bool {
        if let Source::V1 { told, .. } = &mut self.source
            && let Ok(taken) = take(self.events.get_ref())
            && self.directory.exists()
        {
            *told += taken;
            return true;
        }
        self.more_kills()
    }

    /// Whether the kernel has counted more kills than were told; they are told now. A cgroup that is gone
    /// counts nothing.
    fn more_kills(&mut self) -> bool {
        let (file, before, told) = match &mut self.source {
            Source::V1 { before, told } => ("memory.oom_control", *before, told),
            Source::V2 { told } => ("memory.events", 0, told),
        };
        let found = kills(&self.directory, file)
            .unwrap_or_default()
            .saturating_sub(before);
        let more = found > *told;
        *told = found.max(*told);
        more
    }

    fn is_deserted(&self) -> bool {
        let mut populated = 0;
        let read = Files::default().pairs(&self.directory, "cgroup.events", |key, value| {
            if key == "populated" {
                populated = value;
            }
        });
        read.is_err() || populated == 0
    }
}

/// The kernel's count of kills; 0 where it keeps none (v1 before Linux 4.13).
fn kills(directory: &Path, file: &str) -> io::Result<u64> {
    let mut kills = 0;
    Files::default().pairs(directory, file, |key, value| {
        if key == "oom_kill" {
            kills = value;
        }
    })?;
    Ok(kills)
}

/// Empties an eventfd, giving its count, or an inotify queue, whose content does not matter.
fn take(events: &OwnedFd) -> io::Result<u64> {
    // inotify events of watched files carry no names: 16 bytes each.
    let mut bytes = [0; 512];
    loop {
        match unistd::read(events, &mut bytes) {
            Ok(_) => return Ok(bytes.first_chunk().copied().map_or(0, u64::from_ne_bytes)),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}
