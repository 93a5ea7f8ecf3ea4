//! The runtime's options, in each of the forms that containerd, `ctr` and CRI send them.

use std::path::Path;

use containerd_shim_protos::{bootstrap_api::BootstrapParams, shim::oci, types};
use protobuf::{CodedInputStream, Message, well_known_types::any::Any};
use serde::{Deserialize, Serialize};

use crate::error::{Context, Error, Result};

/// runc's state directory when the options name none, as the stock shim has it.
pub const DEFAULT_ROOT: &str = "/run/containerd/runc";

const FILE: &str = "options.json";

/// Options of the OCI runtime (`containerd.runc.v1.Options`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Options {
    /// Do not use pivot_root.
    pub no_pivot_root: bool,
    /// Keep the session keyring.
    pub no_new_keyring: bool,
    /// The cgroup that the shim itself joins.
    pub shim_cgroup: String,
    /// Owner of the standard streams' pipes.
    pub io_uid: u32,
    /// Group of the standard streams' pipes.
    pub io_gid: u32,
    /// The runtime's binary; empty for `runc`.
    pub binary_name: String,
    /// The runtime's state directory; empty for [`DEFAULT_ROOT`].
    pub root: String,
    /// Let systemd make the cgroup.
    pub systemd_cgroup: bool,
    /// Where a checkpoint's image goes when the request names no place.
    pub criu_image_path: String,
    /// CRIU's scratch directory.
    pub criu_work_path: String,
    /// The configuration for this container; empty for the machine's.
    #[serde(default)]
    pub diffkeeper_config: String,
}

impl Options {
    /// Reads whichever message `any` holds; an empty one gives the defaults.
    ///
    /// # Errors
    /// A type that is neither `containerd.runc.v1.Options` nor `runtimeoptions.v1.Options`, or one that
    /// does not decode.
    pub fn from_any(any: &Any) -> Result<Options> {
        if any.value.is_empty() {
            return Ok(Options::default());
        }
        let name = any.type_url.rsplit('/').next().unwrap_or_default();
        match name {
            "containerd.runc.v1.Options" => {
                let options = oci::Options::parse_from_bytes(&any.value).map_err(|e| malformed(name, &e))?;
                Ok(options.into())
            }
            "runtimeoptions.v1.Options" => Self::from_generic(&any.value),
            "containerd.linux.runc.CreateOptions" => Self::from_create_options(&any.value),
            _ => Err(Error::InvalidArgument(format!(
                "runtime options of type {:?} are not understood: give containerd.runc.v1.Options or runtimeoptions.v1.Options",
                any.type_url
            ))),
        }
    }

    /// `runtimeoptions.v1.Options { type_url = 1; config_path = 2; config_body = 3 }`: what CRI sends to every
    /// runtime that is not the stock one. The body, or else the file, is TOML with the stock options' names.
    fn from_generic(bytes: &[u8]) -> Result<Options> {
        let (mut path, mut body) = (String::new(), Vec::new());
        let mut input = CodedInputStream::from_bytes(bytes);
        let mut read = || -> protobuf::Result<()> {
            while let Some(tag) = input.read_raw_tag_or_eof()? {
                match tag {
                    18 => path = input.read_string()?,
                    26 => body = input.read_bytes()?,
                    _ => input.skip_field(
                        protobuf::rt::WireType::new(tag & 7).unwrap_or(protobuf::rt::WireType::Varint),
                    )?,
                }
            }
            Ok(())
        };
        read().map_err(|e| malformed("runtimeoptions.v1.Options", &e))?;
        if body.is_empty() && !path.is_empty() {
            body = std::fs::read(&path).context(|| format!("read the runtime options' ConfigPath {path}"))?;
        }
        let text = String::from_utf8(body)
            .map_err(|_| Error::InvalidArgument("the runtime options' body is not UTF-8".into()))?;
        Self::from_toml(&text)
    }

    /// `containerd.linux.runc.CreateOptions`: what clients before containerd 2.0 send to a runtime whose name they
    /// do not know. `no_pivot_root = 1; no_new_keyring = 8; shim_cgroup = 9; io_uid = 10; io_gid = 11;
    /// criu_work_path = 12; criu_image_path = 13`; the rest is of checkpoints.
    fn from_create_options(bytes: &[u8]) -> Result<Options> {
        let mut options = Options::default();
        let mut input = CodedInputStream::from_bytes(bytes);
        let mut read = || -> protobuf::Result<()> {
            while let Some(tag) = input.read_raw_tag_or_eof()? {
                match tag {
                    8 => options.no_pivot_root = input.read_bool()?,
                    64 => options.no_new_keyring = input.read_bool()?,
                    74 => options.shim_cgroup = input.read_string()?,
                    80 => options.io_uid = input.read_uint32()?,
                    88 => options.io_gid = input.read_uint32()?,
                    98 => options.criu_work_path = input.read_string()?,
                    106 => options.criu_image_path = input.read_string()?,
                    _ => skip(&mut input, tag)?,
                }
            }
            Ok(())
        };
        read().map_err(|e| malformed("containerd.linux.runc.CreateOptions", &e))?;
        Ok(options)
    }

    fn from_toml(text: &str) -> Result<Options> {
        let table: toml::Table = text
            .parse()
            .map_err(|e| Error::InvalidArgument(format!("the runtime options are not TOML: {e}")))?;
        let mut options = Options::default();
        for (key, value) in table {
            // Go's decoder matches names without regard to case, so configurations in the field do too.
            let known = match key.to_ascii_lowercase().as_str() {
                "nopivotroot" => set_bool(&mut options.no_pivot_root, &value),
                "nonewkeyring" => set_bool(&mut options.no_new_keyring, &value),
                "shimcgroup" => set_string(&mut options.shim_cgroup, &value),
                "iouid" => set_u32(&mut options.io_uid, &value),
                "iogid" => set_u32(&mut options.io_gid, &value),
                "binaryname" => set_string(&mut options.binary_name, &value),
                "root" => set_string(&mut options.root, &value),
                "systemdcgroup" => set_bool(&mut options.systemd_cgroup, &value),
                "criuimagepath" => set_string(&mut options.criu_image_path, &value),
                "criuworkpath" => set_string(&mut options.criu_work_path, &value),
                // Ours: a runtime handler's own configuration.
                "diffkeeperconfig" => set_string(&mut options.diffkeeper_config, &value),
                // Accepted and without effect, as in the stock shim since containerd 2.0.
                "criupath" | "taskapiaddress" | "taskapiversion" | "typeurl" | "configpath" => true,
                _ => {
                    return Err(Error::InvalidArgument(format!(
                        "unknown runtime option {key:?}: the names are those of containerd.runc.v1.Options (BinaryName, Root, SystemdCgroup, ...)"
                    )));
                }
            };
            if !known {
                return Err(Error::InvalidArgument(format!(
                    "runtime option {key} has a value of the wrong type: {value:?}"
                )));
            }
        }
        Ok(options)
    }

    /// Keeps the options beside the bundle for `shim delete`, which is given none.
    ///
    /// # Errors
    /// When the bundle cannot be written.
    pub fn save(&self, bundle: &Path) -> Result<()> {
        let text =
            serde_json::to_vec(self).map_err(|e| Error::Other(format!("encode the runtime options: {e}")))?;
        std::fs::write(bundle.join(FILE), text)
            .context(|| format!("write {FILE} in {}", bundle.display()))?;
        std::fs::write(bundle.join("runtime"), &self.binary_name)
            .context(|| format!("write the runtime's name in {}", bundle.display()))
    }

    /// What [`Options::save`] kept; the defaults where there is nothing, so that half a bundle can be cleaned up.
    #[must_use]
    pub fn load(bundle: &Path) -> Options {
        let kept = std::fs::read(bundle.join(FILE)).ok();
        kept.and_then(|text| serde_json::from_slice(&text).ok())
            .unwrap_or_default()
    }

    /// The runtime's state directory for one containerd namespace.
    #[must_use]
    pub fn runtime_root(&self, namespace: &str) -> std::path::PathBuf {
        let root = if self.root.is_empty() {
            DEFAULT_ROOT
        } else {
            &self.root
        };
        Path::new(root).join(namespace)
    }

    /// The runtime's binary.
    #[must_use]
    pub fn binary(&self) -> &str {
        if self.binary_name.is_empty() {
            "runc"
        } else {
            &self.binary_name
        }
    }

    /// The form in which `-info` hands the options back.
    #[must_use]
    pub fn to_proto(&self) -> oci::Options {
        oci::Options {
            no_pivot_root: self.no_pivot_root,
            no_new_keyring: self.no_new_keyring,
            shim_cgroup: self.shim_cgroup.clone(),
            io_uid: self.io_uid,
            io_gid: self.io_gid,
            binary_name: self.binary_name.clone(),
            root: self.root.clone(),
            systemd_cgroup: self.systemd_cgroup,
            criu_image_path: self.criu_image_path.clone(),
            criu_work_path: self.criu_work_path.clone(),
            ..Default::default()
        }
    }
}

impl From<oci::Options> for Options {
    fn from(o: oci::Options) -> Self {
        Options {
            no_pivot_root: o.no_pivot_root,
            no_new_keyring: o.no_new_keyring,
            shim_cgroup: o.shim_cgroup,
            io_uid: o.io_uid,
            io_gid: o.io_gid,
            binary_name: o.binary_name,
            root: o.root,
            systemd_cgroup: o.systemd_cgroup,
            criu_image_path: o.criu_image_path,
            criu_work_path: o.criu_work_path,
            diffkeeper_config: String::new(),
        }
    }
}

/// What containerd writes to `start`'s standard input.
#[derive(Debug, Default)]
pub struct Bootstrap {
    /// The options, if any were sent.
    pub options: Option<Any>,
    /// Set when the other side is containerd 2.3 or later, which alone understands a protobuf reply.
    pub modern: bool,
    /// Where the socket goes, when containerd says so.
    pub socket_dir: Option<String>,
    /// Where events go; older versions say it in the environment.
    pub ttrpc_address: Option<String>,
    /// Set when containerd asks for a debug log.
    pub debug: bool,
}

impl Bootstrap {
    /// Tells the two forms apart: before 2.3 a bare `Any` or nothing, since then a `BootstrapParams`. An `Any`
    /// may decode as the latter, so the identity must also match the command line, as in containerd itself.
    ///
    /// # Errors
    /// When the bytes are neither.
    pub fn parse(input: &[u8], id: &str, namespace: &str) -> Result<Bootstrap> {
        if input.is_empty() {
            return Ok(Bootstrap::default());
        }
        if let Ok(params) = BootstrapParams::parse_from_bytes(input)
            && params.instance_id == id
            && params.namespace == namespace
        {
            // LOG_LEVEL_DEBUG is -4, LOG_LEVEL_TRACE -8.
            let debug = params.log_level.value() <= -4;
            return Ok(Bootstrap {
                options: params
                    .extensions
                    .into_iter()
                    .filter_map(|e| e.value.into_option())
                    .find(is_options),
                modern: true,
                socket_dir: params.socket_dir.filter(|dir| !dir.is_empty()),
                ttrpc_address: Some(params.containerd_ttrpc_address).filter(|a| !a.is_empty()),
                debug,
            });
        }
        let any = Any::parse_from_bytes(input).map_err(|e| malformed("start's standard input", &e))?;
        Ok(Bootstrap {
            options: Some(any),
            ..Bootstrap::default()
        })
    }
}

fn is_options(any: &Any) -> bool {
    any.type_url.ends_with("containerd.runc.v1.Options")
        || any.type_url.ends_with("runtimeoptions.v1.Options")
}

/// The `Any` that wraps a message under containerd's type url (no host prefix).
#[must_use]
pub fn pack<M: Message>(type_url: &str, message: &M) -> Any {
    Any {
        type_url: type_url.into(),
        // Encoding into memory cannot fail for a message that was built in memory.
        value: message.write_to_bytes().unwrap_or_default(),
        ..Default::default()
    }
}

/// The parent image of an incremental checkpoint: field 10 of `CheckpointOptions`, newer than the crate's copy
/// of the message.
#[must_use]
pub fn checkpoint_parent(options: &oci::CheckpointOptions) -> Option<String> {
    match options.special_fields.unknown_fields().get(10)? {
        protobuf::UnknownValueRef::LengthDelimited(bytes) => std::str::from_utf8(bytes)
            .ok()
            .filter(|path| !path.is_empty())
            .map(str::to_owned),
        _ => None,
    }
}

/// What `-info` prints.
pub type RuntimeInfo = types::introspection::RuntimeInfo;

/// Passes over a field that has no meaning here.
fn skip(input: &mut CodedInputStream<'_>, tag: u32) -> protobuf::Result<()> {
    input.skip_field(protobuf::rt::WireType::new(tag & 7).unwrap_or(protobuf::rt::WireType::Varint))
}

fn malformed(what: &str, error: &protobuf::Error) -> Error {
    Error::InvalidArgument(format!("{what} does not decode: {error}"))
}

fn set_bool(field: &mut bool, value: &toml::Value) -> bool {
    value.as_bool().map(|v| *field = v).is_some()
}

fn set_string(field: &mut String, value: &toml::Value) -> bool {
    value.as_str().map(|v| *field = v.to_owned()).is_some()
}

fn set_u32(field: &mut u32, value: &toml::Value) -> bool {
    value
        .as_integer()
        .and_then(|v| u32::try_from(v).ok())
        .map(|v| *field = v)
        .is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generic(path: &str, body: &str) -> Any {
        let mut bytes = Vec::new();
        for (tag, text) in [(10u8, "containerd.runc.v1.Options"), (18, path), (26, body)] {
            bytes.push(tag);
            let mut len = text.len();
            while len > 127 {
                bytes.push((len & 127) as u8 | 128);
                len >>= 7;
            }
            bytes.push(len as u8);
            bytes.extend_from_slice(text.as_bytes());
        }
        Any {
            type_url: "runtimeoptions.v1.Options".into(),
            value: bytes,
            ..Default::default()
        }
    }

    #[test]
    fn both_kinds_give_the_same_options() {
        let wanted = Options {
            binary_name: "crun".into(),
            systemd_cgroup: true,
            io_uid: 7,
            ..Default::default()
        };
        let stock = pack("containerd.runc.v1.Options", &wanted.to_proto());
        assert_eq!(Options::from_any(&stock).unwrap(), wanted);

        let toml = "BinaryName = \"crun\"\nSystemdCgroup = true\nIoUid = 7\nCriuPath = \"\"\n";
        assert_eq!(Options::from_any(&generic("", toml)).unwrap(), wanted);

        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("runc.toml");
        std::fs::write(&file, toml).unwrap();
        assert_eq!(
            Options::from_any(&generic(file.to_str().unwrap(), "")).unwrap(),
            wanted
        );
    }

    #[test]
    fn what_old_clients_send() {
        let value = [8, 1, 80, 0xa0, 0x8d, 6, 88, 7, 50, 1, b'x', 98, 2, b'/', b'w'].to_vec();
        let any = Any {
            type_url: "containerd.linux.runc.CreateOptions".into(),
            value,
            ..Default::default()
        };
        let options = Options::from_any(&any).unwrap();
        assert!(options.no_pivot_root);
        assert_eq!(
            (options.io_uid, options.io_gid, options.criu_work_path.as_str()),
            (100_000, 7, "/w")
        );
    }

    #[test]
    fn refusals_name_the_option() {
        let refused = |toml| Options::from_any(&generic("", toml)).unwrap_err().to_string();
        assert!(refused("BinaryNam = \"x\"").contains("BinaryNam"));
        assert!(refused("IoUid = -1").contains("IoUid"));
        assert!(refused("= 1").contains("TOML"));
        assert!(refused("x").contains("TOML"));
        let other = Any {
            type_url: "windows.Options".into(),
            value: vec![8, 1],
            ..Default::default()
        };
        assert!(
            Options::from_any(&other)
                .unwrap_err()
                .to_string()
                .contains("windows.Options")
        );
    }

    #[test]
    fn starts_input_in_both_forms() {
        let options = pack(
            "containerd.runc.v1.Options",
            &Options {
                root: "/r".into(),
                ..Default::default()
            }
            .to_proto(),
        );

        let old = Bootstrap::parse(&options.write_to_bytes().unwrap(), "c1", "default").unwrap();
        assert!(!old.modern);
        assert_eq!(Options::from_any(&old.options.unwrap()).unwrap().root, "/r");

        let mut params = BootstrapParams {
            instance_id: "c1".into(),
            namespace: "default".into(),
            ..Default::default()
        };
        params.containerd_ttrpc_address = "/run/t.sock".into();
        params.log_level = protobuf::EnumOrUnknown::from_i32(-4);
        let mut extension = containerd_shim_protos::bootstrap_api::Extension::new();
        extension.value = protobuf::MessageField::some(options);
        params.extensions.push(extension);
        let new = Bootstrap::parse(&params.write_to_bytes().unwrap(), "c1", "default").unwrap();
        assert!(new.modern && new.debug);
        assert_eq!(new.ttrpc_address.as_deref(), Some("/run/t.sock"));
        assert_eq!(Options::from_any(&new.options.unwrap()).unwrap().root, "/r");

        assert!(Bootstrap::parse(b"", "c1", "default").unwrap().options.is_none());
    }

    #[test]
    fn saved_options_come_back_and_half_a_bundle_gives_defaults() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Options::load(dir.path()), Options::default());
        let options = Options {
            root: "/r".into(),
            no_pivot_root: true,
            ..Default::default()
        };
        options.save(dir.path()).unwrap();
        assert_eq!(Options::load(dir.path()), options);
        std::fs::write(dir.path().join(FILE), b"{").unwrap();
        assert_eq!(Options::load(dir.path()), Options::default());
    }
}
