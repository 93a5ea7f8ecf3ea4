//! Random operations on a directory, the same ones from the same seed: run in a container, and once more on the node
//! to learn what the directory held after each.
//!
//! Each operation is one system call that changes something, or one store to mapped memory: whatever moment a container
//! is stopped at, it was done or it was not. Its number is written to a file before it is begun.

use std::{
    fs::{File, OpenOptions, Permissions},
    io::{self, Write},
    os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt, chown, symlink},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use rustix::fs::{AtFlags, CWD, FallocateFlags, FileType, Mode, RenameFlags, XattrFlags};

use crate::bench::Random;

mod large;

pub use large::SMALLEST;

/// The first word of the command line of what runs in a container.
pub const WORD: &str = "random-operations";
/// Names of one directory; there are directories of directories of directories.
const NAMES: [&str; 6] = ["a", "b", "c", "d", "not a word", "é"];
/// No file is larger, or is asked to be.
const LARGEST: usize = 192 << 10;
/// Files that stay open.
const OPEN: usize = 4;

/// Of which kind the operations are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// All but what fanotify does not tell of: that a file is cut by its name alone.
    Told,
    /// Of every kind.
    All,
    /// Ways of writing to large files.
    Large,
}

impl Which {
    /// As the command line has it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Which::Told => "told",
            Which::All => "all",
            Which::Large => "large",
        }
    }

    fn of(word: &str) -> Result<Which> {
        let known = [Which::Told, Which::All, Which::Large];
        let found = known.into_iter().find(|which| which.word() == word);
        found.with_context(|| format!("no operations are called {word:?}"))
    }
}

/// What makes the changes.
pub struct Operations {
    dir: PathBuf,
    random: Random,
    done: u64,
    open: [Option<File>; OPEN],
    which: Which,
}

impl Operations {
    /// In an empty directory.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new(dir: &Path, seed: u64, which: Which) -> Result<Operations> {
        std::fs::create_dir_all(dir)?;
        Ok(Operations {
            dir: dir.to_owned(),
            random: Random(seed),
            done: 0,
            open: Default::default(),
            which,
        })
    }

    /// How many were done.
    #[must_use]
    pub fn done(&self) -> u64 {
        self.done
    }

    /// Does the next one. That one may fail is part of the game.
    pub fn next(&mut self) {
        self.done += 1;
        // A signal is no part of it: the container is stopped by something like one.
        let before = self.random.0;
        while matches!(self.kind(), Err(error) if error.kind() == io::ErrorKind::Interrupted) {
            self.random = Random(before);
        }
    }

    fn kind(&mut self) -> io::Result<()> {
        match self.which {
            Which::Large => self.change_large(),
            Which::Told | Which::All => self.change(),
        }
    }

    fn path(&mut self) -> PathBuf {
        let mut path = self.dir.clone();
        for _ in 0..=self.random.below(3) {
            path.push(NAMES[self.random.below(NAMES.len())]);
        }
        path
    }

    /// A place in a file, and what may be written there.
    fn data(&mut self) -> (u64, Vec<u8>) {
        let at = self.random.below(LARGEST / 2);
        let length = match self.random.below(8) {
            0 => self.random.below(LARGEST / 2),
            _ => self.random.below(6000),
        };
        let word = self.done.to_le_bytes();
        (at as u64, word.iter().copied().cycle().take(length).collect())
    }

    fn file(&mut self) -> io::Result<File> {
        let path = self.path();
        opened(OpenOptions::new().read(true).write(true), &path)
    }

    fn change(&mut self) -> io::Result<()> {
        match self.random.below(25) {
            0..=2 => {
                let path = self.path();
                File::create_new(path).map(drop)
            }
            3 | 4 => std::fs::create_dir(self.path()),
            5..=7 => {
                let (at, data) = self.data();
                self.file()?.write_at(&data, at).map(drop)
            }
            8 => {
                let (path, (_, data)) = (self.path(), self.data());
                let mut file = opened(OpenOptions::new().append(true), &path)?;
                if file.metadata()?.len() > LARGEST as u64 {
                    return Ok(());
                }
                file.write(&data).map(drop)
            }
            9 => {
                let (path, length) = (self.path(), self.random.below(LARGEST));
                if self.which == Which::All && length % 2 == 0 {
                    return Ok(nix::unistd::truncate(&path, length as i64)?);
                }
                opened(OpenOptions::new().write(true), &path)?.set_len(length as u64)
            }
            10 => {
                let path = self.path();
                opened(OpenOptions::new().write(true).truncate(true), &path).map(drop)
            }
            11 | 12 => {
                let (from, to) = (self.path(), self.path());
                std::fs::rename(from, to)
            }
            13 => {
                let (from, to) = (self.path(), self.path());
                Ok(rustix::fs::renameat_with(
                    CWD,
                    from,
                    CWD,
                    to,
                    RenameFlags::EXCHANGE,
                )?)
            }
            14 => {
                let (from, to) = (self.path(), self.path());
                Ok(rustix::fs::linkat(CWD, from, CWD, to, AtFlags::empty())?)
            }
            15 => {
                let (to, at) = (NAMES[self.random.below(NAMES.len())], self.path());
                symlink(to, at)
            }
            16 => std::fs::remove_file(self.path()),
            17 => std::fs::remove_dir(self.path()),
            18 => {
                let (path, mode) = (self.path(), self.random.below(0o2000));
                std::fs::set_permissions(path, Permissions::from_mode(mode as u32))
            }
            19 => {
                let (path, owner) = (self.path(), self.random.below(1000) as u32);
                chown(path, Some(owner), Some(owner / 2))
            }
            20 => self.attribute(),
            21 => {
                let at = self.random.below(LARGEST / 8) * 8;
                let path = self.path();
                self.store_to(&path, at)
            }
            22 => {
                let (at, length) = (self.random.below(LARGEST / 2), 1 + self.random.below(LARGEST / 2));
                let flags = [
                    FallocateFlags::empty(),
                    FallocateFlags::KEEP_SIZE,
                    FallocateFlags::KEEP_SIZE | FallocateFlags::PUNCH_HOLE,
                    FallocateFlags::KEEP_SIZE | FallocateFlags::PUNCH_HOLE,
                    FallocateFlags::ZERO_RANGE,
                ];
                let flags = flags[self.random.below(flags.len())];
                let file = self.file()?;
                Ok(rustix::fs::fallocate(file, flags, at as u64, length as u64)?)
            }
            23 => {
                let (path, kind) = (self.path(), self.random.below(3));
                let (kind, device) = match kind {
                    0 => (FileType::Fifo, 0),
                    1 => (FileType::CharacterDevice, rustix::fs::makedev(1, 3)),
                    _ => (FileType::BlockDevice, rustix::fs::makedev(7, 200)),
                };
                Ok(rustix::fs::mknodat(CWD, path, kind, Mode::from(0o640), device)?)
            }
            _ => {
                // One that stays open, whatever becomes of its name.
                let slot = self.random.below(OPEN);
                if self.random.below(3) == 0 {
                    self.open[slot] = self.file().ok();
                    return Ok(());
                }
                let (at, data) = self.data();
                let Some(file) = &self.open[slot] else {
                    return Ok(());
                };
                file.write_at(&data, at).map(drop)
            }
        }
    }

    fn attribute(&mut self) -> io::Result<()> {
        let name = ["user.one", "user.two"][self.random.below(2)];
        let (path, (_, mut value)) = (self.path(), self.data());
        value.truncate(100);
        if self.random.below(3) == 0 {
            return Ok(rustix::fs::lremovexattr(path, name)?);
        }
        Ok(rustix::fs::lsetxattr(path, name, &value, XattrFlags::empty())?)
    }

    /// Stores a word to mapped memory.
    fn store_to(&self, path: &Path, at: usize) -> io::Result<()> {
        let file = opened(OpenOptions::new().read(true).write(true), path)?;
        if !file.metadata()?.is_file() || file.metadata()?.len() < at as u64 + 8 {
            return Ok(());
        }
        // SAFETY: nobody else cuts the file: operations come one after the other.
        let mut map = unsafe { memmap2::MmapMut::map_mut(&file)? };
        if let Some(word) = map.get_mut(at..at + 8) {
            // SAFETY: eight bytes that are there, at a multiple of eight: one instruction, done or not done.
            unsafe { word.as_mut_ptr().cast::<u64>().write_volatile(self.done) };
        }
        Ok(())
    }
}

/// A fifo that nobody reads must not hold anybody up.
fn opened(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    let flags = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or_default();
    options.custom_flags(flags).open(path)
}

/// What runs in a container: operations without end in the directories `0` and `1` below `dir`, the second with the seed
/// that follows, and their numbers in files beside them.
///
/// # Errors
/// A word that is none, a directory that cannot be written.
pub fn run(dir: &Path, seed: u64, which: &str) -> Result<()> {
    let which = Which::of(which)?;
    let work = |n: u64| -> Result<()> {
        let mut operations = Operations::new(&dir.join(n.to_string()), seed + n, which)?;
        let number = File::create(dir.join(format!("{n}.number")))?;
        loop {
            number.write_all_at(format!("{:020}", operations.done() + 1).as_bytes(), 0)?;
            operations.next();
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(|| work(1));
        work(0)?;
        other.join().unwrap_or_else(|_| anyhow::bail!("it has panicked"))
    })
}
