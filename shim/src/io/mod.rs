//! The standard streams of a process.
