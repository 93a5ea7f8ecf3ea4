//! The keeper that answers: the one that runs, or, where none does, one in this process for as long as the command takes.

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};

use anyhow::{Context, Result, anyhow};
use keeper::{Keeper, Reclaimed, recording::Mark, service::Service};
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
    with_keeper_at(config, async |client, _| work(client).await)
}

/// The same; `work` is also told of a directory that it and the keeper both see, and nobody else.
///
/// # Errors
/// As [`with_keeper`].
pub fn with_keeper_at<T>(
    config: &Config,
    work: impl AsyncFnOnce(KeeperClient, &Path) -> Result<T>,
) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the event loop")?;
    let done = runtime.block_on(async {
        let since = std::time::Instant::now();
        let keeper = loop {
            if let Some(client) = connect(&config.keeper).await {
                let at = config.keeper.parent().unwrap_or(Path::new("/"));
                return work(client, at).await;
            }
            match open(config) {
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
        work(client, dir.path()).await
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

/// How long a keeper may take to say which histories there are, where that is not what was asked for.
const AT_ONCE: Duration = Duration::from_secs(2);

/// What is known of a state's history.
pub struct History {
    /// How many commits it has.
    pub commits: u64,
    /// When the newest was made, nanoseconds since 1970.
    pub newest: i64,
}

/// Every history, by its state's name: from the keeper that runs, or from the store where none does and nothing else has
/// it open. None where neither tells at once.
#[must_use]
pub fn histories(config: &Config) -> Option<BTreeMap<String, History>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .ok()?;
    let asked = runtime.block_on(async {
        let ask = async {
            let client = connect(&config.keeper).await?;
            Some(client.states(patient(), &api::StatesRequest::default()).await)
        };
        tokio::time::timeout(AT_ONCE, ask).await
    });
    runtime.shutdown_background();
    match asked {
        Ok(Some(said)) => {
            let states = said.ok()?.states.into_iter().filter(|state| state.commits > 0);
            let history = |state: api::State| {
                let (commits, newest) = (state.commits, state.head.get_or_default().time);
                (state.name, History { commits, newest })
            };
            Some(states.map(history).collect())
        }
        // A keeper that runs and does not answer has the store.
        Err(_) => None,
        Ok(None) => in_the_store(config),
    }
}

/// Has the keeper forget what has expired; nothing where there never was one.
///
/// # Errors
/// As [`with_keeper`], and the keeper's.
pub fn reclaim(config: &Config, dry_run: bool) -> Result<Vec<Reclaimed>> {
    let dir = config.history.store.clone();
    if !dir.unwrap_or_else(|| config.root.join("store")).is_dir() {
        return Ok(Vec::new());
    }
    with_keeper(config, async |client| {
        let request = api::ReclaimRequest {
            dry_run,
            ..api::ReclaimRequest::default()
        };
        let done = said(client.reclaim(patient(), &request).await)?;
        let told = |one: api::Reclaimed| Reclaimed {
            name: one.state,
            tree: one.tree.then_some(one.bytes),
            commits: (!one.tree).then_some(one.commits),
            problem: Some(one.problem).filter(|problem| !problem.is_empty()),
        };
        Ok(done.states.into_iter().map(told).collect())
    })
}

fn in_the_store(config: &Config) -> Option<BTreeMap<String, History>> {
    let dir = config.history.store.clone();
    if !dir.unwrap_or_else(|| config.root.join("store")).is_dir() {
        return None;
    }
    let keeper = Keeper::open(config).ok()?;
    let mut found = BTreeMap::new();
    for known in keeper.store().states().ok()? {
        if let Some((id, commits)) = known.head {
            let newest = keeper.store().commit(id).ok()?.commit.time;
            found.insert(known.name, History { commits, newest });
        }
    }
    Some(found)
}

fn open(config: &Config) -> keeper::Result<Keeper> {
    match Mark::read(&config.root) {
        Some(_) => Keeper::of_recording(&config.root),
        None => Keeper::open(config),
    }
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
