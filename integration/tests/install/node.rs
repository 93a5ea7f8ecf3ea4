//! A folder that is a node's root: a real containerd to ask, a systemctl that leaves a trace, files to change.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use integration::{Ran, wait::until};

/// The command line that was built last; beside it lies the shim.
pub fn diffkeeper() -> PathBuf {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| repository.join("target"), PathBuf::from);
    target.join("release/diffkeeper")
}

pub fn run(command: &mut Command) -> Result<Ran> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("run {command:?}"))?;
    Ok(Ran {
        status: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// A folder that is a node's root.
pub struct Node {
    root: tempfile::TempDir,
}

/// What a file is: mode, owner, content. Folders have no content.
type Tree = BTreeMap<PathBuf, (u32, u32, Vec<u8>)>;

impl Node {
    pub fn new() -> Result<Node> {
        let node = Node {
            root: tempfile::Builder::new().prefix("dk-node-").tempdir()?,
        };
        for folder in ["etc", "tmp", "usr/local/bin", "usr/bin"] {
            fs::create_dir_all(node.at(folder))?;
        }
        Ok(node)
    }

    /// With this containerd, and with a systemd.
    pub fn with_containerd(containerd: &Path) -> Result<Node> {
        let node = Node::new()?;
        node.program(containerd, "usr/bin/containerd")?;
        fs::create_dir_all(node.at("run/systemd/system"))?;
        node.systemctl("touch")?;
        Ok(node)
    }

    /// systemctl is another program: `touch` leaves files named as its arguments in the root.
    pub fn systemctl(&self, program: &str) -> Result<()> {
        let _ = fs::remove_file(self.at("usr/bin/systemctl"));
        self.program(&Path::new("/usr/bin").join(program), "usr/bin/systemctl")
    }

    /// A dockerd that says this of its version.
    pub fn dockerd(&self, version: &str) -> Result<()> {
        fs::create_dir_all(self.at("bin"))?;
        self.program(&fs::canonicalize("/bin/sh")?, "bin/sh")?;
        self.write("usr/bin/dockerd", &format!("#!/bin/sh\necho '{version}'\n"))?;
        fs::set_permissions(self.at("usr/bin/dockerd"), fs::Permissions::from_mode(0o755))?;
        Ok(())
    }

    /// Whether systemctl has been told this since the last time it was asked.
    pub fn told(&self, verb: &str, unit: &str) -> bool {
        let [verb, unit] = [verb, unit].map(|name| fs::remove_file(self.at(name)).is_ok());
        verb && unit
    }

    /// A program with the libraries that it needs.
    fn program(&self, program: &Path, name: &str) -> Result<()> {
        let libraries = run(Command::new("ldd").arg(program))?;
        let libraries = libraries.out.split_whitespace().filter(|w| w.starts_with('/'));
        for library in libraries {
            let to = self.at(library);
            fs::create_dir_all(to.parent().context("a library in no folder")?)?;
            fs::copy(library, to)?;
        }
        fs::hard_link(program, self.at(name))
            .or_else(|_| fs::copy(program, self.at(name)).map(drop))
            .with_context(|| format!("copy {}", program.display()))
    }

    pub fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.root.path().join(path.strip_prefix("/").unwrap_or(path))
    }

    pub fn write(&self, path: &str, text: &str) -> Result<()> {
        let path = self.at(path);
        fs::create_dir_all(path.parent().context("in no folder")?)?;
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))
    }

    pub fn read(&self, path: &str) -> Result<String> {
        let path = self.at(path);
        fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
    }

    /// Everything in the folders that install may touch.
    pub fn tree(&self) -> Result<Tree> {
        let mut tree = Tree::new();
        let mut folders = ["etc", "tmp", "usr/local"].map(|f| self.at(f)).to_vec();
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder)? {
                let path = entry?.path();
                let meta = fs::symlink_metadata(&path)?;
                let content = if meta.is_dir() {
                    folders.push(path.clone());
                    Vec::new()
                } else {
                    fs::read(&path)?
                };
                tree.insert(path, (meta.permissions().mode(), meta.uid(), content));
            }
        }
        Ok(tree)
    }

    /// `diffkeeper VERB --root …`, from another folder than the one that it installs to.
    pub fn diffkeeper(&self, args: &[&str]) -> Result<Ran> {
        let words = self.words(args);
        run(Command::new(&words[0]).args(&words[1..]))
    }

    /// The same below another program.
    pub fn diffkeeper_with(&self, wrapper: &[&str], args: &[&str]) -> Result<Ran> {
        run(Command::new(wrapper[0])
            .args(&wrapper[1..])
            .args(self.words(args)))
    }

    /// The same with `/etc` mounted read-only.
    pub fn diffkeeper_read_only(&self, args: &[&str]) -> Result<Ran> {
        let etc = self.at("etc");
        let script = "mount --bind \"$0\" \"$0\" && mount -o remount,ro,bind \"$0\" && exec \"$@\"";
        let mut command = Command::new("unshare");
        command.args(["-m", "sh", "-c", script]).arg(etc);
        run(command.args(self.words(args)))
    }

    fn words(&self, args: &[&str]) -> Vec<OsString> {
        let mut words: Vec<OsString> = ["timeout", "-k", "5", "60"].map(Into::into).to_vec();
        words.push(diffkeeper().into_os_string());
        words.extend(args.iter().map(Into::into));
        words.extend(["--root".into(), self.root.path().into()]);
        words
    }

    /// What this node's containerd makes of its configuration.
    pub fn dump(&self) -> Result<toml::Table> {
        let ran = run(Command::new("chroot").arg(self.root.path()).args([
            "/usr/bin/containerd",
            "--config",
            "/etc/containerd/config.toml",
            "config",
            "dump",
        ]))?;
        Ok(ran.ok()?.parse()?)
    }

    /// What the plugins of a daemon with this node's configuration are. It is started for that, and ended.
    pub fn plugins(&self, containerd: &Path) -> Result<String> {
        let log = fs::File::create(self.at("log"))?;
        let mut daemon = Command::new(containerd)
            .arg("--config")
            .arg(self.at("etc/containerd/config.toml"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let mut plugins = String::new();
        let answered = until("containerd's answer", Duration::from_secs(20), || {
            let mut ctr = Command::new("timeout");
            ctr.args(["-k", "5", "5"]).arg(containerd.with_file_name("ctr"));
            ctr.arg("--address")
                .arg(self.at("c.sock"))
                .args(["plugins", "ls"]);
            plugins = run(&mut ctr).and_then(Ran::ok).unwrap_or_default();
            !plugins.is_empty()
        });
        daemon.kill()?;
        daemon.wait()?;
        answered.with_context(|| fs::read_to_string(self.at("log")).unwrap_or_default())?;
        Ok(plugins)
    }

    /// Demands that containerd knows the handler whole.
    pub fn has_handler(&self) -> Result<()> {
        let dump = self.dump()?;
        let runtimes = runtimes(&dump)?;
        let handler = runtimes
            .get("diffkeeper")
            .with_context(|| format!("containerd has only {:?}", runtimes.keys().collect::<Vec<_>>()))?;
        for (key, value) in [
            ("runtime_type", "\"io.containerd.diffkeeper.v1\""),
            ("pod_annotations", "[\"diffkeeper.io/*\"]"),
            (
                "container_annotations",
                "[\"io.kubernetes.container.*\", \"diffkeeper.io/*\"]",
            ),
        ] {
            let found = handler.get(key).map(ToString::to_string).unwrap_or_default();
            ensure!(found == value, "{key} is {found}");
        }
        Ok(())
    }
}

/// The runtimes of a dump, whichever version it is of.
pub fn runtimes(dump: &toml::Table) -> Result<&toml::Table> {
    let plugins = dump["plugins"].as_table().context("no plugins")?;
    let plugin = plugins
        .get("io.containerd.cri.v1.runtime")
        .or_else(|| plugins.get("io.containerd.grpc.v1.cri"))
        .context("no CRI plugin")?;
    plugin["containerd"]["runtimes"].as_table().context("no runtimes")
}
