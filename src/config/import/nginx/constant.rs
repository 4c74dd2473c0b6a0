//! Variables that have one value, whatever the client is: written so that nginx looks a name up
//! again, which is done here anyway.

use super::Directive;

/// More rounds than this are variables that name each other.
const MOST_ROUNDS: usize = 10;

/// `text` with the variables in it replaced; `None`: one of them depends on the client, or is not
/// known. `blocks`: those around the place, the innermost first.
pub(super) fn resolve(text: &str, blocks: &[&[Directive]]) -> Option<String> {
    let mut text = text.to_owned();
    for _ in 0..MOST_ROUNDS {
        let Some((before, name, after)) = split(&text) else {
            return Some(text);
        };
        let value = blocks.iter().find_map(|block| value(name, block))?;
        text = format!("{before}{value}{after}");
    }
    None
}

/// Whether the directive gives a variable one value.
pub(super) fn is_constant(directive: &Directive, blocks: &[&[Directive]]) -> bool {
    definition(directive).is_some_and(|(_, value)| resolve(value, blocks).is_some())
}

/// What stands before the first variable, its name, and what follows.
fn split(text: &str) -> Option<(&str, &str, &str)> {
    let (before, rest) = text.split_once('$')?;
    if let Some((name, after)) = rest.strip_prefix('{').and_then(|r| r.split_once('}')) {
        return Some((before, name, after));
    }
    let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let (name, after) = rest.split_at(end.unwrap_or(rest.len()));
    Some((before, name, after))
}

/// The one value that the block gives the variable.
fn value<'a>(name: &str, block: &'a [Directive]) -> Option<&'a str> {
    let mut found = block.iter().rev().filter_map(definition);
    found
        .find(|(known, _)| *known == name)
        .map(|(_, value)| value)
}

/// The variable that a directive defines, and its value, if that is always the same.
fn definition(directive: &Directive) -> Option<(&str, &str)> {
    let (name, value) = match directive.name.as_str() {
        "set" => (directive.arguments.first(), directive.arguments.get(1)),
        "map" | "geo" => {
            let cases = directive.inside().iter();
            let cases: Vec<&Directive> = cases
                .filter(|case| !["volatile", "include"].contains(&case.name.as_str()))
                .collect();
            if directive.inside().iter().any(Directive::is_missing) {
                return None;
            }
            // Of an empty text only the default can come.
            let is_empty = directive.arguments.len() == 2 && directive.first().is_empty();
            let default = cases.iter().find(|case| case.name == "default")?;
            let value = default.arguments.first();
            let is_one = cases.len() == 1 || is_empty;
            (directive.arguments.last(), value.filter(|_| is_one))
        }
        _ => return None,
    };
    Some((name?.strip_prefix('$')?, value?.as_str()))
}

#[cfg(test)]
mod tests {
    use super::{super::syntax, *};

    #[test]
    fn variables_of_one_value_are_replaced() {
        let tree = syntax::read(
            "set $port 53; map $protocol $dns { default servers.dns:$port; }
             map \"\" $empty { a b:1; default c:2; } geo $g { default d:3; }
             map $ssl_preread_server_name $sni { a.example a:1; default b:1; }
             map $remote_addr $self { default $self; }",
            "f",
        );
        let tree = tree.expect("directives");
        let resolved = |text: &str| resolve(text, &[&tree]);
        for (text, wanted) in [
            ("10.0.0.1:1", Some("10.0.0.1:1")),
            ("$dns", Some("servers.dns:53")),
            ("$empty", Some("c:2")),
            ("${g}", Some("d:3")),
            ("host:$port", Some("host:53")),
            ("$sni", None),
            ("$self", None),
            ("$unknown", None),
        ] {
            assert_eq!(resolved(text).as_deref(), wanted, "{text}");
        }
    }
}
