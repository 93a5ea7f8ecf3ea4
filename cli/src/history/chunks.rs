//! How the chunks of a file are stored.

use std::process::ExitCode;

use anyhow::Result;
use keeper_api::keeper::keeper as api;
use protobuf::MessageField;
use runtime_spec::config::Config;
use serde_json::{Value, json};

use super::{
    client::{patient, said, version, with_keeper},
    look::short,
};
use crate::table;

/// Says how each chunk of a version's file is stored.
pub fn show(config: &Config, of: &str, path: &str, as_json: bool) -> Result<ExitCode> {
    let mut parts: Vec<api::Part> = Vec::new();
    with_keeper(config, async |client| {
        let mut request = api::PartsRequest {
            version: MessageField::some(version(of)),
            path: path.as_bytes().to_vec(),
            ..api::PartsRequest::default()
        };
        loop {
            let response = said(client.parts(patient(), &request).await)?;
            parts.extend(response.parts);
            let Some(last) = parts.last().filter(|_| response.more) else {
                return Ok(());
            };
            request.offset = last.offset.saturating_add(last.length);
        }
    })?;
    if as_json {
        let all: Vec<Value> = parts.iter().map(part_json).collect();
        println!("{}", serde_json::to_string_pretty(&all)?);
        return Ok(ExitCode::SUCCESS);
    }
    if parts.is_empty() {
        println!("no chunks: what is so short stands in its entry");
        return Ok(ExitCode::SUCCESS);
    }
    let rows: Vec<Vec<String>> = parts
        .iter()
        .map(|part| {
            let hole = part.chunk.is_empty();
            let unless_hole = |text: String| if hole { String::new() } else { text };
            vec![
                part.offset.to_string(),
                table::bytes(part.length),
                if hole {
                    "hole".into()
                } else {
                    short(&part.chunk).into()
                },
                part.encoding.clone(),
                unless_hole(table::bytes(part.stored)),
                unless_hole(part.steps.to_string()),
                short(&part.base).into(),
            ]
        })
        .collect();
    table::print(
        &[
            "AT",
            "LENGTH",
            "CHUNK",
            "ENCODING",
            "TAKES",
            "READ BEFORE",
            "STANDS ON",
        ],
        &rows,
    );
    let taken: u64 = parts.iter().map(|part| part.stored).sum();
    let length: u64 = parts.iter().map(|part| part.length).sum();
    println!("{} in {}", table::bytes(length), table::bytes(taken));
    Ok(ExitCode::SUCCESS)
}

fn part_json(part: &api::Part) -> Value {
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    json!({
        "offset": part.offset,
        "length": part.length,
        "chunk": some(&part.chunk),
        "encoding": some(&part.encoding),
        "stored_bytes": part.stored,
        "base": some(&part.base),
        "steps": part.steps,
    })
}
