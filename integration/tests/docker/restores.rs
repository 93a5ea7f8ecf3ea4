//! Going back, with Docker's restart policies.

use anyhow::{Context, Result, ensure};
use integration::{Docker, history::Keeper, wait::until};

use crate::{LIMIT, Test, remove, same, start};

pub const TESTS: &[(&str, Test)] = &[
    (
        "a_restore_now_restarts_the_container",
        a_restore_now_restarts_the_container,
    ),
    (
        "a_restore_now_stops_as_the_image_wants",
        a_restore_now_stops_as_the_image_wants,
    ),
    ("an_import_goes_into_volumes", an_import_goes_into_volumes),
];

fn a_restore_now_stops_as_the_image_wants(d: &Docker) -> Result<()> {
    let image = d.load("busybox")?;
    let _keeper = Keeper::beside(d, "interval = \"off\"")?;
    let script = "trap 'echo USR1 >> /ended; exit 0' USR1; trap 'echo TERM >> /ended; exit 0' TERM
        echo start >> /starts; while :; do sleep 0.1; done";
    let options = [
        "-d",
        "--name",
        "signal",
        "--restart",
        "always",
        "--stop-signal",
        "SIGUSR1",
    ];
    start(d, &options, &image, script)?;
    let inside = |script: &str| d.docker(&["exec", "signal", "sh", "-c", script])?.ok();
    until("the first start", LIMIT, || {
        inside("cat /starts").is_ok_and(|text| text == "start\n")
    })?;
    d.diffkeeper(&["commit", "signal", "--tag", "good"])?.ok()?;
    d.diffkeeper(&["restore", "signal@good", "--now"])?.ok()?;
    // What it did with its signal was recorded before the restore.
    same(&d.diffkeeper(&["cat", "signal@~1", "/ended"])?.ok()?, "USR1\n")?;
    remove(d, "signal")?;
    d.diffkeeper(&["rm", "signal", "--yes", "--history"])?.ok()?;
    Ok(())
}

/// What a state with volumes exports begins another; one that is there is replaced, volumes and all.
fn an_import_goes_into_volumes(d: &Docker) -> Result<()> {
    let image = d.load("volumes")?;
    let _keeper = Keeper::beside(d, "interval = \"off\"")?;
    let look = "cat /var/lib/data/row /top; stat -c '%u:%g' /var/lib/data/row; ls /var/lib/data | wc -l";
    let write = "echo row > /var/lib/data/row; chown 12:34 /var/lib/data/row; echo top > /top";
    start(d, &["--rm", "--name", "donor"], &image, write)?;
    let expected = start(d, &["--rm", "--name", "donor"], &image, look)?;
    d.diffkeeper(&["commit", "donor"])?.ok()?;
    let archive = d.folder().join("donor.tar");
    let archive = archive.to_string_lossy();
    d.diffkeeper(&["export", "donor", &archive])?.ok()?;
    let volume = ["--volume", "/var/lib/data"];
    d.diffkeeper(&[&["import", "docker/heir", &archive][..], &volume].concat())?
        .ok()?;
    same(&start(d, &["--rm", "--name", "heir"], &image, look)?, &expected)?;
    // Its volumes are known now.
    start(
        d,
        &["--rm", "--name", "heir"],
        &image,
        "rm /var/lib/data/row /top",
    )?;
    d.diffkeeper(&["import", "docker/heir", &archive, "--replace"])?
        .ok()?;
    same(&start(d, &["--rm", "--name", "heir"], &image, look)?, &expected)?;
    for name in ["donor", "heir"] {
        d.diffkeeper(&["rm", name, "--yes", "--history"])?.ok()?;
    }
    Ok(())
}

fn a_restore_now_restarts_the_container(d: &Docker) -> Result<()> {
    let image = d.load("busybox")?;
    let _keeper = Keeper::beside(d, "interval = \"off\"")?;
    let script = "trap 'exit 0' TERM; echo start >> /starts; while :; do sleep 0.1; done";
    let tag = |name: &str| d.diffkeeper(&["commit", name, "--tag", "good"])?.ok();
    let inside = |name: &str, script: &str| d.docker(&["exec", name, "sh", "-c", script])?.ok();
    for policy in ["always", "unless-stopped", "on-failure", "no"] {
        let name = format!("now-{policy}");
        start(d, &["-d", "--name", &name, "--restart", policy], &image, script)?;
        until("the first start", LIMIT, || {
            inside(&name, "cat /starts").is_ok_and(|text| text == "start\n")
        })?;
        inside(&name, "echo good > /data")?;
        tag(&name)?;
        inside(&name, "echo bad > /data")?;
        let version = format!("{name}@good");
        let done = d.diffkeeper(&["restore", &version, "--now", "--grace", "20s"])?;
        if matches!(policy, "always" | "unless-stopped") {
            ensure!(done.ok()?.contains("started again"), "{policy}");
            until("the container of before", LIMIT, || {
                inside(&name, "cat /data /starts").is_ok_and(|text| text == "good\nstart\nstart\n")
            })?;
        } else {
            // Nobody would start it again: it runs on as it was, and no restore waits for it.
            done.fails_with(&["--now would only end", "without --now"])?;
            same(&inside(&name, "cat /data /starts")?, "bad\nstart\n")?;
            let cancel = d.diffkeeper(&["restore", &name, "--cancel"])?;
            ensure!(cancel.status == 3, "{cancel:?}");
        }
        remove(d, &name)?;
        d.diffkeeper(&["rm", &name, "--yes", "--history"])?
            .ok()
            .context("forget it")?;
    }
    Ok(())
}
