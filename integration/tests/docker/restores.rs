//! Going back, with Docker's restart policies.

use anyhow::{Context, Result, ensure};
use integration::{Docker, history::Keeper, wait::until};

use crate::{LIMIT, Test, remove, same, start};

pub const TESTS: &[(&str, Test)] = &[(
    "a_restore_now_restarts_the_container",
    a_restore_now_restarts_the_container,
)];

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
