//! What goes in comes out again: whole trees, through a real store, on a real disk.

use std::{
    collections::{BTreeMap, HashMap},
    fs, io,
    os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::Command,
    sync::Mutex,
    time::Duration,
};

use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use store::{Hash, Recorded, Store, Version, format::Reason};

use crate::{
    blueshift::{Capture, Freezer, Top},
    redshift::{Plan, Progress, looks},
    tree,
};

pub(crate) fn root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        println!("skipped: needs root (owners, device nodes, trusted attributes)");
    }
    root
}

/// A file system in a file.
pub(crate) struct Disk {
    dir: tempfile::TempDir,
}

impl Disk {
    /// Of so many MiB; none where this machine cannot make it.
    pub(crate) fn new(program: &str, size: u64) -> Option<Disk> {
        if !root() {
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        fs::File::create(&image).unwrap().set_len(size << 20).unwrap();
        let at = dir.path().join("mnt");
        fs::create_dir(&at).unwrap();
        let done = |command: &mut Command| command.output().is_ok_and(|out| out.status.success());
        let made = done(Command::new(program).arg("-q").arg(&image));
        if !made || !done(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&at)) {
            println!("skipped: this machine cannot make and mount what {program} makes");
            return None;
        }
        Some(Disk { dir })
    }

    pub(crate) fn at(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    /// In MiB.
    pub(crate) fn used(&self) -> u64 {
        let open = fs::File::open(self.at()).unwrap();
        nix::unistd::syncfs(&open).unwrap();
        let stat = nix::sys::statvfs::statvfs(&self.at()).unwrap();
        ((stat.blocks() - stat.blocks_free()) * stat.fragment_size()) >> 20
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.at()).status();
    }
}

pub(crate) fn store(dir: &Path) -> Store {
    Store::open(&dir.join("store"), Hash::Blake3).unwrap()
}

pub(crate) fn capture(
    store: &Store,
    upper: &Path,
    freezer: Option<&dyn Freezer>,
    message: Option<&str>,
) -> Option<Recorded> {
    let state = store.make_state("ctr/default/web", "ctr/default").unwrap();
    let tops = [Top {
        name: b"rootfs".to_vec(),
        path: upper.into(),
        overlay: true,
    }];
    Capture {
        state: &state,
        tops: &tops,
        exclude: &[PathBuf::from("/tmp"), PathBuf::from("/var/cache/deep")],
        freezer,
        undisturbed: &|| true,
        max_pause: Duration::from_secs(1),
        reason: Reason::Manual,
        message,
        image: "",
        node: "node",
        boot: "boot",
        watch: None,
    }
    .run(store)
    .unwrap()
}

pub(crate) fn materialise(store: &Store, recorded: &Recorded, to: &Path) {
    let plan = Plan {
        domain: store.state("ctr/default/web").unwrap().unwrap().domain,
        tree: recorded.commit.tree_id().unwrap(),
        below: None,
        tops: HashMap::from([(b"rootfs".to_vec(), to.to_owned())]),
        overlay: true,
        sync: true,
    };
    plan.run(store, &Progress::default()).unwrap();
}

/// Everything about a tree that must come back, one line an entry.
pub(crate) fn listing(top: &Path) -> BTreeMap<Vec<u8>, String> {
    let mut found = BTreeMap::new();
    tree::walk(
        top,
        b"",
        |_| true,
        |seen| {
            let stat = &seen.stat;
            let (_, path) = store::format::place(&seen.key);
            let open = tree::find(&tree::top(top)?, &path)?;
            let directory = stat.st_mode & libc::S_IFMT == libc::S_IFDIR;
            if stat.st_mode & libc::S_IFMT == libc::S_IFCHR && stat.st_rdev == 0 {
                // Owner, times and links mean nothing: the kernel makes many of one.
                found.insert(path, "20000 whiteout".to_owned());
                return Ok(());
            }
            let mut hash = Hash::Blake3.chunk(b"");
            if stat.st_mode & libc::S_IFMT == libc::S_IFREG {
                hash = Hash::Blake3.chunk(&fs::read(tree::by_descriptor(&open))?);
            }
            let link = nix::fcntl::readlinkat(&open, "").unwrap_or_default();
            let (xattrs, opaque) = tree::xattrs(&open)?;
            // A directory's size and number of links are the file system's business.
            let of_its_own = if directory {
                (0, 0)
            } else {
                (stat.st_size, stat.st_nlink)
            };
            let line = format!(
                "{:o} {}:{} {of_its_own:?} {}.{:09} {} {link:?} {hash} {xattrs:?} {opaque}",
                stat.st_mode, stat.st_uid, stat.st_gid, stat.st_mtime, stat.st_mtime_nsec, stat.st_rdev
            );
            found.insert(path, line);
            Ok(())
        },
    )
    .unwrap();
    found
}

pub(crate) fn same(a: &BTreeMap<Vec<u8>, String>, b: &BTreeMap<Vec<u8>, String>) {
    let keys: std::collections::BTreeSet<&Vec<u8>> = a.keys().chain(b.keys()).collect();
    for key in keys {
        assert_eq!(a.get(key), b.get(key), "{}", key.escape_ascii());
    }
}

/// A tree with everything that an overlay's upper can hold.
pub(crate) fn everything(upper: &Path) {
    fs::create_dir_all(upper.join("etc/app/empty")).unwrap();
    fs::write(upper.join("etc/app/conf"), b"key = value\n").unwrap();
    fs::write(upper.join("etc/app/none"), b"").unwrap();
    fs::hard_link(upper.join("etc/app/conf"), upper.join("zz-hard")).unwrap();
    symlink("/etc/passwd", upper.join("link")).unwrap();
    symlink("..", upper.join("etc/up")).unwrap();
    let long: Vec<u8> = (0..3_000_000u32)
        .flat_map(|n| (n.wrapping_mul(2_654_435_761) >> 7).to_le_bytes())
        .collect();
    fs::write(upper.join("long"), &long).unwrap();
    let sparse = fs::File::create(upper.join("sparse")).unwrap();
    sparse.set_len(64 << 20).unwrap();
    sparse.write_all_at(&long[..200_000], 32 << 20).unwrap();
    nix::unistd::mkfifo(&upper.join("fifo"), Mode::S_IRWXU).unwrap();
    mknod(&upper.join("null"), SFlag::S_IFCHR, Mode::S_IRUSR, makedev(1, 3)).unwrap();
    mknod(&upper.join("disk"), SFlag::S_IFBLK, Mode::S_IRUSR, makedev(7, 99)).unwrap();
    mknod(&upper.join("etc/gone"), SFlag::S_IFCHR, Mode::empty(), 0).unwrap();
    fs::create_dir(upper.join("opaque")).unwrap();
    let name = std::ffi::OsStr::new("not-\u{fffd}");
    fs::write(upper.join(name), b"x").unwrap();
    use std::os::unix::ffi::OsStrExt;
    fs::write(upper.join(std::ffi::OsStr::from_bytes(b"raw-\xff\xfe\n")), b"y").unwrap();
    for n in 0..500 {
        fs::create_dir_all(upper.join(format!("many/{}", n % 7))).unwrap();
        fs::write(
            upper.join(format!("many/{}/{n}", n % 7)),
            format!("{n}\n").repeat(n % 90),
        )
        .unwrap();
    }
    let set = |path: &str, name: &str, value: &[u8]| {
        rustix::fs::lsetxattr(upper.join(path), name, value, rustix::fs::XattrFlags::empty()).unwrap();
    };
    set("opaque", "trusted.overlay.opaque", b"y");
    set("etc/app/conf", "user.note", b"kept");
    set("etc", "user.note", b"kept too");
    set("link", "trusted.mark", b"on a link");
    // cap_net_raw+ep, as setcap writes it.
    let capability = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    std::os::unix::fs::chown(upper.join("long"), Some(1234), Some(5678)).unwrap();
    set("long", "security.capability", &capability);
    fs::set_permissions(upper.join("etc/app/conf"), fs::Permissions::from_mode(0o4751)).unwrap();
    std::os::unix::fs::lchown(upper.join("link"), Some(7), Some(8)).unwrap();
    fs::set_permissions(upper, fs::Permissions::from_mode(0o1750)).unwrap();
    let touched = Command::new("touch")
        .args(["-h", "-d", "2001-02-03 04:05:06.123456789"])
        .args(["link", "etc/app/conf", "etc/app", "long", "fifo"].map(|p| upper.join(p)))
        .status()
        .unwrap();
    assert!(touched.success());
}

#[test]
fn everything_is_recorded_and_comes_back() {
    if !root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (upper, to) = (dir.path().join("upper"), dir.path().join("to"));
    fs::create_dir(&upper).unwrap();
    everything(&upper);
    fs::create_dir_all(upper.join("tmp/x")).unwrap();
    fs::create_dir_all(upper.join("var/cache/deep/x")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(upper.join("socket")).unwrap();
    let store = store(dir.path());
    let recorded = capture(&store, &upper, None, None).unwrap();
    materialise(&store, &recorded, &to);
    // What is not recorded: sockets and what is excluded.
    let mut expected = listing(&upper);
    expected.retain(|path, _| {
        !path.starts_with(b"tmp") && !path.starts_with(b"var/cache/deep") && path != b"socket"
    });
    // Overlayfs finds whiteouts whose directory the image lacks by this mark.
    let origin = rustix::fs::lgetxattr(to.join("etc"), "trusted.overlay.origin", &mut [0u8; 8]);
    assert_eq!(origin, Ok(0));
    // A whiteout's owner and times mean nothing.
    let mut found = listing(&to);
    assert_eq!(found.get(&b"etc/gone"[..]).map(|line| &line[..6]), Some("20000 "));
    for listing in [&mut expected, &mut found] {
        listing.remove(&b"etc/gone"[..]);
    }
    same(&expected, &found);
    let (a, b) = (fs::metadata(&upper).unwrap(), fs::metadata(&to).unwrap());
    assert_eq!((a.mode(), a.uid(), a.gid()), (b.mode(), b.uid(), b.gid()));
    assert!(fs::metadata(to.join("sparse")).unwrap().blocks() < 2000);
    assert_eq!(
        fs::metadata(to.join("zz-hard")).unwrap().ino(),
        fs::metadata(to.join("etc/app/conf")).unwrap().ino()
    );
    assert_eq!(store.verify(100, |_| {}).unwrap().problems, []);
    // Recording what was made gives the same tree.
    let again = capture(&store, &to, None, Some("the same")).unwrap();
    let differ = |a: &Recorded, b: &Recorded| {
        let mut keys = Vec::new();
        let domain = store.state("ctr/default/web").unwrap().unwrap().domain;
        store
            .differences(
                domain,
                Some(a.commit.tree_id().unwrap()),
                b.commit.tree_id().unwrap(),
                b"",
                |d| {
                    keys.push(store::format::Shown(d.key()).to_string());
                    Ok(std::ops::ControlFlow::Continue(()))
                },
            )
            .unwrap();
        keys
    };
    assert_eq!(differ(&recorded, &again), Vec::<String>::new());
}

#[test]
fn nothing_changed_is_no_commit() {
    let dir = tempfile::tempdir().unwrap();
    let upper = dir.path().join("upper");
    fs::create_dir(&upper).unwrap();
    fs::write(upper.join("a"), vec![7; 100_000]).unwrap();
    fs::write(upper.join("b"), b"b").unwrap();
    let store = store(dir.path());
    std::thread::sleep(Duration::from_millis(50));
    let first = capture(&store, &upper, None, None).unwrap();
    assert_eq!((first.commit.entries, first.commit.read), (3, 100_001));
    assert!(capture(&store, &upper, None, None).is_none());
    // Asked for by hand it is one, that read nothing.
    let asked = capture(&store, &upper, None, Some("now")).unwrap();
    assert_eq!((asked.commit.changed, asked.commit.read), (0, 0));
    fs::remove_file(upper.join("b")).unwrap();
    fs::write(upper.join("c"), b"c").unwrap();
    let second = capture(&store, &upper, None, None).unwrap();
    // The top's time, what is gone, what is new.
    assert_eq!(
        (second.commit.changed, second.commit.entries, second.commit.read),
        (3, 3, 1)
    );
    // The same bytes with another time are a change of the time alone.
    std::thread::sleep(Duration::from_millis(50));
    fs::write(upper.join("a"), vec![7; 100_000]).unwrap();
    let third = capture(&store, &upper, None, None).unwrap();
    assert_eq!(third.commit.changed, 1);
    assert!(third.commit.written < 2000, "{}", third.commit.written);
    // A live tree that was made of a commit is known with its looks.
    let to = dir.path().join("to");
    materialise(&store, &first, &to);
    let state = store.state("ctr/default/web").unwrap().unwrap();
    store.forget_looks(&state).unwrap();
    let made = looks(&HashMap::from([(b"rootfs".to_vec(), to.clone())])).unwrap();
    store
        .record_looks(|batch| {
            made.iter()
                .for_each(|(key, look)| batch.look(state.number, key, look))
        })
        .unwrap();
    let tops = store.resolve(&state, &Version::Back(0)).unwrap();
    assert_eq!(tops.id, third.id);
    assert_eq!(fs::read(to.join("a")).unwrap(), vec![7; 100_000]);
}

/// Changes the tree at the moment of the freeze, as a container would right before it.
struct Late<'a>(&'a Path, Mutex<Vec<&'static str>>);

impl Freezer for Late<'_> {
    fn freeze(&self, _: Duration) -> io::Result<bool> {
        fs::write(self.0.join("late"), b"written before the freeze")?;
        fs::write(self.0.join("long"), vec![9; 300_000])?;
        fs::remove_file(self.0.join("goes"))?;
        self.1.lock().unwrap().push("freeze");
        Ok(true)
    }

    fn thaw(&self) -> bool {
        self.1.lock().unwrap().push("thaw");
        let _ = fs::write(self.0.join("after"), b"too late");
        true
    }
}

#[test]
fn a_commit_is_of_the_moment_of_the_freeze() {
    let dir = tempfile::tempdir().unwrap();
    let upper = dir.path().join("upper");
    fs::create_dir(&upper).unwrap();
    fs::write(upper.join("long"), vec![1; 300_000]).unwrap();
    fs::write(upper.join("goes"), b"x").unwrap();
    let store = store(dir.path());
    let late = Late(&upper, Mutex::default());
    let recorded = capture(&store, &upper, Some(&late), None).unwrap();
    assert_eq!(*late.1.lock().unwrap(), ["freeze", "thaw"]);
    assert_eq!(
        recorded.commit.consistency,
        store::format::Consistency::Crash as i32
    );
    let domain = store.state("ctr/default/web").unwrap().unwrap().domain;
    let plan = Plan {
        domain,
        tree: recorded.commit.tree_id().unwrap(),
        below: None,
        tops: HashMap::from([(b"rootfs".to_vec(), dir.path().join("to"))]),
        overlay: false,
        sync: false,
    };
    plan.run(&store, &Progress::default()).unwrap();
    let to = dir.path().join("to");
    assert_eq!(fs::read(to.join("long")).unwrap(), vec![9; 300_000]);
    assert!(to.join("late").exists() && !to.join("goes").exists() && !to.join("after").exists());
    // What came after the freeze is in the next one.
    let next = capture(&store, &upper, None, None).unwrap();
    assert_eq!(next.commit.entries, 4);
}

/// Moves a directory when the container is to stand still.
struct Moving<'a>(&'a Path, &'a str, &'a str);

impl Freezer for Moving<'_> {
    fn freeze(&self, _: Duration) -> io::Result<bool> {
        fs::rename(self.0.join(self.1), self.0.join(self.2)).map(|()| true)
    }

    fn thaw(&self) -> bool {
        true
    }
}

#[test]
fn names_of_one_file_stay_together_when_their_directories_move() {
    let dir = tempfile::tempdir().unwrap();
    let upper = dir.path().join("upper");
    fs::create_dir_all(upper.join("b/sub")).unwrap();
    fs::create_dir(upper.join("m")).unwrap();
    fs::write(upper.join("b/sub/file"), "content").unwrap();
    fs::hard_link(upper.join("b/sub/file"), upper.join("m/name")).unwrap();
    let store = store(dir.path());
    let comes_back = |recorded: Recorded| {
        let to = dir.path().join("to");
        materialise(&store, &recorded, &to);
        same(&listing(&upper), &listing(&to));
        fs::remove_dir_all(&to).unwrap();
    };
    comes_back(capture(&store, &upper, None, None).unwrap());
    // The one that all others are told by comes last, goes, comes first, between two commits and in the middle of one.
    for (from, to) in [("b", "x"), ("x", "tmp"), ("tmp", "a"), ("m", "0")] {
        fs::rename(upper.join(from), upper.join(to)).unwrap();
        if to == "tmp" {
            // It is excluded.
            let recorded = capture(&store, &upper, None, None).unwrap();
            let entries = recorded.commit.entries;
            assert_eq!(entries, 3, "the top, a directory and a file");
            materialise(&store, &recorded, &dir.path().join("part"));
            assert_eq!(fs::read(dir.path().join("part/m/name")).unwrap(), b"content");
        } else {
            comes_back(capture(&store, &upper, None, None).unwrap());
        }
    }
    for (from, to) in [("a", "x"), ("x", "-")] {
        comes_back(capture(&store, &upper, Some(&Moving(&upper, from, to)), None).unwrap());
    }
}

#[test]
fn a_part_of_a_tree() {
    let dir = tempfile::tempdir().unwrap();
    let upper = dir.path().join("upper");
    fs::create_dir_all(upper.join("etc/app/sub")).unwrap();
    fs::write(upper.join("etc/app/sub/a"), b"a").unwrap();
    fs::write(upper.join("etc/app2"), b"other").unwrap();
    fs::write(upper.join("aa"), b"first name").unwrap();
    fs::hard_link(upper.join("aa"), upper.join("etc/app/second")).unwrap();
    let store = store(dir.path());
    let recorded = capture(&store, &upper, None, None).unwrap();
    let domain = store.state("ctr/default/web").unwrap().unwrap().domain;
    let part = |path: &str, to: &str| {
        let key = store::format::key(b"rootfs", path.as_bytes());
        let plan = Plan {
            domain,
            tree: recorded.commit.tree_id().unwrap(),
            below: Some(&key),
            tops: HashMap::from([(b"rootfs".to_vec(), dir.path().join(to))]),
            overlay: false,
            sync: false,
        };
        plan.run(&store, &Progress::default())
    };
    part("etc/app", "one").unwrap();
    assert_eq!(fs::read(dir.path().join("one/app/sub/a")).unwrap(), b"a");
    assert_eq!(
        fs::read(dir.path().join("one/app/second")).unwrap(),
        b"first name"
    );
    assert!(!dir.path().join("one/app2").exists());
    part("etc/app2", "two").unwrap();
    assert_eq!(fs::read(dir.path().join("two/app2")).unwrap(), b"other");
    assert!(
        part("nothing", "three")
            .unwrap_err()
            .to_string()
            .contains("nothing")
    );
}

/// Makes directories one in the other, so deep that no path reaches the lowest.
pub(crate) fn deep(top: &Path, levels: usize) {
    let mut dir = tree::top(top).unwrap();
    for level in 0..levels {
        let name = format!("d{level}");
        nix::sys::stat::mkdirat(&dir, name.as_str(), Mode::S_IRWXU).unwrap();
        dir = nix::fcntl::openat(&dir, name.as_str(), tree::DIR, Mode::empty()).unwrap();
    }
    nix::sys::stat::mknodat(&dir, "lowest", SFlag::S_IFREG, Mode::S_IRUSR, 0).unwrap();
}

#[test]
fn what_is_too_deep_is_left_out_and_the_commit_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let upper = dir.path().join("upper");
    fs::create_dir_all(upper.join("deep")).unwrap();
    deep(&upper.join("deep"), tree::DEEPEST + 20);
    fs::write(upper.join("kept"), b"kept").unwrap();
    let store = store(dir.path());
    let first = capture(&store, &upper, None, None).unwrap();
    assert!(
        first.commit.message.contains("left out"),
        "{}",
        first.commit.message
    );
    // The top, `deep`, what is in it, and `kept`.
    assert_eq!(first.commit.entries, 3 + tree::DEEPEST as u64 - 2);
    assert!(
        capture(&store, &upper, None, None).is_none(),
        "nothing has changed"
    );
    fs::write(upper.join("kept"), b"kept on").unwrap();
    let late = Late(&upper, Mutex::default());
    fs::write(upper.join("long"), b"long").unwrap();
    fs::write(upper.join("goes"), b"goes").unwrap();
    let next = capture(&store, &upper, Some(&late), Some("by hand")).unwrap();
    assert!(
        next.commit.message.starts_with("by hand (left out"),
        "{}",
        next.commit.message
    );
    let to = dir.path().join("to");
    let plan = Plan {
        domain: store.state("ctr/default/web").unwrap().unwrap().domain,
        tree: next.commit.tree_id().unwrap(),
        below: None,
        tops: HashMap::from([(b"rootfs".to_vec(), to.clone())]),
        overlay: false,
        sync: false,
    };
    plan.run(&store, &Progress::default()).unwrap();
    assert_eq!(fs::read(to.join("kept")).unwrap(), b"kept on");
    // Without it the state is recorded as any other.
    fs::rename(upper.join("deep"), dir.path().join("elsewhere")).unwrap();
    let without = capture(&store, &upper, None, None).unwrap();
    assert_eq!(without.commit.message, "");
}

/// A container that is let go on too early, `early` times, and changes something each time.
struct Restless<'a> {
    upper: &'a Path,
    early: usize,
    said: Mutex<Vec<&'static str>>,
    ready: io::Result<bool>,
}

impl Restless<'_> {
    fn says(&self, word: &'static str) -> usize {
        let mut said = self.said.lock().unwrap();
        said.push(word);
        said.iter().filter(|said| **said == word).count()
    }
}

impl Freezer for Restless<'_> {
    fn freeze(&self, _: Duration) -> io::Result<bool> {
        let times = self.says("freeze");
        fs::write(self.upper.join("n"), times.to_string())?;
        Ok(true)
    }

    fn thaw(&self) -> bool {
        self.says("thaw") > self.early
    }

    fn quiesce(&self) -> io::Result<bool> {
        self.says("quiesce");
        match &self.ready {
            Ok(ready) => Ok(*ready),
            Err(error) => Err(io::Error::other(error.to_string())),
        }
    }

    fn release(&self) -> io::Result<()> {
        self.says("release");
        Ok(())
    }
}

#[test]
fn what_was_interrupted_is_tried_again_and_what_stays_so_says_why() {
    use store::format::Consistency::{Application, Crash, Fuzzy};
    let failed = || Err(io::Error::other("it did not"));
    for (early, ready, consistency, doubt) in [
        (0, Ok(false), Crash, ""),
        (2, Ok(false), Crash, ""),
        (
            9,
            Ok(false),
            Fuzzy,
            "interrupted: somebody else let the container go on",
        ),
        (1, Ok(true), Application, ""),
        (1, failed(), Crash, "hook: it did not"),
        (
            9,
            failed(),
            Fuzzy,
            "interrupted: somebody else let the container go on",
        ),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let upper = dir.path().join("upper");
        fs::create_dir(&upper).unwrap();
        fs::write(upper.join("n"), "0").unwrap();
        let restless = Restless {
            upper: &upper,
            early,
            said: Mutex::default(),
            ready,
        };
        let recorded = capture(&store(dir.path()), &upper, Some(&restless), None).unwrap();
        let commit = &recorded.commit;
        assert_eq!(
            (commit.consistency, commit.doubt.as_str()),
            (consistency as i32, doubt)
        );
        let said = restless.said.lock().unwrap();
        let stops = (early + 1).min(3);
        assert_eq!(said.iter().filter(|said| **said == "freeze").count(), stops);
        assert_eq!(said.first(), Some(&"quiesce"));
        assert_eq!(said.last(), Some(&"release"), "{said:?}");
    }
}
