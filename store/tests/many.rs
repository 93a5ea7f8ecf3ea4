//! Much of everything: commits, versions, entries.

// A failed assertion is how a test reports.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{ops::ControlFlow, time::Instant};

use store::{
    Hash, Retention, Store, Thorough, Version,
    content::Stretch,
    format::{Commit, Entry, Kind, key},
};

fn soak() -> bool {
    std::env::var_os("DIFFKEEPER_SOAK").is_some()
}

fn file(path: &str, text: &str) -> Entry {
    Entry {
        key: key(b"rootfs", path.as_bytes()),
        kind: Kind::File as i32,
        size: text.len() as u64,
        inline: text.as_bytes().to_vec(),
        ..Entry::default()
    }
}

fn commit(store: &Store, changes: Vec<Entry>, at: i64) -> Commit {
    let state = store.make_state("state", "domain").unwrap();
    let session = store.session(state.domain);
    let old = state
        .head
        .map(|(id, _)| store.commit(id).unwrap().commit.tree_id().unwrap());
    let changes = changes.into_iter().map(|entry| (entry.key.clone(), Some(entry)));
    let top = session.tree(old, changes).unwrap();
    let commit = Commit {
        tree: top.id.0.to_vec(),
        entries: top.entries,
        time: at,
        ..Commit::default()
    };
    session.commit(&state, commit, |_| {}).unwrap().commit
}

#[test]
fn commits() {
    const SECOND: i64 = 1_000_000_000;
    let count = if soak() { 10_000 } else { 600 };
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), Hash::Blake3).unwrap();
    let (mut first, mut last) = (0.0, 0.0);
    for n in 0..count {
        let since = Instant::now();
        commit(
            &store,
            vec![file(&format!("f{}", n % 50), &n.to_string())],
            n * SECOND,
        );
        let took = since.elapsed().as_secs_f64();
        if n < 100 {
            first += took;
        } else if n >= count - 100 {
            last += took;
        }
    }
    // The last hundred cost what the first did, on a disk with moods.
    assert!(
        last < first * 5.0 + 1.0,
        "{first} s for the first hundred, {last} s for the last"
    );
    let state = store.state("state").unwrap().unwrap();
    assert_eq!(
        store.audit(&state, &[]).unwrap().commits,
        u64::try_from(count).unwrap()
    );
    let since = Instant::now();
    let found = store.resolve(&state, &Version::At((count / 2) * SECOND)).unwrap();
    assert_eq!(found.commit.time, (count / 2) * SECOND);
    assert!(since.elapsed().as_secs_f64() < 1.0, "{:?}", since.elapsed());
    let gone = store
        .expire(
            &state,
            &Retention::default(),
            count * SECOND + 86_400 * SECOND,
            false,
        )
        .unwrap();
    assert!(gone > 0);
    store.gc(Thorough::Erase, false, |_| {}).unwrap();
    assert_eq!(
        store.audit(&state, &[]).unwrap().commits,
        u64::try_from(count).unwrap()
    );
    assert_eq!(store.verify(100, |_| {}).unwrap().problems, []);
}

#[test]
fn versions_of_one_file() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), Hash::Blake3).unwrap();
    let state = store.make_state("state", "domain").unwrap();
    let mut content: Vec<u8> = (0..1_000_000u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 11).to_le_bytes()[0])
        .collect();
    let mut versions = Vec::new();
    let mut before: Option<Entry> = None;
    for n in 0..100u32 {
        let at = (n as usize * 37_123) % 900_000;
        content[at..at + 1000].fill(n.to_le_bytes()[0]);
        if n % 10 == 9 {
            content.splice(at..at, [1, 2, 3]);
        }
        let session = store.session(state.domain);
        let mut entry = file("f", "");
        session
            .content(content.as_slice(), content.len() as u64, before.as_ref(), "f")
            .unwrap()
            .set(&mut entry);
        drop(session);
        before = Some(entry.clone());
        let made = commit(&store, vec![entry], i64::from(n));
        versions.push((made, content.clone()));
    }
    for (commit, expected) in &versions {
        let entry = store
            .entry(state.domain, commit.tree_id().unwrap(), &key(b"rootfs", b"f"))
            .unwrap()
            .unwrap();
        let mut found = Vec::new();
        store
            .read(state.domain, &entry, |_, stretch| {
                if let Stretch::Bytes(bytes) = stretch {
                    found.extend_from_slice(bytes);
                }
                Ok(())
            })
            .unwrap();
        assert!(found == *expected, "version {} is not what it was", commit.time);
    }
}

#[test]
fn entries_of_one_directory() {
    let count = if soak() { 1_000_000u32 } else { 100_000 };
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), Hash::Blake3).unwrap();
    let first = commit(
        &store,
        (0..count).map(|n| file(&format!("dir/file{n}"), "x")).collect(),
        0,
    );
    assert_eq!(first.entries, u64::from(count));
    let since = Instant::now();
    let second = commit(&store, vec![file("dir/file77777", "changed")], 1);
    // A node on each level, and the commit.
    assert!(second.written < 40_000, "{} bytes", second.written);
    assert!(since.elapsed().as_secs_f64() < 1.0, "{:?}", since.elapsed());
    let domain = store.domain("domain").unwrap();
    let mut changed = Vec::new();
    let (a, b) = (first.tree_id().unwrap(), second.tree_id().unwrap());
    store
        .differences(domain, Some(a), b, b"", |difference| {
            changed.push(difference.key().to_vec());
            Ok(ControlFlow::Continue(()))
        })
        .unwrap();
    assert_eq!(changed, [key(b"rootfs", b"dir/file77777")]);
    let proof = store.prove(domain, &second, &changed[0]).unwrap();
    assert!(proof.bytes().len() < 2048, "{}", proof.bytes().len());
    assert_eq!(proof.check().unwrap().2.inline, b"changed");
}
