//! `diffkeeper install` and `uninstall`: the binaries, and a handler in the configuration of containerd or Docker.
//!
//! What a file should say is decided by [`containerd`] and [`docker`], on texts alone. Here it is decided which
//! file that is, and done: everything is staged before anything is put in its place, and recorded before it is
//! changed, so that whatever happens in between, running it again finishes the work and `uninstall` finds it all.

mod containerd;
pub mod docker;
mod files;
mod host;
mod plan;
mod record;
mod report;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeSet,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result, bail, ensure};
use runtime_spec::config::Config;
use serde::{Deserialize, Serialize};

use self::{
    containerd::{RUNTIME_TYPE, Without},
    files::Staged,
    host::Host,
    record::{Edit, Record, sha256},
    report::Report,
};

const SHIM: &str = "containerd-shim-diffkeeper-v1";
const BINARIES: [&str; 2] = [SHIM, "diffkeeper"];

/// Whose configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// containerd, for Kubernetes.
    Containerd,
    /// Docker.
    Docker,
}

impl Engine {
    /// What systemctl is told. dockerd reads `runtimes` again on a reload; a restart would end its containers.
    fn restart(self) -> [&'static str; 2] {
        match self {
            Engine::Containerd => ["restart", "containerd"],
            Engine::Docker => ["reload", "docker"],
        }
    }

    /// The same where there is no systemd.
    fn restart_by_hand(self) -> &'static str {
        match self {
            Engine::Containerd => "restart containerd the way it was started",
            Engine::Docker => "send dockerd SIGHUP",
        }
    }

    fn without(self, text: &str) -> Result<Without> {
        match self {
            Engine::Containerd => containerd::without_handler(text),
            Engine::Docker => docker::without_runtime(text),
        }
    }
}

/// What both commands take.
#[derive(clap::Args)]
pub struct Options {
    /// containerd's configuration (the default if neither engine is named)
    #[arg(long)]
    containerd: bool,
    /// Docker's configuration
    #[arg(long)]
    docker: bool,
    /// containerd's configuration file
    #[arg(long, value_name = "PATH", default_value = "/etc/containerd/config.toml")]
    containerd_config: PathBuf,
    /// Docker's configuration file
    #[arg(long, value_name = "PATH", default_value = "/etc/docker/daemon.json")]
    docker_config: PathBuf,
    /// The containerd that says whether it takes the configuration (default: the first in the usual folders)
    #[arg(long, value_name = "PATH")]
    containerd_bin: Option<PathBuf>,
    /// Where the machine's root is mounted; every other path is one of that machine
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
    /// Where the binaries go
    #[arg(long, value_name = "DIR", default_value = "/usr/local/bin")]
    bin_dir: PathBuf,
    /// Only say what would change
    #[arg(long)]
    dry_run: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Fail if the engine cannot be restarted (default: restart it where systemd runs, else say so)
    #[arg(long, conflicts_with = "no_restart")]
    restart: bool,
    /// Leave the engine as it runs
    #[arg(long)]
    no_restart: bool,
}

impl Options {
    fn engines(&self) -> Vec<Engine> {
        let mut engines = Vec::new();
        if self.containerd || !self.docker {
            engines.push(Engine::Containerd);
        }
        if self.docker {
            engines.push(Engine::Docker);
        }
        engines
    }

    fn check(&self) -> Result<()> {
        let given = [&self.containerd_config, &self.docker_config, &self.bin_dir];
        for path in given.into_iter().chain(&self.containerd_bin) {
            ensure!(
                path.is_absolute() && !path.components().any(|c| c == std::path::Component::ParentDir),
                "{} must be an absolute path without ..",
                path.display()
            );
        }
        Ok(())
    }
}

/// A binary that is to be put in its place.
struct Binary {
    path: PathBuf,
    bytes: Vec<u8>,
    upgrade: bool,
}

/// The binaries beside this one that are not on the host yet, or differ.
fn binaries(host: &Host, options: &Options) -> Result<Vec<Binary>> {
    let this = std::env::current_exe().context("find this program's own file")?;
    let mut binaries = Vec::new();
    for name in BINARIES {
        let source = this.with_file_name(name);
        let path = options.bin_dir.join(name);
        let there = files::read(&host.at(&path))?;
        let Some(bytes) = files::read(&source)? else {
            bail!(
                "{} is missing: both binaries must lie in one folder (`make build` puts them into target/release)",
                source.display()
            );
        };
        if there.as_ref() != Some(&bytes) {
            binaries.push(Binary {
                path,
                bytes,
                upgrade: there.is_some(),
            });
        }
    }
    Ok(binaries)
}

/// `diffkeeper install`.
pub fn install(options: &Options) -> Result<ExitCode> {
    options.check()?;
    let host = Host::new(&options.root)?;
    let mut record = Record::load(&host)?;
    let mut report = Report::new(options.dry_run);

    // Everything that can be refused is refused before anything is changed.
    let binaries = binaries(&host, options)?;
    let mut plans = Vec::new();
    for engine in options.engines() {
        let plan = match engine {
            Engine::Containerd => plan::containerd(&host, options)?,
            Engine::Docker => plan::docker(&host, &options.docker_config)?,
        };
        report.notes(&plan.notes);
        plans.extend(plan.write.map(|write| (engine, write)));
    }
    if !options.dry_run {
        apply(&host, &mut record, &binaries, &plans)?;
    }
    for binary in &binaries {
        report.change(if binary.upgrade { "upgrade" } else { "install" }, &binary.path);
    }
    for (_, write) in &plans {
        let before = write.before.as_deref().unwrap_or_default();
        let word = if write.before.is_some() { "edit" } else { "create" };
        report.edit(word, &write.path, before, &write.after);
        if let Some(edit) = record.edits.iter().find(|e| e.path == write.path)
            && let Some(backup) = &edit.backup
        {
            report.note(format!(
                "{} as it was: {}",
                write.path.display(),
                backup.display()
            ));
        }
    }
    let mut due = record.restart_due.clone();
    due.retain(|engine| options.engines().contains(engine));
    if options.dry_run {
        due.extend(plans.iter().map(|(engine, _)| *engine));
    }
    let restarted = restart(&host, options, &mut record, &mut report, &due);
    report.print(options.json)?;
    restarted?;
    Ok(ExitCode::SUCCESS)
}

fn apply(
    host: &Host,
    record: &mut Record,
    binaries: &[Binary],
    plans: &[(Engine, plan::Write)],
) -> Result<()> {
    if binaries.is_empty() && plans.is_empty() {
        return Ok(());
    }
    for folder in binaries
        .iter()
        .map(|b| &b.path)
        .chain(plans.iter().map(|(_, w)| &w.path))
    {
        let folder = folder.parent().unwrap_or(Path::new("/"));
        record.make_folder(host, folder)?;
    }
    let mut staged = Vec::new();
    for binary in binaries {
        staged.push(Staged::new(&host.at(&binary.path), &binary.bytes, 0o755)?);
    }
    for (_, write) in plans {
        staged.push(Staged::new(&host.at(&write.path), write.after.as_bytes(), 0o644)?);
    }
    for binary in binaries {
        record.binaries.insert(binary.path.clone(), sha256(&binary.bytes));
    }
    for (engine, write) in plans {
        record_edit(host, record, *engine, write)?;
    }
    record.save(host)?;
    // The binaries first: a handler without its shim fails every pod.
    staged.into_iter().try_for_each(Staged::commit)?;
    for binary in binaries {
        let path = host.at(&binary.path);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))
            .with_context(|| format!("make {} executable", path.display()))?;
    }
    Ok(())
}

/// Backs the file up, and notes how to undo the edit.
fn record_edit(host: &Host, record: &mut Record, engine: Engine, write: &plan::Write) -> Result<()> {
    let after = sha256(write.after.as_bytes());
    let earlier = record.edits.iter_mut().find(|e| e.path == write.path);
    match (earlier, &write.before) {
        (Some(edit), Some(before)) => {
            let untouched = edit.sha256.as_ref() == Some(&sha256(before.as_bytes()));
            edit.sha256 = untouched.then_some(after);
        }
        (earlier, before) => {
            let backup = match before {
                Some(text) => {
                    let name = files::backup_name(&write.path, |p| host.at(p).exists());
                    files::back_up(&host.at(&write.path), text.as_bytes(), &host.at(&name))?;
                    Some(name)
                }
                None => None,
            };
            let edit = Edit {
                engine,
                path: write.path.clone(),
                sha256: Some(after),
                backup,
            };
            match earlier {
                Some(earlier) => *earlier = edit,
                None => record.edits.push(edit),
            }
        }
    }
    record.restart_due.insert(engine);
    Ok(())
}

/// Restarts what is due, and says so where it cannot.
fn restart(
    host: &Host,
    options: &Options,
    record: &mut Record,
    report: &mut Report,
    due: &BTreeSet<Engine>,
) -> Result<()> {
    for engine in due {
        let [verb, unit] = engine.restart();
        if options.no_restart {
            report.note(format!("the change counts after: systemctl {verb} {unit}"));
        } else if !host.has_systemd() {
            let by_hand = engine.restart_by_hand();
            ensure!(!options.restart, "no systemd runs here: {by_hand}");
            report.note(format!(
                "no systemd runs here: the change counts after you {by_hand}"
            ));
        } else if options.dry_run {
            report.restart(verb, unit);
            continue;
        } else {
            host.restart(*engine)?;
            report.restart(verb, unit);
        }
        // A person has been told, or it is done: only a restart that failed is tried again.
        if !options.dry_run {
            record.restart_due.remove(engine);
            record.save(host)?;
        }
    }
    Ok(())
}

/// `diffkeeper uninstall`.
pub fn uninstall(options: &Options, config: &Path, force: bool) -> Result<ExitCode> {
    options.check()?;
    let host = Host::new(&options.root)?;
    let mut record = Record::load(&host)?;
    let mut report = Report::new(options.dry_run);
    let running = host.processes(SHIM);
    ensure!(
        running == 0 || force,
        "containers still run under {RUNTIME_TYPE} ({running} {SHIM}): stop and remove them first, or say --force; \
         containerd cannot clean up after them without the shim"
    );

    let only = options.containerd || options.docker;
    let engines = options.engines();
    let (undo, keep): (Vec<Edit>, Vec<Edit>) = std::mem::take(&mut record.edits)
        .into_iter()
        .partition(|e| !only || engines.contains(&e.engine));
    record.edits = keep;
    let mut due = record.restart_due.clone();
    due.retain(|engine| !only || engines.contains(engine));
    for edit in undo {
        if undo_edit(&host, &edit, &mut report).with_context(|| format!("undo {}", edit.path.display()))? {
            due.insert(edit.engine);
        }
    }
    // What is left of the other engine still needs the shim.
    if record.edits.is_empty() {
        for (path, hash) in std::mem::take(&mut record.binaries) {
            let at = host.at(&path);
            match files::read(&at)? {
                None => {}
                Some(bytes) if sha256(&bytes) == hash => {
                    report.change("remove", &path);
                    if !options.dry_run {
                        files::remove(&at)?;
                    }
                }
                Some(_) => report.note(format!(
                    "{} is not the one that install put there: left",
                    path.display()
                )),
            }
        }
    }
    if !options.dry_run {
        record.restart_due.extend(&due);
        record.save(&host)?;
    }
    others(&host, options, &record, &mut report)?;
    let restarted = restart(&host, options, &mut record, &mut report, &due);
    if restarted.is_ok() && due.contains(&Engine::Docker) {
        report.note("dockerd knows the runtime until it is restarted".to_owned());
    }
    let live = live_trees(&host, config);
    if host.at(&live).exists() {
        report.note(format!(
            "what containers kept is still in {}: `rm -r` is yours to call",
            live.display()
        ));
    }
    report.print(options.json)?;
    restarted?;
    Ok(ExitCode::SUCCESS)
}

/// Gives a configuration file back as it was, or takes ours out of what a person has made of it since.
/// Whether anything changed.
fn undo_edit(host: &Host, edit: &Edit, report: &mut Report) -> Result<bool> {
    let at = host.at(&edit.path);
    let Some(bytes) = files::read(&at)? else {
        report.note(format!("{} is gone already", edit.path.display()));
        return Ok(false);
    };
    let text = String::from_utf8(bytes).context("it is not UTF-8")?;
    let untouched = edit.sha256.as_ref() == Some(&sha256(text.as_bytes()));
    if untouched && edit.backup.is_none() {
        report.change("remove", &edit.path);
        if !report.dry_run {
            files::remove(&at)?;
        }
        return Ok(true);
    }
    if untouched
        && let Some(backup) = &edit.backup
        && let Some(old) = files::read(&host.at(backup))?
    {
        report.edit("restore", &edit.path, &text, &String::from_utf8_lossy(&old));
        if !report.dry_run {
            files::put_back(&host.at(backup), &at)?;
        }
        return Ok(true);
    }
    let rest = match edit.engine.without(&text)? {
        Without::Same => {
            report.note(format!("{} has no handler of ours any more", edit.path.display()));
            return Ok(false);
        }
        Without::Empty if edit.backup.is_none() => {
            report.change("remove", &edit.path);
            if !report.dry_run {
                files::remove(&at)?;
            }
            return Ok(true);
        }
        Without::Empty => String::new(),
        Without::Text(rest) => rest,
    };
    report.edit("edit", &edit.path, &text, &rest);
    if !report.dry_run {
        Staged::new(&at, rest.as_bytes(), 0o644)?.commit()?;
    }
    if let Some(backup) = &edit.backup {
        report.note(format!(
            "{} was changed since: only the handler is taken out; as it was before: {}",
            edit.path.display(),
            backup.display()
        ));
    }
    Ok(true)
}

/// Names handlers that install did not write, and leaves them.
fn others(host: &Host, options: &Options, record: &Record, report: &mut Report) -> Result<()> {
    for (engine, path) in [
        (Engine::Containerd, &options.containerd_config),
        (Engine::Docker, &options.docker_config),
    ] {
        if record.edits.iter().any(|e| &e.path == path) || report.has(path) {
            continue;
        }
        let text = files::read(&host.at(path))?
            .and_then(|b| String::from_utf8(b).ok())
            .unwrap_or_default();
        if engine.without(&text).is_ok_and(|w| w != Without::Same) {
            report.note(format!(
                "{} has a handler that install did not write: left",
                path.display()
            ));
        }
    }
    Ok(())
}

fn live_trees(host: &Host, config: &Path) -> PathBuf {
    std::fs::read_to_string(host.at(config))
        .ok()
        .and_then(|text| Config::parse(&text).ok())
        .unwrap_or_default()
        .root
}
