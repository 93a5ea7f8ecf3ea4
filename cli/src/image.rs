//! `diffkeeper image-of`: what containerd knows of a container's image.

use std::{path::Path, process::ExitCode, time::Duration};

use anyhow::{Context, Result};
use containerd_client::{
    Client,
    services::v1::{GetContainerRequest, GetImageRequest},
    tonic::{Request, metadata::MetadataValue},
};
use serde::{Deserialize, Serialize};

/// containerd may be waiting for the shim that asks: this must end.
const LIMIT: Duration = Duration::from_secs(10);

/// Where CRI keeps what it knows of a container, with containerd.
const OF_CRI: &str = "io.cri-containerd.container.metadata";

/// What containerd knows of a container's image.
#[derive(Debug, Default, Serialize)]
pub struct Answer {
    /// Its reference.
    pub reference: Option<String>,
    /// The digest of what that means now.
    pub digest: Option<String>,
    /// The signal that is to end the container, where CRI made it.
    pub stop_signal: Option<String>,
}

/// Prints an [`Answer`], null where there is none.
pub fn print(address: &Path, namespace: &str, container: &str) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let asked =
        runtime.block_on(async { tokio::time::timeout(LIMIT, ask(address, namespace, container)).await });
    let answer = asked.context("containerd did not answer within 10 s")??;
    println!("{}", serde_json::to_string(&answer)?);
    Ok(ExitCode::SUCCESS)
}

/// Asks containerd.
pub async fn ask(address: &Path, namespace: &str, container: &str) -> Result<Answer> {
    let client = Client::from_path(address)
        .await
        .with_context(|| format!("connect to containerd at {}", address.display()))?;
    let namespace: MetadataValue<_> = namespace.parse().context("the namespace's name")?;
    let mut get = Request::new(GetContainerRequest { id: container.into() });
    get.metadata_mut()
        .insert("containerd-namespace", namespace.clone());
    let found = client.containers().get(get).await;
    let found =
        found.map_err(|e| anyhow::anyhow!("containerd says of container {container}: {}", e.message()))?;
    let Some(found) = found.into_inner().container else {
        return Ok(Answer::default());
    };
    let of_cri = found.extensions.get(OF_CRI);
    let answer = Answer {
        stop_signal: of_cri.and_then(|known| stop_signal(&known.value)),
        ..Answer::default()
    };
    let reference = Some(found.image).filter(|image| !image.is_empty());
    let Some(reference) = reference else {
        return Ok(answer);
    };
    let mut get = Request::new(GetImageRequest {
        name: reference.clone(),
    });
    get.metadata_mut().insert("containerd-namespace", namespace);
    // The image's name may have gone while its container lives.
    let digest = match client.images().get(get).await {
        Ok(found) => found
            .into_inner()
            .image
            .and_then(|image| image.target)
            .map(|target| target.digest),
        Err(_) => None,
    };
    Ok(Answer {
        reference: Some(reference),
        digest,
        ..answer
    })
}

/// From CRI's own record, whose form is of Go's typeurl: JSON.
fn stop_signal(record: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Record {
        metadata: Metadata,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Metadata {
        #[serde(default)]
        stop_signal: String,
    }
    let record: Record = serde_json::from_slice(record).ok()?;
    Some(record.metadata.stop_signal).filter(|signal| !signal.is_empty())
}
