//! Passwords: where they come from, and that they are not shown.

use crate::{plan::PasswordFrom, sys::files};
use std::{fmt, io, path::PathBuf, sync::Arc};

/// A longer value is no password.
const MAX_BYTES: u64 = 4096;

#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Arc<[u8]>);

impl Secret {
    /// A file may hang: call it by [`crate::sys::blocking`].
    pub fn load(from: &PasswordFrom) -> Result<Self, SecretError> {
        let bytes = match from {
            PasswordFrom::File(path) => {
                let mut bytes = files::read(path, MAX_BYTES).map_err(|e| match e.kind() {
                    io::ErrorKind::FileTooLarge => SecretError::TooLong(from.clone()),
                    _ => SecretError::Unreadable(path.clone(), e),
                })?;
                // Editors end the last line.
                while bytes.last().is_some_and(|b| matches!(b, b'\n' | b'\r')) {
                    bytes.pop();
                }
                bytes
            }
            PasswordFrom::Variable(name) => std::env::var_os(name)
                .ok_or_else(|| SecretError::NotSet(name.clone()))?
                .into_encoded_bytes(),
        };
        match bytes.len() as u64 {
            0 => Err(SecretError::Empty(from.clone())),
            length if length > MAX_BYTES => Err(SecretError::TooLong(from.clone())),
            _ => Ok(Self(bytes.into())),
        }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(***)")
    }
}

/// What is wrong with the source of a password, never what is in it.
#[derive(Debug)]
pub enum SecretError {
    Unreadable(PathBuf, io::Error),
    /// The environment variable of this name.
    NotSet(String),
    Empty(PasswordFrom),
    TooLong(PasswordFrom),
}

impl std::error::Error for SecretError {}

impl fmt::Display for SecretError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable(path, e) => {
                write!(f, "cannot read the password file {}: {e}", path.display())
            }
            Self::NotSet(name) => write!(f, "the environment variable {name} is not set"),
            Self::Empty(from) => write!(f, "{} is empty", describe(from)),
            Self::TooLong(from) => {
                write!(f, "{} is longer than {MAX_BYTES} bytes", describe(from))
            }
        }
    }
}

fn describe(from: &PasswordFrom) -> String {
    match from {
        PasswordFrom::File(path) => format!("the password file {}", path.display()),
        PasswordFrom::Variable(name) => format!("the environment variable {name}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn it_is_read_and_not_shown() {
        let path = std::env::temp_dir().join(format!("tembuku-secret-{}", std::process::id()));
        let from = PasswordFrom::File(path.clone());
        assert!(Secret::load(&from).is_err_and(|e| e.to_string().contains("tembuku-secret")));
        for (text, read) in [
            ("xyzzy", Ok("xyzzy")),
            ("a b\r\n", Ok("a b")),
            ("\n", Err(())),
        ] {
            fs::write(&path, text).expect("writable");
            let secret = Secret::load(&from);
            assert_eq!(
                secret.as_ref().map(|s| s.bytes()).map_err(|_| ()),
                read.map(str::as_bytes)
            );
            assert!(!format!("{secret:?}").contains("xyzzy"));
        }
        fs::remove_file(&path).expect("there");
        let unset = PasswordFrom::Variable("TEMBUKU_NOT_SET_ANYWHERE".into());
        assert!(Secret::load(&unset).is_err_and(|e| e.to_string().contains("is not set")));
    }
}
