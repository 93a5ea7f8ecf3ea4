//! The OCI runtime's command line: runc, or whatever speaks like it (`BinaryName`).
//!
//! The `runc` crate is not used: it has no checkpoint, restore or events, and its children would be waited for
//! by two parties (see [`crate::reaper`]).

use std::{
    ffi::{OsStr, OsString},
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde::Deserialize;
use tokio::io::AsyncReadExt;

use crate::{
    error::{Context, Error, Result},
    io::ChildFds,
    options::Options,
    reaper::{Exit, Reaper},
    sys,
};

/// How to call the runtime for one container.
#[derive(Clone)]
pub struct Runc {
    binary: PathBuf,
    root: PathBuf,
    bundle: PathBuf,
    log: PathBuf,
    systemd_cgroup: bool,
    reaper: Reaper,
}

/// What distinguishes a checkpoint or restore call.
#[derive(Debug, Clone, Default)]
pub struct CriuOptions {
    /// Where the image is.
    pub image_path: PathBuf,
    /// CRIU's scratch directory.
    pub work_path: PathBuf,
    /// The previous image of an incremental checkpoint.
    pub parent_path: Option<PathBuf>,
    /// Connected TCP sockets are part of the image.
    pub tcp: bool,
    /// Unix sockets to outside are part of the image.
    pub ext_unix_sk: bool,
    /// Terminals are part of the image.
    pub shell_job: bool,
    /// File locks are part of the image.
    pub file_locks: bool,
    /// Namespaces to be restored empty.
    pub empty_namespaces: Vec<String>,
    /// The container goes on running.
    pub leave_running: bool,
}

/// How a container or process is created.
#[derive(Debug, Clone, Default)]
pub struct CreateOptions {
    /// Where the runtime writes the process id.
    pub pid_file: PathBuf,
    /// Where the runtime sends the terminal.
    pub console_socket: Option<PathBuf>,
    /// Do not use pivot_root.
    pub no_pivot: bool,
    /// Keep the session keyring.
    pub no_new_keyring: bool,
}

impl Runc {
    /// For the container whose bundle is `bundle`.
    #[must_use]
    pub fn new(options: &Options, namespace: &str, bundle: &Path, reaper: &Reaper) -> Runc {
        Runc {
            binary: options.binary().into(),
            root: options.runtime_root(namespace),
            bundle: bundle.to_owned(),
            log: bundle.join("log.json"),
            systemd_cgroup: options.systemd_cgroup,
            reaper: reaper.clone(),
        }
    }

    fn command(&self, call: &str) -> Command {
        let mut command = Command::new(&self.binary);
        // A pod's server stands in its first bundle; a runtime, and what wraps one, expects its own.
        if self.bundle.is_dir() {
            command.current_dir(&self.bundle);
        }
        command
            .arg("--root")
            .arg(&self.root)
            .arg("--log")
            .arg(&self.log)
            .args(["--log-format", "json"]);
        if self.systemd_cgroup {
            command.arg("--systemd-cgroup");
        }
        command.arg(call);
        command
    }

    /// `create`: on return the container's init waits for [`Runc::start`].
    ///
    /// # Errors
    /// The runtime's own message.
    pub async fn create(
        &self,
        id: &str,
        bundle: &Path,
        options: &CreateOptions,
        fds: Option<ChildFds>,
    ) -> Result<()> {
        let mut command = self.command("create");
        command.arg("--bundle").arg(bundle);
        common(&mut command, options);
        command.arg(id);
        self.run_with(command, "create", fds).await
    }

    /// `restore`: like create and start in one, from a checkpoint.
    ///
    /// # Errors
    /// The runtime's own message.
    pub async fn restore(
        &self,
        id: &str,
        bundle: &Path,
        options: &CreateOptions,
        criu: &CriuOptions,
        fds: Option<ChildFds>,
    ) -> Result<()> {
        let mut command = self.command("restore");
        criu_args(&mut command, criu);
        command
            .args(["--detach", "--no-subreaper", "--bundle"])
            .arg(bundle);
        common(&mut command, options);
        command.arg(id);
        self.run_with(command, "restore", fds).await
    }

    /// `exec`: on return the process runs, and its pid is in the pid file.
    ///
    /// # Errors
    /// The runtime's own message.
    pub async fn exec(
        &self,
        id: &str,
        process: &Path,
        options: &CreateOptions,
        fds: Option<ChildFds>,
    ) -> Result<()> {
        let mut command = self.command("exec");
        command.arg("--process").arg(process).arg("--detach");
        common(&mut command, options);
        command.arg(id);
        self.run_with(command, "exec", fds).await
    }

    /// `start`.
    ///
    /// # Errors
    /// The runtime's own message.
    pub async fn start(&self, id: &str) -> Result<()> {
        self.simple("start", [id]).await
    }

    /// Whether this is runc itself: of it we know that a container's init is a process of this machine, signalled
    /// as such.
    #[must_use]
    pub fn is_runc(&self) -> bool {
        self.binary.file_name() == Some(OsStr::new("runc"))
    }

    /// `kill`, of init or of everything in the cgroup.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is nothing to kill, in the stock shim's words.
    pub async fn kill(&self, id: &str, signal: u32, all: bool) -> Result<()> {
        let signal = signal.to_string();
        let mut args = vec![];
        if all {
            args.push("--all");
        }
        args.extend([id, signal.as_str()]);
        self.simple("kill", args)
            .await
            .map_err(|error| kill_error(&error.to_string()))
    }

    /// `delete`; with `force` also of a running one.
    ///
    /// # Errors
    /// The runtime's own message.
    pub async fn delete(&self, id: &str, force: bool) -> Result<()> {
        if force {
            self.simple("delete", ["--force", id]).await
        } else {
            self.simple("delete", [id]).await
        }
    }

    /// `pause`.
    ///
    /// # Errors
    /// The runtime's own message.
    pub async fn pause(&self, id: &str) -> Result<()> {
        self.simple("pause", [id]).await
    }

    /// `resume`.
    ///
    /// # Errors
    /// The runtime's own message.
    pub async fn resume(&self, id: &str) -> Result<()> {
        self.simple("resume", [id]).await
    }

    /// `update`, with the OCI resources as JSON.
    ///
    /// # Errors
    /// The runtime's own message.
    pub async fn update(&self, id: &str, resources: &[u8]) -> Result<()> {
        let file =
            sys::memory_file(c"resources", resources).context(|| "make the file of new resources".into())?;
        let mut command = self.command("update");
        command.args(["--resources", "-", id]);
        let fds = ChildFds {
            stdin: Some(file),
            stdout: None,
            stderr: None,
        };
        let (exit, output) = self.capture(command, Some(fds.stdin)).await?;
        self.check("update", exit, &output)
    }

    /// `ps`: the process ids in the container's cgroup.
    ///
    /// # Errors
    /// The runtime's own message, or output that is not a list of pids.
    pub async fn ps(&self, id: &str) -> Result<Vec<u32>> {
        let mut command = self.command("ps");
        command.args(["--format", "json", id]);
        let (exit, output) = self.capture(command, None).await?;
        self.check("ps", exit, &output)?;
        let pids: Option<Vec<u32>> = serde_json::from_slice(&output).map_err(|e| Error::Runtime {
            call: "ps",
            message: format!("unreadable list of pids: {e}"),
        })?;
        Ok(pids.unwrap_or_default())
    }

    /// `checkpoint`.
    ///
    /// # Errors
    /// The first line of CRIU's message.
    pub async fn checkpoint(&self, id: &str, options: &CriuOptions) -> Result<()> {
        let mut command = self.command("checkpoint");
        criu_args(&mut command, options);
        if options.leave_running {
            command.arg("--leave-running");
        }
        command.arg(id);
        let (exit, output) = self.capture(command, None).await?;
        if exit.status == 0 {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&output);
        Err(Error::Other(format!(
            "exit status {}: {}",
            exit.status,
            text.lines().next().unwrap_or_default()
        )))
    }

    /// Sends a signal to everything in the container's cgroup, whatever is left of it.
    ///
    /// # Errors
    /// The runtime's own message.
    pub async fn kill_all(&self, id: &str) -> Result<()> {
        match self.kill(id, 9, true).await {
            Err(Error::NotFound(_)) => Ok(()),
            other => other,
        }
    }

    async fn simple<'a>(&self, call: &'static str, args: impl IntoIterator<Item = &'a str>) -> Result<()> {
        let mut command = self.command(call);
        command.args(args.into_iter().map(OsStr::new));
        let (exit, output) = self.capture(command, None).await?;
        self.check(call, exit, &output)
    }

    /// Runs a call whose standard streams the container's process inherits.
    async fn run_with(&self, mut command: Command, call: &'static str, fds: Option<ChildFds>) -> Result<()> {
        let Some(fds) = fds else {
            let (exit, output) = self.capture(command, None).await?;
            return self.check(call, exit, &output);
        };
        command
            .stdin(stream(fds.stdin))
            .stdout(stream(fds.stdout))
            .stderr(stream(fds.stderr));
        let exit = self.wait(command).await?;
        self.check(call, exit, b"")
    }

    /// Runs a call and collects what it prints.
    async fn capture(&self, mut command: Command, stdin: Option<Option<OwnedFd>>) -> Result<(Exit, Vec<u8>)> {
        command.stdin(stream(stdin.flatten()));
        capture(&self.reaper, command)
            .await
            .map_err(|source| self.not_run(source))
    }

    async fn wait(&self, mut command: Command) -> Result<Exit> {
        let receiver = self.spawn(&mut command)?;
        // The parent's copies of the container's streams must go, or their readers never see the end.
        drop(command);
        receiver
            .await
            .map_err(|_| Error::Other("the OCI runtime's exit was lost".into()))
    }

    fn spawn(&self, command: &mut Command) -> Result<tokio::sync::oneshot::Receiver<Exit>> {
        spawn(&self.reaper, command).map_err(|source| self.not_run(source))
    }

    fn not_run(&self, source: io::Error) -> Error {
        match source.kind() {
            io::ErrorKind::NotFound => Error::Other(format!(
                "the OCI runtime {:?} was not found on PATH: install it (Debian: apt-get install runc) or set BinaryName",
                self.binary
            )),
            _ => Error::Io {
                context: format!("run the OCI runtime {:?}", self.binary),
                source,
            },
        }
    }

    fn check(&self, call: &'static str, exit: Exit, output: &[u8]) -> Result<()> {
        if exit.status == 0 {
            return Ok(());
        }
        let message = self.last_error().unwrap_or_else(|| {
            let text = String::from_utf8_lossy(output);
            let text = text.trim();
            if text.is_empty() {
                format!(
                    "{:?} ended with status {} and left no message",
                    self.binary, exit.status
                )
            } else {
                text.to_owned()
            }
        });
        Err(Error::Runtime { call, message })
    }

    /// The last error in the runtime's log.
    fn last_error(&self) -> Option<String> {
        #[derive(Deserialize)]
        struct Line {
            #[serde(default)]
            level: String,
            #[serde(default)]
            msg: String,
        }
        let text = std::fs::read(&self.log).ok()?;
        let lines = serde_json::Deserializer::from_slice(&text).into_iter::<Line>();
        lines
            .map_while(std::result::Result::ok)
            .filter(|line| line.level == "error")
            .last()
            .map(|line| line.msg.trim().to_owned())
    }
}

fn spawn(reaper: &Reaper, command: &mut Command) -> io::Result<tokio::sync::oneshot::Receiver<Exit>> {
    sys::die_with_parent(command);
    let child = command.spawn()?;
    Ok(reaper.claim(child.id().cast_signed()))
}

/// Runs a command and collects what it prints on either stream. Only the reaper waits for children here: the standard
/// library's own way would race with it.
///
/// # Errors
/// When it cannot be run.
pub async fn capture(reaper: &Reaper, mut command: Command) -> io::Result<(Exit, Vec<u8>)> {
    let (read, write) = sys::pipe()?;
    let stderr = write.try_clone()?;
    command.stdout(write).stderr(stderr);
    let mut receiver = spawn(reaper, &mut command)?;
    drop(command);
    let mut output = Vec::new();
    let mut pipe = tokio::net::unix::pipe::Receiver::from_owned_fd(read)?;
    // A child of the command may hold the pipe after the command itself is gone: the exit decides.
    let mut buffer = [0u8; 4096];
    let exit = loop {
        tokio::select! {
            exit = &mut receiver => break exit,
            read = pipe.read(&mut buffer) => match read {
                Ok(0) | Err(_) => break receiver.await,
                Ok(n) => output.extend_from_slice(buffer.get(..n).unwrap_or_default()),
            },
        }
    };
    while let Ok(n) = pipe.try_read(&mut buffer) {
        if n == 0 {
            break;
        }
        output.extend_from_slice(buffer.get(..n).unwrap_or_default());
    }
    let exit = exit.map_err(|_| io::Error::other("its exit was lost"))?;
    Ok((exit, output))
}

fn common(command: &mut Command, options: &CreateOptions) {
    command.arg("--pid-file").arg(&options.pid_file);
    if let Some(socket) = &options.console_socket {
        command.arg("--console-socket").arg(socket);
    }
    if options.no_pivot {
        command.arg("--no-pivot");
    }
    if options.no_new_keyring {
        command.arg("--no-new-keyring");
    }
}

fn criu_args(command: &mut Command, options: &CriuOptions) {
    let mut path = |flag: &str, path: &Path| {
        if !path.as_os_str().is_empty() {
            let mut arg = OsString::from(flag);
            arg.push("=");
            arg.push(path);
            command.arg(arg);
        }
    };
    path("--image-path", &options.image_path);
    path("--work-path", &options.work_path);
    if let Some(parent) = &options.parent_path {
        path("--parent-path", parent);
    }
    for (set, flag) in [
        (options.tcp, "--tcp-established"),
        (options.ext_unix_sk, "--ext-unix-sk"),
        (options.shell_job, "--shell-job"),
        (options.file_locks, "--file-locks"),
    ] {
        if set {
            command.arg(flag);
        }
    }
    for namespace in &options.empty_namespaces {
        command.arg("--empty-ns").arg(namespace);
    }
}

fn stream(fd: Option<OwnedFd>) -> Stdio {
    fd.map_or_else(Stdio::null, Stdio::from)
}

/// Translates the runtime's words for "nothing to kill", as the stock shim does.
fn kill_error(message: &str) -> Error {
    let lower = message.to_ascii_lowercase();
    if lower.contains("process already finished")
        || lower.contains("container not running")
        || lower.contains("no such process")
    {
        Error::NotFound("process already finished: not found".into())
    } else if lower.contains("does not exist") {
        Error::NotFound("no such container: not found".into())
    } else {
        Error::Other(format!("unknown error after kill: {message}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kill_errors_become_not_found() {
        for text in [
            "os: process already finished",
            "container not running",
            "No such process",
            "container x does not exist",
        ] {
            assert!(matches!(kill_error(text), Error::NotFound(_)), "{text}");
        }
        assert!(matches!(kill_error("permission denied"), Error::Other(_)));
    }
}
