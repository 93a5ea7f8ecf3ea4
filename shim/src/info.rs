//! `-info`: what the runtime can do, in the stock shim's form. containerd asks it before it offers user
//! namespaces or recursive read-only mounts.

use std::{
    io::{Read, Write},
    process::Command,
};

use containerd_shim_protos::types::introspection::RuntimeVersion;
use protobuf::{Message, MessageField, well_known_types::any::Any};

use crate::{
    error::{Context, Error, Result},
    options::{Options, RuntimeInfo, pack},
};

/// The runtime's name in containerd.
pub const RUNTIME: &str = "io.containerd.diffkeeper.v1";

/// containerd's type of what `runc features` prints.
const FEATURES: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";

/// Reads options from standard input and prints the encoded answer.
///
/// # Errors
/// Options that are not understood, or no such runtime.
pub fn info() -> Result<()> {
    let mut input = Vec::new();
    std::io::stdin()
        .read_to_end(&mut input)
        .context(|| "read the runtime options".into())?;
    let any = Any::parse_from_bytes(&input)
        .map_err(|e| Error::InvalidArgument(format!("the runtime options do not decode: {e}")))?;
    let answer = describe(&any, !input.is_empty())?;
    let bytes = answer
        .write_to_bytes()
        .map_err(|e| Error::Other(format!("encode the runtime's description: {e}")))?;
    let mut stdout = std::io::stdout();
    stdout
        .write_all(&bytes)
        .and_then(|()| stdout.flush())
        .context(|| "print the runtime's description".into())
}

fn describe(any: &Any, given: bool) -> Result<RuntimeInfo> {
    let options = Options::from_any(any)?;
    let output = Command::new(options.binary())
        .arg("features")
        .output()
        .context(|| {
            format!(
                "failed to look up the path of {:?}: install it or set BinaryName",
                options.binary()
            )
        })?;
    // An old runtime has no such command; it then simply promises nothing.
    let features =
        output.status.success().then_some(output.stdout).filter(|json| {
            serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(json).is_ok()
        });
    Ok(RuntimeInfo {
        name: RUNTIME.into(),
        version: MessageField::some(RuntimeVersion {
            version: env!("CARGO_PKG_VERSION").into(),
            ..RuntimeVersion::default()
        }),
        options: given
            .then(|| pack("containerd.runc.v1.Options", &options.to_proto()))
            .into(),
        features: features
            .map(|value| Any {
                type_url: FEATURES.into(),
                value,
                ..Any::default()
            })
            .into(),
        ..RuntimeInfo::default()
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn with_runtime(script: &str) -> Result<RuntimeInfo> {
        let dir = tempfile::tempdir().unwrap();
        let runtime = dir.path().join("runtime");
        std::fs::write(&runtime, script).unwrap();
        std::fs::set_permissions(&runtime, std::fs::Permissions::from_mode(0o755)).unwrap();
        let options = Options {
            binary_name: runtime.to_str().unwrap().into(),
            ..Options::default()
        };
        describe(&pack("containerd.runc.v1.Options", &options.to_proto()), true)
    }

    #[test]
    fn features_are_handed_on() {
        let info = with_runtime("#!/bin/sh\n[ \"$1\" = features ] && echo '{\"ociVersionMin\":\"1.0.0\"}'\n")
            .unwrap();
        assert_eq!(info.name, RUNTIME);
        assert_eq!(info.features.type_url, FEATURES);
        assert_eq!(info.features.value.trim_ascii(), b"{\"ociVersionMin\":\"1.0.0\"}");
        assert!(info.options.is_some());
    }

    #[test]
    fn a_runtime_without_features_promises_nothing() {
        assert!(with_runtime("#!/bin/sh\nexit 1\n").unwrap().features.is_none());
        assert!(
            with_runtime("#!/bin/sh\necho unknown command\n")
                .unwrap()
                .features
                .is_none()
        );
    }

    #[test]
    fn no_runtime_is_an_error_with_advice() {
        let options = Options {
            binary_name: "/nonexistent/runc".into(),
            ..Options::default()
        };
        let error = describe(&pack("containerd.runc.v1.Options", &options.to_proto()), true).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/runc"), "{error}");
    }
}
