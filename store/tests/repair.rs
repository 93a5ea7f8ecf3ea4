//! Damaged stores: what is lost is named exactly, all else is there, and history goes on.

// A failed assertion is how a test reports.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    ops::ControlFlow,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use store::{
    Error, Hash, Known, Recorded, Rescue, Store, Surveyed, Version,
    content::Stretch,
    fault,
    format::{Commit, Entry, Kind, Shown, key},
};

use common::noise;

const CHILD: &str = "STORE_REPAIR_CHILD";
const STATES: [(&str, &str); 2] = [
    ("ctr/default/web", "ctr/default"),
    ("k8s/shop/db-0/db", "k8s/shop"),
];
const VERSIONS: u64 = 6;

/// What a state holds in a version: short and long files, and enough of them for a tree of two levels.
fn model(state: usize, version: u64) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let seed = state as u64 * 1000;
    let mut files = BTreeMap::new();
    for n in 0..150 {
        files.insert(
            key(b"rootfs", format!("dir/f{n}").as_bytes()),
            noise(seed + n, 20),
        );
    }
    files.insert(key(b"rootfs", b"same"), noise(seed + 500, 3000));
    files.insert(key(b"rootfs", b"changes"), noise(seed + 600 + version, 2000));
    let mut long = noise(seed + 700, 500_000);
    let at = usize::try_from(version).unwrap() * 70_000;
    long[at..at + 10].fill(7);
    files.insert(key(b"rootfs", b"long"), long);
    // Of both domains.
    files.insert(key(b"rootfs", b"shared"), noise(9999, 5000));
    files
}

fn commit(store: &Store, name: &str, domain: &str, files: &BTreeMap<Vec<u8>, Vec<u8>>) -> Recorded {
    let state = store.make_state(name, domain).unwrap();
    let session = store.session(state.domain);
    let version = state.head.map_or(0, |(_, n)| n) + 1;
    let old = state
        .head
        .map(|(id, _)| store.commit(id).unwrap().commit.tree_id().unwrap());
    let changes = files.iter().map(|(path, bytes)| {
        let before = old.and_then(|old| store.entry(state.domain, old, path).unwrap());
        let mut entry = Entry {
            key: path.clone(),
            kind: Kind::File as i32,
            mode: 0o644,
            ..Entry::default()
        };
        session
            .content(bytes.as_slice(), bytes.len() as u64, before.as_ref(), "f")
            .unwrap()
            .set(&mut entry);
        (path.clone(), Some(entry))
    });
    let changes: Vec<_> = changes.collect();
    let top = session.tree(old, changes).unwrap();
    let commit = Commit {
        tree: top.id.0.to_vec(),
        entries: top.entries,
        time: i64::try_from(version).unwrap() * 1_000_000_000,
        ..Commit::default()
    };
    session.commit(&state, commit, |_| {}).unwrap()
}

fn make(dir: &Path) {
    let store = Store::open(dir, Hash::Blake3).unwrap();
    for version in 1..=VERSIONS {
        for (n, (name, domain)) in STATES.into_iter().enumerate() {
            commit(&store, name, domain, &model(n, version));
        }
    }
    let web = store.state(STATES[0].0).unwrap().unwrap();
    let third = store.resolve(&web, &Version::Back(VERSIONS - 3)).unwrap();
    store.tag(&web, "third", Some(third.id)).unwrap();
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten() {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn read(store: &Store, state: &Known, commit: &Commit, path: &[u8]) -> store::Result<Option<Vec<u8>>> {
    let Some(entry) = store.entry(state.domain, commit.tree_id()?, path)? else {
        return Ok(None);
    };
    let mut found = Vec::new();
    store.read(state.domain, &entry, |_, stretch| {
        match stretch {
            Stretch::Bytes(part) => found.extend_from_slice(part),
            Stretch::Hole(length) => found.resize(found.len() + usize::try_from(length).unwrap(), 0),
        }
        Ok(())
    })?;
    Ok(Some(found))
}

/// By state and version, the paths that cannot be read; what can be read is what it was.
fn unreadable(store: &Store, told: &str) -> BTreeMap<(String, u64), BTreeSet<String>> {
    let mut lost: BTreeMap<(String, u64), BTreeSet<String>> = BTreeMap::new();
    for (n, (name, _)) in STATES.into_iter().enumerate() {
        let Some(state) = store.state(name).unwrap() else {
            continue;
        };
        let mut commits = Vec::new();
        store
            .log(&state, VERSIONS, |recorded| {
                commits.push(recorded.commit);
                Ok(ControlFlow::Continue(()))
            })
            .unwrap();
        for commit in commits {
            for (path, bytes) in model(n, commit.sequence) {
                match read(store, &state, &commit, &path) {
                    Ok(Some(found)) => assert!(found == bytes, "{told}: wrong bytes at {}", Shown(&path)),
                    Ok(None) => panic!("{told}: {} is not in {}", Shown(&path), commit.sequence),
                    Err(_) => {
                        let of = lost.entry((name.to_owned(), commit.sequence)).or_default();
                        of.insert(Shown(&path).to_string());
                    }
                }
            }
        }
    }
    lost
}

fn packs(dir: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(dir.join("packs")).unwrap().flatten();
    let mut packs: Vec<PathBuf> = files.map(|file| file.path()).collect();
    packs.sort();
    packs
}

/// Repairs, and checks everything that a repair promises. Answers with how many versions lost something.
fn repaired(dir: &Path, told: &str) -> usize {
    let store = Store::open(dir, Hash::Blake3).unwrap_or_else(|error| panic!("{told}: {error}"));
    let before: Vec<(PathBuf, Vec<u8>)> = packs(dir)
        .into_iter()
        .map(|path| (path.clone(), fs::read(path).unwrap()))
        .collect();
    // Whoever watches may end it as long as nothing is changed.
    let stopped = store.repair_watched(|done| match done.objects {
        0 => ControlFlow::Continue(()),
        _ => ControlFlow::Break(()),
    });
    assert!(matches!(stopped.err(), Some(Error::Stopped)), "{told}");
    let mut last = Surveyed::default();
    let watched = |done: &Surveyed| {
        assert!(
            done.objects <= done.of_objects && done.commits >= last.commits,
            "{done:?}"
        );
        last = *done;
    };
    let plan = store.repair_watched(watched).unwrap();
    assert!(last.objects > 0 && last.commits > 0, "{told}: {last:?}");
    let shown = plan.to_string();
    let mut said: BTreeMap<(String, u64), BTreeSet<String>> = BTreeMap::new();
    let mut vague = false;
    for lost in &plan.lost {
        for sequence in lost.first.0..=lost.last.0 {
            let of = said.entry((lost.state.clone(), sequence)).or_default();
            of.extend(lost.paths.iter().cloned());
            vague |= lost.paths.is_empty() || lost.paths.iter().any(|path| path.contains(" entries"));
        }
    }
    drop(plan);
    // Nothing was changed by looking.
    for (path, bytes) in &before {
        assert!(fs::read(path).unwrap() == *bytes, "{told}");
    }
    store
        .repair()
        .unwrap()
        .run()
        .unwrap_or_else(|error| panic!("{told}: {error}"));
    assert!(
        store.repair().unwrap().is_empty(),
        "{told}\n{}",
        store.repair().unwrap()
    );
    drop(store);
    let store = Store::open(dir, Hash::Blake3).unwrap();
    assert_eq!(store.verify(100, |_| {}).unwrap().problems, [], "{told}\n{shown}");
    let lost = unreadable(&store, told);
    if vague {
        // Of entries that a lost node held only their number and the first is known.
        let versions: BTreeSet<_> = said.keys().collect();
        assert!(
            lost.keys().all(|version| versions.contains(version)),
            "{told}\n{shown}"
        );
    } else {
        assert_eq!(lost, said, "{told}\n{shown}");
    }
    for (n, (name, domain)) in STATES.into_iter().enumerate() {
        let state = store.state(name).unwrap().unwrap();
        assert!(store.audit(&state, &[]).unwrap().commits >= VERSIONS, "{told}");
        // The newest can be begun with, and history goes on.
        store
            .whole(state.newest().unwrap())
            .unwrap_or_else(|error| panic!("{told}: {error}\n{shown}"));
        let made = commit(&store, name, domain, &model(n, 1));
        for (path, bytes) in model(n, 1) {
            let state = store.state(name).unwrap().unwrap();
            assert!(
                read(&store, &state, &made.commit, &path).unwrap().unwrap() == bytes,
                "{told}"
            );
        }
    }
    assert_eq!(store.verify(100, |_| {}).unwrap().problems, [], "{told}");
    lost.len()
}

/// A folder in memory, where there is room: it is not the disk's speed that is tested.
fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap_or_else(|_| tempfile::tempdir().unwrap())
}

#[test]
fn packs_that_are_flipped_cut_or_lost() {
    let dir = folder();
    let (whole, broken) = (dir.path().join("whole"), dir.path().join("broken"));
    make(&whole);
    let (mut runs, mut losses) = (0, 0);
    for pack in packs(&whole) {
        let bytes = fs::read(&pack).unwrap();
        let length = bytes.len();
        let mut damages: Vec<(String, Option<Vec<u8>>)> = vec![("is lost".into(), None)];
        // The head of the pack, of the first record and its content, and here and there.
        let soak = std::env::var_os("DIFFKEEPER_SOAK").is_some();
        let step = if soak { 64 } else { 3 };
        let places = [20, 41, 60].into_iter();
        for at in places
            .chain((1..step).map(|n| length * n / step))
            .filter(|at| *at < length)
        {
            let mut flipped = bytes.clone();
            flipped[at] ^= 0x20;
            damages.push((format!("byte {at} flipped"), Some(flipped)));
        }
        for cut in [30, length / 3] {
            damages.push((format!("cut to {cut}"), Some(bytes[..cut].to_vec())));
        }
        for (how, with) in damages {
            let told = format!("{} {how}", pack.file_name().unwrap().display());
            let _ = fs::remove_dir_all(&broken);
            copy(&whole, &broken);
            let path = broken.join(pack.strip_prefix(&whole).unwrap());
            match with {
                Some(bytes) => fs::write(&path, bytes).unwrap(),
                None => fs::remove_file(&path).unwrap(),
            }
            losses += repaired(&broken, &told);
            runs += 1;
        }
    }
    println!("{runs} damages, {losses} versions lost something");
    assert!(runs > 30 && losses > 50, "{runs} {losses}");
}

/// What another domain has, and what a pack that was put aside has, is not lost.
#[test]
fn other_copies() {
    let dir = folder();
    make(dir.path());
    let store = Store::open(dir.path(), Hash::Blake3).unwrap();
    let state = store.state(STATES[0].0).unwrap().unwrap();
    drop(store);
    let of_state = |path: &PathBuf| {
        let head = fs::read(path).unwrap();
        u32::from_le_bytes(head[28..32].try_into().unwrap()) == state.domain && head[32] == 0
    };
    let data = packs(dir.path()).into_iter().find(of_state).unwrap();
    let bytes = fs::read(&data).unwrap();
    fs::remove_file(&data).unwrap();
    repaired(dir.path(), "without its content");
    let store = Store::open(dir.path(), Hash::Blake3).unwrap();
    let lost = unreadable(&store, "without its content");
    let first = &lost[&(STATES[0].0.to_owned(), 2)];
    assert!(
        first.contains("rootfs:/changes") && !first.contains("rootfs:/shared"),
        "{first:?}"
    );
    let second = store.resolve(&state, &Version::Back(VERSIONS - 2)).unwrap();
    let told = store.whole(second.id).unwrap_err().to_string();
    assert!(
        told.contains("damaged") && told.contains("rootfs:/changes"),
        "{told}"
    );
    // Somebody finds the pack again: whatever it is called, all of it comes back.
    fs::write(data.with_extension("pack.found"), bytes).unwrap();
    let plan = store.repair().unwrap();
    assert!(!plan.healed.is_empty() && plan.lost.is_empty(), "{plan}");
    plan.run().unwrap();
    assert_eq!(unreadable(&store, "found again"), BTreeMap::new());
    assert_eq!(store.verify(100, |_| {}).unwrap().problems, []);
    store.whole(second.id).unwrap();
}

/// Brings a catalog back, as `diffkeeper repair` does.
fn rescued(dir: &Path, told: &str) -> String {
    let opened =
        Store::open(dir, Hash::Blake3).map(|store| store.verify(100, |_| {}).map(|done| done.problems));
    assert!(
        !matches!(opened, Ok(Ok(problems)) if problems.is_empty()),
        "{told}: nothing was noticed"
    );
    let domain = |state: &str| {
        STATES
            .iter()
            .find(|(name, _)| *name == state)
            .unwrap()
            .1
            .to_owned()
    };
    let rescue = Rescue::plan(dir, domain)
        .unwrap()
        .unwrap_or_else(|| panic!("{told}: it is whole"));
    let shown = rescue.to_string();
    rescue.run().unwrap_or_else(|error| panic!("{told}: {error}"));
    assert!(Rescue::plan(dir, domain).unwrap().is_none(), "{told}");
    shown
}

/// Everything is there.
fn all_there(dir: &Path, told: &str) {
    let store = Store::open(dir, Hash::Blake3).unwrap_or_else(|error| panic!("{told}: {error}"));
    assert_eq!(store.verify(100, |_| {}).unwrap().problems, [], "{told}");
    assert!(store.repair().unwrap().is_empty(), "{told}");
    assert_eq!(unreadable(&store, told), BTreeMap::new());
    for (name, domain) in STATES {
        let state = store.state(name).unwrap().unwrap();
        let audited = store.audit(&state, &[]).unwrap();
        assert_eq!((audited.commits, audited.lost), (VERSIONS, 0), "{told}");
        assert_eq!(store.domain(domain).unwrap(), state.domain, "{told}");
    }
}

#[test]
fn a_catalog_that_is_gone() {
    let dir = folder();
    make(dir.path());
    fs::remove_dir_all(dir.path().join("catalog")).unwrap();
    let shown = rescued(dir.path(), "gone");
    assert!(
        shown.contains("made anew") && shown.contains("12 commits"),
        "{shown}"
    );
    all_there(dir.path(), "gone");
    repaired(dir.path(), "gone");
}

#[test]
fn a_catalog_that_is_gone_and_packs_that_are_damaged() {
    let dir = folder();
    let (whole, broken) = (dir.path().join("whole"), dir.path().join("broken"));
    make(&whole);
    for pack in packs(&whole) {
        let length = fs::metadata(&pack).unwrap().len();
        for at in [20, 41, 44, length / 2, length - 100] {
            let told = format!("{} at {at}", pack.display());
            let _ = fs::remove_dir_all(&broken);
            copy(&whole, &broken);
            fs::remove_dir_all(broken.join("catalog")).unwrap();
            let mut bytes = fs::read(&pack).unwrap();
            bytes[usize::try_from(at).unwrap()] ^= 1;
            fs::write(broken.join(pack.strip_prefix(&whole).unwrap()), bytes).unwrap();
            rescued(&broken, &told);
            let store = Store::open(&broken, Hash::Blake3).unwrap();
            store.repair().unwrap().run().unwrap();
            assert_eq!(store.verify(100, |_| {}).unwrap().problems, [], "{told}");
            assert!(store.repair().unwrap().is_empty(), "{told}");
            let lost = unreadable(&store, &told);
            // A pack without a head tells no commits: a state may be gone with it, and nothing wrong comes instead.
            for state in store.states().unwrap() {
                let audited = store.audit(&state, &[]).unwrap();
                let of = lost.keys().filter(|(of, _)| *of == state.name).count() as u64;
                let marks = store.tombstones(&state).unwrap().len() as u64;
                assert_eq!(marks, of + audited.lost, "{told}");
                store
                    .whole(state.newest().unwrap())
                    .unwrap_or_else(|error| panic!("{told}: {error}"));
            }
        }
    }
}

#[test]
fn a_catalog_that_fell_back() {
    let dir = folder();
    let (early, late) = (dir.path().join("early"), dir.path().join("late"));
    {
        let store = Store::open(&early, Hash::Blake3).unwrap();
        for version in 1..=2 {
            commit(&store, STATES[0].0, STATES[0].1, &model(0, version));
        }
    }
    copy(&early, &late);
    {
        let store = Store::open(&late, Hash::Blake3).unwrap();
        for version in 3..=VERSIONS {
            commit(&store, STATES[0].0, STATES[0].1, &model(0, version));
        }
        for version in 1..=VERSIONS {
            commit(&store, STATES[1].0, STATES[1].1, &model(1, version));
        }
    }
    fs::remove_dir_all(late.join("catalog")).unwrap();
    copy(&early.join("catalog"), &late.join("catalog"));
    let shown = rescued(&late, "fell back");
    assert_eq!(shown.matches("comes back: ").count(), 10, "{shown}");
    all_there(&late, "fell back");
}

#[test]
fn a_catalog_that_is_flipped() {
    let dir = folder();
    let (whole, broken) = (dir.path().join("whole"), dir.path().join("broken"));
    make(&whole);
    // Opened anew: what the journal had is in tables too.
    for n in 0..3 {
        let store = Store::open(&whole, Hash::Blake3).unwrap();
        store
            .make_state(&format!("ctr/default/other{n}"), "ctr/default")
            .unwrap();
    }
    let mut files = Vec::new();
    let mut folders = vec![whole.join("catalog")];
    while let Some(dir) = folders.pop() {
        for entry in fs::read_dir(dir).unwrap().flatten() {
            match entry.file_type().unwrap().is_dir() {
                true => folders.push(entry.path()),
                false => files.push(entry.path()),
            }
        }
    }
    let mut rescues = 0;
    for file in files {
        let bytes = fs::read(&file).unwrap();
        // A journal is mostly nothing yet.
        let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |at| at + 1);
        for at in [end / 2, end.saturating_sub(10)]
            .into_iter()
            .filter(|at| *at < end)
        {
            let told = format!("{} at {at}", file.display());
            let _ = fs::remove_dir_all(&broken);
            copy(&whole, &broken);
            let mut flipped = bytes.clone();
            flipped[at] ^= 0x10;
            fs::write(broken.join(file.strip_prefix(&whole).unwrap()), flipped).unwrap();
            let domain = |state: &str| {
                let known = STATES.iter().find(|(name, _)| *name == state);
                known.map_or("ctr/default", |(_, domain)| domain).to_owned()
            };
            if let Some(rescue) = Rescue::plan(&broken, domain).unwrap() {
                rescue.run().unwrap();
                rescues += 1;
            }
            all_there(&broken, &told);
        }
    }
    println!("{rescues} catalogs were made anew or completed");
    assert!(rescues > 3, "{rescues}");
}

/// The other process; as a test it does nothing.
#[test]
fn child() {
    if let Some(dir) = std::env::var_os(CHILD) {
        let store = Store::open(Path::new(&dir), Hash::Blake3).unwrap();
        store.repair().unwrap().run().unwrap();
    }
}

#[test]
fn killed_at_every_step() {
    let dir = folder();
    let whole = dir.path().join("whole");
    make(&whole);
    for point in fault::REPAIR {
        let broken = dir.path().join(point);
        copy(&whole, &broken);
        // Of each class one: content and the newest tree are lost.
        for pack in packs(&broken).into_iter().take(2) {
            let mut bytes = fs::read(&pack).unwrap();
            let end = bytes.len();
            bytes[end - 30] ^= 1;
            bytes[end / 2] ^= 1;
            fs::write(&pack, bytes).unwrap();
        }
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["child", "--exact", "--test-threads=1"])
            .env(CHILD, &broken)
            .env(fault::VARIABLE, point)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap();
        assert_eq!(status.signal(), Some(9), "{point}");
        // What is left to be said of what is lost, the marks say: here it is enough that all else is right.
        let store = Store::open(&broken, Hash::Blake3).unwrap();
        store.repair().unwrap().run().unwrap();
        assert_eq!(store.verify(100, |_| {}).unwrap().problems, [], "{point}");
        assert!(store.repair().unwrap().is_empty(), "{point}");
        for (name, _) in STATES {
            let state = store.state(name).unwrap().unwrap();
            store
                .whole(state.newest().unwrap())
                .unwrap_or_else(|error| panic!("{point}: {error}"));
            let marks: BTreeSet<u64> = store
                .tombstones(&state)
                .unwrap()
                .iter()
                .map(|m| m.sequence)
                .collect();
            let lost = unreadable(&store, point);
            let versions = lost
                .keys()
                .filter(|(of, _)| of == name)
                .map(|(_, sequence)| *sequence);
            assert_eq!(versions.collect::<BTreeSet<u64>>(), marks, "{point}");
        }
        let aside = packs(&broken)
            .iter()
            .filter(|path| path.extension().is_some_and(|e| e == "damaged"))
            .count();
        assert_eq!(aside, 2, "{point}");
    }
}
