//! Changing history's end, and looking after the store.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result, bail};
use keeper_api::keeper::keeper as api;
use protobuf::MessageField;
use runtime_spec::config::Config;
use serde_json::json;
use store::tree::Proof;

use super::{
    Restore, change,
    client::{patient, said, version, with_keeper},
    export,
    look::{commit_json, path, resolve, short, time},
    progress::long,
};
use crate::table;

fn told(what: &str, commit: &api::Commit, as_json: bool) -> Result<ExitCode> {
    if as_json {
        println!("{}", serde_json::to_string_pretty(&commit_json(commit))?);
    } else {
        println!(
            "{what} {}@{} ({})",
            commit.state,
            short(&commit.id),
            time(commit.time)
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// Records a state now.
pub fn commit(
    config: &Config,
    state: &str,
    message: &str,
    tag: Option<&str>,
    as_json: bool,
) -> Result<ExitCode> {
    let made = with_keeper(config, async |client| {
        let request = api::CommitRequest {
            state: state.into(),
            message: message.into(),
            ..api::CommitRequest::default()
        };
        let made = long(&client, async |context| client.commit(context, &request).await)
            .await?
            .commit
            .unwrap_or_default();
        let Some(tag) = tag else { return Ok(made) };
        let request = api::TagRequest {
            version: MessageField::some(version(&format!("{}@{}", made.state, made.id))),
            name: tag.into(),
            ..api::TagRequest::default()
        };
        Ok(said(client.tag(patient(), &request).await)?
            .commit
            .unwrap_or_default())
    })?;
    told("recorded", &made, as_json)
}

/// Names a version.
pub fn tag(config: &Config, of: &str, name: &str, delete: bool) -> Result<ExitCode> {
    let commit = with_keeper(config, async |client| {
        let request = api::TagRequest {
            version: MessageField::some(version(of)),
            name: name.into(),
            remove: delete,
            ..api::TagRequest::default()
        };
        Ok(said(client.tag(patient(), &request).await)?
            .commit
            .unwrap_or_default())
    })?;
    if delete {
        println!("{} has no tag {name} any more", commit.state);
        return Ok(ExitCode::SUCCESS);
    }
    told(&format!("{name} is"), &commit, false)
}

/// Goes back.
pub fn restore(config: &Config, how: &Restore) -> Result<ExitCode> {
    if let Some(to) = &how.to {
        return export::directory(config, &how.version, to, how.path.as_deref().unwrap_or(""));
    }
    if how.dry_run {
        let state = how
            .version
            .split_once('@')
            .map_or(how.version.as_str(), |(state, _)| state);
        return change::diff(config, state, Some(&how.version), false, false, how.json);
    }
    let request = api::RestoreRequest {
        version: MessageField::some(version(&how.version)),
        path: how.path.as_deref().unwrap_or_default().as_bytes().to_vec(),
        cancel: how.cancel,
        now: how.now,
        grace_ms: how.grace,
        ..api::RestoreRequest::default()
    };
    if how.cancel {
        with_keeper(config, async |client| {
            long(&client, async |context| client.restore(context, &request).await).await
        })?;
        if how.json {
            let value =
                json!({"before": null, "after": null, "waits_for_next_start": false, "restarted": false});
            println!("{}", serde_json::to_string_pretty(&value)?);
        } else {
            println!("The next start of {} begins with what is there.", how.version);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let done = with_keeper(config, async |client| {
        long(&client, async |context| client.restore(context, &request).await).await
    })?;
    match done.after.as_ref() {
        Some(after) if done.restarted && !how.json => {
            println!(
                "restored {}: its container was started again with {}\ndiffkeeper undo {} goes back",
                after.state, after.message, after.state
            );
            Ok(ExitCode::SUCCESS)
        }
        None if how.now && !how.json => {
            println!(
                "The container was ended; its owner has not started it again yet. Its next start begins with that version."
            );
            Ok(ExitCode::SUCCESS)
        }
        _ => restored(&done, how.json),
    }
}

fn restored(done: &api::RestoreResponse, as_json: bool) -> Result<ExitCode> {
    if as_json {
        let value = json!({
            "before": done.before.as_ref().map(commit_json),
            "after": done.after.as_ref().map(commit_json),
            "waits_for_next_start": done.waits,
            "restarted": done.restarted,
        });
        println!("{}", serde_json::to_string_pretty(&value)?);
        return Ok(ExitCode::SUCCESS);
    }
    let before = done.before.get_or_default();
    match done.after.as_ref() {
        Some(after) => {
            println!(
                "restored {}: its next start begins with {}\nwhat was there is {}@{}; diffkeeper undo {} goes back to it",
                after.state,
                after.message,
                before.state,
                short(&before.id),
                after.state
            );
            if !after.image.is_empty() && !before.image.is_empty() && after.image != before.image {
                println!(
                    "that version stood on the image {}, and what was there on {}: with another image than its own the next \
                     start does what diffkeeper.io/on-image-change says",
                    after.image, before.image
                );
            }
        }
        None => println!(
            "{} is in use: its next start begins with that version. Restart the container, or call it off with diffkeeper \
             restore --cancel {}",
            before.state, before.state
        ),
    }
    Ok(ExitCode::SUCCESS)
}

/// Takes the last restore back.
pub fn undo(config: &Config, state: &str, as_json: bool) -> Result<ExitCode> {
    let done = with_keeper(config, async |client| {
        let mut at = resolve(&client, state).await?;
        while at.reason != "restore" {
            if at.previous.is_empty() {
                bail!("{} was never restored: there is nothing to undo", at.state);
            }
            at = resolve(&client, &format!("{}@{}", at.state, at.previous)).await?;
        }
        let request = api::RestoreRequest {
            version: MessageField::some(version(&format!("{}@{}", at.state, at.previous))),
            ..api::RestoreRequest::default()
        };
        long(&client, async |context| client.restore(context, &request).await).await
    })?;
    restored(&done, as_json)
}

/// Begins a state with a version of another.
pub fn fork(config: &Config, of: &str, name: &str, as_json: bool) -> Result<ExitCode> {
    let made = with_keeper(config, async |client| {
        let request = api::ForkRequest {
            version: MessageField::some(version(of)),
            name: name.into(),
            ..api::ForkRequest::default()
        };
        Ok(said(client.fork(patient(), &request).await)?
            .commit
            .unwrap_or_default())
    })?;
    told("made", &made, as_json)
}

/// Brings something in from outside.
pub fn import(
    config: &Config,
    state: &str,
    from: &Path,
    volumes: &[String],
    replace: bool,
    as_json: bool,
) -> Result<ExitCode> {
    let from = std::fs::canonicalize(from).with_context(|| format!("find {}", from.display()))?;
    let made = with_keeper(config, async |client| {
        let request = api::ImportRequest {
            state: state.into(),
            from: from.to_str().context("its name is not UTF-8")?.into(),
            replace,
            volumes: volumes.to_vec(),
            ..api::ImportRequest::default()
        };
        let made = long(&client, async |context| client.import(context, &request).await).await?;
        Ok(made.commit.unwrap_or_default())
    })?;
    told("made", &made, as_json)
}

/// Verifies the store.
pub fn verify(config: &Config, percent: u32, as_json: bool) -> Result<ExitCode> {
    let done = with_keeper(config, async |client| {
        let request = api::VerifyRequest {
            percent,
            ..api::VerifyRequest::default()
        };
        long(&client, async |context| client.verify(context, &request).await).await
    })?;
    let well = done.problems.is_empty();
    if as_json {
        let problems: Vec<_> = done
            .problems
            .iter()
            .map(|problem| json!({"what": problem.what, "needed_by": problem.needed_by}))
            .collect();
        let value = json!({"commits": done.commits, "objects": done.objects, "bytes_read": done.read, "problems": problems});
        println!("{}", serde_json::to_string_pretty(&value)?);
    } else {
        for problem in &done.problems {
            println!("{}", problem.what);
            for place in &problem.needed_by {
                println!("    {place}");
            }
        }
        println!(
            "{} commits, {} objects, {} read: {}",
            done.commits,
            done.objects,
            table::bytes(done.read),
            match done.problems.len() {
                0 => "all is well".to_owned(),
                n => format!("{n} problems"),
            }
        );
    }
    Ok(if well {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(crate::exit::PROBLEMS)
    })
}

/// Gets space back; `recompact` names the state whose chunks are stored in fewer bytes before, or none for all.
pub fn gc(
    config: &Config,
    (dry_run, erase): (bool, bool),
    recompact: Option<Option<&str>>,
    as_json: bool,
) -> Result<ExitCode> {
    let done = with_keeper(config, async |client| {
        let request = api::GcRequest {
            dry_run,
            recompact: recompact.is_some(),
            erase,
            state: recompact.flatten().unwrap_or_default().into(),
            ..api::GcRequest::default()
        };
        long(&client, async |context| client.gc(context, &request).await).await
    })?;
    if as_json {
        let value = json!({
            "recompacted": done.recompacted, "recompacted_before": done.bytes_before,
            "recompacted_after": done.bytes_after, "commits_given_up": done.expired, "objects": done.objects, "bytes_freed": done.freed,
            "bytes_copied": done.copied, "packs": done.packs, "left": done.left,
            "dry_run": dry_run,
        });
        println!("{}", serde_json::to_string_pretty(&value)?);
    } else {
        if recompact.is_some() {
            println!(
                "{} chunks written again: {} instead of {}",
                done.recompacted,
                table::bytes(done.bytes_after),
                table::bytes(done.bytes_before)
            );
        }
        println!(
            "{}{} commits give up their content; {} unneeded objects; {} freed, {} copied for it, {} packs",
            if dry_run { "would: " } else { "" },
            done.expired,
            done.objects,
            table::bytes(done.freed),
            table::bytes(done.copied),
            done.packs
        );
    }
    all_erased(done.left)
}

/// Fails where something was to be erased and stays.
fn all_erased(left: u64) -> Result<ExitCode> {
    if left > 0 {
        bail!(
            "{left} objects that were to be erased are in the store still: what was recorded meanwhile needs them or stands on \
             them, each time anew; `diffkeeper gc --erase` goes on with it when less is recorded"
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// Walks a chain.
pub fn audit(config: &Config, state: &str, keys: &[PathBuf], as_json: bool) -> Result<ExitCode> {
    let keys: Result<Vec<String>> = keys
        .iter()
        .map(|file| std::fs::read_to_string(file).with_context(|| format!("read {}", file.display())))
        .collect();
    let public_keys = keys?;
    let checked = !public_keys.is_empty();
    let done = with_keeper(config, async |client| {
        let request = api::AuditRequest {
            state: state.into(),
            public_keys,
            ..api::AuditRequest::default()
        };
        long(&client, async |context| client.audit(context, &request).await).await
    })?;
    if as_json {
        let mut value = json!({
            "commits": done.commits, "head": done.head, "given_up": done.given_up, "lost": done.lost,
        });
        if checked {
            value["signed"] = json!(done.signed);
            value["unsigned_count"] = json!(done.unsigned_count);
            value["unsigned"] = json!(done.unsigned);
        }
        println!("{}", serde_json::to_string_pretty(&value)?);
    } else {
        println!(
            "{} commits up to {}: each is what the next one calls it; {} have given up their content",
            done.commits,
            short(&done.head),
            done.given_up
        );
        if checked {
            println!("{} are signed, {} are not", done.signed, done.unsigned_count);
            for id in &done.unsigned {
                println!("    unsigned: {}", short(id));
            }
        }
        if done.lost > 0 {
            println!(
                "a repair found nothing of {} of them: the chain is not proven across those",
                done.lost
            );
        }
    }
    Ok(if checked && done.unsigned_count > 0 {
        ExitCode::from(crate::exit::UNSIGNED)
    } else {
        ExitCode::SUCCESS
    })
}

/// Makes a key.
pub fn keygen(file: &Path) -> Result<ExitCode> {
    let public = store::Signer::make(file)?;
    println!(
        "{} signs: `signing-key` under [history] in the configuration; {} is for whoever audits",
        file.display(),
        public.display()
    );
    Ok(ExitCode::SUCCESS)
}

/// Prints a proof.
pub fn prove(config: &Config, of: &str, at: &str) -> Result<ExitCode> {
    let done = with_keeper(config, async |client| {
        let request = api::ProveRequest {
            version: MessageField::some(version(of)),
            path: at.as_bytes().to_vec(),
            ..api::ProveRequest::default()
        };
        said(client.prove(patient(), &request).await)
    })?;
    std::io::stdout()
        .write_all(&done.proof)
        .context("write the proof")?;
    eprintln!("{} bytes: {at} is in commit {}", done.proof.len(), done.commit);
    Ok(ExitCode::SUCCESS)
}

/// Checks a proof.
pub fn check_proof(file: &Path, expected: Option<&str>) -> Result<ExitCode> {
    let bytes = std::fs::read(file).with_context(|| format!("read {}", file.display()))?;
    let (id, commit, entry) = Proof::read(&bytes)?.check()?;
    if let Some(expected) = expected
        && !(expected.len() >= 8 && id.to_string().starts_with(&expected.to_ascii_lowercase()))
    {
        bail!("it is of commit {id}, not of {expected}");
    }
    println!(
        "{} ({} bytes) is in commit {id} of {} ({})",
        path(store::format::Shown(&entry.key).to_string().as_bytes()),
        entry.size,
        commit.state,
        time(commit.time)
    );
    if expected.is_none() {
        println!("that this is the commit that you mean, only its name can tell: --commit");
    }
    Ok(ExitCode::SUCCESS)
}

/// Forgets a state's history; its live tree is another matter.
pub fn forget(config: &Config, state: &str, yes: bool, erase: bool) -> Result<ExitCode> {
    if !yes {
        bail!("forgetting the history of {state} cannot be undone: say --yes");
    }
    let done = with_keeper(config, async |client| {
        let request = api::ForgetRequest {
            state: state.into(),
            erase,
            ..api::ForgetRequest::default()
        };
        long(&client, async |context| client.forget(context, &request).await).await
    })?;
    println!("Forgot the history of {state}.");
    if erase {
        println!("{} came back to the disk.", table::bytes(done.freed));
    }
    all_erased(done.left)
}

/// What the store holds, and how its chunks are stored, or a state's.
pub fn stats(config: &Config, state: Option<&str>, as_json: bool) -> Result<ExitCode> {
    let request = api::StatsRequest {
        state: state.unwrap_or_default().to_owned(),
        ..api::StatsRequest::default()
    };
    let done = with_keeper(config, async |client| {
        said(client.stats(patient(), &request).await)
    })?;
    if as_json {
        let forms: Vec<_> = done
            .forms
            .iter()
            .map(|form| {
                json!({
                    "encoding": form.encoding, "chunks": form.chunks, "content_bytes": form.content_bytes,
                    "stored_bytes": form.stored_bytes, "steps": form.steps,
                    "cpu_ns": form.spent_ns,
                })
            })
            .collect();
        let value = json!({
            "states": done.states, "commits": done.commits, "packs": done.packs, "pack_bytes": done.pack_bytes,
            "objects": done.objects, "chunks": done.chunks, "content_bytes": done.content_bytes,
            "stored_bytes": done.stored_bytes, "free_bytes": done.free_bytes, "forms": forms,
        });
        println!("{}", serde_json::to_string_pretty(&value)?);
        return Ok(ExitCode::SUCCESS);
    }
    if state.is_none() {
        table::print(
            &["", ""],
            &[
                vec!["states".into(), done.states.to_string()],
                vec!["commits".into(), done.commits.to_string()],
                vec!["different content".into(), table::bytes(done.content_bytes)],
                vec!["takes".into(), table::bytes(done.stored_bytes)],
                vec![
                    "packs".into(),
                    format!("{}, {}", done.packs, table::bytes(done.pack_bytes)),
                ],
                vec!["free on the disk".into(), table::bytes(done.free_bytes)],
            ],
        );
        println!();
    }
    let per = |all: u64, of: u64| all as f64 / of.max(1) as f64;
    let rows: Vec<_> = done
        .forms
        .iter()
        .map(|form| {
            vec![
                form.encoding.clone(),
                form.chunks.to_string(),
                table::bytes(form.content_bytes),
                table::bytes(form.stored_bytes),
                format!("{:.1}", per(form.content_bytes, form.stored_bytes)),
                format!("{:.1}", per(form.steps, form.chunks)),
                format!("{:.2}s", form.spent_ns as f64 / 1e9),
            ]
        })
        .collect();
    table::print(
        &[
            "ENCODING",
            "CHUNKS",
            "CONTENT",
            "TAKES",
            "RATIO",
            "READ BEFORE",
            "CPU",
        ],
        &rows,
    );
    Ok(ExitCode::SUCCESS)
}
