//! The rights of the files of unix sockets: names of users and groups become numbers before
//! anything is bound.

use super::StartError;
use crate::{plan::Listener, runtime::net::FileRights, sys::blocking};
use nix::unistd::{Group, User};
use rustix::fs::Mode;
use std::{fmt, time::Duration};

/// The limit of all look-ups: names may come from a directory server, which may not answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// A user or a group that there is not, or that cannot be looked up.
#[derive(Debug)]
pub enum NameError {
    Unknown {
        kind: AccountKind,
        name: String,
    },
    LookUp {
        kind: AccountKind,
        name: String,
        source: nix::Error,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccountKind {
    User,
    Group,
}

impl AccountKind {
    fn word(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Group => "group",
        }
    }

    /// The key of the configuration.
    fn key(self) -> &'static str {
        match self {
            Self::User => "unix_owner",
            Self::Group => "unix_group",
        }
    }

    fn database(self) -> &'static str {
        match self {
            Self::User => "passwd",
            Self::Group => "group",
        }
    }

    fn look_up(self, name: &str) -> nix::Result<Option<u32>> {
        Ok(match self {
            Self::User => User::from_name(name)?.map(|user| user.uid.as_raw()),
            Self::Group => Group::from_name(name)?.map(|group| group.gid.as_raw()),
        })
    }
}

/// The rights of each listener, or everything that is wrong with their names.
pub(super) async fn all(listeners: &[Listener]) -> Result<Vec<FileRights>, Vec<StartError>> {
    let listeners = listeners.to_vec();
    let look_up_all = move || {
        let (mut rights, mut errors) = (Vec::new(), Vec::new());
        for listener in &listeners {
            match look_up(listener) {
                Ok(found) => rights.push(found),
                Err(error) => errors.push(error),
            }
        }
        match errors.is_empty() {
            true => Ok(rights),
            false => Err(errors),
        }
    };
    let looked_up = blocking::call(PATIENCE, look_up_all).await;
    looked_up.unwrap_or_else(|source| Err(vec![StartError::OwnersUnread(source)]))
}

fn look_up(listener: &Listener) -> Result<FileRights, StartError> {
    let unix = &listener.unix;
    let number = |name: &Option<String>, kind: AccountKind| {
        let found = name.as_ref().map(|name| {
            let look_up = |name: &str| kind.look_up(name);
            number_of(name, kind, &look_up)
        });
        found.transpose().map_err(|source| StartError::Owner {
            listener: listener.name.clone(),
            key: kind.key(),
            source,
        })
    };
    Ok(FileRights {
        mode: Mode::from_raw_mode(unix.mode),
        owner: number(&unix.owner, AccountKind::User)?,
        group: number(&unix.group, AccountKind::Group)?,
    })
}

/// As chown does it: a name, and where there is none of that name a number.
fn number_of(
    name: &str,
    kind: AccountKind,
    look_up: &dyn Fn(&str) -> nix::Result<Option<u32>>,
) -> Result<u32, NameError> {
    match look_up(name) {
        Ok(Some(number)) => Ok(number),
        Ok(None) => {
            // The highest number stands for "unchanged".
            let number = name.parse().ok().filter(|n: &u32| *n < u32::MAX);
            let name = name.to_owned();
            number.ok_or(NameError::Unknown { kind, name })
        }
        Err(source) => Err(NameError::LookUp {
            kind,
            name: name.to_owned(),
            source,
        }),
    }
}

impl fmt::Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown { kind, name } => {
                let (word, database) = (kind.word(), kind.database());
                write!(
                    f,
                    "there is no {word} {name:?}; `getent {database}` lists those of this machine"
                )
            }
            Self::LookUp { kind, name, source } => {
                write!(f, "cannot look up the {} {name:?}: {source}", kind.word())
            }
        }
    }
}

impl std::error::Error for NameError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Unknown { .. } => None,
            Self::LookUp { source, .. } => Some(source),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_before_a_number() {
        let known = |name: &str| Ok((name == "www" || name == "33").then_some(7));
        assert_eq!(number_of("www", AccountKind::User, &known).ok(), Some(7));
        assert_eq!(number_of("33", AccountKind::User, &known).ok(), Some(7));
        assert_eq!(number_of("34", AccountKind::User, &known).ok(), Some(34));
        for name in ["nobody-here", "4294967295", "-1", "4294967296"] {
            let error = number_of(name, AccountKind::Group, &known)
                .expect_err(name)
                .to_string();
            assert!(error.starts_with("there is no group"), "{error}");
        }
    }
}
