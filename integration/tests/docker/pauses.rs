//! `docker pause` beside commits.

use std::{fs, time::Duration};

use anyhow::{Context, Result, ensure};
use integration::{Docker, history::Keeper, wait::until};

use crate::{LIMIT, Test, remove, same, soak, start};

pub const TESTS: &[(&str, Test)] = &[("a_pause_is_its_owner_s", a_pause_is_its_owner_s)];

/// A container that is paused stays so whatever is recorded, by the interval and on demand, and goes on when its owner
/// says so.
fn a_pause_is_its_owner_s(d: &Docker) -> Result<()> {
    let image = d.load("busybox")?;
    let keeper = Keeper::beside(d, "interval = \"20ms\"")?;
    let script = "while :; do echo >> /lines; sleep 0.002; done";
    start(d, &["-d", "--name", "owned"], &image, script)?;
    let lines = d.state("owned").join("roots/rootfs/upper/lines");
    let length = || fs::metadata(&lines).map_or(0, |meta| meta.len());
    let status = || d.docker(&["inspect", "-f", "{{.State.Status}}", "owned"])?.ok();
    until("a first line", LIMIT, || length() > 0)?;
    for round in 0..if soak() { 100 } else { 5 } {
        d.docker(&["pause", "owned"])?.ok()?;
        let before = length();
        for _ in 0..3 {
            d.diffkeeper(&["commit", "owned", "-m", "while paused"])?.ok()?;
            std::thread::sleep(Duration::from_millis(60));
        }
        same(&status()?, "paused\n")?;
        ensure!(length() == before, "round {round}: it goes on while it is paused");
        d.docker(&["unpause", "owned"])?.ok()?;
        same(&status()?, "running\n")?;
        until("the container goes on", LIMIT, || length() > before + 3)
            .with_context(|| format!("round {round}"))?;
    }
    remove(d, "owned")?;
    keeper.stop()
}
