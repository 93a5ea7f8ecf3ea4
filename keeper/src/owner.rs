//! Who starts a container again that ends, and ending it so that they do.
//!
//! The container's first process is ended, by nobody's order as far as its engine can see: an engine that is told to stop
//! a container does not start it again.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use live::Holder;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use runtime_spec::{
    docker,
    name::{Engine, StateName},
};
use rustix::process::{Signal, pidfd_send_signal};

use crate::{
    error::{Context, Error, Result},
    progress::Progress,
};

/// How often somebody who wants to stop is listened to.
const OFTEN: Duration = Duration::from_millis(50);

/// Makes sure that somebody starts the holder's container again when it ends.
///
/// # Errors
/// Nobody does, or nobody knows.
pub fn restarts(name: &StateName, holder: &Holder) -> Result<()> {
    let nobody = |why: String| {
        Error::Refused(format!(
            "{why}, so --now would only end {}: restore {name} without --now, and start the container again yourself",
            holder.container_id
        ))
    };
    match name.engine() {
        Engine::Kubernetes if is_kubelets(holder) => Ok(()),
        Engine::Kubernetes => Err(nobody(format!(
            "no kubelet looks after {name}: its processes are in none of a kubelet's cgroups"
        ))),
        Engine::Docker => {
            let record = above(&holder.root, &holder.container_id);
            let Some(record) = record else {
                return Err(nobody(format!(
                    "Docker's record of {} is not found",
                    holder.container_id
                )));
            };
            let text = std::fs::read(&record).on("read", &record)?;
            let policy = docker::restart_policy(&text).map_err(|e| Error::Refused(e.to_string()))?;
            match policy.as_str() {
                "always" | "unless-stopped" => Ok(()),
                "" | "no" => Err(nobody(format!("{name} has no restart policy"))),
                other => Err(nobody(format!(
                    "the restart policy {other} of {name} leaves a container alone that ends well"
                ))),
            }
        }
        Engine::Containerd => Err(nobody(format!(
            "whoever started {name} is a client of containerd, which starts nothing again"
        ))),
    }
}

/// Whether a container is in a cgroup of the kubelet's. What a pod's policy is, the node does not know; `Never` is for
/// jobs.
fn is_kubelets(holder: &Holder) -> bool {
    let pid = holder.init.map_or(0, |init| init.pid);
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    groups
        .lines()
        .filter_map(|line| line.rsplit(':').next())
        .any(|path| path.split('/').any(|part| part.starts_with("kubepods")))
}

/// Docker's record of how a container is run, beside its drivers' directories.
fn above(root: &Path, id: &str) -> Option<std::path::PathBuf> {
    Path::new(id).file_name().filter(|name| *name == id)?;
    root.ancestors()
        .skip(1)
        .map(|dir| dir.join("containers").join(id).join("hostconfig.json"))
        .find(|record| record.is_file())
}

/// Ends the holder's container: its first process is asked to, and killed after `grace`.
///
/// # Errors
/// A container that does not end, a stop before it was asked.
pub fn end(holder: &Holder, grace: Duration, progress: &Progress) -> Result<()> {
    let Some(init) = holder.first_process() else {
        // It has just ended by itself.
        return Ok(());
    };
    progress.begin("ending the container");
    progress.go_on()?;
    let send = |signal| pidfd_send_signal(&init, signal).on("end", Path::new(&holder.container_id));
    let gone = |limit: Duration| -> Result<bool> {
        let since = Instant::now();
        loop {
            let left = limit.saturating_sub(since.elapsed()).min(OFTEN);
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
            let mut handle = [PollFd::new(std::os::fd::AsFd::as_fd(&init), PollFlags::POLLIN)];
            match poll(&mut handle, timeout) {
                Ok(0) | Err(nix::errno::Errno::EINTR) if since.elapsed() < limit => {}
                Ok(n) => return Ok(n > 0),
                Err(error) => return Err(error).on("wait for", Path::new(&holder.container_id)),
            }
        }
    };
    send(Signal::TERM)?;
    if gone(grace)? {
        return Ok(());
    }
    send(Signal::KILL)?;
    if gone(Duration::from_secs(10))? {
        return Ok(());
    }
    Err(Error::Refused(format!(
        "{} does not end, not even by SIGKILL: the restore waits for its next start",
        holder.container_id
    )))
}
