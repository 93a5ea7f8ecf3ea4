//! Where things are on the node.
//!
//! ```text
//! <root>/live/<state name>/     one directory for each part of the name
//!     state.json                what is known of the state (Record)
//!     lock                      the lease's lock
//!     holder.json               who has the lease (Holder)
//!     limit.json                what its live tree may take
//!     placeholders.json         what runc is about to make for its mounts
//!     roots/rootfs/upper, work  the live tree's root: the container's /
//!     taking-in/                as what the live tree held is put into a project: see project.rs
//!     roots/reached, ending     how far that has come
//!     aside/<time>/             what had to make way so that the container could start
//! <root>/next-project           the number of the next project: see limit.rs
//! <root>/trash/                 deleted, not yet off the disk
//! ```

use std::{
    fs::DirBuilder,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
};

use nix::{errno::Errno, sys::statfs};
use runtime_spec::name::StateName;

use crate::{
    error::{Context, Error, Result},
    state::State,
    sys,
};

/// The live trees of this machine.
#[derive(Debug, Clone)]
pub struct Node {
    root: PathBuf,
}

impl Node {
    /// Opens, and makes where missing, the directory for live trees.
    ///
    /// # Errors
    /// A path that is not a directory of ours, a read-only disk, a file system that cannot hold an upper.
    pub fn open(root: &Path) -> Result<Node> {
        let node = Node {
            root: root.to_owned(),
        };
        let live = node.live();
        // Made last, after the checks: where it is, they have passed.
        if !live.is_dir() || root.is_symlink() {
            node.check()?;
            make(&node.trash())?;
            make(&live)?;
        }
        Ok(node)
    }

    /// Of a directory that has no live trees, and nothing is made for any: for histories of something else.
    #[must_use]
    pub fn none(root: &Path) -> Node {
        Node {
            root: root.to_owned(),
        }
    }

    fn check(&self) -> Result<()> {
        let root = &self.root;
        let unfit = |problem: String| Error::Unfit {
            path: root.display().to_string(),
            problem,
        };
        match std::fs::symlink_metadata(root) {
            Ok(m) if m.is_symlink() => {
                return Err(unfit(
                    "it is a symlink: name the directory itself as `root` in the configuration".into(),
                ));
            }
            Ok(m) if !m.is_dir() => {
                return Err(unfit(
                    "it is not a directory: move it away, or set another `root`".into(),
                ));
            }
            Ok(m) if m.uid() != 0 || m.mode() & 0o022 != 0 => {
                return Err(unfit(
                    "others than root may write to it: chown root, chmod 0700".into(),
                ));
            }
            Ok(_) => {}
            Err(_) => make(root).map_err(|error| match error {
                Error::Io { source, .. } => unfit(advice(&source)),
                other => other,
            })?,
        }
        let kind = statfs::statfs(root)
            .on("look at the file system of", root)?
            .filesystem_type();
        if kind == statfs::OVERLAYFS_SUPER_MAGIC {
            return Err(unfit(
                "it is on an overlay, which cannot hold another's upper: put `root` on ext4, XFS or btrfs"
                    .into(),
            ));
        }
        let probe = root.join(format!(".probe-{}", std::process::id()));
        std::fs::write(&probe, b"").map_err(|e| unfit(advice(&e)))?;
        let attribute = sys::set_xattr(&probe, c"trusted.diffkeeper.probe", b"y");
        // Only a probe: if it stays, it is an empty file.
        let _ = std::fs::remove_file(&probe);
        attribute.map_err(|e| match e.raw_os_error() {
            Some(libc::EOPNOTSUPP) => unfit(
                "its file system has no extended attributes (trusted.*): put `root` on ext4, XFS or btrfs"
                    .into(),
            ),
            Some(libc::EPERM) => unfit("this needs root (CAP_SYS_ADMIN)".into()),
            _ => unfit(advice(&e)),
        })
    }

    /// The state of this name, whether or not it exists.
    #[must_use]
    pub fn state(&self, name: &StateName) -> State {
        State::new(self.clone(), name.clone())
    }

    pub(crate) fn live(&self) -> PathBuf {
        self.root.join("live")
    }

    /// Where the live trees of all states are.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A directory on their file system for what may go at any time.
    #[must_use]
    pub fn trash(&self) -> PathBuf {
        self.root.join("trash")
    }
}

/// What a failed write to the disk means for whoever has to mend it.
fn advice(error: &std::io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EROFS) => "the disk is mounted read-only: remount it, or set another `root`".into(),
        Some(libc::ENOSPC) => "the disk is full: make room (diffkeeper states, diffkeeper prune)".into(),
        Some(libc::EACCES | libc::EPERM) => "this needs root".into(),
        _ => error.to_string(),
    }
}

/// Makes a directory with all above it, for root alone.
pub(crate) fn make(dir: &Path) -> Result<()> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(|e| match e.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOSPC | Errno::EROFS) => Error::Unfit {
            path: dir.display().to_string(),
            problem: advice(&e),
        },
        _ => Error::Io {
            context: format!("make {}", dir.display()),
            source: e,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_hold_live_trees_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let told = |root: &Path| Node::open(root).unwrap_err().to_string();
        let file = dir.path().join("file");
        std::fs::write(&file, b"").unwrap();
        assert!(told(&file).contains("not a directory"), "{}", told(&file));
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(dir.path(), &link).unwrap();
        assert!(told(&link).contains("symlink"), "{}", told(&link));
        assert!(told(Path::new("/proc/live")).contains("/proc/live"));
    }

    #[test]
    fn opened_twice() {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: opened_twice needs root (trusted xattrs)");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("a/b");
        Node::open(&root).unwrap();
        Node::open(&root).unwrap();
        assert_eq!(std::fs::metadata(&root).unwrap().mode() & 0o777, 0o700);
    }
}
