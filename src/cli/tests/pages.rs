//! The pages of the documentation, and their parts.

use std::{
    fs,
    path::{Path, PathBuf},
};

pub(super) struct Page {
    /// From the root of the repository.
    pub(super) name: String,
    pub(super) text: String,
}

/// What a fence encloses, or an indented paragraph.
pub(super) struct Block {
    /// Where it begins, as `docs/redis.md:12`.
    pub(super) at: String,
    /// The words after the fence.
    pub(super) info: String,
    pub(super) text: String,
}

/// Text between backticks.
pub(super) struct Span {
    pub(super) at: String,
    pub(super) text: String,
    /// Whether its line says that it is not there yet.
    pub(super) is_planned: bool,
}

/// Below this folder, by the end of their names.
pub(super) fn files(folder: &str, ends: &[&str]) -> Vec<Page> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut paths: Vec<PathBuf> = Vec::new();
    let mut open = vec![root.join(folder)];
    while let Some(path) = open.pop() {
        if path.is_dir() {
            let entries = fs::read_dir(&path).expect("a folder");
            open.extend(entries.map(|entry| entry.expect("an entry").path()));
        } else if ends.iter().any(|end| path.to_string_lossy().ends_with(end)) {
            paths.push(path);
        }
    }
    paths.sort();
    let page = |path: &PathBuf| Page {
        name: path
            .strip_prefix(root)
            .expect("below it")
            .display()
            .to_string(),
        text: fs::read_to_string(path).expect("text"),
    };
    paths.iter().map(page).collect()
}

pub(super) fn pages() -> Vec<Page> {
    let mut pages = files("docs", &[".md"]);
    pages.extend(files("README.md", &[""]));
    assert!(pages.len() > 20);
    pages
}

/// Configurations, scripts and rules for other programs.
pub(super) fn packages() -> Vec<Page> {
    let mut all = files("packaging", &[""]);
    all.extend(files("conf", &[".toml"]));
    all
}

impl Page {
    pub(super) fn blocks(&self) -> Vec<Block> {
        let mut blocks: Vec<Block> = Vec::new();
        let (mut is_fenced, mut is_after_blank) = (false, true);
        for (n, line) in self.text.lines().enumerate() {
            let at = || format!("{}:{}", self.name, n + 1);
            let fence = line.trim_start().strip_prefix("```");
            let indented = line.strip_prefix("    ");
            match (fence, indented) {
                (Some(info), _) => {
                    is_fenced = !is_fenced;
                    if is_fenced {
                        blocks.push(Block {
                            at: at(),
                            info: info.trim().to_owned(),
                            text: String::new(),
                        });
                    }
                }
                (None, _) if is_fenced => {
                    let block = blocks.last_mut().expect("it has begun");
                    block.text += line;
                    block.text.push('\n');
                }
                (None, Some(code)) if is_after_blank => blocks.push(Block {
                    at: at(),
                    info: "indented".to_owned(),
                    text: code.to_owned() + "\n",
                }),
                _ => {}
            }
            // Lines of an indented block follow each other.
            is_after_blank = line.is_empty() || indented.is_some() && is_after_blank;
        }
        blocks
    }

    /// Outside of fenced blocks.
    pub(super) fn spans(&self) -> Vec<Span> {
        let mut spans = Vec::new();
        let mut is_fenced = false;
        for (n, line) in self.text.lines().enumerate() {
            if line.trim_start().starts_with("```") && !line.trim_start()[3..].contains('`') {
                is_fenced = !is_fenced;
            } else if !is_fenced {
                let at = format!("{}:{}", self.name, n + 1);
                spans.extend(spans_of(line).map(|text| Span {
                    at: at.clone(),
                    text,
                    is_planned: line.contains("not supported yet"),
                }));
            }
        }
        spans
    }
}

/// A span ends with as many backticks as it begins with.
pub(super) fn spans_of(line: &str) -> impl Iterator<Item = String> {
    let mut rest = line;
    std::iter::from_fn(move || {
        let start = &rest[rest.find('`')?..];
        let ticks = start.len() - start.trim_start_matches('`').len();
        let inside = &start[ticks..];
        let end = inside.find(&start[..ticks])?;
        rest = &inside[end + ticks..];
        Some(inside[..end].trim().to_owned())
    })
}

#[test]
fn spans_and_blocks_are_found() {
    let page = Page {
        name: "p".to_owned(),
        text: "a `b` ``c `d` `` `e\n\n    tembuku x\n    tembuku y\n\n```toml fragment\n`f`\n```\n"
            .to_owned(),
    };
    let spans: Vec<String> = page.spans().into_iter().map(|span| span.text).collect();
    assert_eq!(spans, ["b", "c `d`"]);
    let blocks: Vec<_> = page
        .blocks()
        .into_iter()
        .map(|b| (b.at, b.info, b.text))
        .collect();
    let block =
        |at: &str, info: &str, text: &str| (at.to_owned(), info.to_owned(), text.to_owned());
    assert_eq!(
        blocks,
        [
            block("p:3", "indented", "tembuku x\n"),
            block("p:4", "indented", "tembuku y\n"),
            block("p:6", "toml fragment", "`f`\n"),
        ]
    );
}
