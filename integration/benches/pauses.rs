//! How long a container stands still for a commit, and what being recorded costs it: `make bench-capture`.
//!
//! A pause is what a commit has of it: from when the container stood still to when it was let go on. What stopping it and
//! letting it go on costs by itself is measured beside it, by the same calls to the same shim with nothing between them.
//! The load is paced: at full load both cores belong to the database, and every millisecond of anybody's is missed.
//!
//! A commit is followed by nine times as long as it took without one: where the disk is slow they are few, and a case goes on
//! until it has ten, or for ten times as long as it was to take.
//!
//! `BENCH_SECONDS` is how long each case takes (60), `BENCH_PAIRS` how often recorded and not recorded take turns (10).

use std::{
    cell::Cell,
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use integration::{
    Daemon, OURS,
    bench::{self, Bar, Figure, allowed, figure},
    databases::{Database, POSTGRESQL, REDIS, quoted},
    history::Keeper,
    standstill::Standstill,
    wait::until,
};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(120);

/// How many commits make a figure.
const ENOUGH: usize = 10;

/// What a container does all the time.
struct Load {
    name: &'static str,
    image: &'static str,
    /// Succeeds when it can be begun; without it the container runs nothing else.
    database: Option<&'static Database>,
    /// Once, before.
    prepare: &'static str,
    work: &'static str,
}

const LOADS: [Load; 3] = [
    Load {
        name: "pgbench",
        image: "postgresql",
        database: Some(&POSTGRESQL),
        prepare: "pgbench -q -i -s 5 -h /run/postgresql -U postgres postgres 2>&1",
        work: "exec pgbench -n -T 100000 --rate 100 -h /run/postgresql -U postgres postgres",
    },
    Load {
        name: "redis",
        image: "redis-volume",
        database: Some(&REDIS),
        prepare: "true",
        work: "seq 1 100000000 | sed 's/^/rpush paced /' | redis-cli -s /run/redis/redis.sock -i 0.002",
    },
    Load {
        name: "10k small files",
        image: "busybox",
        database: None,
        prepare: "mkdir /files",
        work: "n=0; while :; do n=$(((n + 7919) % 10000)); echo $n $n > /files/$n; usleep 2000; done",
    },
];

/// A container that runs.
struct Subject<'d> {
    d: &'d Daemon,
    name: String,
    execs: Cell<usize>,
}

impl<'d> Subject<'d> {
    fn start(d: &'d Daemon, load: &Load, recorded: bool) -> Result<Subject<'d>> {
        let image = d.import(load.image)?;
        let kind = if recorded { "recorded" } else { "off" };
        let name = format!("{}-{kind}", load.name.replace(' ', "-"));
        let mut line = vec!["run", "-d", "--runtime", OURS];
        if !recorded {
            line.extend(["--annotation", "diffkeeper.io/capture=off"]);
        }
        line.extend([image.as_str(), &name]);
        if load.database.is_none() {
            line.extend(["sleep", "1000000"]);
        }
        d.ctr(&line)?.ok()?;
        let subject = Subject {
            d,
            name,
            execs: Cell::new(0),
        };
        if let Some(database) = load.database {
            until(load.name, LIMIT, || subject.sh(database.ready).is_ok())?;
        }
        subject.sh(load.prepare).context("prepare")?;
        Ok(subject)
    }

    fn sh(&self, script: &str) -> Result<String> {
        self.execs.set(self.execs.get() + 1);
        let exec = format!("x{}", self.execs.get());
        let line = ["task", "exec", "--exec-id", &exec, &self.name, "sh", "-c", script];
        self.d.ctr(&line)?.ok()
    }

    /// Begins what goes on until the container ends.
    fn begin(&self, work: &str) -> Result<()> {
        let work = format!("setsid sh -c {} </dev/null >/dev/null 2>&1 &", quoted(work));
        self.sh(&work).map(drop)
    }

    fn commits(&self) -> Result<Vec<Value>> {
        let said = self
            .d
            .diffkeeper(&["log", &self.name, "-n", "100000", "--json"])?;
        Ok(serde_json::from_str(&said.ok()?)?)
    }
}

/// A part of sorted values.
fn at(values: &mut [f64], part: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let index = (values.len() as f64 * part) as usize;
    values
        .get(index.min(values.len().saturating_sub(1)))
        .copied()
        .unwrap_or(f64::NAN)
}

/// Under one load: the pauses of commits, one a second, and the cost of a bare stop.
fn pauses(d: &Daemon, load: &Load, seconds: u64, figures: &mut Vec<Figure>) -> Result<()> {
    let subject = Subject::start(d, load, true)?;
    subject.begin(load.work)?;
    until("commits", LIMIT, || {
        subject.commits().is_ok_and(|commits| commits.len() > 3)
    })?;
    let before = subject.commits()?.len();
    let standstill = Standstill::of(d, &subject.name)?;
    let mut bare = Vec::new();
    let (since, planned) = (Instant::now(), Duration::from_secs(seconds));
    let few = || subject.commits().map(|commits| commits.len() < before + ENOUGH);
    while since.elapsed() < planned || since.elapsed() < 10 * planned && few()? {
        std::thread::sleep(Duration::from_millis(470));
        let began = Instant::now();
        // One that meets a commit waits for its end, and is not what the median is made of.
        if let Ok(token) = standstill.freeze(1000)
            && standstill.thaw(token)?
        {
            bare.push(began.elapsed().as_secs_f64() * 1e3);
        }
    }
    let commits = subject.commits()?;
    let made = commits
        .get(..commits.len().saturating_sub(before))
        .unwrap_or_default();
    let fuzzy = made
        .iter()
        .filter(|commit| commit["consistency"] == "fuzzy")
        .count();
    let good = made.iter().filter(|commit| commit["consistency"] == "crash");
    let mut pauses: Vec<f64> = good
        .filter_map(|commit| Some(commit["pause_ns"].as_f64()? / 1e6))
        .collect();
    ensure!(!pauses.is_empty(), "{}: no commit is good", load.name);
    println!(
        "{}: {} commits in {} s, {fuzzy} fuzzy; a bare stop, calls included: median {:.2} ms",
        load.name,
        made.len(),
        since.elapsed().as_secs(),
        bench::median(&bare),
    );
    let case = |what: &str| format!("{}: pause above a bare stop, {what}", load.name);
    figures.push(allowed(&case("median"), "ms", bench::median(&pauses), 3.0));
    figures.push(allowed(
        &case("99th percentile"),
        "ms",
        at(&mut pauses, 0.99),
        10.0,
    ));
    d.forget(&subject.name)
}

/// Transactions a second and the 99th percentile of their latency in milliseconds.
fn transactions(subject: &Subject<'_>, rate: Option<f64>, seconds: u64) -> Result<(f64, f64)> {
    let rate = rate.map_or_else(String::new, |rate| format!("--rate {rate:.0}"));
    // Where it is not recorded, and no part of the database's disk traffic.
    let script = format!(
        "cd /tmp && rm -f pgbench_log.* && pgbench -n -T {seconds} {rate} -l -h /run/postgresql -U postgres postgres \
         >/dev/null 2>&1 && awk '{{ print $3 }}' pgbench_log.*"
    );
    let said = subject.sh(&script)?;
    let mut latencies: Vec<f64> = said.lines().filter_map(|line| line.parse().ok()).collect();
    ensure!(!latencies.is_empty(), "no transaction: {said}");
    let count = latencies.len() as f64;
    Ok((count / seconds as f64, at(&mut latencies, 0.99) / 1e3))
}

/// pgbench at half of what it can do, in a container that is recorded each second beside one that is not, by turns.
fn overhead(d: &Daemon, pairs: usize, figures: &mut Vec<Figure>) -> Result<()> {
    let [pgbench, ..] = &LOADS;
    let recorded = Subject::start(d, pgbench, true)?;
    let off = Subject::start(d, pgbench, false)?;
    let (most, _) = transactions(&off, None, 5)?;
    let (mut ours, mut theirs) = ((Vec::new(), Vec::new()), (Vec::new(), Vec::new()));
    for n in 0..pairs {
        for turn in [n % 2, (n + 1) % 2] {
            let (subject, samples) = match turn {
                0 => (&recorded, &mut ours),
                _ => (&off, &mut theirs),
            };
            let (rate, latency) = transactions(subject, Some(most / 2.0), 10)?;
            samples.0.push(rate);
            samples.1.push(latency);
        }
    }
    println!(
        "pgbench: {most:.0} transactions a second at full load, {:.0} offered",
        most / 2.0
    );
    let mut compared = |case: &str, unit, ours: &[f64], theirs: &[f64], bar| {
        figures.push(figure(case, unit, ours, theirs, "off", &bar));
    };
    compared(
        "pgbench at half load",
        "1/s",
        &ours.0,
        &theirs.0,
        Bar::LowerAtLeast(0.99),
    );
    compared(
        "the same, 99th percentile",
        "ms",
        &ours.1,
        &theirs.1,
        Bar::AtMost(1.05),
    );
    d.forget(&recorded.name)?;
    d.forget(&off.name)
}

/// Seconds of processor time that a process has taken.
fn processor(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, rest) = stat.rsplit_once(')').context("a process's state")?;
    let ticks: Vec<f64> = rest
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|n| n.parse().ok())
        .collect();
    let each = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?.context("ticks a second")?;
    Ok(ticks.iter().sum::<f64>() / each as f64)
}

/// What the keeper takes where a line is written each second.
fn lightly(d: &Daemon, keeper: &Keeper<'_>, seconds: u64, figures: &mut Vec<Figure>) -> Result<()> {
    let load = Load {
        name: "a line a second",
        image: "busybox",
        database: None,
        prepare: "true",
        work: "while :; do echo line >> /lines; sleep 1; done",
    };
    let subject = Subject::start(d, &load, true)?;
    subject.begin(load.work)?;
    until("commits", LIMIT, || {
        subject.commits().is_ok_and(|commits| commits.len() > 3)
    })?;
    let before = processor(keeper.pid())?;
    std::thread::sleep(Duration::from_secs(seconds));
    let part = (processor(keeper.pid())? - before) / seconds as f64;
    figures.push(allowed(
        "a line a second: the keeper's part of a core",
        "%",
        part * 100.0,
        1.0,
    ));
    d.forget(&subject.name)
}

fn main() -> Result<()> {
    let number = |name: &str, otherwise| std::env::var(name).map_or(Ok(otherwise), |n| n.parse());
    if std::env::args().any(|arg| arg == "--list")
        || std::env::var("BENCH_ONLY").is_ok_and(|only| only != "pauses")
    {
        return Ok(());
    }
    let seconds = number("BENCH_SECONDS", 60)?;
    let pairs = usize::try_from(number("BENCH_PAIRS", 10)?)?;
    let version = std::env::var("DIFFKEEPER_CONTAINERD").unwrap_or_else(|_| "2".into());
    let d = match Daemon::up(&version, "bench", &[])? {
        Ok(daemon) => daemon,
        Err(reason) => {
            println!("skipped: the benchmarks of pauses: {reason}");
            return Ok(());
        }
    };
    let watcher = std::env::var("BENCH_WATCHER").unwrap_or_else(|_| "scan".into());
    let keeper = Keeper::start(&d, &format!("interval = \"1s\"\nwatcher = {watcher:?}"))?;
    let mut figures = Vec::new();
    for load in &LOADS {
        pauses(&d, load, seconds, &mut figures).with_context(|| load.name)?;
    }
    lightly(&d, &keeper, seconds, &mut figures)?;
    overhead(&d, pairs, &mut figures)?;
    keeper.stop()?;
    bench::report(
        "pauses",
        &format!("Standing still: watcher {watcher}, {seconds} s each, {pairs} pairs"),
        &figures,
    )
}
