//! What is in the way of a project, found before a directory hands it down.

use std::{
    fs::File,
    os::unix::fs::{MetadataExt, symlink},
    process::Command,
    time::Instant,
};

use nix::{
    fcntl::openat,
    sys::stat::{Mode, mkdirat},
};

use super::{
    limit::{Disk, listed, long_ago},
    *,
};
use crate::{
    project::{ENDING, number, take_in},
    sys, tree,
};

/// They have projects, whether the kernel enforces their quota or not.
const KINDS: [&[&str]; 2] = [&["mkfs.xfs"], &["mkfs.ext4", "-O", "project"]];

const MINE: u32 = 0x4446_0001;

/// Begins with a tree, of which two directories get their number, and no more: the one that a later walk passes by
/// comes first.
fn begun(disk: &Disk) -> (State, [PathBuf; 2]) {
    let state = disk.bench.prepared("ctr/default/web");
    let dirs = ["a", "b"].map(|name| state.upper().join(name));
    for dir in &dirs {
        std::fs::create_dir(dir).unwrap();
        for n in 0..9 {
            std::fs::write(dir.join(n.to_string()), b"x").unwrap();
        }
    }
    // Each start gives one entry its number, at least.
    let numbered = |path: &Path| sys::project(&File::open(path).unwrap()).unwrap().number == MINE;
    let mut order = Vec::new();
    for _ in 0..99 {
        assert!(!start(&state, Duration::ZERO).unwrap());
        let next = dirs.iter().find(|dir| !order.contains(*dir) && numbered(dir));
        order.extend(next.cloned());
        if let [first, second] = order.as_slice() {
            return (state, [first.clone(), second.clone()]);
        }
    }
    panic!("no start goes further: {order:?}");
}

fn start(state: &State, patience: Duration) -> Result<bool> {
    let scratch = state.dir().join("taking-in");
    take_in(
        &state.dir().join("roots"),
        &scratch,
        MINE,
        Instant::now() + patience,
    )
}

/// Makes directories below `dir`, deeper than is gone into.
fn deepen(dir: &Path) {
    let mut at = tree::open_dir(dir).unwrap();
    for _ in 0..500 {
        mkdirat(&at, "d", Mode::S_IRWXU).unwrap();
        at = openat(&at, "d", tree::DIR, Mode::empty()).unwrap();
    }
}

/// The directories that hand a project down.
fn handing_down(state: &State) -> Vec<PathBuf> {
    let mut todo = vec![state.dir().join("roots")];
    let mut found = Vec::new();
    while let Some(dir) = todo.pop() {
        // Deeper there is nothing that these tests ask for.
        let deep = dir.components().count() > state.dir().components().count() + 9;
        for entry in std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap()) {
            if entry.file_type().unwrap().is_dir() && !deep {
                todo.push(entry.path());
            }
        }
        if sys::project(&File::open(&dir).unwrap()).unwrap().handed_down {
            found.push(dir);
        }
    }
    found
}

#[test]
fn what_was_made_behind_a_walk_is_found_before_anything_hands_the_project_down() {
    for mkfs in KINDS {
        let test = "what_was_made_behind_a_walk_is_found_before_anything_hands_the_project_down";
        let Some(disk) = Disk::of(test, mkfs, "loop") else {
            continue;
        };
        let (state, [behind, _]) = begun(&disk);
        deepen(&behind);
        let told = start(&state, LIMIT).unwrap_err();
        assert!(matches!(told, Error::Io { .. }), "{told}");
        assert!(told.to_string().contains("too long"), "{told}");
        assert_eq!(handing_down(&state), [] as [PathBuf; 0]);
        tree::delete(&behind.join("d")).unwrap();
        assert!(start(&state, LIMIT).unwrap());
    }
}

#[test]
fn a_project_that_not_all_directories_hand_down_is_taken_back() {
    for mkfs in KINDS {
        let test = "a_project_that_not_all_directories_hand_down_is_taken_back";
        let Some(disk) = Disk::of(test, mkfs, "loop") else {
            continue;
        };
        let (state, [first, last]) = begun(&disk);
        // It has its number, and keeps it: only to let it hand that down fails, where the file system minds.
        let chattr = |how: &str| {
            let done = Command::new("chattr").arg(how).args([&first, &last]).status();
            assert!(done.unwrap().success());
        };
        chattr("+i");
        let minds = sys::set_project(&File::open(&last).unwrap(), MINE, true).is_err();
        println!("{mkfs:?}: {minds}");
        if minds {
            let told = start(&state, LIMIT).unwrap_err();
            assert!(matches!(told, Error::Io { .. }), "{told}");
            assert_eq!(handing_down(&state), [] as [PathBuf; 0]);
        }
        chattr("-i");
        assert!(start(&state, LIMIT).unwrap());
        let all = ["", "rootfs", "rootfs/upper", "rootfs/upper/a", "rootfs/upper/b"];
        let down = handing_down(&state);
        for dir in all {
            assert!(down.contains(&state.dir().join("roots").join(dir)), "{dir}");
        }
    }
}

#[test]
fn a_start_that_was_killed_is_gone_on_with_whatever_is_made_beside_it() {
    for mkfs in KINDS {
        let test = "a_start_that_was_killed_is_gone_on_with_whatever_is_made_beside_it";
        let Some(disk) = Disk::of(test, mkfs, "loop") else {
            continue;
        };
        let (state, [first, last]) = begun(&disk);
        let roots = state.dir().join("roots");
        let (ending, scratch) = (roots.join(ENDING), state.dir().join("taking-in"));
        assert!(number(&roots, &scratch, MINE, Instant::now() + LIMIT).unwrap());
        File::create(&ending).unwrap();
        let done = File::open(&first).unwrap();
        sys::set_project(&done, MINE, true).unwrap();
        let changed = || {
            let stat = done.metadata().unwrap();
            (stat.ctime(), stat.ctime_nsec())
        };
        let before = changed();
        // A tree that is to take its place, and does not.
        let fresh = state.dir().join("restoring/roots");
        std::fs::create_dir_all(&fresh).unwrap();
        assert!(take_in(&fresh, &scratch, MINE + 1, Instant::now() + LIMIT).unwrap());
        assert!(ending.exists());
        assert!(!fresh.join(ENDING).exists());
        // The disk was mounted without projects meanwhile, and the tree used.
        let stray = last.join("stray");
        std::fs::write(&stray, "").unwrap();
        assert!(start(&state, LIMIT).unwrap());
        assert!(!ending.exists());
        assert_eq!(sys::project(&File::open(&stray).unwrap()).unwrap().number, MINE);
        assert_eq!(changed(), before, "it was set already");
        assert!(sys::project(&File::open(&last).unwrap()).unwrap().handed_down);
    }
}

#[test]
fn what_can_neither_be_finished_nor_taken_back_is_no_containers() {
    for mkfs in KINDS {
        let test = "what_can_neither_be_finished_nor_taken_back_is_no_containers";
        let Some(disk) = Disk::of(test, mkfs, "loop") else {
            continue;
        };
        let (state, [_, last]) = begun(&disk);
        let ending = state.dir().join("roots").join(ENDING);
        File::create(&ending).unwrap();
        deepen(&last);
        for _ in 0..2 {
            let told = start(&state, LIMIT).unwrap_err();
            assert!(matches!(told, Error::Halfway { .. }), "{told}");
            assert!(ending.exists());
        }
        tree::delete(&last.join("d")).unwrap();
        assert!(start(&state, LIMIT).unwrap());
        assert!(!ending.exists());
    }
}

/// However little time each start has for it, all gets its number, and one that has time to look at all is the last.
#[test]
fn what_could_not_be_finished_is_gone_on_with() {
    for mkfs in KINDS {
        let Some(disk) = Disk::of("what_could_not_be_finished_is_gone_on_with", mkfs, "loop") else {
            continue;
        };
        let state = disk.bench.prepared("ctr/default/web");
        let upper = state.upper();
        for dir in ["a", "b/c", "b"] {
            let dir = upper.join(dir);
            std::fs::create_dir_all(&dir).unwrap();
            for n in 0..3 {
                std::fs::write(dir.join(format!("f{n}")), b"x").unwrap();
                symlink("f0", dir.join(format!("l{n}"))).unwrap();
            }
            nix::unistd::mkfifo(&dir.join("fifo"), Mode::S_IRWXU).unwrap();
            long_ago(&dir);
        }
        let before = listed(&upper);
        let roots = state.dir().join("roots");
        let specials = || -> Vec<u64> {
            let names = before.iter().map(|line| line.split(' ').next().unwrap());
            let found = names.map(|name| Path::new(name).symlink_metadata().unwrap());
            let special = found.filter(|m| !m.is_file() && !m.is_dir());
            special.map(|m| m.ino()).collect()
        };
        let first = specials();
        let (mut now, mut starts) = (first.clone(), 0);
        let scratch = state.dir().join("taking-in");
        let until = |until| take_in(&roots, &scratch, MINE, until).unwrap();
        let mut start = || {
            starts += 1;
            assert!(starts <= before.len() + 40, "each goes further");
            until(Instant::now())
        };
        for _ in 0..12 {
            assert!(!start());
            assert_eq!(listed(&upper), before);
            let next = specials();
            for ((first, now), next) in first.iter().zip(&now).zip(&next) {
                assert!(now == next || now == first, "made again, and again");
            }
            now = next;
        }
        // Where one has ended is not there any more for the next.
        for (from, to) in [("a", "y"), ("b", "z"), ("y", "a"), ("z", "b")] {
            std::fs::rename(upper.join(from), upper.join(to)).unwrap();
            assert!(!start());
        }
        // What is made behind where it has come to, wherever that is.
        for dir in ["a", "b"] {
            std::fs::write(upper.join(dir).join("new"), b"x").unwrap();
            symlink("new", upper.join(dir).join("newer")).unwrap();
            long_ago(&upper.join(dir));
        }
        let before = listed(&upper);
        let numbered = |line: &String| {
            let file = File::open(line.split(' ').next().unwrap()).unwrap();
            sys::project(&file).unwrap().number == MINE
        };
        let opened = || {
            before
                .iter()
                .filter(|line| line.contains("/f") && !line.contains("fifo"))
        };
        while !opened().all(numbered) {
            assert!(!start());
        }
        assert!(until(Instant::now() + LIMIT));
        assert_eq!(listed(&upper), before);
        for file in ["b/c/f2", "a/new", "b/new"] {
            let file = File::open(upper.join(file)).unwrap();
            assert_eq!(sys::project(&file).unwrap().number, MINE);
        }
        for dir in ["a", "b"] {
            let newer = upper.join(dir).join("newer");
            std::fs::rename(newer, upper.join("b/c").join(dir)).unwrap();
        }
    }
}
