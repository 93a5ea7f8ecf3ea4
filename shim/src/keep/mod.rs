//! What the stock shim has not: the container's root is the state's live tree.
//!
//! [`Root::prepare`] mounts it before runc runs, [`Root::release`] undoes it after, [`clean_up`] undoes it for a
//! shim that died. A container that opts out gets the stock shim's mounts and nothing else.

mod attach;
mod docker;
mod image;

use std::{
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use containerd_shim_protos::api::CreateTaskRequest;
use keeper_api::keeper::keeper::note_request::What;
use live::{Attempt, Ending, Holder, Lease, Node, Policy, State};
use runtime_spec::{
    annotations::Annotations,
    bundle::Bundle,
    config::Config,
    mount::{RootfsMount, is_clients_own_disk},
    name::{Identity, Reason},
};

use self::{attach::Attach, docker::Docker, image::Learning};
use crate::{
    error::{Context, Error, Result},
    keeper::Keeper,
    mounts,
    options::Options,
    reaper::Reaper,
    service::Client,
};

/// Names the configuration file; for tests, and for two installations on one machine.
pub const CONFIG_VARIABLE: &str = "DIFFKEEPER_CONFIG";
const CONFIG_FILE: &str = "/etc/diffkeeper/config.toml";

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

/// The configuration; the defaults where there is none, unless the options name one.
///
/// # Errors
/// A file that cannot be read or does not parse.
pub fn read_config(options: &Options) -> Result<Config> {
    let path = config_file(options);
    match std::fs::read_to_string(&path) {
        Ok(text) => Config::parse(&text)
            .map_err(|e| Error::InvalidArgument(format!("the configuration {}: {e}", path.display()))),
        Err(error)
            if error.kind() == std::io::ErrorKind::NotFound && options.diffkeeper_config.is_empty() =>
        {
            Ok(Config::default())
        }
        Err(source) => Err(Error::Io {
            context: format!("read the configuration {}", path.display()),
            source,
        }),
    }
}

/// Where the configuration is.
#[must_use]
pub fn config_file(options: &Options) -> PathBuf {
    match options.diffkeeper_config.as_str() {
        "" => std::env::var_os(CONFIG_VARIABLE).map_or_else(|| CONFIG_FILE.into(), PathBuf::from),
        of_handler => of_handler.into(),
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
    mounted: Mounted,
    kept: Option<Kept>,
}

/// Whose mounts stand at a root, and so what is to be unmounted.
#[derive(Debug, Clone, Copy)]
enum Mounted {
    /// All are this shim's.
    Ours,
    /// Ours, with this device number, on top of an engine's own.
    Over((u32, u32)),
    /// All are the engine's own.
    Engines,
}

/// The part of a root that outlives the container.
struct Kept {
    state: State,
    lease: Lease,
    keeper: Keeper,
    /// Its history is to grow.
    recorded: bool,
    learning: Option<Learning>,
}

impl Kept {
    fn note(&self, what: What) {
        self.keeper.note(self.state.name(), what, self.recorded);
    }
}

impl Root {
    /// Mounts the root: the live tree's, or for a container that passes through the snapshot's.
    ///
    /// # Errors
    /// A name or annotation that is wrong, a state in use, a mount that fails; nothing is left mounted then.
    pub async fn prepare(
        client: &Client,
        request: &CreateTaskRequest,
        spec: Spec,
        reaper: &Reaper,
        config: Config,
        keeper: Keeper,
    ) -> Result<Root> {
        let namespace = client.namespace.as_str();
        let bundle = PathBuf::from(&request.bundle);
        let rootfs = bundle.join("rootfs");
        let from_engine: Vec<RootfsMount> = request.rootfs.iter().map(mounts::requested).collect();
        let docker = Docker::find(&spec.parsed, namespace, &request.id)?;
        let record = docker.as_ref().map(|docker| &docker.record);
        let identity = Identity::of(&spec.parsed, namespace, &request.id, &config, record)?;
        if let Identity::PassThrough(reason @ (Reason::Unnamed | Reason::Unknown)) = &identity {
            tracing::info!(
                id = request.id,
                ?reason,
                "nothing is kept: give the container a name, or the annotation diffkeeper.io/state"
            );
        }
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
            return Ok(Root {
                rootfs,
                mounted: Mounted::Ours,
                kept: None,
            });
        };
        let annotations = Annotations::parse(&spec.parsed.annotations)?;
        let root_path = spec.parsed.root.path.clone();
        let attach = Attach {
            holder: Holder {
                socket: client.socket.clone().unwrap_or_default(),
                ..Holder::new(&request.id, namespace, &bundle)
            },
            chosen,
            config: config.in_namespace(name.namespace()),
            name,
            annotations,
            spec,
            bundle,
            // Docker mounts a root itself, and looks there for what the container has.
            rootfs: if docker.is_some() { root_path } else { rootfs },
            docker,
            from_engine,
            reaper: reaper.clone(),
            keeper,
            address: client.address.clone(),
        };
        let docker = attach.docker.is_some();
        let rootfs = attach.rootfs.clone();
        let kept = attach.run().await?;
        let mounted = Mounted::at(&kept.lease, docker);
        Ok(Root {
            rootfs,
            mounted,
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

    /// Tells the keeper.
    pub fn note(&self, what: What) {
        if let Some(kept) = &self.kept {
            kept.note(what);
        }
    }

    /// Unmounts, removes what runc made in the tree for its mounts, and gives up the lease.
    ///
    /// # Errors
    /// A mount that does not go. The holder record then stays, so that the next attach asks the kernel first.
    pub async fn release(&mut self, ending: Ending) -> Result<()> {
        let (rootfs, mounted) = (self.rootfs.clone(), self.mounted);
        let mut kept = self.kept.take();
        if let Some(kept) = &mut kept {
            kept.learning = None;
        }
        let told = kept
            .as_ref()
            .map(|kept| (kept.keeper.clone(), kept.state.name().clone(), kept.recorded));
        blocking(move || {
            unmount(&rootfs, mounted).map_err(|e| Error::Other(format!("failed rootfs umount: {e}")))?;
            kept.map_or(Ok(()), |kept| detach(&kept.state, kept.lease, ending))
        })
        .await?;
        if let Some((keeper, state, recorded)) = told {
            keeper.note(&state, What::DETACHED, recorded);
        }
        Ok(())
    }
}

impl Mounted {
    /// What stands at the root of a lease's holder. Docker mounts a root itself.
    fn at(lease: &Lease, docker: bool) -> Mounted {
        match lease.holder().overlay {
            _ if !docker => Mounted::Ours,
            Some(device) => Mounted::Over(device),
            None => Mounted::Engines,
        }
    }
}

/// Unmounts what is ours of a root.
fn unmount(rootfs: &Path, mounted: Mounted) -> Result<()> {
    match mounted {
        Mounted::Ours => mounts::unmount_recursive(rootfs),
        Mounted::Over(device) => mounts::unmount_device(rootfs, device),
        Mounted::Engines => Ok(()),
    }
}

/// What follows once the root is no longer mounted.
fn detach(state: &State, lease: Lease, ending: Ending) -> Result<()> {
    state.unmount_paths();
    // A lazy unmount may still be in use; then the next attach does it.
    if state.refuse_if_mounted().is_ok() {
        state.remove_placeholders()?;
    }
    state.detached(ending, SystemTime::now())?;
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
    let config = read_config(&Options::load(bundle))?;
    // Half a bundle names no state; then the holder records do.
    let named = read_spec(bundle)
        .ok()
        .and_then(|spec| {
            let docker = Docker::find(&spec.parsed, namespace, container_id).ok()?;
            let record = docker.as_ref().map(|docker| &docker.record);
            Identity::of(&spec.parsed, namespace, container_id, &config, record).ok()
        })
        // A record that Docker has removed already names nothing any more.
        .filter(|identity| *identity != Identity::PassThrough(Reason::Unknown));
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
            detach(&state, lease, Ending::Unknown)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_that_the_options_name_must_be_there() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("other.toml");
        let options = Options {
            diffkeeper_config: file.to_str().unwrap().into(),
            ..Options::default()
        };
        let told = read_config(&options).unwrap_err().to_string();
        assert!(told.contains("other.toml"), "{told}");
        std::fs::write(&file, "runtime = \"crun\"\n").unwrap();
        assert_eq!(read_config(&options).unwrap().runtime, "crun");
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
