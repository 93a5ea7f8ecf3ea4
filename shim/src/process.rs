//! One process of a container, its init or an exec: its status, its streams, its exit.

use std::{
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use tokio::sync::watch;

use crate::{
    error::{Context, Error, Result},
    io::{ChildFds, Console, ConsoleSocket, IoOptions, Pipes, Stdio},
    reaper::Exit,
};

/// How long a finished process's output may take to reach its reader before `Delete` gives up on it.
const DRAIN_LIMIT: Duration = Duration::from_secs(10);
/// How long the runtime may take to send the terminal after it returned.
const CONSOLE_LIMIT: Duration = Duration::from_secs(30);

/// Where a process is in its life. The words are those of the stock shim's errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Made, not started.
    Created,
    /// To be restored from a checkpoint at start.
    CreatedCheckpoint,
    /// Started.
    Running,
    /// Being frozen.
    Pausing,
    /// Frozen by its owner.
    Paused,
    /// Exited.
    Stopped,
    /// Deleted.
    Deleted,
}

impl Status {
    /// The word in messages such as "cannot start a running process".
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Status::Created | Status::CreatedCheckpoint => "created",
            Status::Running => "running",
            Status::Pausing => "pausing",
            Status::Paused => "paused",
            Status::Stopped => "stopped",
            Status::Deleted => "deleted",
        }
    }
}

struct Life {
    status: Status,
    pid: u32,
    exit: Option<Exit>,
}

enum Streams {
    Pipes(Pipes),
    Console(Console),
}

/// A process of a container.
pub struct Process {
    /// The container's id for init, the exec's id for an exec.
    pub id: String,
    /// What the client asked the streams to be.
    pub stdio: Stdio,
    /// Serialises calls on this process, and holds back its exit until a start has been announced.
    pub lock: tokio::sync::Mutex<()>,
    life: Mutex<Life>,
    done: watch::Sender<bool>,
    streams: tokio::sync::Mutex<Option<Streams>>,
}

/// The streams between their making and the runtime's return.
pub struct PendingStreams {
    pipes: Option<Pipes>,
    socket: Option<ConsoleSocket>,
}

impl PendingStreams {
    /// Prepares pipes or a console socket for a process about to be made.
    ///
    /// # Errors
    /// When a logger cannot be started, a file not opened, or a socket not made.
    pub async fn new(
        container_id: &str,
        namespace: &str,
        stdio: &Stdio,
        options: &IoOptions,
    ) -> Result<PendingStreams> {
        if stdio.terminal {
            return Ok(PendingStreams {
                pipes: None,
                socket: Some(ConsoleSocket::new()?),
            });
        }
        let pipes = Pipes::new(container_id, namespace, stdio, options).await?;
        Ok(PendingStreams {
            pipes: Some(pipes),
            socket: None,
        })
    }

    /// What the runtime's process inherits; none with a terminal.
    ///
    /// # Errors
    /// When descriptors run out.
    pub fn child_fds(&mut self) -> Result<Option<ChildFds>> {
        self.pipes.as_mut().map(Pipes::child_fds).transpose()
    }

    /// The path for the runtime's `--console-socket`.
    #[must_use]
    pub fn console_socket(&self) -> Option<PathBuf> {
        self.socket.as_ref().map(|socket| socket.path().to_owned())
    }

    /// Ends what was prepared: the process could not be made.
    pub async fn abandon(self) {
        if let Some(mut pipes) = self.pipes {
            pipes.close().await;
        }
    }
}

impl Process {
    /// A process in its first status.
    #[must_use]
    pub fn new(id: &str, stdio: Stdio, status: Status) -> Process {
        Process {
            id: id.to_owned(),
            stdio,
            lock: tokio::sync::Mutex::new(()),
            life: Mutex::new(Life {
                status,
                pid: 0,
                exit: None,
            }),
            done: watch::Sender::new(false),
            streams: tokio::sync::Mutex::new(None),
        }
    }

    fn life(&self) -> MutexGuard<'_, Life> {
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where it is in its life.
    #[must_use]
    pub fn status(&self) -> Status {
        self.life().status
    }

    /// Moves it on.
    pub fn set_status(&self, status: Status) {
        self.life().status = status;
    }

    /// Moves it on unless it has exited meanwhile.
    pub fn set_status_if_alive(&self, status: Status) {
        let mut life = self.life();
        if life.exit.is_none() {
            life.status = status;
        }
    }

    /// Its process id; 0 before there is one.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.life().pid
    }

    /// Records the process id.
    pub fn set_pid(&self, pid: u32) {
        self.life().pid = pid;
    }

    /// The exit status and time, once it has exited.
    #[must_use]
    pub fn exit(&self) -> Option<Exit> {
        self.life().exit
    }

    /// Records the exit and wakes whoever waits.
    pub fn set_exited(&self, exit: Exit) {
        {
            let mut life = self.life();
            if life.exit.is_none() {
                life.exit = Some(Exit {
                    at: SystemTime::now(),
                    ..exit
                });
            }
            if life.status != Status::Deleted {
                life.status = Status::Stopped;
            }
        }
        self.done.send_replace(true);
    }

    /// Wakes whoever waits although nothing ever ran: its start failed.
    pub fn give_up(&self) {
        self.done.send_replace(true);
    }

    /// Resolves when the process has exited.
    pub async fn wait(&self) {
        // The sender lives in `self`, so this ends only when the value is set.
        let _ = self.done.subscribe().wait_for(|done| *done).await;
    }

    /// Starts copying, after the runtime has made the process.
    ///
    /// # Errors
    /// When the terminal does not arrive, or a fifo cannot be opened.
    pub async fn attach(&self, pending: PendingStreams, container_id: &str, namespace: &str) -> Result<()> {
        let streams = match (pending.socket, pending.pipes) {
            (Some(socket), _) => {
                let master = tokio::time::timeout(CONSOLE_LIMIT, socket.receive())
                    .await
                    .map_err(|_| {
                        Error::Other(
                            "failed to retrieve console master: the runtime sent none within 30 s".into(),
                        )
                    })??;
                Streams::Console(Console::new(master, container_id, namespace, &self.stdio).await?)
            }
            (None, Some(mut pipes)) => {
                pipes.start_copy().await?;
                Streams::Pipes(pipes)
            }
            (None, None) => return Ok(()),
        };
        *self.streams.lock().await = Some(streams);
        Ok(())
    }

    /// Sets the terminal's size; without a terminal nothing happens.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn resize(&self, width: u32, height: u32) -> Result<()> {
        if let Some(Streams::Console(console)) = &*self.streams.lock().await {
            let clamp = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
            console.resize(clamp(width), clamp(height))?;
        }
        Ok(())
    }

    /// Closes standard input for good.
    pub async fn close_stdin(&self) {
        match &mut *self.streams.lock().await {
            Some(Streams::Pipes(pipes)) => pipes.close_stdin(),
            Some(Streams::Console(console)) => console.close_stdin(),
            None => {}
        }
    }

    /// Waits until all output has been copied, within a limit, and closes everything.
    pub async fn drain_and_close(&self) {
        let Some(mut streams) = self.streams.lock().await.take() else {
            return;
        };
        let copied = match &mut streams {
            Streams::Pipes(pipes) => tokio::time::timeout(DRAIN_LIMIT, pipes.wait_copied()).await,
            Streams::Console(console) => tokio::time::timeout(DRAIN_LIMIT, console.wait_copied()).await,
        };
        if copied.is_err() {
            tracing::error!(
                id = self.id,
                "a process's output was not read to its end within {DRAIN_LIMIT:?}"
            );
        }
        match &mut streams {
            Streams::Pipes(pipes) => pipes.close().await,
            Streams::Console(console) => console.close().await,
        }
    }
}

/// Reads the process id that the runtime wrote.
///
/// # Errors
/// When the file is missing or holds no number.
pub fn read_pid(file: &Path) -> Result<u32> {
    let text = std::fs::read_to_string(file).context(|| format!("read the pid file {}", file.display()))?;
    text.trim()
        .parse()
        .map_err(|_| Error::Other(format!("the pid file {} holds {text:?}", file.display())))
}
