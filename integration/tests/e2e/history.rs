//! What was, and going back to it.

use std::{fs, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use integration::{Daemon, OURS, daemon::kill, history::Keeper, wait::until};
use serde_json::Value;

use crate::{Test, soak};

pub const TESTS: &[(&str, Test)] = &[
    ("history::versions_come_back", versions_come_back),
    ("history::a_database_travels", a_database_travels),
    (
        "history::any_commit_of_a_database_starts",
        any_commit_of_a_database_starts,
    ),
    (
        "history::nobody_meets_a_frozen_container",
        nobody_meets_a_frozen_container,
    ),
    (
        "history::a_keeper_that_dies_harms_nobody",
        a_keeper_that_dies_harms_nobody,
    ),
    (
        "history::a_keeper_is_there_when_one_is_needed",
        a_keeper_is_there_when_one_is_needed,
    ),
    ("history::a_full_disk_and_room_again", a_full_disk_and_room_again),
    ("history::made_on_another_image", made_on_another_image),
    (
        "history::a_thinned_history_has_a_timeline",
        a_thinned_history_has_a_timeline,
    ),
    ("history::begun_from_another", begun_from_another),
    ("history::asked_for_by_annotation", asked_for_by_annotation),
    (
        "history::everything_a_file_system_can_hold",
        everything_a_file_system_can_hold,
    ),
];

fn run(d: &Daemon, image: &str, name: &str, more: &[&str], script: &str) -> Result<String> {
    let mut line = vec!["run", "--rm", "--runtime", OURS];
    line.extend_from_slice(more);
    line.extend_from_slice(&[image, name, "sh", "-c", script]);
    Ok(d.ctr(&line)?.ok()?.trim_end().to_owned())
}

fn start(d: &Daemon, image: &str, name: &str, more: &[&str], script: &str) -> Result<()> {
    let mut line = vec!["run", "-d", "--runtime", OURS];
    line.extend_from_slice(more);
    line.push(image);
    line.push(name);
    if !script.is_empty() {
        line.extend_from_slice(&["sh", "-c", script]);
    }
    d.ctr(&line)?.ok().map(drop)
}

fn said(d: &Daemon, args: &[&str]) -> Result<String> {
    Ok(d.diffkeeper(args)?.ok()?.trim_end().to_owned())
}

fn json(d: &Daemon, args: &[&str]) -> Result<Value> {
    let mut line = args.to_vec();
    line.push("--json");
    Ok(serde_json::from_str(&said(d, &line)?)?)
}

/// A state's commits, newest first.
fn log(d: &Daemon, state: &str) -> Result<Vec<Value>> {
    match json(d, &["log", state, "-n", "10000"])? {
        Value::Array(commits) => Ok(commits),
        other => bail!("{other}"),
    }
}

fn refused(d: &Daemon, args: &[&str], why: &str) -> Result<()> {
    let ran = d.diffkeeper(args)?;
    ensure!(
        ran.status != 0 && ran.err.contains(why),
        "{args:?}: {ran:?}, expected {why:?}"
    );
    Ok(())
}

fn versions_come_back(d: &Daemon) -> Result<()> {
    let image = d.import("busybox")?;
    let keeper = Keeper::start(d, "interval = \"200ms\"")?;
    start(
        d,
        &image,
        "trip",
        &[],
        "echo one > /data; mkdir -p /etc/app; echo a > /etc/app/conf; rm /etc/passwd; sleep 1000",
    )?;
    until("a first commit", Duration::from_secs(10), || {
        said(d, &["cat", "trip", "/etc/app/conf"]).is_ok_and(|text| text == "a")
    })?;
    let first = json(d, &["commit", "trip", "-m", "by hand", "--tag", "good"])?;
    ensure!(
        first["reason"] == "manual" && first["consistency"] == "crash",
        "{first}"
    );
    d.ctr(&[
        "task",
        "exec",
        "--exec-id",
        "e1",
        "trip",
        "sh",
        "-c",
        "echo two > /data; rm -r /etc/app; echo new > /later",
    ])?
    .ok()?;
    until("the change is recorded", Duration::from_secs(10), || {
        said(d, &["cat", "trip", "/later"]).is_ok_and(|text| text == "new")
    })?;
    // The texts of people and of scripts.
    let diff = said(d, &["diff", "trip@good", "trip"])?;
    for line in [
        "A  4 B   /later",
        "M  4 B   /data",
        "D        /etc/app",
        "D  2 B   /etc/app/conf",
    ] {
        ensure!(diff.contains(line), "{line:?} is not in\n{diff}");
    }
    let patch = said(d, &["diff", "trip@good", "trip", "--patch"])?;
    ensure!(patch.contains("-one\n+two"), "{patch}");
    let timeline = said(d, &["timeline", "trip", "--path", "/data"])?;
    ensure!(
        timeline.lines().count() >= 2 && timeline.contains("/data") && !timeline.contains("/later"),
        "{timeline}"
    );
    ensure!(said(d, &["cat", "trip@good", "/data"])? == "one");
    ensure!(said(d, &["ls", "trip@good", "/etc"])?.contains("/etc/passwd (gone: the image has it)"));
    refused(d, &["cat", "trip@nowhere", "/data"], "nowhere")?;
    refused(d, &["cat", "trip", "/bin/sh"], "image")?;
    refused(d, &["log", "nobody"], "nobody")?;
    refused(d, &["restore", "trip@good", "--path", "/data"], "in use")?;

    // In use: it waits for the next start.
    ensure!(said(d, &["restore", "trip@good"])?.contains("next start"));
    d.forget("trip")?;
    let script = "cat /data /etc/app/conf; ls /later /etc/passwd 2>&1 | grep -c 'No such'";
    ensure!(run(d, &image, "trip", &[], script)? == "one\na\n2");
    // A restore is taken back, and that is taken back too.
    said(d, &["undo", "trip"])?;
    ensure!(run(d, &image, "trip", &[], "cat /data /later")? == "two\nnew");
    said(d, &["undo", "trip"])?;
    ensure!(run(d, &image, "trip", &[], "cat /data; ls /later 2>/dev/null || true")? == "one");
    // One file.
    said(d, &["undo", "trip"])?;
    said(d, &["restore", "trip@good", "--path", "/etc/app"])?;
    ensure!(run(d, &image, "trip", &[], "cat /data /etc/app/conf /later")? == "two\na\nnew");
    // Somewhere else, at any time.
    let to = d.folder().join("export");
    said(d, &["export", "trip@good", &to.to_string_lossy()])?;
    ensure!(fs::read_to_string(to.join("etc/app/conf"))? == "a\n" && !to.join("etc/passwd").exists());
    refused(d, &["export", "trip@good", &to.to_string_lossy()], "not empty")?;
    // A second container of it.
    said(d, &["fork", "trip@good", "trip-2"])?;
    refused(d, &["fork", "trip@good", "trip-2"], "already")?;
    ensure!(run(d, &image, "trip-2", &[], "cat /data; echo mine > /data")? == "one");
    ensure!(run(d, &image, "trip", &[], "cat /data")? == "two");
    ensure!(said(d, &["cat", "trip@good", "/data"])? == "one");

    // It proves itself, with and without a keeper that runs.
    keeper.stop()?;
    ensure!(said(d, &["audit", "trip"])?.contains("each is what the next one calls it"));
    ensure!(said(d, &["verify", "--read-data"])?.contains("all is well"));
    let proof = d.diffkeeper(&["prove", "trip@good", "/data"])?;
    ensure!(proof.status == 0, "{proof:?}");
    let commits = log(d, "trip")?;
    ensure!(
        commits.iter().filter(|c| c["reason"] == "restore").count() == 5,
        "{commits:?}"
    );
    for pair in commits.windows(2) {
        ensure!(pair[0]["previous"] == pair[1]["id"], "{pair:?}");
        ensure!(
            pair[0]["time_ns"].as_i64() >= pair[1]["time_ns"].as_i64(),
            "{pair:?}"
        );
    }
    said(d, &["gc", "--dry-run"])?;
    // What is forgotten is gone; what it shares stays.
    refused(d, &["rm", "trip", "--history"], "--yes")?;
    said(d, &["rm", "trip", "--yes", "--erase"])?;
    refused(d, &["log", "trip"], "no state")?;
    ensure!(said(d, &["verify", "--read-data"])?.contains("all is well"));
    ensure!(said(d, &["cat", "trip-2", "/etc/app/conf"])? == "a");
    Ok(())
}

fn sql(d: &Daemon, name: &str, exec: &str, text: &str) -> Result<String> {
    let ran = d.ctr(&[
        "task",
        "exec",
        "--exec-id",
        exec,
        name,
        "psql",
        "-h",
        "/run/postgresql",
        "-U",
        "postgres",
        "-v",
        "ON_ERROR_STOP=1",
        "-qAtc",
        text,
    ])?;
    Ok(ran.ok()?.trim_end().to_owned())
}

fn answers(d: &Daemon, name: &str) -> Result<()> {
    let mut n = 0;
    until("PostgreSQL", Duration::from_secs(60), || {
        n += 1;
        sql(d, name, &format!("up{n}"), "select 1").is_ok_and(|one| one == "1")
    })
}

/// The demo of it: a table is dropped by mistake, and the second before comes back.
fn a_database_travels(d: &Daemon) -> Result<()> {
    let image = d.import("postgresql")?;
    let _keeper = Keeper::start(d, "interval = \"300ms\"")?;
    start(d, &image, "travels", &[], "")?;
    answers(d, "travels")?;
    sql(
        d,
        "travels",
        "x1",
        "create table t (id int primary key); insert into t select generate_series(1, 1000)",
    )?;
    // Every page of it is recorded when the checkpoint's pages are, at the latest.
    let before = json(d, &["commit", "travels", "-m", "before the mistake"])?;
    ensure!(before["consistency"] == "crash", "{before}");
    sql(d, "travels", "x2", "drop table t")?;
    ensure!(sql(d, "travels", "x3", "select count(*) from t").is_err());
    let version = format!("travels@{}", before["id"].as_str().context("an id")?);
    said(d, &["restore", &version])?;
    d.forget("travels")?;
    start(d, &image, "travels", &[], "")?;
    answers(d, "travels")?;
    ensure!(sql(d, "travels", "x4", "select count(*), sum(id) from t")? == "1000|500500");
    d.forget("travels")
}

/// Commits that were made while the database wrote: each of them is one that it starts from, and whole.
fn any_commit_of_a_database_starts(d: &Daemon) -> Result<()> {
    let image = d.import("postgresql")?;
    let _keeper = Keeper::start(d, "interval = \"300ms\"")?;
    start(d, &image, "bench", &[], "")?;
    answers(d, "bench")?;
    d.ctr(&[
        "task",
        "exec",
        "--exec-id",
        "init",
        "bench",
        "sh",
        "-c",
        "pgbench -h /run/postgresql -U postgres -i -q -s 1 postgres 2>&1",
    ])?
    .ok()?;
    sql(d, "bench", "ext", "create extension amcheck")?;
    let from = log(d, "bench")?.len();
    let enough = if soak() { 60 } else { 6 };
    let mut rounds = 0;
    // As long as it takes on this machine.
    let commits = loop {
        rounds += 1;
        d.ctr(&[
            "task",
            "exec",
            "--exec-id",
            &format!("load{rounds}"),
            "bench",
            "pgbench",
            // Its vacuum would empty the history of the rounds before.
            "-n",
            "-h",
            "/run/postgresql",
            "-U",
            "postgres",
            "-c",
            "4",
            "-T",
            "5",
            "postgres",
        ])?
        .ok()?;
        let commits = log(d, "bench")?;
        if commits.len() >= from + enough {
            break commits;
        }
        ensure!(
            rounds < 60,
            "only {} commits in {rounds} times 5 seconds",
            commits.len() - from
        );
    };
    let made = commits.len() - from;
    let fuzzy = commits.iter().filter(|c| c["consistency"] == "fuzzy").count();
    ensure!(fuzzy * 4 <= made, "{fuzzy} of {made} commits are fuzzy");
    d.forget("bench")?;
    let candidates: Vec<&Value> = commits[..made]
        .iter()
        .filter(|c| c["consistency"] == "crash")
        .collect();
    let wanted = if soak() { 20 } else { 3 };
    for n in 0..wanted {
        let chosen = candidates[(n * 7 + 1) * candidates.len() / (wanted * 7 + 2)];
        let version = format!("bench@{}", chosen["id"].as_str().context("an id")?);
        let name = format!("bench-{n}");
        said(d, &["fork", &version, &name])?;
        start(d, &image, &name, &[], "")?;
        answers(d, &name)?;
        let check = "select count(*) from (select bt_index_check(c.oid, true) from pg_class c join pg_am a on a.oid = c.relam where a.amname = 'btree' and c.relpersistence <> 't') x";
        sql(d, &name, "check", check).with_context(|| format!("{version}, {chosen}"))?;
        let sums = "select (select sum(abalance) from pgbench_accounts) = (select sum(bbalance) from pgbench_branches) and (select sum(abalance) from pgbench_accounts) = coalesce((select sum(delta) from pgbench_history), 0)";
        let whole = sql(d, &name, "sums", sums)?;
        ensure!(whole == "t", "{version}: the accounts do not add up: {whole}");
        d.forget(&name)?;
    }
    Ok(())
}

/// `runc exec` fails on a frozen container: a health check must never meet one.
fn nobody_meets_a_frozen_container(d: &Daemon) -> Result<()> {
    let image = d.import("busybox")?;
    let _keeper = Keeper::start(d, "interval = \"50ms\"")?;
    start(
        d,
        &image,
        "healthy",
        &[],
        "n=0; while :; do n=$((n+1)); echo $n > /n; done",
    )?;
    let before = log(d, "healthy").map_or(0, |commits| commits.len());
    for n in 0..if soak() { 1000 } else { 40 } {
        let ran = d.ctr(&["task", "exec", "--exec-id", &format!("h{n}"), "healthy", "true"])?;
        ensure!(ran.status == 0, "exec {n}: {ran:?}");
        let status = d.status("healthy")?;
        ensure!(status == "RUNNING", "State said {status}");
    }
    let commits = log(d, "healthy")?;
    ensure!(
        commits.len() >= before + 5,
        "only {} commits meanwhile",
        commits.len() - before
    );
    let pauses: Vec<u64> = commits
        .iter()
        .filter_map(|c| c["pause_ns"].as_u64())
        .filter(|n| *n > 0)
        .collect();
    ensure!(!pauses.is_empty(), "it never stood still: {commits:?}");
    d.ctr(&["task", "kill", "-s", "9", "healthy"])?.ok()?;
    d.forget("healthy")
}

/// A keeper is killed and stopped at any moment; containers go on, nothing stays frozen, and the next one goes on with
/// the history.
fn a_keeper_that_dies_harms_nobody(d: &Daemon) -> Result<()> {
    let image = d.import("busybox")?;
    let first = Keeper::start(d, "interval = \"50ms\"")?;
    start(
        d,
        &image,
        "goes-on",
        &[],
        "n=0; while :; do n=$((n+1)); echo $n > /n.new; mv /n.new /n; sleep 0.01; done",
    )?;
    let upper = d.upper("goes-on").join("n");
    let count = || {
        fs::read_to_string(&upper)
            .ok()
            .and_then(|text| text.trim().parse::<u64>().ok())
            .unwrap_or(0)
    };
    until("a commit", Duration::from_secs(10), || {
        log(d, "goes-on").is_ok_and(|log| !log.is_empty())
    })?;
    // A second one is refused, and the first is untouched.
    let second = d
        .command(
            "timeout",
            &[
                "20",
                &fs::canonicalize(d.folder().join("bin/containerd-shim-diffkeeper-v1"))?
                    .with_file_name("diffkeeper")
                    .to_string_lossy(),
                "keeper",
            ],
        )
        .output()?;
    let told = String::from_utf8_lossy(&second.stderr).into_owned();
    ensure!(!second.status.success() && told.contains("in use"), "{told}");
    let mut keeper = first;
    for round in 0..if soak() { 50 } else { 5 } {
        std::thread::sleep(Duration::from_millis(37 * (round % 7) + 20));
        keeper.kill()?;
        let now = count();
        until("the container goes on", Duration::from_secs(3), || {
            count() > now + 3
        })?;
        keeper = Keeper::again(d)?;
        let known = log(d, "goes-on")?.len();
        // The container that runs already is found.
        until("history goes on", Duration::from_secs(10), || {
            log(d, "goes-on").is_ok_and(|log| log.len() > known)
        })?;
    }
    ensure!(said(d, &["verify", "--read-data"])?.contains("all is well"));
    keeper.stop()?;
    // Without a keeper containers start and stop; one that is to be restored first does not start with something else.
    d.forget("goes-on")?;
    ensure!(!run(d, &image, "goes-on", &[], "cat /n")?.is_empty());
    said(d, &["fork", "goes-on", "waits"])?;
    let ran = d.ctr(&["run", "--rm", "--runtime", OURS, &image, "waits", "true"])?;
    ensure!(
        ran.status != 0 && ran.err.contains("diffkeeper keeper") && ran.err.contains("--cancel"),
        "{ran:?}"
    );
    said(d, &["restore", "--cancel", "waits"])?;
    run(d, &image, "waits", &[], "true")?;
    Ok(())
}

/// The process behind the keeper's socket.
fn keeper_of(d: &Daemon) -> Option<i32> {
    let socket = std::os::unix::net::UnixStream::connect(d.folder().join("keeper.sock")).ok()?;
    let peer = nix::sys::socket::getsockopt(&socket, nix::sys::socket::sockopt::PeerCredentials).ok()?;
    Some(peer.pid())
}

/// Nobody starts one by hand: the first container that is to be recorded does, and so does one that finds it dead.
fn a_keeper_is_there_when_one_is_needed(d: &Daemon) -> Result<()> {
    let image = d.import("busybox")?;
    let kept = fs::read_to_string(d.config())?;
    Keeper::configure(&d.folder(), "interval = \"200ms\"")?;
    let config = fs::read_to_string(d.config())?;
    ensure!(config.contains("start-keeper = false"), "{config}");
    fs::write(
        d.config(),
        config.replace("start-keeper = false", "start-keeper = true"),
    )?;
    let done = started_by_shims(d, &image);
    // None is left, whatever happened.
    let stopped = keeper_of(d).map(|_| d.diffkeeper(&["keeper", "--stop"]));
    fs::write(d.config(), kept)?;
    done?;
    stopped.context("the keeper has gone by itself")??.ok()?;
    ensure!(keeper_of(d).is_none(), "it still answers");
    Ok(())
}

fn started_by_shims(d: &Daemon, image: &str) -> Result<()> {
    // A container that is not to be recorded needs none.
    let off = ["--annotation", "diffkeeper.io/capture=off"];
    run(d, image, "aside", &off, "echo x > /x")?;
    ensure!(keeper_of(d).is_none(), "a keeper for nothing");

    // Two at once start one.
    let begin = |name: &str| start(d, image, name, &[], "echo one > /data; sleep 1000");
    let begun = std::thread::scope(|scope| {
        let other = scope.spawn(|| begin("here"));
        (begin("there"), other.join())
    });
    begun.0?;
    begun.1.map_err(|_| anyhow::anyhow!("a thread"))??;
    for name in ["here", "there"] {
        until("a first commit", Duration::from_secs(20), || {
            said(d, &["cat", name, "/data"]).is_ok_and(|text| text == "one")
        })?;
    }
    let first = keeper_of(d).context("no keeper")?;

    // It has nothing of the shim that started it.
    let own = |what: &str| -> Result<String> { Ok(fs::read_to_string(format!("/proc/{first}/{what}"))?) };
    let stat = own("stat")?;
    let session = stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(3));
    ensure!(session == Some(first.to_string().as_str()), "{stat}");
    for line in own("cgroup")?.lines() {
        let group = line.rsplit(':').next().unwrap_or_default();
        ensure!(group == "/" || group.ends_with("/diffkeeper-keeper"), "{line}");
    }
    ensure!(!own("environ")?.contains("CONTAINERD"), "{}", own("environ")?);
    for fd in fs::read_dir(format!("/proc/{first}/fd"))? {
        let to = fs::read_link(fd?.path()).unwrap_or_default();
        let shims = to.to_string_lossy().contains("/io.containerd.");
        ensure!(!shims, "the keeper holds {}", to.display());
    }

    // Its end is noticed by the next container that starts or ends; who starts it outlives nobody.
    kill(first)?;
    until("its end", Duration::from_secs(10), || keeper_of(d).is_none())?;
    d.ctr(&["task", "kill", "-s", "KILL", "here"])?.ok()?;
    until("another keeper", Duration::from_secs(20), || {
        keeper_of(d).is_some()
    })?;
    ensure!(keeper_of(d) != Some(first));
    until(
        "the other container's next commit",
        Duration::from_secs(20),
        || {
            d.ctr(&[
                "task",
                "exec",
                "--exec-id",
                "e",
                "there",
                "sh",
                "-c",
                "echo two > /data",
            ])
            .is_ok()
                && said(d, &["cat", "there", "/data"]).is_ok_and(|text| text == "two")
        },
    )?;
    for name in ["here", "there"] {
        d.ctr(&["task", "rm", "-f", name])?.ok()?;
        d.ctr(&["container", "rm", name])?.ok()?;
    }
    until("the shims' end", Duration::from_secs(10), || {
        d.shims(None).is_empty()
    })?;
    ensure!(
        keeper_of(d).is_some(),
        "it has gone with the shim that started it"
    );

    // A restore that waits for the next start has one started too, before the container.
    d.diffkeeper(&["keeper", "--stop"])?.ok()?;
    said(d, &["restore", "there@~1"])?;
    let tag = json(d, &["log", "there"])?;
    let id = tag[1]["id"].as_str().context("no commit")?.to_owned();
    let asked = format!("diffkeeper.io/restore={id}");
    let text = run(d, image, "there", &["--annotation", &asked], "cat /data")?;
    ensure!(text == "one" || text == "two", "{text}");
    ensure!(keeper_of(d).is_some(), "restored by nobody");
    Ok(())
}

/// The store's disk is full: containers go on, nothing that was recorded is lost, and with room again history goes on by
/// itself.
fn a_full_disk_and_room_again(d: &Daemon) -> Result<()> {
    let image = d.import("busybox")?;
    let disk = d.folder().join("store-disk");
    fs::create_dir_all(&disk)?;
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=200m", "none"])
        .arg(&disk)
        .status()?;
    ensure!(mounted.success(), "no tmpfs");
    let done = with_little_room(d, &image, &disk);
    let _ = std::process::Command::new("umount").arg("-l").arg(&disk).status();
    done
}

fn with_little_room(d: &Daemon, image: &str, disk: &std::path::Path) -> Result<()> {
    let store = disk.join("store");
    let keeper = Keeper::start(d, &format!("interval = \"200ms\"\nstore = {store:?}"))?;
    // Little at a time: then it is now a pack that finds no room, and now the catalog's journal.
    let script = "i=0; while :; do echo $i > /count; i=$((i+1)); sleep 0.1; done";
    start(d, image, "writer", &[], script)?;
    let commits = || log(d, "writer").map_or(0, |commits| commits.len());
    until("some commits", Duration::from_secs(20), || commits() >= 3)?;
    let filler = disk.join("filler");
    let fill = || -> Result<()> {
        let free = nix::sys::statvfs::statvfs(disk)?;
        let free = free.blocks_available() * free.fragment_size();
        let mut file = fs::File::options().create(true).append(true).open(&filler)?;
        // As much as there is.
        let _ = std::io::copy(&mut std::io::Read::take(std::io::repeat(1), free), &mut file);
        Ok(())
    };
    fill()?;
    let failures = || {
        fill().is_ok()
            && fs::read_to_string(d.folder().join("keeper.log"))
                .is_ok_and(|text| text.matches("could not be recorded").count() >= 3)
    };
    until("a full disk", Duration::from_secs(60), failures)?;
    let there = commits();
    // The container has not noticed.
    let count = || fs::read_to_string(d.upper("writer").join("count")).unwrap_or_default();
    let before = count();
    until("the container goes on", Duration::from_secs(10), || {
        count() != before
    })?;
    fs::remove_file(&filler)?;
    let pid = keeper.pid();
    until("history goes on", Duration::from_secs(90), || commits() > there)?;
    ensure!(keeper_of(d) == i32::try_from(pid).ok(), "another keeper");
    said(d, &["audit", "writer"])?;
    said(d, &["verify", "--read-data"])?;
    d.ctr(&["task", "rm", "-f", "writer"])?.ok()?;
    keeper.stop()
}

/// A version that was made on another image says so, and the next start does what `on-image-change` says.
fn made_on_another_image(d: &Daemon) -> Result<()> {
    let (old, new) = (d.import("upgrade-1")?, d.import("upgrade-2")?);
    let _keeper = Keeper::start(d, "interval = \"200ms\"")?;
    let life = |image: &str, what: &str, script: &str| {
        let change = format!("diffkeeper.io/on-image-change={what}");
        run(d, image, "moved", &["--annotation", &change], script)
    };
    // Whoever wants to be asked has the digest recorded.
    life(&old, "refuse", "echo old > /v")?;
    let first = json(d, &["commit", "moved", "-m", "on the old one", "--tag", "old"])?;
    life(&new, "fresh", "echo new > /v")?;
    let second = json(d, &["commit", "moved", "-m", "on the new one"])?;
    let digests = (first["image"].as_str(), second["image"].as_str());
    let (Some(was), Some(is)) = digests else {
        bail!("{first} {second}");
    };
    ensure!(was != is && was.starts_with("sha256:"), "{digests:?}");
    let told = said(d, &["restore", "moved@old"])?;
    ensure!(told.contains(was) && told.contains(is), "{told}");
    let refused = life(&new, "refuse", "cat /v").err().map(|e| format!("{e:#}"));
    ensure!(
        refused
            .as_ref()
            .is_some_and(|told| told.contains(was) && told.contains(is)),
        "{refused:?}"
    );
    ensure!(life(&old, "refuse", "cat /v")? == "old");
    ensure!(life(&new, "keep", "cat /v")? == "old");
    Ok(())
}

/// Commits that have given up their content are stepped over: what changed between the others is still told.
fn a_thinned_history_has_a_timeline(d: &Daemon) -> Result<()> {
    let image = d.import("busybox")?;
    let _keeper = Keeper::start(d, "interval = \"off\"\nretention = [\"1h for 1d\"]")?;
    for n in 1..=5 {
        run(
            d,
            &image,
            "thin",
            &[],
            &format!("echo {n} > /v; echo {n} > /only-{n}; rm -f /only-$(({n} - 1))"),
        )?;
        let tag = if n == 2 { &["--tag", "second"][..] } else { &[] };
        said(d, &[&["commit", "thin", "-m", "by hand"], tag].concat())?;
    }
    said(d, &["gc"])?;
    let given_up = log(d, "thin")?
        .iter()
        .filter(|commit| commit["given_up"].as_str().is_some_and(|rule| !rule.is_empty()))
        .count();
    ensure!(
        given_up >= 2,
        "{given_up} of five commits have given up their content"
    );
    let changes = json(d, &["timeline", "thin", "--path", "/only-*"])?;
    let told: Vec<(&str, &str)> = changes
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|change| Some((change["change"].as_str()?, change["path"].as_str()?)))
        .collect();
    ensure!(
        told.contains(&("removed", "/only-2")) && told.contains(&("added", "/only-5")),
        "{changes}"
    );
    Ok(())
}

/// The annotation `from`: a new state begins with a version of another, and is its own from then on.
fn begun_from_another(d: &Daemon) -> Result<()> {
    let image = d.import("busybox")?;
    let _keeper = Keeper::start(d, "interval = \"200ms\"")?;
    run(d, &image, "origin", &[], "echo 1 > /v; mkdir /d; echo x > /d/x")?;
    said(d, &["commit", "origin", "--tag", "one"])?;
    run(d, &image, "origin", &[], "echo 2 > /v; rm -r /d")?;
    said(d, &["commit", "origin", "-m", "two"])?;
    let from = |what: &str| format!("diffkeeper.io/from={what}");
    let begin =
        |name: &str, what: &str, script: &str| run(d, &image, name, &["--annotation", &from(what)], script);
    ensure!(begin("branch", "origin@one", "cat /v /d/x; echo mine > /v")? == "1\nx");
    // Once: a template keeps it.
    ensure!(begin("branch", "origin@one", "cat /v")? == "mine");
    ensure!(begin("latest", "origin", "cat /v; ls -d /d || true")? == "2");
    ensure!(run(d, &image, "origin", &[], "cat /v")? == "2");
    said(d, &["commit", "branch", "-m", "own"])?;
    let commits = log(d, "branch")?;
    ensure!(
        commits.iter().any(|commit| commit["reason"] == "fork"),
        "{commits:?}"
    );
    // With a version of its own asked for besides, that comes last.
    let tag = ["--annotation", "diffkeeper.io/restore=one"];
    said(d, &["tag", "branch@head", "one"])?;
    run(d, &image, "branch", &[], "echo later > /v")?;
    let both = ["--annotation", &from("origin@one"), tag[0], tag[1]];
    ensure!(run(d, &image, "branch", &both, "cat /v")? == "mine");
    // What a person asks for after that counts, whatever the template goes on saying.
    run(d, &image, "branch", &both, "echo last > /v")?;
    start(d, &image, "branch", &both, "sleep 1000")?;
    said(d, &["restore", "branch@~1"])?;
    let before = said(d, &["cat", "branch@~1", "/v"])?;
    d.ctr(&["task", "rm", "-f", "branch"])?.ok()?;
    d.ctr(&["container", "rm", "branch"])?.ok()?;
    until("the shim's end", Duration::from_secs(10), || {
        d.shims(Some("branch")).is_empty()
    })?;
    ensure!(run(d, &image, "branch", &both, "cat /v")? == before);

    // What is not there, or not of this namespace, is refused, and nothing has begun.
    for (name, what, why) in [
        ("orphan", "no-such-state", "no-such-state"),
        ("orphan", "origin@no-such-tag", "no-such-tag"),
        ("orphan", "other/origin", "slash"),
        ("orphan", "../default/origin", "slash"),
    ] {
        let told = begin(name, what, "cat /v").err().map(|e| format!("{e:#}"));
        ensure!(
            told.as_ref().is_some_and(|told| told.contains(why)),
            "{what}: {told:?}"
        );
    }
    ensure!(!d.upper("orphan").exists());
    // Another namespace's state has the same name there, and is not it.
    let image = d.import_into("elsewhere", "busybox")?;
    let annotation = from("origin@one");
    let line = [
        "-n",
        "elsewhere",
        "run",
        "--rm",
        "--runtime",
        OURS,
        "--annotation",
        &annotation,
    ];
    let ran = d.ctr(&[&line[..], &[&image, "thief", "cat", "/v"]].concat())?;
    ensure!(
        ran.status != 0 && ran.err.contains("ctr/elsewhere/origin"),
        "{ran:?}"
    );
    d.ctr(&["-n", "elsewhere", "images", "rm", &image])?
        .ok()
        .map(drop)
}

fn asked_for_by_annotation(d: &Daemon) -> Result<()> {
    let image = d.import("busybox")?;
    let _keeper = Keeper::start(d, "interval = \"200ms\"")?;
    run(d, &image, "asked", &[], "echo 1 > /v")?;
    said(d, &["commit", "asked", "--tag", "one"])?;
    run(d, &image, "asked", &[], "echo 2 > /v")?;
    let annotation = ["--annotation", "diffkeeper.io/restore=one"];
    ensure!(run(d, &image, "asked", &annotation, "cat /v; echo 3 > /v")? == "1");
    // A template keeps it; it does not roll back again.
    ensure!(run(d, &image, "asked", &annotation, "cat /v")? == "3");
    said(d, &["commit", "asked", "--tag", "three"])?;
    ensure!(
        run(
            d,
            &image,
            "asked",
            &["--annotation", "diffkeeper.io/restore=three"],
            "echo 4 > /v; cat /v"
        )? == "4"
    );
    for wrong in ["-5m", "~1", "head", ""] {
        let ran = d.ctr(&[
            "run",
            "--rm",
            "--runtime",
            OURS,
            "--annotation",
            &format!("diffkeeper.io/restore={wrong}"),
            &image,
            "asked",
            "true",
        ])?;
        ensure!(
            ran.status != 0 && ran.err.contains("must stay the same"),
            "{wrong:?}: {ran:?}"
        );
    }
    let ran = d.ctr(&[
        "run",
        "--rm",
        "--runtime",
        OURS,
        "--annotation",
        "diffkeeper.io/restore=nothing-of-that-name",
        &image,
        "asked",
        "true",
    ])?;
    ensure!(
        ran.status != 0 && ran.err.contains("nothing-of-that-name"),
        "{ran:?}"
    );
    ensure!(run(d, &image, "asked", &[], "cat /v")? == "4");
    // Nothing is recorded where nobody wants it.
    run(
        d,
        &image,
        "unseen",
        &["--annotation", "diffkeeper.io/capture=off"],
        "echo x > /x; sleep 1",
    )?;
    refused(d, &["log", "unseen"], "no history")?;
    // Its last moment is.
    start(
        d,
        &image,
        "killed",
        &["--annotation", "diffkeeper.io/capture=1h"],
        "echo last > /word; sleep 1000",
    )?;
    until("it runs", Duration::from_secs(5), || {
        d.upper("killed").join("word").exists()
    })?;
    kill(d.init_pid("killed")?)?;
    until("the last moment is recorded", Duration::from_secs(10), || {
        said(d, &["cat", "killed", "/word"]).is_ok_and(|word| word == "last")
    })?;
    d.forget("killed")
}

/// What an upper holds comes back through the store as it was, seen by a container.
fn everything_a_file_system_can_hold(d: &Daemon) -> Result<()> {
    let image = d.import("tools")?;
    let _keeper = Keeper::start(d, "interval = \"200ms\"")?;
    let life = |script: &str| -> Result<String> {
        d.ctr(&[
            "run",
            "--rm",
            "--runtime",
            OURS,
            &image,
            "whole",
            "bash",
            "-c",
            script,
        ])?
        .ok()
    };
    let first = life(&format!("{}{}", crate::keeps::WRITE, crate::keeps::LIST))?;
    said(d, &["commit", "whole", "--tag", "then"])?;
    life("rm -rf /w /usr/share /opt; echo gone > /etc/passwd; touch /usr/bin/tac")?;
    said(d, &["restore", "whole@then"])?;
    let again = life(crate::keeps::LIST)?;
    ensure!(first == again, "at first:\n{first}\nafter the restore:\n{again}");
    Ok(())
}
