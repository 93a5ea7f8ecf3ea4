//! States in which nothing happens, and the kernel that is to tell when something does.

use std::fs;

use live::Root;
use runtime_spec::config::Config;

use super::*;

fn name(n: usize) -> StateName {
    format!("ctr/default/state{n}").parse().unwrap()
}

fn watch(dir: &Path) -> Watch {
    let config = Config {
        root: dir.join("root"),
        ..Config::default()
    };
    Watch::new(Keeper::open(&config).unwrap().into()).unwrap()
}

fn told(armed: &Armed) -> bool {
    let (events, _) = armed.0.as_ref().unwrap();
    let mut fds = [PollFd::new(events.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::from(100_u16)).unwrap() > 0
}

#[test]
fn a_change_below_is_told_of_and_no_state_takes_what_others_need() {
    if !crate::tests::root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let watch = watch(dir.path());
    let uppers: Vec<_> = (0..=ARMED)
        .map(|n| {
            let tree = watch.keeper.node().state(&name(n)).root(&Root::Rootfs).unwrap();
            tree.prepare_overlay(0o755, (0, 0)).unwrap();
            fs::create_dir(tree.upper().join("below")).unwrap();
            fs::write(tree.upper().join("below/file"), "as it was").unwrap();
            tree.upper()
        })
        .collect();
    if !sees_overlays() {
        assert!(watch.arm(&name(0)).is_none());
        return;
    }
    let armed: Vec<Armed> = (0..ARMED).map(|n| watch.arm(&name(n)).unwrap()).collect();
    assert!(watch.arm(&name(ARMED)).is_none(), "enough others have one");
    assert!(!told(&armed[0]));
    fs::write(uppers[0].join("below/file"), "another").unwrap();
    assert!(told(&armed[0]) && !told(&armed[1]));
    drop(armed);
    assert!(watch.arm(&name(ARMED)).is_some());
}
