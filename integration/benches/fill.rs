//! The first fill of an image volume beside `cp -a`: copied alone, and on the disk. `make bench`.
//!
//! On file systems of its own, in memory: a disk adds the same to both, and scatters by more than they differ. One that is
//! long in use counts for more still: ext4 without a journal takes twenty times as long to make a file where others were
//! just deleted.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use integration::bench::{self, Bar, Figure, figure, milliseconds};
use live::{Node, Root};

/// A fresh file system in a file in memory, mounted.
struct Disk {
    dir: tempfile::TempDir,
    mounted: bool,
}

impl Disk {
    /// None without the program that makes it.
    fn new(program: &str) -> Result<Option<Disk>> {
        let dir = tempfile::tempdir_in("/dev/shm")?;
        let image = dir.path().join("image");
        File::create(&image)?.set_len(6 << 30)?;
        let made = match Command::new(program).arg("-q").arg(&image).status() {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            made => made.with_context(|| format!("run {program}"))?,
        };
        ensure!(made.success(), "{program}");
        let mut disk = Disk { dir, mounted: false };
        fs::create_dir(disk.at())?;
        let mounted = Command::new("mount")
            .args(["-o", "loop"])
            .arg(&image)
            .arg(disk.at())
            .status()?;
        ensure!(mounted.success(), "mount {}", image.display());
        disk.mounted = true;
        Ok(Some(disk))
    }

    /// No disk at all.
    fn tmpfs() -> Result<Disk> {
        let disk = Disk {
            dir: tempfile::tempdir_in("/dev/shm")?,
            mounted: false,
        };
        fs::create_dir(disk.at())?;
        Ok(disk)
    }

    fn at(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    fn sync(&self) -> Result<()> {
        Ok(nix::unistd::syncfs(&File::open(self.at())?)?)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.mounted {
            // Nothing can be done about it here, and umount says what is wrong.
            let _ = Command::new("umount").arg(self.at()).status();
        }
    }
}

/// What an image might hold.
struct Data {
    name: &'static str,
    files: usize,
    size: usize,
}

const DATA: [Data; 2] = [
    Data {
        name: "8,000 files of 4 KiB",
        files: 8000,
        size: 4096,
    },
    Data {
        name: "8 files of 32 MiB",
        files: 8,
        size: 32 << 20,
    },
];

impl Data {
    fn write(&self, to: &Path) -> Result<()> {
        for n in 0..self.files {
            let below = to.join(format!("d{}", n % 100));
            fs::create_dir_all(&below)?;
            fs::write(below.join(n.to_string()), vec![n as u8; self.size])?;
        }
        Ok(())
    }

    fn megabytes(&self) -> f64 {
        (self.files * self.size) as f64 / f64::from(1 << 20)
    }
}

fn cp(from: &Path, to: &Path) -> Result<()> {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status()?;
    ensure!(copied.success(), "cp -a");
    Ok(())
}

/// The copying alone.
fn copied(disk: &Disk, from: &Path, ours: bool) -> Result<()> {
    if !ours {
        return cp(from, &disk.at().join("cp"));
    }
    let to = disk.at().join("ours");
    fs::create_dir(&to)?;
    Ok(live::copy_tree(from, &to)?)
}

/// Until a power cut would take nothing of it away.
fn filled(disk: &Disk, from: &Path, ours: bool) -> Result<()> {
    if !ours {
        cp(from, &disk.at().join("cp"))?;
        return disk.sync();
    }
    let node = Node::open(&disk.at().join("ours"))?;
    let root = node
        .state(&"ctr/bench/fill".parse()?)
        .root(&Root::Volume("/data".into()))?;
    root.prepare_volume(from)?;
    Ok(())
}

type Way = fn(&Disk, &Path, bool) -> Result<()>;

fn pairs(case: &str, disk: &Disk, data: &Data, way: Way, pairs: usize) -> Result<Figure> {
    let from = disk.at().join("from");
    data.write(&from)?;
    disk.sync()?;
    let (mut ours, mut peer) = (Vec::new(), Vec::new());
    for n in 0..pairs {
        for our_turn in if n % 2 == 0 { [true, false] } else { [false, true] } {
            let ms = milliseconds(|| way(disk, &from, our_turn))?;
            let rates = if our_turn { &mut ours } else { &mut peer };
            rates.push(data.megabytes() / (ms / 1000.0));
            // What is still to be written must not be paid for by the next.
            disk.sync()?;
            fs::remove_dir_all(disk.at().join(if our_turn { "ours" } else { "cp" }))?;
            disk.sync()?;
        }
    }
    fs::remove_dir_all(&from)?;
    let case = format!("{case}, {}", data.name);
    let bar = Bar::LowerAtLeast(1.0);
    Ok(figure(&case, "MiB/s", &ours, &peer, "cp -a", &bar))
}

fn main() -> Result<()> {
    if std::env::var("BENCH_ONLY").is_ok_and(|only| only != "fill") {
        return Ok(());
    }
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: the benchmarks of fills need root (mounts)");
        return Ok(());
    }
    let wanted: Option<usize> = std::env::var("BENCH_PAIRS").ok().and_then(|n| n.parse().ok());
    let count = wanted.unwrap_or(30).min(15);
    let mut figures = Vec::new();
    for data in &DATA {
        figures.push(pairs("tmpfs: copied", &Disk::tmpfs()?, data, copied, count)?);
    }
    for (kind, program) in [("ext4", "mkfs.ext4"), ("XFS, reflinks", "mkfs.xfs")] {
        let Some(disk) = Disk::new(program)? else {
            println!("skipped: fills on {kind}: there is no {program}");
            continue;
        };
        for data in &DATA {
            figures.push(pairs(&format!("{kind}: copied"), &disk, data, copied, count)?);
            figures.push(pairs(
                &format!("{kind}: filled, synced"),
                &disk,
                data,
                filled,
                count,
            )?);
        }
    }
    bench::report("fill", &format!("{count} pairs"), &figures)
}
