//! Many states on one node, a few of them busy.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use live::{Attempt, Holder, Lease, Root};
use runtime_spec::config::{Config, History};

use super::*;
use crate::tests::root;

/// However slow the machine.
const PATIENCE: Duration = Duration::from_secs(300);

fn name(n: usize) -> StateName {
    format!("ctr/default/state{n}").parse().unwrap()
}

/// A state that a container without a shim has, and where it writes.
fn in_use(keeper: &Keeper, n: usize) -> (Lease, PathBuf) {
    let state = keeper.node().state(&name(n));
    let tree = state.root(&Root::Rootfs).unwrap();
    tree.prepare_overlay(0o755, (0, 0)).unwrap();
    for file in 0..20 {
        fs::write(tree.upper().join(format!("file{file}")), format!("{n} {file}")).unwrap();
    }
    let lease = match state.acquire(Holder::new("c", "n", Path::new("/b"))).unwrap() {
        Attempt::Held(lease) => lease,
        Attempt::Busy(holder) => panic!("{holder:?} has it"),
    };
    (lease, tree.upper())
}

/// What the process takes, in MiB.
fn resident() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<usize>().unwrap() >> 10
}

/// Says when it is over, whatever becomes of the test.
struct Over<'a>(&'a Watch, &'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.1.store(true, Ordering::Relaxed);
        self.0.stop();
    }
}

/// Each busy state has its commits, and no more to catch up with when it is quiet. A hundred states in the long form.
#[test]
fn a_few_busy_states_among_many_are_recorded_alike() {
    if !root() {
        return;
    }
    let soak = std::env::var_os("DIFFKEEPER_SOAK").is_some();
    let (all, busy, rounds) = if soak { (100, 10, 200) } else { (30, 5, 4) };
    let dir = tempfile::tempdir().unwrap();
    let config = Config {
        root: dir.path().join("root"),
        history: History {
            interval: Duration::from_millis(200),
            ..History::default()
        },
        ..Config::default()
    };
    let keeper = Arc::new(Keeper::open(&config).unwrap());
    let states: Vec<(Lease, PathBuf)> = (0..all).map(|n| in_use(&keeper, n)).collect();
    let watch = Watch::new(Arc::clone(&keeper)).unwrap();
    let commits = |n: usize| {
        let known = keeper.store().state(&name(n).to_string()).unwrap();
        known
            .and_then(|known| known.head)
            .map_or(0, |(_, commits)| commits)
    };
    let wait = |what: &str, done: &dyn Fn() -> bool| {
        let begun = Instant::now();
        while !done() {
            assert!(begun.elapsed() < PATIENCE, "{what}");
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    let quiet = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _over = Over(&watch, &quiet);
        scope.spawn(|| watch.run());
        wait("each state has a first commit", &|| {
            (0..all).all(|n| commits(n) > 0)
        });
        let writer = scope.spawn(|| {
            let mut written = 0u64;
            while !quiet.load(Ordering::Relaxed) {
                written += 1;
                for (_, upper) in states.iter().take(busy) {
                    let text = format!("{written} ").repeat(2000);
                    fs::write(upper.join(format!("busy{}", written % 50)), text).unwrap();
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let before: Vec<u64> = (0..busy).map(commits).collect();
        let since = || (0..busy).map(|n| commits(n) - before[n]);
        for round in 1..=rounds {
            wait("each busy state goes on", &|| since().all(|made| made >= round));
        }
        let (least, most) = (since().min().unwrap(), since().max().unwrap());
        println!("{least} to {most} commits of a busy state, {} MiB", resident());
        // A look that takes long is followed by a longer wait, and how long one takes is up to the disk.
        assert!(most <= 3 * least, "{least} to {most} commits");
        assert!(resident() < 256, "{} MiB", resident());
        let idle: u64 = (busy..all).map(commits).sum();
        assert!(idle <= 3 * (all - busy) as u64, "{idle} commits of what is idle");
        quiet.store(true, Ordering::Relaxed);
        writer.join().unwrap();
        let then: Vec<u64> = (0..busy).map(commits).collect();
        let recorded = |n: usize| keeper.commit(&name(n), Reason::Interval, None).unwrap().is_none();
        wait("all is recorded", &|| (0..busy).all(recorded));
        assert!(
            (0..busy).all(|n| commits(n) <= then[n] + 3),
            "there was a backlog"
        );
    });
}
