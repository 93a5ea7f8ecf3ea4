//! What a test can have go wrong. Places at which the process ends, as by a power switch: named, so that a failure can be
//! told and done again; and any call to the disk, by its number. Without a test they cost one look at memory.

use std::{
    io,
    sync::{
        OnceLock,
        atomic::{AtomicI32, AtomicU64, Ordering},
    },
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

/// And those of a recompaction.
pub const RECOMPACT: [&str; 2] = ["recompact-written", "recompact-switched"];

/// And those of a migration.
pub const MIGRATION: [&str; 3] = ["migrate-flushed", "migrate-counted", "migrate-renamed"];

/// And those of the keeper's bringing a state back to a version.
pub const RESTORE: [&str; 7] = [
    "restore-begun",
    "restore-noted",
    "restore-made",
    "restore-forgotten",
    "restore-switched",
    "restore-recorded",
    "restore-told",
];

/// And those of a repair.
pub const REPAIR: [&str; 4] = [
    "repair-copied",
    "repair-linked",
    "repair-switched",
    "repair-removed",
];

/// Ends the process with SIGKILL if this is the point, and the time.
pub fn point(name: &str) {
    #[cfg(test)]
    meanwhile::pass(name);
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

/// Calls to the disk so far, and the one that fails.
static CALLS: AtomicU64 = AtomicU64::new(0);
static FAILS: AtomicU64 = AtomicU64::new(u64::MAX);
/// The error that it fails with; negative where only this one call does, and not all behind it.
static ERROR: AtomicI32 = AtomicI32::new(0);

/// From now on calls to the disk are counted from 0, and number `at` fails with this error; with `on`, so do all that
/// follow. `None`: none does. Answers with how many there have been.
pub fn fail_disk(at: Option<u64>, error: i32, on: bool) -> u64 {
    FAILS.store(u64::MAX, Ordering::SeqCst);
    ERROR.store(if on { error } else { -error }, Ordering::SeqCst);
    let calls = CALLS.swap(0, Ordering::SeqCst);
    FAILS.store(at.unwrap_or(u64::MAX), Ordering::SeqCst);
    calls
}

/// Asked before every call that changes the disk.
pub(crate) fn disk() -> io::Result<()> {
    let call = CALLS.fetch_add(1, Ordering::Relaxed);
    let fails = FAILS.load(Ordering::Relaxed);
    if call < fails {
        return Ok(());
    }
    match ERROR.load(Ordering::Relaxed) {
        error if error > 0 => Err(io::Error::from_raw_os_error(error)),
        error if call == fails => Err(io::Error::from_raw_os_error(-error)),
        _ => Ok(()),
    }
}

/// What a test has happen at a point that its own thread passes.
#[cfg(test)]
pub(crate) mod meanwhile {
    use std::cell::RefCell;

    type Act = Box<dyn FnOnce()>;

    thread_local! {
        static NEXT: RefCell<Option<(&'static str, Act)>> = const { RefCell::new(None) };
    }

    /// The next time that this point is passed.
    pub(crate) fn at(point: &'static str, act: impl FnOnce() + 'static) {
        NEXT.set(Some((point, Box::new(act))));
    }

    pub(super) fn pass(name: &str) {
        let act = NEXT.with_borrow_mut(|next| next.take_if(|(point, _)| *point == name));
        if let Some((_, act)) = act {
            act();
        }
    }
}
