//! Excluded paths and deletion: renamed aside at once, deleted in the background.

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::SystemTime,
};

use nix::fcntl::renameat;

use crate::{
    error::{Context, Result},
    layout::{Node, make},
    state::{State, seconds},
    tree,
};

/// Trees that are no longer anybody's.
#[derive(Debug, Default)]
pub struct Trash(Vec<PathBuf>);

impl Trash {
    /// Moves a directory out of the way.
    pub(crate) fn take(node: &crate::Node, dir: &Path) -> Result<Trash> {
        let to = node.trash_name()?;
        std::fs::rename(dir, &to).on("remove", dir)?;
        Ok(Trash(vec![to]))
    }

    /// Whether there is nothing to delete.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Deletes them, following no link.
    ///
    /// # Errors
    /// The first entry that does not go.
    pub fn delete(self) -> Result<()> {
        self.0.iter().try_for_each(|path| delete(path))
    }
}

fn delete(path: &Path) -> Result<()> {
    tree::delete(path).on("delete", path)
}

impl Node {
    /// A name in the trash that nothing has.
    pub(crate) fn trash_name(&self) -> Result<PathBuf> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let trash = self.trash();
        make(&trash)?;
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        Ok(trash.join(format!(
            "{}-{}-{count}",
            seconds(SystemTime::now()),
            std::process::id()
        )))
    }

    /// How many deleted trees are still on the disk.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn leftovers(&self) -> Result<usize> {
        let trash = self.trash();
        Ok(std::fs::read_dir(&trash).on("read", &trash)?.count())
    }

    /// Deletes what crashes left in the trash. Answers with how many trees.
    ///
    /// # Errors
    /// The first that does not go.
    pub fn empty_trash(&self) -> Result<usize> {
        let trash = self.trash();
        let mut count = 0;
        for entry in std::fs::read_dir(&trash).on("read", &trash)? {
            delete(&entry.on("read", &trash)?.path())?;
            count += 1;
        }
        Ok(count)
    }
}

impl State {
    /// Takes the excluded paths out of the live tree. Nothing may be mounted on it. A link on the way to a path,
    /// or at it, is the container's own arrangement and is left.
    ///
    /// # Errors
    /// A path that is there and cannot be renamed.
    pub fn set_aside_excluded(&self, paths: &[PathBuf]) -> Result<Trash> {
        let mut trash = Trash::default();
        for root in self.overlays() {
            let upper = tree::open_dir(&root.upper())?;
            // What lies outside of a kept path is not kept anyway.
            let inside = paths
                .iter()
                .filter_map(|p| p.strip_prefix(root.root.destination()).ok());
            for path in inside {
                let Some((dir, name)) = tree::parent_of(&upper, path) else {
                    continue;
                };
                let Some(stat) = tree::entry(&dir, name) else {
                    continue;
                };
                if stat.st_mode & libc::S_IFMT == libc::S_IFLNK {
                    continue;
                }
                let to = self.node().trash_name()?;
                renameat(&dir, name, nix::fcntl::AT_FDCWD, &to).on("set aside the excluded", path)?;
                trash.0.push(to);
            }
        }
        Ok(trash)
    }

    /// Takes the whole state out of the way.
    pub(crate) fn discard(&self) -> Result<Trash> {
        Trash::take(self.node(), self.dir())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn excluded_paths_go_and_links_are_not_followed() {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: excluded_paths_go_and_links_are_not_followed needs root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("outside");
        std::fs::create_dir_all(outside.join("run")).unwrap();
        let node = Node::open(&dir.path().join("root")).unwrap();
        let state = node.state(&"ctr/default/web".parse().unwrap());
        let root = state.root(&crate::Root::Rootfs).unwrap();
        root.prepare_overlay(0o755, (0, 0)).unwrap();
        let upper = root.upper();
        std::fs::create_dir_all(upper.join("tmp/a/b")).unwrap();
        std::fs::create_dir_all(upper.join("run")).unwrap();
        symlink(&outside, upper.join("var")).unwrap();
        std::fs::write(upper.join("kept"), b"x").unwrap();

        let paths = ["/tmp", "/run", "/var/run", "/none"].map(PathBuf::from);
        let trash = state.set_aside_excluded(&paths).unwrap();
        assert!(!upper.join("tmp").exists() && !upper.join("run").exists());
        assert!(outside.join("run").exists() && upper.join("kept").exists());
        assert_eq!(node.leftovers().unwrap(), 2);
        trash.delete().unwrap();
        assert_eq!(node.leftovers().unwrap(), 0);
    }
}
