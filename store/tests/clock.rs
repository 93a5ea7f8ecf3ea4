//! A clock that jumps back: history is in the order in which it was made, whatever the times say.

// A failed assertion is how a test reports.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;

use store::{
    Hash, Id, Rescue, Retention, Rule, Store, Thorough, Version,
    format::{Commit, Entry, Kind, key},
};

const SECOND: i64 = 1_000_000_000;

fn commit(store: &Store, at: i64) -> Id {
    let state = store.make_state("ctr/default/web", "ctr/default").unwrap();
    let session = store.session(state.domain);
    let entry = Entry {
        key: key(b"rootfs", b"when"),
        kind: Kind::File as i32,
        inline: at.to_string().into_bytes(),
        ..Entry::default()
    };
    let top = session.tree(None, [(entry.key.clone(), Some(entry))]).unwrap();
    let commit = Commit {
        tree: top.id.0.to_vec(),
        time: at * SECOND,
        ..Commit::default()
    };
    session.commit(&state, commit, |_| {}).unwrap().id
}

#[test]
fn jumps_back() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), Hash::Blake3).unwrap();
    // An hour forward by mistake, and back; then before 1970, as on a board without a battery.
    let times = [1000, 1010, 4610, 1020, 1030, -50, 1040];
    let made: Vec<Id> = times.iter().map(|at| commit(&store, *at)).collect();
    let state = store.state("ctr/default/web").unwrap().unwrap();
    assert_eq!(store.audit(&state, &[]).unwrap().commits, 7);
    let at = |time: i64| {
        store
            .resolve(&state, &Version::At(time * SECOND))
            .map(|found| found.id)
    };
    // The last that was made of those that are not younger.
    assert_eq!(at(5000).unwrap(), made[6]);
    assert_eq!(at(1035).unwrap(), made[5]);
    assert_eq!(at(0).unwrap(), made[5]);
    assert!(at(-60).is_err());
    assert_eq!(store.resolve(&state, &Version::Back(4)).unwrap().id, made[2]);
    assert_eq!(store.resolve(&state, &Version::Head).unwrap().id, made[6]);

    // Retention, when the clock is back before most of it: what seems to be of the future is young, the newest stays.
    let hour = Retention {
        rules: vec![Rule { age: 3600, every: 0 }],
    };
    assert_eq!(store.expire(&state, &hour, 500 * SECOND, false).unwrap(), 0);
    let gone = store.expire(&state, &hour, 4620 * SECOND, false).unwrap();
    // Of more than an hour ago: 1000, 1010, -50; and 1020 is just within it.
    assert_eq!(gone, 3);
    store.gc(Thorough::Erase, false, |_| {}).unwrap();
    assert!(store.with_content(made[5]).is_err() && store.with_content(made[2]).is_ok());
    assert_eq!(store.verify(100, |_| {}).unwrap().problems, []);

    // Found again without the catalog it is the same line.
    drop(store);
    fs::remove_dir_all(dir.path().join("catalog")).unwrap();
    let rescue = Rescue::plan(dir.path(), |_| "ctr/default".into())
        .unwrap()
        .unwrap();
    rescue.run().unwrap();
    let store = Store::open(dir.path(), Hash::Blake3).unwrap();
    let state = store.state("ctr/default/web").unwrap().unwrap();
    assert_eq!(state.head, Some((made[6], 7)));
    let audited = store.audit(&state, &[]).unwrap();
    assert_eq!((audited.commits, audited.lost), (7, 0));
}
