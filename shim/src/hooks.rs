//! What the container's annotations want to be run in it before and after a commit (`diffkeeper.io/pre-commit`,
//! `post-commit`): as the container's own process runs, with its user, environment and rights.

use std::{path::Path, time::Duration};

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

/// How long one may take.
const LIMIT: Duration = Duration::from_secs(10);
/// How much of what it prints is told of.
const TOLD: usize = 300;
/// How often a pipe is read that is as full as it can be.
const PIPE: usize = 16;
/// No exec has such a name.
const FILES: [&str; 2] = [".hook.pid", ".hook.process.json"];

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
    let made = tokio::time::timeout(LIMIT, runc.exec(id, &spec_file, &options, Some(fds))).await;
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
    match tokio::time::timeout(LIMIT, ended(exit, &mut pipe, &mut printed)).await {
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
