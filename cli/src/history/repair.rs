//! Repairing the store: the catalog first, where nobody can open it, then what the packs hold.

use std::process::ExitCode;

use anyhow::Result;
use keeper_api::keeper::keeper as api;
use runtime_spec::config::Config;
use serde_json::{Value, json};

use super::{client::with_keeper, look::short, progress::long};
use crate::table;

/// Repairs.
pub fn repair(config: &Config, dry_run: bool, discard: bool, as_json: bool) -> Result<ExitCode> {
    let catalog = catalog(config, dry_run, as_json)?;
    if dry_run && let Some(catalog) = &catalog {
        if as_json {
            println!(
                "{}",
                serde_json::to_string_pretty(&json!({"catalog": catalog, "dry_run": true}))?
            );
        } else {
            println!("What is damaged in the packs shows only then.");
        }
        return Ok(ExitCode::SUCCESS);
    }
    let done = with_keeper(config, async |client| {
        let request = api::RepairRequest {
            dry_run,
            discard,
            ..api::RepairRequest::default()
        };
        long(&client, async |context| client.repair(context, &request).await).await
    })?;
    if as_json {
        let mut value = as_value(&done);
        value["catalog"] = json!(catalog);
        value["dry_run"] = json!(dry_run);
        println!("{}", serde_json::to_string_pretty(&value)?);
    } else if discard {
        let would = if dry_run { "would remove" } else { "removed" };
        println!(
            "{would} {} that earlier repairs have put aside",
            table::bytes(done.aside)
        );
    } else {
        print(&done, dry_run);
    }
    Ok(ExitCode::SUCCESS)
}

/// Makes the catalog whole, if it is not; says how.
fn catalog(config: &Config, dry_run: bool, as_json: bool) -> Result<Option<String>> {
    let rescue = match keeper::rescue(config) {
        // Whoever has it open could open it.
        Err(keeper::Error::Store(store::Error::Locked(_))) => None,
        planned => planned?,
    };
    let Some(rescue) = rescue else { return Ok(None) };
    let shown = rescue.to_string();
    if !as_json {
        print!("{shown}");
    }
    if !dry_run {
        rescue.run()?;
    }
    Ok(Some(shown))
}

fn print(done: &api::RepairResponse, dry_run: bool) {
    for line in &done.packs {
        println!("{line}");
    }
    for row in &done.rows {
        println!("points nowhere: {row}");
    }
    for lost in &done.lost {
        print!("lost: {}@{}", lost.state, short(&lost.last));
        if lost.versions > 1 {
            print!(
                " and {} versions before it, down to {}",
                lost.versions - 1,
                short(&lost.first)
            );
        }
        if lost.paths.is_empty() {
            print!(": all of it, what it said included");
        }
        println!();
        for path in &lost.paths {
            println!("    {path}");
        }
    }
    for version in &done.healed {
        println!("whole again: {version}");
    }
    if done.recovered > 0 {
        println!("{} objects come from another copy", done.recovered);
    }
    match (done.nothing, dry_run) {
        (true, _) => println!("nothing is to be repaired"),
        (false, true) => println!("nothing was changed: without --dry-run it is"),
        (false, false) => println!("repaired; `diffkeeper verify --read-data` looks again"),
    }
    if done.aside > 0 && !dry_run {
        println!(
            "{} of damaged packs were put aside: diffkeeper repair --discard removes them",
            table::bytes(done.aside)
        );
    }
}

fn as_value(done: &api::RepairResponse) -> Value {
    let lost: Vec<Value> = done
        .lost
        .iter()
        .map(|lost| {
            json!({
                "state": lost.state, "first_sequence": lost.first_sequence, "first": lost.first,
                "last_sequence": lost.last_sequence, "last": lost.last, "versions": lost.versions, "paths": lost.paths,
            })
        })
        .collect();
    json!({
        "packs": done.packs, "points_nowhere": done.rows, "lost": lost, "whole_again": done.healed,
        "objects_from_copies": done.recovered, "nothing": done.nothing, "bytes_aside": done.aside,
    })
}
