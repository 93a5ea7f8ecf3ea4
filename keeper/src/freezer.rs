//! Asking a shim to make its container stand still: only the shim freezes.

use std::{
    io,
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use keeper_api::shim::{
    shim::{FreezeRequest, ThawRequest},
    shim_ttrpc::FreezerClient,
};
use live::Holder;
use ttrpc::{asynchronous::Client, context};

use crate::blueshift::Freezer;

/// How long a shim may take to answer: a freeze takes at most 20 ms, an exec that must end first longer.
const PATIENCE: Duration = Duration::from_secs(5);

/// The shim of a state's holder.
pub struct Shim {
    socket: PathBuf,
    container: String,
    token: AtomicU64,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Shim {
    /// The shim that holds a lease.
    #[must_use]
    pub fn new(holder: &Holder) -> Shim {
        Shim {
            socket: holder.socket.clone(),
            container: holder.container_id.clone(),
            token: AtomicU64::new(0),
            runtime: tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .ok(),
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
                    other => io::Error::other(other.to_string()),
                })
        })
    }
}

impl Freezer for Shim {
    fn freeze(&self, limit: Duration) -> io::Result<bool> {
        if self.socket.as_os_str().is_empty() {
            return Err(io::Error::other("its shim is of a version that cannot"));
        }
        let request = FreezeRequest {
            container_id: self.container.clone(),
            limit_ms: u32::try_from(limit.as_millis()).unwrap_or(u32::MAX),
            ..FreezeRequest::default()
        };
        let asked = self.call(async |client| client.freeze(context::with_duration(PATIENCE), &request).await);
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
}
