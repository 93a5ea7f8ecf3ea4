use std::{
    ffi::{OsStr, OsString},
    fs::{self, File, Permissions},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use nix::fcntl::{FallocateFlags, fallocate};

use super::*;
use crate::compile::{compile, targets};

fn clang() -> OsString {
    std::env::var_os("CLANG").unwrap_or_else(|| OsString::from("clang"))
}

#[test]
fn built_twice_it_is_the_same() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let dir = tempfile::tempdir().unwrap();
    let elsewhere = dir.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    let name = crate::compile::SOURCE;
    fs::copy(source.join(name), elsewhere.join(name)).unwrap();
    let object = dir.path().join("object");
    compile(&clang(), &elsewhere, &object).unwrap();
    assert!(fs::read(object).unwrap() == super::OBJECT);
}

/// What a clang says that was built for one machine.
#[test]
fn a_clang_for_one_machine_is_known() {
    let dir = tempfile::tempdir().unwrap();
    let other = dir.path().join("clang");
    let says = "error: unable to create target: 'No available targets are compatible with triple \"bpf\"'";
    fs::write(&other, format!("#!/bin/sh\necho '{says}' >&2\nexit 1\n")).unwrap();
    fs::set_permissions(&other, Permissions::from_mode(0o755)).unwrap();
    assert!(!targets(other.as_os_str()));
    assert!(!targets(OsStr::new("/nonexistent/clang")));
    assert!(targets(&clang()));
}

/// Programs for where temporary files are, if that can be.
fn programs(dir: &Path) -> Option<Programs> {
    let loaded = match FileSystem::of(dir).unwrap() {
        Ok((system, device)) => Programs::load(system, device).map_err(|error| error.to_string()),
        Err(why) => Err(why),
    };
    let programs = match loaded {
        Ok(programs) => programs,
        Err(why) => {
            println!("skipped: {why}");
            return None;
        }
    };
    if let Err(why) = programs.ranges() {
        println!("skipped: {why}");
        return None;
    }
    Some(programs)
}

/// Other CPUs write to the ring all the time: what one has done before it asks is told all the same, or it is said that
/// something was lost.
#[test]
fn nothing_is_kept_back_by_a_record_that_is_not_complete() {
    let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let Some(mut programs) = programs(dir.path()) else {
        return;
    };
    let path = dir.path().join("file");
    let file = File::create(&path).unwrap();
    file.set_len(2 << 20).unwrap();
    let own = file.metadata().unwrap().ino();
    programs.follow(own).unwrap();
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for n in 0..3 {
            let (other, ended) = (dir.path().join(n.to_string()), &ended);
            File::create(&other).unwrap();
            scope.spawn(move || {
                for mode in (0..0o700).cycle() {
                    fs::set_permissions(&other, Permissions::from_mode(mode)).unwrap();
                    if ended.load(Ordering::Relaxed) {
                        return;
                    }
                }
            });
        }
        let mut whole = 0;
        let rounds = 3000;
        for round in 0..rounds {
            programs.drain(|_| ());
            let how = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            fallocate(&file, how, 1 << 20, 4096).unwrap();
            let mut told = false;
            let all =
                programs.drain(|what| told |= matches!(what, Told::Range { inode, .. } if inode == own));
            if all && !told {
                ended.store(true, Ordering::Relaxed);
                panic!("in round {round} nobody was told of a hole");
            }
            whole += u32::from(all);
        }
        ended.store(true, Ordering::Relaxed);
        assert!(
            whole > rounds / 2,
            "something was lost in all but {whole} of {rounds} rounds"
        );
    });
}

/// What does not fit into the ring is counted, and what comes after it is told again.
#[test]
fn what_does_not_fit_is_counted() {
    let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let Some(mut programs) = programs(dir.path()) else {
        return;
    };
    let file = File::create(dir.path().join("file")).unwrap();
    file.set_len(2 << 20).unwrap();
    programs.follow(file.metadata().unwrap().ino()).unwrap();
    let hole = || {
        let how = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(&file, how, 1 << 20, 4096).unwrap();
    };
    assert!(programs.drain(|_| ()));
    hole();
    assert!(programs.drain(|_| ()));
    // 32 bytes each, or more.
    (0..(4 << 20) / 32 + 1).for_each(|_| hole());
    let mut told = 0_u32;
    assert!(!programs.drain(|_| told += 1));
    assert!(told > 1000, "{told} records");
    hole();
    let mut told = 0_u32;
    assert!(programs.drain(|_| told += 1));
    assert!(told > 0);
}

/// The map holds so many files; one that is forgotten makes room.
#[test]
fn too_many_files_are_refused() {
    let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let Some(mut programs) = programs(dir.path()) else {
        return;
    };
    // Numbers that no inode has.
    let first = u64::MAX - 10_000;
    let refused = (first..).find(|inode| programs.follow(*inode).is_err()).unwrap();
    assert_eq!(refused - first, 8192);
    programs.forget(first);
    programs.follow(refused).unwrap();
}
