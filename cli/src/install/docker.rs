//! What Docker's `daemon.json` should say: text in, text out.

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::containerd::{HANDLER, RUNTIME_TYPE, Without};

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
}
