//! What becomes of commits where less is told than was written: whole files are compared, and nothing is missed.

use std::{
    fs::{self, Permissions},
    os::unix::fs::{FileExt, PermissionsExt},
    path::Path,
};

use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
use store::{Recorded, format::Watcher};

use super::{
    Watching,
    pages_tests::{LENGTH, MIB, PAGE, noise, open},
    tests::{Bed, Random},
};
use crate::tests::Disk;

/// A file system, and so many large files on it that are followed, if that can be.
struct Large {
    bed: Bed,
    random: Random,
    // After what is on it.
    _disk: Disk,
}

impl Large {
    fn files(program: &str, files: usize, limit: usize) -> Option<Large> {
        let disk = Disk::new(program, 512)?;
        let bed = Bed::watched(&disk.at(), Watching::auto)?;
        match bed.watching.pages() {
            Ok(pages) => pages.follow_at_most(limit),
            Err(why) => {
                println!("skipped: {why}");
                return None;
            }
        }
        let mut random = Random(11);
        for n in 0..files {
            fs::write(bed.at(format!("file{n}")), noise(LENGTH, &mut random)).unwrap();
        }
        bed.commit(None).unwrap();
        // Once more: what was never flushed has no past.
        bed.commit(Some("again")).unwrap();
        Some(Large {
            bed,
            random,
            _disk: disk,
        })
    }

    /// Writes a page of a file; clean ones turn dirty.
    fn page(&mut self, file: usize) {
        let bytes = noise(PAGE, &mut self.random);
        let at = self.random.below(LENGTH / PAGE) * PAGE;
        let file = open(&self.bed.at(format!("file{file}"))).unwrap();
        file.sync_all().unwrap();
        let unneeded = nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED;
        nix::fcntl::posix_fadvise(&file, 0, 0, unneeded).unwrap();
        file.write_all_at(&bytes, at).unwrap();
    }

    /// A commit that holds what there is, and how much was read for it.
    fn commit(&self) -> Recorded {
        let made = self.bed.commit(None).unwrap();
        self.bed.check();
        made
    }
}

fn more_than_the_ring_holds(program: &str) {
    let Some(mut large) = Large::files(program, 1, 100) else {
        return;
    };
    large.page(0);
    assert!(large.commit().commit.read <= MIB);
    large.page(0);
    // Of whatever is on the same disk: the ring has 4 MiB, and these take more than 32 bytes each.
    let other = large.bed.at("other");
    fs::write(&other, "small").unwrap();
    for mode in (0..0o700).cycle().take((4 << 20) / 32) {
        fs::set_permissions(&other, Permissions::from_mode(mode)).unwrap();
    }
    large.page(0);
    assert!(large.commit().commit.read >= LENGTH);
    large.page(0);
    assert!(large.commit().commit.read <= MIB, "it has not come back");
}

#[test]
fn more_than_the_ring_holds_is_compared_whole_on_ext4() {
    more_than_the_ring_holds("mkfs.ext4");
}

#[test]
fn more_than_the_ring_holds_is_compared_whole_on_xfs() {
    more_than_the_ring_holds("mkfs.xfs");
}

#[test]
fn files_that_are_followed_no_more_are_compared_whole() {
    let Some(mut large) = Large::files("mkfs.ext4", 3, 2) else {
        return;
    };
    for _ in 0..3 {
        (0..3).for_each(|file| large.page(file));
        assert!(large.commit().commit.read >= LENGTH, "three are followed");
    }
    // What had only just changed is read once more.
    large.bed.commit(Some("again")).unwrap();
    large.page(0);
    large.commit();
    large.bed.commit(Some("again")).unwrap();
    large.page(0);
    assert!(large.commit().commit.read <= MIB, "the last one is not followed");
}

#[test]
fn where_the_programs_have_no_room_files_are_compared_whole() {
    let Some(mut large) = Large::files("mkfs.ext4", 1, 10_000) else {
        return;
    };
    large.bed.watching.pages().unwrap().fill();
    let late = noise(LENGTH, &mut large.random);
    fs::write(large.bed.at("file1"), late).unwrap();
    large.commit();
    for _ in 0..2 {
        large.page(1);
        assert!(large.commit().commit.read >= LENGTH, "it is followed");
    }
    // It is read once more where it had only just changed.
    large.bed.commit(Some("again")).unwrap();
    large.page(0);
    assert!(large.commit().commit.read <= MIB, "the first one is not");
}

#[test]
fn what_a_keeper_knew_is_not_known_after_its_end() {
    let Some(mut large) = Large::files("mkfs.ext4", 1, 100) else {
        return;
    };
    large.page(0);
    assert!(large.commit().commit.read <= MIB);
    large.page(0);
    let dir = large.bed.upper().parent().unwrap().to_owned();
    large.bed.watching = Watching::scan();
    large.page(0);
    large.bed.watching = Watching::auto(&dir, &dir.join("scratch"));
    large.page(0);
    assert!(large.commit().commit.read >= LENGTH);
    large.page(0);
    assert!(large.commit().commit.read <= MIB, "it has not come back");
}

/// A watcher that a thread without the right to load programs gets.
fn unpermitted(root: &Path, scratch: &Path) -> Watching {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let mut has = capabilities(None).unwrap();
            let needed = CapabilitySet::SYS_ADMIN | CapabilitySet::BPF | CapabilitySet::PERFMON;
            has.effective.remove(needed);
            set_capabilities(None, has).unwrap();
            Watching::auto(root, scratch)
        });
        thread.join().unwrap()
    })
}

#[test]
fn without_permission_everything_is_looked_at() {
    let Some(disk) = Disk::new("mkfs.ext4", 512) else {
        return;
    };
    let bed = Bed::watched(&disk.at(), unpermitted).unwrap();
    let why = bed.watching.pages().map(drop).unwrap_err();
    assert!(
        why.contains("does not take the programs") || why.contains("clang"),
        "{why}"
    );
    assert!(bed.watching.fanotify().is_err());
    one_page_of_a_file(&bed);
}

/// Of which all is read.
fn one_page_of_a_file(bed: &Bed) {
    let mut random = Random(5);
    fs::write(bed.at("file"), noise(LENGTH, &mut random)).unwrap();
    bed.commit(None).unwrap();
    bed.commit(Some("again")).unwrap();
    let file = open(&bed.at("file")).unwrap();
    file.write_all_at(&noise(PAGE, &mut random), 3 * MIB).unwrap();
    let made = bed.commit(None).unwrap();
    bed.check();
    assert_eq!(made.commit.watcher, Watcher::Scan as i32);
    assert!(made.commit.read >= LENGTH, "{} bytes were read", made.commit.read);
}

/// No way of writing is known to be told of there.
#[test]
fn on_btrfs_files_are_compared_whole() {
    let Some(disk) = Disk::new("mkfs.btrfs", 512) else {
        return;
    };
    let bed = Bed::watched(&disk.at(), Watching::auto).unwrap();
    let why = bed.watching.pages().map(drop).unwrap_err();
    assert!(why.contains("neither on ext4 nor on XFS"), "{why}");
    one_page_of_a_file(&bed);
}
