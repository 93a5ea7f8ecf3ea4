//! What a state's history would take by each way to store it.

use std::time::Duration;

use keeper_api::keeper::keeper as api;

use crate::{error::Result, keeper::Keeper, progress::Progress};

impl Keeper {
    /// Replays a state's history by every way to store it; nothing is changed.
    ///
    /// # Errors
    /// A state that is not there, a damaged tree, a failing disk, a stop.
    pub fn tune(&self, state: &str, progress: &Progress) -> Result<api::TuneResponse> {
        let known = self.known(state)?;
        progress.begin("replaying the history");
        let tuned = self.store().tune(&known, |done, of| {
            progress.at(done, of, 0);
            progress.flow()
        })?;
        Ok(api::TuneResponse {
            chunks: tuned.chunks,
            of_chunks: tuned.of_chunks,
            content_bytes: tuned.content,
            stored_bytes: tuned.stored,
            steps: tuned.steps,
            strategies: tuned.strategies.into_iter().map(strategy).collect(),
            ..api::TuneResponse::default()
        })
    }
}

fn strategy(strategy: store::Strategy) -> api::Strategy {
    let nanoseconds = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    api::Strategy {
        name: strategy.name,
        stored_bytes: strategy.stored,
        spent_ns: nanoseconds(strategy.spent),
        read_ns: nanoseconds(strategy.read),
        steps: strategy.steps,
        used: strategy.used,
        ..api::Strategy::default()
    }
}
