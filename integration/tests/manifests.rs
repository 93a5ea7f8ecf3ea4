//! `deploy/` against Kubernetes' published schema (`tests/data`), and against what its own comments promise.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value, json};

const SCHEMA: &str = include_str!("data/kubernetes-1.33.json");

fn deploy() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

fn documents(text: &str) -> Result<Vec<Value>> {
    serde_saphyr::from_multiple(text).context("read the YAML")
}

fn file(name: &str) -> Result<Vec<Value>> {
    let text = fs::read_to_string(deploy().join(name)).with_context(|| format!("read deploy/{name}"))?;
    documents(&text).with_context(|| name.to_owned())
}

fn one(name: &str) -> Result<Value> {
    let mut all = file(name)?;
    ensure!(all.len() == 1, "{name} has {} documents", all.len());
    Ok(all.remove(0))
}

/// The schema of Kubernetes' objects.
struct Schema {
    kinds: Map<String, Value>,
    definitions: Map<String, Value>,
}

impl Schema {
    fn new() -> Result<Schema> {
        let mut all: Value = serde_json::from_str(SCHEMA)?;
        let mut take = |key: &str| match all[key].take() {
            Value::Object(map) => Ok(map),
            _ => bail!("no {key} in the schema"),
        };
        Ok(Schema {
            kinds: take("kinds")?,
            definitions: take("definitions")?,
        })
    }

    /// What is wrong with an object; empty if nothing is.
    fn check(&self, object: &Value) -> Vec<String> {
        let text = |key: &str| object[key].as_str().unwrap_or_default();
        let kind = format!("{} {}", text("apiVersion"), text("kind"));
        let mut problems = Vec::new();
        match self.kinds.get(&kind).and_then(Value::as_str) {
            Some(name) => self.walk(&self.definitions[name], object, &kind, &mut problems),
            None => problems.push(format!("{kind:?} is in no schema")),
        }
        problems
    }

    fn walk(&self, schema: &Value, value: &Value, at: &str, problems: &mut Vec<String>) {
        if let Some(reference) = schema["$ref"].as_str() {
            let name = reference.rsplit('/').next().unwrap_or_default();
            return match self.definitions.get(name) {
                Some(schema) => self.walk(schema, value, at, problems),
                None => problems.push(format!("{at}: the schema has no {name}")),
            };
        }
        if schema["x-kubernetes-int-or-string"] == json!(true) {
            if !(value.is_i64() || value.is_string()) {
                problems.push(format!("{at}: {value} is neither number nor string"));
            }
            return;
        }
        let fits = match schema["type"].as_str() {
            Some("object") => value.is_object(),
            Some("array") => value.is_array(),
            Some("string") => value.is_string(),
            Some("boolean") => value.is_boolean(),
            Some("integer") => value.is_i64(),
            // A schema of another form would let everything pass.
            other => {
                problems.push(format!("{at}: the schema's type {other:?} is not understood"));
                return;
            }
        };
        if !fits {
            problems.push(format!("{at}: {value} is not of type {}", schema["type"]));
            return;
        }
        for (n, item) in value.as_array().into_iter().flatten().enumerate() {
            self.walk(&schema["items"], item, &format!("{at}[{n}]"), problems);
        }
        let properties = schema["properties"].as_object();
        for (key, value) in value.as_object().into_iter().flatten() {
            let at = format!("{at}.{key}");
            match properties.and_then(|p| p.get(key)) {
                Some(schema) => self.walk(schema, value, &at, problems),
                None if schema["additionalProperties"].is_object() => {
                    self.walk(&schema["additionalProperties"], value, &at, problems);
                }
                None => problems.push(format!("{at}: there is no such field")),
            }
        }
        for key in schema["required"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
        {
            if value.get(key).is_none() {
                problems.push(format!("{at}: {key} is missing"));
            }
        }
    }
}

#[test]
fn every_manifest_fits_the_schema() -> Result<()> {
    let schema = Schema::new()?;
    let mut objects = 0;
    for entry in fs::read_dir(deploy())? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if !name.ends_with(".yaml") || name == "kustomization.yaml" {
            continue;
        }
        for object in file(&name)? {
            let problems = schema.check(&object);
            ensure!(problems.is_empty(), "deploy/{name}: {}", problems.join("; "));
            objects += 1;
        }
    }
    ensure!(objects >= 7, "only {objects} objects");
    Ok(())
}

#[test]
fn what_does_not_fit_is_found() -> Result<()> {
    let schema = Schema::new()?;
    let text = fs::read_to_string(deploy().join("daemonset.yaml"))?;
    for (right, wrong, problem) in [
        (
            "maxUnavailable: 1 ",
            "maxUnavailable: {} ",
            "maxUnavailable: {} is neither",
        ),
        (
            "runAsUser: 0",
            "runAsUser: root",
            "runAsUser: \"root\" is not of type",
        ),
        (
            "runAsUser: 0",
            "runAsuser: 0",
            "runAsuser: there is no such field",
        ),
        (
            "readOnlyRootFilesystem: true",
            "readOnlyRootFilesystem: \"yes\"",
            "not of type \"boolean\"",
        ),
        (
            "drop: [\"ALL\"]",
            "drop: ALL",
            "drop: \"ALL\" is not of type \"array\"",
        ),
        (
            "  selector:\n    matchLabels:\n      app.kubernetes.io/name: diffkeeper\n",
            "",
            "spec: selector is missing",
        ),
        (
            "            path: /\n            type: Directory",
            "            type: Directory",
            "path is missing",
        ),
        (
            "kubernetes.io/os: linux",
            "kubernetes.io/os: 1",
            "not of type \"string\"",
        ),
        ("kind: DaemonSet", "kind: DemonSet", "is in no schema"),
    ] {
        let broken = text.replacen(right, wrong, 1);
        ensure!(broken != text, "{right:?} is not in the manifest");
        let problems: Vec<String> = documents(&broken)?.iter().flat_map(|o| schema.check(o)).collect();
        ensure!(
            problems.len() == 1 && problems[0].contains(problem),
            "{wrong:?}: {problems:?}"
        );
    }
    Ok(())
}

/// Every container of a pod template, init containers first.
fn containers(object: &Value) -> impl Iterator<Item = &Value> {
    let spec = if object["spec"]["template"].is_object() {
        &object["spec"]["template"]["spec"]
    } else {
        &object["spec"]
    };
    ["initContainers", "containers"]
        .into_iter()
        .flat_map(move |key| spec[key].as_array().into_iter().flatten())
}

#[test]
fn images_are_pinned_and_ours_is_this_version() -> Result<()> {
    for name in ["daemonset.yaml", "example-statefulset.yaml", "example-pod.yaml"] {
        for object in file(name)? {
            for container in containers(&object) {
                let image = container["image"].as_str().context("no image")?;
                let (name, tag) = image
                    .rsplit_once(':')
                    .with_context(|| format!("{image} has no tag"))?;
                ensure!(tag.contains('.') && !tag.contains('/'), "{image} is not pinned");
                if name.ends_with("/diffkeeper") {
                    ensure!(tag == env!("CARGO_PKG_VERSION"), "{image} is another version");
                }
            }
        }
    }
    let kustomization = one("kustomization.yaml")?;
    let image = &kustomization["images"][0];
    ensure!(
        image["name"] == "ghcr.io/diffkeeper/diffkeeper" && image["newTag"] == env!("CARGO_PKG_VERSION"),
        "{image}"
    );
    for resource in kustomization["resources"].as_array().context("no resources")? {
        file(resource.as_str().context("a resource is no name")?)?;
    }
    Ok(())
}

#[test]
fn the_installer_has_no_right_that_it_does_not_need() -> Result<()> {
    let daemonset = one("daemonset.yaml")?;
    let spec = &daemonset["spec"]["template"]["spec"];
    for key in ["hostPID", "hostNetwork", "hostIPC"] {
        ensure!(spec.get(key).is_none(), "{key}");
    }
    ensure!(spec["automountServiceAccountToken"] == false);
    for container in containers(&daemonset) {
        let context = &container["securityContext"];
        ensure!(
            context["allowPrivilegeEscalation"] == false
                && context["readOnlyRootFilesystem"] == true
                && context["capabilities"]["drop"] == json!(["ALL"])
                && context["seccompProfile"]["type"] == "RuntimeDefault"
                && context["privileged"] != true,
            "{}: {context}",
            container["name"]
        );
    }
    let install = &spec["initContainers"][0];
    ensure!(install["securityContext"]["capabilities"]["add"] == json!(["SYS_CHROOT"]));
    // docs/kubernetes.md patches this word.
    ensure!(install["command"][1] == "install", "{}", install["command"]);
    // No rights in the cluster at all.
    ensure!(one("rbac.yaml")?["kind"] == "ServiceAccount");
    Ok(())
}

#[test]
fn pods_go_where_the_runtime_is() -> Result<()> {
    let class = one("runtimeclass.yaml")?;
    let daemonset = one("daemonset.yaml")?;
    let label = &class["scheduling"]["nodeSelector"]["diffkeeper.io/node"];
    let selector = &daemonset["spec"]["template"]["spec"]["nodeSelector"];
    ensure!(label == "true" && &selector["diffkeeper.io/node"] == label);
    ensure!(class["handler"] == "diffkeeper");
    ensure!(class["overhead"]["podFixed"]["memory"].is_string());
    Ok(())
}

#[test]
fn the_example_has_no_claim_is_pinned_and_says_what_a_lost_node_means() -> Result<()> {
    let name = "example-statefulset.yaml";
    let text = fs::read_to_string(deploy().join(name))?;
    let first = text.lines().next().unwrap_or_default();
    ensure!(
        first.starts_with("# If the node is lost") && first.contains("is lost with it"),
        "{first}"
    );
    let objects = file(name)?;
    let set = objects
        .iter()
        .find(|o| o["kind"] == "StatefulSet")
        .context("no StatefulSet")?;
    ensure!(set["spec"].get("volumeClaimTemplates").is_none());
    let spec = &set["spec"]["template"]["spec"];
    ensure!(spec.get("volumes").is_none());
    ensure!(spec["nodeSelector"]["kubernetes.io/hostname"].is_string());
    ensure!(spec["runtimeClassName"] == one("runtimeclass.yaml")?["metadata"]["name"]);
    Ok(())
}
