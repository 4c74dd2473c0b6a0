//! Rates as text: "10/s", "0.5/s", "30/m".

use crate::config::text::report::{Fault, fault};

use crate::plan::{Period, Rate};

const HINT: &str = "as in \"10/s\" or \"30/m\"";
const MOST: f64 = 1e6;
const LIMIT_HINT: &str = "a whole number, as in \"100/s\" or \"30/m\"; \"0/s\" is no limit";
const MOST_OF_LIMIT: u32 = 1_000_000;

/// How often per second: more than 0.
pub fn parse(text: &str) -> Result<f64, Fault> {
    let wrong = || fault!("not a rate: {text:?}").hint(HINT);
    let (number, unit) = text.trim().split_once('/').ok_or_else(wrong)?;
    let seconds = match unit.trim() {
        "s" => 1.0,
        "m" => 60.0,
        _ => return Err(wrong()),
    };
    let is_plain = |c: char| c.is_ascii_digit() || c == '.';
    let number = Some(number.trim()).filter(|number| number.chars().all(is_plain));
    let number: f64 = number.and_then(|n| n.parse().ok()).ok_or_else(wrong)?;
    match number > 0.0 && number <= MOST {
        true => Ok(number / seconds),
        false => {
            let fault = fault!("the rate {text:?} is not above 0 and at most {MOST}");
            Err(fault.hint(HINT))
        }
    }
}

/// A limit: a whole number for each second or minute; 0 is none.
pub(crate) fn parse_limit(text: &str) -> Result<Rate, Fault> {
    let wrong = || fault!("not a rate: {text:?}").hint(LIMIT_HINT);
    let (number, unit) = text.trim().split_once('/').ok_or_else(wrong)?;
    let per = match unit.trim() {
        "s" => Period::Second,
        "m" => Period::Minute,
        _ => return Err(wrong()),
    };
    let digits = Some(number.trim()).filter(|n| n.bytes().all(|b| b.is_ascii_digit()));
    let digits = digits.filter(|n| !n.is_empty()).ok_or_else(wrong)?;
    // Nothing but too large can be wrong with it.
    let connections: u32 = digits.parse().unwrap_or(u32::MAX);
    match connections <= MOST_OF_LIMIT {
        true => Ok(Rate {
            connections,
            // There is one way to have no limit.
            per: if connections == 0 {
                Period::Second
            } else {
                per
            },
        }),
        false => Err(fault!("the rate {text:?} is above {MOST_OF_LIMIT}").hint(LIMIT_HINT)),
    }
}

/// As [`parse_limit`] reads it.
pub(crate) fn format(rate: Rate) -> String {
    let unit = match rate.per {
        Period::Second => "s",
        Period::Minute => "m",
    };
    format!("{}/{unit}", rate.connections)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_have_a_unit() {
        for (text, rate) in [
            ("10/s", 10.0),
            (" 0.5 / s", 0.5),
            ("30/m", 0.5),
            ("1000000/s", 1e6),
        ] {
            assert_eq!(parse(text), Ok(rate));
        }
        for text in [
            "",
            "10",
            "/s",
            "0/s",
            "-1/s",
            "1e3/s",
            "inf/s",
            "10/h",
            "1000001/s",
            "1..2/s",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn limits_are_whole_numbers() {
        for text in ["100/s", "30/m", "0/s", "1000000/s"] {
            assert_eq!(parse_limit(text).map(format).as_deref(), Ok(text));
        }
        assert_eq!(parse_limit("0/m"), Ok(Rate::default()));
        for text in ["", "10", "/s", "-1/s", "0.5/s", "10/h", "1000001/s", "+1/s"] {
            assert!(parse_limit(text).is_err(), "{text}");
        }
    }
}
