//! What containerd's configuration should say: text in, text out. Nothing here touches a file.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use toml_edit::{Array, DocumentMut, Item, TableLike, Value};

/// The name of the handler: what a RuntimeClass's `handler` says.
pub const HANDLER: &str = "diffkeeper";
/// What the handler points at.
pub const RUNTIME_TYPE: &str = "io.containerd.diffkeeper.v1";

/// Annotations that are not listed never reach the shim.
const POD_ANNOTATIONS: &[&str] = &["diffkeeper.io/*"];
/// `io.kubernetes.container.*` tells how often the kubelet has restarted the container.
const CONTAINER_ANNOTATIONS: &[&str] = &["io.kubernetes.container.*", "diffkeeper.io/*"];

const CRI_2: &str = "io.containerd.grpc.v1.cri";
const CRI_3: &str = "io.containerd.cri.v1.runtime";

/// The handler that is wanted.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// Where the shim is, if containerd would not find it by its name.
    pub runtime_path: Option<PathBuf>,
}

/// A file's `version`: which table holds the runtimes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Version(i64);

impl Version {
    /// For a containerd of this major version, the newest that it has known from its first release on.
    pub fn for_containerd(major: u32) -> Version {
        Version(if major >= 2 { 3 } else { 2 })
    }

    fn plugin(self) -> &'static str {
        if self.0 == 2 { CRI_2 } else { CRI_3 }
    }

    /// A file that says nothing but its version.
    pub fn empty_file(self) -> String {
        format!("version = {}\n", self.0)
    }
}

fn parse(text: &str) -> Result<DocumentMut> {
    text.parse()
        .context("it is not TOML that can be read (a template? then name the file that is made from it)")
}

/// Whether a file sets nothing at all: containerd then runs with its defaults.
pub fn is_blank(text: &str) -> bool {
    parse(text).is_ok_and(|doc| doc.is_empty())
}

/// Which version a file is of.
///
/// # Errors
/// Versions that have no place for a handler, or that nobody has seen yet.
pub fn version(text: &str) -> Result<Version> {
    match parse(text)?.get("version").map(Item::as_integer) {
        Some(Some(n @ 2..=4)) => Ok(Version(n)),
        None | Some(Some(0 | 1)) => bail!(
            "it is of version 1 (it has no `version = 2`), which containerd 2 no longer reads: let `containerd config migrate` (2.x) \
             print it as a newer one, or, if it sets only a key or two, write `version = 2` at its head and name plugins in \
             full (`io.containerd.grpc.v1.cri` for `cri`); then try again"
        ),
        Some(Some(n)) => bail!(
            "it is of version {n}; 2, 3 and 4 are known: is there a newer DiffKeeper? By hand: see deploy/containerd-2.toml"
        ),
        Some(None) => bail!("its `version` is not a number"),
    }
}

/// The patterns and paths that a file imports; none if it does not say.
///
/// # Errors
/// Text that is not TOML.
pub fn imports(text: &str) -> Result<Option<Vec<String>>> {
    let doc = parse(text)?;
    Ok(doc.get("imports").and_then(Item::as_array).map(|list| {
        list.iter()
            .filter_map(|v| v.as_str().map(str::to_owned))
            .collect()
    }))
}

/// The same file with these imports.
///
/// # Errors
/// Text that is not TOML.
pub fn with_imports(text: &str, imports: &[String]) -> Result<String> {
    let mut doc = parse(text)?;
    doc.insert("imports", Item::Value(imports.iter().collect::<Array>().into()));
    Ok(doc.to_string())
}

fn runtimes<'a>(doc: &'a dyn TableLike, plugin: &str) -> Option<&'a dyn TableLike> {
    let mut table = doc;
    for key in ["plugins", plugin, "containerd", "runtimes"] {
        table = table.get(key)?.as_table_like()?;
    }
    Some(table)
}

fn runtimes_mut<'a>(doc: &'a mut dyn TableLike, plugin: &str) -> Option<&'a mut dyn TableLike> {
    let mut table = doc;
    for key in ["plugins", plugin, "containerd", "runtimes"] {
        table = table.get_mut(key)?.as_table_like_mut()?;
    }
    Some(table)
}

fn strings(table: &dyn TableLike, key: &str) -> Vec<String> {
    let list = table.get(key).and_then(Item::as_array);
    list.into_iter()
        .flatten()
        .filter_map(|v| v.as_str().map(str::to_owned))
        .collect()
}

fn missing(table: &dyn TableLike, key: &str, wanted: &[&'static str]) -> Vec<&'static str> {
    let there = strings(table, key);
    wanted
        .iter()
        .copied()
        .filter(|w| !there.iter().any(|t| t == w))
        .collect()
}

fn is_complete(handler: &dyn TableLike) -> bool {
    missing(handler, "pod_annotations", POD_ANNOTATIONS).is_empty()
        && missing(handler, "container_annotations", CONTAINER_ANNOTATIONS).is_empty()
}

/// Demands that a handler of our name is ours.
fn check_ours(handler: &dyn TableLike, wanted: &Wanted) -> Result<()> {
    let text = |key: &str| handler.get(key).and_then(Item::as_str).unwrap_or_default();
    let found = text("runtime_type");
    ensure!(
        found == RUNTIME_TYPE,
        "it already has a handler `{HANDLER}` with runtime_type = {found:?}, and {RUNTIME_TYPE:?} is wanted: rename that handler, or take it out"
    );
    let found = text("runtime_path");
    let path = wanted.runtime_path.as_deref().unwrap_or(Path::new(""));
    ensure!(
        found.is_empty() || Path::new(found) == path,
        "it already has a handler `{HANDLER}` with runtime_path = {found:?}, and {} is wanted: mend the path there, or give --bin-dir its folder",
        if path.as_os_str().is_empty() {
            "the shim on containerd's PATH".to_owned()
        } else {
            format!("{path:?}")
        }
    );
    Ok(())
}

/// Whether a file has a handler of our name, wherever it points.
///
/// # Errors
/// Text that is not TOML.
pub fn has_handler(text: &str) -> Result<bool> {
    let doc = parse(text)?;
    Ok([CRI_2, CRI_3]
        .iter()
        .any(|plugin| runtimes(doc.as_table(), plugin).is_some_and(|r| r.contains_key(HANDLER))))
}

/// The file as it should be; `None` if it is so already. Everything else in it stays as it is, to the byte.
///
/// # Errors
/// A handler of that name that points elsewhere, a version without handlers, a file that cannot be extended.
pub fn with_handler(text: &str, wanted: &Wanted) -> Result<Option<String>> {
    let plugin = version(text)?.plugin();
    let mut doc = parse(text)?;
    let result = if let Some(handler) = runtimes_mut(doc.as_table_mut(), plugin)
        .and_then(|r| r.get_mut(HANDLER))
        .and_then(Item::as_table_like_mut)
    {
        check_ours(handler, wanted)?;
        if is_complete(handler) {
            return Ok(None);
        }
        add(handler, "pod_annotations", POD_ANNOTATIONS);
        add(handler, "container_annotations", CONTAINER_ANNOTATIONS);
        doc.to_string()
    } else {
        let gap = if text.is_empty() || text.ends_with('\n') {
            ""
        } else {
            "\n"
        };
        format!("{text}{gap}\n{}", block(plugin, wanted))
    };
    // A parent that is written as an inline table cannot be extended from below.
    let doc = parse(&result).context("a table there is written in braces: add the handler by hand")?;
    let there = runtimes(doc.as_table(), plugin)
        .and_then(|r| r.get(HANDLER))
        .and_then(Item::as_table_like);
    ensure!(
        there.is_some_and(is_complete),
        "`pod_annotations` or `container_annotations` of its handler `{HANDLER}` is not a list: mend it by hand"
    );
    Ok(Some(result))
}

fn block(plugin: &str, wanted: &Wanted) -> String {
    let list = |items: &[&str]| items.iter().copied().collect::<Array>().to_string();
    let path = wanted
        .runtime_path
        .as_ref()
        .map(|p| {
            format!(
                "runtime_path = {}\n",
                Value::from(p.to_string_lossy().into_owned())
            )
        })
        .unwrap_or_default();
    format!(
        "# Added by `diffkeeper install`; `diffkeeper uninstall` takes it out.\n\
         [plugins.\"{plugin}\".containerd.runtimes.{HANDLER}]\n\
         runtime_type = \"{RUNTIME_TYPE}\"\n\
         {path}\
         # Annotations that are not listed never reach the shim.\n\
         pod_annotations = {}\n\
         container_annotations = {}\n",
        list(POD_ANNOTATIONS),
        list(CONTAINER_ANNOTATIONS)
    )
}

fn add(handler: &mut dyn TableLike, key: &str, wanted: &[&'static str]) {
    let missing = missing(handler, key, wanted);
    if missing.is_empty() {
        return;
    }
    match handler.get_mut(key).and_then(Item::as_array_mut) {
        Some(list) => list.extend(missing),
        None => {
            // Something else under that key is a person's mistake, and is found when the result is checked.
            if !handler.contains_key(key) {
                handler.insert(key, Item::Value(missing.into_iter().collect::<Array>().into()));
            }
        }
    }
}

/// What a file is without our handler.
#[derive(Debug, PartialEq, Eq)]
pub enum Without {
    /// It has none, or one that is somebody else's by now.
    Same,
    /// The rest.
    Text(String),
    /// Nothing but the version is left.
    Empty,
}

/// Takes the handler out.
///
/// # Errors
/// Text that is not TOML.
pub fn without_handler(text: &str) -> Result<Without> {
    let mut doc = parse(text)?;
    let mut found = false;
    for plugin in [CRI_2, CRI_3] {
        let Some(runtimes) = runtimes_mut(doc.as_table_mut(), plugin) else {
            continue;
        };
        let ours = runtimes
            .get(HANDLER)
            .and_then(Item::as_table_like)
            .is_some_and(|h| h.get("runtime_type").and_then(Item::as_str) == Some(RUNTIME_TYPE));
        if ours {
            runtimes.remove(HANDLER);
            found = true;
        }
    }
    if !found {
        return Ok(Without::Same);
    }
    let text = doc.to_string();
    let rest: DocumentMut = parse(&text)?;
    Ok(if rest.iter().all(|(key, _)| key == "version") {
        Without::Empty
    } else {
        Without::Text(text)
    })
}

/// The file for a folder of imports.
pub fn drop_in(version: Version, wanted: &Wanted) -> String {
    format!("{}\n{}", version.empty_file(), block(version.plugin(), wanted))
}

/// The name of our file under a pattern such as `/etc/containerd/conf.d/*.toml`; none if the pattern has no
/// single `*` in its last component.
pub fn drop_in_path(pattern: &Path) -> Option<PathBuf> {
    let name = pattern.file_name()?.to_str()?;
    let folder = pattern.parent()?.to_str()?;
    let plain = |text: &str| !text.contains(['*', '?', '[', '\\']);
    let (before, after) = name.split_once('*')?;
    (plain(before) && plain(after) && plain(folder))
        .then(|| Path::new(folder).join(format!("{before}{HANDLER}{after}")))
}

/// Whether a file's name fits a pattern that [`drop_in_path`] takes.
pub fn fits(pattern: &Path, name: &str) -> bool {
    let pattern = pattern.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    pattern.split_once('*').is_some_and(|(before, after)| {
        name.len() >= before.len() + after.len() && name.starts_with(before) && name.ends_with(after)
    })
}

/// What `containerd config dump` says: the configuration as containerd itself understands it, imports merged.
pub struct Dump(toml::Table);

impl Dump {
    /// Reads what was printed.
    ///
    /// # Errors
    /// Text that is not TOML.
    pub fn parse(text: &str) -> Result<Dump> {
        Ok(Dump(text.parse::<toml::Table>().context(
            "`containerd config dump` printed something that is not TOML",
        )?))
    }

    /// Whether the CRI plugin is off, so that no kubelet can use this containerd.
    pub fn cri_is_disabled(&self) -> bool {
        let list = self.0.get("disabled_plugins").and_then(toml::Value::as_array);
        list.into_iter()
            .flatten()
            .filter_map(toml::Value::as_str)
            .any(|id| id == "cri" || id == CRI_2 || id == CRI_3)
    }

    /// Whether containerd knows our handler, with every annotation.
    pub fn has_whole_handler(&self) -> bool {
        [CRI_2, CRI_3].iter().any(|plugin| {
            let handler = self
                .runtimes(plugin)
                .and_then(|r| r.get(HANDLER))
                .and_then(toml::Value::as_table);
            handler.is_some_and(|h| {
                let has = |key: &str, wanted: &[&str]| {
                    let list = h.get(key).and_then(toml::Value::as_array);
                    list.is_some_and(|l| wanted.iter().all(|w| l.iter().any(|v| v.as_str() == Some(w))))
                };
                h.get("runtime_type").and_then(toml::Value::as_str) == Some(RUNTIME_TYPE)
                    && has("pod_annotations", POD_ANNOTATIONS)
                    && has("container_annotations", CONTAINER_ANNOTATIONS)
            })
        })
    }

    fn runtimes(&self, plugin: &str) -> Option<&toml::Table> {
        let mut table = &self.0;
        for key in ["plugins", plugin, "containerd", "runtimes"] {
            table = table.get(key)?.as_table()?;
        }
        Some(table)
    }

    /// The handlers that hold although the file does not name them. containerd 1.x has them only as long as no handler is
    /// configured at all: with the first one its default `runc` is gone, and the CRI plugin does not start.
    ///
    /// # Errors
    /// Text that is not TOML.
    pub fn defaults_missing_in(&self, text: &str) -> Result<Option<String>> {
        let plugin = version(text)?.plugin();
        let doc = parse(text)?;
        let named = runtimes(doc.as_table(), plugin);
        let missing: toml::Table = self
            .runtimes(plugin)
            .into_iter()
            .flatten()
            .filter(|(name, _)| named.is_none_or(|n| !n.contains_key(name)))
            .map(|(name, table)| (name.clone(), table.clone()))
            .collect();
        if missing.is_empty() {
            return Ok(None);
        }
        let mut tables = missing;
        for key in ["runtimes", "containerd", plugin, "plugins"] {
            tables = toml::Table::from_iter([(key.to_owned(), toml::Value::Table(tables))]);
        }
        Ok(Some(format!(
            "\n# containerd 1.x drops its own handlers as soon as one is configured. These are they, as they were.\n{tables}"
        )))
    }

    /// The first setting that differs apart from our handler, as `a.b.c`.
    pub fn lost(&self, after: &Dump) -> Option<String> {
        difference(&self.rest(), &after.rest(), "")
    }

    /// Everything but the handler and the names of the files that were read.
    fn rest(&self) -> toml::Table {
        let mut all = self.0.clone();
        all.remove("imports");
        for plugin in [CRI_2, CRI_3] {
            let mut table = Some(&mut all);
            for key in ["plugins", plugin, "containerd", "runtimes"] {
                table = table
                    .and_then(|t| t.get_mut(key))
                    .and_then(toml::Value::as_table_mut);
            }
            if let Some(runtimes) = table {
                runtimes.remove(HANDLER);
            }
        }
        all
    }
}

/// Tables without an entry count as absent: containerd prints them or not as it likes.
fn is_nothing(value: Option<&toml::Value>) -> bool {
    match value {
        None => true,
        Some(toml::Value::Table(t)) => t.values().all(|v| is_nothing(Some(v))),
        Some(_) => false,
    }
}

fn difference(a: &toml::Table, b: &toml::Table, at: &str) -> Option<String> {
    let keys: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    keys.into_iter().find_map(|key| {
        let name = if at.is_empty() {
            key.clone()
        } else {
            format!("{at}.{key}")
        };
        match (a.get(key), b.get(key)) {
            (Some(toml::Value::Table(a)), Some(toml::Value::Table(b))) => difference(a, b, &name),
            (a, b) => (a != b && !(is_nothing(a) && is_nothing(b))).then_some(name),
        }
    })
}
