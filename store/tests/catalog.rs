//! A catalog that is not what was written: opening or verifying says so, or what is read is right.

// A failed assertion is how a test reports.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    collections::BTreeMap,
    fs,
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use store::{
    Hash, Store,
    format::{Commit, Entry, Kind, key},
};

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten() {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap().flatten() {
        if entry.file_type().unwrap().is_dir() {
            files(&entry.path(), found);
        } else {
            found.push(entry.path());
        }
    }
}

fn make(dir: &Path) {
    // Opened several times, so that there are tables and not a journal alone.
    for round in 0..4u32 {
        let store = Store::open(dir, Hash::Blake3).unwrap();
        let state = store.make_state("state", "domain").unwrap();
        let session = store.session(state.domain);
        let old = state
            .head
            .map(|(id, _)| store.commit(id).unwrap().commit.tree_id().unwrap());
        let changes = (0..200u32).map(|n| {
            let mut entry = Entry {
                key: key(b"rootfs", format!("file{n}").as_bytes()),
                kind: Kind::File as i32,
                ..Entry::default()
            };
            let text = format!("{n} in {round} ").repeat(100);
            session
                .content(text.as_bytes(), text.len() as u64, None, "f")
                .unwrap()
                .set(&mut entry);
            (entry.key.clone(), Some(entry))
        });
        let changes: Vec<_> = changes.collect();
        let top = session.tree(old, changes).unwrap();
        let commit = Commit {
            tree: top.id.0.to_vec(),
            ..Commit::default()
        };
        session.commit(&state, commit, |_| {}).unwrap();
    }
}

/// Everything that the newest commit holds.
fn read(store: &Store) -> store::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut found = BTreeMap::new();
    let Some(state) = store.state("state")? else {
        return Ok(found);
    };
    let tree = store.commit(state.newest()?)?.commit.tree_id()?;
    let mut entries = Vec::new();
    store.entries(state.domain, tree, b"", |entry| {
        entries.push(entry);
        Ok(ControlFlow::Continue(()))
    })?;
    for entry in entries {
        let mut bytes = Vec::new();
        store.read(state.domain, &entry, |_, stretch| {
            if let store::content::Stretch::Bytes(part) = stretch {
                bytes.extend_from_slice(part);
            }
            Ok(())
        })?;
        found.insert(entry.key, bytes);
    }
    Ok(found)
}

#[test]
fn flipped_and_cut() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, broken) = (dir.path().join("whole"), dir.path().join("broken"));
    make(&whole);
    let expected = read(&Store::open(&whole, Hash::Blake3).unwrap()).unwrap();
    let mut all = Vec::new();
    files(&whole.join("catalog"), &mut all);
    all.sort();
    let (mut refused, mut right, mut older, mut panicked) = (0, 0, Vec::new(), Vec::new());
    for file in &all {
        let length = fs::metadata(file).unwrap().len();
        let name = file.strip_prefix(&whole).unwrap();
        let mut damages: Vec<Option<u64>> = (0..8).map(|n| Some(length * (2 * n + 1) / 16)).collect();
        damages.push(None);
        for damage in damages.into_iter().filter(|_| length > 0) {
            let _ = fs::remove_dir_all(&broken);
            copy(&whole, &broken);
            let mut bytes = fs::read(file).unwrap();
            match damage {
                Some(at) => bytes[usize::try_from(at).unwrap()] ^= 0x10,
                None => bytes.truncate(bytes.len() / 2),
            }
            fs::write(broken.join(name), &bytes).unwrap();
            let looked = std::panic::catch_unwind(|| {
                let store = Store::open(&broken, Hash::Blake3)?;
                let verified = store.verify(100, |_| {})?;
                Ok::<_, store::Error>((verified.problems.len(), read(&store)?))
            });
            match looked {
                Err(_) => panicked.push(format!("{} {damage:?}", name.display())),
                Ok(Err(_)) => refused += 1,
                Ok(Ok((_, found))) if found == expected => right += 1,
                // The end of a journal that is damaged is as if it had not been written; the watermark tells.
                Ok(Ok((0, _))) => older.push(format!("{} {damage:?}", name.display())),
                Ok(Ok((_, _))) => refused += 1,
            }
        }
    }
    println!("refused {refused}, right all the same {right}, older {older:?}, panicked {panicked:?}");
    assert!(refused > 0, "nothing was noticed");
    assert!(older.is_empty(), "{older:?}");
    assert!(panicked.is_empty(), "{panicked:?}");
}

/// A journal that is damaged at its end is opened as a shorter one by fjall; the store says that something is missing.
#[test]
fn a_catalog_that_fell_back_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, broken) = (dir.path().join("whole"), dir.path().join("broken"));
    make(&whole);
    copy(&whole, &broken);
    {
        let store = Store::open(&broken, Hash::Blake3).unwrap();
        for n in 0..5 {
            let name = format!("later{n}");
            store.make_state(&name, "domain").unwrap();
        }
    }
    // As if the journal had ended before.
    let _ = fs::remove_dir_all(broken.join("catalog"));
    copy(&whole.join("catalog"), &broken.join("catalog"));
    let told = Store::open(&broken, Hash::Blake3).err().unwrap().to_string();
    assert!(
        told.contains("5 batches behind") && told.contains("repair"),
        "{told}"
    );
    // And one that is gone does not take the packs with it.
    fs::remove_dir_all(broken.join("catalog")).unwrap();
    let packs = fs::read_dir(broken.join("packs")).unwrap().count();
    let told = Store::open(&broken, Hash::Blake3).err().unwrap().to_string();
    assert!(told.contains("repair"), "{told}");
    assert_eq!(fs::read_dir(broken.join("packs")).unwrap().count(), packs);
}
