//! Dictionaries, through all that a store does.

use std::fs;

use super::{FEWEST, KNOWN, Ready, Sample, Trials};
use crate::{
    Id, Recorded, Rescue, Retention, Store, Thorough,
    catalog::{Base, Place},
    format::{Entry, key},
    pack::{self, Object},
    tests::{commit, known, noise, put, read, set_place, store, write},
};

const WEB: &str = "ctr/default/web";
const DB: &str = "ctr/default/db";

/// Documents with the same names and other values; of each `seed` others.
fn document(seed: u64, n: usize) -> Vec<u8> {
    let mut text = String::new();
    for (row, bytes) in noise(400, seed * 1000 + n as u64).chunks(20).enumerate() {
        let (a, b) = (u32::from(bytes[0]) << 8 | u32::from(bytes[1]), bytes[2] % 100);
        text.push_str(&format!(
            "{{\"identifier\": {row}, \"customer_name\": \"c{a}\", \"is_active\": {}, \"balance_in_cents\": {b}}}\n",
            bytes[3] % 2 == 0
        ));
    }
    text.into_bytes()
}

fn path(n: usize) -> String {
    format!("data/{n}.json")
}

/// Commits documents that dictionaries may be learned from.
fn documents(store: &Store, state: &str, seed: u64, count: usize) -> Recorded {
    let all: Vec<Vec<u8>> = (0..count).map(|n| document(seed, n)).collect();
    commit(store, state, |session| {
        let samples = all.iter().enumerate().map(|(n, bytes)| Sample {
            name: path(n),
            bytes: bytes.clone(),
        });
        session.learn(&samples.collect::<Vec<_>>()).unwrap();
        let entries = all.iter().enumerate();
        entries
            .map(|(n, bytes)| put(write(session, &path(n), bytes, None)))
            .collect()
    })
}

fn entry_of(store: &Store, recorded: &Recorded, state: &str, n: usize) -> Entry {
    let tree = recorded.commit.tree_id().unwrap();
    let found = store.entry(
        known(store, state).domain,
        tree,
        &key(b"rootfs", path(n).as_bytes()),
    );
    found.unwrap().unwrap()
}

fn place_of(store: &Store, recorded: &Recorded, state: &str, n: usize) -> (Id, Place) {
    let id = entry_of(store, recorded, state, n).content_id().unwrap();
    let domain = known(store, state).domain;
    (id, store.place(domain, Object::Chunk, id).unwrap().unwrap())
}

fn check(store: &Store, recorded: &Recorded, state: &str, seed: u64, count: usize) {
    for n in 0..count {
        let entry = entry_of(store, recorded, state, n);
        let bytes = read(store, known(store, state).domain, &entry).unwrap();
        assert!(bytes == document(seed, n), "{n}");
    }
    assert_eq!(store.verify(100, |_| {}).unwrap().problems, []);
}

fn chunks_by(store: &Store, encoding: &str) -> u64 {
    let forms = store.usage().unwrap().forms;
    let of = forms.iter().find(|form| form.encoding == encoding);
    of.map_or(0, |form| form.chunks)
}

fn dictionaries(store: &Store) -> usize {
    let domain = known(store, WEB).domain;
    store.catalog.dictionaries(domain).unwrap().len()
}

/// Takes the content of all but the newest commit away.
fn expire(store: &Store, state: &str) {
    let none = Retention { rules: Vec::new() };
    store
        .expire(&known(store, state), &none, i64::MAX, false)
        .unwrap();
}

#[test]
fn small_contents_share_a_dictionary() {
    let dir = tempfile::tempdir().unwrap();
    let first = documents(&store(dir.path()), WEB, 1, 200);
    let store = store(dir.path());
    assert_eq!(dictionaries(&store), 1);
    let by = chunks_by(&store, "dictionary");
    assert!((190..=200).contains(&by), "{by}");
    let usage = store.usage().unwrap();
    let form = usage
        .forms
        .iter()
        .find(|form| form.encoding == "dictionary")
        .unwrap();
    assert!(form.stored * 5 < form.content, "{form:?}");
    check(&store, &first, WEB, 1, 200);
    // What comes later needs no samples, and nothing is learned twice.
    let second = documents(&store, WEB, 2, 300);
    assert_eq!(dictionaries(&store), 1);
    assert!(chunks_by(&store, "dictionary") > by + 280);
    check(&store, &second, WEB, 2, 300);
    // Another domain learns nothing of it.
    let state = store.make_state("k8s/shop/web-0/web", "k8s/shop").unwrap();
    assert_ne!(state.domain, known(&store, WEB).domain);
    let alone = commit(&store, "k8s/shop/web-0/web", |session| {
        vec![put(write(session, &path(0), &document(2, 0), None))]
    });
    assert_eq!(place_of(&store, &alone, "k8s/shop/web-0/web", 0).1.base, None);
}

#[test]
fn few_or_unlike_contents_have_none() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    documents(&store, WEB, 1, FEWEST - 1);
    let noises = (0..200).map(|n| Sample {
        name: "noise".into(),
        bytes: noise(2000, n),
    });
    let noises: Vec<Sample> = noises.collect();
    store.session(known(&store, WEB).domain).learn(&noises).unwrap();
    assert_eq!(dictionaries(&store), 0);
    assert_eq!(chunks_by(&store, "dictionary"), 0);
}

#[test]
fn versions_stand_on_what_a_dictionary_wrote() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let mut last = documents(&store, WEB, 1, 100);
    let mut bytes = document(1, 5);
    let mut made = Vec::new();
    for n in 0..30 {
        bytes.extend_from_slice(format!("{{\"added\": {}}}\n", n * 7919).as_bytes());
        let before = entry_of(&store, &last, WEB, 5);
        last = commit(&store, WEB, |s| {
            vec![put(write(s, &path(5), &bytes, Some(&before)))]
        });
        made.push((last.clone(), bytes.clone()));
    }
    let dictionary = store.catalog.dictionaries(known(&store, WEB).domain).unwrap()[0].id;
    let mut far = 0;
    for (recorded, _) in &made {
        let place = place_of(&store, recorded, WEB, 5).1;
        let Some(base) = place.base else { continue };
        far += usize::from(base.depth >= 16);
        // A far step ends above the dictionary, which is no version.
        assert_eq!(
            base.id == dictionary,
            place.encoding == delta::Encoding::Dictionary
        );
    }
    assert!(far > 0);
    for (recorded, bytes) in &made {
        let entry = entry_of(&store, recorded, WEB, 5);
        assert!(read(&store, known(&store, WEB).domain, &entry).unwrap() == *bytes);
    }
    assert_eq!(store.verify(100, |_| {}).unwrap().problems, []);
}

#[test]
fn gc_keeps_what_is_needed_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    documents(&store, WEB, 1, 100);
    // All but one document go.
    let last = commit(&store, WEB, |_| {
        (1..100)
            .map(|n| (key(b"rootfs", path(n).as_bytes()), None))
            .collect()
    });
    expire(&store, WEB);
    store.gc(Thorough::Worthwhile, false, |_| {}).unwrap();
    assert_eq!(
        store.usage().unwrap().chunks,
        2,
        "the document and the dictionary"
    );
    check(&store, &last, WEB, 1, 1);
    let next = documents(&store, WEB, 3, 100);
    assert_eq!(dictionaries(&store), 1, "it serves as before");
    check(&store, &next, WEB, 3, 100);
    commit(&store, WEB, |_| {
        (0..100)
            .map(|n| (key(b"rootfs", path(n).as_bytes()), None))
            .collect()
    });
    expire(&store, WEB);
    store.gc(Thorough::Worthwhile, false, |_| {}).unwrap();
    assert_eq!((store.usage().unwrap().chunks, dictionaries(&store)), (0, 0));
    let again = documents(&store, WEB, 4, 100);
    assert_eq!(dictionaries(&store), 1);
    check(&store, &again, WEB, 4, 100);
}

#[test]
fn a_dictionary_goes_with_what_is_erased() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let web = documents(&store, WEB, 1, 100);
    let dictionary = |store: &Store| store.catalog.dictionaries(known(store, DB).domain).unwrap().pop();
    documents(&store, DB, 2, 100);
    let learned = dictionary(&store).unwrap();
    // Nothing that it was learned from goes: it stays, and what was written by it.
    let db = commit(&store, DB, |s| {
        vec![put(write(s, "more.json", &document(5, 0), None))]
    });
    expire(&store, DB);
    store.gc(Thorough::Erase, false, |_| {}).unwrap();
    assert_eq!(dictionary(&store).as_ref(), Some(&learned));
    assert!(chunks_by(&store, "dictionary") > 190);
    check(&store, &web, WEB, 1, 100);
    // Parts of what `web` held stand in it: it goes with that, and what `db` holds is written without.
    store.forget_state(WEB).unwrap();
    store.gc(Thorough::Erase, false, |_| {}).unwrap();
    assert_eq!(dictionary(&store), None);
    let domain = known(&store, DB).domain;
    assert!(store.place(domain, Object::Chunk, learned.id).unwrap().is_none());
    assert_eq!(chunks_by(&store, "dictionary"), 0);
    check(&store, &db, DB, 2, 100);
}

#[test]
fn a_dictionary_that_is_missing_or_damaged_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let recorded = documents(&store(dir.path()), WEB, 1, 100);
    let store = store(dir.path());
    let domain = known(&store, WEB).domain;
    let n = (0..100)
        .find(|n| place_of(&store, &recorded, WEB, *n).1.base.is_some())
        .unwrap();
    let (id, above) = place_of(&store, &recorded, WEB, n);
    let base = above.base.unwrap().id;
    let place = store.place(domain, Object::Chunk, base).unwrap().unwrap();
    let told = |what: &str| {
        store.bases.clear();
        store.dictionaries.clear();
        let entry = entry_of(&store, &recorded, WEB, n);
        let error = read(&store, domain, &entry).unwrap_err().to_string();
        for part in [&id.to_string(), &base.to_string(), what] {
            assert!(error.contains(part), "{error}");
        }
        let problems = store.verify(100, |_| {}).unwrap().problems;
        assert!(
            problems
                .iter()
                .any(|problem| problem.what.contains(&base.to_string())),
            "{problems:?}"
        );
        // What comes is written without, and can be read.
        let new = commit(&store, WEB, |s| {
            vec![put(write(s, &path(1000), &document(9, n), None))]
        });
        assert_eq!(place_of(&store, &new, WEB, 1000).1.base, None);
        assert!(read(&store, domain, &entry_of(&store, &new, WEB, 1000)).unwrap() == document(9, n));
    };
    let set = |place: Option<Place>| set_place(&store, domain, base, place);
    set(None);
    told("missing");
    set(Some(place));
    let pack = pack::path(&dir.path().join("store/packs"), place.pack);
    let whole = fs::read(&pack).unwrap();
    let mut damaged = whole.clone();
    damaged[place.at as usize + pack::RECORD + place.stored as usize / 2] ^= 1;
    fs::write(&pack, &damaged).unwrap();
    told("damaged");
    fs::write(&pack, whole).unwrap();
    store.dictionaries.clear();
    check(&store, &recorded, WEB, 1, 100);
}

#[test]
fn without_the_catalog_all_is_read_and_erased_as_before() {
    let dir = tempfile::tempdir().unwrap();
    let recorded = documents(&store(dir.path()), WEB, 1, 100);
    let at = dir.path().join("store");
    fs::remove_dir_all(at.join("catalog")).unwrap();
    let rescue = Rescue::plan(&at, |_| "ctr/default".into()).unwrap().unwrap();
    rescue.run().unwrap();
    let store = store(dir.path());
    check(&store, &recorded, WEB, 1, 100);
    assert!(chunks_by(&store, "dictionary") > 90);
    // What the old one was learned from nobody knows any more: it does not outlive an erasure.
    assert_eq!(dictionaries(&store), 0);
    let next = documents(&store, WEB, 2, 100);
    assert_eq!(dictionaries(&store), 1);
    expire(&store, WEB);
    let base = place_of(&store, &next, WEB, 0).1.base;
    store.gc(Thorough::Erase, false, |_| {}).unwrap();
    check(&store, &next, WEB, 2, 100);
    assert_eq!(
        dictionaries(&store),
        1,
        "all that the new one was learned from is needed"
    );
    assert_eq!(place_of(&store, &next, WEB, 0).1.base, base);
    assert_eq!(store.usage().unwrap().chunks, 101);
}

#[test]
fn one_that_no_longer_pays_is_replaced() {
    let ready = Ready {
        id: Id([0; 32]),
        dictionary: delta::Dictionary::new(b"words".to_vec()),
        trials: std::sync::Mutex::new(Trials::default()),
    };
    for _ in 0..KNOWN - 1 {
        ready.note(1000, 1000);
        assert!(ready.pays(), "too few trials to know");
    }
    ready.note(1000, 1000);
    assert!(!ready.pays());
    for _ in 0..10 * KNOWN {
        ready.note(800, 1000);
    }
    assert!(ready.pays());

    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let first = documents(&store, WEB, 1, 100);
    let domain = known(&store, WEB).domain;
    let old = store.catalog.dictionaries(domain).unwrap();
    let ready = store
        .dictionary(
            domain,
            Base {
                id: old[0].id,
                depth: 1,
            },
        )
        .unwrap();
    (0..KNOWN).for_each(|_| ready.note(1000, 1000));
    let second = documents(&store, WEB, 2, 100);
    let new = store.catalog.dictionaries(domain).unwrap();
    assert_eq!(new.len(), 2, "the first is kept for what was written by it");
    assert_eq!((&new[0], new[1].number), (&old[0], 2));
    let base = |recorded, n| place_of(&store, recorded, WEB, n).1.base.map(|base| base.id);
    assert!((0..100).any(|n| base(&first, n) == Some(new[0].id)));
    assert!((0..100).any(|n| base(&second, n) == Some(new[1].id)));
    assert!((0..100).all(|n| base(&second, n) != Some(new[0].id)));
    check(&store, &first, WEB, 1, 100);
    check(&store, &second, WEB, 2, 100);
}
