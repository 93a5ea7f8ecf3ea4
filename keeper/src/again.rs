//! The second look, at a tree that stands still: its length is how long the container waits.
//!
//! Nothing is listed that the first look has listed, unless the directory says that it has changed since: every entry is asked
//! how it looks, a directory's together, several directories at a time. What is new is walked, which is little: it came
//! into being since the first look.

use std::{
    collections::HashSet,
    ffi::OsStr,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
};

use nix::{
    fcntl::{AtFlags, openat},
    sys::stat::{FileStat, Mode, fstat, fstatat},
};
use rayon::prelude::*;
use store::Look;

use crate::tree::{self, DIR, Seen};

/// What a directory held at the first look: indices into it.
#[derive(Default)]
struct Dir {
    seen: usize,
    /// Behind everything below it.
    end: usize,
    files: Vec<usize>,
    /// Indices of directories here.
    below: Vec<usize>,
}

/// What the first look saw, made ready for the second.
pub(crate) struct Again<'a> {
    first: &'a [Seen],
    /// How each entry looks if nothing has become of it; none where it is to be read again in any case.
    expected: Vec<Option<Look>>,
    dirs: Vec<Dir>,
    tops: Vec<usize>,
}

/// What has become of a tree between two looks.
#[derive(Default)]
pub(crate) struct Difference {
    /// What is new, or looks otherwise, or could not be trusted the first time; in no order.
    pub changed: Vec<Seen>,
    /// What is there no more: indices into the first look.
    pub gone: Vec<usize>,
}

impl Difference {
    fn and(mut self, mut other: Difference) -> Difference {
        if self.changed.len() < other.changed.len() {
            std::mem::swap(&mut self, &mut other);
        }
        self.changed.append(&mut other.changed);
        self.gone.append(&mut other.gone);
        self
    }
}

pub(crate) fn is_directory(stat: &FileStat) -> bool {
    stat.st_mode & libc::S_IFMT == libc::S_IFDIR
}

/// The last part of a key.
fn name(key: &[u8]) -> &OsStr {
    OsStr::from_bytes(key.rsplit(|b| *b == 0).next().unwrap_or_default())
}

fn is_gone(error: nix::Error) -> bool {
    matches!(
        error,
        nix::Error::ENOENT | nix::Error::ENOTDIR | nix::Error::ELOOP
    )
}

impl<'a> Again<'a> {
    /// Makes ready; `first` is in the order of its keys.
    pub(crate) fn new(first: &'a [Seen], expected: impl Fn(&Seen) -> Option<Look>) -> Again<'a> {
        let mut dirs: Vec<Dir> = Vec::new();
        let mut tops = Vec::new();
        // The directories on the way down to the entry.
        let mut way: Vec<usize> = Vec::new();
        for (index, seen) in first.iter().enumerate() {
            let inside = |dir: &Dir| {
                first.get(dir.seen).is_some_and(|above| {
                    seen.key
                        .strip_prefix(above.key.as_slice())
                        .is_some_and(|rest| rest.first() == Some(&0))
                })
            };
            while let Some(last) = way.last().and_then(|last| dirs.get_mut(*last)) {
                if inside(last) {
                    break;
                }
                last.end = index;
                way.pop();
            }
            let above = way.last().copied();
            if is_directory(&seen.stat) {
                let this = dirs.len();
                dirs.push(Dir {
                    seen: index,
                    end: first.len(),
                    ..Dir::default()
                });
                match above.and_then(|above| dirs.get_mut(above)) {
                    Some(above) => above.below.push(this),
                    None => tops.push(this),
                }
                way.push(this);
            } else if let Some(above) = above.and_then(|above| dirs.get_mut(above)) {
                above.files.push(index);
            }
        }
        Again {
            first,
            expected: first.iter().map(expected).collect(),
            dirs,
            tops,
        }
    }

    /// Looks again. `open` opens the top of a key; `wanted` says which keys are recorded, and below which nothing is.
    ///
    /// # Errors
    /// A directory that cannot be read.
    pub(crate) fn look(
        &self,
        open: impl Fn(&[u8]) -> io::Result<OwnedFd>,
        wanted: &(dyn Fn(&[u8]) -> bool + Sync),
    ) -> io::Result<Difference> {
        let mut all = Difference::default();
        for (dir, seen) in self.tops.iter().filter_map(|top| self.dir(*top)) {
            let fd = open(&seen.key)?;
            let stat = fstat(&fd)?;
            all = all.and(self.known(dir, seen, &fd, stat, wanted)?);
        }
        Ok(all)
    }

    fn dir(&self, index: usize) -> Option<(&Dir, &Seen)> {
        let dir = self.dirs.get(index)?;
        Some((dir, self.first.get(dir.seen)?))
    }

    /// A directory that was there, and is.
    fn known(
        &self,
        dir: &Dir,
        seen: &Seen,
        fd: &OwnedFd,
        stat: FileStat,
        wanted: &(dyn Fn(&[u8]) -> bool + Sync),
    ) -> io::Result<Difference> {
        let mut found = Difference::default();
        let same = self.expected.get(dir.seen).copied().flatten() == Some(tree::look(&stat));
        if !same {
            found.changed.push(Seen {
                key: seen.key.clone(),
                stat,
            });
            self.listed_anew(dir, seen, fd, wanted, &mut found)?;
        }
        for index in &dir.files {
            self.file(*index, fd, wanted, &mut found)?;
        }
        let below = |index: &usize| -> io::Result<Difference> {
            let Some((dir, seen)) = self.dir(*index) else {
                return Ok(Difference::default());
            };
            match openat(fd, name(&seen.key), DIR, Mode::empty()) {
                // One that has taken its place looks otherwise, and so do those in it.
                Ok(opened) => self.known(dir, seen, &opened, fstat(&opened)?, wanted),
                Err(error) if is_gone(error) => {
                    let mut found = Difference {
                        gone: (dir.seen..dir.end).collect(),
                        ..Difference::default()
                    };
                    self.fresh(fd, &seen.key, wanted, &mut found)?;
                    Ok(found)
                }
                Err(error) => Err(error.into()),
            }
        };
        let found_below: io::Result<Difference> = match dir.below.len() {
            0 => return Ok(found),
            1 => dir
                .below
                .iter()
                .map(below)
                .next()
                .unwrap_or(Ok(Difference::default())),
            _ => dir
                .below
                .par_iter()
                .map(below)
                .try_reduce(Difference::default, |a, b| Ok(a.and(b))),
        };
        Ok(found.and(found_below?))
    }

    fn file(
        &self,
        index: usize,
        fd: &OwnedFd,
        wanted: &(dyn Fn(&[u8]) -> bool + Sync),
        found: &mut Difference,
    ) -> io::Result<()> {
        let Some(seen) = self.first.get(index) else {
            return Ok(());
        };
        match fstatat(fd.as_fd(), name(&seen.key), AtFlags::AT_SYMLINK_NOFOLLOW) {
            Err(error) if is_gone(error) => found.gone.push(index),
            Err(error) => return Err(error.into()),
            Ok(stat) if is_directory(&stat) => {
                found.gone.push(index);
                self.fresh(fd, &seen.key, wanted, found)?;
            }
            Ok(stat) => {
                if self.expected.get(index).copied().flatten() != Some(tree::look(&stat)) {
                    if tree::is_socket(&stat) {
                        found.gone.push(index);
                    } else {
                        found.changed.push(Seen {
                            key: seen.key.clone(),
                            stat,
                        });
                    }
                }
            }
        }
        Ok(())
    }

    /// The names in a directory that were not there.
    fn listed_anew(
        &self,
        dir: &Dir,
        seen: &Seen,
        fd: &OwnedFd,
        wanted: &(dyn Fn(&[u8]) -> bool + Sync),
        found: &mut Difference,
    ) -> io::Result<()> {
        let below = dir.below.iter().filter_map(|below| self.dirs.get(*below));
        let known: HashSet<&OsStr> = dir
            .files
            .iter()
            .copied()
            .chain(below.map(|dir| dir.seen))
            .filter_map(|index| Some(name(&self.first.get(index)?.key)))
            .collect();
        for fresh in tree::names(fd)? {
            if !known.contains(OsStr::from_bytes(&fresh)) {
                let key = [&seen.key, &[0][..], &fresh].concat();
                self.fresh(fd, &key, wanted, found)?;
            }
        }
        Ok(())
    }

    /// What was not there, with all below it.
    fn fresh(
        &self,
        fd: &OwnedFd,
        key: &[u8],
        wanted: &(dyn Fn(&[u8]) -> bool + Sync),
        found: &mut Difference,
    ) -> io::Result<()> {
        if !wanted(key) {
            return Ok(());
        }
        let stat = match fstatat(fd.as_fd(), name(key), AtFlags::AT_SYMLINK_NOFOLLOW) {
            Err(error) if is_gone(error) => return Ok(()),
            stat => stat?,
        };
        if !is_directory(&stat) {
            if !tree::is_socket(&stat) {
                found.changed.push(Seen {
                    key: key.to_vec(),
                    stat,
                });
            }
            return Ok(());
        }
        let opened = match openat(fd, name(key), DIR, Mode::empty()) {
            Err(error) if is_gone(error) => return Ok(()),
            opened => opened?,
        };
        tree::walk_from(opened, key, wanted, |fresh| {
            if !tree::is_socket(&fresh.stat) {
                found.changed.push(fresh);
            }
            Ok(())
        })
    }
}

/// The tree as the second look found it, in the order of its keys.
pub(crate) fn merged(first: Vec<Seen>, difference: &Difference) -> Vec<Seen> {
    let mut changed: Vec<&Seen> = difference.changed.iter().collect();
    changed.sort_unstable_by(|a, b| a.key.cmp(&b.key));
    let mut left_out = vec![false; first.len()];
    for gone in &difference.gone {
        if let Some(out) = left_out.get_mut(*gone) {
            *out = true;
        }
    }
    let mut merged = Vec::with_capacity(first.len() + changed.len());
    let mut changed = changed.into_iter().peekable();
    for (seen, out) in first.into_iter().zip(left_out) {
        while let Some(before) = changed.next_if(|new| new.key < seen.key) {
            merged.push(before.clone());
        }
        match changed.next_if(|new| new.key == seen.key) {
            Some(new) => merged.push(new.clone()),
            None if out => {}
            None => merged.push(seen),
        }
    }
    merged.extend(changed.cloned());
    merged
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeMap,
        fs,
        path::{Path, PathBuf},
        time::{Duration, SystemTime, UNIX_EPOCH},
    };

    use proptest::prelude::*;

    use super::*;

    fn seen(dir: &Path) -> Vec<Seen> {
        let mut seen = Vec::new();
        tree::walk(
            dir,
            b"root",
            |key| !key.ends_with(b"\0excluded"),
            |found| {
                if !tree::is_socket(&found.stat) {
                    seen.push(found);
                }
                Ok(())
            },
        )
        .unwrap();
        seen
    }

    /// Something that a container does to its files; names are few, so that they meet.
    #[derive(Debug, Clone)]
    enum Step {
        Write(u8, u8),
        Make(u8),
        Remove(u8),
        Move(u8, u8),
        Link(u8, u8),
        Symlink(u8),
        Touch(u8),
        Socket(u8),
        Wait,
    }

    fn path(dir: &Path, number: u8) -> PathBuf {
        const NAMES: [&str; 4] = ["a", "b", "a-b", "excluded"];
        let part = |n: u8| NAMES[usize::from(n % 4)];
        let mut path = dir.join(part(number));
        for level in 1..=(number >> 6) {
            path.push(part(number >> (2 * level)));
        }
        path
    }

    impl Step {
        fn run(&self, dir: &Path) {
            let path = |number: &u8| path(dir, *number);
            // Whatever does not work does nothing.
            let _ = match self {
                Step::Write(at, bytes) => fs::write(path(at), vec![*bytes; usize::from(*bytes)]),
                Step::Make(at) => fs::create_dir_all(path(at)),
                Step::Remove(at) => fs::remove_file(path(at)).or_else(|_| fs::remove_dir_all(path(at))),
                Step::Move(from, to) => fs::rename(path(from), path(to)),
                Step::Link(from, to) => fs::hard_link(path(from), path(to)),
                Step::Symlink(at) => std::os::unix::fs::symlink("/etc", path(at)),
                Step::Touch(at) => fs::File::open(path(at)).and_then(|file| file.set_modified(UNIX_EPOCH)),
                Step::Socket(at) => std::os::unix::net::UnixListener::bind(path(at)).map(drop),
                Step::Wait => {
                    std::thread::sleep(Duration::from_millis(25));
                    Ok(())
                }
            };
        }
    }

    fn step() -> impl Strategy<Value = Step> {
        let at = any::<u8>;
        prop_oneof![
            3 => (at(), at()).prop_map(|(at, bytes)| Step::Write(at, bytes)),
            3 => at().prop_map(Step::Make),
            2 => at().prop_map(Step::Remove),
            3 => (at(), at()).prop_map(|(from, to)| Step::Move(from, to)),
            2 => (at(), at()).prop_map(|(from, to)| Step::Link(from, to)),
            1 => at().prop_map(Step::Symlink),
            1 => at().prop_map(Step::Touch),
            1 => at().prop_map(Step::Socket),
            1 => Just(Step::Wait),
        ]
    }

    fn told(seen: &[Seen]) -> BTreeMap<Vec<u8>, (Look, u32)> {
        let told = seen
            .iter()
            .map(|seen| (seen.key.clone(), (tree::look(&seen.stat), seen.stat.st_mode)));
        told.collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn the_second_look_finds_what_a_walk_would(
            before in proptest::collection::vec(step(), 0..40),
            after in proptest::collection::vec(step(), 0..20),
        ) {
            let dir = tempfile::tempdir().unwrap();
            before.iter().for_each(|step| step.run(dir.path()));
            let at = SystemTime::now();
            let first = seen(dir.path());
            let old = at.duration_since(UNIX_EPOCH).unwrap() - Duration::from_millis(20);
            let old = i64::try_from(old.as_nanos()).unwrap();
            let again = Again::new(&first, |seen| Some(tree::look(&seen.stat)).filter(|look| look.ctime < old));
            after.iter().for_each(|step| step.run(dir.path()));
            let open = |_: &[u8]| tree::top(dir.path());
            let found = again.look(open, &|key: &[u8]| !key.ends_with(b"\0excluded")).unwrap();
            let last = merged(first.clone(), &found);
            prop_assert!(last.is_sorted_by(|a, b| a.key < b.key));
            prop_assert_eq!(told(&last), told(&seen(dir.path())));
        }
    }

    #[test]
    fn what_stands_still_is_not_read_again() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["x/y/z", "x/w", "v"] {
            fs::create_dir_all(dir.path().join(name)).unwrap();
            fs::write(dir.path().join(name).join("file"), name).unwrap();
        }
        let first = seen(dir.path());
        let again = Again::new(&first, |seen| Some(tree::look(&seen.stat)));
        let open = |_: &[u8]| tree::top(dir.path());
        let found = again.look(open, &|_: &[u8]| true).unwrap();
        assert!(found.changed.is_empty() && found.gone.is_empty());

        fs::write(dir.path().join("x/y/z/file"), "other").unwrap();
        fs::remove_file(dir.path().join("v/file")).unwrap();
        let found = again.look(open, &|_: &[u8]| true).unwrap();
        let mut changed: Vec<&[u8]> = found.changed.iter().map(|seen| seen.key.as_slice()).collect();
        changed.sort();
        assert_eq!(changed, [&b"root\0v"[..], b"root\0x\0y\0z\0file"]);
        assert_eq!(found.gone.len(), 1);
    }
}
