//! What the stock shim does, this one does.

use std::{
    fs,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use integration::{
    Daemon, OURS, Ran, STOCK,
    daemon::{kill, kill_group},
    wait::until,
};

use crate::Test;

pub const TESTS: &[(&str, Test)] = &[
    ("parity::exit_statuses_and_streams", exit_statuses_and_streams),
    ("parity::exec", exec),
    ("parity::events_in_order", events_in_order),
    (
        "parity::out_of_memory_is_told_before_the_exit",
        out_of_memory_is_told_before_the_exit,
    ),
    ("parity::pause_and_resume", pause_and_resume),
    ("parity::all_output_arrives", all_output_arrives),
    ("parity::log_uris", log_uris),
    (
        "parity::pass_through_is_the_stock_shim",
        pass_through_is_the_stock_shim,
    ),
    (
        "parity::containerd_may_die_and_come_back",
        containerd_may_die_and_come_back,
    ),
    ("parity::a_shim_says_what_it_does", a_shim_says_what_it_does),
    ("parity::nothing_is_left_behind", nothing_is_left_behind),
    ("parity::crun", crun),
    ("parity::youki", youki),
    ("parity::a_dead_shim_is_cleaned_up", a_dead_shim_is_cleaned_up),
];

fn exit_statuses_and_streams(d: &Daemon) -> Result<()> {
    let image = d.import("busybox")?;
    for runtime in [OURS, STOCK] {
        let ran = d.ctr(&[
            "run",
            "--rm",
            "--runtime",
            runtime,
            &image,
            "p1",
            "sh",
            "-c",
            "echo out; echo err >&2; exit 42",
        ])?;
        ensure!(
            (ran.status, ran.out.as_str()) == (42, "out\n"),
            "{runtime}: {ran:?}"
        );
        ensure!(ran.err.contains("err\n"), "{runtime}: {ran:?}");
        let ran = d.ctr(&[
            "run",
            "--rm",
            "--runtime",
            runtime,
            &image,
            "p3",
            "/no/such/program",
        ])?;
        ensure!(
            ran.status != 0 && ran.err.contains("/no/such/program"),
            "{runtime}: {ran:?}"
        );
        ran_by_signal(d, runtime, &image)?;
    }
    Ok(())
}

fn ran_by_signal(d: &Daemon, runtime: &str, image: &str) -> Result<()> {
    d.ctr(&["run", "-d", "--runtime", runtime, image, "p4", "sleep", "100"])?
        .ok()?;
    d.ctr(&["task", "kill", "-s", "SIGKILL", "p4"])?.ok()?;
    until("the exit", Duration::from_secs(10), || {
        d.status("p4").is_ok_and(|s| s == "STOPPED")
    })?;
    ensure!(
        exit_status(&d.ctr(&["task", "delete", "p4"])?) == 137,
        "{runtime}"
    );
    d.forget("p4")
}

/// What `ctr task delete` says of the container's exit: some versions as their own status, some as a warning.
fn exit_status(deleted: &Ran) -> i32 {
    let told = deleted.err.split("exit code ").nth(1);
    let told = told.and_then(|rest| rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok());
    told.unwrap_or(deleted.status)
}

fn exec(d: &Daemon) -> Result<()> {
    let image = d.import("busybox")?;
    d.ctr(&["run", "-d", "--runtime", OURS, &image, "x1", "sleep", "100"])?
        .ok()?;
    let ran = d.ctr(&[
        "task",
        "exec",
        "--exec-id",
        "e1",
        "x1",
        "sh",
        "-c",
        "echo inside; exit 3",
    ])?;
    ensure!((ran.status, ran.out.as_str()) == (3, "inside\n"), "{ran:?}");
    let ran = d.ctr_with_input(&["task", "exec", "--exec-id", "e2", "x1", "wc", "-c"], "12345")?;
    ensure!(ran.out.trim() == "5", "{ran:?}");
    // An exec id may be used again, and one that cannot start leaves nothing in its way.
    for _ in 0..2 {
        d.ctr(&["task", "exec", "--exec-id", "e3", "x1", "/no/such"])?
            .fails_with(&["/no/such"])?;
    }
    let mut sleeper = d
        .command("ctr", &["task", "exec", "--exec-id", "e4", "x1", "sleep", "50"])
        .stdin(Stdio::null())
        .spawn()?;
    until(
        "the exec id in the list of processes",
        Duration::from_secs(10),
        || d.ctr(&["task", "ps", "x1"]).is_ok_and(|r| r.out.contains("e4")),
    )?;
    d.ctr(&["task", "kill", "--exec-id", "e4", "-s", "SIGTERM", "x1"])?
        .ok()?;
    ensure!(sleeper.wait()?.code() == Some(143));
    d.ctr(&["task", "kill", "-s", "SIGKILL", "no-such"])?
        .fails_with(&["not found"])?;
    d.forget("x1")
}

/// Topics of one container's life, in order.
fn topics(d: &Daemon, name: &str, life: impl FnOnce() -> Result<()>) -> Result<Vec<String>> {
    let file = d.folder().join(format!("events-{name}"));
    let mut events = d
        .command("ctr", &["events"])
        .stdout(fs::File::create(&file)?)
        .stdin(Stdio::null())
        .spawn()?;
    // The subscription has begun when a first event of anybody's arrives.
    let mut n = 0;
    until("the first event", Duration::from_secs(20), || {
        n += 1;
        let _ = d.ctr(&["namespaces", "label", d.namespace(), &format!("probe={n}")]);
        fs::read_to_string(&file).is_ok_and(|text| text.contains("/namespaces/update"))
    })?;
    life()?;
    let done = || {
        fs::read_to_string(&file)
            .is_ok_and(|t| t.lines().any(|l| l.contains("/tasks/delete") && l.contains(name)))
    };
    let waited = until("the last event", Duration::from_secs(20), done);
    kill_group(events.id())?;
    events.wait()?;
    waited?;
    let text = fs::read_to_string(&file)?;
    let ours = text
        .lines()
        .filter(|line| line.contains("/tasks/") && line.contains(&format!("\"container_id\":\"{name}\"")));
    Ok(ours
        .filter_map(|line| {
            line.split_whitespace()
                .find(|w| w.starts_with("/tasks/"))
                .map(str::to_owned)
        })
        .collect())
}

fn events_in_order(d: &Daemon) -> Result<()> {
    let image = d.import("busybox")?;
    let expected = [
        "/tasks/create",
        "/tasks/start",
        "/tasks/exec-added",
        "/tasks/exec-started",
        "/tasks/exit",
        "/tasks/paused",
        "/tasks/resumed",
        "/tasks/exit",
        "/tasks/delete",
    ];
    let name = "ev1";
    let seen = topics(d, name, || {
        d.ctr(&["run", "-d", "--runtime", OURS, &image, name, "sleep", "100"])?
            .ok()?;
        d.ctr(&["task", "exec", "--exec-id", "e", name, "true"])?.ok()?;
        d.ctr(&["task", "pause", name])?.ok()?;
        d.ctr(&["task", "resume", name])?.ok()?;
        d.forget(name)
    })?;
    ensure!(seen == expected, "{seen:?}");
    for n in 0..if crate::soak() { 100 } else { 3 } {
        let name = format!("ev-short{n}");
        let seen = topics(d, &name, || {
            d.ctr(&["run", "--rm", "--runtime", OURS, &image, &name, "true"])?
                .ok()?;
            Ok(())
        })?;
        ensure!(
            seen == ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"],
            "{seen:?}"
        );
    }
    Ok(())
}

fn out_of_memory_is_told_before_the_exit(d: &Daemon) -> Result<()> {
    let image = d.import("busybox")?;
    let seen = topics(d, "oom", || {
        let limit = ["--memory-limit", "16777216"];
        let line = [
            "run",
            "-d",
            "--runtime",
            OURS,
            limit[0],
            limit[1],
            &image,
            "oom",
            "sh",
            "-c",
            "sleep 1; tail /dev/zero",
        ];
        d.ctr(&line)?.ok()?;
        until("the kernel's kill", Duration::from_secs(30), || {
            d.status("oom").is_ok_and(|s| s == "STOPPED")
        })?;
        d.forget("oom")
    })?;
    let at = |topic: &str| {
        seen.iter()
            .position(|t| t == topic)
            .with_context(|| format!("no {topic} in {seen:?}"))
    };
    ensure!(at("/tasks/oom")? < at("/tasks/exit")?, "{seen:?}");
    Ok(())
}

fn pause_and_resume(d: &Daemon) -> Result<()> {
    let image = d.import("busybox")?;
    d.ctr(&["run", "-d", "--runtime", OURS, &image, "pa", "sleep", "100"])?
        .ok()?;
    d.ctr(&["task", "pause", "pa"])?.ok()?;
    ensure!(d.status("pa")? == "PAUSED");
    d.ctr(&["task", "exec", "--exec-id", "e", "pa", "true"])?
        .fails_with(&["paused"])?;
    d.ctr(&["task", "resume", "pa"])?.ok()?;
    ensure!(d.status("pa")? == "RUNNING");
    // Killed while frozen, it still goes.
    d.ctr(&["task", "pause", "pa"])?.ok()?;
    d.ctr(&["task", "kill", "-s", "SIGKILL", "pa"])?.ok()?;
    d.ctr(&["task", "resume", "pa"])?;
    until("the exit", Duration::from_secs(10), || {
        d.status("pa").is_ok_and(|s| s == "STOPPED")
    })?;
    d.forget("pa")
}

fn all_output_arrives(d: &Daemon) -> Result<()> {
    let image = d.import("busybox")?;
    let blocks = if crate::soak() { 16 * 1024 } else { 1024 };
    let script = format!("i=0; while [ $i -lt {blocks} ]; do i=$((i+1)); printf '%065536d' $i; done");
    let output = d
        .command(
            "ctr",
            &[
                "run",
                "--rm",
                "--runtime",
                OURS,
                &image,
                "big",
                "sh",
                "-c",
                &script,
            ],
        )
        .output()?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    ensure!(
        output.stdout.len() == blocks * 65536,
        "{} bytes arrived",
        output.stdout.len()
    );
    for (n, block) in output.stdout.chunks(65536).enumerate() {
        ensure!(
            std::str::from_utf8(block)?.parse::<usize>()? == n + 1,
            "block {n} is not in its place"
        );
    }
    Ok(())
}

fn log_uris(d: &Daemon) -> Result<()> {
    let image = d.import("busybox")?;
    let log = d.folder().join("logs/app.log");
    let uri = format!("file://{}", log.display());
    d.ctr(&[
        "run",
        "-d",
        "--runtime",
        OURS,
        "--log-uri",
        &uri,
        &image,
        "lf",
        "sh",
        "-c",
        "echo one; echo two >&2",
    ])?
    .ok()?;
    until("the log", Duration::from_secs(10), || {
        fs::read_to_string(&log).is_ok_and(|t| t.contains("one") && t.contains("two"))
    })?;
    d.forget("lf")?;

    let (script, log) = (d.folder().join("logger.sh"), d.folder().join("logged"));
    let text = format!(
        "#!/bin/sh\nexec 5>&-\n(echo $CONTAINER_ID $1 $2; cat <&3) >{}\n",
        log.display()
    );
    fs::write(&script, text)?;
    fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let uri = format!("binary://{}?key=value", script.display());
    d.ctr(&[
        "run",
        "-d",
        "--runtime",
        OURS,
        "--log-uri",
        &uri,
        &image,
        "lb",
        "sh",
        "-c",
        "echo logged",
    ])?
    .ok()?;
    until("the log", Duration::from_secs(10), || {
        fs::read_to_string(&log).is_ok_and(|t| t == "lb key value\nlogged\n")
    })?;
    d.forget("lb")
}

fn pass_through_is_the_stock_shim(d: &Daemon) -> Result<()> {
    let image = d.import("busybox")?;
    let none = "diffkeeper.io/state=none";
    let line = [
        "run",
        "--rm",
        "--runtime",
        OURS,
        "--annotation",
        none,
        &image,
        "opted-out",
        "sh",
        "-c",
        "cat /f; echo x > /f",
    ];
    for _ in 0..2 {
        let ran = d.ctr(&line)?;
        ensure!(ran.status == 0 && ran.out.is_empty(), "{ran:?}");
    }
    ensure!(!d.upper("opted-out").exists());
    ensure!(
        !d.live()
            .join("ctr")
            .join(d.namespace())
            .join("opted-out")
            .exists()
    );
    Ok(())
}

fn containerd_may_die_and_come_back(d: &Daemon) -> Result<()> {
    let image = d.import("busybox")?;
    let loop_ = "i=0; while :; do i=$((i+1)); echo $i > /count; sleep 0.05; done";
    d.ctr(&["run", "-d", "--runtime", OURS, &image, "away", "sh", "-c", loop_])?
        .ok()?;
    d.ctr(&[
        "run",
        "-d",
        "--runtime",
        OURS,
        &image,
        "ends",
        "sh",
        "-c",
        "sleep 2; exit 7",
    ])?
    .ok()?;
    d.kill()?;
    let count = || {
        fs::read_to_string(d.upper("away").join("count"))
            .ok()
            .and_then(|t| t.trim().parse::<u64>().ok())
    };
    let before = count().context("it has not written")?;
    until("writes without containerd", Duration::from_secs(10), || {
        count().is_some_and(|n| n > before + 5)
    })?;
    // One container ends meanwhile: its exit must not be lost.
    std::thread::sleep(Duration::from_secs(2));
    d.restart()?;
    ensure!(d.status("away")? == "RUNNING");
    if d.version == "1.6" {
        until("the exit", Duration::from_secs(10), || {
            d.status("ends").is_ok_and(|s| s == "STOPPED")
        })?;
        ensure!(exit_status(&d.ctr(&["task", "delete", "ends"])?) == 7);
    } else {
        // Since 1.7 containerd deletes, on its way up, whatever ended without it.
        until("the clean-up", Duration::from_secs(10), || {
            d.status("ends").is_ok_and(|s| s.is_empty())
        })?;
    }
    d.forget("ends")?;
    d.forget("away")
}

fn nothing_is_left_behind(d: &Daemon) -> Result<()> {
    let image = d.import("busybox")?;
    let (mounts, shims) = (d.mounts()?.len(), d.shims(None).len());
    let sockets = || fs::read_dir("/run/containerd/s").map_or(0, Iterator::count);
    let before = sockets();
    for n in 0..if crate::soak() { 1000 } else { 15 } {
        d.ctr(&[
            "run",
            "--rm",
            "--runtime",
            OURS,
            &image,
            &format!("left{n}"),
            "true",
        ])?
        .ok()?;
    }
    until("the last shim's end", Duration::from_secs(10), || {
        d.shims(None).len() <= shims
    })?;
    ensure!(d.mounts()?.len() == mounts, "{:?}", d.mounts()?);
    ensure!(sockets() <= before, "sockets are left");
    let bundles = d
        .folder()
        .join("state/io.containerd.runtime.v2.task")
        .join(d.namespace());
    let left: Vec<_> = fs::read_dir(&bundles)
        .into_iter()
        .flatten()
        .flatten()
        .map(|e| e.file_name())
        .collect();
    ensure!(
        !left.iter().any(|n| n.to_string_lossy().starts_with("left")),
        "bundles are left: {left:?}"
    );
    Ok(())
}

fn a_shim_says_what_it_does(d: &Daemon) -> Result<()> {
    let image = d.import("busybox")?;
    d.ctr(&["run", "-d", "--runtime", OURS, &image, "asked", "sleep", "100"])?
        .ok()?;
    let shim = *d.shims(Some("asked")).first().context("no shim")?;
    let log = d.folder().join("containerd.log");
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(shim),
        nix::sys::signal::Signal::SIGUSR1,
    )?;
    until("its words in containerd's log", Duration::from_secs(10), || {
        fs::read_to_string(&log).is_ok_and(|text| {
            text.lines()
                .any(|l| l.contains("SIGUSR1: a process") && l.contains("asked") && l.contains("running"))
        })
    })?;
    ensure!(d.status("asked")? == "RUNNING" && d.shims(Some("asked")) == [shim]);
    d.forget("asked")
}

fn crun(d: &Daemon) -> Result<()> {
    another_runtime(
        d,
        "crun",
        &["unknown version specified", "hybrid mode not supported"],
    )
}

fn youki(d: &Daemon) -> Result<()> {
    another_runtime(d, "youki", &[])
}

/// A life under another OCI runtime, and what it has kept in the next; `cannot`: what one says that is too old for this
/// machine.
fn another_runtime(d: &Daemon, name: &str, cannot: &[&str]) -> Result<()> {
    let skipped = |why: &str| println!("skipped containerd-{}::parity::{name}: {why}", d.version);
    if Command::new(name).arg("--version").output().is_err() {
        skipped(&format!("{name} is not installed"));
        return Ok(());
    }
    let image = d.import("busybox")?;
    let options = d.folder().join(format!("{name}.toml"));
    let root = format!("/run/diffkeeper-e2e-{name}");
    fs::write(&options, format!("BinaryName = \"{name}\"\nRoot = \"{root}\"\n"))?;
    let options = options.to_string_lossy();
    let id = format!("by-{name}");
    let run = |script: &str| {
        d.ctr(&[
            "run",
            "--rm",
            "--runtime",
            OURS,
            "--runtime-config-path",
            &options,
            &image,
            &id,
            "sh",
            "-c",
            script,
        ])
    };
    let ran = run("echo kept > /kept; echo written")?;
    if cannot.iter().any(|words| ran.err.contains(words)) {
        let _ = fs::remove_dir_all(&root);
        skipped(&format!("this {name} cannot: {}", ran.err.trim()));
        return Ok(());
    }
    let next = run("cat /kept")?;
    // Its state's root stays, empty.
    let _ = fs::remove_dir_all(&root);
    ensure!((ran.status, ran.out.as_str()) == (0, "written\n"), "{ran:?}");
    ensure!((next.status, next.out.as_str()) == (0, "kept\n"), "{next:?}");
    Ok(())
}

fn a_dead_shim_is_cleaned_up(d: &Daemon) -> Result<()> {
    let image = d.import("busybox")?;
    d.ctr(&["run", "-d", "--runtime", OURS, &image, "dead", "sleep", "100"])?
        .ok()?;
    let init = d.init_pid("dead")?;
    for shim in d.shims(Some("dead")) {
        kill(shim)?;
    }
    until("init's end", Duration::from_secs(10), || {
        !std::path::Path::new(&format!("/proc/{init}/exe")).exists()
    })?;
    until("the mount's end", Duration::from_secs(10), || {
        d.mounts()
            .is_ok_and(|m| !m.iter().any(|m| m.ends_with("/dead/rootfs")))
    })?;
    d.forget("dead")?;
    // The lease is free again.
    d.ctr(&["run", "--rm", "--runtime", OURS, &image, "dead", "true"])?
        .ok()
        .map(drop)
}
