//! On real hierarchies. The watchdog of these tests is a test program that runs no test; the shim's own is tested end
//! to end.

use std::time::{Duration, Instant};

use super::{
    real::{HYBRID_V2, Real, V1_FREEZER, has, hybrid_v2},
    *,
};

const LIMIT: Duration = Duration::from_secs(5);

/// Thaws, also where the test fails: what is frozen cannot be killed.
struct Switched(PathBuf, &'static str);

impl Drop for Switched {
    fn drop(&mut self) {
        let _ = fs::write(&self.0, self.1);
    }
}

/// A cgroup on each hierarchy that this machine has, the file that freezes it, and the words for that.
fn everywhere(name: &str, test: impl Fn(&Cgroup, &Path, [&str; 2])) {
    for (root, file, words) in [
        (V1_FREEZER, "freezer.state", ["FROZEN", "THAWED"]),
        (HYBRID_V2, "cgroup.freeze", ["1", "0"]),
        ("/sys/fs/cgroup", "cgroup.freeze", ["1", "0"]),
    ] {
        if !has(root, "cgroup.procs") {
            continue;
        }
        let mut real = Real::new(name, &[root]);
        let (host, mode) = match root {
            V1_FREEZER => (Host::real(), Mode::Legacy),
            HYBRID_V2 => (hybrid_v2(), Mode::Unified),
            _ => (Host::real(), Mode::Unified),
        };
        let cgroup = Cgroup::load_on(host, mode, &real.path()).unwrap();
        real.shell(&cgroup, "exit");
        let switch = Switched(real.dirs[0].join(file), words[1]);
        test(&cgroup, &switch.0, words);
    }
}

/// On a busy machine 20 ms may pass before a process has noticed.
fn freeze(cgroup: &Cgroup) -> Frozen {
    let until = Instant::now() + LIMIT;
    loop {
        match cgroup.freeze(LIMIT) {
            Ok(frozen) => return frozen,
            Err(error) => assert!(Instant::now() < until, "{error}"),
        }
    }
}

fn is(switch: &Path, word: &str) -> bool {
    fs::read_to_string(switch).unwrap().trim() == word
}

#[test]
fn a_standstill_ends_as_it_began() {
    everywhere("freeze", |cgroup, switch, [frozen, thawed]| {
        for _ in 0..3 {
            let mut standstill = freeze(cgroup);
            assert!(is(switch, frozen));
            assert!(standstill.thaw().unwrap());
            assert!(is(switch, thawed));
        }
        // Its owner had paused it before.
        fs::write(switch, frozen).unwrap();
        let mut standstill = freeze(cgroup);
        assert!(standstill.thaw().unwrap());
        assert!(is(switch, frozen));
        fs::write(switch, thawed).unwrap();
    });
}

#[test]
fn what_the_owner_does_meanwhile_stays() {
    everywhere("owner", |cgroup, switch, [frozen, thawed]| {
        for (before, meanwhile) in [
            (thawed, frozen),
            (thawed, thawed),
            (frozen, thawed),
            (frozen, frozen),
        ] {
            fs::write(switch, before).unwrap();
            let mut standstill = freeze(cgroup);
            fs::write(switch, meanwhile).unwrap();
            assert!(!standstill.thaw().unwrap(), "{before} {meanwhile}");
            assert!(is(switch, meanwhile), "{before} {meanwhile}");
        }
    });
}

#[test]
fn an_owner_who_pauses_all_the_time_is_obeyed() {
    everywhere("hammer", |cgroup, switch, [frozen, thawed]| {
        std::thread::scope(|scope| {
            let owner = scope.spawn(|| {
                let mut overtaken = 0;
                for _ in 0..40 {
                    fs::write(switch, frozen).unwrap();
                    std::thread::sleep(Duration::from_millis(3));
                    overtaken += u32::from(!is(switch, frozen));
                    fs::write(switch, thawed).unwrap();
                    std::thread::sleep(Duration::from_millis(2));
                }
                overtaken
            });
            let mut stood = 0;
            while !owner.is_finished() {
                if let Ok(mut standstill) = cgroup.freeze(LIMIT) {
                    stood += u32::from(standstill.thaw().unwrap());
                }
            }
            assert!(stood > 0);
            // Unwatched, all of them are.
            let overtaken = owner.join().unwrap();
            assert!(overtaken <= 20, "{overtaken} of 40 pauses were undone");
        });
        let until = Instant::now() + LIMIT;
        while !is(switch, thawed) {
            assert!(Instant::now() < until, "left frozen");
            std::thread::sleep(Duration::from_millis(1));
        }
    });
}

#[test]
fn what_cannot_be_frozen_says_so() {
    if !has(V1_FREEZER, "cgroup.procs") {
        return;
    }
    // Everybody's freezer.
    let own = Cgroup::load_on(Host::real(), Mode::Legacy, "/").unwrap();
    assert!(matches!(own.freeze(LIMIT), Err(Error::Unimplemented(_))));
}
