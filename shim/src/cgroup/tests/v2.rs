use containerd_shim_protos::cgroups_v2::metrics as m2;

use super::*;

const MEMORY_V2: &str = "anon file kernel_stack slab sock shmem file_mapped file_dirty file_writeback anon_thp \
    inactive_anon active_anon inactive_file active_file unevictable slab_reclaimable slab_unreclaimable pgfault \
    pgmajfault workingset_refault workingset_activate workingset_nodereclaim pgrefill pgscan pgsteal pgactivate \
    pgdeactivate pglazyfree pglazyfreed thp_fault_alloc thp_collapse_alloc";

fn v2_metrics(tree: &Tree) -> m2::Metrics {
    let stats = Cgroup::of_process_on(tree.host(), Mode::Unified, 7)
        .unwrap()
        .stats()
        .unwrap();
    assert_eq!(stats.type_url, "io.containerd.cgroups.v2.Metrics");
    m2::Metrics::parse_from_bytes(&stats.value).unwrap()
}

pub(super) fn v2_tree() -> Tree {
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
