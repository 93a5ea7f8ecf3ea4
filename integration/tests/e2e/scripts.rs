//! What scripts rely on: `docs/json.schema.json` is what every command's `--json` prints, and the exit statuses.

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    path::Path,
};

use anyhow::{Context, Result, anyhow, ensure};
use integration::{Daemon, OURS, history::Keeper};
use jsonschema::Validator;
use serde_json::{Map, Value, json};

use crate::Test;

pub const TESTS: &[(&str, Test)] = &[
    (
        "scripts::metrics_are_what_the_page_says",
        metrics_are_what_the_page_says,
    ),
    (
        "scripts::json_is_what_the_schema_says",
        json_is_what_the_schema_says,
    ),
    (
        "scripts::the_exit_status_says_what_was_wrong",
        the_exit_status_says_what_was_wrong,
    ),
];

fn documents(name: &str) -> Result<String> {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(name);
    fs::read_to_string(&docs).with_context(|| format!("read {}", docs.display()))
}

/// Forbids every key that the schema does not have. Scripts are to skip those; this project is to document them.
fn closed(schema: &mut Value) {
    match schema {
        Value::Object(object) => {
            if object.contains_key("properties") {
                object.insert("additionalProperties".into(), false.into());
            }
            object.values_mut().for_each(closed);
        }
        Value::Array(items) => items.iter_mut().for_each(closed),
        _ => {}
    }
}

/// The schemas of the commands.
struct Schemas {
    all: Map<String, Value>,
    used: BTreeSet<String>,
}

impl Schemas {
    fn read() -> Result<Schemas> {
        let mut schema: Value = serde_json::from_str(&documents("json.schema.json")?)?;
        closed(&mut schema);
        let all = schema["$defs"].as_object().context("the schema's $defs")?.clone();
        Ok(Schemas {
            all,
            used: BTreeSet::new(),
        })
    }

    fn commands(&self) -> BTreeSet<String> {
        let commands = self.all.keys().filter(|name| !name.starts_with('-'));
        commands.cloned().collect()
    }

    fn of(&self, command: &str) -> Result<Validator> {
        ensure!(
            self.all.contains_key(command),
            "docs/json.schema.json does not have {command}"
        );
        let schema = json!({"$ref": format!("#/$defs/{command}"), "$defs": self.all});
        jsonschema::validator_for(&schema).map_err(|e| anyhow!("the schema of {command}: {e}"))
    }

    /// Runs a command with `--json`, and compares what it prints with the schema.
    fn check(&mut self, d: &Daemon, args: &[&str]) -> Result<Value> {
        let command = *args.first().context("a command")?;
        self.check_as(d, command, args, 0)
    }

    fn check_as(&mut self, d: &Daemon, command: &str, args: &[&str], status: i32) -> Result<Value> {
        let mut line = args.to_vec();
        line.push("--json");
        let ran = d.diffkeeper(&line)?;
        ensure!(ran.status == status, "{line:?}: {ran:?}");
        let value: Value = serde_json::from_str(&ran.out).with_context(|| format!("{line:?}: {ran:?}"))?;
        let problems: Vec<String> = self
            .of(command)?
            .iter_errors(&value)
            .map(|error| format!("{}: {error}", error.instance_path()))
            .collect();
        ensure!(problems.is_empty(), "{line:?}: {problems:#?}");
        self.used.insert(command.to_owned());
        Ok(value)
    }
}

/// Every metric that `docs/operations.md` names is served, and the other way round.
fn metrics_are_what_the_page_says(_: &Daemon) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let root = dir.path().join("root");
    let config = runtime_spec::config::Config::parse(&format!("root = {:?}", root))?;
    let served = keeper::Keeper::open(&config)?.metrics()?;
    let served: BTreeSet<&str> = served
        .lines()
        .filter_map(|line| line.strip_prefix("# HELP ")?.split(' ').next())
        .collect();
    let page = documents("operations.md")?;
    let named: BTreeSet<&str> = page
        .split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        .filter(|word| word.starts_with("diffkeeper_"))
        .map(|word| word.strip_suffix("_bucket").unwrap_or(word))
        .collect();
    ensure!(
        served == named,
        "served {served:?}, and in docs/operations.md {named:?}"
    );
    Ok(())
}

/// The commands that have `--json`, by their own help.
fn with_json(d: &Daemon) -> Result<BTreeSet<String>> {
    let help = d.diffkeeper(&["--help"])?.ok()?;
    let commands = help
        .lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| !line.is_empty());
    let mut found = BTreeSet::new();
    for line in commands {
        // A long description goes on further to the right.
        let Some(name) = line.strip_prefix("  ").filter(|line| !line.starts_with(' ')) else {
            continue;
        };
        let name = name.split_whitespace().next().unwrap_or_default();
        if name != "help" && d.diffkeeper(&[name, "--help"])?.ok()?.contains("--json") {
            found.insert(name.to_owned());
        }
    }
    Ok(found)
}

fn json_is_what_the_schema_says(d: &Daemon) -> Result<()> {
    let mut schemas = Schemas::read()?;
    let commands = with_json(d)?;
    ensure!(commands.len() > 10, "{commands:?}");
    ensure!(
        commands == schemas.commands(),
        "commands with --json {commands:?}, and in docs/json.schema.json {:?}",
        schemas.commands()
    );
    let page = documents("json.md")?;
    for command in &commands {
        ensure!(
            page.contains(&format!("`{command}`")),
            "docs/json.md does not name {command}"
        );
    }

    let keeper = Keeper::start(d, "interval = \"off\"")?;
    let image = d.import("busybox")?;
    let start = |name: &str, ready: &str, script: &str| {
        let script = format!("{script}; touch /{ready}; sleep 1000");
        let line = ["run", "-d", "--runtime", OURS, &image, name, "sh", "-c", &script];
        d.ctr(&line)?.ok()?;
        integration::wait::until("the files", std::time::Duration::from_secs(20), || {
            d.upper(name).join(ready).exists()
        })
    };
    // Every kind of entry, and a name that is no text.
    start(
        "told",
        "first",
        "mkdir /d; echo one > /d/f; ln /d/f /d/g; ln -s f /d/s; mkfifo /d/p; mknod /d/c c 1 3; rm /etc/passwd; \
         touch \"$(printf '/d/\\377')\"",
    )?;
    schemas.check(d, &["states"])?;
    schemas.check(d, &["commit", "told", "-m", "first", "--tag", "one"])?;
    d.forget("told")?;
    start(
        "told",
        "second",
        "echo longer > /d/f; rm /d/s; rm /d/p; mkdir /d/p; chmod 700 /d/c; echo new > /new",
    )?;
    schemas.check(d, &["commit", "told"])?;
    schemas.check(d, &["log", "told"])?;
    schemas.check(d, &["show", "told@one"])?;
    let changes = schemas.check(d, &["diff", "told@one"])?;
    let words: BTreeSet<&str> = changes
        .as_array()
        .context("changes")?
        .iter()
        .filter_map(|change| change["change"].as_str())
        .collect();
    for word in ["added", "changed", "removed", "replaced"] {
        ensure!(words.contains(word), "{words:?}");
    }
    let entries = schemas.check(d, &["ls", "told@one"])?;
    let kinds: BTreeSet<&str> = entries
        .as_array()
        .context("entries")?
        .iter()
        .filter_map(|entry| entry["kind"].as_str())
        .collect();
    for kind in [
        "file",
        "link",
        "symlink",
        "fifo",
        "character",
        "directory",
        "whiteout",
    ] {
        ensure!(kinds.contains(kind), "{kinds:?}");
    }
    schemas.check(d, &["timeline", "told"])?;
    schemas.check_as(d, "diff", &["restore", "told@one", "--dry-run"], 0)?;
    let waits = schemas.check(d, &["restore", "told@one"])?;
    ensure!(waits["waits_for_next_start"] == true, "{waits}");
    schemas.check(d, &["restore", "told", "--cancel"])?;
    d.forget("told")?;
    let done = schemas.check(d, &["restore", "told@one"])?;
    ensure!(done["waits_for_next_start"] == false, "{done}");
    schemas.check(d, &["undo", "told"])?;
    schemas.check(d, &["fork", "told@one", "told-2"])?;
    let imported = tempfile::tempdir()?;
    fs::write(imported.path().join("file"), "imported ".repeat(100))?;
    let name = format!("ctr/{}/told-3", d.namespace());
    schemas.check(d, &["import", &name, &imported.path().to_string_lossy()])?;
    schemas.check(d, &["verify", "--read-data"])?;
    schemas.check(d, &["repair"])?;
    schemas.check(d, &["gc", "--dry-run"])?;
    schemas.check(d, &["gc"])?;
    schemas.check(d, &["gc", "--recompact", "told"])?;
    let parts = schemas.check(d, &["show", &format!("{name}@head"), "--chunks", "/file"])?;
    ensure!(parts[0]["encoding"] == "zstd" && parts[1].is_null(), "{parts}");
    schemas.check(d, &["audit", "told"])?;
    let key = imported.path().join("key").to_string_lossy().into_owned();
    d.diffkeeper(&["keygen", &key])?.ok()?;
    let public = format!("{key}.pub");
    // No commit of it is signed.
    schemas.check_as(d, "audit", &["audit", "told", "--public-key", &public], 5)?;
    schemas.check(d, &["stats"])?;
    let forms = schemas.check(d, &["stats", "told"])?;
    ensure!(forms["forms"].as_array().is_some(), "{forms}");
    let tuned = schemas.check(d, &["tune", "told"])?;
    let used = tuned["strategies"].as_array().context("strategies")?.iter();
    ensure!(used.filter(|way| way["used"] == true).count() == 1, "{tuned}");
    schemas.check(d, &["prune", "--dry-run"])?;
    let socket = d.socket();
    let doctor = ["doctor", "--address", &socket.to_string_lossy()];
    let status = d.diffkeeper(&doctor)?.status;
    schemas.check_as(d, "doctor", &doctor, status)?;
    // A machine of its own, of which only Docker's configuration is there.
    let root = tempfile::tempdir()?;
    fs::create_dir_all(root.path().join("etc/docker"))?;
    fs::create_dir_all(root.path().join("usr/local/bin"))?;
    fs::write(root.path().join("etc/docker/daemon.json"), "{}\n")?;
    let at = root.path().to_string_lossy().into_owned();
    for command in ["install", "uninstall"] {
        let args = [command, "--docker", "--no-restart", "--root", &at];
        let done = schemas.check(d, &args)?;
        let changes = done["changes"].as_array().context("changes")?;
        ensure!(!changes.is_empty(), "{done}");
    }
    // Without a live tree, and without a keeper.
    d.diffkeeper(&["rm", "told", "--yes"])?.ok()?;
    schemas.check(d, &["states"])?;
    keeper.stop()?;
    schemas.check(d, &["states"])?;
    schemas.check(d, &["prune"])?;
    ensure!(
        schemas.used == commands,
        "not run: {:?}",
        commands.difference(&schemas.used)
    );
    for name in ["told", "told-2", "told-3"] {
        d.diffkeeper(&["rm", name, "--yes", "--history"])?.ok()?;
    }
    Ok(())
}

fn the_exit_status_says_what_was_wrong(d: &Daemon) -> Result<()> {
    // The table is the same in both places.
    let page = documents("history.md")?;
    let help = d.diffkeeper(&["--help"])?.ok()?;
    let documented: HashMap<&str, &str> = help
        .lines()
        .skip_while(|line| *line != "Exit status:")
        .skip(1)
        .filter_map(|line| line.trim().split_once(' '))
        .map(|(status, words)| (status, words.trim()))
        .collect();
    for status in ["0", "1", "2", "3", "4", "130", "141"] {
        let words = documented
            .get(status)
            .with_context(|| format!("{status} is not in --help"))?;
        let row = page
            .lines()
            .find(|line| line.starts_with(&format!("| {status} |")));
        let plain = row.with_context(|| format!("{status} is not in docs/history.md"))?;
        let plain = plain.replace(['`', '\\'], "");
        ensure!(plain.contains(words), "{plain:?}, and {words:?}");
    }

    let keeper = Keeper::start(d, "interval = \"off\"")?;
    let image = d.import("busybox")?;
    let script = "head -c 100000 /dev/urandom > /data";
    d.ctr(&[
        "run",
        "--rm",
        "--runtime",
        OURS,
        &image,
        "damaged",
        "sh",
        "-c",
        script,
    ])?
    .ok()?;
    d.diffkeeper(&["commit", "damaged", "--tag", "good"])?.ok()?;
    let expect = |status: i32, args: &[&str]| -> Result<()> {
        let ran = d.diffkeeper(args)?;
        ensure!(ran.status == status, "{args:?}: {ran:?}, expected {status}");
        ensure!(
            status == 0 || status == 4 || ran.out.is_empty(),
            "{args:?}: {ran:?}"
        );
        Ok(())
    };
    expect(0, &["log", "damaged"])?;
    expect(1, &["tag", "damaged@good", "no such tag/name"])?;
    expect(1, &["restore", "damaged@-nonsense"])?;
    expect(2, &["log"])?;
    expect(2, &["log", "damaged", "--no-such-option"])?;
    expect(2, &["no-such-command"])?;
    expect(3, &["log", "nobody"])?;
    expect(3, &["show", "damaged@nothing"])?;
    expect(3, &["cat", "damaged", "/nowhere"])?;
    expect(3, &["rm", "nobody", "--yes"])?;
    expect(0, &["verify", "--read-data"])?;
    expect(0, &["audit", "damaged"])?;
    keeper.stop()?;

    // One bit in the content.
    let packs = d.folder().join("diffkeeper/store/packs");
    let mut longest: Option<(u64, std::path::PathBuf)> = None;
    for entry in fs::read_dir(&packs)? {
        let entry = entry?;
        let size = entry.metadata()?.len();
        if longest.as_ref().is_none_or(|(most, _)| size > *most) {
            longest = Some((size, entry.path()));
        }
    }
    let (size, pack) = longest.context("a pack")?;
    let whole = fs::read(&pack)?;
    let mut bytes = whole.clone();
    *bytes.get_mut(usize::try_from(size / 2)?).context("its middle")? ^= 1;
    fs::write(&pack, &bytes)?;
    expect(4, &["verify", "--read-data"])?;
    let mut schemas = Schemas::read()?;
    let found = schemas.check_as(d, "verify", &["verify", "--read-data"], 4)?;
    ensure!(
        found["problems"]
            .as_array()
            .is_some_and(|problems| !problems.is_empty()),
        "{found}"
    );
    let plan = schemas.check(d, &["repair", "--dry-run"])?;
    ensure!(
        plan["lost"].as_array().is_some_and(|lost| !lost.is_empty()) && plan["nothing"] == false,
        "{plan}"
    );
    // Looking has changed nothing; doing it leaves nothing that is wrong.
    ensure!(fs::read(&pack)? == bytes, "the pack was touched");
    expect(0, &["repair"])?;
    expect(0, &["verify", "--read-data"])?;
    expect(0, &["audit", "damaged"])?;
    // The pack is found whole after all.
    fs::write(pack.with_extension("pack.found"), &whole)?;
    let healed = schemas.check(d, &["repair"])?;
    ensure!(
        healed["whole_again"]
            .as_array()
            .is_some_and(|all| !all.is_empty()),
        "{healed}"
    );
    fs::remove_file(pack.with_extension("pack.found"))?;
    expect(0, &["repair", "--discard"])?;
    expect(0, &["verify", "--read-data"])?;
    d.diffkeeper(&["rm", "damaged", "--yes", "--history"])?.ok()?;
    Ok(())
}
