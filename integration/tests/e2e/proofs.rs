//! Any commit that is marked `crash` is one that a database starts from, whole, and with every transaction that it had
//! acknowledged by then: as after a power cut.

use std::{
    fs,
    io::Read,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, anyhow, ensure};
use integration::{
    Daemon, OURS,
    databases::{
        Database, ETCD, LMDB, MARIADB, POSTGRESQL, REDIS, REDIS_EVERYSEC, SQLITE, SQLITE_WAL, quoted,
    },
    history::Keeper,
    wait::until,
};
use serde_json::Value;

use crate::{Test, soak};

pub const TESTS: &[(&str, Test)] = &[(
    "proofs::databases_start_from_any_commit",
    databases_start_from_any_commit,
)];

const LIMIT: Duration = Duration::from_secs(120);

/// What is proved of whom: a name, and how long before a commit a transaction must have been acknowledged to be in it.
const ALL: [(&str, &Database, Duration); 8] = [
    ("postgresql", &POSTGRESQL, Duration::ZERO),
    ("mariadb", &MARIADB, Duration::ZERO),
    ("sqlite", &SQLITE, Duration::ZERO),
    ("sqlite-wal", &SQLITE_WAL, Duration::ZERO),
    ("lmdb", &LMDB, Duration::ZERO),
    ("etcd", &ETCD, Duration::ZERO),
    ("redis", &REDIS, Duration::ZERO),
    // While a sync is on its way, it answers before it writes, for up to two seconds.
    ("redis-everysec", &REDIS_EVERYSEC, Duration::from_secs(2)),
];

/// A container with a database, and the node's own record of what that has acknowledged when.
struct Subject<'d> {
    d: &'d Daemon,
    name: String,
    database: &'static Database,
    execs: std::cell::Cell<usize>,
}

impl<'d> Subject<'d> {
    fn start(d: &'d Daemon, name: &str, database: &'static Database, acks: &Path) -> Result<Subject<'d>> {
        let image = d.import(database.image)?;
        let mount = format!("type=bind,src={},dst=/acks,options=rbind:rw", acks.display());
        d.ctr(&["run", "-d", "--runtime", OURS, "--mount", &mount, &image, name])?
            .ok()?;
        Ok(Subject {
            d,
            name: name.to_owned(),
            database,
            execs: std::cell::Cell::new(0),
        })
    }

    fn sh(&self, script: &str) -> Result<String> {
        self.execs.set(self.execs.get() + 1);
        let exec = format!("x{}", self.execs.get());
        let ran = self
            .d
            .ctr(&["task", "exec", "--exec-id", &exec, &self.name, "sh", "-c", script])?;
        Ok(ran.ok()?.trim_end().to_owned())
    }

    fn is_ready(&self) -> Result<()> {
        let mut last = Ok(String::new());
        let ready = until(&self.name, LIMIT, || {
            last = self.sh(self.database.ready);
            // One that has ended will never answer.
            last.is_ok() || self.d.status(&self.name).is_ok_and(|status| status == "STOPPED")
        });
        let ready = last.and(ready.map(|()| String::new())).map(drop);
        ready.with_context(|| format!("{} does not answer", self.name))
    }

    /// The rows, if they are 1, 2, 3 and so on, and nothing is wrong.
    fn rows(&self) -> Result<usize> {
        self.is_ready()?;
        let rows = self.sh(self.database.count).context("count the rows")?;
        let wrong = self.sh(self.database.check).context("check")?;
        ensure!(wrong.is_empty(), "{wrong}");
        Ok(rows.trim().parse()?)
    }

    fn commits(&self) -> Result<Vec<Value>> {
        let said = self
            .d
            .diffkeeper(&["log", &self.name, "-n", "10000", "--json"])?
            .ok()?;
        Ok(serde_json::from_str(&said)?)
    }
}

/// Follows the file to which acknowledged numbers are added.
struct Witness {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Vec<(i64, usize)>>>,
}

impl Witness {
    fn of(file: &Path) -> Result<Witness> {
        let mut file = fs::File::options()
            .create(true)
            .append(true)
            .read(true)
            .open(file)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let follow = move || {
            let (mut seen, mut rest) = (Vec::new(), String::new());
            while !stopped.load(Ordering::Relaxed) {
                let had = rest.len();
                file.read_to_string(&mut rest)?;
                if rest.len() == had {
                    std::thread::sleep(Duration::from_millis(2));
                    continue;
                }
                // What was read had been written by now; half a number waits for its end.
                let now = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos())?;
                if let Some((whole, half)) = rest.rsplit_once('\n') {
                    if let Some(last) = whole.lines().rev().find_map(|line| line.parse().ok()) {
                        seen.push((now, last));
                    }
                    rest = half.to_owned();
                }
            }
            Ok(seen)
        };
        Ok(Witness {
            stop,
            thread: std::thread::spawn(follow),
        })
    }

    /// When which number had been acknowledged.
    fn end(self) -> Result<Vec<(i64, usize)>> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread
            .join()
            .map_err(|_| anyhow!("the witness has panicked"))?
    }
}

fn databases_start_from_any_commit(d: &Daemon) -> Result<()> {
    if d.version != "2" && !soak() {
        // What differs between versions is not here.
        return Ok(());
    }
    // All at once: commits meet each other and a busy machine. The long form has time for one after the other.
    let (together, wanted) = if soak() { (1, 200) } else { (ALL.len(), 1) };
    ALL.chunks(together).try_for_each(|some| proved(d, some, wanted))
}

fn proved(d: &Daemon, all: &[(&str, &'static Database, Duration)], wanted: usize) -> Result<()> {
    let keeper = Keeper::start(d, "interval = \"200ms\"")?;
    let mut subjects = Vec::new();
    for (name, database, lag) in all {
        let acks = d.folder().join("proofs").join(name);
        fs::create_dir_all(&acks)?;
        subjects.push((
            Subject::start(d, &format!("proof-{name}"), database, &acks)?,
            acks,
            *lag,
        ));
    }
    let mut busy = Vec::new();
    for (subject, acks, lag) in subjects {
        subject.is_ready()?;
        let begun = subject.sh(subject.database.begin);
        begun.with_context(|| format!("{}: make a table", subject.name))?;
        let witness = Witness::of(&acks.join("acknowledged"))?;
        let from = subject.commits()?.len();
        let write = format!(
            "seq 1 10000000 | {} >> /acks/acknowledged",
            subject.database.write
        );
        subject.sh(&format!(
            "setsid sh -c {} </dev/null >/dev/null 2>&1 &",
            quoted(&write)
        ))?;
        busy.push((subject, witness, from, acks, lag));
    }
    for (subject, witness, from, acks, lag) in busy {
        let name = &subject.name;
        let enough = |commits: &[Value]| crash(commits, from).len() >= wanted + 3;
        until(name, LIMIT * 10, || {
            subject.commits().is_ok_and(|commits| enough(&commits))
        })
        .with_context(|| format!("{name}: too few commits"))?;
        let commits = subject.commits()?;
        d.ctr(&["task", "kill", "-s", "9", name])?.ok()?;
        d.forget(name)?;
        let seen = witness.end()?;
        let last = seen.last().map_or(0, |(_, n)| *n);
        ensure!(last > 0, "{name}: nothing was written");
        let made = commits.len() - from;
        let candidates = crash(&commits, from);
        println!(
            "{name}: {last} rows, {made} commits, {} of them fuzzy",
            made - candidates.len()
        );
        for n in 0..wanted {
            let commit = candidates
                .get((2 * n + 1) * candidates.len() / (2 * wanted))
                .context("a commit")?;
            opens(&subject, commit, &format!("{name}-{n}"), &acks, &seen, lag)
                .with_context(|| format!("{name}: {commit}"))?;
        }
    }
    keeper.stop()
}

/// The commits that are marked `crash` among those made after the first `from`.
fn crash(commits: &[Value], from: usize) -> Vec<&Value> {
    let made = commits.len().saturating_sub(from);
    let made = commits.iter().take(made);
    made.filter(|commit| commit["consistency"] == "crash").collect()
}

fn opens(
    subject: &Subject<'_>,
    commit: &Value,
    name: &str,
    acks: &Path,
    seen: &[(i64, usize)],
    lag: Duration,
) -> Result<()> {
    let id = commit["id"].as_str().context("an id")?;
    let time = commit["time_ns"].as_i64().context("a time")? - i64::try_from(lag.as_nanos())?;
    let before = seen.iter().take_while(|(at, _)| *at < time);
    let acknowledged = before.last().map_or(0, |(_, n)| *n);
    let d = subject.d;
    d.diffkeeper(&["fork", &format!("{}@{id}", subject.name), name])?
        .ok()?;
    let fork = Subject::start(d, name, subject.database, acks)?;
    let rows = fork.rows()?;
    ensure!(
        rows >= acknowledged,
        "{rows} rows where {acknowledged} were acknowledged"
    );
    d.ctr(&["task", "kill", "-s", "9", name])?.ok()?;
    d.forget(name)
}
