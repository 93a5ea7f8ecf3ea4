//! Pods through CRI beside the stock handler's, and the first fill of an image volume beside `cp -a`. `make bench`.

use std::{fs, path::Path, process::Command};

use anyhow::{Result, ensure};
use integration::{
    Daemon,
    bench::{self, Bar, Figure, Samples, figure, milliseconds},
    cri::{Cri, NAMESPACE},
};

const OURS: &str = "diffkeeper";
const STOCK: &str = "runc";

/// From the kubelet's first call for a pod to its container's start.
fn pod_start(d: &Daemon, pairs: usize) -> Result<Vec<Figure>> {
    let cri = Cri::connect(d)?;
    let mut figures = Vec::new();
    for (image, case) in [
        ("busybox", "pod and container started through CRI"),
        ("volumes", "the same, with three image volumes kept"),
    ] {
        let image_name = d.import_into(NAMESPACE, image)?;
        let (mut ours, mut stock) = (Vec::new(), Vec::new());
        for n in 0..pairs {
            for handler in if n % 2 == 0 { [OURS, STOCK] } else { [STOCK, OURS] } {
                let config = cri.pod_config(
                    "bench",
                    &format!("{image}-{handler}"),
                    &format!("{image}-{handler}-{n}"),
                );
                let mut pod = None;
                let ms = milliseconds(|| {
                    let made = pod.insert(cri.run_pod(handler, config)?);
                    made.run("app", 0, &image_name, "sleep 1000").map(drop)
                })?;
                if let Some(pod) = pod {
                    pod.delete()?;
                }
                if handler == OURS {
                    ours.push(ms)
                } else {
                    stock.push(ms)
                }
            }
        }
        figures.push(figure(
            case,
            "ms",
            &ours,
            &stock,
            "stock handler",
            &Bar::UpperAtMost(1.03),
        ));
    }
    Ok(figures)
}

fn du(dir: &Path) -> Result<f64> {
    let out = Command::new("du")
        .args(["-sm", "--apparent-size"])
        .arg(dir)
        .output()?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    Ok(text.split_whitespace().next().unwrap_or_default().parse()?)
}

/// A volume's first fill, as the shim does it, beside `cp -a` and a sync of the same files.
fn first_fill(d: &Daemon, pairs: usize) -> Result<Vec<Figure>> {
    let from = d.folder().join("fill-from");
    for (name, files, size) in [
        ("small files", 8000usize, 4096usize),
        ("large files", 8, 32 << 20),
    ] {
        let dir = from.join(name);
        for n in 0..files {
            let below = dir.join(format!("d{}", n % 100));
            fs::create_dir_all(&below)?;
            fs::write(below.join(n.to_string()), vec![n as u8; size])?;
        }
    }
    let node = live::Node::open(&d.folder().join("fill-live"))?;
    let mut samples = Samples::new();
    for name in ["small files", "large files"] {
        let (case, from): (&'static str, _) = (
            if name == "small files" {
                "first fill of a volume, 8,000 files of 4 KiB"
            } else {
                "first fill of a volume, 8 files of 32 MiB"
            },
            from.join(name),
        );
        let megabytes = du(&from)?;
        for n in 0..pairs {
            let to = d.folder().join("fill-cp");
            let state = node.state(&format!("ctr/bench/fill{n}").parse()?);
            for ours in if n % 2 == 0 { [true, false] } else { [false, true] } {
                let ms = milliseconds(|| {
                    if ours {
                        let root = state.root(&live::Root::Volume("/data".into()))?;
                        root.prepare_volume(&from)?;
                    } else {
                        let line = "cp -a --reflink=auto \"$1\" \"$2\" && sync -f \"$2\"";
                        let done = Command::new("sh")
                            .args(["-c", line, "sh"])
                            .arg(&from)
                            .arg(&to)
                            .status()?;
                        ensure!(done.success());
                    }
                    Ok(())
                })?;
                let pair = samples.entry(case).or_default();
                let rate = megabytes / (ms / 1000.0);
                if ours {
                    pair.0.push(rate)
                } else {
                    pair.1.push(rate)
                }
            }
            fs::remove_dir_all(&to)?;
            fs::remove_dir_all(state.dir())?;
        }
    }
    let figures = samples.iter();
    Ok(figures
        .map(|(case, (ours, peer))| figure(case, "MiB/s", ours, peer, "cp -a, sync", &Bar::LowerAtLeast(1.0)))
        .collect())
}

fn main() -> Result<()> {
    let pairs = std::env::var("BENCH_PAIRS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(30);
    let version = std::env::var("DIFFKEEPER_CONTAINERD").unwrap_or_else(|_| "2".into());
    let d = match Daemon::up(&version, "bench", &["--cri"])? {
        Ok(daemon) => daemon,
        Err(reason) => {
            println!("skipped: the benchmarks of pods: {reason}");
            return Ok(());
        }
    };
    let mut figures = pod_start(&d, pairs)?;
    figures.extend(first_fill(&d, pairs.min(15))?);
    bench::report("pods", &format!("containerd {version}, {pairs} pairs"), &figures)
}
