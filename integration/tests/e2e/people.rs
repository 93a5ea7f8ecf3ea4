//! The command line, as people and scripts meet it.

use std::{
    fs,
    io::Read,
    path::Path,
    process::{Child, ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use integration::{
    Daemon, OURS,
    cri::{Cri, NAMESPACE},
    daemon::{Ran, run},
    history::Keeper,
    wait::until,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::Test;

pub const TESTS: &[(&str, Test)] = &[
    ("people::terminals_and_pipes", terminals_and_pipes),
    ("people::the_past_is_drawn", the_past_is_drawn),
    ("people::the_log_says_more_and_less", the_log_says_more_and_less),
    (
        "people::a_keeper_stops_in_the_middle_of_a_commit",
        a_keeper_stops_in_the_middle_of_a_commit,
    ),
    (
        "people::a_restore_now_is_for_those_with_an_owner",
        a_restore_now_is_for_those_with_an_owner,
    ),
    (
        "people::an_interrupt_leaves_nothing_half_done",
        an_interrupt_leaves_nothing_half_done,
    ),
];

/// The `diffkeeper` beside the shim.
fn program(d: &Daemon) -> Result<String> {
    let shim = fs::canonicalize(d.folder().join("bin/containerd-shim-diffkeeper-v1"))?;
    Ok(shim.with_file_name("diffkeeper").to_string_lossy().into_owned())
}

/// A container that writes something and lives on.
fn start(d: &Daemon, name: &str, script: &str) -> Result<()> {
    let image = d.import("busybox")?;
    let script = format!("{script}; sleep 1000");
    d.ctr(&["run", "-d", "--runtime", OURS, &image, name, "sh", "-c", &script])?
        .ok()?;
    Ok(())
}

fn said(d: &Daemon, args: &[&str]) -> Result<String> {
    Ok(d.diffkeeper(args)?.ok()?.trim_end().to_owned())
}

/// The same, with a terminal to print on.
fn on_a_terminal(d: &Daemon, env: &[(&str, &str)], args: &[&str]) -> Result<Ran> {
    let line = format!("{} {}", program(d)?, args.join(" "));
    let mut command = d.command("script", &["-qec", &line, "/dev/null"]);
    command
        .env("TERM", "xterm")
        .env("PAGER", "cat")
        .env_remove("NO_COLOR")
        // Where this is set, a terminal counts as one with colours whatever it says of itself.
        .env_remove("CI");
    command.envs(env.iter().copied());
    run(&mut command)
}

fn terminals_and_pipes(d: &Daemon) -> Result<()> {
    let _keeper = Keeper::start(d, "interval = \"off\"")?;
    start(d, "screen", "echo one > /data")?;
    until("the file", Duration::from_secs(10), || {
        d.upper("screen").join("data").exists()
    })?;
    said(d, &["commit", "screen", "-m", "first", "--tag", "good"])?;
    let colour = "\u{1b}[33m";
    let log = ["log", "screen"];

    // A terminal has colours, unless somebody does not want them; a pipe has none, unless somebody does.
    ensure!(on_a_terminal(d, &[], &log)?.ok()?.contains(colour));
    ensure!(
        !on_a_terminal(d, &[("NO_COLOR", "1")], &log)?
            .ok()?
            .contains('\u{1b}')
    );
    ensure!(
        !on_a_terminal(d, &[("TERM", "dumb")], &log)?
            .ok()?
            .contains('\u{1b}')
    );
    ensure!(
        !on_a_terminal(d, &[], &["--color=never", "log", "screen"])?
            .ok()?
            .contains('\u{1b}')
    );
    ensure!(!said(d, &log)?.contains('\u{1b}'));
    ensure!(said(d, &["log", "screen", "--color", "always"])?.contains(colour));
    // Columns stay in line all the same.
    let plain = said(d, &log)?;
    let painted = said(d, &["log", "screen", "--color", "always"])?;
    ensure!(without_colours(&painted) == plain, "{painted}\n{plain}");

    // A pager for what people read on a terminal, and for nothing else.
    let pager = [("PAGER", "sed s/^/page:/")];
    for args in [
        vec!["log", "screen"],
        vec!["timeline", "screen"],
        vec!["ls", "screen"],
        vec!["diff", "screen@good"],
    ] {
        let text = on_a_terminal(d, &pager, &args)?.ok()?;
        ensure!(text.contains("page:"), "{args:?}: {text}");
    }
    for args in [
        vec!["log", "screen", "--json"],
        vec!["log", "screen", "--no-pager"],
        vec!["show", "screen"],
    ] {
        let text = on_a_terminal(d, &pager, &args)?.ok()?;
        ensure!(
            text.contains("first") && !text.contains("page:"),
            "{args:?}: {text}"
        );
    }
    // One that is not there, and one that is left at once.
    ensure!(on_a_terminal(d, &[("PAGER", "")], &log)?.ok()?.contains("first"));
    let left = on_a_terminal(d, &[("PAGER", "true")], &log)?;
    ensure!(!left.out.contains("panic"), "{left:?}");
    // Whoever reads only the beginning ends it quietly.
    let line = format!(
        "{} log screen | head -c 1 >/dev/null; echo ${{PIPESTATUS[0]}}",
        program(d)?
    );
    let ended = run(&mut d.command("bash", &["-c", &line]))?;
    ensure!(
        matches!(ended.out.trim(), "0" | "141") && ended.err.is_empty(),
        "{ended:?}"
    );
    // Errors are not pages.
    let wrong = on_a_terminal(d, &pager, &["log", "nobody"])?;
    ensure!(
        wrong.status != 0 && wrong.out.contains("no state nobody") && !wrong.out.contains("page:"),
        "{wrong:?}"
    );
    d.forget("screen")
}

/// The first column of `log --graph`, and the reason of the commit beside it.
fn graph(d: &Daemon, state: &str) -> Result<Vec<String>> {
    let text = said(d, &["log", state, "--graph"])?;
    let mut lines = Vec::new();
    for line in text.lines().skip(1) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let at = words.iter().position(|word| word.contains(':'));
        let reason = at.and_then(|at| words.get(at + 1)).copied().unwrap_or_default();
        let drawn = line.split("  ").next().unwrap_or_default().trim();
        lines.push(format!("{drawn} {reason}").trim().to_owned());
    }
    Ok(lines)
}

fn the_past_is_drawn(d: &Daemon) -> Result<()> {
    let keeper = Keeper::start(d, "interval = \"off\"")?;
    let image = d.import("busybox")?;
    let run = |script: &str| {
        let line = [
            "run",
            "--rm",
            "--runtime",
            OURS,
            &image,
            "drawn",
            "sh",
            "-c",
            script,
        ];
        d.ctr(&line)?.ok()
    };
    run("echo one > /data")?;
    said(d, &["commit", "drawn", "--tag", "one"])?;
    run("echo two > /data; head -c 5000 /dev/urandom > /more")?;
    said(d, &["commit", "drawn", "--tag", "two"])?;
    said(d, &["restore", "drawn@one"])?;
    said(d, &["fork", "drawn@two", "drawn-2"])?;
    let reasons: Vec<String> = ["* restore", "├─╮", "* │ manual"].map(Into::into).into();
    let drawn = graph(d, "drawn")?;
    ensure!(drawn.starts_with(&reasons), "{drawn:?}");
    let origin = drawn.iter().position(|line| line == "├─╯");
    ensure!(
        origin
            .and_then(|n| drawn.get(n + 1))
            .is_some_and(|line| line == "* manual"),
        "{drawn:?}"
    );
    let drawn = said(d, &["log", "drawn-2", "--graph"])?;
    let last = drawn.lines().last().unwrap_or_default();
    ensure!(last.contains("╰─o") && last.contains("/drawn [two]"), "{drawn}");
    let fork: serde_json::Value = serde_json::from_str(&said(d, &["show", "drawn-2", "--json"])?)?;
    ensure!(
        fork["origin_state"]
            .as_str()
            .is_some_and(|state| state.ends_with("/drawn")),
        "{fork}"
    );

    // What each cost.
    let verbose = said(d, &["log", "drawn", "--verbose"])?;
    let heading = verbose.lines().next().unwrap_or_default();
    for word in ["PAUSE", "READ", "WRITTEN", "HOW", "WHY"] {
        ensure!(heading.contains(word), "{heading}");
    }
    ensure!(
        verbose
            .lines()
            .any(|line| line.contains("[two]") && line.contains("KiB")),
        "{verbose}"
    );

    // A span of time, by either end.
    let two: serde_json::Value = serde_json::from_str(&said(d, &["show", "drawn@two", "--json"])?)?;
    let at = two["time_ns"].as_i64().context("its time")?;
    let until = format!("{}.{:09}Z", utc(at / 1_000_000_000), at % 1_000_000_000);
    let younger = said(d, &["log", "drawn", "--since", &until])?;
    ensure!(
        younger.contains("restore") && younger.contains("[two]") && !younger.contains("[one]"),
        "{younger}"
    );
    let older = said(d, &["log", "drawn", "--until", &until])?;
    ensure!(
        !older.contains("restore") && older.contains("[two]") && older.contains("[one]"),
        "{older}"
    );
    ensure!(!said(d, &["timeline", "drawn", "--until", &until])?.contains("restore"));
    ensure!(
        said(d, &["log", "drawn", "--since", "1h", "-n", "1"])?
            .lines()
            .count()
            == 2
    );
    ensure!(d.diffkeeper(&["log", "drawn", "--since", "noon"])?.status == 1);

    // `states` knows the histories: from the keeper, from the store, and without either.
    let listed =
        || -> Result<Vec<serde_json::Value>> { Ok(serde_json::from_str(&said(d, &["states", "--json"])?)?) };
    let of = |name: &str| -> Result<Option<serde_json::Value>> {
        let mut found = listed()?.into_iter();
        Ok(found.find(|state| state["name"].as_str().is_some_and(|all| all.ends_with(name))))
    };
    let with_keeper = of("/drawn")?.context("the state")?;
    let commits = with_keeper["commits"].as_u64().context("its commits")?;
    ensure!(
        commits >= 3 && with_keeper["newest_commit_ns"].as_i64() > Some(at),
        "{with_keeper}"
    );
    // A keeper that does not answer keeps nobody waiting for long.
    signal(keeper.pid(), Signal::SIGSTOP)?;
    let wedged = of("/drawn");
    signal(keeper.pid(), Signal::SIGCONT)?;
    ensure!(wedged?.context("the state")?["commits"].is_null());
    keeper.stop()?;
    let without = of("/drawn")?.context("the state")?;
    ensure!(without["commits"].as_u64() == Some(commits), "{without}");
    // What is left is listed, too.
    said(d, &["rm", "drawn", "--yes"])?;
    let left = of("/drawn")?.context("its history")?;
    ensure!(
        left["live"] == false && left["commits"].as_u64() == Some(commits),
        "{left}"
    );
    ensure!(said(d, &["states"])?.contains("no live tree"));
    said(d, &["rm", "drawn", "--yes", "--history"])?;
    ensure!(of("/drawn")?.is_none());
    said(d, &["rm", "drawn-2", "--yes", "--history"])?;
    Ok(())
}

/// Seconds since 1970 as UTC, by the system's `date`.
fn utc(seconds: i64) -> String {
    let at = format!("@{seconds}");
    let date = std::process::Command::new("date")
        .args(["-u", "-d", &at, "+%Y-%m-%dT%H:%M:%S"])
        .output();
    date.map(|out| String::from_utf8_lossy(&out.stdout).trim().to_owned())
        .unwrap_or_default()
}

/// A text without its colours.
fn without_colours(text: &str) -> String {
    let mut plain = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("\u{1b}[") {
        plain.push_str(before);
        rest = after.split_once('m').map_or("", |(_, rest)| rest);
    }
    plain + rest
}

fn the_log_says_more_and_less(d: &Daemon) -> Result<()> {
    let keeper = Keeper::start(d, "interval = \"off\"")?;
    start(d, "spoken", "echo one > /data")?;
    until("the file", Duration::from_secs(10), || {
        d.upper("spoken").join("data").exists()
    })?;
    // What a commit adds to the log.
    let file = d.folder().join("keeper.log");
    let heard = || -> Result<String> {
        let before = fs::read_to_string(&file)?.len();
        said(d, &["commit", "spoken", "-m", "x"])?;
        let log = fs::read_to_string(&file)?;
        Ok(log.get(before..).unwrap_or_default().to_owned())
    };
    let changed = |wanted: Signal, level: &str| -> Result<()> {
        let of = || {
            let log = fs::read_to_string(&file).unwrap_or_default();
            log.matches(&format!("level changes level=\"{level}\"")).count()
        };
        let before = of();
        signal(keeper.pid(), wanted)?;
        until("the log's level", Duration::from_secs(10), || of() > before)
    };
    ensure!(!heard()?.contains("DEBUG"));
    changed(Signal::SIGUSR1, "debug")?;
    ensure!(heard()?.contains("}: looked"), "nothing more is said");
    changed(Signal::SIGUSR2, "info")?;
    ensure!(!heard()?.contains("DEBUG"));
    // What is configured by now.
    let config = d.config();
    let text = fs::read_to_string(&config)?;
    fs::write(&config, format!("{text}\nlog = \"debug\"\n"))?;
    changed(Signal::SIGHUP, "debug")?;
    ensure!(heard()?.contains("}: looked"));
    // A slip changes nothing, and is named.
    fs::write(&config, format!("{text}\nlog = \"loud\"\n"))?;
    signal(keeper.pid(), Signal::SIGHUP)?;
    until("the complaint", Duration::from_secs(10), || {
        fs::read_to_string(&file).is_ok_and(|log| log.contains("error, warn, info or debug"))
    })?;
    fs::write(&config, text)?;
    ensure!(heard()?.contains("}: looked"));
    keeper.stop()?;
    d.forget("spoken")?;
    said(d, &["rm", "spoken", "--yes", "--history"])?;
    Ok(())
}

fn a_keeper_stops_in_the_middle_of_a_commit(d: &Daemon) -> Result<()> {
    let keeper = Keeper::start(d, "interval = \"200ms\"")?;
    start(d, "long", "while :; do date >> /data; sleep 0.05; done")?;
    until("a commit", Duration::from_secs(20), || {
        d.diffkeeper(&["log", "long"]).is_ok_and(|ran| ran.status == 0)
    })?;
    let before = said(d, &["log", "long", "-n", "1", "--json"])?;
    // A commit whose shim does not answer waits for it, longer than a keeper may take to stop.
    let shim = d.shims(Some("long")).first().copied().context("its shim")?;
    let shim = u32::try_from(shim)?;
    signal(shim, Signal::SIGSTOP)?;
    let mut child = begin(d, &["commit", "long", "-m", "never"])?;
    let stopped = (|| {
        connected(&keeper.socket(), child.id())?;
        std::thread::sleep(Duration::from_millis(300));
        ensure!(matches!(child.try_wait(), Ok(None)), "the commit was done");
        let since = std::time::Instant::now();
        keeper.stop()?;
        Ok(since.elapsed())
    })();
    signal(shim, Signal::SIGCONT)?;
    let took = stopped?;
    ensure!(took < Duration::from_secs(5), "it took {took:?}");
    ensure!(!ended(&mut child)?.success());
    // What was reported is there, and it goes on from there.
    let _keeper = Keeper::again(d)?;
    ensure!(said(d, &["verify", "--read-data"])?.contains("all is well"));
    let head: serde_json::Value = serde_json::from_str(&before)?;
    let head = head[0]["id"].as_str().context("its name")?;
    said(d, &["show", &format!("long@{head}")])?;
    said(d, &["commit", "long", "-m", "and on"])?;
    d.forget("long")
}

fn a_restore_now_is_for_those_with_an_owner(d: &Daemon) -> Result<()> {
    let keeper = Keeper::start(d, "interval = \"off\"")?;
    let refused = |state: &str| -> Result<()> {
        let version = format!("{state}@good");
        d.diffkeeper(&["restore", &version, "--now"])?
            .fails_with(&["--now would only end", "without --now"])?;
        // It was only asked: nothing waits.
        ensure!(d.diffkeeper(&["restore", state, "--cancel"])?.status == 3);
        Ok(())
    };
    // A client of containerd starts nothing again.
    start(d, "alone", "echo one > /data")?;
    until("the file", Duration::from_secs(10), || {
        d.upper("alone").join("data").exists()
    })?;
    said(d, &["commit", "alone", "--tag", "good"])?;
    refused("alone")?;
    ensure!(d.status("alone")? == "RUNNING");
    d.forget("alone")?;
    // Not in use, it is as any restore.
    ensure!(said(d, &["restore", "alone@good", "--now"])?.contains("its next start begins"));
    said(d, &["rm", "alone", "--yes", "--history"])?;

    // A pod that no kubelet looks after, and one of a kubelet's.
    let cri = Cri::connect(d)?;
    let image = d.import_into(NAMESPACE, "busybox")?;
    let script = "trap 'exit 0' TERM; echo start >> /starts; while :; do sleep 0.1; done";
    for (name, parent) in [("stray", None), ("owned", Some("kubepods"))] {
        let mut config = cri.pod_config("default", name, name);
        if let (Some(parent), Some(linux)) = (parent, config.linux.as_mut()) {
            linux.cgroup_parent = format!("/{}/{parent}/pod{name}", d.namespace());
        }
        let pod = cri.run_pod("diffkeeper", config)?;
        let app = pod.run("app", 0, &image, script)?;
        let state = format!("default/{name}/app");
        until("the first start", Duration::from_secs(10), || {
            cri.sh(&app, "cat /starts").is_ok_and(|text| text == "start\n")
        })?;
        cri.sh(&app, "echo good > /data")?;
        said(d, &["commit", &state, "--tag", "good"])?;
        cri.sh(&app, "echo bad > /data")?;
        if parent.is_none() {
            refused(&state)?;
            ensure!(cri.sh(&app, "cat /data")? == "bad\n");
        } else {
            let version = format!("{state}@good");
            let mut child = begin(d, &["restore", &version, "--now"])?;
            // This is what a kubelet does about a container that has ended.
            cri.wait(&app)?;
            let again = pod.run("app", 1, &image, script)?;
            let status = ended(&mut child)?;
            ensure!(status.success(), "{status}");
            until("the container of before", Duration::from_secs(10), || {
                cri.sh(&again, "cat /data /starts")
                    .is_ok_and(|text| text == "good\nstart\nstart\n")
            })?;
        }
        pod.delete()?;
        said(d, &["rm", &state, "--yes", "--history"])?;
    }
    stops_as_its_image_wants(d, &cri)?;
    // The shim of the next start would not reach a keeper of this command's own.
    keeper.stop()?;
    start(d, "alone", "true")?;
    d.diffkeeper(&["restore", "alone", "--now"])?
        .fails_with(&["needs a keeper that runs"])?;
    d.forget("alone")?;
    said(d, &["rm", "alone", "--yes"])?;
    Ok(())
}

/// `STOPSIGNAL`: the image of PostgreSQL names SIGINT.
fn stops_as_its_image_wants(d: &Daemon, cri: &Cri) -> Result<()> {
    let image = d.import_into(NAMESPACE, "postgresql")?;
    let mut config = cri.pod_config("default", "signal", "signal");
    if let Some(linux) = config.linux.as_mut() {
        linux.cgroup_parent = format!("/{}/kubepods/podsignal", d.namespace());
    }
    let pod = cri.run_pod("diffkeeper", config)?;
    let script = "trap 'echo INT >> /ended; exit 0' INT; trap 'echo TERM >> /ended; exit 0' TERM
        echo start >> /starts; while :; do sleep 0.1; done";
    let app = pod.run("app", 0, &image, script)?;
    until("the first start", Duration::from_secs(10), || {
        cri.sh(&app, "cat /starts").is_ok_and(|text| text == "start\n")
    })?;
    let state = "default/signal/app";
    said(d, &["commit", state, "--tag", "good"])?;
    let mut child = begin(d, &["restore", &format!("{state}@good"), "--now"])?;
    cri.wait(&app)?;
    let _again = pod.run("app", 1, &image, script)?;
    let status = ended(&mut child)?;
    ensure!(status.success(), "{status}");
    // What it did with its signal was recorded before the restore.
    let told = said(d, &["cat", &format!("{state}@~1"), "/ended"])?;
    ensure!(told == "INT", "{told}");
    pod.delete()?;
    said(d, &["rm", state, "--yes", "--history"])?;
    Ok(())
}

/// `diffkeeper`, begun; what it says is read later.
fn begin(d: &Daemon, args: &[&str]) -> Result<Child> {
    d.direct(&program(d)?, args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("start diffkeeper")
}

fn ended(child: &mut Child) -> Result<ExitStatus> {
    let ended = until("its end", Duration::from_secs(60), || {
        matches!(child.try_wait(), Ok(Some(_)))
    });
    if ended.is_err() {
        child.kill()?;
    }
    ended?;
    Ok(child.wait()?)
}

fn signal(pid: u32, signal: Signal) -> Result<()> {
    Ok(kill(Pid::from_raw(i32::try_from(pid)?), signal)?)
}

/// Waits until a process has connected to the keeper, and a call is on its way.
fn connected(socket: &Path, pid: u32) -> Result<()> {
    until("the call", Duration::from_secs(20), || {
        let handles = |signal: u32| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
            caught
                .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
                .is_some_and(|mask| mask & (1 << (signal - 1)) != 0)
        };
        socket.exists() && handles(2)
    })
}

fn an_interrupt_leaves_nothing_half_done(d: &Daemon) -> Result<()> {
    let keeper = Keeper::start(d, "interval = \"off\"")?;
    start(d, "halt", "head -c 30000000 /dev/urandom > /big; touch /ready")?;
    until("the file", Duration::from_secs(20), || {
        d.upper("halt").join("ready").exists()
    })?;
    said(d, &["commit", "halt", "--tag", "good"])?;

    // Twice Ctrl-C: it is left to the keeper, which goes on when it can.
    let to = d.folder().join("left-to-the-keeper");
    let args = ["export", "halt@good", &to.to_string_lossy()];
    signal(keeper.pid(), Signal::SIGSTOP)?;
    let mut child = begin(d, &args)?;
    connected(&keeper.socket(), child.id())?;
    let mut err = child.stderr.take().context("its standard error")?;
    signal(child.id(), Signal::SIGINT)?;
    let mut said_first = [0; 8];
    err.read_exact(&mut said_first)?;
    ensure!(&said_first == b"stopping", "{said_first:?}");
    signal(child.id(), Signal::SIGINT)?;
    let status = ended(&mut child)?;
    let mut rest = String::new();
    err.read_to_string(&mut rest)?;
    signal(keeper.pid(), Signal::SIGCONT)?;
    ensure!(
        status.code() == Some(130) && rest.contains("the keeper goes on"),
        "{status} {rest}"
    );
    // All of it or nothing, in the end.
    let size = || fs::metadata(to.join("big")).map_or(0, |meta| meta.len());
    until("all or nothing", Duration::from_secs(60), || {
        let nothing = fs::read_dir(&to).map_or(true, |mut dir| dir.next().is_none());
        (nothing || size() == 30_000_000) && said(d, &["stats"]).is_ok()
    })?;

    // Once: it ends, and clears away what it had made.
    for (n, attempt) in ["a", "b", "c"].iter().enumerate() {
        let to = d.folder().join(format!("stopped-{attempt}"));
        signal(keeper.pid(), Signal::SIGSTOP)?;
        let mut child = begin(d, &["export", "halt@good", &to.to_string_lossy()])?;
        connected(&keeper.socket(), child.id())?;
        signal(child.id(), Signal::SIGINT)?;
        // The wish to stop is on its way when this is said, or a moment later.
        let mut err = child.stderr.take().context("its standard error")?;
        err.read_exact(&mut said_first)?;
        std::thread::sleep(Duration::from_millis(100 * n as u64));
        signal(keeper.pid(), Signal::SIGCONT)?;
        let status = ended(&mut child)?;
        let whole = fs::metadata(to.join("big")).is_ok_and(|meta| meta.len() == 30_000_000);
        let nothing = fs::read_dir(&to).map_or(true, |mut dir| dir.next().is_none());
        ensure!(
            match status.code() {
                Some(0) => whole,
                Some(130) => nothing,
                _ => false,
            },
            "{status}, whole: {whole}, nothing: {nothing}"
        );
    }
    ensure!(said(d, &["verify"])?.contains("all is well"));
    d.forget("halt")
}
