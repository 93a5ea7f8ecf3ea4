//! `diffkeeper image-of`: what containerd knows of a container's image.

use std::{path::Path, process::ExitCode, time::Duration};

use anyhow::{Context, Result};
use containerd_client::{
    Client,
    services::v1::{GetContainerRequest, GetImageRequest},
    tonic::{Request, metadata::MetadataValue},
};

/// containerd may be waiting for the shim that asks: this must end.
const LIMIT: Duration = Duration::from_secs(10);

/// Prints `{"reference": ..., "digest": ...}`, null where there is none.
pub fn print(address: &Path, namespace: &str, container: &str) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let asked =
        runtime.block_on(async { tokio::time::timeout(LIMIT, ask(address, namespace, container)).await });
    let (reference, digest) = asked.context("containerd did not answer within 10 s")??;
    println!(
        "{}",
        serde_json::json!({"reference": reference, "digest": digest})
    );
    Ok(ExitCode::SUCCESS)
}

/// The reference and the digest of a container's image, as far as containerd knows them.
pub async fn ask(
    address: &Path,
    namespace: &str,
    container: &str,
) -> Result<(Option<String>, Option<String>)> {
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
    let reference = found
        .into_inner()
        .container
        .map(|c| c.image)
        .filter(|image| !image.is_empty());
    let Some(reference) = reference else {
        return Ok((None, None));
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
    Ok((Some(reference), digest))
}
