//! How much a state may take.

use std::fs;

use anyhow::{Result, ensure};
use integration::{Daemon, OURS};

use crate::Test;

pub const TESTS: &[(&str, Test)] = &[(
    "limits::a_container_is_held_to_its_size_limit",
    a_container_is_held_to_its_size_limit,
)];

const MIB: u64 = 1 << 20;

/// Where the disk has project quota, as `hack/vm limits` sees to; else that is said, and refused where that is wanted.
fn a_container_is_held_to_its_size_limit(d: &Daemon) -> Result<()> {
    let image = d.import("busybox")?;
    let life = |limit: &str, script: &str| {
        let limit = format!("diffkeeper.io/size-limit={limit}");
        let line = ["run", "--rm", "--runtime", OURS, "--annotation", &limit];
        d.ctr(&[&line[..], &[image.as_str(), "limited", "sh", "-c", script]].concat())
    };
    life("16 MB", "true")?.fails_with(&["size-limit", "10Gi"])?;
    let script = "dd if=/dev/zero of=/big bs=64k count=512 conv=fsync && echo wrote";
    let first = life("16MiB", script)?;
    let big = fs::metadata(d.upper("limited").join("big"))?.len();
    let listed = d.diffkeeper(&["states"])?.ok()?;
    if d.diffkeeper(&["doctor"])?
        .out
        .contains("project quota holds containers to them")
    {
        ensure!(
            first.status != 0 && (12 * MIB..=16 * MIB).contains(&big),
            "{big}: {}",
            first.out
        );
        ensure!(
            listed.contains("of 16.0 MiB") && !listed.contains("not enforced"),
            "{listed}"
        );
        // With more, it goes on from there; the configuration's word is the last.
        life("48MiB", script)?.ok()?;
        let kept = fs::read_to_string(d.config())?;
        fs::write(d.config(), format!("{kept}size-limit = \"20MiB\"\n"))?;
        let held = life("1GiB", script);
        fs::write(d.config(), &kept)?;
        ensure!(held?.status != 0);
        // What a restore makes is held to it, too, and so is the life after it.
        d.diffkeeper(&["commit", "limited", "-m", "full"])?.ok()?;
        d.diffkeeper(&["restore", "limited@head"])?.ok()?;
        let after = life(
            "20MiB",
            "dd if=/dev/zero of=/more bs=64k count=512 conv=fsync && echo wrote",
        )?;
        return ensure_held(&after, d);
    }
    println!(
        "containerd-{}::limits: no project quota here: only that a limit is not enforced is tested",
        d.version
    );
    ensure!(first.status == 0 && big == 32 * MIB, "{big}: {}", first.err);
    ensure!(listed.contains("of 16.0 MiB, not enforced"), "{listed}");
    let kept = fs::read_to_string(d.config())?;
    fs::write(d.config(), format!("{kept}without-quota = \"refuse\"\n"))?;
    let refused = life("16MiB", "true");
    fs::write(d.config(), &kept)?;
    refused?.fails_with(&["project quota", "prjquota"])
}

fn ensure_held(ran: &integration::Ran, d: &Daemon) -> Result<()> {
    let more = fs::metadata(d.upper("limited").join("more"))?.len();
    ensure!(ran.status != 0 && more < 20 * MIB, "{more}: {}", ran.out);
    Ok(())
}
