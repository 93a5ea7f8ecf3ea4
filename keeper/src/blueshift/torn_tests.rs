//! What is read of a tree that does not stand still is committed only if it is a tree.

use std::{
    fs,
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use super::*;
use crate::tests::{capture, listing, materialise, same, store};

/// Cannot be stopped.
struct Unstoppable;

impl Freezer for Unstoppable {
    fn freeze(&self, _: Duration) -> io::Result<bool> {
        Err(io::Error::other("it waits for a disk"))
    }

    fn thaw(&self) -> bool {
        false
    }
}

/// Does something with what is to be recorded of a state that cannot be stopped.
fn of<T>(state: &Known, tops: &[Top], work: impl FnOnce(&Capture<'_>) -> T) -> T {
    work(&Capture {
        state,
        tops,
        exclude: &[],
        freezer: Some(&Unstoppable),
        undisturbed: &|| true,
        max_pause: Duration::from_secs(1),
        reason: Reason::Interval,
        message: None,
        image: "",
        node: "node",
        boot: "boot",
        watch: None,
    })
}

/// A store that takes a directory of a tree for known, and does not know it.
fn wrong(dir: &Path, upper: &Path) -> Store {
    fs::create_dir(upper).unwrap();
    let store = store(dir);
    capture(&store, upper, None, Some("nothing")).unwrap();
    fs::create_dir(upper.join("d")).unwrap();
    fs::write(upper.join("d/f"), "content").unwrap();
    // As if it had been recorded, and long enough ago: the file alone looks new.
    std::thread::sleep(Duration::from_millis(100));
    let stat = nix::sys::stat::lstat(&upper.join("d")).unwrap();
    let state = store.state("ctr/default/web").unwrap().unwrap();
    store
        .record_looks(|batch| batch.look(state.number, b"rootfs\0d", &tree::look(&stat)))
        .unwrap();
    store
}

#[test]
fn what_is_known_of_a_tree_and_wrong_is_not_committed() {
    let dir = tempfile::tempdir().unwrap();
    let upper = dir.path().join("upper");
    let store = wrong(dir.path(), &upper);
    let recorded = capture(&store, &upper, Some(&Unstoppable), None).unwrap();
    let out = dir.path().join("out");
    materialise(&store, &recorded, &out);
    same(&listing(&upper), &listing(&out));
    assert!(
        capture(&store, &upper, None, None).is_none(),
        "all of it is known"
    );
}

/// Keeps what it was told; its hooks may fail.
#[derive(Default)]
struct Told {
    said: Mutex<Vec<&'static str>>,
    fails: &'static str,
}

impl Told {
    fn tell(&self, what: &'static str) -> io::Result<bool> {
        self.said.lock().unwrap().push(what);
        match self.fails == what {
            true => Err(io::Error::other("it did not")),
            false => Ok(true),
        }
    }
}

impl Freezer for Told {
    fn freeze(&self, _: Duration) -> io::Result<bool> {
        self.tell("freeze")
    }

    fn thaw(&self) -> bool {
        true
    }

    fn quiesce(&self) -> io::Result<bool> {
        self.tell("quiesce")
    }

    fn release(&self) -> io::Result<()> {
        self.tell("release").map(drop)
    }
}

#[test]
fn what_an_application_says_is_of_the_look_that_is_committed() {
    use store::format::Consistency::{Application, Crash};
    let [before, stop, after] = ["quiesce", "freeze", "release"];
    let failed = [before, stop, after, stop, stop];
    for (fails, consistency, doubt, told) in [
        ("", Application, "", &[before, stop, after].repeat(3)[..]),
        (before, Crash, "hook: it did not", &failed),
        (after, Crash, "hook: it did not", &failed),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let upper = dir.path().join("upper");
        let store = wrong(dir.path(), &upper);
        let application = Told {
            fails,
            ..Told::default()
        };
        let commit = capture(&store, &upper, Some(&application), None).unwrap().commit;
        assert_eq!(
            (commit.consistency, commit.doubt.as_str()),
            (consistency as i32, doubt)
        );
        assert_eq!(*application.said.lock().unwrap(), told);
    }
}

/// Tells whoever moves directories to stop, whatever becomes of the test.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Moves directories until it is told to stop.
fn move_all_the_time(upper: &Path, stop: &AtomicBool) {
    let mut at = 0;
    while !stop.load(Ordering::Relaxed) {
        let here = |n: u32| upper.join(format!("d{}", n % 3));
        let _ = fs::rename(here(at), here(at + 1));
        let _ = fs::write(here(at + 1).join("sub/f"), at.to_string());
        let _ = fs::remove_file(upper.join("name"));
        let _ = fs::hard_link(here(at + 1).join("sub/g"), upper.join("name"));
        at += 1;
    }
}

#[test]
fn commits_of_what_never_stands_still_can_be_restored() {
    let dir = tempfile::tempdir().unwrap();
    let upper = dir.path().join("upper");
    fs::create_dir_all(upper.join("d0/sub/deeper")).unwrap();
    for n in 0..20 {
        fs::write(upper.join(format!("d0/sub/deeper/file{n}")), "content").unwrap();
    }
    fs::write(upper.join("d0/sub/g"), "two names").unwrap();
    let store = store(dir.path());
    let stop = AtomicBool::new(false);
    let mut made = 0;
    std::thread::scope(|scope| {
        let _stop = Stop(&stop);
        scope.spawn(|| move_all_the_time(&upper, &stop));
        for round in 0..40 {
            let state = store.make_state("ctr/default/web", "ctr/default").unwrap();
            let tops = [Top {
                name: b"rootfs".to_vec(),
                path: upper.clone(),
                overlay: false,
            }];
            match of(&state, &tops, |capture| capture.run(&store)) {
                Ok(Some(recorded)) => {
                    made += 1;
                    let out = dir.path().join(format!("out{round}"));
                    materialise(&store, &recorded, &out);
                }
                // It has not stood still for a moment.
                Ok(None) | Err(Error::Torn { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
    });
    assert!(made > 0, "not one commit");
}

#[test]
fn a_name_that_was_not_read_of_a_tree_that_nothing_is_known_of_is_asked_for_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let upper = dir.path().join("upper");
    fs::create_dir(&upper).unwrap();
    fs::write(upper.join("a"), "two names").unwrap();
    fs::hard_link(upper.join("a"), upper.join("b")).unwrap();
    let store = store(dir.path());
    let recorded = capture(&store, &upper, None, None).unwrap();
    let old = recorded.commit.tree_id().ok();
    let state = store.state("ctr/default/web").unwrap().unwrap();
    // `a` is gone; `b` was walked over, and elsewhere when it was to be read.
    let there = HashSet::from([&b"rootfs"[..], b"rootfs\0b"]);
    let mut outcome = Outcome {
        read: HashMap::new(),
        gone: vec![b"rootfs\0a".to_vec()],
        nothing: false,
        at: 0,
        stood: Stood::quiet(),
        watcher: Watcher::Scan,
        beyond: Beyond::default(),
        names: Vec::new(),
    };
    outcome.names = names(&outcome, &there, &HashMap::new());
    let made = of(&state, &[], |capture| {
        capture.changes(&store, old, &Progress::default(), &outcome)
    });
    assert!(matches!(made, Err(Error::Torn { .. })), "{made:?}");
}
