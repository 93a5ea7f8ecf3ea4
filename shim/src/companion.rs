//! The command line, which belongs beside the shim: it does what needs more code than a shim should have.

use std::{path::PathBuf, process::Command};

const NAME: &str = "diffkeeper";

/// A command of it, to be given arguments: the one beside this program, else one that `PATH` names.
#[must_use]
pub fn command() -> Command {
    let beside = std::env::current_exe()
        .ok()
        .map(|program| program.with_file_name(NAME))
        .filter(|path| path.exists());
    Command::new(beside.unwrap_or_else(|| PathBuf::from(NAME)))
}
