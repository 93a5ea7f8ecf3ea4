//! What must hold for any input of the decoders. Each target is a plain function that panics where it does not:
//! cargo-fuzz calls it (see `libfuzzer/`), and an ordinary test calls it with the committed seeds and mutations of
//! them (see `tests/mutations.rs`).
// A failed assertion is how a target reports.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod delta;
mod records;
mod shim;
mod spec;
mod store;
mod watcher;

pub use self::{delta::*, records::*, shim::*, spec::*, store::*, watcher::*};

/// One target.
pub type Target = fn(&[u8]);

/// Every target, under the name that its seeds and its cargo-fuzz binary have.
pub const TARGETS: [(&str, Target); 14] = [
    ("annotations", annotations),
    ("bootstrap", bootstrap),
    ("bundle", bundle),
    ("config", config),
    ("deltas", deltas),
    ("duration", duration),
    ("events", events),
    ("messages", messages),
    ("mount", mount),
    ("packs", packs),
    ("records", records),
    ("runtime_options", runtime_options),
    ("state_name", state_name),
    ("stream_uri", stream_uri),
];

/// The input as text; none where it is not UTF-8.
fn text(data: &[u8]) -> Option<&str> {
    std::str::from_utf8(data).ok()
}
