//! The rights of the files of unix sockets: names of users and groups become numbers before
//! anything is bound.

use crate::{plan::Listener, runtime::net::FileRights, sys::blocking};
use nix::unistd::{Group, User};
use rustix::fs::Mode;
use std::time::Duration;

/// For all look-ups: names may come from a directory server, which may not answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// One for each listener, or everything that is wrong with their names.
pub(super) async fn all(listeners: &[Listener]) -> Result<Vec<FileRights>, Vec<String>> {
    let listeners = listeners.to_vec();
    let look_up_all = move || {
        let found = listeners.iter().map(look_up);
        let (good, bad): (Vec<_>, Vec<_>) = found.partition(Result::is_ok);
        let bad: Vec<String> = bad.into_iter().filter_map(Result::err).collect();
        match bad.is_empty() {
            true => Ok(good.into_iter().flatten().collect()),
            false => Err(bad),
        }
    };
    let looked_up = blocking::call(PATIENCE, look_up_all).await;
    looked_up.unwrap_or_else(|e| {
        Err(vec![format!(
            "cannot look up the users and groups of unix sockets: {e}"
        )])
    })
}

fn look_up(listener: &Listener) -> Result<FileRights, String> {
    let unix = &listener.unix;
    let user = |name: &str| User::from_name(name).map(|user| user.map(|user| user.uid.as_raw()));
    let group =
        |name: &str| Group::from_name(name).map(|group| group.map(|group| group.gid.as_raw()));
    let number = |name: &Option<String>, kind, of: &dyn Fn(&str) -> nix::Result<Option<u32>>| {
        let Some(name) = name else {
            return Ok(None);
        };
        number_of(name, kind, of)
            .map(Some)
            .map_err(|error| format!("listener {}: unix_{kind}: {error}", listener.name))
    };
    Ok(FileRights {
        mode: Mode::from_raw_mode(unix.mode),
        owner: number(&unix.owner, "owner", &user)?,
        group: number(&unix.group, "group", &group)?,
    })
}

/// As chown does it: a name, and where there is none of that name a number.
fn number_of(
    name: &str,
    kind: &str,
    look_up: &dyn Fn(&str) -> nix::Result<Option<u32>>,
) -> Result<u32, String> {
    let what = match kind {
        "owner" => "user",
        kind => kind,
    };
    match look_up(name) {
        Ok(Some(number)) => Ok(number),
        Ok(None) => {
            let database = if what == "user" { "passwd" } else { "group" };
            // The highest number stands for "unchanged".
            let number = name.parse().ok().filter(|n: &u32| *n < u32::MAX);
            number.ok_or_else(|| {
                format!(
                    "there is no {what} {name:?}; `getent {database}` lists those of this machine"
                )
            })
        }
        Err(error) => Err(format!("cannot look up the {what} {name:?}: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_before_a_number() {
        let known = |name: &str| Ok((name == "www" || name == "33").then_some(7));
        assert_eq!(number_of("www", "owner", &known), Ok(7));
        assert_eq!(number_of("33", "owner", &known), Ok(7));
        assert_eq!(number_of("34", "owner", &known), Ok(34));
        for name in ["nobody-here", "4294967295", "-1", "4294967296"] {
            let error = number_of(name, "group", &known).expect_err(name);
            assert!(error.starts_with("there is no group"), "{error}");
        }
    }
}
