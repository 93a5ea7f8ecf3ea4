//! `docker build` where this runtime is the daemon's default one.

use std::fs;

use anyhow::{Context, Result, ensure};
use integration::{Docker, daemon::Ran};

use crate::{Test, clean, same};

pub const TESTS: &[(&str, Test)] = &[("builds::see_their_own_layers", see_their_own_layers)];

const DOCKERFILE: &str = r#"
FROM diffkeeper/volumes:dev
RUN echo one > /one && test ! -e /two && echo left > /tmp/left
RUN cat /one && echo two > /two && rm /etc/group
COPY file /copied
RUN cat /one /two /copied /tmp/left > /all && test ! -e /etc/group
"#;

fn build(d: &Docker, buildkit: bool, tag: &str, more: &[&str]) -> Result<Ran> {
    let folder = d.folder().join("build");
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("Dockerfile"), DOCKERFILE)?;
    fs::write(folder.join("file"), "copied\n")?;
    let folder = folder.to_string_lossy().into_owned();
    let mut command = d.command(&["build", "--network", "none", "--no-cache", "-t", tag]);
    command
        .args(more)
        .arg(&folder)
        .env("DOCKER_BUILDKIT", if buildkit { "1" } else { "0" });
    integration::daemon::run(&mut command)
}

/// Nothing is kept, by the directory and by what people ask.
fn nothing_is_kept(d: &Docker) -> Result<()> {
    let states = d.diffkeeper(&["states", "--json"])?.ok()?;
    let states: Vec<serde_json::Value> = serde_json::from_str(&states)?;
    ensure!(states.is_empty(), "{states:?}");
    let live = d.state("");
    let live = live.parent().context("a directory of live trees")?;
    let left: Vec<_> = fs::read_dir(live)?.flatten().map(|e| e.path()).collect();
    ensure!(left.is_empty(), "{left:?}");
    clean(d)
}

fn see_their_own_layers(d: &Docker) -> Result<()> {
    let d = match Docker::another(&d.store, "default", &["--default"])? {
        Ok(default) => default,
        Err(reason) => {
            println!(
                "skipped docker-{}::builds::see_their_own_layers: {reason}",
                d.store
            );
            return Ok(());
        }
    };
    let d = &d;
    let image = d.load("volumes")?;
    let read = "cat /all; ls /etc/group 2>/dev/null; ls /tmp";
    let run = |more: &[&str], image: &str, script: &str| -> Result<String> {
        let mut line = vec!["run", "--rm", "--network", "none"];
        line.extend_from_slice(more);
        line.extend_from_slice(&[image, "sh", "-c", script]);
        d.docker(&line)?.ok()
    };
    // The classic builder makes containers, whose steps run under the daemon's runtime.
    build(d, false, "diffkeeper/classic:dev", &["--rm=false"])?.ok()?;
    let steps = d.docker(&["ps", "-aq"])?.ok()?;
    let runtimes: Vec<String> = steps
        .split_whitespace()
        .map(|id| d.docker(&["inspect", "-f", "{{.HostConfig.Runtime}}", id])?.ok())
        .collect::<Result<_>>()?;
    ensure!(
        runtimes.len() >= 3 && runtimes.iter().all(|r| r.trim() == "diffkeeper"),
        "{runtimes:?}"
    );
    for id in steps.split_whitespace() {
        d.docker(&["rm", "-f", "-v", id])?.ok()?;
    }
    let expected = "one\ntwo\ncopied\nleft\nleft\n";
    same(
        &run(&["--runtime", "runc"], "diffkeeper/classic:dev", read)?,
        expected,
    )?;
    nothing_is_kept(d)?;
    // BuildKit runs its steps itself.
    if let Some(reason) = d.lacks("buildx")? {
        println!(
            "skipped docker-{}::builds::see_their_own_layers (BuildKit): {reason}",
            d.store
        );
    } else {
        build(d, true, "diffkeeper/buildkit:dev", &[])?.ok()?;
        same(
            &run(&["--runtime", "runc"], "diffkeeper/buildkit:dev", read)?,
            expected,
        )?;
        nothing_is_kept(d)?;
    }
    // What people run without a word about runtimes: kept where they named it.
    run(&[], &image, "echo x > /file")?;
    nothing_is_kept(d)?;
    let named = ["--name", "named"];
    run(&named, "diffkeeper/classic:dev", "echo x >> /one")?;
    same(
        &run(&named, "diffkeeper/classic:dev", "cat /one /two")?,
        "one\nx\ntwo\n",
    )?;
    ensure!(d.state("named").is_dir());
    clean(d)
}
