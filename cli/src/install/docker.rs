//! What Docker's `daemon.json` should say: text in, text out.

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::containerd::{HANDLER, RUNTIME_TYPE, Without};

/// The first Docker that reads `runtimeType` in `daemon.json` (moby/moby#45032).
const FIRST: u32 = 24;

/// Refuses a Docker, by what `dockerd --version` says, that takes the entry and then runs containers under runc.
///
/// # Errors
/// A version before 24.
pub fn check_version(line: &str) -> Result<()> {
    // Docker version 28.5.2, build ecc6942
    let major = line.split_whitespace().find_map(|word| {
        let (major, _) = word.split_once('.')?;
        major.parse::<u32>().ok()
    });
    match major {
        Some(23) => bail!(
            "{line} ignores `runtimeType` in daemon.json and would run such containers under runc, keeping nothing: \
             upgrade Docker to {FIRST} or later, or say `docker run --runtime {RUNTIME_TYPE}`, which needs no entry"
        ),
        Some(major) if major < FIRST => bail!(
            "{line} ignores `runtimeType` in daemon.json and would run such containers under runc, keeping nothing: \
             upgrade Docker to {FIRST} or later"
        ),
        Some(_) => Ok(()),
        None => bail!("`dockerd --version` says {line:?}, and {FIRST} or later is needed"),
    }
}

/// Whether a file names our runtime.
pub fn has_runtime(text: &str) -> bool {
    !matches!(without_runtime(text), Ok(Without::Same) | Err(_))
}

fn parse(text: &str) -> Result<Map<String, Value>> {
    // dockerd takes an empty file for no file.
    if text.trim().is_empty() {
        return Ok(Map::new());
    }
    serde_json::from_str(text).context("it is not a JSON object")
}

/// The file as it should be; `None` if it is so already. Order and indentation stay.
///
/// # Errors
/// Text that is not a JSON object, a runtime of our name that points elsewhere.
pub fn with_runtime(text: &str) -> Result<Option<String>> {
    let mut all = parse(text)?;
    let runtimes = all
        .entry("runtimes")
        .or_insert_with(|| json!({}))
        .as_object_mut()
        .context("its `runtimes` is not an object")?;
    if let Some(found) = runtimes.get(HANDLER) {
        ensure!(
            found.get("runtimeType").and_then(Value::as_str) == Some(RUNTIME_TYPE),
            "it already has a runtime `{HANDLER}`, {found}, and {} is wanted: rename that runtime, or take it out",
            json!({"runtimeType": RUNTIME_TYPE})
        );
        return Ok(None);
    }
    runtimes.insert(HANDLER.to_owned(), json!({"runtimeType": RUNTIME_TYPE}));
    write(&all, text).map(Some)
}

/// Takes the runtime out.
///
/// # Errors
/// Text that is not a JSON object.
pub fn without_runtime(text: &str) -> Result<Without> {
    let mut all = parse(text)?;
    let Some(runtimes) = all.get_mut("runtimes").and_then(Value::as_object_mut) else {
        return Ok(Without::Same);
    };
    let ours = runtimes
        .get(HANDLER)
        .is_some_and(|r| r.get("runtimeType").and_then(Value::as_str) == Some(RUNTIME_TYPE));
    if !ours {
        return Ok(Without::Same);
    }
    runtimes.shift_remove(HANDLER);
    if runtimes.is_empty() {
        all.shift_remove("runtimes");
    }
    Ok(if all.is_empty() {
        Without::Empty
    } else {
        Without::Text(write(&all, text)?)
    })
}

/// With the indentation that the file had.
fn write(all: &Map<String, Value>, like: &str) -> Result<String> {
    let indent: String = like
        .lines()
        .find(|line| line.starts_with([' ', '\t']) && !line.trim().is_empty())
        .map(|line| line.chars().take_while(|c| matches!(c, ' ' | '\t')).collect())
        .unwrap_or_else(|| "  ".to_owned());
    let mut out = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(indent.as_bytes());
    all.serialize(&mut serde_json::Serializer::with_formatter(&mut out, formatter))?;
    Ok(String::from_utf8(out)? + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "{\n    \"log-driver\": \"journald\",\n    \"runtimes\": {\n        \"kata\": {\n            \"runtimeType\": \"io.containerd.kata.v2\"\n        }\n    },\n    \"debug\": true\n}\n";

    #[test]
    fn keeps_order_and_indentation() {
        let text = with_runtime(FILE).unwrap().unwrap();
        let ours = "        },\n        \"diffkeeper\": {\n            \"runtimeType\": \"io.containerd.diffkeeper.v1\"\n        }\n    },\n    \"debug\": true\n}\n";
        assert!(text.ends_with(ours), "{text}");
        assert!(text.starts_with("{\n    \"log-driver\""), "{text}");
        assert_eq!(with_runtime(&text).unwrap(), None);
        assert_eq!(without_runtime(&text).unwrap(), Without::Text(FILE.to_owned()));
    }

    #[test]
    fn an_empty_file_is_none() {
        let text = with_runtime("").unwrap().unwrap();
        assert_eq!(
            parse(&text).unwrap(),
            *json!({"runtimes": {"diffkeeper": {"runtimeType": "io.containerd.diffkeeper.v1"}}})
                .as_object()
                .unwrap()
        );
        assert_eq!(without_runtime(&text).unwrap(), Without::Empty);
        assert_eq!(without_runtime(FILE).unwrap(), Without::Same);
    }

    #[test]
    fn refuses_what_it_does_not_understand() {
        let foreign = r#"{"runtimes": {"diffkeeper": {"path": "/opt/other/runtime"}}}"#;
        let error = with_runtime(foreign).unwrap_err().to_string();
        for word in ["/opt/other/runtime", "io.containerd.diffkeeper.v1", "rename"] {
            assert!(error.contains(word), "{error}");
        }
        assert_eq!(without_runtime(foreign).unwrap(), Without::Same);
        assert!(with_runtime("[]").is_err());
        assert!(with_runtime("{\"runtimes\": 3}").is_err());
        assert!(with_runtime("{").is_err());
    }

    #[test]
    fn an_old_docker_is_refused() {
        let told = |line: &str| check_version(line).err().map(|e| e.to_string());
        for fine in [
            "Docker version 28.5.2, build ecc6942",
            "Docker version 24.0.0, build 98fdcd7",
            "Docker version 26.1.5+dfsg1, build a72d7cd",
        ] {
            assert_eq!(told(fine), None);
        }
        let old = told("Docker version 20.10.24+dfsg1, build 297e128").unwrap();
        assert!(
            old.contains("20.10.24") && old.contains("upgrade") && !old.contains("--runtime"),
            "{old}"
        );
        let between = told("Docker version 23.0.6, build ef23cbc").unwrap();
        assert!(
            between.contains("--runtime io.containerd.diffkeeper.v1"),
            "{between}"
        );
        assert!(told("something else").is_some() && told("").is_some());
    }
}
