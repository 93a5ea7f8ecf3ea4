//! What a store takes for versions of a file or directory: `cargo run --release -p diffkeeper-store --example versions --
//! STORE VERSION...`. Each VERSION is a file, or a directory of files, and follows the one before it.

// An example reports by failing.
#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeMap,
    fs,
    ops::ControlFlow,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Instant,
};

use nix::sys::resource::{UsageWho, getrusage};
use store::{
    Hash, Store,
    format::{Commit, Entry, Kind, key},
};

/// Every file below a path, by its name there.
fn files(top: &Path, below: &Path, found: &mut BTreeMap<Vec<u8>, PathBuf>) {
    let alone = below == Path::new("");
    let path = if alone { top.to_owned() } else { top.join(below) };
    if path.is_dir() {
        for file in fs::read_dir(&path).unwrap() {
            files(top, &below.join(file.unwrap().file_name()), found);
        }
    } else if path.is_file() {
        let name = if alone { Path::new("file") } else { below };
        found.insert(key(b"rootfs", name.as_os_str().as_encoded_bytes()), path);
    }
}

/// What a directory takes on the disk.
fn taken(dir: &Path) -> u64 {
    let about = fs::metadata(dir).unwrap();
    let below = about.is_dir().then(|| fs::read_dir(dir).unwrap());
    let below: u64 = below
        .into_iter()
        .flatten()
        .map(|file| taken(&file.unwrap().path()))
        .sum();
    below + about.blocks() * 512
}

fn cpu() -> f64 {
    let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
    [usage.user_time(), usage.system_time()]
        .map(|time| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6)
        .iter()
        .sum()
}

fn main() {
    let mut args = std::env::args_os().skip(1).map(PathBuf::from);
    let dir = args.next().unwrap();
    let store = Store::open(&dir, Hash::Blake3).unwrap();
    for version in args {
        let (begun, cpu_before) = (Instant::now(), cpu());
        let state = store.make_state("ctr/default/versions", "ctr/default").unwrap();
        let session = store.session(state.domain);
        let old = state
            .head
            .map(|(id, _)| store.commit(id).unwrap().commit.tree_id().unwrap());
        let mut there = BTreeMap::new();
        files(&version, Path::new(""), &mut there);
        let mut changes = BTreeMap::new();
        if let Some(old) = old {
            store
                .entries(state.domain, old, &[], |entry| {
                    changes.insert(entry.key, None);
                    Ok(ControlFlow::Continue(()))
                })
                .unwrap();
        }
        for (name, path) in there {
            let before = old.and_then(|old| store.entry(state.domain, old, &name).unwrap());
            let file = fs::File::open(&path).unwrap();
            let length = file.metadata().unwrap().len();
            let mut entry = Entry {
                key: name.clone(),
                kind: Kind::File as i32,
                mode: 0o644,
                ..Entry::default()
            };
            session
                .content(&file, length, before.as_ref(), "a version")
                .unwrap()
                .set(&mut entry);
            changes.insert(name, Some(entry));
        }
        let top = session.tree(old, changes).unwrap();
        let commit = Commit {
            tree: top.id.0.to_vec(),
            entries: top.entries,
            ..Commit::default()
        };
        let made = session.commit(&state, commit, |_| {}).unwrap();
        println!(
            "{}: {} bytes, {:.0} ms, {:.0} ms of CPU",
            version.display(),
            made.commit.written,
            begun.elapsed().as_secs_f64() * 1e3,
            (cpu() - cpu_before) * 1e3
        );
    }
    let usage = store.usage().unwrap();
    drop(store);
    println!("packs {}, directory {}", usage.bytes, taken(&dir));
}
