//! What is written again, while all else goes on.

use std::{cell::Cell, fs, process::Command, thread};

use super::{
    AT_A_TIME, Lines, grouped,
    plan::{MOST, STEPS},
};
use crate::base::steps;
use crate::{
    Id, Recorded, Rescue, Result, Store, Thorough,
    format::{Entry, key},
    pack::Object,
    tests::{commit, known, noise, put, read, store, write},
};

const STATE: &str = "ctr/default/web";

fn entry_of(store: &Store, recorded: &Recorded, path: &str) -> Entry {
    let domain = known(store, &recorded.commit.state).domain;
    let tree = recorded.commit.tree_id().unwrap();
    let found = store.entry(domain, tree, &key(b"rootfs", path.as_bytes()));
    found.unwrap().unwrap()
}

fn version(store: &Store, state: &str, path: &str, bytes: &[u8]) -> Recorded {
    let before = store.state(state).unwrap().and_then(|state| state.head);
    let before = before.and_then(|(id, _)| {
        let tree = store.commit(id).unwrap().commit.tree_id().unwrap();
        let key = key(b"rootfs", path.as_bytes());
        store.entry(known(store, state).domain, tree, &key).unwrap()
    });
    commit(store, state, |s| {
        vec![put(write(s, path, bytes, before.as_ref()))]
    })
}

fn content(store: &Store, recorded: &Recorded, path: &str) -> Result<Vec<u8>> {
    let domain = known(store, &recorded.commit.state).domain;
    read(store, domain, &entry_of(store, recorded, path))
}

fn depth(store: &Store, recorded: &Recorded, path: &str) -> u8 {
    let domain = known(store, &recorded.commit.state).domain;
    let id: Id = entry_of(store, recorded, path).content_id().unwrap();
    store.place(domain, Object::Chunk, id).unwrap().unwrap().depth()
}

/// A page of numbers of which some change a little each time: near versions have much more in common than far ones.
fn numbers(count: u32, version: u32) -> Vec<u8> {
    let number = |n: u32| {
        let changed = (0..=version)
            .rev()
            .find(|version| (n.wrapping_mul(2_654_435_761) >> 8) % 12 == version % 12);
        n.wrapping_mul(0x9e37_79b9)
            .wrapping_add(changed.unwrap_or(0).wrapping_mul(0x0101_0107))
    };
    (0..count).flat_map(|n| number(n).to_le_bytes()).collect()
}

fn whole(store: &Store, versions: &[(Recorded, Vec<u8>)]) {
    assert_eq!(store.verify(100, |_| {}).unwrap().problems, []);
    for (recorded, bytes) in versions {
        assert!(content(store, recorded, "file").unwrap() == *bytes);
    }
}

#[test]
fn versions_become_smaller_and_stay_near() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let mut made = Vec::new();
    for n in 0..40 {
        let bytes = numbers(800, n);
        made.push((version(&store, STATE, "file", &bytes), bytes));
    }
    let before = store.usage().unwrap();
    let state = known(&store, STATE);
    assert_eq!(store.uncompacted(&state).unwrap(), 40);
    let done = store.recompact(&state, |_| {}).unwrap();
    assert_eq!((done.chunks, done.of_chunks), (40, 40));
    let after = store.usage().unwrap();
    assert!(after.stored * 10 < before.stored * 9, "{before:?} {after:?}");
    assert!(
        made.iter()
            .all(|(recorded, _)| steps(depth(&store, recorded, "file")) <= STEPS)
    );
    whole(&store, &made);
    // The old bytes come back.
    store.gc(Thorough::Erase, false, |_| {}).unwrap();
    let packs = store.usage().unwrap().bytes;
    assert!(
        packs < before.bytes - (before.stored - after.stored) / 2,
        "{packs}"
    );
    whole(&store, &made);
    // There is nothing more to be done, until there are more versions.
    assert_eq!(store.uncompacted(&state).unwrap(), 0);
    assert_eq!(store.recompact(&state, |_| {}).unwrap().chunks, 0);
    for n in 40..60 {
        let bytes = numbers(800, n);
        made.push((version(&store, STATE, "file", &bytes), bytes));
    }
    store.recompact(&known(&store, STATE), |_| {}).unwrap();
    assert!(
        made.iter()
            .all(|(recorded, _)| steps(depth(&store, recorded, "file")) <= STEPS)
    );
    drop(store);
    whole(&crate::tests::store(dir.path()), &made);
}

/// Threads encode; what comes of it does not depend on how many.
#[test]
fn several_threads_make_the_same() {
    let made = [1, 3].map(|threads| {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        let mut made = Vec::new();
        for n in 0..36 {
            for file in ["one", "two"] {
                let bytes = [numbers(400, n), file.as_bytes().repeat(100)].concat();
                made.push((version(&store, STATE, file, &bytes), file, bytes));
            }
        }
        let state = known(&store, STATE);
        let done = store.recompact_on(&state, threads, |_| {}).unwrap();
        assert!(done.written > 0 && done.chunks == done.of_chunks, "{done:?}");
        assert_eq!(store.verify(100, |_| {}).unwrap().problems, []);
        let mut depths = Vec::new();
        for (recorded, file, bytes) in &made {
            assert!(content(&store, recorded, file).unwrap() == *bytes);
            depths.push(depth(&store, recorded, file));
        }
        (done, store.usage().unwrap().stored, depths)
    });
    assert_eq!(made[0], made[1]);
}

#[test]
fn commits_go_on_meanwhile_and_it_can_be_ended() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let mut made = Vec::new();
    for n in 0..12 {
        let bytes = [numbers(3_000, n), noise(300_000, 3), numbers(3_000, n + 5)].concat();
        made.push((version(&store, STATE, "file", &bytes), bytes));
    }
    let state = known(&store, STATE);
    let more = Cell::new(0);
    let mut newer = Vec::new();
    let done = store
        .recompact(&state, |done| {
            // Each stands on what is about to be written again.
            if done.of_chunks > 0 && more.get() < 3 {
                more.set(more.get() + 1);
                let bytes = [
                    numbers(3_000, 11 + more.get()),
                    noise(300_000, 3),
                    numbers(3_000, 16),
                ]
                .concat();
                newer.push((version(&store, STATE, "file", &bytes), bytes));
            }
        })
        .unwrap();
    assert!(done.written > 0 && more.get() == 3, "{done:?}");
    made.append(&mut newer);
    whole(&store, &made);
    assert_eq!(store.uncompacted(&known(&store, STATE)).unwrap(), 3);
    // One that is ended is begun again.
    let stop = |_: &super::Recompacted| std::ops::ControlFlow::Break(());
    let ended = store.recompact(&known(&store, STATE), stop);
    assert!(matches!(ended, Err(crate::Error::Stopped)), "{ended:?}");
    assert_eq!(store.uncompacted(&known(&store, STATE)).unwrap(), 3);
    store.recompact(&known(&store, STATE), |_| {}).unwrap();
    store.gc(Thorough::Worthwhile, false, |_| {}).unwrap();
    whole(&store, &made);
}

#[test]
fn each_part_of_a_file_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let mut bytes = noise(400_000, 1);
    let first = version(&store, STATE, "file", &bytes);
    bytes[390_000] ^= 1;
    let second = version(&store, STATE, "file", &bytes);
    let domain = known(&store, STATE).domain;
    let parts = |recorded: &Recorded, from: u64| {
        let mut found = Vec::new();
        let entry = entry_of(&store, recorded, "file");
        let each = |part| {
            found.push(part);
            Ok(std::ops::ControlFlow::Continue(()))
        };
        store.parts(domain, &entry, from, each).unwrap();
        found
    };
    let (old, new) = (parts(&first, 0), parts(&second, 0));
    assert!(old.len() > 2 && old.len() == new.len());
    assert_eq!(old[..old.len() - 1], new[..new.len() - 1]);
    assert_eq!(new.iter().map(|part| part.length).sum::<u64>(), 400_000);
    let (below, above) = (old.last().unwrap(), new.last().unwrap());
    let (below, chunk) = (below.chunk.clone().unwrap(), above.chunk.clone().unwrap());
    assert_eq!(
        (below.encoding.as_str(), below.steps, below.base),
        ("raw", 0, None)
    );
    assert_eq!(
        (chunk.encoding.as_str(), chunk.steps, chunk.base),
        ("prefix", 1, Some(below.id))
    );
    assert!(chunk.bytes < 200 && below.bytes > 1_000);
    assert_eq!(parts(&second, above.at), std::slice::from_ref(above));
}

/// What another state has come to stand on does not come to stand as high.
#[test]
fn others_that_stand_on_it_can_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let (other, mut made) = ("ctr/default/other", Vec::new());
    for n in 0..20 {
        let bytes = numbers(800, n);
        made.push((version(&store, STATE, "file", &bytes), bytes.clone()));
        // It has some of the same versions, and some that are its own between them.
        let mut own = bytes;
        own[..100].fill(u8::try_from(n).unwrap());
        made.push((version(&store, other, "file", &own), own));
        if n % 3 == 0 {
            let bytes = numbers(800, n);
            made.push((version(&store, other, "file", &bytes), bytes));
        }
    }
    for state in [STATE, other, STATE] {
        store.recompact(&known(&store, state), |_| {}).unwrap();
        whole(&store, &made);
    }
    store.gc(Thorough::Erase, false, |_| {}).unwrap();
    whole(&store, &made);
}

#[test]
fn what_a_session_left_stands_on() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let made: Vec<Recorded> = (0..40)
        .map(|n| version(&store, STATE, "file", &numbers(800, n)))
        .collect();
    let domain = known(&store, STATE).domain;
    let mut left = Vec::new();
    for (n, recorded) in (0_u32..).zip(&made) {
        let mut bytes = numbers(800, n);
        bytes[..4].copy_from_slice(&n.to_le_bytes());
        let on = entry_of(&store, recorded, "file").content_id().unwrap();
        // It comes to nothing: no commit is made of it.
        let session = store.session(domain);
        left.push((session.chunk(&bytes, Some(on)).unwrap(), bytes));
    }
    store.recompact(&known(&store, STATE), |_| {}).unwrap();
    assert_eq!(store.verify(100, |_| {}).unwrap().problems, []);
    drop(store);
    let store = crate::tests::store(dir.path());
    for (id, bytes) in left {
        assert!(store.chunk(domain, id).unwrap() == bytes);
    }
}

/// The catalog falls back to before a recompaction and a gc that took some of the old records: what stood on those is read
/// by the new ones, too.
#[test]
fn a_catalog_behind_it_gets_what_can_be_read_together() {
    let dir = tempfile::tempdir().unwrap();
    let (late, early) = (dir.path().join("store"), dir.path().join("early"));
    let mut made = Vec::new();
    {
        let store = store(dir.path());
        for n in 0..20 {
            if n == 2 {
                // A pack of their own for the first two; the others' is mostly needed.
                store.gc(Thorough::Erase, false, |_| {}).unwrap();
                version(&store, "ctr/default/other", "large", &noise(400_000, 1));
            }
            let bytes = numbers(800, n);
            made.push((version(&store, STATE, "file", &bytes), bytes));
        }
    }
    let done = Command::new("cp")
        .arg("-a")
        .args([&late.join("catalog"), &early])
        .status();
    assert!(done.unwrap().success());
    {
        let store = store(dir.path());
        store.recompact(&known(&store, STATE), |_| {}).unwrap();
        let done = store.gc(Thorough::Worthwhile, false, |_| {}).unwrap();
        assert!(done.packs > 0 && done.copied < 100_000, "{done:?}");
    }
    fs::remove_dir_all(late.join("catalog")).unwrap();
    fs::rename(&early, late.join("catalog")).unwrap();
    let rescue = Rescue::plan(&late, |_| "ctr/default".into()).unwrap();
    rescue.unwrap().run().unwrap();
    let store = store(dir.path());
    assert!(
        depth(&store, &made[1].0, "file") > 1,
        "it stands where it came to"
    );
    whole(&store, &made);
}

/// Many that were changed from one hang on it, and go in parts: each is told, and stands on what that has become.
#[test]
fn what_many_hang_on_is_gone_through_in_parts() {
    const MANY: u32 = 400;
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let first = noise(600, 1);
    let of = |n: u32| [&n.to_le_bytes(), &first[4..]].concat();
    let path = |n: u32| format!("file{n}");
    let put_all = |from: u32, bytes: &dyn Fn(u32) -> Vec<u8>| {
        commit(&store, STATE, |s| {
            let files = from..MANY;
            files.map(|n| put(write(s, &path(n), &bytes(n), None))).collect()
        })
    };
    put_all(0, &|_| first.clone());
    let all = put_all(1, &of);
    // It goes on itself, and comes to stand on what follows it.
    let line: Vec<Recorded> = (0..2)
        .map(|n| {
            commit(&store, STATE, |s| {
                vec![put(write(s, "file0", &of(MANY + n), None))]
            })
        })
        .collect();
    let state = known(&store, STATE);
    let lines = Lines::of(&store, &state, &mut || Ok(())).unwrap();
    let found = lines.all();
    let groups: Vec<_> = found.iter().flat_map(|line| grouped(line, &lines)).collect();
    let members: usize = groups.iter().map(|group| group.planned.len()).sum();
    assert_eq!((lines.len(), members), (MANY as usize + 2, MANY as usize + 2));
    assert!(groups.iter().all(|group| group.planned.len() <= MOST));
    let (mut last, mut most, mut calls) = (0, 0, 0);
    let done = store.recompact(&state, |done| {
        most = most.max(done.chunks - last);
        last = done.chunks;
        calls += 1;
    });
    let done = done.unwrap();
    assert_eq!(
        (done.chunks, done.of_chunks),
        (u64::from(MANY) + 2, u64::from(MANY) + 2)
    );
    assert!(done.after * 4 < done.before, "{done:?}");
    assert!(
        most <= MOST as u64 && calls > MANY as usize / AT_A_TIME,
        "{most}, {calls}"
    );
    assert_eq!(store.verify(100, |_| {}).unwrap().problems, []);
    for n in 1..MANY {
        assert!(content(&store, &all, &path(n)).unwrap() == of(n));
        assert_eq!(depth(&store, &all, &path(n)), 2);
    }
    assert_eq!(depth(&store, &all, "file0"), 1);
    assert!(line.iter().all(|recorded| depth(&store, recorded, "file0") <= 1));
}

/// A gc that waits again and again is given way to each time, and what was gone through before is not encoded again.
#[test]
fn it_goes_on_behind_each_gc() {
    const FILES: u64 = 24;
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let made: Vec<_> = (0..2)
        .map(|n| {
            commit(&store, STATE, |s| {
                let files = 0..FILES;
                files
                    .map(|file| {
                        let bytes = [numbers(300, n), noise(14_000, file)].concat();
                        put(write(s, &format!("file{file}"), &bytes, None))
                    })
                    .collect()
            })
        })
        .collect();
    let state = known(&store, STATE);
    let (gcs, mut last, mut begun) = (Cell::new(0), 0, 0);
    thread::scope(|scope| {
        let done = store.recompact(&state, |done| {
            // While what follows what is found.
            if done.of_chunks == 0 {
                begun += 1;
                return;
            }
            assert!(done.chunks >= last, "{last} {done:?}");
            last = done.chunks;
            // One waits as soon as something was gone through.
            if gcs.get() < 6 && done.chunks > gcs.get() * 6 && !store.gc_waits() {
                gcs.set(gcs.get() + 1);
                scope.spawn(|| store.gc(Thorough::Worthwhile, false, |_| {}).unwrap());
                while !store.gc_waits() {
                    thread::yield_now();
                }
            }
        });
        let done = done.unwrap();
        assert_eq!((done.chunks, done.of_chunks), (2 * FILES, 2 * FILES));
        assert!(done.after < done.before, "{done:?}");
    });
    assert_eq!((gcs.get(), begun), (6, 7 * 2));
    assert_eq!(store.uncompacted(&state).unwrap(), 0);
    assert_eq!(store.verify(100, |_| {}).unwrap().problems, []);
    for n in 0..2 {
        let bytes = [numbers(300, n), noise(14_000, 7)].concat();
        assert!(content(&store, &made[n as usize], "file7").unwrap() == bytes);
    }
}
