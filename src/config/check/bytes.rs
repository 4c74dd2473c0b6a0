//! What checks send and expect: as text, in hexadecimal digits, as a regular expression.

use regex::bytes::Regex;

use crate::{
    config::{
        section::{Section, Text},
        text::{
            report::{Fault, fault},
            suggestions::shorten,
        },
    },
    plan::Expect,
};

/// Reports keys of which one is enough.
pub(crate) fn report_both(section: &Section<'_>, keys: &[&str]) {
    let mut given = keys.iter().filter(|key| section.get(key).is_some());
    if let (Some(first), Some(second)) = (given.next(), given.next())
        && let Some(value) = section.get(second)
    {
        section.report.add(
            &value.span(),
            fault!("`{first}` and `{second}` set the same thing").hint("keep one of the two"),
        );
    }
}

/// The bytes that one of these keys stands for: those that end in `_hex` in hexadecimal digits.
pub(crate) fn read(section: &Section<'_>, keys: &[&str]) -> Option<Vec<u8>> {
    report_both(section, keys);
    let key = keys.iter().find(|key| section.get(key).is_some())?;
    let Text { text, span } = section.text(key)?;
    let bytes = if key.ends_with("_hex") {
        from_hex(text)
    } else {
        Some(text.as_bytes().to_vec())
    };
    if bytes.as_ref().is_some_and(Vec::is_empty) {
        section.report.add(
            &span,
            fault!("`{key}` is empty").hint("leave it out, or give it a value"),
        );
    }
    if bytes.is_none() {
        section.report.add(
            &span,
            fault!(
                "`{key}` must be pairs of hexadecimal digits, not {}",
                shorten(&format!("{text:?}"))
            )
            .hint("as in \"50 49 4e 47 0d 0a\"; blanks do not count"),
        );
    }
    bytes
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> = text
        .chars()
        .filter(|c| !c.is_ascii_whitespace())
        .map(|c| c.to_digit(16).and_then(|d| u8::try_from(d).ok()))
        .collect();
    let digits = digits?;
    let pairs = digits.chunks_exact(2);
    pairs
        .remainder()
        .is_empty()
        .then(|| pairs.map(|p| p[0] * 16 + p[1]).collect())
}

pub(crate) fn read_expect(section: &Section<'_>) -> Expect {
    report_both(section, &["expect", "expect_hex", "expect_regex"]);
    let nothing = Expect::Bytes(Vec::new());
    if let Some(bytes) = read(section, &["expect", "expect_hex"]) {
        return Expect::Bytes(bytes);
    }
    let Some(Text { text, span }) =
        (section.get("expect_regex")).and_then(|_| section.text("expect_regex"))
    else {
        if !["expect", "expect_hex", "expect_regex"]
            .iter()
            .any(|key| section.get(key).is_some())
        {
            section.missing(
                "expect",
                "set the required answer: expect = \"PONG\", or expect_hex, or expect_regex",
            );
        }
        return nothing;
    };
    match Regex::new(text) {
        Ok(_) if text.is_empty() => {
            let fault = Fault::new("`expect_regex` is empty: anything would do")
                .hint("set the required answer, or use kind = \"tcp\", which only connects");
            section.report.add(&span, fault);
        }
        Ok(_) => return Expect::Regex(text.to_owned()),
        Err(e) => {
            let e = e.to_string();
            let why = e
                .lines()
                .last()
                .unwrap_or_default()
                .trim_start_matches("error: ")
                .to_owned();
            section.report.add(
                &span,
                fault!("`expect_regex` is no regular expression: {why}")
                    .hint("see https://docs.rs/regex/#syntax; for plain text use `expect`"),
            );
        }
    }
    nothing
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hexadecimal() {
        assert_eq!(
            from_hex("50 49\n4E470d0a").as_deref(),
            Some(&b"PING\r\n"[..])
        );
        for wrong in ["5", "5 0 4", "0x50", "gg", "é"] {
            assert_eq!(from_hex(wrong), None, "{wrong}");
        }
    }
}
