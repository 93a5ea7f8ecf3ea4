//! A keeper that is killed in the middle of a restore: the live tree is the old one or the new one, history says which,
//! and the way back is open.

use std::{
    collections::BTreeMap,
    fs,
    ops::ControlFlow,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use live::Root;
use runtime_spec::config::Config;
use store::{Recorded, fault, format::Reason};

use super::{Keeper, Restore};
use crate::{
    archive::Importing,
    progress::Progress,
    tests::{listing, root, same},
};

const CHILD: &str = "KEEPER_RESTORE_CHILD";
const HOW: &str = "KEEPER_RESTORE_HOW";
const STATE: &str = "ctr/default/web";

type Listing = BTreeMap<Vec<u8>, String>;

fn keeper(dir: &Path) -> Keeper {
    let config = Config {
        root: dir.join("root"),
        ..Config::default()
    };
    Keeper::open(&config).unwrap()
}

fn upper(keeper: &Keeper) -> PathBuf {
    let state = keeper.node().state(&STATE.parse().unwrap());
    state.root(&Root::Rootfs).unwrap().upper()
}

/// What a restore does, in the words of the child's environment.
fn change(keeper: &Keeper, dir: &Path, how: &str) {
    match how {
        "import" => {
            let how = Importing {
                from: &dir.join("outside"),
                volumes: &[],
                replace: true,
            };
            keeper.import(STATE, &how, &Progress::default()).map(drop)
        }
        how => {
            let path = (how == "path").then_some(&b"/etc"[..]);
            let how = Restore {
                path,
                ..Restore::default()
            };
            keeper.restore("web", "first", how).map(drop)
        }
    }
    .unwrap();
}

/// The other process; as a test it does nothing.
#[test]
fn child() {
    let (Some(dir), Ok(how)) = (std::env::var_os(CHILD), std::env::var(HOW)) else {
        return;
    };
    let dir = PathBuf::from(dir);
    change(&keeper(&dir), &dir, &how);
}

/// Runs the child; says whether it was killed.
fn run(dir: &Path, how: &str, fault: Option<&str>, limit: Option<Duration>) -> bool {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args([
            "keeper::restore_kills::child",
            "--exact",
            "--nocapture",
            "--test-threads=1",
        ])
        .env(CHILD, dir)
        .env(HOW, how)
        .env_remove(fault::VARIABLE)
        .envs(fault.map(|fault| (fault::VARIABLE, fault)))
        .stdout(Stdio::null());
    let mut child = command.spawn().unwrap();
    if let Some(limit) = limit {
        std::thread::sleep(limit);
        // It may be through.
        let _ = child.kill();
    }
    let status = child.wait().unwrap();
    assert!(
        status.success() || status.signal() == Some(9),
        "{how} {fault:?}: {status}"
    );
    !status.success()
}

/// A state with two commits, the first one tagged, and with more that nobody has recorded yet.
fn lived(dir: &Path) -> Listing {
    fs::create_dir(dir).unwrap();
    let keeper = keeper(dir);
    let name = STATE.parse().unwrap();
    let rootfs = keeper.node().state(&name).root(&Root::Rootfs).unwrap();
    rootfs.prepare_overlay(0o755, (0, 0)).unwrap();
    let upper = rootfs.upper();
    fs::create_dir_all(upper.join("etc/deep")).unwrap();
    for n in 0..40 {
        fs::write(
            upper.join(format!("etc/deep/{n}")),
            format!("first {n}").repeat(n * 50),
        )
        .unwrap();
    }
    fs::write(upper.join("long"), vec![1; 2 << 20]).unwrap();
    let commit = |message| {
        keeper
            .commit(&name, Reason::Manual, Some(message))
            .unwrap()
            .unwrap()
    };
    let first = commit("first");
    let known = keeper.known("web").unwrap();
    keeper.store().tag(&known, "first", Some(first.id)).unwrap();
    for n in 0..20 {
        fs::remove_file(upper.join(format!("etc/deep/{n}"))).unwrap();
    }
    fs::write(upper.join("long"), vec![2; 3 << 20]).unwrap();
    commit("second");
    fs::write(upper.join("unrecorded"), b"what nobody has recorded yet").unwrap();
    fs::create_dir_all(dir.join("outside/srv")).unwrap();
    fs::write(dir.join("outside/srv/page"), vec![3; 1 << 20]).unwrap();
    listing(&upper)
}

/// What a version holds is what lies there.
fn told_truly(keeper: &Keeper, dir: &Path, told: &str) {
    let to = dir.join("told");
    // Head as the next commit makes it, from whatever is taken as known.
    fs::write(upper(keeper).join("after"), told).unwrap();
    keeper
        .commit(&STATE.parse().unwrap(), Reason::Manual, None)
        .unwrap();
    keeper
        .export("web", "head", b"/", &to, &Progress::default())
        .unwrap();
    same(&listing(&upper(keeper)), &listing(&to));
    fs::remove_dir_all(&to).unwrap();
    fs::remove_file(upper(keeper).join("after")).unwrap();
}

/// The newest commit of this reason.
fn newest(keeper: &Keeper, reason: Reason) -> Option<Recorded> {
    let mut found = None;
    let known = keeper.known("web").unwrap();
    keeper
        .store()
        .log(&known, u64::MAX, |recorded| {
            if recorded.commit.reason() == reason {
                found = Some(recorded);
                return Ok(ControlFlow::Break(()));
            }
            Ok(ControlFlow::Continue(()))
        })
        .unwrap();
    found
}

/// What must hold after a kill; says whether the new tree is in place.
fn check(dir: &Path, how: &str, old: &Listing, new: &Listing, told: &str) -> bool {
    let keeper = keeper(dir);
    keeper.catch_up_all().unwrap();
    let found = listing(&upper(&keeper));
    let done = found != *old;
    same(if done { new } else { old }, &found);
    let reason = if how == "import" {
        Reason::Import
    } else {
        Reason::Restore
    };
    let recorded = newest(&keeper, reason);
    assert_eq!(recorded.is_some(), done, "{told}: history says what happened");
    told_truly(&keeper, dir, told);
    if let Some(recorded) = recorded {
        let before = store::Id::from_slice(&recorded.commit.previous).unwrap();
        keeper
            .restore("web", &before.to_string(), Restore::default())
            .unwrap();
        same(&inside(old), &inside(&listing(&upper(&keeper))));
    } else {
        change(&keeper, dir, how);
        same(&inside(new), &inside(&listing(&upper(&keeper))));
    }
    assert_eq!(keeper.store().verify(100, |_| {}).unwrap().problems, [], "{told}");
    done
}

/// Without the top itself, whose times move with every file that a test makes in it.
fn inside(listing: &Listing) -> Listing {
    let inside = listing.iter().filter(|(path, _)| !path.is_empty());
    inside.map(|(path, line)| (path.clone(), line.clone())).collect()
}

/// A state that is as it was each time it is tried.
struct Bench {
    dir: tempfile::TempDir,
    how: &'static str,
    old: Listing,
    new: Listing,
}

impl Bench {
    fn new(how: &'static str) -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let old = lived(&dir.path().join("as-it-was"));
        let mut bench = Bench {
            dir,
            how,
            old,
            new: Listing::new(),
        };
        // What it leads to when nothing comes in between.
        let tried = bench.copy();
        assert!(!run(&tried, how, None, None));
        bench.new = listing(&upper(&keeper(&tried)));
        bench
    }

    fn copy(&self) -> PathBuf {
        let to = self.dir.path().join("tried");
        let _ = fs::remove_dir_all(&to);
        let from = self.dir.path().join("as-it-was");
        assert!(
            Command::new("cp")
                .arg("-a")
                .arg(from)
                .arg(&to)
                .status()
                .unwrap()
                .success()
        );
        to
    }

    fn check(&self, dir: &Path, told: &str) -> bool {
        check(dir, self.how, &self.old, &self.new, told)
    }
}

#[test]
fn at_every_point() {
    if !root() {
        return;
    }
    for how in ["all", "path", "import"] {
        let bench = Bench::new(how);
        for point in fault::RESTORE {
            // All go the same way: what differs is how it is recorded afterwards.
            if how != "all" && point != "restore-switched" {
                continue;
            }
            let (tried, told) = (bench.copy(), format!("{how} at {point}"));
            assert!(run(&tried, how, Some(point), None), "{told} was never reached");
            let switched = ["restore-switched", "restore-recorded", "restore-told"].contains(&point);
            assert_eq!(bench.check(&tried, &told), switched, "{told}");
        }
    }
}

#[test]
fn at_any_time() {
    if std::env::var_os("DIFFKEEPER_SOAK").is_none() || !root() {
        return;
    }
    let mut killed = 0;
    for how in ["all", "path", "import"] {
        let bench = Bench::new(how);
        for n in 0..100 {
            let (tried, limit) = (bench.copy(), Duration::from_millis(20 + n * 67 % 400));
            killed += u32::from(run(&tried, how, None, Some(limit)));
            bench.check(&tried, &format!("{how} after {limit:?}"));
        }
    }
    assert!(killed > 0, "none was killed in time");
}
