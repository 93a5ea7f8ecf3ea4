//! Overlays: containerd's, and the live tree's.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{
            ffi::{OsStrExt, OsStringExt},
            fs::MetadataExt,
        },
    },
    path::{Path, PathBuf},
};

use nix::mount::{MsFlags, mount};

pub use super::idmap::IdMaps;
use runtime_spec::mount::{RootfsMount, split_lower};

use super::{idmap, options::Parsed};
use crate::error::{Context, Error, Result};

/// mount(2) copies one page of options.
const LONGEST_DATA: usize = 4095;

/// The live tree's root.
#[derive(Debug)]
pub struct Overlay {
    /// Lower directories, the topmost first.
    pub lower: Vec<PathBuf>,
    /// The lower directories are seen through these mappings.
    pub lower_id_map: Option<IdMaps>,
    /// The upper directory.
    pub upper: PathBuf,
    /// The work directory, beside it.
    pub work: PathBuf,
    /// Upper and work are seen through these mappings: on disk are the container's own ids.
    pub upper_id_map: Option<IdMaps>,
    /// Further options.
    pub options: Vec<String>,
    /// Mounted read-only.
    pub readonly: bool,
    /// Where.
    pub target: PathBuf,
}

/// Mounts a live tree's overlay.
///
/// # Errors
/// A directory that is missing, or what the kernel refuses.
pub fn mount_overlay(o: &Overlay) -> Result<()> {
    let mut held = Vec::new();
    let lower = match &o.lower_id_map {
        Some(maps) => mapped(&o.lower, maps, &mut held)?,
        None => o.lower.clone(),
    };
    let (upper, work) = match &o.upper_id_map {
        Some(maps) => {
            let parent = o.upper.parent().unwrap_or(Path::new("/"));
            let clone = idmap::mapped_clone(parent, &idmap::user_namespace(&maps.with_host_root())?)?;
            let through = PathBuf::from(format!("/proc/self/fd/{}", clone.as_raw_fd()));
            held.push(clone);
            let name = |path: &Path| path.file_name().map(OsStr::to_owned).unwrap_or_default();
            (through.join(name(&o.upper)), through.join(name(&o.work)))
        }
        None => (o.upper.clone(), o.work.clone()),
    };
    let flags = if o.readonly {
        MsFlags::MS_RDONLY
    } else {
        MsFlags::empty()
    };
    let rest = [dir_option("upperdir=", &upper), dir_option("workdir=", &work)];
    mount_layers(&lower, &rest, &o.options, flags, &o.target)?;
    Ok(())
}

/// Mounts an overlay as containerd asked for it.
pub(super) fn mount_plain(m: &RootfsMount, target: &Path) -> Result<()> {
    let Parsed {
        flags,
        propagation,
        data,
        ..
    } = Parsed::of(&m.options);
    let (mut lower, mut uids, mut gids, mut others) = (Vec::new(), None, None, Vec::new());
    for option in data {
        match option.split_once('=') {
            Some(("lowerdir", dirs)) => lower = split_lower(dirs),
            Some(("uidmap", map)) => uids = Some(map.to_owned()),
            Some(("gidmap", map)) => gids = Some(map.to_owned()),
            _ => others.push(option),
        }
    }
    let mut held = Vec::new();
    if let (Some(uids), Some(gids)) = (&uids, &gids) {
        lower = mapped(&lower, &IdMaps::parse(uids, gids)?, &mut held)?;
    }
    mount_layers(&lower, &[], &others, flags, target)?;
    for flag in propagation {
        mount(None::<&str>, target, None::<&str>, flag, None::<&str>)
            .context(|| format!("set the propagation of {}", target.display()))?;
    }
    Ok(())
}

fn mapped(lower: &[PathBuf], maps: &IdMaps, held: &mut Vec<OwnedFd>) -> Result<Vec<PathBuf>> {
    let namespace = idmap::user_namespace(maps)?;
    lower
        .iter()
        .map(|dir| {
            let clone = idmap::mapped_clone(dir, &namespace)?;
            let path = format!("/proc/self/fd/{}", clone.as_raw_fd()).into();
            held.push(clone);
            Ok(path)
        })
        .collect()
}

fn mount_layers(
    lower: &[PathBuf],
    dirs: &[OsString],
    options: &[String],
    flags: MsFlags,
    target: &Path,
) -> Result<()> {
    let build = |lower: &[PathBuf]| {
        let layers = lower
            .iter()
            .map(|dir| escape(dir, b"\\,:"))
            .collect::<Vec<_>>()
            .join(&b':');
        let mut data = b"lowerdir=".to_vec();
        data.extend(layers);
        for option in dirs
            .iter()
            .map(|d| d.as_bytes())
            .chain(options.iter().map(|o| o.as_bytes()))
        {
            data.push(b',');
            data.extend_from_slice(option);
        }
        OsString::from_vec(data)
    };
    let mut data = build(lower);
    // Descriptors stand for long paths; they are needed only until the kernel has looked at them.
    let mut held = Vec::new();
    if data.len() > LONGEST_DATA {
        let mut short = Vec::with_capacity(lower.len());
        for dir in lower {
            let open = File::open(dir).context(|| format!("open the layer {}", dir.display()))?;
            short.push(PathBuf::from(format!("/proc/self/fd/{}", open.as_raw_fd())));
            held.push(open);
        }
        data = build(&short);
        if data.len() > LONGEST_DATA {
            return Err(Error::Other(format!(
                "{} layers do not fit into one overlay mount: squash the image",
                lower.len()
            )));
        }
    }
    mount(
        Some("overlay"),
        target,
        Some("overlay"),
        flags,
        Some(data.as_os_str()),
    )
    .context(|| {
        format!(
            "mount an overlay of {} layers on {} (the kernel's log says more: dmesg)",
            lower.len(),
            target.display()
        )
    })
}

fn dir_option(key: &str, dir: &Path) -> OsString {
    let mut option = key.as_bytes().to_vec();
    option.extend(escape(dir, b"\\,"));
    OsString::from_vec(option)
}

/// overlayfs reads `\` as an escape in its options.
fn escape(path: &Path, special: &[u8]) -> Vec<u8> {
    let mut escaped = Vec::new();
    for byte in path.as_os_str().as_bytes() {
        if special.contains(byte) {
            escaped.push(b'\\');
        }
        escaped.push(*byte);
    }
    escaped
}

/// Major and minor device number of the overlay mounted at `target`: its own for as long as it stands anywhere.
///
/// # Errors
/// When there is nothing.
pub fn overlay_device(target: &Path) -> Result<(u32, u32)> {
    let device = std::fs::metadata(target)
        .context(|| format!("look at {}", target.display()))?
        .dev();
    let number = |n: u64| u32::try_from(n).unwrap_or_default();
    Ok((
        number(nix::sys::stat::major(device)),
        number(nix::sys::stat::minor(device)),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn special_characters_are_escaped() {
        assert_eq!(escape(Path::new("/b:c,d\\e"), b"\\,:"), b"/b\\:c\\,d\\\\e");
    }
}
