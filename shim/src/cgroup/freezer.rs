//! Stopping every process of a cgroup for a moment.
//!
//! A cgroup has one switch, and its owner uses the same one (`runc pause`): so it is watched while the processes stand
//! still. Where somebody else has a hand in it, what they want stays.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use super::{Cgroup, Version};
use crate::{
    error::{Context, Error, Result},
    thaw::Watchdog,
};

/// How long a freeze may take to take: a process in the middle of an fsync cannot be stopped before it is through.
const LIMIT: Duration = Duration::from_millis(20);
const POLL: Duration = Duration::from_micros(100);

/// A cgroup whose processes stand still. What thaws it is [`Frozen::thaw`], and the watchdog once this process is gone.
pub struct Frozen {
    switch: Switch,
    /// Tells of others who use the switch; none where the kernel has no more of these to give.
    others: Option<Inotify>,
    /// There where it was us who froze it.
    watchdog: Option<Watchdog>,
}

impl Cgroup {
    /// Stops every process and waits until all stand still, for `limit` at most whatever becomes of this process; on
    /// failure they run. What stands still already does so by its owner's will, and goes on doing so.
    ///
    /// # Errors
    /// A cgroup that is not the container's own, one that does not stand still in 20 ms, one that its owner pauses or
    /// resumes at the same moment.
    pub fn freeze(&self, limit: Duration) -> Result<Frozen> {
        let switch = self.switch()?;
        let others = others(&switch.path);
        // First, because it takes a millisecond: what is seen below must be true still when it is acted on.
        let watchdog = Watchdog::start(&switch.path, switch.thawed, limit)?;
        let mut frozen = Frozen {
            switch,
            others,
            watchdog: None,
        };
        // Whoever wrote in this millisecond may not have been told of to its end.
        match frozen.switch.state()? {
            State::Thawed if !frozen.used() => {}
            found => {
                watchdog.dismiss();
                return if found == State::Frozen {
                    Ok(frozen)
                } else {
                    Err(meddled(&frozen.switch))
                };
            }
        }
        let since = Instant::now();
        frozen.watchdog = Some(watchdog);
        frozen.switch.write(frozen.switch.frozen)?;
        // That was us.
        frozen.used();
        while frozen.switch.state()? != State::Frozen {
            if since.elapsed() > LIMIT {
                frozen.thaw()?;
                return Err(Error::Unavailable(format!(
                    "the container did not stand still within {} ms: a process of it waits for a disk",
                    LIMIT.as_millis()
                )));
            }
            std::thread::sleep(POLL);
        }
        // What is told of only now may have been written before: to leave it frozen for that would be a guess.
        std::thread::sleep(POLL);
        frozen.used();
        Ok(frozen)
    }

    fn switch(&self) -> Result<Switch> {
        // That the container runs is certain: these must not be taken for one that does not.
        let own = self
            .own_directory()
            .map_err(|error| Error::Unimplemented(error.to_string()))?;
        let (path, stood, frozen, thawed) = match &self.version {
            // A freezer that the container does not have to itself would stop others.
            Version::V1(group) => {
                let freezer = group
                    .controller("freezer")
                    .filter(|freezer| freezer.file_name() == own.file_name())
                    .ok_or_else(|| {
                        Error::Unimplemented("the container has no freezer cgroup of its own".into())
                    })?;
                (freezer.join("freezer.state"), None, "FROZEN", "THAWED")
            }
            Version::V2(_) => (
                own.join("cgroup.freeze"),
                Some(own.join("cgroup.events")),
                "1",
                "0",
            ),
        };
        let file = File::options().read(true).write(true).open(&path);
        Ok(Switch {
            file: file.context(|| format!("open {}", path.display()))?,
            path,
            events: stood,
            frozen,
            thawed,
        })
    }
}

impl Frozen {
    /// Lets them run, unless it is their owner's will that they stand still; says whether they stood still until now.
    ///
    /// # Errors
    /// The kernel's; a cgroup that is gone has nothing to thaw.
    pub fn thaw(&mut self) -> Result<bool> {
        let alone = !self.used();
        let Some(watchdog) = self.watchdog.take() else {
            return Ok(alone && self.switch.state()? == State::Frozen);
        };
        // A pause that falls between this look and the write is undone, as one is that comes in a standstill's first
        // moment: a container that is left frozen by a guess would be worse.
        // Where others cannot be told of, this tells of most of them.
        let stood = alone && self.switch.state()? == State::Frozen;
        if alone {
            // Before the watchdog goes: one that is left behind by a failure tries again.
            match self.switch.write(self.switch.thawed) {
                Err(Error::Io { source, .. })
                    if matches!(source.raw_os_error(), Some(libc::ENODEV | libc::ENOENT)) => {}
                done => done?,
            }
        }
        watchdog.dismiss();
        Ok(stood)
    }

    /// Whether the switch was used since this was last asked.
    fn used(&self) -> bool {
        // Nothing to read is an error of this descriptor.
        let events = self.others.as_ref().map(Inotify::read_events);
        events.is_some_and(|events| events.is_ok_and(|events| !events.is_empty()))
    }
}

/// Tells of those who write to a file.
fn others(file: &Path) -> Option<Inotify> {
    let others = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).ok()?;
    let watch = others.add_watch(file, AddWatchFlags::IN_MODIFY);
    watch.ok().map(|_| others)
}

fn meddled(switch: &Switch) -> Error {
    Error::Unavailable(format!(
        "somebody else pauses or resumes the container at this moment, by {}",
        switch.path.display()
    ))
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    Frozen,
    /// Somebody wants it frozen, and something in it runs still.
    Freezing,
    Thawed,
}

/// What freezes a cgroup.
struct Switch {
    path: PathBuf,
    file: File,
    /// v2: what tells whether all stand still.
    events: Option<PathBuf>,
    frozen: &'static str,
    thawed: &'static str,
}

impl Switch {
    fn write(&self, word: &str) -> Result<()> {
        let written = self.file.write_all_at(word.as_bytes(), 0);
        written.context(|| format!("write {word} to {}", self.path.display()))
    }

    fn state(&self) -> Result<State> {
        let mut word = [0; 16];
        let read = self.file.read_at(&mut word, 0);
        let length = read.context(|| format!("read {}", self.path.display()))?;
        let word = word.get(..length).unwrap_or_default().trim_ascii();
        let Some(events) = &self.events else {
            return Ok(match word {
                b"FROZEN" => State::Frozen,
                b"THAWED" => State::Thawed,
                _ => State::Freezing,
            });
        };
        let text = fs::read_to_string(events).context(|| format!("read {}", events.display()))?;
        // A parent's counts as well.
        Ok(if text.lines().any(|line| line == "frozen 1") {
            State::Frozen
        } else if word == b"0" {
            State::Thawed
        } else {
            State::Freezing
        })
    }
}
