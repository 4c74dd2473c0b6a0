//! From what the user wrote to a [`Plan`], or to every problem at once.
//!
//! The text is parsed into a tree that knows where each value stands, and the tree is walked by
//! hand: a derived deserializer stops at the first mistake.

use std::path::{Path, PathBuf};

use crate::{
    config::text::shorten::shorten,
    plan::Plan,
    sys::{blocking, files},
};

mod changed_keys;
mod check;
mod discover;
mod dump;
mod file;
mod flags;
mod forwarding_loops;
mod hash;
pub mod import;
mod keys;
mod limits;
mod listener;
mod references;
mod schema;
mod section;
mod session_actions;
pub mod text;
mod upstream;
pub mod value;

pub use crate::config::text::problem::{Problem, Problems};
pub use crate::config::text::suggestions::nearest;
pub use crate::config::value::access::format as access_rule_text;
pub use crate::config::value::hash_key::format as hash_key_text;
pub use changed_keys::{ChangedKey, changed_keys};
pub use dump::dump;
pub use flags::{Flags, from_flags};
pub use forwarding_loops::{ForwardingLoop, find_forwarding_loops};
pub use hash::hash;
pub use schema::schema;
pub use text::report::Fault;
pub use upstream::backend_with_defaults;
pub use value::address::target as parse_target;
pub use value::{
    access::parse_peers, duration::parse as parse_duration, rate::parse as parse_rate,
};

/// Of a path so many characters are shown.
const MOST_OF_PATH: usize = 1_000;
/// A larger file is no configuration; `/dev/zero` is not read to its end.
const MOST_BYTES: u64 = 16 << 20;

/// Reads and checks a file.
pub fn load(path: &Path) -> Result<Plan, Problems> {
    let origin = path.display().to_string();
    let origin = shorten(&origin, MOST_OF_PATH);
    let bytes = read(path).map_err(|error| {
        let shortage = crate::sys::limits::describe_shortage(&error);
        let hint = match error.kind() {
            _ if !shortage.is_empty() => shortage.trim_start_matches("; "),
            std::io::ErrorKind::NotFound => "name another one with -c FILE, or set TEMBUKU_CONFIG",
            std::io::ErrorKind::PermissionDenied => {
                "it must be readable for the user that runs tembuku"
            }
            std::io::ErrorKind::IsADirectory => "this is a directory: name a file in it",
            std::io::ErrorKind::FileTooLarge => "this is no configuration: name another file",
            _ => "name another one with -c FILE",
        };
        Problems::whole(
            &origin,
            format!("cannot read the configuration: {error}"),
            hint,
        )
    })?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let line = error.as_bytes()[..valid]
            .iter()
            .filter(|b| **b == b'\n')
            .count()
            + 1;
        Problems::whole(
            &origin,
            format!("the file is not UTF-8: a wrong byte in line {line}"),
            "save it as UTF-8",
        )
    })?;
    parse(&text, &origin)
}

/// Checks the text of a file; `origin` is how problems call it.
pub fn parse(text: &str, origin: &str) -> Result<Plan, Problems> {
    let source = text::report::Source {
        origin,
        text,
        flags: Vec::new(),
    };
    let report = text::report::Report::default();
    let (tree, reliable) = text::syntax::parse(text, &report);
    if reliable {
        return file::plan(tree.get_ref(), &source, report);
    }
    // Messages about a tree that was guessed at would mislead.
    report.finish(&source)?;
    Err(Problems::whole(
        origin,
        "this is no TOML".to_owned(),
        "see https://toml.io",
    ))
}

/// The admin socket that a file names although it is not valid, as far as it can be read: what was
/// started from it before can be reached.
pub fn admin_socket_of_invalid(path: &Path) -> Option<PathBuf> {
    let text = String::from_utf8(read(path).ok()?).ok()?;
    let of_section = |text: &str| {
        let (tree, _) = text::syntax::parse(text, &text::report::Report::default());
        let admin = tree.get_ref().get("admin")?.get_ref();
        let socket = admin.get("socket")?.get_ref().as_str()?;
        value::address::admin_socket(socket).ok()
    };
    // What is not closed before it may take the section in.
    of_section(&text).or_else(|| {
        let (_, rest) = text.split_once("\n[admin]")?;
        let section = rest.split_once("\n[").map_or(rest, |(section, _)| section);
        of_section(&format!("[admin]{section}\n"))
    })
}

fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    let path = path.to_owned();
    blocking::call_and_wait(blocking::LIMIT, move || files::read(&path, MOST_BYTES))?
}
