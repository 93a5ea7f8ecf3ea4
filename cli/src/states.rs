//! `diffkeeper states`, `rm` and `prune`.

use std::{
    collections::BTreeSet,
    io::{IsTerminal, Write},
    process::ExitCode,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail};
use keeper::Reclaimed;
use live::{Node, Quota, StateInfo};
use runtime_spec::{
    config::Config,
    name::{StateName, TailError, resolve_tail},
};
use serde_json::json;

use crate::{history, table};

fn open(config: &Config) -> Result<Node> {
    Node::open(&config.root).context("the live trees are root's: run this as root?")
}

fn seconds(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Lists every state: those with a live tree, then those of which only a history is left.
pub fn list(config: &Config, as_json: bool) -> Result<ExitCode> {
    let node = open(config)?;
    let now = SystemTime::now();
    let histories = history::histories(config);
    let mut orphans = histories.unwrap_or_default();
    let mut rows = Vec::new();
    let mut objects = Vec::new();
    let unused = || "-".to_owned();
    for info in node.states()? {
        let size = info.size()?;
        let last_used = info.last_used();
        let expires = info.expires_at();
        let chosen = info.record.as_ref().map(|r| r.chosen);
        let history = orphans.remove(&info.name.to_string());
        let quota = info.quota();
        if as_json {
            objects.push(json!({
                "name": info.name.to_string(),
                "live": true,
                "bytes": size.allocated,
                "apparent_bytes": size.apparent,
                "entries": size.entries,
                "limit": quota.map(|quota| quota.limit),
                "limited": quota.is_some_and(|quota| quota.used.is_some()),
                "uncounted_bytes": info.uncounted()?,
                "last_used": last_used.map(seconds),
                "in_use_by": info.in_use_by.as_ref().map(|h| json!({
                    "container": h.container_id, "namespace": h.namespace, "pid": h.init.map(|i| i.pid),
                })),
                "name_chosen": chosen,
                "expires": expires.map(seconds),
                "failed_starts": info.record.as_ref().map(|r| r.failed_starts),
                "roots": info.roots().iter().map(|(root, mounted)| json!({
                    "path": root.destination().to_string_lossy(), "kind": root.kind(), "mounted": mounted,
                })).collect::<Vec<_>>(),
                "commits": history.as_ref().map(|history| history.commits),
                "newest_commit_ns": history.as_ref().map(|history| history.newest),
            }));
        } else {
            let mut row = vec![
                info.name.to_string(),
                taken(size.allocated, quota) + &outside(&info)?,
                last_used.map_or_else(unused, |at| table::relative(at, now)),
                info.in_use_by
                    .as_ref()
                    .map_or_else(unused, |h| h.container_id.clone()),
                chosen
                    .map_or("?", |c| if c { "chosen" } else { "generated" })
                    .to_owned(),
                expires.map_or_else(|| "never".to_owned(), |at| table::relative(at, now)),
            ];
            row.extend(told(history.as_ref(), now));
            rows.push(row);
            // What the last life did not mount is still there, and still takes room.
            for (root, _) in info.roots().iter().filter(|(_, mounted)| !mounted) {
                let told = format!(
                    "  {} ({}, not mounted)",
                    root.destination().display(),
                    root.kind()
                );
                rows.push(vec![told]);
            }
        }
    }
    for (name, history) in orphans {
        if as_json {
            objects.push(json!({
                "name": name, "live": false, "bytes": 0, "apparent_bytes": 0, "entries": 0, "limit": null, "limited": false, "uncounted_bytes": null, "last_used": null,
                "in_use_by": null, "name_chosen": null, "expires": null, "failed_starts": null, "roots": [],
                "commits": history.commits, "newest_commit_ns": history.newest,
            }));
        } else {
            let mut row = vec![
                name,
                "no live tree".into(),
                unused(),
                unused(),
                unused(),
                unused(),
            ];
            row.extend(told(Some(&history), now));
            rows.push(row);
        }
    }
    if as_json {
        println!("{}", serde_json::to_string_pretty(&objects)?);
    } else if rows.is_empty() {
        println!("Nothing is kept yet. Run a container with --runtime io.containerd.diffkeeper.v1");
    } else {
        table::print(
            &[
                "STATE",
                "SIZE",
                "LAST USED",
                "IN USE BY",
                "NAME",
                "EXPIRES",
                "COMMITS",
                "NEWEST",
            ],
            &rows,
        );
        print_totals(config, &node)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What the namespaces take that may take so much.
fn print_totals(config: &Config, node: &Node) -> Result<()> {
    let states = node.states()?;
    let names = states.iter().map(|info| &info.name);
    let namespaces: BTreeSet<_> = names
        .map(|name| (name.engine_namespace(), name.namespace()))
        .collect();
    for (whole, namespace) in namespaces {
        if let Some(limit) = config.total_limit_of(namespace) {
            let taken = node.total(whole, None)?.bytes;
            println!(
                "namespace {whole}: {} of {}{}",
                table::bytes(taken),
                table::bytes(limit),
                if taken >= limit {
                    ", no new state begins in it"
                } else {
                    ""
                }
            );
        }
    }
    Ok(())
}

/// What a live tree takes, and may take.
fn taken(bytes: u64, quota: Option<Quota>) -> String {
    match quota {
        None => table::bytes(bytes),
        Some(Quota {
            limit,
            used: Some(used),
        }) => format!("{} of {}", table::bytes(used), table::bytes(limit)),
        Some(Quota { limit, used: None }) => {
            format!("{} of {}, not enforced", table::bytes(bytes), table::bytes(limit))
        }
    }
}

/// What of it escapes its limit.
fn outside(info: &StateInfo) -> Result<String> {
    let more = info.uncounted()?;
    Ok(more.map_or_else(String::new, |more| {
        format!(", {} not counted", table::bytes(more))
    }))
}

/// How many commits, and when the newest was made.
fn told(history: Option<&history::History>, now: SystemTime) -> [String; 2] {
    let Some(history) = history else {
        return ["-".to_owned(), "-".to_owned()];
    };
    let newest = UNIX_EPOCH + Duration::from_nanos(history.newest.max(0).unsigned_abs());
    [history.commits.to_string(), table::relative(newest, now)]
}

/// The state that this end of a name means.
fn resolve(states: &[StateInfo], tail: &str) -> Result<StateName> {
    let names: Vec<&StateName> = states.iter().map(|s| &s.name).collect();
    match resolve_tail(names.iter().copied(), tail) {
        Ok(name) => Ok(name.clone()),
        Err(TailError::NotFound) => Err(crate::exit::NotFound(format!(
            "there is no state {tail:?}: `diffkeeper states` lists them"
        ))
        .into()),
        Err(TailError::Ambiguous(candidates)) => {
            let list: Vec<String> = candidates.iter().map(ToString::to_string).collect();
            bail!(
                "{tail:?} may be any of {}: write more of the name",
                list.join(", ")
            )
        }
    }
}

/// Forgets one state; with `history` that too, and for true erases it.
pub fn remove(config: &Config, tail: &str, yes: bool, history: Option<bool>) -> Result<ExitCode> {
    let node = open(config)?;
    let states = node.states()?;
    let name = match resolve(&states, tail) {
        Ok(name) => name,
        // Only its history is left.
        Err(_) if history.is_some() => {
            return crate::history::forget(config, tail, yes, history == Some(true));
        }
        Err(error) => return Err(error),
    };
    if !yes {
        let size = states
            .iter()
            .find(|s| s.name == name)
            .map(StateInfo::size)
            .transpose()?
            .unwrap_or_default();
        if !std::io::stdin().is_terminal() {
            bail!("removing {name} cannot be undone: say --yes to do it without being asked");
        }
        print!(
            "Forget {name} and the {} in it? This cannot be undone. [y/N] ",
            table::bytes(size.allocated)
        );
        std::io::stdout().flush()?;
        let mut answer = String::new();
        std::io::stdin().read_line(&mut answer)?;
        if !matches!(answer.trim(), "y" | "Y" | "yes") {
            println!("Nothing was removed.");
            return Ok(ExitCode::FAILURE);
        }
    }
    let removed = node.remove(&name)?;
    println!("Removed {name}: {} entries.", removed.entries);
    match history {
        Some(erase) => crate::history::forget(config, &name.to_string(), true, erase),
        None => Ok(ExitCode::SUCCESS),
    }
}

/// Forgets what has expired.
pub fn prune(config: &Config, dry_run: bool, as_json: bool) -> Result<ExitCode> {
    let node = open(config)?;
    let mut due = Vec::new();
    for info in node.due(SystemTime::now())? {
        let size = info.size()?;
        let outcome = if dry_run {
            Ok(())
        } else {
            node.remove(&info.name).map(drop)
        };
        due.push(Reclaimed {
            name: info.name.to_string(),
            tree: Some(size.allocated),
            // One state that a container has just taken must not keep the others.
            problem: outcome.err().map(|e| e.to_string()),
            commits: None,
        });
    }
    // The live trees are gone by now, or were named; histories go after them.
    let histories = history::reclaim(config, dry_run);
    let mut failed = histories.is_err();
    match histories {
        Ok(histories) => due.extend(histories.into_iter().filter(|one| one.commits.is_some())),
        Err(error) => eprintln!("what has expired of histories cannot be told: {error:#}"),
    }
    failed |= due.iter().any(|one| one.problem.is_some());
    let mut objects = Vec::new();
    for Reclaimed {
        name,
        tree,
        commits,
        problem,
    } in &due
    {
        if as_json {
            objects.push(json!({
                "name": name, "bytes": tree.unwrap_or(0), "commits": commits,
                "removed": !dry_run && problem.is_none(), "problem": problem,
            }));
            continue;
        }
        let what = match commits {
            Some(commits) => format!("the history of {name} ({commits} commits)"),
            None => format!("{name} ({})", table::bytes(tree.unwrap_or(0))),
        };
        match problem {
            Some(problem) => eprintln!("{name}: {problem}"),
            None => println!("{} {what}", if dry_run { "would remove" } else { "removed" }),
        }
    }
    let leftovers = if dry_run {
        node.leftovers()?
    } else {
        node.empty_trash()?
    };
    if as_json {
        println!(
            "{}",
            serde_json::to_string_pretty(&json!({"states": objects, "leftovers": leftovers}))?
        );
    } else if due.is_empty() && leftovers == 0 {
        println!("Nothing is due.");
    } else if leftovers > 0 {
        println!(
            "{} {leftovers} tree{} that a crash left behind",
            if dry_run { "would delete" } else { "deleted" },
            if leftovers == 1 { "" } else { "s" }
        );
    }
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}
