//! One private Docker (`hack/dev-docker`), stopped and removed with everything it started.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result};

use crate::{
    daemon::{Ran, exports, processes, repository, run, skipped},
    wait::until,
};

/// A running Docker.
pub struct Docker {
    /// Where it keeps images and roots: `overlay2` or `containerd`.
    pub store: String,
    name: &'static str,
    more: &'static [&'static str],
    env: HashMap<String, String>,
}

fn hack(what: &str, store: &str, name: &str) -> Command {
    let mut command = Command::new(repository().join("hack/dev-docker"));
    command.args([what, "--store", store, "--name", name]);
    command
}

impl Docker {
    /// Starts one. An inner error is the reason why this machine cannot have it.
    ///
    /// # Errors
    /// When it should work and does not.
    pub fn up(store: &str) -> Result<Result<Docker, String>> {
        Self::another(store, "e2e", &[])
    }

    /// Starts one of a name of its own, with more arguments for `hack/dev-docker up`. An inner error is the reason why
    /// this machine cannot have it.
    ///
    /// # Errors
    /// When it should work and does not.
    pub fn another(
        store: &str,
        name: &'static str,
        more: &'static [&'static str],
    ) -> Result<Result<Docker, String>> {
        if !nix::unistd::geteuid().is_root() {
            return Ok(Err("needs root (mounts, namespaces, cgroups)".into()));
        }
        let up = run(hack("up", store, name).args(more))?;
        if let Some(reason) = skipped(&up) {
            return Ok(Err(reason));
        }
        up.ok().context("hack/dev-docker up")?;
        Ok(Ok(Docker {
            store: store.into(),
            name,
            more,
            env: exports(&mut hack("env", store, name))?,
        }))
    }

    /// Starts it again after [`Docker::kill`].
    ///
    /// # Errors
    /// When it does not come up.
    pub fn restart(&self) -> Result<()> {
        run(hack("up", &self.store, self.name).args(self.more))?
            .ok()
            .map(drop)
    }

    /// Kills the daemon alone: not its containerd, not its containers.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill(&self) -> Result<()> {
        let text = fs::read_to_string(self.folder().join("dockerd.pid"))?;
        let pid = text.trim().parse()?;
        crate::daemon::kill(pid)?;
        let gone = || !processes().any(|(p, line)| p == pid && line.iter().any(|arg| arg == "--exec-root"));
        until("dockerd's end", Duration::from_secs(10), gone)
    }

    /// Its folder.
    #[must_use]
    pub fn folder(&self) -> PathBuf {
        let config = self.config();
        config.parent().map(Path::to_owned).unwrap_or_default()
    }

    /// The configuration that the shim reads.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.env
            .get("DIFFKEEPER_CONFIG")
            .map(PathBuf::from)
            .unwrap_or_default()
    }

    /// The directory of a state.
    #[must_use]
    pub fn state(&self, name: &str) -> PathBuf {
        self.folder().join("diffkeeper/live/docker").join(name)
    }

    fn tool(&self, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new("timeout");
        command
            .args(["-k", "5", "60", program])
            .args(args)
            .envs(&self.env);
        command
    }

    /// A command that talks to it, ended after a minute.
    #[must_use]
    pub fn command(&self, args: &[&str]) -> Command {
        self.tool("docker", args)
    }

    /// Runs `diffkeeper`.
    ///
    /// # Errors
    /// When it cannot be run at all.
    pub fn diffkeeper(&self, args: &[&str]) -> Result<Ran> {
        run(&mut self.tool("diffkeeper", args))
    }

    /// Why the command line lacks this plugin; nothing where it has it.
    ///
    /// # Errors
    /// When `docker` cannot be run at all.
    pub fn lacks(&self, plugin: &str) -> Result<Option<String>> {
        let found = self.docker(&[plugin, "version"])?.status == 0;
        Ok((!found).then(|| format!("Docker's {plugin} cannot be fetched here (sid's docker-{plugin})")))
    }

    /// Runs `docker`.
    ///
    /// # Errors
    /// When it cannot be run at all.
    pub fn docker(&self, args: &[&str]) -> Result<Ran> {
        run(&mut self.command(args))
    }

    /// Makes an image of `hack/images` available, and answers with its reference.
    ///
    /// # Errors
    /// When it cannot be built or loaded.
    pub fn load(&self, name: &str) -> Result<String> {
        let reference = format!("diffkeeper/{name}:dev");
        if self.docker(&["image", "inspect", &reference])?.status != 0 {
            run(Command::new(repository().join("hack/images/build")).arg(name))?
                .ok()
                .context("hack/images/build")?;
            let archive = repository().join("target/images").join(format!("{name}.tar"));
            self.docker(&["load", "-q", "-i", &archive.to_string_lossy()])?
                .ok()?;
        }
        Ok(reference)
    }

    /// The pids of the shims that serve.
    #[must_use]
    pub fn shims(&self) -> Vec<i32> {
        let folder = self.folder().to_string_lossy().into_owned();
        processes()
            .filter(|(_, line)| {
                line.first()
                    .is_some_and(|p| p.contains("containerd-shim-diffkeeper"))
                    && line.iter().any(|arg| arg.starts_with(&folder))
                    && !line.iter().any(|arg| arg == "delete")
            })
            .map(|(pid, _)| pid)
            .collect()
    }

    /// Overlays of live trees that are mounted.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub fn live_mounts(&self) -> Result<Vec<String>> {
        let live = self
            .folder()
            .join("diffkeeper/live")
            .to_string_lossy()
            .into_owned();
        // A daemon may have mounts of its own; one that was killed has left them to its containerd.
        let pid = fs::read_to_string(self.folder().join("exec/containerd/containerd.pid"))?;
        let table = fs::read_to_string(format!("/proc/{}/mountinfo", pid.trim()))?;
        let ours = table.lines().filter(|line| line.contains(&live));
        Ok(ours.map(str::to_owned).collect())
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        let down = run(&mut hack("down", &self.store, self.name));
        if let Err(error) = down.and_then(Ran::ok) {
            eprintln!("hack/dev-docker down: {error:#}");
        }
    }
}
