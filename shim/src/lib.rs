//! `containerd-shim-diffkeeper-v1`: the stock runc shim's behaviour, plus a live tree.

pub mod cgroup;
pub mod error;
pub mod io;
pub mod mounts;
