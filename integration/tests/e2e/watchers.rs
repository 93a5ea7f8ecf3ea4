//! Who tells a keeper where to look, and what becomes of it.

use std::{fs, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use integration::{Daemon, OURS, daemon::run, history::Keeper, wait::until};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use crate::Test;

pub const TESTS: &[(&str, Test)] = &[
    (
        "watchers::what_is_open_is_recorded_without_a_word",
        what_is_open_is_recorded_without_a_word,
    ),
    (
        "watchers::fanotify_serves_whoever_asks",
        fanotify_serves_whoever_asks,
    ),
    (
        "watchers::unread_events_hold_no_container",
        unread_events_hold_no_container,
    ),
    (
        "watchers::what_ebpf_needs_and_what_it_does_not",
        what_ebpf_needs_and_what_it_does_not,
    ),
    (
        "watchers::what_was_told_ends_with_the_keeper",
        what_was_told_ends_with_the_keeper,
    ),
];

/// It has to be asked for.
const FANOTIFY: &str = "interval = \"100ms\"\nwatcher = \"fanotify\"";

fn said(d: &Daemon, args: &[&str]) -> Result<String> {
    Ok(d.diffkeeper(args)?.ok()?.trim_end().to_owned())
}

fn json(d: &Daemon, args: &[&str]) -> Result<Value> {
    Ok(serde_json::from_str(&said(d, args)?)?)
}

fn start(d: &Daemon, name: &str, script: &str) -> Result<()> {
    let image = d.import("busybox")?;
    d.ctr(&["run", "-d", "--runtime", OURS, &image, name, "sh", "-c", script])?
        .ok()
        .map(drop)
}

/// Who watches, as doctor says.
fn watcher(d: &Daemon) -> Result<String> {
    watcher_said(&d.diffkeeper(&["doctor", "--json"])?.out)
}

fn watcher_said(doctor: &str) -> Result<String> {
    let findings: Value = serde_json::from_str(doctor)?;
    let findings = findings.as_array().context("a list")?;
    let watcher = findings.iter().find(|finding| finding["check"] == "watcher");
    let found = watcher.and_then(|finding| finding["found"].as_str());
    found.map(str::to_owned).context("who watches")
}

/// Whether the watcher that is configured can serve here, by the name that commits have for it.
pub fn serves(d: &Daemon, name: &str) -> Result<bool> {
    let found = watcher(d)?;
    let serves = found.starts_with(name);
    if !serves {
        println!("{name} does not serve here: {found}");
    }
    Ok(serves)
}

/// Without a word in the configuration everything is looked at, whatever the kernel could.
fn fanotify_serves_whoever_asks(d: &Daemon) -> Result<()> {
    let _keeper = Keeper::start(d, "interval = \"100ms\"")?;
    let found = watcher(d)?;
    ensure!(found.starts_with("scan"), "{found}");
    start(
        d,
        "scanned",
        "n=0; while :; do n=$((n+1)); echo $n > /file; sleep 0.1; done",
    )?;
    let log = || -> Result<Value> { json(d, &["log", "scanned", "--json"]) };
    until("five commits", Duration::from_secs(30), || {
        log().is_ok_and(|log| log.as_array().is_some_and(|log| log.len() >= 5))
    })?;
    let log = log()?;
    let commits = log.as_array().context("a list")?;
    ensure!(commits.iter().all(|commit| commit["watcher"] == "scan"), "{log}");
    d.forget("scanned")
}

/// A file that is never closed, in a tree of many that nothing happens to: its bytes are in each commit, and looking at
/// everything finds nothing that was missed.
fn what_is_open_is_recorded_without_a_word(d: &Daemon) -> Result<()> {
    let log = d.folder().join("keeper.log");
    let before = fs::read_to_string(&log).unwrap_or_default().len();
    let _keeper = Keeper::start(d, FANOTIFY)?;
    if !serves(d, "fanotify")? {
        return Ok(());
    }
    let script = "mkdir -p /many && cd /many && for n in $(seq 500); do echo $n > $n; done; \
                  exec 3>>/open; n=0; while :; do n=$((n+1)); echo $n >&3; sleep 0.05; done";
    start(d, "silent", script)?;
    until("the file that stays open", Duration::from_secs(60), || {
        said(d, &["cat", "silent", "/open"]).is_ok_and(|text| !text.is_empty())
    })?;
    said(d, &["commit", "silent", "-m", "begun"])?;
    let named = || -> Result<Vec<Value>> {
        match json(d, &["log", "silent", "-n", "1000", "--json"])? {
            Value::Array(commits) => {
                // The first that has it may have the last of the many, too.
                let begun = commits.iter().rposition(|c| c["message"] == "begun").unwrap_or(0);
                let since = commits.into_iter().take(begun.saturating_sub(1));
                Ok(since.filter(|c| c["watcher"] == "fanotify").collect())
            }
            other => bail!("{other}"),
        }
    };
    until("commits of what was named", Duration::from_secs(60), || {
        named().is_ok_and(|commits| commits.len() >= 10)
    })?;
    let mut last = 0;
    for commit in named()?.iter().rev() {
        let version = format!("silent@{}", commit["id"].as_str().context("an id")?);
        let text = said(d, &["cat", &version, "/open"])?;
        let lines: Vec<u64> = text.lines().map(str::parse).collect::<Result<_, _>>()?;
        ensure!(
            lines.iter().zip(1..).all(|(line, n)| *line == n),
            "{version}: {text}"
        );
        let newest = lines.last().copied().unwrap_or(0);
        ensure!(newest > last, "{commit} has nothing new: {newest} after {last}");
        last = newest;
        ensure!(commit["changed"].as_u64().is_some_and(|n| n < 20), "{commit}");
    }
    // Everything is looked at once more when the container has ended.
    d.forget("silent")?;
    until("the last commit", Duration::from_secs(30), || {
        json(d, &["log", "silent", "-n", "1", "--json"]).is_ok_and(|log| log[0]["watcher"] == "scan")
    })?;
    let log = fs::read_to_string(&log)?;
    ensure!(
        !log.get(before..).unwrap_or_default().contains("nobody told"),
        "something was missed: {log}"
    );
    Ok(())
}

/// A keeper that stands still with events unread: containers write, end, and are unmounted.
fn unread_events_hold_no_container(d: &Daemon) -> Result<()> {
    let keeper = Keeper::start(d, FANOTIFY)?;
    start(
        d,
        "unread",
        "while :; do echo $RANDOM > /file$((RANDOM % 100)); done",
    )?;
    until("a commit", Duration::from_secs(30), || {
        json(d, &["log", "unread", "--json"]).is_ok_and(|log| log[0]["id"].is_string())
    })?;
    let pid = Pid::from_raw(i32::try_from(keeper.pid())?);
    kill(pid, Signal::SIGSTOP)?;
    let upper = d.upper("unread");
    let checked = (|| -> Result<()> {
        let file = upper.join("file1");
        let now = fs::metadata(&file).and_then(|meta| meta.modified()).ok();
        until("the container goes on", Duration::from_secs(20), || {
            fs::metadata(&file).and_then(|meta| meta.modified()).ok() != now
        })?;
        d.forget("unread")?;
        until("the overlay is gone", Duration::from_secs(20), || {
            live::in_use(&upper).is_ok_and(|used| !used)
        })
    })();
    kill(pid, Signal::SIGCONT)?;
    checked?;
    until("the rest is recorded", Duration::from_secs(30), || {
        json(d, &["log", "unread", "-n", "1", "--json"]).is_ok_and(|log| log[0]["reason"] == "exit")
    })
}

/// It has to be asked for, too.
const AUTO: &str = "interval = \"100ms\"\nwatcher = \"auto\"";

/// Who would watch where a command, of which `doctor` is the end, has taken something away.
fn without(d: &Daemon, words: &[&str]) -> Result<String> {
    let shim = fs::canonicalize(d.folder().join("bin/containerd-shim-diffkeeper-v1"))?;
    let program = shim.with_file_name("diffkeeper");
    let (first, rest) = words.split_first().context("a command")?;
    let doctor = [&program.to_string_lossy(), "doctor", "--json"];
    let said = run(&mut d.command(first, &[rest, &doctor].concat()))?;
    watcher_said(&said.out).with_context(|| format!("{words:?}: {} {}", said.out, said.err))
}

/// It is for want of rights, or of the kernel's types, that programs are not there; neither the limit of locked memory nor
/// tracefs matters.
fn what_ebpf_needs_and_what_it_does_not(d: &Daemon) -> Result<()> {
    let _keeper = Keeper::start(d, AUTO)?;
    if !serves(d, "ebpf")? {
        return Ok(());
    }
    let hidden = |paths: &str| {
        format!(
            "for path in {paths}; do if [ -d $path ]; then mount -t tmpfs none $path || exit; fi; done; exec \"$@\""
        )
    };
    let tracefs = hidden("/sys/kernel/debug /sys/kernel/tracing");
    for words in [
        &["prlimit", "--memlock=0:0"][..],
        &["unshare", "-m", "sh", "-c", &tracefs, "sh"],
    ] {
        let found = without(d, words)?;
        ensure!(found.starts_with("ebpf"), "{words:?}: {found}");
    }
    let types = hidden("/sys/kernel/btf");
    for (words, why) in [
        (
            &["setpriv", "--bounding-set=-sys_admin,-bpf,-perfmon"][..],
            "does not take the programs",
        ),
        (
            &["unshare", "-m", "sh", "-c", &types, "sh"],
            "does not describe its types",
        ),
    ] {
        let found = without(d, words)?;
        ensure!(
            found.starts_with("scan") && found.contains(why),
            "{words:?}: {found}"
        );
    }
    Ok(())
}

/// A keeper that is killed knew which pages were written; the next one compares whole files, and then knows again.
fn what_was_told_ends_with_the_keeper(d: &Daemon) -> Result<()> {
    const LENGTH: u64 = 8 << 20;
    let keeper = Keeper::start(d, AUTO)?;
    if !serves(d, "ebpf")? {
        return Ok(());
    }
    let page =
        "dd if=/dev/urandom of=/large bs=4096 count=1 seek=$((n * 37 % 2048)) conv=notrunc,fsync 2>/dev/null";
    let script = format!(
        "dd if=/dev/urandom of=/large bs=1M count=8 2>/dev/null; sync; \
         n=0; while :; do n=$((n+1)); {page}; sleep 0.05; done"
    );
    start(d, "paged", &script)?;
    let newest = || json(d, &["log", "paged", "-n", "1", "--json"]).map(|log| log[0].clone());
    let sequence = || Ok::<_, anyhow::Error>(newest()?["sequence"].as_u64().unwrap_or(0));
    // So many are needed until what is in memory has become small folios again.
    let in_part = |since: u64| {
        until("a commit of some pages", Duration::from_secs(60), || {
            newest().is_ok_and(|commit| {
                let read = commit["bytes_read"].as_u64().unwrap_or(u64::MAX);
                commit["watcher"] == "ebpf"
                    && commit["changed"] == 1
                    && commit["sequence"].as_u64().is_some_and(|n| n > since)
                    && read < LENGTH / 2
            })
        })
    };
    in_part(0)?;
    let upper = d.upper("paged").join("large");
    let time = || fs::metadata(&upper).and_then(|meta| meta.modified()).ok();
    keeper.kill()?;
    let before = time();
    until(
        "pages are written without a keeper",
        Duration::from_secs(20),
        || time() != before,
    )?;
    let _keeper = Keeper::again(d)?;
    let known = sequence()?;
    until("a commit of the new keeper", Duration::from_secs(60), || {
        sequence().is_ok_and(|n| n > known)
    })?;
    let log = json(d, &["log", "paged", "-n", "1000", "--json"])?;
    let commits = log.as_array().context("a list")?;
    let first = commits
        .iter()
        .find(|commit| commit["sequence"] == known + 1)
        .context("its first commit")?;
    ensure!(
        first["bytes_read"].as_u64().is_some_and(|read| read >= LENGTH),
        "{first}"
    );
    in_part(known)?;
    d.ctr(&["task", "pause", "paged"])?.ok()?;
    let compared = (|| -> Result<()> {
        said(d, &["commit", "paged", "-m", "paused"])?;
        let to = d.folder().join("paged.version");
        said(d, &["restore", "paged", "--to", &to.to_string_lossy()])?;
        let same = fs::read(&upper)? == fs::read(to.join("large"))?;
        fs::remove_dir_all(to)?;
        ensure!(same, "the version is not what the file was");
        Ok(())
    })();
    d.ctr(&["task", "resume", "paged"])?.ok()?;
    compared?;
    d.forget("paged")
}
