//! The rights of a unix socket's file: `unix_mode`, `unix_owner` and `unix_group`.

use crate::{
    config::{
        section::{Section, Text},
        text::{
            report::fault,
            suggestions::{found, number_text, shorten},
        },
    },
    plan::UnixFile,
};
use toml::de::DeValue;

/// As nginx has it: every user of the host may connect.
pub(crate) const DEFAULT: UnixFile = UnixFile {
    mode: 0o666,
    owner: None,
    group: None,
};

pub(crate) fn read(section: &Section<'_>) -> UnixFile {
    UnixFile {
        mode: read_mode(section).unwrap_or(DEFAULT.mode),
        owner: read_name("unix_owner", section),
        group: read_name("unix_group", section),
    }
}

fn read_mode(section: &Section<'_>) -> Option<u32> {
    const HINT: &str = "three octal digits as for chmod: \"0666\" lets every user connect, \
                        \"0660\" the owner and the group, \"0600\" the owner";
    let value = section.get("unix_mode")?;
    let fault = match value.get_ref() {
        DeValue::String(text) => match parse_mode(text) {
            Some(mode) => return Some(mode),
            None => fault!(
                "`unix_mode` must be an octal mode up to 0777, not {}",
                shorten(&format!("{text:?}"))
            ),
        },
        // It may have been meant as octal or as decimal.
        DeValue::Integer(_) => fault!(
            "`unix_mode` must be text in octal, not the bare number {}",
            shorten(&number_text(value.get_ref()))
        ),
        other => fault!("`unix_mode` must be text in octal, not {}", found(other)),
    };
    section.report.add(&value.span(), fault.hint(HINT));
    None
}

fn parse_mode(text: &str) -> Option<u32> {
    let is_octal = text.bytes().all(|b| (b'0'..=b'7').contains(&b));
    let mode = u32::from_str_radix(text, 8).ok()?;
    ((3..=4).contains(&text.len()) && is_octal && mode <= 0o777).then_some(mode)
}

fn read_name(key: &str, section: &Section<'_>) -> Option<String> {
    let Text { text, span } = section.text(key)?;
    if text.contains(|c: char| c.is_control() || c.is_whitespace() || matches!(c, ':' | '/')) {
        let what = shorten(&format!("{text:?}"));
        let fault = fault!("`{key}`: {what} cannot be a name");
        section.report.add(
            &span,
            fault.hint("one name as in `id`, or a number as text"),
        );
        return None;
    }
    Some(text.to_owned()).filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_octal() {
        for (text, mode) in [
            ("0666", 0o666),
            ("660", 0o660),
            ("0000", 0),
            ("0777", 0o777),
        ] {
            assert_eq!(parse_mode(text), Some(mode), "{text}");
        }
        for text in [
            "",
            "6",
            "66",
            "1777",
            "0888",
            "0o666",
            "+666",
            "00666",
            "rw-rw-rw-",
            " 666",
        ] {
            assert_eq!(parse_mode(text), None, "{text}");
        }
    }
}
