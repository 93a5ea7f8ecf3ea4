//! The roots of a live tree: the container's `/`, single paths of it, image volumes.
//!
//! Each has a directory `roots/<name>`, and the name says what it is: `rootfs`, `path@etc@app` (of `/etc/app`),
//! `volume@var@lib@mysql`. A byte that is not of `[A-Za-z0-9._-]` is written `%XX`.

use std::{
    ffi::OsString,
    fs::File,
    io::{self, ErrorKind},
    os::fd::{AsFd, OwnedFd},
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        fs::PermissionsExt,
    },
    path::{Component, Path, PathBuf},
};

use nix::{fcntl::open, sys::stat::Mode};

use crate::{
    copy::copy_dir,
    error::{Context, Error, Result},
    layout::make,
    state::State,
    sys, tree,
};

/// The longest name of a directory, in bytes.
const LONGEST: usize = 255;

/// One tree of a live tree. Paths are absolute in the container.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Root {
    /// The container's `/`: an overlay's upper.
    Rootfs,
    /// One path of it: an overlay's upper.
    Path(PathBuf),
    /// A volume: a directory as it is.
    Volume(PathBuf),
}

impl Root {
    /// Where it is in the container.
    #[must_use]
    pub fn destination(&self) -> &Path {
        match self {
            Root::Rootfs => Path::new("/"),
            Root::Path(path) | Root::Volume(path) => path,
        }
    }

    /// The word for what it is: `root`, `path` or `volume`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Root::Rootfs => "root",
            Root::Path(_) => "path",
            Root::Volume(_) => "volume",
        }
    }

    /// The name of its directory.
    ///
    /// # Errors
    /// A path that is too long for one.
    pub fn dir_name(&self) -> Result<OsString> {
        let (mut name, path) = match self {
            Root::Rootfs => return Ok("rootfs".into()),
            Root::Path(path) => (b"path".to_vec(), path),
            Root::Volume(path) => (b"volume".to_vec(), path),
        };
        for part in path.components() {
            let Component::Normal(part) = part else { continue };
            name.push(b'@');
            for byte in part.as_bytes() {
                if byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-') {
                    name.push(*byte);
                } else {
                    name.extend(format!("%{byte:02X}").bytes());
                }
            }
        }
        if name.len() > LONGEST {
            return Err(Error::Unfit {
                path: path.display().to_string(),
                problem: "the path is too long to be kept on its own: keep a directory above it".into(),
            });
        }
        Ok(OsString::from_vec(name))
    }

    /// The root that has this directory's name.
    #[must_use]
    pub fn of_dir_name(name: &str) -> Option<Root> {
        let mut parts = name.split('@');
        let kind = parts.next()?;
        let mut path = b"".to_vec();
        for part in parts {
            path.push(b'/');
            let mut bytes = part.bytes();
            while let Some(byte) = bytes.next() {
                path.push(if byte == b'%' {
                    let digits = [bytes.next()?, bytes.next()?];
                    u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
                } else {
                    byte
                });
            }
        }
        let path = PathBuf::from(OsString::from_vec(path));
        let found = match kind {
            "rootfs" => Root::Rootfs,
            "path" => Root::Path(path),
            "volume" => Root::Volume(path),
            _ => return None,
        };
        // One directory for one root: no second spelling.
        (found.dir_name().ok()?.to_str()? == name).then_some(found)
    }
}

/// The directories of one root.
#[derive(Debug, Clone)]
pub struct RootDir {
    /// Which it is.
    pub root: Root,
    dir: PathBuf,
}

impl RootDir {
    /// The overlay's upper directory.
    #[must_use]
    pub fn upper(&self) -> PathBuf {
        self.dir.join("upper")
    }

    /// The overlay's work directory.
    #[must_use]
    pub fn work(&self) -> PathBuf {
        self.dir.join("work")
    }

    /// Where the overlay of a path is mounted.
    #[must_use]
    pub fn merged(&self) -> PathBuf {
        self.dir.join("merged")
    }

    /// A directory that stays empty: the lower of a path that the image lacks.
    #[must_use]
    pub fn nothing(&self) -> PathBuf {
        self.dir.join("nothing")
    }

    /// What a volume holds.
    #[must_use]
    pub fn tree(&self) -> PathBuf {
        self.dir.join("tree")
    }

    pub(crate) fn placeholders(&self) -> PathBuf {
        self.dir.join("placeholders.json")
    }

    /// Makes the directories of an overlay; its top takes owner and mode of the image's.
    ///
    /// # Errors
    /// A full or read-only disk.
    pub fn prepare_overlay(&self, mode: u32, owner: (u32, u32)) -> Result<()> {
        let upper = self.upper();
        make(&self.work())?;
        if !upper.is_dir() {
            // Renamed into place when it is right: a crash in between leaves no `/` with a wrong owner.
            let fresh = self.dir.join("fresh");
            make(&fresh)?;
            std::os::unix::fs::chown(&fresh, Some(owner.0), Some(owner.1)).on("set the owner of", &fresh)?;
            let mode = std::fs::Permissions::from_mode(mode & 0o7777);
            std::fs::set_permissions(&fresh, mode).on("set the mode of", &fresh)?;
            std::fs::rename(&fresh, &upper).on("make", &upper)?;
        }
        if self.root != Root::Rootfs {
            make(&self.merged())?;
            make(&self.nothing())?;
        }
        Ok(())
    }

    /// Makes a volume's directory, filled once from what is in `like`, with its owner and mode.
    ///
    /// # Errors
    /// An entry that cannot be copied, a full or read-only disk.
    pub fn prepare_volume(&self, like: &Path) -> Result<PathBuf> {
        self.prepare_volume_seen(like, |source| Ok(open(source, tree::DIR, Mode::empty())?))
    }

    /// The same, filled from the directory that `see` opens: `like`, seen with other owners.
    ///
    /// # Errors
    /// Also those of `see`.
    pub fn prepare_volume_seen(
        &self,
        like: &Path,
        see: impl FnOnce(&Path) -> io::Result<OwnedFd>,
    ) -> Result<PathBuf> {
        let tree = self.tree();
        if !tree.is_dir() {
            let fresh = self.dir.join("fresh");
            // What a crash left is not known to be whole.
            match std::fs::remove_dir_all(&fresh) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e).on("remove", &fresh),
                _ => {}
            }
            make(&fresh)?;
            let source = std::fs::canonicalize(like).on("resolve", like)?;
            // A node's whole root, declared as a mount: the copy would copy itself.
            if fresh.starts_with(&source) {
                return Err(Error::Unfit {
                    path: self.root.destination().display().to_string(),
                    problem: format!(
                        "{} holds the live trees themselves: it cannot be kept in one of them",
                        source.display()
                    ),
                });
            }
            copy_dir(see(&source).on("look into", &source)?, &source, &fresh)?;
            // After a power cut there must not be the name without the content.
            let open = std::fs::File::open(&fresh).on("open", &fresh)?;
            nix::unistd::syncfs(&open).on("write to disk", &fresh)?;
            std::fs::rename(&fresh, &tree).on("make", &tree)?;
        }
        Ok(tree)
    }
}

impl State {
    /// The directories of one of its roots, whether or not they exist.
    ///
    /// # Errors
    /// A path that is too long.
    pub fn root(&self, root: &Root) -> Result<RootDir> {
        Ok(RootDir {
            dir: self.dir().join("roots").join(root.dir_name()?),
            root: root.clone(),
        })
    }

    /// Every root that it has, mounted in this life or not.
    #[must_use]
    pub fn roots(&self) -> Vec<RootDir> {
        let entries = std::fs::read_dir(self.dir().join("roots"))
            .into_iter()
            .flatten()
            .flatten();
        let mut found: Vec<RootDir> = entries
            .filter_map(|entry| {
                let root = Root::of_dir_name(entry.file_name().to_str()?)?;
                Some(RootDir {
                    root,
                    dir: entry.path(),
                })
            })
            .collect();
        found.sort_by(|a, b| a.root.cmp(&b.root));
        found
    }

    /// The roots that are overlays.
    pub(crate) fn overlays(&self) -> impl Iterator<Item = RootDir> {
        self.roots().into_iter().filter(|root| root.upper().is_dir())
    }
}

/// What is at `path` below `root` as a container with that root would find it: links cannot lead out. None where
/// nothing is. The file is open for looking only.
///
/// # Errors
/// A root that cannot be opened, a loop of links.
pub fn look_inside(root: &Path, path: &Path) -> Result<Option<File>> {
    let open = tree::open_dir(root)?;
    let below = path.strip_prefix("/").unwrap_or(path);
    match sys::open_in_root(open.as_fd(), below, libc::O_PATH, true) {
        Ok(found) => Ok(Some(found.into())),
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        Err(e) => Err(e).on("look in the container's root at", path),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_of_directories() {
        let name = |root: &Root| root.dir_name().unwrap().into_string().unwrap();
        assert_eq!(name(&Root::Rootfs), "rootfs");
        assert_eq!(name(&Root::Path("/etc/app".into())), "path@etc@app");
        assert_eq!(name(&Root::Volume("/a b@%".into())), "volume@a%20b%40%25");
        assert!(
            Root::Volume(format!("/{}", "x".repeat(300)).into())
                .dir_name()
                .is_err()
        );
        for unknown in ["", "other", "path%2F", "volume@a%2e", "rootfs@a", "path@%"] {
            assert_eq!(Root::of_dir_name(unknown), None, "{unknown:?}");
        }
    }

    #[test]
    fn a_volume_is_filled_once_and_never_with_itself() {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: a_volume_is_filled_once_and_never_with_itself needs root (trusted xattrs)");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let node = crate::Node::open(&dir.path().join("root")).unwrap();
        let state = node.state(&"ctr/default/web".parse().unwrap());
        let root = state.root(&Root::Volume("/data".into())).unwrap();
        let told = root.prepare_volume(dir.path()).unwrap_err().to_string();
        assert!(told.contains("live trees themselves"), "{told}");
        let image = dir.path().join("image");
        std::fs::create_dir(&image).unwrap();
        std::fs::write(image.join("seed"), b"one").unwrap();
        let tree = root.prepare_volume(&image).unwrap();
        std::fs::write(image.join("seed"), b"two").unwrap();
        assert_eq!(root.prepare_volume(&image).unwrap(), tree);
        assert_eq!(std::fs::read(tree.join("seed")).unwrap(), b"one");
        // What a crash left half-way is not taken for whole.
        let other = state.root(&Root::Volume("/other".into())).unwrap();
        std::fs::create_dir_all(other.tree().with_file_name("fresh/half")).unwrap();
        let tree = other.prepare_volume(&image).unwrap();
        assert!(!tree.join("half").exists() && tree.join("seed").exists());
    }

    proptest! {
        #[test]
        fn a_name_means_one_root(path in "(/[^/\\x00]{1,12}){1,6}") {
            prop_assume!(Path::new(&path).components().skip(1).all(|c| matches!(c, Component::Normal(_))));
            prop_assume!(!path.split('/').any(|part| part == "."));
            for root in [Root::Path(PathBuf::from(&path)), Root::Volume(PathBuf::from(&path))] {
                if let Ok(name) = root.dir_name() {
                    let name = name.into_string().unwrap();
                    prop_assert!(!name.contains('/'));
                    prop_assert_eq!(Root::of_dir_name(&name), Some(root));
                }
            }
        }

        #[test]
        fn never_panics(name: String) {
            let _ = Root::of_dir_name(&name);
        }
    }
}
