//! `hash_key`: text with variables, as nginx writes them.

use crate::{
    config::text::{
        report::{Fault, fault},
        suggestions::{nearest, shorten},
    },
    plan::{HashKey, KeyPart, Variable},
};

pub(crate) fn parse(text: &str) -> Result<HashKey, Fault> {
    let mut parts: Vec<KeyPart> = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        add_text(&mut parts, &rest[..at]);
        let (name, after) = split_name(&rest[at + 1..]).ok_or_else(|| {
            fault!("`hash_key`: a brace is not closed in {}", quoted(text))
                .hint("as in \"${remote_addr}\"")
        })?;
        let variable = Variable::of_word(name);
        parts.push(KeyPart::Variable(variable.ok_or_else(|| unknown(name))?));
        rest = after;
    }
    add_text(&mut parts, rest);
    if !parts.iter().any(|p| matches!(p, KeyPart::Variable(_))) {
        return Err(constant(text));
    }
    Ok(HashKey(parts))
}

/// As it would be written; reading it gives the same key.
pub fn format(key: &HashKey) -> String {
    let part = |(i, part): (usize, &KeyPart)| match part {
        KeyPart::Text(text) => text.clone(),
        KeyPart::Variable(variable) => {
            let next = key.0.get(i + 1);
            let runs_on = matches!(next, Some(KeyPart::Text(text)) if text.starts_with(is_of_name));
            if runs_on {
                format!("${{{}}}", variable.word())
            } else {
                format!("${}", variable.word())
            }
        }
    };
    key.0.iter().enumerate().map(part).collect()
}

fn add_text(parts: &mut Vec<KeyPart>, text: &str) {
    if !text.is_empty() {
        parts.push(KeyPart::Text(text.to_owned()));
    }
}

fn is_of_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// The name after a `$`, in braces or not, and what follows. `None`: the brace is not closed.
fn split_name(text: &str) -> Option<(&str, &str)> {
    match text.strip_prefix('{') {
        Some(inner) => inner.split_once('}'),
        None => Some(text.split_at(text.find(|c| !is_of_name(c)).unwrap_or(text.len()))),
    }
}

fn unknown(name: &str) -> Fault {
    let names = Variable::ALL.map(Variable::word);
    let fault = fault!("`hash_key` has no variable {}", quoted(&format!("${name}")));
    match nearest(name, &names) {
        Some(near) => fault.hint(format!("did you mean \"${near}\"?")),
        None => fault.hint(format!(
            "one of: {}",
            names.map(|name| format!("${name}")).join(", ")
        )),
    }
}

fn constant(text: &str) -> Fault {
    let names = Variable::ALL.map(Variable::word);
    fault!(
        "`hash_key` = {} is the same for every client, and all would go to one backend",
        quoted(text)
    )
    .hint(match nearest(text, &names) {
        Some(near) => format!("did you mean \"${near}\"?"),
        None => "put a variable in it, as in \"$remote_addr\"".to_owned(),
    })
}

fn quoted(text: &str) -> String {
    shorten(&format!("{text:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variable(variable: Variable) -> KeyPart {
        KeyPart::Variable(variable)
    }

    fn text(text: &str) -> KeyPart {
        KeyPart::Text(text.to_owned())
    }

    #[test]
    fn what_is_read() {
        use Variable::{ProxyProtocolAddr, RemoteAddr, RemotePort, ServerPort};
        for (written, parts) in [
            ("$remote_addr", vec![variable(RemoteAddr)]),
            ("${remote_addr}", vec![variable(RemoteAddr)]),
            (
                "$remote_addr$remote_port",
                vec![variable(RemoteAddr), variable(RemotePort)],
            ),
            (
                "a-$server_port:b",
                vec![text("a-"), variable(ServerPort), text(":b")],
            ),
            ("${remote_addr}s", vec![variable(RemoteAddr), text("s")]),
            ("$proxy_protocol_addr", vec![variable(ProxyProtocolAddr)]),
        ] {
            let key = HashKey(parts);
            assert_eq!(parse(written), Ok(key.clone()), "{written}");
            assert_eq!(parse(&format(&key)), Ok(key), "{written}");
        }
    }

    #[test]
    fn what_is_refused() {
        for (text, part) in [
            ("", "the same for every client"),
            ("remote_addr", "did you mean \"$remote_addr\""),
            ("users", "put a variable in it"),
            ("$remote_adr", "did you mean \"$remote_addr\""),
            ("$uri", "one of: $remote_addr, "),
            ("$", "has no variable"),
            ("$$remote_addr", "has no variable"),
            ("${remote_addr", "a brace is not closed"),
            ("${}", "has no variable"),
        ] {
            let fault = parse(text).expect_err(text);
            let message = format!("{} {}", fault.message, fault.hint.unwrap_or_default());
            assert!(message.contains(part), "{text}: {message}");
        }
    }
}
