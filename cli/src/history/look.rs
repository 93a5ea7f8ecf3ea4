//! Looking at what was recorded.

use std::{
    io::{IsTerminal, Write},
    process::ExitCode,
};

use anyhow::{Context, Result};
use keeper_api::keeper::{keeper as api, keeper_ttrpc::KeeperClient};
use protobuf::MessageField;
use runtime_spec::config::Config;
use serde_json::{Value, json};

use super::client::{patient, said, version, with_keeper};
use crate::table;

/// A time in this machine's zone, to the millisecond where asked.
pub fn time(nanos: i64) -> String {
    let Ok(at) = jiff::Timestamp::from_nanosecond(nanos.into()) else {
        return "?".into();
    };
    at.to_zoned(jiff::tz::TimeZone::system())
        .strftime("%Y-%m-%d %H:%M:%S%.3f")
        .to_string()
}

/// A commit, as scripts have it.
pub fn commit_json(commit: &api::Commit) -> Value {
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    json!({
        "id": commit.id,
        "state": commit.state,
        "sequence": commit.sequence,
        "time_ns": commit.time,
        "previous": some(&commit.previous),
        "origin": some(&commit.origin),
        "origin_state": some(&commit.origin_state),
        "tree": commit.tree,
        "node": commit.node,
        "image": some(&commit.image),
        "consistency": commit.consistency,
        "reason": commit.reason,
        "message": commit.message,
        "tags": commit.tags,
        "entries": commit.entries,
        "changed": commit.changed,
        "bytes_read": commit.read,
        "bytes_written": commit.written,
        "pause_ns": commit.pause_ns,
        "doubt": some(&commit.doubt),
        "watcher": some(&commit.watcher),
        "given_up": some(&commit.given_up),
    })
}

/// The first digits of a commit's name.
pub fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}

/// The commit that a version means.
pub async fn resolve(client: &KeeperClient, of: &str) -> Result<api::Commit> {
    let request = api::LogRequest {
        from: MessageField::some(version(of)),
        limit: 1,
        ..api::LogRequest::default()
    };
    let response = said(client.log(patient(), &request).await)?;
    response
        .commits
        .into_iter()
        .next()
        .context("there is no such commit")
}

/// Shows one commit.
pub fn show(config: &Config, of: &str, as_json: bool) -> Result<ExitCode> {
    let commit = with_keeper(config, async |client| resolve(&client, of).await)?;
    if as_json {
        println!("{}", serde_json::to_string_pretty(&commit_json(&commit))?);
        return Ok(ExitCode::SUCCESS);
    }
    let line = |name: &str, value: &str| {
        if !value.is_empty() {
            println!("{name:<12} {value}");
        }
    };
    line("commit", &commit.id);
    line(
        "state",
        &format!("{}, its {}. commit", commit.state, commit.sequence),
    );
    line("tags", &commit.tags.join(", "));
    line("time", &time(commit.time));
    line("why", &commit.reason);
    line(
        "how",
        &match commit.pause_ns {
            0 => commit.consistency.clone(),
            pause => format!(
                "{}, the container stood still for {:.1} ms",
                commit.consistency,
                pause as f64 / 1e6
            ),
        },
    );
    line("doubt", &commit.doubt);
    line("watcher", &commit.watcher);
    line("message", &commit.message);
    line("node", &commit.node);
    line("image", &commit.image);
    line("previous", &commit.previous);
    line(
        "origin",
        &match commit.origin_state.as_str() {
            "" => commit.origin.clone(),
            state => format!("{state}@{}", commit.origin),
        },
    );
    line("tree", &commit.tree);
    line(
        "entries",
        &format!("{}, {} of them changed", commit.entries, commit.changed),
    );
    line(
        "bytes",
        &format!(
            "{} read, {} added",
            table::bytes(commit.read),
            table::bytes(commit.written)
        ),
    );
    line("given up", &commit.given_up);
    Ok(ExitCode::SUCCESS)
}

/// A path for a person: what would upset a terminal is escaped.
pub fn path(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.chars().any(char::is_control) => text.to_owned(),
        _ => bytes.escape_ascii().to_string(),
    }
}

fn mode(entry: &api::Entry) -> String {
    let letter = match entry.kind.as_str() {
        "directory" => 'd',
        "symlink" => 'l',
        "fifo" => 'p',
        "character" => 'c',
        "block" => 'b',
        "whiteout" => 'w',
        "link" => 'h',
        _ => '-',
    };
    let mut text = String::from(letter);
    for (shift, special, set, unset) in [
        (6, 0o4000, 's', 'S'),
        (3, 0o2000, 's', 'S'),
        (0, 0o1000, 't', 'T'),
    ] {
        let bits = entry.mode >> shift;
        text.push(if bits & 4 == 0 { '-' } else { 'r' });
        text.push(if bits & 2 == 0 { '-' } else { 'w' });
        text.push(match (bits & 1 != 0, entry.mode & special != 0) {
            (true, true) => set,
            (false, true) => unset,
            (true, false) => 'x',
            (false, false) => '-',
        });
    }
    text
}

/// An entry, as scripts have it.
pub fn entry_json(entry: &api::Entry) -> Value {
    json!({
        "path": String::from_utf8_lossy(&entry.path),
        "root": entry.root,
        "kind": entry.kind,
        "mode": format!("{:04o}", entry.mode),
        "uid": entry.uid,
        "gid": entry.gid,
        "size": entry.size,
        "mtime": entry.mtime,
        "mtime_nanos": entry.mtime_nanos,
        "target": (!entry.target.is_empty()).then(|| String::from_utf8_lossy(&entry.target).into_owned()),
        "opaque": entry.opaque,
    })
}

/// Lists what a version holds.
pub fn ls(config: &Config, of: &str, below: &str, recursive: bool, as_json: bool) -> Result<ExitCode> {
    // Without a path all that there is: what a container wrote is not spread evenly over a tree.
    let recursive = recursive || below.is_empty();
    let mut entries = Vec::new();
    with_keeper(config, async |client| {
        let mut request = api::ListRequest {
            version: MessageField::some(version(of)),
            path: below.as_bytes().to_vec(),
            recursive,
            ..api::ListRequest::default()
        };
        loop {
            let response = said(client.list(patient(), &request).await)?;
            entries.extend(response.entries);
            let Some(last) = entries.last().filter(|_| response.more) else {
                return Ok(());
            };
            request.after_key = last.key.clone();
        }
    })?;
    if as_json {
        let all: Vec<Value> = entries.iter().map(entry_json).collect();
        println!("{}", serde_json::to_string_pretty(&all)?);
        return Ok(ExitCode::SUCCESS);
    }
    let rows: Vec<Vec<String>> = entries
        .iter()
        .map(|entry| {
            let target = match entry.kind.as_str() {
                "symlink" => format!(" -> {}", path(&entry.target)),
                "link" => format!(" = /{}", path(&entry.target)),
                "whiteout" => " (gone: the image has it)".into(),
                _ => String::new(),
            };
            vec![
                mode(entry),
                format!("{}:{}", entry.uid, entry.gid),
                entry.size.to_string(),
                time(entry.mtime.saturating_mul(1_000_000_000)),
                path(&entry.path) + &target,
            ]
        })
        .collect();
    table::print(&["MODE", "OWNER", "SIZE", "MODIFIED", "PATH"], &rows);
    Ok(ExitCode::SUCCESS)
}

/// A whole file.
pub async fn read(
    client: &KeeperClient,
    of: api::Version,
    at: &[u8],
    mut each: impl FnMut(&[u8]) -> Result<bool>,
) -> Result<()> {
    let mut request = api::ReadRequest {
        version: MessageField::some(of),
        path: at.to_vec(),
        ..api::ReadRequest::default()
    };
    loop {
        let response = said(client.read(patient(), &request).await)?;
        request.offset += response.data.len() as u64;
        if !each(&response.data)? || request.offset >= response.size || response.data.is_empty() {
            return Ok(());
        }
    }
}

/// Prints a file.
pub fn cat(config: &Config, of: &str, at: &str) -> Result<ExitCode> {
    with_keeper(config, async |client| {
        let mut out = std::io::stdout().lock();
        let terminal = out.is_terminal();
        // What is read meanwhile must not change what a moving version means.
        let commit = resolve(&client, of).await?;
        let pinned = api::Version {
            state: commit.state,
            version: commit.id,
            ..api::Version::default()
        };
        read(&client, pinned, at.as_bytes(), |bytes| {
            if terminal && bytes.contains(&0) {
                anyhow::bail!("{at} is not text: send it to a file");
            }
            match out.write_all(bytes) {
                Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
                done => done.context("write").map(|()| true),
            }
        })
        .await
    })?;
    Ok(ExitCode::SUCCESS)
}
