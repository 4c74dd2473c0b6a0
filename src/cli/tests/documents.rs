//! Fields of the JSON documents are on the page of their document, and paths of the admin side that
//! a page names are there.

use super::pages::{files, pages};
use std::collections::BTreeSet;

/// What writes a document, and the page that has its fields.
const DOCUMENTS: &[(&str, &str)] = &[
    ("src/admin/ages.rs", "docs/status-page.md"),
    ("src/admin/history.rs", "docs/status-page.md"),
    ("src/admin/overview.rs", "docs/status-page.md"),
    ("src/admin/sessions.rs", "docs/sessions.md"),
    ("src/admin/status.rs", "docs/operation.md"),
    ("src/admin/terminate.rs", "docs/sessions.md"),
    ("src/cli/explain/json.rs", "docs/policies.md"),
    ("src/config/changed_keys.rs", "docs/reload.md"),
    ("src/control/journal.rs", "docs/logging.md"),
    ("src/control/reload/report.rs", "docs/reload.md"),
    ("src/control/upgrade.rs", "docs/upgrade.md"),
];

/// Of the structures that are written as JSON, in the order of the source.
fn fields(source: &str) -> Vec<String> {
    let (mut is_written, mut is_inside, mut is_left_out) = (false, false, false);
    let mut fields = Vec::new();
    for line in source.lines() {
        let text = line.trim();
        match line {
            "}" => is_inside = false,
            _ if is_inside && text.starts_with("#[serde(flatten") => is_left_out = true,
            _ if is_inside => {
                let name = text
                    .strip_prefix("pub ")
                    .or(text.strip_prefix("pub(super) "));
                let name = name
                    .unwrap_or(text)
                    .split_once(':')
                    .map_or("", |(name, _)| name);
                let is_name = |c: char| c.is_ascii_lowercase() || c == '_';
                if !name.is_empty() && name.chars().all(is_name) {
                    if !is_left_out {
                        fields.push(name.to_owned());
                    }
                    is_left_out = false;
                }
            }
            _ if text.starts_with("#[derive(") => is_written = text.contains("Serialize"),
            _ if is_written && (text.contains("struct ") || text.contains("enum ")) => {
                is_inside = text.ends_with('{');
                is_written = false;
            }
            _ => {}
        }
    }
    fields
}

fn words(text: &str) -> impl Iterator<Item = String> {
    let words = text.split(|c: char| !c.is_ascii_lowercase() && c != '_');
    words.map(str::to_owned)
}

#[test]
fn every_field_of_a_document_is_on_its_page() {
    let pages = pages();
    let (mut missing, mut count) = (Vec::new(), 0);
    for (source, name) in DOCUMENTS {
        let page = pages
            .iter()
            .find(|page| page.name == *name)
            .expect("a page");
        let spans = page.spans().into_iter().map(|span| span.text);
        let blocks = page
            .blocks()
            .into_iter()
            .filter(|block| block.info == "json");
        let texts = spans.chain(blocks.map(|block| block.text));
        let known: BTreeSet<String> = texts
            .flat_map(|text| words(&text).collect::<Vec<_>>())
            .collect();
        let fields = fields(&files(source, &[""]).remove(0).text);
        assert!(fields.len() > 2, "{source}: {fields:?}");
        count += fields.len();
        let absent = fields.iter().filter(|field| !known.contains(*field));
        missing.extend(absent.map(|field| format!("{name}: {field} of {source}")));
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
    assert!(count > 200, "only {count} are found");
}

/// In pages, manifests and rules: `/readyz/node`, `/api/v1/upstreams/NAME/backends/ADDRESS`.
#[test]
fn every_path_that_is_named_is_there() {
    let sources = files("src/admin", &[".rs"]);
    let literals: BTreeSet<&str> = sources
        .iter()
        .flat_map(|source| source.text.split('"'))
        .filter(|text| text.starts_with('/'))
        .collect();
    // What is followed by names ends with a slash.
    let is_there = |path: &str| {
        let is = |one: &str| one.trim_end_matches('/') == path;
        let begins = |one: &str| one.len() > 5 && one.ends_with('/') && path.starts_with(one);
        literals.iter().any(|one| is(one) || begins(one))
    };
    let (mut wrong, mut count) = (Vec::new(), 0);
    for page in pages().iter().chain(&super::pages::packages()) {
        for (n, line) in page.text.lines().enumerate() {
            for start in ["/api/", "/readyz", "/livez"] {
                for (at, _) in line.match_indices(start) {
                    let rest = &line[at..];
                    let is_path =
                        |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '/';
                    let end = rest.find(|c| !is_path(c)).unwrap_or(rest.len());
                    let path = rest[..end].trim_end_matches('/');
                    let is_of_others =
                        page.name.contains("discover") || line.contains("/api/datasources");
                    count += 1;
                    if !is_there(path) && !is_of_others {
                        wrong.push(format!("{}:{}: {path}", page.name, n + 1));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count > 50, "only {count} are found");
}

#[test]
fn fields_are_read() {
    let source = "\
#[derive(Debug, Serialize)]
#[serde(tag = \"x\")]
pub enum A {
    One {
        first: u8,
    },
}

#[derive(Debug)]
struct B {
    other: u8,
}

#[derive(Serialize)]
struct C {
    #[serde(flatten)]
    all: D,
    pub(super) last: u8,
}
";
    assert_eq!(fields(source), ["first", "last"]);
}

/// In the table of docs/metrics.md.
#[test]
fn every_alert_is_documented_and_every_documented_one_is_there() {
    let rules = &files("packaging/prometheus", &[".yml"])[0];
    let names = rules.text.lines().filter_map(|line| {
        let name = line.trim().strip_prefix("- alert: ")?;
        Some(name.to_owned())
    });
    let page = pages()
        .into_iter()
        .find(|page| page.name == "docs/metrics.md");
    let text = page.expect("a page").text;
    let rows = text.lines().filter_map(|line| {
        let rest = line.strip_prefix("| `Tembuku")?;
        Some(format!("Tembuku{}", rest.split('`').next()?))
    });
    let (names, rows): (BTreeSet<_>, BTreeSet<_>) = (names.collect(), rows.collect());
    assert_eq!(names, rows);
    let readme = pages().into_iter().find(|page| page.name == "README.md");
    let heading = format!("The {} alerts:", names.len());
    assert!(readme.expect("a page").text.contains(&heading), "{heading}");
}

/// What docs/service.md shows of it.
#[test]
fn the_unit_has_what_its_page_shows() {
    let page = pages()
        .into_iter()
        .find(|page| page.name == "docs/service.md");
    let unit = &files("packaging/systemd/tembuku.service", &[""])[0].text;
    let blocks = page.expect("a page").blocks();
    let shown = blocks.iter().find(|block| block.info == "ini");
    let shown = &shown.expect("a block").text;
    let missing: Vec<&str> = shown
        .lines()
        .filter(|line| !unit.lines().any(|other| other == *line))
        .collect();
    assert!(
        missing.is_empty() && shown.lines().count() > 8,
        "{missing:#?}"
    );
}
