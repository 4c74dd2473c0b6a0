//! Reads one table of the file: typed getters that report what is wrong and go on with the default.
//!
//! A getter that reported gives a stand-in. That is safe: a report with a problem in it never
//! becomes a plan.

use std::{ops::RangeInclusive, time::Duration};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use crate::config::{
    keys::{
        CHECK, DEFAULTS, Keys, LISTENER, UPSTREAM,
        applies::{Applies, NoEffect},
        row::{Field, Form, Key, Row, Rule},
        scalar::{Scalar, Word},
        synonyms,
    },
    text::{
        report::{Fault, Report, Span, fault},
        suggestions::{found, list, nearest, number_text, quoted_key, shorten},
    },
    value::{duration, size},
};

pub(super) type Value<'a> = Spanned<DeValue<'a>>;

pub(super) struct Section<'a> {
    pub(super) header: Span,
    pub(super) report: &'a Report,
    table: &'a DeTable<'a>,
    /// Asked for keys that `table` does not have.
    defaults: Option<&'a DeTable<'a>>,
    keys: &'static Keys,
}

/// A piece of text and where it stands.
#[derive(Clone)]
pub(super) struct Text<'a> {
    pub(super) text: &'a str,
    pub(super) span: Span,
}

impl<'a> Section<'a> {
    /// Reports every key that is unknown.
    pub(super) fn new(
        keys: &'static Keys,
        table: &'a DeTable<'a>,
        header: Span,
        report: &'a Report,
    ) -> Self {
        for key in table.keys() {
            let name = key.get_ref().as_ref();
            if !keys.contains(name) {
                let key_text = quoted_key(name);
                let fault = fault!("unknown key {key_text} in {}", keys.label);
                report.add(&key.span(), fault.hint(keys.advice(name)));
            }
        }
        Self {
            header,
            report,
            table,
            defaults: None,
            keys,
        }
    }

    /// The same for a value that has to be a table.
    pub(super) fn open(
        keys: &'static Keys,
        value: &'a Value<'a>,
        report: &'a Report,
    ) -> Option<Self> {
        match value.get_ref().as_table() {
            Some(table) => Some(Self::new(keys, table, value.span(), report)),
            None => {
                report.add(
                    &value.span(),
                    fault!(
                        "{} must be a table, not {}",
                        keys.label,
                        found(value.get_ref())
                    )
                    .hint(instead_of_value(keys)),
                );
                None
            }
        }
    }

    pub(super) fn with_defaults(mut self, defaults: Option<&'a DeTable<'a>>) -> Self {
        self.defaults = defaults;
        self
    }

    /// The keys that stand in this very table.
    pub(super) fn keys(&self) -> impl Iterator<Item = &'a str> {
        self.table.keys().map(|key| key.get_ref().as_ref())
    }

    /// The value of `key`, here or in the defaults.
    pub(super) fn get(&self, key: &str) -> Option<&'a Value<'a>> {
        self.own(key)
            .or_else(|| self.defaults.and_then(|defaults| defaults.get(key)))
    }

    /// The value of `key` in this very table.
    pub(super) fn own(&self, key: &str) -> Option<&'a Value<'a>> {
        debug_assert!(self.keys.contains(key), "{key} is not in the table of keys");
        self.table.get(key)
    }

    pub(super) fn missing(&self, key: &str, hint: &str) {
        self.report
            .add(&self.header, fault!("`{key}` is missing").hint(hint));
    }

    /// Whether the table holds defaults: there nothing is missing, and keys may be for others.
    pub(super) fn is_defaults(&self) -> bool {
        std::ptr::eq(self.keys, &DEFAULTS)
    }

    /// Reads the scalars of `rows` into `target`.
    pub(super) fn read<T>(&self, rows: &[Row<T>], target: &mut T) {
        for row in rows {
            if let (Field::Value { set, .. }, Some(scalar)) = (&row.field, self.scalar(&row.key)) {
                set(target, scalar);
            }
        }
    }

    fn scalar(&self, key: &Key) -> Option<Scalar> {
        let (name, default) = (key.name, key.default);
        Some(match &key.form {
            Form::Flag => Scalar::Flag(self.flag(name, default == "true")),
            Form::Number(least, most) => {
                let default = default.parse().unwrap_or_default();
                Scalar::Number(self.number(name, default, *least..=*most))
            }
            Form::Duration(rule) => {
                let default = duration::parse(default).unwrap_or_default();
                Scalar::Duration(self.duration(name, default, *rule))
            }
            Form::Word(words) => {
                let words = words();
                let default = words.iter().find(|word| **word == default).copied();
                Scalar::Word(self.one_of(name, &words).or(default)?)
            }
            Form::Size => Scalar::Number(self.size(name)?),
            Form::Other(_) => return None,
        })
    }

    /// Reports the keys that have no effect where they stand, and replaces their values by those of
    /// `defaults`.
    pub(super) fn drop_without_effect<'r, T: 'static>(
        &self,
        rows: impl IntoIterator<Item = &'r Row<T>>,
        target: &mut T,
        defaults: &T,
        no_effect: impl Fn(&T, Applies) -> Option<NoEffect>,
    ) {
        for row in rows {
            let Some(found) = no_effect(target, row.key.applies) else {
                continue;
            };
            if !(found.allows_default && row.write(target) == row.write(defaults)) {
                self.report_no_effect(row.key.name, &found);
            }
            row.copy(target, defaults);
        }
    }

    /// Reports `key` where it stands in this very table; in `[defaults]` it may be there for
    /// others.
    pub(super) fn report_no_effect(&self, key: &str, found: &NoEffect) {
        if let Some(value) = self.own(key).filter(|_| !self.is_defaults()) {
            self.report
                .add(&value.span(), found.fault(&format!("`{key}`")));
        }
    }

    pub(super) fn flag(&self, key: &str, default: bool) -> bool {
        let Some(value) = self.get(key) else {
            return default;
        };
        value.get_ref().as_bool().unwrap_or_else(|| {
            let mut fault = fault!(
                "`{key}` must be true or false, not {}",
                found(value.get_ref())
            );
            if let Some(word @ ("true" | "false")) = value.get_ref().as_str() {
                fault = fault.hint(format!("write {word} without quotes"));
            }
            let hint = format!("leave it out for the default, {default}");
            self.report.add(&value.span(), fault.or_hint(hint));
            default
        })
    }

    /// `range` must lie within `T`.
    pub(super) fn number<T: TryFrom<i128> + std::fmt::Display>(
        &self,
        key: &str,
        default: T,
        range: RangeInclusive<i128>,
    ) -> T {
        let Some(value) = self.get(key) else {
            return default;
        };
        let expected = || {
            format!(
                "`{key}` must be a whole number from {} to {}",
                range.start(),
                range.end()
            )
        };
        let fault = match value.get_ref() {
            DeValue::Integer(integer) => {
                let number = i128::from_str_radix(integer.as_str(), integer.radix()).ok();
                match number
                    .filter(|number| range.contains(number))
                    .and_then(|number| T::try_from(number).ok())
                {
                    Some(number) => return number,
                    None => fault!("{}, not {}", expected(), shorten(&integer.to_string())),
                }
            }
            other => {
                let fault = fault!("{}, not {}", expected(), found(other));
                match other.as_str().map(|text| text.trim().parse::<i128>()) {
                    Some(Ok(number)) if range.contains(&number) => {
                        fault.hint(format!("write {number} without quotes"))
                    }
                    _ => fault,
                }
            }
        };
        let hint = format!("leave it out for the default, {default}");
        self.report.add(&value.span(), fault.or_hint(hint));
        default
    }

    pub(super) fn duration(&self, key: &str, default: Duration, rule: Rule) -> Duration {
        self.checked_duration(key, default, |duration| rule.check(duration))
    }

    /// A duration in which `check` finds no fault.
    pub(super) fn checked_duration(
        &self,
        key: &str,
        default: Duration,
        check: impl FnOnce(Duration) -> Result<(), Fault>,
    ) -> Duration {
        let hint = format!(
            "leave it out for the default, {:?}",
            duration::format(default)
        );
        let read = self.optional_duration(key, check, &hint);
        read.unwrap_or(default)
    }

    /// The same where there is no default; `hint` names the alternative.
    pub(super) fn optional_duration(
        &self,
        key: &str,
        check: impl FnOnce(Duration) -> Result<(), Fault>,
        hint: &str,
    ) -> Option<Duration> {
        let value = self.get(key)?;
        let fault = match value.get_ref() {
            DeValue::String(text) if is_bare_number(text.trim()) => {
                bare_number(key, text.trim(), check)
            }
            DeValue::String(text) => {
                let read = duration::parse(text).and_then(|duration| {
                    let may_be_zero = instead_of_zero(key).filter(|_| duration.is_zero());
                    check(duration).map_err(|fault| Fault {
                        hint: may_be_zero.map(str::to_owned),
                        ..fault
                    })?;
                    Ok(duration)
                });
                match read {
                    Ok(duration) => return Some(duration),
                    Err(fault) => Fault {
                        message: format!("`{key}`: {}", fault.message),
                        ..fault
                    },
                }
            }
            DeValue::Integer(_) | DeValue::Float(_) => {
                bare_number(key, &number_text(value.get_ref()), check)
            }
            other => fault!(
                "`{key}` must be a duration like \"10s\", not {}",
                found(other)
            ),
        };
        self.report.add(&value.span(), fault.or_hint(hint));
        None
    }

    /// A number of bytes, or 0.
    pub(super) fn size_or_zero(&self, key: &str) -> Option<u64> {
        match self.get(key)?.get_ref().as_str() {
            Some("0") => Some(0),
            _ => self.size(key),
        }
    }

    /// A number of bytes, at least one.
    pub(super) fn size(&self, key: &str) -> Option<u64> {
        let value = self.get(key)?;
        let fault = match value.get_ref() {
            DeValue::String(text) => match size::parse(text) {
                Ok(size) => return Some(size),
                Err(fault) => Fault {
                    message: format!("`{key}`: {}", fault.message),
                    ..fault
                },
            },
            DeValue::Integer(_) => {
                let number = shorten(&number_text(value.get_ref()));
                fault!("`{key}` must be a size as text, not the bare number {number}")
                    .hint(format!("write \"{number}\" for bytes"))
            }
            other => fault!("`{key}` must be a size like \"64k\", not {}", found(other)),
        };
        self.report.add(
            &value.span(),
            fault.or_hint("as in \"64k\", \"16m\", \"1g\""),
        );
        None
    }

    pub(super) fn word<W: Word>(&self, key: &str, default: W) -> W {
        let word = self.one_of(key, &W::words());
        let value = W::WORDS.iter().find(|(allowed, _)| Some(*allowed) == word);
        value.map_or(default, |(_, value)| *value)
    }

    /// One of these words; `None`: the key is missing, or has another value, which is reported.
    pub(super) fn one_of(&self, key: &str, words: &[&'static str]) -> Option<&'static str> {
        let value = self.get(key)?;
        if let DeValue::Boolean(_) | DeValue::Integer(_) | DeValue::Float(_) = value.get_ref() {
            let found = found(value.get_ref());
            let fault = fault!("`{key}` must be a word, not {found}");
            let quoted = words.iter().map(|word| format!("\"{word}\""));
            let quoted = quoted.collect::<Vec<_>>().join(", ");
            self.report
                .add(&value.span(), fault.hint(format!("one of: {quoted}")));
            return None;
        }
        let text = self.text(key)?;
        self.as_one_of(key, &text, words)
    }

    /// The same of a text that was read.
    pub(super) fn as_one_of(
        &self,
        key: &str,
        Text { text, span }: &Text<'_>,
        words: &[&'static str],
    ) -> Option<&'static str> {
        let found = words.iter().find(|word| *word == text);
        if found.is_none() {
            let fault = fault!("`{key}` has no value {}", shorten(&format!("{text:?}")));
            let hint = match (synonyms::of_value(key, text, words), nearest(text, words)) {
                (Some(hint), _) => hint.to_owned(),
                (None, Some(near)) => format!("did you mean \"{near}\"?"),
                (None, None) => format!("one of: {}", list(words.iter().copied())),
            };
            self.report.add(span, fault.hint(hint));
        }
        found.copied()
    }

    pub(super) fn text(&self, key: &str) -> Option<Text<'a>> {
        let value = self.get(key)?;
        self.as_text(key, value)
    }

    /// One text or a list of them. `None`: missing, or nothing in it could be used.
    pub(super) fn texts(&self, key: &str) -> Option<Vec<Text<'a>>> {
        let value = self.get(key)?;
        match value.get_ref() {
            DeValue::Array(items) if items.is_empty() => {
                self.report.add(
                    &value.span(),
                    fault!("`{key}` is an empty list").hint("give at least one"),
                );
                None
            }
            DeValue::Array(_) => Some(
                self.list(key)?
                    .iter()
                    .filter_map(|item| self.as_text(key, item))
                    .collect(),
            ),
            _ => Some(vec![self.as_text(key, value)?]),
        }
    }

    pub(super) fn list(&self, key: &str) -> Option<&'a [Value<'a>]> {
        let value = self.get(key)?;
        let list = value.get_ref().as_array();
        if list.is_none() {
            let mut fault = fault!("`{key}` must be a list, not {}", found(value.get_ref()));
            if let Some(text) = value.get_ref().as_str() {
                fault = fault.hint(format!("write [{}]", shorten(&format!("{text:?}"))));
            }
            let hint = "a list stands in brackets: [ …, … ]";
            self.report.add(&value.span(), fault.or_hint(hint));
        }
        list.map(|array| &array[..])
    }

    pub(super) fn as_text(&self, key: &str, value: &'a Value<'a>) -> Option<Text<'a>> {
        let text = value.get_ref().as_str();
        if text.is_none() {
            let mut fault = fault!("`{key}` must be text, not {}", found(value.get_ref()));
            if let DeValue::Integer(_) = value.get_ref()
                && let Some(text) = text_for_number(key, &number_text(value.get_ref()))
            {
                fault = fault.hint(format!("write {text:?}"));
            } else if !value.get_ref().is_array() && !value.get_ref().is_table() {
                fault = fault.hint("put it in double quotes");
            }
            self.report
                .add(&value.span(), fault.or_hint("one text in double quotes"));
        }
        text.map(|text| Text {
            text,
            span: value.span(),
        })
    }
}

/// What to do about a value where a table has to be.
fn instead_of_value(keys: &'static Keys) -> String {
    let own = [&LISTENER, &UPSTREAM];
    if own.iter().any(|table| std::ptr::eq(*table, keys)) {
        return format!(
            "a section has a name: write {}, as in {}",
            keys.label,
            keys.label.replace("NAME", "cache")
        );
    }
    if std::ptr::eq(keys, &CHECK) {
        return format!(
            "write a section {} on a line of its own, with kind = \"tcp\" or another kind below",
            keys.label
        );
    }
    "write a section in brackets on a line of its own, its keys below".to_owned()
}

/// What was meant by a bare number.
fn text_for_number(key: &str, number: &str) -> Option<String> {
    match key {
        "bind" => Some(format!("0.0.0.0:{number}")),
        "listen" => Some(format!("127.0.0.1:{number}")),
        "connection_rate" | "connection_rate_per_source" => Some(format!("{number}/s")),
        _ => None,
    }
}

fn is_bare_number(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit() || b == b'.') && text.parse::<f64>().is_ok()
}

/// A duration that was written without a unit, as nginx and HAProxy take it: what to write instead.
fn bare_number(
    key: &str,
    number: &str,
    check: impl FnOnce(Duration) -> Result<(), Fault>,
) -> Fault {
    let fault = fault!(
        "`{key}` must be a duration with a unit, not the bare number {}",
        shorten(number)
    );
    let Ok(seconds) = duration::parse(&format!("{number}s")) else {
        return fault;
    };
    match check(seconds) {
        // With the unit it would be refused as well.
        Err(refused) if seconds.is_zero() => Fault {
            message: format!("`{key}`: {}", refused.message),
            hint: instead_of_zero(key).map(str::to_owned),
        },
        Err(refused) => Fault {
            message: format!("{}; and in seconds: {}", fault.message, refused.message),
            ..fault
        },
        Ok(()) if number.parse::<u64>().is_ok_and(|number| number >= 1000) => fault.hint(format!(
            "write \"{number}ms\" for milliseconds, or \"{number}s\" for seconds"
        )),
        Ok(()) => fault.hint(format!("write \"{number}s\" for seconds")),
    }
}

/// What other programs mean by zero, where it is refused here.
fn instead_of_zero(key: &str) -> Option<&'static str> {
    Some(match key {
        "connect_timeout" => "a limit is required: for a very long one write \"1h\"",
        "fail_timeout" => {
            "write max_fails = 0 for a backend that stays in use whatever fails; or a short \
             time, as in \"1s\""
        }
        "idle_timeout" => "a limit is required: for a very long one write \"24h\"",
        "interval" => {
            "it always has one: without checks, or without a source, leave the section out; \
             without keepalive write keepalive = false"
        }
        "idle" => "for no keepalive write keepalive = false; the shortest is \"1s\"",
        "fast_interval" => "to check no faster in doubt write the same as for `interval`",
        "timeout" => "a limit is required: for a very long one write \"1h\"",
        "close_after" => "to end sessions at once write \"close\" instead of the table",
        "max_lag" => "leave it out for no limit; the least is \"1ms\"",
        _ => return None,
    })
}
