//! What benchmarks of histories are run on: our store, and peers with their own defaults, from Debian's packages.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use keeper::blueshift::{Capture, Top};
use store::{Hash, Recorded, Store, format::Reason};

/// The one root of the recorded trees.
pub const ROOT: &[u8] = b"rootfs";

/// Opens a store, records a tree, closes it.
///
/// # Errors
/// As the capture.
pub fn record(store: &Path, tree: &Path) -> Result<Recorded> {
    let store = Store::open(store, Hash::Blake3)?;
    let state = store.make_state("ctr/bench/bench", "ctr/bench")?;
    let tops = [Top {
        name: ROOT.to_vec(),
        path: tree.to_owned(),
        overlay: false,
    }];
    let capture = Capture {
        state: &state,
        tops: &tops,
        exclude: &[],
        freezer: None,
        undisturbed: &|| true,
        max_pause: Duration::ZERO,
        reason: Reason::Manual,
        message: Some(""),
        image: "",
        node: "bench",
        boot: "",
        watch: None,
    };
    capture.run(&store)?.context("a commit")
}

/// Runs it, silently.
///
/// # Errors
/// What it says when it fails.
pub fn quiet(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// A peer, with a repository of its own in a directory.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// restic.
    Restic,
    /// borg, without encryption.
    Borg,
}

impl Peer {
    /// Its program's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Peer::Restic => "restic",
            Peer::Borg => "borg",
        }
    }

    /// Its program, told where its repository is.
    #[must_use]
    pub fn command(self, dir: &Path) -> Command {
        let mut command = Command::new(self.name());
        command
            .env("RESTIC_PASSWORD", "bench")
            .env("RESTIC_REPOSITORY", dir.join("restic"))
            .env("RESTIC_CACHE_DIR", dir.join("restic-cache"))
            .env("BORG_BASE_DIR", dir.join("borg-base"))
            .env("BORG_REPO", dir.join("borg"))
            .env("BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK", "yes")
            .env("BORG_RELOCATED_REPO_ACCESS_IS_OK", "yes");
        command
    }

    /// Makes its repository.
    ///
    /// # Errors
    /// As [`quiet`].
    pub fn init(self, dir: &Path) -> Result<()> {
        match self {
            Peer::Restic => quiet(self.command(dir).arg("init")),
            Peer::Borg => quiet(self.command(dir).args(["init", "-e", "none"])),
        }
    }

    /// Records version `n` of a tree.
    ///
    /// # Errors
    /// As [`quiet`].
    pub fn backup(self, dir: &Path, tree: &Path, n: usize) -> Result<()> {
        let mut command = self.command(dir);
        command.current_dir(tree);
        match self {
            Peer::Restic => quiet(command.args(["backup", "-q", "."])),
            Peer::Borg => quiet(command.args(["create", &format!("::v{n}"), "."])),
        }
    }

    /// Restores version `n`; restic the newest.
    ///
    /// # Errors
    /// As [`quiet`].
    pub fn restore(self, dir: &Path, n: usize, to: &Path) -> Result<()> {
        fs::create_dir_all(to)?;
        match self {
            Peer::Restic => quiet(
                self.command(dir)
                    .args(["restore", "-q", "latest", "--target"])
                    .arg(to),
            ),
            Peer::Borg => quiet(
                self.command(dir)
                    .args(["extract", &format!("::v{n}")])
                    .current_dir(to),
            ),
        }
    }

    /// Its repository.
    #[must_use]
    pub fn repository(self, dir: &Path) -> PathBuf {
        dir.join(self.name())
    }
}

/// What is in a directory, in megabytes.
///
/// # Errors
/// A directory that cannot be read.
pub fn bytes(dir: &Path) -> Result<f64> {
    let out = Command::new("du").args(["-sb"]).arg(dir).output()?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let n: f64 = text.split_whitespace().next().unwrap_or_default().parse()?;
    Ok(n / 1e6)
}

/// What is in our store, without the lock and fjall's preallocated journal, which is empty again after a flush; in
/// megabytes.
///
/// # Errors
/// A directory that cannot be read.
pub fn ours_bytes(store: &Path) -> Result<f64> {
    let packs = bytes(&store.join("packs"))?;
    let out = Command::new("du")
        .args(["-s", "-B1"])
        .arg(store.join("catalog"))
        .output()?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let catalog: f64 = text.split_whitespace().next().unwrap_or_default().parse()?;
    Ok(packs + catalog / 1e6)
}
