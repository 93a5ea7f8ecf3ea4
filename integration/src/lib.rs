//! A private containerd for tests and benchmarks, and the shortest way to say what they do with it.

pub mod api;
pub mod bench;
pub mod cri;
pub mod daemon;
pub mod docker;
pub mod wait;

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
