//! What is wrong with a configuration, where, and what to do about it: as data and as text.

use std::fmt;

use super::excerpt::Excerpt;

/// Everything that is wrong with one configuration; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems {
    origin: String,
    list: Vec<Problem>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub message: String,
    pub hint: Option<String>,
    /// `None` where the whole file is meant.
    pub position: Option<Position>,
    pub(crate) excerpt: Option<Excerpt>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// From 1. On the command line always 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// The flag that is meant, where the configuration came from the command line.
    pub flag: Option<&'static str>,
}

impl Problems {
    /// `None` if there are none.
    pub(crate) fn new(origin: &str, list: Vec<Problem>) -> Option<Self> {
        (!list.is_empty()).then(|| Self {
            origin: origin.to_owned(),
            list,
        })
    }

    /// A problem with the whole of `origin`: it cannot be read, for example.
    pub(crate) fn whole(origin: &str, message: String, hint: &str) -> Self {
        let hint = Some(hint.to_owned());
        let problem = Problem {
            message,
            hint,
            position: None,
            excerpt: None,
        };
        Self {
            origin: origin.to_owned(),
            list: vec![problem],
        }
    }

    /// The name of the file, or what stands for it.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// By position; those of the whole file last.
    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.list.iter()
    }

    #[expect(clippy::len_without_is_empty, reason = "never empty")]
    pub fn len(&self) -> usize {
        self.list.len()
    }
}

impl std::error::Error for Problems {}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for problem in &self.list {
            writeln!(f, "error: {}", problem.message)?;
            match &problem.position {
                None => writeln!(f, " --> {}", self.origin)?,
                Some(Position {
                    flag: Some(flag), ..
                }) => writeln!(f, " --> {flag}")?,
                Some(p) => writeln!(f, " --> {}:{}:{}", self.origin, p.line, p.column)?,
            }
            if let Some(excerpt) = &problem.excerpt {
                // The command line has no line numbers.
                let file = problem
                    .position
                    .as_ref()
                    .filter(|position| position.flag.is_none());
                excerpt.write(file.map(|position| position.line), f)?;
            }
            if let Some(hint) = &problem.hint {
                writeln!(f, "  hint: {hint}")?;
            }
            writeln!(f)?;
        }
        let noun = if self.list.len() == 1 {
            "problem"
        } else {
            "problems"
        };
        writeln!(f, "{} {noun} in {}", self.list.len(), self.origin)
    }
}
