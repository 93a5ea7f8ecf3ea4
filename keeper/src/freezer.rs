//! Asking a shim to make its container stand still: only the shim freezes.

use std::{
    io,
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use keeper_api::shim::{
    shim::{FreezeRequest, HookRequest, ThawRequest},
    shim_ttrpc::FreezerClient,
};
use live::Holder;
use ttrpc::{asynchronous::Client, context};

use crate::{blueshift::Freezer, place::Place};

/// How long a shim may take to answer: a freeze takes at most 20 ms, an exec that must end first longer.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long a hook may take, and the shim a little longer to say so.
const HOOK: Duration = Duration::from_secs(15);
/// Most have none, and their shims say so at once.
const MOMENT: Duration = Duration::from_millis(50);
/// A container that cannot be stopped at once, because a process of it waits for a disk, is given this much time before
/// it is tried again, and twice as much each time.
const QUIETER: Duration = Duration::from_millis(10);
const TRIES: u32 = 5;

/// The shim of a state's holder.
pub(crate) struct Shim<'a> {
    socket: PathBuf,
    container: String,
    token: AtomicU64,
    runtime: Option<tokio::runtime::Runtime>,
    /// What is left while an application makes itself ready.
    place: Option<&'a Place<'a>>,
}

impl<'a> Shim<'a> {
    /// The shim that holds a lease.
    pub(crate) fn new(holder: &Holder, place: Option<&'a Place<'a>>) -> Shim<'a> {
        Shim {
            socket: holder.socket.clone(),
            container: holder.container_id.clone(),
            token: AtomicU64::new(0),
            runtime: tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .ok(),
            place,
        }
    }

    fn call<T>(&self, call: impl AsyncFnOnce(FreezerClient) -> Result<T, ttrpc::Error>) -> io::Result<T> {
        let runtime = self
            .runtime
            .as_ref()
            .ok_or_else(|| io::Error::other("no event loop"))?;
        runtime.block_on(async {
            let address = format!("unix://{}", self.socket.display());
            let client = Client::connect(&address).await.map_err(io::Error::other)?;
            call(FreezerClient::new(client))
                .await
                .map_err(|error| match error {
                    ttrpc::Error::RpcStatus(status) if status.code() == ttrpc::Code::FAILED_PRECONDITION => {
                        io::Error::new(io::ErrorKind::NotFound, status.message)
                    }
                    ttrpc::Error::RpcStatus(status) if status.code() == ttrpc::Code::UNAVAILABLE => {
                        io::Error::new(io::ErrorKind::ResourceBusy, status.message)
                    }
                    ttrpc::Error::RpcStatus(status) if status.code() == ttrpc::Code::UNIMPLEMENTED => {
                        io::Error::new(io::ErrorKind::Unsupported, status.message)
                    }
                    ttrpc::Error::RpcStatus(status) if status.code() == ttrpc::Code::ABORTED => {
                        io::Error::new(io::ErrorKind::TimedOut, status.message)
                    }
                    ttrpc::Error::RpcStatus(status) => io::Error::other(status.message),
                    other => io::Error::other(other.to_string()),
                })
        })
    }

    fn hook(&self, after: bool) -> io::Result<bool> {
        if self.socket.as_os_str().is_empty() {
            return Ok(false);
        }
        let request = HookRequest {
            container_id: self.container.clone(),
            after,
            ..HookRequest::default()
        };
        let asked = self.call(async |client| {
            let mut asked = std::pin::pin!(client.hook(context::with_duration(HOOK), &request));
            if let Ok(answered) = tokio::time::timeout(MOMENT, &mut asked).await {
                return answered;
            }
            let _away = self.place.map(Place::leave);
            asked.await
        });
        match asked {
            Ok(response) => Ok(response.ran),
            // It has not started or has ended; its shim is of a version that knows no hooks.
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::Unsupported) => {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }
}

impl Freezer for Shim<'_> {
    fn freeze(&self, limit: Duration) -> io::Result<bool> {
        if self.socket.as_os_str().is_empty() {
            return Err(io::Error::other("its shim is of a version that cannot"));
        }
        let request = FreezeRequest {
            container_id: self.container.clone(),
            limit_ms: u32::try_from(limit.as_millis()).unwrap_or(u32::MAX),
            ..FreezeRequest::default()
        };
        let freeze =
            || self.call(async |client| client.freeze(context::with_duration(PATIENCE), &request).await);
        let mut asked = freeze();
        for n in 1..TRIES {
            if !matches!(&asked, Err(error) if error.kind() == io::ErrorKind::ResourceBusy) {
                break;
            }
            std::thread::sleep(QUIETER * 2u32.pow(n - 1));
            asked = freeze();
        }
        match asked {
            Ok(response) => {
                self.token.store(response.token, Ordering::Relaxed);
                Ok(true)
            }
            // It has not started, or has ended.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn thaw(&self) -> bool {
        let request = ThawRequest {
            container_id: self.container.clone(),
            token: self.token.load(Ordering::Relaxed),
            ..ThawRequest::default()
        };
        if request.token == 0 {
            return false;
        }
        // The shim does it by itself when the time is up.
        self.call(async |client| client.thaw(context::with_duration(PATIENCE), &request).await)
            .is_ok_and(|response| response.stood_still)
    }
    fn quiesce(&self) -> io::Result<bool> {
        self.hook(false)
    }

    fn release(&self) -> io::Result<()> {
        self.hook(true).map(drop)
    }
}
