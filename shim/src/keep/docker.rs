//! Docker's record of a container, on the disk.

use std::path::{Path, PathBuf};

use runtime_spec::{
    bundle::{Bundle, Mount},
    docker::{Record, is_namespace},
    mount::RootfsMount,
};

use crate::{
    error::{Context, Result},
    mounts,
};

/// A container of Docker's.
pub(super) struct Docker {
    /// What Docker recorded of it.
    pub record: Record,
    /// Docker's directory of all containers' records.
    containers: PathBuf,
    id: String,
}

impl Docker {
    /// Finds the record, beside the driver's directory that holds the container's root. None for other engines, and
    /// where Docker's records are elsewhere: whoever asks then leaves the container alone.
    ///
    /// # Errors
    /// A record that is there and does not parse.
    pub fn find(bundle: &Bundle, namespace: &str, id: &str) -> Result<Option<Docker>> {
        let one_name = Path::new(id).file_name().is_some_and(|name| name == id);
        if !is_namespace(namespace) || !one_name {
            return Ok(None);
        }
        let above = bundle.root.path.ancestors().skip(1);
        let mut places = above.map(|dir| dir.join("containers"));
        let Some(containers) = places.find(|dir| dir.join(id).join("config.v2.json").is_file()) else {
            return Ok(None);
        };
        let read = |name: &str| {
            let file = containers.join(id).join(name);
            std::fs::read(&file).context(|| format!("read Docker's record {}", file.display()))
        };
        let record = Record::parse(&read("config.v2.json")?, &read("hostconfig.json")?)?;
        Ok(Some(Docker {
            record,
            containers,
            id: id.to_owned(),
        }))
    }

    /// Whether this mount is a volume that Docker made for the image's `VOLUME`, for this container alone.
    pub fn is_image_volume(&self, mount: &Mount) -> bool {
        let found = self.record.anonymous.iter().find(|volume| {
            let tail = Path::new("volumes").join(&volume.name).join("_data");
            volume.destination == mount.destination && mount.source.ends_with(tail)
        });
        found.is_some_and(|volume| !self.is_used_by_another(&volume.name))
    }

    /// Whether another container's record names the volume: then it is not this one's alone, whoever made it.
    fn is_used_by_another(&self, volume: &str) -> bool {
        let Ok(entries) = std::fs::read_dir(&self.containers) else {
            return true;
        };
        let others = entries
            .flatten()
            .filter(|entry| entry.file_name() != self.id.as_str());
        let mut records = others.filter_map(|entry| std::fs::read(entry.path().join("config.v2.json")).ok());
        records.any(|record| record.windows(volume.len()).any(|part| part == volume.as_bytes()))
    }
}

/// The overlay that an engine mounted itself, as containerd would have asked for it. None where something else is
/// mounted there, or nothing.
pub(super) fn mounted_by_engine(root: &Path) -> Result<Option<RootfsMount>> {
    let at = mounts::mounts_under(root)?;
    let Some(top) = at.iter().rfind(|m| m.target == root && m.kind == "overlay") else {
        return Ok(None);
    };
    // overlay2 mounts from its home directory, with short relative paths.
    let home = root.parent().and_then(Path::parent).unwrap_or(Path::new("/"));
    let absolute = |dirs: &str| {
        let dirs = dirs
            .split(':')
            .map(|dir| home.join(dir).to_string_lossy().into_owned());
        dirs.collect::<Vec<_>>().join(":")
    };
    let mut lower = Vec::new();
    let mut options = Vec::new();
    for option in top.options.split(',') {
        match option.split_once('=') {
            Some(("lowerdir" | "lowerdir+", dirs)) => lower.push(absolute(dirs)),
            Some((key @ ("upperdir" | "workdir"), dir)) => options.push(format!("{key}={}", absolute(dir))),
            _ => {}
        }
    }
    options.push(format!("lowerdir={}", lower.join(":")));
    Ok(Some(RootfsMount {
        kind: "overlay".into(),
        source: "overlay".into(),
        options,
        ..RootfsMount::default()
    }))
}
