use std::{
    io::Write,
    os::fd::AsRawFd,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use containerd_shim_protos::{cgroups::metrics as m1, cgroups_v2::metrics as m2};
use tempfile::TempDir;

use super::*;

/// A tree of files that stands for a host.
struct Tree {
    dir: TempDir,
}

impl Tree {
    fn new(files: &[(&str, &str)]) -> Self {
        let tree = Tree {
            dir: TempDir::new().unwrap(),
        };
        fs::create_dir_all(tree.path("cgroup")).unwrap();
        files.iter().for_each(|(name, text)| tree.write(name, text));
        tree
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn remove(&self, name: &str) {
        fs::remove_file(self.path(name)).unwrap();
    }

    fn host(&self) -> Host {
        Host {
            cgroup: self.path("cgroup").into(),
            proc: self.path("proc").into(),
            hugepages: self.path("hugepages").into(),
        }
    }
}

/// A v1 host whose controllers are seen by a container: `cpu,cpuacct` share a mount that shows `/pod` only.
fn v1_tree() -> Tree {
    let tree = Tree::new(&[
        (
            "proc/7/cgroup",
            "12:hugetlb:/box\n11:rdma:/box\n10:cpu,cpuacct:/pod/box\n9:memory:/box\n8:blkio:/box\n7:pids:/box\n\
             6:freezer:/\n5:unmounted:/box\n1:name=systemd:/elsewhere\n0::/\n",
        ),
        (
            "proc/partitions",
            "major minor  #blocks  name\n\n 254        0    1024 vda\n 259        1   10 nvme0n1p1\n 259        1   10 again\n",
        ),
        ("hugepages/hugepages-2048kB/nr_hugepages", "0\n"),
        ("hugepages/hugepages-1048576kB/nr_hugepages", "0\n"),
        ("hugepages/hugepages-64kB/nr_hugepages", "0\n"),
        ("cgroup/freezer/freezer.state", ""),
        ("cgroup/systemd/tasks", ""),
        ("cgroup/pids/box/pids.current", "3\n"),
        ("cgroup/pids/box/pids.max", "max\n"),
        (
            "cgroup/cpu/box/cpu.stat",
            "nr_periods 4\nnr_throttled 5\nthrottled_time 6\nnr_bursts 0\n",
        ),
        ("cgroup/cpuacct/box/cpuacct.stat", "user 12\nsystem 34\n"),
        ("cgroup/cpuacct/box/cpuacct.usage", "987654321\n"),
        ("cgroup/cpuacct/box/cpuacct.usage_percpu", "100 200 \n"),
        (
            "cgroup/rdma/box/rdma.current",
            "mlx4_0 hca_handle=2 hca_object=2000\nmlx5_0 hca_handle=1\n",
        ),
        (
            "cgroup/rdma/box/rdma.max",
            "mlx4_0 hca_handle=max hca_object=-1\nmlx5_0 hca_handle=max hca_object=max\n",
        ),
        (
            "cgroup/memory/box/memory.oom_control",
            "oom_kill_disable 1\nunder_oom 0\noom_kill 3\n",
        ),
    ]);
    for (at, size) in ["2MB", "64KB", "1GB"].iter().enumerate() {
        tree.write(
            &format!("cgroup/hugetlb/box/hugetlb.{size}.usage_in_bytes"),
            &format!("{at}1"),
        );
        tree.write(
            &format!("cgroup/hugetlb/box/hugetlb.{size}.max_usage_in_bytes"),
            &format!("{at}2"),
        );
        tree.write(
            &format!("cgroup/hugetlb/box/hugetlb.{size}.failcnt"),
            &format!("{at}3"),
        );
    }
    for (at, prefix) in ["memory", "memory.memsw", "memory.kmem", "memory.kmem.tcp"]
        .iter()
        .enumerate()
    {
        let file = |name: &str| format!("cgroup/memory/box/{prefix}.{name}");
        tree.write(&file("usage_in_bytes"), &format!("{at}1\n"));
        tree.write(&file("max_usage_in_bytes"), &format!("{at}2\n"));
        tree.write(&file("failcnt"), &format!("{at}3\n"));
        tree.write(&file("limit_in_bytes"), "9223372036854771712\n");
    }
    let keys = MEMORY_V1.split_whitespace().enumerate();
    let stat: String = keys.map(|(at, key)| format!("{key} {}\n", 1000 + at)).collect();
    tree.write("cgroup/memory/box/memory.stat", &(stat + "swap 5\nshmem -4\n"));
    for (name, text) in [
        (
            "throttle.io_serviced",
            "254:0 Read 5\n254:0 Write 6\n7:0 Read 1\nTotal 12\n",
        ),
        ("throttle.io_service_bytes", "259:1 Read 4096\nTotal 4096\n"),
    ] {
        tree.write(&format!("cgroup/blkio/box/blkio.{name}"), text);
    }
    let mount = |at: usize, root: &str, name: &str, options: &str| {
        let point = tree.path("cgroup").join(name);
        format!(
            "3{at} 31 0:2{at} {root} {} rw,relatime shared:1 - cgroup cgroup rw,{options}\n",
            point.display()
        )
    };
    let mut table = String::from("23 1 0:21 / /proc rw - proc proc rw\n");
    for (at, name) in ["memory", "blkio", "pids", "freezer", "rdma", "hugetlb"]
        .iter()
        .enumerate()
    {
        table += &mount(at, "/", name, name);
    }
    table += &mount(8, "/pod", "cpu,cpuacct", "cpu,cpuacct");
    table += &mount(9, "/", "systemd", "xattr,name=systemd");
    tree.write("proc/self/mountinfo", &table);
    tree
}

/// In the order of the message's fields.
const MEMORY_V1: &str = "cache rss rss_huge mapped_file dirty writeback pgpgin pgpgout pgfault pgmajfault \
    inactive_anon active_anon inactive_file active_file unevictable hierarchical_memory_limit \
    hierarchical_memsw_limit total_cache total_rss total_rss_huge total_mapped_file total_dirty total_writeback \
    total_pgpgin total_pgpgout total_pgfault total_pgmajfault total_inactive_anon total_active_anon \
    total_inactive_file total_active_file total_unevictable";

const MEMORY_V2: &str = "anon file kernel_stack slab sock shmem file_mapped file_dirty file_writeback anon_thp \
    inactive_anon active_anon inactive_file active_file unevictable slab_reclaimable slab_unreclaimable pgfault \
    pgmajfault workingset_refault workingset_activate workingset_nodereclaim pgrefill pgscan pgsteal pgactivate \
    pgdeactivate pglazyfree pglazyfreed thp_fault_alloc thp_collapse_alloc";

fn v1_metrics(tree: &Tree) -> m1::Metrics {
    let cgroup = Cgroup::of_process_on(tree.host(), Mode::Legacy, 7).unwrap();
    let stats = cgroup.stats().unwrap();
    assert_eq!(stats.type_url, "io.containerd.cgroups.v1.Metrics");
    m1::Metrics::parse_from_bytes(&stats.value).unwrap()
}

fn v2_metrics(tree: &Tree) -> m2::Metrics {
    let stats = Cgroup::of_process_on(tree.host(), Mode::Unified, 7)
        .unwrap()
        .stats()
        .unwrap();
    assert_eq!(stats.type_url, "io.containerd.cgroups.v2.Metrics");
    m2::Metrics::parse_from_bytes(&stats.value).unwrap()
}

/// Field numbers and values of a message whose fields are all numbers.
fn numbers(message: &impl Message) -> Vec<(u32, u64)> {
    let mut bytes = message.write_to_bytes().unwrap();
    let mut input = protobuf::CodedInputStream::from_bytes(&bytes);
    let mut found = Vec::new();
    while let Some(tag) = input.read_raw_tag_or_eof().unwrap() {
        match tag & 7 {
            0 => found.push((tag >> 3, input.read_uint64().unwrap())),
            2 => drop(input.read_bytes().unwrap()),
            other => panic!("wire type {other}"),
        }
    }
    drop(input);
    bytes.clear();
    found
}

#[test]
fn v1_statistics_are_those_of_the_stock_shim() {
    let tree = v1_tree();
    let metrics = v1_metrics(&tree);
    assert_eq!((metrics.pids.current, metrics.pids.limit), (3, 0));
    let (usage, throttling) = (&metrics.cpu.usage, &metrics.cpu.throttling);
    assert_eq!(
        (usage.total, usage.user, usage.kernel),
        (987_654_321, 120_000_000, 340_000_000)
    );
    assert_eq!(usage.per_cpu, [100, 200]);
    assert_eq!(
        (
            throttling.periods,
            throttling.throttled_periods,
            throttling.throttled_time
        ),
        (4, 5, 6)
    );

    let memory = numbers(&*metrics.memory);
    assert_eq!(
        memory,
        (0..32)
            .map(|at| (at + 1, 1000 + u64::from(at)))
            .collect::<Vec<_>>()
    );
    let entries = [
        &metrics.memory.usage,
        &metrics.memory.swap,
        &metrics.memory.kernel,
        &metrics.memory.kernel_tcp,
    ];
    for (at, entry) in (0..).zip(entries) {
        let found = (entry.usage, entry.max, entry.failcnt, entry.limit);
        assert_eq!(
            found,
            (at * 10 + 1, at * 10 + 2, at * 10 + 3, 9_223_372_036_854_771_712)
        );
    }
    let oom = &metrics.memory_oom_control;
    assert_eq!((oom.oom_kill_disable, oom.under_oom, oom.oom_kill), (1, 0, 3));

    let huge: Vec<_> = metrics
        .hugetlb
        .iter()
        .map(|h| (&*h.pagesize, h.usage, h.max, h.failcnt))
        .collect();
    assert_eq!(
        huge,
        [("1GB", 21, 22, 23), ("2MB", 1, 2, 3), ("64KB", 11, 12, 13)]
    );

    let rdma = |entries: &[m1::RdmaEntry]| {
        entries
            .iter()
            .map(|e| (e.device.clone(), e.hca_handles, e.hca_objects))
            .collect::<Vec<_>>()
    };
    assert_eq!(rdma(&metrics.rdma.current), [("mlx4_0".to_owned(), 2, 2000)]);
    assert_eq!(
        rdma(&metrics.rdma.limit),
        [
            ("mlx4_0".to_owned(), u32::MAX, 0),
            ("mlx5_0".to_owned(), u32::MAX, u32::MAX)
        ]
    );

    let io = |entries: &[m1::BlkIOEntry]| {
        entries
            .iter()
            .map(|e| (e.device.clone(), e.major, e.minor, e.op.clone(), e.value))
            .collect::<Vec<_>>()
    };
    let entry =
        |device: &str, major, minor, op: &str, value| (device.to_owned(), major, minor, op.to_owned(), value);
    let served = [
        entry("/dev/vda", 254, 0, "Read", 5),
        entry("/dev/vda", 254, 0, "Write", 6),
        entry("", 7, 0, "Read", 1),
    ];
    assert_eq!(io(&metrics.blkio.io_serviced_recursive), served);
    let bytes = [entry("/dev/nvme0n1p1", 259, 1, "Read", 4096)];
    assert_eq!(io(&metrics.blkio.io_service_bytes_recursive), bytes);
    assert!(metrics.network.is_empty() && metrics.cgroup_stats.is_none());
}

#[test]
fn v1_block_io_prefers_what_the_cfq_scheduler_counts() {
    let tree = v1_tree();
    for (at, name) in [
        "sectors",
        "io_service_bytes",
        "io_serviced",
        "io_queued",
        "io_service_time",
        "io_wait_time",
        "io_merged",
        "time",
    ]
    .iter()
    .enumerate()
    {
        tree.write(
            &format!("cgroup/blkio/box/blkio.{name}_recursive"),
            &format!("254:0 {at}\n"),
        );
    }
    let stat = v1_metrics(&tree).blkio.unwrap();
    let value = |entries: &[m1::BlkIOEntry]| match entries {
        [entry] => (entry.device.clone(), entry.op.clone(), entry.value),
        others => panic!("{others:?}"),
    };
    for (at, entries) in [
        &stat.sectors_recursive,
        &stat.io_service_bytes_recursive,
        &stat.io_serviced_recursive,
        &stat.io_queued_recursive,
        &stat.io_service_time_recursive,
        &stat.io_wait_time_recursive,
        &stat.io_merged_recursive,
        &stat.io_time_recursive,
    ]
    .into_iter()
    .enumerate()
    {
        assert_eq!(value(entries), ("/dev/vda".to_owned(), String::new(), at as u64));
    }
}

#[test]
fn a_missing_v1_file_ends_its_controllers_part_only() {
    let tree = v1_tree();
    tree.remove("cgroup/memory/box/memory.memsw.failcnt");
    tree.remove("cgroup/pids/box/pids.max");
    tree.remove("cgroup/hugetlb/box/hugetlb.2MB.failcnt");
    tree.remove("cgroup/blkio/box/blkio.throttle.io_service_bytes");
    tree.write(
        "cgroup/rdma/box/rdma.max",
        "mlx4_0 hca_handle=max hca_object=max\n",
    );
    let metrics = v1_metrics(&tree);
    assert!(metrics.pids.is_none() && metrics.rdma.is_none());
    assert_eq!(
        (
            metrics.memory.swap.usage,
            metrics.memory.swap.max,
            metrics.memory.swap.limit
        ),
        (11, 12, 0)
    );
    assert_eq!(*metrics.memory.kernel, m1::MemoryEntry::new());
    assert!(
        metrics.memory.kernel_tcp.is_some(),
        "present and empty, as in the stock shim"
    );
    assert_eq!(metrics.hugetlb.len(), 1);
    assert_eq!(metrics.blkio.io_serviced_recursive.len(), 3);
    assert!(metrics.blkio.io_service_bytes_recursive.is_empty());

    tree.write("cgroup/cpu/box/cpu.stat", "nr_periods four\n");
    let cgroup = Cgroup::of_process_on(tree.host(), Mode::Legacy, 7).unwrap();
    let message = cgroup.stats().unwrap_err().to_string();
    assert!(
        message.contains("cpu.stat") && message.contains("nr_periods four"),
        "{message}"
    );
}

#[test]
fn a_v1_cgroup_is_where_its_controllers_are() {
    let tree = v1_tree();
    let cgroup = Cgroup::load_on(tree.host(), Mode::Hybrid, "/box").unwrap();
    let Version::V1(group) = &cgroup.version else {
        panic!("{cgroup:?}")
    };
    let names: Vec<_> = group
        .directories()
        .map(|dir| dir.strip_prefix(tree.path("cgroup")).unwrap())
        .collect();
    let wanted = [
        "pids/box",
        "cpu/box",
        "cpuacct/box",
        "memory/box",
        "blkio/box",
        "rdma/box",
        "hugetlb/box",
    ];
    assert_eq!(names, wanted.map(Path::new));

    let error = Cgroup::load_on(tree.host(), Mode::Hybrid, "/none").unwrap_err();
    assert!(
        matches!(error, Error::NotFound(_)) && error.to_string().contains("/none"),
        "{error}"
    );
    assert!(
        Cgroup::of_process_on(tree.host(), Mode::Legacy, 8)
            .unwrap_err()
            .to_string()
            .contains("proc/8/cgroup")
    );

    // Kills nobody: freezer's root is not the container's own, and the others are.
    let of_process = Cgroup::of_process_on(tree.host(), Mode::Legacy, 7).unwrap();
    assert_eq!(of_process.own_directory().unwrap(), tree.path("cgroup/pids/box"));
    let root = Cgroup::load_on(tree.host(), Mode::Legacy, "/").unwrap();
    assert!(matches!(root.kill_all(), Err(Error::FailedPrecondition(_))));
    assert!(matches!(root.pids(), Err(Error::FailedPrecondition(_))));
}

fn v2_tree() -> Tree {
    let tree = Tree::new(&[
        ("proc/7/cgroup", "0::/pods/box\n"),
        ("hugepages/hugepages-2048kB/nr_hugepages", "0\n"),
        ("cgroup/cgroup.controllers", "cpu io memory\n"),
        ("cgroup/cgroup.subtree_control", ""),
        ("cgroup/pods/cgroup.subtree_control", ""),
        ("cgroup/pods/box/cgroup.subtree_control", ""),
        ("cgroup/pods/box/pids.current", "3\n"),
        ("cgroup/pods/box/pids.max", "max\n"),
        (
            "cgroup/pods/box/cpu.stat",
            "usage_usec 1\nuser_usec 2\nsystem_usec 3\nnice_usec 0\nnr_periods 4\nnr_throttled 5\nthrottled_usec 6\n\
             nr_bursts 8\nburst_usec 9\n",
        ),
        (
            "cgroup/pods/box/cpu.pressure",
            "some avg10=1.50 avg60=2.25 avg300=0.03 total=4\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=5\n",
        ),
        ("cgroup/pods/box/memory.current", "32\n"),
        ("cgroup/pods/box/memory.max", "33\n"),
        ("cgroup/pods/box/memory.swap.current", "34\n"),
        ("cgroup/pods/box/memory.swap.max", "max\n"),
        ("cgroup/pods/box/memory.peak", "36\n"),
        ("cgroup/pods/box/memory.swap.peak", "37\n"),
        (
            "cgroup/pods/box/memory.pressure",
            "some avg10=x avg60=0.00 avg300=0.00 total=0\n",
        ),
        (
            "cgroup/pods/box/memory.events",
            "low 1\nhigh 2\nmax 3\noom 4\noom_kill 5\noom_group_kill 6\nsock_throttled 7\n",
        ),
        (
            "cgroup/pods/box/rdma.current",
            "mlx4_0 hca_handle=2 hca_object=2000\n",
        ),
        (
            "cgroup/pods/box/io.stat",
            "254:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n7:0 \n8:1\n259:1 rbytes=bad wios=9\n",
        ),
        ("cgroup/pods/box/io.pressure", ""),
        ("cgroup/pods/box/hugetlb.2MB.current", "1\n"),
        ("cgroup/pods/box/hugetlb.2MB.max", "max\n"),
        ("cgroup/pods/box/hugetlb.2MB.events", "max 4\n"),
    ]);
    let keys = MEMORY_V2.split_whitespace().enumerate();
    let stat: String = keys.map(|(at, key)| format!("{key} {}\n", at + 1)).collect();
    tree.write("cgroup/pods/box/memory.stat", &(stat + "zswap 99\n"));
    tree
}

#[test]
fn v2_statistics_are_those_of_the_stock_shim() {
    let metrics = v2_metrics(&v2_tree());
    assert_eq!((metrics.pids.current, metrics.pids.limit), (3, u64::MAX));
    let wanted = [1, 2, 3, 4, 5, 6, 8, 9].map(|at| (at, u64::from(at)));
    assert_eq!(numbers(&*metrics.cpu), wanted);
    let some = &metrics.cpu.psi.some;
    assert_eq!(
        (some.avg10, some.avg60, some.avg300, some.total),
        (1.5, 2.25, 0.03, 4)
    );
    assert_eq!(metrics.cpu.psi.full.total, 5);

    let mut wanted: Vec<_> = (1..=37).map(|at| (at, u64::from(at))).collect();
    wanted[34].1 = u64::MAX;
    assert_eq!(numbers(&*metrics.memory), wanted);
    assert!(
        metrics.memory.psi.is_none(),
        "a line of an unknown form hides the whole file"
    );
    assert_eq!(
        numbers(&*metrics.memory_events),
        [1, 2, 3, 4, 5, 6].map(|at| (at, u64::from(at)))
    );

    let io: Vec<_> = metrics.io.usage.iter().map(numbers).collect();
    assert_eq!(
        io,
        [
            vec![(1, 254), (3, 1), (4, 2), (5, 3), (6, 4)],
            vec![(1, 7)],
            vec![(1, 259), (2, 1), (6, 9)]
        ]
    );
    assert_eq!(*metrics.io.psi, m2::PSIStats::new());
    assert_eq!(metrics.rdma.current.len(), 1);
    assert!(metrics.rdma.limit.is_empty());
    let huge: Vec<_> = metrics
        .hugetlb
        .iter()
        .map(|h| (&*h.pagesize, h.current, h.max, h.failcnt))
        .collect();
    assert_eq!(huge, [("2MB", 1, u64::MAX, 4)]);
}

#[test]
fn a_v2_cgroup_without_files_reports_zeros() {
    let tree = Tree::new(&[
        ("proc/7/cgroup", "0::/gone\n"),
        ("hugepages/hugepages-2048kB/nr_hugepages", "0\n"),
    ]);
    let metrics = v2_metrics(&tree);
    assert_eq!(*metrics.cpu, m2::CPUStat::new());
    assert_eq!(*metrics.memory, m2::MemoryStat::new());
    assert!(metrics.pids.is_some() && metrics.io.is_some() && metrics.rdma.is_some());
    assert!(metrics.memory_events.is_none() && metrics.io.psi.is_none());
    assert_eq!((metrics.hugetlb.len(), metrics.hugetlb[0].max), (1, 0));
}

#[test]
fn controllers_are_enabled_in_all_v2_parents_and_not_in_the_cgroup_itself() {
    let tree = v2_tree();
    let cgroup = Cgroup::of_process_on(tree.host(), Mode::Unified, 7).unwrap();
    cgroup.enable_controllers().unwrap();
    let control = |dir: &str| fs::read_to_string(tree.path(dir).join("cgroup.subtree_control")).unwrap();
    assert_eq!(
        [control("cgroup"), control("cgroup/pods")],
        ["+cpu +io +memory"; 2]
    );
    assert_eq!(control("cgroup/pods/box"), "");
    // A refusal at the top does not matter, one next to the cgroup does.
    tree.remove("cgroup/cgroup.subtree_control");
    cgroup.enable_controllers().unwrap();
    tree.remove("cgroup/pods/cgroup.subtree_control");
    let message = cgroup.enable_controllers().unwrap_err().to_string();
    assert!(message.contains("cgroup/pods"), "{message}");
}

#[test]
fn a_v2_path_must_be_clean() {
    let tree = v2_tree();
    for path in [
        "box",
        "/../box",
        "/box/",
        "//box",
        "/./box",
        "/sys/fs/cgroup/box",
        "",
    ] {
        let error = Cgroup::load_on(tree.host(), Mode::Unified, path).unwrap_err();
        assert!(matches!(error, Error::InvalidArgument(_)), "{path}: {error}");
    }
    let root = Cgroup::load_on(tree.host(), Mode::Unified, "/").unwrap();
    assert!(matches!(root.kill_all(), Err(Error::FailedPrecondition(_))));
}

/// A cgroup that is removed again, with all that runs in it.
struct Real {
    dirs: Vec<PathBuf>,
    children: Vec<Child>,
}

impl Real {
    fn new(name: &str, roots: &[&str]) -> Self {
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

    fn path(&self) -> String {
        format!("/{}", self.dirs[0].file_name().unwrap().to_str().unwrap())
    }

    /// A shell that waits for a line before it goes on as `script`.
    fn shell(&mut self, cgroup: &Cgroup, script: &str) -> u32 {
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
const V1_FREEZER: &str = "/sys/fs/cgroup/freezer";
const HYBRID_V2: &str = "/sys/fs/cgroup/unified";

/// These need root and a real hierarchy of that version; elsewhere they have nothing to show.
fn has(root: &str, file: &str) -> bool {
    let found = nix::unistd::geteuid().is_root() && Path::new(root).join(file).exists();
    if !found {
        eprintln!("skipped: {root}/{file} is not here");
    }
    found
}

fn hybrid_v2() -> Host {
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
    let tree = v2_tree();
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
