//! Links from page to page lead somewhere, down to their heading.

use super::pages::{Page, pages};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Component, Path, PathBuf},
};

/// As GitHub names a heading.
fn anchor(heading: &str) -> String {
    let text = heading.to_lowercase();
    let kept = text
        .chars()
        .filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.collect::<String>().replace(' ', "-")
}

fn anchors(page: &Page) -> BTreeSet<String> {
    let lines = page.text.lines();
    let headings = lines.filter_map(|line| line.strip_prefix('#'));
    headings
        .map(|heading| anchor(heading.trim_start_matches('#').trim()))
        .collect()
}

/// The targets of links in a line.
fn targets(line: &str) -> impl Iterator<Item = &str> {
    line.split("](")
        .skip(1)
        .filter_map(|rest| rest.split(')').next())
}

/// Without `..`.
fn normal(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => drop(out.pop()),
            part => out.push(part),
        }
    }
    out
}

#[test]
fn every_link_leads_to_a_file_and_a_heading() {
    let pages = pages();
    let known: BTreeMap<PathBuf, BTreeSet<String>> = pages
        .iter()
        .map(|page| (PathBuf::from(&page.name), anchors(page)))
        .collect();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut wrong = Vec::new();
    let mut count = 0;
    for page in &pages {
        let folder = Path::new(&page.name).parent().expect("a folder");
        for (n, line) in page.text.lines().enumerate() {
            for target in targets(line).filter(|target| !target.contains("://")) {
                count += 1;
                let (file, heading) = target.split_once('#').unwrap_or((target, ""));
                let path = match file {
                    "" => PathBuf::from(&page.name),
                    file => normal(&folder.join(file)),
                };
                let is_there = root.join(&path).exists();
                let headings = known.get(&path);
                let has_heading =
                    heading.is_empty() || headings.is_none_or(|all| all.contains(heading));
                if !is_there || !has_heading {
                    wrong.push(format!("{}:{}: {target}", page.name, n + 1));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count > 100, "only {count} are found");
}

#[test]
fn readme_is_short() {
    let pages = pages();
    let readme = pages.iter().find(|page| page.name == "README.md");
    let length = readme.expect("a page").text.len();
    assert!(length <= 9 * 1024, "{length} bytes");
}

#[test]
fn headings_have_names() {
    assert_eq!(anchor("Running as a service"), "running-as-a-service");
    assert_eq!(
        anchor("`drain`, `ready` and `maint`"),
        "drain-ready-and-maint"
    );
}
