//! What containerd hands the shim: `start`'s standard input, the runtime's options, the streams' URIs.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use protobuf::{Message, well_known_types::any::Any};
use shim::{
    io::Target,
    options::{Bootstrap, Options, pack},
};

const TYPES: [&str; 4] = [
    "containerd.runc.v1.Options",
    "containerd.linux.runc.CreateOptions",
    "runtimeoptions.v1.Options",
    "types.googleapis.com/containerd.runc.v1.Options",
];

/// The first byte chooses the message, the rest is its bytes; under `t` it is the TOML that CRI sends. What is
/// understood is the same again in the form in which `-info` and the bundle hand it on.
pub fn runtime_options(data: &[u8]) {
    let Some((first, rest)) = data.split_first() else {
        return;
    };
    let (type_url, value) = if *first == b't' {
        (TYPES[2], length_delimited(26, rest))
    } else {
        // A path in the options is opened, as containerd's configuration says: not the machine's devices.
        if rest.windows(4).any(|w| w == b"/dev" || w == b"/pro") {
            return;
        }
        (TYPES[usize::from(*first) % TYPES.len()], rest.to_vec())
    };
    let any = Any {
        type_url: type_url.into(),
        value,
        ..Any::default()
    };
    let Ok(options) = Options::from_any(&any) else {
        return;
    };
    let packed = pack(TYPES[0], &options.to_proto());
    assert_eq!(Options::from_any(&packed).ok().as_ref(), Some(&options));
    let kept = serde_json::to_vec(&options).expect("options are written beside the bundle");
    assert_eq!(
        serde_json::from_slice::<Options>(&kept).ok().as_ref(),
        Some(&options)
    );
    assert!(!options.binary().is_empty());
    assert!(options.root.is_empty() || options.runtime_root("default").starts_with(&options.root));
    if *first == b't' && rest.is_ascii() && !rest.is_empty() {
        // Names count without regard to case.
        let shouted: String = crate::text(rest)
            .unwrap_or_default()
            .lines()
            .map(|line| match line.split_once('=') {
                Some((key, value)) if key.trim().bytes().all(|b| b.is_ascii_alphabetic()) => {
                    format!("{}={value}\n", key.to_ascii_uppercase())
                }
                _ => format!("{line}\n"),
            })
            .collect();
        // A line inside a string of many lines looks like a setting too.
        if !rest.windows(3).any(|w| w == b"\"\"\"" || w == b"'''") && !rest.contains(&b'\r') {
            let any = Any {
                type_url: TYPES[2].into(),
                value: length_delimited(26, shouted.as_bytes()),
                ..Any::default()
            };
            assert_eq!(Options::from_any(&any).ok().as_ref(), Some(&options), "{shouted}");
        }
    }
}

/// A protobuf field of bytes.
fn length_delimited(tag: u8, bytes: &[u8]) -> Vec<u8> {
    let mut field = vec![tag];
    let mut length = bytes.len();
    while length > 127 {
        field.push((length & 127) as u8 | 128);
        length >>= 7;
    }
    field.push(length as u8);
    field.extend_from_slice(bytes);
    field
}

/// `start`'s standard input is taken for the new form only if it names this very container.
pub fn bootstrap(data: &[u8]) {
    let Ok(found) = Bootstrap::parse(data, "c1", "default") else {
        return;
    };
    assert!(!found.modern || (contains(data, b"c1") && contains(data, b"default")));
    assert!(found.socket_dir.as_deref() != Some("") && found.ttrpc_address.as_deref() != Some(""));
    if !found.modern {
        // Nothing but the options can be said in the old form.
        assert!(found.socket_dir.is_none() && found.ttrpc_address.is_none() && !found.debug);
        assert_eq!(found.options.is_none(), data.is_empty());
        if let Some(any) = &found.options {
            let written = any.write_to_bytes().expect("what was read can be written");
            assert_eq!(Any::parse_from_bytes(&written).ok().as_ref(), Some(any));
        }
    }
    // The same bytes for another container are never the new form.
    if let Ok(other) = Bootstrap::parse(data, "another", "default") {
        assert!(!(found.modern && other.modern));
    }
}

fn contains(data: &[u8], what: &[u8]) -> bool {
    data.windows(what.len()).any(|w| w == what)
}

/// A URI is refused in words, or leads where its plain form says; and any path and any arguments can be said in one.
pub fn stream_uri(data: &[u8]) {
    let Some(text) = crate::text(data) else { return };
    match Target::parse(text) {
        Ok(target) => {
            let (scheme, path) = match &target {
                Target::Fifo(path) => ("fifo", path),
                Target::File(path) => ("file", path),
                Target::Binary { program, args } => {
                    let pairs = text.split('&').count();
                    assert!(args.len() <= 2 * pairs);
                    ("binary", program)
                }
            };
            if text.contains("://") {
                let plain = Target::parse(&format!("{scheme}://{}", escaped(path))).unwrap();
                let same = match (&plain, &target) {
                    (Target::Binary { program, args }, Target::Binary { program: wanted, .. }) => {
                        program == wanted && args.is_empty()
                    }
                    _ => plain == target,
                };
                assert!(same, "{text:?} is {target:?}, its plain form {plain:?}");
            } else {
                assert_eq!(path.as_os_str(), text);
            }
        }
        Err(error) => assert!(!error.to_string().chars().any(char::is_control), "{error}"),
    }

    // The other way round.
    let path = format!("/{text}");
    assert_eq!(
        Target::parse(&format!("file://{}", escaped(Path::new(&path)))).unwrap(),
        Target::File(path.clone().into())
    );
    let pairs: BTreeMap<&str, &str> = text
        .lines()
        .filter_map(|line| line.split_once('='))
        .filter(|(key, _)| !key.is_empty())
        .collect();
    let mut query = Vec::new();
    let mut wanted = Vec::new();
    for (key, value) in pairs {
        query.push(format!(
            "{}={}",
            escaped(Path::new(key)),
            escaped(Path::new(value))
        ));
        wanted.extend([key.to_owned(), value.to_owned()]);
    }
    assert_eq!(
        Target::parse(&format!(
            "binary://{}?{}",
            escaped(Path::new(&path)),
            query.join("&")
        ))
        .unwrap(),
        Target::Binary {
            program: path.into(),
            args: wanted
        }
    );
}

/// Everything but letters, digits and slashes as percent-escapes.
fn escaped(path: &Path) -> String {
    let mut escaped = String::new();
    for byte in path.as_os_str().as_encoded_bytes() {
        if byte.is_ascii_alphanumeric() || *byte == b'/' {
            escaped.push(char::from(*byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(escaped, "%{byte:02X}");
        }
    }
    escaped
}
