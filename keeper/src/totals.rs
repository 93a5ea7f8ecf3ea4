//! What the live trees of a namespace take together, where that is limited.

use std::collections::BTreeMap;

use crate::{error::Result, keeper::Keeper};

impl Keeper {
    /// Counts it, for the metrics, and says in the log where no new state begins any more.
    ///
    /// # Errors
    /// Live trees that cannot be listed.
    pub(crate) fn count_totals(&self) -> Result<()> {
        let mut totals = BTreeMap::new();
        for info in self.node().states()? {
            let namespace = info.name.engine_namespace();
            let Some(limit) = self.total_limit(info.name.namespace()) else {
                continue;
            };
            if totals.contains_key(namespace) {
                continue;
            }
            let taken = self.node().total(namespace, None)?.bytes;
            if taken >= limit {
                tracing::warn!(
                    namespace,
                    taken,
                    limit,
                    "its live trees take as much as total-limit says: no new state begins in it"
                );
            }
            totals.insert(namespace.to_owned(), (taken, limit));
        }
        self.counts.totalled(totals);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use live::Root;
    use runtime_spec::config::Config;

    use super::*;

    #[test]
    fn what_a_namespace_takes_is_told_where_it_is_limited() {
        if !crate::tests::root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let text = "[namespaces.shop]\ntotal-limit = \"5MiB\"";
        let config = Config {
            root: dir.path().join("root"),
            ..Config::parse(text).unwrap()
        };
        let keeper = Keeper::open(&config).unwrap();
        for name in [
            "k8s/shop/db/pg",
            "k8s/shop/web/app",
            "k8s/other/web/app",
            "ctr/shop/pg",
        ] {
            let root = keeper.node().state(&name.parse().unwrap()).root(&Root::Rootfs);
            let root = root.unwrap();
            root.prepare_overlay(0o755, (0, 0)).unwrap();
            std::fs::write(root.upper().join("f"), vec![1; 3 << 20]).unwrap();
        }
        keeper.count_totals().unwrap();
        let text = keeper.metrics().unwrap();
        let told: Vec<&str> = text
            .lines()
            .filter(|line| line.starts_with("diffkeeper_namespace_"))
            .collect();
        // What is configured for a name is so for each engine's own.
        let [other, taken, other_limit, limit] = told.as_slice() else {
            panic!("{told:?}");
        };
        let of = |line: &str, figure: &str, namespace: &str| -> u64 {
            let begin = format!("diffkeeper_namespace_{figure}{{namespace=\"{namespace}\"}} ");
            line.strip_prefix(&begin).unwrap().parse().unwrap()
        };
        assert_eq!(of(limit, "limit_bytes", "k8s/shop"), 5 << 20);
        assert_eq!(of(other_limit, "limit_bytes", "ctr/shop"), 5 << 20);
        let taken = of(taken, "bytes", "k8s/shop");
        assert!((6 << 20..7 << 20).contains(&taken), "{taken}");
        let other = of(other, "bytes", "ctr/shop");
        assert!((3 << 20..4 << 20).contains(&other), "{other}");
    }
}
