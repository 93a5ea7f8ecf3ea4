//! What the shim says to the keeper. Where the live tree is enough nobody waits for it: a keeper that is slow, stopped
//! or not there delays history, never a container.

use std::{path::Path, time::Duration};

use keeper_api::keeper::{
    keeper::{NoteRequest, RestoreRequest, Version, note_request::What},
    keeper_ttrpc::KeeperClient,
};
use runtime_spec::name::StateName;
use ttrpc::{asynchronous::Client, context};

use crate::error::{Error, Result};

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

/// Tells the keeper what has become of a state, behind everybody's back.
pub fn note(socket: &Path, state: &StateName, what: What) {
    // Nobody is there to be told: the usual case on a machine without history costs one look.
    if !socket.exists() {
        return;
    }
    let (socket, state) = (socket.to_owned(), state.to_string());
    tokio::spawn(async move {
        for _ in 0..TRIES {
            match tell(&socket, &state, what).await {
                Ok(()) => return,
                Err(error) => tracing::debug!(state, %error, "the keeper was not told"),
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

/// Has the keeper bring a state to the version that a person or the annotation asked for, and waits until it has. The
/// caller has the lease.
///
/// # Errors
/// A keeper that does not answer, or cannot: the container must not start with another version.
pub async fn restore(socket: &Path, state: &StateName, asked: Option<&str>) -> Result<()> {
    let advice = |problem: String| {
        Error::FailedPrecondition(format!(
            "{state} is to be restored before it starts, and {problem}: start the keeper (diffkeeper keeper), or \
             give the restore up (diffkeeper restore --cancel {state}, or without the annotation \
             diffkeeper.io/restore)"
        ))
    };
    let client = connect(socket).await.map_err(|e| advice(e.to_string()))?;
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
    done.map(drop).map_err(|error| match error {
        ttrpc::Error::RpcStatus(status) => Error::FailedPrecondition(format!(
            "{state} is to be restored before it starts: {}",
            status.message
        )),
        other => advice(other.to_string()),
    })
}
