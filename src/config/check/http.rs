//! A check of kind `http`.

use crate::{
    config::{
        section::{Section, Text},
        text::{report::fault, suggestions::shorten},
    },
    plan::CheckKind,
};

pub(crate) fn read(section: &Section<'_>) -> CheckKind {
    CheckKind::Http {
        path: read_path(section),
        host: read_host(section),
        status: read_status(section),
    }
}

fn read_path(section: &Section<'_>) -> String {
    let Some(Text { text, span }) = section.text("path") else {
        return "/".to_owned();
    };
    if !text.starts_with('/') || !text.bytes().all(|b| b.is_ascii_graphic()) {
        section.report.add(
            &span,
            fault!(
                "`path` = {} is no path of a URL",
                shorten(&format!("{text:?}"))
            )
            .hint("it begins with / and has no blanks: write %20 for one"),
        );
    }
    text.to_owned()
}

fn read_host(section: &Section<'_>) -> Option<String> {
    let Text { text, span } = section.text("host")?;
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-._:[]".contains(&b);
    if text.is_empty() || !text.bytes().all(allowed) {
        section.report.add(
            &span,
            fault!("`host` = {} is no host", shorten(&format!("{text:?}"))).hint(
                "as in \"www.example.com\" or \"www.example.com:8080\"; left out, it is \
                    the address that is asked",
            ),
        );
    }
    Some(text.to_owned())
}

/// One of "200" and "200-299", or a list of them.
fn read_status(section: &Section<'_>) -> Vec<(u16, u16)> {
    if section.get("status").is_none() {
        return vec![(200, 299)];
    }
    let code = |text: &str| {
        let digits = text.len() == 3 && text.bytes().all(|b| b.is_ascii_digit());
        text.parse()
            .ok()
            .filter(|code| digits && (100..=599).contains(code))
    };
    let mut ranges = Vec::new();
    for Text { text, span } in section.texts("status").unwrap_or_default() {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        match (code(first), code(last)) {
            (Some(first), Some(last)) if first <= last => ranges.push((first, last)),
            _ => section.report.add(
                &span,
                fault!(
                    "`status` = {} is no status or range of them",
                    shorten(&format!("{text:?}"))
                )
                .hint("as in \"200\", \"200-299\" or [\"200\", \"301-308\"], from 100 to 599"),
            ),
        }
    }
    ranges
}
