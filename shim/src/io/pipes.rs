//! Streams without a terminal.

use std::{
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use nix::{fcntl::OFlag, unistd::pipe2};
use tokio::{io::Interest, task::JoinHandle};

use super::{
    ChildFds, IoOptions, Stdio,
    copy::{self, Sink, Stream},
    target::{self, LOGGER_END_LIMIT, Logger, Target},
};
use crate::error::{Context, Result};

/// The pipes of one process.
pub struct Pipes {
    stdio: Stdio,
    child: ChildFds,
    ours: Ours,
    logger: Option<Logger>,
    hold: Option<OwnedFd>,
    input: Option<JoinHandle<()>>,
    outputs: Vec<JoinHandle<()>>,
}

/// Our ends, until copying starts.
#[derive(Default)]
struct Ours {
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    file: Option<OwnedFd>,
}

impl Pipes {
    /// Makes what the runtime will inherit, and starts the logger if one is asked for.
    ///
    /// # Errors
    /// A URI that is wrong, a file that cannot be made, a logger that does not start.
    pub async fn new(
        container_id: &str,
        namespace: &str,
        stdio: &Stdio,
        options: &IoOptions,
    ) -> Result<Pipes> {
        let mut pipes = Pipes {
            stdio: stdio.clone(),
            child: ChildFds::default(),
            ours: Ours::default(),
            logger: None,
            hold: None,
            input: None,
            outputs: Vec::new(),
        };
        match Target::parse(&stdio.stdout)? {
            Target::Binary { program, args } => {
                let (logger, out, err) =
                    target::start_logger(&program, &args, container_id, namespace).await?;
                pipes.logger = Some(logger);
                pipes.child.stdout = Some(out);
                pipes.child.stderr = Some(err);
                return Ok(pipes);
            }
            Target::File(path) => pipes.ours.file = Some(target::open_file(&path)?),
            Target::Fifo(_) => {}
        }
        if !stdio.stdin.is_empty() {
            let (read, write) = pipe(options, End::Read)?;
            (pipes.child.stdin, pipes.ours.stdin) = (Some(read), Some(write));
        }
        if !stdio.stdout.is_empty() {
            let (read, write) = pipe(options, End::Write)?;
            (pipes.ours.stdout, pipes.child.stdout) = (Some(read), Some(write));
        }
        if !stdio.stderr.is_empty() {
            let (read, write) = pipe(options, End::Write)?;
            (pipes.ours.stderr, pipes.child.stderr) = (Some(read), Some(write));
        }
        Ok(pipes)
    }

    /// Hands over the child's ends; a second call finds none.
    ///
    /// # Errors
    /// None today.
    pub fn child_fds(&mut self) -> Result<ChildFds> {
        Ok(std::mem::take(&mut self.child))
    }

    /// Opens containerd's ends and starts copying.
    ///
    /// # Errors
    /// A fifo that cannot be opened.
    pub async fn start_copy(&mut self) -> Result<()> {
        let Ours {
            stdin,
            stdout,
            stderr,
            file,
        } = std::mem::take(&mut self.ours);
        let mut shared: Option<Sink> = match file {
            Some(file) => Some(Sink::new(file).context(|| "write to a log file".into())?),
            None => None,
        };
        let one_file = shared.is_some() || self.stdio.stdout == self.stdio.stderr;
        for (pipe, path) in [(stdout, &self.stdio.stdout), (stderr, &self.stdio.stderr)] {
            let Some(pipe) = pipe else { continue };
            let (sink, keep) = match &shared {
                Some(sink) => (sink.clone(), None),
                None => {
                    let path = path.strip_prefix("fifo://").unwrap_or(path);
                    let (write, keep) = target::open_output(Path::new(path))?;
                    (Sink::new(write).context(|| format!("write to {path}"))?, keep)
                }
            };
            if one_file {
                shared = Some(sink.clone());
            }
            let source =
                copy::stream(pipe, Interest::READABLE).context(|| "read a container's output".into())?;
            self.outputs.push(tokio::spawn(async move {
                if let Err(error) = copy::copy(&source, &sink).await {
                    tracing::warn!(%error, "copy a container's output");
                }
                // Held until here, so that containerd's absence never breaks the fifo.
                drop(keep);
            }));
        }
        drop(shared);
        if let Some(pipe) = stdin {
            let (fifo, hold) = open_input(&self.stdio.stdin)?;
            self.hold = Some(hold);
            self.input = Some(tokio::spawn(async move {
                let Ok(sink) = Sink::new(pipe) else { return };
                // The end of input, or a process that reads no more: either closes the pipe.
                if let Err(error) = copy::copy(&fifo, &sink).await {
                    tracing::debug!(%error, "copy a container's input");
                }
            }));
        }
        Ok(())
    }

    /// Lets the process see the end of its input as soon as the client, too, has closed it.
    pub fn close_stdin(&mut self) {
        self.hold = None;
    }

    /// Resolves when all output has been copied.
    pub async fn wait_copied(&mut self) {
        for output in &mut self.outputs {
            // A copy that was aborted has nothing more to copy.
            let _ = output.await;
        }
        self.outputs.clear();
    }

    /// Ends everything that still runs.
    pub async fn close(&mut self) {
        self.hold = None;
        if let Some(input) = self.input.take() {
            input.abort();
        }
        for output in self.outputs.drain(..) {
            output.abort();
        }
        self.child = ChildFds::default();
        self.ours = Ours::default();
        if let Some(logger) = self.logger.take() {
            logger.end(LOGGER_END_LIMIT).await;
        }
    }
}

enum End {
    Read,
    Write,
}

/// A pipe whose child's end belongs to the configured owner.
fn pipe(options: &IoOptions, child: End) -> Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe2(OFlag::O_CLOEXEC).context(|| "make a pipe".into())?;
    let end = match child {
        End::Read => &read,
        End::Write => &write,
    };
    if options.uid != 0 || options.gid != 0 {
        nix::unistd::fchown(end.as_fd(), Some(options.uid.into()), Some(options.gid.into()))
            .context(|| format!("give a pipe to IoUid {} and IoGid {}", options.uid, options.gid))?;
    }
    Ok((read, write))
}

/// The client's input fifo, read without blocking whether or not the client has opened it yet, and a hold on its
/// other end: as long as that is kept, a client that goes away may come back.
pub(super) fn open_input(path: &str) -> Result<(Stream, OwnedFd)> {
    use std::os::unix::fs::OpenOptionsExt;
    let what = || format!("containerd-shim: opening {path} failed");
    let open = |options: &mut std::fs::OpenOptions| {
        options
            .custom_flags(libc::O_NONBLOCK)
            .open(path)
            .map(OwnedFd::from)
    };
    let read = open(std::fs::OpenOptions::new().read(true)).context(what)?;
    let hold = open(std::fs::OpenOptions::new().write(true)).context(what)?;
    let stream = copy::stream(read, Interest::READABLE).context(|| format!("read {path}"))?;
    Ok((stream, hold))
}
