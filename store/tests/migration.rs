//! Stores of earlier formats are brought up to date where they are, whatever ends the process meanwhile.

// A failed assertion is how a test reports.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::{
    fs,
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Command, Stdio},
};

use store::{FORMAT, Hash, Store, Version, content::Stretch, fault, format::key};

use common::noise;

const CHILD: &str = "STORE_MIGRATION_CHILD";

/// Unpacks the store of a format; `examples/fixture.rs` made it.
fn fixture(format: u32, to: &Path) {
    fs::create_dir_all(to).unwrap();
    let archive = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/store-{format}.tar.gz"));
    let done = Command::new("tar")
        .arg("-xzf")
        .arg(archive)
        .arg("-C")
        .arg(to)
        .status()
        .unwrap();
    assert!(done.success());
}

fn read(store: &Store, version: u64, path: &str) -> Vec<u8> {
    let state = store.state("k8s/shop/db-0/db").unwrap().unwrap();
    let recorded = store.resolve(&state, &Version::Back(6 - version)).unwrap();
    let recorded = store.with_content(recorded.id).unwrap();
    let tree = recorded.commit.tree_id().unwrap();
    let entry = store
        .entry(state.domain, tree, &key(b"rootfs", path.as_bytes()))
        .unwrap()
        .unwrap();
    let mut found = Vec::new();
    store
        .read(state.domain, &entry, |_, stretch| {
            if let Stretch::Bytes(part) = stretch {
                found.extend_from_slice(part);
            }
            Ok(())
        })
        .unwrap();
    found
}

/// All that the example put in is there, in the newest format.
fn check(dir: &Path, told: &str) {
    let store = Store::open(dir, Hash::Blake3).unwrap_or_else(|error| panic!("{told}: {error}"));
    assert_eq!(
        fs::read_to_string(dir.join("format")).unwrap(),
        format!("diffkeeper store {FORMAT}\n"),
        "{told}"
    );
    assert_eq!(store.verify(100, |_| {}).unwrap().problems, [], "{told}");
    for (name, gone) in [("ctr/default/web", 4), ("k8s/shop/db-0/db", 0)] {
        let state = store.state(name).unwrap().unwrap();
        assert_eq!(store.audit(&state, &[]).unwrap().commits, 6, "{told}");
        assert_eq!(store.tombstones(&state).unwrap().len(), gone, "{told}");
        let second = store.resolve(&state, &Version::Named("second".into())).unwrap();
        assert_eq!(second.commit.message, "version 2", "{told}");
    }
    for version in 1..=6 {
        assert_eq!(read(&store, version, "counter"), version.to_string().as_bytes());
        assert_eq!(read(&store, version, "always"), noise(version % 2, 400), "{told}");
        assert_eq!(
            read(&store, version, &format!("only{version}")),
            noise(version + 10, 300)
        );
    }
}

#[test]
fn from_every_format() {
    for format in 1..FORMAT {
        let dir = tempfile::tempdir().unwrap();
        fixture(format, dir.path());
        let mut steps = Vec::new();
        drop(Store::open_telling(dir.path(), Hash::Blake3, |done| steps.push(*done)).unwrap());
        assert!(
            steps.iter().all(|step| step.from == format)
                && steps.last().is_some_and(|last| last.commits == last.of),
            "{steps:?}"
        );
        check(dir.path(), &format!("from {format}"));
    }
}

/// The other process; as a test it does nothing.
#[test]
fn child() {
    if let Some(dir) = std::env::var_os(CHILD) {
        Store::open(Path::new(&dir), Hash::Blake3).unwrap();
    }
}

#[test]
fn killed_at_every_step() {
    for point in fault::MIGRATION {
        for passes in 0..2 {
            let dir = tempfile::tempdir().unwrap();
            fixture(1, dir.path());
            let told = format!("{point}:{passes}");
            let status = Command::new(std::env::current_exe().unwrap())
                .args(["child", "--exact", "--test-threads=1"])
                .env(CHILD, dir.path())
                .env(fault::VARIABLE, &told)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()
                .unwrap();
            let killed = status.signal() == Some(9);
            assert!(killed || (passes > 0 && status.success()), "{told}: {status}");
            // Until its last step it is what it was.
            let format = fs::read_to_string(dir.path().join("format")).unwrap();
            let renamed = !killed || point == "migrate-renamed";
            let expected = if renamed { FORMAT } else { 1 };
            assert_eq!(format, format!("diffkeeper store {expected}\n"), "{told}");
            check(dir.path(), &told);
        }
    }
}
