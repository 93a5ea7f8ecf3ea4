//! The shim beside the stock one: alternating pairs in one run, medians of the paired ratios with their 95%
//! intervals. `make bench`; `BENCH_PAIRS` sets the number of pairs (30), `BENCH_ONLY` one group of them.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use integration::{
    Daemon, OURS, STOCK,
    api::Api,
    bench::{self, Bar, Figure, Samples, figure, milliseconds},
    history::Keeper,
    wait::until,
};

fn life_cycle(d: &Daemon, pairs: usize) -> Result<Vec<Figure>> {
    let image = d.import("busybox")?;
    let mut samples = Samples::new();
    for n in 0..pairs {
        // Who goes first alternates, so that neither always meets the other's aftermath.
        let order = if n % 2 == 0 { [OURS, STOCK] } else { [STOCK, OURS] };
        for runtime in order {
            let name = format!("b{n}-{}", if runtime == OURS { "ours" } else { "stock" });
            let mut take = |case: &'static str, ms: f64| {
                let pair = samples.entry(case).or_default();
                if runtime == OURS {
                    pair.0.push(ms)
                } else {
                    pair.1.push(ms)
                }
            };
            let ctr = |args: &[&str]| d.ctr(args)?.ok().map(drop);
            take(
                "ctr run --rm true",
                milliseconds(|| ctr(&["run", "--rm", "--runtime", runtime, &image, &name, "true"]))?,
            );
            take(
                "ctr run -d",
                milliseconds(|| ctr(&["run", "-d", "--runtime", runtime, &image, &name, "sleep", "1000"]))?,
            );
            // Nearly all of an exec is the runtime's own time, and scatters: more pairs tell more.
            for _ in 0..4 {
                take(
                    "ctr task exec true",
                    milliseconds(|| ctr(&["task", "exec", "--exec-id", "e", &name, "true"]))?,
                );
            }
            take(
                "ctr task rm -f",
                milliseconds(|| ctr(&["task", "rm", "-f", &name]))?,
            );
            d.forget(&name)?;
        }
    }
    let figures = samples
        .iter()
        .map(|(case, (ours, stock))| figure(case, "ms", ours, stock, "stock shim", &Bar::UpperAtMost(1.03)));
    Ok(figures.collect())
}

/// Containers per second, made and removed by several clients of containerd's API at once: what containerd-stress
/// measures, which needs a registry to pull from.
fn throughput(d: &Daemon, pairs: usize) -> Result<Vec<Figure>> {
    const EACH_ROUND: usize = 8;
    let image = d.import("busybox")?;
    d.ctr(&["container", "create", &image, "model", "true"])?.ok()?;
    let model = Api::connect(d)?.model("model")?;
    let rate = |runtime: &str, apis: &[Api]| -> Result<f64> {
        let since = Instant::now();
        std::thread::scope(|scope| {
            let threads: Vec<_> = apis
                .iter()
                .enumerate()
                .map(|(c, api)| {
                    let model = &model;
                    scope.spawn(move || -> Result<()> {
                        (0..EACH_ROUND / apis.len())
                            .try_for_each(|n| api.life(&format!("t{c}-{n}"), runtime, model))
                    })
                })
                .collect();
            threads
                .into_iter()
                .try_for_each(|t| t.join().unwrap_or_else(|_| anyhow::bail!("a client failed")))
        })?;
        Ok(EACH_ROUND as f64 / since.elapsed().as_secs_f64())
    };
    let mut figures = Vec::new();
    for clients in [1, 4] {
        let apis = (0..clients)
            .map(|_| Api::connect(d))
            .collect::<Result<Vec<_>>>()?;
        let (mut ours, mut stock) = (Vec::new(), Vec::new());
        for n in 0..pairs {
            let order = if n % 2 == 0 { [OURS, STOCK] } else { [STOCK, OURS] };
            for runtime in order {
                let rate = rate(runtime, &apis)?;
                if runtime == OURS {
                    ours.push(rate)
                } else {
                    stock.push(rate)
                }
            }
        }
        let case = format!("containers made and removed, {clients} at a time");
        figures.push(figure(
            &case,
            "1/s",
            &ours,
            &stock,
            "stock shim",
            &Bar::LowerAtLeast(1.2),
        ));
    }
    d.forget("model")?;
    Ok(figures)
}

/// Proportional set size, in MiB.
fn pss(pid: i32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let line = text
        .lines()
        .find_map(|l| l.strip_prefix("Pss:"))
        .context("no Pss")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse::<f64>()? / 1024.0)
}

fn memory(d: &Daemon) -> Result<Vec<Figure>> {
    let image = d.import("busybox")?;
    let measure = |runtime: &str, count: usize, group: bool| -> Result<f64> {
        let names: Vec<String> = (0..count).map(|n| format!("m{n}")).collect();
        for name in &names {
            let mut line = vec!["run", "-d", "--runtime", runtime];
            if group {
                line.extend_from_slice(&["--annotation", "io.containerd.runc.v2.group=bench"]);
            }
            line.extend_from_slice(&[&image, name, "sleep", "1000"]);
            d.ctr(&line)?.ok()?;
        }
        std::thread::sleep(Duration::from_secs(3));
        let shims = d.shims(None);
        ensure!(
            shims.len() == if group { 1 } else { count },
            "{} shims for {count} containers",
            shims.len()
        );
        let total = shims.iter().map(|pid| pss(*pid)).sum::<Result<f64>>()?;
        for name in &names {
            d.forget(name)?;
        }
        until("the shims' end", Duration::from_secs(20), || {
            d.shims(None).is_empty()
        })?;
        Ok(total / shims.len() as f64)
    };
    let mut figures = Vec::new();
    for (case, count, group) in [
        ("idle shim alone, PSS", 1, false),
        ("each of 10 idle shims, PSS", 10, false),
        ("a pod of 10 containers, PSS", 10, true),
    ] {
        let (mut ours, mut stock) = (Vec::new(), Vec::new());
        for _ in 0..3 {
            ours.push(measure(OURS, count, group)?);
            stock.push(measure(STOCK, count, group)?);
        }
        figures.push(figure(
            case,
            "MiB",
            &ours,
            &stock,
            "stock shim",
            &Bar::AtMost(1.0 / 3.0),
        ));
    }
    Ok(figures)
}

/// A start with 4 GiB in 100,000 files kept, beside one with nothing kept.
fn kept(d: &Daemon, pairs: usize) -> Result<Figure> {
    let image = d.import("busybox")?;
    let full = "diffkeeper.io/state=full";
    d.ctr(&[
        "run",
        "--rm",
        "--runtime",
        OURS,
        "--annotation",
        full,
        &image,
        "fill",
        "true",
    ])?
    .ok()?;
    let upper = d.upper("full");
    // Filled from outside while no container uses it: 100 directories of 1,000 files of 42 KiB.
    let content = vec![7u8; 42 * 1024];
    for dir in 0..100 {
        let dir = upper.join(format!("d{dir}"));
        fs::create_dir(&dir)?;
        for file in 0..1000 {
            fs::write(dir.join(file.to_string()), &content)?;
        }
    }
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for n in 0..2 * pairs {
        let start = |state: &str, name: &str| {
            milliseconds(|| {
                d.ctr(&[
                    "run",
                    "--rm",
                    "--runtime",
                    OURS,
                    "--annotation",
                    state,
                    &image,
                    name,
                    "true",
                ])?
                .ok()
                .map(drop)
            })
        };
        // Who goes first alternates here too.
        let turns = if n % 2 == 0 { [true, false] } else { [false, true] };
        for kept in turns {
            if kept {
                with.push(start(full, &format!("f{n}"))?);
            } else {
                without.push(start("diffkeeper.io/state=empty", &format!("e{n}"))?);
            }
        }
    }
    Ok(figure(
        "ctr run --rm, 4 GiB in 100,000 files kept",
        "ms",
        &with,
        &without,
        "nothing kept",
        &Bar::UpperAtMost(1.05),
    ))
}

fn streams_and_writes(d: &Daemon, pairs: usize) -> Result<Vec<Figure>> {
    let image = d.import("busybox")?;
    let (mut samples, n) = (Samples::new(), pairs);
    for i in 0..n {
        for runtime in if i % 2 == 0 { [OURS, STOCK] } else { [STOCK, OURS] } {
            let mut take = |case: &'static str, rate: f64| {
                let pair = samples.entry(case).or_default();
                if runtime == OURS {
                    pair.0.push(rate)
                } else {
                    pair.1.push(rate)
                }
            };
            let run = |script: &str, out: std::process::Stdio| -> Result<f64> {
                milliseconds(|| {
                    let status = d
                        .command(
                            "ctr",
                            &[
                                "run",
                                "--rm",
                                "--runtime",
                                runtime,
                                &image,
                                "st",
                                "sh",
                                "-c",
                                script,
                            ],
                        )
                        .stdout(out)
                        .status()?;
                    ensure!(status.success(), "{script}: {status}");
                    Ok(())
                })
            };
            let ms = run(
                "dd if=/dev/zero bs=1M count=1024 2>/dev/null",
                std::process::Stdio::null(),
            )?;
            take("stdout, 1 GiB through a fifo", 1024.0 / (ms / 1000.0));
            let ms = run(
                "dd if=/dev/zero of=/file bs=64k count=4096 conv=fsync 2>/dev/null",
                std::process::Stdio::null(),
            )?;
            take("write 256 MiB and fsync", 256.0 / (ms / 1000.0));
        }
    }
    let figures = samples.iter().map(|(case, (ours, stock))| {
        let bar = if case.starts_with("stdout") {
            Bar::LowerAtLeast(1.0)
        } else {
            Bar::LowerAtLeast(0.97)
        };
        figure(case, "MiB/s", ours, stock, "stock shim", &bar)
    });
    Ok(figures.collect())
}

fn size(d: &Daemon) -> Result<Figure> {
    let megabytes =
        |path: &Path| -> Result<f64> { Ok(fs::metadata(fs::canonicalize(path)?)?.len() as f64 / 1e6) };
    let ours = megabytes(&d.folder().join("bin/containerd-shim-diffkeeper-v1"))?;
    let version = if d.version == "1.6" {
        "1.6".to_owned()
    } else {
        d.version.clone()
    };
    let stock = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!(
        "../target/containerd-{version}/bin/containerd-shim-runc-v2"
    ));
    let stock = megabytes(&stock).unwrap_or(f64::NAN);
    let mut figure = figure(
        "size of the binary",
        "MB",
        &[ours],
        &[stock],
        "stock shim",
        &Bar::AtMost(f64::INFINITY),
    );
    (figure.bar, figure.holds) = ("ours < 8".into(), ours < 8.0);
    Ok(figure)
}

fn main() -> Result<()> {
    let pairs = std::env::var("BENCH_PAIRS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(30);
    let version = std::env::var("DIFFKEEPER_CONTAINERD").unwrap_or_else(|_| "2".into());
    let d = match Daemon::up(&version, "bench", &[])? {
        Ok(daemon) => daemon,
        Err(reason) => {
            println!("skipped: the benchmarks: {reason}");
            return Ok(());
        }
    };
    let only = std::env::var("BENCH_ONLY").ok();
    let wanted = |group: &str| only.as_deref().is_none_or(|only| only == group);
    let mut figures = Vec::new();
    if wanted("size") {
        figures.push(size(&d)?);
    }
    if wanted("life") {
        figures.extend(life_cycle(&d, pairs)?);
    }
    if wanted("throughput") {
        figures.extend(throughput(&d, pairs)?);
    }
    if wanted("memory") {
        figures.extend(memory(&d)?);
    }
    if wanted("streams") {
        figures.extend(streams_and_writes(&d, pairs)?);
    }
    if wanted("kept") {
        figures.push(kept(&d, pairs)?);
    }
    if wanted("keeper") {
        let _keeper = Keeper::start(&d, "")?;
        figures.extend(life_cycle(&d, pairs)?.into_iter().map(|figure| Figure {
            case: format!("{}, with a keeper", figure.case),
            ..figure
        }));
    }

    bench::report("shim", &format!("containerd {version}, {pairs} pairs"), &figures)
}
