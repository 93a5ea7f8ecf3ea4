//! The keeper that answers: the one that runs, or, where none does, one in this process for as long as the command takes.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::{Context, Result, anyhow};
use keeper::{Keeper, service::Service};
use keeper_api::keeper::{keeper as api, keeper_ttrpc::KeeperClient};
use runtime_spec::config::Config;
use ttrpc::asynchronous::Client;

/// How long another process may have the store open before this one gives up.
const OTHERS: Duration = Duration::from_secs(5);

/// Runs `work` with a keeper that answers.
///
/// # Errors
/// A store that cannot be opened, and what `work` says.
pub fn with_keeper<T>(config: &Config, work: impl AsyncFnOnce(KeeperClient) -> Result<T>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the event loop")?;
    let done = runtime.block_on(async {
        let since = std::time::Instant::now();
        let keeper = loop {
            if let Some(client) = connect(&config.keeper).await {
                return work(client).await;
            }
            match Keeper::open(config) {
                // A keeper that is just starting, or another command.
                Err(keeper::Error::Store(store::Error::Locked(_))) if since.elapsed() < OTHERS => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                opened => break opened.context("no keeper runs, and the store cannot be opened without")?,
            }
        };
        let dir = tempfile::tempdir().context("make a folder for a socket")?;
        let socket = dir.path().join("keeper.sock");
        let listener = keeper::service::listen(&socket)?;
        let _server = Service::new(Arc::new(keeper), None).serve(listener).await?;
        let client = connect(&socket)
            .await
            .ok_or_else(|| anyhow!("the keeper in this process does not answer"))?;
        work(client).await
    });
    runtime.shutdown_background();
    done
}

/// Ends the keeper that runs.
///
/// # Errors
/// None runs, or it does not end.
pub fn stop_keeper(config: &Config) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the event loop")?;
    let pid = runtime.block_on(async {
        let client = connect(&config.keeper)
            .await
            .ok_or_else(|| anyhow!("no keeper answers at {}", config.keeper.display()))?;
        let answer = client.ping(patient(), &api::PingRequest::default()).await;
        Ok::<_, anyhow::Error>(said(answer)?.pid)
    })?;
    Ok(keeper::detach::stop(pid)?)
}

async fn connect(socket: &Path) -> Option<KeeperClient> {
    let client = Client::connect(&format!("unix://{}", socket.display()))
        .await
        .ok()?;
    Some(KeeperClient::new(client))
}

/// As long as it takes.
#[must_use]
pub fn patient() -> ttrpc::context::Context {
    ttrpc::context::with_timeout(0)
}

/// What the keeper said, without the protocol's words around it.
///
/// # Errors
/// The keeper's.
pub fn said<T>(answer: ttrpc::Result<T>) -> Result<T> {
    answer.map_err(|error| match error {
        ttrpc::Error::RpcStatus(status) => anyhow::Error::new(crate::exit::Refused {
            code: status.code(),
            message: status.message,
        }),
        other => anyhow!("the keeper does not answer: {other}"),
    })
}

/// `STATE@VERSION`, or a state alone for its newest commit.
#[must_use]
pub fn version(text: &str) -> api::Version {
    let (state, version) = text.split_once('@').unwrap_or((text, ""));
    api::Version {
        state: state.into(),
        version: version.into(),
        ..api::Version::default()
    }
}
