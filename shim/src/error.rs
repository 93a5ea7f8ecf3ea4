//! The one error type of the shim and the one place where an error becomes a ttrpc status.

use std::io;

use containerd_shim_protos::ttrpc;

/// Anything that can go wrong in the shim. The variant decides the ttrpc code that containerd sees.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A container, process or file that was asked for does not exist.
    #[error("{0}")]
    NotFound(String),
    /// An identifier is taken.
    #[error("{0}")]
    AlreadyExists(String),
    /// The request itself is wrong.
    #[error("{0}")]
    InvalidArgument(String),
    /// The request is right but not now (a stopped container, a held lease).
    #[error("{0}")]
    FailedPrecondition(String),
    /// It has been done without whoever asks, who took too long.
    #[error("{0}")]
    Overdue(String),
    /// The other side cannot be reached.
    #[error("{0}")]
    Unavailable(String),
    /// The runtime or this shim has no such function.
    #[error("{0}")]
    Unimplemented(String),
    /// A system call failed.
    #[error("{context}: {source}")]
    Io {
        /// What was tried, and on what.
        context: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The OCI runtime failed; the message is the stock shim's, which tools match on.
    #[error("OCI runtime {call} failed: {message}")]
    Runtime {
        /// Which call (`create`, `start`, `exec`, ...).
        call: &'static str,
        /// The last error in the runtime's log, or its standard error.
        message: String,
    },
    /// Everything else.
    #[error("{0}")]
    Other(String),
}

/// The shim's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl From<Error> for ttrpc::Error {
    fn from(error: Error) -> Self {
        use ttrpc::Code;
        let code = match &error {
            Error::NotFound(_) => Code::NOT_FOUND,
            Error::AlreadyExists(_) => Code::ALREADY_EXISTS,
            Error::InvalidArgument(_) => Code::INVALID_ARGUMENT,
            Error::FailedPrecondition(_) => Code::FAILED_PRECONDITION,
            Error::Overdue(_) => Code::ABORTED,
            Error::Unavailable(_) => Code::UNAVAILABLE,
            Error::Unimplemented(_) => Code::UNIMPLEMENTED,
            Error::Io { .. } | Error::Runtime { .. } | Error::Other(_) => Code::UNKNOWN,
        };
        ttrpc::Error::RpcStatus(ttrpc::get_status(code, error.to_string()))
    }
}

/// Adds what was tried, and on what, to a system error.
pub trait Context<T> {
    /// Names the attempt; evaluated only on failure.
    ///
    /// # Errors
    /// The original failure, as [`Error::Io`].
    fn context(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<io::Error>> Context<T> for Result<T, E> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::Io {
            context: what(),
            source: source.into(),
        })
    }
}
