//! A keeper of a test's own.

use std::{
    fs,
    marker::PhantomData,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use crate::{Daemon, Docker, wait::until};

/// A keeper that runs beside a daemon; it ends with this.
pub struct Keeper<'d> {
    folder: PathBuf,
    engine: PhantomData<&'d ()>,
    child: Child,
}

impl<'d> Keeper<'d> {
    /// Starts one, with the daemon's configuration and `settings` under `[history]`.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start(daemon: &'d Daemon, settings: &str) -> Result<Keeper<'d>> {
        Self::configure(&daemon.folder(), settings)?;
        Self::again(daemon)
    }

    /// Starts one beside a Docker, with `settings` under `[history]`.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn beside(docker: &'d Docker, settings: &str) -> Result<Keeper<'d>> {
        Self::configure(&docker.folder(), settings)?;
        Self::run(docker.folder())
    }

    /// Puts `settings` under `[history]` into the configuration of the daemon in `folder`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn configure(folder: &Path, settings: &str) -> Result<()> {
        let config = folder.join("diffkeeper.toml");
        let text = fs::read_to_string(&config)?;
        let head = text.split("[history]").next().unwrap_or_default().trim_end();
        let head: String = head
            .lines()
            .filter(|line| !line.starts_with("history."))
            .map(|line| format!("{line}\n"))
            .collect();
        fs::write(
            &config,
            format!("{head}[history]\nmetrics = \"off\"\n{settings}\n"),
        )?;
        Ok(())
    }

    /// Starts one with what is configured.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn again(daemon: &'d Daemon) -> Result<Keeper<'d>> {
        Self::run(daemon.folder())
    }

    fn run(folder: PathBuf) -> Result<Keeper<'d>> {
        let shim = fs::canonicalize(folder.join("bin/containerd-shim-diffkeeper-v1"))?;
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(folder.join("keeper.log"))?;
        let child = Command::new(shim.with_file_name("diffkeeper"))
            .arg("keeper")
            .env("DIFFKEEPER_CONFIG", folder.join("diffkeeper.toml"))
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .context("start the keeper")?;
        let keeper = Keeper {
            folder,
            engine: PhantomData,
            child,
        };
        let socket = keeper.socket();
        until("the keeper's socket", Duration::from_secs(10), || {
            std::os::unix::net::UnixStream::connect(&socket).is_ok()
        })?;
        Ok(keeper)
    }

    /// Its socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.folder.join("keeper.sock")
    }

    /// Its pid.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL.
    ///
    /// # Errors
    /// When it has ended already.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// SIGTERM, which it must obey within five seconds.
    ///
    /// # Errors
    /// When it does not, or says that it failed.
    pub fn stop(mut self) -> Result<()> {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id())?);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM)?;
        until("the keeper's end", Duration::from_secs(6), || {
            matches!(self.child.try_wait(), Ok(Some(_)))
        })?;
        let status = self.child.wait()?;
        ensure!(status.success(), "the keeper ended with {status}");
        Ok(())
    }
}

impl Drop for Keeper<'_> {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
