use std::{
    io::Write,
    os::fd::AsRawFd,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use containerd_shim_protos::{cgroups::metrics as m1, cgroups_v2::metrics as m2};

use super::*;

/// A cgroup that is removed again, with all that runs in it.
pub(super) struct Real {
    pub(super) dirs: Vec<PathBuf>,
    children: Vec<Child>,
}

impl Real {
    pub(super) fn new(name: &str, roots: &[&str]) -> Self {
        let dirs: Vec<_> = roots
            .iter()
            .map(|root| Path::new(root).join(format!("dk-{name}-{}", std::process::id())))
            .collect();
        dirs.iter().for_each(|dir| fs::create_dir(dir).unwrap());
        Real {
            dirs,
            children: Vec::new(),
        }
    }

    pub(super) fn path(&self) -> String {
        format!("/{}", self.dirs[0].file_name().unwrap().to_str().unwrap())
    }

    /// A shell that waits for a line before it goes on as `script`.
    pub(super) fn shell(&mut self, cgroup: &Cgroup, script: &str) -> u32 {
        let script = format!("read line; {script}");
        let child = Command::new("sh")
            .args(["-c", &script])
            .stdin(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        let child = child.unwrap();
        let pid = child.id();
        cgroup.add_process(pid).unwrap();
        self.children.push(child);
        pid
    }

    fn go(&mut self, at: usize) {
        self.children[at]
            .stdin
            .take()
            .unwrap()
            .write_all(b"go\n")
            .unwrap();
    }
}

impl Drop for Real {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
        for dir in &self.dirs {
            let until = Instant::now() + Duration::from_secs(5);
            while fs::remove_dir(dir).is_err_and(|error| error.raw_os_error() == Some(libc::EBUSY))
                && Instant::now() < until
            {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
}

const V1_MEMORY: &str = "/sys/fs/cgroup/memory";
pub(super) const V1_FREEZER: &str = "/sys/fs/cgroup/freezer";
pub(super) const HYBRID_V2: &str = "/sys/fs/cgroup/unified";

/// These need root and a real hierarchy of that version; elsewhere they have nothing to show.
pub(super) fn has(root: &str, file: &str) -> bool {
    let found = nix::unistd::geteuid().is_root() && Path::new(root).join(file).exists();
    if !found {
        eprintln!("skipped: {root}/{file} is not here");
    }
    found
}

pub(super) fn hybrid_v2() -> Host {
    Host {
        cgroup: Path::new(HYBRID_V2).into(),
        ..Host::real()
    }
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), what).await.unwrap()
}

/// A memory cgroup of 16 MiB in which a shell is about to want more.
fn tight(name: &str) -> (Real, Cgroup, OomWatch) {
    let mut real = Real::new(name, &[V1_MEMORY]);
    fs::write(real.dirs[0].join("memory.limit_in_bytes"), "16777216").unwrap();
    let _ = fs::write(real.dirs[0].join("memory.memsw.limit_in_bytes"), "16777216");
    let cgroup = Cgroup::load_on(Host::real(), Mode::Hybrid, &real.path()).unwrap();
    real.shell(&cgroup, "exec tail /dev/zero");
    let watch = OomWatch::new(&cgroup).unwrap();
    (real, cgroup, watch)
}

#[tokio::test(flavor = "current_thread")]
async fn a_v1_oom_is_told_as_it_happens_and_once() {
    if !has(V1_MEMORY, "memory.oom_control") {
        return;
    }
    let (mut real, cgroup, mut watch) = tight("oom-next");
    assert!(!watch.pending());
    let before = v1_of(&cgroup);
    assert_eq!(
        (before.memory.usage.limit, before.memory_oom_control.oom_kill),
        (16_777_216, 0)
    );
    real.go(0);
    assert_eq!(soon(watch.next()).await, Some(()));
    let status = real.children[0].wait().unwrap();
    assert_eq!(
        std::os::unix::process::ExitStatusExt::signal(&status),
        Some(libc::SIGKILL)
    );
    assert!(v1_of(&cgroup).memory_oom_control.oom_kill >= 1);
    assert!(!watch.pending(), "told twice");
    drop(real);
    assert_eq!(soon(watch.next()).await, None);
    assert!(!watch.pending());
}

fn v1_of(cgroup: &Cgroup) -> m1::Metrics {
    m1::Metrics::parse_from_bytes(&cgroup.stats().unwrap().value).unwrap()
}

#[tokio::test(flavor = "current_thread")]
async fn a_v1_oom_is_pending_when_the_process_has_exited() {
    if !has(V1_MEMORY, "memory.oom_control") {
        return;
    }
    let (mut real, _cgroup, mut watch) = tight("oom-pending");
    real.go(0);
    real.children[0].wait().unwrap();
    assert!(watch.pending(), "the exit came first");
    assert!(!watch.pending(), "told twice");
    let more = tokio::time::timeout(Duration::from_millis(50), watch.next()).await;
    assert!(more.is_err(), "told twice: {more:?}");
}

/// Host-wide kills raise the counter only.
#[tokio::test(flavor = "current_thread")]
async fn a_v1_kill_without_a_notification_is_pending() {
    let tree = Tree::new(&[
        ("oom/memory.oom_control", "oom_kill 2\n"),
        ("oom/cgroup.event_control", ""),
    ]);
    let mut watch = OomWatch::v1(&tree.path("oom")).unwrap();
    assert!(!watch.pending(), "these were before the watch");
    tree.write("oom/memory.oom_control", "oom_kill 3\n");
    assert!(watch.pending());
    assert!(!watch.pending());
    let request = fs::read_to_string(tree.path("oom/cgroup.event_control")).unwrap();
    assert_eq!(
        request
            .split_whitespace()
            .filter_map(|number| number.parse::<u32>().ok())
            .count(),
        2,
        "{request}"
    );
}

#[tokio::test(flavor = "current_thread")]
async fn a_v2_oom_is_told_once_by_either_way() {
    let tree = Tree::new(&[
        ("box/memory.events", "oom_kill 1\n"),
        ("box/cgroup.events", "populated 1\nfrozen 0\n"),
    ]);
    let dir = tree.path("box");
    let mut watch = OomWatch::v2(&dir).unwrap();
    assert!(!watch.pending());
    // As the kernel does, the content changes at once.
    let change = |file: &str, text: &str| {
        fs::OpenOptions::new()
            .write(true)
            .open(dir.join(file))
            .unwrap()
            .write_all(text.as_bytes())
            .unwrap()
    };
    change("memory.events", "oom_kill 3\n");
    assert_eq!(soon(watch.next()).await, Some(()));
    assert!(!watch.pending(), "told twice");
    change("memory.events", "oom_kill 4\n");
    assert!(watch.pending());
    change("cgroup.events", "populated 1\n");
    let more = tokio::time::timeout(Duration::from_millis(50), watch.next()).await;
    assert!(more.is_err(), "told twice: {more:?}");
    // The last kill and the end come together.
    change("memory.events", "oom_kill 5\n");
    change("cgroup.events", "populated 0\n");
    assert_eq!(soon(watch.next()).await, Some(()));
    change("cgroup.events", "populated 0\n");
    assert_eq!(soon(watch.next()).await, None);
    fs::remove_dir_all(&dir).unwrap();
    assert!(!watch.pending());
}

#[tokio::test(flavor = "current_thread")]
async fn a_real_v2_cgroup_is_read_emptied_and_seen_to_end() {
    if !has(HYBRID_V2, "cgroup.controllers") {
        return;
    }
    let mut real = Real::new("v2", &[HYBRID_V2]);
    let cgroup = Cgroup::load_on(hybrid_v2(), Mode::Unified, &real.path()).unwrap();
    let pid = real.shell(&cgroup, "sleep 60 & wait");
    real.go(0);
    let of_process = Cgroup::of_process_on(hybrid_v2(), Mode::Unified, pid).unwrap();
    let Version::V2(group) = &of_process.version else {
        panic!("{of_process:?}")
    };
    assert_eq!(group.directory(), real.dirs[0]);
    let stats = of_process.stats().unwrap();
    let metrics = m2::Metrics::parse_from_bytes(&stats.value).unwrap();
    assert!(metrics.cpu.psi.some.is_some() || !real.dirs[0].join("cpu.pressure").exists());

    let sub = real.dirs[0].join("sub");
    fs::create_dir(&sub).unwrap();
    real.dirs.insert(0, sub.clone());
    let deeper = real.shell(
        &Cgroup::load_on(hybrid_v2(), Mode::Unified, &format!("{}/sub", real_parent(&sub))).unwrap(),
        ":",
    );
    let pids = cgroup.pids().unwrap();
    assert!(pids.contains(&pid) && pids.contains(&deeper), "{pids:?}");
    assert!(!cgroup.is_empty().unwrap());

    cgroup.kill_all().unwrap();
    real.children
        .iter_mut()
        .for_each(|child| assert!(!child.wait().unwrap().success()));
    let until = Instant::now() + Duration::from_secs(5);
    while !cgroup.is_empty().unwrap() {
        assert!(Instant::now() < until, "{:?}", cgroup.pids());
        std::thread::sleep(Duration::from_millis(2));
    }
    drop(real);
    assert!(cgroup.is_empty().unwrap());
    cgroup.kill_all().unwrap();
}

fn real_parent(sub: &Path) -> String {
    format!(
        "/{}",
        sub.parent().unwrap().file_name().unwrap().to_str().unwrap()
    )
}

#[test]
fn a_frozen_v1_cgroup_is_killed() {
    if !has(V1_FREEZER, "cgroup.procs") || !has(V1_MEMORY, "cgroup.procs") {
        return;
    }
    let mut real = Real::new("v1-kill", &[V1_FREEZER, V1_MEMORY]);
    let cgroup = Cgroup::load_on(Host::real(), Mode::Hybrid, &real.path()).unwrap();
    let pid = real.shell(&cgroup, "sleep 60 & sleep 60 & wait");
    let of_process = Cgroup::of_process_on(Host::real(), Mode::Hybrid, pid).unwrap();
    assert_eq!(of_process.own_directory().unwrap(), real.dirs[0]);
    real.go(0);
    let until = Instant::now() + Duration::from_secs(5);
    while of_process.pids().unwrap().len() < 3 {
        assert!(Instant::now() < until);
        std::thread::sleep(Duration::from_millis(2));
    }
    fs::write(real.dirs[0].join("freezer.state"), "FROZEN").unwrap();
    of_process.kill_all().unwrap();
    real.children[0].wait().unwrap();
    while !of_process.is_empty().unwrap() {
        assert!(Instant::now() < until, "{:?}", of_process.pids());
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[tokio::test(flavor = "current_thread")]
async fn nothing_leaves_a_descriptor_behind() {
    if !has(V1_MEMORY, "memory.oom_control") {
        return;
    }
    let tree = v2::v2_tree();
    tree.write("cgroup/pods/box/cgroup.events", "populated 1\n");
    let (_real, cgroup, first) = tight("oom-fd");
    let v2 = Cgroup::of_process_on(tree.host(), Mode::Unified, 7).unwrap();
    drop(first);
    for _ in 0..300 {
        drop(OomWatch::new(&cgroup).unwrap());
        drop(OomWatch::new(&v2).unwrap());
        cgroup.stats().unwrap();
        v2.stats().unwrap();
    }
    // The kernel gives the lowest free number.
    let next = fs::File::open("/dev/null").unwrap();
    assert!(next.as_raw_fd() < 300, "{next:?}");
}
