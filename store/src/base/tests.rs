//! Objects that stand on others, through all that a store does.

use std::{fs, path::Path};

use proptest::prelude::*;

use super::{FAR, NEAR, steps};
use crate::{
    Collected, Id, Recorded, Result, Retention, Store, Thorough,
    catalog::{Base, Place},
    content::Pieces,
    format::{Entry, key},
    pack::Object,
    tests::{commit, known, noise, put, read, set_place, store, write},
};

const STATE: &str = "ctr/default/web";

fn entry_of(store: &Store, recorded: &Recorded, path: &str) -> Entry {
    let domain = store.domain("ctr/default").unwrap();
    let tree = recorded.commit.tree_id().unwrap();
    let found = store.entry(domain, tree, &key(b"rootfs", path.as_bytes()));
    found.unwrap().unwrap()
}

/// Commits one file that follows its last version.
fn version(store: &Store, path: &str, bytes: &[u8]) -> Recorded {
    let before = store.state(STATE).unwrap().and_then(|state| state.head);
    let before = before.and_then(|(id, _)| {
        let tree = store.commit(id).unwrap().commit.tree_id().unwrap();
        store
            .entry(known(store, STATE).domain, tree, &key(b"rootfs", path.as_bytes()))
            .unwrap()
    });
    commit(store, STATE, |s| {
        vec![put(write(s, path, bytes, before.as_ref()))]
    })
}

fn content(store: &Store, recorded: &Recorded, path: &str) -> Result<Vec<u8>> {
    let domain = store.domain("ctr/default").unwrap();
    read(store, domain, &entry_of(store, recorded, path))
}

/// The only chunk of a file, and where it is.
fn chunk(store: &Store, recorded: &Recorded, path: &str) -> (Id, Place) {
    let id = entry_of(store, recorded, path).content_id().unwrap();
    let domain = known(store, STATE).domain;
    (id, store.place(domain, Object::Chunk, id).unwrap().unwrap())
}

fn expire(store: &Store) {
    let none = Retention { rules: Vec::new() };
    store
        .expire(&known(store, STATE), &none, i64::MAX, false)
        .unwrap();
}

fn on_disk(dir: &Path, needle: &[u8]) -> bool {
    let packs = fs::read_dir(dir.join("store/packs")).unwrap().flatten();
    packs.into_iter().any(|file| {
        let bytes = fs::read(file.path()).unwrap();
        bytes.windows(needle.len()).any(|window| window == needle)
    })
}

#[test]
fn versions_stand_on_each_other_and_never_far() {
    let dir = tempfile::tempdir().unwrap();
    let mut bytes = noise(15_000, 1);
    let mut made = Vec::new();
    {
        let store = store(dir.path());
        for n in 0..60 {
            bytes[n * 200..n * 200 + 50].fill(n as u8);
            made.push((version(&store, "file", &bytes), bytes.clone()));
        }
        let depths: Vec<u8> = made
            .iter()
            .map(|(recorded, _)| chunk(&store, recorded, "file").1.depth())
            .collect();
        assert!(
            depths.iter().all(|depth| steps(*depth) <= NEAR + FAR),
            "{depths:?}"
        );
        let whole = depths.iter().filter(|depth| **depth == 0).count();
        assert_eq!(whole, 3, "{depths:?}");
        let usage = store.usage().unwrap();
        assert!(usage.stored < 3 * 15_000 + 57 * 1_500, "{usage:?}");
        let forms = store.forms(&known(&store, STATE)).unwrap();
        assert_eq!(forms, usage.forms, "nobody else has any");
        let told: Vec<_> = forms
            .iter()
            .map(|form| (form.encoding.as_str(), form.chunks))
            .collect();
        assert_eq!(told, [("raw", 1), ("zstd", 2), ("prefix", 57)]);
        let all: u64 = depths.iter().map(|depth| u64::from(steps(*depth))).sum();
        assert_eq!(forms[2].steps, all);
    }
    let store = store(dir.path());
    assert_eq!(store.verify(100, |_| {}).unwrap().problems, []);
    for (recorded, bytes) in made.iter().rev() {
        assert!(content(&store, recorded, "file").unwrap() == *bytes);
    }
}

#[test]
fn nodes_stand_on_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let entry = |n: u64, version: u64| {
        let mut entry = crate::tests::entry(&format!("dir/file{n}"), &noise(40, n));
        entry.mtime = version.cast_signed();
        put(entry)
    };
    commit(&store, STATE, |_| (0..3000).map(|n| entry(n, 0)).collect());
    let mut long = noise(20_000_000, 2);
    let first = version(&store, "long", &long);
    long[10_000_000] ^= 1;
    let before = entry_of(&store, &first, "long");
    let second = commit(&store, STATE, |s| {
        vec![entry(1500, 1), put(write(s, "long", &long, Some(&before)))]
    });
    // Three nodes of a tree and two lists, some five thousand bytes each by themselves.
    assert!(second.commit.written < 3_000, "{}", second.commit.written);
    assert!(content(&store, &second, "long").unwrap() == long);
    assert_eq!(store.verify(100, |_| {}).unwrap().problems, []);
}

/// Where the chunks of a file end.
fn ends(store: &Store, recorded: &Recorded) -> Vec<usize> {
    let entry = entry_of(store, recorded, "file");
    let pieces = Pieces::new(store, known(store, STATE).domain, &entry);
    let (mut pieces, mut found) = (pieces.unwrap().unwrap(), Vec::new());
    while let Some((at, piece)) = pieces.next_piece().unwrap() {
        found.push(usize::try_from(at + piece.length).unwrap());
    }
    found
}

#[test]
fn a_change_in_place_moves_no_boundary() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let mut bytes = noise(2_000_000, 4);
    let mut last = version(&store, "file", &bytes);
    let first = ends(&store, &last);
    // What decided where a chunk ends is gone, one after the other.
    for end in &first[2..12] {
        bytes[end - 700..end + 700].copy_from_slice(&noise(1_400, *end as u64));
        last = version(&store, "file", &bytes);
        assert!(last.commit.written < 3_000, "{}", last.commit.written);
        assert_eq!(ends(&store, &last), first);
    }
    assert!(content(&store, &last, "file").unwrap() == bytes);
    // What moved is cut by what it holds.
    bytes.splice(300..300, noise(50, 6));
    last = version(&store, "file", &bytes);
    assert!(last.commit.written < 700_000, "{}", last.commit.written);
    assert!(content(&store, &last, "file").unwrap() == bytes);
}

#[test]
fn what_changes_everywhere_in_its_place_moves_no_boundary() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let mut bytes = noise(1_000_000, 4);
    let first = ends(&store, &version(&store, "file", &bytes));
    let mut last = None;
    for n in 1..=3 {
        // Whatever decided where a chunk ends decides something else now.
        for (at, byte) in bytes.iter_mut().enumerate().filter(|(at, _)| at % 16 == 0) {
            *byte ^= u8::try_from(at / 16 % 251).unwrap() | n;
        }
        let changed = version(&store, "file", &bytes);
        assert_eq!(ends(&store, &changed), first);
        assert!(changed.commit.written < 400_000, "{}", changed.commit.written);
        last = Some(changed);
    }
    assert!(content(&store, &last.unwrap(), "file").unwrap() == bytes);
    // What has grown ends elsewhere, and nowhere else.
    bytes.extend(noise(100_000, 5));
    let grown = ends(&store, &version(&store, "file", &bytes));
    assert_eq!(grown[..first.len() - 1], first[..first.len() - 1]);
    assert_eq!(grown.last(), Some(&bytes.len()));
}

#[test]
fn a_base_that_is_missing_or_damaged_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let mut bytes = noise(15_000, 1);
    let (first, second) = {
        let store = store(dir.path());
        let first = version(&store, "file", &bytes);
        bytes[7_000] ^= 1;
        (first, version(&store, "file", &bytes))
    };
    let store = store(dir.path());
    let domain = known(&store, STATE).domain;
    let ((base, place), (id, above)) = (chunk(&store, &first, "file"), chunk(&store, &second, "file"));
    assert_eq!(above.base, Some(Base { id: base, depth: 1 }));
    let told = |what: &str| {
        store.bases.clear();
        let error = content(&store, &second, "file").unwrap_err().to_string();
        assert!(
            error.contains(&id.to_string()) && error.contains(&base.to_string()),
            "{error}"
        );
        assert!(error.contains(what), "{error}");
        let problems = store.verify(100, |_| {}).unwrap().problems;
        assert!(
            problems
                .iter()
                .any(|problem| problem.what.contains(&base.to_string())),
            "{problems:?}"
        );
        assert!(
            problems
                .iter()
                .any(|problem| problem.what.contains(&id.to_string()) && !problem.needed_by.is_empty()),
            "{problems:?}"
        );
    };
    let set = |place: Option<Place>| set_place(&store, domain, base, place);
    set(None);
    told("missing");
    // One that stands on what stands on it: no circle is gone round.
    set(Some(Place {
        base: Some(Base { id, depth: 1 }),
        encoding: delta::Encoding::Prefix,
        ..place
    }));
    told("lower");
    set(Some(place));
    assert!(content(&store, &second, "file").unwrap() == bytes);
    let pack = crate::pack::path(&dir.path().join("store/packs"), place.pack);
    let mut damaged = fs::read(&pack).unwrap();
    damaged[place.at as usize + 5_000] ^= 1;
    fs::write(&pack, damaged).unwrap();
    told("its content is that of");
}

#[test]
fn what_a_needed_one_stands_on_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let mut bytes = noise(100_000, 1);
    version(&store, "file", &bytes);
    // Most of the first pack is not needed, so that it is replaced.
    version(&store, "other", &noise(300_000, 2));
    commit(&store, STATE, |_| vec![(key(b"rootfs", b"other"), None)]);
    bytes[50_000..50_100].fill(7);
    let last = version(&store, "file", &bytes);
    expire(&store);
    let done = store.gc(Thorough::Worthwhile, false, |_| {}).unwrap();
    assert!(done.freed > 200_000, "{done:?}");
    assert_eq!(store.verify(100, |_| {}).unwrap().problems, []);
    assert!(content(&store, &last, "file").unwrap() == bytes);
    assert!(store.usage().unwrap().stored < 110_000);
}

#[test]
fn what_is_erased_is_no_base() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let mut bytes = noise(15_000, 1);
    let secret = bytes[5_000..5_064].to_vec();
    let mut made = vec![version(&store, "file", &bytes)];
    let mut versions = vec![bytes.clone()];
    for n in 0..12 {
        bytes[5_000 + n * 10..5_100 + n * 10].fill(n as u8);
        made.push(version(&store, "file", &bytes));
        versions.push(bytes.clone());
    }
    assert!(on_disk(dir.path(), &secret));
    expire(&store);
    store.gc(Thorough::Worthwhile, false, |_| {}).unwrap();
    assert!(on_disk(dir.path(), &secret), "the last one stands on it");
    store.gc(Thorough::Erase, false, |_| {}).unwrap();
    assert!(!on_disk(dir.path(), &secret));
    assert_eq!(store.verify(100, |_| {}).unwrap().problems, []);
    assert!(content(&store, &made[12], "file").unwrap() == versions[12]);
    // All that is left is that one, and it goes on from there.
    assert_eq!(store.usage().unwrap().chunks, 1);
    bytes[100] ^= 1;
    let next = version(&store, "file", &bytes);
    assert!(next.commit.written < 2_000);
    assert!(content(&store, &next, "file").unwrap() == bytes);
}

/// Ten versions of a file, the first of which holds a secret, in a state that is forgotten; beside it states that each have
/// a pack before those versions, so that a gc has something to say before it comes to them.
fn forgotten(store: &Store) -> (Vec<u8>, Vec<Vec<u8>>) {
    for (n, name) in EARLIER.iter().enumerate() {
        let bytes = noise(5_000, 100 + n as u64);
        commit(store, name, |s| vec![put(write(s, "earlier", &bytes, None))]);
        store.gc(Thorough::Erase, false, |_| {}).unwrap();
    }
    let mut bytes = noise(15_000, 1);
    let secret = bytes[5_000..5_064].to_vec();
    let mut versions = Vec::new();
    for n in 0..10 {
        version(store, "file", &bytes);
        versions.push(bytes.clone());
        bytes[5_000 + n * 10..5_100 + n * 10].fill(n as u8);
    }
    store.forget_state(STATE).unwrap();
    store.forget_state(EARLIER[0]).unwrap();
    (secret, versions)
}

const EARLIER: [&str; 6] = ["e0", "e1", "e2", "e3", "e4", "e5"];
const OTHER: &str = "ctr/default/other";

/// In each gc, once it knows what nobody needs, another state comes to have a version of that.
fn erase(store: &Store, mut wanted: impl FnMut(usize) -> Option<Vec<u8>>) -> Collected {
    let mut round = 0;
    let done = store.erase(|done| {
        if done.looked_at > 1 {
            return;
        }
        if let Some(bytes) = wanted(round) {
            commit(store, OTHER, |s| vec![put(write(s, "file", &bytes, None))]);
        }
        round += 1;
        store.forget_state(EARLIER[round]).unwrap();
    });
    done.unwrap()
}

#[test]
fn what_another_state_takes_while_something_is_erased_keeps_nothing_of_that() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let (secret, versions) = forgotten(&store);
    assert!(on_disk(dir.path(), &secret));
    let done = erase(&store, |round| (round == 0).then(|| versions[9].clone()));
    assert_eq!(done.left, 0, "{done:?}");
    assert!(!on_disk(dir.path(), &secret), "the other's version stood on it");
    assert_eq!(store.verify(100, |_| {}).unwrap().problems, []);
    let last = store.commit(known(&store, OTHER).head.unwrap().0).unwrap();
    assert!(content(&store, &last, "file").unwrap() == versions[9]);
}

#[test]
fn what_cannot_be_erased_for_others_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let (secret, versions) = forgotten(&store);
    // Each time another one, that stands on what is to go.
    let done = erase(&store, |round| Some(versions[9 - round].clone()));
    assert!(done.left > 0 && on_disk(dir.path(), &secret), "{done:?}");
    let done = store.erase(|_| {}).unwrap();
    assert_eq!(done.left, 0, "{done:?}");
    assert!(!on_disk(dir.path(), &secret));
    assert_eq!(store.verify(100, |_| {}).unwrap().problems, []);
}

#[test]
fn what_is_damaged_keeps_no_other_pack_from_being_erased() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let needed = noise(9_000, 1);
    // Together in a pack, and that is damaged where it is needed.
    commit(&store, "a", |s| vec![put(write(s, "a", &noise(9_000, 2), None))]);
    let kept = version(&store, "file", &needed);
    let (_, place) = chunk(&store, &kept, "file");
    store.gc(Thorough::Erase, false, |_| {}).unwrap();
    let secret = noise(9_000, 3);
    commit(&store, "b", |s| vec![put(write(s, "b", &secret, None))]);
    let path = dir.path().join(format!("store/packs/{:08x}.pack", place.pack));
    let mut bytes = fs::read(&path).unwrap();
    bytes[place.at as usize + 5_000] ^= 1;
    fs::write(&path, bytes).unwrap();
    store.forget_state("a").unwrap();
    store.forget_state("b").unwrap();
    let told = store.erase(|_| {}).unwrap_err().to_string();
    assert!(told.contains("is damaged"), "{told}");
    assert!(!on_disk(dir.path(), &secret[4_000..4_064]));
}

#[test]
fn what_is_damaged_and_stands_on_what_goes_keeps_no_more_than_that() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let mut bytes = noise(15_000, 1);
    version(&store, "file", &bytes);
    bytes[7_000..7_100].fill(1);
    let second = version(&store, "file", &bytes);
    expire(&store);
    // What comes after is in another pack.
    store.gc(Thorough::Worthwhile, false, |_| {}).unwrap();
    let (_, place) = chunk(&store, &second, "file");
    assert_eq!(place.depth(), 1);
    let path = dir.path().join(format!("store/packs/{:08x}.pack", place.pack));
    let mut pack = fs::read(&path).unwrap();
    pack[place.at as usize + 80] ^= 1;
    fs::write(&path, pack).unwrap();
    // One of the same domain, and one of another, that comes later.
    let secrets = [noise(9_000, 3), noise(9_000, 4)];
    commit(&store, "b", |s| vec![put(write(s, "b", &secrets[0], None))]);
    let other = store.make_state("c", "ctr/other").unwrap();
    let session = store.session(other.domain);
    session.chunk(&secrets[1], None).unwrap();
    session.flush().unwrap();
    drop(session);
    store.forget_state("b").unwrap();
    let told = store.erase(|_| {}).unwrap_err().to_string();
    assert!(told.contains("is damaged"), "{told}");
    for secret in secrets {
        assert!(!on_disk(dir.path(), &secret[4_000..4_064]));
    }
}

/// What nobody needs and stands on what goes is not found to be there when the same content comes again.
#[test]
fn what_lost_its_base_is_not_there() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let mut bytes = noise(15_000, 1);
    version(&store, "file", &bytes);
    // That pack is closed; what follows is in another, most of which is needed.
    store.gc(Thorough::Erase, false, |_| {}).unwrap();
    bytes[7_000] ^= 1;
    let second = version(&store, "file", &bytes);
    assert_eq!(chunk(&store, &second, "file").1.depth(), 1);
    version(&store, "needed", &noise(200_000, 3));
    commit(&store, STATE, |_| vec![(key(b"rootfs", b"file"), None)]);
    expire(&store);
    store.gc(Thorough::Worthwhile, false, |_| {}).unwrap();
    assert_eq!(store.verify(100, |_| {}).unwrap().problems, []);
    let again = version(&store, "file", &bytes);
    assert!(content(&store, &again, "file").unwrap() == bytes);
    assert_eq!(store.verify(100, |_| {}).unwrap().problems, []);
}

/// Something that happens to a store.
#[derive(Debug, Clone)]
enum Event {
    Change {
        file: u8,
        at: u16,
        length: u16,
        with: u8,
    },
    Shrink {
        file: u8,
        to: u16,
    },
    Expire,
    Collect(bool),
    Recompact,
    /// From now on others wait for the processors.
    Busy,
    Reopen,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => (0u8..3, any::<u16>(), 0u16..600, any::<u8>())
            .prop_map(|(file, at, length, with)| Event::Change { file, at, length, with }),
        1 => (0u8..3, any::<u16>()).prop_map(|(file, to)| Event::Shrink { file, to }),
        1 => Just(Event::Expire),
        1 => any::<bool>().prop_map(Event::Collect),
        1 => Just(Event::Recompact),
        1 => Just(Event::Busy),
        1 => Just(Event::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    /// Files that grow, shrink and change, and all that can happen meanwhile.
    #[test]
    fn every_version_that_is_kept_can_be_read(events in proptest::collection::vec(event(), 1..40)) {
        let dir = tempfile::tempdir().unwrap();
        let mut store = store(dir.path());
        let mut files = [noise(200_000, 1), noise(30_000, 2), noise(1_000, 3)];
        let mut kept: Vec<(Recorded, String, Vec<u8>)> = Vec::new();
        for event in events {
            let changed = match event {
                Event::Change { file, at, length, with } => {
                    let bytes = &mut files[usize::from(file)];
                    let (at, length) = (usize::from(at) * 3, usize::from(length));
                    bytes.resize(bytes.len().max(at + length), with);
                    bytes[at..at + length].fill(with);
                    Some(file)
                }
                Event::Shrink { file, to } => {
                    files[usize::from(file)].truncate(usize::from(to));
                    Some(file)
                }
                Event::Expire => {
                    if !kept.is_empty() {
                        expire(&store);
                        kept.drain(..kept.len() - 1);
                    }
                    None
                }
                Event::Collect(erase) => {
                    let thorough = if erase { Thorough::Erase } else { Thorough::Worthwhile };
                    store.gc(thorough, false, |_| {}).unwrap();
                    None
                }
                Event::Recompact => {
                    if let Some(state) = store.state(STATE).unwrap() {
                        store.recompact(&state, |_| {}).unwrap();
                    }
                    None
                }
                Event::Busy => {
                    store.follow(|| Some(60.0));
                    None
                }
                Event::Reopen => {
                    drop(store);
                    store = crate::tests::store(dir.path());
                    None
                }
            };
            if let Some(file) = changed {
                let name = format!("file{file}");
                let bytes = &files[usize::from(file)];
                let recorded = version(&store, &name, bytes);
                kept.push((recorded, name, bytes.clone()));
            }
        }
        prop_assert_eq!(store.verify(100, |_| {}).unwrap().problems, []);
        for (recorded, name, bytes) in &kept {
            prop_assert!(content(&store, recorded, name).unwrap() == *bytes);
        }
    }
}
