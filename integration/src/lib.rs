//! A private containerd for tests and benchmarks, and the shortest way to say what they do with it.

pub mod api;
pub mod bench;
pub mod chart;
pub mod cri;
pub mod daemon;
pub mod databases;
pub mod docker;
pub mod history;
pub mod operations;
pub mod peers;
pub mod standstill;
pub mod stream;
pub mod tree;
pub mod wait;

use anyhow::{Result, anyhow};

pub use daemon::{Daemon, Ran};
pub use docker::Docker;

/// The runtime under test.
pub const OURS: &str = "io.containerd.diffkeeper.v1";
/// The runtime that it is compared with.
pub const STOCK: &str = "io.containerd.runc.v2";

/// The reference of an image of `hack/images`.
#[must_use]
pub fn image(name: &str) -> String {
    format!("docker.io/diffkeeper/{name}:dev")
}

/// A test that failed is run once more, and called flaky, with its first error, where it passes then: a fault that
/// shows once in a hundred runs on a loaded machine must be seen by whoever reads the summary, and must not be
/// mistaken for one that the change at hand has brought. One that fails twice has failed.
///
/// # Errors
/// Both errors.
pub fn second_chance(name: &str, first: Result<()>, again: impl FnOnce() -> Result<()>) -> Result<()> {
    let Err(first) = first else { return Ok(()) };
    again().map_err(|second| anyhow!("{second:#}\nand before that: {first:#}"))?;
    let line = format!("{first:#}").replace('\n', " | ");
    println!("\nflaky {name}: passed the second time; at first: {line}");
    Ok(())
}
