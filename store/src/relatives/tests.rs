//! Copies that were changed.

use std::{cell::RefCell, collections::HashSet, rc::Rc, sync::Arc};

use proptest::prelude::*;

use crate::{
    Id, Recorded, Retention, Store, Thorough,
    catalog::name_of,
    fault::meanwhile,
    format::{Entry, key},
    pack::Object,
    tests::{commit, known, noise, put, read, store, write},
};

/// Text that no other of its kind shares.
fn text(length: usize, seed: u64) -> Vec<u8> {
    let words = noise(length, seed);
    let letters = words.iter().flat_map(|byte| [b'a' + byte % 16, b'a' + byte / 16]);
    letters.take(length).collect()
}

fn add(store: &Store, state: &str, path: &str, bytes: &[u8]) -> Recorded {
    commit(store, state, |s| vec![put(write(s, path, bytes, None))])
}

fn entry_of(store: &Store, recorded: &Recorded, path: &str) -> Entry {
    let tree = recorded.commit.tree_id().unwrap();
    let domain = known(store, &recorded.commit.state).domain;
    let found = store.entry(domain, tree, &key(b"rootfs", path.as_bytes()));
    found.unwrap().unwrap()
}

fn content(store: &Store, recorded: &Recorded, path: &str) -> Vec<u8> {
    let domain = known(store, &recorded.commit.state).domain;
    read(store, domain, &entry_of(store, recorded, path)).unwrap()
}

/// The base of a file's only chunk, and what the chunk takes.
fn base(store: &Store, recorded: &Recorded, path: &str) -> (Option<Id>, u32) {
    let chunk = entry_of(store, recorded, path).content_id().unwrap();
    let domain = known(store, &recorded.commit.state).domain;
    let place = store.place(domain, Object::Chunk, chunk).unwrap().unwrap();
    (place.base.map(|base| base.id), place.stored)
}

/// Every feature is of a chunk that is there; says how many there are.
fn features(store: &Store, domain: u32) -> usize {
    let mut chunks = HashSet::new();
    let each = |object, id, _| {
        chunks.extend((object == Object::Chunk).then(|| name_of(id)));
        Ok(())
    };
    store.catalog.objects(domain, each).unwrap();
    let mut found = 0;
    let each = |_, name| {
        found += 1;
        assert!(chunks.contains(&name), "it is of a chunk that is not there");
    };
    store.catalog.features(domain, each).unwrap();
    found
}

const ONE: &str = "ctr/default/one";
const TWO: &str = "ctr/default/two";

#[test]
fn a_copy_that_was_changed_finds_what_it_came_from() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let mut bytes = text(14_000, 1);
    let first = add(&store, ONE, "first", &bytes);
    let original = entry_of(&store, &first, "first").content_id().unwrap();
    let domain = known(&store, ONE).domain;
    assert_eq!(features(&store, domain), delta::FEATURES);
    bytes.splice(5_000..5_010, *b"another line");
    // In the same state and in another one.
    let second = add(&store, ONE, "second", &bytes);
    bytes[9_000] ^= 1;
    let other = add(&store, TWO, "third", &bytes);
    for (recorded, path) in [(&second, "second"), (&other, "third")] {
        let (base, stored) = base(&store, recorded, path);
        assert_eq!(base, Some(original), "{path}");
        assert!(stored < 200, "{path}: {stored}");
    }
    // One of the family is enough, and what is too short is not noted.
    add(&store, ONE, "short", &text(4_000, 9));
    assert_eq!(features(&store, domain), delta::FEATURES);
    // Noise has no relatives, whatever it shares.
    let mut noisy = noise(14_000, 1);
    add(&store, ONE, "noise", &noisy);
    noisy[100] ^= 1;
    let noise = add(&store, ONE, "noise2", &noisy);
    assert_eq!(base(&store, &noise, "noise2").0, None);
    // Another domain learns nothing.
    let state = store.make_state("k8s/other/one", "k8s/other").unwrap();
    let session = store.session(state.domain);
    let chunk = session.chunk(&bytes, None).unwrap();
    session.flush().unwrap();
    drop(session);
    let place = store.place(state.domain, Object::Chunk, chunk).unwrap();
    assert_eq!(place.and_then(|place| place.base), None);
    drop(store);
    // And it is known to those that come later.
    let store = crate::tests::store(dir.path());
    bytes[2_000] ^= 1;
    let later = add(&store, TWO, "fourth", &bytes);
    assert_eq!(base(&store, &later, "fourth").0, Some(original));
    assert!(content(&store, &later, "fourth") == bytes);
}

#[test]
fn nobody_searches_while_others_wait() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let mut bytes = text(14_000, 1);
    add(&store, ONE, "first", &bytes);
    store.follow(|| Some(80.0));
    bytes[700] ^= 1;
    let copy = add(&store, ONE, "second", &bytes);
    assert_eq!(base(&store, &copy, "second").0, None);
}

/// Nor notes anything, or makes it shorter by its frequencies alone. Recompaction makes up for it.
#[test]
fn what_was_written_while_others_waited_becomes_a_relative() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    store.follow(|| Some(80.0));
    let mut bytes = text(14_000, 1);
    let first = add(&store, ONE, "first", &bytes);
    let original = entry_of(&store, &first, "first").content_id().unwrap();
    let domain = known(&store, ONE).domain;
    assert_eq!(base(&store, &first, "first"), (None, 14_000));
    assert_eq!(features(&store, domain), 0);
    store.recompact(&known(&store, ONE), |_| {}).unwrap();
    let (_, stored) = base(&store, &first, "first");
    assert!(stored < 8_000, "{stored}");
    assert_eq!(features(&store, domain), delta::FEATURES);
    assert!(content(&store, &first, "first") == bytes);
    drop(store);
    // Nobody waits any more.
    let store = crate::tests::store(dir.path());
    bytes[700] ^= 1;
    let copy = add(&store, TWO, "copy", &bytes);
    assert_eq!(base(&store, &copy, "copy").0, Some(original));
}

#[test]
fn what_is_erased_is_nobodys_relative() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(store(dir.path()));
    let mut bytes = text(14_000, 1);
    let first = add(&store, ONE, "file", &bytes);
    let original = entry_of(&store, &first, "file").content_id().unwrap();
    bytes[700] ^= 1;
    let copy = add(&store, TWO, "file", &bytes);
    let domain = known(&store, TWO).domain;
    assert_eq!(base(&store, &copy, "file").0, Some(original));
    store.forget_state(ONE).unwrap();
    // It is needed, though not by a commit: nothing is written anew for less.
    store.gc(Thorough::Worthwhile, false, |_| {}).unwrap();
    assert_eq!(features(&store, domain), delta::FEATURES);
    // Meanwhile a commit is made of what would find it: its features are there still.
    let made = Rc::new(RefCell::new(None));
    let (late, during) = (Rc::clone(&made), Arc::clone(&store));
    meanwhile::at("relatives-left", move || {
        assert_eq!(features(&during, domain), delta::FEATURES);
        bytes[900] ^= 1;
        let recorded = add(&during, TWO, "late", &bytes);
        late.replace(Some((base(&during, &recorded, "late").0, recorded, bytes)));
    });
    store.gc(Thorough::Erase, false, |_| {}).unwrap();
    let (found, late, bytes) = made.take().unwrap();
    assert_eq!(found, None);
    assert!(content(&store, &late, "late") == bytes);
    assert_eq!(store.place(domain, Object::Chunk, original).unwrap(), None);
    features(&store, domain);
    assert_eq!(store.verify(100, |_| {}).unwrap().problems, []);
}

#[derive(Debug, Clone)]
enum Event {
    /// A file becomes a changed copy of another.
    Copy {
        from: u8,
        to: u8,
        at: u16,
        with: u8,
    },
    Forget(bool),
    Expire,
    Collect(bool),
    Recompact,
    Reopen,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        8 => (0u8..4, 0u8..8, any::<u16>(), any::<u8>()).prop_map(|(from, to, at, with)| Event::Copy { from, to, at, with }),
        1 => any::<bool>().prop_map(Event::Forget),
        1 => Just(Event::Expire),
        2 => any::<bool>().prop_map(Event::Collect),
        1 => Just(Event::Recompact),
        1 => Just(Event::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]
    /// Whatever becomes of what they came from, copies stay what they are, and no feature is of a chunk that is gone.
    #[test]
    fn copies_outlive_what_they_came_from(events in proptest::collection::vec(event(), 1..24)) {
        let dir = tempfile::tempdir().unwrap();
        let mut store = store(dir.path());
        let texts: Vec<Vec<u8>> = (0..4).map(|seed| text(70_000, seed + 1)).collect();
        let mut kept: Vec<(Recorded, String, Vec<u8>)> = Vec::new();
        for event in events {
            match event {
                Event::Copy { from, to, at, with } => {
                    let state = [ONE, TWO][usize::from(to % 2)];
                    let mut bytes = texts[usize::from(from)].clone();
                    bytes.splice(usize::from(at)..usize::from(at) + 20, [with; 30]);
                    let path = format!("file{to}");
                    let recorded = add(&store, state, &path, &bytes);
                    kept.push((recorded, path, bytes));
                }
                Event::Forget(first) => {
                    let state = if first { ONE } else { TWO };
                    if store.state(state).unwrap().is_some() {
                        store.forget_state(state).unwrap();
                        kept.retain(|(recorded, ..)| recorded.commit.state != state);
                    }
                }
                Event::Expire => {
                    for state in store.states().unwrap() {
                        store.expire(&state, &Retention { rules: vec![] }, i64::MAX, false).unwrap();
                        kept.retain(|(recorded, ..)| {
                            recorded.commit.state != state.name || Some(recorded.id) == state.head.map(|(id, _)| id)
                        });
                    }
                }
                Event::Collect(erase) => {
                    let thorough = if erase { Thorough::Erase } else { Thorough::Worthwhile };
                    store.gc(thorough, false, |_| {}).unwrap();
                }
                Event::Recompact => {
                    for state in store.states().unwrap() {
                        store.recompact(&state, |_| {}).unwrap();
                    }
                }
                Event::Reopen => {
                    drop(store);
                    store = crate::tests::store(dir.path());
                }
            }
            for (_, domain) in store.catalog.domains().unwrap() {
                features(&store, domain);
            }
        }
        prop_assert_eq!(store.verify(100, |_| {}).unwrap().problems, []);
        for (recorded, path, bytes) in &kept {
            prop_assert!(content(&store, recorded, path) == *bytes);
        }
    }
}
