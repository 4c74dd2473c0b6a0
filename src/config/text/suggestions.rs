//! How messages put things.

use toml::de::DeValue;

/// The candidate that `word` was probably meant to be.
pub fn nearest<'a>(word: &str, candidates: &[&'a str]) -> Option<&'a str> {
    // Long enough input cannot be near anything, and the distance takes quadratic time.
    if word.len() > 100 {
        return None;
    }
    let word = word.to_lowercase();
    let begun = |candidate: &&&str| {
        let shorter = word.len().min(candidate.len());
        shorter >= 3 && word.as_bytes()[..shorter] == candidate.as_bytes()[..shorter]
    };
    let near = candidates
        .iter()
        .map(|candidate| {
            (
                strsim::osa_distance(&word, &candidate.to_lowercase()),
                *candidate,
            )
        })
        .filter(|(distance, candidate)| {
            *distance <= (word.len().max(candidate.len()) / 3).clamp(1, 3)
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate);
    // "warning" is no slip of the finger, and yet "warn" was meant.
    near.or_else(|| candidates.iter().find(begun).copied())
}

/// A description of the value for a message.
pub(crate) fn found(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("the text {}", shorten(&format!("{text:?}"))),
        DeValue::Integer(_) | DeValue::Float(_) => {
            format!("the number {}", shorten(&number_text(value)))
        }
        DeValue::Boolean(value) => value.to_string(),
        DeValue::Datetime(_) => "a date or time".to_owned(),
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}

/// In backticks; as a quoted key where it is not a plain word.
pub(crate) fn quoted_key(name: &str) -> String {
    let plain = !name.is_empty()
        && name
            .chars()
            .all(|c| c.is_alphanumeric() || "_-.".contains(c));
    if plain {
        format!("`{}`", shorten(name))
    } else {
        format!("`{}`", shorten(&format!("{name:?}")))
    }
}

pub(crate) fn number_text(value: &DeValue<'_>) -> String {
    match value {
        DeValue::Integer(integer) => integer.to_string(),
        DeValue::Float(float) => float.to_string(),
        _ => String::new(),
    }
}

/// Messages quote what was written, but not all of it.
pub(crate) fn shorten(text: &str) -> String {
    const MOST: usize = 80;
    if text.chars().count() <= MOST {
        return text.to_owned();
    }
    text.chars().take(MOST).chain(['…']).collect()
}

pub(crate) fn list<'w>(words: impl Iterator<Item = &'w str>) -> String {
    words.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_words() {
        let words = ["round_robin", "consistent_hash", "first"];
        assert_eq!(nearest("roundrobin", &words), Some("round_robin"));
        assert_eq!(nearest("Consistent-Hash", &words), Some("consistent_hash"));
        assert_eq!(nearest("warning", &["warn", "error"]), Some("warn"));
        assert_eq!(nearest("err", &["warn", "error"]), Some("error"));
        assert_eq!(nearest("banana", &words), None);
        assert_eq!(nearest(&"a".repeat(1 << 20), &words), None);
    }
}
