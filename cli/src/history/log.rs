//! `diffkeeper log`: a state's commits, as a table or as a graph.

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use keeper_api::keeper::{keeper as api, keeper_ttrpc::KeeperClient};
use protobuf::MessageField;
use runtime_spec::config::Config;
use serde_json::Value;

use super::{
    client::{patient, said, version, with_keeper},
    graph,
    look::{commit_json, resolve, short, time},
};
use crate::{
    table,
    terminal::{COMMIT, NAME, paint},
};

/// How many are listed where nothing else is said.
const FEW: u32 = 20;

/// Which commits are listed, and how.
#[derive(Args, Clone)]
pub struct Log {
    /// The state, or a version to begin with: web, web@-1h
    pub version: String,
    /// At most so many; 20 where no --since is given
    #[arg(long, short = 'n')]
    pub limit: Option<u32>,
    /// Only what is younger than this, or was made since then: 10m, '2026-11-20 19:02'
    #[arg(long)]
    pub since: Option<String>,
    /// Only what is older than this, or was made until then
    #[arg(long)]
    pub until: Option<String>,
    /// Draw where restores and forks came from
    #[arg(long, conflicts_with = "json")]
    pub graph: bool,
    /// Say also how long the container stood still, and what was read and written
    #[arg(long, short, conflicts_with = "json")]
    pub verbose: bool,
    /// Print JSON, one array of objects
    #[arg(long)]
    pub json: bool,
}

/// A moment that a person means: so long ago, or a time; nanoseconds since 1970. Of a time to the second, its beginning
/// or its end.
///
/// # Errors
/// What is neither.
pub fn moment(text: &str, end: bool) -> Result<i64> {
    let now = jiff::Timestamp::now();
    let at = if let Some(age) = runtime_spec::duration::parse(text) {
        now.as_nanosecond()
            .saturating_sub(i128::try_from(age.as_nanos()).unwrap_or(i128::MAX))
    } else {
        let at = match text.parse::<jiff::Timestamp>() {
            Ok(at) => at,
            Err(_) => text
                .parse::<jiff::civil::DateTime>()
                .and_then(|civil| civil.to_zoned(jiff::tz::TimeZone::system()))
                .with_context(|| {
                    format!(
                        "{text:?} is neither a duration such as 10m nor a time such as '2026-11-20 19:02:11'"
                    )
                })?
                .timestamp(),
        };
        let whole = at.subsec_nanosecond() == 0 && !text.contains('.');
        at.as_nanosecond() + if whole && end { 999_999_999 } else { 0 }
    };
    // Before 1677 and after 2262 there are no commits.
    Ok(i64::try_from(at).unwrap_or(if at < 0 { i64::MIN } else { i64::MAX }))
}

/// Lists commits.
pub fn log(config: &Config, how: &Log) -> Result<ExitCode> {
    let limit = how
        .limit
        .unwrap_or(if how.since.is_some() { u32::MAX } else { FEW }) as usize;
    let since = how.since.as_deref().map(|text| moment(text, false)).transpose()?;
    let until = how.until.as_deref().map(|text| moment(text, true)).transpose()?;
    let (listed, forked) = with_keeper(config, async |client| {
        let listed = commits(&client, &how.version, limit, since, until).await?;
        let forked = match listed.0.last() {
            Some(oldest) if how.graph && oldest.reason == "fork" && !oldest.origin_state.is_empty() => {
                let of = format!("{}@{}", oldest.origin_state, oldest.origin);
                Some(resolve(&client, &of).await?)
            }
            _ => None,
        };
        Ok((listed, forked))
    })?;
    let (commits, more) = listed;
    if how.json {
        let all: Vec<Value> = commits.iter().map(commit_json).collect();
        println!("{}", serde_json::to_string_pretty(&all)?);
        return Ok(ExitCode::SUCCESS);
    }
    if how.graph {
        graph(&commits, forked.as_ref(), how.verbose);
    } else {
        let rows: Vec<Vec<String>> = commits.iter().map(|commit| row(commit, how.verbose)).collect();
        table::print(headings(how.verbose), &rows);
    }
    if more {
        eprintln!("(there are older ones: --limit)");
    }
    Ok(ExitCode::SUCCESS)
}

/// The commits that are asked for, newest first, and whether there are older ones.
async fn commits(
    client: &KeeperClient,
    from: &str,
    limit: usize,
    since: Option<i64>,
    until: Option<i64>,
) -> Result<(Vec<api::Commit>, bool)> {
    let mut found: Vec<api::Commit> = Vec::new();
    let mut request = api::LogRequest {
        from: MessageField::some(version(from)),
        ..api::LogRequest::default()
    };
    loop {
        let response = said(client.log(patient(), &request).await)?;
        let Some(last) = response.commits.last().cloned() else {
            return Ok((found, false));
        };
        for commit in response.commits {
            if since.is_some_and(|since| commit.time < since) {
                return Ok((found, false));
            }
            if until.is_some_and(|until| commit.time > until) {
                continue;
            }
            if found.len() == limit {
                return Ok((found, true));
            }
            found.push(commit);
        }
        if !response.more {
            return Ok((found, false));
        }
        request.from = MessageField::some(api::Version {
            state: last.state,
            version: last.previous,
            ..api::Version::default()
        });
    }
}

fn headings(verbose: bool) -> &'static [&'static str] {
    if verbose {
        &[
            "COMMIT", "TIME", "WHY", "HOW", "WATCHER", "PAUSE", "READ", "WRITTEN", "CHANGED", "OF", "",
        ]
    } else {
        &["COMMIT", "TIME", "WHY", "HOW", "CHANGED", "ADDED", ""]
    }
}

fn row(commit: &api::Commit, verbose: bool) -> Vec<String> {
    let mut row = vec![
        paint(COMMIT, short(&commit.id)),
        time(commit.time),
        commit.reason.clone(),
        commit.consistency.clone(),
    ];
    if verbose {
        row.push(match commit.watcher.as_str() {
            "" => "-".into(),
            watcher => watcher.into(),
        });
        row.push(match commit.pause_ns {
            0 => "-".into(),
            pause => format!("{:.1} ms", pause as f64 / 1e6),
        });
        row.push(table::bytes(commit.read));
        row.push(table::bytes(commit.written));
        row.push(commit.changed.to_string());
        row.push(commit.entries.to_string());
    } else {
        row.push(commit.changed.to_string());
        row.push(table::bytes(commit.written));
    }
    row.push(words(commit));
    row
}

/// Its tags, its message, and whether its content is still there.
fn words(commit: &api::Commit) -> String {
    let mut said: Vec<String> = commit
        .tags
        .iter()
        .map(|tag| paint(NAME, &format!("[{tag}]")))
        .collect();
    if !commit.doubt.is_empty() {
        said.push(format!("({})", commit.doubt));
    }
    if !commit.given_up.is_empty() {
        said.push(match commit.given_up.starts_with(store::DAMAGED) {
            true => format!("({})", commit.given_up),
            false => format!("(content given up: {})", commit.given_up),
        });
    }
    said.push(commit.message.clone());
    said.join(" ").trim().to_owned()
}

/// Prints commits beside the lines that restores and the fork came along.
fn graph(commits: &[api::Commit], forked: Option<&api::Commit>, verbose: bool) {
    let points: Vec<graph::Point<'_>> = commits
        .iter()
        .map(|commit| graph::Point {
            id: &commit.id,
            origin: (commit.origin_state == commit.state).then_some(commit.origin.as_str()),
        })
        .collect();
    let mut rows: Vec<Vec<String>> = graph::lines(&points)
        .into_iter()
        .map(|line| {
            let mut cells = vec![line.drawn];
            if let Some(commit) = line.point.and_then(|n| commits.get(n)) {
                cells.extend(row(commit, verbose));
            }
            cells
        })
        .collect();
    if let Some(origin) = forked {
        let mut cells = vec!["╰─o".to_owned()];
        cells.extend(row(origin, verbose));
        if let Some(words) = cells.last_mut() {
            *words = format!("{} {words}", paint(NAME, &origin.state))
                .trim()
                .to_owned();
        }
        rows.push(cells);
    }
    let headings: Vec<&str> = std::iter::once("")
        .chain(headings(verbose).iter().copied())
        .collect();
    table::print(&headings, &rows);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments() {
        let second = moment("2026-11-20T19:02:11Z", false).unwrap();
        assert_eq!(second % 1_000_000_000, 0);
        assert_eq!(
            moment("2026-11-20T19:02:11Z", true).unwrap() - second,
            999_999_999
        );
        assert_eq!(
            moment("2026-11-20T19:02:11.5Z", true).unwrap() - second,
            500_000_000
        );
        let now = i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap();
        let ago = now - moment("10m", false).unwrap();
        assert!((-600_000_000_000..0).contains(&(ago - 601_000_000_000)), "{ago}");
        assert!(moment("2026-11-20 19:02", false).is_ok());
        assert!(moment("2026-11-20", false).is_ok());
        assert!(moment("yesterday-ish", false).is_err());
    }
}
