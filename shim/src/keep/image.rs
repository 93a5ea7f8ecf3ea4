//! A state remembers the image that it stands on. What happens when a container comes with another one.

use std::{
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{SystemTime, UNIX_EPOCH},
};

use live::{Image, Policy, State};
use runtime_spec::{annotations::OnImageChange, mount::RootPlan};
use serde::Deserialize;

use super::attach::Attach;
use crate::error::{Context, Error, Result};

/// The command line, which can ask containerd; the shim stays small without.
const COMMAND: &str = "diffkeeper";

impl Attach {
    /// The container's image. Where it is not the state's last one, what `on-image-change` says has been done.
    pub(super) fn image_of(&self, state: &State) -> Result<Image> {
        let wish = self
            .annotations
            .on_image_change
            .unwrap_or(self.config.on_image_change);
        let layers = self.layers()?;
        let last = state.record().and_then(|record| record.image);
        let same = last.as_ref().is_some_and(|image| image.layers == layers);
        if let Some(image) = last
            .clone()
            .filter(|image| same && (image.digest.is_some() || wish == OnImageChange::Keep))
        {
            return Ok(image);
        }
        // Its layers are the same, or nobody asks what image it is: no need to know more.
        let digest = match wish {
            OnImageChange::Keep => None,
            _ => self.ask_for_digest()?,
        };
        let image = Image { layers, digest };
        let Some(last) = last.filter(|_| !same) else {
            return Ok(image);
        };
        if image.digest.is_some() && image.digest == last.digest {
            // The same image, unpacked anew.
            return Ok(image);
        }
        match wish {
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
                let policy = match state.record().map(|record| record.reclaim) {
                    // It has no container any more that could end.
                    None | Some(Policy::Delete) => self.config.reclaim_unchosen.into(),
                    Some(policy) => policy,
                };
                let now = SystemTime::now();
                let name = self
                    .name
                    .set_aside(now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs())?;
                state.set_aside(&name, policy, now)?;
                tracing::warn!(state = %self.name, aside = %name, "another image: the old live tree was set aside under a name of its own");
            }
        }
        Ok(image)
    }

    /// The chain of lower layers. A directory may be made again under the same path, so its inode and birth count too.
    fn layers(&self) -> Result<Vec<String>> {
        let plan = RootPlan::new(&self.from_engine, &self.bundle.join(&self.spec.parsed.root.path))?;
        let of_disk = plan.before.iter().map(|mount| PathBuf::from(&mount.source));
        let layers: Vec<PathBuf> = if plan.lower.is_empty() {
            of_disk.collect()
        } else {
            plan.lower
        };
        Ok(layers.iter().map(|layer| identity(layer)).collect())
    }

    /// The digest of the container's image; none where containerd knows of no image (`--rootfs`).
    fn ask_for_digest(&self) -> Result<Option<String>> {
        #[derive(Deserialize)]
        struct Answer {
            digest: Option<String>,
        }
        let beside = std::env::current_exe()
            .ok()
            .map(|exe| exe.with_file_name(COMMAND));
        let program = beside
            .filter(|path| path.exists())
            .unwrap_or_else(|| COMMAND.into());
        let output = Command::new(&program)
            .args(["image-of", "--address", &self.address, "--namespace", &self.holder.namespace])
            .arg(&self.holder.container_id)
            .stdin(Stdio::null())
            .output()
            .context(|| format!("run {} to ask containerd for the image's digest (diffkeeper.io/on-image-change needs it beside the shim)", program.display()))?;
        if !output.status.success() {
            return Err(Error::Other(format!(
                "ask containerd for the image's digest: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            )));
        }
        let answer: Answer = serde_json::from_slice(&output.stdout)
            .map_err(|e| Error::Other(format!("ask containerd for the image's digest: {e}")))?;
        Ok(answer.digest)
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
