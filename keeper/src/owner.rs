//! Who starts a container again that ends, and ending it so that they do.
//!
//! The container's first process is ended, by nobody's order as far as its engine can see: an engine that is told to stop
//! a container does not start it again.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use live::Holder;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use runtime_spec::{
    docker,
    name::{Engine, StateName},
};
use rustix::process::{Signal, pidfd_send_signal};
use serde::Deserialize;

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
            let record = above(&holder.root, &holder.container_id, "hostconfig.json");
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

/// Docker's record of a container, beside its drivers' directories.
fn above(root: &Path, id: &str, record: &str) -> Option<PathBuf> {
    Path::new(id).file_name().filter(|name| *name == id)?;
    root.ancestors()
        .skip(1)
        .map(|dir| dir.join("containers").join(id).join(record))
        .find(|record| record.is_file())
}

/// The signal that the image, or a person, wants the holder's container to be ended by.
fn stop_signal(name: &StateName, holder: &Holder) -> Signal {
    let wanted = match name.engine() {
        Engine::Docker => of_docker(holder),
        Engine::Kubernetes => of_cri(holder),
        Engine::Containerd => Ok(None),
    };
    let known = wanted.and_then(|wanted| {
        wanted.map_or(Ok(Signal::TERM), |word| {
            signal(&word).ok_or_else(|| Error::Refused(format!("there is no signal {word}")))
        })
    });
    known.unwrap_or_else(|error| {
        tracing::warn!(state = %name, %error, "the image's stop signal is not known: it is SIGTERM");
        Signal::TERM
    })
}

fn of_docker(holder: &Holder) -> Result<Option<String>> {
    let Some(record) = above(&holder.root, &holder.container_id, "config.v2.json") else {
        return Ok(None);
    };
    let text = std::fs::read(&record).on("read", &record)?;
    docker::stop_signal(&text).map_err(|e| Error::Refused(e.to_string()))
}

/// containerd is asked, by a process of its own: its client is large, and this is seldom wanted.
fn of_cri(holder: &Holder) -> Result<Option<String>> {
    #[derive(Deserialize)]
    struct Answer {
        stop_signal: Option<String>,
    }
    let id = Path::new(&holder.container_id);
    let Some(address) = address(holder) else {
        return Err(Error::Refused(
            "its shim does not say where containerd listens".into(),
        ));
    };
    let out = Command::new("/proc/self/exe")
        .args([
            "image-of",
            "--address",
            &address,
            "--namespace",
            &holder.namespace,
        ])
        .arg(&holder.container_id)
        .output()
        .on("ask containerd for the stop signal of", id)?;
    if !out.status.success() {
        return Err(Error::Refused(
            String::from_utf8_lossy(&out.stderr).trim().to_owned(),
        ));
    }
    let answer: Answer = serde_json::from_slice(&out.stdout)
        .map_err(std::io::Error::other)
        .on("read what containerd says of", id)?;
    Ok(answer.stop_signal)
}

/// containerd's socket, as the holder's shim was told.
fn address(holder: &Holder) -> Option<String> {
    let line = std::fs::read(format!("/proc/{}/cmdline", holder.shim_pid)).ok()?;
    let mut words = line.split(|b| *b == 0);
    words.find(|word| *word == b"-address")?;
    String::from_utf8(words.next()?.to_vec()).ok()
}

/// A signal as images name it: `SIGQUIT`, `QUIT`, `3`, `SIGRTMIN+3`.
fn signal(word: &str) -> Option<Signal> {
    let word = word.to_ascii_uppercase();
    let word = word.strip_prefix("SIG").unwrap_or(&word);
    let real_time = |from: i32, by: &str| from.checked_add(by.parse().ok()?);
    let number = if let Ok(number) = word.parse() {
        number
    } else if let Some(rest) = word.strip_prefix("RTMIN") {
        real_time(libc::SIGRTMIN(), if rest.is_empty() { "0" } else { rest })?
    } else if let Some(rest) = word.strip_prefix("RTMAX") {
        real_time(libc::SIGRTMAX(), if rest.is_empty() { "0" } else { rest })?
    } else {
        let named: nix::sys::signal::Signal = format!("SIG{word}").parse().ok()?;
        named as i32
    };
    Signal::from_named_raw(number).or_else(|| of_real_time(number))
}

fn of_real_time(number: i32) -> Option<Signal> {
    #![allow(unsafe_code)]
    let there = (libc::SIGRTMIN()..=libc::SIGRTMAX()).contains(&number);
    // SAFETY: those that the C library keeps for itself are not in this range, and it is another process that gets it.
    there.then(|| unsafe { Signal::from_raw_unchecked(number) })
}

/// Ends the holder's container: its first process is asked to, as its image wants to be asked, and killed after `grace`.
///
/// # Errors
/// A container that does not end, a stop before it was asked.
pub fn end(name: &StateName, holder: &Holder, grace: Duration, progress: &Progress) -> Result<()> {
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
    send(stop_signal(name, holder))?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_named_as_images_do() {
        let number = |word: &str| signal(word).map(Signal::as_raw);
        for (word, expected) in [
            ("SIGQUIT", 3),
            ("quit", 3),
            ("3", 3),
            ("SIGTERM", 15),
            ("SIGWINCH", 28),
            ("SIGRTMIN+3", libc::SIGRTMIN() + 3),
            ("RTMIN", libc::SIGRTMIN()),
            ("SIGRTMAX-1", libc::SIGRTMAX() - 1),
            ("37", 37),
        ] {
            assert_eq!(number(word), Some(expected), "{word}");
        }
        for word in [
            "",
            "SIG",
            "0",
            "-1",
            "32",
            "65",
            "SIGNOTHING",
            "RTMIN+99",
            "RTMIN+x",
        ] {
            assert_eq!(number(word), None, "{word}");
        }
    }
}
