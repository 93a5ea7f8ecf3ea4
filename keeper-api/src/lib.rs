//! What the keeper, the shim and the command line say to each other: ttrpc over sockets that only root may open.
//!
//! `proto/` says what each message means. A field is never given another meaning or number; what cannot be said in the
//! messages of today gets a new package (`diffkeeper.keeper.v2`).

/// The shim's side, on the socket of its task service: it alone freezes.
#[allow(
    missing_docs,
    clippy::all,
    clippy::pedantic,
    clippy::unwrap_used,
    clippy::expect_used
)]
pub mod shim {
    include!(concat!(env!("OUT_DIR"), "/shim/mod.rs"));
}

/// The keeper's side.
#[allow(
    missing_docs,
    clippy::all,
    clippy::pedantic,
    clippy::unwrap_used,
    clippy::expect_used
)]
pub mod keeper {
    include!(concat!(env!("OUT_DIR"), "/keeper/mod.rs"));
}

/// Where the keeper listens, unless the configuration says otherwise.
pub const SOCKET: &str = "/run/diffkeeper/keeper.sock";

/// The key of a call's metadata that names it: `Progress` then says how far it is.
pub const TASK: &str = "task";
