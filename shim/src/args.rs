//! The command line that containerd gives a shim (Go's `flag` syntax: `-name value` or `-name=value`).

use std::path::PathBuf;

use crate::error::{Error, Result};

/// What the shim was called to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Start a server (or find the pod's) and print its address.
    Start,
    /// Clean up after a shim that died.
    Delete,
    /// Print what the runtime can do.
    Info,
    /// Print the version.
    Version,
    /// Be the server: containerd never asks for this, `start` does.
    Serve,
}

/// The parsed command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Args {
    /// What to do.
    pub action: Action,
    /// containerd's namespace.
    pub namespace: String,
    /// The container's id; in a pod's server, the id of the container that started it.
    pub id: String,
    /// containerd's gRPC address.
    pub address: String,
    /// The bundle; given with `delete` only, elsewhere the working directory.
    pub bundle: Option<PathBuf>,
    /// Where the server's socket is, to be removed when it ends.
    pub socket: Option<PathBuf>,
    /// Log more.
    pub debug: bool,
}

impl Args {
    /// Parses everything after the program's name.
    ///
    /// # Errors
    /// An unknown flag, a flag without its value, or a missing namespace or id.
    pub fn parse(args: impl IntoIterator<Item = String>) -> Result<Args> {
        let mut parsed = Args {
            action: Action::Serve,
            namespace: String::new(),
            id: String::new(),
            address: String::new(),
            bundle: None,
            socket: None,
            debug: false,
        };
        let mut args = args.into_iter();
        while let Some(arg) = args.next() {
            let Some(flag) = arg.strip_prefix('-') else {
                parsed.action = match arg.as_str() {
                    "start" => Action::Start,
                    "delete" => Action::Delete,
                    _ => {
                        return Err(Error::InvalidArgument(format!(
                            "unknown action {arg:?}: expected start or delete"
                        )));
                    }
                };
                continue;
            };
            let flag = flag.strip_prefix('-').unwrap_or(flag);
            let (name, inline) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (flag, None),
            };
            let mut value = || {
                inline
                    .clone()
                    .or_else(|| args.next())
                    .ok_or_else(|| Error::InvalidArgument(format!("flag -{name} needs a value")))
            };
            match name {
                "namespace" => parsed.namespace = value()?,
                "id" => parsed.id = value()?,
                "address" => parsed.address = value()?,
                "bundle" => parsed.bundle = Some(value()?.into()),
                "socket" => parsed.socket = Some(value()?.into()),
                // Given by containerd and of no use here: events go over ttrpc.
                "publish-binary" | "debug-socket" => drop(value()?),
                "debug" => parsed.debug = inline.as_deref() != Some("false"),
                "v" | "version" => parsed.action = Action::Version,
                "info" => parsed.action = Action::Info,
                _ => return Err(Error::InvalidArgument(format!("unknown flag -{name}"))),
            }
        }
        let bare = matches!(parsed.action, Action::Info | Action::Version);
        if !bare && parsed.namespace.is_empty() {
            return Err(Error::InvalidArgument("shim namespace cannot be empty".into()));
        }
        if !bare && parsed.id.is_empty() {
            return Err(Error::InvalidArgument("shim id cannot be empty".into()));
        }
        Ok(parsed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Args> {
        Args::parse(line.split(' ').map(str::to_owned))
    }

    #[test]
    fn what_containerd_1_6_and_2_1_call() {
        let args = parse(
            "-namespace k8s.io -address /run/containerd/containerd.sock -publish-binary /usr/bin/containerd -id abc start",
        )
        .unwrap();
        assert_eq!(args.action, Action::Start);
        assert_eq!((args.namespace.as_str(), args.id.as_str()), ("k8s.io", "abc"));
        assert_eq!(args.address, "/run/containerd/containerd.sock");

        let args =
            parse("-namespace default -address a -publish-binary b -id x -bundle /run/x -debug delete")
                .unwrap();
        assert_eq!(args.action, Action::Delete);
        assert_eq!(args.bundle, Some("/run/x".into()));
        assert!(args.debug);
    }

    #[test]
    fn go_spellings() {
        let args = parse("--namespace=n -id=i -debug=false").unwrap();
        assert_eq!((args.action, args.debug), (Action::Serve, false));
        assert_eq!(parse("-info").unwrap().action, Action::Info);
    }

    #[test]
    fn refusals_say_what_is_wrong() {
        assert!(
            parse("-id x start")
                .unwrap_err()
                .to_string()
                .contains("namespace")
        );
        assert!(
            parse("-namespace x start")
                .unwrap_err()
                .to_string()
                .contains("id")
        );
        assert!(
            parse("-namespace")
                .unwrap_err()
                .to_string()
                .contains("needs a value")
        );
        assert!(parse("-frob").unwrap_err().to_string().contains("-frob"));
        assert!(
            parse("-namespace x -id y restart")
                .unwrap_err()
                .to_string()
                .contains("restart")
        );
    }
}
