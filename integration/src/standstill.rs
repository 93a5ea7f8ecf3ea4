//! A shim asked for what the keeper asks it for.

use std::path::PathBuf;

use anyhow::{Context, Result};
use keeper_api::shim::{
    shim::{FreezeRequest, HookRequest, ThawRequest},
    shim_ttrpc::FreezerClient,
};
use ttrpc::{asynchronous::Client, context};

use crate::Daemon;

/// The shim of a state's container.
pub struct Standstill {
    socket: PathBuf,
    container: String,
    runtime: tokio::runtime::Runtime,
}

impl Standstill {
    /// Of a container of this daemon that runs.
    ///
    /// # Errors
    /// When none has the state's lease.
    pub fn of(daemon: &Daemon, state: &str) -> Result<Standstill> {
        let node = live::Node::open(&daemon.folder().join("diffkeeper"))?;
        let name = format!("ctr/{}/{state}", daemon.namespace()).parse()?;
        let holder = node.state(&name).in_use_by().context("nobody has the lease")?;
        Ok(Standstill {
            socket: holder.socket,
            container: holder.container_id,
            runtime: tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?,
        })
    }

    fn call<T>(&self, call: impl AsyncFnOnce(FreezerClient) -> Result<T, ttrpc::Error>) -> Result<T> {
        self.runtime.block_on(async {
            let client = Client::connect(&format!("unix://{}", self.socket.display())).await?;
            Ok(call(FreezerClient::new(client)).await?)
        })
    }

    /// Has it freeze the container for so long at most; answers with what [`Standstill::thaw`] needs.
    ///
    /// # Errors
    /// The shim's.
    pub fn freeze(&self, limit_ms: u32) -> Result<u64> {
        let request = FreezeRequest {
            container_id: self.container.clone(),
            limit_ms,
            ..FreezeRequest::default()
        };
        let asked = self.call(async |client| client.freeze(context::with_timeout(0), &request).await);
        asked.map(|response| response.token)
    }

    /// Has it thaw the container; says whether that stood still until then.
    ///
    /// # Errors
    /// The shim's.
    pub fn thaw(&self, token: u64) -> Result<bool> {
        let request = ThawRequest {
            container_id: self.container.clone(),
            token,
            ..ThawRequest::default()
        };
        let asked = self.call(async |client| client.thaw(context::with_timeout(0), &request).await);
        asked.map(|response| response.stood_still)
    }

    /// Has it run what the annotations want to be run before or after a commit.
    ///
    /// # Errors
    /// The shim's, and the command's.
    pub fn hook(&self, after: bool) -> Result<bool> {
        let request = HookRequest {
            container_id: self.container.clone(),
            after,
            ..HookRequest::default()
        };
        let asked = self.call(async |client| client.hook(context::with_timeout(0), &request).await);
        asked.map(|response| response.ran)
    }
}
