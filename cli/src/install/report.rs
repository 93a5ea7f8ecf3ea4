//! What was done, for a person or as JSON.

use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::Serialize;

/// One file that changed.
#[derive(Debug, Serialize)]
struct Change {
    action: &'static str,
    path: PathBuf,
    lines: Vec<String>,
}

/// Everything that changed, or would.
#[derive(Debug, Serialize)]
pub struct Report {
    pub dry_run: bool,
    changes: Vec<Change>,
    restarted: Vec<String>,
    notes: Vec<String>,
}

impl Report {
    pub fn new(dry_run: bool) -> Report {
        Report {
            dry_run,
            changes: Vec::new(),
            restarted: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// A file that came or went whole.
    pub fn change(&mut self, action: &'static str, path: &Path) {
        self.edit(action, path, "", "");
    }

    /// A file of which some lines changed.
    pub fn edit(&mut self, action: &'static str, path: &Path, before: &str, after: &str) {
        self.changes.push(Change {
            action,
            path: path.to_owned(),
            lines: changed_lines(before, after),
        });
    }

    /// A daemon that was made to read its configuration.
    pub fn restart(&mut self, verb: &str, unit: &str) {
        self.restarted.push(format!("{verb} {unit}"));
    }

    /// Something that a person should know.
    pub fn note(&mut self, text: String) {
        self.notes.push(text);
    }

    /// Several of them.
    pub fn notes(&mut self, texts: &[String]) {
        self.notes.extend_from_slice(texts);
    }

    /// Whether this file is among the changes.
    pub fn has(&self, path: &Path) -> bool {
        self.changes.iter().any(|c| c.path == path)
    }

    /// Prints it to standard output.
    ///
    /// # Errors
    /// When it cannot be put as JSON.
    pub fn print(&self, json: bool) -> Result<()> {
        if json {
            println!("{}", serde_json::to_string_pretty(self)?);
            return Ok(());
        }
        let would = if self.dry_run { "would " } else { "" };
        for change in &self.changes {
            println!("{would}{} {}", change.action, change.path.display());
            for line in &change.lines {
                println!("    {line}");
            }
        }
        for what in &self.restarted {
            println!("{would}{what}");
        }
        if self.changes.is_empty() && self.restarted.is_empty() {
            println!("Nothing to change.");
        }
        for note in &self.notes {
            println!("note: {note}");
        }
        Ok(())
    }
}

/// The lines between what both texts begin and end with: enough for edits that touch one place.
fn changed_lines(before: &str, after: &str) -> Vec<String> {
    let (a, b): (Vec<&str>, Vec<&str>) = (before.lines().collect(), after.lines().collect());
    let head = a.iter().zip(&b).take_while(|(a, b)| a == b).count();
    let tail = a[head..]
        .iter()
        .rev()
        .zip(b[head..].iter().rev())
        .take_while(|(a, b)| a == b)
        .count();
    let lines = |sign: char, text: &[&str]| -> Vec<String> {
        text.iter().map(|line| format!("{sign} {line}")).collect()
    };
    [
        lines('-', &a[head..a.len() - tail]),
        lines('+', &b[head..b.len() - tail]),
    ]
    .concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_changed_is_shown() {
        assert_eq!(changed_lines("a\nb\nc\n", "a\nx\ny\nc\n"), ["- b", "+ x", "+ y"]);
        assert_eq!(changed_lines("a\na\n", "a\na\na\n"), ["+ a"]);
        assert!(changed_lines("a\n", "a\n").is_empty());
    }
}
