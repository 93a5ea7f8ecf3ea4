//! Which processes are in a cgroup: add, list, kill.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    path::Path,
    thread,
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::error::{Context, Result};

/// Writes to a file of the kernel's, which must exist.
pub(super) fn write(path: &Path, text: &str) -> io::Result<()> {
    OpenOptions::new()
        .write(true)
        .open(path)?
        .write_all(text.as_bytes())
}

/// Moves process `pid` into the cgroup at `dir`.
pub(super) fn add(dir: &Path, pid: u32) -> Result<()> {
    let (file, text) = (dir.join("cgroup.procs"), pid.to_string());
    let mut tries = 5;
    loop {
        match write(&file, &text) {
            // A process that fork has not finished cannot be moved yet.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) && tries > 1 => {
                tries -= 1;
                thread::sleep(Duration::from_millis(30));
            }
            done => return done.context(|| format!("move process {pid} into cgroup {}", dir.display())),
        }
    }
}

/// The processes in `dir` and below it.
pub(super) fn pids(dir: &Path) -> Result<Vec<u32>> {
    let mut found = Vec::new();
    let mut left = vec![dir.to_owned()];
    while let Some(dir) = left.pop() {
        match fs::read_to_string(dir.join("cgroup.procs")) {
            Ok(text) => found.extend(text.lines().filter_map(|line| line.parse::<u32>().ok())),
            Err(error) if is_absent(&error) => {}
            Err(error) => return Err(error).context(|| format!("list the processes of {}", dir.display())),
        }
        let below = match fs::read_dir(&dir) {
            Ok(below) => below,
            Err(error) if is_absent(&error) => continue,
            Err(error) => return Err(error).context(|| format!("list {}", dir.display())),
        };
        for entry in below.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                left.push(entry.path());
            }
        }
    }
    // 0 stands for a process of another pid namespace, which nobody here can name.
    found.retain(|pid| *pid != 0);
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

/// The cgroup is gone, or is a threaded one, whose processes its domain lists.
fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOENT | libc::ENODEV | libc::EOPNOTSUPP)
    )
}

/// SIGKILL to all in the v2 cgroup at `dir`.
pub(super) fn kill_v2(dir: &Path) -> Result<()> {
    // Since Linux 5.14 the kernel does it, and no fork escapes.
    if !contains_self(dir)? && write(&dir.join("cgroup.kill"), "1").is_ok() {
        return Ok(());
    }
    let _ = write(&dir.join("cgroup.freeze"), "1");
    let killed = signal_each(dir);
    let _ = write(&dir.join("cgroup.freeze"), "0");
    killed.and_then(|()| signal_each(dir))
}

/// SIGKILL to all in the v1 cgroup at `dir`, held still meanwhile by the `freezer` directory, if there is one.
pub(super) fn kill_v1(dir: &Path, freezer: Option<&Path>) -> Result<()> {
    // A freezer that the container does not have to itself would stop others.
    let state = freezer
        .filter(|freezer| freezer.file_name() == dir.file_name())
        .map(|dir| dir.join("freezer.state"));
    if let Some(state) = state.as_deref().filter(|_| !contains_self(dir).unwrap_or(true)) {
        let _ = write(state, "FROZEN");
        for _ in 0..20 {
            if fs::read_to_string(state).is_ok_and(|text| text.trim() != "FREEZING") {
                break;
            }
            thread::sleep(Duration::from_millis(1));
        }
    }
    let killed = signal_each(dir);
    // Frozen tasks die only once they are thawed, those that somebody paused before included.
    if let Some(state) = &state {
        let _ = write(state, "THAWED");
    }
    killed.and_then(|()| signal_each(dir))
}

fn contains_self(dir: &Path) -> Result<bool> {
    Ok(pids(dir)?.contains(&std::process::id()))
}

fn signal_each(dir: &Path) -> Result<()> {
    for pid in pids(dir)? {
        let Ok(number) = i32::try_from(pid) else { continue };
        if pid == std::process::id() {
            continue;
        }
        match kill(Pid::from_raw(number), Signal::SIGKILL) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(errno) => return Err(errno).context(|| format!("kill process {pid} in {}", dir.display())),
        }
    }
    Ok(())
}
