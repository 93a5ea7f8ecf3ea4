//! End-to-end tests on a real Docker, with its overlay2 graph driver and with containerd's image store. What cannot run
//! is reported by name and reason.

mod builds;
mod compose;
mod databases;
mod export;
mod pauses;
mod remapped;
mod restores;

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    process::{ExitCode, Stdio},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use integration::{Docker, daemon::kill, second_chance, wait::until};
use libtest_mimic::{Arguments, Trial};

type Test = fn(&Docker) -> Result<()>;

const TESTS: &[(&str, Test)] = &[
    ("a_name_is_kept", a_name_is_kept),
    ("restarts_and_stops", restarts_and_stops),
    ("nobodys_containers_pass_through", nobodys_containers_pass_through),
    ("annotations_and_environment", annotations_and_environment),
    ("volumes", volumes),
    ("postgresql_survives_everything", postgresql_survives_everything),
    ("chosen_paths", chosen_paths),
    ("deaths_in_any_order", deaths_in_any_order),
    ("what_people_type", what_people_type),
    (
        "copy_into_a_container_not_yet_started",
        copy_into_a_container_not_yet_started,
    ),
    ("health_and_restart_policy", health_and_restart_policy),
    ("what_docker_itself_sees", what_docker_itself_sees),
];

const LIMIT: Duration = Duration::from_secs(30);

/// Whether the long forms are wanted (`make soak`).
fn soak() -> bool {
    std::env::var_os("DIFFKEEPER_SOAK").is_some()
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let mut failed = false;
    let tests: Vec<(&str, Test)> = [
        TESTS,
        builds::TESTS,
        compose::TESTS,
        databases::TESTS,
        export::TESTS,
        pauses::TESTS,
        remapped::TESTS,
        restores::TESTS,
    ]
    .concat();
    for store in ["overlay2", "containerd"] {
        if arguments.list {
            continue;
        }
        let docker = match Docker::up(store) {
            Ok(Ok(docker)) => Arc::new(docker),
            Ok(Err(reason)) => {
                for (name, _) in &tests {
                    println!("skipped docker-{store}::{name}: {reason}");
                }
                continue;
            }
            Err(error) => {
                println!("Docker ({store}) does not start: {error:#}");
                failed = true;
                continue;
            }
        };
        let (name, reason) = databases::SKIPPED;
        println!("skipped docker-{store}::{name}: {reason}");
        let trials = tests
            .iter()
            .map(|(name, test)| {
                let (docker, test) = (docker.clone(), *test);
                let full = format!("docker-{store}::{name}");
                Trial::test(full.clone(), move || {
                    second_chance(&full, test(&docker), || test(&docker))
                        .map_err(|error| format!("{error:#}").into())
                })
            })
            .collect();
        failed |= libtest_mimic::run(&arguments, trials).has_failed();
    }
    if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

const OURS: [&str; 4] = ["--runtime", "diffkeeper", "--network", "none"];

/// `docker run` under our runtime.
fn start(d: &Docker, more: &[&str], image: &str, script: &str) -> Result<String> {
    let mut line = vec!["run"];
    line.extend_from_slice(&OURS);
    line.extend_from_slice(more);
    line.push(image);
    if !script.is_empty() {
        line.extend_from_slice(&["sh", "-c", script]);
    }
    d.docker(&line)?.ok()
}

/// Runs a script in a container of this name that is removed afterwards.
fn life(d: &Docker, name: &str, image: &str, script: &str) -> Result<String> {
    start(d, &["--rm", "--name", name], image, script)
}

fn remove(d: &Docker, name: &str) -> Result<()> {
    d.docker(&["rm", "-f", "-v", name])?.ok().map(drop)
}

fn same(found: &str, expected: &str) -> Result<()> {
    ensure!(found == expected, "{found:?} instead of {expected:?}");
    Ok(())
}

fn clean(d: &Docker) -> Result<()> {
    until("no live tree is mounted", LIMIT, || {
        d.live_mounts().is_ok_and(|m| m.is_empty())
    })
    .with_context(|| format!("{:?}", d.live_mounts()))
}

fn a_name_is_kept(d: &Docker) -> Result<()> {
    let image = d.load("busybox")?;
    life(
        d,
        "web",
        &image,
        "echo kept > /file; rm /etc/group; mkdir /a; mv /a /b; echo tmp > /tmp/x",
    )?;
    clean(d)?;
    same(
        &life(
            d,
            "web",
            &image,
            "cat /file; ls -d /b; ls /etc/group 2>/dev/null; ls /tmp",
        )?,
        "kept\n/b\n",
    )?;
    // Another name is another container; Docker's own files are Docker's.
    same(
        &life(d, "other", &image, "cat /file 2>/dev/null || echo none")?,
        "none\n",
    )?;
    let upper = d.state("web").join("roots/rootfs/upper");
    let left: Vec<String> = fs::read_dir(&upper)?
        .flatten()
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .collect();
    ensure!(
        !left
            .iter()
            .any(|name| name == ".dockerenv" || name == "dev" || name == "sys"),
        "{left:?}"
    );
    clean(d)
}

fn restarts_and_stops(d: &Docker) -> Result<()> {
    let image = d.load("busybox")?;
    start(
        d,
        &["-d", "--name", "long"],
        &image,
        "echo life >> /lives; echo x >> /tmp/x; sleep 1000",
    )?;
    d.docker(&["restart", "-t", "0", "long"])?.ok()?;
    d.docker(&["stop", "-t", "0", "long"])?.ok()?;
    clean(d)?;
    d.docker(&["start", "long"])?.ok()?;
    let lives =
        |path: &str| -> Result<usize> { Ok(d.docker(&["exec", "long", "cat", path])?.ok()?.lines().count()) };
    until("the third life", LIMIT, || lives("/lives").is_ok_and(|n| n == 3))?;
    // A restart of the same container keeps its temporary files, as under any runtime.
    ensure!(lives("/tmp/x")? == 3);
    remove(d, "long")?;
    clean(d)?;
    same(&life(d, "long", &image, "wc -l < /lives; ls /tmp")?, "3\n")
}

fn nobodys_containers_pass_through(d: &Docker) -> Result<()> {
    let image = d.load("busybox")?;
    let states = || fs::read_dir(d.state("")).map_or(0, Iterator::count);
    let before = states();
    let mut names = Vec::new();
    for _ in 0..15 {
        let id = start(d, &["-d"], &image, "echo x > /file; sleep 1000")?;
        let name = d.docker(&["inspect", "-f", "{{.Name}}", id.trim()])?.ok()?;
        names.push(name.trim().trim_start_matches('/').to_owned());
        if names.len() == 1 {
            // Docker's own upper has what it wrote.
            until("the file", LIMIT, || {
                d.docker(&["diff", id.trim()])
                    .is_ok_and(|r| r.out.contains("A /file"))
            })?;
        }
        remove(d, id.trim())?;
    }
    ensure!(
        states() == before,
        "a name that Docker generated was taken for a person's: {names:?}"
    );
    ensure!(
        names.iter().all(|name| runtime_spec::docker::is_generated(name)),
        "{names:?}"
    );
    Ok(())
}

fn annotations_and_environment(d: &Docker) -> Result<()> {
    let image = d.load("busybox")?;
    let state = ["--rm", "--annotation", "diffkeeper.io/state=chosen"];
    start(d, &state, &image, "echo by annotation > /file")?;
    same(&start(d, &state, &image, "cat /file")?, "by annotation\n")?;
    start(
        d,
        &[
            "--rm",
            "--name",
            "none",
            "--annotation",
            "diffkeeper.io/state=none",
        ],
        &image,
        "echo x > /file",
    )?;
    ensure!(!d.state("none").exists());
    let env = ["--rm", "-e", "DIFFKEEPER_STATE=chosen"];
    same(
        &start(d, &env, &image, "cat /file 2>/dev/null || echo none")?,
        "none\n",
    )?;
    let kept = fs::read_to_string(d.config())?;
    fs::write(d.config(), format!("{kept}allow-env-state = true\n"))?;
    let allowed = start(d, &env, &image, "cat /file");
    fs::write(d.config(), kept)?;
    same(&allowed?, "by annotation\n")?;
    let mut bad = vec!["run"];
    bad.extend_from_slice(&OURS);
    bad.extend_from_slice(&[
        "--name",
        "bad",
        "--annotation",
        "diffkeeper.io/state=../x",
        &image,
        "true",
    ]);
    d.docker(&bad)?.fails_with(&["cannot name a state"])?;
    remove(d, "bad")?;
    // A second container for a state in use is told who has it.
    start(
        d,
        &[
            "-d",
            "--name",
            "holder",
            "--annotation",
            "diffkeeper.io/state=chosen",
        ],
        &image,
        "sleep 1000",
    )?;
    let mut second = vec!["run"];
    second.extend_from_slice(&OURS);
    second.extend_from_slice(&[
        "--name",
        "second",
        "--annotation",
        "diffkeeper.io/state=chosen",
        &image,
        "true",
    ]);
    d.docker(&second)?.fails_with(&["in use", "moby"])?;
    remove(d, "second")?;
    remove(d, "holder")?;
    clean(d)
}

fn volumes(d: &Docker) -> Result<()> {
    let image = d.load("volumes")?;
    let write = "echo more > /var/lib/data/more; echo x > /new/one/x; echo y > /plain/y";
    let bind = d.folder().join("bind");
    fs::create_dir_all(&bind)?;
    let bind = format!("{}:/plain", bind.display());
    let named = ["--rm", "--name", "vol", "-v", "mine:/new/one", "-v", &bind];
    same(
        &start(
            d,
            &named,
            &image,
            &format!("cat /var/lib/data/sub/file; stat -c '%u:%g %a' /var/lib/data; {write}"),
        )?,
        "seeded\n999:999 1750\n",
    )?;
    let roots = d.state("vol").join("roots");
    ensure!(roots.join("volume@var@lib@data/tree/more").is_file());
    // What a person named or bound is theirs.
    ensure!(!roots.join("volume@plain").exists() && !roots.join("volume@new@one").exists());
    ensure!(d.folder().join("bind/y").is_file());
    same(
        &start(d, &named, &image, "cat /var/lib/data/more /new/one/x /plain/y")?,
        "more\nx\ny\n",
    )?;
    same(
        &start(d, &["--rm", "-v", "mine:/mine"], &image, "cat /mine/x")?,
        "x\n",
    )?;
    // Nobody declared them: kept by name, gone as Docker's volumes.
    life(d, "bare", &image, write)?;
    same(
        &life(d, "bare", &image, "cat /var/lib/data/more /new/one/x /plain/y")?,
        "more\nx\ny\n",
    )?;
    // Volumes that another container uses, or lends, are left alone.
    start(
        d,
        &[
            "-d",
            "--name",
            "lender",
            "--annotation",
            "diffkeeper.io/state=none",
        ],
        &image,
        "sleep 1000",
    )?;
    d.docker(&["exec", "lender", "sh", "-c", "echo lent > /plain/lent"])?
        .ok()?;
    let borrows = ["--rm", "--name", "borrower", "--volumes-from", "lender"];
    same(
        &start(d, &borrows, &image, "cat /plain/lent; echo back > /plain/back")?,
        "lent\n",
    )?;
    same(
        &d.docker(&["exec", "lender", "cat", "/plain/back"])?.ok()?,
        "back\n",
    )?;
    remove(d, "lender")
}

fn chosen_paths(d: &Docker) -> Result<()> {
    let image = d.load("volumes")?;
    let paths = [
        "--annotation",
        "diffkeeper.io/paths=/srv/app,/var/lib",
        "--name",
        "paths",
    ];
    let run = |script: &str| start(d, &[&["--rm"], &paths[..]].concat(), &image, script);
    run("echo x > /srv/app/x; echo y > /var/lib/data/y; echo z > /var/lib/z; echo gone > /root/gone")?;
    same(
        &run("cat /srv/app/x /var/lib/data/y /var/lib/z; ls /root")?,
        "x\ny\nz\n",
    )?;
    clean(d)?;
    // Docker's own root is Docker's to unmount: a container of such a kind can be restarted.
    start(
        d,
        &[&["-d"], &paths[..]].concat(),
        &image,
        "echo life >> /srv/app/lives; sleep 1000",
    )?;
    d.docker(&["restart", "-t", "0", "paths"])?.ok()?;
    until("two lives", LIMIT, || {
        d.docker(&["exec", "paths", "cat", "/srv/app/lives"])
            .is_ok_and(|r| r.out == "life\nlife\n")
    })?;
    remove(d, "paths")?;
    clean(d)
}

fn postgresql_survives_everything(d: &Docker) -> Result<()> {
    let image = d.load("postgresql-volume")?;
    let psql = |sql: &str| -> Result<String> {
        d.docker(&[
            "exec",
            "pg",
            "psql",
            "-h",
            "/run/postgresql",
            "-U",
            "postgres",
            "-qAtc",
            sql,
        ])?
        .ok()
    };
    let ready = || until("PostgreSQL", Duration::from_secs(60), || psql("select 1").is_ok());
    start(d, &["-d", "--name", "pg"], &image, "")?;
    ready()?;
    d.docker(&[
        "exec",
        "pg",
        "pgbench",
        "-h",
        "/run/postgresql",
        "-U",
        "postgres",
        "-i",
        "-q",
        "-s",
        "1",
        "postgres",
    ])?
    .ok()?;
    psql("create table acknowledged(n int)")?;
    let mut acknowledged = 0;
    for round in 0..if soak() { 20 } else { 2 } {
        std::thread::scope(|scope| -> Result<()> {
            // It ends with its container.
            scope.spawn(|| {
                d.docker(&[
                    "exec",
                    "pg",
                    "pgbench",
                    "-h",
                    "/run/postgresql",
                    "-U",
                    "postgres",
                    "-c",
                    "2",
                    "-T",
                    "25",
                    "postgres",
                ])
            });
            for n in 0..20 {
                psql(&format!("insert into acknowledged values ({n})"))?;
                acknowledged += 1;
            }
            if round % 2 == 0 {
                d.shims().into_iter().try_for_each(kill)
            } else {
                d.docker(&["kill", "-s", "KILL", "pg"])?.ok().map(drop)
            }
        })?;
        until("its removal", LIMIT, || {
            d.docker(&["rm", "-f", "-v", "pg"]).is_ok_and(|r| r.status == 0)
        })?;
        start(d, &["-d", "--name", "pg"], &image, "")?;
        ready()?;
        same(
            psql("select count(*) from acknowledged")?.trim(),
            &acknowledged.to_string(),
        )?;
        psql("create extension if not exists amcheck")?;
        let check = "select count(bt_index_check(c.oid, true)) > 0 from pg_index i join pg_class c on c.oid = i.indexrelid \
                     join pg_am a on a.oid = c.relam where a.amname = 'btree' and i.indisvalid";
        same(psql(check)?.trim(), "t")?;
        let sums =
            "select sum(abalance) - (select sum(bbalance) from pgbench_branches) from pgbench_accounts";
        same(psql(sums)?.trim(), "0")?;
    }
    remove(d, "pg")
}

fn deaths_in_any_order(d: &Docker) -> Result<()> {
    let image = d.load("busybox")?;
    let begin = || {
        start(
            d,
            &["-d", "--name", "dies"],
            &image,
            "echo life >> /lives; sync; sleep 1000",
        )
    };
    let kill_shims = || d.shims().into_iter().try_for_each(kill);
    let gone = || {
        until("its removal", LIMIT, || {
            d.docker(&["rm", "-f", "dies"]).is_ok_and(|r| r.status == 0)
        })
    };
    let settle = || {
        until("the exit", LIMIT, || {
            d.docker(&["inspect", "-f", "{{.State.Running}}", "dies"])
                .is_ok_and(|r| r.out.trim() == "false")
        })
    };
    let deaths: [&dyn Fn() -> Result<()>; 4] = [
        &kill_shims,
        &|| {
            d.kill()?;
            kill_shims()?;
            d.restart()
        },
        &|| {
            d.kill()?;
            d.restart()?;
            kill_shims()
        },
        &|| d.docker(&["kill", "dies"])?.ok().map(drop),
    ];
    for (n, die) in deaths.iter().enumerate() {
        begin()?;
        until("the life", LIMIT, || {
            fs::read_to_string(d.state("dies").join("roots/rootfs/upper/lives"))
                .is_ok_and(|t| t.lines().count() == 2 * n + 1)
        })?;
        die()?;
        settle()?;
        // Started again, and then removed, with the daemon coming and going.
        d.docker(&["start", "dies"])?.ok()?;
        until("the next life", LIMIT, || {
            d.docker(&["exec", "dies", "cat", "/lives"])
                .is_ok_and(|r| r.out.lines().count() == 2 * n + 2)
        })?;
        die()?;
        gone()?;
        clean(d)?;
        let lives = fs::read_to_string(d.state("dies").join("roots/rootfs/upper/lives"))?;
        ensure!(lives.lines().count() == 2 * n + 2, "{lives:?}");
    }
    // A mount of ours that leaked: what Docker then removes, it does not reach the live tree.
    begin()?;
    let target = d.live_mounts()?;
    let target = target
        .first()
        .and_then(|m| m.split(' ').nth(4))
        .context("nothing is mounted")?
        .to_owned();
    let upper = d.state("dies").join("roots/rootfs/upper");
    let leaked = std::process::Command::new("mount")
        .args(["--bind", &upper.to_string_lossy(), &target])
        .status()?;
    kill_shims()?;
    settle()?;
    let removed = gone();
    let _ = std::process::Command::new("umount")
        .args(["-l", &target])
        .status();
    removed.or_else(|_| gone())?;
    ensure!(leaked.success() && upper.join("lives").is_file());
    Ok(())
}

fn what_people_type(d: &Docker) -> Result<()> {
    let image = d.load("busybox")?;
    let more = [
        "-d",
        "--init",
        "--name",
        "typed",
        "--user",
        "65534:65534",
        "--tmpfs",
        "/scratch",
        "-w",
        "/",
    ];
    start(
        d,
        &more,
        &image,
        "echo to the log; echo to stderr >&2; exec sleep 1000",
    )?;
    until("the log", LIMIT, || {
        d.docker(&["logs", "typed"])
            .is_ok_and(|r| r.out.contains("to the log") && r.err.contains("to stderr"))
    })?;
    same(
        &d.docker(&["exec", "typed", "sh", "-c", "id -u; cat /proc/1/comm"])?
            .ok()?,
        "65534\ndocker-init\n",
    )?;
    ensure!(d.docker(&["top", "typed"])?.ok()?.contains("sleep 1000"));
    ensure!(
        d.docker(&["stats", "--no-stream", "typed"])?
            .ok()?
            .contains("typed")
    );
    d.docker(&["pause", "typed"])?.ok()?;
    same(
        d.docker(&["inspect", "-f", "{{.State.Status}}", "typed"])?
            .ok()?
            .trim(),
        "paused",
    )?;
    d.docker(&["unpause", "typed"])?.ok()?;
    let (there, back) = (d.folder().join("there"), d.folder().join("back"));
    fs::write(&there, "copied\n")?;
    d.docker(&["cp", &there.to_string_lossy(), "typed:/copied"])?
        .ok()?;
    same(&d.docker(&["exec", "typed", "cat", "/copied"])?.ok()?, "copied\n")?;
    d.docker(&["cp", "typed:/copied", &back.to_string_lossy()])?
        .ok()?;
    same(&fs::read_to_string(&back)?, "copied\n")?;
    d.docker(&["update", "--memory", "64m", "--memory-swap", "64m", "typed"])?
        .ok()?;
    d.docker(&["rename", "typed", "retyped"])?.ok()?;
    remove(d, "retyped")?;
    // The state belongs to the name that it had when it began.
    same(
        &life(d, "typed", &image, "cat /copied; test ! -e /sbin/docker-init")?,
        "copied\n",
    )?;
    // A client that attaches later is heard, sees what comes, and gets the exit status.
    start(
        d,
        &["-d", "-i", "--name", "heard"],
        &image,
        "while read line; do echo heard $line; test $line != bye || exit 5; done",
    )?;
    let mut client = d
        .command(&["attach", "heard"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    // Docker's client stops listening when it has no more to say: its input stays open.
    let mut input = client.stdin.take().context("no input")?;
    let mut output = BufReader::new(client.stdout.take().context("no output")?);
    let mut heard = String::new();
    input.write_all(b"hello\n")?;
    output.read_line(&mut heard)?;
    same(&heard, "heard hello\n")?;
    input.write_all(b"bye\n")?;
    let status = client.wait()?;
    ensure!(status.code() == Some(5), "{status}");
    remove(d, "heard")?;
    // One that was attached from the start, too.
    let ran = d.docker(&[
        "run",
        "--rm",
        "--name",
        "typed",
        "--runtime",
        "diffkeeper",
        "--network",
        "none",
        "--read-only",
        &image,
        "sh",
        "-c",
        "cat /copied; touch /x 2>/dev/null || exit 7",
    ])?;
    ensure!((ran.status, ran.out.as_str()) == (7, "copied\n"), "{ran:?}");
    clean(d)
}

fn copy_into_a_container_not_yet_started(d: &Docker) -> Result<()> {
    let image = d.load("busybox")?;
    life(d, "cpto", &image, "echo state > /of-the-state")?;
    let mut line = vec!["create"];
    line.extend_from_slice(&OURS);
    line.extend_from_slice(&[
        "--name",
        "cpto",
        &image,
        "sh",
        "-c",
        "cat /of-the-state /etc/copied",
    ]);
    d.docker(&line)?.ok()?;
    let file = d.folder().join("to-copy");
    fs::write(&file, "copied before\n")?;
    d.docker(&["cp", &file.to_string_lossy(), "cpto:/etc/copied"])?
        .ok()?;
    same(
        &d.docker(&["start", "-a", "cpto"])?.ok()?,
        "state\ncopied before\n",
    )?;
    remove(d, "cpto")?;
    clean(d)
}

fn health_and_restart_policy(d: &Docker) -> Result<()> {
    let image = d.load("busybox")?;
    let health = [
        "-d",
        "--name",
        "healthy",
        "--health-cmd",
        "test -e /ready",
        "--health-interval",
        "1s",
    ];
    start(d, &health, &image, "touch /ready; sleep 1000")?;
    until("health", LIMIT, || {
        d.docker(&["inspect", "-f", "{{.State.Health.Status}}", "healthy"])
            .is_ok_and(|r| r.out.trim() == "healthy")
    })?;
    remove(d, "healthy")?;
    start(
        d,
        &["-d", "--name", "again", "--restart", "on-failure:3"],
        &image,
        "echo x >> /tries; exit 1",
    )?;
    until("three more tries", LIMIT, || {
        d.docker(&["inspect", "-f", "{{.RestartCount}} {{.State.Running}}", "again"])
            .is_ok_and(|r| r.out.trim() == "3 false")
    })?;
    remove(d, "again")?;
    same(&life(d, "again", &image, "wc -l < /tries")?, "4\n")
}

/// While a container runs, `docker diff` and `export` see what it has; `docker commit` sees Docker's own upper, which
/// stays empty.
fn what_docker_itself_sees(d: &Docker) -> Result<()> {
    let image = d.load("busybox")?;
    start(
        d,
        &["-d", "--name", "seen"],
        &image,
        "echo x > /written; sync; sleep 1000",
    )?;
    until("the file", LIMIT, || {
        d.state("seen").join("roots/rootfs/upper/written").exists()
    })?;
    let diff = d.docker(&["diff", "seen"])?.ok()?;
    ensure!(diff.lines().any(|l| l == "A /written"), "{diff}");
    let tar = d.folder().join("seen.tar");
    d.docker(&["export", "-o", &tar.to_string_lossy(), "seen"])?
        .ok()?;
    let listed = std::process::Command::new("tar").arg("-tf").arg(&tar).output()?;
    ensure!(
        String::from_utf8_lossy(&listed.stdout)
            .lines()
            .any(|l| l == "written"),
        "the export lacks the file"
    );
    d.docker(&["commit", "seen", "diffkeeper/committed:dev"])?.ok()?;
    remove(d, "seen")?;
    same(
        &start(
            d,
            &["--rm"],
            "diffkeeper/committed:dev",
            "cat /written 2>/dev/null || echo none",
        )?,
        "none\n",
    )?;
    d.docker(&["rmi", "diffkeeper/committed:dev"])?.ok()?;
    clean(d)
}
