//! Stopping every process of a cgroup for a moment.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use super::{Cgroup, Version};
use crate::error::{Context, Error, Result};

/// How long a freeze may take to take: a process in the middle of an fsync cannot be stopped before it is through.
const LIMIT: Duration = Duration::from_millis(20);
const POLL: Duration = Duration::from_micros(100);

impl Cgroup {
    /// Stops every process and waits until all stand still; on failure they run.
    ///
    /// # Errors
    /// A cgroup that is not the container's own, or one that does not stand still in 20 ms.
    pub fn freeze(&self) -> Result<()> {
        let since = Instant::now();
        self.write_frozen(true)?;
        while !self.is_frozen()? {
            if since.elapsed() > LIMIT {
                self.thaw()?;
                return Err(Error::Unavailable(format!(
                    "the container did not stand still within {} ms: a process of it waits for a disk",
                    LIMIT.as_millis()
                )));
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// Lets them run.
    ///
    /// # Errors
    /// The kernel's; a cgroup that is gone has nothing to thaw.
    pub fn thaw(&self) -> Result<()> {
        match self.write_frozen(false) {
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(()),
            done => done,
        }
    }

    fn freezer(&self) -> Result<&Path> {
        let own = self.own_directory()?;
        match &self.version {
            // A freezer that the container does not have to itself would stop others.
            Version::V1(group) => group
                .controller("freezer")
                .filter(|freezer| freezer.file_name() == own.file_name())
                .ok_or_else(|| {
                    Error::FailedPrecondition("the container has no freezer cgroup of its own".into())
                }),
            Version::V2(_) => Ok(own),
        }
    }

    fn write_frozen(&self, frozen: bool) -> Result<()> {
        let (file, text) = match (&self.version, frozen) {
            (Version::V1(_), true) => ("freezer.state", "FROZEN"),
            (Version::V1(_), false) => ("freezer.state", "THAWED"),
            (Version::V2(_), true) => ("cgroup.freeze", "1"),
            (Version::V2(_), false) => ("cgroup.freeze", "0"),
        };
        let path = self.freezer()?.join(file);
        fs::write(&path, text).context(|| format!("write {text} to {}", path.display()))
    }

    fn is_frozen(&self) -> Result<bool> {
        let (file, wanted) = match &self.version {
            Version::V1(_) => ("freezer.state", "FROZEN"),
            Version::V2(_) => ("cgroup.events", "frozen 1"),
        };
        let path = self.freezer()?.join(file);
        let text = fs::read_to_string(&path).context(|| format!("read {}", path.display()))?;
        Ok(text.lines().any(|line| line == wanted))
    }
}
