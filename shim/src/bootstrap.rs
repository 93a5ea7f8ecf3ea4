//! `start`: find the pod's server or start one, and tell containerd its address.

use std::{
    fmt::Write as _,
    io::{Read, Write},
    os::{
        fd::OwnedFd,
        unix::{fs::PermissionsExt, net::UnixListener, net::UnixStream},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use containerd_shim_protos::bootstrap_api::BootstrapResult;
use protobuf::Message;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::{
    args::Args,
    cgroup::{Cgroup, oom_score},
    error::{Context, Error, Result},
    events::ADDRESS_VARIABLE,
    options::{Bootstrap, Options},
    sys,
};

/// Where sockets go unless containerd says otherwise: short, because a socket's path is limited to 108 bytes.
const SOCKET_DIR: &str = "/run/containerd/s";
/// More than this on standard input is not from containerd.
const INPUT_LIMIT: u64 = 10 << 20;
/// Annotations that put containers into one shim, in the stock shim's order.
const GROUPS: [&str; 2] = ["io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id"];

/// Runs `start` in the bundle's directory and prints the address in the form that this containerd understands.
///
/// # Errors
/// Input that is not containerd's, a bundle without `config.json`, a socket or process that cannot be made.
pub fn start(args: &Args) -> Result<()> {
    let mut input = Vec::new();
    std::io::stdin()
        .take(INPUT_LIMIT)
        .read_to_end(&mut input)
        .context(|| "read start's standard input".into())?;
    let bootstrap = Bootstrap::parse(&input, &args.id, &args.namespace)?;
    let group = group(Path::new("config.json"))?.unwrap_or_else(|| args.id.clone());
    let dir = bootstrap.socket_dir.as_deref().unwrap_or(SOCKET_DIR);
    let socket = socket_path(Path::new(dir), &args.address, &args.namespace, &group);

    if let Some(listener) = listen(&socket)? {
        let started = spawn(args, &bootstrap, &socket, listener.into());
        if let Err(error) = started {
            // The socket must not be left to a later start, which would take it for a server's.
            let _ = std::fs::remove_file(&socket);
            return Err(error);
        }
    }
    let address = format!("unix://{}", socket.display());
    std::fs::write("address", &address).context(|| "write the address into the bundle".into())?;
    let mut stdout = std::io::stdout();
    stdout
        .write_all(&reply(&address, bootstrap.modern)?)
        .and_then(|()| stdout.flush())
        .context(|| "print the address".into())
}

/// A raw address, with Task v2 implied, is understood by every version; who sends the new form of input
/// understands the new form of reply, and is offered Task v3.
fn reply(address: &str, modern: bool) -> Result<Vec<u8>> {
    if !modern {
        return Ok(address.as_bytes().to_vec());
    }
    let result = BootstrapResult {
        version: 3,
        address: address.to_owned(),
        protocol: "ttrpc".to_owned(),
        ..BootstrapResult::default()
    };
    result
        .write_to_bytes()
        .map_err(|e| Error::Other(format!("encode the reply: {e}")))
}

/// What names the shim that this container belongs to: its pod, or itself.
fn group(config: &Path) -> Result<Option<String>> {
    #[derive(Deserialize)]
    struct Shallow {
        #[serde(default)]
        annotations: Option<std::collections::HashMap<String, String>>,
    }
    let text = std::fs::read(config).context(|| "read config.json in the bundle".into())?;
    let spec: Shallow = serde_json::from_slice(&text)
        .map_err(|e| Error::InvalidArgument(format!("config.json in the bundle does not parse: {e}")))?;
    let annotations = spec.annotations.unwrap_or_default();
    Ok(GROUPS.iter().find_map(|label| annotations.get(*label).cloned()))
}

/// `<dir>/<SHA-256 of address/namespace/group>`, as the stock shim names it, so that containerd's own clean-up
/// finds it.
fn socket_path(dir: &Path, address: &str, namespace: &str, group: &str) -> PathBuf {
    let name = Path::new(address).join(namespace).join(group);
    let digest = Sha256::digest(name.as_os_str().as_encoded_bytes());
    dir.join(digest.iter().fold(String::with_capacity(64), |mut hex, byte| {
        // Writing to a String cannot fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    }))
}

/// A listening socket, or nothing when a server already answers there.
fn listen(path: &Path) -> Result<Option<UnixListener>> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).context(|| format!("make {}", dir.display()))?;
    }
    for _ in 0..2 {
        match UnixListener::bind(path) {
            Ok(listener) => {
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
                    .context(|| format!("restrict {}", path.display()))?;
                return Ok(Some(listener));
            }
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
                if UnixStream::connect(path).is_ok() {
                    return Ok(None);
                }
                // A server that was killed left it.
                std::fs::remove_file(path)
                    .context(|| format!("remove the dead socket {}", path.display()))?;
            }
            Err(source) => {
                return Err(Error::Io {
                    context: format!("make the socket {}", path.display()),
                    source,
                });
            }
        }
    }
    Err(Error::Other(format!(
        "the socket {} is taken again and again",
        path.display()
    )))
}

fn spawn(args: &Args, bootstrap: &Bootstrap, socket: &Path, listener: OwnedFd) -> Result<()> {
    let options = match &bootstrap.options {
        Some(any) => Options::from_any(any)?,
        None => Options::default(),
    };
    let shim = std::env::current_exe().context(|| "find this program".into())?;
    let mut command = Command::new(shim);
    command
        .args([
            "-namespace",
            &args.namespace,
            "-id",
            &args.id,
            "-address",
            &args.address,
            "-socket",
        ])
        .arg(socket);
    if args.debug || bootstrap.debug {
        command.arg("-debug");
    }
    if let Some(address) = &bootstrap.ttrpc_address {
        command.env(ADDRESS_VARIABLE, address);
    }
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    sys::inherit_as_three(&mut command, &listener);
    if std::env::var_os("SCHED_CORE").is_some_and(|value| !value.is_empty()) {
        sys::core_schedule_group().context(|| "enable core scheduling (SCHED_CORE)".into())?;
    }
    let mut child = command.spawn().context(|| "start the shim's server".into())?;
    let placed = place(child.id(), &options);
    if placed.is_err() {
        // It has done nothing yet; the error is what matters.
        let _ = child.kill();
        let _ = child.wait();
    }
    placed
}

/// Puts the server into its cgroup and behind containerd in the kernel's order of victims.
fn place(pid: u32, options: &Options) -> Result<()> {
    if !options.shim_cgroup.is_empty() {
        Cgroup::load(&options.shim_cgroup)?.add_process(pid)?;
    }
    oom_score::adjust_for_shim(pid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sockets_name_is_the_stock_shims() {
        // sha256sum of the bytes "/run/containerd/containerd.sock/default/web".
        let path = socket_path(
            Path::new("/s"),
            "/run/containerd/containerd.sock",
            "default",
            "web",
        );
        assert_eq!(
            path,
            Path::new("/s/2cde4450fa38c74f53603e01d2afd903b315a27a596f12a151414cd59897d883")
        );
    }

    #[test]
    fn pods_share_a_shim() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("config.json");
        std::fs::write(
            &config,
            r#"{"annotations":{"io.kubernetes.cri.sandbox-id":"pod"}}"#,
        )
        .unwrap();
        assert_eq!(group(&config).unwrap().as_deref(), Some("pod"));
        std::fs::write(
            &config,
            r#"{"annotations":{"io.kubernetes.cri.sandbox-id":"pod","io.containerd.runc.v2.group":"g"}}"#,
        )
        .unwrap();
        assert_eq!(group(&config).unwrap().as_deref(), Some("g"));
        std::fs::write(&config, r#"{"annotations":null}"#).unwrap();
        assert_eq!(group(&config).unwrap(), None);
        std::fs::write(&config, "{").unwrap();
        assert!(group(&config).unwrap_err().to_string().contains("config.json"));
        assert!(
            group(&dir.path().join("none"))
                .unwrap_err()
                .to_string()
                .contains("config.json")
        );
    }

    #[test]
    fn a_live_socket_is_joined_and_a_dead_one_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let first = listen(&path).unwrap().unwrap();
        assert!(listen(&path).unwrap().is_none());
        drop(first);
        assert!(listen(&path).unwrap().is_some());
    }

    #[test]
    fn replies_that_each_version_understands() {
        assert_eq!(reply("unix:///s/x", false).unwrap(), b"unix:///s/x");
        let modern = BootstrapResult::parse_from_bytes(&reply("unix:///s/x", true).unwrap()).unwrap();
        assert_eq!(
            (modern.version, modern.address.as_str(), modern.protocol.as_str()),
            (3, "unix:///s/x", "ttrpc")
        );
    }
}
