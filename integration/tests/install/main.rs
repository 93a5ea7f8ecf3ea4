//! `diffkeeper install` and `uninstall` on a folder that is a node's root. Each version of containerd that this machine
//! can have is asked what it makes of the result.

mod docker;
mod node;

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context, Result, ensure};
use libtest_mimic::{Arguments, Trial};

use crate::node::{Node, run, runtimes};

const VERSIONS: [&str; 4] = ["1.6", "1.7", "2", "2.3"];
const MAIN: &str = "etc/containerd/config.toml";
const DROP_IN: &str = "etc/containerd/conf.d/diffkeeper.toml";

/// One of containerd's versions.
struct Version {
    name: &'static str,
    binary: PathBuf,
}

impl Version {
    /// From 2.0 on, imported files are merged key by key.
    fn merges(&self) -> bool {
        self.name.starts_with('2')
    }

    /// The file's version and the table that holds the runtimes.
    fn tables(&self) -> (u8, &'static str) {
        if self.merges() {
            (3, "plugins.\"io.containerd.cri.v1.runtime\"")
        } else {
            (2, "plugins.\"io.containerd.grpc.v1.cri\"")
        }
    }

    /// A configuration that a person wrote, with CRI settings and another handler.
    fn by_hand(&self, imports: &str) -> String {
        let (version, cri) = self.tables();
        format!(
            "# our nodes\nversion = {version}\nimports = [{imports}]\n\n[{cri}]\n  max_container_log_line_size = 777\n\n[{cri}.cni]\n  \
             bin_dir = \"/special\" # not the default\n\n[{cri}.containerd.runtimes.kata]\n  runtime_type = \"io.containerd.kata.v2\"\n"
        )
    }

    fn node(&self) -> Result<Node> {
        Node::with_containerd(&self.binary)
    }

    fn default_configuration(&self) -> Result<String> {
        run(Command::new(&self.binary).args(["config", "default"]))?.ok()
    }
}

type Test = fn(&Version) -> Result<()>;

const TESTS: &[(&str, Test)] = &[
    ("default_configuration_and_back", default_configuration_and_back),
    ("no_configuration_and_back", no_configuration_and_back),
    ("settings_by_hand_survive", settings_by_hand_survive),
    ("a_drop_in_where_nothing_is_lost", a_drop_in_where_nothing_is_lost),
    (
        "a_drop_in_that_hides_the_main_file",
        a_drop_in_that_hides_the_main_file,
    ),
    ("version_2_is_taken_by_all", version_2_is_taken_by_all),
    ("a_foreign_handler_is_refused", a_foreign_handler_is_refused),
    ("an_unwritable_configuration", an_unwritable_configuration),
    ("a_configuration_that_is_broken", a_configuration_that_is_broken),
    ("a_dry_run_changes_nothing", a_dry_run_changes_nothing),
    ("an_upgrade_restarts_nothing", an_upgrade_restarts_nothing),
    (
        "a_restart_that_failed_is_tried_again",
        a_restart_that_failed_is_tried_again,
    ),
    (
        "what_a_person_changed_since_stays",
        what_a_person_changed_since_stays,
    ),
    ("cri_that_is_disabled", cri_that_is_disabled),
    ("an_unusual_folder_of_binaries", an_unusual_folder_of_binaries),
    ("live_containers_keep_their_shim", live_containers_keep_their_shim),
    ("the_rights_of_the_daemonset_do", the_rights_of_the_daemonset_do),
    ("the_daemon_starts_with_it", the_daemon_starts_with_it),
];

/// Installs and uninstalls; in between it holds what must hold of any installation.
fn there_and_back(node: &Node, more: &[&str], between: impl FnOnce() -> Result<()>) -> Result<()> {
    let before = node.tree()?;
    let install = [&["install"], more].concat();
    let said = node.diffkeeper(&install)?.ok()?;
    ensure!(node.told("restart", "containerd"), "no restart: {said}");
    node.has_handler()?;
    for name in ["containerd-shim-diffkeeper-v1", "diffkeeper"] {
        let mode = fs::metadata(node.at("usr/local/bin").join(name))?
            .permissions()
            .mode();
        ensure!(mode & 0o777 == 0o755, "{name} has mode {mode:o}");
    }
    between()?;

    let installed = node.tree()?;
    let said = node.diffkeeper(&install)?.ok()?;
    ensure!(
        said.starts_with("Nothing to change.\n"),
        "the second time: {said}"
    );
    ensure!(!node.told("restart", "containerd"), "the second time restarts");
    ensure!(node.tree()? == installed, "the second time changes files");

    let uninstall = [&["uninstall"], more].concat();
    let said = node.diffkeeper(&uninstall)?.ok()?;
    ensure!(
        node.told("restart", "containerd"),
        "uninstall restarts nothing: {said}"
    );
    let after = node.tree()?;
    for path in before.keys().chain(after.keys()) {
        ensure!(
            before.get(path) == after.get(path),
            "{} is not as it was",
            path.display()
        );
    }
    let said = node.diffkeeper(&uninstall)?.ok()?;
    ensure!(
        said.starts_with("Nothing to change.\n"),
        "uninstall twice: {said}"
    );
    Ok(())
}

fn default_configuration_and_back(v: &Version) -> Result<()> {
    let node = v.node()?;
    node.write(MAIN, &v.default_configuration()?)?;
    // Mode and owner are a person's choice.
    fs::set_permissions(node.at(MAIN), fs::Permissions::from_mode(0o640))?;
    std::os::unix::fs::chown(node.at(MAIN), Some(12), None)?;
    there_and_back(&node, &[], || {
        // 2.3's default names a folder of imports.
        let drop_in = node.at(DROP_IN).exists();
        ensure!(drop_in == (v.name == "2.3"), "drop-in: {drop_in}");
        let mode = fs::metadata(node.at(MAIN))?.permissions().mode();
        ensure!(mode & 0o777 == 0o640, "mode {mode:o}");
        let dump = node.dump()?;
        ensure!(runtimes(&dump)?.contains_key("runc"), "runc's handler is gone");
        Ok(())
    })
}

fn no_configuration_and_back(v: &Version) -> Result<()> {
    let node = v.node()?;
    there_and_back(&node, &[], || {
        let dump = node.dump()?;
        ensure!(runtimes(&dump)?.contains_key("runc"), "runc's handler is gone");
        Ok(())
    })?;
    // A file that says nothing is as good as none, and its comments stay.
    node.write(MAIN, "# to be filled in\n")?;
    there_and_back(&node, &[], || {
        ensure!(node.read(MAIN)?.starts_with("# to be filled in\n"));
        Ok(())
    })
}

/// What [`Version::by_hand`] says must still hold for containerd.
fn by_hand_holds(node: &Node) -> Result<()> {
    let dump = node.dump()?.to_string();
    for setting in ["777", "/special", "io.containerd.kata.v2"] {
        ensure!(dump.contains(setting), "containerd has lost {setting}");
    }
    Ok(())
}

fn settings_by_hand_survive(v: &Version) -> Result<()> {
    for imports in ["", "\"/etc/containerd/conf.d/*.toml\"", "\"conf.d/*.toml\""] {
        let node = v.node()?;
        fs::create_dir_all(node.at("etc/containerd/conf.d"))?;
        node.write(MAIN, &v.by_hand(imports))?;
        there_and_back(&node, &[], || {
            let drop_in = node.at(DROP_IN).exists();
            ensure!(
                drop_in == (v.merges() && !imports.is_empty()),
                "imports = [{imports}], drop-in: {drop_in}"
            );
            by_hand_holds(&node)
        })
        .with_context(|| format!("imports = [{imports}]"))?;
    }
    Ok(())
}

fn a_drop_in_where_nothing_is_lost(v: &Version) -> Result<()> {
    // Without CRI settings in the main file there is nothing that 1.x could replace.
    let node = v.node()?;
    let (version, _) = v.tables();
    let text =
        format!("version = {version}\nimports = [\"/etc/containerd/runtime_*.toml\"]\n[grpc]\n  gid = 7\n");
    node.write(MAIN, &text)?;
    there_and_back(&node, &[], || {
        ensure!(node.at("etc/containerd/runtime_diffkeeper.toml").exists());
        ensure!(node.read(MAIN)? == text, "the main file was touched");
        Ok(())
    })
}

fn a_drop_in_that_hides_the_main_file(v: &Version) -> Result<()> {
    let node = v.node()?;
    let (version, cri) = v.tables();
    let import = "etc/containerd/other.toml";
    node.write(MAIN, &v.by_hand("\"/etc/containerd/other.toml\""))?;
    let other = format!("version = {version}\n[{cri}.registry]\n  config_path = \"/etc/certs\"\n");
    node.write(import, &other)?;
    if v.merges() {
        return there_and_back(&node, &[], || by_hand_holds(&node));
    }
    // On 1.x the imported file's table is the only one that counts.
    let before = node.tree()?;
    node.diffkeeper(&["install"])?
        .fails_with(&["config.toml", "imported file", "--containerd-config"])?;
    ensure!(node.tree()? == before, "something was changed");
    let there = ["--containerd-config", "/etc/containerd/other.toml"];
    there_and_back(&node, &there, || Ok(()))
}

fn version_2_is_taken_by_all(v: &Version) -> Result<()> {
    let node = v.node()?;
    let text = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.kata]\nruntime_type = \"io.containerd.kata.v2\"\n";
    node.write(MAIN, text)?;
    there_and_back(&node, &[], || {
        let dump = node.dump()?;
        ensure!(runtimes(&dump)?.contains_key("kata"));
        Ok(())
    })
}

fn a_foreign_handler_is_refused(v: &Version) -> Result<()> {
    let foreign = v
        .by_hand("\"/etc/containerd/conf.d/*.toml\"")
        .replace("runtimes.kata", "runtimes.diffkeeper");
    let (version, _) = v.tables();
    let main = format!("version = {version}\nimports = [\"/etc/containerd/conf.d/*.toml\"]\n");
    let elsewhere = "etc/containerd/conf.d/99-other.toml";
    for files in [
        vec![(MAIN, foreign.as_str())],
        vec![(MAIN, main.as_str()), (elsewhere, foreign.as_str())],
    ] {
        let node = v.node()?;
        for (path, text) in &files {
            node.write(path, text)?;
        }
        let before = node.tree()?;
        let (path, _) = files.last().context("no file")?;
        node.diffkeeper(&["install"])?.fails_with(&[
            path,
            "io.containerd.kata.v2",
            "io.containerd.diffkeeper.v1",
            "rename",
        ])?;
        ensure!(node.tree()? == before, "something was changed");
        ensure!(!node.told("restart", "containerd"), "it was restarted");
        node.diffkeeper(&["uninstall"])?.ok()?;
        ensure!(node.tree()? == before, "uninstall took another's handler");
    }
    Ok(())
}

fn an_unwritable_configuration(v: &Version) -> Result<()> {
    let node = v.node()?;
    node.write(MAIN, &v.by_hand(""))?;
    let before = node.tree()?;
    node.diffkeeper_read_only(&["install"])?
        .fails_with(&["config.toml", "Read-only", "root"])?;
    ensure!(node.tree()? == before, "something was changed");
    ensure!(!node.told("restart", "containerd"), "it was restarted");
    // A folder in its place, and a link, are no better.
    fs::remove_file(node.at(MAIN))?;
    fs::create_dir(node.at(MAIN))?;
    node.diffkeeper(&["install"])?
        .fails_with(&["config.toml", "not a file"])?;
    fs::remove_dir(node.at(MAIN))?;
    std::os::unix::fs::symlink("/etc/elsewhere.toml", node.at(MAIN))?;
    node.diffkeeper(&["install"])?
        .fails_with(&["config.toml", "link to /etc/elsewhere.toml"])
}

fn a_configuration_that_is_broken(v: &Version) -> Result<()> {
    let node = v.node()?;
    for (text, words) in [
        ("version = ", ["config.toml", "not TOML"]),
        ("disabled_plugins = [\"x\"]\n", ["config.toml", "version 1"]),
        (
            "version = 2\noom_score = \"high\"\n",
            ["config.toml", "containerd refuses it"],
        ),
    ] {
        node.write(MAIN, text)?;
        let before = node.tree()?;
        node.diffkeeper(&["install"])?.fails_with(&words)?;
        ensure!(node.tree()? == before, "something was changed");
    }
    Ok(())
}

fn a_dry_run_changes_nothing(v: &Version) -> Result<()> {
    let node = v.node()?;
    node.write(MAIN, &v.by_hand(""))?;
    let before = node.tree()?;
    let said = node.diffkeeper(&["install", "--dry-run"])?.ok()?;
    for words in [
        "would install /usr/local/bin/containerd-shim-diffkeeper-v1\n",
        "would edit /etc/containerd/config.toml\n",
        "    + runtime_type = \"io.containerd.diffkeeper.v1\"\n",
        "would restart containerd\n",
    ] {
        ensure!(said.contains(words), "no {words:?} in {said}");
    }
    ensure!(node.tree()? == before, "something was changed");
    ensure!(!node.told("restart", "containerd"), "it was restarted");

    let json = node.diffkeeper(&["install", "--json"])?.ok()?;
    let json: serde_json::Value = serde_json::from_str(&json)?;
    ensure!(
        json["restarted"][0] == "restart containerd"
            && json["changes"].as_array().is_some_and(|c| c.len() == 3),
        "{json}"
    );
    let installed = node.tree()?;
    let said = node.diffkeeper(&["uninstall", "--dry-run"])?.ok()?;
    ensure!(
        said.contains("would restore /etc/containerd/config.toml"),
        "{said}"
    );
    ensure!(node.tree()? == installed, "something was changed");
    Ok(())
}

fn an_upgrade_restarts_nothing(v: &Version) -> Result<()> {
    let node = v.node()?;
    node.write(MAIN, &v.by_hand(""))?;
    node.diffkeeper(&["install"])?.ok()?;
    ensure!(node.told("restart", "containerd"));
    let shim = "usr/local/bin/containerd-shim-diffkeeper-v1";
    node.write(shim, "an older one")?;
    let said = node.diffkeeper(&["install"])?.ok()?;
    ensure!(
        said == "upgrade /usr/local/bin/containerd-shim-diffkeeper-v1\n",
        "{said}"
    );
    ensure!(
        !node.told("restart", "containerd"),
        "containerd looks for the shim each time"
    );
    ensure!(fs::metadata(node.at(shim))?.len() > 100_000);
    // One that somebody else has put there since is not ours to remove.
    node.write(shim, "another one")?;
    let said = node.diffkeeper(&["uninstall"])?.ok()?;
    ensure!(said.contains("is not the one that install put there"), "{said}");
    ensure!(node.read(shim)? == "another one");
    Ok(())
}

fn a_restart_that_failed_is_tried_again(v: &Version) -> Result<()> {
    let node = v.node()?;
    node.write(MAIN, &v.by_hand(""))?;
    node.systemctl("false")?;
    let ran = node.diffkeeper(&["install"])?;
    ensure!(
        ran.out.contains("edit /etc/containerd/config.toml"),
        "{}",
        ran.out
    );
    ran.fails_with(&["systemctl restart containerd", "journalctl"])?;
    node.systemctl("touch")?;
    let said = node.diffkeeper(&["install"])?.ok()?;
    ensure!(said == "restart containerd\n", "{said}");
    ensure!(node.told("restart", "containerd"));
    let said = node.diffkeeper(&["install"])?.ok()?;
    ensure!(
        said == "Nothing to change.\n" && !node.told("restart", "containerd"),
        "{said}"
    );
    node.systemctl("false")?;
    node.diffkeeper(&["uninstall"])?
        .fails_with(&["systemctl restart containerd"])?;
    node.systemctl("touch")?;
    let said = node.diffkeeper(&["uninstall"])?.ok()?;
    ensure!(
        said == "restart containerd\n" && node.told("restart", "containerd"),
        "{said}"
    );
    node.diffkeeper(&["install"])?.ok()?;
    ensure!(node.told("restart", "containerd"));
    // Who wants none has none.
    let said = node.diffkeeper(&["uninstall", "--no-restart"])?.ok()?;
    ensure!(said.contains("systemctl restart containerd"), "{said}");
    ensure!(!node.told("restart", "containerd"), "it was restarted");
    // Without systemd it can only be said.
    fs::remove_dir_all(node.at("run/systemd"))?;
    let said = node.diffkeeper(&["install"])?.ok()?;
    ensure!(said.contains("no systemd runs here"), "{said}");
    node.diffkeeper(&["uninstall", "--restart"])?
        .fails_with(&["no systemd runs here"])
}

fn what_a_person_changed_since_stays(v: &Version) -> Result<()> {
    let node = v.node()?;
    node.write(MAIN, &v.by_hand(""))?;
    node.diffkeeper(&["install"])?.ok()?;
    let (_, cri) = v.tables();
    let mine =
        format!("\n# mine\n[{cri}.containerd.runtimes.gvisor]\nruntime_type = \"io.containerd.runsc.v1\"\n");
    let text = node.read(MAIN)? + &mine;
    node.write(MAIN, &text)?;
    let said = node.diffkeeper(&["install"])?.ok()?;
    ensure!(said == "Nothing to change.\n", "{said}");
    // Half of the handler lost: it is mended, and the rest stays.
    let text = text.replace("\"io.kubernetes.container.*\", ", "");
    node.write(MAIN, &text)?;
    node.diffkeeper(&["install"])?.ok()?;
    let dump = node.dump()?;
    let annotations = runtimes(&dump)?["diffkeeper"]["container_annotations"].to_string();
    ensure!(annotations.contains("io.kubernetes.container.*"), "{annotations}");
    let said = node.diffkeeper(&["uninstall"])?.ok()?;
    ensure!(said.contains("config.toml.before-diffkeeper"), "{said}");
    let left = node.read(MAIN)?;
    ensure!(
        left.starts_with("# our nodes\n") && left.contains("# mine") && left.contains("runsc"),
        "{left}"
    );
    ensure!(!left.contains("diffkeeper"), "{left}");
    by_hand_holds(&node)?;
    ensure!(node.read("etc/containerd/config.toml.before-diffkeeper")? == v.by_hand(""));
    Ok(())
}

fn cri_that_is_disabled(v: &Version) -> Result<()> {
    let node = v.node()?;
    let (version, _) = v.tables();
    let text = format!("version = {version}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n");
    node.write(MAIN, &text)?;
    let said = node.diffkeeper(&["install"])?.ok()?;
    ensure!(said.contains("CRI plugin is disabled"), "{said}");
    node.diffkeeper(&["uninstall"])?.ok()?;
    ensure!(node.read(MAIN)? == text);
    Ok(())
}

fn an_unusual_folder_of_binaries(v: &Version) -> Result<()> {
    let node = v.node()?;
    node.write(MAIN, &v.by_hand(""))?;
    let before = node.tree()?;
    node.diffkeeper(&["install", "--bin-dir", "/opt/diffkeeper/bin"])?
        .ok()?;
    node.has_handler()?;
    let dump = node.dump()?;
    let path = runtimes(&dump)?["diffkeeper"]["runtime_path"]
        .as_str()
        .map(Path::new);
    let shim = Path::new("/opt/diffkeeper/bin/containerd-shim-diffkeeper-v1");
    ensure!(path == Some(shim) && node.at(shim).exists(), "{path:?}");
    node.diffkeeper(&["install"])?
        .fails_with(&["runtime_path", "/opt/diffkeeper/bin", "--bin-dir"])?;
    node.diffkeeper(&["uninstall"])?.ok()?;
    ensure!(
        node.tree()? == before && !node.at("opt").exists(),
        "something is left"
    );
    Ok(())
}

fn live_containers_keep_their_shim(v: &Version) -> Result<()> {
    let node = v.node()?;
    node.write(MAIN, &v.by_hand(""))?;
    node.diffkeeper(&["install"])?.ok()?;
    node.write(
        "proc/4711/cmdline",
        "/usr/local/bin/containerd-shim-diffkeeper-v1\0-namespace\0k8s.io\0",
    )?;
    let installed = node.tree()?;
    node.diffkeeper(&["uninstall"])?
        .fails_with(&["containers still run", "--force"])?;
    ensure!(node.tree()? == installed, "something was changed");
    fs::create_dir_all(node.at("var/lib/diffkeeper/live"))?;
    let said = node.diffkeeper(&["uninstall", "--force"])?.ok()?;
    ensure!(said.contains("still in /var/lib/diffkeeper"), "{said}");
    ensure!(
        node.at("var/lib/diffkeeper/live").is_dir(),
        "live trees were touched"
    );
    ensure!(node.read(MAIN)? == v.by_hand(""));
    Ok(())
}

fn the_rights_of_the_daemonset_do(v: &Version) -> Result<()> {
    let node = v.node()?;
    node.write(MAIN, &v.by_hand(""))?;
    let before = node.tree()?;
    // deploy/daemonset.yaml: all capabilities dropped but for this one, no new privileges.
    let rights = [
        "setpriv",
        "--no-new-privs",
        "--bounding-set=-all,+sys_chroot",
        "--inh-caps=-all,+sys_chroot",
    ];
    node.diffkeeper_with(&rights, &["install", "--restart"])?.ok()?;
    ensure!(node.told("restart", "containerd"));
    node.has_handler()?;
    node.diffkeeper_with(&rights, &["uninstall", "--restart"])?.ok()?;
    ensure!(node.told("restart", "containerd"));
    ensure!(node.tree()? == before, "something is left");
    // And without it, it does not: the test would else show nothing.
    let fewer = ["setpriv", "--no-new-privs", "--bounding-set=-all"];
    node.diffkeeper_with(&fewer, &["install", "--containerd-bin", "/usr/bin/containerd"])?
        .fails_with(&["--containerd-bin"])
}

fn the_daemon_starts_with_it(v: &Version) -> Result<()> {
    let node = v.node()?;
    let (version, cri) = v.tables();
    let text = format!(
        "version = {version}\nroot = {root:?}\nstate = {state:?}\ndisabled_plugins = [\"io.containerd.nri.v1.nri\"]\n\
         [grpc]\naddress = {socket:?}\n[ttrpc]\naddress = {ttrpc:?}\n[plugins.\"io.containerd.internal.v1.opt\"]\npath = {opt:?}\n",
        root = node.at("root"),
        state = node.at("state"),
        socket = node.at("c.sock"),
        ttrpc = node.at("c.sock.ttrpc"),
        opt = node.at("opt"),
    );
    // What a hand would write. 1.x then has no handler `runc`, and no CRI: nothing that install may do.
    let bare = format!(
        "{text}\n[{cri}.containerd.runtimes.diffkeeper]\nruntime_type = \"io.containerd.diffkeeper.v1\"\n"
    );
    node.write(MAIN, &bare)?;
    let plugins = node.plugins(&v.binary)?;
    ensure!(cri_is_up(&plugins) == v.merges(), "by hand: {plugins}");

    node.write(MAIN, &text)?;
    node.diffkeeper(&["install"])?.ok()?;
    let plugins = node.plugins(&v.binary)?;
    ensure!(cri_is_up(&plugins), "with install: {plugins}");
    Ok(())
}

/// Whether every plugin of CRI is, in what `ctr plugins ls` prints.
fn cri_is_up(plugins: &str) -> bool {
    let mut cri = plugins.lines().filter(|line| line.contains("cri")).peekable();
    cri.peek().is_some() && cri.all(|line| line.split_whitespace().last() == Some("ok"))
}

/// The containerd of `hack/`, or why this machine cannot have it.
fn containerd(name: &'static str) -> Result<Result<Version, String>> {
    if !nix::unistd::geteuid().is_root() {
        return Ok(Err("needs root (chroot)".into()));
    }
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let fetch =
        run(Command::new(repository.join("hack/dev-containerd")).args(["fetch", "--containerd", name]))?;
    if fetch.status == 75 {
        let reason = fetch.err.lines().last().unwrap_or("cannot be had here");
        return Ok(Err(reason.trim_start_matches("skip: ").to_owned()));
    }
    fetch.ok()?;
    let binary = fs::canonicalize(repository.join(format!("target/containerd-{name}/bin/containerd")))?;
    Ok(Ok(Version { name, binary }))
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let mut trials: Vec<Trial> = docker::TESTS
        .iter()
        .map(|(name, test)| Trial::test(*name, move || test().map_err(|e| format!("{e:#}").into())))
        .collect();
    for name in VERSIONS {
        let version = match containerd(name) {
            Ok(Ok(version)) => &*Box::leak(Box::new(version)),
            Ok(Err(reason)) => {
                println!(
                    "skipped containerd-{name}: {} tests of install: {reason}",
                    TESTS.len()
                );
                continue;
            }
            Err(error) => {
                println!("containerd {name} cannot be fetched: {error:#}");
                return ExitCode::FAILURE;
            }
        };
        trials.extend(TESTS.iter().map(|(test_name, test)| {
            Trial::test(format!("containerd-{name}::install::{test_name}"), move || {
                test(version).map_err(|e| format!("{e:#}").into())
            })
        }));
    }
    if !node::diffkeeper().exists() {
        println!("{} is not built yet: make build", node::diffkeeper().display());
        return ExitCode::FAILURE;
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}
