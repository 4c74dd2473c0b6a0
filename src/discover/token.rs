//! Tokens that stand in a file, which is read for each request: they are replaced while the process
//! runs.

use crate::{
    plan::PasswordFrom,
    probe::{Secret, secret::SecretError},
    sys::blocking,
};
use std::{fmt, io, path::PathBuf};

#[derive(Debug, Clone)]
pub(super) struct Token(PathBuf);

impl Token {
    pub(super) fn new(file: PathBuf) -> Self {
        Self(file)
    }

    pub(super) async fn read(&self) -> Result<Vec<u8>, TokenError> {
        let from = PasswordFrom::File(self.0.clone());
        let loaded = blocking::call(blocking::LIMIT, move || Secret::load(&from)).await;
        let secret = loaded.map_err(|e| TokenError::File(self.0.clone(), e))?;
        let secret = secret.map_err(|e| TokenError::Secret(self.0.clone(), e))?;
        Ok(secret.bytes().to_vec())
    }
}

#[derive(Debug)]
pub(super) enum TokenError {
    File(PathBuf, io::Error),
    Secret(PathBuf, SecretError),
}

impl std::error::Error for TokenError {}

impl fmt::Display for TokenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path, e) => {
                write!(f, "cannot read the token file {}: {e}", path.display())
            }
            Self::Secret(path, SecretError::Unreadable(_, e)) => {
                write!(f, "cannot read the token file {}: {e}", path.display())
            }
            Self::Secret(path, SecretError::Empty(_)) => {
                write!(f, "the token file {} is empty", path.display())
            }
            Self::Secret(path, SecretError::TooLong(_) | SecretError::NotSet(_)) => {
                write!(f, "the token file {} is too long", path.display())
            }
        }
    }
}
