//! `containerd-shim-diffkeeper-v1`: the stock runc shim's behaviour, plus a live tree.
//!
//! containerd runs [`bootstrap`] (`start`), [`delete`] and [`info`] as short-lived processes. `start` leaves a
//! [`server`] behind, whose [`service`] answers the Task calls for one container or one pod. Everything runs on
//! one thread; what may block (mounts, the lease) goes to a blocking one.

pub mod args;
pub mod bootstrap;
pub mod cgroup;
pub mod companion;
pub mod container;
pub mod delete;
pub mod error;
pub mod events;
pub mod freeze;
pub mod hooks;
pub mod info;
pub mod io;
pub mod keep;
pub mod keeper;
pub mod log;
pub mod mounts;
pub mod options;
pub mod process;
pub mod reaper;
pub mod runc;
pub mod server;
pub mod service;
pub mod sys;
pub mod thaw;
