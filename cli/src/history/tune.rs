//! What a state's history would take by each way to store it.

use std::process::ExitCode;

use anyhow::Result;
use keeper_api::keeper::keeper as api;
use runtime_spec::config::Config;
use serde_json::json;

use super::{client::with_keeper, progress::long};
use crate::table;

/// Measures every way with the state's own chunks.
pub fn tune(config: &Config, state: &str, as_json: bool) -> Result<ExitCode> {
    let request = api::TuneRequest {
        state: state.into(),
        ..api::TuneRequest::default()
    };
    let done = with_keeper(config, async |client| {
        long(&client, async |context| client.tune(context, &request).await).await
    })?;
    if as_json {
        let strategies: Vec<_> = done
            .strategies
            .iter()
            .map(|one| {
                json!({
                    "name": one.name, "stored_bytes": one.stored_bytes, "cpu_ns": one.spent_ns, "steps": one.steps,
                    "read_cpu_ns": one.read_ns, "used": one.used,
                })
            })
            .collect();
        let value = json!({
            "chunks": done.chunks, "of_chunks": done.of_chunks, "content_bytes": done.content_bytes,
            "stored_bytes": done.stored_bytes, "steps": done.steps, "strategies": strategies,
        });
        println!("{}", serde_json::to_string_pretty(&value)?);
        return Ok(ExitCode::SUCCESS);
    }
    let per = |all: u64, of: u64| all as f64 / of.max(1) as f64;
    let milliseconds = |nanoseconds: u64| format!("{:.0} ms", nanoseconds as f64 / 1e6);
    let mut rows = vec![vec![
        "as it is stored".to_owned(),
        table::bytes(done.stored_bytes),
        format!("{:.1}", per(done.content_bytes, done.stored_bytes)),
        String::new(),
        String::new(),
        format!("{:.1}", per(done.steps, done.chunks)),
    ]];
    rows.extend(done.strategies.iter().map(|one| {
        vec![
            format!("{}{}", one.name, if one.used { " *" } else { "" }),
            table::bytes(one.stored_bytes),
            format!("{:.1}", per(done.content_bytes, one.stored_bytes)),
            milliseconds(one.spent_ns),
            milliseconds(one.read_ns),
            format!("{:.1}", per(one.steps, done.chunks)),
        ]
    }));
    println!(
        "{} of {} chunks, {}:",
        done.chunks,
        done.of_chunks,
        table::bytes(done.content_bytes)
    );
    table::print(
        &[
            "STRATEGY",
            "TAKES",
            "RATIO",
            "CPU TO WRITE",
            "CPU TO READ EACH",
            "READ BEFORE",
        ],
        &rows,
    );
    println!("* what commits do now");
    Ok(ExitCode::SUCCESS)
}
