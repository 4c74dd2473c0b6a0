//! A row of the table of keys: the key, how its value is written, its default, and its field.

use std::time::Duration;

use super::{applies::Applies, scalar::Scalar};
use crate::config::{
    text::{
        quote::quoted,
        report::{Fault, fault},
    },
    value::{duration, size},
};

/// The properties of a key that do not depend on its field.
pub(crate) struct Key {
    pub(crate) name: &'static str,
    pub(crate) form: Form,
    /// As it is written, without quotes. Empty: none, or one that depends on other keys.
    pub(crate) default: &'static str,
    pub(crate) applies: Applies,
    pub(crate) doc: &'static str,
}

/// How a value is written.
pub(crate) enum Form {
    Flag,
    /// A whole number from the first to the second.
    Number(i128, i128),
    Duration(Rule),
    /// A number of bytes.
    Size,
    /// One of the words.
    Word(fn() -> Vec<&'static str>),
    /// Read by code.
    Other(&'static str),
}

/// Which durations a key takes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rule {
    Any,
    AboveZero,
    AtLeast(Duration),
    /// What TCP_KEEPIDLE and TCP_KEEPINTVL take.
    WholeSeconds,
}

impl Rule {
    pub(crate) fn check(self, duration: Duration) -> Result<(), Fault> {
        match self {
            Self::AboveZero if duration.is_zero() => Err(Fault::new("it must be longer than zero")),
            Self::AtLeast(least) if duration < least => {
                Err(fault!("it must be at least {}", duration::format(least)))
            }
            Self::WholeSeconds
                if duration.subsec_nanos() != 0 || !(1..=32_767).contains(&duration.as_secs()) =>
            {
                Err(Fault::new(
                    "the kernel takes whole seconds from \"1s\" to \"32767s\"",
                ))
            }
            _ => Ok(()),
        }
    }
}

/// Where the value of a key goes in a `T`.
pub(crate) enum Field<T> {
    /// A scalar.
    Value {
        set: fn(&mut T, Scalar),
        get: fn(&T) -> Scalar,
    },
    /// Read by code.
    Code {
        /// As TOML; `None`: not written.
        write: fn(&T) -> Option<String>,
        /// Takes the value of another `T`.
        copy: fn(&mut T, &T),
    },
}

pub(crate) struct Row<T: 'static> {
    pub(crate) key: Key,
    pub(crate) field: Field<T>,
}

impl<T> Row<T> {
    /// The value as TOML; `None`: there is none.
    pub(crate) fn write(&self, target: &T) -> Option<String> {
        let get = match &self.field {
            Field::Value { get, .. } => get,
            Field::Code { write, .. } => return write(target),
        };
        Some(match (get(target), &self.key.form) {
            (Scalar::Flag(flag), _) => flag.to_string(),
            (Scalar::Number(number), Form::Size) => quoted(&size::format(number)),
            (Scalar::Number(number), _) => number.to_string(),
            (Scalar::Duration(duration), _) => quoted(&duration::format(duration)),
            (Scalar::Word(word), _) => quoted(word),
        })
    }

    /// Takes the value of `other`.
    pub(crate) fn copy(&self, target: &mut T, other: &T) {
        match &self.field {
            Field::Value { set, get } => set(target, get(other)),
            Field::Code { copy, .. } => copy(target, other),
        }
    }
}

/// The field of a scalar: `value!(a.b)`.
macro_rules! value {
    ($($field:ident).+) => {
        $crate::config::keys::row::Field::Value {
            set: |target, scalar| {
                $crate::config::keys::scalar::Value::set(&mut target.$($field).+, scalar);
            },
            get: |target| $crate::config::keys::scalar::Value::get(&target.$($field).+),
        }
    };
}
pub(crate) use value;

/// The field of a key that code reads: `code!(a.b, |target| ...)`, or without a field of its own.
macro_rules! code {
    ($($field:ident).+, $write:expr) => {
        $crate::config::keys::row::Field::Code {
            write: $write,
            copy: |target, other| target.$($field).+ = other.$($field).+.clone(),
        }
    };
    ($write:expr) => {
        $crate::config::keys::row::Field::Code {
            write: $write,
            copy: |_, _| {},
        }
    };
}
pub(crate) use code;

/// The field of a key that some kinds have: `when!(source, PATTERN => TEXT)`; not written for the
/// others.
macro_rules! when {
    ($field:ident, $($pattern:pat $(if $when:expr)? => $text:expr),+) => {
        $crate::config::keys::row::code!(|target| match &target.$field {
            $($pattern $(if $when)? => $text,)+
            _ => None,
        })
    };
}
pub(crate) use when;

/// Declares the rows of a table: name, form, default, where it applies, field, and documentation.
macro_rules! rows {
    ($($name:literal $form:expr, $default:literal, $applies:expr, $field:expr, $doc:literal;)*) => {
        &[$($crate::config::keys::row::Row {
            key: $crate::config::keys::row::Key {
                name: $name,
                form: $form,
                default: $default,
                applies: $applies,
                doc: $doc,
            },
            field: $field,
        },)*]
    };
}
pub(crate) use rows;
