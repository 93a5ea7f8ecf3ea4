//! The container stands still for a moment, because the keeper asks: it is told of nobody, and what would meet a
//! frozen container (an exec, a kill) waits until it is over.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::{OwnedRwLockWriteGuard, RwLock, oneshot};

use crate::{
    cgroup::{Cgroup, Frozen},
    error::{Error, Result},
};

/// The longest that anybody can ask for.
const LONGEST: Duration = Duration::from_secs(10);

/// How long others may be in the middle of what must not meet a frozen container.
const PATIENCE: Duration = Duration::from_secs(4);

/// Whether a container stands still, and who must wait for the end of it.
#[derive(Default)]
pub struct Standstill {
    moving: Arc<RwLock<()>>,
    current: Mutex<Option<Current>>,
}

struct Current {
    token: u64,
    /// Asks for the end; the answer is whether it had not come before.
    end: oneshot::Sender<oneshot::Sender<bool>>,
}

impl Standstill {
    /// Held by what must not meet a frozen container.
    pub async fn moving(&self) -> tokio::sync::OwnedRwLockReadGuard<()> {
        self.moving.clone().read_owned().await
    }

    /// Freezes until [`Standstill::end`] or `limit`. What its owner has paused stays paused.
    ///
    /// # Errors
    /// A freeze that does not take.
    pub async fn begin(&self, cgroup: Arc<Cgroup>, limit: Duration) -> Result<u64> {
        let limit = limit.min(LONGEST);
        // Whoever waits here has others wait behind it.
        let moving = self.moving.clone().write_owned();
        let guard = tokio::time::timeout(PATIENCE, moving).await.map_err(|_| {
            Error::Unavailable("something has been begun in the container for too long".into())
        })?;
        let frozen = tokio::task::spawn_blocking(move || cgroup.freeze(limit))
            .await
            .map_err(|e| Error::Other(format!("the call failed in the shim: {e}")))??;
        let (end, asked) = oneshot::channel();
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let token = current.as_ref().map_or(0, |before| before.token) + 1;
        *current = Some(Current { token, end });
        tokio::spawn(watch(frozen, limit, asked, guard));
        Ok(token)
    }

    /// Thaws; says whether the container stood still until now.
    pub async fn end(&self, token: u64) -> bool {
        let end = {
            let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
            current.take_if(|current| current.token == token)
        };
        let Some(Current { end, .. }) = end else {
            return false;
        };
        let (reply, stood) = oneshot::channel();
        end.send(reply).is_ok() && stood.await.unwrap_or(false)
    }
}

/// Thaws when asked, or when the time is up: a keeper that died asks for nothing any more.
async fn watch(
    mut frozen: Frozen,
    limit: Duration,
    mut asked: oneshot::Receiver<oneshot::Sender<bool>>,
    guard: OwnedRwLockWriteGuard<()>,
) {
    let since = Instant::now();
    let reply = tokio::select! {
        biased;
        reply = &mut asked => reply.ok(),
        () = tokio::time::sleep(limit) => None,
    };
    // A write of a few bytes to the kernel: no reason to leave the event loop.
    let thawed = frozen.thaw();
    if let Err(error) = &thawed {
        tracing::error!(%error, "thaw a container");
    }
    // This process may have been stopped itself, and the container been thawed meanwhile.
    let stood = since.elapsed() <= limit && thawed.unwrap_or(false);
    drop(guard);
    if let Some(reply) = reply {
        // Whoever asked may have gone.
        let _ = reply.send(stood);
    }
    // The kernel takes milliseconds to give up a watch.
    drop(tokio::task::spawn_blocking(move || drop(frozen)));
}
