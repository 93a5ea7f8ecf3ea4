//! What the exit status says.

use std::process::ExitCode;

/// It was not done; standard error says why.
pub const FAILED: u8 = 1;
/// There is no such state, version, path or file.
pub const NOT_FOUND: u8 = 3;
/// It was looked, and something is wrong.
pub const PROBLEMS: u8 = 4;
/// The chain is whole, and commits of it are not signed by a key that was given.
pub const UNSIGNED: u8 = 5;
/// Ctrl-C: what 128 + SIGINT says everywhere.
pub const INTERRUPTED: u8 = 130;

/// The table of `diffkeeper --help`.
pub const HELP: &str = "\
Exit status:
  0    done
  1    not done; standard error says why
  2    the command line is wrong
  3    there is no such state, version or path
  4    looked, and something is wrong (verify, audit, doctor)
  5    commits are not signed by a key that was given (audit --public-key)
  130  ended by Ctrl-C; nothing is half done
  141  the reader of the output went away (| head)";

/// What the keeper refused, and of which kind that was.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Refused {
    /// The kind.
    pub code: ttrpc::Code,
    /// The keeper's words.
    pub message: String,
}

/// Ctrl-C, and what goes on all the same.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Interrupted(pub String);

/// No such thing, found out by the command line itself.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct NotFound(pub String);

/// The status that an error ends with.
#[must_use]
pub fn of(error: &anyhow::Error) -> ExitCode {
    let keeper = error.downcast_ref::<Refused>().map(|refused| refused.code);
    ExitCode::from(match keeper {
        _ if error.is::<Interrupted>() => INTERRUPTED,
        _ if error.is::<NotFound>() => NOT_FOUND,
        Some(ttrpc::Code::CANCELLED) => INTERRUPTED,
        Some(ttrpc::Code::NOT_FOUND) => NOT_FOUND,
        Some(ttrpc::Code::DATA_LOSS) => PROBLEMS,
        Some(ttrpc::Code::UNAUTHENTICATED) => UNSIGNED,
        _ => FAILED,
    })
}
