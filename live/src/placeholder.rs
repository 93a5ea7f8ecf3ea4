//! Mount targets. The runtime makes those that the image lacks, in the live tree; kept, they would hide a newer
//! image's files, so they are noted before and removed after. Targets that a life left with a type that the mount
//! does not fit are set aside.

use std::{
    ffi::OsString,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::ffi::{OsStrExt, OsStringExt},
    },
    path::{Component, Path, PathBuf},
};

use nix::{
    fcntl::{AT_FDCWD, renameat},
    sys::stat::{FileStat, Mode, SFlag, fstat, mknodat},
    unistd::{UnlinkatFlags, unlinkat},
};
use serde::{Deserialize, Serialize};

use crate::{
    error::{Context, Result},
    layout::make,
    root::RootDir,
    state::{State, read_json, write_json},
    sys, tree,
};

/// What a mount's target has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// A directory that is not reached through a link at its end.
    RealDirectory,
    /// A directory.
    Directory,
    /// Anything else than a directory.
    File,
}

/// A target whose type no longer fits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Misfit {
    /// What is in the way, below the upper.
    pub path: PathBuf,
}

/// `placeholders.json`: what the runtime is about to make.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Placeholders {
    /// Not there before; parents first.
    #[serde(with = "paths")]
    made: Vec<PathBuf>,
    /// Those of them that the container had deleted from the image: the whiteout must come back.
    #[serde(with = "paths", default)]
    deleted: Vec<PathBuf>,
    /// Directories of the image that the making copies up, with the mode and owner they have there; parents
    /// first.
    copied_up: Vec<CopiedUp>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct CopiedUp {
    #[serde(with = "path")]
    path: PathBuf,
    mode: u32,
    uid: u32,
    gid: u32,
}

/// A path as text, or as its bytes where it is none: a container chooses the names.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Written {
    Text(String),
    Bytes(Vec<u8>),
}

impl From<&PathBuf> for Written {
    fn from(path: &PathBuf) -> Written {
        match path.to_str() {
            Some(text) => Written::Text(text.to_owned()),
            None => Written::Bytes(path.as_os_str().as_bytes().to_owned()),
        }
    }
}

impl From<Written> for PathBuf {
    fn from(written: Written) -> PathBuf {
        match written {
            Written::Text(text) => text.into(),
            Written::Bytes(bytes) => OsString::from_vec(bytes).into(),
        }
    }
}

mod path {
    use super::{Deserialize, PathBuf, Serialize, Written};

    pub fn serialize<S: serde::Serializer>(path: &PathBuf, to: S) -> Result<S::Ok, S::Error> {
        Written::from(path).serialize(to)
    }

    pub fn deserialize<'de, D: serde::Deserializer<'de>>(from: D) -> Result<PathBuf, D::Error> {
        Written::deserialize(from).map(PathBuf::from)
    }
}

mod paths {
    use super::{Deserialize, PathBuf, Written};

    pub fn serialize<S: serde::Serializer>(paths: &[PathBuf], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(paths.iter().map(Written::from))
    }

    pub fn deserialize<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Vec<PathBuf>, D::Error> {
        let written = Vec::<Written>::deserialize(from)?;
        Ok(written.into_iter().map(PathBuf::from).collect())
    }
}

fn is_dir(stat: &FileStat) -> bool {
    stat.st_mode & libc::S_IFMT == libc::S_IFDIR
}

fn is_link(stat: &FileStat) -> bool {
    stat.st_mode & libc::S_IFMT == libc::S_IFLNK
}

fn is_whiteout(stat: &FileStat) -> bool {
    stat.st_mode & libc::S_IFMT == libc::S_IFCHR && stat.st_rdev == 0
}

/// The mounted root, as the container will see it.
struct Merged {
    root: OwnedFd,
    at: PathBuf,
}

impl Merged {
    fn look(&self, path: &Path, follow_last: bool) -> Option<(OwnedFd, FileStat)> {
        let fd = sys::open_in_root(self.root.as_fd(), path, libc::O_PATH, follow_last).ok()?;
        let stat = fstat(&fd).ok()?;
        Some((fd, stat))
    }

    /// Where an open entry is below the root, links resolved.
    fn place(&self, fd: &OwnedFd) -> Option<PathBuf> {
        let path = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).ok()?;
        path.strip_prefix(&self.at).ok().map(Path::to_owned)
    }
}

impl RootDir {
    /// Looks at the mounted overlay before the runtime does: notes what it will have to make, and answers with what
    /// is in its way. `merged` is where this root's overlay is mounted; targets outside of the root are not its.
    ///
    /// # Errors
    /// A root that cannot be opened, a record that cannot be written.
    pub fn note_targets(&self, merged: &Path, targets: &[(PathBuf, Want)]) -> Result<Vec<Misfit>> {
        let at = std::fs::canonicalize(merged).on("resolve", merged)?;
        let merged = Merged {
            root: tree::open_dir(&at)?,
            at,
        };
        let upper = tree::open_dir(&self.upper())?;
        let mut notes = Placeholders::default();
        let mut misfits = Vec::new();
        for (target, want) in targets {
            match target.strip_prefix(self.root.destination()) {
                Ok(below) if below != Path::new("") => {
                    note(&merged, &upper, below, *want, &mut notes, &mut misfits);
                }
                _ => {}
            }
        }
        if misfits.is_empty() && notes != Placeholders::default() {
            write_json(&self.placeholders(), &notes)?;
        }
        Ok(misfits)
    }

    /// Moves what is in a mount's way out of the upper, into `aside`. Nothing may be mounted on it. What is the
    /// image's own is left, and the runtime will say what it thinks of it.
    ///
    /// # Errors
    /// An entry that cannot be renamed.
    pub fn set_aside_misfits(&self, misfits: &[Misfit], aside: &Path) -> Result<Vec<PathBuf>> {
        let upper = tree::open_dir(&self.upper())?;
        let mut moved = Vec::new();
        for (n, misfit) in misfits.iter().enumerate() {
            let Some((dir, name)) = tree::parent_of(&upper, &misfit.path) else {
                continue;
            };
            if tree::entry(&dir, name).is_none() {
                continue;
            }
            make(aside)?;
            let mut to = OsString::from(format!("{n}-"));
            to.push(name);
            let to = aside.join(to);
            renameat(&dir, name, AT_FDCWD, &to).on("set aside", &misfit.path)?;
            moved.push(to);
        }
        Ok(moved)
    }

    fn remove_placeholders(&self) -> Result<()> {
        let file = self.placeholders();
        let Some(notes) = read_json::<Placeholders>(&file) else {
            return Ok(());
        };
        let upper = tree::open_dir(&self.upper())?;
        for path in notes.made.iter().rev() {
            let Some((dir, name)) = tree::parent_of(&upper, path) else {
                continue;
            };
            let Some(stat) = tree::entry(&dir, name) else {
                continue;
            };
            let how = if is_dir(&stat) {
                UnlinkatFlags::RemoveDir
            } else if stat.st_mode & libc::S_IFMT == libc::S_IFREG && stat.st_size == 0 {
                UnlinkatFlags::NoRemoveDir
            } else {
                continue;
            };
            // A directory that somebody filled stays.
            if unlinkat(&dir, name, how).is_ok() && notes.deleted.contains(path) {
                mknodat(&dir, name, SFlag::S_IFCHR, Mode::empty(), 0).on("delete again", path)?;
            }
        }
        for copy in notes.copied_up.iter().rev() {
            let Some((dir, name)) = tree::parent_of(&upper, &copy.path) else {
                continue;
            };
            let Some(stat) = tree::entry(&dir, name).filter(is_dir) else {
                continue;
            };
            let unchanged =
                (stat.st_mode & 0o7777, stat.st_uid, stat.st_gid) == (copy.mode, copy.uid, copy.gid);
            if unchanged && !marked(&upper, &copy.path) {
                // Again: only if it is empty.
                let _ = unlinkat(&dir, name, UnlinkatFlags::RemoveDir);
            }
        }
        std::fs::remove_file(&file).on("remove", &file)
    }
}

impl State {
    /// Removes what the runtime made for its mounts and nobody filled. Nothing may be mounted on the uppers.
    ///
    /// # Errors
    /// A record that cannot be removed.
    pub fn remove_placeholders(&self) -> Result<()> {
        self.overlays().try_for_each(|root| root.remove_placeholders())
    }
}

/// Whether a directory carries more than a copy-up gives it: opaque, or attributes of the container's.
fn marked(upper: &OwnedFd, path: &Path) -> bool {
    let ours = |name: &[u8]| {
        name != b"trusted.overlay.origin" && name != b"trusted.overlay.impure" && name != b"security.selinux"
    };
    let opened = sys::open_in_root(upper.as_fd(), path, libc::O_RDONLY | libc::O_DIRECTORY, false);
    opened
        .and_then(|fd| sys::has_xattr(fd.as_fd(), ours))
        .unwrap_or(true)
}

fn note(
    merged: &Merged,
    upper: &OwnedFd,
    target: &Path,
    want: Want,
    notes: &mut Placeholders,
    misfits: &mut Vec<Misfit>,
) {
    let relative: PathBuf = target
        .components()
        .filter(|c| matches!(c, Component::Normal(_)))
        .collect();
    if let Some((fd, stat)) = merged.look(&relative, want != Want::RealDirectory) {
        let fits = match want {
            Want::RealDirectory | Want::Directory => is_dir(&stat),
            Want::File => !is_dir(&stat),
        };
        if !fits {
            // A link's own place is the path to it; anything else is where the links led.
            let place = if is_link(&stat) {
                Some(relative)
            } else {
                merged.place(&fd)
            };
            misfits.extend(place.map(|path| Misfit { path }));
        }
        return;
    }
    // The deepest part that is there decides what is missing.
    let mut known = PathBuf::new();
    let mut parts: Vec<_> = relative.iter().collect();
    let mut missing = Vec::new();
    while let Some(part) = parts.pop() {
        missing.insert(0, part.to_owned());
        let above: PathBuf = parts.iter().collect();
        let look = if above.as_os_str().is_empty() {
            PathBuf::from(".")
        } else {
            above
        };
        let Some((fd, stat)) = merged.look(&look, true) else {
            continue;
        };
        let Some(place) = merged.place(&fd) else { return };
        if !is_dir(&stat) {
            misfits.push(Misfit { path: place });
            return;
        }
        known = place;
        break;
    }
    // There is something, yet nothing to be reached: links in a circle.
    let first: PathBuf = known
        .iter()
        .chain(missing.first().map(OsString::as_os_str))
        .collect();
    if sys::open_in_root(merged.root.as_fd(), &first, libc::O_PATH, true)
        .is_err_and(|e| e.raw_os_error() == Some(libc::ELOOP))
    {
        misfits.push(Misfit { path: first });
        return;
    }
    // Parents that only the image has are copied up when something is made below them.
    let mut above = PathBuf::new();
    for part in known.iter() {
        above.push(part);
        let in_upper =
            tree::parent_of(upper, &above).is_some_and(|(dir, name)| tree::entry(&dir, name).is_some());
        if !in_upper
            && !notes.copied_up.iter().any(|c| c.path == above)
            && !notes.made.contains(&above)
            && let Some((_, stat)) = merged.look(&above, false)
        {
            let (mode, uid, gid) = (stat.st_mode & 0o7777, stat.st_uid, stat.st_gid);
            notes.copied_up.push(CopiedUp {
                path: above.clone(),
                mode,
                uid,
                gid,
            });
        }
    }
    let mut missing = missing.into_iter().peekable();
    // Parents stand before what is in them: after the first that is new, all are.
    while let Some(part) = missing.peek()
        && notes.made.contains(&known.join(part))
    {
        known.extend(missing.next());
    }
    if let Some(part) = missing.peek() {
        let first = known.join(part);
        if tree::parent_of(upper, &first)
            .and_then(|(dir, name)| tree::entry(&dir, name))
            .is_some_and(|stat| is_whiteout(&stat))
        {
            notes.deleted.push(first);
        }
    }
    for part in missing {
        known.push(part);
        notes.made.push(known.clone());
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use nix::mount::{MntFlags, MsFlags, mount, umount2};

    use super::*;
    use crate::Node;

    struct Mounted(PathBuf);

    impl Drop for Mounted {
        fn drop(&mut self) {
            let _ = umount2(&self.0, MntFlags::MNT_DETACH);
        }
    }

    fn mounted(state: &RootDir, dir: &Path) -> Mounted {
        let merged = dir.join("merged");
        let data = format!(
            "lowerdir={},upperdir={},workdir={},index=off",
            dir.join("image").display(),
            state.upper().display(),
            state.work().display()
        );
        mount(
            Some("overlay"),
            &merged,
            Some("overlay"),
            MsFlags::empty(),
            Some(data.as_str()),
        )
        .unwrap();
        Mounted(merged)
    }

    fn setup(dir: &Path) -> Option<RootDir> {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: placeholders need root (mounts)");
            return None;
        }
        for made in ["image/etc", "image/proc", "merged"] {
            std::fs::create_dir_all(dir.join(made)).unwrap();
        }
        let node = Node::open(&dir.join("root")).unwrap();
        let state = node.state(&"ctr/default/web".parse().unwrap());
        let root = state.root(&crate::Root::Rootfs).unwrap();
        root.prepare_overlay(0o755, (0, 0)).unwrap();
        Some(root)
    }

    #[test]
    fn what_the_runtime_makes_goes_again() {
        let dir = tempfile::tempdir().unwrap();
        let Some(state) = setup(dir.path()) else { return };
        let targets = [
            ("/etc/app/conf", Want::File),
            ("/data", Want::Directory),
            ("/used", Want::Directory),
            ("/proc", Want::RealDirectory),
        ]
        .map(|(path, want)| (PathBuf::from(path), want));
        {
            let m = mounted(&state, dir.path());
            assert_eq!(state.note_targets(&m.0, &targets).unwrap(), []);
            // As runc does.
            std::fs::create_dir_all(m.0.join("etc/app")).unwrap();
            std::fs::write(m.0.join("etc/app/conf"), b"").unwrap();
            std::fs::create_dir(m.0.join("data")).unwrap();
            std::fs::create_dir(m.0.join("used")).unwrap();
            std::fs::write(m.0.join("used/file"), b"x").unwrap();
        }
        state.remove_placeholders().unwrap();
        let left: Vec<_> = std::fs::read_dir(state.upper())
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(
            left,
            ["used"],
            "all but what was used is gone, the copied-up /etc too"
        );
        state.remove_placeholders().unwrap();
    }

    #[test]
    fn what_is_in_the_way_is_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let Some(state) = setup(dir.path()) else { return };
        let upper = state.upper();
        std::fs::write(upper.join("data"), b"was a file").unwrap();
        std::fs::create_dir(upper.join("conf")).unwrap();
        symlink("/etc", upper.join("proc")).unwrap();
        symlink("/", upper.join("escape")).unwrap();
        let targets = [
            ("/data/sub", Want::Directory),
            ("/conf", Want::File),
            ("/proc", Want::RealDirectory),
            ("/escape/x/y", Want::File),
        ]
        .map(|(path, want)| (PathBuf::from(path), want));
        let misfits = {
            let m = mounted(&state, dir.path());
            state.note_targets(&m.0, &targets).unwrap()
        };
        let paths: Vec<_> = misfits.iter().map(|m| m.path.to_str().unwrap()).collect();
        assert_eq!(paths, ["data", "conf", "proc"]);
        let moved = state
            .set_aside_misfits(&misfits, &dir.path().join("aside"))
            .unwrap();
        assert_eq!(moved.len(), 3);
        assert_eq!(std::fs::read(&moved[0]).unwrap(), b"was a file");
        let m = mounted(&state, dir.path());
        assert_eq!(state.note_targets(&m.0, &targets).unwrap(), []);
        assert!(m.0.join("proc").is_dir());
    }
}
