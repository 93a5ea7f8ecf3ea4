//! A disk that fails at any one call: what was reported is there, nothing wrong is, and it goes on.

// A failed assertion is how a test reports.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::{collections::BTreeMap, path::Path};

use store::{
    Hash, Id, Retention, Store, Thorough,
    content::Stretch,
    fault::fail_disk,
    format::{Commit, Entry, Kind, key},
};

use common::noise;

/// The content of a version. The longest is more than a pack's buffer, so that writes are asked for in between too.
fn content(version: u64) -> Vec<u8> {
    let long = if version == 3 { 1_500_000 } else { 40_000 };
    noise(version, long)
}

fn path(version: u64) -> Vec<u8> {
    key(b"rootfs", format!("file{}", version % 3).as_bytes())
}

/// One more version; what was reported goes into `reported`.
fn commit(store: &Store, reported: &mut Vec<Id>) -> store::Result<()> {
    let state = store.make_state("state", "domain")?;
    let version = state.head.map_or(0, |(_, n)| n) + 1;
    let old = match state.head {
        Some((id, _)) => Some(store.commit(id)?.commit.tree_id()?),
        None => None,
    };
    let session = store.session(state.domain);
    let bytes = content(version);
    let mut entry = Entry {
        key: path(version),
        kind: Kind::File as i32,
        ..Entry::default()
    };
    session
        .content(bytes.as_slice(), bytes.len() as u64, None, "content")?
        .set(&mut entry);
    let top = session.tree(old, [(entry.key.clone(), Some(entry))])?;
    let commit = Commit {
        tree: top.id.0.to_vec(),
        time: i64::try_from(version).unwrap_or(0),
        ..Commit::default()
    };
    reported.push(session.commit(&state, commit, |_| {})?.id);
    Ok(())
}

/// All that a store does to its disk; goes on after a failure, as a keeper does, and says what failed.
fn scenario(dir: &Path, reported: &mut Vec<Id>, stays: bool) -> Vec<store::Error> {
    let mut failures = Vec::new();
    let store = match Store::open(dir, Hash::Blake3) {
        Ok(store) => store,
        Err(error) => return vec![error],
    };
    for n in 0..6 {
        failures.extend(commit(&store, reported).err());
        if n == 3 {
            let given_up = store.state("state").and_then(|state| {
                let none = Retention { rules: Vec::new() };
                state.map_or(Ok(0), |state| store.expire(&state, &none, 1 << 60, false))
            });
            failures.extend(given_up.err());
            failures.extend(store.gc(Thorough::Erase, false, |_| {}).err());
        }
    }
    // Without being opened anew too, where the disk is well again.
    if !stays {
        assert_eq!(store.verify(100, |_| {}).unwrap().problems, [], "{failures:?}");
    }
    failures
}

/// Everything that was reported is there, and the newest version is what was written.
fn check(dir: &Path, reported: &[Id], told: &str) {
    let store = Store::open(dir, Hash::Blake3).unwrap_or_else(|error| panic!("{told}: {error}"));
    assert_eq!(store.verify(100, |_| {}).unwrap().problems, [], "{told}");
    for id in reported {
        store
            .commit(*id)
            .unwrap_or_else(|error| panic!("{told}: {error}"));
    }
    let Some(state) = store.state("state").unwrap() else {
        assert!(reported.is_empty(), "{told}");
        return;
    };
    store.audit(&state, &[]).unwrap();
    let Some((head, newest)) = state.head else { return };
    let tree = store.commit(head).unwrap().commit.tree_id().unwrap();
    let mut expected: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
    for version in 1..=newest {
        expected.insert(path(version), content(version));
    }
    for (path, bytes) in expected {
        let entry = store.entry(state.domain, tree, &path).unwrap().unwrap();
        let mut found = Vec::new();
        let read = store.read(state.domain, &entry, |_, stretch| {
            if let Stretch::Bytes(part) = stretch {
                found.extend_from_slice(part);
            }
            Ok(())
        });
        read.unwrap_or_else(|error| panic!("{told}: {error}"));
        assert!(found == bytes, "{told}: wrong bytes");
    }
}

/// In memory where there is room for it: it is not the disk's speed that is tested.
fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap_or_else(|_| tempfile::tempdir().unwrap())
}

/// One test, and alone in its process: the calls of all threads are counted together.
#[test]
fn every_call_fails_once() {
    let dir = folder();
    fail_disk(None, 0, false);
    let mut reported = Vec::new();
    assert!(scenario(&dir.path().join("whole"), &mut reported, false).is_empty());
    assert_eq!(reported.len(), 6);
    let calls = fail_disk(None, 0, false);
    println!("{calls} calls to the disk");
    assert!(calls > 40, "{calls}");
    let soak = std::env::var_os("DIFFKEEPER_SOAK").is_some();
    // A disk stays full, and a bad place is one.
    for (error, words, usual) in [
        (libc::ENOSPC, "No space", true),
        (libc::EIO, "Input/output", false),
    ] {
        for on in [false, true].into_iter().filter(|on| soak || *on == usual) {
            for call in 0..calls {
                let told = format!("call {call} of {calls}, {words}, and all behind it: {on}");
                let dir = folder();
                let mut reported = Vec::new();
                fail_disk(Some(call), error, on);
                let failures = scenario(dir.path(), &mut reported, on);
                fail_disk(None, 0, false);
                let named = |error: &store::Error| {
                    let said = error.to_string();
                    said.contains(words) && said.contains(&dir.path().display().to_string())
                };
                // What failed is said where the work could not be done; it may have been done all the same (a file that
                // gc could not remove).
                assert!(
                    failures.iter().any(named) || reported.len() == 6,
                    "{told}: {failures:?}"
                );
                check(dir.path(), &reported, &told);
                // And it goes on.
                let before = reported.len();
                assert!(scenario(dir.path(), &mut reported, false).is_empty(), "{told}");
                assert_eq!(reported.len(), before + 6, "{told}");
                check(dir.path(), &reported, &told);
            }
        }
    }
}
