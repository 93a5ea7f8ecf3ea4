use containerd_shim_protos::cgroups::metrics as m1;

use super::*;

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

fn v1_metrics(tree: &Tree) -> m1::Metrics {
    let cgroup = Cgroup::of_process_on(tree.host(), Mode::Legacy, 7).unwrap();
    let stats = cgroup.stats().unwrap();
    assert_eq!(stats.type_url, "io.containerd.cgroups.v1.Metrics");
    m1::Metrics::parse_from_bytes(&stats.value).unwrap()
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
