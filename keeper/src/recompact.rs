//! Storing in fewer bytes what was stored while containers ran.
//!
//! By itself the keeper does so while nobody waits for the processors, and takes a quarter of one; on request at once, by all
//! of them, and by one alone while others wait.

use std::{
    collections::HashMap,
    num::NonZeroUsize,
    ops::ControlFlow,
    sync::{Condvar, Mutex, PoisonError},
    time::{Duration, Instant},
};

use store::{Known, Recompacted, Thorough};

use crate::{error::Result, keeper::Keeper, progress::Progress};

/// Whether there is something to be done is looked at so often.
const LOOK: Duration = Duration::from_secs(600);
/// A state is left alone for so long: by then retention has thinned out what is not worth it.
const REST: Duration = Duration::from_secs(6 * 3600);
/// And until it has so many new commits.
const COMMITS: u64 = 16;
/// For so much of the last ten seconds, in percent, something may have waited for a processor.
const PRESSURE: f32 = 5.0;
/// For each second of work so many of rest.
const RESTS: u32 = 3;
/// But no longer at a time.
const LONGEST: Duration = Duration::from_secs(30);
/// Who waits for the end of a rest waits no longer.
const NAP: Duration = Duration::from_millis(500);

impl Keeper {
    /// Stores the chunks of a state in fewer bytes, where that can be, or of all states where `state` is empty; the space
    /// comes back with the next gc.
    ///
    /// # Errors
    /// A state that is not there, a damaged tree, a full or failing disk, a stop.
    pub fn recompact(&self, state: &str, progress: &Progress) -> Result<Recompacted> {
        progress.begin("storing in fewer bytes");
        let mut all = Recompacted::default();
        let states = match state {
            "" => self.store().states()?,
            state => vec![self.known(state)?],
        };
        let processors = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        for known in states {
            let done = self.recompact_state(&known, processors, &mut |done| {
                progress.at(done.chunks, done.of_chunks, all.before + done.before);
                progress.flow()
            })?;
            all.chunks += done.chunks;
            all.written += done.written;
            all.before += done.before;
            all.after += done.after;
        }
        Ok(all)
    }

    fn recompact_state(
        &self,
        known: &Known,
        threads: usize,
        told: &mut dyn FnMut(&Recompacted) -> ControlFlow<()>,
    ) -> Result<Recompacted> {
        let mut last = Recompacted::default();
        let done = self.store().recompact_on(known, threads, |done| {
            last = *done;
            told(done)
        });
        // What was done before an end stays.
        self.counts.recompacted(done.as_ref().unwrap_or(&last));
        Ok(done?)
    }
}

fn idle(keeper: &Keeper) -> bool {
    keeper
        .store()
        .pressure()
        .is_none_or(|pressure| pressure < PRESSURE)
}

/// When that is done without anybody asking.
#[derive(Debug, Default)]
pub struct Idle {
    stopped: Mutex<bool>,
    woken: Condvar,
}

impl Idle {
    /// Ends [`Idle::run`]; what is left is for the next keeper.
    pub fn stop(&self) {
        *self.stopped.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.woken.notify_one();
    }

    /// Recompacts states while nobody waits for the processors, until it is told to stop.
    pub fn run(&self, keeper: &Keeper) {
        let mut rested: HashMap<String, Instant> = HashMap::new();
        let began = Instant::now();
        while self.wait(LOOK).is_continue() {
            let states = match keeper.store().states() {
                Ok(states) => states,
                Err(error) => {
                    tracing::error!(%error, "what can be stored in fewer bytes cannot be told");
                    continue;
                }
            };
            rested.retain(|name, _| states.iter().any(|known| known.name == *name));
            for known in states {
                let since = rested.get(&known.name).unwrap_or(&began);
                let due = since.elapsed() >= REST
                    && keeper
                        .store()
                        .uncompacted(&known)
                        .is_ok_and(|commits| commits >= COMMITS);
                if !due || !idle(keeper) {
                    continue;
                }
                rested.insert(known.name.clone(), Instant::now());
                if let Err(error) = self.once(keeper, &known) {
                    match error {
                        crate::Error::Store(store::Error::Stopped) => return,
                        error => {
                            tracing::error!(state = known.name, %error, "it cannot be stored in fewer bytes");
                        }
                    }
                }
            }
        }
    }

    fn once(&self, keeper: &Keeper, known: &Known) -> Result<()> {
        let mut worked = Instant::now();
        let done = keeper.recompact_state(known, 1, &mut |_| {
            // What took longer was no work, but waiting for a gc.
            let (rest, begun) = ((worked.elapsed() * RESTS).min(LONGEST), Instant::now());
            let rested = || begun.elapsed() >= rest && idle(keeper);
            self.wait(rest.min(NAP))?;
            while !rested() && !keeper.store().gc_waits() {
                self.wait(NAP)?;
            }
            worked = Instant::now();
            ControlFlow::Continue(())
        })?;
        tracing::info!(
            state = known.name,
            chunks = done.written,
            before = done.before,
            after = done.after,
            "stored in fewer bytes"
        );
        if done.written > 0 {
            keeper
                .store()
                .gc(Thorough::Worthwhile, false, |_| self.wait(Duration::ZERO))?;
        }
        Ok(())
    }

    /// Waits, unless it is to end.
    fn wait(&self, time: Duration) -> ControlFlow<()> {
        let stopped = self.stopped.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.woken.wait_timeout_while(stopped, time, |stopped| !*stopped);
        match *waited.unwrap_or_else(PoisonError::into_inner).0 {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }
}
