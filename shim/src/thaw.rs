//! What lets a container go on whose shim has frozen it and is gone, or hangs: a process that is there for as long as
//! the container stands still, and does one thing.
//!
//! It holds one end of a pipe. A word on it means that all is done; its end without one, that the shim is dead. It is a
//! program of its own and no thread or fork: nothing of the shim's, not its lease, must outlive the shim.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::error::{Context, Error, Result};

/// The first word of its command line: what lists shims must not find it.
pub const NAME: &str = "diffkeeper-thaw";
/// How much later than the shim itself it acts.
const GRACE: Duration = Duration::from_millis(100);

/// Writes a word to a file after some time, or as soon as this process is gone.
pub struct Watchdog(OwnedFd);

impl Watchdog {
    /// Starts one.
    ///
    /// # Errors
    /// When no process can be made.
    pub fn start(file: &Path, word: &str, limit: Duration) -> Result<Watchdog> {
        let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)
            .map_err(io::Error::from)
            .context(|| "make a pipe".into())?;
        // Its end is the reaper's business.
        Command::new("/proc/self/exe")
            .arg0(NAME)
            .args([file.as_os_str(), word.as_ref()])
            .arg((limit + GRACE).as_millis().to_string())
            .env_clear()
            .current_dir("/")
            .process_group(0)
            .stdin(Stdio::from(read))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context(|| "start what thaws the container if its shim dies".into())?;
        Ok(Watchdog(write))
    }

    /// Ends it; nothing is written.
    pub fn dismiss(self) {
        // It has ended if its time was up.
        let _ = File::from(self.0).write(b".");
    }
}

/// What the process does: file, word and milliseconds are its arguments.
///
/// # Errors
/// Other arguments, a file that cannot be written.
pub fn run(mut args: impl Iterator<Item = String>) -> Result<()> {
    let (Some(file), Some(word), Some(Ok(limit))) =
        (args.next(), args.next(), args.next().map(|n| n.parse::<u32>()))
    else {
        return Err(Error::InvalidArgument(format!(
            "{NAME} needs a file, a word and milliseconds"
        )));
    };
    let mut input = io::stdin();
    let limit = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
    let mut said = [PollFd::new(input.as_fd(), PollFlags::POLLIN)];
    // Interrupted or failed, it thaws too early rather than never.
    let told = poll(&mut said, limit).is_ok_and(|n| n > 0);
    if told && input.read(&mut [0]).is_ok_and(|n| n > 0) {
        return Ok(());
    }
    let file = PathBuf::from(file);
    std::fs::write(&file, word).context(|| format!("write to {}", file.display()))
}
