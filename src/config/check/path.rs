//! Paths of files.

use std::path::PathBuf;

use crate::config::{
    section::{Section, Text},
    text::report::fault,
};

/// A path that does not depend on where the process was started.
pub(crate) fn read_absolute(section: &Section<'_>, key: &str, hint: &str) -> Option<PathBuf> {
    let Text { text, span } = section.text(key)?;
    if !text.starts_with('/') || text.contains('\0') {
        let fault = fault!("`{key}` must be an absolute path").hint(hint);
        section.report.add(&span, fault);
    }
    Some(text.into())
}
