//! The standard streams of a process: pipes or a terminal on the container's side; containerd's fifos, a file or
//! a logger on the other.
//!
//! Output fifos are held open at both ends, so that containerd may die and come back: the writer then waits, as
//! it does for a slow reader, and nothing is lost. After the process has ended and all was copied, both ends are
//! closed and the reader sees the end.

mod console;
mod copy;
mod pipes;
pub mod sys;
mod target;
#[cfg(test)]
mod tests;

use std::os::fd::OwnedFd;

pub use console::{Console, ConsoleSocket};
pub use pipes::Pipes;
pub use target::Target;

/// What the client asked the streams to be; the empty string is none.
#[derive(Debug, Clone, Default)]
pub struct Stdio {
    /// A fifo.
    pub stdin: String,
    /// A fifo, or a URI: `file://`, `binary://`.
    pub stdout: String,
    /// A fifo.
    pub stderr: String,
    /// The process has a terminal.
    pub terminal: bool,
}

/// How pipes are made.
#[derive(Debug, Clone, Copy, Default)]
pub struct IoOptions {
    /// Their owner (`IoUid`).
    pub uid: u32,
    /// Their group (`IoGid`).
    pub gid: u32,
}

/// What the OCI runtime's process inherits; none means `/dev/null`.
#[derive(Debug, Default)]
pub struct ChildFds {
    /// Descriptor 0.
    pub stdin: Option<OwnedFd>,
    /// Descriptor 1.
    pub stdout: Option<OwnedFd>,
    /// Descriptor 2.
    pub stderr: Option<OwnedFd>,
}
