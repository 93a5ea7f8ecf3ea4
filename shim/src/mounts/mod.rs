//! Root filesystem mounts: containerd's, as the stock shim does them, and the live tree's overlay.

mod idmap;
mod info;
mod loopdev;
mod options;
mod overlay;
mod sys;

use std::path::{Component, Path, PathBuf};

use containerd_shim_protos::types;
use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
};
use runtime_spec::mount::RootfsMount;

pub use idmap::{mapped_clone, user_namespace};
pub use info::{MountInfo, mounts_under};
pub use overlay::{IdMaps, Overlay, mount_overlay, overlay_device};

use crate::error::{Context, Error, Result};
use loopdev::LoopDevice;
use options::Parsed;

/// One mount as containerd asks for it.
#[must_use]
pub fn requested(m: &types::mount::Mount) -> RootfsMount {
    RootfsMount {
        kind: m.type_.clone(),
        source: m.source.clone(),
        target: m.target.clone(),
        options: m.options.clone(),
    }
}

/// Mounts all, in order; on failure what was mounted is unmounted again.
///
/// # Errors
/// The first mount that fails.
pub fn mount_all(mounts: &[RootfsMount], target: &Path) -> Result<()> {
    for (done, m) in mounts.iter().enumerate() {
        if let Err(error) = mount_one(m, target) {
            for m in mounts.iter().take(done).rev() {
                // The first failure is the one to tell.
                let _ = place(m, target).and_then(|at| unmount_recursive(&at));
            }
            return Err(error);
        }
    }
    Ok(())
}

/// The place below `root` that a mount's own target names, never outside it.
fn place(m: &RootfsMount, root: &Path) -> Result<PathBuf> {
    let mut at = root.to_owned();
    for part in Path::new(&m.target).components() {
        match part {
            Component::Normal(name) => at.push(name),
            Component::RootDir | Component::CurDir => {}
            _ => {
                return Err(Error::InvalidArgument(format!(
                    "mount target {:?} leaves the root filesystem",
                    m.target
                )));
            }
        }
        if at.is_symlink() {
            return Err(Error::InvalidArgument(format!(
                "mount target {} is a symlink",
                at.display()
            )));
        }
    }
    Ok(at)
}

fn mount_one(m: &RootfsMount, root: &Path) -> Result<()> {
    let target = place(m, root)?;
    let what = || format!("mount {} ({}) on {}", m.source, m.kind, target.display());
    if m.kind == "overlay" {
        return overlay::mount_plain(m, &target);
    }
    let Parsed {
        flags,
        propagation,
        mut data,
        loop_device,
    } = Parsed::of(&m.options);
    // Open until the mount stands: until then nothing else keeps the device bound.
    let device = if loop_device {
        let direct = data.iter().any(|option| option == "direct-io");
        data.retain(|option| option != "direct-io");
        let readonly = flags.contains(MsFlags::MS_RDONLY);
        Some(
            LoopDevice::new(Path::new(&m.source), readonly, direct)
                .map_err(|e| Error::Other(format!("{}: {e}", what())))?,
        )
    } else {
        None
    };
    let source = device
        .as_ref()
        .map_or(Path::new(&m.source), |device| &device.path);
    let bind = flags.contains(MsFlags::MS_BIND);
    let first = if bind {
        flags & (MsFlags::MS_BIND | MsFlags::MS_REC)
    } else {
        flags
    };
    let data = (!data.is_empty()).then(|| data.join(","));
    let kind = (!bind).then_some(m.kind.as_str());
    mount(Some(source), &target, kind, first, data.as_deref()).context(what)?;
    let rest = || -> nix::Result<()> {
        for flag in &propagation {
            mount(None::<&str>, &target, None::<&str>, *flag, None::<&str>)?;
        }
        // A bind mount takes other flags only when it is mounted again.
        if bind && !flags.difference(MsFlags::MS_BIND | MsFlags::MS_REC).is_empty() {
            mount(
                None::<&str>,
                &target,
                None::<&str>,
                flags | MsFlags::MS_REMOUNT,
                None::<&str>,
            )?;
        }
        Ok(())
    };
    rest().map_err(|errno| {
        let _ = umount2(&target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
        Error::Io {
            context: what(),
            source: errno.into(),
        }
    })
}

/// Unmounts everything at and below `target`, stacked mounts too. What is not mounted, or not there, is done.
///
/// # Errors
/// A mount that is busy even for a lazy unmount.
pub fn unmount_recursive(target: &Path) -> Result<()> {
    // The common case is one mount and nothing below it: no need to read the whole table.
    match umount2(target, MntFlags::UMOUNT_NOFOLLOW) {
        Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(()),
        Err(Errno::EINVAL) if mounts_under(target)?.is_empty() => return Ok(()),
        _ => {}
    }
    // Later mounts stand on earlier ones.
    for mount in mounts_under(target)?.iter().rev() {
        let gone = match umount2(&mount.target, MntFlags::UMOUNT_NOFOLLOW) {
            Err(Errno::EBUSY) => umount2(&mount.target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW),
            other => other,
        };
        match gone {
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
            Err(errno) => {
                return Err(Error::Io {
                    context: format!("unmount {}", mount.target.display()),
                    source: errno.into(),
                });
            }
        }
    }
    Ok(())
}

/// Unmounts the overlay with this device number from the top of what is mounted at `target`, and nothing else: below it
/// is an engine's own.
///
/// # Errors
/// A mount that is busy even for a lazy unmount.
pub fn unmount_device(target: &Path, device: (u32, u32)) -> Result<()> {
    while overlay_device(target).is_ok_and(|there| there == device) {
        let gone = match umount2(target, MntFlags::UMOUNT_NOFOLLOW) {
            Err(Errno::EBUSY) => umount2(target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW),
            other => other,
        };
        gone.context(|| format!("unmount {}", target.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_stay_inside() {
        let m = |target: &str| RootfsMount {
            target: target.into(),
            ..RootfsMount::default()
        };
        assert_eq!(place(&m(""), Path::new("/r")).unwrap(), Path::new("/r"));
        assert_eq!(place(&m("/a/b"), Path::new("/r")).unwrap(), Path::new("/r/a/b"));
        assert!(place(&m("../x"), Path::new("/r")).is_err());
    }
}
