//! Times on the command line: a whole number with its unit, as `500ms`, `10s`, `5m`, `2h` or `30d`.
//!
//! A number without a unit is refused: whoever means seconds must not get milliseconds.

use statehouse_kv::TTL_MS_MAX;

use crate::machine::lease;

/// The units, and their milliseconds.
const UNITS: [(&str, u64); 5] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

/// A key's time to live in milliseconds: 1 ms to 10 years.
pub fn ttl_ms(text: &str) -> Result<u64, String> {
    within(text, TTL_MS_MAX, "3650d, 10 years")
}

/// A lease's in milliseconds: 1 ms to 100 years.
pub fn lease_ttl_ms(text: &str) -> Result<u64, String> {
    within(text, lease::TTL_MS_MAX, "36500d, 100 years")
}

/// A lock's in milliseconds: 500 ms, so that there is time to keep it, to a day.
pub fn lock_ttl_ms(text: &str) -> Result<u64, String> {
    match milliseconds(text)? {
        ms if (500..=86_400_000).contains(&ms) => Ok(ms),
        _ => Err(format!("a lock of {text}: it may be 500ms to 1d")),
    }
}

fn within(text: &str, ms_max: u64, max: &str) -> Result<u64, String> {
    match milliseconds(text)? {
        ms if (1..=ms_max).contains(&ms) => Ok(ms),
        _ => Err(format!("a time to live of {text}: it may be 1ms to {ms_max}ms ({max})")),
    }
}

/// Reads a time. One that no number of milliseconds can hold is the longest there is.
pub fn milliseconds(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = UNITS.iter().find(|(name, _)| *name == unit);
    match (number, unit) {
        ("", _) | (_, None) => Err(format!("{text:?} is not a time: write it as 500ms, 10s, 5m, 2h or 30d")),
        (number, Some((_, ms))) => Ok(number.parse::<u64>().unwrap_or(u64::MAX).saturating_mul(*ms)),
    }
}

/// A time in the largest unit that leaves a whole number.
pub fn shown(ms: u64) -> String {
    let fits = |unit: &&(&str, u64)| ms.is_multiple_of(unit.1);
    let (name, unit_ms) = UNITS.iter().rfind(fits).unwrap_or(&UNITS[0]);
    format!("{}{name}", ms / unit_ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_shown_as_it_can_be_written() {
        for text in ["1ms", "1500ms", "90s", "5m", "36h", "2d"] {
            assert_eq!(shown(milliseconds(text).unwrap()), text);
        }
        assert_eq!(shown(24 * 3_600_000), "1d");
    }

    #[test]
    fn each_unit_is_understood() {
        for (text, ms) in [("500ms", 500), ("10s", 10_000), ("5m", 300_000), ("2h", 7_200_000)] {
            assert_eq!(ttl_ms(text), Ok(ms), "{text}");
        }
        assert_eq!(ttl_ms("3650d"), Ok(TTL_MS_MAX));
    }

    #[test]
    fn what_is_no_time_or_too_little_or_too_much_is_named() {
        for text in ["", "10", "s", "-1s", "1.5h", "10 s", "10S", "ten"] {
            let told = ttl_ms(text).unwrap_err();
            assert!(told.contains(&format!("{text:?}")) && told.contains("10s"), "{told}");
        }
        for text in ["0s", "3651d", "99999999999999999999ms", "315360000001ms"] {
            let told = ttl_ms(text).unwrap_err();
            assert!(told.contains(text) && told.contains("3650d"), "{told}");
        }
    }
}
