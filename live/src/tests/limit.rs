//! Size limits, on real file systems with project quota.

use std::{
    fs::File,
    io::Write,
    os::{
        fd::AsFd,
        unix::fs::{MetadataExt, symlink},
    },
    process::Command,
    time::{Duration, Instant, UNIX_EPOCH},
};

use nix::sys::stat::{Mode, SFlag, mknod};

use super::*;
use crate::{Limited, Quota, sys, tree};

const MIB: u64 = 1 << 20;

/// A file system in a file, and a node on it.
pub(super) struct Disk {
    pub(super) bench: Bench,
    at: PathBuf,
}

impl Disk {
    /// None, after saying so, where this machine cannot have it.
    fn new(test: &str, mkfs: &[&str]) -> Option<Disk> {
        let disk = Disk::of(test, mkfs, "loop,prjquota")?;
        if !disk.bench.node.can_limit() {
            println!("skipped: {test}: the kernel does not enforce project quota on what {mkfs:?} makes");
            return None;
        }
        Some(disk)
    }

    /// The same, whether quota is enforced or not.
    pub(super) fn of(test: &str, mkfs: &[&str], options: &str) -> Option<Disk> {
        let bench = Bench::new(test)?;
        let (image, at) = (bench.dir.path().join("image"), bench.scratch("mnt"));
        File::create(&image).unwrap().set_len(512 * MIB).unwrap();
        let done = |command: &mut Command| command.output().is_ok_and(|out| out.status.success());
        let [program, rest @ ..] = mkfs else {
            return None;
        };
        if !done(Command::new(program).args(rest).arg("-q").arg(&image))
            || !done(Command::new("mount").args(["-o", options]).arg(&image).arg(&at))
        {
            println!("skipped: {test}: {mkfs:?} or mount -o {options} is not to be had here");
            return None;
        }
        let node = Node::open(&at.join("node")).unwrap();
        let bench = Bench { node, ..bench };
        Some(Disk { bench, at })
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
    overlay_on(disk, state, &disk.bench.scratch("lower"))
}

fn overlay_on(disk: &Disk, state: &State, lower: &Path) -> Mounted {
    // As a container takes its state.
    state.limit(state.wanted_limit()).unwrap();
    let mounted = disk.bench.mounted(state, lower, "merged");
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
        // Begun without: the limit is wanted before a container takes it.
        let state = disk.bench.prepared("ctr/default/web");
        std::fs::write(state.upper().join("old"), vec![1; 1 << 20]).unwrap();
        state.want_limit(Some(16 * MIB)).unwrap();
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

/// What a container's tree may hold, in an upper on `lower`.
fn varied(state: &State, lower: &Path) {
    let upper = state.upper();
    for n in 0..3 {
        std::fs::create_dir_all(upper.join(format!("d{n}/deep/er"))).unwrap();
        std::fs::write(upper.join(format!("d{n}/deep/f")), vec![n; 1 << 20]).unwrap();
        std::fs::write(lower.join(format!("gone{n}")), b"image's").unwrap();
        let white = |path: &Path| mknod(path, SFlag::S_IFCHR, Mode::empty(), 0);
        match n {
            0 => white(&upper.join("gone0")).unwrap(),
            // As overlayfs does it: one inode for many.
            _ => std::fs::hard_link(upper.join("gone0"), upper.join(format!("gone{n}"))).unwrap(),
        }
    }
    std::fs::hard_link(upper.join("d0/deep/f"), upper.join("d1/hard")).unwrap();
    symlink("/etc/passwd", upper.join("d0/link")).unwrap();
    std::os::unix::fs::lchown(upper.join("d0/link"), Some(12), Some(34)).unwrap();
    nix::unistd::mkfifo(&upper.join("d0/fifo"), Mode::S_IRWXU).unwrap();
    drop(std::os::unix::net::UnixListener::bind(upper.join("d0/socket")).unwrap());
    for special in NOTED {
        sys::set_xattr(&upper.join(special), c"trusted.note", b"kept").unwrap();
    }
    for dir in ["d0/deep/er", "d0/deep", "d0", "."] {
        long_ago(&upper.join(dir));
    }
}

/// They have an attribute.
const NOTED: [&str; 3] = ["d0/link", "d0/fifo", "gone0"];

/// Whether an entry has it, whatever it is.
fn is_noted(path: &Path, scratch: &Path) -> bool {
    let dir = |path: &Path| tree::open_dir(path.parent().unwrap()).unwrap();
    let file = scratch.join("noted");
    let to = File::create(&file).unwrap();
    let named = |path: &Path| path.file_name().unwrap().to_owned();
    sys::copy_special_xattrs(
        (dir(path).as_fd(), &named(path)),
        (dir(&file).as_fd(), &named(&file)),
        true,
    )
    .unwrap();
    sys::has_xattr(to.as_fd(), |name| name == b"trusted.note").unwrap()
}

pub(super) fn long_ago(dir: &Path) {
    let then = UNIX_EPOCH + Duration::from_secs(981_173_106);
    File::open(dir).unwrap().set_modified(then).unwrap();
}

/// All of a tree, as a person would list it, with what does not move when it is put into a project.
pub(super) fn listed(top: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut todo = vec![top.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let m = path.symlink_metadata().unwrap();
            let link = std::fs::read_link(&path).unwrap_or_default();
            let facts = (m.mode(), m.uid(), m.gid(), m.rdev(), m.nlink(), m.mtime());
            let size = if m.is_file() { m.len() } else { 0 };
            found.push(format!("{} {facts:?} {size} {link:?}", path.display()));
            if m.is_dir() {
                todo.push(path);
            }
        }
    }
    found.sort();
    found
}

#[test]
fn a_tree_that_was_begun_without_a_limit_is_put_into_one() {
    for mkfs in KINDS {
        let Some(disk) = Disk::new("a_tree_that_was_begun_without_a_limit_is_put_into_one", mkfs) else {
            continue;
        };
        let state = disk.bench.prepared("ctr/default/web");
        let lower = disk.bench.scratch("lower");
        varied(&state, &lower);
        let before = listed(&state.upper());
        // There was no time for it, in two lives: what was begun is in nobody's way.
        let roots = state.dir().join("roots");
        for _ in 0..2 {
            let scratch = state.dir().join("taking-in");
            let number = 0x4446_0001;
            assert!(!crate::project::take_in(&roots, &scratch, number, Instant::now()).unwrap());
            let one = File::open(state.upper().join("d1")).unwrap();
            sys::set_project(&one, number, false).unwrap();
            let mounted = disk.bench.mounted(&state, &lower, "merged");
            std::fs::write(mounted.0.join("new"), b"x").unwrap();
            std::fs::rename(mounted.0.join("new"), mounted.0.join("d1/new")).unwrap();
            std::fs::rename(mounted.0.join("d0/deep/f"), mounted.0.join("d1/f")).unwrap();
            std::fs::rename(mounted.0.join("d1/f"), mounted.0.join("d0/deep/f")).unwrap();
            std::fs::remove_file(mounted.0.join("d1/new")).unwrap();
        }
        let middle = listed(&state.upper());
        assert_eq!(middle.len(), before.len());

        assert_eq!(state.limit(Some(16 * MIB)).unwrap(), Limited::Held);
        assert_eq!(listed(&state.upper()), middle);
        let scratch = disk.bench.scratch("attributes");
        for special in NOTED {
            assert!(is_noted(&state.upper().join(special), &scratch), "{special}");
        }
        assert!(!state.dir().join("taking-in").exists());
        {
            let mounted = overlay_on(&disk, &state, &lower);
            let at = |path: &str| mounted.0.join(path);
            // All that goes from one directory to another, the specials, too.
            for (from, to) in [("d0/deep/f", "d1/f"), ("d0/link", "link"), ("d0/fifo", "d2/fifo")] {
                std::fs::rename(at(from), at(to)).unwrap();
            }
            std::fs::hard_link(at("d1/f"), at("d2/another")).unwrap();
            // What the image had is removed, and comes back.
            for n in 0..3 {
                let gone = at(&format!("gone{n}"));
                assert!(!gone.exists());
                std::fs::write(&gone, b"the container's").unwrap();
                std::fs::remove_file(&gone).unwrap();
                std::fs::create_dir(&gone).unwrap();
            }
            let (done, error) = fill(&at("d2/deep/er/f"), 24 * MIB);
            assert!((10 * MIB..=13 * MIB).contains(&done) && error.is_some(), "{done}");
        }
        // As often as one wants.
        assert_eq!(state.limit(Some(16 * MIB)).unwrap(), Limited::Held);

        // Deeper than is gone into: it starts all the same, and that is told.
        let deep = disk.bench.prepared("ctr/default/deep");
        for n in 0..9 {
            symlink("x", deep.upper().join(n.to_string())).unwrap();
        }
        let mut at = tree::open_dir(&deep.upper()).unwrap();
        for _ in 0..500 {
            nix::sys::stat::mkdirat(&at, "d", Mode::S_IRWXU).unwrap();
            at = nix::fcntl::openat(&at, "d", tree::DIR, Mode::empty()).unwrap();
        }
        long_ago(&deep.upper());
        let modified = || deep.upper().metadata().unwrap().modified().unwrap();
        let before = modified();
        assert!(matches!(deep.limit(Some(MIB)).unwrap(), Limited::Later(why) if why.contains("too long")));
        assert_eq!(disk.quota("ctr/default/deep").unwrap().used, None);
        assert_eq!(modified(), before);
        let _mounted = overlay(&disk, &deep);
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
            assert!(projects.insert(sys::project(&roots).unwrap().number), "{n}");
            if n == 5 {
                // The list is lost: those that are in use are seen by their quota.
                std::fs::remove_file(disk.at.join("node/next-project")).unwrap();
            }
        }
        let theirs = disk.at.join("node/live/ctr/default/theirs/roots");
        std::fs::create_dir_all(&theirs).unwrap();
        let open = File::open(&theirs).unwrap();
        sys::set_project(&open, 77, true).unwrap();
        let state = node.state(&"ctr/default/theirs".parse().unwrap());
        assert_eq!(state.limit(Some(MIB)).unwrap(), Limited::Unable);
        assert_eq!(state.limit(None).unwrap(), Limited::Not);
        assert_eq!(sys::project(&open).unwrap().number, 77);
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

/// What the kernel lets a container do: a file's owner may take it out of its project, and out of the limit with it, but
/// not from a user namespace.
#[test]
fn an_owner_may_take_a_file_out_of_its_project_but_not_from_a_user_namespace() {
    for mkfs in KINDS {
        let Some(disk) = Disk::new(
            "an_owner_may_take_a_file_out_of_its_project_but_not_from_a_user_namespace",
            mkfs,
        ) else {
            continue;
        };
        let chattr = |before: &[&str], file: &Path| {
            let line = [before, &["chattr", "-p", "0"]].concat();
            let (program, rest) = line.split_first().unwrap();
            let out = Command::new(program).args(rest).arg(file).output().unwrap();
            println!("{line:?}: {out:?}");
            out.status.success()
        };
        let state = disk.bench.state("ctr/default/web");
        assert_eq!(state.limit(Some(16 * MIB)).unwrap(), Limited::Held);
        state.rootfs().prepare_overlay(0o777, (0, 0)).unwrap();
        let mounted = overlay(&disk, &state);
        let project = |name: &str| {
            let file = File::open(state.upper().join(name)).unwrap();
            sys::project(&file).unwrap().number
        };
        let (inside, outside) = (mounted.0.join("inside"), mounted.0.join("outside"));
        std::fs::write(&inside, b"x").unwrap();
        std::fs::write(&outside, b"x").unwrap();
        let ours = project("inside");
        assert_ne!(ours, 0);
        assert!(!chattr(&["unshare", "--user", "--map-root-user"], &inside));
        assert_eq!(project("inside"), ours);
        // Where this fails one day, docs/live-tree.md can promise more.
        assert!(chattr(&["env"], &outside));
        assert_eq!(project("outside"), 0);
    }
}
