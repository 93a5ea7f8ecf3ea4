//! Databases whose images declare a `VOLUME`, killed while they write, through CRI.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use integration::{
    Daemon,
    cri::{Cri, NAMESPACE, Pod},
    daemon::kill,
    databases::{Database, Engine, MARIADB, REDIS, survives},
};
use k8s_cri::v1::Mount;

use crate::Test;

pub const TESTS: &[(&str, Test)] = &[
    (
        "databases::mariadb_survives_everything",
        mariadb_survives_everything,
    ),
    ("databases::redis_survives_everything", redis_survives_everything),
];

struct Life<'a, 'd> {
    daemon: &'a Daemon,
    cri: &'a Cri<'d>,
    /// The pod's name, and what its uids begin with.
    name: &'static str,
    lives: usize,
    now: Option<(Pod<'a, 'd>, String)>,
}

impl Engine for Life<'_, '_> {
    fn begin(&mut self, image: &str, acks: &Path) -> Result<()> {
        let image = self.daemon.import_into(NAMESPACE, image)?;
        self.lives += 1;
        let uid = format!("{}-{}", self.name, self.lives);
        let pod = self
            .cri
            .run_pod("diffkeeper", self.cri.pod_config("default", self.name, &uid))?;
        let mut config = pod.container_config("database", 0, &image, "");
        config.mounts = vec![Mount {
            container_path: "/acks".into(),
            host_path: acks.to_string_lossy().into_owned(),
            ..Mount::default()
        }];
        let started = pod.create(config).and_then(|id| self.cri.start(&id).map(|()| id));
        match started {
            Ok(id) => {
                self.now = Some((pod, id));
                Ok(())
            }
            Err(error) => {
                pod.delete()?;
                Err(error)
            }
        }
    }

    fn sh(&self, script: &str) -> Result<String> {
        let (_, id) = self.now.as_ref().context("nothing runs")?;
        self.cri.sh(id, script)
    }

    fn end(&mut self, round: usize) -> Result<()> {
        let (pod, id) = self.now.take().context("nothing runs")?;
        if round.is_multiple_of(2) {
            // With the shim goes all that it held.
            let shims = self.daemon.shims(None);
            ensure!(shims.len() == 1, "{shims:?}");
            shims.into_iter().try_for_each(kill)?;
        } else {
            self.cri.stop(&id, 0)?;
        }
        pod.delete()
    }
}

fn survives_everything(d: &Daemon, name: &'static str, database: &Database) -> Result<()> {
    let cri = Cri::connect(d)?;
    let rounds = if crate::soak() { 20 } else { 2 };
    let mut life = Life {
        daemon: d,
        cri: &cri,
        name,
        lives: 0,
        now: None,
    };
    let result = survives(database, &mut life, &d.folder().join("acks"), rounds);
    match life.now.take() {
        Some((pod, _)) => result.and(pod.delete()),
        None => result,
    }
}

fn mariadb_survives_everything(d: &Daemon) -> Result<()> {
    survives_everything(d, "mariadb-0", &MARIADB)
}

fn redis_survives_everything(d: &Daemon) -> Result<()> {
    survives_everything(d, "redis-0", &REDIS)
}
