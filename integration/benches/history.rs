//! Recording and going back, beside restic and borg (Debian's packages, their own defaults) and `cp -a`. `make bench`.
//!
//! Ours is timed from opening the store to the commit that is on the disk; the peers as the commands that people run, which
//! open their repository too. All read the same tree, by turns.

use std::{
    collections::HashMap,
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use integration::{
    bench::{self, Bar, Figure, Random, figure, milliseconds},
    peers::{Peer, ROOT, bytes, ours_bytes, quiet, record},
};
use keeper::redshift::{Plan, Progress};
use store::{Hash, Recorded, Store};

fn materialise(store: &Path, recorded: &Recorded, to: &Path, sync: bool) -> Result<()> {
    let store = Store::open(store, Hash::Blake3)?;
    materialise_open(&store, recorded, to, sync)
}

fn materialise_open(store: &Store, recorded: &Recorded, to: &Path, sync: bool) -> Result<()> {
    let state = store.state("ctr/bench/bench")?.context("the state")?;
    let plan = Plan {
        domain: state.domain,
        tree: recorded.commit.tree_id()?,
        below: None,
        tops: HashMap::from([(ROOT.to_vec(), to.to_owned())]),
        overlay: false,
        sync,
    };
    Ok(plan.run(store, &Progress::default())?)
}

fn drop_caches() -> Result<()> {
    nix::unistd::sync();
    fs::write("/proc/sys/vm/drop_caches", "3").context("drop the kernel's caches (root)")
}

/// A data set: how it is made, and how one part in a hundred of it changes.
struct Data {
    name: &'static str,
    make: fn(&Path) -> Result<()>,
    change: fn(&Path, u64) -> Result<()>,
}

fn tree_of_small_files(to: &Path) -> Result<()> {
    for from in ["/usr/share", "/usr/include"] {
        quiet(Command::new("cp").args(["-a", from]).arg(to))?;
    }
    Ok(())
}

fn files(dir: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            files(&entry.path(), found)?;
        } else if kind.is_file() {
            found.push(entry.path());
        }
    }
    Ok(())
}

fn change_small_files(tree: &Path, seed: u64) -> Result<()> {
    let mut all = Vec::new();
    files(tree, &mut all)?;
    all.sort();
    for path in all.iter().skip(usize::try_from(seed)? % 100).step_by(100) {
        fs::write(path, format!("version {seed} of {}\n", path.display()))?;
    }
    Ok(())
}

/// Half of each page is noise, half is text: what a database's file is like for a compressor.
fn large_file(to: &Path) -> Result<()> {
    let gib: u64 = std::env::var("BENCH_GIB")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(4);
    let file = fs::File::create(to.join("large"))?;
    let mut random = Random(42);
    let mut page = vec![b'x'; 8192];
    let mut block = Vec::with_capacity(8 << 20);
    for n in 0..(gib << 30) / (8 << 20) {
        block.clear();
        for _ in 0..1024 {
            random.fill(&mut page[..4096]);
            block.extend_from_slice(&page);
        }
        file.write_all_at(&block, n * (8 << 20))?;
    }
    Ok(())
}

fn change_large_file(tree: &Path, seed: u64) -> Result<()> {
    let file = fs::File::options().write(true).open(tree.join("large"))?;
    let pages = file.metadata()?.len() / 8192;
    let mut random = Random(seed + 1);
    let mut page = vec![b'y'; 8192];
    // One page in a hundred, in stretches of 16: a table that grows, an index that is worked on.
    for _ in 0..pages / 1600 {
        let at = random.number() % (pages - 16);
        for n in 0..16 {
            random.fill(&mut page[..4096]);
            file.write_all_at(&page, (at + n) * 8192)?;
        }
    }
    Ok(())
}

/// Runs a script in a root of its own that has PostgreSQL, with the cluster in `/data` and the server up.
fn in_postgresql(root: &Path, script: &str) -> Result<()> {
    let server = "export PATH=/usr/lib/postgresql/15/bin:$PATH LC_ALL=C; \
                  pg_ctl -D /data -o '-k /tmp -c listen_addresses=' -w start >/dev/null";
    let all = format!("{server} && {{ {script}; }} >/dev/null && pg_ctl -D /data -m fast -w stop >/dev/null");
    quiet(
        Command::new("chroot")
            .arg(root)
            .args(["busybox", "su", "-s", "/bin/sh", "-m", "-c", &all, "postgres"]),
    )
}

/// The root lies beside the tree, the cluster in the tree: bound together while a script runs.
fn with_cluster(tree: &Path, run: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let root = tree.with_extension("root");
    let (data, dev) = (root.join("data"), root.join("dev"));
    quiet(Command::new("mount").arg("--bind").arg(tree).arg(&data))?;
    quiet(Command::new("mount").args(["--bind", "/dev"]).arg(&dev))?;
    let done = run(&root);
    quiet(Command::new("umount").arg(&dev).arg(&data))?;
    done
}

/// 30 times pgbench's smallest: some 450 MB.
fn cluster(tree: &Path) -> Result<()> {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    quiet(Command::new(repository.join("hack/images/build")).arg("postgresql"))?;
    let root = tree.with_extension("root");
    let layers = tree.with_extension("layers");
    fs::create_dir_all(root.join("data"))?;
    fs::create_dir_all(&layers)?;
    let archive = repository.join("target/images/postgresql.tar");
    quiet(Command::new("tar").arg("-xf").arg(archive).arg("-C").arg(&layers))?;
    let manifest: serde_json::Value = serde_json::from_slice(&fs::read(layers.join("manifest.json"))?)?;
    for layer in manifest[0]["Layers"].as_array().context("the image's layers")? {
        let layer = layers.join(layer.as_str().context("a layer's name")?);
        quiet(Command::new("tar").arg("-xf").arg(layer).arg("-C").arg(&root))?;
    }
    fs::remove_dir_all(&layers)?;
    std::os::unix::fs::chown(tree, Some(999), Some(999))?;
    with_cluster(tree, |root| {
        let init = "PATH=/usr/lib/postgresql/15/bin:$PATH initdb -D /data --data-checksums --locale C --encoding UTF8 >/dev/null";
        quiet(
            Command::new("chroot")
                .arg(root)
                .args(["busybox", "su", "-s", "/bin/sh", "-m", "-c", init, "postgres"]),
        )?;
        in_postgresql(root, "pgbench -q -i -s 30 -h /tmp postgres 2>&1")
    })
}

fn change_cluster(tree: &Path, seed: u64) -> Result<()> {
    with_cluster(tree, |root| {
        in_postgresql(
            root,
            &format!("pgbench -n -t 1000 --random-seed={seed} -h /tmp postgres 2>&1"),
        )
    })
}

const DATA: [Data; 3] = [
    Data {
        name: "a PostgreSQL cluster",
        make: cluster,
        change: change_cluster,
    },
    Data {
        name: "small files (/usr/share, /usr/include)",
        make: tree_of_small_files,
        change: change_small_files,
    },
    Data {
        name: "one large file",
        make: large_file,
        change: change_large_file,
    },
];

/// Ours, and a peer's.
type Pairs = (Vec<f64>, Vec<f64>);

fn versus(work: &Path, data: &Data, pairs: usize) -> Result<Vec<Figure>> {
    let tree = work.join("tree");
    fs::create_dir_all(&tree)?;
    (data.make)(&tree)?;
    let mut samples: HashMap<(&str, &str), Pairs> = HashMap::new();
    let mut sizes: HashMap<&str, Pairs> = HashMap::new();
    for pair in 0..pairs {
        let dir = work.join(format!("round{pair}"));
        fs::create_dir_all(&dir)?;
        let store = dir.join("store");
        let mut order = vec![None, Some(Peer::Restic), Some(Peer::Borg)];
        order.rotate_left(pair % 3);
        let mut times: HashMap<(&str, Option<&str>), f64> = HashMap::new();
        let mut note =
            |what: &'static str, who: Option<Peer>, ms: f64| times.insert((what, who.map(Peer::name)), ms);
        for who in &order {
            if let Some(peer) = who {
                peer.init(&dir)?;
            }
            // Warm: everybody finds the tree in memory.
            quiet(
                Command::new("sh")
                    .args(["-c", "tar cf - . | cat >/dev/null"])
                    .current_dir(&tree),
            )?;
            nix::unistd::sync();
            let ms = milliseconds(|| match who {
                None => record(&store, &tree).map(drop),
                Some(peer) => peer.backup(&dir, &tree, 0),
            })?;
            note("first commit", *who, ms);
        }
        // The same cold, into repositories that are thrown away.
        let spare = work.join(format!("round{pair}-cold"));
        fs::create_dir_all(&spare)?;
        for who in &order {
            if let Some(peer) = who {
                peer.init(&spare)?;
            }
            nix::unistd::sync();
            drop_caches()?;
            let ms = milliseconds(|| match who {
                None => record(&spare.join("store"), &tree).map(drop),
                Some(peer) => peer.backup(&spare, &tree, 0),
            })?;
            note("first commit, cold", *who, ms);
        }
        fs::remove_dir_all(&spare)?;
        (data.change)(&tree, pair as u64)?;
        nix::unistd::sync();
        std::thread::sleep(Duration::from_millis(100));
        let mut last = None;
        for who in &order {
            quiet(
                Command::new("sh")
                    .args(["-c", "tar cf - . | cat >/dev/null"])
                    .current_dir(&tree),
            )?;
            let ms = milliseconds(|| match who {
                None => {
                    last = Some(record(&store, &tree)?);
                    Ok(())
                }
                Some(peer) => peer.backup(&dir, &tree, 1),
            })?;
            note("next commit, 1% changed", *who, ms);
        }
        let last = last.context("a commit")?;
        for cold in [false, true] {
            let what = if cold {
                "materialised, cold"
            } else {
                "materialised, warm"
            };
            for who in &order {
                let to = dir.join("restored");
                nix::unistd::sync();
                if cold {
                    drop_caches()?;
                }
                let ms = milliseconds(|| match who {
                    None => materialise(&store, &last, &to, false),
                    Some(peer) => peer.restore(&dir, 1, &to),
                })?;
                note(what, *who, ms);
                fs::remove_dir_all(&to)?;
            }
        }
        let to = dir.join("copied");
        nix::unistd::sync();
        let ms = milliseconds(|| quiet(Command::new("cp").arg("-a").arg(&tree).arg(&to)))?;
        fs::remove_dir_all(&to)?;
        for what in [
            "first commit",
            "first commit, cold",
            "next commit, 1% changed",
            "materialised, warm",
            "materialised, cold",
        ] {
            let ours = times[&(what, None)];
            for peer in [Peer::Restic, Peer::Borg] {
                let (a, b) = samples.entry((what, peer.name())).or_default();
                a.push(ours);
                b.push(times[&(what, Some(peer.name()))]);
            }
        }
        let (a, b) = samples.entry(("materialised, warm", "cp -a")).or_default();
        a.push(times[&("materialised, warm", None)]);
        b.push(ms);
        for peer in [Peer::Restic, Peer::Borg] {
            let (a, b) = sizes.entry(peer.name()).or_default();
            a.push(ours_bytes(&store)?);
            b.push(bytes(&peer.repository(&dir))?);
        }
        fs::remove_dir_all(&dir)?;
    }
    fs::remove_dir_all(&tree)?;
    match fs::remove_dir_all(tree.with_extension("root")) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    let mut figures = Vec::new();
    for (what, peers, bar) in [
        ("first commit", ["restic", "borg"].as_slice(), 0.5),
        ("first commit, cold", &["restic", "borg"], 0.5),
        ("next commit, 1% changed", &["restic", "borg"], 0.2),
        ("materialised, warm", &["restic"], 0.5),
        ("materialised, cold", &["restic"], 0.5),
        ("materialised, warm", &["cp -a"], 1.0 / 0.7),
    ] {
        for peer in peers {
            let (ours, theirs) = &samples[&(what, *peer)];
            figures.push(figure(
                &format!("{}: {what}", data.name),
                "ms",
                ours,
                theirs,
                peer,
                &Bar::AtMost(bar),
            ));
        }
    }
    for peer in ["restic", "borg"] {
        let (ours, theirs) = &sizes[peer];
        let case = format!("{}: stored, both commits", data.name);
        figures.push(figure(&case, "MB", ours, theirs, peer, &Bar::AtMost(1.0)));
    }
    Ok(figures)
}

/// 20 versions of 1 MB, a tenth changed each time: only the bytes are of interest.
fn versions(work: &Path) -> Result<Vec<Figure>> {
    let tree = work.join("versions");
    fs::create_dir_all(&tree)?;
    let dir = work.join("versions-stores");
    fs::create_dir_all(&dir)?;
    let mut random = Random(7);
    let mut content = vec![0; 1_000_000];
    random.fill(&mut content);
    for peer in [Peer::Restic, Peer::Borg] {
        peer.init(&dir)?;
    }
    for n in 0..20 {
        if n > 0 {
            let at = usize::try_from(random.number() % 900_000)?;
            random.fill(&mut content[at..at + 100_000]);
        }
        fs::write(tree.join("file"), &content)?;
        std::thread::sleep(Duration::from_millis(30));
        record(&dir.join("store"), &tree)?;
        for peer in [Peer::Restic, Peer::Borg] {
            peer.backup(&dir, &tree, n)?;
        }
    }
    let ours = ours_bytes(&dir.join("store"))?;
    let mut figures = Vec::new();
    for peer in [Peer::Restic, Peer::Borg] {
        let theirs = bytes(&peer.repository(&dir))?;
        figures.push(figure(
            "20 versions of 1 MB, 10% changed: stored",
            "MB",
            &[ours],
            &[theirs],
            peer.name(),
            &Bar::AtMost(1.0),
        ));
    }
    Ok(figures)
}

/// The predecessor's figures: 61 small files, one of 10 MB, a look-up, a proof.
fn small(work: &Path, pairs: usize) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for (name, count, size, limit) in [
        ("61 small files", 61, 4096, 5.0),
        ("a file of 10 MB", 1, 10_000_000, 10.0),
    ] {
        let tree = work.join(format!("small-{count}"));
        fs::create_dir_all(&tree)?;
        let mut random = Random(3);
        for n in 0..count {
            let mut content = vec![0; size];
            random.fill(&mut content);
            fs::write(tree.join(format!("file{n}")), content)?;
        }
        let dir = work.join(format!("small-store-{count}"));
        let recorded = record(&dir, &tree)?;
        let store = Store::open(&dir, Hash::Blake3)?;
        for synced in [true, false] {
            let (mut ours, mut theirs) = (Vec::new(), Vec::new());
            for pair in 0..pairs * 4 {
                let to = work.join("restored");
                for who in if pair % 2 == 0 {
                    [true, false]
                } else {
                    [false, true]
                } {
                    nix::unistd::sync();
                    let ms = milliseconds(|| {
                        if who {
                            return materialise_open(&store, &recorded, &to, synced);
                        }
                        quiet(Command::new("cp").arg("-a").arg(&tree).arg(&to))?;
                        if synced {
                            let open = fs::File::open(&to)?;
                            nix::unistd::syncfs(&open)?;
                        }
                        Ok(())
                    })?;
                    if who {
                        ours.push(ms)
                    } else {
                        theirs.push(ms)
                    }
                    fs::remove_dir_all(&to)?;
                }
            }
            let case = format!(
                "{name} restored, {}",
                if synced { "synced" } else { "not synced" }
            );
            let mut made = figure(&case, "ms", &ours, &theirs, "cp -a", &Bar::AtMost(1.2));
            if !synced {
                made.bar = format!("under {limit} ms");
                made.holds = made.ours < limit;
            }
            figures.push(made);
        }
    }
    // A look-up and a proof among 100,000 entries.
    let store = Store::open(&work.join("wide"), Hash::Blake3)?;
    let state = store.make_state("ctr/bench/bench", "ctr/bench")?;
    let session = store.session(state.domain);
    let entry = |n: u64| store::format::Entry {
        key: store::format::key(ROOT, format!("dir{}/file{n}", n % 301).as_bytes()),
        size: 3,
        inline: b"abc".to_vec(),
        ..store::format::Entry::default()
    };
    let all = (0..100_000).map(|n| (entry(n).key, Some(entry(n))));
    let top = session.tree(None, all)?;
    let commit = store::format::Commit {
        tree: top.id.0.to_vec(),
        ..store::format::Commit::default()
    };
    let commit = session.commit(&state, commit, |_| {})?.commit;
    drop(session);
    let (mut look, mut prove) = (Vec::new(), Vec::new());
    for n in 0..2000u64 {
        let key = entry(n * 47 % 100_000).key;
        let since = Instant::now();
        ensure!(store.entry(state.domain, top.id, &key)?.is_some(), "it is there");
        look.push(since.elapsed().as_secs_f64() * 1e6);
        let since = Instant::now();
        let proof = store.prove(state.domain, &commit, &key)?;
        proof.check()?;
        prove.push(since.elapsed().as_secs_f64() * 1e6);
    }
    for (case, samples, limit, peer) in [
        ("a look-up among 100,000 entries", look, 20.0, 134.0),
        ("a proof among them, made and checked", prove, 1000.0, 933.0),
    ] {
        let ours = bench::median(&samples);
        figures.push(Figure {
            case: case.into(),
            unit: "us",
            ours,
            peer,
            peer_name: "its claim",
            ratio: ours / peer,
            interval: None,
            bar: format!("under {limit} us"),
            holds: ours < limit,
        });
    }
    Ok(figures)
}

/// The memory of a keeper that commits ten states of a gibibyte each, and of one that has 10 GiB stored and nothing to do.
fn keeper_memory(work: &Path) -> Result<Vec<Figure>> {
    let gib: usize = std::env::var("BENCH_GIB")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(10)
        .min(10);
    let root = work.join("node");
    let node = live::Node::open(&root)?;
    let mut random = Random(11);
    let mut block = vec![0; 8 << 20];
    for n in 0..gib {
        let state = node.state(&format!("ctr/bench/s{n}").parse()?);
        let dir = state.root(&live::Root::Rootfs)?;
        dir.prepare_overlay(0o755, (0, 0))?;
        let file = fs::File::create(dir.upper().join("data"))?;
        for at in 0..128u64 {
            random.fill(&mut block);
            file.write_all_at(&block, at * (8 << 20))?;
        }
    }
    let config = work.join("node.toml");
    let socket = work.join("keeper.sock");
    fs::write(
        &config,
        format!(
            "root = {:?}\nkeeper = {:?}\n[history]\nmetrics = \"off\"\n",
            root.display().to_string(),
            socket.display().to_string()
        ),
    )?;
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/release/diffkeeper");
    let start = || -> Result<std::process::Child> {
        let child = Command::new(&program)
            .arg("keeper")
            .env("DIFFKEEPER_CONFIG", &config)
            .stderr(std::process::Stdio::null())
            .spawn()?;
        integration::wait::until("the keeper", Duration::from_secs(20), || {
            std::os::unix::net::UnixStream::connect(&socket).is_ok()
        })?;
        Ok(child)
    };
    let say = |args: &[&str]| {
        quiet(
            Command::new(&program)
                .args(args)
                .env("DIFFKEEPER_CONFIG", &config),
        )
    };
    let status = |pid: u32, field: &str| -> Result<f64> {
        let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(field))
            .context("a field")?;
        Ok(line.trim().trim_end_matches("kB").trim().parse::<f64>()? / 1024.0)
    };
    let mut child = start()?;
    for n in 0..gib {
        say(&["commit", &format!("s{n}")])?;
    }
    let busy = status(child.id(), "VmHWM:")?;
    // All of it is elsewhere when a byte is in front of it: none of its boundaries is where it was, nor any of its pages.
    let moved = node
        .state(&"ctr/bench/moved".parse()?)
        .root(&live::Root::Rootfs)?;
    moved.prepare_overlay(0o755, (0, 0))?;
    let long = moved.upper().join("data");
    let write_long = |front: &[u8]| -> Result<()> {
        let mut random = Random(12);
        let mut block = vec![0; 8 << 20];
        let file = fs::File::create(&long)?;
        file.write_all_at(front, 0)?;
        for at in 0..256u64 {
            random.fill(&mut block);
            file.write_all_at(&block, front.len() as u64 + at * (8 << 20))?;
        }
        Ok(())
    };
    write_long(b"")?;
    say(&["commit", "moved"])?;
    child.kill()?;
    child.wait()?;
    let mut child = start()?;
    say(&["stats"])?;
    say(&["log", "s0"])?;
    std::thread::sleep(Duration::from_secs(2));
    let idle = status(child.id(), "VmRSS:")?;
    let cpu = |pid: u32| -> Result<u64> {
        let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let switches = text.lines().filter(|line| line.contains("ctxt_switches"));
        Ok(switches
            .filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok())
            .sum())
    };
    let before = cpu(child.id())?;
    std::thread::sleep(Duration::from_secs(10));
    let woken = cpu(child.id())? - before;
    write_long(b"1")?;
    let idle_before = status(child.id(), "VmRSS:")?;
    // The peak is counted anew (proc(5), clear_refs).
    fs::write(format!("/proc/{}/clear_refs", child.id()), "5")?;
    say(&["commit", "moved"])?;
    let shifted = status(child.id(), "VmHWM:")? - idle_before;
    child.kill()?;
    child.wait()?;
    let plain = |case: String, unit, ours: f64, bar: &str, holds| Figure {
        case,
        unit,
        ours,
        peer: f64::NAN,
        peer_name: "-",
        ratio: f64::NAN,
        interval: None,
        bar: bar.into(),
        holds,
    };
    Ok(vec![
        plain(
            format!("keeper's memory, committing {gib} x 1 GiB, peak"),
            "MiB",
            busy,
            "under 256 MiB",
            busy < 256.0,
        ),
        plain(
            format!("keeper's memory, {gib} GiB and {gib} states stored, idle"),
            "MiB",
            idle,
            "under 64 MiB",
            idle < 64.0,
        ),
        plain(
            "keeper's memory, a byte in front of 2 GiB, peak above idle".into(),
            "MiB",
            shifted,
            "at most 64 MiB",
            shifted <= 64.0,
        ),
        #[allow(clippy::cast_precision_loss)]
        plain(
            "wake-ups of its main thread in 10 s with no container".into(),
            "",
            woken as f64,
            "none",
            woken == 0,
        ),
    ])
}

fn main() -> Result<()> {
    if std::env::var("BENCH_ONLY").is_ok_and(|only| !only.split(',').any(|name| name == "history")) {
        return Ok(());
    }
    for peer in ["restic", "borg"] {
        if Command::new(peer).arg("--version").output().is_err() {
            println!("skipped: the benchmarks of histories: {peer} is not installed (hack/setup bench)");
            return Ok(());
        }
    }
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: the benchmarks of histories: not root (the kernel's caches are dropped)");
        return Ok(());
    }
    let pairs: usize = std::env::var("BENCH_PAIRS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(3);
    let work = tempfile::tempdir_in(std::env::var("BENCH_DIR").unwrap_or_else(|_| "/var/tmp".into()))?;
    let part = std::env::var("BENCH_PART").ok();
    let wanted = |name: &str| part.as_deref().is_none_or(|part| part == name);
    let mut figures = Vec::new();
    if wanted("small") {
        figures.extend(small(work.path(), pairs)?);
    }
    if wanted("versions") {
        figures.extend(versions(work.path())?);
    }
    for data in &DATA {
        if wanted("versus") || part.as_deref().is_some_and(|part| data.name.contains(part)) {
            figures.extend(versus(work.path(), data, pairs)?);
        }
    }
    if wanted("keeper") {
        figures.extend(keeper_memory(work.path())?);
    }
    let heading = format!("Histories beside restic, borg and cp, {pairs} rounds by turns");
    bench::report("history", &heading, &figures)
}
