//! Batches of any size.

use std::{fs, path::Path};

use super::Catalog;
use crate::id::Id;

fn id(n: u32) -> Id {
    let mut id = Id([0; 32]);
    id.0[..4].copy_from_slice(&n.to_le_bytes());
    id
}

/// Bytes in files of these names.
fn bytes(dir: &Path, extension: &str) -> u64 {
    let files = fs::read_dir(dir).unwrap().flatten();
    let of = files.filter(|file| file.path().extension().is_some_and(|found| found == extension));
    of.map(|file| file.metadata().unwrap().len()).sum()
}

#[test]
fn a_long_batch_is_whole_and_in_no_journal() {
    let dir = tempfile::tempdir().unwrap();
    let tag = |n: u32| format!("tag{n}");
    {
        let catalog = Catalog::open(dir.path()).unwrap();
        let mut batch = catalog.batch();
        // What is in memory before a long batch is older than that.
        batch.tag(1, &tag(7), id(0));
        batch.tag(1, &tag(8), id(8));
        batch.tag(1, &tag(9), id(9));
        catalog.write(batch).unwrap();
        let mut batch = catalog.batch();
        for n in (10..40_000).rev() {
            batch.tag(1, &tag(n), id(n));
        }
        batch.tag(1, &tag(7), id(1));
        batch.tag(1, &tag(7), id(7));
        batch.forget_tag(1, &tag(8));
        batch.forget_tag(1, &tag(10));
        catalog.write(batch).unwrap();
        // And what comes after is newer.
        let mut batch = catalog.batch();
        batch.tag(1, &tag(11), id(0));
        batch.forget_tag(1, &tag(12));
        catalog.write(batch).unwrap();
    }
    for _ in 0..2 {
        let catalog = Catalog::open(dir.path()).unwrap();
        let tags = catalog.tags(1).unwrap();
        assert_eq!(tags.len(), 40_000 - 7 - 3);
        for (name, found) in tags {
            let n = name[3..].parse().unwrap();
            assert_eq!(found, if n == 11 { id(0) } else { id(n) }, "{name}");
        }
        let journal = bytes(dir.path(), "jnl");
        assert!((1..100_000).contains(&journal), "{journal}");
    }
}
