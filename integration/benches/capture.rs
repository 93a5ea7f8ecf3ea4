//! What a commit of a small change costs in a large tree, and what watching costs while little or nothing happens:
//! processor time, user and system, of the process that records. `make bench-capture`.
//!
//! Then what a commit of one changed page of a large file costs.
//!
//! Beside what is watched stands the same commit by looking at everything. `BENCH_ENTRIES` sets the size of the tree (0: none),
//! `BENCH_GIB` that of the file, `BENCH_DIR` the file system that they are on.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use integration::bench::{self, Bar, Figure, allowed, figure};
use keeper::{
    blueshift::{Capture, Freezer, Top},
    watcher::writers::Writers,
    watching::{Watched, Watching},
};
use nix::sys::resource::{UsageWho, getrusage};
use store::{Hash, Recorded, Store, format::Reason};

/// Nothing runs.
struct Still;

impl Freezer for Still {
    fn freeze(&self, _: Duration) -> std::io::Result<bool> {
        Ok(true)
    }

    fn thaw(&self) -> bool {
        true
    }
}

/// Milliseconds of processor time so far.
fn cpu() -> Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let ms = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 * 1e3 + time.tv_usec() as f64 / 1e3;
    Ok(ms(usage.user_time()) + ms(usage.system_time()))
}

fn record(store: &Store, upper: &Path, watching: Option<&Watching>) -> Result<Option<Recorded>> {
    let state = store.make_state("ctr/bench/bench", "ctr/bench")?;
    let tops = [Top {
        name: b"rootfs".to_vec(),
        path: upper.to_owned(),
        overlay: true,
    }];
    let nothing = || Ok(Writers::default());
    let capture = Capture {
        state: &state,
        tops: &tops,
        exclude: &[],
        freezer: Some(&Still),
        undisturbed: &|| true,
        max_pause: Duration::from_secs(1),
        reason: Reason::Interval,
        message: None,
        image: "",
        node: "bench",
        boot: "",
        watch: watching.map(|watching| Watched {
            watching,
            writers: &nothing,
            last: false,
        }),
    };
    Ok(capture.run(store)?)
}

/// Waits until nothing has changed so lately that it is looked at again.
fn settle(store: &Store, upper: &Path, watching: &Watching) -> Result<()> {
    std::thread::sleep(Duration::from_millis(50));
    for _ in 0..4 {
        record(store, upper, Some(watching))?;
    }
    Ok(())
}

fn change(upper: &Path, entries: usize, round: usize) -> Result<()> {
    for n in 0..10 {
        let at = (round * 7919 + n * 104_729) % entries;
        fs::write(
            upper.join(format!("{}/{}", at / 100, at % 100)),
            format!("{round} {n}"),
        )?;
    }
    Ok(())
}

/// A commit after one page of a file has changed, of which `cold` says whether the rest of it is in memory.
fn page(store: &Store, upper: &Path, watching: &Watching, round: u64, cold: bool) -> Result<(Recorded, f64)> {
    use std::os::unix::fs::FileExt;
    let file = fs::File::options().write(true).open(upper.join("large"))?;
    file.sync_all()?;
    if cold {
        let unneeded = nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED;
        nix::fcntl::posix_fadvise(&file, 0, 0, unneeded)?;
    }
    let pages = file.metadata()?.len() / 4096;
    let at = (round + 1) * 104_729 % pages * 4096;
    let bytes: Vec<u8> = (at..).step_by(7919).map(|n| (n >> 8) as u8).take(4096).collect();
    file.write_all_at(&bytes, at)?;
    std::thread::sleep(Duration::from_millis(50));
    let began = Instant::now();
    let made = record(store, upper, Some(watching))?.context("a commit")?;
    Ok((made, began.elapsed().as_secs_f64() * 1e3))
}

/// One page of a large file.
fn pages(figures: &mut Vec<Figure>) -> Result<()> {
    use std::io::Write;
    let gib: u64 = std::env::var("BENCH_GIB").map_or(Ok(1), |n| n.parse())?;
    let dir = temporary()?;
    let upper = dir.path().join("upper");
    for name in ["upper", "scratch"] {
        fs::create_dir_all(dir.path().join(name))?;
    }
    let mut file = fs::File::create_new(upper.join("large"))?;
    let mut state = 1_u64;
    for _ in 0..1 << 10 {
        let mut some = Vec::with_capacity(1 << 20);
        while some.len() < 1 << 20 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            some.extend_from_slice(&state.to_le_bytes());
        }
        file.write_all(&some)?;
    }
    // The others are the first one again: on XFS it takes no more room for that.
    let first = fs::File::open(upper.join("large"))?;
    let (mut from, mut to) = (0, 1 << 30);
    while to < gib << 30 {
        let most = (1 << 30) - from as usize;
        let copied = rustix::fs::copy_file_range(&first, Some(&mut from), &file, Some(&mut to), most)?;
        ensure!(copied > 0, "a copy that does not come to an end");
        from %= 1 << 30;
    }
    file.sync_all()?;
    let store = Store::open(&dir.path().join("store"), Hash::Blake3)?;
    let watching = Watching::auto(dir.path(), &dir.path().join("scratch"));
    if let Err(why) = watching.pages() {
        println!("skipped: {why}");
        return Ok(());
    }
    record(&store, &upper, Some(&watching))?;
    let scan = Watching::scan();
    for (what, cold) in [("in memory as it was written", false), ("cold", true)] {
        settle(&store, &upper, &watching)?;
        let (mut walls, mut read, mut written) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..15 {
            let (made, wall) = page(&store, &upper, &watching, round + u64::from(cold) * 15, cold)?;
            ensure!(made.commit.changed == 1, "{} changed", made.commit.changed);
            walls.push(wall);
            read.push(made.commit.read as f64 / 1024.0);
            written.push(made.commit.written as f64 / 1024.0);
        }
        let case = |of: &str| format!("a page of {gib} GiB, {what}: {of}");
        figures.extend([
            allowed(&case("clock"), "ms", bench::median(&walls), 20.0),
            allowed(&case("read"), "KiB", bench::median(&read), 1024.0),
            allowed(&case("written"), "KiB", bench::median(&written), 16.0),
        ]);
    }
    let (_, wall) = page(&store, &upper, &scan, 99, false)?;
    println!("the same page, all of the file compared: {wall:.0} ms");
    Ok(())
}

fn temporary() -> Result<tempfile::TempDir> {
    Ok(match std::env::var_os("BENCH_DIR") {
        Some(on) => tempfile::tempdir_in(on)?,
        None => tempfile::tempdir()?,
    })
}

/// Ten entries of many, one that is written again and again, and none.
fn entries(entries: usize, figures: &mut Vec<Figure>) -> Result<()> {
    let dir = temporary()?;
    let upper = dir.path().join("upper");
    fs::create_dir_all(dir.path().join("scratch"))?;
    for at in 0..entries / 100 {
        let below = upper.join(at.to_string());
        fs::create_dir_all(&below)?;
        for n in 0..100 {
            fs::write(below.join(n.to_string()), "small")?;
        }
    }
    let store = Store::open(&dir.path().join("store"), Hash::Blake3)?;
    let watching = Watching::auto(dir.path(), &dir.path().join("scratch"));
    if let Err(why) = watching.fanotify() {
        println!("skipped: {why}");
        return Ok(());
    }
    record(&store, &upper, None)?;
    record(&store, &upper, Some(&watching))?;

    let (mut ours, mut walls) = (Vec::new(), Vec::new());
    for round in 0..15 {
        settle(&store, &upper, &watching)?;
        change(&upper, entries, round)?;
        std::thread::sleep(Duration::from_millis(50));
        let (before, began) = (cpu()?, Instant::now());
        let made = record(&store, &upper, Some(&watching))?.context("a commit")?;
        ours.push(cpu()? - before);
        walls.push(began.elapsed().as_secs_f64() * 1e3);
        ensure!(made.commit.changed == 10, "{} changed", made.commit.changed);
        ensure!(made.commit.watcher == store::format::Watcher::Ebpf as i32);
    }
    // One line a second, as a quiet service writes, for a while.
    settle(&store, &upper, &watching)?;
    let seconds = 10;
    let before = cpu()?;
    let lines = || -> Result<()> {
        use std::io::Write;
        fs::File::options()
            .append(true)
            .open(upper.join("0/0"))?
            .write_all(b"a line\n")?;
        Ok(())
    };
    for _ in 0..seconds {
        lines()?;
        record(&store, &upper, Some(&watching))?;
        std::thread::sleep(Duration::from_secs(1));
    }
    let lightly = (cpu()? - before) / (seconds as f64 * 10.0);
    settle(&store, &upper, &watching)?;
    let before = cpu()?;
    let looks = 50;
    for _ in 0..looks {
        ensure!(
            record(&store, &upper, Some(&watching))?.is_none(),
            "nothing had changed"
        );
    }
    let nothing = (cpu()? - before) / f64::from(looks);

    let mut peer = Vec::new();
    for round in 15..18 {
        change(&upper, entries, round)?;
        std::thread::sleep(Duration::from_millis(50));
        let before = cpu()?;
        record(&store, &upper, None)?.context("a commit")?;
        peer.push(cpu()? - before);
    }
    figures.extend([
        allowed(
            &format!("10 changes among {entries}: processor"),
            "ms",
            bench::median(&ours),
            20.0,
        ),
        allowed(
            &format!("10 changes among {entries}: clock"),
            "ms",
            bench::median(&walls),
            20.0,
        ),
        figure(
            "the same, beside looking at everything",
            "ms",
            &[bench::median(&ours)],
            &[bench::median(&peer)],
            "scan",
            &Bar::AtMost(0.1),
        ),
        allowed("a line a second: part of a core", "%", lightly, 1.0),
        allowed("a look where nothing has changed", "ms", nothing, 1.0),
    ]);
    Ok(())
}

fn main() -> Result<()> {
    if std::env::args().any(|arg| arg == "--list") {
        return Ok(());
    }
    let mut figures = Vec::new();
    let many = std::env::var("BENCH_ENTRIES").map_or(Ok(1_000_000), |n| n.parse())?;
    if many > 0 {
        entries(many, &mut figures)?;
    }
    pages(&mut figures)?;
    bench::report("capture", "Commits of small changes", &figures)
}
