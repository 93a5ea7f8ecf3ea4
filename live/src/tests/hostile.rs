//! Trees that a container made to do harm.

use std::{
    ffi::{CString, OsStr},
    fs::{self, File},
    os::{
        fd::OwnedFd,
        unix::{
            ffi::OsStrExt,
            fs::{FileTypeExt, PermissionsExt, symlink},
        },
    },
    path::{Path, PathBuf},
    process::Command,
};

use nix::{
    fcntl::{OFlag, openat},
    sys::stat::{Mode, mkdirat},
};

use super::Bench;
use crate::{State, tree};

/// A chain of directories below `top`, far deeper than any path can say.
fn nest(top: &Path, levels: usize, name: &str) {
    fs::create_dir(top).unwrap();
    let mut here: OwnedFd = File::open(top).unwrap().into();
    for _ in 0..levels {
        mkdirat(&here, name, Mode::S_IRWXU).unwrap();
        here = openat(&here, name, OFlag::O_DIRECTORY, Mode::empty()).unwrap();
    }
    openat(&here, "f", OFlag::O_CREAT | OFlag::O_WRONLY, Mode::S_IRUSR).unwrap();
}

fn exclude(state: &State, path: &str) {
    let trash = state.set_aside_excluded(&[PathBuf::from(path)]).unwrap();
    assert!(!trash.is_empty(), "{path}");
    trash.delete().unwrap();
}

/// On a thread with the stack that the shim's short-lived ones have, and with few descriptors left.
fn confined<T: Send>(what: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .stack_size(256 * 1024)
            .spawn_scoped(scope, what)
            .unwrap()
            .join()
            .unwrap()
    })
}

#[test]
fn a_tree_deeper_than_any_path_is_counted_and_deleted() {
    let Some(bench) = Bench::new("a_tree_deeper_than_any_path_is_counted_and_deleted") else {
        return;
    };
    let state = bench.prepared("ctr/default/a");
    nest(&state.upper().join("tmp"), 6_000, "d");
    // Names that the deletion itself might choose.
    for n in 0..20 {
        fs::create_dir_all(state.upper().join(format!("tmp/{n}/x"))).unwrap();
        fs::write(state.upper().join(format!("tmp/d/{n}")), "x").unwrap();
    }
    nest(&state.upper().join("deep"), 2_000, &"n".repeat(255));
    confined(|| {
        assert!(tree::size(state.dir()).unwrap().entries > 100);
        exclude(&state, "/tmp");
        // With the state itself.
        assert!(bench.node.remove(state.name()).unwrap().entries > 100);
    });
    assert_eq!(bench.node.leftovers().unwrap(), 0);
    assert_eq!(bench.node.states().unwrap().len(), 0);
}

#[test]
fn counting_and_deleting_hold_few_descriptors() {
    let Some(bench) = Bench::new("counting_and_deleting_hold_few_descriptors") else {
        return;
    };
    let state = bench.prepared("ctr/default/a");
    nest(&state.upper().join("tmp"), 1_500, "d");
    let most = most_descriptors_while(|| {
        tree::size(state.dir()).unwrap();
        exclude(&state, "/tmp");
    });
    // A service has 1,024, and a pod's other containers need them meanwhile. Other tests of this process count.
    assert!(most < 400, "{most}");
}

fn most_descriptors_while(what: impl FnOnce() + Send) -> usize {
    std::thread::scope(|scope| {
        let work = scope.spawn(what);
        let mut most = 0;
        while !work.is_finished() {
            most = most.max(fs::read_dir("/proc/self/fd").unwrap().count());
        }
        work.join().unwrap();
        most
    })
}

#[test]
fn any_name_and_any_kind_of_file_goes() {
    let Some(bench) = Bench::new("any_name_and_any_kind_of_file_goes") else {
        return;
    };
    let state = bench.prepared("ctr/default/a");
    let victim = bench.scratch("victim");
    fs::write(victim.join("precious"), "x").unwrap();
    let tmp = state.upper().join("tmp");
    fs::create_dir(&tmp).unwrap();
    let long = [b'x'; 255];
    let names: [&[u8]; 8] = [
        b"\xff\xfe",
        b"\n",
        b" ",
        b"-rf",
        b"...",
        b"\\",
        "\u{202e}".as_bytes(),
        &long,
    ];
    for name in names {
        let name = OsStr::from_bytes(name);
        let dir = tmp.join(name);
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join(name), "x").unwrap();
        symlink(&victim, dir.join("out")).unwrap();
        symlink(victim.join("precious"), dir.join("file")).unwrap();
        symlink("/", dir.join("root")).unwrap();
        symlink("..", dir.join("up")).unwrap();
        symlink("loop", dir.join("loop")).unwrap();
        symlink("missing", dir.join("dangling")).unwrap();
        fs::hard_link(dir.join(name), dir.join("hard")).unwrap();
    }
    let fifo = CString::new(tmp.join("fifo").as_os_str().as_bytes()).unwrap();
    nix::unistd::mkfifo(fifo.as_c_str(), Mode::S_IRWXU).unwrap();
    assert!(fs::metadata(tmp.join("fifo")).unwrap().file_type().is_fifo());
    let socket = std::os::unix::net::UnixListener::bind(tmp.join("socket")).unwrap();
    fs::create_dir(tmp.join("closed")).unwrap();
    fs::write(tmp.join("closed/file"), "x").unwrap();
    fs::set_permissions(tmp.join("closed"), fs::Permissions::from_mode(0o0)).unwrap();

    // 8 names of 9 entries with their directories, and fifo, socket, closed, file, and tmp itself.
    let size = tree::size(&state.upper()).unwrap();
    assert_eq!(size.entries, 8 * 9 + 5);
    exclude(&state, "/tmp");
    drop(socket);
    assert_eq!(tree::size(&state.upper()).unwrap().entries, 0);
    assert_eq!(bench.node.leftovers().unwrap(), 0);
    assert_eq!(fs::read(victim.join("precious")).unwrap(), b"x");
}

#[test]
fn what_cannot_be_deleted_is_told_and_ends() {
    let Some(bench) = Bench::new("what_cannot_be_deleted_is_told_and_ends") else {
        return;
    };
    let state = bench.prepared("ctr/default/a");
    let fixed = state.upper().join("tmp/a/fixed");
    fs::create_dir_all(fixed.parent().unwrap()).unwrap();
    fs::write(&fixed, "x").unwrap();
    if !Command::new("chattr")
        .arg("+i")
        .arg(&fixed)
        .status()
        .is_ok_and(|s| s.success())
    {
        println!("skipped: what_cannot_be_deleted_is_told_and_ends needs chattr +i");
        return;
    }
    let trash = state.set_aside_excluded(&[PathBuf::from("/tmp")]).unwrap();
    let told = trash.delete().unwrap_err().to_string();
    assert!(told.contains("trash"), "{told}");
    let left = fs::read_dir(bench.node.trash()).unwrap().next().unwrap().unwrap();
    let free = Command::new("chattr")
        .arg("-R")
        .arg("-i")
        .arg(left.path())
        .status();
    assert!(free.unwrap().success());
    assert_eq!(bench.node.empty_trash().unwrap(), 1);
}
