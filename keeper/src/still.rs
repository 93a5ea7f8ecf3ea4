//! A container stands still while a commit looks at its live tree for the last time.
//!
//! Most is read while it runs. Where the rest could not be read in the time that it may stand still, it is tried again: each
//! time less is left.

use std::{
    io,
    sync::LazyLock,
    time::{Duration, Instant},
};

use store::format::Consistency;

use crate::{
    blueshift::{Capture, Freezer},
    quiesce::{Doubt, Quiesced},
};

/// While reading took longer than this, what has changed meanwhile is read before the container is stopped for the rest.
const CALM: Duration = Duration::from_millis(20);
/// One that writes faster than it can be read is not caught up with.
const ROUNDS: usize = 4;
/// How often the container is stopped for one commit, where it could not be read in the time that it may stand still.
const STOPS: usize = 3;

/// Threads for what is read while a container stands still: those that all share are at work for other states, and finish
/// what they have begun before they take on more. None where there are no more threads to be had.
static STILL: LazyLock<Option<rayon::ThreadPool>> =
    LazyLock::new(|| rayon::ThreadPoolBuilder::new().build().ok());

/// A tree that is read until all of it is of one moment.
pub(crate) trait Looking {
    /// Why it cannot be.
    type Error;

    /// Reads what has changed meanwhile, while the container goes on.
    fn again(&mut self) -> Result<(), Self::Error>;

    /// The same, and the last of it in [`Stop::during`]; may be asked for more than once.
    fn last(&mut self, stop: &mut Stop<'_>) -> Result<(), Self::Error>;
}

/// One time that the container stands still.
pub(crate) struct Stop<'a> {
    freezer: &'a dyn Freezer,
    limit: Duration,
    /// Whether it was stopped, whether it stood all the time, and for how long that was.
    went: Option<(io::Result<bool>, bool, Duration)>,
}

impl Stop<'_> {
    /// Does something while the container stands still.
    pub(crate) fn during<T: Send>(&mut self, work: impl FnOnce() -> T + Send) -> T {
        // Begun before it has to stand still for it.
        let threads = STILL.as_ref();
        let frozen = tracing::debug_span!("freeze").in_scope(|| self.freezer.freeze(self.limit));
        let began = Instant::now();
        let done = tracing::debug_span!("frozen").in_scope(|| match threads {
            Some(threads) => threads.install(work),
            None => work(),
        });
        let took = began.elapsed();
        let stood = tracing::debug_span!("thaw").in_scope(|| self.freezer.thaw());
        self.went = Some((frozen, stood, took));
        done
    }
}

/// How well the container stood still.
#[derive(Debug)]
pub(crate) struct Stood {
    pub consistency: Consistency,
    /// For how long.
    pub pause: Duration,
    /// Why the consistency is not better.
    pub doubt: Option<Doubt>,
}

impl Stood {
    /// Nothing wrote.
    pub(crate) fn quiet() -> Stood {
        Stood {
            consistency: Consistency::Quiet,
            pause: Duration::ZERO,
            doubt: None,
        }
    }
}

impl Capture<'_> {
    /// Where nothing is there to be stopped.
    pub(crate) fn by_itself(&self) -> Stood {
        match (self.undisturbed)() {
            true => Stood::quiet(),
            // A container has taken it meanwhile.
            false => Stood {
                consistency: Consistency::Fuzzy,
                doubt: Some(Doubt::Disturbed),
                ..Stood::quiet()
            },
        }
    }

    /// Has the container make itself ready and stand still while it is looked at for the last time. `began` is when what
    /// has been read so far was begun. Where it fails, the application still waits to be told of the end.
    pub(crate) fn standing_still<L: Looking>(
        &self,
        freezer: &dyn Freezer,
        quiesced: &Quiesced<'_>,
        mut began: Instant,
        looking: &mut L,
    ) -> Result<Stood, L::Error> {
        tracing::debug_span!("quiesce").in_scope(|| quiesced.begin());
        let mut stops = 0;
        let mut pause;
        let outcome = loop {
            stops += 1;
            for _ in 0..ROUNDS {
                if began.elapsed() < CALM {
                    break;
                }
                began = Instant::now();
                tracing::debug_span!("again").in_scope(|| looking.again())?;
            }
            let mut stop = Stop {
                freezer,
                limit: self.max_pause,
                went: None,
            };
            // Most is behind us: what is lost if this takes long is the rest.
            let stopped = Instant::now();
            looking.last(&mut stop)?;
            let Some((frozen, stood, took)) = stop.went else {
                pause = Duration::ZERO;
                break Err(Doubt::NotStopped("nobody asked for it".into()));
            };
            pause = took;
            match frozen {
                Ok(true) if !stood && stops < STOPS => began = stopped,
                Ok(true) if stood => break Ok(Consistency::Crash),
                Ok(false) => break Ok(Consistency::Quiet),
                Ok(true) if pause >= self.max_pause => break Err(Doubt::TooMuch(self.max_pause)),
                Ok(true) => break Err(Doubt::Interrupted),
                Err(error) => break Err(Doubt::NotStopped(error.to_string())),
            }
        };
        let (ready, mut doubt) = quiesced.end();
        let consistency = match outcome {
            Ok(Consistency::Crash) if ready => Consistency::Application,
            Ok(consistency) => consistency,
            Err(why) => {
                doubt = Some(why);
                Consistency::Fuzzy
            }
        };
        if !matches!(consistency, Consistency::Crash | Consistency::Application) {
            pause = Duration::ZERO;
        }
        Ok(Stood {
            consistency,
            pause,
            doubt,
        })
    }
}
