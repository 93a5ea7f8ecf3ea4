//! What changed: between two versions, and over time.

use std::process::ExitCode;

use anstyle::Style;
use anyhow::Result;
use keeper_api::keeper::{keeper as api, keeper_ttrpc::KeeperClient};
use protobuf::MessageField;
use runtime_spec::config::Config;
use serde_json::json;

use super::{
    client::{patient, said, with_keeper},
    log::moment,
    look::{entry_json, path, read, resolve, short, time},
};
use crate::{
    table,
    terminal::{ADDED, CHANGED, COMMIT, NAME, REMOVED, paint},
};

/// The longest text whose lines are compared, in bytes.
const LONGEST_TEXT: u64 = 4 << 20;

fn pinned(commit: &api::Commit) -> api::Version {
    api::Version {
        state: commit.state.clone(),
        version: commit.id.clone(),
        ..api::Version::default()
    }
}

/// Every change between two commits.
async fn changes(
    client: &KeeperClient,
    before: &api::Commit,
    after: &api::Commit,
) -> Result<Vec<api::Change>> {
    let mut found: Vec<api::Change> = Vec::new();
    let mut request = api::DiffRequest {
        before: MessageField::some(pinned(before)),
        after: MessageField::some(pinned(after)),
        ..api::DiffRequest::default()
    };
    loop {
        let response = said(client.diff(patient(), &request).await)?;
        found.extend(response.changes);
        let Some(last) = found.last().filter(|_| response.more) else {
            return Ok(found);
        };
        request.after_key = of(last).key.clone();
    }
}

/// The entry that a change is of: as it is, or as it was.
fn of(change: &api::Change) -> &api::Entry {
    change
        .after
        .as_ref()
        .unwrap_or_else(|| change.before.get_or_default())
}

/// What has become of it, in a word and a letter.
fn word(change: &api::Change) -> (&'static str, char) {
    match (change.before.as_ref(), change.after.as_ref()) {
        (None, _) => ("added", 'A'),
        (_, None) => ("removed", 'D'),
        (Some(before), Some(after)) if before.kind != after.kind => ("replaced", 'T'),
        (Some(before), Some(after)) => {
            let same = api::Entry {
                mtime: after.mtime,
                mtime_nanos: after.mtime_nanos,
                ..before.clone()
            };
            match same == *after {
                // Content may differ at the same length; then the time does too.
                true if after.kind != "file" => ("touched", 't'),
                _ => ("changed", 'M'),
            }
        }
    }
}

/// Its letter, in its colour.
fn letter(change: &api::Change) -> String {
    let letter = word(change).1;
    let style = match letter {
        'A' => ADDED,
        'D' => REMOVED,
        _ => CHANGED,
    };
    paint(style, &letter.to_string())
}

fn sizes(change: &api::Change) -> String {
    let size = |entry: &MessageField<api::Entry>| entry.as_ref().filter(|e| e.kind == "file").map(|e| e.size);
    match (size(&change.before), size(&change.after)) {
        (Some(a), Some(b)) if a != b => format!("{} -> {}", table::bytes(a), table::bytes(b)),
        (_, Some(n)) | (Some(n), None) => table::bytes(n),
        (None, None) => String::new(),
    }
}

/// Shows what changed between two versions.
pub fn diff(
    config: &Config,
    before: &str,
    after: Option<&str>,
    patch: bool,
    stat: bool,
    as_json: bool,
) -> Result<ExitCode> {
    let state = before.split_once('@').map_or(before, |(state, _)| state);
    let after = after.unwrap_or(state);
    with_keeper(config, async |client| {
        let (before, after) = (resolve(&client, before).await?, resolve(&client, after).await?);
        let found = changes(&client, &before, &after).await?;
        if as_json {
            let all: Vec<_> = found
                .iter()
                .map(|change| {
                    json!({
                        "change": word(change).0,
                        "before": change.before.as_ref().map(entry_json),
                        "after": change.after.as_ref().map(entry_json),
                    })
                })
                .collect();
            println!("{}", serde_json::to_string_pretty(&all)?);
            return Ok(());
        }
        if patch {
            for change in &found {
                print_patch(&client, &before, &after, change).await?;
            }
            return Ok(());
        }
        if !stat {
            let rows: Vec<Vec<String>> = found
                .iter()
                .map(|change| vec![letter(change), sizes(change), path(&of(change).path)])
                .collect();
            table::print(&["", "SIZE", "PATH"], &rows);
        }
        let count = |letter: char| found.iter().filter(|change| word(change).1 == letter).count();
        println!(
            "{} to {}: {} added, {} changed, {} removed, {} replaced, {} touched",
            time(before.time),
            time(after.time),
            count('A'),
            count('M'),
            count('D'),
            count('T'),
            count('t')
        );
        Ok(())
    })?;
    Ok(ExitCode::SUCCESS)
}

/// A file's text; none for what is no file, too long or not text.
async fn text(
    client: &KeeperClient,
    commit: &api::Commit,
    entry: Option<&api::Entry>,
) -> Result<Option<String>> {
    let Some(entry) = entry else {
        return Ok(Some(String::new()));
    };
    if entry.kind != "file" || entry.size > LONGEST_TEXT {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    read(client, pinned(commit), &entry.path, |part| {
        bytes.extend_from_slice(part);
        Ok(true)
    })
    .await?;
    Ok(String::from_utf8(bytes).ok().filter(|text| !text.contains('\0')))
}

async fn print_patch(
    client: &KeeperClient,
    before: &api::Commit,
    after: &api::Commit,
    change: &api::Change,
) -> Result<()> {
    let name = path(&of(change).path);
    let (old, new) = (
        text(client, before, change.before.as_ref()).await?,
        text(client, after, change.after.as_ref()).await?,
    );
    let (Some(old), Some(new)) = (old, new) else {
        println!("{} {name} {}", letter(change), sizes(change));
        return Ok(());
    };
    let difference = similar::TextDiff::from_lines(&old, &new);
    let label = |side: &str, there: bool| {
        if there {
            format!("{side}{name}")
        } else {
            "/dev/null".into()
        }
    };
    let unified = difference
        .unified_diff()
        .context_radius(3)
        .header(
            &label("a", change.before.is_some()),
            &label("b", change.after.is_some()),
        )
        .to_string();
    for line in unified.split_inclusive('\n') {
        let (text, end) = line.strip_suffix('\n').map_or((line, ""), |text| (text, "\n"));
        let style = match line.as_bytes().first() {
            Some(b'+') => ADDED,
            Some(b'-') => REMOVED,
            Some(b'@') => NAME,
            _ => Style::new(),
        };
        print!("{}{end}", paint(style, text));
    }
    Ok(())
}

/// Lists every change over time.
pub fn timeline(
    config: &Config,
    state: &str,
    glob: Option<&str>,
    (since, until): (Option<&str>, Option<&str>),
    as_json: bool,
) -> Result<ExitCode> {
    let oldest = since.map_or(Ok(i64::MIN), |text| moment(text, false))?;
    let newest = until.map_or(Ok(i64::MAX), |text| moment(text, true))?;
    let mut lines = Vec::new();
    // Who recorded a test thinks of when it began.
    let is_recording = keeper::recording::Mark::read(&config.root).is_some();
    let mut first = None;
    with_keeper(config, async |client| {
        let head = resolve(&client, state).await?;
        if is_recording {
            let first_of_all = format!("{state}@+0ms");
            first = Some(resolve(&client, &first_of_all).await?.time);
        }
        // Newest first: a commit and the one before it.
        let mut next = with_content(&client, head).await?;
        while let Some(after) = next.filter(|after| after.time >= oldest) {
            let before = match previous(&client, &after).await? {
                Some(before) => with_content(&client, before).await?,
                None => None,
            };
            if let Some(before) = before.as_ref().filter(|_| after.time <= newest) {
                let found = changes(&client, before, &after).await?;
                lines.push((after, found));
            }
            next = before;
        }
        Ok(())
    })?;
    lines.reverse();
    let wanted = |change: &api::Change| match glob {
        Some(glob) => matches(glob.as_bytes(), &of(change).path),
        // A directory's time says no more than what happened in it.
        None => word(change).1 != 't',
    };
    let all = lines.iter().flat_map(|(commit, changes)| {
        changes
            .iter()
            .filter(|change| wanted(change))
            .map(move |change| (commit, change))
    });
    if as_json {
        let all: Vec<_> = all
            .map(|(commit, change)| {
                json!({
                    "time_ns": commit.time, "since_first_ns": first.map(|first| commit.time - first), "commit": commit.id, "change": word(change).0,
                    "path": String::from_utf8_lossy(&of(change).path),
                    "size": change.after.as_ref().map(|entry| entry.size),
                    "size_before": change.before.as_ref().map(|entry| entry.size),
                })
            })
            .collect();
        println!("{}", serde_json::to_string_pretty(&all)?);
    } else {
        let rows: Vec<Vec<String>> = all
            .map(|(commit, change)| {
                vec![
                    first.map_or_else(|| time(commit.time), |first| since_first(commit.time - first)),
                    paint(COMMIT, short(&commit.id)),
                    letter(change),
                    sizes(change),
                    path(&of(change).path),
                ]
            })
            .collect();
        let when = if is_recording { "SINCE" } else { "TIME" };
        table::print(&[when, "COMMIT", "", "SIZE", "PATH"], &rows);
    }
    Ok(ExitCode::SUCCESS)
}

async fn previous(client: &KeeperClient, of: &api::Commit) -> Result<Option<api::Commit>> {
    if of.previous.is_empty() {
        return Ok(None);
    }
    let before = resolve(client, &format!("{}@{}", of.state, of.previous)).await?;
    Ok(Some(before))
}

/// The commit, or the newest before it whose content has not been given up.
async fn with_content(client: &KeeperClient, commit: api::Commit) -> Result<Option<api::Commit>> {
    let mut at = Some(commit);
    while let Some(commit) = at.take_if(|commit| !commit.given_up.is_empty()) {
        at = previous(client, &commit).await?;
    }
    Ok(at)
}

/// A time since the first commit as a version has it, rounded up: what was recorded then is in it.
fn since_first(nanos: i64) -> String {
    let millis = u64::try_from(nanos).unwrap_or(0).div_ceil(1_000_000);
    let (minutes, seconds, millis) = (millis / 60_000, millis / 1000 % 60, millis % 1000);
    match minutes {
        0 => format!("+{seconds}s{millis:03}ms"),
        _ => format!("+{minutes}m{seconds:02}s{millis:03}ms"),
    }
}

/// Whether a path is like a pattern: `*` is anything, `?` one byte.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    // Where the last star was, and how far the text was then: the only place to go back to.
    let (mut p, mut t, mut star) = (0, 0, None);
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(wanted) if *wanted == b'?' || text.get(t) == Some(wanted) => {
                p += 1;
                t += 1;
            }
            _ => match star {
                Some((at, from)) => {
                    star = Some((at, from + 1));
                    p = at + 1;
                    t = from + 1;
                }
                None => return false,
            },
        }
    }
    pattern
        .get(p..)
        .is_some_and(|rest| rest.iter().all(|b| *b == b'*'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_since_are_versions() {
        for (nanos, text) in [
            (0, "+0s000ms"),
            (1, "+0s001ms"),
            (134_300_000_000, "+2m14s300ms"),
            (3_600_000_000_000, "+60m00s000ms"),
        ] {
            assert_eq!(since_first(nanos), text);
            let read = runtime_spec::duration::parse(&text[1..]).unwrap().as_nanos();
            assert!(read >= nanos as u128 && read - (nanos as u128) < 1_000_000);
        }
    }

    #[test]
    fn patterns() {
        for (pattern, text, like) in [
            ("/etc/*", "/etc/hosts", true),
            ("/etc/*", "/var/etc/hosts", false),
            ("*.conf", "/a/b.conf", true),
            ("*.conf", "/a/b.conf.old", false),
            ("/a?c", "/abc", true),
            ("/a?c", "/ac", false),
            ("*a*b*", "xxaxxbxx", true),
            ("*a*b*", "xxbxxaxx", false),
            ("", "", true),
            ("*", "", true),
        ] {
            assert_eq!(
                matches(pattern.as_bytes(), text.as_bytes()),
                like,
                "{pattern} {text}"
            );
        }
    }
}
