//! Size limits, on real file systems with project quota.

use std::{fs::File, io::Write, process::Command};

use super::*;
use crate::{Limited, Quota, sys};

const MIB: u64 = 1 << 20;

/// A file system in a file, with project quota, and a node on it.
struct Disk {
    bench: Bench,
    at: PathBuf,
}

impl Disk {
    /// None, after saying so, where this machine cannot have it.
    fn new(test: &str, mkfs: &[&str]) -> Option<Disk> {
        let bench = Bench::new(test)?;
        let (image, at) = (bench.dir.path().join("image"), bench.scratch("mnt"));
        File::create(&image).unwrap().set_len(512 * MIB).unwrap();
        let done = |command: &mut Command| command.output().is_ok_and(|out| out.status.success());
        let [program, options @ ..] = mkfs else {
            return None;
        };
        if !done(Command::new(program).args(options).arg("-q").arg(&image))
            || !done(
                Command::new("mount")
                    .args(["-o", "loop,prjquota"])
                    .arg(&image)
                    .arg(&at),
            )
        {
            println!("skipped: {test}: {program} or project quota is not to be had here");
            return None;
        }
        let node = Node::open(&at.join("node")).unwrap();
        if !node.can_limit() {
            println!("skipped: {test}: the kernel does not enforce project quota on what {program} makes");
            assert!(Command::new("umount").arg(&at).status().unwrap().success());
            return None;
        }
        Some(Disk {
            bench: Bench { node, ..bench },
            at,
        })
    }

    fn quota(&self, name: &str) -> Option<Quota> {
        let states = self.bench.node.states().unwrap();
        states
            .iter()
            .find(|info| info.name.to_string() == name)
            .unwrap()
            .quota()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.at).status();
    }
}

const KINDS: [&[&str]; 2] = [
    &["mkfs.xfs"],
    &["mkfs.ext4", "-O", "quota,project", "-E", "quotatype=prjquota"],
];

/// Writes until the disk is full or `most` is there: how much it was.
fn fill(file: &Path, most: u64) -> (u64, Option<i32>) {
    let (mut file, mut done) = (File::create(file).unwrap(), 0);
    let part = vec![7_u8; 1 << 19];
    while done < most {
        // Delayed allocation asks for its quota when it is written out.
        if let Err(error) = file.write_all(&part).and_then(|()| file.sync_data()) {
            return (done, error.raw_os_error());
        }
        done += part.len() as u64;
    }
    (done, None)
}

/// Through an overlay, as a container does: whoever mounted it may exceed limits, what writes through it may not.
fn overlay(disk: &Disk, state: &State) -> Mounted {
    // As a container takes its state.
    state.limit(state.wanted_limit()).unwrap();
    let mounted = disk.bench.mounted(state, &disk.bench.scratch("lower"), "merged");
    state.enforce_limit().unwrap();
    mounted
}

#[test]
fn a_container_that_reaches_its_limit_sees_a_full_disk() {
    for mkfs in KINDS {
        let Some(disk) = Disk::new("a_container_that_reaches_its_limit_sees_a_full_disk", mkfs) else {
            continue;
        };
        let state = disk.bench.state("ctr/default/web");
        let lease = held(&state, "c1");
        assert_eq!(state.limit(Some(16 * MIB)).unwrap(), Limited::Held);
        state.rootfs().prepare_overlay(0o755, (0, 0)).unwrap();
        let other = disk.bench.state("ctr/default/other");
        assert_eq!(other.limit(None).unwrap(), Limited::Not);
        other.rootfs().prepare_overlay(0o755, (0, 0)).unwrap();
        {
            let mounted = overlay(&disk, &state);
            let (done, error) = fill(&mounted.0.join("f"), 24 * MIB);
            assert!((12 * MIB..=16 * MIB).contains(&done), "{done}");
            assert!(
                [Some(libc::ENOSPC), Some(libc::EDQUOT)].contains(&error),
                "{error:?}"
            );
            // What an overlay does with files between its directories is of one project.
            std::fs::remove_file(mounted.0.join("f")).unwrap();
            std::fs::create_dir(mounted.0.join("d")).unwrap();
            std::fs::write(mounted.0.join("g"), b"x").unwrap();
            std::fs::rename(mounted.0.join("g"), mounted.0.join("d/g")).unwrap();
            assert_eq!(fill(&mounted.0.join("h"), 8 * MIB), (8 * MIB, None));
        }
        let quota = disk.quota("ctr/default/web").unwrap();
        assert_eq!(quota.limit, 16 * MIB);
        assert!((8 * MIB..9 * MIB).contains(&quota.used.unwrap()), "{quota:?}");
        assert_eq!(disk.quota("ctr/default/other"), None);
        // More, and then none.
        assert_eq!(state.limit(Some(32 * MIB)).unwrap(), Limited::Held);
        {
            let mounted = overlay(&disk, &state);
            assert_eq!(fill(&mounted.0.join("more"), 16 * MIB), (16 * MIB, None));
            assert_eq!(state.limit(None).unwrap(), Limited::Not);
            assert_eq!(fill(&mounted.0.join("most"), 20 * MIB), (20 * MIB, None));
        }
        assert_eq!(disk.quota("ctr/default/web"), None);
        lease.release().unwrap();
    }
}

#[test]
fn a_tree_that_takes_anothers_place_has_its_limit() {
    for mkfs in KINDS {
        let Some(disk) = Disk::new("a_tree_that_takes_anothers_place_has_its_limit", mkfs) else {
            continue;
        };
        // Begun without: files of no project cannot be renamed into one.
        let state = disk.bench.prepared("ctr/default/web");
        std::fs::write(state.upper().join("old"), vec![1; 1 << 20]).unwrap();
        assert_eq!(state.limit(Some(16 * MIB)).unwrap(), Limited::Later);
        assert_eq!(disk.quota("ctr/default/web").unwrap().used, None);
        for round in 0..3 {
            let fresh = state.begin_restore(b"note").unwrap();
            let upper = fresh.join("roots/rootfs/upper");
            std::fs::create_dir_all(&upper).unwrap();
            std::fs::create_dir(fresh.join("roots/rootfs/work")).unwrap();
            std::fs::write(upper.join("new"), vec![1; 9 << 20]).unwrap();
            state.finish_restore(&fresh).unwrap();
            state.recorded().unwrap();
            state.clear_restore(&fresh).unwrap();
            let used = disk.quota("ctr/default/web").unwrap().used.unwrap();
            assert!((9 * MIB..10 * MIB).contains(&used), "round {round}: {used}");
        }
        {
            let mounted = overlay(&disk, &state);
            let (done, error) = fill(&mounted.0.join("f"), 24 * MIB);
            assert!(done <= 7 * MIB && error.is_some(), "{done}");
        }
        // A version that takes more than may be taken now comes back all the same.
        let fresh = state.begin_restore(b"note").unwrap();
        let upper = fresh.join("roots/rootfs/upper");
        std::fs::create_dir_all(&upper).unwrap();
        std::fs::create_dir(fresh.join("roots/rootfs/work")).unwrap();
        std::fs::write(upper.join("much"), vec![1; 20 << 20]).unwrap();
        state.finish_restore(&fresh).unwrap();
        let mounted = overlay(&disk, &state);
        assert_eq!(std::fs::read(mounted.0.join("much")).unwrap().len(), 20 << 20);
        assert!(std::fs::write(mounted.0.join("f"), vec![1; 1 << 20]).is_err());
        // There is a way out of it.
        std::fs::remove_file(mounted.0.join("much")).unwrap();
        std::fs::write(mounted.0.join("g"), vec![1; 1 << 20]).unwrap();
    }
}

#[test]
fn projects_are_never_given_twice_and_others_are_left_alone() {
    for mkfs in KINDS {
        let Some(disk) = Disk::new("projects_are_never_given_twice_and_others_are_left_alone", mkfs) else {
            continue;
        };
        let node = &disk.bench.node;
        let mut projects = std::collections::HashSet::new();
        for n in 0..10 {
            let state = disk.bench.state(&format!("ctr/default/s{n}"));
            assert_eq!(state.limit(Some(MIB)).unwrap(), Limited::Held);
            let roots = File::open(state.dir().join("roots")).unwrap();
            assert!(projects.insert(sys::project(&roots).unwrap()), "{n}");
            if n == 5 {
                // The list is lost: those that are in use are seen by their quota.
                std::fs::remove_file(disk.at.join("node/next-project")).unwrap();
            }
        }
        let theirs = disk.at.join("node/live/ctr/default/theirs/roots");
        std::fs::create_dir_all(&theirs).unwrap();
        let open = File::open(&theirs).unwrap();
        sys::set_project(&open, 77).unwrap();
        let state = node.state(&"ctr/default/theirs".parse().unwrap());
        assert_eq!(state.limit(Some(MIB)).unwrap(), Limited::Unable);
        assert_eq!(state.limit(None).unwrap(), Limited::Not);
        assert_eq!(sys::project(&open).unwrap(), 77);
    }
}

#[test]
fn without_project_quota_a_limit_is_only_told() {
    let Some(bench) = Bench::new("without_project_quota_a_limit_is_only_told") else {
        return;
    };
    if bench.node.can_limit() {
        println!("skipped: without_project_quota_a_limit_is_only_told: this disk has project quota");
        return;
    }
    let state = bench.state("ctr/default/web");
    assert_eq!(state.limit(Some(MIB)).unwrap(), Limited::Unable);
    let root = state.root(&Root::Rootfs).unwrap();
    root.prepare_overlay(0o755, (0, 0)).unwrap();
    let told = |bench: &Bench| bench.node.states().unwrap().first().unwrap().quota();
    assert_eq!(
        told(&bench),
        Some(Quota {
            limit: MIB,
            used: None
        })
    );
    assert_eq!(state.limit(None).unwrap(), Limited::Not);
    assert_eq!(told(&bench), None);
}
