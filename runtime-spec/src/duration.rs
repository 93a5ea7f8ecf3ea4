//! Durations as people write them: `10s`, `1d12h`.

use std::time::Duration;

/// Parses a duration: numbers with the units `ms`, `s`, `m`, `h`, `d`, largest first or not, added up.
#[must_use]
pub fn parse(text: &str) -> Option<Duration> {
    let mut rest = text.trim();
    let mut total = Duration::ZERO;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let (number, tail) = rest.split_at_checked(digits)?;
        let number: u64 = number.parse().ok()?;
        let unit = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at_checked(unit)?;
        let one = match unit {
            "ms" => Duration::from_millis(number),
            "s" => Duration::from_secs(number),
            "m" => Duration::from_secs(number.checked_mul(60)?),
            "h" => Duration::from_secs(number.checked_mul(3_600)?),
            "d" => Duration::from_secs(number.checked_mul(86_400)?),
            _ => return None,
        };
        total = total.checked_add(one)?;
        rest = tail;
    }
    // Longer than anybody lives; beyond it clocks overflow.
    (total <= Duration::from_secs(1_000 * 365 * 86_400)).then_some(total)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations() {
        assert_eq!(parse("0s"), Some(Duration::ZERO));
        assert_eq!(parse("1d12h"), Some(Duration::from_secs(129_600)));
        assert_eq!(parse("250ms"), Some(Duration::from_millis(250)));
        for bad in [
            "",
            "7",
            "7 days",
            "d",
            "-1s",
            "1w",
            "99999999999999999999s",
            "18446744073709551615d",
            "1.5h",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(text: String) {
            let _ = parse(&text);
        }
    }
}
