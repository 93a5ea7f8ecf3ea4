//! A process that is killed in the middle of anything: what it said was there is there when the store is opened next.

// A failed assertion is how a test reports.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader},
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use store::{
    Hash, Id, Retention, Store, Thorough, fault,
    format::{Commit, Entry, Kind, key},
};

const CHILD: &str = "STORE_KILL_CHILD";
const SEED: &str = "STORE_KILL_SEED";

/// xorshift: what a seed did once it does again.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % below
    }
}

/// The content of a file in a version: both tell it. Of two versions in three much is the same, so that one stands on the
/// other.
fn content(file: u64, version: u64) -> Vec<u8> {
    let mut bytes = alike(file * 1000 + if version.is_multiple_of(3) { version } else { 0 });
    let changed = alike(file * 1000 + version + 1);
    let begin = usize::try_from(version * 997).unwrap() % (bytes.len() + 1);
    for (to, from) in bytes.iter_mut().skip(begin).zip(changed).take(2000) {
        *to = from;
    }
    bytes
}

fn alike(seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    let length = usize::try_from(random.next(300_000)).unwrap();
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        bytes.extend_from_slice(&random.next(u64::MAX).to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

fn path(file: u64) -> Vec<u8> {
    key(b"rootfs", format!("dir{}/file{file}", file % 5).as_bytes())
}

/// Commits, expires and collects until it is killed, and says which commits are there.
fn work(dir: &Path, seed: u64) {
    let store = Store::open(dir, Hash::Blake3).unwrap();
    let mut random = Random::new(seed);
    println!("open");
    for _ in 0..40 {
        let name = format!("state{}", random.next(2));
        let state = store.make_state(&name, "domain").unwrap();
        let version = state.head.map_or(0, |(_, n)| n) + 1;
        let session = store.session(state.domain);
        let old = state
            .head
            .map(|(id, _)| store.commit(id).unwrap().commit.tree_id().unwrap());
        let file = random.next(12);
        let bytes = content(file, version);
        let before = old.and_then(|old| store.entry(state.domain, old, &path(file)).unwrap());
        let mut entry = Entry {
            key: path(file),
            kind: Kind::File as i32,
            mtime: i64::try_from(version).unwrap(),
            ..Entry::default()
        };
        session
            .content(bytes.as_slice(), bytes.len() as u64, before.as_ref(), "content")
            .unwrap()
            .set(&mut entry);
        let top = session.tree(old, [(entry.key.clone(), Some(entry))]).unwrap();
        let commit = Commit {
            tree: top.id.0.to_vec(),
            entries: top.entries,
            time: i64::try_from(version).unwrap(),
            message: format!("{file}"),
            ..Commit::default()
        };
        let made = session.commit(&state, commit, |_| {}).unwrap();
        drop(session);
        println!("commit {}", made.id);
        match random.next(6) {
            0 => {
                let state = store.state(&name).unwrap().unwrap();
                store
                    .expire(&state, &Retention { rules: vec![] }, i64::MAX, false)
                    .unwrap();
            }
            1 => {
                store.gc(Thorough::Erase, false, |_| {}).unwrap();
            }
            _ => {}
        }
    }
    println!("done");
}

/// A file of which each version changes a little more.
fn slowly(version: u64) -> Vec<u8> {
    let mut bytes = alike(9);
    bytes.resize(6_000, 7);
    for n in 1..=version {
        let begin = usize::try_from(n * 400 % 5_800).unwrap();
        let changed = alike(1_000 + n).into_iter().chain(std::iter::repeat(0));
        for (to, from) in bytes.iter_mut().skip(begin).take(200).zip(changed) {
            *to = from;
        }
    }
    bytes
}

/// Commits versions that change slowly, where there are none, and recompacts them.
fn recompact(dir: &Path) {
    let store = Store::open(dir, Hash::Blake3).unwrap();
    let mut state = store.make_state("slow", "domain").unwrap();
    let mut before: Option<Entry> = None;
    for version in state.head.map_or(0, |(_, n)| n) + 1..=14 {
        let session = store.session(state.domain);
        let bytes = slowly(version);
        let mut entry = Entry {
            key: path(0),
            kind: Kind::File as i32,
            ..Entry::default()
        };
        let content = session.content(bytes.as_slice(), bytes.len() as u64, before.as_ref(), "content");
        content.unwrap().set(&mut entry);
        let top = session.tree(None, [(path(0), Some(entry.clone()))]).unwrap();
        let commit = Commit {
            tree: top.id.0.to_vec(),
            entries: top.entries,
            ..Commit::default()
        };
        session.commit(&state, commit, |_| {}).unwrap();
        before = Some(entry);
        state = store.state("slow").unwrap().unwrap();
    }
    println!("open");
    let done = store.recompact(&state, |_| {}).unwrap();
    assert_eq!(done.chunks, 14);
    println!("done");
}

/// The other process; as a test it does nothing.
#[test]
fn child() {
    let (Some(dir), Ok(seed)) = (std::env::var_os(CHILD), std::env::var(SEED)) else {
        return;
    };
    match seed.as_str() {
        "recompact" => recompact(Path::new(&dir)),
        seed => work(Path::new(&dir), seed.parse().unwrap()),
    }
}

fn spawn(dir: &Path, seed: impl ToString, fault: Option<&str>) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["child", "--exact", "--nocapture", "--test-threads=1"])
        .env(CHILD, dir)
        .env(SEED, seed.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    match fault {
        Some(fault) => command.env(fault::VARIABLE, fault),
        None => command.env_remove(fault::VARIABLE),
    };
    command.spawn().unwrap()
}

/// Everything that was said to be there is, and what it holds is what was written.
fn check(dir: &Path, reported: &[Id], told: &str) {
    let store = Store::open(dir, Hash::Blake3).unwrap_or_else(|error| panic!("{told}: {error}"));
    let verified = store.verify(100, |_| {}).unwrap();
    assert_eq!(verified.problems, [], "{told}");
    for id in reported {
        store
            .commit(*id)
            .unwrap_or_else(|error| panic!("{told}: {error}"));
    }
    for state in store.states().unwrap() {
        store
            .audit(&state, &[])
            .unwrap_or_else(|error| panic!("{told}: {error}"));
        let Some((head, _)) = state.head else { continue };
        // What the newest commit holds, told from the messages of all.
        let mut expected: BTreeMap<u64, u64> = BTreeMap::new();
        store
            .log(&state, u64::MAX, |recorded| {
                let file = recorded.commit.message.parse().unwrap();
                expected.entry(file).or_insert(recorded.commit.sequence);
                Ok(std::ops::ControlFlow::Continue(()))
            })
            .unwrap();
        let tree = store.commit(head).unwrap().commit.tree_id().unwrap();
        for (file, version) in expected {
            let entry = store.entry(state.domain, tree, &path(file)).unwrap().unwrap();
            let mut bytes = Vec::new();
            store
                .read(state.domain, &entry, |_, stretch| {
                    match stretch {
                        store::content::Stretch::Bytes(part) => bytes.extend_from_slice(part),
                        store::content::Stretch::Hole(_) => panic!("{told}: a hole"),
                    }
                    Ok(())
                })
                .unwrap_or_else(|error| panic!("{told}: {error}"));
            assert!(
                bytes == content(file, version),
                "{told}: file {file} is not what it was in {version}"
            );
        }
    }
}

/// Reads what the child says until it ends; kills it after `limit` if there is one. Answers with the commits that it
/// named, and whether it was killed.
fn listen(mut child: Child, limit: Option<Duration>) -> (Vec<Id>, bool) {
    let out = child.stdout.take().unwrap();
    let lines = std::thread::spawn(move || {
        let lines = BufReader::new(out).lines().map_while(Result::ok);
        lines
            .filter_map(|line| line.split_once("commit ").and_then(|(_, id)| id.parse().ok()))
            .collect::<Vec<Id>>()
    });
    if let Some(limit) = limit {
        std::thread::sleep(limit);
        // It may be through.
        let _ = child.kill();
    }
    let status = child.wait().unwrap();
    let reported = lines.join().unwrap();
    assert!(
        status.success() || status.signal() == Some(9),
        "the child failed by itself: {status}"
    );
    (reported, !status.success())
}

#[test]
fn at_every_point() {
    for point in fault::POINTS {
        for passes in [0, 1, 5] {
            let dir = tempfile::tempdir().unwrap();
            let told = format!("{point}:{passes}");
            let (reported, killed) = listen(spawn(dir.path(), 7, Some(&told)), None);
            assert!(killed || passes > 0, "{told} was never reached");
            check(dir.path(), &reported, &told);
            // And it goes on from there.
            let (more, killed) = listen(spawn(dir.path(), 8, None), None);
            assert!(!killed);
            check(dir.path(), &[reported, more].concat(), &told);
        }
    }
}

#[test]
fn while_it_stores_in_fewer_bytes() {
    for point in fault::RECOMPACT {
        let dir = tempfile::tempdir().unwrap();
        for fault in [Some(point), None] {
            let (_, killed) = listen(spawn(dir.path(), "recompact", fault), None);
            assert_eq!(killed, fault.is_some(), "{point}");
            let store = Store::open(dir.path(), Hash::Blake3).unwrap();
            assert_eq!(store.verify(100, |_| {}).unwrap().problems, [], "{point}");
            let state = store.state("slow").unwrap().unwrap();
            // What was not finished is begun again.
            let left = if killed { 14 } else { 0 };
            assert_eq!(store.uncompacted(&state).unwrap(), left, "{point}");
            let mut versions = 0;
            let each = |recorded: store::Recorded| {
                versions += 1;
                let tree = recorded.commit.tree_id()?;
                let entry = store.entry(state.domain, tree, &path(0))?.unwrap();
                let expected = slowly(recorded.commit.sequence);
                store.read(state.domain, &entry, |_, found| {
                    assert!(found == store::content::Stretch::Bytes(&expected), "{point}");
                    Ok(())
                })?;
                Ok(std::ops::ControlFlow::Continue(()))
            };
            store.log(&state, u64::MAX, each).unwrap();
            assert_eq!(versions, 14);
        }
    }
}

#[test]
fn at_any_time() {
    let runs = if std::env::var_os("DIFFKEEPER_SOAK").is_some() {
        1000
    } else {
        50
    };
    let first: u64 = std::env::var("STORE_KILL_FIRST")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(1);
    let (mut killed_runs, dir) = (0, tempfile::tempdir().unwrap());
    let mut all = Vec::new();
    for seed in first..first + runs {
        let mut random = Random::new(seed);
        let limit = Duration::from_millis(5 + random.next(150));
        let told = format!("STORE_KILL_FIRST={seed}, after {limit:?}");
        let (reported, killed) = listen(spawn(dir.path(), seed, None), Some(limit));
        killed_runs += u32::from(killed);
        all.extend(reported);
        check(dir.path(), &all, &told);
    }
    assert!(killed_runs > 10, "only {killed_runs} were killed in time");
}
