//! A container that stands still for a commit: it goes on whatever dies, nobody meets it frozen, and its owner's word
//! counts.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use integration::{Daemon, OURS, daemon::kill, history::Keeper, standstill::Standstill, wait::until};
use nix::{
    sys::signal::{self, Signal},
    unistd::Pid,
};

use crate::{Test, once, soak};

pub const TESTS: &[(&str, Test)] = &[
    ("freezes::end_with_whoever_asked", end_with_whoever_asked),
    ("freezes::leave_owners_their_way", leave_owners_their_way),
    ("freezes::are_met_by_no_probe", are_met_by_no_probe),
    (
        "freezes::let_applications_make_ready",
        let_applications_make_ready,
    ),
    (
        "freezes::wait_for_no_other_application",
        wait_for_no_other_application,
    ),
    (
        "freezes::tell_of_the_end_after_the_beginning",
        tell_of_the_end_after_the_beginning,
    ),
];

/// How long a container may stay frozen whose shim is gone.
const SOON: Duration = Duration::from_secs(1);
const LIMIT: Duration = Duration::from_secs(20);

/// A container that writes all the time, and what it has written.
struct Writer<'d> {
    d: &'d Daemon,
    name: String,
}

impl<'d> Writer<'d> {
    fn start(d: &'d Daemon, name: &str, more: &[&str]) -> Result<Writer<'d>> {
        let image = d.import("busybox")?;
        let script = "n=0; while :; do n=$((n+1)); echo $n > /n; sleep 0.001; done";
        let mut line = vec!["run", "-d", "--runtime", OURS];
        line.extend_from_slice(more);
        line.extend_from_slice(&[&image, name, "sh", "-c", script]);
        d.ctr(&line)?.ok()?;
        let writer = Writer {
            d,
            name: name.to_owned(),
        };
        until("a first number", LIMIT, || writer.count() > 0)?;
        Ok(writer)
    }

    fn count(&self) -> u64 {
        // Read between truncation and write, it is empty.
        let text = fs::read_to_string(self.d.upper(&self.name).join("n")).unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    }

    fn stands_still(&self) -> bool {
        let before = self.count();
        std::thread::sleep(Duration::from_millis(120));
        self.count() == before
    }

    fn goes_on(&self, limit: Duration) -> Result<()> {
        let before = self.count();
        until("the container goes on", limit, || self.count() > before + 1)
    }
}

fn send(pid: i32, signal: Signal) -> Result<()> {
    signal::kill(Pid::from_raw(pid), signal).with_context(|| format!("{signal} to {pid}"))
}

/// The shim is killed, or hangs, or dies together with the keeper, while its container is frozen.
fn end_with_whoever_asked(d: &Daemon) -> Result<()> {
    let mut slowest = Duration::ZERO;
    for round in 0..if soak() { 200 } else { 3 } {
        let keeper = Keeper::start(d, "interval = \"1h\"")?;
        // containerd takes its time to clean up after a shim that was killed.
        let name = format!("orphan-{round}");
        let writer = Writer::start(d, &name, &[])?;
        let shims = d.shims(Some(&name));
        ensure!(shims.len() == 1, "shims: {shims:?}");
        let daemon = d.pid()?;
        // Else containerd's own cleaning up is what is seen.
        send(daemon, Signal::SIGSTOP)?;
        let hangs = round % 3 == 2;
        let limit = if hangs { 300 } else { 10_000 };
        let done = (|| {
            let standstill = Standstill::of(d, &name)?;
            standstill.freeze(limit)?;
            if !hangs {
                ensure!(writer.stands_still(), "it was never frozen");
            }
            match round % 3 {
                0 => kill(shims[0])?,
                1 => {
                    kill(shims[0])?;
                    keeper.kill()?;
                }
                _ => send(shims[0], Signal::SIGSTOP)?,
            }
            let since = Instant::now();
            writer.goes_on(SOON)?;
            slowest = slowest.max(since.elapsed());
            Ok(())
        })();
        if hangs {
            send(shims[0], Signal::SIGCONT)?;
        }
        send(daemon, Signal::SIGCONT)?;
        done.with_context(|| format!("round {round}"))?;
        d.forget(&name)?;
    }
    println!("went on after {slowest:?} at the latest");
    Ok(())
}

/// Paused and resumed, by containerd and by the runtime alone, while commits are made all the time.
fn leave_owners_their_way(d: &Daemon) -> Result<()> {
    let keeper = Keeper::start(d, "interval = \"20ms\"")?;
    let writer = Writer::start(d, "owned", &[])?;
    let root = format!("/run/containerd/runc/{}", d.namespace());
    let runc = |what: &str| d.command("runc", &["--root", &root, what, "owned"]).output();
    let commits = || -> Result<usize> {
        let said = d.diffkeeper(&["log", "owned", "-n", "10000"])?.ok()?;
        Ok(said.lines().count())
    };
    until("a first commit", LIMIT, || commits().is_ok_and(|n| n > 0))?;
    let before = commits()?;
    for round in 0..if soak() { 300 } else { 6 } {
        if round % 2 == 0 {
            d.ctr(&["task", "pause", "owned"])?.ok()?;
            let status = d.status("owned")?;
            ensure!(status == "PAUSED", "State said {status}");
        } else {
            // It sees a container that stands still for a commit as one that is paused already, and refuses.
            until("runc pause", LIMIT, || {
                runc("pause").is_ok_and(|done| done.status.success())
            })?;
        }
        // By commits on demand too.
        let asked = d.diffkeeper(&["commit", "owned", "-m", "while paused"])?;
        ensure!(asked.status == 0, "{asked:?}");
        ensure!(
            writer.stands_still(),
            "round {round}: it was thawed against its owner's will"
        );
        if round % 2 == 0 {
            d.ctr(&["task", "resume", "owned"])?.ok()?;
            let status = d.status("owned")?;
            ensure!(status == "RUNNING", "State said {status}");
        } else {
            until("runc resume", LIMIT, || {
                runc("resume").is_ok_and(|done| done.status.success())
            })?;
        }
        writer
            .goes_on(LIMIT)
            .with_context(|| format!("round {round}: it was left frozen"))?;
    }
    until("history goes on", LIMIT, || {
        commits().is_ok_and(|n| n > before + 5)
    })?;
    keeper.stop()?;
    d.forget("owned")
}

/// Health checks by exec beside one another, in a container that is recorded all the time and in one that is not.
fn are_met_by_no_probe(d: &Daemon) -> Result<()> {
    if !once(d) {
        return Ok(());
    }
    let max_pause = Duration::from_millis(50);
    let _keeper = Keeper::start(d, "interval = \"50ms\"\nmax-pause = \"50ms\"")?;
    let _recorded = Writer::start(d, "probed", &[])?;
    let _bare = Writer::start(d, "bare", &["--annotation", "diffkeeper.io/capture=off"])?;
    let probes = if soak() { 10_000 } else { 150 };
    let mut times = [Vec::new(), Vec::new()];
    for n in 0..probes {
        for (name, times) in ["probed", "bare"].into_iter().zip(&mut times) {
            let since = Instant::now();
            let ran = d.ctr(&["task", "exec", "--exec-id", &format!("p{n}"), name, "true"])?;
            times.push(since.elapsed());
            ensure!(ran.status == 0, "probe {n} of {name}: {ran:?}");
        }
    }
    for times in &mut times {
        times.sort();
    }
    // The machine has other things to do, now and then: not the slowest of each, but the slowest of a hundred.
    let at =
        |times: &[Duration], share: usize| times.get(times.len() * share / 1000).copied().unwrap_or_default();
    let [probed, bare] = &times;
    println!(
        "probes: median {:?}, 99th percentile {:?}; with capture off {:?}, {:?}",
        at(probed, 500),
        at(probed, 990),
        at(bare, 500),
        at(bare, 990)
    );
    ensure!(
        at(probed, 990) <= at(bare, 990) * 3 / 2 + max_pause,
        "probes wait longer than a standstill"
    );
    for name in ["probed", "bare"] {
        d.forget(name)?;
    }
    Ok(())
}

/// One that takes its time holds up no other container's history; and hears of the end although who asked is gone.
fn wait_for_no_other_application(d: &Daemon) -> Result<()> {
    let keeper = Keeper::start(d, "interval = \"200ms\"")?;
    let before = r#"diffkeeper.io/pre-commit=sh -c "touch /busy; sleep 8; rm /busy""#;
    let after = r#"diffkeeper.io/post-commit=sh -c "echo after >> /hooks""#;
    let other = Writer::start(d, "other", &[])?;
    // As many as are looked at side by side.
    let names = ["slow", "slow1", "slow2"];
    let start = |name: &str| Writer::start(d, name, &["--annotation", before, "--annotation", after]);
    let slow = names.into_iter().map(start).collect::<Result<Vec<_>>>()?;
    let busy = || names.iter().all(|name| d.upper(name).join("busy").exists());
    let commits = || -> Result<usize> {
        let log = d.diffkeeper(&["log", "other", "--json"])?.ok()?;
        Ok(serde_json::from_str::<Vec<serde_json::Value>>(&log)?.len())
    };
    let mut grown = false;
    // A machine that is slow itself may need more than one of its commits.
    for _ in 0..6 {
        until("the slow ones' commands", LIMIT * 2, busy)?;
        let first = commits()?;
        while !grown && busy() {
            grown = commits()? >= first + 2 && busy();
        }
        if grown {
            break;
        }
    }
    ensure!(
        grown,
        "nothing else is recorded while an application makes itself ready"
    );
    // Only one of the versions, for it takes its time.
    if soak() || d.version == "2" {
        let hooks = d.upper("slow").join("hooks");
        let told = || fs::read_to_string(&hooks).map_or(0, |text| text.lines().count());
        until("the slow ones' commands", LIMIT * 2, busy)?;
        let before = told();
        keeper.kill()?;
        until(
            "the end of a commit that nobody makes any more",
            LIMIT * 5,
            || told() > before,
        )?;
        std::thread::sleep(Duration::from_millis(500));
        ensure!(told() == before + 1, "it was told more than once");
    }
    for slow in slow {
        slow.goes_on(LIMIT)?;
    }
    other.goes_on(LIMIT)?;
    for name in names.into_iter().chain(["other"]) {
        d.forget(name)?;
    }
    Ok(())
}

/// Whoever asked for a slow command before a commit loses patience: what runs after a commit waits for it to end.
fn tell_of_the_end_after_the_beginning(d: &Daemon) -> Result<()> {
    let before = r#"diffkeeper.io/pre-commit=sh -c "touch /busy; sleep 2; echo before >> /hooks""#;
    let after = r#"diffkeeper.io/post-commit=sh -c "echo after >> /hooks""#;
    let writer = Writer::start(d, "patient", &["--annotation", before, "--annotation", after])?;
    let ran: Result<Vec<bool>> = std::thread::scope(|scope| {
        let hook = |after| scope.spawn(move || Standstill::of(d, "patient")?.hook(after));
        let first = hook(false);
        let busy = d.upper("patient").join("busy");
        until("the command before", LIMIT, || busy.exists())?;
        let second = hook(true);
        let joined = [first, second].into_iter().map(|hook| hook.join());
        joined
            .map(|ran| ran.map_err(|_| anyhow!("a thread has panicked"))?)
            .collect()
    });
    ensure!(ran? == [true, true], "not both were run");
    let told = fs::read_to_string(d.upper("patient").join("hooks"))?;
    ensure!(told == "before\nafter\n", "told in another order: {told:?}");
    writer.goes_on(LIMIT)?;
    d.forget("patient")
}

/// What the annotations want to be run before and after a commit is, and the commit is made all the same where that fails.
fn let_applications_make_ready(d: &Daemon) -> Result<()> {
    let _keeper = Keeper::start(d, "interval = \"1h\"")?;
    let before = "diffkeeper.io/pre-commit=";
    let after = r#"diffkeeper.io/post-commit=["sh", "-c", "echo after >> /hooks"]"#;
    for (name, hook, consistency, doubt) in [
        (
            "ready",
            r#"sh -c "echo ready > /quiet; echo before >> /hooks""#,
            "application",
            None,
        ),
        (
            "fails",
            r#"sh -c "echo before >> /hooks; echo no room >&2; exit 3""#,
            "crash",
            Some("status 3: no room"),
        ),
        ("missing", "/no/such/program", "crash", Some("/no/such/program")),
        ("hangs", "sleep 1000", "crash", Some("was killed")),
    ] {
        if name == "hangs" && !soak() && d.version != "2" {
            continue;
        }
        let before = format!("{before}{hook}");
        let writer = Writer::start(d, name, &["--annotation", &before, "--annotation", after])?;
        let asked = d.diffkeeper(&["commit", name, "-m", "now", "--json"])?.ok()?;
        let commit: serde_json::Value = serde_json::from_str(&asked)?;
        ensure!(commit["consistency"] == consistency, "{name}: {commit}");
        let said = commit["doubt"].as_str();
        ensure!(
            match doubt {
                Some(doubt) => said.is_some_and(|said| said.starts_with("hook: ") && said.contains(doubt)),
                None => said.is_none(),
            },
            "{name}: {commit}"
        );
        // What was written before is in the commit, and what was written after it is not.
        let version = format!("{name}@{}", commit["id"].as_str().context("an id")?);
        let recorded = d.diffkeeper(&["cat", &version, "/hooks"])?;
        let now = fs::read_to_string(d.upper(name).join("hooks"))?;
        let (expected_then, expected_now) = match name {
            "ready" | "fails" => ("before\n", "before\nafter\n"),
            _ => ("", "after\n"),
        };
        ensure!(
            recorded.out == expected_then && now == expected_now,
            "{name}: {recorded:?}, {now:?}"
        );
        if name == "ready" {
            let quiet = d.diffkeeper(&["cat", &version, "/quiet"])?.ok()?;
            ensure!(quiet == "ready\n", "the hook's own writing is not in the commit");
        }
        writer.goes_on(LIMIT)?;
        d.forget(name)?;
    }
    Ok(())
}
