//! Versions as people write them.

use std::time::{SystemTime, UNIX_EPOCH};

use store::Version;

use crate::error::{Error, Result};

/// Reads a version as people write it behind the `@`: `head`, `~3`, `-5m`, a time, a tag, the beginning of a commit's
/// name.
///
/// # Errors
/// What is none.
pub fn parse_version(text: &str) -> Result<Version> {
    let wrong = |why: &str| Error::Refused(format!("{text:?} is not a version: {why}"));
    if text.is_empty() || text == "head" {
        return Ok(Version::Head);
    }
    if let Some(back) = text.strip_prefix('~') {
        let back = back
            .parse()
            .map_err(|_| wrong("a number of commits follows the ~"))?;
        return Ok(Version::Back(back));
    }
    if let Some(ago) = text.strip_prefix('-') {
        let ago = runtime_spec::duration::parse(ago)
            .ok_or_else(|| wrong("a duration such as 5m or 1h30m follows the -"))?;
        return Ok(Version::At(
            now().saturating_sub(i64::try_from(ago.as_nanos()).unwrap_or(i64::MAX)),
        ));
    }
    let dated = text.len() >= 10
        && text.bytes().take(4).all(|b| b.is_ascii_digit())
        && text.as_bytes().get(4) == Some(&b'-');
    if dated {
        let time = parse_time(text).ok_or_else(|| wrong("a time is written 2026-11-20T19:02:11Z, or without zone in the node's own: 2026-11-20 19:02:11"))?;
        return Ok(Version::At(time));
    }
    Ok(Version::Named(text.to_owned()))
}

/// Nanoseconds since 1970; of a time without zone, in this node's. A time without fractions is the whole second: what
/// was recorded within it counts.
fn parse_time(text: &str) -> Option<i64> {
    let at = match text.parse::<jiff::Timestamp>() {
        Ok(at) => at,
        Err(_) => {
            let civil: jiff::civil::DateTime = text.parse().ok()?;
            civil.to_zoned(jiff::tz::TimeZone::system()).ok()?.timestamp()
        }
    };
    let nanos = i64::try_from(at.as_nanosecond()).ok()?;
    Some(if nanos % 1_000_000_000 == 0 && !text.contains('.') {
        nanos.saturating_add(999_999_999)
    } else {
        nanos
    })
}

/// Nanoseconds since 1970.
pub(crate) fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}
