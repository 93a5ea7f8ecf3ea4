//! A store whose hash is SHA-256: everything that a store does.

// A failed assertion is how a test reports.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::{fs, path::Path};

use sha2::{Digest, Sha256};
use store::{
    Hash, Recorded, Rescue, Retention, Store, Thorough, Version,
    content::Stretch,
    format::{Commit, Entry, Kind, key},
    tree::Proof,
};

use common::noise;

fn content(version: u64) -> Vec<u8> {
    let mut bytes = noise(1, 900_000);
    let at = usize::try_from(version).unwrap() * 100_000;
    bytes[at..at + 100].fill(9);
    bytes
}

fn commit(store: &Store, version: u64) -> Recorded {
    let state = store.make_state("ctr/default/web", "ctr/default").unwrap();
    let session = store.session(state.domain);
    let old = state
        .head
        .map(|(id, _)| store.commit(id).unwrap().commit.tree_id().unwrap());
    let mut changes = Vec::new();
    let bytes = content(version);
    let mut long = Entry {
        key: key(b"rootfs", b"long"),
        kind: Kind::File as i32,
        ..Entry::default()
    };
    session
        .content(bytes.as_slice(), bytes.len() as u64, None, "long")
        .unwrap()
        .set(&mut long);
    changes.push((long.key.clone(), Some(long)));
    for n in 0..300 {
        let entry = Entry {
            key: key(b"rootfs", format!("dir/f{n}").as_bytes()),
            kind: Kind::File as i32,
            inline: format!("{n} {}", if n == version { version } else { 0 }).into_bytes(),
            ..Entry::default()
        };
        changes.push((entry.key.clone(), Some(entry)));
    }
    let top = session.tree(old, changes).unwrap();
    let commit = Commit {
        tree: top.id.0.to_vec(),
        entries: top.entries,
        time: i64::try_from(version).unwrap(),
        ..Commit::default()
    };
    session.commit(&state, commit, |_| {}).unwrap()
}

fn check(dir: &Path, versions: &[u64]) {
    // The hash that is asked for is of a new store: this one has its own.
    let store = Store::open(dir, Hash::Blake3).unwrap();
    assert_eq!(store.hash(), Hash::Sha256);
    assert_eq!(store.verify(100, |_| {}).unwrap().problems, []);
    let state = store.state("ctr/default/web").unwrap().unwrap();
    assert_eq!(store.audit(&state, &[]).unwrap().commits, 6);
    for version in versions {
        let recorded = store.resolve(&state, &Version::Back(6 - version)).unwrap();
        let recorded = store.whole(recorded.id).unwrap();
        let tree = recorded.commit.tree_id().unwrap();
        let entry = store
            .entry(state.domain, tree, &key(b"rootfs", b"long"))
            .unwrap()
            .unwrap();
        let mut found = Vec::new();
        store
            .read(state.domain, &entry, |_, stretch| {
                if let Stretch::Bytes(part) = stretch {
                    found.extend_from_slice(part);
                }
                Ok(())
            })
            .unwrap();
        assert!(found == content(*version), "version {version}");
        let proof = store
            .prove(state.domain, &recorded.commit, &key(b"rootfs", b"dir/f77"))
            .unwrap();
        let (id, _, entry) = Proof::read(&proof.bytes()).unwrap().check().unwrap();
        assert_eq!((id, entry.inline.as_slice()), (recorded.id, &b"77 0"[..]));
    }
}

#[test]
fn everything() {
    let dir = tempfile::tempdir().unwrap();
    {
        let store = Store::open(dir.path(), Hash::Sha256).unwrap();
        let made = commit(&store, 1);
        // A commit's name is what `docs/format.md` says it is.
        let bytes = prost::Message::encode_to_vec(&made.commit);
        let name: [u8; 32] = Sha256::new()
            .chain_update([3])
            .chain_update(bytes)
            .finalize()
            .into();
        assert_eq!(made.id.0, name);
        for version in 2..=6 {
            commit(&store, version);
        }
    }
    check(dir.path(), &[1, 2, 3, 4, 5, 6]);
    // The catalog goes, and with it what says which hash it is, in the watermark too.
    fs::remove_dir_all(dir.path().join("catalog")).unwrap();
    fs::remove_file(dir.path().join("watermark")).unwrap();
    let rescue = Rescue::plan(dir.path(), |_| "ctr/default".into())
        .unwrap()
        .unwrap();
    rescue.run().unwrap();
    check(dir.path(), &[1, 2, 3, 4, 5, 6]);
    {
        let store = Store::open(dir.path(), Hash::Sha256).unwrap();
        let state = store.state("ctr/default/web").unwrap().unwrap();
        let none = Retention { rules: Vec::new() };
        assert_eq!(store.expire(&state, &none, 100, false).unwrap(), 5);
        assert!(store.gc(Thorough::Erase, false, |_| {}).unwrap().freed > 100_000);
    }
    check(dir.path(), &[6]);
    // A flip is found here too, and repaired as far as it can be.
    let packs = fs::read_dir(dir.path().join("packs")).unwrap().flatten();
    let data = packs
        .map(|file| file.path())
        .max_by_key(|path| fs::metadata(path).unwrap().len())
        .unwrap();
    let mut bytes = fs::read(&data).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&data, bytes).unwrap();
    let store = Store::open(dir.path(), Hash::Sha256).unwrap();
    assert!(!store.verify(100, |_| {}).unwrap().problems.is_empty());
    let plan = store.repair().unwrap();
    assert_eq!(plan.lost.len(), 1);
    assert_eq!(plan.lost[0].paths, ["rootfs:/long"]);
    plan.run().unwrap();
    assert_eq!(store.verify(100, |_| {}).unwrap().problems, []);
}
