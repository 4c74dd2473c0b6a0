//! Durations as text: "250ms", "10s", "1.5s", "1h30m".
//!
//! Not `humantime`: it reads "5M" as five months and "1 y" as a year, which no timeout
//! is meant to be.

use std::time::Duration;

use crate::config::text::report::{Fault, fault};

/// Longer is surely a slip of the pen, and sums of times must not overflow anywhere.
pub(crate) const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);

const UNITS: [(&str, u128); 7] = [
    ("d", 86_400_000_000_000),
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("ns", 1),
];

const HINT: &str = "units: ms, s, m, h, d (also us, ns), as in \"250ms\", \"10s\", \"1h30m\"";

pub fn parse(text: &str) -> Result<Duration, Fault> {
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err(Fault::new("the duration is empty").hint(HINT));
    }
    if rest.starts_with('-') {
        return Err(fault!("a duration cannot be negative: {text:?}"));
    }
    let mut nanos: u128 = 0;
    while !rest.is_empty() {
        let (number, after) = rest.split_at(prefix(rest, |c| c.is_ascii_digit() || c == '.'));
        let (unit, after) = after.split_at(prefix(after, |c| c.is_alphabetic()));
        if number.is_empty() || number.len() > 30 {
            return Err(fault!("not a duration: {text:?}").hint(HINT));
        }
        if unit.is_empty() {
            let hint = if after.is_empty() {
                format!("write \"{text}s\" for seconds")
            } else {
                HINT.to_owned()
            };
            return Err(fault!("the duration {text:?} has a number without a unit").hint(hint));
        }
        let Some((_, size)) = UNITS.iter().find(|(name, _)| *name == unit) else {
            return Err(fault!("unknown unit {unit:?} in the duration {text:?}").hint(HINT));
        };
        let part =
            scaled(number, *size).ok_or_else(|| fault!("not a duration: {text:?}").hint(HINT))?;
        nanos = nanos.saturating_add(part);
        if nanos > LONGEST.as_nanos() {
            return Err(fault!("the duration {text:?} is longer than 365d"));
        }
        rest = after.trim_start();
    }
    // Not more than a year: fits.
    Ok(Duration::from_nanos(
        u64::try_from(nanos).unwrap_or(u64::MAX),
    ))
}

/// The shortest text that [`parse`] reads as `duration`, in one unit.
pub(crate) fn format(duration: Duration) -> String {
    let nanos = duration.as_nanos();
    if nanos == 0 {
        return "0s".to_owned();
    }
    let unit = UNITS
        .iter()
        .find(|(name, size)| *name != "d" && nanos.is_multiple_of(*size));
    let (name, size) = unit.unwrap_or(&("ns", 1));
    format!("{}{name}", nanos / size)
}

fn prefix(text: &str, accept: impl Fn(char) -> bool) -> usize {
    text.find(|c| !accept(c)).unwrap_or(text.len())
}

/// `number` (at most 30 digits and points) times `size`; `None` where it is no number, or finer
/// than 1 ns.
fn scaled(number: &str, size: u128) -> Option<u128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let mut sum = whole.parse::<u128>().ok()?.saturating_mul(size);
    if fraction.is_empty() {
        return None;
    }
    let mut unit = size;
    for digit in fraction.chars() {
        let digit = digit.to_digit(10)?;
        if digit != 0 && !unit.is_multiple_of(10) {
            return None;
        }
        unit /= 10;
        sum = sum.saturating_add(u128::from(digit) * unit);
    }
    Some(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read() {
        for (text, nanos) in [
            ("0s", 0),
            ("250ms", 250_000_000),
            ("10s", 10_000_000_000),
            ("1.5s", 1_500_000_000),
            ("0.001ms", 1_000),
            ("5m", 300_000_000_000),
            ("1h30m", 5_400_000_000_000),
            ("1h 30m", 5_400_000_000_000),
            ("365d", 31_536_000_000_000_000),
            ("7ns", 7),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_nanos(nanos)), "{text}");
        }
    }

    #[test]
    fn what_is_refused() {
        for (text, message) in [
            ("", "empty"),
            ("  ", "empty"),
            ("10", "without a unit"),
            ("1.5", "without a unit"),
            ("-1s", "negative"),
            ("10x", "unknown unit \"x\""),
            ("5M", "unknown unit \"M\""),
            ("10sec", "unknown unit \"sec\""),
            ("s", "not a duration"),
            ("1..5s", "not a duration"),
            (".5s", "not a duration"),
            ("5.s", "not a duration"),
            ("1e3s", "unknown unit \"e\""),
            ("0.5ns", "not a duration"),
            ("10 s", "without a unit"),
            ("ten", "not a duration"),
            ("366d", "longer than 365d"),
            ("99999999999999999999999999999d", "longer than 365d"),
            ("999999999999999999999999999999999999999s", "not a duration"),
        ] {
            let fault = parse(text).expect_err(text);
            assert!(fault.message.contains(message), "{text}: {}", fault.message);
        }
    }

    #[test]
    fn what_is_written() {
        for text in ["0s", "1ns", "250ms", "10s", "90s", "5m", "1h", "25h"] {
            assert_eq!(
                format(parse(text).expect(text)),
                if text == "90s" { "90s" } else { text }
            );
        }
        assert_eq!(format(Duration::from_millis(1500)), "1500ms");
    }
}
