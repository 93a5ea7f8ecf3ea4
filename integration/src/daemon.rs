//! One private containerd (`hack/dev-containerd`), stopped and removed with everything it started.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};

use crate::wait::until;

/// The status with which `hack/` says that something cannot be had on this machine.
const SKIP: i32 = 75;

/// What a command printed, and how it ended.
#[derive(Debug)]
pub struct Ran {
    /// The exit status.
    pub status: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Ran {
    /// Demands success.
    ///
    /// # Errors
    /// Any other status, with what was printed.
    pub fn ok(self) -> Result<String> {
        ensure!(
            self.status == 0,
            "status {}: {}{}",
            self.status,
            self.out,
            self.err
        );
        Ok(self.out)
    }

    /// Demands failure with this in the message.
    ///
    /// # Errors
    /// Success, or another message.
    pub fn fails_with(self, words: &[&str]) -> Result<()> {
        ensure!(self.status != 0, "it succeeded: {}", self.out);
        for word in words {
            ensure!(self.err.contains(word), "no {word:?} in: {}", self.err);
        }
        Ok(())
    }
}

/// A running containerd.
pub struct Daemon {
    /// Which one, as `hack/dev-containerd` names it.
    pub version: String,
    name: String,
    more: Vec<String>,
    env: HashMap<String, String>,
}

pub(crate) fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .map(Path::to_owned)
        .unwrap_or_default()
}

/// Runs a command to its end.
///
/// # Errors
/// When it cannot be run at all.
pub fn run(command: &mut Command) -> Result<Ran> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("run {command:?}"))?;
    Ok(Ran {
        status: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// The reason why a script of `hack/` says that something cannot be had here.
pub(crate) fn skipped(ran: &Ran) -> Option<String> {
    let last = ran.err.lines().last().unwrap_or("cannot be had here");
    (ran.status == SKIP).then(|| last.trim_start_matches("skip: ").to_owned())
}

/// The environment that `env` of a script of `hack/` prints.
pub(crate) fn exports(env: &mut Command) -> Result<HashMap<String, String>> {
    let path = std::env::var("PATH").unwrap_or_default();
    let text = run(env)?.ok()?;
    let pairs = text
        .lines()
        .filter_map(|line| line.strip_prefix("export ")?.split_once('='));
    Ok(pairs
        .map(|(key, value)| (key.to_owned(), value.replace("$PATH", &path)))
        .collect())
}

impl Daemon {
    /// Starts one. An inner error is the reason why this machine cannot have it.
    ///
    /// # Errors
    /// When it should work and does not.
    pub fn up(version: &str, name: &str, more: &[&str]) -> Result<Result<Daemon, String>> {
        if !nix::unistd::geteuid().is_root() {
            return Ok(Err("needs root (mounts, namespaces, cgroups)".into()));
        }
        let hack = |what: &str| {
            let mut command = Command::new(repository().join("hack/dev-containerd"));
            command.args([what, "--containerd", version, "--name", name]);
            command
        };
        let up = run(hack("up").args(more))?;
        if let Some(reason) = skipped(&up) {
            return Ok(Err(reason));
        }
        up.ok().context("hack/dev-containerd up")?;
        let env = exports(&mut hack("env"))?;
        Ok(Ok(Daemon {
            version: version.into(),
            name: name.into(),
            more: more.iter().map(ToString::to_string).collect(),
            env,
        }))
    }

    /// Its folder.
    #[must_use]
    pub fn folder(&self) -> PathBuf {
        let config = self
            .env
            .get("DIFFKEEPER_CONFIG")
            .map(PathBuf::from)
            .unwrap_or_default();
        config.parent().map(Path::to_owned).unwrap_or_default()
    }

    /// The directory of its live trees.
    #[must_use]
    pub fn live(&self) -> PathBuf {
        self.folder().join("diffkeeper/live")
    }

    /// containerd's namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        self.env
            .get("CONTAINERD_NAMESPACE")
            .map_or("default", String::as_str)
    }

    /// Its socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.env
            .get("CONTAINERD_ADDRESS")
            .map(PathBuf::from)
            .unwrap_or_default()
    }

    /// The live tree of a container of this daemon.
    #[must_use]
    pub fn upper(&self, state: &str) -> PathBuf {
        self.live()
            .join("ctr")
            .join(self.namespace())
            .join(state)
            .join("roots/rootfs/upper")
    }

    /// The configuration that the shim reads.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.folder().join("diffkeeper.toml")
    }

    /// A command that talks to it, ended after five minutes: all tests share a store, which takes more than one to recompact.
    #[must_use]
    pub fn command(&self, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new("timeout");
        command
            .args(["-k", "5", "300", program])
            .args(args)
            .envs(&self.env);
        command
    }

    /// A command that talks to it and that its caller ends, by its process group: the program may be a wrapper.
    #[must_use]
    pub fn direct(&self, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new(program);
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        command.args(args).envs(&self.env);
        command
    }

    /// Runs `ctr`.
    ///
    /// # Errors
    /// When it cannot be run at all.
    pub fn ctr(&self, args: &[&str]) -> Result<Ran> {
        run(&mut self.command("ctr", args))
    }

    /// Runs `ctr` with this on standard input.
    ///
    /// # Errors
    /// When it cannot be run at all.
    pub fn ctr_with_input(&self, args: &[&str], input: &str) -> Result<Ran> {
        let mut file = tempfile::tempfile()?;
        std::io::Write::write_all(&mut file, input.as_bytes())?;
        std::io::Seek::rewind(&mut file)?;
        let output = self.command("ctr", args).stdin(file).output()?;
        Ok(Ran {
            status: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// `diffkeeper`, with this daemon's configuration.
    ///
    /// # Errors
    /// When it cannot be run at all.
    pub fn diffkeeper(&self, args: &[&str]) -> Result<Ran> {
        // Beside the shim that containerd runs.
        let shim = fs::canonicalize(self.folder().join("bin/containerd-shim-diffkeeper-v1"))
            .context("find the shim")?;
        let program = shim.with_file_name("diffkeeper");
        run(&mut self.command(&program.to_string_lossy(), args))
    }

    /// Makes an image of `hack/images` available, and answers with its reference.
    ///
    /// # Errors
    /// When it cannot be built or imported.
    pub fn import(&self, name: &str) -> Result<String> {
        self.import_into(self.namespace(), name)
    }

    /// The same in another of containerd's namespaces.
    ///
    /// # Errors
    /// When it cannot be built or imported.
    pub fn import_into(&self, namespace: &str, name: &str) -> Result<String> {
        let reference = crate::image(name);
        let images = self.ctr(&["-n", namespace, "images", "ls", "-q"])?.ok()?;
        if images.lines().any(|line| line == reference) {
            return Ok(reference);
        }
        run(Command::new(repository().join("hack/images/build")).arg(name))?
            .ok()
            .context("hack/images/build")?;
        let archive = repository().join("target/images").join(format!("{name}.tar"));
        self.ctr(&["-n", namespace, "images", "import", &archive.to_string_lossy()])?
            .ok()?;
        Ok(reference)
    }

    /// Removes a container with its task and its snapshot, whatever of them there is.
    ///
    /// # Errors
    /// When a task does not go.
    pub fn forget(&self, name: &str) -> Result<()> {
        // A shim that was killed is cleaned up by containerd in its own time.
        until("the task's end", Duration::from_secs(15), || {
            let _ = self.ctr(&["task", "rm", "-f", name]);
            self.status(name).is_ok_and(|s| s.is_empty())
        })?;
        self.ctr(&["container", "rm", name])?;
        self.ctr(&["snapshots", "rm", name])?;
        Ok(())
    }

    /// The pid of a container's init, by `ctr task ls`.
    ///
    /// # Errors
    /// When there is no such task.
    pub fn init_pid(&self, name: &str) -> Result<i32> {
        let list = self.ctr(&["task", "ls"])?.ok()?;
        let line = list.lines().find(|l| l.split_whitespace().next() == Some(name));
        let pid = line
            .and_then(|l| l.split_whitespace().nth(1))
            .with_context(|| format!("no task {name} in {list}"))?;
        Ok(pid.parse()?)
    }

    /// The status of a task, as `ctr task ls` shows it; empty when there is none.
    ///
    /// # Errors
    /// When `ctr` fails.
    pub fn status(&self, name: &str) -> Result<String> {
        let list = self.ctr(&["task", "ls"])?.ok()?;
        let line = list
            .lines()
            .find(|l| l.split_whitespace().next() == Some(name))
            .unwrap_or_default();
        Ok(line.split_whitespace().nth(2).unwrap_or_default().to_owned())
    }

    /// The pids of this daemon's shims for a container, or of all. A call that cleans up after a dead one is none.
    #[must_use]
    pub fn shims(&self, name: Option<&str>) -> Vec<i32> {
        let address = self.env.get("CONTAINERD_ADDRESS").cloned().unwrap_or_default();
        processes()
            .filter(|(_, line)| {
                line.first().is_some_and(|p| p.contains("containerd-shim-"))
                    && line.contains(&address)
                    && !line.iter().any(|arg| arg == "delete")
                    && name.is_none_or(|name| line.iter().any(|arg| arg == name))
            })
            .map(|(pid, _)| pid)
            .collect()
    }

    /// The daemon's own pid.
    ///
    /// # Errors
    /// When it does not run.
    pub fn pid(&self) -> Result<i32> {
        let config = self.folder().join("config.toml").to_string_lossy().into_owned();
        let found = processes().find(|(_, line)| {
            line.first().is_some_and(|p| p.ends_with("/containerd")) && line.contains(&config)
        });
        found.map(|(pid, _)| pid).context("containerd does not run")
    }

    /// Kills the daemon alone.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill(&self) -> Result<()> {
        let pid = self.pid()?;
        kill(pid)?;
        until("containerd's end", Duration::from_secs(10), || {
            self.pid().is_err()
        })
    }

    /// Starts it again after [`Daemon::kill`].
    ///
    /// # Errors
    /// When it does not come up.
    pub fn restart(&self) -> Result<()> {
        let mut up = Command::new(repository().join("hack/dev-containerd"));
        up.args(["up", "--containerd", &self.version, "--name", &self.name]);
        run(up.args(&self.more))?.ok().map(drop)
    }

    /// The mounts below its folder.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub fn mounts(&self) -> Result<Vec<String>> {
        let folder = self.folder().to_string_lossy().into_owned();
        let table = fs::read_to_string("/proc/self/mountinfo")?;
        let targets = table.lines().filter_map(|line| line.split(' ').nth(4));
        Ok(targets
            .filter(|t| t.starts_with(&folder))
            .map(str::to_owned)
            .collect())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let down = run(Command::new(repository().join("hack/dev-containerd")).args([
            "down",
            "--containerd",
            &self.version,
            "--name",
            &self.name,
        ]));
        if let Err(error) = down.and_then(Ran::ok) {
            eprintln!("hack/dev-containerd down: {error:#}");
        }
    }
}

/// SIGKILL.
///
/// # Errors
/// When there is no such process.
pub fn kill(pid: i32) -> Result<()> {
    if pid <= 1 {
        bail!("pid {pid} is not to be killed");
    }
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL)
        .with_context(|| format!("kill {pid}"))
}

/// SIGKILL to a process group.
///
/// # Errors
/// When there is none.
pub fn kill_group(leader: u32) -> Result<()> {
    let group = nix::unistd::Pid::from_raw(i32::try_from(leader)?);
    nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL)
        .with_context(|| format!("kill group {leader}"))
}

pub(crate) fn processes() -> impl Iterator<Item = (i32, Vec<String>)> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let line = fs::read(entry.path().join("cmdline")).ok()?;
        let args = line
            .split(|b| *b == 0)
            .map(|a| String::from_utf8_lossy(a).into_owned())
            .collect();
        Some((pid, args))
    })
}
