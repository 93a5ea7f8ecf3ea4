//! What enters is what left, and what means harm stays out.

use std::{
    collections::HashMap,
    fs,
    io::Write,
    ops::ControlFlow,
    path::Path,
    sync::{Mutex, PoisonError},
};

use live::Root;
use proptest::prelude::*;
use runtime_spec::config::Config;
use store::{
    Store,
    format::{Entry, Kind, Reason, Shown, Xattr},
};
use tar::EntryType;

use super::{
    import::{Import, Importing},
    tar::{Head, Writer},
    tests::{domain, pack},
    tree::{ROOT, Tree},
    write::Form,
};
use crate::{
    error::{Error, Result},
    keeper::Keeper,
    progress::Progress,
    redshift,
    tests::{capture, everything, root, store},
};

fn read(store: &Store, archive: &[u8]) -> Result<Vec<Entry>> {
    let session = store.session(store.domain("ctr/default")?);
    let progress = Progress::default();
    let mut import = Import::new(&session, store.dir(), Tree::default(), &progress);
    import.archive(archive, Path::new("the archive"))?;
    Ok(import.finish()?.0)
}

/// The keys that an archive becomes in a state with these roots, for people.
fn placed(archive: &[u8], roots: &[Root]) -> Vec<(String, Kind, bool)> {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let session = store.session(store.domain("ctr/default").unwrap());
    let progress = Progress::default();
    let tree = Tree::with(roots).unwrap();
    let mut import = Import::new(&session, store.dir(), tree, &progress);
    import.archive(archive, Path::new("the archive")).unwrap();
    let entries = import.finish().unwrap().0;
    let shown = |entry: &Entry| {
        let key = entry.key.escape_ascii().to_string().replace("\\x00", ":");
        assert!(entry.link.is_empty(), "{key}");
        (key, entry.what(), entry.opaque)
    };
    entries.iter().map(shown).collect()
}

#[test]
fn what_lies_below_a_volume_goes_there() {
    let parts = [
        (folder("var/lib/db"), &b""[..]),
        (file("/var/lib/db/rows"), b"rows"),
        (file("var/lib/db-old/rows"), b"old"),
        // Hidden in a layer: in a volume there is nothing to hide.
        (file("var/lib/db/.wh..wh..opq"), b""),
        (file("var/lib/db/.wh.gone"), b""),
        (file("etc/app/.wh.gone"), b""),
        (file("./etc/app/conf"), b"conf"),
        (file("etc/app/cache/c"), b"c"),
        (to("another", EntryType::Link, "var/lib/db/rows"), b""),
    ];
    let volume = |path: &str| Root::Volume(path.into());
    let roots = [
        Root::Rootfs,
        Root::Path("/etc/app".into()),
        volume("/var/lib/db"),
        volume("/etc/app/cache"),
        volume("/nothing/there"),
    ];
    let found = placed(&tar_of(&parts), &roots);
    let found: Vec<(&str, Kind, bool)> = found.iter().map(|(k, w, o)| (k.as_str(), *w, *o)).collect();
    let (dir, is_file) = (Kind::Directory, Kind::File);
    assert_eq!(
        found,
        [
            ("path@etc@app", dir, false),
            ("path@etc@app:conf", is_file, false),
            ("path@etc@app:gone", Kind::Whiteout, false),
            ("rootfs", dir, false),
            ("rootfs:another", is_file, false),
            ("rootfs:var", dir, false),
            ("rootfs:var:lib", dir, false),
            ("rootfs:var:lib:db-old", dir, false),
            ("rootfs:var:lib:db-old:rows", is_file, false),
            ("volume@etc@app@cache", dir, false),
            ("volume@etc@app@cache:c", is_file, false),
            ("volume@var@lib@db", dir, false),
            ("volume@var@lib@db:rows", is_file, false),
        ]
    );
    // A volume's top is a directory.
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let session = store.session(store.domain("ctr/default").unwrap());
    let progress = Progress::default();
    let tree = Tree::with(&[volume("/data")]).unwrap();
    let mut import = Import::new(&session, store.dir(), tree, &progress);
    let archive = tar_of(&[(file("data"), b"x")]);
    let told = import.archive(archive.as_slice(), Path::new("a")).unwrap_err();
    assert!(told.to_string().contains("must be a directory"), "{told}");
}

fn told(archive: &[u8]) -> String {
    let dir = tempfile::tempdir().unwrap();
    read(&store(dir.path()), archive).unwrap_err().to_string()
}

/// An archive of these heads and bodies.
fn tar_of(parts: &[(Head<'_>, &[u8])]) -> Vec<u8> {
    let mut out = Writer::new(Vec::new());
    for (head, body) in parts {
        let head = Head {
            size: body.len() as u64,
            ..*head
        };
        out.head(&head).unwrap();
        out.write(body).unwrap();
    }
    out.finish().unwrap()
}

fn file(path: &str) -> Head<'_> {
    Head::new(path.as_bytes(), EntryType::Regular)
}

fn folder(path: &str) -> Head<'_> {
    Head::new(path.as_bytes(), EntryType::Directory)
}

fn to<'a>(path: &'a str, kind: EntryType, link: &'a str) -> Head<'a> {
    Head {
        link: link.as_bytes(),
        ..Head::new(path.as_bytes(), kind)
    }
}

fn recorded(store: &Store, tree: store::Id) -> Vec<Entry> {
    let mut found = Vec::new();
    let each = |entry| {
        found.push(entry);
        Ok(ControlFlow::Continue(()))
    };
    store.entries(domain(store), tree, b"", each).unwrap();
    found
}

fn same(expected: &[Entry], found: &[Entry]) {
    for (expected, found) in expected.iter().zip(found) {
        assert_eq!(expected, found, "{}", Shown(&expected.key));
    }
    assert_eq!(expected.len(), found.len());
}

#[test]
fn what_left_comes_back() {
    if !root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let upper = dir.path().join("upper");
    fs::create_dir(&upper).unwrap();
    everything(&upper);
    let deep = upper.join("d".repeat(200)).join("e".repeat(250));
    fs::create_dir_all(&deep).unwrap();
    rustix::fs::lsetxattr(&deep, "user.a=b%", b"\n\0x", rustix::fs::XattrFlags::empty()).unwrap();
    let store = store(dir.path());
    let tree = capture(&store, &upper, None, None)
        .unwrap()
        .commit
        .tree_id()
        .unwrap();
    let all = recorded(&store, tree);
    let (layer, _) = pack(&store, tree, None, Form::Layer).unwrap();
    let content = |entry: &Entry| {
        // Holes were written out: other pieces, the same bytes.
        let mut entry = entry.clone();
        if entry.key.ends_with(b"sparse") {
            (entry.content, entry.height) = (Vec::new(), 0);
        }
        entry
    };
    let plainly = |entries: &[Entry]| entries.iter().map(content).collect::<Vec<_>>();
    same(&plainly(&all), &plainly(&read(&store, &layer).unwrap()));
    let (plain, _) = pack(&store, tree, None, Form::Plain).unwrap();
    let without_marks: Vec<Entry> = all
        .iter()
        .filter(|entry| entry.what() != Kind::Whiteout)
        .map(|entry| Entry {
            opaque: false,
            ..entry.clone()
        })
        .collect();
    same(&without_marks, &read(&store, &plain).unwrap());
    // Compressed.
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&plain).unwrap();
    same(&without_marks, &read(&store, &gzip.finish().unwrap()).unwrap());
    let zstd = zstd::encode_all(plain.as_slice(), 1).unwrap();
    same(&without_marks, &read(&store, &zstd).unwrap());
    // As a directory.
    let session = store.session(domain(&store));
    let progress = Progress::default();
    let mut import = Import::new(&session, store.dir(), Tree::default(), &progress);
    import.directory(&upper).unwrap();
    same(&all, &import.finish().unwrap().0);
    drop(session);
    // As GNU tar writes it.
    for format in [
        &["--format=gnu", "-S"][..],
        &["--format=gnu"],
        &["--format=posix", "-S", "--xattrs"],
    ] {
        let made = std::process::Command::new("tar")
            .args(format)
            .args(["-C", &upper.to_string_lossy(), "-cf", "-", "."])
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
        let found = read(&store, &made.stdout).unwrap();
        let exact = format.contains(&"--format=posix");
        let bare = |entry: &Entry| {
            let mut entry = content(entry);
            entry.opaque = false;
            entry.xattrs.clear();
            if !exact {
                entry.mtime_nanos = 0;
            }
            entry
        };
        same(
            &all.iter().map(bare).collect::<Vec<_>>(),
            &found.iter().map(bare).collect::<Vec<_>>(),
        );
    }
}

#[test]
fn harm_is_refused() {
    let redirect = [Xattr {
        name: b"trusted.overlay.redirect".to_vec(),
        value: b"/etc".to_vec(),
    }];
    let half = Head {
        xattrs: &redirect,
        ..folder("d/")
    };
    let no_class = [Xattr {
        name: b"system.data".to_vec(),
        value: b"x".to_vec(),
    }];
    let odd = Head {
        xattrs: &no_class,
        ..file("f")
    };
    let long = format!("{}/f", "x".repeat(300));
    let deep = "d/".repeat(500);
    let link = |path, link| to(path, EntryType::Symlink, link);
    let hard = |path, link| to(path, EntryType::Link, link);
    for (parts, why) in [
        (vec![file("../f")], "leads up"),
        (vec![file("a/../../f")], "leads up"),
        (vec![folder("..")], "leads up"),
        (vec![link("a", "/etc"), file("a/passwd")], "no directory"),
        (vec![file("a"), file("a/b")], "no directory"),
        (vec![hard("a", "/etc/passwd")], "not there"),
        (vec![hard("a", "../x")], "leads up"),
        (vec![folder("d"), hard("a", "d")], "of a directory"),
        (vec![file("a"), hard("a", "a")], "of itself"),
        (vec![file("d/a"), file("d")], "something in it"),
        (vec![file(".")], "the top"),
        (vec![file(&long)], "no file system"),
        (vec![folder(&deep)], "deeper"),
        (vec![link("a", "")], "point somewhere"),
        (vec![half], "redirect_dir"),
        (vec![odd], "system.data"),
        (vec![file(".wh.")], "nothing has the name"),
        (vec![file("a/.wh...")], "nothing has the name"),
        (vec![file(".wh..wh..opq")], "whole image"),
        (vec![file("f"), file("f/.wh..wh..opq")], "no directory"),
        (vec![file("oci-layout"), file("index.json")], "ctr image import"),
        (vec![to("a", EntryType::new(b'M'), "")], "not known"),
    ] {
        let parts: Vec<(Head<'_>, &[u8])> = parts.into_iter().map(|head| (head, &b""[..])).collect();
        let told = told(&tar_of(&parts));
        assert!(told.contains(why), "{parts:?}: {told}");
    }
    assert!(told(b"").contains("nothing in it"));
    assert!(told(&[0; 2048]).contains("nothing in it"));
    assert!(told(&[b'x'; 2048]).contains("not a tar"));
    // A length that is not there, of a file that would fill any disk.
    let mut bytes = tar_of(&[(file("x"), &[7; 700])]);
    let mut header = tar::Header::from_byte_slice(&bytes[..512]).clone();
    for (size, why) in [(1 << 43, "ends in the middle"), (1 << 60, "longer than any disk")] {
        header.set_size(size);
        header.set_cksum();
        bytes[..512].copy_from_slice(header.as_bytes());
        assert!(told(&bytes).contains(why), "{}", told(&bytes));
    }
    let mut bytes = tar_of(&[(file("x"), &[7; 700])]);
    bytes.truncate(1024);
    assert!(told(&bytes).contains("ends in the middle"), "{}", told(&bytes));
    // Sparse files whose map leads out of them, or lies.
    for (map, size, why) in [
        ("1\n0\n9\n", 4, "leads out"),
        ("1\n18446744073709551615\n2\n", 4, "leads out"),
        ("2\n4\n2\n0\n2\n", 9, "leads out"),
        ("1\n0\n1\n", 4, "another length"),
        ("x\n", 4, "no map"),
        ("99999999\n", 4, "too many"),
        ("1\n0\n4\n", 1 << 60, "longer than any disk"),
    ] {
        let mut body = map.as_bytes().to_vec();
        body.resize(512, 0);
        body.extend_from_slice(b"data");
        let head = Head {
            sparse: Some(size),
            ..file("s")
        };
        let told = told(&tar_of(&[(head, &body)]));
        assert!(told.contains(why), "{map:?}: {told}");
    }
}

#[test]
fn what_is_odd_and_harmless_is_taken_as_tar_does() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let shown = |parts: &[(Head<'_>, &[u8])]| -> Vec<String> {
        let entries = read(&store, &tar_of(parts)).unwrap();
        let line = |entry: &Entry| {
            let link = match entry.link.is_empty() {
                true => String::new(),
                false => format!(" = {}", Shown(&entry.link)),
            };
            let opaque = if entry.opaque { " opaque" } else { "" };
            format!(
                "{} {:?} {}{opaque}{link}",
                Shown(&entry.key),
                entry.what(),
                entry.inline.escape_ascii()
            )
        };
        entries.iter().skip(1).map(line).collect()
    };
    let hard = |path, link| to(path, EntryType::Link, link);
    // Absolute names stay inside, directories on the way are made, the last of several of a name is it.
    assert_eq!(
        shown(&[(file("/etc//./a"), b"1"), (file("etc/a"), b"2")]),
        ["rootfs:/etc Directory ", "rootfs:/etc/a File 2"]
    );
    // Other names of what is replaced go on with what it was; content stands with the first in order.
    assert_eq!(
        shown(&[
            (file("m"), b"1"),
            (hard("z", "m"), b""),
            (hard("b", "z"), b""),
            (file("m"), b"2")
        ]),
        [
            "rootfs:/b File 1",
            "rootfs:/m File 2",
            "rootfs:/z File  = rootfs:/b"
        ]
    );
    // Marks, before and after what they are about.
    assert_eq!(
        shown(&[
            (file("d/.wh..wh..opq"), b""),
            (folder("d/"), b""),
            (file(".wh.gone"), b""),
            (file(".wh.back"), b""),
            (file("back/x"), b"1"),
            (file("f"), b"1"),
            (file(".wh.f"), b""),
            (file(".wh..wh.plnk"), b""),
        ]),
        [
            "rootfs:/back Directory  opaque",
            "rootfs:/back/x File 1",
            "rootfs:/d Directory  opaque",
            "rootfs:/f File 1",
            "rootfs:/gone Whiteout "
        ]
    );
    let seed = read(&store, &seed()).unwrap();
    assert_eq!(seed.len(), 10);
    sound(&seed);
    let empty = Head::new(b"null", EntryType::Char);
    assert_eq!(shown(&[(empty, b"")]), ["rootfs:/null Whiteout "]);
}

/// Whether RedShift can make it: each entry below a directory, each further name of something that is there.
fn sound(entries: &[Entry]) {
    let of: HashMap<&[u8], &Entry> = entries
        .iter()
        .map(|entry| (entry.key.as_slice(), entry))
        .collect();
    assert!(entries.is_sorted_by(|a, b| a.key < b.key));
    assert_eq!(entries.first().map(|entry| entry.key.as_slice()), Some(ROOT));
    for entry in entries {
        let mut names = entry.key.split(|b| *b == 0);
        assert_eq!(names.next(), Some(ROOT));
        for name in names {
            assert!(!name.is_empty() && name != b"." && name != b".." && !name.contains(&b'/'));
        }
        if let Some(at) = entry.key.iter().rposition(|b| *b == 0) {
            assert_eq!(
                of[&entry.key[..at]].what(),
                Kind::Directory,
                "{}",
                Shown(&entry.key)
            );
        }
        if !entry.link.is_empty() {
            let first = of[entry.link.as_slice()];
            assert!(first.link.is_empty() && first.key < entry.key && first.what() == entry.what());
            assert!(!matches!(first.what(), Kind::Directory | Kind::Whiteout));
        }
    }
}

fn make(store: &Store, entries: Vec<Entry>, to: &Path) {
    let domain = store.domain("ctr/default").unwrap();
    let session = store.session(domain);
    let changes = entries.into_iter().map(|entry| (entry.key.clone(), Some(entry)));
    let top = session.tree(None, changes).unwrap();
    let plan = redshift::Plan {
        domain,
        tree: top.id,
        below: None,
        tops: HashMap::from([(ROOT.to_vec(), to.to_owned())]),
        overlay: false,
        sync: false,
    };
    // A disk may refuse a device, an owner or a time; where it does is no matter.
    let _ = plan.run(store, &Progress::default());
}

/// An archive with some of everything, small.
fn seed() -> Vec<u8> {
    let xattrs = [Xattr {
        name: b"user.a".to_vec(),
        value: b"v".to_vec(),
    }];
    let mut map = b"2\n0\n4\n8\n0\n".to_vec();
    map.resize(512, 0);
    map.extend_from_slice(b"data");
    let with_xattrs = Head {
        xattrs: &xattrs,
        mtime: (5, 7),
        ..file("a/f")
    };
    let sparse = Head {
        sparse: Some(8),
        ..file("a/s")
    };
    let device = Head {
        device: (1, 3),
        ..Head::new(b"a/dev", EntryType::Char)
    };
    let parts: [(Head<'_>, &[u8]); 10] = [
        (folder("./"), b""),
        (folder("a/"), b""),
        (with_xattrs, b"content"),
        (sparse, &map),
        (to("a/hard", EntryType::Link, "a/f"), b""),
        (to("a/link", EntryType::Symlink, "../../outside"), b""),
        (device, b""),
        (Head::new(b"a/fifo", EntryType::Fifo), b""),
        (file("b/.wh.gone"), b""),
        (file("b/.wh..wh..opq"), b""),
    ];
    tar_of(&parts)
}

static SHARED: Mutex<Option<(tempfile::TempDir, Store)>> = Mutex::new(None);

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Bytes changed at random, in headers with the sum put right: an error, or a tree that stays where it belongs.
    #[test]
    fn a_changed_archive_stays_inside(changes in prop::collection::vec((0usize..12_000, any::<u8>(), any::<bool>()), 1..8)) {
        let mut bytes = seed();
        for (at, value, dot) in changes {
            let at = at % bytes.len();
            bytes[at] = if dot { b"./\0"[usize::from(value) % 3] } else { value };
            let block = at / 512 * 512;
            if let Some(header) = bytes.get_mut(block..block + 512) {
                let mut whole = tar::Header::from_byte_slice(header).clone();
                whole.set_cksum();
                header.copy_from_slice(whole.as_bytes());
            }
        }
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        let (dir, store) = shared.get_or_insert_with(|| {
            let dir = tempfile::tempdir().unwrap();
            let store = store(dir.path());
            (dir, store)
        });
        if let Ok(entries) = read(store, &bytes) {
            sound(&entries);
            let place = dir.path().join("place");
            let to = place.join("to");
            make(store, entries, &to);
            // Beside it there is nothing, whatever links say.
            let beside: Vec<_> = fs::read_dir(&place).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            prop_assert_eq!(beside, ["to"]);
            prop_assert!(!dir.path().join("outside").exists());
            fs::remove_dir_all(&place).unwrap();
        }
    }

    #[test]
    fn noise_is_an_error(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        prop_assume!(bytes.iter().any(|b| *b != 0));
        let mut reader = super::read::Reader::new(bytes.as_slice());
        prop_assert!(reader.next().is_err() || bytes.len() < 512);
    }
}

/// It fails when the present is recorded already: that commit is told of.
#[test]
fn what_was_recorded_before_a_replacement_that_failed_is_told() {
    if !root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let config = Config {
        root: dir.path().join("root"),
        ..Config::default()
    };
    let keeper = Keeper::open(&config).unwrap();
    let state = keeper.node().state(&"ctr/default/web".parse().unwrap());
    let upper = state.root(&Root::Rootfs).unwrap();
    upper.prepare_overlay(0o755, (0, 0)).unwrap();
    fs::write(upper.upper().join("f"), b"present").unwrap();
    let outside = dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("f"), b"imported").unwrap();
    let how = Importing {
        from: &outside,
        volumes: &[],
        replace: true,
    };
    // What another left cannot be put away.
    fs::create_dir(state.dir().join("restoring")).unwrap();
    let trash = config.root.join("trash");
    fs::remove_dir(&trash).unwrap();
    fs::write(&trash, b"").unwrap();
    let failed = keeper.import("web", &how, &Progress::default()).unwrap_err();
    let head = |keeper: &Keeper| {
        let (id, _) = keeper.known("web").unwrap().head.unwrap();
        keeper.store().commit(id).unwrap()
    };
    let before = head(&keeper);
    assert_eq!(before.commit.reason(), Reason::BeforeRestore);
    let told = failed.to_string();
    assert!(
        told.contains("trash") && told.contains(&before.id.short()),
        "{told}"
    );
    assert!(matches!(failed.cause(), Error::Live(_)), "{failed:?}");
    assert_eq!(fs::read(upper.upper().join("f")).unwrap(), b"present");
    // The next one that fails has nothing to record.
    let failed = keeper.import("web", &how, &Progress::default()).unwrap_err();
    assert!(!failed.to_string().contains("recorded"), "{failed}");
    // It fails when the import is recorded, too: that is not what was there before.
    fs::remove_dir(state.dir().join("restoring")).unwrap();
    fs::write(upper.upper().join("f"), b"changed").unwrap();
    let failed = keeper.import("web", &how, &Progress::default()).unwrap_err();
    let made = head(&keeper);
    assert_eq!(made.commit.reason(), Reason::Import);
    let id = store::Id::from_slice(&made.commit.previous).unwrap();
    let before = keeper.store().commit(id).unwrap();
    assert_eq!(before.commit.reason(), Reason::BeforeRestore);
    let told = failed.to_string();
    assert!(
        told.contains(&before.id.short()) && !told.contains(&made.id.short()),
        "{told}"
    );
    assert!(matches!(failed.cause(), Error::Live(_)), "{failed:?}");
    fs::remove_file(&trash).unwrap();
    fs::create_dir(&trash).unwrap();
    keeper.import("web", &how, &Progress::default()).unwrap();
    assert_eq!(fs::read(upper.upper().join("f")).unwrap(), b"imported");
    assert_eq!(head(&keeper).commit.previous, made.id.0);
}
