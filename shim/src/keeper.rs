//! What the shim says to the keeper. Where the live tree is enough nobody waits for it: a keeper that is slow, stopped
//! or not there delays history, never a container. Where there is none the shim has one started, behind everybody's back.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use keeper_api::keeper::{
    keeper::{ForkRequest, NoteRequest, RestoreRequest, Version, note_request::What},
    keeper_ttrpc::KeeperClient,
};
use runtime_spec::{config::Config, name::StateName};
use ttrpc::{asynchronous::Client, context};

use crate::{
    companion,
    error::{Error, Result},
    reaper::Reaper,
    runc::capture,
};

/// Without an answer in this time there is none.
const PATIENCE: Duration = Duration::from_millis(100);
/// What the keeper did not hear it is told again, so many times: a keeper that has just been restarted.
const TRIES: u32 = 3;
const PAUSE: Duration = Duration::from_secs(1);

async fn connect(socket: &Path) -> Result<KeeperClient> {
    let address = format!("unix://{}", socket.display());
    let client = tokio::time::timeout(PATIENCE, Client::connect(&address)).await;
    match client {
        Ok(Ok(client)) => Ok(KeeperClient::new(client)),
        Ok(Err(error)) => Err(Error::Unavailable(format!(
            "the keeper at {}: {error}",
            socket.display()
        ))),
        Err(_) => Err(Error::Unavailable(format!(
            "the keeper at {} does not answer",
            socket.display()
        ))),
    }
}

/// The keeper of this node, running or not.
#[derive(Clone)]
pub struct Keeper {
    socket: PathBuf,
    /// Where there is none, one is started with this configuration.
    start: Option<PathBuf>,
    reaper: Reaper,
}

impl Keeper {
    /// The one that `config`, read from `file`, names.
    #[must_use]
    pub fn of(config: &Config, file: PathBuf, reaper: &Reaper) -> Keeper {
        Keeper {
            socket: config.keeper.clone(),
            start: config.start_keeper.then_some(file),
            reaper: reaper.clone(),
        }
    }

    /// Tells it what has become of a state, behind everybody's back. `recorded`: its history is to grow.
    pub fn note(&self, state: &StateName, what: What, recorded: bool) {
        // Who takes a state starts with it next: that is early enough for a keeper to be started, and out of the way.
        let start = self.start.is_some() && recorded && what != What::ATTACHED;
        // Nobody is there to be told: on a machine without history that costs one look.
        if !start && !self.socket.exists() {
            return;
        }
        let (keeper, state) = (self.clone(), state.to_string());
        tokio::spawn(async move {
            for attempt in 0..TRIES {
                match tell(&keeper.socket, &state, what).await {
                    Ok(()) => return,
                    Err(error) => tracing::debug!(state, %error, "the keeper was not told"),
                }
                if start && attempt == 0 && !keeper.listens().await {
                    match keeper.start().await {
                        // It finds what is in use by itself.
                        Ok(()) if what == What::STARTED => return,
                        Ok(()) => continue,
                        Err(error) => tracing::warn!(%error, "no keeper could be started"),
                    }
                }
                tokio::time::sleep(PAUSE).await;
            }
            tracing::warn!(
                state,
                ?what,
                "the keeper does not answer: the state's history has a gap"
            );
        });
    }

    /// Whether anybody is behind the socket: one that is slow is not helped by a second.
    async fn listens(&self) -> bool {
        tokio::net::UnixStream::connect(&self.socket).await.is_ok()
    }

    /// Has the command line start one, and waits until it answers.
    async fn start(&self) -> Result<()> {
        let Some(file) = &self.start else {
            return Ok(());
        };
        let mut command = companion::command();
        command.arg("--config").arg(file).args(["keeper", "--detach"]);
        let program = command.get_program().to_owned();
        let wrong = |what: String| Error::Unavailable(format!("start a keeper: {what}"));
        let (exit, output) = capture(&self.reaper, command).await.map_err(|e| {
            wrong(format!(
                "run {}: {e}; it belongs beside the shim",
                program.display()
            ))
        })?;
        match exit.status {
            0 => Ok(()),
            _ => Err(wrong(String::from_utf8_lossy(&output).trim().to_owned())),
        }
    }

    /// Has it bring a state to the version that a person or the annotation asked for, and waits until it has. The
    /// caller has the lease.
    ///
    /// # Errors
    /// A keeper that does not answer, or cannot: the container must not start with another version.
    pub async fn restore(&self, state: &StateName, asked: Option<&str>) -> Result<()> {
        self.there().await.map_err(|e| missing(state, &e))?;
        let client = connect(&self.socket).await.map_err(|e| missing(state, &e))?;
        let request = RestoreRequest {
            version: protobuf::MessageField::some(Version {
                state: state.to_string(),
                version: asked.unwrap_or_default().into(),
                ..Version::default()
            }),
            asked: asked.unwrap_or_default().into(),
            leased: true,
            ..RestoreRequest::default()
        };
        // As long as it takes: the container is not to start before.
        let done = client.restore(context::with_timeout(0), &request).await;
        done.map(drop).map_err(|error| refused(state, error))
    }

    /// Has it begin a state with a version of another, which the next [`Keeper::restore`] brings about. One that has a
    /// history stays what it is. The caller has the lease.
    ///
    /// # Errors
    /// As [`Keeper::restore`].
    pub async fn fork(&self, source: &StateName, version: &str, state: &StateName) -> Result<()> {
        self.there().await.map_err(|e| missing(state, &e))?;
        let client = connect(&self.socket).await.map_err(|e| missing(state, &e))?;
        let request = ForkRequest {
            version: protobuf::MessageField::some(Version {
                state: source.to_string(),
                version: version.into(),
                ..Version::default()
            }),
            name: state.to_string(),
            leased: true,
            ..ForkRequest::default()
        };
        let done = client.fork(context::with_timeout(0), &request).await;
        done.map(drop).map_err(|error| refused(state, error))
    }

    /// One that answers, started where there was none.
    async fn there(&self) -> Result<()> {
        match self.start.is_some() && !self.listens().await {
            true => self.start().await,
            false => Ok(()),
        }
    }
}

/// What a container that cannot start without the keeper is told.
fn missing(state: &StateName, problem: &impl std::fmt::Display) -> Error {
    Error::FailedPrecondition(format!(
        "{state} is to be restored before it starts, and {problem}: start the keeper (diffkeeper keeper), or \
         give the restore up (diffkeeper restore --cancel {state}, or without the annotation that asks for it: \
         diffkeeper.io/restore, diffkeeper.io/from)"
    ))
}

fn refused(state: &StateName, error: ttrpc::Error) -> Error {
    match error {
        ttrpc::Error::RpcStatus(status) => Error::FailedPrecondition(format!(
            "{state} is to be restored before it starts: {}",
            status.message
        )),
        other => missing(state, &other),
    }
}

async fn tell(socket: &Path, state: &str, what: What) -> Result<()> {
    let client = connect(socket).await?;
    let request = NoteRequest {
        state: state.into(),
        what: what.into(),
        ..NoteRequest::default()
    };
    let told = client.note(context::with_duration(PATIENCE), &request).await;
    told.map(drop)
        .map_err(|e| Error::Unavailable(format!("the keeper: {e}")))
}
