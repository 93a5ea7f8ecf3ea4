//! What was done, in numbers: Prometheus' text form. The predecessor's names where they fit.

use std::{
    collections::BTreeMap,
    fmt::Write,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use store::Recorded;

use crate::{Error, keeper::Keeper};

/// Upper ends of a histogram's buckets, in seconds.
const BUCKETS: [f64; 12] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0,
];

/// How often how long.
#[derive(Debug, Default, Clone)]
struct Histogram {
    buckets: [u64; BUCKETS.len()],
    count: u64,
    sum: f64,
}

impl Histogram {
    fn add(&mut self, time: Duration) {
        let seconds = time.as_secs_f64();
        self.count += 1;
        self.sum += seconds;
        for (bucket, end) in self.buckets.iter_mut().zip(BUCKETS) {
            *bucket += u64::from(seconds <= end);
        }
    }

    fn write(&self, text: &mut String, name: &str, help: &str) {
        let mut line = |line: String| {
            text.push_str(&line);
            text.push('\n');
        };
        line(format!("# HELP {name} {help}"));
        line(format!("# TYPE {name} histogram"));
        for (end, count) in BUCKETS.iter().zip(self.buckets) {
            line(format!("{name}_bucket{{le=\"{end}\"}} {count}"));
        }
        line(format!("{name}_bucket{{le=\"+Inf\"}} {}", self.count));
        line(format!("{name}_sum {}", self.sum));
        line(format!("{name}_count {}", self.count));
    }
}

/// What was done since the start.
#[derive(Debug, Default)]
pub struct Counts(Mutex<Inner>);

#[derive(Debug, Default, Clone)]
struct Inner {
    captures: Histogram,
    pauses: Histogram,
    restores: Histogram,
    commits: u64,
    failures: u64,
    restore_failures: u64,
    reclaimed_trees: u64,
    reclaimed_histories: u64,
    recompacted: u64,
    recompacted_saved: u64,
    /// By why: commits that are not of the consistency that they might be of.
    doubts: BTreeMap<String, u64>,
    /// By namespace that may take so much: what its live trees take, and may.
    totals: BTreeMap<String, (u64, u64)>,
    /// By state: when it was last recorded, nanoseconds since 1970.
    last: BTreeMap<String, i64>,
}

impl Counts {
    pub(crate) fn captured(&self, made: &Result<Option<Recorded>, Error>, took: Duration) {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inner.captures.add(took);
        match made {
            Ok(Some(recorded)) => {
                inner.commits += 1;
                if recorded.commit.pause > 0 {
                    inner.pauses.add(Duration::from_nanos(recorded.commit.pause));
                }
                if let Some((why, _)) = recorded.commit.doubt.split_once(':') {
                    *inner.doubts.entry(why.to_owned()).or_default() += 1;
                }
                inner
                    .last
                    .insert(recorded.commit.state.clone(), recorded.commit.time);
            }
            Ok(None) => {}
            Err(_) => inner.failures += 1,
        }
    }

    pub(crate) fn restored(&self, well: bool, took: Duration) {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inner.restores.add(took);
        inner.restore_failures += u64::from(!well);
    }

    pub(crate) fn recompacted(&self, done: &store::Recompacted) {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inner.recompacted += done.written;
        inner.recompacted_saved += done.before.saturating_sub(done.after);
    }

    pub(crate) fn totalled(&self, totals: BTreeMap<String, (u64, u64)>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).totals = totals;
    }

    pub(crate) fn reclaimed(&self, trees: u64, histories: u64) {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inner.reclaimed_trees += trees;
        inner.reclaimed_histories += histories;
    }
}

impl Keeper {
    /// All metrics.
    ///
    /// # Errors
    /// A failing disk.
    pub fn metrics(&self) -> Result<String, Error> {
        let inner = self
            .counts
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let usage = self.store().usage()?;
        let mut text = String::new();
        let mut one = |name: &str, kind: &str, help: &str, value: f64| {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}");
        };
        #[allow(clippy::cast_precision_loss)]
        let number = |n: u64| n as f64;
        one("diffkeeper_up", "gauge", "The keeper answers.", 1.0);
        one(
            "diffkeeper_capture_total",
            "counter",
            "Looks at live trees.",
            number(inner.captures.count),
        );
        one(
            "diffkeeper_commit_total",
            "counter",
            "Commits made.",
            number(inner.commits),
        );
        one(
            "diffkeeper_capture_failures_total",
            "counter",
            "Looks that failed.",
            number(inner.failures),
        );
        one(
            "diffkeeper_recovery_total",
            "counter",
            "Restores.",
            number(inner.restores.count),
        );
        one(
            "diffkeeper_recovery_failures_total",
            "counter",
            "Restores that failed.",
            number(inner.restore_failures),
        );
        one(
            "diffkeeper_reclaimed_trees_total",
            "counter",
            "Live trees that had expired and were removed.",
            number(inner.reclaimed_trees),
        );
        one(
            "diffkeeper_reclaimed_histories_total",
            "counter",
            "Histories that had expired and were forgotten.",
            number(inner.reclaimed_histories),
        );
        one(
            "diffkeeper_recompacted_chunks_total",
            "counter",
            "Chunks that were written again in fewer bytes.",
            number(inner.recompacted),
        );
        one(
            "diffkeeper_recompacted_saved_bytes_total",
            "counter",
            "Bytes that those took before less those that they take now.",
            number(inner.recompacted_saved),
        );
        one(
            "diffkeeper_store_size_bytes",
            "gauge",
            "Bytes in packs.",
            number(usage.bytes),
        );
        one(
            "diffkeeper_chunk_total",
            "gauge",
            "Different chunks.",
            number(usage.chunks),
        );
        one(
            "diffkeeper_storage_saved_bytes_total",
            "gauge",
            "Bytes of different content less the bytes that they take.",
            number(usage.content.saturating_sub(usage.stored)),
        );
        one(
            "diffkeeper_store_free_bytes",
            "gauge",
            "Free space of the store's disk.",
            number(self.free()?),
        );
        let (whole, named, missed) = self.watching().counts();
        text.push_str("# HELP diffkeeper_looks_total Looks at live trees in use, by who said where to look.\n# TYPE diffkeeper_looks_total counter\n");
        for (watcher, looks) in [("scan", whole), ("fanotify", named)] {
            let _ = writeln!(text, "diffkeeper_looks_total{{watcher=\"{watcher}\"}} {looks}");
        }
        let _ = writeln!(
            text,
            "# HELP diffkeeper_missed_total Changes that only a look at everything found.\n# TYPE diffkeeper_missed_total counter\ndiffkeeper_missed_total {missed}"
        );
        inner.captures.write(
            &mut text,
            "diffkeeper_capture_duration_seconds",
            "How long a look at a live tree took, with the commit that came of it.",
        );
        inner.pauses.write(
            &mut text,
            "diffkeeper_pause_duration_seconds",
            "How long containers stood still for a commit.",
        );
        inner.restores.write(
            &mut text,
            "diffkeeper_recovery_duration_seconds",
            "How long restores took.",
        );
        text.push_str("# HELP diffkeeper_doubtful_commit_total Commits that are not of the consistency that they might be of.\n# TYPE diffkeeper_doubtful_commit_total counter\n");
        for (why, count) in inner.doubts {
            let _ = writeln!(text, "diffkeeper_doubtful_commit_total{{why=\"{why}\"}} {count}");
        }
        for (name, help, value) in [
            (
                "diffkeeper_namespace_bytes",
                "What the live trees of a namespace with a total-limit take, an hour ago at most.",
                (|total| total.0) as fn(&(u64, u64)) -> u64,
            ),
            (
                "diffkeeper_namespace_limit_bytes",
                "What they may take.",
                |total| total.1,
            ),
        ] {
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} gauge");
            for (namespace, total) in &inner.totals {
                let _ = writeln!(text, "{name}{{namespace=\"{namespace}\"}} {}", value(total));
            }
        }
        let now = crate::keeper::now();
        text.push_str("# HELP diffkeeper_last_commit_age_seconds Since a state's last commit.\n# TYPE diffkeeper_last_commit_age_seconds gauge\n");
        for (state, time) in inner.last {
            let age = Duration::from_nanos(now.saturating_sub(time).unsigned_abs()).as_secs_f64();
            let _ = writeln!(
                text,
                "diffkeeper_last_commit_age_seconds{{state=\"{state}\"}} {age:.3}"
            );
        }
        Ok(text)
    }
}
