//! Docker's `daemon.json`, and nodes without a containerd to ask.

use std::{fs, path::Path, process::Command};

use anyhow::{Result, ensure};

use crate::node::{Node, diffkeeper, run};

type Test = fn() -> Result<()>;

pub const TESTS: &[(&str, Test)] = &[
    ("docker::install::there_and_back", there_and_back),
    ("docker::install::refusals", refusals),
    ("docker::install::an_old_docker", an_old_docker),
    ("docker::install::both_engines", both_engines),
    ("install::without_a_containerd", without_a_containerd),
    ("install::paths_that_cannot_be", paths_that_cannot_be),
];

const FILE: &str = "etc/docker/daemon.json";
const BY_HAND: &str = "{\n\t\"live-restore\": true, \"debug\": false,\n\t\"runtimes\": {\"kata\": {\"runtimeType\": \"io.containerd.kata.v2\"}}\n}";

fn runtime(node: &Node) -> Result<String> {
    let json: serde_json::Value = serde_json::from_str(&node.read(FILE)?)?;
    Ok(json["runtimes"]["diffkeeper"].to_string())
}

fn there_and_back() -> Result<()> {
    for before in [None, Some(BY_HAND), Some("")] {
        let node = Node::new()?;
        fs::create_dir_all(node.at("run/systemd/system"))?;
        node.systemctl("touch")?;
        if let Some(text) = before {
            node.write(FILE, text)?;
        }
        let tree = node.tree()?;
        node.diffkeeper(&["install", "--docker"])?.ok()?;
        ensure!(node.told("reload", "docker"), "docker was not told");
        let found = runtime(&node)?;
        ensure!(
            found == r#"{"runtimeType":"io.containerd.diffkeeper.v1"}"#,
            "{found}"
        );
        let said = node.diffkeeper(&["install", "--docker"])?.ok()?;
        ensure!(
            said == "Nothing to change.\n" && !node.told("reload", "docker"),
            "{said}"
        );
        node.diffkeeper(&["uninstall", "--docker"])?.ok()?;
        ensure!(node.tree()? == tree, "not as it was: {before:?}");
    }
    Ok(())
}

fn refusals() -> Result<()> {
    for (text, words) in [
        (
            r#"{"runtimes": {"diffkeeper": {"path": "/opt/other"}}}"#,
            ["daemon.json", "/opt/other", "io.containerd.diffkeeper.v1"],
        ),
        ("{,}", ["daemon.json", "not a JSON object", "line 1"]),
    ] {
        let node = Node::new()?;
        node.write(FILE, text)?;
        let tree = node.tree()?;
        node.diffkeeper(&["install", "--docker"])?.fails_with(&words)?;
        ensure!(node.tree()? == tree, "something was changed");
    }
    let node = Node::new()?;
    node.write(FILE, BY_HAND)?;
    let tree = node.tree()?;
    let ran = node.diffkeeper_read_only(&["install", "--docker"])?;
    if nix::unistd::geteuid().is_root() {
        ran.fails_with(&["daemon.json", "Read-only"])?;
    }
    ensure!(node.tree()? == tree, "something was changed");
    Ok(())
}

/// Docker before 24 takes the entry, ignores it, and keeps nothing without a word.
fn an_old_docker() -> Result<()> {
    for (version, words) in [
        (
            "Docker version 20.10.24+dfsg1, build 297e128",
            ["20.10.24", "runc", "24 or later"],
        ),
        (
            "Docker version 23.0.6, build ef23cbc",
            ["23.0.6", "24 or later", "--runtime io.containerd.diffkeeper.v1"],
        ),
    ] {
        let node = Node::new()?;
        node.dockerd(version)?;
        let tree = node.tree()?;
        node.diffkeeper(&["install", "--docker"])?.fails_with(&words)?;
        ensure!(node.tree()? == tree, "something was changed");
        // doctor says so where it was configured by hand; it looks at this machine's own Docker.
        if !Path::new("/etc/docker/daemon.json").exists() {
            let path = format!("{}:{}", node.at("usr/bin").display(), std::env::var("PATH")?);
            let config = node.at("config.toml");
            fs::write(&config, format!("root = {:?}\n", node.at("live")))?;
            let mut doctor = Command::new(diffkeeper());
            let told = run(doctor
                .arg("doctor")
                .env("PATH", path)
                .env("DIFFKEEPER_CONFIG", config))?;
            ensure!(
                words.iter().all(|word| told.out.contains(word)) && told.out.contains("warning  docker"),
                "{}",
                told.out
            );
        }
    }
    let node = Node::new()?;
    let said = node.diffkeeper(&["install", "--docker"])?.ok()?;
    ensure!(said.contains("no dockerd to ask"), "{said}");
    let node = Node::new()?;
    node.dockerd("Docker version 24.0.0, build 98fdcd7")?;
    let said = node.diffkeeper(&["install", "--docker"])?.ok()?;
    ensure!(!said.contains("no dockerd to ask"), "{said}");
    runtime(&node).map(drop)
}

fn both_engines() -> Result<()> {
    let node = Node::new()?;
    node.write("etc/containerd/config.toml", "version = 2\n")?;
    let tree = node.tree()?;
    node.diffkeeper(&["install", "--containerd", "--docker"])?.ok()?;
    node.diffkeeper(&["uninstall", "--docker"])?.ok()?;
    ensure!(!node.at(FILE).exists(), "docker's is left");
    ensure!(
        node.at("usr/local/bin/containerd-shim-diffkeeper-v1").exists(),
        "containerd still needs the shim"
    );
    node.diffkeeper(&["uninstall"])?.ok()?;
    ensure!(node.tree()? == tree, "something is left");
    Ok(())
}

fn without_a_containerd() -> Result<()> {
    let node = Node::new()?;
    node.diffkeeper(&["install"])?
        .fails_with(&["config.toml", "--containerd-bin", "--containerd-config"])?;
    node.write(
        "etc/containerd/config.toml",
        "version = 3\nimports = [\"/etc/containerd/conf.d/*.toml\"]\n",
    )?;
    let said = node.diffkeeper(&["install"])?.ok()?;
    ensure!(said.contains("nobody has checked"), "{said}");
    ensure!(
        node.read("etc/containerd/config.toml")?
            .contains("cri.v1.runtime\".containerd.runtimes.diffkeeper]"),
        "a drop-in may lose settings: nobody can tell"
    );
    // A handler that a person wrote is theirs.
    let mine = Node::new()?;
    mine.write(
        "etc/containerd/config.toml",
        &node.read("etc/containerd/config.toml")?,
    )?;
    let tree = mine.tree()?;
    mine.diffkeeper(&["install"])?.ok()?;
    let said = mine.diffkeeper(&["uninstall"])?.ok()?;
    ensure!(said.contains("that install did not write: left"), "{said}");
    ensure!(mine.tree()? == tree);
    Ok(())
}

fn paths_that_cannot_be() -> Result<()> {
    let node = Node::new()?;
    node.diffkeeper(&["install", "--bin-dir", "../bin"])?
        .fails_with(&["../bin", "absolute"])?;
    node.diffkeeper(&["install", "--containerd-bin", "/no/such"])?
        .fails_with(&["--containerd-bin", "/no/such"])?;
    node.write("etc/diffkeeper/installed.json", "{\"version\": 1}")?;
    node.diffkeeper(&["install", "--docker"])?
        .fails_with(&["installed.json", "move it away"])
}
