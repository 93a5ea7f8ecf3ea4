//! Waiting for what happens elsewhere.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Asks until the answer is yes.
///
/// # Errors
/// When it is not in time.
pub fn until(what: &str, limit: Duration, mut yes: impl FnMut() -> bool) -> Result<()> {
    let since = Instant::now();
    while !yes() {
        if since.elapsed() > limit {
            bail!("{what}: not within {limit:?}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
