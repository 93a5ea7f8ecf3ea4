//! Who adds objects to a store, and who wants to be alone with it for a moment.
//!
//! Sessions go on beside each other, and one of them may be a restore of hours. Whoever wants to be alone waits for all of
//! them; others begin meanwhile as if nobody waited but for a moment of [courtesy](COURTESY), which is enough where each
//! follows the last; within one of the same thread, which could not end otherwise, at once. Where they overlap, each would
//! be followed by another before it ends: so there are lulls in which none begins, each twice as long as the last, and after
//! four times its length. Where none takes longer than L, one of them is long enough after less than 8 L; and all together
//! take a quarter of the time at most. What has gone on for longer than a lull when that begins is not about to end: then
//! there is none. No lull is longer than [`LONGEST`], which a commit can wait: where all take longer, and overlap, nobody
//! is ever alone.
//!
//! Whoever wants to be alone again and again, as a gc for each pack, lets in those who came before it was last.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, ThreadId},
    time::{Duration, Instant},
};

/// How long a session lets those pass who wait for all sessions to end.
const COURTESY: Duration = Duration::from_millis(20);
/// How long a lull is, of what was waited before it.
const LULL: u32 = 4;
/// No session is held for longer.
const LONGEST: Duration = Duration::from_secs(30);

#[derive(Default)]
pub(crate) struct Gate {
    inside: Mutex<Inside>,
    changed: Condvar,
}

#[derive(Default)]
struct Inside {
    /// Sessions and those who wait to be alone have numbers as they come.
    next: u64,
    /// When each began, and by which thread.
    sessions: BTreeMap<u64, (Instant, ThreadId)>,
    /// Who waits to begin one.
    entering: BTreeSet<u64>,
    /// Since when each waits to be alone.
    waiting: BTreeMap<u64, Instant>,
    alone: bool,
    /// Who came before this, when somebody had been alone, comes before the next.
    turn: u64,
}

impl Inside {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Somebody's turn is before that of whoever wants to be alone.
    fn is_owed(&self) -> bool {
        self.entering.first().is_some_and(|number| *number < self.turn)
    }

    /// Nobody is within, and somebody who waits for that has only to notice it.
    fn is_taken(&self) -> bool {
        self.alone || self.sessions.is_empty() && !self.waiting.is_empty() && !self.is_owed()
    }

    /// Whether a session begins at once, whoever waits to be alone.
    fn passes(&self, number: u64, thread: ThreadId) -> bool {
        let within = || self.sessions.values().any(|(_, of)| *of == thread);
        !self.alone && (number < self.turn || within())
    }

    /// Until when no session begins that wants to since `came`.
    fn held(&self, came: Instant, now: Instant) -> Option<Instant> {
        let since = *self.waiting.values().next()?;
        let courtesy = came + COURTESY;
        self.lull(since, now)
            .max(Some(courtesy))
            .filter(|until| now < *until)
    }

    /// When the lull ends that there is now, if there is one.
    fn lull(&self, since: Instant, now: Instant) -> Option<Instant> {
        let waited = now.duration_since(since);
        let mut before = COURTESY * LULL;
        while before * 2 <= waited && before < LONGEST * LULL {
            before *= 2;
        }
        let length = (before / LULL).min(LONGEST);
        // As often from then on.
        while before + length * LULL <= waited && length == LONGEST {
            before += length * LULL;
        }
        let (oldest, _) = *self.sessions.values().next()?;
        let begins = since + before;
        let now = begins <= now && now < begins + length;
        (now && begins < oldest + length).then_some(begins + length)
    }
}

/// A session; the gate is free of it when it is dropped.
pub(crate) struct Within<'g> {
    gate: &'g Gate,
    number: u64,
}

/// Nobody else is within.
pub(crate) struct Alone<'g> {
    gate: &'g Gate,
}

impl Gate {
    fn inside(&self) -> MutexGuard<'_, Inside> {
        // Numbers are in and out in one step each.
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn enter(&self) -> Within<'_> {
        let (came, thread) = (Instant::now(), thread::current().id());
        let mut inside = self.inside();
        let number = inside.number();
        inside.entering.insert(number);
        while !inside.passes(number, thread) {
            let now = Instant::now();
            inside = if inside.is_taken() {
                self.changed.wait(inside).unwrap_or_else(PoisonError::into_inner)
            } else if let Some(until) = inside.held(came, now) {
                let waited = self.changed.wait_timeout(inside, until - now);
                waited.unwrap_or_else(PoisonError::into_inner).0
            } else {
                break;
            };
        }
        inside.entering.remove(&number);
        inside.sessions.insert(number, (Instant::now(), thread));
        Within { gate: self, number }
    }

    pub(crate) fn alone(&self) -> Alone<'_> {
        let mut inside = self.inside();
        let number = inside.number();
        inside.waiting.insert(number, Instant::now());
        while inside.alone || !inside.sessions.is_empty() || inside.is_owed() {
            inside = self.changed.wait(inside).unwrap_or_else(PoisonError::into_inner);
        }
        inside.waiting.remove(&number);
        inside.alone = true;
        Alone { gate: self }
    }
}

#[cfg(test)]
impl Gate {
    pub(crate) fn is_waited_for(&self) -> bool {
        !self.inside().waiting.is_empty()
    }
}

impl Drop for Within<'_> {
    fn drop(&mut self) {
        self.gate.inside().sessions.remove(&self.number);
        self.gate.changed.notify_all();
    }
}

impl Drop for Alone<'_> {
    fn drop(&mut self) {
        let mut inside = self.gate.inside();
        inside.alone = false;
        inside.turn = inside.number();
        drop(inside);
        self.gate.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicBool, Ordering},
        thread,
    };

    use super::*;

    /// What two do that each begin again as soon as they may, so that they always overlap; with another that goes on. When
    /// nobody was within, and how long both were held in all.
    fn overlapping(length: Duration, besides: Option<Duration>) -> (Option<Duration>, Duration) {
        let step = length / 50;
        let came = Instant::now() + length;
        let (mut inside, thread) = (Inside::default(), thread::current().id());
        inside
            .sessions
            .extend(besides.map(|age| (0, (came - age, thread))));
        inside
            .sessions
            .extend([(1, (came - length / 2, thread)), (2, (came, thread))]);
        inside.waiting.insert(3, came);
        inside.next = 3;
        let (mut wanting, mut held) = (Vec::new(), Duration::ZERO);
        for n in 0..2_000 {
            let now = came + step * n;
            let before = inside.sessions.len();
            inside
                .sessions
                .retain(|number, (began, _)| *number == 0 || *began + length > now);
            wanting.extend((inside.sessions.len()..before).map(|_| now));
            if inside.sessions.is_empty() {
                return (Some(now - came), held);
            }
            let (begin, wait): (Vec<Instant>, _) = wanting
                .iter()
                .partition(|came| inside.held(**came, now).is_none());
            wanting = wait;
            held += step * u32::try_from(wanting.len()).unwrap();
            for _ in begin {
                let number = inside.number();
                inside.sessions.insert(number, (now, thread));
            }
        }
        (None, held)
    }

    #[test]
    fn sessions_that_overlap_keep_nobody_waiting_for_ever() {
        for millis in [50, 700, 10_000, 25_000] {
            let length = Duration::from_millis(millis);
            let (waited, _) = overlapping(length, None);
            let waited = waited.unwrap();
            assert!(waited < length * 9 + COURTESY * 9, "{length:?}: {waited:?}");
        }
    }

    #[test]
    fn others_are_not_held_for_one_that_goes_on() {
        let length = Duration::from_secs(10);
        let (waited, held) = overlapping(length, Some(Duration::from_secs(3600)));
        assert_eq!(waited, None);
        // Of 400 s: courtesy, which counts as a step.
        assert!(held < Duration::from_secs(40), "{held:?}");
    }

    #[test]
    fn no_lull_is_longer_than_a_commit_can_wait() {
        let (mut inside, since) = (Inside::default(), Instant::now());
        let (mut lulls, mut held, mut longest) = (0, 0, 0);
        for second in 0..7_200 {
            let now = since + Duration::from_secs(second);
            // One that has just begun.
            inside.sessions = BTreeMap::from([(1, (now, thread::current().id()))]);
            let lull = inside.lull(since, now).is_some();
            lulls += u64::from(lull && held == 0);
            held = if lull { held + 1 } else { 0 };
            longest = longest.max(held);
        }
        assert!(longest <= LONGEST.as_secs() + 1, "{longest} s");
        // They come again for ever.
        assert!(lulls > 7_200 / 200, "{lulls}");
    }

    #[test]
    fn what_begins_within_another_is_not_held() {
        let gate = Gate::default();
        let within = gate.enter();
        thread::scope(|scope| {
            scope.spawn(|| drop(gate.alone()));
            while !gate.is_waited_for() {
                thread::yield_now();
            }
            // As if it had waited for so long that there is a lull of 20 s.
            let now = Instant::now();
            let since = now.checked_sub(COURTESY * LULL * 1024).unwrap();
            {
                let mut inside = gate.inside();
                inside.waiting.values_mut().for_each(|at| *at = since);
                assert!(inside.lull(since, now).is_some());
            }
            let began = Instant::now();
            drop(gate.enter());
            let took = began.elapsed();
            assert!(took < LONGEST / 2, "{took:?}");
            drop(within);
        });
    }

    /// As a gc, pack after pack: the thread that was alone is there again before those who wait are awake.
    #[test]
    fn who_waited_comes_before_the_next_who_wants_to_be_alone() {
        let gate = &Gate::default();
        let mut alone = gate.alone();
        thread::scope(|scope| {
            for n in 0..20 {
                let session = scope.spawn(move || {
                    drop(gate.enter());
                    n
                });
                while gate.inside().entering.is_empty() {
                    thread::yield_now();
                }
                drop(alone);
                alone = gate.alone();
                assert!(gate.inside().entering.is_empty());
                assert_eq!(session.join().unwrap(), n);
            }
            drop(alone);
        });
    }

    /// In threads, as it is.
    #[test]
    fn who_wants_to_be_alone_comes_in_between() {
        let (gate, ended) = (&Gate::default(), &AtomicBool::new(false));
        thread::scope(|scope| {
            for n in 0..4 {
                scope.spawn(move || {
                    while !ended.load(Ordering::Relaxed) {
                        let within = gate.enter();
                        // One that begins within another is not held for ever either.
                        let inner = gate.enter();
                        assert!(!gate.inside().alone);
                        thread::sleep(Duration::from_millis(20 + 7 * n));
                        drop((within, inner));
                    }
                });
            }
            for _ in 0..5 {
                let alone = gate.alone();
                assert!(gate.inside().sessions.is_empty());
                thread::sleep(Duration::from_millis(30));
                drop(alone);
            }
            ended.store(true, Ordering::Relaxed);
        });
        assert!(gate.inside().sessions.is_empty());
    }
}
