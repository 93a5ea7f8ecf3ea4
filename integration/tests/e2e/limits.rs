//! How much a state may take.

use std::fs;

use anyhow::{Result, ensure};
use integration::{Daemon, OURS, history::Keeper};

use crate::Test;

pub const TESTS: &[(&str, Test)] = &[
    (
        "limits::a_container_is_held_to_its_size_limit",
        a_container_is_held_to_its_size_limit,
    ),
    (
        "limits::what_was_begun_without_a_limit_is_held_to_one",
        what_was_begun_without_a_limit_is_held_to_one,
    ),
    (
        "limits::no_state_begins_in_a_namespace_that_is_full",
        no_state_begins_in_a_namespace_that_is_full,
    ),
];

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
        fs::write(d.config(), format!("size-limit = \"20MiB\"\n{kept}"))?;
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
    fs::write(d.config(), format!("without-quota = \"refuse\"\n{kept}"))?;
    let refused = life("16MiB", "true");
    fs::write(d.config(), &kept)?;
    refused?.fails_with(&["project quota", "prjquota"])
}

/// A live tree that was there before, and those that the keeper makes for a container.
fn what_was_begun_without_a_limit_is_held_to_one(d: &Daemon) -> Result<()> {
    if !d
        .diffkeeper(&["doctor"])?
        .out
        .contains("project quota holds containers to them")
    {
        println!("skipped: containerd-{}::limits: no project quota here", d.version);
        return Ok(());
    }
    // It makes the fork.
    let _keeper = Keeper::start(d, "interval = \"1h\"")?;
    let image = d.import("busybox")?;
    let life = |name: &str, annotations: &[&str], script: &str| {
        let mut line = vec!["run", "--rm", "--runtime", OURS];
        for annotation in annotations {
            line.extend(["--annotation", annotation]);
        }
        line.extend([image.as_str(), name, "sh", "-c", script]);
        d.ctr(&line)
    };
    let limit = "diffkeeper.io/size-limit=16MiB";
    let begin =
        "dd if=/dev/zero of=/old bs=64k count=64 conv=fsync; rm -r /etc/passwd; ln -s old link; mkfifo fifo";
    life("begun", &[], begin)?.ok()?;
    d.diffkeeper(&["commit", "begun", "-m", "begun"])?.ok()?;
    let go_on = "set -e; mv link fifo /root/; mv old /root/old; echo x >/etc/passwd
        dd if=/dev/zero of=/more bs=64k count=512 conv=fsync && echo wrote";
    // What it copies for the container takes more than may be written: it is a container's like any other.
    let forked = [limit, "diffkeeper.io/from=begun@head"];
    for (name, annotations) in [("begun", &[limit][..]), ("forked", &forked)] {
        let held = life(name, annotations, go_on)?;
        let more = fs::metadata(d.upper(name).join("more"))?.len();
        ensure!(
            held.status != 0 && (8 * MIB..=12 * MIB).contains(&more),
            "{name}: {more}: {} {}",
            held.out,
            held.err
        );
    }
    let listed = d.diffkeeper(&["states"])?.ok()?;
    ensure!(listed.matches("of 16.0 MiB").count() >= 2, "{listed}");
    ensure!(!listed.contains("not enforced"), "{listed}");
    Ok(())
}

/// Whatever the disk: what is there is counted when a state begins.
fn no_state_begins_in_a_namespace_that_is_full(d: &Daemon) -> Result<()> {
    let image = d.import("busybox")?;
    let life = |name: &str, script: &str| {
        let line = ["run", "--rm", "--runtime", OURS, &image, name, "sh", "-c", script];
        d.ctr(&line)
    };
    life("first", "dd if=/dev/zero of=/big bs=1M count=3")?.ok()?;
    let kept = fs::read_to_string(d.config())?;
    let with = |limit: &str| fs::write(d.config(), format!("total-limit = \"{limit}\"\n{kept}"));
    with("2MiB")?;
    let refused = life("second", "true");
    let there = life("first", "echo still here");
    let listed = d.diffkeeper(&["states"]);
    with("1GiB")?;
    let room = life("second", "echo begun");
    fs::write(d.config(), &kept)?;
    let refused = refused?;
    refused.fails_with(&["total-limit", "first"])?;
    ensure!(there?.ok()?.contains("still here"));
    let listed = listed?.ok()?;
    ensure!(
        listed.contains("no new state begins in it") && !listed.contains("/second"),
        "{listed}"
    );
    ensure!(room?.ok()?.contains("begun"));
    Ok(())
}

fn ensure_held(ran: &integration::Ran, d: &Daemon) -> Result<()> {
    // Where not even its name finds room, it is not there.
    let more = fs::metadata(d.upper("limited").join("more")).map_or(0, |file| file.len());
    ensure!(ran.status != 0 && more < 20 * MIB, "{more}: {}", ran.out);
    Ok(())
}
