//! `docker compose`, with `runtime: diffkeeper` in a service.

use std::fs;

use anyhow::{Result, ensure};
use integration::{Docker, daemon::run, wait::until};

use crate::{LIMIT, Test, clean, life, same};

pub const TESTS: &[(&str, Test)] = &[("compose::up_down_up", up_down_up)];

/// `db` has a name that a person chose, `web` the one that compose makes of project, service and number. `cache` asks
/// for the daemon's own runtime.
const PROJECT: &str = r#"
services:
  db:
    image: diffkeeper/volumes:dev
    container_name: chosen-db
    runtime: diffkeeper
    network_mode: none
    command: ["sh", "-c", "echo life >> /lives; echo life >> /var/lib/data/lives; exec sleep 1000"]
    volumes: ["named:/plain"]
  web:
    image: diffkeeper/volumes:dev
    runtime: diffkeeper
    network_mode: none
    annotations: { diffkeeper.io/exclude: "/srv" }
    command: ["sh", "-c", "mkdir -p /srv; echo life >> /lives; echo life >> /srv/lives; exec sleep 1000"]
  cache:
    image: diffkeeper/volumes:dev
    network_mode: none
    command: ["sh", "-c", "echo life >> /lives; exec sleep 1000"]
volumes:
  named: {}
"#;

fn up_down_up(d: &Docker) -> Result<()> {
    if let Some(reason) = d.lacks("compose")? {
        println!("skipped docker-{}::compose::up_down_up: {reason}", d.store);
        return Ok(());
    }
    d.load("volumes")?;
    let file = d.folder().join("compose.yaml");
    fs::write(&file, PROJECT)?;
    let file = file.to_string_lossy().into_owned();
    let compose = |args: &[&str]| -> Result<String> {
        let line = [&["compose", "-p", "shop", "-f", file.as_str()], args].concat();
        run(&mut d.command(&line))?.ok()
    };
    let down = || compose(&["down", "-t", "0", "-v", "--remove-orphans"]);
    // What an attempt before has left, if it failed.
    down()?;
    let lines = |service: &str, path: &str| {
        compose(&["exec", "-T", service, "cat", path]).map(|out| out.lines().count())
    };
    let (before, web) = (lives(d, "chosen-db"), lives(d, "shop-web-1"));
    for n in 1..=3 {
        compose(&["up", "-d"])?;
        until("the services' lives", LIMIT, || {
            lines("db", "/var/lib/data/lives").is_ok_and(|n| n == before + n)
                && lines("web", "/srv/lives").is_ok_and(|n| n == 1)
                && lines("cache", "/lives").is_ok_and(|n| n == 1)
        })?;
        ensure!(lines("db", "/lives")? == before + n && lines("web", "/lives")? == web + n);
        compose(&[
            "exec",
            "-T",
            "db",
            "sh",
            "-c",
            "test ! -e /plain/x && touch /plain/x",
        ])?;
        // A container that stays is no new life of anybody else's.
        compose(&["up", "-d"])?;
        ensure!(lines("db", "/lives")? == before + n);
        // With `-v` the named volume goes, which is compose's.
        down()?;
        clean(d)?;
        ensure!(
            d.docker(&["ps", "-aq", "--filter", "label=com.docker.compose.project=shop"])?
                .ok()?
                .is_empty()
        );
    }
    ensure!(!d.state("shop-cache-1").exists());
    // The names that `docker run` would have to give.
    same(
        &life(d, "shop-web-1", "diffkeeper/volumes:dev", "wc -l < /lives")?,
        &format!("{}\n", web + 3),
    )?;
    // A recreated container is another one of the same name.
    compose(&["up", "-d", "db"])?;
    compose(&["up", "-d", "--force-recreate", "-t", "0", "db"])?;
    until("the recreated one", LIMIT, || {
        lines("db", "/lives").is_ok_and(|n| n == before + 5)
    })?;
    down()?;
    clean(d)
}

fn lives(d: &Docker, state: &str) -> usize {
    let file = d.state(state).join("roots/rootfs/upper/lives");
    fs::read_to_string(file).map_or(0, |text| text.lines().count())
}
