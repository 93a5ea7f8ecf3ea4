//! Storing in fewer bytes what was stored while containers ran.
//!
//! By itself the keeper does so while nobody waits for the processors, and takes a quarter of one; on request at once, and
//! all of one.

use std::{
    collections::HashMap,
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
/// Who waits for the end of a rest waits no longer.
const NAP: Duration = Duration::from_millis(500);

/// For how much of the last ten seconds something waited for a processor, in percent; none where the kernel does not tell.
fn pressure() -> Option<f32> {
    some_avg10(&std::fs::read_to_string("/proc/pressure/cpu").ok()?)
}

fn some_avg10(text: &str) -> Option<f32> {
    let some = text.lines().find(|line| line.starts_with("some "))?;
    let average = some.split(' ').find_map(|word| word.strip_prefix("avg10="))?;
    average.parse().ok()
}

fn idle() -> bool {
    pressure().is_none_or(|pressure| pressure < PRESSURE)
}

impl Keeper {
    /// Stores the chunks of all states in fewer bytes, where that can be; the space comes back with the next gc.
    ///
    /// # Errors
    /// A damaged tree, a full or failing disk, a stop.
    pub fn recompact(&self, progress: &Progress) -> Result<Recompacted> {
        progress.begin("storing in fewer bytes");
        let mut all = Recompacted::default();
        for known in self.store().states()? {
            loop {
                let done = self.recompact_state(&known, &mut |done| {
                    progress.at(done.chunks, done.of_chunks, all.before + done.before);
                    progress.flow()
                })?;
                all.chunks += done.chunks;
                all.written += done.written;
                all.before += done.before;
                all.after += done.after;
                if !done.gave_way {
                    break;
                }
                // Not at once, or the gc that it gave way to would find it there again.
                while self.store().gc_waits() {
                    progress.go_on()?;
                    std::thread::sleep(NAP / 25);
                }
            }
        }
        Ok(all)
    }

    fn recompact_state(
        &self,
        known: &Known,
        told: &mut dyn FnMut(&Recompacted) -> ControlFlow<()>,
    ) -> Result<Recompacted> {
        let mut last = Recompacted::default();
        let done = self.store().recompact(known, |done| {
            last = *done;
            told(done)
        });
        // What was done before an end stays.
        self.counts.recompacted(done.as_ref().unwrap_or(&last));
        Ok(done?)
    }
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
                if !due || !idle() {
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
        let done = keeper.recompact_state(known, &mut |_| {
            let (rest, begun) = (worked.elapsed() * RESTS, Instant::now());
            let rested = || begun.elapsed() >= rest && idle();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_tells_what_waits() {
        let told = "some avg10=12.50 avg60=1.00 avg300=0.10 total=9\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n";
        assert_eq!(some_avg10(told), Some(12.5));
        assert_eq!(some_avg10("full avg10=1.00"), None);
        assert_eq!(some_avg10(""), None);
    }
}
