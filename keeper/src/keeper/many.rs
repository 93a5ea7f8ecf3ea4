//! A state that is recorded again and again: each version is what it was.

use std::{fs, time::Instant};

use live::Root;
use runtime_spec::config::Config;
use store::{Hash, content::Stretch, format::Reason};

use super::Keeper;
use crate::{progress::Progress, tests::root};

/// What the file is in a version: each changes a part of the one before.
fn change(content: &mut Vec<u8>, version: u32) {
    let at = (version as usize * 37_123) % 190_000;
    let noise = version.wrapping_mul(2_654_435_761).to_le_bytes();
    for (byte, noise) in content.iter_mut().skip(at).take(800).zip(noise.iter().cycle()) {
        *byte ^= noise;
    }
    if version % 10 == 9 {
        content.splice(at..at, noise);
        content.truncate(200_000);
    }
}

/// Ten thousand in the long form.
#[test]
fn versions_of_one_state() {
    if !root() {
        return;
    }
    let soak = std::env::var_os("DIFFKEEPER_SOAK").is_some();
    let count = if soak { 10_000 } else { 120 };
    let dir = tempfile::tempdir().unwrap();
    let config = Config {
        root: dir.path().join("root"),
        ..Config::default()
    };
    let keeper = Keeper::open(&config).unwrap();
    let name = "ctr/default/many".parse().unwrap();
    let tree = keeper.node().state(&name).root(&Root::Rootfs).unwrap();
    tree.prepare_overlay(0o755, (0, 0)).unwrap();
    let mut content = vec![7; 200_000];
    let mut versions = Vec::new();
    let (mut first, mut last) = (0.0, 0.0);
    for n in 0..count {
        change(&mut content, n);
        fs::write(tree.upper().join("f"), &content).unwrap();
        fs::write(tree.upper().join(format!("small{}", n % 50)), n.to_string()).unwrap();
        let since = Instant::now();
        let made = keeper.commit(&name, Reason::Manual, None).unwrap().unwrap();
        let took = since.elapsed().as_secs_f64();
        if n < 50 {
            first += took;
        } else if n >= count - 50 {
            last += took;
        }
        versions.push((made.id, Hash::Blake3.chunk(&content)));
    }
    // The last cost what the first did, on a disk with moods.
    assert!(
        last < first * 5.0 + 5.0,
        "{first} s for the first fifty, {last} s for the last"
    );
    let state = keeper.known("many").unwrap();
    // The newest hundred are a chain, each on the one before; of the others some, and the very first.
    let chosen = (0..versions.len()).filter(|n| n % 97 == 0 || n + 100 >= versions.len());
    for n in chosen {
        let (id, expected) = versions[n];
        let tree = keeper.store().commit(id).unwrap().commit.tree_id().unwrap();
        let key = store::format::key(b"rootfs", b"f");
        let entry = keeper.store().entry(state.domain, tree, &key).unwrap().unwrap();
        let mut found = Vec::new();
        let take = |_, stretch: Stretch<'_>| {
            if let Stretch::Bytes(bytes) = stretch {
                found.extend_from_slice(bytes);
            }
            Ok(())
        };
        keeper.store().read(state.domain, &entry, take).unwrap();
        assert!(
            Hash::Blake3.chunk(&found) == expected,
            "version {n} is not what it was"
        );
    }
    assert_eq!(
        keeper.store().audit(&state, &[]).unwrap().commits,
        u64::from(count)
    );
    assert_eq!(keeper.verify(100, &Progress::default()).unwrap().problems, []);
}
