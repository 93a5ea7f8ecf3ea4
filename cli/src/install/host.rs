//! The machine that is installed on: this one, or one whose root is mounted somewhere (a DaemonSet's `/host`).

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

use super::{Engine, containerd::Dump};

/// Where daemons look for programs, in their order; a shim in one of these is found by its name.
pub const USUAL_PATH: [&str; 6] = [
    "/usr/local/sbin",
    "/usr/local/bin",
    "/usr/sbin",
    "/usr/bin",
    "/sbin",
    "/bin",
];

/// A machine, by its root.
pub struct Host {
    root: PathBuf,
}

impl Host {
    /// Opens one.
    ///
    /// # Errors
    /// A root that is not a folder.
    pub fn new(root: &Path) -> Result<Host> {
        let root = fs::canonicalize(root).with_context(|| format!("open --root {}", root.display()))?;
        ensure!(root.is_dir(), "--root {} is not a folder", root.display());
        Ok(Host { root })
    }

    fn is_this_machine(&self) -> bool {
        self.root == Path::new("/")
    }

    /// Where a path of the host is for us.
    pub fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// One of the host's programs, run with the host's root.
    fn command(&self, program: &Path) -> Command {
        if self.is_this_machine() {
            return Command::new(program);
        }
        let mut command = Command::new("chroot");
        command.arg(&self.root).arg(program);
        // systemctl does nothing in a chroot unless told; the socket that it talks to is the host's.
        command.env("SYSTEMD_IGNORE_CHROOT", "1");
        command
    }

    /// The host's containerd: the one given, or the first in the usual places.
    pub fn find_containerd(&self, given: Option<&Path>) -> Result<Option<Containerd<'_>>> {
        let path = match given {
            Some(path) => {
                ensure!(
                    self.at(path).is_file(),
                    "--containerd-bin {}: there is no such file",
                    path.display()
                );
                Some(path.to_owned())
            }
            None => USUAL_PATH
                .iter()
                .map(|dir| Path::new(dir).join("containerd"))
                .find(|path| self.at(path).is_file()),
        };
        let Some(path) = path else { return Ok(None) };
        let containerd = Containerd { host: self, path };
        // One that does not even say its version proves nothing.
        if containerd.major().is_none() {
            ensure!(
                given.is_none(),
                "--containerd-bin: `{} --version` fails",
                containerd.path.display()
            );
            return Ok(None);
        }
        Ok(Some(containerd))
    }

    /// What the host's dockerd says of its version; none where there is no dockerd.
    ///
    /// # Errors
    /// One that cannot be run.
    pub fn docker_version(&self) -> Result<Option<String>> {
        let paths = USUAL_PATH.iter().map(|dir| Path::new(dir).join("dockerd"));
        let Some(path) = paths.into_iter().find(|path| self.at(path).is_file()) else {
            return Ok(None);
        };
        let output = self
            .command(&path)
            .arg("--version")
            .output()
            .with_context(|| format!("run `{} --version`", path.display()))?;
        Ok(Some(String::from_utf8_lossy(&output.stdout).trim().to_owned()))
    }

    /// Whether systemd runs there.
    pub fn has_systemd(&self) -> bool {
        self.at("/run/systemd/system").is_dir()
    }

    /// Makes an engine read its configuration again.
    ///
    /// # Errors
    /// When systemctl says no, with its words.
    pub fn restart(&self, engine: Engine) -> Result<()> {
        let [verb, unit] = engine.restart();
        let command = format!("systemctl {verb} {unit}");
        let output = self
            .command(Path::new("systemctl"))
            .args([verb, unit])
            .output()
            .with_context(|| format!("run `{command}`"))?;
        if !output.status.success() {
            bail!(
                "`{command}` failed: {}; the configuration is written: look at `journalctl -u {unit}`, mend it, and run this again",
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(())
    }

    /// How many processes of this name run there.
    pub fn processes(&self, name: &str) -> usize {
        let entries = fs::read_dir(self.at("/proc")).into_iter().flatten().flatten();
        entries
            .filter(|entry| {
                let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
                let program = line.split(|b| *b == 0).next().unwrap_or_default();
                Path::new(&*String::from_utf8_lossy(program))
                    .file_name()
                    .is_some_and(|f| f == name)
            })
            .count()
    }

    /// The files that an import pattern finds now, in containerd's order.
    pub fn matches(&self, pattern: &Path, fits: impl Fn(&Path, &str) -> bool) -> Vec<PathBuf> {
        let folder = pattern.parent().unwrap_or(Path::new("/"));
        let mut found: Vec<PathBuf> = fs::read_dir(self.at(folder))
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| fits(pattern, name))
            .map(|name| folder.join(name))
            .collect();
        found.sort();
        found
    }
}

/// The host's containerd.
pub struct Containerd<'a> {
    host: &'a Host,
    path: PathBuf,
}

impl Containerd<'_> {
    /// Its major version.
    pub fn major(&self) -> Option<u32> {
        let output = self.host.command(&self.path).arg("--version").output().ok()?;
        let line = String::from_utf8_lossy(&output.stdout).into_owned();
        line.split_whitespace().find_map(|word| {
            let (major, _) = word.strip_prefix('v').unwrap_or(word).split_once('.')?;
            major.parse().ok()
        })
    }

    /// The configuration as it understands it, from a file that may be missing.
    ///
    /// # Errors
    /// When it refuses the file, with its words.
    pub fn dump(&self, config: &Path) -> Result<Dump> {
        let output = self
            .host
            .command(&self.path)
            .arg("--config")
            .arg(config)
            .args(["config", "dump"])
            .output()
            .with_context(|| format!("run {}", self.path.display()))?;
        if !output.status.success() {
            let words = String::from_utf8_lossy(&output.stderr).into_owned();
            bail!(
                "containerd refuses it: {}",
                words.lines().last().unwrap_or_default()
            );
        }
        Dump::parse(&String::from_utf8_lossy(&output.stdout))
    }

    /// The same for texts that are not in their place: `name` and text of each; the first is the main file.
    ///
    /// # Errors
    /// When it refuses them, or there is no room in the host's `/tmp`.
    pub fn dump_texts(&self, text: impl FnOnce(&Path) -> Result<Vec<(PathBuf, String)>>) -> Result<Dump> {
        let temporary = self.host.at("/tmp");
        let scratch = tempfile::Builder::new()
            .prefix("diffkeeper-install-")
            .tempdir_in(&temporary)
            .with_context(|| format!("make a scratch folder in {}", temporary.display()))?;
        let folder = Path::new("/tmp").join(scratch.path().file_name().unwrap_or_default());
        let files = text(&folder)?;
        for (path, text) in &files {
            fs::write(self.host.at(path), text)?;
        }
        let (main, _) = files.first().context("no file")?;
        self.dump(main)
    }
}
