//! The list of states, and when they go.

use std::{
    fs::File,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use runtime_spec::name::StateName;

use crate::{
    error::{Context, Error, Result},
    layout::Node,
    lease::{Attempt, Holder},
    root::Root,
    state::{Policy, Record, State, read_json, read_record, time},
    sys, tree,
};

/// What a tree takes on the disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Size {
    /// Bytes on the disk.
    pub allocated: u64,
    /// Bytes as files' lengths tell.
    pub apparent: u64,
    /// Files, directories and all else.
    pub entries: u64,
}

/// A state, as a list shows it.
#[derive(Debug, Clone)]
pub struct StateInfo {
    /// Its name.
    pub name: StateName,
    /// Its record, if it can be read.
    pub record: Option<Record>,
    /// Who uses it.
    pub in_use_by: Option<Holder>,
    /// When its holder was last known to have it: a node that stopped without a word left no other trace of that.
    held: Option<SystemTime>,
    dir: PathBuf,
}

impl StateInfo {
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// What it takes on the disk. Walks the tree.
    ///
    /// # Errors
    /// A directory of ours that cannot be read.
    pub fn size(&self) -> Result<Size> {
        tree::size(&self.dir)
    }

    /// Its roots, and whether its last life mounted them.
    #[must_use]
    pub fn roots(&self) -> Vec<(Root, bool)> {
        let mounted = |name: &str| {
            self.record
                .as_ref()
                .is_none_or(|r| r.roots.iter().any(|root| root == name))
        };
        let names = std::fs::read_dir(self.dir.join("roots"))
            .into_iter()
            .flatten()
            .flatten();
        let mut roots: Vec<_> = names
            .filter_map(|entry| {
                let name = entry.file_name();
                let name = name.to_str()?;
                Some((Root::of_dir_name(name)?, mounted(name)))
            })
            .collect();
        roots.sort();
        roots
    }

    /// When a container last took or left it.
    #[must_use]
    pub fn last_used(&self) -> Option<SystemTime> {
        time(self.record.as_ref()?.last_used)
    }

    /// When it is forgotten; never while it is in use or its record is damaged.
    #[must_use]
    pub fn expires_at(&self) -> Option<SystemTime> {
        let record = self.record.as_ref().filter(|_| self.in_use_by.is_none())?;
        let wait = match record.reclaim {
            Policy::Keep => return None,
            Policy::Delete => 0,
            Policy::After(seconds) => seconds,
        };
        let used = time(record.last_used)?;
        let used = self.held.map_or(used, |held| held.max(used));
        used.checked_add(Duration::from_secs(wait))
    }

    /// Puts down that it is in use still: should its node stop without a word, its time begins here. Nothing where it is
    /// not in use.
    ///
    /// # Errors
    /// A full or read-only disk.
    pub fn still_held(&self, now: SystemTime) -> Result<()> {
        if self.in_use_by.is_none() {
            return Ok(());
        }
        let path = self.dir.join("holder.json");
        match File::options()
            .write(true)
            .open(&path)
            .and_then(|file| file.set_modified(now))
        {
            // It is being left at this moment.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            done => done.on("write to", &path),
        }
    }
}

impl Node {
    /// Every state on this node, by name.
    ///
    /// # Errors
    /// A directory of ours that cannot be read.
    pub fn states(&self) -> Result<Vec<StateInfo>> {
        let mut found = Vec::new();
        let live = self.live();
        if !live.exists() {
            return Ok(found);
        }
        collect(&live, &live, &mut found)?;
        found.sort_by_key(|s| s.name.to_string());
        Ok(found)
    }

    /// One of them; none where there is no live tree of that name.
    #[must_use]
    pub fn info(&self, name: &StateName) -> Option<StateInfo> {
        let dir = self.state(name).dir().to_owned();
        dir.is_dir().then(|| info(name.clone(), dir))
    }

    /// The states that have expired.
    ///
    /// # Errors
    /// As [`Node::states`].
    pub fn due(&self, now: SystemTime) -> Result<Vec<StateInfo>> {
        let states = self.states()?.into_iter();
        Ok(states
            .filter(|s| s.expires_at().is_some_and(|at| at <= now))
            .collect())
    }

    /// Forgets a state. Answers with what it took.
    ///
    /// # Errors
    /// [`Error::InUse`] and [`Error::StillInUse`] when it is, [`Error::Missing`] when there is none.
    pub fn remove(&self, name: &StateName) -> Result<Size> {
        let state = self.state(name);
        if !state.dir().is_dir() {
            return Err(Error::Missing(name.to_string()));
        }
        let lease = match state.acquire(Holder::new("diffkeeper rm", "", Path::new("/")))? {
            Attempt::Held(lease) => lease,
            Attempt::Busy(holder) => return Err(state.busy(holder)),
        };
        // Nobody has the lease, so what stands in the state's own directory was left there.
        state.unmount_paths();
        state.refuse_if_mounted()?;
        let size = tree::size(state.dir())?;
        // Out of the way while the lease is held; whoever waits for it finds another lock file.
        let trash = state.discard()?;
        drop(lease);
        self.remove_empty_parents(&state);
        trash.delete()?;
        Ok(size)
    }

    fn remove_empty_parents(&self, state: &State) {
        let live = self.live();
        for dir in state.dir().ancestors().skip(1).take_while(|dir| *dir != live) {
            // Not empty: another state is there.
            if std::fs::remove_dir(dir).is_err() {
                break;
            }
        }
    }
}

impl State {
    /// Forgets this state.
    ///
    /// # Errors
    /// As [`Node::remove`].
    pub fn forget(&self) -> Result<Size> {
        self.node().remove(self.name())
    }
}

fn info(name: StateName, dir: PathBuf) -> StateInfo {
    let locked = File::open(dir.join("lock")).is_ok_and(|lock| sys::is_locked(&lock).unwrap_or(false));
    let holder = dir.join("holder.json");
    StateInfo {
        name,
        record: read_record(&dir),
        in_use_by: locked.then(|| read_json(&holder).unwrap_or_default()),
        held: std::fs::symlink_metadata(&holder)
            .and_then(|metadata| metadata.modified())
            .ok(),
        dir,
    }
}

/// Finds states below `dir`; a directory is one when its path is a state's name.
fn collect(live: &Path, dir: &Path, found: &mut Vec<StateInfo>) -> Result<()> {
    let entries = match std::fs::read_dir(dir) {
        // The last state below it has just gone.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && dir != live => return Ok(()),
        entries => entries.on("read", dir)?,
    };
    for entry in entries {
        let path = entry.on("read", dir)?.path();
        if !std::fs::symlink_metadata(&path).is_ok_and(|m| m.is_dir()) {
            continue;
        }
        let name = path
            .strip_prefix(live)
            .ok()
            .and_then(|p| p.to_str())
            .and_then(|p| p.parse::<StateName>().ok());
        match name {
            Some(name) => found.push(info(name, path)),
            None if path.components().count() < live.components().count() + 4 => collect(live, &path, found)?,
            None => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_expire_and_go() {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: states_expire_and_go needs root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let node = Node::open(&dir.path().join("root")).unwrap();
        let now = time(1_000_000).unwrap();
        for (name, policy) in [
            ("ctr/default/web", Policy::After(60)),
            ("k8s/shop/db/pg", Policy::Keep),
        ] {
            let state = node.state(&name.parse().unwrap());
            let root = state.root(&crate::Root::Rootfs).unwrap();
            root.prepare_overlay(0o755, (0, 0)).unwrap();
            std::fs::write(root.upper().join("f"), vec![1; 5000]).unwrap();
            let life = crate::Life {
                exclude: &[],
                capture: None,
                chosen: true,
                reclaim: policy,
                container: "c1",
                roots: &[root],
                image: None,
            };
            state.attached(&life, now).unwrap();
        }
        let names = |list: Vec<StateInfo>| list.iter().map(|s| s.name.to_string()).collect::<Vec<_>>();
        assert_eq!(
            names(node.states().unwrap()),
            ["ctr/default/web", "k8s/shop/db/pg"]
        );
        assert!(node.due(now + Duration::from_secs(59)).unwrap().is_empty());
        assert_eq!(
            names(node.due(now + Duration::from_secs(60)).unwrap()),
            ["ctr/default/web"]
        );

        let web = "ctr/default/web".parse().unwrap();
        let Attempt::Held(mut lease) = node
            .state(&web)
            .acquire(Holder::new("c", "n", Path::new("/b")))
            .unwrap()
        else {
            panic!("it is free");
        };
        lease.update(|_| {}).unwrap();
        assert!(
            node.due(now + Duration::from_secs(60)).unwrap().is_empty(),
            "in use"
        );
        assert!(
            node.remove(&web)
                .unwrap_err()
                .to_string()
                .contains("in use by container \"c\"")
        );
        lease.release().unwrap();
        assert!(node.remove(&web).unwrap().apparent >= 5000);
        assert_eq!(names(node.states().unwrap()), ["k8s/shop/db/pg"]);
        assert!(matches!(node.remove(&web), Err(Error::Missing(_))));
        assert!(!dir.path().join("root/live/ctr").exists());
    }
}
