//! Streams with a terminal.

use std::{
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::DirBuilderExt,
    },
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use tokio::{io::Interest, net::UnixListener, task::JoinHandle};

use super::{
    Stdio,
    copy::{self, Sink, Stream},
    pipes::open_input,
    sys,
    target::{self, LOGGER_END_LIMIT, Logger, Target},
};
use crate::error::{Context, Result};

/// The socket over which the OCI runtime sends the terminal's master side.
pub struct ConsoleSocket {
    listener: UnixListener,
    dir: PathBuf,
    path: PathBuf,
}

impl ConsoleSocket {
    /// Makes it in a private directory.
    ///
    /// # Errors
    /// When neither can be made.
    pub fn new() -> Result<ConsoleSocket> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let base = std::env::var_os("XDG_RUNTIME_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
        let name = format!(
            "pty{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        let dir = base.join(name);
        // Left by a shim of the same pid that was killed.
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(&dir)
            .context(|| format!("make {}", dir.display()))?;
        let path = dir.join("pty.sock");
        let listener =
            UnixListener::bind(&path).context(|| format!("make the console socket {}", path.display()))?;
        Ok(ConsoleSocket { listener, dir, path })
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the terminal that the runtime sends.
    ///
    /// # Errors
    /// When the runtime sends none.
    pub async fn receive(self) -> Result<OwnedFd> {
        let what = || "receive the terminal from the OCI runtime".to_owned();
        let (socket, _) = self.listener.accept().await.context(what)?;
        loop {
            socket.readable().await.context(what)?;
            match socket.try_io(Interest::READABLE, || sys::receive_fd(socket.as_fd())) {
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                received => return received.context(what),
            }
        }
    }
}

impl Drop for ConsoleSocket {
    fn drop(&mut self) {
        // A temporary directory: what cannot be removed harms nobody.
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// A terminal's master side and its copies.
pub struct Console {
    master: Option<Stream>,
    logger: Option<Logger>,
    hold: Option<OwnedFd>,
    input: Option<JoinHandle<()>>,
    output: Option<JoinHandle<()>>,
}

impl Console {
    /// Starts copying between the terminal and containerd's ends.
    ///
    /// # Errors
    /// A fifo or file that cannot be opened, a logger that does not start.
    pub async fn new(master: OwnedFd, container_id: &str, namespace: &str, stdio: &Stdio) -> Result<Console> {
        let master = copy::stream(master, Interest::READABLE | Interest::WRITABLE)
            .context(|| "watch the terminal".into())?;
        let mut console = Console {
            master: Some(master.clone()),
            logger: None,
            hold: None,
            input: None,
            output: None,
        };
        if !stdio.stdin.is_empty() {
            let (fifo, hold) = open_input(&stdio.stdin)?;
            console.hold = Some(hold);
            let sink = Sink::Stream(master.clone());
            console.input = Some(tokio::spawn(async move {
                if let Err(error) = copy::copy(&fifo, &sink).await {
                    tracing::debug!(%error, "copy a terminal's input");
                }
            }));
        }
        let (write, keep) = match Target::parse(&stdio.stdout)? {
            Target::Binary { program, args } => {
                let (logger, out, err) =
                    target::start_logger(&program, &args, container_id, namespace).await?;
                console.logger = Some(logger);
                // A terminal has one output; the logger sees the other end at once.
                drop(err);
                (out, None)
            }
            Target::File(path) => (target::open_file(&path)?, None),
            Target::Fifo(path) if path.as_os_str().is_empty() => return Ok(console),
            Target::Fifo(path) => target::open_output(&path)?,
        };
        let sink = Sink::new(write).context(|| "write a terminal's output".into())?;
        console.output = Some(tokio::spawn(async move {
            if let Err(error) = copy::copy(&master, &sink).await {
                tracing::warn!(%error, "copy a terminal's output");
            }
            drop(keep);
        }));
        Ok(console)
    }

    /// Sets the terminal's size in characters.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn resize(&self, width: u16, height: u16) -> Result<()> {
        match &self.master {
            Some(master) => sys::set_window_size(master.get_ref().as_fd(), width, height)
                .context(|| format!("set the terminal's size to {width}x{height}")),
            None => Ok(()),
        }
    }

    /// Stops reading once the client, too, has closed its input. A terminal has no end of its own to send.
    pub fn close_stdin(&mut self) {
        self.hold = None;
    }

    /// Resolves when all output has been copied.
    pub async fn wait_copied(&mut self) {
        if let Some(output) = &mut self.output {
            let _ = output.await;
            self.output = None;
        }
    }

    /// Ends everything and closes the terminal.
    pub async fn close(&mut self) {
        self.hold = None;
        for task in [self.input.take(), self.output.take()].into_iter().flatten() {
            task.abort();
        }
        self.master = None;
        if let Some(logger) = self.logger.take() {
            logger.end(LOGGER_END_LIMIT).await;
        }
    }
}
