//! Pods through CRI beside the stock handler's, and the first fill of an image volume beside `cp -a`. `make bench`.

use std::{fs, path::Path, process::Command};

use anyhow::{Result, ensure};
use integration::{
    Daemon,
    bench::{self, Bar, Figure, figure, milliseconds},
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

/// Copying a volume's files in memory, where a disk's own moods do not hide the difference, and a whole first fill, which
/// is on the disk before it counts: beside `cp -a`, and `cp -a` with a sync.
fn first_fill(d: &Daemon, pairs: usize) -> Result<Vec<Figure>> {
    let memory = tempfile::tempdir_in("/dev/shm")?;
    let node = live::Node::open(&d.folder().join("fill-live"))?;
    let mut figures = Vec::new();
    for (what, files, size) in [
        ("8,000 files of 4 KiB", 8000usize, 4096usize),
        ("8 files of 32 MiB", 8, 32 << 20),
    ] {
        for synced in [false, true] {
            let place = if synced {
                d.folder()
            } else {
                memory.path().to_owned()
            };
            let [from, to, copied] = ["from", "cp", "ours"].map(|name| place.join(format!("fill-{name}")));
            for n in 0..files {
                let below = from.join(format!("d{}", n % 100));
                fs::create_dir_all(&below)?;
                fs::write(below.join(n.to_string()), vec![n as u8; size])?;
            }
            let megabytes = du(&from)?;
            let (mut ours, mut peer) = (Vec::new(), Vec::new());
            for n in 0..pairs {
                let state = node.state(&format!("ctr/bench/fill{n}").parse()?);
                for our_turn in if n % 2 == 0 { [true, false] } else { [false, true] } {
                    // What is still to be written from before must not be paid for here.
                    Command::new("sync").arg("-f").arg(&place).status()?;
                    let ms = milliseconds(|| match (our_turn, synced) {
                        (true, true) => {
                            let root = state.root(&live::Root::Volume("/data".into()))?;
                            root.prepare_volume(&from)?;
                            Ok(())
                        }
                        (true, false) => {
                            fs::create_dir(&copied)?;
                            Ok(live::copy_tree(&from, &copied)?)
                        }
                        (false, _) => {
                            let sync = if synced { "&& sync -f \"$2\"" } else { "" };
                            let line = format!("cp -a --reflink=auto \"$1\" \"$2\" {sync}");
                            let done = Command::new("sh")
                                .args(["-c", &line, "sh"])
                                .arg(&from)
                                .arg(&to)
                                .status()?;
                            ensure!(done.success());
                            Ok(())
                        }
                    })?;
                    let rate = megabytes / (ms / 1000.0);
                    if our_turn {
                        ours.push(rate)
                    } else {
                        peer.push(rate)
                    }
                }
                for left in [to.as_path(), copied.as_path(), state.dir()] {
                    if left.exists() {
                        fs::remove_dir_all(left)?;
                    }
                }
            }
            fs::remove_dir_all(&from)?;
            let (case, name) = if synced {
                (format!("first fill of a volume, {what}"), "cp -a, sync")
            } else {
                (format!("its copying, in memory, {what}"), "cp -a")
            };
            figures.push(figure(
                &case,
                "MiB/s",
                &ours,
                &peer,
                name,
                &Bar::LowerAtLeast(1.0),
            ));
        }
    }
    Ok(figures)
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
    let only = std::env::var("BENCH_ONLY").ok();
    let wanted = |group: &str| only.as_deref().is_none_or(|only| only == group);
    let mut figures = Vec::new();
    if wanted("pods") {
        figures.extend(pod_start(&d, pairs)?);
    }
    if wanted("fill") {
        figures.extend(first_fill(&d, pairs.min(15))?);
    }
    bench::report("pods", &format!("containerd {version}, {pairs} pairs"), &figures)
}
