//! The text of an nginx configuration: tokens, blocks, includes, and what `nginx -T` prints.

use super::super::document::Place;
use std::{
    collections::BTreeMap,
    fs,
    iter::Peekable,
    path::{Path, PathBuf},
    rc::Rc,
    str::Chars,
};

/// More files than this are a circle of includes.
const MOST_FILES: usize = 1_000;
/// Deeper blocks are no configuration.
const MOST_DEPTH: usize = 50;

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
        count: 0,
    };
    reader.file(&name, &text)
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
    count: usize,
}

impl Reader {
    fn file(&mut self, name: &str, text: &str) -> Result<Vec<Directive>, String> {
        self.count += 1;
        if self.count > MOST_FILES {
            return Err(format!(
                "{name}: more than {MOST_FILES} files: does one include itself?"
            ));
        }
        let tokens = tokens(text, name)?;
        let source = Source {
            file: name.into(),
            words: tokens.len(),
        };
        let mut rest = tokens.as_slice();
        let directives = self.block(&mut rest, &source, 0)?;
        match rest.first() {
            Some((_, line)) => Err(format!("{name}:{line}: `}}` closes no block")),
            None => Ok(directives),
        }
    }

    fn block(
        &mut self,
        rest: &mut &[(Token, usize)],
        source: &Source,
        depth: usize,
    ) -> Result<Vec<Directive>, String> {
        let mut directives = Vec::new();
        while let Some(((Token::Word(name), line), after)) = rest.split_first() {
            let place = Place {
                file: source.file.clone(),
                line: *line,
                word: source.words - rest.len(),
            };
            *rest = after;
            let mut arguments = Vec::new();
            while let Some(((Token::Word(word), _), after)) = rest.split_first() {
                arguments.push(word.clone());
                *rest = after;
            }
            let block = match rest.split_first() {
                Some(((Token::Semicolon, _), after)) => {
                    *rest = after;
                    None
                }
                Some(((Token::Open, _), after)) => {
                    *rest = after;
                    if depth >= MOST_DEPTH {
                        return Err(format!(
                            "{place}: more than {MOST_DEPTH} blocks in each other"
                        ));
                    }
                    let inside = self.block(rest, source, depth + 1)?;
                    let Some(((Token::Close, _), after)) = rest.split_first() else {
                        return Err(format!("{place}: the block `{name}` is not closed"));
                    };
                    *rest = after;
                    Some(inside)
                }
                _ => return Err(format!("{place}: `{name}` does not end with a semicolon")),
            };
            match (name.as_str(), &block) {
                ("include", None) => directives.extend(self.include(arguments, place)?),
                _ => directives.push(Directive {
                    name: name.clone(),
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
    fn include(&mut self, arguments: Vec<String>, place: Place) -> Result<Vec<Directive>, String> {
        let path = self.folder.join(arguments.join(" "));
        let found = match &self.printed {
            Some(files) => {
                let names = files
                    .keys()
                    .filter(|name| matches_path(&path, Path::new(name)));
                names.map(PathBuf::from).collect()
            }
            None => expand(&path),
        };
        let mut inside = Vec::new();
        for path in &found {
            let name = path.display().to_string();
            let text = match &self.printed {
                Some(files) => files.get(&name).cloned().unwrap_or_default(),
                None => fs::read_to_string(path).map_err(|e| format!("{place}: {name}: {e}"))?,
            };
            inside.extend(self.file(&name, &text)?);
        }
        let directive = Directive {
            name: "include".to_owned(),
            arguments,
            block: None,
            place,
            files: found.len(),
        };
        inside.insert(0, directive);
        Ok(inside)
    }
}

/// The file that is being read.
struct Source {
    file: Rc<str>,
    /// How many words and signs it has.
    words: usize,
}

/// Existing files that match, sorted.
fn expand(pattern: &Path) -> Vec<PathBuf> {
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
            names.map(|name| folder.join(name)).collect()
        });
        found = next.collect();
    }
    found.retain(|path| path.is_file());
    found.sort();
    found
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

fn matches_rest(pattern: &[u8], name: &[u8]) -> bool {
    match (pattern.split_first(), name.split_first()) {
        (None, None) => true,
        (Some((b'*', rest)), _) => (0..=name.len()).any(|n| matches_rest(rest, &name[n..])),
        (Some((b'?', rest)), Some((_, after))) => matches_rest(rest, after),
        (Some((b'[', set)), Some((&byte, after))) => {
            // A bracket right at the begin belongs to the set.
            let Some(end) = set.iter().skip(1).position(|b| *b == b']') else {
                return byte == b'[' && matches_rest(set, after);
            };
            let (set, rest) = (&set[..=end], &set[end + 2..]);
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
            inside != negated && matches_rest(rest, after)
        }
        (Some((&wanted, rest)), Some((&byte, after))) => {
            wanted == byte && matches_rest(rest, after)
        }
        _ => false,
    }
}

/// Each token and its line.
fn tokens(text: &str, file: &str) -> Result<Vec<(Token, usize)>, String> {
    let mut tokens = Vec::new();
    let mut chars = text.chars().peekable();
    let mut line = 1;
    while let Some(c) = chars.next() {
        let begin = line;
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
        let tokens = tokens(text, "f").expect("tokens");
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
        assert!(tokens("\"a", "f").is_err_and(|e| e.contains("f:1: a quote")));
        assert!(tokens("\"a\"b;", "f").is_err());
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
