//! Pods through CRI beside the stock handler's. `make bench`.

use anyhow::Result;
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

fn main() -> Result<()> {
    if std::env::var("BENCH_ONLY").is_ok_and(|only| only != "pods") {
        return Ok(());
    }
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
    let figures = pod_start(&d, pairs)?;
    bench::report("pods", &format!("containerd {version}, {pairs} pairs"), &figures)
}
