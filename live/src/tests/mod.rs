//! Live trees on real mounts, with real processes.

mod exclude;
mod hostile;
mod lease;
mod limit;
mod placeholder;
mod probe;
mod project;
mod reclaim;
mod survivor;

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant, SystemTime},
};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::{Attempt, Error, Holder, Lease, Life, Misfit, Node, Policy, Result, Root, RootDir, State, Want};

/// For what the kernel does in the background, on a busy machine.
const LIMIT: Duration = Duration::from_secs(10);

/// A node in a temporary folder, which goes with it.
struct Bench {
    dir: tempfile::TempDir,
    node: Node,
}

impl Bench {
    /// None, after saying so, where the test cannot run.
    fn new(test: &str) -> Option<Bench> {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: {test} needs root (trusted xattrs, mounts)");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let node = Node::open(&dir.path().join("root")).unwrap();
        Some(Bench { dir, node })
    }

    fn state(&self, name: &str) -> State {
        self.node.state(&name.parse().unwrap())
    }

    /// A state with an empty upper.
    fn prepared(&self, name: &str) -> State {
        let state = self.state(name);
        state.rootfs().prepare_overlay(0o755, (0, 0)).unwrap();
        state
    }

    /// A directory beside the node's.
    fn scratch(&self, name: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    /// An overlay of a lower directory and the state's tree.
    fn mounted(&self, state: &State, lower: &Path, at: &str) -> Mounted {
        let at = self.scratch(at);
        let options = options(state, lower);
        mount(
            Some("overlay"),
            &at,
            Some("overlay"),
            MsFlags::empty(),
            Some(options.as_str()),
        )
        .unwrap();
        Mounted(at)
    }
}

/// Shorthands: most tests are about the one root of a state.
impl State {
    fn rootfs(&self) -> RootDir {
        self.root(&Root::Rootfs).unwrap()
    }

    fn upper(&self) -> PathBuf {
        self.rootfs().upper()
    }

    fn note_targets(&self, merged: &Path, targets: &[(PathBuf, Want)]) -> Result<Vec<Misfit>> {
        self.rootfs().note_targets(merged, targets)
    }

    fn set_aside_misfits(&self, misfits: &[Misfit], now: SystemTime) -> Result<Vec<PathBuf>> {
        self.rootfs().set_aside_misfits(misfits, &self.aside(now))
    }

    fn taken(&self, reclaim: Policy, container: &str, now: SystemTime) -> Result<()> {
        let life = Life {
            exclude: &[],
            capture: None,
            chosen: true,
            reclaim,
            container,
            roots: &[self.rootfs()],
            image: None,
        };
        self.attached(&life, now)
    }
}

fn options(state: &State, lower: &Path) -> String {
    format!(
        "index=off,metacopy=off,xino=off,lowerdir={},upperdir={},workdir={}",
        lower.display(),
        state.upper().display(),
        state.rootfs().work().display()
    )
}

/// A mount that goes with the value.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

/// A child that ends with the value.
struct Running(Child);

impl Running {
    fn new(command: &mut Command) -> Running {
        Running(
            command
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .spawn()
                .unwrap(),
        )
    }

    fn sleep() -> Running {
        Running::new(Command::new("sleep").arg("1000"))
    }

    fn pid(&self) -> i32 {
        self.0.id().cast_signed()
    }

    fn lives(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn holder(container: &str) -> Holder {
    Holder::new(container, "default", Path::new("/run/none"))
}

/// The lease of a state whose last holder is dead. A process that another test is just starting may have the dead
/// one's lock until its exec.
fn held(state: &State, container: &str) -> Lease {
    let mut lease = None;
    until("the lease is free", || {
        match state.acquire(holder(container)).unwrap() {
            Attempt::Held(held) => lease.replace(held).is_none(),
            Attempt::Busy(_) => false,
        }
    });
    lease.unwrap()
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let since = Instant::now();
    while !done() {
        assert!(since.elapsed() < LIMIT, "never: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
