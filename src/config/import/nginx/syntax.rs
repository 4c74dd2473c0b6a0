//! The text of an nginx configuration: tokens, blocks, includes, and what `nginx -T` prints.

use super::super::{MOST_BYTES, document::Place};
use crate::sys::{blocking, files};
use std::{
    collections::BTreeMap,
    fs, io,
    iter::Peekable,
    path::{Path, PathBuf},
    rc::Rc,
    str::Chars,
};

/// So many files may be included; what is included twice counts twice.
const MOST_FILES: usize = 1_000;
/// Blocks and includes in each other, of which a file that includes itself has no end.
const MOST_DEPTH: usize = 50;
/// More are no configuration: each directive takes some 300 bytes until it is imported.
const MOST_DIRECTIVES: usize = 1_000_000;
const MOST_WORDS: usize = 4_000_000;
/// What can be done about too much of an `include`.
const IN_PARTS: &str = "take it out, and import what it names with `tembuku import nginx \
                        --sections FILE >> tembuku.toml`";

#[derive(Debug)]
pub(in super::super) struct Directive {
    pub(in super::super) name: String,
    pub(in super::super) arguments: Vec<String>,
    /// `None`: it ended with a semicolon.
    pub(in super::super) block: Option<Vec<Directive>>,
    pub(in super::super) place: Place,
    /// How many files an `include` has brought.
    pub(in super::super) files: usize,
}

impl Directive {
    /// The arguments in one text.
    pub(in super::super) fn text(&self) -> String {
        self.arguments.join(" ")
    }

    pub(in super::super) fn first(&self) -> &str {
        self.arguments.first().map_or("", String::as_str)
    }

    pub(in super::super) fn inside(&self) -> &[Directive] {
        self.block.as_deref().unwrap_or_default()
    }

    /// The directives in it, in any depth.
    pub(in super::super) fn all_inside(&self) -> Vec<&Directive> {
        let mut all: Vec<&Directive> = self.inside().iter().collect();
        let mut next = 0;
        while let Some(directive) = all.get(next).copied() {
            all.extend(directive.inside());
            next += 1;
        }
        all
    }

    /// An `include` of a file that is not here. nginx, too, takes a pattern without files for
    /// nothing, and a name without a file for an error.
    pub(in super::super) fn is_missing(&self) -> bool {
        self.name == "include" && self.files == 0 && !self.first().contains(['*', '?', '['])
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    Semicolon,
    Open,
    Close,
}

/// The directives of a file with everything that it includes. An error is a whole message.
pub(in super::super) fn read(text: &str, origin: &str) -> Result<Vec<Directive>, String> {
    let (name, text, files) = match printed(text) {
        Some((name, mut files)) => {
            let text = files.remove(&name).unwrap_or_default();
            (name, text, Some(files))
        }
        None => (origin.to_owned(), text.to_owned(), None),
    };
    let mut reader = Reader {
        // As nginx does it: relative to the folder of its own file.
        folder: Path::new(&name)
            .parent()
            .unwrap_or(Path::new(""))
            .to_owned(),
        printed: files,
        rest_of_files: MOST_FILES,
        rest_of_directives: MOST_DIRECTIVES,
        rest_of_words: MOST_WORDS,
        rest_of_bytes: MOST_BYTES.saturating_sub(text.len() as u64),
    };
    reader.file(&name, &text, 0)
}

/// What `nginx -T` prints: the name of the first file, and the texts of all.
fn printed(text: &str) -> Option<(String, BTreeMap<String, String>)> {
    let mut first = None;
    let mut files = BTreeMap::<String, String>::new();
    let mut current = String::new();
    for line in text.lines() {
        let marked = line.strip_prefix("# configuration file ");
        if let Some(name) = marked.and_then(|name| name.strip_suffix(':')) {
            name.clone_into(&mut current);
            first.get_or_insert_with(|| name.to_owned());
            files.entry(current.clone()).or_default();
        } else if let Some(text) = files.get_mut(&current) {
            text.push_str(line);
            text.push('\n');
        } else if !line.starts_with("nginx: ") && !line.trim().is_empty() {
            return None;
        }
    }
    Some((first?, files))
}

struct Reader {
    folder: PathBuf,
    /// All files, where they were printed by `nginx -T`.
    printed: Option<BTreeMap<String, String>>,
    /// What may still be included.
    rest_of_files: usize,
    rest_of_bytes: u64,
    rest_of_directives: usize,
    rest_of_words: usize,
}

impl Reader {
    /// `depth`: of the `include` that names it.
    fn file(&mut self, name: &str, text: &str, depth: usize) -> Result<Vec<Directive>, String> {
        let mut tokens = tokens(text, name, self.rest_of_words)?;
        self.rest_of_words -= tokens.len();
        let source = Source {
            file: name.into(),
            words: tokens.len(),
        };
        let mut rest = tokens.as_mut_slice();
        let directives = self.block(&mut rest, &source, depth)?;
        match rest.first() {
            Some((_, line)) => Err(format!("{name}:{line}: `}}` closes no block")),
            None => Ok(directives),
        }
    }

    fn block(
        &mut self,
        rest: &mut &mut [(Token, usize)],
        source: &Source,
        depth: usize,
    ) -> Result<Vec<Directive>, String> {
        let mut directives = Vec::new();
        while let Some((name, line)) = next_word(rest) {
            let place = Place {
                file: source.file.clone(),
                line,
                word: source.words - rest.len() - 1,
            };
            let Some(left) = self.rest_of_directives.checked_sub(1) else {
                return Err(format!(
                    "{place}: more than {MOST_DIRECTIVES} directives\n  hint: {IN_PARTS}"
                ));
            };
            self.rest_of_directives = left;
            let mut arguments = Vec::new();
            while let Some((word, _)) = next_word(rest) {
                arguments.push(word);
            }
            let block = match next_sign(rest) {
                Some(Token::Semicolon) => None,
                Some(Token::Open) => {
                    check_depth(depth, &place)?;
                    let inside = self.block(rest, source, depth + 1)?;
                    let Some(Token::Close) = next_sign(rest) else {
                        return Err(format!("{place}: the block `{name}` is not closed"));
                    };
                    Some(inside)
                }
                _ => return Err(format!("{place}: `{name}` does not end with a semicolon")),
            };
            match (name.as_str(), &block) {
                ("include", None) => directives.extend(self.include(arguments, place, depth)?),
                _ => directives.push(Directive {
                    name,
                    arguments,
                    block,
                    place,
                    files: 0,
                }),
            }
        }
        match rest.first() {
            None | Some((Token::Close, _)) => Ok(directives),
            Some((_, line)) => Err(format!(
                "{}:{line}: a directive begins with its name",
                source.file
            )),
        }
    }

    /// The directive itself and what the files hold.
    fn include(
        &mut self,
        arguments: Vec<String>,
        place: Place,
        depth: usize,
    ) -> Result<Vec<Directive>, String> {
        check_depth(depth, &place)?;
        let pattern = arguments.join(" ");
        let found = self.included(&pattern);
        let found = found.map_err(|why| format!("{place}: `include {pattern}`: {why}"))?;
        let directive = Directive {
            name: "include".to_owned(),
            arguments,
            block: None,
            place,
            files: found.len(),
        };
        let mut inside = vec![directive];
        for (name, text) in found {
            inside.extend(self.file(&name, &text, depth + 1)?);
        }
        Ok(inside)
    }

    /// The names and texts of the files that a pattern stands for.
    fn included(&mut self, pattern: &str) -> Result<Vec<(String, String)>, String> {
        let (path, most) = (self.folder.join(pattern), self.rest_of_bytes);
        let found: Vec<(String, String)> = match &self.printed {
            Some(files) => {
                let all = files.iter();
                let named = all.filter(|(name, _)| matches_path(&path, Path::new(name)));
                let named = named.take(self.rest_of_files + 1);
                named
                    .map(|(name, text)| (name.clone(), text.clone()))
                    .collect()
            }
            None => {
                let most_files = self.rest_of_files;
                let read = move || read_files(expand(&path, most_files)?, most);
                let read = blocking::call_and_wait(blocking::LIMIT, read);
                read.unwrap_or_else(|e| Err(e.to_string()))?
            }
        };
        let Some(rest) = self.rest_of_files.checked_sub(found.len().max(1)) else {
            return Err(too_many_files());
        };
        let read = found.iter().map(|(_, text)| text.len() as u64).sum();
        self.rest_of_files = rest;
        self.rest_of_bytes = most.checked_sub(read).ok_or_else(too_many_bytes)?;
        Ok(found)
    }
}

/// Takes the word that comes next, if one does.
fn next_word(rest: &mut &mut [(Token, usize)]) -> Option<(String, usize)> {
    let (Token::Word(word), line) = rest.first_mut()? else {
        return None;
    };
    let next = (std::mem::take(word), *line);
    rest.split_off_first_mut();
    Some(next)
}

/// Takes the sign that comes next.
fn next_sign(rest: &mut &mut [(Token, usize)]) -> Option<Token> {
    let (sign, _) = rest.split_off_first_mut()?;
    Some(std::mem::replace(sign, Token::Semicolon))
}

fn check_depth(depth: usize, place: &Place) -> Result<(), String> {
    match depth < MOST_DEPTH {
        true => Ok(()),
        false => Err(format!(
            "{place}: more than {MOST_DEPTH} blocks and includes in each other\n  hint: does a \
             file include itself? Take that `include` out"
        )),
    }
}

fn too_many_files() -> String {
    format!("more than {MOST_FILES} files are included\n  hint: {IN_PARTS}")
}

fn too_many_bytes() -> String {
    let most = MOST_BYTES >> 20;
    format!("the files are larger than {most} MiB together\n  hint: {IN_PARTS}")
}

/// Their names and texts, of `most` bytes together. They may hang.
fn read_files(paths: Vec<PathBuf>, most: u64) -> Result<Vec<(String, String)>, String> {
    let mut rest = most;
    let read = |path: PathBuf| {
        let name = path.display().to_string();
        if path.is_dir() {
            return Err(format!(
                "{name} is a directory\n  hint: name the files in it, as in {name}/*.conf"
            ));
        }
        if !path.is_file() {
            return Err(format!(
                "{name} is no regular file\n  hint: copy what it holds into one, and name that"
            ));
        }
        let bytes = files::read(&path, rest).map_err(|e| match e.kind() {
            io::ErrorKind::FileTooLarge => too_many_bytes(),
            _ => format!("cannot read {name}: {e}"),
        })?;
        rest -= bytes.len() as u64;
        // As of the first file.
        Ok((name, String::from_utf8_lossy(&bytes).into_owned()))
    };
    paths.into_iter().map(read).collect()
}

/// The file that is being read.
struct Source {
    file: Rc<str>,
    /// How many words and signs it has.
    words: usize,
}

/// What is there and matches, sorted.
fn expand(pattern: &Path, most: usize) -> Result<Vec<PathBuf>, String> {
    let mut found = vec![PathBuf::new()];
    for part in pattern.components() {
        let part = part.as_os_str();
        let text = part.to_string_lossy();
        let wild = text.contains(['*', '?', '[']);
        let next = found.iter().flat_map(|folder| {
            if !wild {
                return vec![folder.join(part)];
            }
            let shown = match folder.as_os_str().is_empty() {
                true => Path::new("."),
                false => folder.as_path(),
            };
            let names = fs::read_dir(shown).into_iter().flatten().flatten();
            let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
            let names = names.filter(|name| matches(text.as_bytes(), name.as_bytes()));
            let paths = names.map(|name| folder.join(name));
            paths.take(most + 1).collect()
        });
        found = next.take(most + 1).collect();
        if found.len() > most {
            return Err(too_many_files());
        }
    }
    found.retain(|path| path.exists());
    found.sort();
    Ok(found)
}

fn matches_path(pattern: &Path, path: &Path) -> bool {
    let (patterns, parts) = (pattern.components(), path.components());
    let pairs = patterns.clone().zip(parts.clone());
    patterns.count() == parts.count()
        && pairs.into_iter().all(|(pattern, part)| {
            let (pattern, part) = (pattern.as_os_str(), part.as_os_str());
            matches(pattern.as_encoded_bytes(), part.as_encoded_bytes())
        })
}

/// As glob(7): `*`, `?` and `[...]`; a name that begins with a dot only where the pattern does.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    if name.first() == Some(&b'.') && pattern.first() != Some(&b'.') {
        return false;
    }
    matches_rest(pattern, name)
}

fn matches_rest(mut pattern: &[u8], mut name: &[u8]) -> bool {
    // What is behind the last `*`, and what it leaves of the name: it takes more where the rest
    // does not match. No earlier one has to, so that the time is that of both lengths at most.
    let mut last: Option<(&[u8], &[u8])> = None;
    loop {
        if let Some((b'*', rest)) = pattern.split_first() {
            last = Some((rest, name));
            pattern = rest;
            continue;
        }
        let Some((&byte, after)) = name.split_first() else {
            return pattern.is_empty();
        };
        (pattern, name) = match (behind(pattern, byte), last) {
            (Some(rest), _) => (rest, after),
            (None, Some((rest, [_, left @ ..]))) => {
                last = Some((rest, left));
                (rest, left)
            }
            (None, _) => return false,
        };
    }
}

/// The pattern behind its first part, which is no `*`, where that takes this byte.
fn behind(pattern: &[u8], byte: u8) -> Option<&[u8]> {
    let (&first, rest) = pattern.split_first()?;
    // A bracket right at the begin belongs to the set.
    let end = rest.iter().skip(1).position(|b| *b == b']');
    let Some(end) = end.filter(|_| first == b'[') else {
        return (first == b'?' || first == byte).then_some(rest);
    };
    let (set, rest) = (&rest[..=end], &rest[end + 2..]);
    let (negated, set) = match set.split_first() {
        Some((b'!' | b'^', set)) => (true, set),
        _ => (false, set),
    };
    let mut inside = false;
    let mut n = 0;
    while let Some(&low) = set.get(n) {
        let high = match (set.get(n + 1), set.get(n + 2)) {
            (Some(b'-'), Some(&high)) => {
                n += 2;
                high
            }
            _ => low,
        };
        inside |= (low..=high).contains(&byte);
        n += 1;
    }
    (inside != negated).then_some(rest)
}

/// Each token and its line.
fn tokens(text: &str, file: &str, most: usize) -> Result<Vec<(Token, usize)>, String> {
    let mut tokens = Vec::new();
    let mut chars = text.chars().peekable();
    let mut line = 1;
    while let Some(c) = chars.next() {
        let begin = line;
        if tokens.len() >= most {
            return Err(format!(
                "{file}:{line}: more than {MOST_WORDS} words\n  hint: {IN_PARTS}"
            ));
        }
        match c {
            '\n' => line += 1,
            c if c.is_ascii_whitespace() || c == '\u{feff}' => {}
            '#' => while chars.next_if(|c| *c != '\n').is_some() {},
            ';' => tokens.push((Token::Semicolon, line)),
            '{' => tokens.push((Token::Open, line)),
            '}' => tokens.push((Token::Close, line)),
            '"' | '\'' => {
                let mut word = String::new();
                loop {
                    match chars.next() {
                        None => return Err(format!("{file}:{begin}: a quote is not closed")),
                        Some(end) if end == c => break,
                        Some('\\') => line += escaped(&mut word, chars.next()),
                        Some(other) => {
                            line += usize::from(other == '\n');
                            word.push(other);
                        }
                    }
                }
                if chars
                    .peek()
                    .is_some_and(|c| !c.is_ascii_whitespace() && !";{)".contains(*c))
                {
                    return Err(format!("{file}:{line}: a blank is missing after a quote"));
                }
                tokens.push((Token::Word(word), begin));
            }
            first => {
                let mut word = String::new();
                let mut next = Some(first);
                while let Some(c) = next {
                    match c {
                        '\\' => line += escaped(&mut word, chars.next()),
                        c => word.push(c),
                    }
                    let variable = word.ends_with('$');
                    let ends =
                        |c: &char| c.is_ascii_whitespace() || *c == ';' || (*c == '{' && !variable);
                    next = chars.next_if(|c| !ends(c));
                }
                let is_script = word.ends_with("_by_lua_block");
                tokens.push((Token::Word(word), begin));
                if is_script && let Some(lines) = skip_script(&mut chars) {
                    tokens.extend([(Token::Open, line), (Token::Close, line + lines)]);
                    line += lines;
                }
            }
        }
    }
    Ok(tokens)
}

/// Passes a block in another language, up to the brace that closes it. Returns how many lines it
/// has; `None`: no block follows.
fn skip_script(chars: &mut Peekable<Chars<'_>>) -> Option<usize> {
    let (mut lines, mut depth) = (0, 0);
    // Braces in texts and comments of Lua are none of the block.
    let (mut quote, mut before) = (None, ' ');
    while let Some(c) = chars.next_if(|c| depth > 0 || c.is_ascii_whitespace() || *c == '{') {
        let last = std::mem::replace(&mut before, c);
        match c {
            '\n' => {
                lines += 1;
                quote = None;
            }
            c if quote == Some(c) && last != '\\' => quote = None,
            _ if quote.is_some() => {}
            '"' | '\'' => quote = Some(c),
            // Up to the end of the line.
            '-' if last == '-' => quote = Some('\n'),
            '{' => depth += 1,
            '}' if depth == 1 => return Some(lines),
            '}' => depth -= 1,
            _ => {}
        }
    }
    None
}

/// What stands for `\` and `next`. Returns how many lines it is.
fn escaped(word: &mut String, next: Option<char>) -> usize {
    match next {
        Some('t') => word.push('\t'),
        Some('r') => word.push('\r'),
        Some('n') => word.push('\n'),
        Some(c @ ('"' | '\'' | '\\')) => word.push(c),
        Some(c) => word.extend(['\\', c]),
        None => word.push('\\'),
    }
    usize::from(next == Some('\n'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        let tokens = tokens(text, "f", MOST_WORDS).expect("tokens");
        let text = |(token, line)| match token {
            Token::Word(word) => format!("{line}:{word}"),
            other => format!("{line}:{other:?}"),
        };
        tokens.into_iter().map(text).collect()
    }

    #[test]
    fn words_quotes_comments_and_variables() {
        assert_eq!(
            words("a 'b c' \"d;\\\"e\" ${x}y; # z\n{ f#g }"),
            [
                "1:a",
                "1:b c",
                "1:d;\"e",
                "1:${x}y",
                "1:Semicolon",
                "2:Open",
                "2:f#g",
                "2:Close"
            ]
        );
        assert_eq!(words("a\\ b;"), ["1:a\\ b", "1:Semicolon"]);
        assert!(tokens("\"a", "f", 9).is_err_and(|e| e.contains("f:1: a quote")));
        assert!(tokens("\"a\"b;", "f", 9).is_err());
    }

    #[test]
    fn blocks_and_their_mistakes() {
        let read = |text| read(text, "f");
        let tree = read("stream {\n  server { listen 1; }\n}").expect("valid");
        let listen = &tree[0].inside()[0].inside()[0];
        assert_eq!(
            (listen.first(), listen.place.to_string()),
            ("1", "f:2".to_owned())
        );
        for (text, part) in [
            ("stream {\n", "f:1: the block `stream` is not closed"),
            ("}\n", "f:1: `}` closes no block"),
            ("listen 1\n", "f:1: `listen` does not end"),
            ("a;\n;", "f:2: a directive begins with its name"),
        ] {
            assert!(read(text).is_err_and(|e| e.contains(part)), "{text}");
        }
        let tree = read("include nothing-there/*.conf;").expect("directives");
        assert!(tree.len() == 1 && !tree[0].is_missing());
        // It is listed as missing.
        let tree = read("include nothing-there.conf;").expect("directives");
        let [missing] = tree.as_slice() else {
            panic!("{tree:?}");
        };
        assert!(missing.is_missing());
    }

    /// An `include` of what has no end, or of too much, is an error at its place.
    #[test]
    fn what_an_include_brings_is_limited() {
        let name = format!("tembuku-include-{}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        let write = |name: &str, text: &str| {
            let path = folder.join(name);
            fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
            fs::write(path, text).expect("written");
        };
        let fifo = folder.join("fifo");
        write("big", &" ".repeat(9 << 20));
        write("self", "a {\n include self;\n}\n");
        write("twice", "include twice;\ninclude twice;\n");
        write("latin-1", "listen 1;\n");
        fs::write(folder.join("latin-1"), b"listen 1; # \xe4\n").expect("written");
        for n in 0..=MOST_FILES {
            write(&format!("many/{n}.conf"), "");
        }
        use rustix::fs::{CWD, FileType, Mode, mknodat};
        mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR, 0).expect("a FIFO");
        let origin = folder.join("nginx.conf").display().to_string();
        let read = |include: &str| read(&format!("a;\ninclude {include};\n"), &origin);
        for (include, parts) in [
            (
                "/dev/zero",
                &["nginx.conf:2: `include /dev/zero`: /dev/zero is no regular"][..],
            ),
            (
                "fifo",
                &["nginx.conf:2: `include fifo`: ", "/fifo is no regular file"],
            ),
            (
                "many",
                &[
                    "nginx.conf:2: ",
                    "many is a directory\n  hint: ",
                    "many/*.conf",
                ],
            ),
            (
                "many/*.conf",
                &["nginx.conf:2: ", "more than 1000 files", "--sections FILE"],
            ),
            (
                "big;include big",
                &["nginx.conf:2: ", "larger than 16 MiB together\n  hint: "],
            ),
            (
                "self",
                &[
                    "self:2: more than 50 blocks and includes",
                    "hint: does a file",
                ],
            ),
            (
                "twice",
                &[
                    "twice:1: more than 50 blocks and includes",
                    "include itself?",
                ],
            ),
        ] {
            let error = read(include).expect_err(include);
            for part in parts {
                assert!(error.contains(part), "{part} in {error}");
            }
        }
        assert_eq!(read("latin-1").expect("directives").len(), 3);
        // What `nginx -T` prints is no way around it.
        let printed = "# configuration file /a:\ninclude b;\n# configuration file /b:\n\
                       include b;\ninclude b;\n";
        assert!(super::read(printed, "-").is_err_and(|e| e.contains("/b:1: more than 50")));
        fs::remove_dir_all(folder).expect("removed");
    }

    #[test]
    fn more_than_a_configuration_has_is_an_error() {
        let error = read(&"a;".repeat(MOST_DIRECTIVES + 1), "f").expect_err("too much");
        assert!(
            error.starts_with("f:1: more than 1000000 directives\n  hint: "),
            "{error}"
        );
        let error = tokens("a b\nc d", "f", 2).expect_err("too much");
        assert!(
            error.starts_with("f:1: more than 4000000 words\n  hint: "),
            "{error}"
        );
    }

    #[test]
    fn a_pattern_with_many_asterisks_takes_no_time() {
        let (pattern, name) = ("*a".repeat(50) + "b", "a".repeat(200));
        assert!(!matches(pattern.as_bytes(), name.as_bytes()));
        assert!(matches(pattern.as_bytes(), (name + "b").as_bytes()));
    }

    #[test]
    fn names_match_patterns() {
        for (pattern, name, wanted) in [
            ("*.conf", "a.conf", true),
            ("*.conf", ".a.conf", false),
            ("?.c", "a.c", true),
            ("[a-c]x", "bx", true),
            ("[!a-c]x", "bx", false),
            ("[]]", "]", true),
            ("a*b*c", "aXbYc", true),
            ("a*b*c", "aXbY", false),
            ("*.conf", "a.conf.conf", true),
            ("a*", "a", true),
            ("a**b", "ab", true),
            ("*[ab]", "cb", true),
            ("[x", "[x", true),
        ] {
            assert_eq!(
                matches(pattern.as_bytes(), name.as_bytes()),
                wanted,
                "{pattern} {name}"
            );
        }
    }

    #[test]
    fn output_of_nginx_t_holds_all_files() {
        let text = "nginx: configuration file /etc/nginx/nginx.conf test is successful\n\
                    # configuration file /etc/nginx/nginx.conf:\n\
                    stream {\n include s/*.conf;\n}\n\n\
                    # configuration file /etc/nginx/s/a.conf:\nserver { listen 1; }\n";
        let tree = read(text, "-").expect("valid");
        let server = &tree[0].inside()[1];
        assert_eq!(server.place.to_string(), "/etc/nginx/s/a.conf:1");
    }
}
