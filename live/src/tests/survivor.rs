use std::{
    fs::File,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use nix::sys::stat::{major, minor};

use super::{Bench, LIMIT, Running, held, options, until};
use crate::{Error, Init, State, survivor::start_time};

const SHORT: Duration = Duration::from_millis(100);

fn device(path: &Path) -> (u32, u32) {
    let dev = std::fs::metadata(path).unwrap().dev();
    (major(dev).try_into().unwrap(), minor(dev).try_into().unwrap())
}

fn init(running: &Running) -> Init {
    Init {
        pid: running.pid(),
        start_time: start_time(running.pid()).unwrap(),
    }
}

/// A process in a mount namespace of its own whose root is the state's overlay, as a container's is.
fn container(bench: &Bench, state: &State) -> (Running, (u32, u32)) {
    let at = bench.scratch("merged");
    let script = format!(
        "mount -t overlay overlay -o {} {at} && exec chroot {at} /bin/sleep 1000",
        options(state, Path::new("/usr")),
        at = at.display()
    );
    let running =
        Running::new(Command::new("unshare").args(["-m", "--propagation", "private", "sh", "-c", &script]));
    let root = PathBuf::from(format!("/proc/{}/root/", running.pid()));
    let own = device(Path::new("/"));
    until("the container runs", || device(&root) != own);
    (running, device(&root))
}

/// Something on the upper that no process can be found for.
fn unknown_user(bench: &Bench, state: &State) -> File {
    let mounted = bench.mounted(state, &bench.scratch("lower"), "other");
    File::create(mounted.0.join("open")).unwrap()
}

#[test]
fn the_surviving_container_is_ended() {
    let Some(bench) = Bench::new("the_surviving_container_is_ended") else {
        return;
    };
    let state = bench.prepared("ctr/default/a");
    let mut lease = held(&state, "first");
    let (mut survivor, device) = container(&bench, &state);
    lease
        .update(|h| (h.init, h.overlay) = (Some(init(&survivor)), Some(device)))
        .unwrap();
    drop(lease);
    let next = held(&state, "next");
    let evicted = state.evict(&next, LIMIT).unwrap().unwrap();
    assert_eq!(evicted.holder.container_id, "first");
    assert_eq!(evicted.killed, [survivor.pid()]);
    assert!(!survivor.lives());
    state.refuse_if_mounted().unwrap();
}

#[test]
fn what_outlived_its_init_is_found_by_its_root() {
    let Some(bench) = Bench::new("what_outlived_its_init_is_found_by_its_root") else {
        return;
    };
    let state = bench.prepared("ctr/default/a");
    let mut lease = held(&state, "first");
    let (mut survivor, device) = container(&bench, &state);
    lease.update(|h| h.overlay = Some(device)).unwrap();
    drop(lease);
    let evicted = state.evict(&held(&state, "next"), LIMIT).unwrap().unwrap();
    assert_eq!(evicted.killed, [survivor.pid()]);
    assert!(!survivor.lives());
}

#[test]
fn a_reused_pid_is_never_killed() {
    let Some(bench) = Bench::new("a_reused_pid_is_never_killed") else {
        return;
    };
    let state = bench.prepared("ctr/default/a");
    let mut lease = held(&state, "first");
    let mut innocent = Running::sleep();
    let mut reused = init(&innocent);
    reused.start_time -= 1;
    lease.update(|h| h.init = Some(reused)).unwrap();
    drop(lease);
    let next = held(&state, "next");
    let open = unknown_user(&bench, &state);
    let error = state.evict(&next, SHORT).unwrap_err();
    assert!(
        matches!(&error, Error::StillInUse { pids, .. } if pids.is_empty()),
        "{error}"
    );
    assert!(innocent.lives());
    drop(open);
    let evicted = state.evict(&next, LIMIT).unwrap().unwrap();
    assert!(evicted.killed.is_empty() && innocent.lives());
}

#[test]
fn on_a_free_tree_nothing_is_killed() {
    let Some(bench) = Bench::new("on_a_free_tree_nothing_is_killed") else {
        return;
    };
    let (state, other) = (bench.prepared("ctr/default/a"), bench.prepared("ctr/default/b"));
    let mut lease = held(&state, "first");
    // The overlay is gone, so its device number may be another's by now.
    let (mut innocent, device) = container(&bench, &other);
    lease.update(|h| h.overlay = Some(device)).unwrap();
    drop(lease);
    let evicted = state.evict(&held(&state, "next"), LIMIT).unwrap().unwrap();
    assert_eq!(evicted.killed, [0; 0]);
    assert!(innocent.lives());
}

#[test]
fn of_another_boot_nothing_is_killed() {
    let Some(bench) = Bench::new("of_another_boot_nothing_is_killed") else {
        return;
    };
    let state = bench.prepared("ctr/default/a");
    let mut lease = held(&state, "first");
    let mut innocent = Running::sleep();
    lease
        .update(|h| {
            h.boot_id = "another".into();
            h.init = Some(init(&innocent));
        })
        .unwrap();
    drop(lease);
    let next = held(&state, "next");
    let open = unknown_user(&bench, &state);
    assert!(matches!(state.evict(&next, SHORT), Err(Error::StillInUse { .. })));
    drop(open);
    until("it is free", || state.refuse_if_mounted().is_ok());
    let evicted = state.evict(&next, SHORT).unwrap().unwrap();
    assert!(evicted.killed.is_empty() && innocent.lives());
}

#[test]
fn the_dead_shims_mount_is_taken_away_and_no_other() {
    let Some(bench) = Bench::new("the_dead_shims_mount_is_taken_away_and_no_other") else {
        return;
    };
    let lower = bench.scratch("lower");
    let (state, other) = (bench.prepared("ctr/default/a"), bench.prepared("ctr/default/b"));
    let root = bench.scratch("bundle/rootfs");
    let below = bench.mounted(&other, &lower, "bundle/rootfs");
    let mine = bench.mounted(&state, &lower, "bundle/rootfs");
    let mut lease = held(&state, "first");
    lease
        .update(|h| (h.root, h.overlay) = (root, Some(device(&mine.0))))
        .unwrap();
    drop(lease);
    let evicted = state.evict(&held(&state, "next"), LIMIT).unwrap().unwrap();
    assert!(evicted.killed.is_empty());
    state.refuse_if_mounted().unwrap();
    assert!(
        other.refuse_if_mounted().is_err(),
        "what stood below it is another's"
    );
    // Unmounted once already: a second time would take the other's.
    std::mem::forget(mine);
    drop(below);
}

#[test]
fn a_frozen_survivor_is_thawed_to_die() {
    let Some(bench) = Bench::new("a_frozen_survivor_is_thawed_to_die") else {
        return;
    };
    let group = PathBuf::from(format!(
        "/sys/fs/cgroup/freezer/diffkeeper-test-{}",
        std::process::id()
    ));
    if std::fs::create_dir(&group).is_err() {
        println!("skipped: a_frozen_survivor_is_thawed_to_die needs the freezer of cgroup v1");
        return;
    }
    let state = bench.prepared("ctr/default/a");
    let mut lease = held(&state, "first");
    let (mut survivor, device) = container(&bench, &state);
    std::fs::write(group.join("cgroup.procs"), survivor.pid().to_string()).unwrap();
    std::fs::write(group.join("freezer.state"), "FROZEN").unwrap();
    lease.update(|h| h.overlay = Some(device)).unwrap();
    drop(lease);
    let evicted = state.evict(&held(&state, "next"), LIMIT);
    // In any case, or neither process nor cgroup would ever go.
    std::fs::write(group.join("freezer.state"), "THAWED").unwrap();
    assert_eq!(evicted.unwrap().unwrap().killed, [survivor.pid()]);
    assert!(!survivor.lives());
    until("the cgroup goes", || std::fs::remove_dir(&group).is_ok());
}
