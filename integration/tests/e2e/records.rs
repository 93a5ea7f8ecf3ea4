//! What is recorded of a state over its lives.

use std::{fs, time::Duration};

use anyhow::{Context, Result, ensure};
use integration::{Daemon, OURS, STOCK, wait::until};
use live::Record;

use crate::Test;

pub const TESTS: &[(&str, Test)] = &[
    ("records::a_chosen_name_stays_chosen", a_chosen_name_stays_chosen),
    ("records::a_state_learns_its_image", a_state_learns_its_image),
    (
        "records::a_snapshot_holds_nothing_kept",
        a_snapshot_holds_nothing_kept,
    ),
];

/// On a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

fn record(d: &Daemon, state: &str) -> Result<Record> {
    let file = d
        .live()
        .join("ctr")
        .join(d.namespace())
        .join(state)
        .join("state.json");
    let text = fs::read(&file).with_context(|| file.display().to_string())?;
    Ok(serde_json::from_slice(&text)?)
}

fn life(d: &Daemon, image: &str, name: &str, annotations: &[&str]) -> Result<()> {
    let mut line = vec!["run", "--rm", "--runtime", OURS];
    for annotation in annotations {
        line.extend(["--annotation", annotation]);
    }
    line.extend([image, name, "true"]);
    d.ctr(&line)?.ok().map(drop)
}

/// A container whose id is the name of a state that a person has chosen does not make it expire.
fn a_chosen_name_stays_chosen(d: &Daemon) -> Result<()> {
    let image = d.import("busybox")?;
    life(d, &image, "generated", &[])?;
    let generated = record(d, "generated")?;
    life(d, &image, "another", &["diffkeeper.io/state=chosen"])?;
    let chosen = record(d, "chosen")?;
    ensure!(
        chosen.chosen && !generated.chosen && chosen.reclaim != generated.reclaim,
        "{chosen:?} {generated:?}"
    );
    life(d, &image, "chosen", &[])?;
    let by_id = record(d, "chosen")?;
    ensure!(
        by_id.last_container.as_deref() == Some("chosen") && by_id.chosen && by_id.reclaim == chosen.reclaim,
        "{by_id:?}"
    );
    // What such a container asks for itself counts all the same.
    life(d, &image, "chosen", &["diffkeeper.io/reclaim=1h"])?;
    let asked = record(d, "chosen")?;
    ensure!(
        asked.chosen && asked.reclaim == live::Policy::After(3600),
        "{asked:?}"
    );
    // A fresh tree under that name is the person's too.
    let fresh = |image: &str| {
        life(
            d,
            image,
            "chosen",
            &[
                "diffkeeper.io/on-image-change=fresh",
                "diffkeeper.io/reclaim=keep",
            ],
        )
    };
    fresh(&d.import("upgrade-1")?)?;
    let after = record(d, "chosen")?;
    ensure!(after.chosen, "{after:?}");
    d.diffkeeper(&["rm", "--yes", "generated"])?.ok().map(drop)
}

/// A state that began when nobody asked for its image's digest can say it when somebody does.
fn a_state_learns_its_image(d: &Daemon) -> Result<()> {
    let (old, new) = (d.import("upgrade-1")?, d.import("upgrade-2")?);
    d.ctr(&["run", "-d", "--runtime", OURS, &old, "learns", "sleep", "1000"])?
        .ok()?;
    let digest = || record(d, "learns").ok().and_then(|record| record.image?.digest);
    until("the image's digest to be known", LIMIT, || digest().is_some())?;
    let learnt = record(d, "learns")?;
    d.forget("learns")?;
    let left = record(d, "learns")?;
    ensure!(
        left.image == learnt.image && left.chosen == learnt.chosen,
        "{left:?}"
    );
    let refuse = ["--annotation", "diffkeeper.io/on-image-change=refuse"];
    let mut line = vec!["run", "--rm", "--runtime", OURS];
    line.extend(refuse);
    line.extend([new.as_str(), "learns", "true"]);
    d.ctr(&line)?.fails_with(&[
        "learns",
        &digest().unwrap_or_default(),
        "and this container comes with sha256:",
    ])?;
    d.forget("learns")?;
    // The image that it was begun with is still the right one.
    life(d, &old, "learns", &["diffkeeper.io/on-image-change=refuse"])
}

/// What containerd compares when `nerdctl commit` asks for it, and what `ctr snapshots usage` counts, is the snapshot: it
/// stays as the image is.
fn a_snapshot_holds_nothing_kept(d: &Daemon) -> Result<()> {
    let image = d.import("busybox")?;
    let script = "mkdir /diffed && dd if=/dev/zero of=/diffed/much bs=1M count=8 2>/dev/null && sync && touch /ready; sleep 1000";
    let mut seen = Vec::new();
    for (name, runtime) in [("diffed-stock", STOCK), ("diffed-ours", OURS)] {
        d.ctr(&[
            "run",
            "-d",
            "--runtime",
            runtime,
            &image,
            name,
            "sh",
            "-c",
            script,
        ])?
        .ok()?;
        until("it has written", LIMIT, || {
            let exec = ["task", "exec", "--exec-id", "look", name, "test", "-e", "/ready"];
            d.ctr(&exec).is_ok_and(|ran| ran.status == 0)
        })?;
        let tar = "application/vnd.oci.image.layer.v1.tar";
        let diff = d.ctr(&["snapshots", "diff", "--media-type", tar, name])?.ok()?;
        let usage = d.ctr(&["snapshots", "usage", "-b", name])?.ok()?;
        // KEY SIZE INODES
        let bytes = usage
            .lines()
            .last()
            .and_then(|line| line.split_whitespace().nth(1));
        let bytes: u64 = bytes.and_then(|size| size.parse().ok()).context(usage)?;
        seen.push((diff.contains("diffed/much"), bytes > 8 << 20));
        d.forget(name)?;
    }
    ensure!(seen == [(true, true), (false, false)], "{seen:?}");
    Ok(())
}
