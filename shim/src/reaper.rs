//! One place that waits for children: runc's own processes, and the container processes that fall to us as
//! their subreaper.
//!
//! The shim's runtime has one thread, and all methods here run on it without awaiting, so no exit can slip
//! between a spawn and its [`Reaper::claim`]. A container's process is different: it is somebody else's child
//! until runc exits, and may be dead by the time its pid is known. A [`Window`] is open while that is possible,
//! and exits that nobody claimed are kept as long as one is.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use nix::{
    sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid},
    unistd::Pid,
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::oneshot,
};

use crate::error::{Context, Result};

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// Its process id.
    pub pid: i32,
    /// The exit code, or 128 + the signal that killed it.
    pub status: u32,
    /// When it was reaped.
    pub at: SystemTime,
}

#[derive(Default)]
struct Table {
    claims: HashMap<i32, oneshot::Sender<Exit>>,
    unclaimed: HashMap<i32, Exit>,
    windows: usize,
}

/// Waits for every child of this process.
#[derive(Clone, Default)]
pub struct Reaper(Arc<Mutex<Table>>);

impl Reaper {
    /// Installs the SIGCHLD handler and reaps for ever.
    ///
    /// # Errors
    /// When the signal handler cannot be installed.
    pub fn start() -> Result<Reaper> {
        let reaper = Reaper::default();
        let mut children = signal(SignalKind::child()).context(|| "install the SIGCHLD handler".into())?;
        let it = reaper.clone();
        tokio::spawn(async move {
            while children.recv().await.is_some() {
                it.reap();
            }
        });
        Ok(reaper)
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reap(&self) {
        loop {
            let exit = match waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, code.cast_unsigned()),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, 128 + (signal as u32)),
                Ok(WaitStatus::StillAlive) | Err(nix::errno::Errno::ECHILD) => return,
                Ok(_) => continue,
                // A realtime signal: nix has no name for it, and has reaped the child all the same.
                Err(nix::errno::Errno::EINVAL) => continue,
                Err(error) => {
                    tracing::error!(%error, "wait for a child");
                    return;
                }
            };
            let exit = Exit {
                pid: exit.0.as_raw(),
                status: exit.1,
                at: SystemTime::now(),
            };
            let mut table = self.table();
            if let Some(claim) = table.claims.remove(&exit.pid) {
                // A receiver that is gone lost interest; there is nobody to tell.
                let _ = claim.send(exit);
            } else if table.windows > 0 {
                table.unclaimed.insert(exit.pid, exit);
            }
        }
    }

    /// From now until the window is dropped, exits of unknown processes are remembered.
    #[must_use]
    pub fn window(&self) -> Window {
        self.table().windows += 1;
        Window(self.clone())
    }

    /// Resolves when `pid` exits. To be called right after the spawn, or under a [`Window`] that was open
    /// before the process was made.
    #[must_use]
    pub fn claim(&self, pid: i32) -> oneshot::Receiver<Exit> {
        let (send, receive) = oneshot::channel();
        let mut table = self.table();
        match table.unclaimed.remove(&pid) {
            Some(exit) => drop(send.send(exit)),
            None => drop(table.claims.insert(pid, send)),
        }
        receive
    }

    /// Whether `pid` is a child of ours that has not exited: its number cannot be another process's until it has
    /// been reaped, which happens on this thread.
    #[must_use]
    pub fn is_running_child(pid: u32) -> bool {
        let state = waitid(
            Id::Pid(Pid::from_raw(pid.cast_signed())),
            WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT,
        );
        pid != 0 && state == Ok(WaitStatus::StillAlive)
    }
}

/// While it lives, exits that nobody has claimed yet are kept.
pub struct Window(Reaper);

impl Drop for Window {
    fn drop(&mut self) {
        let mut table = self.0.table();
        table.windows -= 1;
        if table.windows == 0 {
            table.unclaimed.clear();
        }
    }
}
