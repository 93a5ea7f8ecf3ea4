//! cgroup v2: one directory.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use containerd_shim_protos::cgroups_v2::metrics::{
    CPUStat, HugeTlbStat, IOEntry, IOStat, MemoryEvents, MemoryStat, Metrics, PSIStats, PidsStat, RdmaEntry,
    RdmaStat,
};
use protobuf::MessageField;

use super::{
    Host, clean,
    files::{Files, huge_page_sizes, rdma_line, unsigned},
    members,
};
use crate::error::{Context, Error, Result};

/// A cgroup of the unified hierarchy.
#[derive(Clone, Debug)]
pub(super) struct Group {
    directory: PathBuf,
}

impl Group {
    /// The cgroup of process `pid`, whose `/proc/PID/cgroup` holds `membership`.
    pub(super) fn of_process(host: &Host, pid: u32, membership: &str) -> Result<Self> {
        let path = membership.lines().find_map(|line| line.strip_prefix("0::"));
        let path =
            path.ok_or_else(|| Error::NotFound(format!("process {pid} is in no cgroup v2 hierarchy")))?;
        Self::load(host, path)
    }

    /// The cgroup at `path`.
    pub(super) fn load(host: &Host, path: &str) -> Result<Self> {
        if clean(path) != Path::new(path)
            || clean(path).as_os_str() != path
            || path.starts_with("/sys/fs/cgroup")
        {
            return Err(Error::InvalidArgument(format!(
                "{path:?} is not the path of a cgroup: it must start with /, below the mount point, without . or .."
            )));
        }
        Ok(Group {
            directory: host.cgroup.join(path.trim_start_matches('/')),
        })
    }

    /// Its directory.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Its directory, if it is not the whole hierarchy.
    pub(super) fn own_directory(&self, host: &Host) -> Option<&Path> {
        (!host.cgroup.starts_with(&self.directory)).then_some(&self.directory)
    }

    pub(super) fn enable_controllers(&self, host: &Host) -> Result<()> {
        let file = host.cgroup.join("cgroup.controllers");
        let controllers = fs::read_to_string(&file).context(|| format!("read {}", file.display()))?;
        let all: Vec<String> = controllers
            .split_whitespace()
            .map(|name| format!("+{name}"))
            .collect();
        let parents: Vec<&Path> = self
            .directory
            .ancestors()
            .skip(1)
            .take_while(|dir| dir.starts_with(&host.cgroup))
            .collect();
        let mut last = Ok(());
        for parent in parents.into_iter().rev() {
            last = members::write(&parent.join("cgroup.subtree_control"), &all.join(" "))
                .context(|| format!("enable the controllers {controllers:?} in {}", parent.display()));
        }
        last
    }

    /// What the stock shim reports: every part is there, with zeros where the kernel has no file.
    pub(super) fn metrics(&self, host: &Host) -> io::Result<Metrics> {
        let (dir, files) = (&*self.directory, &mut Files::default());
        let mut metrics = Metrics::new();
        metrics.pids = MessageField::some(PidsStat {
            current: number(files, dir, "pids.current"),
            limit: number(files, dir, "pids.max"),
            ..PidsStat::default()
        });
        metrics.cpu = MessageField::some(cpu(files, dir)?);
        metrics.memory = MessageField::some(memory(files, dir)?);
        metrics.memory_events = memory_events(files, dir)?.into();
        metrics.io = MessageField::some(IOStat {
            usage: io_usage(files, dir),
            psi: pressure(files, dir, "io.pressure").into(),
            ..IOStat::default()
        });
        metrics.rdma = MessageField::some(RdmaStat {
            current: rdma(files, dir, "rdma.current"),
            limit: rdma(files, dir, "rdma.max"),
            ..RdmaStat::default()
        });
        for (_, pagesize) in huge_page_sizes(&host.hugepages).unwrap_or_default() {
            metrics.hugetlb.push(HugeTlbStat {
                current: number(files, dir, &format!("hugetlb.{pagesize}.current")),
                max: number(files, dir, &format!("hugetlb.{pagesize}.max")),
                failcnt: huge_page_failures(files, dir, &pagesize),
                pagesize,
                ..HugeTlbStat::default()
            });
        }
        Ok(metrics)
    }
}

/// A file of one number, `max` being the largest; 0 when it is missing or of another form.
fn number(files: &mut Files, dir: &Path, name: &str) -> u64 {
    match files.read(dir, name).map(str::trim) {
        Ok("max") => u64::MAX,
        Ok(text) => unsigned(text).unwrap_or_default(),
        Err(_) => 0,
    }
}

/// Reads a file of pairs; says whether there is one.
fn pairs_if_any(files: &mut Files, dir: &Path, name: &str, each: impl FnMut(&str, u64)) -> io::Result<bool> {
    match files.pairs(dir, name, each) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn cpu(files: &mut Files, dir: &Path) -> io::Result<CPUStat> {
    let mut stat = CPUStat::new();
    let found = pairs_if_any(files, dir, "cpu.stat", |key, value| match key {
        "usage_usec" => stat.usage_usec = value,
        "user_usec" => stat.user_usec = value,
        "system_usec" => stat.system_usec = value,
        "nr_periods" => stat.nr_periods = value,
        "nr_throttled" => stat.nr_throttled = value,
        "throttled_usec" => stat.throttled_usec = value,
        "nr_bursts" => stat.nr_bursts = value,
        "burst_usec" => stat.burst_usec = value,
        _ => {}
    })?;
    if found {
        stat.psi = pressure(files, dir, "cpu.pressure").into();
    }
    Ok(stat)
}

fn memory(files: &mut Files, dir: &Path) -> io::Result<MemoryStat> {
    let mut stat = MemoryStat::new();
    let found = pairs_if_any(files, dir, "memory.stat", |key, value| {
        if let Some(field) = memory_field(&mut stat, key) {
            *field = value;
        }
    })?;
    if found {
        stat.usage = number(files, dir, "memory.current");
        stat.usage_limit = number(files, dir, "memory.max");
        stat.max_usage = number(files, dir, "memory.peak");
        stat.swap_usage = number(files, dir, "memory.swap.current");
        stat.swap_limit = number(files, dir, "memory.swap.max");
        stat.swap_max_usage = number(files, dir, "memory.swap.peak");
        stat.psi = pressure(files, dir, "memory.pressure").into();
    }
    Ok(stat)
}

fn memory_field<'a>(stat: &'a mut MemoryStat, key: &str) -> Option<&'a mut u64> {
    Some(match key {
        "anon" => &mut stat.anon,
        "file" => &mut stat.file,
        "kernel_stack" => &mut stat.kernel_stack,
        "slab" => &mut stat.slab,
        "sock" => &mut stat.sock,
        "shmem" => &mut stat.shmem,
        "file_mapped" => &mut stat.file_mapped,
        "file_dirty" => &mut stat.file_dirty,
        "file_writeback" => &mut stat.file_writeback,
        "anon_thp" => &mut stat.anon_thp,
        "inactive_anon" => &mut stat.inactive_anon,
        "active_anon" => &mut stat.active_anon,
        "inactive_file" => &mut stat.inactive_file,
        "active_file" => &mut stat.active_file,
        "unevictable" => &mut stat.unevictable,
        "slab_reclaimable" => &mut stat.slab_reclaimable,
        "slab_unreclaimable" => &mut stat.slab_unreclaimable,
        "pgfault" => &mut stat.pgfault,
        "pgmajfault" => &mut stat.pgmajfault,
        "workingset_refault" => &mut stat.workingset_refault,
        "workingset_activate" => &mut stat.workingset_activate,
        "workingset_nodereclaim" => &mut stat.workingset_nodereclaim,
        "pgrefill" => &mut stat.pgrefill,
        "pgscan" => &mut stat.pgscan,
        "pgsteal" => &mut stat.pgsteal,
        "pgactivate" => &mut stat.pgactivate,
        "pgdeactivate" => &mut stat.pgdeactivate,
        "pglazyfree" => &mut stat.pglazyfree,
        "pglazyfreed" => &mut stat.pglazyfreed,
        "thp_fault_alloc" => &mut stat.thp_fault_alloc,
        "thp_collapse_alloc" => &mut stat.thp_collapse_alloc,
        _ => return None,
    })
}

fn memory_events(files: &mut Files, dir: &Path) -> io::Result<Option<MemoryEvents>> {
    let mut events = None;
    pairs_if_any(files, dir, "memory.events", |key, value| {
        let events = events.get_or_insert_with(MemoryEvents::new);
        match key {
            "low" => events.low = value,
            "high" => events.high = value,
            "max" => events.max = value,
            "oom" => events.oom = value,
            "oom_kill" => events.oom_kill = value,
            "oom_group_kill" => events.oom_group_kill = value,
            _ => {}
        }
    })?;
    Ok(events)
}

/// Lines `major:minor key=value ...`; a device that did nothing has no pairs and is left out.
fn io_usage(files: &mut Files, dir: &Path) -> Vec<IOEntry> {
    let mut entries = Vec::new();
    for line in files.read(dir, "io.stat").unwrap_or_default().lines() {
        let Some((number, pairs)) = line.split_once(' ') else {
            continue;
        };
        let Some((major, minor)) = number.split_once(':').filter(|(_, minor)| !minor.contains(':')) else {
            continue;
        };
        let (Ok(major), Ok(minor)) = (major.parse(), minor.parse()) else {
            break;
        };
        let mut entry = IOEntry {
            major,
            minor,
            ..IOEntry::default()
        };
        for (key, value) in pairs.split(' ').filter_map(|pair| pair.split_once('=')) {
            let Ok(value) = value.parse() else { continue };
            match key {
                "rbytes" => entry.rbytes = value,
                "wbytes" => entry.wbytes = value,
                "rios" => entry.rios = value,
                "wios" => entry.wios = value,
                _ => {}
            }
        }
        entries.push(entry);
    }
    entries
}

fn rdma(files: &mut Files, dir: &Path, name: &str) -> Vec<RdmaEntry> {
    let lines = files.read(dir, name).unwrap_or_default().lines();
    let entries = lines
        .filter_map(rdma_line)
        .map(|(device, hca_handles, hca_objects)| RdmaEntry {
            device: device.to_owned(),
            hca_handles,
            hca_objects,
            ..RdmaEntry::default()
        });
    entries.collect()
}

fn huge_page_failures(files: &mut Files, dir: &Path, pagesize: &str) -> u64 {
    let mut failures = 0;
    let read = files.pairs(dir, &format!("hugetlb.{pagesize}.events"), |key, value| {
        if key == "max" {
            failures = value;
        }
    });
    read.map_or(0, |()| failures)
}

/// Pressure stall information; none where the kernel does not keep it.
fn pressure(files: &mut Files, dir: &Path, name: &str) -> Option<PSIStats> {
    let mut stats = PSIStats::new();
    for line in files.read(dir, name).ok()?.lines() {
        let mut fields = line.split_whitespace();
        let data = match fields.next() {
            Some("some") => stats.some.mut_or_insert_default(),
            Some("full") => stats.full.mut_or_insert_default(),
            _ => continue,
        };
        for field in fields {
            match field.split_once('=')? {
                ("avg10", value) => data.avg10 = value.parse().ok()?,
                ("avg60", value) => data.avg60 = value.parse().ok()?,
                ("avg300", value) => data.avg300 = value.parse().ok()?,
                ("total", value) => data.total = value.parse().ok()?,
                _ => {}
            }
        }
    }
    Some(stats)
}
