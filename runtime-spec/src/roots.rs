//! Which roots a container's live tree has: the whole of `/` or chosen paths of it, and volumes.

use std::path::{Component, Path, PathBuf};

use crate::{
    Error,
    bundle::{Bundle, Mount},
};

/// More chosen paths than this are a mistake: each is a mount of its own.
pub const MOST_PATHS: usize = 64;

/// A mount of the bundle that becomes a root of the live tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Its place in the bundle's list of mounts.
    pub mount: usize,
    /// Absolute in the container, without `.` and double slashes.
    pub destination: PathBuf,
    /// What it is filled from, once: the directory that the engine or a person would have mounted.
    pub source: PathBuf,
}

/// What of a container is kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Roots {
    /// The chosen paths; none when the whole of `/` is kept.
    pub paths: Vec<PathBuf>,
    /// Volumes.
    pub volumes: Vec<Volume>,
}

/// What a person said about roots.
#[derive(Debug, Clone, Default)]
pub struct Wishes<'a> {
    /// Only these are kept; all when there are none.
    pub paths: &'a [PathBuf],
    /// These are not.
    pub exclude: &'a [PathBuf],
    /// Mounts that a person declared and wants kept all the same.
    pub include_mounts: &'a [PathBuf],
}

impl Roots {
    /// Plans them. `is_image_volume` says which mounts the engine made for the image's `VOLUME`s.
    ///
    /// # Errors
    /// Paths that overlap or lie in a mount, an `include-mounts` where nothing is mounted.
    pub fn new(
        bundle: &Bundle,
        wishes: &Wishes<'_>,
        is_image_volume: impl Fn(&Mount) -> bool,
    ) -> Result<Roots, Error> {
        let bad = |key: &str, value: &Path, problem: String| Error::Annotation {
            key: format!("diffkeeper.io/{key}"),
            value: value.display().to_string(),
            problem,
        };
        let mut roots = Roots::default();
        for (index, mount) in bundle.mounts.iter().enumerate() {
            let destination = plain(&mount.destination);
            let included = wishes.include_mounts.contains(&destination);
            if included && !is_bind(mount) {
                return Err(bad(
                    "include-mounts",
                    &destination,
                    format!("what is mounted there is a {}, not a directory", mount.kind),
                ));
            }
            let kept = is_image_volume(mount)
                && is_bind(mount)
                && !below_any(&destination, wishes.exclude)
                && (wishes.paths.is_empty() || below_any(&destination, wishes.paths));
            if included || kept {
                roots.volumes.push(Volume {
                    mount: index,
                    destination,
                    source: mount.source.clone(),
                });
            }
        }
        if let Some(path) = wishes.include_mounts.iter().find(|path| !roots.has_volume(path)) {
            return Err(bad("include-mounts", path, "nothing is mounted there".into()));
        }
        if wishes.paths.len() > MOST_PATHS {
            let problem = format!(
                "{} paths; at most {MOST_PATHS} can be kept apart: name a directory above them, or keep all and exclude the rest",
                wishes.paths.len()
            );
            return Err(bad("paths", Path::new("..."), problem));
        }
        for (n, path) in wishes.paths.iter().enumerate() {
            if let Some(other) = wishes
                .paths
                .iter()
                .take(n)
                .find(|o| path.starts_with(o) || o.starts_with(path))
            {
                let problem = format!("it overlaps with {}: name the upper one only", other.display());
                return Err(bad("paths", path, problem));
            }
            // Kept already, with all that is below.
            if roots.volumes.iter().any(|v| path.starts_with(&v.destination)) {
                continue;
            }
            let covering = bundle.mounts.iter().find(|m| {
                let there = plain(&m.destination);
                there != Path::new("/") && path.starts_with(there)
            });
            if let Some(mount) = covering {
                let problem = format!(
                    "it lies in what is mounted at {}, which is not the container's own; diffkeeper.io/include-mounts would keep that",
                    mount.destination.display()
                );
                return Err(bad("paths", path, problem));
            }
            roots.paths.push(path.clone());
        }
        Ok(roots)
    }

    fn has_volume(&self, path: &Path) -> bool {
        self.volumes.iter().any(|v| v.destination == path)
    }
}

fn is_bind(m: &Mount) -> bool {
    m.kind == "bind" || m.options.iter().any(|o| o == "bind" || o == "rbind")
}

fn below_any(path: &Path, all: &[PathBuf]) -> bool {
    all.iter().any(|above| path.starts_with(above))
}

/// An absolute path without `.`, `..` and double slashes, by text alone.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::Normal(name) => plain.push(name),
            Component::ParentDir => drop(plain.pop()),
            _ => {}
        }
    }
    plain
}

/// Whether this is the bind mount that containerd's CRI makes for a `VOLUME` of the image: its source lies in the
/// directory that CRI has for this very container.
///
/// `<containerd's root>/io.containerd.grpc.v1.cri/containers/<id>/volumes/<random>` in 1.6 to 2.3.
#[must_use]
pub fn is_cri_volume(mount: &Mount, container_id: &str) -> bool {
    let mut parts = mount.source.components().rev().map(Component::as_os_str);
    let mut next = || parts.next().and_then(|part| part.to_str()).unwrap_or_default();
    let random = next();
    let rest = [next(), next(), next()];
    let plugin = next();
    !random.is_empty()
        && random.bytes().all(|b| b.is_ascii_hexdigit())
        && rest == ["volumes", container_id, "containers"]
        && plugin.starts_with("io.containerd.")
        && plugin.contains("cri")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ID: &str = "4f2c";

    fn mount(destination: &str, kind: &str, source: &str) -> Mount {
        Mount {
            destination: destination.into(),
            kind: kind.into(),
            source: source.into(),
            options: vec!["rbind".into(), "rw".into()],
            ..Mount::default()
        }
    }

    fn cri(name: &str, id: &str) -> String {
        format!("/var/lib/containerd/io.containerd.grpc.v1.cri/containers/{id}/volumes/{name}")
    }

    fn bundle(mounts: &[Mount]) -> Bundle {
        Bundle {
            mounts: mounts.to_vec(),
            ..Bundle::default()
        }
    }

    fn paths(all: &[&str]) -> Vec<PathBuf> {
        all.iter().map(PathBuf::from).collect()
    }

    fn plan(mounts: &[Mount], kept: &[&str], exclude: &[&str], include: &[&str]) -> Result<Roots, String> {
        let (kept, exclude, include) = (paths(kept), paths(exclude), paths(include));
        let wishes = Wishes {
            paths: &kept,
            exclude: &exclude,
            include_mounts: &include,
        };
        Roots::new(&bundle(mounts), &wishes, |m| is_cri_volume(m, ID)).map_err(|e| e.to_string())
    }

    #[test]
    fn an_image_volume_is_known_by_its_source() {
        let is = |source: &str| is_cri_volume(&mount("/data", "bind", source), ID);
        assert!(is(&cri("0123abcd", ID)));
        assert!(is(&format!(
            "/r/io.containerd.cri.v1.runtime/containers/{ID}/volumes/ff"
        )));
        for other in [
            cri("0123abcd", "another"),
            cri("..", ID),
            cri("named", ID),
            format!("{}/below", cri("ff", ID)),
            "/var/lib/kubelet/pods/u/volumes/kubernetes.io~empty-dir/data".into(),
            format!("/home/containers/{ID}/volumes/ff"),
            String::new(),
        ] {
            assert!(!is(&other), "{other}");
        }
    }

    #[test]
    fn volumes_are_kept_and_what_people_declared_is_not() {
        let mounts = [
            mount("/proc", "proc", "proc"),
            mount("/var/lib/db/", "bind", &cri("aa", ID)),
            mount("/pvc", "bind", "/var/lib/kubelet/pods/u/volumes/x"),
            mount("/run/sock", "bind", &cri("bb", ID)),
        ];
        let roots = plan(&mounts, &[], &["/run"], &[]).unwrap();
        assert_eq!(roots.volumes.len(), 1);
        assert_eq!(roots.volumes[0].destination, Path::new("/var/lib/db"));
        assert_eq!(roots.volumes[0].mount, 1);
        let roots = plan(&mounts, &[], &["/run"], &["/pvc"]).unwrap();
        assert_eq!(roots.volumes.iter().map(|v| v.mount).collect::<Vec<_>>(), [1, 2]);
        assert!(
            plan(&mounts, &[], &[], &["/none"])
                .unwrap_err()
                .contains("nothing is mounted")
        );
        let tmpfs = Mount {
            options: Vec::new(),
            ..mount("/tmpfs", "tmpfs", "tmpfs")
        };
        assert!(
            plan(&[tmpfs], &[], &[], &["/tmpfs"])
                .unwrap_err()
                .contains("tmpfs")
        );
    }

    #[test]
    fn chosen_paths() {
        let mounts = [
            mount("/var/lib/db", "bind", &cri("aa", ID)),
            mount("/srv/data", "bind", "/pvc"),
        ];
        let roots = plan(&mounts, &["/etc/app", "/var"], &[], &[]).unwrap();
        assert_eq!(roots.paths, paths(&["/etc/app", "/var"]));
        assert_eq!(roots.volumes.len(), 1, "a volume in a chosen path is kept");
        assert!(plan(&mounts, &["/etc"], &[], &[]).unwrap().volumes.is_empty());
        // A path that is a kept volume, or lies in one, needs nothing more.
        assert!(
            plan(&mounts, &["/var/lib/db"], &[], &[])
                .unwrap()
                .paths
                .is_empty()
        );
        assert!(
            plan(&mounts, &["/a", "/a/b"], &[], &[])
                .unwrap_err()
                .contains("overlaps with /a")
        );
        assert!(
            plan(&mounts, &["/a", "/a"], &[], &[])
                .unwrap_err()
                .contains("overlaps")
        );
        assert!(plan(&mounts, &["/ab", "/a"], &[], &[]).is_ok());
        assert!(
            plan(&mounts, &["/srv/data/x"], &[], &[])
                .unwrap_err()
                .contains("/srv/data")
        );
        let many: Vec<String> = (0..200).map(|n| format!("/p{n}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert!(plan(&mounts, &many, &[], &[]).unwrap_err().contains("at most 64"));
    }

    proptest! {
        #[test]
        fn never_panics(destination: String, source: String, id: String, path: String) {
            let all = [mount(&destination, "bind", &source)];
            let wishes = Wishes { paths: &[path.into()], ..Wishes::default() };
            let _ = Roots::new(&bundle(&all), &wishes, |m| is_cri_volume(m, &id));
        }
    }
}
