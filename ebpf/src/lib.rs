//! What is written on one file system, told by programs that the kernel runs: `written.bpf.c`.
//!
//! Of files that are followed they tell which bytes may have been written to since, a superset: of a page at the moment
//! at which it turns dirty, of anything else when it begins. Of all files they tell whose attributes were set, which no
//! other watcher hears of in every case.
//!
//! What is told waits in a ring until somebody asks. What does not fit is counted, never dropped in silence.
//!
//! Only tracepoints are used, and clang alone is needed to build it: without, [`Programs::load`] says so.

mod btf;
#[cfg(all(test, programs))]
mod compile;
mod event;
mod misses;
mod mounted;
mod programs;
mod ring;

pub use self::{
    event::{Inode, Told},
    mounted::FileSystem,
    programs::{Error, Programs},
};
