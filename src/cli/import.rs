//! `tembuku import`: the configuration of another program as one of this program.

mod document;
mod haproxy;
mod nginx;

use super::{complain, print};
use crate::{
    config,
    sys::{blocking, files},
};
use clap::{Args, Subcommand};
use document::{Document, List};
use std::{
    io::{self, Read as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

/// A larger file is no configuration.
const MOST_BYTES: u64 = 16 << 20;

#[derive(Debug, Args)]
pub(super) struct Import {
    #[command(subcommand)]
    from: From,
}

#[derive(Debug, Subcommand)]
enum From {
    /// The `stream` block, or an `http` block with `upstream` and `proxy_pass`; includes are read.
    /// Also what `nginx -T` prints
    Nginx(Input),
    /// The `frontend`, `backend` and `listen` sections of `mode tcp`
    Haproxy(Input),
}

#[derive(Debug, Args)]
struct Input {
    /// The file, or `-` for standard input
    file: PathBuf,
    /// Fail if a directive is not carried over
    #[arg(long)]
    strict: bool,
}

/// From a text and the name of its file. An error is a whole message.
type Convert = fn(&str, &str) -> Result<Document, String>;

/// The configuration goes to standard output, the lists go to standard error.
pub(super) fn run(arguments: &Import) -> ExitCode {
    let (input, convert, program): (_, Convert, _) = match &arguments.from {
        From::Nginx(input) => (input, nginx::import, "nginx"),
        From::Haproxy(input) => (input, haproxy::import, "HAProxy"),
    };
    let name = input.file.display().to_string();
    let result = read(&input.file).and_then(|text| convert(&text, &name));
    match result.and_then(|document| write(document, program)) {
        Ok(has_lost) => match has_lost && input.strict {
            true => ExitCode::FAILURE,
            false => ExitCode::SUCCESS,
        },
        Err(why) => {
            let why = why.trim_end();
            let is_marked = why.starts_with("error: ");
            complain(&format!(
                "{}{why}\n",
                if is_marked { "" } else { "error: " }
            ));
            ExitCode::FAILURE
        }
    }
}

/// Returns whether anything is not carried over.
fn write(mut document: Document, program: &str) -> Result<bool, String> {
    complain(&document.lists());
    if document.sections.is_empty() {
        return Err("error: nothing can be imported".to_owned());
    }
    if !document.has_listener() {
        return Err(
            "error: nothing of it can be a listener: the lists say why\n  hint: the file \
                    is meant that has the `stream` block of nginx, or a `frontend` or `listen` \
                    section of HAProxy with `mode tcp`"
                .to_owned(),
        );
    }
    document.complete(program);
    let toml = document.toml();
    print(&toml)?;
    // What was valid there may be refused here: then its position is named.
    if let Err(problems) = config::parse(&toml, "the result") {
        return Err(format!("{problems}"));
    }
    Ok(document.has(List::Lost))
}

fn read(path: &Path) -> Result<String, String> {
    let bytes = match path == Path::new("-") {
        true => {
            let mut bytes = Vec::new();
            let input = io::stdin().lock().take(MOST_BYTES + 1);
            { input }.read_to_end(&mut bytes).map(|_| bytes)
        }
        false => {
            let path = path.to_owned();
            let call = move || files::read(&path, MOST_BYTES + 1);
            blocking::call_and_wait(blocking::LIMIT, call).and_then(|read| read)
        }
    };
    let bytes = bytes.map_err(|e| format!("error: cannot read {}: {e}", path.display()))?;
    if bytes.len() as u64 > MOST_BYTES {
        let most = MOST_BYTES >> 20;
        return Err(format!(
            "error: {} is larger than {most} MiB",
            path.display()
        ));
    }
    // Comments of old files are often not UTF-8.
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first block in this language of a page.
    fn block(page: &str, language: &str) -> String {
        let path = format!("{}/docs/{page}", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(path).expect("a page");
        let begin = format!("```{language}\n");
        let block = text.split(&begin).nth(1).expect("a block");
        block.split("\n```").next().unwrap_or_default().to_owned()
    }

    const PROGRAMS: [(&str, &str, Convert, &str); 2] = [
        (
            "coming-from-nginx.md",
            "nginx",
            nginx::import as Convert,
            "nginx",
        ),
        (
            "coming-from-haproxy.md",
            "haproxy",
            haproxy::import as Convert,
            "HAProxy",
        ),
    ];

    #[test]
    fn the_pages_show_what_an_import_makes() {
        for (page, language, convert, program) in PROGRAMS {
            let mut document = convert(&block(page, language), "f").expect("an import");
            document.complete(program);
            let made: toml::Table = document.toml().parse().expect("TOML");
            let shown: toml::Table = block(page, "toml").parse().expect("TOML");
            assert_eq!(made, shown, "{page}");
            assert!(!document.has(List::Lost), "{}", document.lists());
        }
    }

    /// A text that ends somewhere, lacks a line, or has bytes of something else in it.
    #[test]
    fn no_part_of_a_configuration_makes_an_import_panic() {
        for (page, language, convert, program) in PROGRAMS {
            let text = block(page, language);
            let try_it = |text: &str| {
                if let Ok(mut document) = convert(text, "f") {
                    document.complete(program);
                    let _ = (document.toml(), document.lists());
                }
            };
            for (n, _) in text.char_indices() {
                try_it(&text[..n]);
                try_it(&text[n..]);
                for inserted in [
                    "\0", "{", "}", ";", "\"", "\\", "é", "\n", " ", "$", ":", "[", "-1",
                ] {
                    try_it(&format!("{}{inserted}{}", &text[..n], &text[n..]));
                }
            }
            let words: Vec<&str> = text.split(' ').collect();
            for n in 0..words.len() {
                let without: Vec<&str> = [&words[..n], &words[n + 1..]].concat();
                try_it(&without.join(" "));
            }
        }
    }
}
