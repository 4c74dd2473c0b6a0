//! Where sessions are recorded: `access` of `[log]` and `access_log` of a listener.

use crate::{
    config::{
        section::{Section, Text},
        text::{report::fault, suggestions::nearest},
    },
    plan::AccessLog,
};
use std::path::PathBuf;

pub(crate) fn of_process(section: &Section<'_>) -> AccessLog {
    let read = section.text("access");
    let log = read.and_then(|text| read_log("access", &["off", "stdout"], &text, section));
    log.unwrap_or_default()
}

/// `None`: that of the process.
pub(crate) fn of_listener(section: &Section<'_>) -> Option<AccessLog> {
    let text = section.text("access_log")?;
    match text.text {
        "inherit" => None,
        _ => {
            let words = ["inherit", "off", "stdout"];
            read_log("access_log", &words, &text, section)
        }
    }
}

/// As it is written.
pub(crate) fn format(log: &AccessLog) -> String {
    match log {
        AccessLog::Off => "off".to_owned(),
        AccessLog::Stdout => "stdout".to_owned(),
        AccessLog::File(path) => path.to_string_lossy().into_owned(),
    }
}

/// `words`: what the key may be besides a path.
fn read_log(
    key: &str,
    words: &[&str],
    Text { text, span }: &Text<'_>,
    section: &Section<'_>,
) -> Option<AccessLog> {
    let fault = match *text {
        "off" => return Some(AccessLog::Off),
        "stdout" => return Some(AccessLog::Stdout),
        // A bare name is more likely a mistake than a file in whatever directory this is started
        // from.
        text if !text.contains('/') => {
            let allowed: Vec<String> = words.iter().map(|word| format!("{word:?}")).collect();
            fault!(
                "`{key}` must be {} or a path, not {text:?}",
                allowed.join(", ")
            )
            .hint(match nearest(text, words) {
                Some(near) => {
                    format!("did you mean \"{near}\"? A file of that name is \"./{text}\"")
                }
                None => format!("for a file of that name write \"./{text}\""),
            })
        }
        text if text.ends_with('/') => fault!("`{key}` = {text:?} names a directory, not a file")
            .hint("add the name of the file"),
        text if text.contains('\0') => {
            fault!("the path in `{key}` holds a zero byte").hint("take it out")
        }
        text => return Some(AccessLog::File(PathBuf::from(text))),
    };
    section.report.add(span, fault);
    None
}
