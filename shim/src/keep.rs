//! What the stock shim has not: the container's root is the state's live tree.
//!
//! [`Root::prepare`] mounts it before runc runs, [`Root::release`] undoes it after, [`clean_up`] undoes it for a
//! shim that died. A container that opts out gets the stock shim's mounts and nothing else.

use std::{
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use containerd_shim_protos::api::CreateTaskRequest;
use live::{Attempt, Holder, Lease, Node, Policy, State, Want};
use runtime_spec::{
    annotations::{Annotations, WhenMissing},
    bundle::{Bundle, IdMapping},
    config::Config,
    mount::{RootPlan, RootfsMount, Wants, is_clients_own_disk, targets},
    name::{Engine, Identity, StateName},
};

use crate::{
    error::{Context, Error, Result},
    mounts::{self, IdMaps, Overlay},
};

/// Names the configuration file; for tests, and for two installations on one machine.
pub const CONFIG_VARIABLE: &str = "DIFFKEEPER_CONFIG";
const CONFIG_FILE: &str = "/etc/diffkeeper/config.toml";

/// How often a held lease is looked at again.
const LEASE_POLL: Duration = Duration::from_millis(50);
/// How long a dead holder's processes may take to die.
const EVICTION_LIMIT: Duration = Duration::from_secs(10);

/// A bundle's `config.json`.
pub struct Spec {
    /// What of it we look at.
    pub parsed: Bundle,
    raw: Vec<u8>,
}

/// Reads a bundle's `config.json`.
///
/// # Errors
/// When it is missing or does not parse.
pub fn read_spec(bundle: &Path) -> Result<Spec> {
    let raw = std::fs::read(bundle.join("config.json"))
        .context(|| format!("read config.json of the bundle {}", bundle.display()))?;
    let parsed = Bundle::parse(&raw)
        .map_err(|e| Error::InvalidArgument(format!("bundle {}: {e}", bundle.display())))?;
    Ok(Spec { parsed, raw })
}

/// The configuration; the defaults where there is none.
///
/// # Errors
/// A file that cannot be read or does not parse.
pub fn read_config() -> Result<Config> {
    let path = std::env::var_os(CONFIG_VARIABLE).unwrap_or_else(|| CONFIG_FILE.into());
    match std::fs::read_to_string(&path) {
        Ok(text) => Config::parse(&text).map_err(|e| {
            Error::InvalidArgument(format!("the configuration {}: {e}", Path::new(&path).display()))
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Config::default()),
        Err(source) => Err(Error::Io {
            context: format!("read the configuration {}", Path::new(&path).display()),
            source,
        }),
    }
}

impl From<live::Error> for Error {
    fn from(error: live::Error) -> Self {
        match error {
            live::Error::InUse { .. } | live::Error::StillInUse { .. } => {
                Error::FailedPrecondition(error.to_string())
            }
            _ => Error::Other(error.to_string()),
        }
    }
}

impl From<runtime_spec::Error> for Error {
    fn from(error: runtime_spec::Error) -> Self {
        Error::InvalidArgument(error.to_string())
    }
}

/// A container's root filesystem, mounted.
pub struct Root {
    rootfs: PathBuf,
    kept: Option<Kept>,
}

/// The part of a root that outlives the container.
struct Kept {
    state: State,
    lease: Lease,
}

impl Root {
    /// Mounts the root: the live tree's, or for a container that passes through the snapshot's.
    ///
    /// # Errors
    /// A name or annotation that is wrong, a state in use, a mount that fails; nothing is left mounted then.
    pub async fn prepare(namespace: &str, request: &CreateTaskRequest, spec: Spec) -> Result<Root> {
        let bundle = PathBuf::from(&request.bundle);
        let rootfs = bundle.join("rootfs");
        let from_engine: Vec<RootfsMount> = request.rootfs.iter().map(mounts::requested).collect();
        let config = read_config()?;
        let identity = Identity::of(&spec.parsed, namespace, &request.id, &config)?;
        let own_disk = is_clients_own_disk(&from_engine);
        if own_disk {
            tracing::info!(
                id = request.id,
                "the client brought a disk of its own as the root's upper: nothing else is kept"
            );
        }
        let (Identity::State { name, chosen }, false) = (identity, own_disk) else {
            let target = rootfs.clone();
            blocking(move || {
                if !from_engine.is_empty() {
                    make_rootfs(&target)?;
                }
                mounts::mount_all(&from_engine, &target)
                    .map_err(|e| Error::Other(format!("failed to mount rootfs component: {e}")))
            })
            .await?;
            return Ok(Root { rootfs, kept: None });
        };
        let annotations = Annotations::parse(&spec.parsed.annotations)?;
        let attach = Attach {
            holder: Holder::new(&request.id, namespace, &bundle),
            name,
            chosen,
            config,
            annotations,
            spec,
            bundle,
            rootfs: rootfs.clone(),
            from_engine,
        };
        let kept = attach.run().await?;
        Ok(Root {
            rootfs,
            kept: Some(kept),
        })
    }

    /// Records init with the lease, so that a survivor of this shim can be told from a stranger.
    ///
    /// # Errors
    /// When the record cannot be written.
    pub fn started(&mut self, pid: u32) -> Result<()> {
        match &mut self.kept {
            Some(kept) if pid != 0 => Ok(kept.lease.update(|holder| holder.set_init(pid))?),
            _ => Ok(()),
        }
    }

    /// Unmounts, removes what runc made in the tree for its mounts, and gives up the lease.
    ///
    /// # Errors
    /// A mount that does not go. The holder record then stays, so that the next attach asks the kernel first.
    pub async fn release(&mut self) -> Result<()> {
        let rootfs = self.rootfs.clone();
        let kept = self.kept.take();
        blocking(move || {
            mounts::unmount_recursive(&rootfs)
                .map_err(|e| Error::Other(format!("failed rootfs umount: {e}")))?;
            kept.map_or(Ok(()), |kept| detach(&kept.state, kept.lease))
        })
        .await
    }
}

/// What follows once nothing of ours is mounted any more.
fn detach(state: &State, lease: Lease) -> Result<()> {
    // A lazy unmount may still be in use; then the next attach does it.
    if state.refuse_if_mounted().is_ok() {
        state.remove_placeholders()?;
    }
    state.detached(SystemTime::now())?;
    lease.release()?;
    if state
        .record()
        .is_some_and(|record| record.reclaim == Policy::Delete)
    {
        state.forget()?;
    }
    Ok(())
}

/// Gives up what a dead shim's container held, wherever containerd's `delete` finds it.
///
/// # Errors
/// A survivor that does not go, or a record that cannot be changed.
pub fn clean_up(namespace: &str, container_id: &str, bundle: &Path) -> Result<()> {
    let config = read_config()?;
    // Half a bundle names no state; then the holder records do.
    let named = read_spec(bundle)
        .ok()
        .and_then(|spec| Identity::of(&spec.parsed, namespace, container_id, &config).ok());
    let states = match named {
        Some(Identity::PassThrough(_)) => return Ok(()),
        Some(Identity::State { name, .. }) => vec![name],
        None if !config.root.join("live").is_dir() => return Ok(()),
        None => Node::open(&config.root)?
            .states()?
            .into_iter()
            .map(|info| info.name)
            .collect(),
    };
    for name in states {
        let state = Node::open(&config.root)?.state(&name);
        if !state.exists() {
            continue;
        }
        let Attempt::Held(lease) = state.acquire(Holder::new(container_id, namespace, bundle))? else {
            continue;
        };
        let ours = lease
            .previous()
            .is_some_and(|h| h.container_id == container_id && h.namespace == namespace);
        if ours {
            state.evict(&lease, EVICTION_LIMIT)?;
            detach(&state, lease)?;
        }
        // Dropped unreleased, a lease leaves another holder's record as it was.
    }
    Ok(())
}

fn make_rootfs(rootfs: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    match std::fs::DirBuilder::new().mode(0o711).create(rootfs) {
        Err(source) if source.kind() != std::io::ErrorKind::AlreadyExists => Err(Error::Io {
            context: format!("make {}", rootfs.display()),
            source,
        }),
        _ => Ok(()),
    }
}

/// Runs what may block away from the event loop.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| Error::Other(format!("the call failed in the shim: {e}")))?
}

/// Everything that an attach needs to know.
struct Attach {
    name: StateName,
    chosen: bool,
    holder: Holder,
    config: Config,
    annotations: Annotations,
    spec: Spec,
    bundle: PathBuf,
    rootfs: PathBuf,
    from_engine: Vec<RootfsMount>,
}

impl Attach {
    async fn run(self) -> Result<Kept> {
        let (state, mut lease) = self.lease().await?;
        blocking(move || match self.mount(&state, &mut lease) {
            Ok(()) => Ok(Kept { state, lease }),
            Err(error) => {
                let undone = mounts::unmount_recursive(&self.rootfs).and_then(|()| detach(&state, lease));
                if let Err(second) = undone {
                    tracing::error!(state = %self.name, error = %second, "undo a failed attach");
                }
                Err(error)
            }
        })
        .await
    }

    /// Waits for the lease as long as the configuration or the container says, without holding up the pod.
    async fn lease(&self) -> Result<(State, Lease)> {
        let default = match self.name.engine() {
            Engine::Kubernetes => self.config.lease_wait_cri,
            _ => self.config.lease_wait,
        };
        let limit = self.annotations.lease_wait.unwrap_or(default);
        let since = Instant::now();
        loop {
            let (root, name, holder) = (self.config.root.clone(), self.name.clone(), self.holder.clone());
            let refuse_new = self.annotations.when_missing == WhenMissing::Refuse;
            let attempt = blocking(move || {
                let state = Node::open(&root)?.state(&name);
                if refuse_new && !state.exists() {
                    return Err(Error::FailedPrecondition(format!(
                        "there is no state {name} on this node, and diffkeeper.io/when-missing=refuse: start the container where the state is, or drop the annotation to begin a new one"
                    )));
                }
                Ok(match state.acquire(holder)? {
                    Attempt::Held(lease) => Ok((state, lease)),
                    Attempt::Busy(holder) => Err(state.busy(holder)),
                })
            })
            .await?;
            match attempt {
                Ok(held) => return Ok(held),
                Err(in_use) if since.elapsed() >= limit => return Err(in_use.into()),
                Err(_) => tokio::time::sleep(LEASE_POLL).await,
            }
        }
    }

    fn mount(&self, state: &State, lease: &mut Lease) -> Result<()> {
        if let Some(evicted) = state.evict(lease, EVICTION_LIMIT)? {
            tracing::warn!(state = %self.name, holder = evicted.holder.container_id, killed = ?evicted.killed,
                "the last holder's shim had died: what was left of it has been ended");
        }
        lease.update(|_| {})?;
        state.remove_placeholders()?;
        self.freshen(state)?;

        let plan = self.plan()?;
        make_rootfs(&self.rootfs)?;
        mounts::mount_all(&plan.before, &self.rootfs)?;
        let top = plan.lower.first().map(PathBuf::as_path).unwrap_or(Path::new("/"));
        let image =
            std::fs::metadata(top).context(|| format!("look at the image's layer {}", top.display()))?;
        state.prepare(&image, self.owner_on_disk(&plan, &image))?;
        let overlay = self.overlay(state, &plan)?;
        self.mount_overlay(&overlay, lease)?;
        // A second look, because what was set aside may have hidden another.
        for _ in 0..2 {
            let misfits = state.note_targets(&self.rootfs, &self.wanted())?;
            if misfits.is_empty() {
                break;
            }
            mounts::unmount_recursive(&self.rootfs)?;
            let moved = state.set_aside_misfits(&misfits, SystemTime::now())?;
            tracing::warn!(state = %self.name, ?moved, "entries whose type no longer fits a mount were set aside");
            mounts::mount_all(&plan.before, &self.rootfs)?;
            self.mount_overlay(&overlay, lease)?;
        }
        mounts::mount_all(&plan.after, &self.rootfs)?;
        if self.from_engine.is_empty() {
            self.redirect_root()?;
        }
        let reclaim = self.annotations.reclaim.unwrap_or(if self.chosen {
            self.config.reclaim_chosen
        } else {
            self.config.reclaim_unchosen
        });
        state.attached(
            self.chosen,
            reclaim.into(),
            &self.holder.container_id,
            SystemTime::now(),
        )?;
        Ok(())
    }

    /// Another container than the last one finds the excluded paths as the image has them.
    fn freshen(&self, state: &State) -> Result<()> {
        let last = state.record().and_then(|record| record.last_container);
        if last.as_deref() == Some(self.holder.container_id.as_str()) {
            return Ok(());
        }
        let excluded = self.annotations.exclude.as_ref().unwrap_or(&self.config.exclude);
        let trash = state.set_aside_excluded(excluded)?;
        if !trash.is_empty() {
            // The container need not wait for it; what a crash leaves, `diffkeeper prune` deletes.
            std::thread::spawn(move || {
                if let Err(error) = trash.delete() {
                    tracing::warn!(%error, "delete excluded paths");
                }
            });
        }
        Ok(())
    }

    fn plan(&self) -> Result<RootPlan> {
        let own = self.bundle.join(&self.spec.parsed.root.path);
        let mut plan = RootPlan::new(&self.from_engine, &own)?;
        // What a client put there before the start (a restored checkpoint's files) must not be lost.
        if let Some(upper) = plan.engine_upper.take()
            && std::fs::read_dir(&upper).is_ok_and(|mut entries| entries.next().is_some())
        {
            plan.lower.insert(0, upper);
        }
        if plan.lower.is_empty() {
            plan.lower.push(self.rootfs.clone());
        }
        Ok(plan)
    }

    fn id_maps(&self) -> Option<IdMaps> {
        let linux = &self.spec.parsed.linux;
        let mapped = self.spec.parsed.has_user_namespace();
        mapped.then(|| IdMaps {
            uids: linux.uid_mappings.clone(),
            gids: linux.gid_mappings.clone(),
        })
    }

    /// The owner of the container's `/`, as ids of the container: on disk there are no others.
    fn owner_on_disk(&self, plan: &RootPlan, image: &std::fs::Metadata) -> (u32, u32) {
        match self.id_maps() {
            // The layers were copied for this range: their owners are the host's ids.
            Some(maps) if plan.lower_id_map.is_none() => {
                (inside(image.uid(), &maps.uids), inside(image.gid(), &maps.gids))
            }
            _ => (image.uid(), image.gid()),
        }
    }

    fn overlay(&self, state: &State, plan: &RootPlan) -> Result<Overlay> {
        let lower_id_map = plan
            .lower_id_map
            .as_ref()
            .map(|(u, g)| IdMaps::parse(u, g))
            .transpose()?;
        let mut options = plan.options.clone();
        let label = &self.spec.parsed.linux.mount_label;
        if !label.is_empty() && !options.iter().any(|o| o.starts_with("context=")) {
            options.push(format!("context=\"{label}\""));
        }
        Ok(Overlay {
            lower: plan.lower.clone(),
            lower_id_map,
            upper: state.upper(),
            work: state.work(),
            upper_id_map: self.id_maps(),
            options,
            readonly: plan.readonly,
            target: self.rootfs.clone(),
        })
    }

    /// Mounts the overlay, and notes its device with the lease: by it a survivor is recognised.
    fn mount_overlay(&self, overlay: &Overlay, lease: &mut Lease) -> Result<()> {
        mounts::mount_overlay(overlay)?;
        let device = mounts::overlay_device(&self.rootfs)?;
        Ok(lease.update(|holder| holder.overlay = Some(device))?)
    }

    /// What the runtime will mount on, and what must be there for it.
    fn wanted(&self) -> Vec<(PathBuf, Want)> {
        let want = |wants: Wants| match wants {
            Wants::RealDirectory => Some(Want::RealDirectory),
            Wants::Directory => Some(Want::Directory),
            // Without its source the runtime fails with a message of its own.
            Wants::SameAsSource(source) if std::fs::metadata(&source).ok()?.is_dir() => Some(Want::Directory),
            Wants::SameAsSource(_) => Some(Want::File),
        };
        let targets = targets(&self.spec.parsed).into_iter();
        targets
            .filter_map(|t| Some((t.destination, want(t.wants)?)))
            .collect()
    }

    /// `--rootfs`: the runtime is to take our mount, not the directory below it.
    fn redirect_root(&self) -> Result<()> {
        let own = self.bundle.join(&self.spec.parsed.root.path);
        if own == self.rootfs {
            return Ok(());
        }
        let edited = Bundle::set_root_path(&self.spec.raw, "rootfs")?;
        std::fs::write(self.bundle.join("config.json"), edited)
            .context(|| format!("redirect the root of the bundle {}", self.bundle.display()))
    }
}

/// A host's id as the container knows it; itself where it is not mapped.
fn inside(id: u32, maps: &[IdMapping]) -> u32 {
    let found = maps.iter().find_map(|m| {
        let offset = id.checked_sub(m.host_id)?;
        (offset < m.size).then(|| m.container_id.saturating_add(offset))
    });
    found.unwrap_or(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_ids_become_the_containers() {
        let maps = [
            IdMapping {
                container_id: 0,
                host_id: 100_000,
                size: 10,
            },
            IdMapping {
                container_id: 50,
                host_id: 5,
                size: 1,
            },
        ];
        assert_eq!(inside(100_003, &maps), 3);
        assert_eq!(inside(5, &maps), 50);
        assert_eq!(inside(100_010, &maps), 100_010);
    }

    #[test]
    fn a_bundle_without_config_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let told = read_spec(dir.path()).err().unwrap().to_string();
        assert!(
            told.contains("config.json") && told.contains(dir.path().to_str().unwrap()),
            "{told}"
        );
    }
}
