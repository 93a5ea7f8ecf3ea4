//! What leaves as an archive is what tar takes it for.

use std::{collections::HashMap, fs, path::Path, process::Command};

use live::Root;
use store::{Id, Recorded, Store};

use super::write::{Form, Packed, Plan};
use crate::{
    error::Result,
    redshift,
    tests::{capture, everything, listing, root, same, store},
};

pub(super) fn roots() -> Vec<(Vec<u8>, Root)> {
    vec![(b"rootfs".to_vec(), Root::Rootfs)]
}

pub(super) fn domain(store: &Store) -> u32 {
    store.state("ctr/default/web").unwrap().unwrap().domain
}

pub(super) fn pack(store: &Store, tree: Id, below: Option<&[u8]>, form: Form) -> Result<(Vec<u8>, Packed)> {
    let mut out = Vec::new();
    let packed = Plan::new(store, domain(store), tree, roots(), below, form).run(&mut out)?;
    Ok((out, packed))
}

fn recorded(store: &Store, upper: &Path) -> Recorded {
    capture(store, upper, None, None).unwrap()
}

/// Unpacks with GNU tar.
fn unpack(archive: &[u8], to: &Path) {
    let file = to.with_extension("tar");
    fs::write(&file, archive).unwrap();
    fs::create_dir_all(to).unwrap();
    let tar = Command::new("tar")
        .args([
            "--xattrs",
            "--xattrs-include=*",
            "--numeric-owner",
            "--same-owner",
            "-xpf",
        ])
        .arg(&file)
        .arg("-C")
        .arg(to)
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&tar.stderr);
    // It doubts, and does as it is told.
    let doubts = |line: &str| line.contains("implausibly old time stamp");
    assert!(tar.status.success() && told.lines().all(doubts), "{told}");
}

fn names(archive: &[u8]) -> Vec<String> {
    let mut read = tar::Archive::new(archive);
    let entries = read.entries().unwrap().map(|entry| entry.unwrap());
    entries
        .map(|entry| entry.path_bytes().escape_ascii().to_string())
        .collect()
}

#[test]
fn tar_unpacks_what_a_directory_would_have() {
    if !root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let upper = dir.path().join("upper");
    fs::create_dir(&upper).unwrap();
    everything(&upper);
    let deep = format!("deep/{}/{}", "d".repeat(90), "e".repeat(120));
    fs::create_dir_all(upper.join(&deep)).unwrap();
    fs::write(upper.join(&deep).join("file"), b"far below").unwrap();
    std::os::unix::fs::symlink("x/".repeat(150), upper.join("long-link")).unwrap();
    std::os::unix::fs::lchown(upper.join("long-link"), Some(3_000_000), Some(4_000_000_000)).unwrap();
    fs::hard_link(upper.join(&deep).join("file"), upper.join("to-far")).unwrap();
    let old = Command::new("touch")
        .args(["-d", "1969-12-31 23:59:58.250 UTC"])
        .arg(upper.join("etc/app/none"))
        .status()
        .unwrap();
    assert!(old.success());
    let store = store(dir.path());
    let tree = recorded(&store, &upper).commit.tree_id().unwrap();
    let (archive, packed) = pack(&store, tree, None, Form::Plain).unwrap();
    let (again, _) = pack(&store, tree, None, Form::Plain).unwrap();
    assert!(archive == again);
    // Sparse, as it was: the file alone has 64 MiB.
    assert!(
        archive.len() < 20 << 20 && packed.entries > 500,
        "{} {packed:?}",
        archive.len()
    );
    let (expected, found) = (dir.path().join("expected"), dir.path().join("found"));
    let plan = redshift::Plan {
        domain: domain(&store),
        tree,
        below: None,
        tops: HashMap::from([(b"rootfs".to_vec(), expected.clone())]),
        overlay: false,
        sync: false,
    };
    plan.run(&store, &redshift::Progress::default()).unwrap();
    unpack(&archive, &found);
    same(&listing(&expected), &listing(&found));
    use std::os::unix::fs::MetadataExt;
    assert!(fs::metadata(found.join("sparse")).unwrap().blocks() < 2000);
}

#[test]
fn a_layer_says_what_is_gone() {
    if !root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let upper = dir.path().join("upper");
    fs::create_dir(&upper).unwrap();
    everything(&upper);
    let store = store(dir.path());
    let tree = recorded(&store, &upper).commit.tree_id().unwrap();
    let (layer, _) = pack(&store, tree, None, Form::Layer).unwrap();
    let names = names(&layer);
    for name in [
        "./",
        "etc/.wh.gone",
        "opaque/",
        "opaque/.wh..wh..opq",
        "raw-\\xff\\xfe\\n",
    ] {
        assert!(
            names.iter().any(|found| found == name),
            "{name} is not in {names:?}"
        );
    }
    assert!(!names.iter().any(|name| name == "etc/gone"));
    // Before what the directory holds of its own.
    assert!(names.iter().position(|n| n == "etc/") < names.iter().position(|n| n == "etc/.wh.gone"));
    // Not every reader knows sparse files.
    assert!(layer.len() > 64 << 20);
    // A part keeps its place in the container; a plain one does not.
    let below = store::format::key(b"rootfs", b"etc/app");
    let (part, _) = pack(&store, tree, Some(&below), Form::Layer).unwrap();
    assert!(self::names(&part).iter().all(|name| name.starts_with("etc/app/")));
    let (part, _) = pack(&store, tree, Some(&below), Form::Plain).unwrap();
    assert_eq!(self::names(&part), ["app/", "app/conf", "app/empty/", "app/none"]);
    // What would be taken for a mark.
    fs::write(upper.join(".wh.mine"), b"a name like any other").unwrap();
    let tree = recorded(&store, &upper).commit.tree_id().unwrap();
    let told = pack(&store, tree, None, Form::Layer).unwrap_err().to_string();
    assert!(told.contains(".wh.mine"), "{told}");
    assert!(pack(&store, tree, None, Form::Plain).is_ok());
}

/// Paths in an archive are the container's; what a volume was mounted over nobody saw.
#[test]
fn roots_stand_where_they_were() {
    let dir = tempfile::tempdir().unwrap();
    let (upper, volume) = (dir.path().join("upper"), dir.path().join("volume"));
    fs::create_dir_all(upper.join("var/data")).unwrap();
    fs::write(upper.join("var/data/hidden"), b"x").unwrap();
    fs::write(upper.join("var/seen"), b"x").unwrap();
    fs::create_dir(&volume).unwrap();
    fs::write(volume.join("row"), b"x").unwrap();
    let store = store(dir.path());
    let state = store.make_state("ctr/default/web", "ctr/default").unwrap();
    let roots = [Root::Rootfs, Root::Volume("/var/data".into())];
    let tops = roots.iter().zip([&upper, &volume]).map(|(root, path)| {
        use std::os::unix::ffi::OsStrExt;
        crate::blueshift::Top {
            name: root.dir_name().unwrap().as_bytes().to_vec(),
            path: path.clone(),
            overlay: *root == Root::Rootfs,
        }
    });
    let tops: Vec<_> = tops.collect();
    let made = crate::blueshift::Capture {
        state: &state,
        tops: &tops,
        exclude: &[],
        freezer: None,
        undisturbed: &|| true,
        max_pause: std::time::Duration::from_secs(1),
        reason: store::format::Reason::Manual,
        message: None,
        image: "",
        node: "node",
        boot: "boot",
        watch: None,
    };
    let tree = made.run(&store).unwrap().unwrap().commit.tree_id().unwrap();
    let named = |form| {
        let roots = tops
            .iter()
            .map(|top| top.name.clone())
            .zip(roots.clone())
            .collect();
        let mut out = Vec::new();
        Plan::new(&store, state.domain, tree, roots, None, form)
            .run(&mut out)
            .unwrap();
        names(&out)
    };
    assert_eq!(
        named(Form::Plain),
        ["./", "var/", "var/seen", "var/data/", "var/data/row"]
    );
    assert_eq!(
        named(Form::Layer),
        [
            "./",
            "var/",
            "var/seen",
            "var/data/",
            "var/data/.wh..wh..opq",
            "var/data/row"
        ]
    );
}
