//! Lists of backends as text: lines, JSON and TOML. Pure.

use super::{Found, SourceError};
use crate::{config::parse_target, plan::MOST_WEIGHT};
use serde_json::{Map, Value};

/// So many backends a source may have.
pub(crate) const MOST_BACKENDS: usize = 20_000;
/// Of what is shown of a wrong entry.
const SHOWN: usize = 60;

/// A backend in each line: `ADDRESS [weight=N] [backup] [draining] [name=NAME]`. What follows "#"
/// is a comment.
pub(crate) fn parse_lines(text: &str) -> Result<Vec<Found>, SourceError> {
    let mut found = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.split_once('#').map_or(line, |(line, _)| line).trim();
        if !line.is_empty() {
            let entry = parse_entry(line);
            found.push(entry.map_err(|e| e.at(&format!("line {number}")))?);
        }
    }
    limit(found)
}

/// One such line.
pub(crate) fn parse_entry(line: &str) -> Result<Found, SourceError> {
    let mut words = line.split_whitespace();
    let Some(address) = words.next() else {
        return Err(SourceError::new("an entry is empty"));
    };
    check_address(address)?;
    let mut found = Found::new(address);
    for word in words {
        match word.split_once('=') {
            Some(("weight", text)) => found.weight = parse_weight(text)?,
            Some(("name", text)) => found.name = Some(text.to_owned()),
            None if word == "backup" => found.backup = true,
            None if word == "draining" => found.draining = true,
            _ => {
                return Err(SourceError::new(format!(
                    "{} is not known: after the address come weight=N, backup, draining and \
                     name=NAME",
                    shown(word)
                )));
            }
        }
    }
    Ok(found)
}

/// A backend by itself: JSON, or such a line.
pub(super) fn parse_one(bytes: &[u8]) -> Result<Found, SourceError> {
    let text = str::from_utf8(bytes).map_err(|_| SourceError::new("it is not UTF-8"))?;
    let text = text.trim();
    if !text.starts_with(['{', '"']) {
        return parse_entry(text);
    }
    let value = serde_json::from_str(text);
    let value = value.map_err(|e| SourceError::new(format!("this is no JSON: {e}")))?;
    parse_json_entry(&value)
}

pub(crate) fn parse_weight(text: &str) -> Result<u32, SourceError> {
    let weight = text.trim().parse().ok().filter(|w| *w <= MOST_WEIGHT);
    weight.ok_or_else(|| {
        let shown = shown(text);
        SourceError::new(format!(
            "a weight is a whole number up to {MOST_WEIGHT}, not {shown}"
        ))
    })
}

/// A list of addresses or of { address, weight, backup, name, draining }, or an object with such a
/// list as `backends`.
pub(crate) fn parse_json(bytes: &[u8]) -> Result<Vec<Found>, SourceError> {
    let value = serde_json::from_slice(bytes);
    let value = value.map_err(|e| SourceError::new(format!("this is no JSON: {e}")))?;
    parse_value(&value)
}

/// The same in TOML: `backends = [...]`.
pub(crate) fn parse_toml(text: &str) -> Result<Vec<Found>, SourceError> {
    let table: Result<toml::Table, _> = text.parse();
    let table = table.map_err(|e| {
        let line = e.message().lines().next().unwrap_or_default().to_owned();
        SourceError::new(format!("this is no TOML: {line}"))
    })?;
    let value = serde_json::to_value(table);
    parse_value(&value.map_err(|e| SourceError::new(e.to_string()))?)
}

fn parse_value(value: &Value) -> Result<Vec<Found>, SourceError> {
    let list = match value {
        Value::Array(list) => list,
        Value::Object(object) => match object.get("backends") {
            Some(Value::Array(list)) if object.len() == 1 => list,
            _ => {
                return Err(SourceError::new(
                    "there is no list `backends`, or more than that",
                ));
            }
        },
        _ => return Err(SourceError::new("this is no list of backends")),
    };
    let number =
        |(number, entry)| parse_json_entry(entry).map_err(|e| e.at(&format!("entry {number}")));
    limit((1..).zip(list).map(number).collect::<Result<_, _>>()?)
}

fn parse_json_entry(entry: &Value) -> Result<Found, SourceError> {
    match entry {
        Value::String(address) => {
            check_address(address)?;
            Ok(Found::new(address))
        }
        Value::Object(object) => parse_object(object),
        _ => Err(SourceError::new(
            "a backend is an address or an object with an `address`",
        )),
    }
}

fn parse_object(object: &Map<String, Value>) -> Result<Found, SourceError> {
    let Some(address) = object.get("address").and_then(Value::as_str) else {
        return Err(SourceError::new("it has no `address` that is text"));
    };
    check_address(address)?;
    let mut found = Found::new(address);
    for (key, value) in object {
        let is_flag = || {
            let wrong = || SourceError::new(format!("`{key}` is neither true nor false"));
            value.as_bool().ok_or_else(wrong)
        };
        match key.as_str() {
            "address" => {}
            "weight" => found.weight = parse_weight(&value.to_string())?,
            "backup" => found.backup = is_flag()?,
            "draining" => found.draining = is_flag()?,
            "name" => found.name = value.as_str().map(str::to_owned),
            _ => {
                return Err(SourceError::new(format!(
                    "{} is not known: there are address, weight, backup, name and draining",
                    shown(key)
                )));
            }
        }
    }
    Ok(found)
}

/// An address is what one in the file may be.
pub fn check_address(address: &str) -> Result<(), SourceError> {
    let fault = match parse_target(address) {
        Ok(_) => return Ok(()),
        Err(fault) => fault,
    };
    let hint = fault
        .hint
        .map_or_else(String::new, |hint| format!("; {hint}"));
    Err(SourceError::new(format!("{}{hint}", fault.message)))
}

fn limit(found: Vec<Found>) -> Result<Vec<Found>, SourceError> {
    match found.len() {
        0..=MOST_BACKENDS => Ok(found),
        count => Err(SourceError::new(format!(
            "{count} backends; an upstream may have {MOST_BACKENDS}"
        ))),
    }
}

/// In quotes, without control characters, and not longer than a line.
pub(crate) fn shown(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{:?}...", &text[..end]),
        None => format!("{text:?}"),
    }
}

impl SourceError {
    /// With the place of the mistake.
    pub(crate) fn at(self, place: &str) -> Self {
        Self::new(format!("{place}: {}", self.message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn expected() -> Vec<Found> {
        let two = Found {
            weight: 3,
            backup: true,
            draining: true,
            name: Some("two".to_owned()),
            ..Found::new("[::1]:2")
        };
        vec![Found::new("10.0.0.1:1"), two]
    }

    #[test]
    fn every_format_has_the_same_fields() {
        let lines = "# comment\n10.0.0.1:1\n\n[::1]:2 weight=3 backup draining name=two # more\r\n";
        assert_eq!(parse_lines(lines), Ok(expected()));
        let entry = r#"{ "address": "[::1]:2", "weight": 3, "backup": true, "draining": true,
            "name": "two" }"#;
        let json = format!(r#"["10.0.0.1:1", {entry}]"#);
        assert_eq!(parse_json(json.as_bytes()), Ok(expected()));
        let json = format!(r#"{{ "backends": {json} }}"#);
        assert_eq!(parse_json(json.as_bytes()), Ok(expected()));
        let toml = "backends = [\"10.0.0.1:1\", { address = \"[::1]:2\", weight = 3, \
                    backup = true, draining = true, name = \"two\" }]";
        assert_eq!(parse_toml(toml), Ok(expected()));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        for (text, place) in [
            (
                "10.0.0.1:1\n10.0.0.2:1 weigth=3",
                "line 2: \"weigth=3\" is not known",
            ),
            ("10.0.0.1:1 weight=65536", "line 1: a weight is"),
            ("10.0.0.1:1 weight=-1", "line 1: a weight is"),
        ] {
            let error = parse_lines(text).expect_err(text);
            assert!(error.message.starts_with(place), "{}", error.message);
        }
        for (text, place) in [
            ("", "this is no JSON"),
            ("7", "this is no list"),
            ("{}", "there is no list"),
            ("[7]", "entry 1: a backend is"),
            (r#"["a:1", {"weight": 1}]"#, "entry 2: it has no `address`"),
            (
                r#"[{"address": "a:1", "weight": 1.5}]"#,
                "entry 1: a weight is",
            ),
            (
                r#"[{"address": "a:1", "backup": 1}]"#,
                "entry 1: `backup` is neither",
            ),
            (
                r#"[{"address": "a:1", "wait": 1}]"#,
                "entry 1: \"wait\" is not known",
            ),
        ] {
            let error = parse_json(text.as_bytes()).expect_err(text);
            assert!(error.message.starts_with(place), "{}", error.message);
        }
        assert!(parse_toml("backends = [").is_err());
        let many = "10.0.0.1:1\n".repeat(MOST_BACKENDS + 1);
        assert!(parse_lines(&many).is_err());
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text: String, json in "[\\[\\]{}\",:a-z0-9 ]{0,60}") {
            let _ = parse_lines(&text);
            let _ = parse_json(text.as_bytes());
            let _ = parse_json(json.as_bytes());
            let _ = parse_toml(&text);
        }
    }
}
