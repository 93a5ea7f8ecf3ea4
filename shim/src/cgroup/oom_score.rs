//! How willing the kernel is to kill a process when memory runs out.

use std::{fs, io, os::unix::process::parent_id, path::PathBuf};

use super::{Host, members};
use crate::error::{Context, Error, Result};

const LEAST: i32 = -1000;
const MOST: i32 = 1000;

/// The score of process `pid`, from -1000 (never killed) to 1000 (killed first).
///
/// # Errors
/// When the process does not exist.
pub fn read(pid: u32) -> Result<i32> {
    let path = path(pid);
    let text = fs::read_to_string(&path).context(|| format!("read {}", path.display()))?;
    text.trim()
        .parse()
        .map_err(|_| Error::Other(format!("{}: not a number: {text:?}", path.display())))
}

/// Sets the score of process `pid`, brought into -1000 to 1000. Who is not root, or root of a user namespace
/// only, may not lower a score: that is no error, the old score stays.
///
/// # Errors
/// When the process does not exist, or the kernel refuses root itself (which then lacks `CAP_SYS_RESOURCE`).
pub fn write(pid: u32, score: i32) -> Result<()> {
    let path = path(pid);
    match members::write(&path, &score.clamp(LEAST, MOST).to_string()) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied && !privileged() => Ok(()),
        done => done.context(|| format!("write {}", path.display())),
    }
}

/// Makes a new shim, process `pid`, a more likely victim than containerd, the parent of this process: one more
/// than its score, so that containerd never goes first.
///
/// # Errors
/// As [`read`] and [`write()`].
pub fn adjust_for_shim(pid: u32) -> Result<()> {
    write(pid, read(parent_id())?.saturating_add(1))
}

fn path(pid: u32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/oom_score_adj"))
}

fn privileged() -> bool {
    nix::unistd::geteuid().is_root() && !Host::real().in_user_namespace()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_score_is_written_within_bounds() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let pid = child.id();
        write(pid, 500).unwrap();
        assert_eq!(read(pid).unwrap(), 500);
        write(pid, 4000).unwrap();
        assert_eq!(read(pid).unwrap(), 1000);
        child.kill().unwrap();
        child.wait().unwrap();
        let error = write(pid, 0).unwrap_err().to_string();
        assert!(error.contains(&format!("/proc/{pid}/oom_score_adj")), "{error}");
    }

    #[test]
    fn a_shim_stands_one_above_the_parent() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        adjust_for_shim(child.id()).unwrap();
        let score = read(child.id()).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(score, (read(parent_id()).unwrap() + 1).min(1000));
    }
}
