//! How long processors worked for chunks, by how those came to be stored: with all that was tried for each.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use delta::Encoding;
use nix::time::{ClockId, clock_gettime};

use crate::{base::Encoded, catalog::Spent, error::Result, pack::Object};

/// What was spent since it was recorded last.
#[derive(Default)]
pub(crate) struct Meter([AtomicU64; Encoding::COUNT]);

/// The time that this thread has had of a processor; none where the kernel does not tell.
fn worked() -> Option<Duration> {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)
        .ok()
        .map(Duration::from)
}

/// How long this thread works for something.
pub(crate) fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let before = worked();
    let made = work();
    let spent = before
        .zip(worked())
        .map(|(before, after)| after.saturating_sub(before));
    (made, spent.unwrap_or_default())
}

impl Meter {
    /// Encodes an object, and notes what that took if it is a chunk.
    pub fn of(&self, work: impl FnOnce() -> Result<Encoded>) -> Result<Encoded> {
        let (made, spent) = timed(work);
        if let Ok(made) = &made
            && made.record.object == Object::Chunk
        {
            self.note(made.record.encoding, spent);
        }
        made
    }

    pub fn note(&self, encoding: Encoding, spent: Duration) {
        if let Some(sum) = self.0.get(encoding as usize) {
            sum.fetch_add(
                u64::try_from(spent.as_nanos()).unwrap_or(u64::MAX),
                Ordering::Relaxed,
            );
        }
    }

    /// What there is, added to what was spent before; it counts once.
    pub fn take(&self, mut before: Spent) -> Spent {
        for (before, now) in before.iter_mut().zip(&self.0) {
            *before = before.saturating_add(now.swap(0, Ordering::Relaxed));
        }
        before
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::tests::{commit, known, put, store, write};

    const STATE: &str = "ctr/default/web";

    #[test]
    fn what_was_worked_for_a_state_is_known_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        let lines = |n: u32| -> Vec<u8> {
            let line = |line: u32| format!("line {line} of {}\n", line.wrapping_mul(2_654_435_761) / (n + 1));
            (0..2_000).flat_map(|n| line(n).into_bytes()).collect()
        };
        for n in 0..4 {
            commit(&store, STATE, |s| vec![put(write(s, "file", &lines(n), None))]);
        }
        commit(&store, "ctr/default/other", |s| {
            vec![put(write(s, "file", b"short, and in its entry", None))]
        });
        let spent = |store: &crate::Store, state: &str| -> Duration {
            let forms = store.forms(&known(store, state)).unwrap();
            forms.iter().map(|form| form.spent).sum()
        };
        let first = spent(&store, STATE);
        assert!(first > Duration::ZERO);
        assert_eq!(spent(&store, "ctr/default/other"), Duration::ZERO);
        store.recompact(&known(&store, STATE), |_| {}).unwrap();
        let after = spent(&store, STATE);
        // At any price.
        assert!(after > first * 2, "{first:?} {after:?}");
        let all: Duration = store.usage().unwrap().forms.iter().map(|form| form.spent).sum();
        assert_eq!(all, after);
        drop(store);
        let store = crate::tests::store(dir.path());
        assert_eq!(spent(&store, STATE), after);
        let number = known(&store, STATE).number;
        store.forget_state(STATE).unwrap();
        assert_eq!(
            store.catalog.spent(number).unwrap(),
            crate::catalog::Spent::default()
        );
        assert_eq!(store.catalog.recompacted(number).unwrap(), 0);
    }
}
