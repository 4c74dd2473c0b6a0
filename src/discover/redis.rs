//! Kind `redis`: a list, a set, a sorted set or a hash in a Redis server.

use super::{
    Found, Interval, Snapshot, Source, SourceError,
    format::{MOST_BACKENDS, parse_entry, parse_weight, shown},
    redis_client::{self, RedisClient, Value},
};
use crate::plan::{Discover, MOST_WEIGHT, RedisLogin, ServerAddress};
use std::{collections::BTreeSet, time::Duration};
use tokio::time::timeout;
use xxhash_rust::xxh3::xxh3_64;

/// What rotates a list pops an element before it pushes it again. One that is missing is looked for
/// so often...
const LOOKS: u32 = 16;
/// ... with pauses of up to this, or what fits into half of the time for an answer.
const LONGEST_PAUSE: Duration = Duration::from_millis(40);
/// The same for the first answer, when nothing is known to be missing.
const FIRST_LOOKS: u32 = 4;

pub(crate) struct RedisSource {
    server: ServerAddress,
    key: Vec<u8>,
    login: RedisLogin,
    timeout: Duration,
    interval: Interval,
    /// The elements of the last answer, if it was a list.
    known: Option<BTreeSet<Vec<u8>>>,
}

/// What the key holds.
enum Contents {
    /// Of a list or a set.
    Elements(Vec<Vec<u8>>),
    /// Of a sorted set: element and score.
    Scores(Vec<(Vec<u8>, Vec<u8>)>),
    /// Of a hash.
    Fields(Vec<(Vec<u8>, Vec<u8>)>),
}

impl RedisSource {
    pub(crate) fn new(
        server: &ServerAddress,
        key: &str,
        login: &RedisLogin,
        discover: &Discover,
    ) -> Self {
        Self {
            server: server.clone(),
            key: key.as_bytes().to_vec(),
            login: login.clone(),
            timeout: discover.timeout,
            interval: Interval::new(discover.interval),
            known: None,
        }
    }

    async fn ask(&mut self) -> Result<Snapshot, SourceError> {
        let mut client = RedisClient::connect(&self.server, &self.login).await?;
        let shown_key = format!("key {}", shown(&String::from_utf8_lossy(&self.key)));
        let place = |e: SourceError| e.at(&shown_key);
        let kind = match client.ask_for(&[b"TYPE", &self.key]).await? {
            Value::Status(kind) => kind,
            _ => return Err(client.wrong(&"its reply to TYPE is none of Redis")),
        };
        self.check_length(&mut client, &kind).await.map_err(place)?;
        let mut contents = self.read(&mut client, &kind).await.map_err(place)?;
        if let (Contents::Elements(elements), "list") = (&mut contents, kind.as_str()) {
            self.look_again(&mut client, elements)
                .await
                .map_err(place)?;
        } else {
            self.known = None;
        }
        let backends = contents.backends().map_err(place)?;
        let mut texts: Vec<String> = backends.iter().map(|found| format!("{found:?}")).collect();
        texts.sort_unstable();
        texts.dedup();
        // Without a close the server logs nothing, but has to notice.
        let _ = client.send(&[b"QUIT"]).await;
        Ok(Snapshot {
            backends,
            version: format!("{:016x}", xxh3_64(texts.concat().as_bytes())),
            valid_for: None,
            gap: None,
        })
    }

    /// A long list is not even asked for.
    async fn check_length(&self, client: &mut RedisClient, kind: &str) -> Result<(), SourceError> {
        let command: &[u8] = match kind {
            "list" => b"LLEN",
            "set" => b"SCARD",
            "zset" => b"ZCARD",
            "hash" => b"HLEN",
            _ => return Ok(()),
        };
        match client.ask_for(&[command, &self.key]).await? {
            Value::Number(count) if usize::try_from(count).is_ok_and(|n| n > MOST_BACKENDS) => {
                Err(SourceError::new(format!(
                    "it has {count} elements; an upstream may have {MOST_BACKENDS} backends"
                )))
            }
            _ => Ok(()),
        }
    }

    async fn read(&self, client: &mut RedisClient, kind: &str) -> Result<Contents, SourceError> {
        let key = &self.key[..];
        let last = MOST_BACKENDS.to_string();
        let command: &[&[u8]] = match kind {
            "none" => return Ok(Contents::Elements(Vec::new())),
            "list" => &[b"LRANGE", key, b"0", last.as_bytes()],
            "set" => &[b"SMEMBERS", key],
            "zset" => &[b"ZRANGE", key, b"0", last.as_bytes(), b"WITHSCORES"],
            "hash" => &[b"HGETALL", key],
            other => {
                return Err(SourceError::new(format!(
                    "it is of the type {}; a list, a set, a sorted set or a hash is needed",
                    shown(other)
                )));
            }
        };
        let Value::List(items) = client.ask_for(command).await? else {
            return Err(client.wrong(&"its reply is no list"));
        };
        let mut texts = Vec::with_capacity(items.len());
        for item in items {
            match item {
                Value::Text(Some(text)) => texts.push(text),
                _ => return Err(client.wrong(&"its reply is no list of texts")),
            }
        }
        Ok(match kind {
            "zset" => Contents::Scores(pairs(texts)),
            "hash" => Contents::Fields(pairs(texts)),
            _ => Contents::Elements(texts),
        })
    }

    /// Reads a list again while an element is missing that was there before: another client may
    /// have popped it, and be about to push it again.
    async fn look_again(
        &mut self,
        client: &mut RedisClient,
        elements: &mut Vec<Vec<u8>>,
    ) -> Result<(), SourceError> {
        let pause = LONGEST_PAUSE.min(self.timeout / (2 * LOOKS));
        let mut found: BTreeSet<Vec<u8>> = elements.drain(..).collect();
        let looks = self.known.as_ref().map_or(FIRST_LOOKS, |_| LOOKS);
        for _ in 0..looks {
            if self
                .known
                .as_ref()
                .is_some_and(|known| known.is_subset(&found))
            {
                break;
            }
            // By chance, so that it does not go in step with what rotates the list.
            tokio::time::sleep(pause.mul_f64(rand::random_range(0.25..1.0))).await;
            if let Contents::Elements(more) = self.read(client, "list").await? {
                found.extend(more);
            }
        }
        elements.extend(found.iter().cloned());
        self.known = Some(found);
        Ok(())
    }
}

impl Source for RedisSource {
    async fn next(&mut self) -> Result<Snapshot, SourceError> {
        self.interval.wait().await;
        let limit = self.timeout;
        let answer = timeout(limit, self.ask()).await;
        let answer = answer.unwrap_or_else(|_| {
            let error = SourceError::timed_out(limit);
            Err(error.at(&format!("server {}", self.server.text)))
        })?;
        self.interval.answered(None);
        Ok(answer)
    }
}

/// What each type of key would be with a reply that has these bytes.
pub(super) fn replay(bytes: &[u8]) -> Vec<Result<Vec<Found>, SourceError>> {
    let cut = bytes
        .iter()
        .fold(0, |sum: usize, byte| sum + usize::from(*byte))
        % (bytes.len() + 1);
    let items = match redis_client::replay(bytes, cut) {
        Some(Value::List(items)) => items,
        Some(Value::Error(text)) => return vec![Err(SourceError::new(text))],
        _ => return Vec::new(),
    };
    let texts = || {
        let text = |item: &Value| match item {
            Value::Text(text) => text.clone(),
            _ => None,
        };
        items.iter().filter_map(text).collect()
    };
    vec![
        Contents::Elements(texts()).backends(),
        Contents::Scores(pairs(texts())).backends(),
        Contents::Fields(pairs(texts())).backends(),
    ]
}

impl Contents {
    fn backends(self) -> Result<Vec<Found>, SourceError> {
        match self {
            Self::Elements(elements) => elements.iter().map(|bytes| entry(bytes, "")).collect(),
            Self::Scores(pairs) => pairs
                .iter()
                .map(|(member, score)| scored(member, score))
                .collect(),
            Self::Fields(pairs) => pairs
                .iter()
                .map(|(field, value)| described(field, value))
                .collect(),
        }
    }
}

fn entry(bytes: &[u8], more: &str) -> Result<Found, SourceError> {
    let text = text(bytes)?;
    let entry = parse_entry(&format!("{text} {more}"));
    entry.map_err(|e| e.at(&format!("element {}", shown(text))))
}

/// The score is the weight.
fn scored(member: &[u8], score: &[u8]) -> Result<Found, SourceError> {
    let found = entry(member, "")?;
    let weight: Option<f64> = text(score)?.parse().ok();
    let weight = weight
        .map(f64::round)
        .filter(|w| (0.0..=f64::from(MOST_WEIGHT)).contains(w));
    match weight {
        Some(weight) => Ok(Found {
            weight: weight as u32,
            ..found
        }),
        None => Err(SourceError::new(format!(
            "element {}: its score is the weight, a number up to {MOST_WEIGHT}, not {}",
            shown(&found.address),
            shown(text(score)?)
        ))),
    }
}

/// The value is the weight alone, or what follows the address in a line of a file.
fn described(field: &[u8], value: &[u8]) -> Result<Found, SourceError> {
    let value = text(value)?.trim();
    if value.starts_with(|c: char| c.is_ascii_digit() || c == '-') {
        let found = entry(field, "")?;
        let weight = parse_weight(value).map_err(|e| e.at(&format!("field {}", found.address)));
        return Ok(Found {
            weight: weight?,
            ..found
        });
    }
    entry(field, value)
}

fn text(bytes: &[u8]) -> Result<&str, SourceError> {
    str::from_utf8(bytes).map_err(|_| {
        let shown = shown(&String::from_utf8_lossy(bytes));
        SourceError::new(format!("element {shown} is not UTF-8"))
    })
}

fn pairs(texts: Vec<Vec<u8>>) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut pairs = Vec::with_capacity(texts.len() / 2);
    let mut texts = texts.into_iter();
    while let (Some(first), Some(second)) = (texts.next(), texts.next()) {
        pairs.push((first, second));
    }
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_scores_and_fields_are_backends() {
        let three = Found {
            weight: 3,
            ..Found::new("10.0.0.1:1")
        };
        let backup = Found {
            backup: true,
            ..three.clone()
        };
        assert_eq!(entry(b"10.0.0.1:1 weight=3 backup", ""), Ok(backup.clone()));
        assert_eq!(scored(b"10.0.0.1:1", b"3"), Ok(three.clone()));
        assert_eq!(scored(b"10.0.0.1:1", b"2.6"), Ok(three.clone()));
        assert_eq!(described(b"10.0.0.1:1", b"3"), Ok(three));
        assert_eq!(described(b"10.0.0.1:1", b"weight=3 backup"), Ok(backup));
        assert_eq!(described(b"10.0.0.1:1", b""), Ok(Found::new("10.0.0.1:1")));
        for wrong in [
            scored(b"10.0.0.1:1", b"-1"),
            scored(b"10.0.0.1:1", b"inf"),
            scored(b"10.0.0.1:1", b"70000"),
            described(b"10.0.0.1:1", b"-1"),
            described(b"10.0.0.1:1", b"70000"),
            entry(b"", ""),
            entry(b"\xff:1", ""),
        ] {
            assert!(wrong.is_err());
        }
    }
}
