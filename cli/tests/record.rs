//! `diffkeeper record`, as a person without rights uses it: nobody, where the tests are root's.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    fs,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;

const NOBODY: u32 = 65534;
/// On a machine that does much else.
const LIMIT: Duration = Duration::from_secs(60);

/// A folder that nobody may write to, with the program in it.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        let open = |path: &Path| fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
        open(dir.path());
        fs::create_dir(dir.path().join("work")).unwrap();
        open(&dir.path().join("work"));
        let program = dir.path().join("diffkeeper");
        fs::copy(env!("CARGO_BIN_EXE_diffkeeper"), &program).unwrap();
        open(&program);
        Place(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(self.path("diffkeeper"));
        command
            .args(args)
            .current_dir(self.0.path())
            .env("PATH", "/usr/bin:/bin")
            .env("DIFFKEEPER_CONFIG", "/proc/none")
            .env("TMPDIR", self.0.path())
            .stdin(Stdio::null());
        if nix::unistd::geteuid().is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    fn said(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn refused(&self, args: &[&str], status: i32, why: &str) {
        let output = self.run(args);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            output.status.code() == Some(status) && told.contains(why),
            "{args:?}: {output:?}"
        );
    }

    /// Records `script`, which runs in `work`.
    fn record(&self, script: &str) -> Child {
        let line = [
            "record",
            "--dir",
            "work",
            "--interval",
            "20ms",
            "--",
            "sh",
            "-c",
            script,
        ];
        self.command(&line).spawn().unwrap()
    }
}

fn until(what: &str, mut yes: impl FnMut() -> bool) {
    let since = Instant::now();
    while !yes() {
        assert!(since.elapsed() < LIMIT, "{what}: not within {LIMIT:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn end(mut child: Child) -> ExitStatus {
    let mut ended = None;
    until("the end", || {
        ended = child.try_wait().unwrap();
        ended.is_some()
    });
    ended.unwrap()
}

/// Waits for a file of the test's; writes one in a single step.
const WAIT: &str = "wait_for() { while ! [ -e ../$1 ]; do sleep 0.02; done; }; put() { cat > ../put; mv ../put $1; }; cd work; ";

#[test]
fn a_flaky_test_is_looked_at_afterwards_and_meanwhile() {
    let place = Place::new();
    let script = "echo one | put log; mkdir d; echo right > d/state; wait_for go1; echo two | put log; rm -r d; wait_for go2; exit 7";
    let child = place.record(&format!("{WAIT}{script}"));
    // While it runs.
    let shows = |text: &str| {
        let output = place.run(&["cat", "work.diffkeeper", "/log"]);
        output.status.success() && output.stdout == text.as_bytes()
    };
    until("the first look", || shows("one\n"));
    fs::write(place.path("go1"), b"").unwrap();
    until("the second look", || shows("two\n"));
    fs::write(place.path("go2"), b"").unwrap();
    assert_eq!(end(child).code(), Some(7));

    let timeline: Value =
        serde_json::from_str(&place.said(&["timeline", "work.diffkeeper", "--json"])).unwrap();
    let of = |path: &str| -> Vec<(String, i64)> {
        let all = timeline.as_array().unwrap().iter();
        all.filter(|line| line["path"] == path)
            .map(|line| {
                let change = line["change"].as_str().unwrap().to_owned();
                (change, line["since_first_ns"].as_i64().unwrap())
            })
            .collect()
    };
    let log = of("/log");
    assert_eq!(
        log.iter().map(|(change, _)| change.as_str()).collect::<Vec<_>>(),
        ["added", "changed"]
    );
    assert_eq!(of("/d/state").last().unwrap().0, "removed");
    // A moment, copied from the timeline.
    let text = place.said(&["timeline", "work.diffkeeper", "--path", "/log"]);
    let moments: Vec<&str> = text
        .lines()
        .skip(1)
        .map(|line| line.split(' ').next().unwrap())
        .collect();
    let [first, second] = moments.as_slice() else {
        panic!("{text}")
    };
    assert!(first.starts_with('+'), "{text}");
    place.said(&["export", "work.diffkeeper", "out", "--at", &first[1..]]);
    assert_eq!(fs::read(place.path("out/log")).unwrap(), b"one\n");
    assert_eq!(
        place.said(&["cat", &format!("work.diffkeeper@{second}"), "/log"]),
        "two\n"
    );
    let before = format!("work.diffkeeper@{first}");
    let patch = place.said(&["diff", &before, "work.diffkeeper", "--patch"]);
    assert!(patch.contains("-one\n+two"), "{patch}");
    let text = place.said(&["log", "work.diffkeeper"]);
    assert!(
        text.contains("before sh -c") && text.contains(": status 7"),
        "{text}"
    );
    place.refused(&["restore", "work.diffkeeper"], 1, "only looked at");
    place.refused(&["cat", "work.diffkeeper/2", "/log"], 1, "no run 2");

    // Another run stands beside it.
    assert!(end(place.record("cd work; echo three > log")).success());
    assert_eq!(place.said(&["cat", "work.diffkeeper", "/log"]), "three\n");
    assert_eq!(place.said(&["cat", "work.diffkeeper/1", "/log"]), "two\n");
    let diff = place.said(&["diff", "work.diffkeeper/1", "work.diffkeeper/2", "--patch"]);
    assert!(diff.contains("-two\n+three"), "{diff}");
}

#[test]
fn the_end_is_the_commands() {
    let place = Place::new();
    assert_eq!(end(place.record("kill -KILL $$")).code(), Some(128 + 9));
    // A signal goes on to the command, which may take its time.
    let child =
        place.record("trap 'echo told > work/end; exit 9' TERM; touch ready; while :; do sleep 0.02; done");
    until("the command", || place.path("ready").exists());
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert_eq!(end(child).code(), Some(9));
    assert_eq!(place.said(&["cat", "work.diffkeeper", "/end"]), "told\n");
    // What cannot be run, and what cannot be recorded.
    place.refused(
        &["record", "--dir", "work", "--", "/nothing/here"],
        127,
        "/nothing/here",
    );
    place.refused(&["record", "--dir", "work", "--", "/etc"], 126, "/etc");
    place.refused(&["record", "--dir", "nothing", "--", "true"], 125, "nothing");
    place.refused(
        &["record", "--dir", "work", "--store", ".", "--", "true"],
        125,
        "something else",
    );
}

#[test]
fn the_recording_is_not_in_itself() {
    let place = Place::new();
    let line = [
        "record",
        "--dir",
        "work",
        "--store",
        "work/.rec",
        "--exclude",
        "target",
        "--interval",
        "20ms",
        "--",
    ];
    let script = "cd work; mkdir target; touch target/a b; sleep 0.2; touch c";
    let output = place.run(&[&line[..], &["sh", "-c", script]].concat());
    assert!(output.status.success(), "{output:?}");
    let list: Value = serde_json::from_str(&place.said(&["ls", "work/.rec", "--json"])).unwrap();
    let paths: Vec<&str> = list
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| entry["path"].as_str().unwrap())
        .collect();
    assert_eq!(paths, ["/", "/b", "/c"]);
}
