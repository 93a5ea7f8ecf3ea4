//! A state remembers the image that it stands on. What happens when a container comes with another one.

use std::{
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, UNIX_EPOCH},
};

use live::{Image, State};
use runtime_spec::annotations::OnImageChange;
use serde::Deserialize;
use tokio::task::JoinHandle;

use super::attach::Attach;
use crate::{
    companion,
    error::{Error, Result},
    reaper::Reaper,
    runc::capture,
};

/// A container that has run so long is worth a process that asks for its image.
const SETTLED: Duration = Duration::from_secs(5);

impl Attach {
    fn wish(&self) -> OnImageChange {
        self.annotations
            .on_image_change
            .unwrap_or(self.config.on_image_change)
    }

    /// The digest of the container's image, where it matters now or is known: containerd is asked only when the layers
    /// are not those of the last life.
    pub(super) async fn digest(&self, state: &State) -> Result<Option<String>> {
        if let Some(docker) = &self.docker {
            return Ok(Some(docker.record.image.clone()).filter(|image| !image.is_empty()));
        }
        if self.wish() == OnImageChange::Keep {
            return Ok(None);
        }
        let last = state.record().and_then(|record| record.image);
        match last.filter(|image| image.digest.is_some()) {
            Some(last) if self.layers().is_ok_and(|layers| layers == last.layers) => Ok(last.digest),
            _ => self.inquiry().digest().await,
        }
    }

    /// The container's image, to be recorded. Where it is not the state's last one, what `on-image-change` says is
    /// done.
    pub(super) fn image_of(&self, state: &State, digest: Option<String>) -> Result<Image> {
        let last = state.record().and_then(|record| record.image);
        let mut image = Image {
            layers: self.layers()?,
            digest,
        };
        let Some(last) = last else {
            return Ok(image);
        };
        // The same image, perhaps unpacked anew.
        let known = image.digest.is_some() && last.digest.is_some();
        if if known {
            image.digest == last.digest
        } else {
            image.layers == last.layers
        } {
            image.digest = image.digest.or(last.digest);
            return Ok(image);
        }
        match self.wish() {
            OnImageChange::Keep => {
                tracing::info!(state = %self.name, "another image: what the container wrote wins, all else comes from the new one");
            }
            OnImageChange::Refuse => {
                return Err(Error::FailedPrecondition(format!(
                    "state {} stands on image {}, and this container comes with {}: diffkeeper.io/on-image-change=refuse; start it with the old image, or let the annotation say keep or fresh",
                    self.name,
                    named(&last),
                    named(&image),
                )));
            }
            OnImageChange::Fresh => {
                let name = self.set_aside(state)?;
                tracing::warn!(state = %self.name, aside = %name, "another image: the old live tree was set aside under a name of its own");
            }
        }
        Ok(image)
    }

    /// The chain of lower layers. A directory may be made again under the same path, so its inode and birth count too.
    fn layers(&self) -> Result<Vec<String>> {
        let plan = self.plan_of_engine()?;
        let of_disk = plan.before.iter().map(|mount| PathBuf::from(&mount.source));
        let layers: Vec<PathBuf> = if plan.lower.is_empty() {
            of_disk.collect()
        } else {
            plan.lower
        };
        Ok(layers.iter().map(|layer| identity(layer)).collect())
    }

    fn inquiry(&self) -> Inquiry {
        Inquiry {
            address: self.address.clone(),
            namespace: self.holder.namespace.clone(),
            container: self.holder.container_id.clone(),
            reaper: self.reaper.clone(),
        }
    }

    /// What has to be asked after the start so that the record will name the image.
    pub(super) fn inquiry_later(&self) -> Option<Inquiry> {
        self.docker.is_none().then(|| self.inquiry())
    }
}

/// A question to containerd: which image is this container's?
pub(super) struct Inquiry {
    address: String,
    namespace: String,
    container: String,
    reaper: Reaper,
}

impl Inquiry {
    /// The image's digest; none where containerd knows of no image (`--rootfs`).
    async fn digest(&self) -> Result<Option<String>> {
        #[derive(Deserialize)]
        struct Answer {
            digest: Option<String>,
        }
        let mut command = companion::command();
        let program = PathBuf::from(command.get_program());
        command.args(["image-of", "--address", &self.address]).args([
            "--namespace",
            &self.namespace,
            &self.container,
        ]);
        let told = |what: String| {
            Error::Other(format!(
                "ask containerd for the image's digest, which diffkeeper.io/on-image-change needs: {what}"
            ))
        };
        let (exit, output) = capture(&self.reaper, command).await.map_err(|e| {
            told(format!(
                "run {}: {e}; it belongs beside the shim",
                program.display()
            ))
        })?;
        if exit.status != 0 {
            return Err(told(String::from_utf8_lossy(&output).trim().to_owned()));
        }
        let answer: Answer = serde_json::from_slice(&output).map_err(|e| told(e.to_string()))?;
        Ok(answer.digest)
    }
}

/// Learns the digest of a running container's image, for the day when `on-image-change` says `refuse`. It ends when it
/// is dropped: only who has the lease writes to the record.
pub(super) struct Learning(JoinHandle<()>);

impl Learning {
    /// Begins, unless the digest is known.
    pub(super) fn begin(state: &State, inquiry: Inquiry) -> Option<Learning> {
        let known = state.record().and_then(|record| record.image?.digest).is_some();
        let state = state.clone();
        (!known).then(|| {
            Learning(tokio::spawn(async move {
                tokio::time::sleep(SETTLED).await;
                let learnt = match inquiry.digest().await {
                    Ok(Some(digest)) => state.learn_digest(digest).map_err(Error::from),
                    Ok(None) => Ok(()),
                    Err(error) => Err(error),
                };
                if let Err(error) = learnt {
                    tracing::info!(state = %state.name(), %error, "the image's digest is not known");
                }
            }))
        })
    }
}

impl Drop for Learning {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn identity(layer: &Path) -> String {
    let told = std::fs::metadata(layer).ok().map(|m| {
        let born = m.created().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
        format!("{} {}", m.ino(), born.unwrap_or_default().as_nanos())
    });
    format!("{} {}", layer.display(), told.unwrap_or_default())
}

fn named(image: &Image) -> String {
    image.digest.clone().unwrap_or_else(|| {
        let top = image.layers.first().and_then(|layer| layer.split(' ').next());
        format!("of unknown digest (top layer {})", top.unwrap_or("none"))
    })
}
