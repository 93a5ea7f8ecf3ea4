//! Is an upper directory in use? Only the kernel knows: lazily unmounted mounts and other mount namespaces are in
//! no table.

use std::{
    fs::File,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::Path,
};

use nix::sys::stat::{Mode, mkdirat};

use crate::{
    error::{Context, Error, Result},
    sys::FsContext,
};

/// Whether any overlay of this kernel stands on `upper`.
///
/// An overlay is begun with `index=on`, for which the kernel insists on being alone, and with a work directory on
/// another file system, for which it refuses in any case: EBUSY says in use, EINVAL free. Nothing is ever
/// mounted and the upper is left as it was. The other file system is a tmpfs that no namespace sees.
///
/// # Errors
/// Any other answer of the kernel.
pub fn in_use(upper: &Path) -> Result<bool> {
    let ask = || -> std::io::Result<std::io::Result<()>> {
        let tmpfs = FsContext::open(c"tmpfs")?;
        tmpfs.create()?;
        let scratch = tmpfs.mount()?;
        for dir in ["work", "lower"] {
            mkdirat(scratch.as_fd(), dir, Mode::S_IRWXU)?;
        }
        // By descriptor: fsconfig takes no long paths.
        let upper = File::open(upper)?;
        let overlay = FsContext::open(c"overlay")?;
        overlay.set(
            c"lowerdir",
            &format!("/proc/self/fd/{}/lower", scratch.as_raw_fd()),
        )?;
        overlay.set(c"upperdir", &format!("/proc/self/fd/{}", upper.as_raw_fd()))?;
        overlay.set(c"workdir", &format!("/proc/self/fd/{}/work", scratch.as_raw_fd()))?;
        overlay.set(c"index", "on")?;
        Ok(overlay.create())
    };
    match ask().on("ask the kernel about", upper)? {
        Err(e) if e.raw_os_error() == Some(libc::EBUSY) => Ok(true),
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => Ok(false),
        Err(source) => Err(Error::Io {
            context: format!("ask the kernel whether {} is in use", upper.display()),
            source,
        }),
        Ok(()) => Err(Error::Io {
            context: format!("ask the kernel whether {} is in use", upper.display()),
            source: std::io::Error::other("it accepted an overlay across two file systems"),
        }),
    }
}

/// An overlay of `lower`, `upper` and `work` in a directory, mounted nowhere: it goes when this is closed.
///
/// # Errors
/// What the kernel says against it.
pub fn overlay_of(dir: &Path) -> Result<OwnedFd> {
    let make = || -> std::io::Result<OwnedFd> {
        // By descriptor: fsconfig takes no long paths.
        let of = File::open(dir)?;
        let overlay = FsContext::open(c"overlay")?;
        for (key, name) in [
            (c"lowerdir", "lower"),
            (c"upperdir", "upper"),
            (c"workdir", "work"),
        ] {
            overlay.set(key, &format!("/proc/self/fd/{}/{name}", of.as_raw_fd()))?;
        }
        overlay.create()?;
        overlay.mount()
    };
    make().on("make an overlay of", dir)
}

#[cfg(test)]
mod tests {
    use nix::mount::{MntFlags, MsFlags, mount, umount2};

    use super::*;

    #[test]
    fn free_mounted_and_lazily_unmounted() {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: free_mounted_and_lazily_unmounted needs root (mounts)");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["upper", "work", "lower", "merged"] {
            std::fs::create_dir(at(name)).unwrap();
        }
        assert!(!in_use(&at("upper")).unwrap());
        let data = format!(
            "lowerdir={},upperdir={},workdir={},index=off",
            at("lower").display(),
            at("upper").display(),
            at("work").display()
        );
        mount(
            Some("overlay"),
            &at("merged"),
            Some("overlay"),
            MsFlags::empty(),
            Some(data.as_str()),
        )
        .unwrap();
        assert!(in_use(&at("upper")).unwrap());
        let held = File::create(at("merged").join("file")).unwrap();
        umount2(&at("merged"), MntFlags::MNT_DETACH).unwrap();
        assert!(
            in_use(&at("upper")).unwrap(),
            "a lazily unmounted overlay is in use while a file in it is open"
        );
        drop(held);
        // The superblock goes in the background.
        let gone = (0..200).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(10));
            !in_use(&at("upper")).unwrap()
        });
        assert!(gone);
        let names: Vec<_> = std::fs::read_dir(at("upper"))
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(names, ["file"], "the probe left something behind");
    }
}
