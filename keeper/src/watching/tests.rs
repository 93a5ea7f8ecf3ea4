//! Random changes through a real overlay, and commits of what was named, compared with the tree entry by entry.

use std::{
    fs::{self, File, OpenOptions},
    io::Write,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink},
    },
    path::{Path, PathBuf},
};

use store::{Recorded, format::Reason};

use super::*;
use crate::{
    blueshift::{Freezer, Top},
    progress::Progress,
    quiesce::Quiesced,
    tests::{deep, listing, materialise, root, same, store},
    watcher::writers::Writers,
};

/// Nothing runs while a commit is made.
pub(super) struct Still;

impl Freezer for Still {
    fn freeze(&self, _: Duration) -> io::Result<bool> {
        Ok(true)
    }

    fn thaw(&self) -> bool {
        true
    }
}

/// Small, seeded, and the same everywhere (xorshift64*).
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(super) fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 33) % limit
    }
}

/// An overlay, its state, and what watches it.
pub(super) struct Bed {
    dir: PathBuf,
    _temporary: Option<tempfile::TempDir>,
    overlay: Option<OwnedFd>,
    pub(super) store: Store,
    pub(super) watching: Watching,
    /// Files that are open for writing, by their paths.
    open: Vec<(PathBuf, File)>,
}

impl Bed {
    /// In a directory of its own, watched as well as can be.
    fn new() -> Option<Bed> {
        let temporary = tempfile::tempdir().unwrap();
        let dir = temporary.path().to_owned();
        let bed = Bed {
            _temporary: Some(temporary),
            ..Bed::watched(&dir, Watching::auto)?
        };
        match bed.watching.fanotify() {
            Ok(_) => Some(bed),
            Err(why) => {
                println!("skipped: {why}");
                None
            }
        }
    }

    /// In a directory, watched somehow.
    pub(super) fn watched(dir: &Path, watching: fn(&Path, &Path) -> Watching) -> Option<Bed> {
        if !root() {
            return None;
        }
        for name in ["lower/dir/sub", "upper", "work", "scratch", "store"] {
            fs::create_dir_all(dir.join(name)).unwrap();
        }
        for n in 0..6 {
            fs::write(dir.join(format!("lower/dir/sub/file{n}")), format!("image {n}")).unwrap();
        }
        Some(Bed {
            watching: watching(dir, &dir.join("scratch")),
            overlay: Some(live::overlay_of(dir).unwrap()),
            store: store(&dir.join("store")),
            dir: dir.to_owned(),
            _temporary: None,
            open: Vec::new(),
        })
    }

    pub(super) fn upper(&self) -> PathBuf {
        self.dir.join("upper")
    }

    /// A path in the overlay.
    pub(super) fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        let fd = self.overlay.as_ref().unwrap().as_raw_fd();
        PathBuf::from(format!("/proc/self/fd/{fd}")).join(path)
    }

    pub(super) fn commit(&self, message: Option<&str>) -> Option<Recorded> {
        self.stopped_by(&Still, message)
    }

    pub(super) fn stopped_by(&self, freezer: &dyn Freezer, message: Option<&str>) -> Option<Recorded> {
        self.captured(freezer, message, |capture| capture.run(&self.store).unwrap())
    }

    /// Does something with what is to be recorded.
    fn captured<T>(
        &self,
        freezer: &dyn Freezer,
        message: Option<&str>,
        work: impl FnOnce(&Capture<'_>) -> T,
    ) -> T {
        let state = self.store.make_state("ctr/default/web", "ctr/default").unwrap();
        let tops = [Top {
            name: b"rootfs".to_vec(),
            path: self.upper(),
            overlay: true,
        }];
        let open = || {
            let mut writers = Writers::default();
            for (_, file) in &self.open {
                let path = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
                let path = path.to_string_lossy().into_owned();
                writers.hidden |= path.ends_with(" (deleted)") && file.metadata()?.nlink() > 0;
                writers
                    .keys
                    .insert(store::format::key(b"rootfs", path.as_bytes()));
            }
            Ok(writers)
        };
        work(&Capture {
            state: &state,
            tops: &tops,
            exclude: &[],
            freezer: Some(freezer),
            undisturbed: &|| true,
            max_pause: Duration::from_secs(1),
            reason: Reason::Interval,
            message,
            image: "",
            node: "node",
            boot: "boot",
            watch: Some(Watched {
                watching: &self.watching,
                writers: &open,
                last: false,
            }),
        })
    }

    /// What the newest commit holds is what there is.
    pub(super) fn check(&self) {
        let state = self.store.state("ctr/default/web").unwrap().unwrap();
        let head = self.store.commit(state.head.unwrap().0).unwrap();
        let to = tempfile::tempdir().unwrap();
        let out = to.path().join("rootfs");
        fs::create_dir(&out).unwrap();
        materialise(&self.store, &head, &out);
        same(&listing(&self.upper()), &listing(&out));
    }

    /// One random change, of the first so many kinds.
    fn change(&mut self, random: &mut Random, ways: u64) {
        let place = |random: &mut Random| {
            let dir = ["", "a", "a/b", "c", "dir", "dir/sub"][random.below(6) as usize];
            Path::new(dir).join(format!("file{}", random.below(6)))
        };
        let (one, other) = (place(random), place(random));
        let (path, second) = (self.at(&one), self.at(&other));
        let mut bytes = vec![0; 1 + random.below(20_000) as usize];
        bytes.iter_mut().for_each(|byte| *byte = random.next() as u8);
        // Never waiting for whoever has the other end of a fifo.
        let open = || {
            let mut options = OpenOptions::new();
            options.custom_flags(libc::O_NONBLOCK);
            options
        };
        // What cannot be done is not done: a directory in the way, a name that is missing.
        let done: io::Result<()> = (|| match random.below(ways) {
            0 => open()
                .create(true)
                .truncate(true)
                .write(true)
                .open(&path)?
                .write_all(&bytes),
            1 => open().append(true).open(&path)?.write_all(b"more"),
            2 => open().write(true).open(&path)?.write_all_at(b"here", 77),
            3 => open().write(true).open(&path)?.set_len(random.below(9000)),
            4 => fs::rename(&path, &second),
            5 => fs::hard_link(&path, &second),
            6 => symlink("somewhere", &path),
            7 => fs::set_permissions(&path, fs::Permissions::from_mode(0o600 + random.below(64) as u32)),
            8 => std::os::unix::fs::lchown(&path, Some(random.below(9) as u32), Some(3)),
            9 => Ok(rustix::fs::lsetxattr(
                &path,
                "user.note",
                &bytes[..1],
                rustix::fs::XattrFlags::empty(),
            )?),
            10 => Ok(nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRUSR)?),
            11 => fs::remove_file(&path),
            12 => fs::create_dir_all(path.parent().unwrap()),
            13 => fs::create_dir(&path),
            14 => fs::remove_dir_all(path.parent().unwrap()),
            // ext4 moves a directory's times before it refuses to replace one that is not empty, and tells nobody.
            15 if second
                .parent()
                .is_none_or(|to| fs::remove_dir(to).is_ok() || !to.exists()) =>
            {
                fs::rename(path.parent().unwrap(), second.parent().unwrap())
            }
            16 => {
                let file = open().create(true).truncate(false).write(true).open(&path)?;
                self.open.push((one.clone(), file));
                Ok(())
            }
            17 if !self.open.is_empty() => {
                let which = random.below(self.open.len() as u64) as usize;
                self.open[which].1.write_all_at(&bytes, random.below(3000))
            }
            18 if !self.open.is_empty() => {
                let which = random.below(self.open.len() as u64) as usize;
                drop(self.open.swap_remove(which));
                Ok(())
            }
            19 => {
                let times = fs::FileTimes::new()
                    .set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(random.below(1 << 30)));
                let times = times.set_accessed(SystemTime::UNIX_EPOCH);
                open().read(true).open(&path)?.set_times(times)
            }
            20 => {
                let from = open().read(true).open(&path)?;
                let mut to = open().create(true).truncate(true).write(true).open(&second)?;
                io::copy(&mut &from, &mut to).map(drop)
            }
            21 => {
                // A file without a name gets one, and is written to afterwards.
                let dir = path.parent().unwrap();
                let mut file = open().custom_flags(libc::O_TMPFILE).write(true).open(dir)?;
                file.write_all(b"nameless")?;
                let held = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
                rustix::fs::linkat(
                    rustix::fs::CWD,
                    &held,
                    rustix::fs::CWD,
                    &second,
                    rustix::fs::AtFlags::SYMLINK_FOLLOW,
                )?;
                if random.below(2) == 0 {
                    self.open.push((other.clone(), file));
                } else {
                    file.write_all(b" no more")?;
                }
                Ok(())
            }
            22 => {
                use nix::fcntl::FallocateFlags as How;
                let how = [
                    How::FALLOC_FL_KEEP_SIZE | How::FALLOC_FL_PUNCH_HOLE,
                    How::FALLOC_FL_ZERO_RANGE,
                    How::FALLOC_FL_COLLAPSE_RANGE,
                    How::empty(),
                ];
                let file = open().write(true).open(&path)?;
                let how = how[random.below(4) as usize];
                Ok(nix::fcntl::fallocate(
                    &file,
                    how,
                    random.below(3) as i64 * 4096,
                    4096,
                )?)
            }
            23 => {
                let from = open().read(true).open(&path)?;
                let to = open().create(true).truncate(false).write(true).open(&second)?;
                let length = bytes.len();
                Ok(rustix::fs::copy_file_range(&from, None, &to, Some(&mut 11), length).map(drop)?)
            }
            // What fanotify alone is not told of.
            24 => Ok(nix::unistd::truncate(&path, random.below(9000) as i64)?),
            25 => {
                let times = nix::sys::time::TimeSpec::new(random.below(1 << 30) as i64, 0);
                let same = nix::sys::time::TimeSpec::UTIME_OMIT;
                let how = nix::sys::stat::UtimensatFlags::NoFollowSymlink;
                Ok(nix::sys::stat::utimensat(
                    nix::fcntl::AT_FDCWD,
                    &path,
                    &same,
                    &times,
                    how,
                )?)
            }
            _ => Ok(()),
        })();
        drop(done);
    }
}

/// Random changes of the first so many kinds, each time with a commit that is compared.
fn random_changes(mut bed: Bed, ways: u64) {
    let seed = std::env::var("SEED").map_or(42, |seed| seed.parse().unwrap());
    let rounds = std::env::var("DIFFKEEPER_SOAK").map_or(60, |_| 10_000);
    let mut random = Random(seed);
    bed.commit(Some("the first"));
    for round in 0..rounds {
        for _ in 0..random.below(30) {
            bed.change(&mut random, ways);
        }
        bed.commit(None);
        println!("round {round} of seed {seed}");
        bed.check();
    }
    let (whole, named, missed) = bed.watching.counts();
    println!("whole {whole}, named {named}");
    assert!(
        named > whole && missed == 0,
        "whole {whole}, named {named}, missed {missed}"
    );
}

#[test]
fn commits_of_what_is_named_are_what_there_is() {
    if let Some(bed) = Bed::new() {
        random_changes(bed, 26);
    }
}

#[test]
fn commits_of_what_fanotify_alone_names_are_what_there_is() {
    let dir = tempfile::tempdir().unwrap();
    let bed = Bed::watched(dir.path(), Watching::fanotify_alone);
    if let Some(bed) = bed.filter(|bed| bed.watching.fanotify().is_ok()) {
        random_changes(bed, 24);
    }
}

#[test]
fn the_cost_is_of_what_changed() {
    let Some(bed) = Bed::new() else { return };
    let by = bed.watching.fanotify().unwrap().kind();
    for dir in 0..100 {
        fs::create_dir(bed.at(format!("dir{dir}"))).unwrap();
        for n in 0..20 {
            fs::write(bed.at(format!("dir{dir}/file{n}")), "small").unwrap();
        }
    }
    let first = bed.commit(None).unwrap();
    assert_eq!(first.commit.watcher, store::format::Watcher::Scan as i32);
    // Until what was read a moment after it had changed is trusted.
    while bed.commit(None).is_some() {}
    fs::write(bed.at("dir7/file7"), "other").unwrap();
    fs::remove_file(bed.at("dir8/file8")).unwrap();
    let second = bed.commit(None).unwrap().commit;
    assert_eq!(second.watcher, by as i32);
    // The file, what is gone, and the directory that it is gone from.
    assert_eq!((second.changed, second.read), (3, 5));
    assert!(bed.commit(None).is_none());
    bed.check();
}

#[test]
fn a_name_that_vanishes_before_it_is_read_is_asked_for_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let bed = Bed::watched(dir.path(), Watching::fanotify_alone);
    let Some(bed) = bed.filter(|bed| bed.watching.fanotify().is_ok()) else {
        return;
    };
    fs::write(bed.at("a"), "two names").unwrap();
    fs::hard_link(bed.at("a"), bed.at("b")).unwrap();
    let first = bed.commit(Some("the first")).unwrap();
    fs::remove_file(bed.at("a")).unwrap();
    bed.captured(&Still, None, |capture| {
        let watched = capture.watch.as_ref().unwrap();
        let old = first.commit.tree_id().ok();
        let session = bed.store.session(capture.state.domain);
        let recorder = Recorder {
            capture,
            store: &bed.store,
            session: &session,
            old,
            progress: &Progress::default(),
            quiesced: &Quiesced::new(None),
            large: Mutex::default(),
        };
        let mut making = Making {
            capture,
            store: &bed.store,
            recorder: &recorder,
            watched,
            fanotify: bed.watching.fanotify().unwrap(),
            excluded: &[],
            at: SystemTime::now(),
            memory: capture.remembered(watched).unwrap(),
            read: BTreeMap::new(),
            gone: BTreeSet::new(),
            missed: HashSet::new(),
        };
        let hints = making.hints().unwrap();
        let found = making.look(&hints).unwrap();
        assert!(found.gone.contains(&b"rootfs\0a"[..]) && found.changed.contains_key(&b"rootfs\0b"[..]));
        fs::rename(bed.at("b"), bed.at("c")).unwrap();
        making.take(found, making.at, true).unwrap();
        let outcome = Outcome {
            names: making.names().unwrap(),
            read: making.read.into_iter().collect(),
            gone: making.gone.into_iter().collect(),
            nothing: false,
            at: 0,
            stood: Stood::quiet(),
            watcher: store::format::Watcher::Fanotify,
            beyond: Beyond::default(),
        };
        let made = capture.changes(&bed.store, old, &Progress::default(), &outcome);
        assert!(matches!(made, Err(Error::Torn { .. })), "{made:?}");
    });
}

/// Lets the container go on too early, a number of times, and then it writes.
struct Restless<'a> {
    bed: &'a Bed,
    early: usize,
    stops: AtomicU64,
    ready: bool,
}

impl Freezer for Restless<'_> {
    fn freeze(&self, _: Duration) -> io::Result<bool> {
        let stops = 1 + self.stops.fetch_add(1, Ordering::Relaxed);
        fs::write(self.bed.at("meanwhile"), format!("before stop {stops}"))?;
        Ok(true)
    }

    fn thaw(&self) -> bool {
        let stops = self.stops.load(Ordering::Relaxed);
        fs::write(self.bed.at(format!("after{stops}")), "more").unwrap();
        stops > self.early as u64
    }

    fn quiesce(&self) -> io::Result<bool> {
        fs::write(self.bed.at("ready"), "ready")?;
        Ok(self.ready)
    }
}

#[test]
fn a_look_at_names_is_tried_again_and_says_why_it_is_no_better() {
    use store::format::Consistency::{Application, Crash, Fuzzy};
    for (early, ready, stops, consistency, doubt) in [
        (0, false, 1, Crash, ""),
        (2, false, 3, Crash, ""),
        (1, true, 2, Application, ""),
        (
            9,
            true,
            3,
            Fuzzy,
            "interrupted: somebody else let the container go on",
        ),
    ] {
        let Some(bed) = Bed::new() else { return };
        bed.commit(Some("the first"));
        fs::write(bed.at("new"), "new").unwrap();
        let restless = Restless {
            bed: &bed,
            early,
            stops: AtomicU64::new(0),
            ready,
        };
        let commit = bed.stopped_by(&restless, None).unwrap().commit;
        assert_eq!(commit.watcher, bed.watching.fanotify().unwrap().kind() as i32);
        assert_eq!(
            (commit.consistency, commit.doubt.as_str()),
            (consistency as i32, doubt)
        );
        assert_eq!(restless.stops.load(Ordering::Relaxed), stops);
        assert_eq!(commit.pause == 0, consistency == Fuzzy);
        // The last stop's write was after it stood still.
        let last = format!("after{stops}");
        let state = bed.store.state("ctr/default/web").unwrap().unwrap();
        let head = bed.store.commit(state.head.unwrap().0).unwrap();
        let there = |name: &str| {
            let key = store::format::key(b"rootfs", name.as_bytes());
            let tree = head.commit.tree_id().unwrap();
            bed.store.entry(state.domain, tree, &key).unwrap().is_some()
        };
        assert!(there("meanwhile") && there("ready") && !there(&last));
        assert!(stops == 1 || there("after1"));
        bed.commit(None).unwrap();
        bed.check();
    }
}

/// Makes something when it is stopped the first time that cannot be looked at by its name, and keeps what it was told.
struct Deepening<'a>(&'a Bed, Mutex<Vec<&'static str>>);

impl Deepening<'_> {
    fn told(&self, what: &'static str) -> usize {
        let mut told = self.1.lock().unwrap();
        told.push(what);
        told.iter().filter(|told| **told == what).count()
    }
}

impl Freezer for Deepening<'_> {
    fn freeze(&self, _: Duration) -> io::Result<bool> {
        if self.told("freeze") == 1 {
            deep(&self.0.at("below"), tree::DEEPEST + 5);
        }
        Ok(true)
    }

    fn thaw(&self) -> bool {
        true
    }

    fn quiesce(&self) -> io::Result<bool> {
        self.told("quiesce");
        Ok(true)
    }

    fn release(&self) -> io::Result<()> {
        self.told("release");
        Ok(())
    }
}

#[test]
fn an_application_does_not_wait_while_all_is_looked_at_and_is_told_again() {
    let Some(bed) = Bed::new() else { return };
    fs::create_dir(bed.at("below")).unwrap();
    bed.commit(Some("the first"));
    fs::write(bed.at("new"), "new").unwrap();
    let deepening = Deepening(&bed, Mutex::default());
    let commit = bed.stopped_by(&deepening, None).unwrap().commit;
    assert_eq!(commit.watcher, store::format::Watcher::Scan as i32);
    assert_eq!(commit.consistency, store::format::Consistency::Application as i32);
    let told = deepening.1.into_inner().unwrap();
    assert_eq!(told, ["quiesce", "freeze", "release"].repeat(2));
}

#[test]
fn where_something_is_too_deep_all_is_looked_at_and_each_commit_says_so() {
    let Some(bed) = Bed::new() else { return };
    let by = |made: Option<Recorded>| {
        let commit = made.unwrap().commit;
        let named = commit.watcher != store::format::Watcher::Scan as i32;
        (named, commit.message.contains("left out"))
    };
    fs::create_dir(bed.at("below")).unwrap();
    assert_eq!(by(bed.commit(None)), (false, false));
    fs::write(bed.at("one"), "one").unwrap();
    assert_eq!(by(bed.commit(None)), (true, false));
    // It grows while it is watched, and is still there later.
    deep(&bed.at("below"), tree::DEEPEST + 5);
    assert_eq!(by(bed.commit(None)), (false, true));
    fs::write(bed.at("one"), "two").unwrap();
    assert_eq!(by(bed.commit(None)), (false, true));
    fs::remove_dir_all(bed.at("below")).unwrap();
    assert_eq!(by(bed.commit(None)), (false, false));
    fs::write(bed.at("one"), "three").unwrap();
    assert_eq!(by(bed.commit(None)), (true, false));
    assert_eq!(bed.watching.counts().2, 0);
    bed.check();
}

#[test]
fn a_keeper_watches_where_it_is_told_to() {
    use runtime_spec::config::{Config, History, Watcher};
    let dir = tempfile::tempdir().unwrap();
    let watching = |watcher| {
        let config = Config {
            root: dir.path().join("root"),
            history: History {
                watcher,
                ..History::default()
            },
            ..Config::default()
        };
        let keeper = crate::Keeper::open(&config).unwrap();
        let found = keeper.watching().fanotify().map(drop).map_err(str::to_owned);
        (
            found,
            Fanotify::open(keeper.node().root(), &keeper.node().trash(), None).is_ok(),
        )
    };
    let (found, could) = watching(Watcher::Fanotify);
    assert_eq!(found.is_ok(), could);
    let (found, _) = watching(Watcher::Scan);
    assert!(found.unwrap_err().contains("[history] watcher"));
    // What is relied on by itself tells of everything.
    let (found, could) = watching(Watcher::Auto);
    let told = Pages::open(dir.path()).and_then(|pages| pages.attributes());
    assert_eq!(found.is_ok(), could && told.is_ok(), "{found:?} {told:?}");
}
