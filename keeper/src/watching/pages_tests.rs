//! Every way of writing to a large file, on real file systems, and commits of what was told of it.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Condvar, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use nix::fcntl::FallocateFlags as How;

use super::{
    Watching,
    tests::{Bed, Random},
};
use crate::{
    blueshift::Freezer,
    tests::{Disk, materialise},
};

pub(super) const MIB: u64 = 1 << 20;
pub(super) const PAGE: u64 = 4096;
/// So long is the file.
pub(super) const LENGTH: u64 = 6 * MIB;

pub(super) fn noise(length: u64, random: &mut Random) -> Vec<u8> {
    (0..length.div_ceil(8))
        .flat_map(|_| random.next().to_le_bytes())
        .collect()
}

pub(super) fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}

/// Bytes in memory that begin where a page does, as direct I/O wants them.
fn aligned(bytes: &[u8], then: impl FnOnce(&[u8]) -> io::Result<()>) -> io::Result<()> {
    let mut room = vec![0; bytes.len() + 4096];
    let at = room.as_ptr().align_offset(4096);
    room[at..at + bytes.len()].copy_from_slice(bytes);
    then(&room[at..at + bytes.len()])
}

#[allow(unsafe_code)]
mod sys {
    use std::{fs::File, io, os::fd::AsRawFd};

    /// Stores to memory that is mapped from a file.
    pub fn store(file: &File, at: u64, bytes: &[u8]) -> io::Result<()> {
        let begin = at / 4096 * 4096;
        let skipped = usize::try_from(at - begin).unwrap();
        let length = skipped + bytes.len();
        // SAFETY: the mapping is new, and as long as what is stored; it goes before this returns.
        unsafe {
            let memory = libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                begin.cast_signed(),
            );
            if memory == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
            let to = memory.cast::<u8>().add(skipped);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len());
            libc::munmap(memory, length);
        }
        Ok(())
    }

    /// So much of a file is mapped.
    pub const MAPPED: usize = 256 << 10;

    /// The beginning of a file, mapped.
    pub struct Memory(*mut u8);

    impl Memory {
        pub fn of(file: &File) -> Memory {
            // SAFETY: the mapping is new, and nothing else knows of it.
            let memory = unsafe {
                libc::mmap(
                    std::ptr::null_mut(),
                    MAPPED,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_SHARED,
                    file.as_raw_fd(),
                    0,
                )
            };
            assert!(memory != libc::MAP_FAILED);
            Memory(memory.cast())
        }

        pub fn store(&self, at: usize, value: u8) {
            assert!(at < MAPPED);
            // SAFETY: it is within the mapping, which lives as long as this, and the file is never shorter.
            unsafe { self.0.add(at).write_volatile(value) };
        }
    }

    impl Drop for Memory {
        fn drop(&mut self) {
            // SAFETY: this was mapped, and is used no more.
            unsafe { libc::munmap(self.0.cast(), MAPPED) };
        }
    }

    /// One write by io_uring.
    pub fn ring(file: &File, at: u64, bytes: &[u8]) -> io::Result<()> {
        let mut ring = io_uring::IoUring::new(2)?;
        let length = u32::try_from(bytes.len()).unwrap();
        let fd = io_uring::types::Fd(file.as_raw_fd());
        let write = io_uring::opcode::Write::new(fd, bytes.as_ptr(), length).offset(at);
        // SAFETY: the bytes live until the ring says that they were written.
        unsafe { ring.submission().push(&write.build()) }.map_err(io::Error::other)?;
        ring.submit_and_wait(1)?;
        let done = ring.completion().next().map_or(-libc::EIO, |done| done.result());
        match usize::try_from(done) {
            Ok(n) if n == bytes.len() => Ok(()),
            Ok(_) => Err(io::ErrorKind::WriteZero.into()),
            Err(_) => Err(io::Error::from_raw_os_error(-done)),
        }
    }

    /// FICLONERANGE.
    pub fn cloned(from: &File, at: u64, length: u64, to: &File, place: u64) -> io::Result<()> {
        let range = libc::file_clone_range {
            src_fd: from.as_raw_fd().into(),
            src_offset: at,
            src_length: length,
            dest_offset: place,
        };
        // SAFETY: the structure lives across the call.
        nix::errno::Errno::result(unsafe {
            libc::ioctl(to.as_raw_fd(), libc::FICLONERANGE, &raw const range)
        })?;
        Ok(())
    }
}

/// Writes at a place that a page begins at, some pages long.
type Way = fn(&Path, u64, &[u8]) -> io::Result<()>;

fn fallocate(path: &Path, how: How, at: u64, length: usize) -> io::Result<()> {
    Ok(nix::fcntl::fallocate(
        open(path)?,
        how,
        at.cast_signed(),
        length as i64,
    )?)
}

/// By name; whether the pages that were written to are all that is told.
const WAYS: &[(&str, bool, Way)] = &[
    ("write", true, |path, at, bytes| {
        open(path)?.write_all_at(bytes, at)
    }),
    ("some bytes", true, |path, at, bytes| {
        open(path)?.write_all_at(&bytes[..99], at + 1234)
    }),
    ("mmap", true, |path, at, bytes| {
        sys::store(&open(path)?, at + 5, &bytes[..99])
    }),
    ("io_uring", true, |path, at, bytes| {
        sys::ring(&open(path)?, at, bytes)
    }),
    ("direct", true, |path, at, bytes| {
        let mut direct = OpenOptions::new();
        let file = direct.write(true).custom_flags(libc::O_DIRECT).open(path)?;
        aligned(bytes, |bytes| file.write_all_at(bytes, at))
    }),
    ("direct by io_uring", true, |path, at, bytes| {
        let mut direct = OpenOptions::new();
        let file = direct.write(true).custom_flags(libc::O_DIRECT).open(path)?;
        aligned(bytes, |bytes| sys::ring(&file, at, bytes))
    }),
    ("splice", true, |path, mut at, bytes| {
        let (from, to) = nix::unistd::pipe()?;
        let n = nix::unistd::write(&to, &bytes[..PAGE as usize])?;
        let flags = rustix::pipe::SpliceFlags::empty();
        rustix::pipe::splice(&from, None, open(path)?, Some(&mut at), n, flags)?;
        Ok(())
    }),
    ("copy_file_range", false, |path, at, bytes| {
        let (file, mut from, mut to) = (open(path)?, LENGTH / 2, at);
        rustix::fs::copy_file_range(&file, Some(&mut from), &file, Some(&mut to), bytes.len())?;
        Ok(())
    }),
    ("clone", false, |path, at, bytes| {
        let file = open(path)?;
        sys::cloned(&file, LENGTH / 2, bytes.len() as u64, &file, at)
    }),
    ("append", false, |path, _, bytes| {
        let mut options = OpenOptions::new();
        io::Write::write_all(&mut options.append(true).open(path)?, bytes)
    }),
    ("punch", false, |path, at, bytes| {
        let how = How::FALLOC_FL_PUNCH_HOLE | How::FALLOC_FL_KEEP_SIZE;
        fallocate(path, how, at + 7, bytes.len())
    }),
    ("zero", false, |path, at, bytes| {
        fallocate(path, How::FALLOC_FL_ZERO_RANGE, at + 7, bytes.len())
    }),
    ("collapse", false, |path, at, bytes| {
        fallocate(path, How::FALLOC_FL_COLLAPSE_RANGE, at, bytes.len())
    }),
    ("insert", false, |path, at, bytes| {
        fallocate(path, How::FALLOC_FL_INSERT_RANGE, at, bytes.len())
    }),
    ("room", false, |path, _, _| {
        fallocate(path, How::empty(), LENGTH, PAGE as usize)
    }),
    ("truncate", false, |path, at, _| {
        Ok(nix::unistd::truncate(
            path,
            (LENGTH - 1234 - at / 8).cast_signed(),
        )?)
    }),
    ("truncate and grow", false, |path, at, _| {
        nix::unistd::truncate(path, (at + 77).cast_signed())?;
        Ok(nix::unistd::truncate(path, LENGTH.cast_signed())?)
    }),
    ("ftruncate", false, |path, at, _| {
        open(path)?.set_len(LENGTH - at / 8)
    }),
    ("anew", false, |path, _, bytes| {
        let file = OpenOptions::new().write(true).truncate(true).open(path)?;
        file.write_all_at(bytes, 3 * MIB)?;
        file.set_len(LENGTH)
    }),
    ("another in its place", false, |path, at, bytes| {
        let other = path.with_extension("other");
        let file = File::create(&other)?;
        file.set_len(LENGTH)?;
        file.write_all_at(bytes, at)?;
        fs::rename(other, path)
    }),
    ("a time alone", true, |path, at, _| {
        let times = nix::sys::time::TimeSpec::new(at.cast_signed(), 0);
        let same = nix::sys::time::TimeSpec::UTIME_OMIT;
        let how = nix::sys::stat::UtimensatFlags::FollowSymlink;
        Ok(nix::sys::stat::utimensat(
            nix::fcntl::AT_FDCWD,
            path,
            &same,
            &times,
            how,
        )?)
    }),
];

/// What cannot be done on a file system, or by this kernel.
fn unsupported(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EOPNOTSUPP | libc::EINVAL | libc::ENOSYS | libc::EPERM)
    )
}

/// Goes all ways on the file system that a program makes; whether pages are to tell there.
fn all_ways(program: &str, told: bool) {
    let Some(disk) = Disk::new(program, 512) else {
        return;
    };
    let bed = Bed::watched(&disk.at(), Watching::auto).unwrap();
    if let Err(why) = bed.watching.pages() {
        assert!(
            !told || why.contains("tracepoint") || why.contains("clang"),
            "{why}"
        );
        println!("{program}, whole files: {why}");
    }
    let pages = bed.watching.pages().is_ok();
    let mut random = Random(7);
    let path = bed.at("file");
    fs::write(&path, noise(LENGTH, &mut random)).unwrap();
    // Twice: what was never flushed has no past.
    bed.commit(None).unwrap();
    bed.commit(Some("again"));
    bed.check();
    for (name, little, way) in WAYS.iter().chain(WAYS.iter().rev()) {
        // What is in memory in large folios is told of as such.
        let file = open(&path).unwrap();
        file.sync_all().unwrap();
        let unneeded = nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED;
        nix::fcntl::posix_fadvise(&file, 0, 0, unneeded).unwrap();
        drop(file);
        let bytes = noise((1 + random.below(4)) * PAGE, &mut random);
        let at = random.below(LENGTH / 2 / PAGE) * PAGE;
        match way(&path, at, &bytes) {
            Err(error) if unsupported(&error) => {
                println!("{program}: {name} cannot be tried: {error}");
                continue;
            }
            done => done.unwrap_or_else(|error| panic!("{name}: {error}")),
        }
        let made = bed
            .commit(None)
            .unwrap_or_else(|| panic!("{program}: nobody has seen {name}"));
        println!("{program}: {name} at {at}: {} bytes read", made.commit.read);
        bed.check();
        if *little && pages {
            assert!(
                made.commit.read <= MIB,
                "{name}: {} bytes were read",
                made.commit.read
            );
        }
        // Back to where it was, without a word about how.
        let now = fs::metadata(&path).unwrap().len();
        if now != LENGTH {
            fs::write(&path, noise(LENGTH, &mut random)).unwrap();
            bed.commit(None);
            bed.check();
        }
    }
    assert_eq!(bed.watching.counts().2, 0, "changes that nobody told of");
}

#[test]
fn every_way_of_writing_is_seen_on_ext4() {
    all_ways("mkfs.ext4", true);
}

#[test]
fn every_way_of_writing_is_seen_on_xfs() {
    all_ways("mkfs.xfs", true);
}

#[test]
fn every_way_of_writing_is_seen_on_btrfs() {
    all_ways("mkfs.btrfs", false);
}

/// What writers pass, each time they write, and are stopped at; the file is copied as it is then.
struct Gate<'a> {
    bed: &'a Bed,
    copy: PathBuf,
    /// Whether it is shut, and how many are inside.
    state: Mutex<(bool, usize)>,
    moved: Condvar,
}

impl Gate<'_> {
    fn through<T>(&self, write: impl FnOnce() -> T) -> T {
        let state = self.state.lock().unwrap();
        let mut state = self.moved.wait_while(state, |(shut, _)| *shut).unwrap();
        state.1 += 1;
        drop(state);
        let done = write();
        self.state.lock().unwrap().1 -= 1;
        self.moved.notify_all();
        done
    }
}

impl Freezer for Gate<'_> {
    fn freeze(&self, _: Duration) -> io::Result<bool> {
        let mut state = self.state.lock().unwrap();
        state.0 = true;
        drop(self.moved.wait_while(state, |(_, inside)| *inside > 0).unwrap());
        fs::copy(self.bed.upper().join("file"), &self.copy)?;
        Ok(true)
    }

    fn thaw(&self) -> bool {
        self.state.lock().unwrap().0 = false;
        self.moved.notify_all();
        true
    }
}

/// Writers that do not wait for commits: one to mapped memory, one in every other way that leaves the file its inode.
fn beside_writers(program: &str) {
    let Some(disk) = Disk::new(program, 512) else {
        return;
    };
    let bed = Bed::watched(&disk.at(), Watching::auto).unwrap();
    if let Err(why) = bed.watching.pages() {
        return println!("skipped: {why}");
    }
    let time = std::env::var("DIFFKEEPER_SOAK").map_or(Duration::from_secs(3), |_| Duration::from_secs(300));
    let path = bed.at("file");
    fs::write(&path, noise(LENGTH, &mut Random(1))).unwrap();
    let other = tempfile::tempdir().unwrap();
    let gate = Gate {
        bed: &bed,
        copy: other.path().join("copy"),
        state: Mutex::default(),
        moved: Condvar::new(),
    };
    let (ended, commits) = (AtomicBool::new(false), AtomicU64::new(0));
    let writing = || !ended.load(Ordering::Relaxed);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut random = Random(2);
            let memory = sys::Memory::of(&open(&path).unwrap());
            while writing() {
                let (at, value) = (random.below(sys::MAPPED as u64), random.next());
                gate.through(|| memory.store(at as usize, value as u8));
                std::thread::sleep(Duration::from_micros(random.below(500)));
            }
        });
        scope.spawn(|| {
            let mut random = Random(3);
            while writing() {
                let bytes = noise((1 + random.below(4)) * PAGE, &mut random);
                let at = sys::MAPPED as u64 + random.below(64) * PAGE;
                let (name, little, way) = WAYS[random.below(WAYS.len() as u64) as usize];
                // The mapping must stay; and of some commits only a part is to be compared.
                let stays = !["anew", "another in its place", "truncate and grow"].contains(&name);
                if stays && (little || commits.load(Ordering::Relaxed).is_multiple_of(4)) {
                    gate.through(|| {
                        let _ = way(&path, at, &bytes);
                        let file = open(&path).unwrap();
                        if file.metadata().unwrap().len() != LENGTH {
                            file.set_len(LENGTH).unwrap();
                        }
                    });
                }
                std::thread::sleep(Duration::from_millis(random.below(10)));
            }
        });
        let begun = Instant::now();
        let (mut made_so_far, mut little) = (0, 0);
        // On a busy machine all of a few may be of the whole file.
        while begun.elapsed() < time || made_so_far < 8 || little == 0 && made_so_far < 100 {
            let made = bed.stopped_by(&gate, Some("beside")).unwrap();
            let out = other.path().join("out");
            fs::create_dir(&out).unwrap();
            materialise(&bed.store, &made, &out);
            let (copy, held) = (fs::read(&gate.copy).unwrap(), fs::read(out.join("file")).unwrap());
            let differs = copy.iter().zip(&held).position(|(a, b)| a != b);
            if differs.is_some() || copy.len() != held.len() {
                ended.store(true, Ordering::Relaxed);
                panic!(
                    "{program}: commit {made_so_far} differs at {differs:?}, {} and {} bytes",
                    copy.len(),
                    held.len()
                );
            }
            made_so_far = 1 + commits.fetch_add(1, Ordering::Relaxed);
            little += u32::from(made.commit.read < LENGTH);
            fs::remove_dir_all(out).unwrap();
        }
        ended.store(true, Ordering::Relaxed);
        println!("{program}: {made_so_far} commits, {little} of them of a part of the file");
        assert!(
            little > 0,
            "none of {made_so_far} commits made use of what was told"
        );
    });
}

#[test]
fn commits_beside_writers_hold_what_there_was_on_ext4() {
    beside_writers("mkfs.ext4");
}

#[test]
fn commits_beside_writers_hold_what_there_was_on_xfs() {
    beside_writers("mkfs.xfs");
}
