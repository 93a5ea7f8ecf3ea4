//! What the parts do together, on a real disk.

use std::{collections::BTreeMap, fs, ops::ControlFlow, path::Path};

use proptest::prelude::*;

use crate::{
    Error, Hash, Id, Known, PublicKey, Recorded, Result, Retention, Session, Signer, Store, Thorough,
    Version,
    catalog::Place,
    content::{Source, Written},
    format::{Commit, Entry, Kind, key},
    pack::{self, Object},
    tree::Proof,
};

pub(crate) fn store(dir: &Path) -> Store {
    Store::open(&dir.join("store"), Hash::Blake3).unwrap()
}

pub(crate) fn entry(path: &str, text: &[u8]) -> Entry {
    Entry {
        key: key(b"rootfs", path.as_bytes()),
        kind: Kind::File as i32,
        mode: 0o644,
        size: text.len() as u64,
        inline: text.to_vec(),
        ..Entry::default()
    }
}

pub(crate) fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        bytes.extend_from_slice(&x.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

pub(crate) fn write(session: &Session<'_>, path: &str, bytes: &[u8], before: Option<&Entry>) -> Entry {
    let mut entry = entry(path, b"");
    session
        .content(bytes, bytes.len() as u64, before, path)
        .unwrap()
        .set(&mut entry);
    entry
}

pub(crate) fn read(store: &Store, domain: u32, entry: &Entry) -> Result<Vec<u8>> {
    let mut found = Vec::new();
    store.read(domain, entry, |at, stretch| {
        assert_eq!(at, found.len() as u64);
        match stretch {
            crate::content::Stretch::Bytes(bytes) => found.extend_from_slice(bytes),
            crate::content::Stretch::Hole(length) => {
                found.resize(found.len() + usize::try_from(length).unwrap(), 0)
            }
        }
        Ok(())
    })?;
    Ok(found)
}

/// Commits entries in place of those of the same key.
/// Says in the catalog where a chunk is, or that it is nowhere.
pub(crate) fn set_place(store: &Store, domain: u32, chunk: Id, place: Option<Place>) {
    let mut batch = store.catalog.batch();
    match place {
        Some(place) => batch.place(domain, Object::Chunk, chunk, &place),
        None => batch.forget_object(domain, Object::Chunk, chunk),
    }
    store.catalog.write(batch).unwrap();
}

pub(crate) fn commit(
    store: &Store,
    name: &str,
    changes: impl FnOnce(&Session<'_>) -> Vec<(Vec<u8>, Option<Entry>)>,
) -> Recorded {
    let state = store.make_state(name, "ctr/default").unwrap();
    let session = store.session(state.domain);
    let old = state
        .head
        .map(|(id, _)| store.commit(id).unwrap().commit.tree_id().unwrap());
    let changes = changes(&session);
    let top = session.tree(old, changes).unwrap();
    let commit = Commit {
        tree: top.id.0.to_vec(),
        entries: top.entries,
        time: 1_000_000_000 * (1 + state.head.map_or(0, |(_, n)| n.cast_signed())),
        ..Commit::default()
    };
    session.commit(&state, commit, |_| {}).unwrap()
}

pub(crate) fn put(entry: Entry) -> (Vec<u8>, Option<Entry>) {
    (entry.key.clone(), Some(entry))
}

pub(crate) fn known(store: &Store, name: &str) -> Known {
    store.state(name).unwrap().unwrap()
}

#[test]
fn what_was_committed_is_there_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let long = noise(3_000_000, 1);
    let recorded = {
        let store = store(dir.path());
        // A second process is refused.
        let told = Store::open(&dir.path().join("store"), Hash::Blake3)
            .err()
            .unwrap()
            .to_string();
        assert!(told.contains("in use"), "{told}");
        commit(&store, "ctr/default/web", |s| {
            vec![
                put(entry("etc/hosts", b"one")),
                put(write(s, "data/long", &long, None)),
            ]
        })
    };
    let store = store(dir.path());
    let state = known(&store, "ctr/default/web");
    assert_eq!(state.head, Some((recorded.id, 1)));
    let top = store.commit(recorded.id).unwrap().commit.tree_id().unwrap();
    let found = store
        .entry(state.domain, top, &key(b"rootfs", b"data/long"))
        .unwrap()
        .unwrap();
    assert_eq!(read(&store, state.domain, &found).unwrap(), long);
    assert!(
        store
            .entry(state.domain, top, &key(b"rootfs", b"data/lon"))
            .unwrap()
            .is_none()
    );
    let verified = store.verify(100, |_| {}).unwrap();
    assert_eq!(verified.problems, []);
    assert!(verified.read > 3_000_000 && verified.commits == 1);
    assert_eq!(store.audit(&state, &[]).unwrap().commits, 1);
}

#[test]
fn what_a_kill_left_behind_is_cut_off_of_every_pack() {
    let dir = tempfile::tempdir().unwrap();
    let name = "ctr/default/web";
    let written = store(dir.path());
    for n in 0..4 {
        let made = commit(&written, name, |session| {
            let entry = write(session, "large", &noise(5000, n), None);
            vec![(entry.key.clone(), Some(entry))]
        });
        assert_eq!(made.commit.entries, 1);
        // What follows is written to other packs.
        written.close_all().unwrap();
    }
    drop(written);
    let packs = || fs::read_dir(dir.path().join("store/packs")).unwrap();
    assert!(packs().count() > 2);
    for pack in packs() {
        use std::io::Write;
        let mut file = fs::File::options()
            .append(true)
            .open(pack.unwrap().path())
            .unwrap();
        file.write_all(b"half a record").unwrap();
    }
    assert_eq!(store(dir.path()).verify(100, |_| {}).unwrap().problems, []);
}

#[test]
fn only_what_changed_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let mut bytes = noise(20_000_000, 3);
    let mut first = None;
    commit(&store, "a", |s| {
        let entry = write(s, "big", &bytes, None);
        first = Some(entry.clone());
        let mut all: Vec<_> = (0..5000).map(|n| put(entry_n(n, 0))).collect();
        all.push(put(entry));
        all
    });
    bytes[10_000_000] ^= 1;
    let mut second = None;
    let recorded = commit(&store, "a", |s| {
        let entry = write(s, "big", &bytes, first.as_ref());
        second = Some(entry.clone());
        vec![put(entry)]
    });
    // One chunk, some lists and nodes.
    assert!(recorded.commit.written < 400_000, "{}", recorded.commit.written);
    let domain = known(&store, "a").domain;
    assert_eq!(read(&store, domain, &second.clone().unwrap()).unwrap(), bytes);
    // The same content cut without what was before gives the same lists.
    let session = store.session(domain);
    assert_eq!(write(&session, "big", &bytes, None), second.unwrap());
    assert_eq!(session.written(), 0);
    // An insertion near the beginning is found to be one.
    bytes.splice(1000..1000, noise(77, 9));
    let third = write(&session, "big", &bytes, first.as_ref());
    assert!(session.written() < 700_000, "{}", session.written());
    assert_eq!(read(&store, domain, &third).unwrap(), bytes);
    assert_eq!(write(&session, "big", &bytes, None), third);
    // Shorter than was said.
    let cut = session.content(&bytes[..50_000], 90_000, None, "cut").unwrap();
    assert_eq!(cut.size, 50_000);
    assert_eq!(
        session.content(&b""[..], 0, None, "empty").unwrap(),
        Written::default()
    );
}

fn entry_n(n: u64, version: u64) -> Entry {
    entry(
        &format!("dir{}/file{n}", n % 37),
        format!("{n} {version}").as_bytes(),
    )
}

/// A source with holes.
struct Sparse(u64, BTreeMap<u64, Vec<u8>>);

impl Source for Sparse {
    fn data(&self, at: u64, _: u64) -> std::io::Result<Option<(u64, u64)>> {
        let stretch = |(begin, bytes): (&u64, &Vec<u8>)| (*begin, begin + bytes.len() as u64);
        let found = self.1.iter().map(stretch).find(|(_, end)| *end > at);
        Ok(found.map(|(begin, end)| (begin.max(at), end)))
    }

    fn length(&self) -> std::io::Result<u64> {
        Ok(self.0)
    }

    fn read_at(&self, buffer: &mut [u8], at: u64) -> std::io::Result<usize> {
        let n = buffer
            .len()
            .min(usize::try_from(self.0.saturating_sub(at)).unwrap());
        buffer[..n].fill(0);
        for (begin, bytes) in &self.1 {
            for (offset, byte) in bytes.iter().enumerate() {
                let place = begin + offset as u64;
                if (at..at + n as u64).contains(&place) {
                    buffer[usize::try_from(place - at).unwrap()] = *byte;
                }
            }
        }
        Ok(n)
    }
}

#[test]
fn holes_stay_holes() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let domain = store.domain("d").unwrap();
    let session = store.session(domain);
    let sparse = Sparse(
        1 << 40,
        BTreeMap::from([(1 << 20, noise(100_000, 1)), (1 << 30, noise(1000, 2))]),
    );
    let mut file = entry("sparse", b"");
    session
        .content(&sparse, sparse.0, None, "sparse")
        .unwrap()
        .set(&mut file);
    let mut seen = Vec::new();
    store
        .read(domain, &file, |at, stretch| {
            seen.push((at, matches!(stretch, crate::content::Stretch::Hole(_))));
            Ok(())
        })
        .unwrap();
    assert_eq!(seen.first(), Some(&(0, true)));
    assert_eq!(seen.last().map(|(_, hole)| *hole), Some(true));
    assert_eq!(file.size, 1 << 40);
    // All hole.
    let mut nothing = entry("nothing", b"");
    session
        .content(&Sparse(1 << 30, BTreeMap::new()), 1 << 30, None, "n")
        .unwrap()
        .set(&mut nothing);
    let mut stretches = Vec::new();
    store
        .read(domain, &nothing, |at, stretch| {
            assert!(matches!(stretch, crate::content::Stretch::Hole(_)));
            stretches.push(at);
            Ok(())
        })
        .unwrap();
    assert_eq!(stretches, [0]);
    // Grown beside what was before: the same as anew.
    let grown = Sparse(
        1 << 40,
        BTreeMap::from([(1 << 20, noise(150_000, 1)), (1 << 30, noise(1000, 2))]),
    );
    let anew = session.content(&grown, grown.0, None, "g").unwrap();
    assert_eq!(session.content(&grown, grown.0, Some(&file), "g").unwrap(), anew);
}

#[test]
fn a_proof_is_short_and_proves_only_what_is_so() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let recorded = commit(&store, "a", |_| {
        (0..100_000).map(|n| put(entry_n(n, 0))).collect()
    });
    assert_eq!(recorded.commit.entries, 100_000);
    let domain = known(&store, "a").domain;
    let wanted = entry_n(77_777, 0);
    let proof = store.prove(domain, &recorded.commit, &wanted.key).unwrap();
    let length = prost::Message::encoded_len(&proof);
    assert!(length < 2048, "{length}");
    let (id, _, found) = proof.check().unwrap();
    assert_eq!((id, found), (recorded.id, wanted));
    // Whatever is changed of it, it no longer proves that.
    let bytes = prost::Message::encode_to_vec(&proof);
    let mut proved = 0;
    for at in 0..bytes.len() {
        let mut other = bytes.clone();
        other[at] ^= 4;
        let Ok(other) = <Proof as prost::Message>::decode(other.as_slice()) else {
            continue;
        };
        if let Ok((id, ..)) = other.check() {
            assert_ne!(id, recorded.id, "byte {at}");
            proved += 1;
        }
    }
    // A changed commit is another commit.
    assert!(proved < 200, "{proved}");
    assert!(store.prove(domain, &recorded.commit, b"rootfs\0nothing").is_err());
}

#[test]
fn garbage_goes_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let marker = noise(400_000, 77);
    let shared = noise(300_000, 78);
    commit(&store, "a", |s| {
        vec![
            put(write(s, "secret", &marker, None)),
            put(write(s, "shared", &shared, None)),
        ]
    });
    commit(&store, "b", |s| {
        vec![put(write(s, "other", &shared, None)), put(entry("x", b"y"))]
    });
    let raw = |needle: &[u8]| {
        fs::read_dir(dir.path().join("store/packs"))
            .unwrap()
            .flatten()
            .any(|file| {
                let bytes = fs::read(file.path()).unwrap();
                bytes.windows(needle.len()).any(|window| window == needle)
            })
    };
    let (in_marker, in_shared) = (&marker[200_000..200_064], &shared[200_000..200_064]);
    assert!(raw(in_marker) && raw(in_shared));
    assert_eq!(store.gc(Thorough::Erase, false, |_| {}).unwrap().objects, 0);
    store.forget_state("a").unwrap();
    let dry = store.gc(Thorough::Erase, true, |_| {}).unwrap();
    assert!(dry.freed > 400_000 && raw(in_marker), "{dry:?}");
    let done = store.gc(Thorough::Erase, false, |_| {}).unwrap();
    assert!(done.freed > 300_000 && done.objects > 4, "{done:?}");
    assert!(!raw(in_marker) && raw(in_shared));
    assert_eq!(store.verify(100, |_| {}).unwrap().problems, []);
    // Writing goes on after it, and what was erased can come back.
    commit(&store, "c", |s| vec![put(write(s, "secret", &marker, None))]);
    drop(store);
    let store = self::store(dir.path());
    assert_eq!(store.verify(100, |_| {}).unwrap().problems, []);
    assert!(raw(in_marker));
}

/// What one session had encoded on top of what is gone, another would publish.
#[test]
fn who_began_before_the_disk_failed_adds_nothing_more() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    commit(&store, "s", |s| {
        vec![put(write(s, "f", &noise(200_000, 1), None))]
    });
    let early = store.session(known(&store, "s").domain);
    let first = noise(200_000, 2);
    write(&early, "g", &first, None);
    store.fail();
    let mut second = first;
    second[1000] ^= 1;
    let refused = early.content(second.as_slice(), second.len() as u64, None, "g");
    let told = refused.err().unwrap().to_string();
    assert!(told.contains("tried again"), "{told}");
    drop(early);
    commit(&store, "s", |s| vec![put(write(s, "g", &second, None))]);
    assert_eq!(store.verify(100, |_| {}).unwrap().problems, []);
}

/// A restore holds its session for as long as it takes, and begins others.
#[test]
fn a_gc_that_waits_for_a_session_holds_up_nobody_else() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let begin = |n| {
        commit(&store, "s", |s| {
            vec![put(write(s, "f", &noise(200_000, n), None))]
        })
    };
    begin(0);
    std::thread::scope(|scope| {
        let long = store.session(known(&store, "s").domain);
        let gc = scope.spawn(|| store.gc(Thorough::Erase, false, |_| {}).unwrap());
        let since = std::time::Instant::now();
        while !store.is_waited_for() {
            assert!(since.elapsed().as_secs() < 60, "the gc does not wait");
            std::thread::yield_now();
        }
        for n in 1..4 {
            begin(n);
        }
        assert!(!gc.is_finished());
        drop(long);
        gc.join().unwrap();
    });
    assert_eq!(store.verify(100, |_| {}).unwrap().problems, []);
}

#[test]
fn gc_beside_commits_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..2u64)
            .map(|n| {
                let store = &store;
                scope.spawn(move || {
                    let name = format!("s{n}");
                    for version in 0..30u64 {
                        // Content that goes and comes back, between the marking and the sweeping of a gc.
                        let bytes = noise(200_000, version % 3);
                        commit(store, &name, |s| {
                            vec![put(write(s, "f", &bytes, None)), put(entry_n(version, n))]
                        });
                        let state = known(store, &name);
                        store
                            .expire(&state, &Retention { rules: vec![] }, i64::MAX, false)
                            .unwrap();
                    }
                })
            })
            .collect();
        while writers.iter().any(|w| !w.is_finished()) {
            store.gc(Thorough::Erase, false, |_| {}).unwrap();
        }
    });
    let verified = store.verify(100, |_| {}).unwrap();
    assert_eq!(verified.problems, []);
    for n in 0..2 {
        let state = known(&store, &format!("s{n}"));
        assert_eq!(store.audit(&state, &[]).unwrap().commits, 30);
        assert_eq!(store.tombstones(&state).unwrap().len(), 29);
        let head = store
            .commit(state.newest().unwrap())
            .unwrap()
            .commit
            .tree_id()
            .unwrap();
        let file = store
            .entry(state.domain, head, &key(b"rootfs", b"f"))
            .unwrap()
            .unwrap();
        assert_eq!(read(&store, state.domain, &file).unwrap(), noise(200_000, 29 % 3));
        let old = store.resolve(&state, &Version::Back(3)).unwrap();
        let told = store.with_content(old.id).unwrap_err().to_string();
        assert!(told.contains("given up"), "{told}");
    }
}

#[test]
fn every_flip_in_a_pack_is_found_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = noise(150_000, 5);
    let (domain, file) = {
        let store = store(dir.path());
        let mut made = None;
        commit(&store, "a", |s| {
            let file = write(s, "f", &bytes, None);
            made = Some(file.clone());
            vec![put(file), put(entry("g", b"h"))]
        });
        (known(&store, "a").domain, made.unwrap())
    };
    for name in fs::read_dir(dir.path().join("store/packs")).unwrap().flatten() {
        let whole = fs::read(name.path()).unwrap();
        // Every byte of the heads and of what is small, then here and there.
        let places =
            (0..whole.len()).filter(|at| *at < 400 || at.is_multiple_of(9973) || whole.len() - at < 20);
        for at in places {
            let mut flipped = whole.clone();
            flipped[at] ^= 1 << (at % 8);
            fs::write(name.path(), &flipped).unwrap();
            let store = store(dir.path());
            let verified = store.verify(100, |_| {}).unwrap();
            assert!(
                !verified.problems.is_empty(),
                "byte {at} of {}",
                name.path().display()
            );
            if let Ok(found) = read(&store, domain, &file) {
                assert_eq!(found, bytes, "wrong bytes after byte {at}");
            }
            drop(store);
        }
        for length in [
            0,
            1,
            pack::HEADER,
            pack::HEADER + 7,
            whole.len() / 2,
            whole.len() - 1,
        ] {
            fs::write(name.path(), &whole[..length]).unwrap();
            let verified = store(dir.path()).verify(100, |_| {}).unwrap();
            assert!(!verified.problems.is_empty(), "cut to {length}");
        }
        fs::write(name.path(), &whole).unwrap();
    }
    let store = store(dir.path());
    assert_eq!(store.verify(100, |_| {}).unwrap().problems, []);
    // What a lost chunk costs is named by version and path.
    let chunks = fs::read_dir(dir.path().join("store/packs"))
        .unwrap()
        .flatten()
        .map(|f| f.path());
    let data = chunks
        .max_by_key(|path| fs::metadata(path).unwrap().len())
        .unwrap();
    let mut flipped = fs::read(&data).unwrap();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    fs::write(&data, flipped).unwrap();
    let problems = store.verify(100, |_| {}).unwrap().problems;
    assert!(
        problems
            .iter()
            .any(|p| p.needed_by.iter().any(|n| n.ends_with("rootfs:/f"))),
        "{problems:?}"
    );
}

#[test]
fn versions() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let all: Vec<Recorded> = (0..5)
        .map(|n| commit(&store, "a", |_| vec![put(entry_n(n, 0))]))
        .collect();
    let state = known(&store, "a");
    let is = |version: Version| store.resolve(&state, &version).map(|found| found.commit.sequence);
    assert_eq!(is(Version::Head).unwrap(), 5);
    assert_eq!(is(Version::Back(0)).unwrap(), 5);
    assert_eq!(is(Version::Back(4)).unwrap(), 1);
    assert!(is(Version::Back(5)).is_err());
    assert_eq!(is(Version::At(3_500_000_000)).unwrap(), 3);
    assert!(is(Version::At(10)).is_err());
    assert_eq!(is(Version::Named(all[2].id.short())).unwrap(), 3);
    assert_eq!(
        is(Version::Named(all[2].id.to_string()[..7].to_owned())).unwrap(),
        3
    );
    store.tag(&state, "before-deploy", Some(all[1].id)).unwrap();
    assert_eq!(is(Version::Named("before-deploy".into())).unwrap(), 2);
    assert!(store.tag(&state, "before-deploy", Some(all[0].id)).is_err());
    for wrong in ["head", "", "-5m", "a/b", "deadbeef", "2026-11-20T19:02:11Z"] {
        assert!(store.tag(&state, wrong, Some(all[0].id)).is_err(), "{wrong}");
    }
    store.tag(&state, "before-deploy", None).unwrap();
    assert!(is(Version::Named("before-deploy".into())).is_err());
    // A commit beside another is refused, not lost.
    let session = store.session(state.domain);
    let old = Known {
        head: Some((all[3].id, 4)),
        ..state.clone()
    };
    let told = session
        .commit(&old, all[4].commit.clone(), |_| {})
        .unwrap_err()
        .to_string();
    assert!(told.contains("meanwhile"), "{told}");
}

#[test]
fn a_newer_store_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    drop(store(dir.path()));
    let format = dir.path().join("store/format");
    fs::write(&format, format!("diffkeeper store {}\n", crate::FORMAT + 1)).unwrap();
    let told = Store::open(&dir.path().join("store"), Hash::Blake3)
        .err()
        .unwrap()
        .to_string();
    assert!(told.contains("newer"), "{told}");
    fs::write(&format, "something\n").unwrap();
    assert!(Store::open(&dir.path().join("store"), Hash::Blake3).is_err());
    fs::remove_file(&format).unwrap();
    assert!(Store::open(&dir.path().join("store"), Hash::Blake3).is_err());
}

#[test]
fn signatures() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let keys: Vec<_> = ["a", "b"]
        .into_iter()
        .map(|name| {
            let path = dir.path().join(name);
            let public = Signer::make(&path).unwrap();
            // Neither is written over.
            assert!(Signer::make(&path).is_err());
            (
                path,
                PublicKey::parse(&fs::read_to_string(public).unwrap()).unwrap(),
            )
        })
        .collect();
    let [(path, ours), (_, other)] = keys.try_into().ok().unwrap();
    let version = |store: &Store, n: u64| commit(store, "a", |_| vec![put(entry_n(n, n))]);
    {
        let store = store(dir.path());
        version(&store, 1);
        store.sign_with(Signer::read(&path).unwrap());
        version(&store, 2);
    }
    let store = store(dir.path());
    store.sign_with(Signer::read(&path).unwrap());
    let third = version(&store, 3);
    let state = known(&store, "a");
    let first = store.resolve(&state, &Version::Back(2)).unwrap();
    let mut walked = Vec::new();
    let audited = store.audit_watched(&state, std::slice::from_ref(&ours), |done, of| {
        walked.push((done, of))
    });
    let audited = audited.unwrap();
    let all = audited.commits;
    assert_eq!(walked, (0..all).map(|done| (done, all)).collect::<Vec<_>>());
    let stop = |_, _| ControlFlow::Break(());
    assert!(matches!(
        store.audit_watched(&state, &[], stop),
        Err(Error::Stopped)
    ));
    assert_eq!(
        (audited.signed, audited.unsigned.as_slice()),
        (2, &[first.id][..])
    );
    // Whoever did not sign it is told so, unless the one who did is asked too.
    let told = store
        .audit(&state, std::slice::from_ref(&other))
        .unwrap_err()
        .to_string();
    assert!(
        told.contains(&third.id.short()) && told.contains("signature"),
        "{told}"
    );
    let keys = [other, ours];
    assert_eq!(store.audit(&state, &keys).unwrap().signed, 2);
    // Every bit of a signature counts, and one of another commit is none.
    let right = store.catalog.signature(third.id).unwrap().unwrap();
    let second = store.resolve(&state, &Version::Back(1)).unwrap();
    let mut wrong: Vec<Vec<u8>> = (0..right.len())
        .map(|at| {
            let mut wrong = right.clone();
            wrong[at] ^= 1;
            wrong
        })
        .collect();
    wrong.push(store.catalog.signature(second.id).unwrap().unwrap());
    wrong.push(Vec::new());
    for wrong in wrong {
        let mut batch = store.catalog.batch();
        batch.signature(third.id, &wrong);
        store.catalog.write(batch).unwrap();
        let told = store.audit(&state, &keys).unwrap_err().to_string();
        assert!(told.contains(&third.id.short()), "{told}");
    }
    // A key that others can read is none, and nothing else is one.
    for mode in [0o640, 0o604, 0o620] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let told = Signer::read(&path).err().unwrap().to_string();
        assert!(told.contains("chmod"), "{told}");
    }
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(&path, "something").unwrap();
    assert!(Signer::read(&path).is_err() && PublicKey::parse("something").is_err());
    // Forgotten with its state.
    store.forget_state("a").unwrap();
    assert_eq!(store.catalog.signature(second.id).unwrap(), None);
}

#[test]
fn sha256_where_it_was_chosen() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let id = {
        let store = Store::open(&path, Hash::Sha256).unwrap();
        let session = store.session(store.domain("d").unwrap());
        session.chunk(b"abc", None).unwrap()
    };
    assert_eq!(
        id.to_string(),
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    );
    assert_eq!(Store::open(&path, Hash::Blake3).unwrap().hash(), Hash::Sha256);
}

/// What a state's tree holds.
fn all(store: &Store, domain: u32, top: Id) -> BTreeMap<Vec<u8>, Entry> {
    let mut found = BTreeMap::new();
    store
        .entries(domain, top, b"", |entry| {
            found.insert(entry.key.clone(), entry);
            Ok(ControlFlow::Continue(()))
        })
        .unwrap();
    found
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// However a tree came to hold what it holds, it is the same tree; and a difference is what it says.
    #[test]
    fn a_tree_is_its_entries(
        first in proptest::collection::btree_map(0u64..3000, 0u64..3, 0..1500),
        steps in proptest::collection::vec(
            (0u64..3000, 0u64..200, proptest::option::of(0u64..4)), 1..6),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        let domain = store.domain("d").unwrap();
        let session = store.session(domain);
        let mut expected: BTreeMap<Vec<u8>, Entry> =
            first.iter().map(|(n, v)| entry_n(*n, *v)).map(|e| (e.key.clone(), e)).collect();
        let whole = |entries: &BTreeMap<Vec<u8>, Entry>| entries.clone().into_iter().map(|(k, e)| (k, Some(e)));
        let mut top = session.tree(None, whole(&expected)).unwrap();
        for (from, count, version) in steps {
            let changes: BTreeMap<Vec<u8>, Option<Entry>> = (from..from + count)
                .map(|n| (entry_n(n, 0).key, version.map(|v| entry_n(n, v))))
                .collect();
            let before = expected.clone();
            for (key, change) in &changes {
                match change {
                    Some(entry) => expected.insert(key.clone(), entry.clone()),
                    None => expected.remove(key),
                };
            }
            let after = session.tree(Some(top.id), changes).unwrap();
            prop_assert_eq!(after, session.tree(None, whole(&expected)).unwrap());
            prop_assert_eq!(after.entries, expected.len() as u64);
            prop_assert_eq!(&all(&store, domain, after.id), &expected);
            let mut patched = before;
            store.differences(domain, Some(top.id), after.id, b"", |difference| {
                assert_eq!(patched.get(difference.key()), difference.before.as_ref());
                assert_ne!(difference.before, difference.after);
                match difference.after {
                    Some(after) => patched.insert(after.key.clone(), after),
                    None => patched.remove(difference.key()),
                };
                Ok(ControlFlow::Continue(()))
            }).unwrap();
            prop_assert_eq!(&patched, &expected);
            // In two parts it is the same.
            let mut keys = Vec::new();
            let mut gather = |behind: &[u8], most: usize| {
                let mut count = 0;
                store.differences(domain, Some(top.id), after.id, behind, |difference| {
                    keys.push(difference.key().to_vec());
                    count += 1;
                    Ok(if count == most { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
                }).unwrap();
                keys.last().cloned()
            };
            if let Some(last) = gather(b"", 40) {
                gather(&last, usize::MAX);
            }
            let all: Vec<Vec<u8>> = {
                let mut all = Vec::new();
                store.differences(domain, Some(top.id), after.id, b"", |difference| {
                    all.push(difference.key().to_vec());
                    Ok(ControlFlow::Continue(()))
                }).unwrap();
                all
            };
            prop_assert_eq!(keys, all);
            top = after;
        }
        let from = entry_n(1500, 0).key;
        let mut count = 0;
        store.entries(domain, top.id, &from, |_| { count += 1; Ok(ControlFlow::Continue(())) }).unwrap();
        prop_assert_eq!(count, expected.range(from..).count());
        for n in (0..3000).step_by(97) {
            let key = entry_n(n, 0).key;
            prop_assert_eq!(&store.entry(domain, top.id, &key).unwrap(), &expected.get(&key).cloned());
        }
    }

    /// Content recorded beside what was there before is what it would be alone, and is read as it was.
    #[test]
    fn content_is_its_bytes(
        length in 0usize..1_500_000,
        edits in proptest::collection::vec((0usize..1_500_000, 0usize..200_000, 0usize..200_000, any::<u64>()), 0..4),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        let domain = store.domain("d").unwrap();
        let session = store.session(domain);
        let mut bytes = noise(length, 11);
        let mut before = write(&session, "f", &bytes, None);
        for (at, remove, insert, seed) in edits {
            let at = at.min(bytes.len());
            let end = (at + remove).min(bytes.len());
            bytes.splice(at..end, noise(insert, seed));
            let after = write(&session, "f", &bytes, Some(&before));
            prop_assert_eq!(&after, &write(&session, "f", &bytes, None));
            prop_assert_eq!(read(&store, domain, &after).unwrap(), bytes.clone());
            before = after;
        }
    }
}
