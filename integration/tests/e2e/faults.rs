//! What goes wrong while a container is recorded, and what makes a picture of it hard to take.

use std::{
    fs,
    io::Write,
    os::unix::fs::{FileExt, MetadataExt},
    path::PathBuf,
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use integration::{
    Daemon, OURS,
    history::Keeper,
    standstill::Standstill,
    tree::{Times, listing, same},
    wait::until,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use crate::{Test, once, operations::Disk, soak};

pub const TESTS: &[(&str, Test)] = &[
    ("faults::one_that_waits_for_a_disk", one_that_waits_for_a_disk),
    (
        "faults::cgroups_in_the_container_s_own",
        cgroups_in_the_container_s_own,
    ),
    ("faults::more_is_told_than_is_heard", more_is_told_than_is_heard),
    (
        "faults::directories_that_move_all_the_time",
        directories_that_move_all_the_time,
    ),
    ("faults::many_extents_and_many_names", many_extents_and_many_names),
    (
        "faults::directories_mounted_in_themselves",
        directories_mounted_in_themselves,
    ),
];

const LIMIT: Duration = Duration::from_secs(60);

fn start(d: &Daemon, name: &str, more: &[&str], script: &str) -> Result<()> {
    let image = d.import("busybox")?;
    let line = ["run", "-d", "--runtime", OURS];
    d.ctr(&[&line[..], more, &[&image, name, "sh", "-c", script]].concat())?
        .ok()
        .map(drop)
}

fn said(d: &Daemon, args: &[&str]) -> Result<String> {
    Ok(d.diffkeeper(args)?.ok()?.trim_end().to_owned())
}

fn committed(d: &Daemon, name: &str) -> Result<Value> {
    Ok(serde_json::from_str(&said(
        d,
        &["commit", name, "-m", "now", "--json"],
    )?)?)
}

/// Sooner or later a commit is as good as it can be: a machine that has other things to do may take its time.
fn is_recorded_well(d: &Daemon, name: &str) -> Result<()> {
    until("a commit that is crash-consistent", LIMIT, || {
        committed(d, name).is_ok_and(|commit| commit["consistency"] == "crash")
    })
}

/// Where the node sees a path of a container, through its own mounts.
fn inside(d: &Daemon, name: &str, path: &str) -> Result<PathBuf> {
    Ok(format!("/proc/{}/root{path}", d.init_pid(name)?).into())
}

/// What the last version gives back is what is there.
fn comes_back(d: &Daemon, name: &str, path: &str) -> Result<()> {
    let to = d.folder().join("came-back");
    let _ = fs::remove_dir_all(&to);
    said(d, &["restore", name, "--to", &to.to_string_lossy()])?;
    let live = listing(&d.upper(name).join(path), Times::All)?;
    let compared = same(&live, &listing(&to.join(path), Times::All)?);
    fs::remove_dir_all(&to)?;
    compared
}

/// A process that waits for a disk which does not answer cannot be stopped: the container goes on, the commit says what it
/// is, and the next one is as good as any.
fn one_that_waits_for_a_disk(d: &Daemon) -> Result<()> {
    if !once(d) {
        return Ok(());
    }
    let at = |name: &str| d.folder().join(name);
    // The disk is a file of another one, which takes no writes while it is frozen.
    let below = Disk::mount(at("below.disk"), at("below"), "ext4")?;
    let disk = match &below {
        Ok(below) => Disk::mount(below.at.join("disk"), at("stalls"), "ext4")?,
        Err(reason) => Err(reason.clone()),
    };
    let (below, disk) = match (&below, &disk) {
        (Ok(below), Ok(disk)) => (below, disk),
        (_, Err(reason)) | (Err(reason), _) => {
            println!("no disk that stalls here: {reason}");
            return Ok(());
        }
    };
    let keeper = Keeper::start(d, "interval = \"1h\"")?;
    let mount = format!("type=bind,src={},dst=/disk,options=rbind:rw", disk.at.display());
    let script = "while :; do echo >> /lives; sleep 0.02; done & \
                  while :; do dd if=/dev/zero of=/disk/file bs=4k count=1 conv=fsync; sleep 0.02; done";
    start(d, "stalled", &["--mount", &mount], script)?;
    let lives = d.upper("stalled").join("lives");
    let length = || fs::metadata(&lives).map_or(0, |meta| meta.len());
    until("a first line", LIMIT, || length() > 0)?;
    let freeze = |how: &str| Command::new("fsfreeze").arg(how).arg(&below.at).status();
    ensure!(freeze("--freeze")?.success(), "the disk does not stall");
    let stalled = (|| -> Result<Value> {
        let init = d.init_pid("stalled")?;
        let children = format!("/proc/{init}/task/{init}/children");
        until("a write that waits", LIMIT, || {
            let children = fs::read_to_string(&children).unwrap_or_default();
            children.split_whitespace().any(|pid| {
                fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") D "))
            })
        })?;
        // It is no passing moment.
        std::thread::sleep(Duration::from_millis(300));
        let commit = committed(d, "stalled")?;
        let before = length();
        until("the container goes on", LIMIT, || length() > before + 3)?;
        Ok(commit)
    })();
    ensure!(freeze("--unfreeze")?.success(), "the disk stalls for ever");
    let stalled = stalled?;
    ensure!(stalled["consistency"] == "fuzzy", "{stalled}");
    let doubt = stalled["doubt"].as_str().unwrap_or_default();
    ensure!(
        doubt.starts_with("not stopped: ") && doubt.contains("waits for a disk"),
        "{doubt}"
    );
    is_recorded_well(d, "stalled")?;
    d.forget("stalled")?;
    keeper.stop()
}

/// A container that makes cgroups below its own, as systemd and a Docker in it do.
fn cgroups_in_the_container_s_own(d: &Daemon) -> Result<()> {
    let keeper = Keeper::start(d, "interval = \"1h\"")?;
    let script = "sh -c 'while :; do echo >> /nested; sleep 0.005; done' & echo $! > /pid; \
                  while :; do echo >> /lines; sleep 0.005; done";
    start(d, "nesting", &[], script)?;
    let init = d.init_pid("nesting")?;
    // By its number here: in the container it has another.
    let children = || fs::read_to_string(format!("/proc/{init}/task/{init}/children")).unwrap_or_default();
    let mut nested = 0;
    until("the second process", LIMIT, || {
        let of = children();
        let writes = of.split_whitespace().find(|pid| {
            fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.contains("nested"))
        });
        nested = writes.and_then(|pid| pid.parse().ok()).unwrap_or(0);
        nested > 0
    })?;
    let groups = fs::read_to_string(format!("/proc/{init}/cgroup"))?;
    let line = groups
        .lines()
        .find_map(|line| line.split_once(":freezer:").map(|(_, path)| (path, "freezer")))
        .or_else(|| {
            groups
                .lines()
                .find_map(|line| line.strip_prefix("0::"))
                .map(|path| (path, ""))
        });
    let (path, controller) = line.context("a cgroup with a freezer")?;
    let below = PathBuf::from("/sys/fs/cgroup")
        .join(controller)
        .join(path.trim_start_matches('/'))
        .join("one/two");
    fs::create_dir_all(&below)?;
    fs::write(below.join("cgroup.procs"), nested.to_string())?;
    let sizes = || -> Result<[u64; 2]> {
        let size = |name: &str| fs::metadata(d.upper("nesting").join(name)).map(|meta| meta.len());
        Ok([size("nested")?, size("lines")?])
    };
    until("both write", LIMIT, || {
        sizes().is_ok_and(|sizes| sizes.iter().all(|n| *n > 0))
    })?;
    let standstill = Standstill::of(d, "nesting")?;
    let mut token = None;
    until("it stands still", LIMIT, || {
        token = standstill.freeze(10_000).ok();
        token.is_some()
    })?;
    let token = token.context("what thaws it")?;
    let before = sizes()?;
    std::thread::sleep(Duration::from_millis(200));
    ensure!(sizes()? == before, "one below the container's own goes on");
    ensure!(standstill.thaw(token)?, "it did not stand still");
    until("both go on", LIMIT, || {
        sizes().is_ok_and(|now| now.iter().zip(before).all(|(now, before)| *now > before))
    })?;
    is_recorded_well(d, "nesting")?;
    d.forget("nesting")?;
    keeper.stop()
}

/// A keeper that does not listen for so long that the kernel's queue runs over; and many empty files.
fn more_is_told_than_is_heard(d: &Daemon) -> Result<()> {
    if !once(d) {
        return Ok(());
    }
    // More than fs.fanotify.max_queued_events, which is 16384 unless somebody wants more.
    let many: usize = if soak() { 10_000_000 } else { 30_000 };
    let keeper = Keeper::start(d, "interval = \"1h\"\nwatcher = \"fanotify\"")?;
    start(d, "deaf", &[], "mkdir /d; while :; do sleep 1000; done")?;
    until("a directory", LIMIT, || d.upper("deaf").join("d").is_dir())?;
    committed(d, "deaf")?;
    if committed(d, "deaf")?["watcher"] != "fanotify" {
        println!("fanotify does not serve here: only many files are tested");
    }
    let pid = Pid::from_raw(i32::try_from(keeper.pid())?);
    kill(pid, Signal::SIGSTOP)?;
    let made = (|| -> Result<()> {
        let at = inside(d, "deaf", "/d")?;
        for n in 0..many {
            if n % 1000 == 0 {
                fs::create_dir(at.join((n / 1000).to_string()))?;
            }
            fs::File::create(at.join(format!("{}/{n}", n / 1000)))?;
        }
        Ok(())
    })();
    kill(pid, Signal::SIGCONT)?;
    made?;
    let commit = committed(d, "deaf")?;
    ensure!(commit["watcher"] == "scan", "{commit}");
    ensure!(commit["entries"].as_u64() > Some(many as u64), "{commit}");
    let status = fs::read_to_string(format!("/proc/{}/status", keeper.pid()))?;
    let most = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
    let most: usize = most.context("the keeper's memory")?.parse()?;
    println!("{many} empty files: the keeper took {} MiB at most", most >> 10);
    ensure!(
        most < (192 << 10) + many,
        "more than 1 KiB for each file: {most} KiB"
    );
    comes_back(d, "deaf", "d")?;
    // What is told of from here on is heard.
    fs::write(inside(d, "deaf", "/d/later")?, "later")?;
    committed(d, "deaf")?;
    ensure!(said(d, &["cat", "deaf", "/d/later"])? == "later");
    d.forget("deaf")?;
    keeper.stop()
}

/// A directory of many is under one of two names in each commit, with all that is in it.
fn directories_that_move_all_the_time(d: &Daemon) -> Result<()> {
    if !once(d) {
        return Ok(());
    }
    let keeper = Keeper::start(d, "interval = \"1h\"")?;
    let files = 300;
    let script = format!(
        "mkdir -p /a/x/y /z; for n in $(seq {files}); do echo $n > /a/x/y/$n; done; echo > /ready; \
         while :; do mv /a/x /z/x; mv /z/x /a/x; mv /a /b; mv /b /a; done"
    );
    start(d, "moving", &[], &script)?;
    until("the files", LIMIT, || d.upper("moving").join("ready").exists())?;
    let mut good = 0;
    for _ in 0..if soak() { 200 } else { 10 } {
        let commit = committed(d, "moving")?;
        good += usize::from(commit["consistency"] == "crash");
        let version = format!("moving@{}", commit["id"].as_str().context("an id")?);
        let listed = said(d, &["ls", &version, "--recursive"])?;
        let found = listed.lines().filter(|line| line.contains("/x/y/")).count();
        ensure!(
            found == files || commit["consistency"] != "crash",
            "{found} of {files}: {commit}"
        );
    }
    ensure!(good > 0, "no commit is good");
    d.forget("moving")?;
    keeper.stop()
}

fn many_extents_and_many_names(d: &Daemon) -> Result<()> {
    if !once(d) {
        return Ok(());
    }
    let keeper = Keeper::start(d, "interval = \"1h\"")?;
    start(d, "many", &[], "mkdir -p /d/b /d/m; while :; do sleep 1000; done")?;
    until("directories", LIMIT, || d.upper("many").join("d/m").is_dir())?;
    let (extents, names) = if soak() {
        (1_000_000, 60_000)
    } else {
        (10_000, 5000)
    };
    let file = fs::File::create(inside(d, "many", "/d/extents")?)?;
    for n in 0..extents {
        file.write_all_at(&[1], n * 8192)?;
    }
    file.sync_all()?;
    drop(file);
    let at = inside(d, "many", "/d")?;
    fs::File::create(at.join("b/0"))?.write_all(b"one")?;
    for n in 1..names {
        fs::hard_link(at.join("b/0"), at.join(format!("{}/{n}", ["b", "m"][n % 2])))?;
    }
    committed(d, "many")?;
    comes_back(d, "many", "d")?;
    let upper = d.upper("many").join("d/extents");
    ensure!(fs::metadata(&upper)?.blocks() * 512 < extents * 8192);
    // One byte of it, and the directory of the name that comes first.
    let file = fs::File::options().write(true).open(at.join("extents"))?;
    file.write_all_at(&[2], extents / 2 * 8192)?;
    drop(file);
    fs::rename(at.join("b"), at.join("z"))?;
    is_recorded_well(d, "many")?;
    comes_back(d, "many", "d")?;
    d.forget("many")?;
    keeper.stop()
}

/// The container's own mounts are none of its tree.
fn directories_mounted_in_themselves(d: &Daemon) -> Result<()> {
    let keeper = Keeper::start(d, "interval = \"1h\"")?;
    let script = "mkdir -p /a/b/c /x/y && mount --bind /a /a/b/c && mount --rbind / /x/y && mount --rbind /a /a/b && \
                  echo in > /x/y/a/b/file && echo > /ready; while :; do sleep 1000; done";
    start(d, "mounting", &["--privileged"], script)?;
    until("the mounts", LIMIT, || d.upper("mounting").join("ready").exists())?;
    is_recorded_well(d, "mounting")?;
    comes_back(d, "mounting", "a")?;
    comes_back(d, "mounting", "x")?;
    d.forget("mounting")?;
    keeper.stop()
}
