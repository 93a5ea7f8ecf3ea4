//! Makes the store that `tests/fixtures` keeps of a format: `cargo run -p diffkeeper-store --example fixture -- DIR`,
//! then `tar -C DIR -cS . | gzip -9n >store/tests/fixtures/store-N.tar.gz`. Done once for each format, by the last
//! version that writes it; `tests/migration.rs` knows what is in it.

// An example reports by failing.
#![allow(clippy::unwrap_used)]

#[path = "../tests/common/mod.rs"]
mod common;

use std::path::Path;

use store::{
    Hash, Retention, Store, Thorough,
    format::{Commit, Entry, Kind, key},
};

use common::noise;

fn main() {
    let dir = std::env::args_os().nth(1).unwrap();
    let store = Store::open(Path::new(&dir), Hash::Blake3).unwrap();
    for (name, domain) in [
        ("ctr/default/web", "ctr/default"),
        ("k8s/shop/db-0/db", "k8s/shop"),
    ] {
        for n in 1..=6u32 {
            let state = store.make_state(name, domain).unwrap();
            let session = store.session(state.domain);
            let old = state
                .head
                .map(|(id, _)| store.commit(id).unwrap().commit.tree_id().unwrap());
            let file = |path: &str, bytes: &[u8]| {
                let mut entry = Entry {
                    key: key(b"rootfs", path.as_bytes()),
                    kind: Kind::File as i32,
                    mode: 0o644,
                    ..Entry::default()
                };
                session
                    .content(bytes, bytes.len() as u64, None, path)
                    .unwrap()
                    .set(&mut entry);
                (entry.key.clone(), Some(entry))
            };
            let changes = [
                file("always", &noise(u64::from(n % 2), 400)),
                file(&format!("only{n}"), &noise(u64::from(n) + 10, 300)),
                file("counter", n.to_string().as_bytes()),
            ];
            let top = session.tree(old, changes).unwrap();
            let commit = Commit {
                tree: top.id.0.to_vec(),
                entries: top.entries,
                time: i64::from(n) * 1_000_000_000,
                message: format!("version {n}"),
                ..Commit::default()
            };
            let made = session.commit(&state, commit, |_| {}).unwrap();
            drop(session);
            if n == 2 {
                store.tag(&state, "second", Some(made.id)).unwrap();
            }
        }
    }
    // The content of some is given up, and gc has been.
    let web = store.state("ctr/default/web").unwrap().unwrap();
    let none = Retention { rules: Vec::new() };
    store.expire(&web, &none, 100_000_000_000, false).unwrap();
    store.gc(Thorough::Erase, false, |_| {}).unwrap();
}
