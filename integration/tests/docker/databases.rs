//! Databases whose images declare a `VOLUME`, killed while they write.

use std::path::Path;

use anyhow::{Result, ensure};
use integration::{
    Docker,
    daemon::kill,
    databases::{Database, Engine, MARIADB, REDIS, survives},
    wait::until,
};

use crate::{LIMIT, Test, clean, remove, start};

pub const TESTS: &[(&str, Test)] = &[
    (
        "databases::mariadb_survives_everything",
        mariadb_survives_everything,
    ),
    ("databases::redis_survives_everything", redis_survives_everything),
];

/// What cannot be had anywhere that these tests fetch from.
pub const SKIPPED: (&str, &str) = (
    "databases::mongodb_survives_everything",
    "no Debian suite has MongoDB (its licence, the SSPL)",
);

const NAME: &str = "database";

struct Container<'a>(&'a Docker);

impl Engine for Container<'_> {
    fn begin(&mut self, image: &str, acks: &Path) -> Result<()> {
        let image = self.0.load(image)?;
        let acks = format!("{}:/acks", acks.display());
        start(self.0, &["-d", "--name", NAME, "-v", &acks], &image, "").map(drop)
    }

    fn sh(&self, script: &str) -> Result<String> {
        self.0.docker(&["exec", NAME, "sh", "-c", script])?.ok()
    }

    fn end(&mut self, round: usize) -> Result<()> {
        let d = self.0;
        let anonymous = "{{range .Mounts}}{{if eq .Type \"volume\"}}{{.Name}}{{end}}{{end}}";
        let volume = d.docker(&["inspect", "-f", anonymous, NAME])?.ok()?;
        let volume = volume.trim();
        ensure!(volume.len() == 64, "an anonymous volume: {volume:?}");
        if round.is_multiple_of(2) {
            d.shims().into_iter().try_for_each(kill)?;
        } else {
            d.docker(&["kill", "-s", "KILL", NAME])?.ok()?;
        }
        until("its removal", LIMIT, || {
            d.docker(&["rm", "-f", "-v", NAME]).is_ok_and(|r| r.status == 0)
        })?;
        d.docker(&["volume", "inspect", volume])?
            .fails_with(&["no such volume"])?;
        clean(d)
    }
}

fn survives_everything(d: &Docker, database: &Database) -> Result<()> {
    // What an attempt before has left, if it failed.
    let _ = remove(d, NAME);
    let rounds = if crate::soak() { 20 } else { 2 };
    survives(database, &mut Container(d), &d.folder().join("acks"), rounds)
}

fn mariadb_survives_everything(d: &Docker) -> Result<()> {
    survives_everything(d, &MARIADB)
}

fn redis_survives_everything(d: &Docker) -> Result<()> {
    survives_everything(d, &REDIS)
}
