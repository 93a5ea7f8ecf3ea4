//! Files that a container may write to without a word: those it has open for writing, or mapped.
//!
//! No event tells of a write before the file is closed, and one that is mapped counts as open. So the processes of the
//! container's cgroup are asked what they have. Only names are read: nothing of the container's is opened or looked at, which
//! might keep an overlay from being unmounted, or never answer.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    ffi::OsStr,
    fs, io,
    os::{
        fd::AsFd,
        unix::{ffi::OsStrExt, fs::MetadataExt},
    },
    path::{Path, PathBuf},
    rc::Rc,
};

use live::{Holder, Root};
use nix::{
    fcntl::{AtFlags, readlinkat},
    sys::stat::fstatat,
};

use super::sys;
use crate::tree;

/// How often it is asked again for processes that have come meanwhile.
const ROUNDS: usize = 8;

/// What a container may write to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Writers {
    /// Its keys, whether they exist or not.
    pub keys: BTreeSet<Vec<u8>>,
    /// There is more that has no name any more by which it was opened, but may have another.
    pub hidden: bool,
}

/// A mount, as a process sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mount {
    device: String,
    /// What of its file system is mounted.
    root: Vec<u8>,
    point: Vec<u8>,
}

/// A line of `/proc/PID/mountinfo`.
fn mount(line: &[u8]) -> Option<Mount> {
    let mut words = line.split(|b| *b == b' ').skip(2);
    Some(Mount {
        device: String::from_utf8_lossy(words.next()?).into_owned(),
        root: unescaped(words.next()?),
        point: unescaped(words.next()?),
    })
}

/// `\040` and its like.
fn unescaped(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, more)) = rest.split_first() {
        let octal = rest
            .get(1..4)
            .filter(|_| *first == b'\\')
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match octal {
            Some(byte) => {
                plain.push(byte);
                rest = rest.get(4..).unwrap_or_default();
            }
            None => {
                plain.push(*first);
                rest = more;
            }
        }
    }
    plain
}

/// What of a path is below a directory.
fn below<'a>(path: &'a [u8], dir: &[u8]) -> Option<&'a [u8]> {
    let dir = dir.strip_suffix(b"/").unwrap_or(dir);
    path.strip_prefix(dir)
        .filter(|rest| rest.is_empty() || rest.first() == Some(&b'/'))
}

/// The mount that a path is on: the deepest, of several at one place the last.
fn mount_of<'a>(mounts: &'a [Mount], path: &[u8]) -> Option<&'a Mount> {
    mounts
        .iter()
        .filter(|mount| below(path, &mount.point).is_some())
        .max_by_key(|mount| mount.point.len())
}

/// What a line of `/proc/PID/maps` says is mapped so that it can be written to: the range, and the path.
fn mapped(line: &[u8]) -> Option<(&[u8], Vec<u8>)> {
    let mut words = line.splitn(6, |b| *b == b' ');
    let range = words.next()?;
    // Shared; what may be read now may be written to after another mprotect.
    words.next()?.get(3).filter(|shared| **shared == b's')?;
    let path = words.nth(3)?.trim_ascii_start();
    (path.first() == Some(&b'/')).then(|| (range, unescaped(path)))
}

/// The directory of a container's cgroup, in one hierarchy where there are several: `groups` is what `/proc/PID/cgroup` said
/// of its first process. It holds that process, itself or below it.
fn cgroup(groups: &[u8], init: i32) -> io::Result<PathBuf> {
    let mount = Path::new("/sys/fs/cgroup");
    for line in groups.split(|b| *b == b'\n') {
        let mut words = line.splitn(3, |b| *b == b':').skip(1);
        let (Some(kinds), Some(path)) = (words.next(), words.next()) else {
            continue;
        };
        // A hierarchy in which the container has no group of its own holds all of the machine.
        let Some(path) = path.strip_prefix(b"/").filter(|path| !path.is_empty()) else {
            continue;
        };
        let kinds = match kinds {
            b"" => vec![mount.to_owned(), mount.join("unified")],
            kinds => vec![mount.join(OsStr::from_bytes(kinds.strip_prefix(b"name=").unwrap_or(kinds)))],
        };
        for kind in kinds {
            let dir = kind.join(OsStr::from_bytes(path));
            if pids(&dir).is_ok_and(|pids| pids.contains(&init)) {
                return Ok(dir);
            }
        }
    }
    Err(io::Error::new(
        io::ErrorKind::NotFound,
        "it has no cgroup of its own",
    ))
}

/// The processes of a cgroup and those below it.
fn pids(dir: &Path) -> io::Result<BTreeSet<i32>> {
    let text = fs::read_to_string(dir.join("cgroup.procs"))?;
    let mut found: BTreeSet<i32> = text.lines().filter_map(|line| line.parse().ok()).collect();
    for entry in fs::read_dir(dir)?.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            match pids(&entry.path()) {
                Ok(more) => found.extend(more),
                // One that has gone holds nobody.
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(found)
}

/// Asks one container's processes.
struct Asking {
    /// Device numbers of file systems, as mountinfo writes them, with what their top is a tree of.
    trees: HashMap<String, Vec<u8>>,
    /// Places in the container that are other trees: what is not an overlay shares its device with the disk.
    places: Vec<(Vec<u8>, Vec<u8>)>,
    mounts: HashMap<u64, Rc<Vec<Mount>>>,
    asked: HashSet<(u64, Vec<u8>)>,
    found: Writers,
}

/// Nothing of what has ended: it has closed all it had.
fn if_there<T>(asked: io::Result<T>) -> io::Result<Option<T>> {
    match asked {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => Ok(None),
        asked => asked.map(Some),
    }
}

fn mounts(pid: i32) -> io::Result<Vec<Mount>> {
    let text = fs::read(format!("/proc/{pid}/mountinfo"))?;
    Ok(text.split(|b| *b == b'\n').filter_map(mount).collect())
}

impl Asking {
    /// What is at a path in a container's mount namespace, if it is of a tree of ours.
    fn key(&self, mounts: &[Mount], path: &[u8]) -> Option<Vec<u8>> {
        let mount = mount_of(mounts, path)?;
        if let Some(name) = self.trees.get(&mount.device) {
            let rest = below(path, &mount.point)?;
            return Some(store::format::key(name, &[&mount.root, &b"/"[..], rest].concat()));
        }
        let (name, rest) = self
            .places
            .iter()
            .filter(|(place, _)| *place == mount.point)
            .find_map(|(place, name)| Some((name, below(path, place)?)))?;
        Some(store::format::key(name, rest))
    }

    /// Notes what a process has under a path; `there` says how many names it has.
    fn note(&mut self, namespace: u64, mounts: &[Mount], path: Vec<u8>, names: impl FnOnce() -> Option<u64>) {
        if path.first() != Some(&b'/') || !self.asked.insert((namespace, path.clone())) {
            return;
        }
        if let Some(gone) = path.strip_suffix(b" (deleted)")
            && self.key(mounts, gone).is_some()
            && names().is_some_and(|names| names > 0)
        {
            self.found.hidden = true;
        }
        self.found.keys.extend(self.key(mounts, &path));
    }

    /// A process, and those of its threads that have files of their own.
    fn process(&mut self, pid: i32) -> io::Result<()> {
        if_there(self.thread(pid))?;
        for name in if_there(fs::read_dir(format!("/proc/{pid}/task")))?
            .into_iter()
            .flatten()
        {
            let thread = if_there(name)?.and_then(|name| name.file_name().to_str()?.parse().ok());
            if let Some(thread) = thread.filter(|thread| *thread != pid && !sys::share_files(pid, *thread)) {
                if_there(self.thread(thread))?;
            }
        }
        Ok(())
    }

    fn thread(&mut self, pid: i32) -> io::Result<()> {
        let proc = PathBuf::from(format!("/proc/{pid}"));
        let namespace = fs::metadata(proc.join("ns/mnt"))?.ino();
        let mounts = match self.mounts.get(&namespace) {
            Some(mounts) => mounts.clone(),
            None => {
                let mounts = Rc::new(mounts(pid)?);
                self.mounts.insert(namespace, mounts.clone());
                mounts
            }
        };
        let dir = tree::top(&proc.join("fd"))?;
        for name in tree::names(&dir)? {
            let name = OsStr::from_bytes(&name);
            let Ok(link) = fstatat(dir.as_fd(), name, AtFlags::AT_SYMLINK_NOFOLLOW) else {
                continue;
            };
            if link.st_mode & libc::S_IWUSR == 0 {
                continue;
            }
            if let Ok(path) = readlinkat(&dir, name) {
                let names = || Some(fstatat(dir.as_fd(), name, AtFlags::empty()).ok()?.st_nlink);
                self.note(namespace, &mounts, path.as_bytes().to_vec(), names);
            }
        }
        let maps = fs::read(proc.join("maps"))?;
        for (range, path) in maps.split(|b| *b == b'\n').filter_map(mapped) {
            let file = proc.join("map_files").join(OsStr::from_bytes(range));
            let names = || Some(fs::metadata(file).ok()?.nlink());
            self.note(namespace, &mounts, path, names);
        }
        Ok(())
    }
}

/// What the processes of a holder's container have open or mapped so that they can write to it. `roots` are the state's,
/// by the names that their keys begin with.
///
/// # Errors
/// The container cannot be asked: anything may be written to.
pub fn writers(holder: &Holder, roots: &[(Vec<u8>, Root)]) -> io::Result<Writers> {
    let init = holder
        .init
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "its first process is not known"))?;
    // Where it is now says less; all that is known of one whose shim is of an earlier version.
    let group = cgroup(holder.groups.as_bytes(), init.pid)
        .or_else(|_| cgroup(&fs::read(format!("/proc/{}/cgroup", init.pid))?, init.pid))?;
    let seen = mounts(init.pid)?;
    let mut asking = Asking {
        trees: HashMap::new(),
        places: Vec::new(),
        mounts: HashMap::new(),
        asked: HashSet::new(),
        found: Writers::default(),
    };
    if let (Some((major, minor)), Some((name, _))) = (
        holder.overlay,
        roots.iter().find(|(_, root)| *root == Root::Rootfs),
    ) {
        asking.trees.insert(format!("{major}:{minor}"), name.clone());
    }
    for (name, root) in roots.iter().filter(|(_, root)| *root != Root::Rootfs) {
        let place = root.destination().as_os_str().as_bytes().to_vec();
        let overlay = |mount: &&Mount| mount.root == b"/" && mount.device.starts_with("0:");
        match seen
            .iter()
            .rev()
            .find(|mount| mount.point == place)
            .filter(overlay)
        {
            Some(mount) => {
                asking.trees.insert(mount.device.clone(), name.clone());
            }
            None => asking.places.push((place, name.clone())),
        }
    }
    let mut done = BTreeSet::new();
    for _ in 0..ROUNDS {
        let fresh: Vec<i32> = pids(&group)?.difference(&done).copied().collect();
        if fresh.is_empty() {
            return Ok(asking.found);
        }
        for pid in fresh {
            done.insert(pid);
            asking.process(pid)?;
        }
    }
    Err(io::Error::other(
        "its processes come faster than they can be asked",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen() -> Vec<Mount> {
        [
            &b"500 400 0:77 / / rw - overlay overlay rw"[..],
            b"501 500 0:5 / /proc rw - proc proc rw",
            b"502 500 254:0 /var/lib/live/volume /var/lib/with\\040space rw - ext4 /dev/vda rw",
            b"503 500 0:77 /srv/inner /mnt rw - overlay overlay rw",
        ]
        .into_iter()
        .filter_map(mount)
        .collect()
    }

    fn asking() -> Asking {
        Asking {
            trees: HashMap::from([("0:77".to_owned(), b"rootfs".to_vec())]),
            places: vec![(b"/var/lib/with space".to_vec(), b"volume@x".to_vec())],
            mounts: HashMap::new(),
            asked: HashSet::new(),
            found: Writers::default(),
        }
    }

    #[test]
    fn a_path_is_of_the_tree_whose_mount_it_is_on() {
        let key = |path: &str| asking().key(&seen(), path.as_bytes());
        assert_eq!(key("/etc/hosts"), Some(b"rootfs\0etc\0hosts".to_vec()));
        assert_eq!(key("/mnt/file"), Some(b"rootfs\0srv\0inner\0file".to_vec()));
        assert_eq!(key("/var/lib/with space/a"), Some(b"volume@x\0a".to_vec()));
        assert_eq!(
            key("/var/lib/with spaces"),
            Some(b"rootfs\0var\0lib\0with spaces".to_vec())
        );
        assert_eq!(key("/proc/1/status"), None);
    }

    #[test]
    fn a_thread_with_files_of_its_own_is_asked_too() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| fs::canonicalize(dir.path()).unwrap().join(name);
        let pid = nix::unistd::getpid().as_raw();
        let all = mounts(pid).unwrap();
        let device = mount_of(&all, path("").as_os_str().as_bytes())
            .unwrap()
            .device
            .clone();
        let (opened, ready) = std::sync::mpsc::channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let (shared, own) = (&path("shared"), &path("own"));
        std::thread::scope(|scope| {
            let _common = fs::File::create(shared).unwrap();
            scope.spawn(move || {
                nix::sched::unshare(nix::sched::CloneFlags::CLONE_FILES).unwrap();
                let _alone = fs::File::create(own).unwrap();
                opened.send(()).unwrap();
                let _ = ended.recv();
            });
            ready.recv().unwrap();
            let mut asking = Asking {
                trees: HashMap::from([(device, b"rootfs".to_vec())]),
                places: Vec::new(),
                ..asking()
            };
            let asked = asking.process(pid);
            drop(end);
            asked.unwrap();
            for path in [shared, own] {
                let name = [&[0], path.file_name().unwrap().as_bytes()].concat();
                let found = asking.found.keys.iter().filter(|key| key.ends_with(&name));
                assert_eq!(found.count(), 1, "{}: {:?}", path.display(), asking.found);
            }
        });
    }

    #[test]
    fn processes_that_left_their_cgroup_for_one_below_are_found() {
        let pid = nix::unistd::getpid().as_raw();
        let now = fs::read(format!("/proc/{pid}/cgroup")).unwrap();
        let Ok(dir) = cgroup(&now, pid) else {
            println!("skipped: this process is in no cgroup of its own");
            return;
        };
        let below = dir.join(format!("below-{pid}"));
        let Ok(()) = fs::create_dir(&below) else {
            println!("skipped: no cgroup can be made here");
            return;
        };
        let child = std::process::Command::new("sleep").arg("1000").spawn();
        let found = child.and_then(|mut child| {
            let id = i32::try_from(child.id()).unwrap();
            let moved = fs::write(below.join("cgroup.procs"), id.to_string());
            let found = cgroup(&now, id);
            child.kill()?;
            child.wait()?;
            Ok((moved.is_ok(), found))
        });
        // Until the kernel has seen that it is empty.
        while fs::remove_dir(&below).is_err_and(|error| error.raw_os_error() == Some(libc::EBUSY)) {
            std::thread::yield_now();
        }
        let (moved, found) = found.unwrap();
        assert!(!moved || found.unwrap() == dir);
    }

    #[test]
    fn only_what_is_shared_counts_as_mapped() {
        let shared = b"7f00-7f01 rw-s 00000000 00:4d 42                         /data/a b";
        let private = b"7f00-7f01 rw-p 00000000 00:4d 42                         /data/a";
        let nothing = b"7f00-7f01 rw-s 00000000 00:01 7                          anon_inode:[perf]";
        assert_eq!(mapped(shared), Some((&b"7f00-7f01"[..], b"/data/a b".to_vec())));
        assert_eq!(mapped(private), None);
        assert_eq!(mapped(nothing), None);
    }

    #[test]
    fn what_is_gone_is_hidden_only_while_it_has_a_name() {
        let mut asking = asking();
        let path = |name: &str| format!("/data/{name} (deleted)").into_bytes();
        asking.note(1, &seen(), path("really"), || Some(0));
        assert!(!asking.found.hidden);
        asking.note(1, &seen(), b"/proc/x (deleted)".to_vec(), || Some(1));
        assert!(!asking.found.hidden);
        asking.note(1, &seen(), path("elsewhere"), || Some(1));
        assert!(asking.found.hidden);
    }
}
