//! `diffkeeper doctor`: is this machine fit, and what to do if it is not.

use std::{
    ffi::OsString,
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::Result;
use keeper::watching::Watching;
use live::Node;
use runtime_spec::config::{Config, Watcher};
use serde::Serialize;

use crate::{install::docker, table};

const SHIM: &str = "containerd-shim-diffkeeper-v1";
const DOCKER_CONFIG: &str = "/etc/docker/daemon.json";
/// Below this a database that fills the disk is a matter of minutes.
const LITTLE_SPACE: u64 = 1 << 30;

#[derive(Serialize, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    Warning,
    Error,
}

/// One line of the report.
#[derive(Serialize)]
struct Finding {
    check: &'static str,
    verdict: Verdict,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<String>,
}

fn ok(check: &'static str, found: impl Into<String>) -> Finding {
    Finding {
        check,
        verdict: Verdict::Ok,
        found: found.into(),
        advice: None,
    }
}

fn warning(check: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Finding {
    Finding {
        check,
        verdict: Verdict::Warning,
        found: found.into(),
        advice: Some(advice.into()),
    }
}

fn error(check: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Finding {
    Finding {
        check,
        verdict: Verdict::Error,
        found: found.into(),
        advice: Some(advice.into()),
    }
}

/// Runs every check and prints the findings. Fails when one of them is an error.
pub fn run(config: &Path, address: &Path, json: bool) -> Result<ExitCode> {
    let mut findings = vec![user(), kernel(), overlayfs(), id_mapped_mounts(), runc()];
    findings.extend(containerd(address));
    findings.extend(docker(Path::new(DOCKER_CONFIG)));
    let (finding, config) = configuration(config);
    findings.push(finding);
    findings.extend(live_trees(&config));
    findings.push(history(&config));
    findings.push(watcher(&config));

    if json {
        println!("{}", serde_json::to_string_pretty(&findings)?);
    } else {
        for f in &findings {
            let word = match f.verdict {
                Verdict::Ok => "ok     ",
                Verdict::Warning => "warning",
                Verdict::Error => "error  ",
            };
            println!("{word}  {}: {}", f.check, f.found);
            if let Some(advice) = &f.advice {
                println!("         -> {advice}");
            }
        }
    }
    let failed = findings.iter().any(|f| f.verdict == Verdict::Error);
    Ok(if failed {
        ExitCode::from(crate::exit::PROBLEMS)
    } else {
        ExitCode::SUCCESS
    })
}

fn user() -> Finding {
    if nix::unistd::geteuid().is_root() {
        ok("user", "root")
    } else {
        warning(
            "user",
            "not root",
            "run it as root: the live trees and containerd's socket are root's, and some checks below cannot tell",
        )
    }
}

fn kernel() -> Finding {
    let Ok(name) = nix::sys::utsname::uname() else {
        return error(
            "kernel",
            "uname failed",
            "this is not a Linux that DiffKeeper knows",
        );
    };
    let release = name.release().to_string_lossy().into_owned();
    match version(&release) {
        Some(v) if v >= (5, 10) => ok("kernel", release),
        Some(_) => error("kernel", release, "at least 5.10 is needed"),
        None => warning(
            "kernel",
            release,
            "a version that cannot be read; at least 5.10 is needed",
        ),
    }
}

fn overlayfs() -> Finding {
    let listed = std::fs::read_to_string("/proc/filesystems")
        .is_ok_and(|t| t.lines().any(|l| l.trim_end().ends_with("\toverlay")));
    if listed {
        return ok("overlayfs", "available");
    }
    let loadable = Command::new("modprobe")
        .args(["--dry-run", "overlay"])
        .output()
        .is_ok_and(|o| o.status.success());
    if loadable {
        ok("overlayfs", "available as a module")
    } else {
        error(
            "overlayfs",
            "this kernel has none",
            "build or load the `overlay` module: modprobe overlay",
        )
    }
}

fn id_mapped_mounts() -> Finding {
    let release = nix::sys::utsname::uname()
        .map(|n| n.release().to_string_lossy().into_owned())
        .unwrap_or_default();
    match version(&release) {
        Some(v) if v >= (5, 19) => ok("user namespaces", "id-mapped overlays are available"),
        _ => warning(
            "user namespaces",
            "this kernel has no id-mapped overlays (5.19)",
            "containers with their own user namespace cannot keep anything here; others can",
        ),
    }
}

fn runc() -> Finding {
    match Command::new("runc").arg("--version").output() {
        Ok(out) if out.status.success() => ok("runc", first_line(&out.stdout)),
        Ok(out) => error(
            "runc",
            format!("`runc --version` fails: {}", first_line(&out.stderr)),
            "reinstall it: apt-get install --reinstall runc",
        ),
        Err(_) => error(
            "runc",
            "not on PATH",
            "install it (apt-get install runc), or set BinaryName in containerd's configuration of the runtime",
        ),
    }
}

fn containerd(address: &Path) -> Vec<Finding> {
    let running = std::fs::metadata(address).is_ok_and(|m| m.file_type().is_socket());
    let Some((pid, exe)) = daemon(address) else {
        let found = if running {
            format!("{} answers to no containerd that can be seen", address.display())
        } else {
            format!("none at {}", address.display())
        };
        return vec![warning(
            "containerd",
            found,
            "start it, or name its socket with --address",
        )];
    };
    let version = Command::new(&exe)
        .arg("--version")
        .output()
        .map(|o| first_line(&o.stdout))
        .unwrap_or_default();
    let mut findings = vec![match version_of_containerd(&version) {
        Some(v) if v >= (1, 6) => ok("containerd", format!("{version} (pid {pid})")),
        Some(_) => error("containerd", version, "at least 1.6 is needed"),
        None => warning(
            "containerd",
            format!("pid {pid} does not tell its version"),
            "at least 1.6 is needed",
        ),
    }];
    findings.push(match shim_for(pid, &exe) {
        Some(path) => ok("shim", path.display().to_string()),
        None => error(
            "shim",
            format!("containerd (pid {pid}) does not find {SHIM}"),
            "`diffkeeper install`, or put it beside the containerd binary or into a directory of containerd's PATH, then start a container again; containerd itself need not be restarted",
        ),
    });
    findings
}

/// Docker, where there is one: an old one runs our containers under runc without a word.
fn docker(config: &Path) -> Option<Finding> {
    let output = Command::new("dockerd").arg("--version").output().ok()?;
    let version = first_line(&output.stdout);
    let configured = std::fs::read_to_string(config).is_ok_and(|text| docker::has_runtime(&text));
    Some(match docker::check_version(&version) {
        Ok(()) => ok("docker", version),
        Err(told) if configured => error(
            "docker",
            told.to_string(),
            format!(
                "until then take the runtime out of {}: diffkeeper uninstall --docker",
                config.display()
            ),
        ),
        Err(told) => warning(
            "docker",
            told.to_string(),
            "nothing, unless this Docker is to keep states",
        ),
    })
}

/// The process that serves this socket: by the address on its command line, or else by its name.
fn daemon(address: &Path) -> Option<(u32, PathBuf)> {
    let mut by_name = None;
    for entry in std::fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else {
            continue;
        };
        let Ok(exe) = std::fs::read_link(entry.path().join("exe")) else {
            continue;
        };
        let name = exe.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name != "containerd" {
            continue;
        }
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        let beside = address
            .parent()
            .map(|dir| dir.to_string_lossy().into_owned())
            .unwrap_or_default();
        if line.contains(address.to_string_lossy().as_ref()) || (!beside.is_empty() && line.contains(&beside))
        {
            return Some((pid, exe));
        }
        if address == Path::new("/run/containerd/containerd.sock")
            && !line.contains("--config")
            && !line.contains("-c\0")
        {
            by_name = Some((pid, exe));
        }
    }
    by_name
}

/// containerd looks beside its own binary, then on its PATH.
fn shim_for(pid: u32, exe: &Path) -> Option<PathBuf> {
    let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    let path: OsString = environment
        .split(|b| *b == 0)
        .find_map(|v| v.strip_prefix(b"PATH="))
        .map(|p| std::os::unix::ffi::OsStringExt::from_vec(p.to_vec()))
        .unwrap_or_default();
    let dirs = exe
        .parent()
        .map(Path::to_owned)
        .into_iter()
        .chain(std::env::split_paths(&path).collect::<Vec<_>>());
    dirs.map(|dir| dir.join(SHIM)).find(|file| file.is_file())
}

fn configuration(path: &Path) -> (Finding, Config) {
    match std::fs::read_to_string(path) {
        Ok(text) => match Config::parse(&text) {
            Ok(config) => (ok("configuration", path.display().to_string()), config),
            Err(e) => (
                error(
                    "configuration",
                    format!("{}: {e}", path.display()),
                    "mend it: no container of this runtime starts until then",
                ),
                Config::default(),
            ),
        },
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => (
            ok(
                "configuration",
                format!("none at {}: the defaults hold", path.display()),
            ),
            Config::default(),
        ),
        Err(e) => (
            error(
                "configuration",
                format!("{}: {e}", path.display()),
                "make it readable for root",
            ),
            Config::default(),
        ),
    }
}

fn live_trees(config: &Config) -> Vec<Finding> {
    let root = config.root.display().to_string();
    let node = match Node::open(&config.root) {
        Ok(node) => node,
        Err(e) => {
            return vec![error(
                "live trees",
                e.to_string(),
                format!("put `root` of the configuration (now {root}) on a disk with ext4, XFS or btrfs"),
            )];
        }
    };
    let mut findings = vec![match nix::sys::statvfs::statvfs(&config.root) {
        Ok(s) => {
            let free = s.blocks_available() * s.fragment_size();
            let found = format!("{} free at {root}", table::bytes(free));
            if free < LITTLE_SPACE {
                warning(
                    "space",
                    found,
                    "make room: a container whose disk is full sees ENOSPC (`diffkeeper states`, `diffkeeper prune`)",
                )
            } else {
                ok("space", found)
            }
        }
        Err(e) => error("space", format!("{root}: {e}"), "is the disk mounted?"),
    }];
    let namespaces = config
        .namespaces
        .values()
        .any(|own| matches!(own.size_limit, Some(Some(_))));
    findings.push(match (node.can_limit(), config.size_limit.is_some() || namespaces) {
        (true, _) => ok("size limits", "project quota holds containers to them"),
        (false, false) => ok("size limits", "none are configured, and this disk has no project quota for them"),
        (false, true) => warning(
            "size limits",
            format!("the disk of {root} has no project quota: they are not enforced"),
            "mount it with prjquota (XFS; ext4 after tune2fs -O quota,project -Q prjquota), on kernel 5.14 or later",
        ),
    });
    findings.push(match node.leftovers() {
        Ok(0) => ok("leftovers", "none"),
        Ok(n) => warning(
            "leftovers",
            format!(
                "{n} deleted tree{} not yet off the disk",
                if n == 1 { "" } else { "s" }
            ),
            "diffkeeper prune",
        ),
        Err(e) => warning("leftovers", e.to_string(), "run doctor as root"),
    });
    findings
}

/// Whether a keeper records what containers write.
fn history(config: &Config) -> Finding {
    let socket = &config.keeper;
    match std::os::unix::net::UnixStream::connect(socket) {
        Ok(_) => ok("history", format!("a keeper answers at {}", socket.display())),
        Err(_) => warning(
            "history",
            "no keeper runs: containers keep what they write, and have no history",
            "systemctl enable --now diffkeeper-keeper, or diffkeeper keeper",
        ),
    }
}

/// Who tells a keeper where to look.
fn watcher(config: &Config) -> Finding {
    let wanted = config.history.watcher;
    let watching = match (Node::open(&config.root), wanted) {
        (_, Watcher::Scan) => {
            return ok(
                "watcher",
                "scan, as configured: each commit looks at the whole live tree",
            );
        }
        (Ok(node), Watcher::Auto) => Watching::auto(node.root(), &node.trash()),
        (Ok(node), Watcher::Fanotify) => Watching::fanotify_alone(node.root(), &node.trash()),
        (Err(error), _) => return warning("watcher", error.to_string(), "see `live trees`"),
    };
    let slow = "each commit looks at the whole live tree, which takes long where that has very many files (docs/capture.md)";
    match (wanted, watching.fanotify(), watching.pages()) {
        (Watcher::Auto, Ok(_), _) => ok(
            "watcher",
            "ebpf: a commit looks at what has changed, and of large files at the pages that were written to",
        ),
        (Watcher::Auto, Err(why), Ok(_)) => ok(
            "watcher",
            format!("scan: {slow}; of large files at the pages that were written to. No fanotify: {why}"),
        ),
        (Watcher::Auto, Err(why), Err(_)) => ok("watcher", format!("scan: {slow}. No eBPF: {why}")),
        (_, Ok(_), _) => ok(
            "watcher",
            "fanotify, as configured: a commit looks at what has changed (docs/capture.md says what it may miss)",
        ),
        (_, Err(why), _) => warning(
            "watcher",
            format!("scan, though fanotify is configured: {why}"),
            slow,
        ),
    }
}

fn first_line(text: &[u8]) -> String {
    String::from_utf8_lossy(text)
        .lines()
        .next()
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// Major and minor of `6.1.0-18-amd64`.
fn version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// Major and minor of `containerd github.com/containerd/containerd v1.7.24 …`.
fn version_of_containerd(line: &str) -> Option<(u32, u32)> {
    line.split_whitespace()
        .find_map(|word| version(word.trim_start_matches('v')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        assert_eq!(version("6.1.0-18-amd64"), Some((6, 1)));
        assert_eq!(version("weird"), None);
        let debian = "containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u3";
        assert_eq!(version_of_containerd(debian), Some((1, 6)));
        assert_eq!(
            version_of_containerd("containerd containerd.io v2.1.9 abc"),
            Some((2, 1))
        );
        assert_eq!(version_of_containerd(""), None);
    }

    #[test]
    fn a_broken_configuration_is_an_error_with_advice() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.toml");
        std::fs::write(&file, "no-such-key = 1\n").unwrap();
        let (finding, _) = configuration(&file);
        assert!(
            finding.verdict == Verdict::Error && finding.found.contains("no-such-key"),
            "{}",
            finding.found
        );
        assert!(finding.advice.is_some());
    }
}
