//! Values of nginx as values of tembuku.

use super::super::document::duration;
use std::net::Ipv4Addr;

/// A time of nginx ("10", "1m30s", "500ms") as a duration; `None`: it is none.
pub(super) fn time(text: &str) -> Option<String> {
    let mut rest = text;
    let mut milliseconds: u64 = 0;
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(rest.len());
        let (number, after) = rest.split_at(digits);
        let unit = after
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(after.len());
        let (unit, after) = after.split_at(unit);
        let size = match unit.trim() {
            "ms" => 1,
            "" | "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            "w" => 7 * 86_400_000,
            "M" => 30 * 86_400_000,
            "y" => 365 * 86_400_000,
            _ => return None,
        };
        let part = number.parse::<u64>().ok()?.checked_mul(size)?;
        milliseconds = milliseconds.checked_add(part)?;
        rest = after;
    }
    (!text.is_empty()).then(|| duration(milliseconds))
}

/// A size of nginx ("1000", "64k", "1M", "1g"); `None`: it is none.
pub(super) fn size(text: &str) -> Option<String> {
    let size = text.to_ascii_lowercase();
    let digits = size.trim_end_matches(['k', 'm', 'g']);
    let is_size = size.len() - digits.len() <= 1 && digits.parse::<u64>().is_ok_and(|n| n > 0);
    is_size.then_some(size)
}

/// Milliseconds of what [`time`] gives.
pub(super) fn milliseconds(time: &str) -> u64 {
    let digits = time.trim_end_matches(|c: char| !c.is_ascii_digit());
    let number = digits.parse().unwrap_or(0);
    match &time[digits.len()..] {
        "ms" => number,
        "s" => number * 1_000,
        "m" => number * 60_000,
        _ => number * 3_600_000,
    }
}

/// Where a server of an upstream is, with the port that nginx takes where there is none.
pub(super) fn backend(text: &str, default_port: Option<u16>) -> Result<String, String> {
    if text.starts_with("unix:") {
        return Ok(text.to_owned());
    }
    let has_port = match text.strip_prefix('[') {
        Some(rest) => rest.split_once("]:").is_some(),
        None => text.contains(':'),
    };
    match (has_port, default_port) {
        (true, _) => Ok(text.to_owned()),
        (false, Some(port)) => Ok(format!("{text}:{port}")),
        (false, None) => Err("there is no port in it".to_owned()),
    }
}

/// The addresses that `listen` binds; with `both`, IPv6 takes IPv4, too.
pub(super) fn listen(
    text: &str,
    default_port: Option<u16>,
    both: bool,
) -> Result<Vec<String>, String> {
    if text.starts_with("unix:") {
        return Ok(vec![text.to_owned()]);
    }
    let is_port = |text: &str| {
        let parts: Vec<&str> = text.split('-').collect();
        parts.len() <= 2 && parts.iter().all(|part| part.parse::<u16>().is_ok())
    };
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if is_port(port) => (host, port.to_owned()),
        None if is_port(text) => ("*", text.to_owned()),
        _ => match default_port {
            Some(port) => (text, port.to_string()),
            None => return Err("there is no port in it".to_owned()),
        },
    };
    match host {
        "*" => Ok(vec![format!("0.0.0.0:{port}")]),
        "localhost" => Ok(vec![format!("127.0.0.1:{port}")]),
        "[::]" if both => Ok(vec![format!("0.0.0.0:{port}"), format!("[::]:{port}")]),
        host if host.starts_with('[') || host.parse::<Ipv4Addr>().is_ok() => {
            Ok(vec![format!("{host}:{port}")])
        }
        _ => Err("`bind` takes addresses, not names".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        for (text, wanted) in [
            ("10", Some("10s")),
            ("500ms", Some("500ms")),
            ("1h30m", Some("90m")),
            ("1d", Some("24h")),
            ("0", Some("0s")),
            ("", None),
            ("s", None),
            ("5x", None),
            ("99999999999999999999", None),
        ] {
            assert_eq!(time(text).as_deref(), wanted, "{text}");
        }
        assert_eq!(milliseconds("90m"), 5_400_000);
        assert_eq!(milliseconds("500ms"), 500);
    }

    #[test]
    fn addresses() {
        let listen = |text, both| listen(text, None, both);
        assert_eq!(listen("82", false), Ok(vec!["0.0.0.0:82".to_owned()]));
        assert_eq!(
            listen("*:7000-7010", false),
            Ok(vec!["0.0.0.0:7000-7010".to_owned()])
        );
        assert_eq!(listen("[::]:53", true).map(|all| all.len()), Ok(2));
        assert_eq!(listen("[::1]:53", true), Ok(vec!["[::1]:53".to_owned()]));
        assert!(listen("example.com:53", false).is_err() && listen("127.0.0.1", false).is_err());
        assert_eq!(backend("10.0.0.1", Some(80)), Ok("10.0.0.1:80".to_owned()));
        assert_eq!(backend("[::1]", Some(80)), Ok("[::1]:80".to_owned()));
        assert!(backend("10.0.0.1", None).is_err());
    }
}
