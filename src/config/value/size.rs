//! Sizes as text: "512", "64k", "16m", "1g"; in units of 1024.

use crate::config::text::report::{Fault, fault};

const UNITS: [(&str, u64); 3] = [("g", 1 << 30), ("m", 1 << 20), ("k", 1 << 10)];

/// Nothing that is counted here is larger.
const LARGEST: u64 = 1 << 50;

const HINT: &str =
    "units: k, m, g, of 1024, as in \"64k\", \"16m\", \"1g\"; without one it is bytes";

/// At least 1.
pub(crate) fn parse(text: &str) -> Result<u64, Fault> {
    let text = text.trim();
    let unit = UNITS
        .iter()
        .find_map(|(unit, size)| Some((text.strip_suffix(unit)?, *size)));
    let (digits, unit) = unit.unwrap_or((text, 1));
    let number = Some(digits)
        .filter(|digits| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()))
        .ok_or_else(|| fault!("not a size: {text:?}").hint(HINT))?;
    let size = number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(unit))
        .filter(|size| *size <= LARGEST)
        .ok_or_else(|| fault!("the size {text:?} is too large").hint(HINT))?;
    match size {
        0 => Err(Fault::new("it must be above zero")),
        size => Ok(size),
    }
}

/// The shortest text that [`parse`] reads as `size`.
pub(crate) fn format(size: u64) -> String {
    let unit = UNITS.iter().find(|(_, unit)| size.is_multiple_of(*unit));
    let (name, unit) = unit.filter(|_| size > 0).unwrap_or(&("", 1));
    format!("{}{name}", size / unit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn examples() {
        for (text, size) in [
            ("1", 1),
            ("64k", 65_536),
            (" 16m ", 16 << 20),
            ("1g", 1 << 30),
        ] {
            assert_eq!(parse(text).ok(), Some(size), "{text}");
        }
        for text in [
            "",
            "0",
            "0k",
            "k",
            "-1",
            "1.5m",
            "1K",
            "1 k",
            "1t",
            "+1",
            "99999999999999999999",
            "9999999g",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn there_and_back(
            size in 1..=LARGEST,
            unit in prop::sample::select(vec![1u64, 1 << 10, 1 << 20, 1 << 30]),
        ) {
            let size = (size / unit * unit).max(1);
            prop_assert_eq!(parse(&format(size)).ok(), Some(size));
        }
    }
}
