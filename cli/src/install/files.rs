//! Files that are there whole or not at all.

use std::{
    fs, io,
    io::Write,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use tempfile::NamedTempFile;

/// A file's bytes; `None` if there is none.
///
/// # Errors
/// Whatever else keeps it from being read. A link is refused: to replace it would leave its target as it was.
pub fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    match fs::symlink_metadata(path) {
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound) => return Ok(None),
        Err(e) => return Err(e).with_context(|| format!("read {}", path.display())),
        Ok(m) if m.is_symlink() => {
            let target = fs::read_link(path).unwrap_or_default();
            bail!(
                "{} is a link to {}: name the file itself (--containerd-config, --docker-config, --bin-dir)",
                path.display(),
                target.display()
            );
        }
        Ok(m) if !m.is_file() => bail!("{} is not a file", path.display()),
        Ok(_) => {}
    }
    fs::read(path)
        .map(Some)
        .with_context(|| format!("read {}", path.display()))
}

/// A file's new content, on the same disk and synced, one rename away from its place. Dropped, it leaves nothing.
pub struct Staged {
    file: NamedTempFile,
    path: PathBuf,
}

impl Staged {
    /// Mode and owner are those of the file that is replaced, or else `mode` and root.
    ///
    /// # Errors
    /// When the folder or its disk cannot be written to.
    pub fn new(path: &Path, bytes: &[u8], mode: u32) -> Result<Staged> {
        let stage = || -> io::Result<Staged> {
            let folder = path.parent().unwrap_or(Path::new("/"));
            // The name must not fit patterns such as `*.toml`, by which containerd imports.
            let mut file = tempfile::Builder::new()
                .prefix(".diffkeeper-")
                .suffix(".new")
                .tempfile_in(folder)?;
            file.write_all(bytes)?;
            match fs::metadata(path) {
                Ok(old) => {
                    let new = file.as_file().metadata()?;
                    if (new.uid(), new.gid()) != (old.uid(), old.gid()) {
                        std::os::unix::fs::fchown(file.as_file(), Some(old.uid()), Some(old.gid()))?;
                    }
                    file.as_file().set_permissions(old.permissions())?;
                }
                Err(_) => file.as_file().set_permissions(fs::Permissions::from_mode(mode))?,
            }
            file.as_file().sync_all()?;
            Ok(Staged {
                file,
                path: path.to_owned(),
            })
        };
        stage().with_context(|| unwritable(path))
    }

    /// Puts it in its place.
    ///
    /// # Errors
    /// When the folder refuses.
    pub fn commit(self) -> Result<()> {
        let Staged { file, path } = self;
        file.persist(&path)
            .map_err(|e| e.error)
            .and_then(|_| sync_folder(&path))
            .with_context(|| unwritable(&path))
    }
}

fn unwritable(path: &Path) -> String {
    format!(
        "write {}: are you root, and is its disk mounted for writing?",
        path.display()
    )
}

fn sync_folder(path: &Path) -> io::Result<()> {
    fs::File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

/// Copies a file beside itself, mode and owner too, under a name that is free: `config.toml.before-diffkeeper`.
///
/// # Errors
/// When the folder refuses.
pub fn back_up(path: &Path, bytes: &[u8], to: &Path) -> Result<()> {
    let staged = Staged::new(path, bytes, 0o600)?;
    Staged {
        path: to.to_owned(),
        ..staged
    }
    .commit()
}

/// Where a backup can go: never over an earlier one.
pub fn backup_name(path: &Path, taken: impl Fn(&Path) -> bool) -> PathBuf {
    let name = |n: u32| {
        let mut name = path.as_os_str().to_owned();
        name.push(".before-diffkeeper");
        if n > 1 {
            name.push(format!("-{n}"));
        }
        PathBuf::from(name)
    };
    let mut n = 1;
    while taken(&name(n)) {
        n += 1;
    }
    name(n)
}

/// Puts one file in the place of another, in the same folder.
///
/// # Errors
/// When the folder refuses.
pub fn put_back(backup: &Path, path: &Path) -> Result<()> {
    fs::rename(backup, path)
        .and_then(|()| sync_folder(path))
        .with_context(|| format!("put {} back as {}", backup.display(), path.display()))
}

/// Removes a file that may be gone already.
///
/// # Errors
/// When the folder refuses.
pub fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_committed_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        fs::write(&path, "old").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        drop(Staged::new(&path, b"new", 0o644).unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        Staged::new(&path, b"new", 0o644).unwrap().commit().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o640);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_link_is_refused_with_its_target() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        std::os::unix::fs::symlink("/nix/store/config.toml", &path).unwrap();
        let error = read(&path).unwrap_err().to_string();
        assert!(error.contains("/nix/store/config.toml"), "{error}");
    }

    #[test]
    fn backups_do_not_overwrite_each_other() {
        let path = Path::new("/etc/c.toml");
        assert_eq!(
            backup_name(path, |_| false),
            Path::new("/etc/c.toml.before-diffkeeper")
        );
        let first = |p: &Path| p == Path::new("/etc/c.toml.before-diffkeeper");
        assert_eq!(
            backup_name(path, first),
            Path::new("/etc/c.toml.before-diffkeeper-2")
        );
    }
}
