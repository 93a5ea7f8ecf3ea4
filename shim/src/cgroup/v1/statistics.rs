//! The statistics of cgroup v1.

use std::{io, path::Path};

use containerd_shim_protos::cgroups::metrics::{
    BlkIOEntry, BlkIOStat, HugetlbStat, MemoryEntry, MemoryOomControl, MemoryStat, Metrics, PidsStat,
    RdmaEntry, RdmaStat,
};
use protobuf::MessageField;

use super::{Controller, Group};
use crate::cgroup::{
    Host,
    files::{Files, huge_page_sizes, invalid, rdma_line, unsigned},
};

impl Group {
    /// What the stock shim reports. A missing file ends its controller's part and no more: whatever was read
    /// before it stays.
    pub(in crate::cgroup) fn metrics(&self, host: &Host) -> io::Result<Metrics> {
        let mut files = Files::default();
        let mut metrics = Metrics::new();
        let cpu = metrics.cpu.mut_or_insert_default();
        cpu.usage.mut_or_insert_default();
        cpu.throttling.mut_or_insert_default();
        for Controller { name, directory, .. } in &self.controllers {
            let part = match *name {
                "pids" => pids(&mut files, directory, &mut metrics),
                "cpu" => cpu_throttling(&mut files, directory, &mut metrics),
                "cpuacct" => cpu_usage(&mut files, directory, &mut metrics),
                "memory" => memory(&mut files, directory, &mut metrics),
                "blkio" => block_io(&mut files, directory, &host.proc, &mut metrics),
                "rdma" => rdma(&mut files, directory, &mut metrics),
                "hugetlb" => hugetlb(&mut files, directory, &host.hugepages, &mut metrics),
                _ => continue,
            };
            match part {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                done => done?,
            }
        }
        Ok(metrics)
    }
}

/// A file of one number; no limit (`max`) is 0.
fn number(files: &mut Files, dir: &Path, name: &str) -> io::Result<u64> {
    match files.read(dir, name)?.trim() {
        "max" => Ok(0),
        text => unsigned(text).ok_or_else(|| invalid(&dir.join(name), text)),
    }
}

fn pids(files: &mut Files, dir: &Path, metrics: &mut Metrics) -> io::Result<()> {
    let current = number(files, dir, "pids.current")?;
    let limit = number(files, dir, "pids.max")?;
    metrics.pids = MessageField::some(PidsStat {
        current,
        limit,
        ..PidsStat::default()
    });
    Ok(())
}

fn cpu_throttling(files: &mut Files, dir: &Path, metrics: &mut Metrics) -> io::Result<()> {
    let throttling = metrics
        .cpu
        .mut_or_insert_default()
        .throttling
        .mut_or_insert_default();
    files.pairs(dir, "cpu.stat", |key, value| match key {
        "nr_periods" => throttling.periods = value,
        "nr_throttled" => throttling.throttled_periods = value,
        "throttled_time" => throttling.throttled_time = value,
        _ => {}
    })
}

fn cpu_usage(files: &mut Files, dir: &Path, metrics: &mut Metrics) -> io::Result<()> {
    // cpuacct.stat counts in USER_HZ, which is 100 on every Linux.
    const NANOSECONDS: u64 = 1_000_000_000;
    const TICKS: u64 = 100;
    let (mut user, mut system) = (None, None);
    files.pairs(dir, "cpuacct.stat", |key, value| match key {
        "user" => user = Some(value),
        "system" => system = Some(value),
        _ => {}
    })?;
    let (Some(user), Some(system)) = (user, system) else {
        return Err(invalid(&dir.join("cpuacct.stat"), "user or system is missing"));
    };
    let total = number(files, dir, "cpuacct.usage")?;
    let per_cpu: Option<Vec<u64>> = files
        .read(dir, "cpuacct.usage_percpu")?
        .split_whitespace()
        .map(|text| text.parse().ok())
        .collect();
    let usage = metrics.cpu.mut_or_insert_default().usage.mut_or_insert_default();
    usage.total = total;
    usage.user = user.wrapping_mul(NANOSECONDS) / TICKS;
    usage.kernel = system.wrapping_mul(NANOSECONDS) / TICKS;
    usage.per_cpu = per_cpu.ok_or_else(|| invalid(&dir.join("cpuacct.usage_percpu"), "not numbers"))?;
    Ok(())
}

fn memory(files: &mut Files, dir: &Path, metrics: &mut Metrics) -> io::Result<()> {
    let mut stat = MemoryStat::new();
    let read = files.pairs(dir, "memory.stat", |key, value| {
        if let Some(field) = memory_field(&mut stat, key) {
            *field = value;
        }
    });
    read?;
    for entry in [
        &mut stat.usage,
        &mut stat.swap,
        &mut stat.kernel,
        &mut stat.kernel_tcp,
    ] {
        entry.mut_or_insert_default();
    }
    let stat = metrics.memory.0.insert(Box::new(stat));

    let mut oom = MemoryOomControl::new();
    files.pairs(dir, "memory.oom_control", |key, value| match key {
        "oom_kill_disable" => oom.oom_kill_disable = value,
        "under_oom" => oom.under_oom = value,
        "oom_kill" => oom.oom_kill = value,
        _ => {}
    })?;
    metrics.memory_oom_control = MessageField::some(oom);

    memory_entry(files, dir, "memory", stat.usage.mut_or_insert_default())?;
    memory_entry(files, dir, "memory.memsw", stat.swap.mut_or_insert_default())?;
    memory_entry(files, dir, "memory.kmem", stat.kernel.mut_or_insert_default())?;
    memory_entry(
        files,
        dir,
        "memory.kmem.tcp",
        stat.kernel_tcp.mut_or_insert_default(),
    )
}

fn memory_entry(files: &mut Files, dir: &Path, prefix: &str, entry: &mut MemoryEntry) -> io::Result<()> {
    entry.usage = number(files, dir, &format!("{prefix}.usage_in_bytes"))?;
    entry.max = number(files, dir, &format!("{prefix}.max_usage_in_bytes"))?;
    entry.failcnt = number(files, dir, &format!("{prefix}.failcnt"))?;
    entry.limit = number(files, dir, &format!("{prefix}.limit_in_bytes"))?;
    Ok(())
}

fn memory_field<'a>(stat: &'a mut MemoryStat, key: &str) -> Option<&'a mut u64> {
    Some(match key {
        "cache" => &mut stat.cache,
        "rss" => &mut stat.rss,
        "rss_huge" => &mut stat.rss_huge,
        "mapped_file" => &mut stat.mapped_file,
        "dirty" => &mut stat.dirty,
        "writeback" => &mut stat.writeback,
        "pgpgin" => &mut stat.pg_pg_in,
        "pgpgout" => &mut stat.pg_pg_out,
        "pgfault" => &mut stat.pg_fault,
        "pgmajfault" => &mut stat.pg_maj_fault,
        "inactive_anon" => &mut stat.inactive_anon,
        "active_anon" => &mut stat.active_anon,
        "inactive_file" => &mut stat.inactive_file,
        "active_file" => &mut stat.active_file,
        "unevictable" => &mut stat.unevictable,
        "hierarchical_memory_limit" => &mut stat.hierarchical_memory_limit,
        "hierarchical_memsw_limit" => &mut stat.hierarchical_swap_limit,
        "total_cache" => &mut stat.total_cache,
        "total_rss" => &mut stat.total_rss,
        "total_rss_huge" => &mut stat.total_rss_huge,
        "total_mapped_file" => &mut stat.total_mapped_file,
        "total_dirty" => &mut stat.total_dirty,
        "total_writeback" => &mut stat.total_writeback,
        "total_pgpgin" => &mut stat.total_pg_pg_in,
        "total_pgpgout" => &mut stat.total_pg_pg_out,
        "total_pgfault" => &mut stat.total_pg_fault,
        "total_pgmajfault" => &mut stat.total_pg_maj_fault,
        "total_inactive_anon" => &mut stat.total_inactive_anon,
        "total_active_anon" => &mut stat.total_active_anon,
        "total_inactive_file" => &mut stat.total_inactive_file,
        "total_active_file" => &mut stat.total_active_file,
        "total_unevictable" => &mut stat.total_unevictable,
        _ => return None,
    })
}

fn block_io(files: &mut Files, dir: &Path, proc: &Path, metrics: &mut Metrics) -> io::Result<()> {
    let stat = metrics.blkio.mut_or_insert_default();
    let names = device_names(files, proc)?;
    // Kernels with the CFQ scheduler have these; where they count nothing, or are missing, the throttling
    // layer's count.
    if dir.join("blkio.io_serviced_recursive").symlink_metadata().is_ok() {
        let BlkIOStat {
            sectors_recursive,
            io_service_bytes_recursive,
            io_serviced_recursive,
            io_queued_recursive,
            io_service_time_recursive,
            io_wait_time_recursive,
            io_merged_recursive,
            io_time_recursive,
            ..
        } = &mut *stat;
        let mut found = 0;
        for (name, entries) in [
            ("blkio.sectors_recursive", sectors_recursive),
            ("blkio.io_service_bytes_recursive", io_service_bytes_recursive),
            ("blkio.io_serviced_recursive", io_serviced_recursive),
            ("blkio.io_queued_recursive", io_queued_recursive),
            ("blkio.io_service_time_recursive", io_service_time_recursive),
            ("blkio.io_wait_time_recursive", io_wait_time_recursive),
            ("blkio.io_merged_recursive", io_merged_recursive),
            ("blkio.time_recursive", io_time_recursive),
        ] {
            block_entries(files, dir, name, &names, entries)?;
            found += entries.len();
        }
        if found > 0 {
            return Ok(());
        }
    }
    block_entries(
        files,
        dir,
        "blkio.throttle.io_serviced",
        &names,
        &mut stat.io_serviced_recursive,
    )?;
    block_entries(
        files,
        dir,
        "blkio.throttle.io_service_bytes",
        &names,
        &mut stat.io_service_bytes_recursive,
    )
}

/// A block device's number and its path.
type Device = ((u64, u64), String);

fn device_names(files: &mut Files, proc: &Path) -> io::Result<Vec<Device>> {
    let mut names: Vec<Device> = Vec::new();
    for line in files.read(proc, "partitions")?.lines().skip(2) {
        let mut fields = line.split_whitespace();
        let (Some(major), Some(minor), Some(name)) = (fields.next(), fields.next(), fields.nth(1)) else {
            continue;
        };
        let (Ok(major), Ok(minor)) = (major.parse(), minor.parse()) else {
            return Err(invalid(&proc.join("partitions"), line));
        };
        if !names.iter().any(|(number, _)| *number == (major, minor)) {
            names.push(((major, minor), format!("/dev/{name}")));
        }
    }
    Ok(names)
}

/// Lines `major:minor operation value`, or without the operation; a last line `Total value`.
fn block_entries(
    files: &mut Files,
    dir: &Path,
    name: &str,
    names: &[Device],
    entries: &mut Vec<BlkIOEntry>,
) -> io::Result<()> {
    for line in files.read(dir, name)?.lines() {
        let fields: Vec<&str> = line.split([' ', ':']).filter(|field| !field.is_empty()).collect();
        let (major, minor, op, value) = match fields[..] {
            ["Total", _] => continue,
            [major, minor, op, value] => (major, minor, op, value),
            [major, minor, value, ..] => (major, minor, "", value),
            _ => return Err(invalid(&dir.join(name), line)),
        };
        let (Ok(major), Ok(minor), Ok(value)) = (major.parse(), minor.parse(), value.parse()) else {
            return Err(invalid(&dir.join(name), line));
        };
        let device = names.iter().find(|(number, _)| *number == (major, minor));
        entries.push(BlkIOEntry {
            op: op.to_owned(),
            device: device.map(|(_, path)| path.clone()).unwrap_or_default(),
            major,
            minor,
            value,
            ..BlkIOEntry::default()
        });
    }
    Ok(())
}

fn rdma(files: &mut Files, dir: &Path, metrics: &mut Metrics) -> io::Result<()> {
    let (current, current_lines) = rdma_entries(files.read(dir, "rdma.current")?);
    let (limit, limit_lines) = rdma_entries(files.read(dir, "rdma.max")?);
    // A device that was removed between the two reads: better none than a mismatch.
    if current_lines == limit_lines {
        metrics.rdma = MessageField::some(RdmaStat {
            current,
            limit,
            ..RdmaStat::default()
        });
    }
    Ok(())
}

fn rdma_entries(text: &str) -> (Vec<RdmaEntry>, usize) {
    let entries = text
        .lines()
        .filter_map(rdma_line)
        .map(|(device, hca_handles, hca_objects)| RdmaEntry {
            device: device.to_owned(),
            hca_handles,
            hca_objects,
            ..RdmaEntry::default()
        });
    (entries.collect(), text.split('\n').count())
}

fn hugetlb(files: &mut Files, dir: &Path, hugepages: &Path, metrics: &mut Metrics) -> io::Result<()> {
    for pagesize in by_name(hugepages)? {
        metrics.hugetlb.push(HugetlbStat {
            usage: number(files, dir, &format!("hugetlb.{pagesize}.usage_in_bytes"))?,
            max: number(files, dir, &format!("hugetlb.{pagesize}.max_usage_in_bytes"))?,
            failcnt: number(files, dir, &format!("hugetlb.{pagesize}.failcnt"))?,
            pagesize,
            ..HugetlbStat::default()
        });
    }
    Ok(())
}

/// On v1 the stock shim lists the sizes in the order of their directories' names.
fn by_name(hugepages: &Path) -> io::Result<Vec<String>> {
    huge_page_sizes(hugepages).map(|mut sizes| {
        sizes.sort_by_cached_key(|(name, _)| name.clone());
        sizes.into_iter().map(|(_, size)| size).collect()
    })
}
