use std::{
    fs::File,
    io::{Read, Write},
    path::Path,
    process::{Command, Stdio},
};

use super::{Bench, options, until};
use crate::in_use;

#[test]
fn a_mount_of_another_namespace_is_seen_lazily_unmounted_too() {
    let Some(bench) = Bench::new("a_mount_of_another_namespace_is_seen_lazily_unmounted_too") else {
        return;
    };
    let state = bench.prepared("ctr/default/a");
    let (lower, at) = (bench.scratch("lower"), bench.scratch("merged"));
    let script = format!(
        "mount -t overlay overlay -o {} {at}; exec 3>{at}/open; echo 1; read x; umount -l {at}; echo 2; read x",
        options(&state, &lower),
        at = at.display()
    );
    let mut child = Command::new("unshare")
        .args(["-m", "--propagation", "private", "sh", "-ec", &script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut input, mut output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut step = |wanted: &[u8]| {
        let mut told = [0; 2];
        output.read_exact(&mut told).unwrap();
        assert_eq!(told, wanted);
    };
    step(b"1\n");
    assert!(in_use(&state.upper()).unwrap(), "mounted elsewhere");
    let here = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!here.contains(at.to_str().unwrap()), "no table of ours shows it");
    input.write_all(b"\n").unwrap();
    step(b"2\n");
    assert!(in_use(&state.upper()).unwrap(), "a file in it is open");
    assert!(state.refuse_if_mounted().is_err());
    assert!(bench.node.remove(state.name()).is_err() && state.exists());
    drop(input);
    child.wait().unwrap();
    until("it is free", || !in_use(&state.upper()).unwrap());
}

#[test]
fn the_upper_is_left_as_it_was() {
    let Some(bench) = Bench::new("the_upper_is_left_as_it_was") else {
        return;
    };
    let state = bench.prepared("ctr/default/a");
    let before = std::fs::metadata(state.upper()).unwrap();
    for _ in 0..10 {
        assert!(!in_use(&state.upper()).unwrap());
    }
    let after = std::fs::metadata(state.upper()).unwrap();
    assert_eq!(before.modified().unwrap(), after.modified().unwrap());
    assert_eq!(std::fs::read_dir(state.upper()).unwrap().count(), 0);
    let upper = File::open(state.upper()).unwrap();
    assert!(!crate::sys::has_xattr(std::os::fd::AsFd::as_fd(&upper), |_| true).unwrap());
}

#[test]
fn what_cannot_be_asked_about_is_an_error_and_not_free() {
    if Bench::new("what_cannot_be_asked_about_is_an_error_and_not_free").is_none() {
        return;
    }
    assert!(in_use(Path::new("/nonexistent/upper")).is_err());
}
