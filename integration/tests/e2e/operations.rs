//! Operations of every kind in a container, in no order, while it is recorded: what each commit gives back is what was
//! there, entry by entry and byte by byte.
//!
//! A commit that was made while the container ran is compared with what the same operations make of an empty directory
//! on the node, up to the one that the commit's own count names; one that was made while its owner had it paused, with
//! the live tree itself, times included.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use integration::{
    Daemon, OURS,
    daemon::run,
    history::Keeper,
    operations::{Operations, SMALLEST, WORD, Which},
    tree::{Times, listing, same},
    wait::until,
};
use serde_json::Value;

use crate::{Test, once, soak, watchers};

pub const TESTS: &[(&str, Test)] = &[
    ("operations::scanned_on_ext4", |d| recorded(d, &SCAN, "ext4")),
    ("operations::scanned_on_xfs", |d| recorded(d, &SCAN, "xfs")),
    ("operations::scanned_on_btrfs", |d| recorded(d, &SCAN, "btrfs")),
    ("operations::told_of_on_ext4", |d| recorded(d, &FANOTIFY, "ext4")),
    ("operations::told_of_on_xfs", |d| recorded(d, &FANOTIFY, "xfs")),
    ("operations::told_of_by_ebpf_on_ext4", |d| {
        recorded(d, &EBPF, "ext4")
    }),
    ("operations::told_of_by_ebpf_on_xfs", |d| {
        recorded(d, &EBPF, "xfs")
    }),
    ("operations::large_files_on_ext4", |d| recorded(d, &LARGE, "ext4")),
    ("operations::large_files_on_xfs", |d| recorded(d, &LARGE, "xfs")),
];

/// What is done, and who is to tell of it.
struct Told {
    /// As it is configured.
    watcher: &'static str,
    /// As a commit says who served it.
    served: &'static str,
    which: Which,
}

const SCAN: Told = Told {
    watcher: "scan",
    served: "scan",
    which: Which::All,
};
const FANOTIFY: Told = Told {
    watcher: "fanotify",
    served: "fanotify",
    which: Which::Told,
};
const EBPF: Told = Told {
    watcher: "auto",
    served: "ebpf",
    which: Which::All,
};
const LARGE: Told = Told {
    which: Which::Large,
    ..EBPF
};

const STATE: &str = "operated";
const SEED: u64 = 0x5eed;
/// Directories in each of which operations come one after the other.
const DIRECTORIES: u64 = 2;

/// A file system in a file, mounted.
pub struct Disk {
    image: PathBuf,
    /// Where.
    pub at: PathBuf,
}

impl Disk {
    /// An inner error is the reason why this machine cannot have it.
    pub fn mount(image: PathBuf, at: PathBuf, kind: &str) -> Result<Result<Disk, String>> {
        // It takes what is written to it.
        fs::File::create(&image)?.set_len(4 << 30)?;
        let made = Command::new(format!("mkfs.{kind}"))
            .arg("-q")
            .arg(&image)
            .output();
        if made.is_err() {
            return Ok(Err(format!("there is no mkfs.{kind}")));
        }
        fs::create_dir_all(&at)?;
        let mounted = run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&at))?;
        match mounted.status {
            0 => Ok(Ok(Disk { image, at })),
            _ => Ok(Err(mounted.err)),
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Nothing can be done about it here, and umount says what is wrong.
        let _ = Command::new("umount").arg("-l").arg(&self.at).status();
        let _ = fs::remove_file(&self.image);
    }
}

/// This program and all that it needs to run, in a directory: the container has another system's libraries, or none.
fn program(into: &Path) -> Result<Vec<String>> {
    fs::create_dir_all(into)?;
    let mut loader = None;
    let maps = fs::read_to_string("/proc/self/maps")?;
    for path in maps
        .lines()
        .filter_map(|line| line.split_once('/'))
        .map(|(_, path)| format!("/{path}"))
    {
        let name = path.rsplit('/').next().unwrap_or_default().to_owned();
        if name.contains(".so") && !into.join(&name).exists() {
            fs::copy(&path, into.join(&name))?;
        }
        if name.starts_with("ld-linux") {
            loader = Some(name);
        }
    }
    fs::copy(std::env::current_exe()?, into.join("program"))?;
    let loader = loader.context("this program has no loader")?;
    let words = [
        &format!("/program/{loader}"),
        "--library-path",
        "/program",
        "/program/program",
        WORD,
    ];
    Ok(words.map(str::to_owned).to_vec())
}

fn recorded(d: &Daemon, told: &Told, kind: &str) -> Result<()> {
    if !once(d) {
        return Ok(());
    }
    // Where the live trees and the store are.
    let disk = match Disk::mount(
        d.folder().join("operated.disk"),
        d.folder().join("diffkeeper"),
        kind,
    )? {
        Ok(disk) => disk,
        Err(reason) => {
            println!("no {kind} here: {reason}");
            return Ok(());
        }
    };
    let keeper = Keeper::start(d, &format!("interval = \"150ms\"\nwatcher = {:?}", told.watcher))?;
    if !watchers::serves(d, told.served)? {
        return Ok(());
    }
    let done = operated(d, &disk.at, told);
    let gone = d.forget(STATE);
    keeper.stop()?;
    done.and(gone)
}

fn operated(d: &Daemon, disk: &Path, told: &Told) -> Result<()> {
    let image = d.import("busybox")?;
    let at = d.folder().join("program");
    let program = program(&at)?;
    let mount = format!("type=bind,src={},dst=/program,options=rbind:ro", at.display());
    let seed = SEED.to_string();
    let mut line = vec!["run", "-d", "--runtime", OURS, "--mount", &mount, &image, STATE];
    line.extend(program.iter().map(String::as_str));
    line.extend(["/w", &seed, told.which.word()]);
    d.ctr(&line)?.ok()?;
    let commits = || -> Result<Vec<Value>> {
        let said = d.diffkeeper(&["log", STATE, "-n", "100000", "--json"])?.ok()?;
        Ok(serde_json::from_str(&said)?)
    };
    until("a first commit", Duration::from_secs(60), || {
        commits().is_ok_and(|commits| commits.len() > 2)
    })?;
    let since = Instant::now();
    let long = if soak() {
        Duration::from_secs(600)
    } else {
        Duration::from_secs(4)
    };
    let times = match told.which {
        Which::Told => Times::Files,
        Which::All | Which::Large => Times::All,
    };
    let mut rounds = 0;
    while since.elapsed() < long {
        std::thread::sleep(Duration::from_millis(1500));
        paused(d, disk, times).with_context(|| format!("pause {rounds}"))?;
        rounds += 1;
    }
    d.forget(STATE)?;
    let commits = commits()?;
    let fuzzy = commits
        .iter()
        .filter(|commit| commit["consistency"] == "fuzzy")
        .count();
    let served = commits
        .iter()
        .filter(|commit| commit["watcher"] == told.served)
        .count();
    // Each directory's file is at least so long once all of them have been written.
    let read = |commit: &&Value| commit["bytes_read"].as_u64().unwrap_or(u64::MAX);
    let written = commits.iter().rev().skip_while(|c| read(c) < 4 * SMALLEST);
    let part = |c: &&Value| {
        c["watcher"] == "ebpf" && c["changed"] == 2 * DIRECTORIES && read(c) < DIRECTORIES * SMALLEST
    };
    let parts = written.filter(part).count();
    let mut models = Vec::new();
    for n in 0..DIRECTORIES {
        models.push(Operations::new(
            &disk.join(format!("model/{n}")),
            SEED + n,
            told.which,
        )?);
    }
    // Newest first.
    let good: Vec<&Value> = commits
        .iter()
        .rev()
        .filter(|c| c["consistency"] != "fuzzy")
        .collect();
    let step = if soak() { 1 } else { good.len().div_ceil(12) };
    let mut compared = 0;
    for commit in good.iter().step_by(step.max(1)) {
        compared += 1;
        replayed(d, disk, commit, &mut models).with_context(|| commit.to_string())?;
    }
    println!(
        "{} operations, {} commits, {served} by {}, {fuzzy} fuzzy; {compared} replayed, {rounds} while paused",
        models.iter().map(Operations::done).sum::<u64>(),
        commits.len(),
        told.served,
    );
    ensure!(served > 0, "{} served no commit", told.served);
    if told.which == Which::Large {
        println!("{parts} commits have read less than the files that were written");
        // On a slow machine none of few commits may have fallen into a time in which few pages were written.
        ensure!(
            parts > 0 || commits.len() < 20,
            "all files were always compared whole"
        );
    }
    ensure!(compared > 3, "too few commits are good: {compared}");
    fs::remove_dir_all(disk.join("model"))?;
    Ok(())
}

/// A version in a directory of its own while something is asked of it.
fn materialised<T>(
    d: &Daemon,
    disk: &Path,
    version: &str,
    ask: impl FnOnce(&Path) -> Result<T>,
) -> Result<T> {
    let to = disk.join("materialised");
    let _ = fs::remove_dir_all(&to);
    d.diffkeeper(&["restore", version, "--to", &to.to_string_lossy()])?
        .ok()?;
    ask(&to)
}

/// The owner has it paused: its live tree is what a commit must hold.
fn paused(d: &Daemon, disk: &Path, times: Times) -> Result<()> {
    d.ctr(&["task", "pause", STATE])?.ok()?;
    let compared = (|| {
        d.diffkeeper(&["commit", STATE, "-m", "paused"])?.ok()?;
        let live = listing(&d.upper(STATE).join("w"), times)?;
        materialised(d, disk, STATE, |to| same(&live, &listing(&to.join("w"), times)?))
    })();
    d.ctr(&["task", "resume", STATE])?.ok()?;
    compared
}

/// What a commit holds was there after as many operations as it says itself, or all but the last.
fn replayed(d: &Daemon, disk: &Path, commit: &Value, models: &mut [Operations]) -> Result<()> {
    let version = format!("{STATE}@{}", commit["id"].as_str().context("an id")?);
    materialised(d, disk, &version, |to| {
        for (n, model) in models.iter_mut().enumerate() {
            let Ok(number) = fs::read_to_string(to.join(format!("w/{n}.number"))) else {
                // From before it was there.
                continue;
            };
            let number: u64 = number.parse().with_context(|| format!("the number {number:?}"))?;
            while model.done() + 1 < number {
                model.next();
            }
            let here = disk.join(format!("model/{n}"));
            let found = listing(&to.join(format!("w/{n}")), Times::None)?;
            if same(&listing(&here, Times::None)?, &found).is_err() {
                if model.done() < number {
                    model.next();
                }
                same(&listing(&here, Times::None)?, &found)
                    .with_context(|| format!("directory {n} after {number} operations"))?;
            }
        }
        Ok(())
    })
}
