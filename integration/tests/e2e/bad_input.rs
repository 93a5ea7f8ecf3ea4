//! Bad input gets a clear message and loses nothing.

use std::fs;

use anyhow::{Result, ensure};
use integration::{Daemon, OURS};

use crate::Test;

pub const TESTS: &[(&str, Test)] = &[
    ("bad_input::names_and_annotations", names_and_annotations),
    ("bad_input::configuration", configuration),
    (
        "bad_input::places_that_hold_no_live_tree",
        places_that_hold_no_live_tree,
    ),
    ("bad_input::runtimes_that_fail", runtimes_that_fail),
    (
        "bad_input::containerd_goes_between_create_and_start",
        containerd_goes_between_create_and_start,
    ),
];

/// Runs with annotations; afterwards nothing may be mounted and no state in use.
fn refused(d: &Daemon, more: &[&str], words: &[&str]) -> Result<()> {
    let image = d.import("busybox")?;
    let mounts = d.mounts()?.len();
    let mut line = vec!["run", "--rm", "--runtime", OURS];
    line.extend_from_slice(more);
    line.extend_from_slice(&[&image, "bad", "true"]);
    let ran = d.ctr(&line)?;
    d.forget("bad")?;
    ran.fails_with(words)?;
    ensure!(
        d.mounts()?.len() == mounts,
        "something is left mounted: {:?}",
        d.mounts()?
    );
    ensure!(d.shims(Some("bad")).is_empty(), "a shim is left");
    Ok(())
}

fn names_and_annotations(d: &Daemon) -> Result<()> {
    let long = format!("diffkeeper.io/state={}", "x".repeat(300));
    for name in [
        "diffkeeper.io/state=..",
        "diffkeeper.io/state=a/b",
        "diffkeeper.io/state=../other/web",
        "diffkeeper.io/state=",
        &long,
    ] {
        refused(
            d,
            &["--annotation", name],
            &["diffkeeper.io/state", "cannot name a state"],
        )?;
    }
    refused(
        d,
        &["--annotation", "diffkeeper.io/reclaim=soon"],
        &["diffkeeper.io/reclaim", "soon", "keep, delete"],
    )?;
    refused(
        d,
        &["--annotation", "diffkeeper.io/exlude=/tmp"],
        &["diffkeeper.io/exlude", "diffkeeper.io/exclude"],
    )?;
    refused(
        d,
        &["--annotation", "diffkeeper.io/from=../other/web@head"],
        &["diffkeeper.io/from", "../other/web", "slash"],
    )?;
    refused(
        d,
        &["--annotation", "diffkeeper.io/when-missing=refuse"],
        &["there is no state", "when-missing"],
    )?;
    let long = format!("diffkeeper.io/exclude={}", "/some/path,".repeat(6000));
    refused(
        d,
        &["--annotation", &long],
        &["diffkeeper.io/exclude", "too many"],
    )?;
    let many: Vec<String> = (0..200).map(|n| format!("/p{n}")).collect();
    let many = format!("diffkeeper.io/paths={}", many.join(","));
    refused(
        d,
        &["--annotation", &many],
        &["diffkeeper.io/paths", "at most 64"],
    )
}

/// Runs with another configuration file's text.
fn configured(d: &Daemon, text: &str, test: impl FnOnce() -> Result<()>) -> Result<()> {
    let kept = fs::read_to_string(d.config())?;
    fs::write(d.config(), text)?;
    let result = test();
    fs::write(d.config(), kept)?;
    result
}

fn configuration(d: &Daemon) -> Result<()> {
    let root = format!("root = {:?}\n", d.folder().join("diffkeeper"));
    configured(d, &format!("{root}lease-wiat = \"1s\"\n"), || {
        refused(d, &[], &["line 2", "lease-wiat", "diffkeeper.toml"])
    })?;
    configured(d, "root = 7\n", || refused(d, &[], &["line 1", "root"]))
}

fn places_that_hold_no_live_tree(d: &Daemon) -> Result<()> {
    let at = |name: &str| d.folder().join(name);
    let root = |name: &str| format!("root = {:?}\n", at(name));
    fs::write(at("is-file"), b"")?;
    configured(d, &root("is-file"), || {
        refused(d, &[], &["is-file", "not a directory"])
    })?;
    let _ = std::os::unix::fs::symlink("/tmp", at("is-link"));
    configured(d, &root("is-link"), || refused(d, &[], &["is-link", "symlink"]))?;

    let disk = at("disk");
    fs::create_dir_all(&disk)?;
    let mount = |args: &[&str]| std::process::Command::new("mount").args(args).arg(&disk).status();
    let umount = || std::process::Command::new("umount").arg(&disk).status();
    mount(&["-t", "tmpfs", "-o", "ro", "none"])?;
    let read_only = configured(d, &root("disk/root"), || {
        refused(d, &[], &["disk/root", "read-only"])
    });
    umount()?;
    read_only?;
    mount(&["-t", "tmpfs", "-o", "size=4k,nr_inodes=3", "none"])?;
    let full = configured(d, &root("disk/root"), || refused(d, &[], &["disk/root", "full"]));
    umount()?;
    full?;
    mount(&["-t", "ramfs", "none"])?;
    let without_xattrs = configured(d, &root("disk/root"), || {
        refused(d, &[], &["disk/root", "extended attributes"])
    });
    umount()?;
    without_xattrs
}

fn runtimes_that_fail(d: &Daemon) -> Result<()> {
    let options = d.folder().join("runc.toml");
    let options_path = options.to_string_lossy().into_owned();
    let with = ["--runtime-config-path", options_path.as_str()];
    fs::write(&options, "BinaryName = \"/no/such/runc\"\n")?;
    refused(d, &with, &["/no/such/runc", "BinaryName"])?;
    fs::write(&options, "BinaryNam = \"runc\"\n")?;
    refused(d, &with, &["BinaryNam"])?;
    // One that makes the container and then says that it failed.
    let script = d.folder().join("half-runc");
    fs::write(
        &script,
        "#!/bin/sh\nrunc \"$@\" || exit\nfor a; do [ \"$a\" = create ] && { echo half-way >&2; exit 1; }; done; exit 0\n",
    )?;
    fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    fs::write(&options, format!("BinaryName = {script:?}\n"))?;
    refused(d, &with, &["OCI runtime create failed"])?;
    let image = d.import("busybox")?;
    d.ctr(&["run", "--rm", "--runtime", OURS, &image, "bad", "true"])?
        .ok()
        .map(drop)
}

fn containerd_goes_between_create_and_start(d: &Daemon) -> Result<()> {
    let image = d.import("busybox")?;
    // `ctr run` does both; a container made and its task started by hand leaves time in between.
    d.ctr(&[
        "container",
        "create",
        "--runtime",
        OURS,
        &image,
        "between",
        "sleep",
        "100",
    ])?
    .ok()?;
    d.kill()?;
    d.restart()?;
    d.ctr(&["task", "start", "-d", "between"])?.ok()?;
    ensure!(d.status("between")? == "RUNNING" && d.upper("between").is_dir());
    d.forget("between")
}
