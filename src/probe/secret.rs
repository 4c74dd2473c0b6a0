//! Passwords: where they come from, and that they are not shown.

use crate::{plan::PasswordFrom, sys::files};
use std::{fmt, sync::Arc};

/// More is no password.
const MOST: u64 = 4096;

#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Arc<[u8]>);

impl Secret {
    /// The error tells what is wrong with the source, never what is in it. A file may hang: call it
    /// by [`crate::sys::blocking`].
    pub fn load(from: &PasswordFrom) -> Result<Self, String> {
        let bytes = match from {
            PasswordFrom::File(path) => {
                let mut bytes = files::read(path, MOST + 1).map_err(|e| {
                    format!("cannot read the password file {}: {e}", path.display())
                })?;
                // Editors end the last line.
                while bytes.last().is_some_and(|b| matches!(b, b'\n' | b'\r')) {
                    bytes.pop();
                }
                bytes
            }
            PasswordFrom::Variable(name) => std::env::var_os(name)
                .ok_or_else(|| format!("the environment variable {name} is not set"))?
                .into_encoded_bytes(),
        };
        let whence = || match from {
            PasswordFrom::File(path) => format!("the password file {}", path.display()),
            PasswordFrom::Variable(name) => format!("the environment variable {name}"),
        };
        if bytes.is_empty() {
            return Err(format!("{} is empty", whence()));
        }
        if bytes.len() as u64 > MOST {
            return Err(format!("{} is longer than {MOST} bytes", whence()));
        }
        Ok(Self(bytes.into()))
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(***)")
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
        assert!(Secret::load(&from).is_err_and(|e| e.contains("tembuku-secret")));
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
        assert!(Secret::load(&unset).is_err_and(|e| e.contains("is not set")));
    }
}
