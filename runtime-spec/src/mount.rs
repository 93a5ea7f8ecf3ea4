//! The plan of a kept root: containerd's mounts with the state's upper in place of the snapshot's.

use std::path::{Path, PathBuf};

use crate::{Error, bundle::Bundle};

/// One of the mounts that containerd asks for as root file system.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RootfsMount {
    /// The file system's type, or `bind`.
    pub kind: String,
    /// What is mounted.
    pub source: String,
    /// Where below the root; usually empty.
    pub target: String,
    /// As in fstab.
    pub options: Vec<String>,
}

/// What the shim mounts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RootPlan {
    /// Lower directories, the topmost first; none where the root itself is the lower, once `before` is mounted.
    pub lower: Vec<PathBuf>,
    /// containerd's own upper directory: goes on top of the lower ones unless it is empty.
    pub engine_upper: Option<PathBuf>,
    /// `uidmap` and `gidmap` of the lower directories, as containerd spells them.
    pub lower_id_map: Option<(String, String)>,
    /// The overlay's further options.
    pub options: Vec<String>,
    /// Mounted read-only.
    pub readonly: bool,
    /// What is mounted before the overlay.
    pub before: Vec<RootfsMount>,
    /// What is mounted after it.
    pub after: Vec<RootfsMount>,
}

/// Options of ours. An upper that will meet other lower layers must not use these features.
const OURS: [&str; 4] = ["index=off", "metacopy=off", "redirect_dir=nofollow", "xino=off"];
/// Inherited options that ours replace, or that would break a promise (`volatile` drops fsync).
const DROPPED: [&str; 8] = [
    "index",
    "metacopy",
    "redirect_dir",
    "xino",
    "nfs_export",
    "volatile",
    "verity",
    "fsync",
];

impl RootPlan {
    /// Plans the root. Without mounts (`--rootfs`) the bundle's own root directory is the lower.
    ///
    /// # Errors
    /// A mount that is not yet resolved, or a list without anything that can be the root.
    pub fn new(mounts: &[RootfsMount], own_root: &Path) -> Result<RootPlan, Error> {
        for m in mounts {
            refuse_template(m)?;
        }
        let mut plan = RootPlan {
            options: OURS.map(str::to_owned).to_vec(),
            ..RootPlan::default()
        };
        if mounts.is_empty() {
            plan.lower.push(own_root.to_owned());
            return Ok(plan);
        }
        let overlay = mounts.iter().position(|m| m.kind == "overlay");
        let bind = || mounts.iter().position(|m| m.target.is_empty() && is_bind(m));
        let Some(at) = overlay.or_else(bind) else {
            plan.stand_on(mounts)?;
            return Ok(plan);
        };
        let (before, rest) = mounts.split_at(at);
        if let Some((root, after)) = rest.split_first() {
            plan.before = before.to_vec();
            plan.after = after.to_vec();
            plan.read(root)?;
        }
        Ok(plan)
    }

    /// A plan whose one lower is this directory.
    #[must_use]
    pub fn standing_on(lower: PathBuf) -> RootPlan {
        RootPlan {
            lower: vec![lower],
            options: OURS.map(str::to_owned).to_vec(),
            ..RootPlan::default()
        }
    }

    /// A snapshotter with a disk for each container (blockfile, devmapper, btrfs): it is mounted read-only where the
    /// root will be, and the overlay on it.
    fn stand_on(&mut self, mounts: &[RootfsMount]) -> Result<(), Error> {
        let at = mounts.iter().position(|m| m.target.is_empty());
        let (mut before, after) = mounts.split_at(at.map_or(0, |at| at + 1));
        let Some((root, first)) = before.split_last() else {
            return Err(Error::Mount(
                "none of the mounts that containerd asks for is the root's".into(),
            ));
        };
        before = first;
        self.before = before.to_vec();
        self.before.push(RootfsMount {
            options: root.options.iter().cloned().chain(["ro".to_owned()]).collect(),
            ..root.clone()
        });
        self.after = after.to_vec();
        self.readonly = last_of(&root.options, "ro", "rw");
        Ok(())
    }

    fn read(&mut self, root: &RootfsMount) -> Result<(), Error> {
        if is_bind(root) {
            self.lower.push(PathBuf::from(&root.source));
            self.readonly = last_of(&root.options, "ro", "rw");
            return Ok(());
        }
        let (mut uids, mut gids) = (None, None);
        for option in &root.options {
            let (key, value) = option.split_once('=').unwrap_or((option, ""));
            match key {
                "lowerdir" => self.lower = split_lower(value),
                "upperdir" => self.engine_upper = Some(PathBuf::from(unescape(value))),
                "workdir" | "ro" | "rw" => {}
                "uidmap" => uids = Some(value.to_owned()),
                "gidmap" => gids = Some(value.to_owned()),
                _ if DROPPED.contains(&key) || key.starts_with("X-containerd.") => {}
                _ => self.options.push(option.clone()),
            }
        }
        self.lower_id_map = uids.zip(gids);
        self.readonly = last_of(&root.options, "ro", "rw");
        if self.lower.is_empty() {
            return Err(Error::Mount(format!(
                "the overlay that containerd asks for has no lowerdir: {:?}",
                root.options
            )));
        }
        Ok(())
    }
}

fn is_bind(m: &RootfsMount) -> bool {
    m.kind == "bind" || m.options.iter().any(|o| o == "bind" || o == "rbind")
}

fn last_of(options: &[String], yes: &str, no: &str) -> bool {
    options
        .iter()
        .rev()
        .find(|o| *o == yes || *o == no)
        .is_some_and(|o| o == yes)
}

/// Whether a client brought a disk of its own as the root's upper (containerd 2.2's mount manager), rather than a
/// snapshotter an empty one. What is written there is kept by that client, and it looks for it there.
#[must_use]
pub fn is_clients_own_disk(mounts: &[RootfsMount]) -> bool {
    let options = mounts
        .iter()
        .filter(|m| m.kind == "overlay")
        .flat_map(|m| &m.options);
    options
        .filter_map(|o| o.strip_prefix("upperdir="))
        .any(|dir| dir.contains("/io.containerd.mount-manager.v1."))
}

/// containerd's mount manager resolves templates before a shim sees them; one that is left names nothing.
fn refuse_template(m: &RootfsMount) -> Result<(), Error> {
    let open = |text: &str| text.contains("{{");
    let templated = open(&m.source) || open(&m.target) || m.options.iter().any(|o| open(o));
    let virtual_kind = ["format/", "mkfs/", "mkdir/"]
        .iter()
        .any(|p| m.kind.starts_with(p));
    if templated || virtual_kind {
        return Err(Error::Mount(format!(
            "the mount of {:?} (type {:?}) is a template that containerd has not resolved: this containerd needs a newer shim",
            m.source, m.kind
        )));
    }
    Ok(())
}

/// Splits a `lowerdir` option at colons that are not escaped, and takes the escapes away.
#[must_use]
pub fn split_lower(dirs: &str) -> Vec<PathBuf> {
    let (mut all, mut one, mut rest) = (Vec::new(), String::new(), dirs.chars());
    while let Some(c) = rest.next() {
        match c {
            '\\' => one.extend(rest.next()),
            ':' => all.push(std::mem::take(&mut one)),
            _ => one.push(c),
        }
    }
    all.push(one);
    all.into_iter()
        .filter(|dir| !dir.is_empty())
        .map(PathBuf::from)
        .collect()
}

fn unescape(dir: &str) -> String {
    let (mut plain, mut rest) = (String::new(), dir.chars());
    while let Some(c) = rest.next() {
        plain.extend(if c == '\\' { rest.next() } else { Some(c) });
    }
    plain
}

/// What a mount's target has to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wants {
    /// A directory that must not be reached through a symlink: `/proc`, `/sys`.
    RealDirectory,
    /// A directory.
    Directory,
    /// The same kind as the source of the bind mount.
    SameAsSource(PathBuf),
}

/// A place in the container that the runtime mounts on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Absolute in the container.
    pub destination: PathBuf,
    /// What it has to be.
    pub wants: Wants,
}

/// The places on the kept root itself that the runtime will mount on: what lies below another mount is not ours.
#[must_use]
pub fn targets(bundle: &Bundle) -> Vec<Target> {
    let mut all: Vec<Target> = Vec::new();
    for m in &bundle.mounts {
        if all.iter().any(|t| m.destination.starts_with(&t.destination)) || m.destination == Path::new("/") {
            continue;
        }
        let bind = m.kind == "bind" || m.options.iter().any(|o| o == "bind" || o == "rbind");
        let wants = if bind {
            Wants::SameAsSource(m.source.clone())
        } else if m.kind == "proc" || m.kind == "sysfs" {
            Wants::RealDirectory
        } else {
            Wants::Directory
        };
        all.push(Target {
            destination: m.destination.clone(),
            wants,
        });
    }
    all
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn overlay(options: &[&str]) -> RootfsMount {
        RootfsMount {
            kind: "overlay".into(),
            source: "overlay".into(),
            options: options.iter().map(ToString::to_string).collect(),
            ..RootfsMount::default()
        }
    }

    fn plan(mounts: &[RootfsMount]) -> Result<RootPlan, Error> {
        RootPlan::new(mounts, Path::new("/rootfs"))
    }

    #[test]
    fn containerds_overlay() {
        let p = plan(&[overlay(&[
            "index=on",
            "volatile",
            "userxattr",
            "workdir=/s/9/work",
            "upperdir=/s/9/fs",
            "lowerdir=/s/2/fs:/s/1/fs",
        ])])
        .unwrap();
        assert_eq!(p.lower, [Path::new("/s/2/fs"), Path::new("/s/1/fs")]);
        assert_eq!(p.engine_upper, Some("/s/9/fs".into()));
        assert_eq!(
            p.options,
            [
                "index=off",
                "metacopy=off",
                "redirect_dir=nofollow",
                "xino=off",
                "userxattr"
            ]
        );
        assert!(!p.readonly);
    }

    #[test]
    fn views_binds_and_no_mounts() {
        let p = plan(&[overlay(&["ro", "lowerdir=/2:/1"])]).unwrap();
        assert!(p.readonly && p.engine_upper.is_none());
        let bind = RootfsMount {
            kind: "bind".into(),
            source: "/s/1".into(),
            options: vec!["rw".into(), "rbind".into()],
            ..RootfsMount::default()
        };
        let p = plan(&[bind]).unwrap();
        assert_eq!(
            (p.lower.as_slice(), p.readonly),
            ([PathBuf::from("/s/1")].as_slice(), false)
        );
        assert_eq!(plan(&[]).unwrap().lower, [Path::new("/rootfs")]);
    }

    #[test]
    fn a_disk_is_mounted_read_only_as_the_lower() {
        let disk = RootfsMount {
            kind: "ext4".into(),
            source: "/snapshot.img".into(),
            options: vec!["rw".into(), "loop".into()],
            ..RootfsMount::default()
        };
        let p = plan(std::slice::from_ref(&disk)).unwrap();
        assert!(p.lower.is_empty() && p.after.is_empty() && !p.readonly);
        assert_eq!(p.before[0].options, ["rw", "loop", "ro"]);
        let mut view = disk;
        view.options = vec!["ro".into()];
        assert!(plan(&[view]).unwrap().readonly);
    }

    #[test]
    fn the_overlay_is_found_wherever_it_stands() {
        let tmpfs = RootfsMount {
            kind: "tmpfs".into(),
            target: "/a".into(),
            ..RootfsMount::default()
        };
        let p = plan(&[tmpfs.clone(), overlay(&["lowerdir=/1"]), tmpfs.clone()]).unwrap();
        assert_eq!((p.before, p.after), (vec![tmpfs.clone()], vec![tmpfs]));
    }

    #[test]
    fn what_cannot_be_planned_is_named() {
        assert!(
            plan(&[overlay(&["lowerdir={{ overlay 0 }}"])])
                .unwrap_err()
                .to_string()
                .contains("template")
        );
        let mut format = overlay(&["lowerdir=/1"]);
        format.kind = "format/overlay".into();
        assert!(
            plan(&[format])
                .unwrap_err()
                .to_string()
                .contains("format/overlay")
        );
        let below = RootfsMount {
            kind: "tmpfs".into(),
            target: "/a".into(),
            ..RootfsMount::default()
        };
        assert!(plan(&[below]).unwrap_err().to_string().contains("root"));
        assert!(
            plan(&[overlay(&["upperdir=/u"])])
                .unwrap_err()
                .to_string()
                .contains("lowerdir")
        );
    }

    #[test]
    fn lower_directories_with_colons() {
        assert_eq!(
            split_lower("/a:/b\\:c:/d\\\\e"),
            [Path::new("/a"), Path::new("/b:c"), Path::new("/d\\e")]
        );
    }

    #[test]
    fn targets_on_the_root_only() {
        let bundle = Bundle::parse(
            br#"{"mounts":[{"destination":"/proc","type":"proc"},{"destination":"/dev","type":"tmpfs"},
                {"destination":"/dev/shm","type":"tmpfs"},{"destination":"/etc/hosts","type":"bind","source":"/h","options":["rbind"]}]}"#,
        )
        .unwrap();
        let places: Vec<_> = targets(&bundle)
            .into_iter()
            .map(|t| (t.destination, t.wants))
            .collect();
        assert_eq!(
            places,
            [
                ("/proc".into(), Wants::RealDirectory),
                ("/dev".into(), Wants::Directory),
                ("/etc/hosts".into(), Wants::SameAsSource("/h".into())),
            ]
        );
    }

    proptest! {
        #[test]
        fn never_panics(options: Vec<String>) {
            let _ = plan(&[RootfsMount { kind: "overlay".into(), options, ..RootfsMount::default() }]);
        }
    }
}
