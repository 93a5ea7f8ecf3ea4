//! Taking a state for a container: the lease, the mounts, what the runtime is told.

use std::{
    cell::Cell,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use keeper_api::keeper::keeper::note_request::What;
use live::{Attempt, Ending, Holder, Lease, Life, Limited, Node, Policy, Root, RootDir, State, Want};
use nix::{
    fcntl::{OFlag, openat},
    sys::stat::Mode,
};
use runtime_spec::{
    annotations::{Annotations, From, WhenMissing},
    bundle::{Bind, Bundle, Edits, IdMapping, Mount},
    config::Config,
    mount::{RootPlan, RootfsMount, Wants, targets},
    name::{Engine, StateName},
    roots::{Roots, Volume, Wishes, is_cri_volume},
};

use super::{
    EVICTION_LIMIT, Kept, Mounted, Spec, blocking, detach,
    docker::{Docker, mounted_by_engine},
    image::Learning,
    make_rootfs, unmount,
};
use crate::{
    error::{Context, Error, Result},
    keeper::Keeper,
    mounts::{self, IdMaps, Overlay},
    reaper::Reaper,
};

/// How often a held lease is looked at again.
const LEASE_POLL: Duration = Duration::from_millis(50);

/// How long a start may take to find out what its namespace takes.
const COUNT_LIMIT: Duration = Duration::from_secs(2);

/// Everything that an attach needs to know.
pub(super) struct Attach {
    pub(super) name: StateName,
    pub(super) chosen: bool,
    pub(super) holder: Holder,
    pub(super) config: Config,
    pub(super) annotations: Annotations,
    pub(super) spec: Spec,
    pub(super) bundle: PathBuf,
    pub(super) rootfs: PathBuf,
    pub(super) from_engine: Vec<RootfsMount>,
    /// containerd's socket.
    pub(super) address: String,
    /// Docker's record, for a container of Docker's.
    pub(super) docker: Option<Docker>,
    /// Waits for the command that asks containerd.
    pub(super) reaper: Reaper,
    pub(super) keeper: Keeper,
}

impl Attach {
    pub(super) async fn run(self) -> Result<Kept> {
        // Before the lease: who is refused leaves nothing behind.
        self.room().await?;
        let (state, lease) = self.lease().await?;
        let (state, mut lease, restored) = self.restore(state, lease).await?;
        let digest = self.digest(&state).await;
        let keeper = self.keeper.clone();
        let interval = self.annotations.capture.unwrap_or(self.config.history.interval);
        let recorded = !interval.is_zero();
        let inquiry = self.inquiry_later();
        let mut kept = blocking(move || {
            match restored
                .and(digest)
                .and_then(|digest| self.mount(&state, &mut lease, digest))
            {
                Ok(()) => Ok(Kept {
                    state,
                    lease,
                    keeper,
                    recorded,
                    learning: None,
                }),
                Err(error) => {
                    let undone = unmount(&self.rootfs, self.mounted(&lease));
                    if let Err(second) = undone.and_then(|()| detach(&state, lease, Ending::Unknown)) {
                        tracing::error!(state = %self.name, error = %second, "undo a failed attach");
                    }
                    Err(error)
                }
            }
        })
        .await?;
        kept.learning = inquiry.and_then(|inquiry| Learning::begin(&kept.state, inquiry));
        kept.note(What::ATTACHED);
        Ok(kept)
    }

    /// Whether the namespace has room for a state that is not there yet. One that is there starts, whatever its neighbours
    /// take.
    async fn room(&self) -> Result<()> {
        let Some(limit) = self.config.total_limit else {
            return Ok(());
        };
        let (root, name) = (self.config.root.clone(), self.name.clone());
        blocking(move || {
            let node = Node::open(&root)?;
            if node.state(&name).exists() {
                return Ok(());
            }
            let total = node.total(name.engine_namespace(), Some(Instant::now() + COUNT_LIMIT))?;
            if total.bytes >= limit {
                let most: Vec<&str> = total.states.iter().map(|(state, _)| state.as_str()).take(3).collect();
                return Err(Error::FailedPrecondition(format!(
                    "no new state begins in the namespace {}: its live trees take {} MiB, and total-limit is {} MiB. Remove what nobody needs (diffkeeper states, diffkeeper rm; most is in {}), or raise total-limit",
                    name.engine_namespace(),
                    total.bytes >> 20,
                    limit >> 20,
                    most.join(", ")
                )));
            }
            if total.more {
                tracing::warn!(state = %name, "there was no time to look at all of its namespace: whether total-limit is reached is not known");
            }
            Ok(())
        })
        .await
    }

    /// What a new state begins with, and where a restore is asked for, by the annotation or by a person: the keeper does
    /// it now.
    async fn restore(&self, state: State, lease: Lease) -> Result<(State, Lease, Result<()>)> {
        let source = |from: &From| Ok((self.name.beside(&from.state)?, from.version.clone()));
        // A name that is wrong is wrong in every life.
        let from = match self.annotations.from.as_ref().map(source).transpose() {
            Ok(from) => from.filter(|_| !state.exists()),
            Err(error) => return Ok((state, lease, Err(error))),
        };
        let asked = self.annotations.restore.as_deref();
        if from.is_none() && asked.is_none() && !state.restore_wanted() {
            return Ok((state, lease, Ok(())));
        }
        // Nobody may be writing any more.
        let (state, lease, free) = blocking(move || {
            let free = state.evict(&lease, EVICTION_LIMIT).map(drop);
            Ok((state, lease, free))
        })
        .await?;
        let limit = self.size_limit();
        let restored = async {
            free?;
            // What the keeper makes is held to it from its first byte on.
            state.want_limit(limit)?;
            if let Some((source, version)) = from {
                self.keeper.fork(&source, &version, &self.name).await?;
                if state.restore_wanted() {
                    self.keeper.restore(&self.name, None).await?;
                }
            }
            if asked.is_some() {
                self.keeper.restore(&self.name, asked).await?;
            }
            // A template keeps what it asked for once; what a person asks for after that counts.
            if state.restore_wanted() {
                self.keeper.restore(&self.name, None).await?;
            }
            Ok(())
        };
        let restored = restored.await;
        Ok((state, lease, restored))
    }

    fn mounted(&self, lease: &Lease) -> Mounted {
        Mounted::at(lease, self.docker.is_some())
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

    fn mount(&self, state: &State, lease: &mut Lease, digest: Option<String>) -> Result<()> {
        if let Some(evicted) = state.evict(lease, EVICTION_LIMIT)? {
            tracing::warn!(state = %self.name, holder = evicted.holder.container_id, killed = ?evicted.killed,
                "the last holder's shim had died: what was left of it has been ended");
        }
        lease.update(|holder| holder.root.clone_from(&self.rootfs))?;
        state.remove_placeholders()?;
        self.freshen(state)?;
        // Once a person has named it, it does not expire because a container has come to it by its id.
        let chosen = self.chosen || state.record().is_some_and(|record| record.chosen);
        let image = self.image_of(state, digest)?;
        self.heal(state)?;
        self.limit(state)?;

        let roots = self.roots()?;
        let mut edits = Edits::default();
        let mut mounted = Vec::new();
        if self.paths().is_empty() {
            mounted.push(self.mount_root(state, lease)?);
            if self.docker.is_none() && self.from_engine.is_empty() && self.own_root() != self.rootfs {
                // `--rootfs`: the runtime is to take our mount, not the directory below it.
                edits.root_path = Some("rootfs".into());
            }
        } else {
            self.mount_as_asked(lease)?;
            for path in &roots.paths {
                let root = self.mount_path(state, path)?;
                edits.binds.push(Bind {
                    destination: path.clone(),
                    source: root.merged(),
                });
                mounted.push(root);
            }
        }
        for volume in &roots.volumes {
            let root = state.root(&Root::Volume(volume.destination.clone()))?;
            let tree = match self.owners_to_map(volume) {
                Some(maps) => {
                    edits.mapped.insert(volume.mount);
                    root.prepare_volume_seen(&volume.source, |source| seen_from_inside(source, &maps))?
                }
                None => root.prepare_volume(&volume.source)?,
            };
            edits.sources.insert(volume.mount, tree);
            mounted.push(root);
        }
        self.tell_the_runtime(&edits)?;
        let reclaim = self.annotations.reclaim.unwrap_or(if chosen {
            self.config.reclaim_chosen
        } else {
            self.config.reclaim_unchosen
        });
        let life = Life {
            chosen,
            reclaim: reclaim.into(),
            container: &self.holder.container_id,
            roots: &mounted,
            image: Some(image),
            exclude: self.exclude(),
            capture: self
                .annotations
                .capture
                .map(|interval| u64::try_from(interval.as_millis()).unwrap_or(u64::MAX)),
        };
        state.attached(&life, SystemTime::now())?;
        state.enforce_limit()?;
        Ok(())
    }

    /// A fresh start used to cure a broken container; where the annotation says so, it does again after a few failed
    /// ones.
    fn heal(&self, state: &State) -> Result<()> {
        let failed = state.record().map_or(0, |record| record.failed_starts);
        if self
            .annotations
            .after_crashes
            .is_some_and(|limit| failed >= limit)
        {
            let aside = self.set_aside(state)?;
            tracing::warn!(state = %self.name, failed, %aside, "too many starts in a row have failed: the live tree was set aside under a name of its own");
        }
        Ok(())
    }

    /// What the container says is the less, or nothing: who starts it may not be who owns the disk.
    fn size_limit(&self) -> Option<u64> {
        let limits = [self.annotations.size_limit, self.config.size_limit];
        limits.into_iter().flatten().min()
    }

    fn limit(&self, state: &State) -> Result<()> {
        match state.limit(self.size_limit())? {
            Limited::Not | Limited::Held => {}
            Limited::Later(why) => {
                tracing::warn!(state = %self.name, why, "its live tree was begun without a size limit, and has none yet: its next start goes on with that, a restore makes it anew: diffkeeper restore {}@head", self.name);
            }
            Limited::Unable if self.config.require_quota => {
                return Err(Error::FailedPrecondition(format!(
                    "the disk of {} has no project quota, so {} cannot be held to its size limit, and without-quota is \"refuse\": mount it with prjquota, or drop the limit",
                    self.config.root.display(),
                    self.name
                )));
            }
            Limited::Unable => {
                tracing::warn!(state = %self.name, "the disk has no project quota: its size limit is not enforced");
            }
        }
        Ok(())
    }

    /// Sets the live tree aside as a state of its own, and answers with its name.
    pub(super) fn set_aside(&self, state: &State) -> Result<StateName> {
        let policy = match state.record().map(|record| record.reclaim) {
            // It has no container any more that could end.
            None | Some(Policy::Delete) => self.config.reclaim_unchosen.into(),
            Some(policy) => policy,
        };
        let now = SystemTime::now();
        let seconds = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let name = self.name.set_aside(seconds)?;
        state.set_aside(&name, policy, now)?;
        Ok(name)
    }

    /// The only paths that are kept; all when there are none.
    fn paths(&self) -> &[PathBuf] {
        self.annotations.paths.as_ref().unwrap_or(&self.config.paths)
    }

    fn exclude(&self) -> &[PathBuf] {
        self.annotations.exclude.as_ref().unwrap_or(&self.config.exclude)
    }

    fn roots(&self) -> Result<Roots> {
        let wishes = Wishes {
            paths: self.paths(),
            exclude: self.exclude(),
            include_mounts: &self.annotations.include_mounts,
        };
        let id = &self.holder.container_id;
        let is_image_volume = |mount: &Mount| match self.name.engine() {
            Engine::Kubernetes => is_cri_volume(mount, id),
            Engine::Docker => self
                .docker
                .as_ref()
                .is_some_and(|docker| docker.is_image_volume(mount)),
            Engine::Containerd => false,
        };
        Ok(Roots::new(&self.spec.parsed, &wishes, is_image_volume)?)
    }

    fn own_root(&self) -> PathBuf {
        self.bundle.join(&self.spec.parsed.root.path)
    }

    /// The whole of `/` is kept: the state's overlay in place of the snapshot's.
    fn mount_root(&self, state: &State, lease: &mut Lease) -> Result<RootDir> {
        let root = state.root(&Root::Rootfs)?;
        let plan = self.plan()?;
        if self.docker.is_none() {
            make_rootfs(&self.rootfs)?;
        }
        mounts::mount_all(&plan.before, &self.rootfs)?;
        let top = plan.lower.first().map(PathBuf::as_path).unwrap_or(Path::new("/"));
        let image =
            std::fs::metadata(top).context(|| format!("look at the image's layer {}", top.display()))?;
        let mapped = plan.lower_id_map.is_some();
        root.prepare_overlay(image.mode(), self.owner_on_disk(&image, mapped))?;
        let overlay = self.overlay(&root, &plan)?;
        self.mount_overlay(&overlay, lease)?;
        let mounted = Cell::new(self.mounted(lease));
        let unmount_root = || unmount(&self.rootfs, mounted.get());
        let mount_again = || {
            mounts::mount_all(&plan.before, &self.rootfs)?;
            mounts::mount_overlay(&overlay)?;
            if let Mounted::Over(_) = mounted.get() {
                mounted.set(Mounted::Over(mounts::overlay_device(&self.rootfs)?));
            }
            Ok(())
        };
        self.make_way(state, &root, &self.rootfs, unmount_root, mount_again)?;
        self.note_device(lease)?;
        mounts::mount_all(&plan.after, &self.rootfs)?;
        Ok(root)
    }

    /// Only paths are kept: the root is the snapshot's, as ephemeral as ever.
    fn mount_as_asked(&self, lease: &mut Lease) -> Result<()> {
        if !self.from_engine.is_empty() {
            make_rootfs(&self.rootfs)?;
            mounts::mount_all(&self.from_engine, &self.rootfs)?;
        }
        // On a bind mount of a disk every process of the node has that device.
        if self.from_engine.iter().any(|m| m.kind == "overlay") {
            self.note_device(lease)?;
        }
        Ok(())
    }

    /// One kept path: an overlay of its own over what the image, all its layers together, has there. It is mounted in
    /// the state's directory, and the runtime binds it into the container: below the bundle a leaked mount would take
    /// the live tree with it when the bundle is deleted.
    fn mount_path(&self, state: &State, path: &Path) -> Result<RootDir> {
        let root = state.root(&Root::Path(path.to_owned()))?;
        let merged = if self.from_engine.is_empty() {
            self.own_root()
        } else {
            self.rootfs.clone()
        };
        let image = live::look_inside(&merged, path)?;
        let (lower, mode, owner) = match &image {
            Some(open) => {
                let there = open
                    .metadata()
                    .context(|| format!("look at {} in the image", path.display()))?;
                if !there.is_dir() {
                    return Err(Error::InvalidArgument(format!(
                        "diffkeeper.io/paths: {} is a file in the image, and what is kept is a directory: name the one it is in",
                        path.display()
                    )));
                }
                let through = PathBuf::from(format!("/proc/self/fd/{}", open.as_raw_fd()));
                // The merged view shows the container's ids as the host's.
                (through, there.mode(), self.owner_on_disk(&there, false))
            }
            None => (root.nothing(), 0o755, (0, 0)),
        };
        root.prepare_overlay(mode, owner)?;
        let mut plan = RootPlan::standing_on(lower);
        plan.options.extend(self.label(&plan.options));
        let overlay = Overlay {
            lower: plan.lower,
            lower_id_map: None,
            upper: root.upper(),
            work: root.work(),
            upper_id_map: self.id_maps(),
            options: plan.options,
            readonly: false,
            target: root.merged(),
        };
        mounts::mount_overlay(&overlay)?;
        let target = root.merged();
        self.make_way(
            state,
            &root,
            &target,
            || mounts::unmount_recursive(&target),
            || mounts::mount_overlay(&overlay),
        )?;
        Ok(root)
    }

    /// Notes what the runtime will make for its mounts, and moves what is in their way. `merged` is where the root's
    /// overlay stands; it must not while its upper is changed.
    fn make_way(
        &self,
        state: &State,
        root: &RootDir,
        merged: &Path,
        unmount: impl Fn() -> Result<()>,
        mount: impl Fn() -> Result<()>,
    ) -> Result<()> {
        // A second look, because what was set aside may have hidden another.
        for _ in 0..2 {
            let misfits = root.note_targets(merged, &self.wanted())?;
            if misfits.is_empty() {
                break;
            }
            unmount()?;
            let moved = root.set_aside_misfits(&misfits, &state.aside(SystemTime::now()))?;
            tracing::warn!(state = %self.name, ?moved, "entries whose type no longer fits a mount were set aside");
            mount()?;
        }
        Ok(())
    }

    /// Writes the changes into the bundle's `config.json`.
    fn tell_the_runtime(&self, edits: &Edits) -> Result<()> {
        if *edits == Edits::default() {
            return Ok(());
        }
        let edited = Bundle::edit(&self.spec.raw, edits)?;
        std::fs::write(self.bundle.join("config.json"), edited)
            .context(|| format!("change config.json of the bundle {}", self.bundle.display()))
    }

    /// Another container than the last one finds the excluded paths as the image has them.
    fn freshen(&self, state: &State) -> Result<()> {
        let last = state.record().and_then(|record| record.last_container);
        if last.as_deref() == Some(self.holder.container_id.as_str()) {
            return Ok(());
        }
        let trash = state.set_aside_excluded(self.exclude())?;
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

    /// What the engine would have the root stand on.
    pub(super) fn plan_of_engine(&self) -> Result<RootPlan> {
        let by_itself = match &self.docker {
            Some(_) => mounted_by_engine(&self.rootfs)?,
            None => None,
        };
        match by_itself {
            Some(overlay) => Ok(RootPlan::new(&[overlay], &self.own_root())?),
            None => Ok(RootPlan::new(&self.from_engine, &self.own_root())?),
        }
    }

    fn plan(&self) -> Result<RootPlan> {
        let mut plan = self.plan_of_engine()?;
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

    /// The mappings for a volume whose files the engine has with the host's ids, as Docker with remapped users does: on
    /// disk there are the container's alone. CRI has them so itself, and says how its mount maps them.
    fn owners_to_map(&self, volume: &Volume) -> Option<IdMaps> {
        let mount = self.spec.parsed.mounts.get(volume.mount)?;
        self.id_maps().filter(|_| mount.uid_mappings.is_empty())
    }

    /// The owner of a root, as ids of the container: on disk there are no others. Layers that are mapped when they
    /// are mounted hold them already; others were copied for the container's range and hold the host's.
    fn owner_on_disk(&self, image: &std::fs::Metadata, mapped: bool) -> (u32, u32) {
        match self.id_maps() {
            Some(maps) if !mapped => (inside(image.uid(), &maps.uids), inside(image.gid(), &maps.gids)),
            _ => (image.uid(), image.gid()),
        }
    }

    /// The option that labels a mount for SELinux, unless `options` have one.
    fn label(&self, options: &[String]) -> Option<String> {
        let label = &self.spec.parsed.linux.mount_label;
        let wanted = !label.is_empty() && !options.iter().any(|o| o.starts_with("context="));
        wanted.then(|| format!("context=\"{label}\""))
    }

    fn overlay(&self, root: &RootDir, plan: &RootPlan) -> Result<Overlay> {
        let lower_id_map = plan
            .lower_id_map
            .as_ref()
            .map(|(u, g)| IdMaps::parse(u, g))
            .transpose()?;
        let mut options = plan.options.clone();
        options.extend(self.label(&plan.options));
        Ok(Overlay {
            lower: plan.lower.clone(),
            lower_id_map,
            upper: root.upper(),
            work: root.work(),
            upper_id_map: self.id_maps(),
            options,
            readonly: plan.readonly,
            target: self.rootfs.clone(),
        })
    }

    /// Mounts the overlay, and notes its device with the lease.
    fn mount_overlay(&self, overlay: &Overlay, lease: &mut Lease) -> Result<()> {
        mounts::mount_overlay(overlay)?;
        self.note_device(lease)
    }

    /// The root's device, by which a survivor is recognised.
    fn note_device(&self, lease: &mut Lease) -> Result<()> {
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
}

/// A directory, with owners as the container sees them.
fn seen_from_inside(dir: &Path, maps: &IdMaps) -> std::io::Result<OwnedFd> {
    let namespace = mounts::user_namespace(&maps.inverse()).map_err(std::io::Error::other)?;
    let clone = mounts::mapped_clone(dir, &namespace).map_err(std::io::Error::other)?;
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    Ok(openat(&clone, ".", flags, Mode::empty())?)
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
}
