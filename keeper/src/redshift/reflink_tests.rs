//! On a real file system that shares content, and on one that does not.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    os::unix::fs::{FileExt, MetadataExt, symlink},
    path::{Path, PathBuf},
};

use super::*;
use crate::tests::{Disk, capture, listing, same, store};

const MIB: usize = 1 << 20;

fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Makes a version beside the live tree, which should be what `present` says.
fn beside(store: &Store, version: &store::Recorded, present: &store::Recorded, upper: &Path, to: &Path) {
    let domain = store.state("ctr/default/web").unwrap().unwrap().domain;
    let present = Present {
        domain,
        tree: present.commit.tree_id().unwrap(),
        tops: HashMap::from([(b"rootfs".to_vec(), upper.to_owned())]),
    };
    let plan = Plan {
        domain,
        tree: version.commit.tree_id().unwrap(),
        below: None,
        tops: HashMap::from([(b"rootfs".to_vec(), to.to_owned())]),
        overlay: true,
        sync: true,
    };
    plan.run_beside(Some(&present), store, &Progress::default())
        .unwrap();
}

/// A live tree with two versions, the second one present: files that stay, change, move, shrink, grow and appear.
fn versions(
    disk: &Disk,
    store: &Store,
) -> (
    PathBuf,
    store::Recorded,
    store::Recorded,
    BTreeMap<Vec<u8>, String>,
) {
    let upper = disk.at().join("upper");
    fs::create_dir_all(upper.join("d")).unwrap();
    let long = noise(48 * MIB, 1);
    fs::write(upper.join("stays"), &long[..16 * MIB]).unwrap();
    fs::write(upper.join("changes"), &long).unwrap();
    fs::write(upper.join("moves"), &long[MIB..9 * MIB]).unwrap();
    fs::write(upper.join("grows"), &long[..5 * MIB]).unwrap();
    fs::write(upper.join("shrinks"), &long[2 * MIB..7 * MIB]).unwrap();
    let sparse = File::create(upper.join("sparse")).unwrap();
    sparse.set_len(8 << 20).unwrap();
    sparse.write_all_at(&long[..MIB], 4 << 20).unwrap();
    let first = capture(store, &upper, None, None).unwrap();
    let listed = listing(&upper);
    let changes = File::options().write(true).open(upper.join("changes")).unwrap();
    for at in [0, 20 * MIB + 17, 48 * MIB - 5] {
        changes.write_all_at(b"other", at as u64).unwrap();
    }
    fs::rename(upper.join("moves"), upper.join("d/moved")).unwrap();
    File::options()
        .append(true)
        .open(upper.join("grows"))
        .unwrap()
        .set_len(7 << 20)
        .unwrap();
    File::options()
        .write(true)
        .open(upper.join("shrinks"))
        .unwrap()
        .set_len(4 << 20)
        .unwrap();
    // Where there was a hole, there is something now.
    sparse.write_all_at(&long[..MIB], 1 << 20).unwrap();
    let second = capture(store, &upper, None, None).unwrap();
    (upper, first, second, listed)
}

#[test]
fn what_lies_there_is_shared() {
    let Some(disk) = Disk::new("mkfs.xfs", 512) else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let (upper, first, second, listed) = versions(&disk, &store);
    let (before, to) = (disk.used(), disk.at().join("to"));
    beside(&store, &first, &second, &upper, &to);
    same(&listed, &listing(&to));
    // Of 82 MiB.
    let taken = disk.used() - before;
    assert!(taken < 16, "{taken} MiB");
    assert!(fs::metadata(to.join("sparse")).unwrap().blocks() * 512 < 3 << 20);
}

#[test]
fn what_lies_there_is_not_believed() {
    let Some(disk) = Disk::new("mkfs.xfs", 512) else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let (upper, first, second, listed) = versions(&disk, &store);
    // Behind the back of whoever recorded it: other bytes, nothing, other kinds of thing.
    let stays = File::options().write(true).open(upper.join("stays")).unwrap();
    stays.write_all_at(b"not what was recorded", 3 << 20).unwrap();
    stays.set_len(9 << 20).unwrap();
    fs::write(upper.join("changes"), noise(50 * MIB, 2)).unwrap();
    fs::remove_file(upper.join("grows")).unwrap();
    fs::remove_file(upper.join("shrinks")).unwrap();
    symlink("stays", upper.join("shrinks")).unwrap();
    fs::rename(upper.join("d"), upper.join("e")).unwrap();
    symlink("e", upper.join("d")).unwrap();
    let to = disk.at().join("to");
    beside(&store, &first, &second, &upper, &to);
    same(&listed, &listing(&to));
}

#[test]
fn copies_are_shared_within_a_version() {
    let Some(disk) = Disk::new("mkfs.xfs", 512) else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let (store, upper) = (store(dir.path()), dir.path().join("upper"));
    fs::create_dir(&upper).unwrap();
    for n in 0..8 {
        fs::write(upper.join(n.to_string()), noise(8 * MIB, 3)).unwrap();
    }
    std::os::unix::fs::chown(upper.join("7"), Some(7), Some(8)).unwrap();
    let recorded = capture(&store, &upper, None, None).unwrap();
    let (before, to) = (disk.used(), disk.at().join("to"));
    beside(&store, &recorded, &recorded, Path::new("/nowhere"), &to);
    same(&listing(&upper), &listing(&to));
    let taken = disk.used() - before;
    assert!(taken < 16, "{taken} MiB");
}

#[test]
fn a_file_system_that_cannot_share_gets_copies() {
    let Some(disk) = Disk::new("mkfs.ext4", 512) else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let (upper, first, second, listed) = versions(&disk, &store);
    let to = disk.at().join("to");
    beside(&store, &first, &second, &upper, &to);
    same(&listed, &listing(&to));
}
