//! How many bytes twenty versions take, beside restic, borg, `zstd --patch-from` and xdelta3, on contents as containers have them:
//! each made from a seed. `make bench-delta`.

use std::{
    fs,
    io::Write,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use integration::{
    bench::{self, Bar, Figure, Random, figure, milliseconds},
    chart::{self, Line},
    peers::{Peer, bytes, ours_bytes, quiet, record},
};
use store::{Hash, Store, Thorough};

const VERSIONS: u64 = 20;

/// Makes version `n` of a tree from the one before; `false` where this machine cannot.
type Make = fn(tree: &Path, n: u64) -> Result<bool>;

const CORPORA: [(&str, Make); 6] = [
    ("SQLite, 50,000 rows, 500 changed", sqlite),
    ("a million floats, 20% changed by 1%", floats),
    ("50,000 lines of logs, 5% new", logs),
    ("this repository, 20 of its commits", checkout),
    ("the same, each in a directory of its own", releases),
    ("1 MB of noise, 10% changed", noise),
];

fn sqlite(tree: &Path, n: u64) -> Result<bool> {
    const ROWS: usize = 50_000;
    let mut random = Random(n + 1);
    let mut sql = String::from("begin;");
    if n == 0 {
        sql += "create table t(id integer primary key, a text, b integer, c real); create index i on t(b);";
        for id in 0..ROWS {
            let (a, b, c) = (random.number(), random.below(1_000_000), random.part());
            sql += &format!(
                "insert into t values({id},'name {id} {a:016x}{:08x}',{b},{c});",
                a >> 7
            );
        }
    }
    for _ in 0..if n == 0 { 0 } else { 500 } {
        let (id, b, c) = (random.below(ROWS), random.below(1_000_000), random.part());
        sql += &format!("update t set b={b},c={c} where id={id};");
    }
    sql += "commit;";
    let started = Command::new("sqlite3")
        .arg(tree.join("db"))
        .stdin(Stdio::piped())
        .spawn();
    let mut child = match started {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        started => started?,
    };
    child
        .stdin
        .take()
        .context("its input")?
        .write_all(sql.as_bytes())?;
    ensure!(child.wait()?.success(), "sqlite3");
    Ok(true)
}

fn floats(tree: &Path, n: u64) -> Result<bool> {
    let (path, mut random) = (tree.join("weights"), Random(n + 1));
    let before = if n == 0 { Vec::new() } else { fs::read(&path)? };
    let mut numbers: Vec<f32> = before
        .as_chunks()
        .0
        .iter()
        .map(|bytes| f32::from_le_bytes(*bytes))
        .collect();
    if n == 0 {
        // A bell, nearly.
        numbers.extend((0..1_000_000).map(|_| (0..4).map(|_| random.part()).sum::<f32>() - 2.0));
    } else {
        for number in &mut numbers {
            if random.below(5) == 0 {
                *number *= 0.99 + random.part() / 50.0;
            }
        }
    }
    let bytes: Vec<u8> = numbers.into_iter().flat_map(f32::to_le_bytes).collect();
    fs::write(path, bytes)?;
    Ok(true)
}

fn logs(tree: &Path, n: u64) -> Result<bool> {
    const LINES: u64 = 50_000;
    let line = |n: u64| {
        let mut random = Random(n + 1);
        let (x, y, page, size) = (
            random.below(256),
            random.below(256),
            random.below(50),
            random.below(20_000),
        );
        let (hours, minutes, seconds) = (n / 3600 % 24, n / 60 % 60, n % 60);
        format!(
            "2026-11-21T{hours:02}:{minutes:02}:{seconds:02}Z 10.0.{x}.{y} \"GET /page{page}\" 200 {size}\n"
        )
    };
    let first = n * LINES / 20;
    let all: String = (first..first + LINES).map(line).collect();
    fs::write(tree.join("access.log"), all)?;
    Ok(true)
}

fn checkout(tree: &Path, n: u64) -> Result<bool> {
    let git = || {
        let mut git = Command::new("git");
        git.arg("-C").arg(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
        git
    };
    let all = git()
        .args(["rev-list", "--first-parent", "--reverse", "HEAD"])
        .output();
    let all = all
        .map(|out| String::from_utf8_lossy(&out.stdout).into_owned())
        .unwrap_or_default();
    let all: Vec<&str> = all.lines().collect();
    let step = all.len() / usize::try_from(VERSIONS)?;
    let Some(commit) = all
        .get(all.len() / 2 + usize::try_from(n)? * step / 2)
        .filter(|_| step > 0)
    else {
        return Ok(false);
    };
    let dir = tree.join("source");
    if n > 0 {
        fs::remove_dir_all(&dir)?;
    }
    fs::create_dir(&dir)?;
    let archive = tree.with_extension("archive");
    quiet(git().args(["archive", "-o"]).arg(&archive).arg(commit))?;
    quiet(Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(&dir))?;
    fs::remove_file(archive)?;
    Ok(true)
}

/// No file follows a version of itself.
fn releases(tree: &Path, n: u64) -> Result<bool> {
    if n > 0 {
        fs::rename(tree.join(format!("release-{}", n - 1)), tree.join("source"))?;
    }
    let made = checkout(tree, n)?;
    if made {
        fs::rename(tree.join("source"), tree.join(format!("release-{n}")))?;
    }
    Ok(made)
}

fn noise(tree: &Path, n: u64) -> Result<bool> {
    let (path, mut random) = (tree.join("file"), Random(n + 1));
    let mut bytes = if n == 0 {
        vec![0; 1_000_000]
    } else {
        fs::read(&path)?
    };
    if n == 0 {
        random.fill(&mut bytes);
    } else {
        let at = random.below(900_000);
        random.fill(bytes.get_mut(at..at + 100_000).context("a tenth")?);
    }
    fs::write(path, bytes)?;
    Ok(true)
}

/// What makes patches, and where it puts them.
const PATCHES: [&str; 2] = ["zstd", "xdelta3"];

fn is_there(program: &str) -> bool {
    let told = Command::new(program).arg("-V").output();
    told.is_ok_and(|told| told.status.success())
}

/// The versions as tars, the first compressed, each other as a patch of the one before: what is small, and takes all
/// versions before it to be read.
fn patch(dir: &Path, tree: &Path, n: u64) -> Result<()> {
    let (before, now) = (dir.join("before.tar"), dir.join("now.tar"));
    quiet(
        Command::new("tar")
            .args(["--sort=name", "--mtime=@0", "-cf"])
            .arg(&now)
            .arg("-C")
            .arg(tree)
            .arg("."),
    )?;
    let mut zstd = Command::new("zstd");
    zstd.args(["-19", "--long=27", "-q"])
        .arg(&now)
        .arg("-o")
        .arg(dir.join("zstd").join(n.to_string()));
    if n > 0 {
        zstd.arg(format!("--patch-from={}", before.display()));
    }
    quiet(&mut zstd)?;
    if is_there("xdelta3") {
        let mut xdelta3 = Command::new("xdelta3");
        xdelta3.args(["-e", "-q", "-9", "-S", "lzma", "-B", "134217728"]);
        if n > 0 {
            xdelta3.arg("-s").arg(&before);
        }
        quiet(xdelta3.arg(&now).arg(dir.join("xdelta3").join(n.to_string())))?;
    }
    Ok(fs::rename(now, before)?)
}

/// As `diffkeeper gc --recompact`.
fn recompact(dir: &Path) -> Result<()> {
    let store = Store::open(dir, Hash::Blake3)?;
    for state in store.states()? {
        store.recompact(&state, |_| {})?;
    }
    store.gc(Thorough::Worthwhile, false, |_| {})?;
    let verified = store.verify(100, |_| {})?;
    ensure!(verified.problems.is_empty(), "{:?}", verified.problems);
    Ok(())
}

/// What each of those that are compared took for each version.
#[derive(Default)]
struct Over {
    sizes: Vec<Line>,
    times: Vec<Line>,
}

impl Over {
    fn note(&mut self, who: &str, size: f64, took: Option<f64>) {
        let add = |lines: &mut Vec<Line>, value| match lines.iter_mut().find(|line| line.name == who) {
            Some(line) => line.values.push(value),
            None => lines.push(Line {
                name: who.into(),
                ours: lines.is_empty(),
                values: vec![value],
            }),
        };
        add(&mut self.sizes, size);
        if let Some(took) = took {
            add(&mut self.times, took);
        }
    }

    /// Beside the figures.
    fn draw(&self, name: &str) -> Result<()> {
        let words: Vec<&str> = name
            .split([' ', ',', '%'])
            .filter(|word| !word.is_empty())
            .collect();
        let word = words.join("-").to_lowercase();
        let sizes = bench::beside(&format!("sizes-{word}.svg"))?;
        chart::draw(&sizes, name, "MB stored, before recompaction", &self.sizes)?;
        let times = bench::beside(&format!("times-{word}.svg"))?;
        chart::draw(&times, name, "ms for each version", &self.times)
    }
}

fn sizes(work: &Path, name: &str, make: Make) -> Result<Vec<Figure>> {
    let dir = work.join(name.replace(' ', "-"));
    let tree = dir.join("tree");
    fs::create_dir_all(&tree)?;
    for patches in PATCHES {
        fs::create_dir_all(dir.join(patches))?;
    }
    let mut over = Over::default();
    for n in 0..VERSIONS {
        if !make(&tree, n)? {
            println!("skipped: {name}: what makes it is not there");
            return Ok(Vec::new());
        }
        // A change within the clock's step is one that no times show.
        std::thread::sleep(Duration::from_millis(30));
        let took = milliseconds(|| record(&dir.join("store"), &tree).map(drop))?;
        over.note("DiffKeeper", ours_bytes(&dir.join("store"))?, Some(took));
        for peer in [Peer::Restic, Peer::Borg] {
            if n == 0 {
                peer.init(&dir)?;
            }
            let took = milliseconds(|| peer.backup(&dir, &tree, usize::try_from(n)?))?;
            over.note(peer.name(), bytes(&peer.repository(&dir))?, Some(took));
        }
        patch(&dir, &tree, n)?;
        for program in PATCHES.into_iter().filter(|program| is_there(program)) {
            over.note(program, bytes(&dir.join(program))?, None);
        }
    }
    over.draw(name)?;
    let after = ours_bytes(&dir.join("store"))?;
    recompact(&dir.join("store"))?;
    let idle = ours_bytes(&dir.join("store"))?;
    let (restic, borg) = (
        bytes(&Peer::Restic.repository(&dir))?,
        bytes(&Peer::Borg.repository(&dir))?,
    );
    let mut patches = Vec::new();
    for program in PATCHES.into_iter().filter(|program| is_there(program)) {
        patches.push((bytes(&dir.join(program))?, program));
    }
    let best = patches.iter().copied().min_by(|a, b| a.0.total_cmp(&b.0));
    let (best, maker) = best.context("a maker of patches")?;
    println!(
        "{name}: {after:.2} MB, recompacted {idle:.2}, restic {restic:.2}, borg {borg:.2}, patches {patches:.2?}"
    );
    fs::remove_dir_all(&dir)?;
    let beside = |peer: f64, name_of: &'static str, most: f64| {
        figure(name, "MB", &[idle], &[peer], name_of, &Bar::AtMost(most))
    };
    // A third of the better one, wherever that can be had.
    let dedup = restic.min(borg);
    let bar = if best < dedup / 3.0 { 0.333 } else { 1.0 };
    Ok(vec![
        beside(restic, "restic", if restic <= borg { bar } else { 1.0 }),
        beside(borg, "borg", if borg < restic { bar } else { 1.0 }),
        beside(best, maker, 1.1),
        figure(
            name,
            "MB",
            &[after],
            &[idle],
            "itself, recompacted",
            &Bar::AtMost(1.5),
        ),
    ])
}

fn main() -> Result<()> {
    if std::env::var("BENCH_ONLY").is_ok_and(|only| only != "delta" && only != "sizes") {
        return Ok(());
    }
    for peer in ["restic", "borg", "zstd"] {
        if Command::new(peer).arg("--version").output().is_err() {
            println!("skipped: sizes of versions: there is no {peer}");
            return Ok(());
        }
    }
    let work = tempfile::tempdir()?;
    let mut figures = Vec::new();
    let part = std::env::var("BENCH_PART").ok();
    for (name, make) in CORPORA {
        if part.as_deref().is_some_and(|part| !name.contains(part)) {
            continue;
        }
        figures.extend(sizes(work.path(), name, make)?);
    }
    bench::report(
        "sizes",
        &format!("{VERSIONS} versions, megabytes after recompaction"),
        &figures,
    )
}
