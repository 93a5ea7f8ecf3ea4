//! Recordings: a plain directory while a command works in it. No containers, no live tree, no root; the store is the
//! recording's own, so that it can be carried away or deleted as one.
//!
//! Each run is a state, `ctr/recording/<number>`; what several runs have in common is stored once.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use live::Node;
use runtime_spec::{
    config::{Config, History},
    name::StateName,
};
use store::{Recorded, format::Reason};

use crate::{
    blueshift::{Capture, Top},
    error::{Context, Error, Result},
    keeper::Keeper,
};

/// The file that makes a directory a recording: `diffkeeper recording 1`, the runs so far, the directory that was
/// recorded, each on a line.
const MARK: &str = "recording";
/// The first line of [`MARK`].
const FORMAT: &str = "diffkeeper recording 1";

/// What is known of a recording without opening its store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// How many runs there were.
    pub runs: u64,
    /// The directory.
    pub dir: PathBuf,
}

impl Mark {
    /// Of a recording; none where there is none at this path.
    #[must_use]
    pub fn read(path: &Path) -> Option<Mark> {
        use std::os::unix::ffi::OsStrExt;
        let bytes = std::fs::read(path.join(MARK)).ok()?;
        let mut lines = bytes.splitn(3, |b| *b == b'\n');
        if lines.next()? != FORMAT.as_bytes() {
            return None;
        }
        let runs = std::str::from_utf8(lines.next()?).ok()?.parse().ok()?;
        let dir = std::ffi::OsStr::from_bytes(lines.next()?).into();
        Some(Mark { runs, dir })
    }

    fn write(&self, path: &Path) -> Result<()> {
        use std::os::unix::ffi::OsStrExt;
        let mut bytes = format!("{FORMAT}\n{}\n", self.runs).into_bytes();
        bytes.extend_from_slice(self.dir.as_os_str().as_bytes());
        let (to, fresh) = (path.join(MARK), path.join("recording.new"));
        std::fs::write(&fresh, bytes).on("write", &fresh)?;
        std::fs::rename(&fresh, &to).on("write", &to)
    }
}

/// The state of a run.
#[must_use]
pub fn state_of(run: u64) -> String {
    format!("ctr/recording/{run}")
}

/// What a keeper of a recording goes by.
#[must_use]
pub fn config(path: &Path) -> Config {
    Config {
        root: path.to_owned(),
        keeper: path.join("keeper.sock"),
        history: History {
            store: Some(path.join("store")),
            ..History::default()
        },
        ..Config::default()
    }
}

impl Keeper {
    /// Opens the store of a recording.
    ///
    /// # Errors
    /// A store in use, damaged or of a newer version.
    pub fn of_recording(path: &Path) -> Result<Keeper> {
        Keeper::with(&config(path), Node::none(path))
    }
}

/// A recording that goes on.
pub struct Recording {
    keeper: Arc<Keeper>,
    name: StateName,
    top: Top,
    exclude: Vec<PathBuf>,
    /// One look at a time.
    turn: Mutex<()>,
}

impl Recording {
    /// Begins another run of a directory's recording at `path`, which is made where it is missing. `exclude` are paths
    /// below the directory.
    ///
    /// # Errors
    /// A recording of another directory, something else at `path`, a disk that cannot be written.
    pub fn begin(path: &Path, dir: &Path, exclude: &[PathBuf]) -> Result<Recording> {
        let dir = std::fs::canonicalize(dir).on("find", dir)?;
        if !dir.is_dir() {
            return Err(Error::Refused(format!("{} is not a directory", dir.display())));
        }
        std::fs::create_dir_all(path).on("make", path)?;
        let path = std::fs::canonicalize(path).on("find", path)?;
        let mark = match Mark::read(&path) {
            Some(mark) if mark.dir == dir => mark,
            Some(mark) => {
                return Err(Error::Refused(format!(
                    "{} is a recording of {}: name another with --store",
                    path.display(),
                    mark.dir.display()
                )));
            }
            None if std::fs::read_dir(&path).on("read", &path)?.next().is_some() => {
                return Err(Error::Refused(format!(
                    "{} holds something else than a recording: name another directory with --store",
                    path.display()
                )));
            }
            None => Mark { runs: 0, dir },
        };
        let mut exclude: Vec<PathBuf> = exclude
            .iter()
            .map(|below| Path::new("/").join(below.strip_prefix("/").unwrap_or(below)))
            .collect();
        // It would record itself.
        if let Ok(below) = path.strip_prefix(&mark.dir) {
            exclude.push(Path::new("/").join(below));
        }
        let keeper = Keeper::of_recording(&path)?;
        let mark = Mark {
            runs: mark.runs + 1,
            ..mark
        };
        mark.write(&path)?;
        let name = state_of(mark.runs);
        Ok(Recording {
            keeper: Arc::new(keeper),
            name: name
                .parse()
                .map_err(|e: runtime_spec::Error| Error::Refused(e.to_string()))?,
            top: Top {
                name: b"rootfs".to_vec(),
                path: mark.dir,
                overlay: false,
            },
            exclude,
            turn: Mutex::default(),
        })
    }

    /// The keeper of its store.
    #[must_use]
    pub fn keeper(&self) -> &Arc<Keeper> {
        &self.keeper
    }

    /// Records the directory as it is; none where nothing has changed and there is no message. `quiet` says that
    /// nothing works in it.
    ///
    /// # Errors
    /// A directory that cannot be read, a full or failing disk.
    pub fn commit(&self, reason: Reason, message: Option<&str>, quiet: bool) -> Result<Option<Recorded>> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let store = self.keeper.store();
        let state = store.make_state(&self.name.to_string(), "recording")?;
        let (node, boot) = self.keeper.place();
        let capture = Capture {
            state: &state,
            tops: std::slice::from_ref(&self.top),
            exclude: &self.exclude,
            freezer: None,
            undisturbed: &|| quiet,
            max_pause: Duration::ZERO,
            reason,
            message,
            image: "",
            node,
            boot,
            watch: None,
        };
        capture.run(store)
    }
}
