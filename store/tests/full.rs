//! A disk that is full, or read-only: what was committed stays, and when there is room it goes on.

// A failed assertion is how a test reports.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::{
    fs,
    path::{Path, PathBuf},
};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use store::{
    Hash, Store,
    format::{Commit, Entry, Kind, key},
};

use common::noise;

/// A file system of a few megabytes in memory.
struct Disk(PathBuf);

impl Disk {
    fn new(dir: &Path, megabytes: u32) -> Option<Disk> {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: needs root (a disk of its own)");
            return None;
        }
        let options = format!("size={megabytes}m,mode=700");
        mount(
            Some("disk"),
            dir,
            Some("tmpfs"),
            MsFlags::empty(),
            Some(options.as_str()),
        )
        .unwrap();
        Some(Disk(dir.to_owned()))
    }

    fn read_only(&self, on: bool) {
        let flags = if on {
            MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY
        } else {
            MsFlags::MS_REMOUNT
        };
        mount(None::<&str>, &self.0, None::<&str>, flags, None::<&str>).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

fn commit(store: &Store, n: u64, length: usize) -> store::Result<()> {
    let state = store.make_state("state", "domain")?;
    let session = store.session(state.domain);
    let bytes = noise(n, length);
    let mut entry = Entry {
        key: key(b"rootfs", format!("file{n}").as_bytes()),
        kind: Kind::File as i32,
        ..Entry::default()
    };
    session
        .content(bytes.as_slice(), bytes.len() as u64, None, "content")?
        .set(&mut entry);
    let old = match state.head {
        Some((id, _)) => Some(store.commit(id)?.commit.tree_id()?),
        None => None,
    };
    let top = session.tree(old, [(entry.key.clone(), Some(entry))])?;
    let commit = Commit {
        tree: top.id.0.to_vec(),
        ..Commit::default()
    };
    session.commit(&state, commit, |_| {}).map(drop)
}

fn commits(store: &Store) -> u64 {
    store
        .state("state")
        .unwrap()
        .and_then(|state| state.head)
        .map_or(0, |(_, n)| n)
}

#[test]
fn full() {
    let dir = tempfile::tempdir().unwrap();
    let Some(disk) = Disk::new(dir.path(), 160) else {
        return;
    };
    let path = disk.0.join("store");
    let filler = disk.0.join("filler");
    let mut done = 0;
    for round in 0..4u64 {
        let store = Store::open(&path, Hash::Blake3).unwrap();
        assert_eq!(commits(&store), done, "round {round}");
        assert_eq!(store.verify(100, |_| {}).unwrap().problems, []);
        commit(&store, round * 1000, 100_000).unwrap();
        done += 1;
        // All but some kilobytes are taken; more of them each time, so that it is not always the same write that fails.
        let free = nix::sys::statvfs::statvfs(&disk.0).unwrap();
        let free = free.blocks_available() * free.fragment_size();
        let leave = 100_000 * (round + 1);
        fs::write(
            &filler,
            vec![1; usize::try_from(free.saturating_sub(leave)).unwrap()],
        )
        .unwrap();
        let mut failed = None;
        for n in 0..40 {
            match commit(&store, round * 1000 + n + 1, 60_000) {
                Ok(()) => done += 1,
                Err(error) => {
                    failed = Some(error.to_string());
                    break;
                }
            }
        }
        let told = failed.expect("the disk was full");
        assert!(told.contains("No space") || told.contains("catalog"), "{told}");
        // What is there can be read without room.
        assert_eq!(commits(&store), done);
        drop(store);
        fs::remove_file(&filler).unwrap();
        let store = Store::open(&path, Hash::Blake3).unwrap();
        assert_eq!(commits(&store), done, "after round {round}");
        assert_eq!(store.verify(100, |_| {}).unwrap().problems, []);
        commit(&store, round * 1000 + 999, 100_000).unwrap();
        done += 1;
    }
}

/// With room again the same process goes on, without being opened anew.
#[test]
fn room_again() {
    let dir = tempfile::tempdir().unwrap();
    let Some(disk) = Disk::new(dir.path(), 160) else {
        return;
    };
    let store = Store::open(&disk.0.join("store"), Hash::Blake3).unwrap();
    commit(&store, 1, 100_000).unwrap();
    let filler = disk.0.join("filler");
    let free = nix::sys::statvfs::statvfs(&disk.0).unwrap();
    let free = free.blocks_available() * free.fragment_size();
    fs::write(&filler, vec![1; usize::try_from(free - 300_000).unwrap()]).unwrap();
    // Longer than what is left: packs fail before the catalog is asked.
    let told = commit(&store, 2, 3_000_000).unwrap_err().to_string();
    assert!(told.contains("No space"), "{told}");
    // Others share the disk: what came to nothing takes no room there.
    let left = nix::sys::statvfs::statvfs(&disk.0).unwrap();
    let left = left.blocks_available() * left.fragment_size();
    assert!(left > 150_000, "{left} bytes of 300,000 are left");
    fs::remove_file(&filler).unwrap();
    commit(&store, 3, 100_000).unwrap();
    assert_eq!(commits(&store), 2);
    assert_eq!(store.verify(100, |_| {}).unwrap().problems, []);
}

#[test]
fn read_only() {
    let dir = tempfile::tempdir().unwrap();
    let Some(disk) = Disk::new(dir.path(), 160) else {
        return;
    };
    let path = disk.0.join("store");
    commit(&Store::open(&path, Hash::Blake3).unwrap(), 1, 100_000).unwrap();
    disk.read_only(true);
    let told = Store::open(&path, Hash::Blake3).err().unwrap().to_string();
    assert!(told.contains("Read-only"), "{told}");
    disk.read_only(false);
    let store = Store::open(&path, Hash::Blake3).unwrap();
    assert_eq!(commits(&store), 1);
}
