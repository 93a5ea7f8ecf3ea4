//! Places at which a test can end the process, as a power switch would: named, so that a failure can be told and done
//! again. Without the variable they cost one look at memory.

use std::sync::{
    OnceLock,
    atomic::{AtomicU64, Ordering},
};

struct Plan {
    point: String,
    left: AtomicU64,
}

static PLAN: OnceLock<Option<Plan>> = OnceLock::new();

/// The variable that names the point, and how often it is passed before: `DIFFKEEPER_FAULT=packs-synced:2`.
pub const VARIABLE: &str = "DIFFKEEPER_FAULT";

/// Every point, for whoever goes through all of them.
pub const POINTS: [&str; 6] = [
    "packs-before-sync",
    "packs-synced",
    "batch-written",
    "gc-copied",
    "gc-switched",
    "gc-removed",
];

/// Ends the process with SIGKILL if this is the point, and the time.
pub fn point(name: &str) {
    let plan = PLAN.get_or_init(|| {
        let value = std::env::var(VARIABLE).ok()?;
        let (point, passes) = value.split_once(':').unwrap_or((&value, "0"));
        Some(Plan {
            point: point.to_owned(),
            left: AtomicU64::new(passes.parse().ok()?),
        })
    });
    if let Some(plan) = plan
        && plan.point == name
        && plan
            .left
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1))
            .is_err()
    {
        // Nothing is to be tidied up: that is the point.
        let _ = nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::Signal::SIGKILL);
    }
}
