//! The fields of a request: of its query, or of the JSON object in its body. Both are read alike.

use super::request::{Refusal, bad, decode, hint, read_body, require, shown};
use crate::config::{Fault, parse_duration};
use hyper::{Method, Request, body::Incoming};
use serde_json::{Map, Value};
use std::time::Duration;

/// Those that have not been taken yet.
pub(super) struct Fields(Map<String, Value>);

impl Fields {
    pub(super) fn of_query(query: &str) -> Result<Self, Refusal> {
        let mut fields = Map::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (Some(key), Some(value)) = (decode(key), decode(value)) else {
                return Err(bad(
                    format!("the query has a faulty escape: {:?}", shown(pair)),
                    "percent-encode it, as in client=10.0.0.0%2F8",
                ));
            };
            if fields.insert(key.clone(), Value::String(value)).is_some() {
                return Err(twice(&key));
            }
        }
        Ok(Self(fields))
    }

    /// Of a POST. `instead`: what to do if it is none; `example`: of a body.
    pub(super) async fn of_post(
        request: Request<Incoming>,
        instead: &str,
        example: &str,
    ) -> Result<Self, Refusal> {
        require(Method::POST, request.method(), instead)?;
        let body = read_body(request, |error| bad(error, example)).await?;
        Self::of_body(&body, example)
    }

    fn of_body(body: &[u8], example: &str) -> Result<Self, Refusal> {
        if body.is_empty() {
            return Ok(Self(Map::new()));
        }
        let fields = serde_json::from_slice(body);
        let faulty = |e| bad(format!("the body is not what it should be: {e}"), example);
        fields.map(Self).map_err(faulty)
    }

    pub(super) fn text(&mut self, key: &str) -> Result<Option<String>, Refusal> {
        match self.0.remove(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) if !text.is_empty() => Ok(Some(text)),
            Some(other) => Err(wrong(key, &other, "a text that is not empty")),
        }
    }

    pub(super) fn duration(&mut self, key: &str) -> Result<Option<Duration>, Refusal> {
        self.parsed(key, parse_duration)
    }

    pub(super) fn parsed<T>(
        &mut self,
        key: &str,
        parse: impl FnOnce(&str) -> Result<T, Fault>,
    ) -> Result<Option<T>, Refusal> {
        let text = self.text(key)?;
        text.map(|text| parse(&text)).transpose().map_err(|fault| {
            let hint = fault.hint.unwrap_or_default();
            bad(format!("`{key}`: {}", shown(&fault.message)), &hint)
        })
    }

    /// From 0 to `most`.
    pub(super) fn number(&mut self, key: &str, most: u64) -> Result<Option<u64>, Refusal> {
        let value = match self.0.remove(key) {
            None | Some(Value::Null) => return Ok(None),
            Some(value) => value,
        };
        let number = match &value {
            Value::Number(number) => number.as_u64(),
            Value::String(text) => text.parse().ok(),
            Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
        };
        match number.filter(|number| *number <= most) {
            Some(number) => Ok(Some(number)),
            None => Err(wrong(key, &value, &format!("a number from 0 to {most}"))),
        }
    }

    pub(super) fn flag(&mut self, key: &str) -> Result<bool, Refusal> {
        match self.0.remove(key) {
            None | Some(Value::Null) => Ok(false),
            Some(Value::Bool(flag)) => Ok(flag),
            Some(Value::String(text)) if text == "true" => Ok(true),
            Some(Value::String(text)) if text == "false" => Ok(false),
            Some(other) => Err(wrong(key, &other, "true or false")),
        }
    }

    /// Refuses fields that were not taken. `known`: all that there are.
    pub(super) fn finish(self, known: &[&str]) -> Result<(), Refusal> {
        match self.0.keys().next() {
            None => Ok(()),
            Some(key) if known.contains(&key.as_str()) => Err(twice(key)),
            Some(key) => Err(bad(
                format!("there is no field {:?}", shown(key)),
                &hint(key, known),
            )),
        }
    }
}

fn twice(key: &str) -> Refusal {
    let error = format!("the field {:?} is there twice", shown(key));
    bad(error, "all filters have to match: name each once")
}

fn wrong(key: &str, value: &Value, expected: &str) -> Refusal {
    let value = shown(&value.to_string());
    bad(format!("`{key}` is {value}"), &format!("it is {expected}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(text: &str) -> Fields {
        match Fields::of_query(text) {
            Ok(fields) => fields,
            Err(Refusal(_, error, _)) => panic!("{error}"),
        }
    }

    #[test]
    fn a_query_and_a_body_are_read_alike() {
        let text = r#"{"a": "x y", "n": 7, "f": true, "d": "1m", "none": null}"#;
        let body = Fields::of_body(text.as_bytes(), "")
            .ok()
            .expect("an object");
        for mut fields in [query("a=x%20y&n=7&f=true&d=1m"), body] {
            assert_eq!(fields.text("a").ok(), Some(Some("x y".to_owned())));
            assert_eq!(fields.number("n", 9).ok(), Some(Some(7)));
            assert_eq!(fields.flag("f").ok(), Some(true));
            let minute = Some(Duration::from_secs(60));
            assert_eq!(fields.duration("d").ok(), Some(minute));
            assert_eq!(fields.text("none").ok(), Some(None));
            assert!(fields.finish(&[]).is_ok());
        }
    }

    #[test]
    fn errors_name_the_field() {
        let error = |refusal: Option<Refusal>| refusal.map(|Refusal(_, error, _)| error);
        let mut fields = query("n=10&d=1&f=yes&a=");
        let found = error(fields.number("n", 9).err());
        assert_eq!(found.as_deref(), Some("`n` is \"10\""));
        let found = error(fields.duration("d").err());
        let expected = "`d`: the duration \"1\" has a number without a unit";
        assert_eq!(found.as_deref(), Some(expected));
        assert_eq!(
            error(fields.flag("f").err()).as_deref(),
            Some("`f` is \"yes\"")
        );
        assert_eq!(
            error(fields.text("a").err()).as_deref(),
            Some("`a` is \"\"")
        );
        let Err(Refusal(_, error, hint)) = query("lisener=x").finish(&["listener"]) else {
            panic!("it is unknown");
        };
        assert_eq!(error, "there is no field \"lisener\"");
        assert_eq!(hint, "did you mean \"listener\"?");
        assert!(Fields::of_query("a=1&a=2").is_err());
        assert!(Fields::of_query("a=%zz").is_err());
        assert!(Fields::of_body(b"[]", "").is_err());
    }
}
