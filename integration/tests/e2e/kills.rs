//! Whatever is killed, what the container had synced is there at the next start, and never two write at once.

use std::{fs, time::Duration};

use anyhow::{Result, ensure};
use integration::{Daemon, OURS, daemon::kill, wait::until};

use crate::Test;

pub const TESTS: &[(&str, Test)] = &[
    ("kills::of_init", of_init),
    ("kills::of_the_shim", of_the_shim),
    ("kills::of_containerd", of_containerd),
    ("kills::of_all_three", of_all_three),
    (
        "kills::a_survivor_is_ended_before_its_successor_starts",
        a_survivor_is_ended_before_its_successor_starts,
    ),
];

/// Appends a record, syncs it, and only then reports it: the report is on a disk outside the container.
const WRITER: &str = r#"i=$(wc -l < /log 2>/dev/null || echo 0)
while :; do i=$((i+1)); echo "record $i" >> /log; sync /log 2>/dev/null || sync; echo $i >> /ack/last; done"#;

fn start(d: &Daemon, name: &str) -> Result<()> {
    let image = d.import("tools")?;
    let ack = d.folder().join("ack");
    fs::create_dir_all(&ack)?;
    let mount = format!("type=bind,src={},dst=/ack,options=rbind:rw", ack.display());
    let mut last = None;
    let started = until("a start", Duration::from_secs(20), || {
        let ran = d.ctr(&[
            "run",
            "-d",
            "--runtime",
            OURS,
            "--mount",
            &mount,
            &image,
            name,
            "sh",
            "-c",
            WRITER,
        ]);
        // containerd may still be cleaning up after a shim that was killed.
        let again = ran
            .as_ref()
            .is_ok_and(|r| r.status != 0 && r.err.contains("already exists"));
        if again {
            let _ = d.forget(name);
        }
        last = Some(ran);
        !again
    });
    match last {
        Some(ran) => ran?.ok().map(drop),
        None => started,
    }
}

/// The last record that was reported as synced, by whole lines: the kill may tear the last one.
fn acknowledged(d: &Daemon) -> u64 {
    let text = fs::read_to_string(d.folder().join("ack/last")).unwrap_or_default();
    let whole = text.rsplit_once('\n').map_or("", |(lines, _)| lines);
    whole
        .lines()
        .last()
        .and_then(|line| line.parse().ok())
        .unwrap_or(0)
}

fn round(
    d: &Daemon,
    name: &str,
    kills: impl FnOnce() -> Result<()>,
    before_start: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let _ = fs::remove_file(d.folder().join("ack/last"));
    start(d, name)?;
    until("records", Duration::from_secs(20), || acknowledged(d) > 20)?;
    kills()?;
    before_start()?;
    d.forget(name)?;
    let promised = acknowledged(d);
    let log = fs::read_to_string(d.upper(name).join("log"))?;
    let kept = log.lines().take_while(|l| l.starts_with("record ")).count() as u64;
    ensure!(
        kept >= promised && promised > 20,
        "{kept} records kept of {promised} that were synced"
    );
    // And it goes on from there.
    let _ = fs::remove_file(d.folder().join("ack/last"));
    start(d, name)?;
    until("the next life's records", Duration::from_secs(20), || {
        acknowledged(d) > promised
    })?;
    d.forget(name)
}

fn rounds(test: impl Fn(usize) -> Result<()>) -> Result<()> {
    (0..if crate::soak() { 25 } else { 1 }).try_for_each(test)
}

fn of_init(d: &Daemon) -> Result<()> {
    rounds(|_| round(d, "k-init", || kill(d.init_pid("k-init")?), || Ok(())))
}

fn kill_shim(d: &Daemon, name: &str) -> Result<()> {
    let shims = d.shims(Some(name));
    ensure!(shims.len() == 1, "shims of {name}: {shims:?}");
    shims.into_iter().try_for_each(kill)
}

fn of_the_shim(d: &Daemon) -> Result<()> {
    rounds(|_| round(d, "k-shim", || kill_shim(d, "k-shim"), || Ok(())))
}

fn of_containerd(d: &Daemon) -> Result<()> {
    rounds(|_| round(d, "k-daemon", || d.kill(), || d.restart()))
}

fn of_all_three(d: &Daemon) -> Result<()> {
    let all = || {
        let init = d.init_pid("k-all")?;
        d.kill()?;
        kill_shim(d, "k-all")?;
        kill(init)
    };
    rounds(|_| round(d, "k-all", all, || d.restart()))
}

fn a_survivor_is_ended_before_its_successor_starts(d: &Daemon) -> Result<()> {
    let image = d.import("busybox")?;
    let writer = "while :; do echo $$ >> /who; sleep 0.01; done";
    let state = ["--annotation", "diffkeeper.io/state=survivor"];
    for n in 0..if crate::soak() { 100 } else { 2 } {
        let (first, second) = (format!("sv{n}a"), format!("sv{n}b"));
        d.ctr(&[
            "run",
            "-d",
            "--runtime",
            OURS,
            state[0],
            state[1],
            &image,
            &first,
            "sh",
            "-c",
            writer,
        ])?
        .ok()?;
        let init = d.init_pid(&first)?;
        d.kill()?;
        kill_shim(d, &first)?;
        let alive = || fs::read_link(format!("/proc/{init}/exe")).is_ok();
        ensure!(
            alive(),
            "the container did not survive its shim: the test tests nothing"
        );
        d.restart()?;
        // containerd may have called `delete` on its way up; what it left, the successor ends.
        d.ctr(&[
            "run",
            "-d",
            "--runtime",
            OURS,
            state[0],
            state[1],
            &image,
            &second,
            "sleep",
            "100",
        ])?
        .ok()?;
        ensure!(!alive(), "the survivor runs beside its successor");
        let size = || {
            fs::metadata(d.upper("survivor").join("who"))
                .map(|m| m.len())
                .unwrap_or(0)
        };
        let before = size();
        std::thread::sleep(Duration::from_millis(100));
        ensure!(size() == before, "somebody still writes");
        d.forget(&second)?;
        d.forget(&first)?;
    }
    Ok(())
}
