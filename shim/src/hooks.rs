//! What the container's annotations want to be run in it before and after a commit (`diffkeeper.io/pre-commit`,
//! `post-commit`): as the container's own process runs, with its user, environment and rights.

use std::{
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use nix::unistd::Pid;
use runtime_spec::annotations::Annotations;
use tokio::io::AsyncReadExt;

use crate::{
    container::write_private,
    error::{Context, Error, Result},
    io::ChildFds,
    keep::Spec,
    process::read_pid,
    reaper::{Exit, Reaper},
    runc::{CreateOptions, Runc},
    sys,
};

/// How long one may take, its beginning included: the keeper waits a little longer.
const LIMIT: Duration = Duration::from_secs(10);
/// How much of what it prints is told of.
const TOLD: usize = 300;
/// How often a pipe is read that is as full as it can be.
const PIPE: usize = 16;
/// No exec has such a name.
const FILES: [&str; 2] = [".hook.pid", ".hook.process.json"];

/// How long after the first command the end of a commit is waited for: who asked for it may be gone.
pub const OVERDUE: Duration = Duration::from_secs(30);

/// Whether the application waits to be told that a commit is over.
#[derive(Debug, Default)]
pub struct Waiting {
    wait: Mutex<Wait>,
    /// One command at a time: who asked for the first may have lost patience with it.
    turn: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Wait {
    /// How often it was told that one begins.
    begun: u64,
    waits: bool,
    /// It was told of the end by nobody's order.
    overdue: bool,
}

impl Waiting {
    fn wait(&self) -> MutexGuard<'_, Wait> {
        self.wait.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until no other command runs, and keeps others waiting.
    pub async fn turn(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.turn.lock().await
    }

    /// It is about to be told that a commit begins; which one.
    pub fn begin(&self) -> u64 {
        let mut wait = self.wait();
        wait.begun += 1;
        (wait.waits, wait.overdue) = (true, false);
        wait.begun
    }

    /// Somebody is about to tell it that the commit is over.
    ///
    /// # Errors
    /// [`Error::Overdue`] where it has been told.
    pub fn end(&self) -> Result<()> {
        let mut wait = self.wait();
        wait.waits = false;
        if std::mem::take(&mut wait.overdue) {
            return Err(Error::Overdue(format!(
                "post-commit was run before the commit was made: it had not come within {} s",
                OVERDUE.as_secs()
            )));
        }
        Ok(())
    }

    /// Whether it has to be told of this commit's end by whoever asks.
    pub fn is_overdue(&self, begun: u64) -> bool {
        let mut wait = self.wait();
        let overdue = wait.waits && wait.begun == begun;
        if overdue {
            (wait.waits, wait.overdue) = (false, true);
        }
        overdue
    }
}

/// The commands; empty where there is none.
#[derive(Debug, Default)]
pub struct Hooks {
    before: Vec<String>,
    after: Vec<String>,
}

impl Hooks {
    /// Of a container. That its annotations are right is seen to elsewhere.
    #[must_use]
    pub fn of(spec: &Spec) -> Hooks {
        let annotations = Annotations::parse(&spec.parsed.annotations).unwrap_or_default();
        Hooks {
            before: annotations.pre_commit,
            after: annotations.post_commit,
        }
    }

    /// The command of one moment.
    #[must_use]
    pub fn command(&self, after: bool) -> Option<&[String]> {
        let command = if after { &self.after } else { &self.before };
        (!command.is_empty()).then_some(command)
    }
}

/// Runs a command in a container to its end.
///
/// # Errors
/// When it cannot be run, takes too long, or fails; with what it printed.
pub async fn run(
    runc: &Runc,
    reaper: &Reaper,
    id: &str,
    bundle: &Path,
    options: CreateOptions,
    command: &[String],
) -> Result<()> {
    let name = command.first().map_or("", String::as_str);
    let [pid_file, spec_file] = FILES.map(|file| bundle.join(file));
    write_private(&spec_file, &process(bundle, command)?)?;
    let (read, write) = sys::pipe().context(|| "make a pipe".into())?;
    let stderr = write.try_clone().context(|| "share a pipe".into())?;
    let fds = ChildFds {
        stdin: None,
        stdout: Some(write),
        stderr: Some(stderr),
    };
    // Its exit may come before its pid is known.
    let window = reaper.window();
    let options = CreateOptions {
        pid_file: pid_file.clone(),
        ..options
    };
    let until = tokio::time::Instant::now() + LIMIT;
    let made = tokio::time::timeout_at(until, runc.exec(id, &spec_file, &options, Some(fds))).await;
    // The runtime has read it, or never will.
    let _ = std::fs::remove_file(&spec_file);
    made.map_err(|_| Error::Other(format!("{name} was not begun within {} s", LIMIT.as_secs())))??;
    let pid = read_pid(&pid_file)?;
    let exit = reaper.claim(pid.cast_signed());
    drop(window);
    // It has been read.
    let _ = std::fs::remove_file(&pid_file);
    let mut printed = Vec::new();
    let pipe = tokio::net::unix::pipe::Receiver::from_owned_fd(read);
    let mut pipe = pipe.context(|| "read from a pipe".into())?;
    match tokio::time::timeout_at(until, ended(exit, &mut pipe, &mut printed)).await {
        Ok(Some(Exit { status: 0, .. })) => Ok(()),
        Ok(exit) => Err(Error::Other(format!(
            "{name} ended with status {}: {}",
            exit.map_or(255, |exit| exit.status),
            String::from_utf8_lossy(&printed).trim()
        ))),
        Err(_) => {
            // It may end at this moment.
            let _ = sys::kill(Pid::from_raw(pid.cast_signed()), libc::SIGKILL);
            Err(Error::Other(format!(
                "{name} was not through within {} s, and was killed",
                LIMIT.as_secs()
            )))
        }
    }
}

/// Waits for its end, and for nothing else: what it has started may hold the pipe open.
async fn ended(
    mut exit: tokio::sync::oneshot::Receiver<Exit>,
    pipe: &mut tokio::net::unix::pipe::Receiver,
    printed: &mut Vec<u8>,
) -> Option<Exit> {
    let mut buffer = [0; 4096];
    let mut keep = |bytes: &[u8]| {
        let room = TOLD.saturating_sub(printed.len()).min(bytes.len());
        printed.extend_from_slice(bytes.get(..room).unwrap_or_default());
    };
    let exit = loop {
        tokio::select! {
            exit = &mut exit => break exit.ok(),
            read = pipe.read(&mut buffer) => match read {
                Ok(0) | Err(_) => break exit.await.ok(),
                Ok(n) => keep(buffer.get(..n).unwrap_or_default()),
            },
        }
    };
    // The kernel itself is asked: tokio may not have heard yet that there is something to read.
    // No more than a pipe holds: what it has started may go on printing.
    for _ in 0..PIPE {
        let Ok(n @ 1..) = nix::unistd::read(&*pipe, &mut buffer) else {
            break;
        };
        keep(buffer.get(..n).unwrap_or_default());
    }
    exit
}

/// The container's process with another command.
fn process(bundle: &Path, command: &[String]) -> Result<Vec<u8>> {
    let file = bundle.join("config.json");
    let bytes = std::fs::read(&file).context(|| format!("read {}", file.display()))?;
    let bad = |e: serde_json::Error| Error::Other(format!("{}: {e}", file.display()));
    let mut spec: serde_json::Value = serde_json::from_slice(&bytes).map_err(bad)?;
    let mut process = spec
        .get_mut("process")
        .map(serde_json::Value::take)
        .unwrap_or_default();
    if let Some(process) = process.as_object_mut() {
        process.insert("args".into(), command.into());
        process.insert("terminal".into(), false.into());
        process.remove("consoleSize");
    }
    serde_json::to_vec(&process).map_err(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_is_told_once() {
        let waiting = Waiting::default();
        // Nobody was told of a beginning: the end is told to whoever wants to hear it.
        waiting.end().unwrap();
        let first = waiting.begin();
        waiting.end().unwrap();
        assert!(!waiting.is_overdue(first), "it has been told");
        let second = waiting.begin();
        assert!(!waiting.is_overdue(first), "that is long over");
        assert!(waiting.is_overdue(second) && !waiting.is_overdue(second));
        // Whoever comes after that hears that it is too late, once.
        assert!(matches!(waiting.end(), Err(Error::Overdue(_))));
        waiting.end().unwrap();
        // Another commit was begun after a keeper had gone.
        let (third, fourth) = (waiting.begin(), waiting.begin());
        assert!(!waiting.is_overdue(third));
        waiting.end().unwrap();
        assert!(!waiting.is_overdue(fourth));
    }
}
