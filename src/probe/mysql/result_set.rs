//! The answer to a query, in the text protocol. Pure.

use super::packet::{Reader, Wrong};

/// No answer to a question of ours has more.
const MOST_COLUMNS: u64 = 256;

/// What has come so far.
#[derive(Debug, Default)]
pub(super) struct ResultSet {
    /// The number of names; `None` before the packet that carries it.
    columns: Option<usize>,
    names: Vec<Vec<u8>>,
    names_ended: bool,
    rows: Vec<Vec<Option<Vec<u8>>>>,
}

impl ResultSet {
    /// Whether that was the last packet. An error is not for here: it has been looked for before.
    pub(super) fn receive(&mut self, payload: &[u8]) -> Result<bool, Wrong> {
        let is_eof = payload.first() == Some(&0xfe) && payload.len() < 9;
        let mut reader = Reader(payload);
        let Some(columns) = self.columns else {
            return match reader.length()? {
                count @ 1..=MOST_COLUMNS if reader.is_empty() => {
                    self.columns = usize::try_from(count).ok();
                    Ok(false)
                }
                _ => Err(Wrong("no result where one was to come")),
            };
        };
        if self.names.len() < columns {
            // Catalog, schema, table and the table's own name stand before it.
            for _ in 0..4 {
                reader.value()?;
            }
            self.names.push(narrow(reader.value()?));
            return Ok(false);
        }
        if !self.names_ended {
            self.names_ended = is_eof;
            return if is_eof {
                Ok(false)
            } else {
                Err(Wrong("no end of the names of columns"))
            };
        }
        if is_eof {
            return Ok(true);
        }
        let mut row = Vec::with_capacity(columns);
        for _ in 0..columns {
            row.push(reader.nullable()?.map(narrow));
        }
        if !reader.is_empty() {
            return Err(Wrong("a row that is too long"));
        }
        self.rows.push(row);
        Ok(false)
    }

    pub(super) fn rows(&self) -> &[Vec<Option<Vec<u8>>>] {
        &self.rows
    }

    /// Which column has one of these names.
    pub(super) fn column(&self, names: &[&str]) -> Option<usize> {
        let is_one = |name: &Vec<u8>| {
            names
                .iter()
                .any(|wanted| name.eq_ignore_ascii_case(wanted.as_bytes()))
        };
        self.names.iter().position(is_one)
    }
}

/// A server may be set up (`init_connect`) to write UTF-16 or UTF-32. All that is looked for is
/// ASCII, which has nothing but zeros in between then.
pub(super) fn narrow(text: &[u8]) -> Vec<u8> {
    text.iter().copied().filter(|b| *b != 0).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    fn value(text: &str) -> Vec<u8> {
        let length = u8::try_from(text.len()).expect("short");
        [&[length], text.as_bytes()].concat()
    }

    /// As a server would write it; the payloads of its packets.
    pub(in super::super) fn result_set(names: &[&str], rows: &[&[Option<&str>]]) -> Vec<Vec<u8>> {
        let eof = || b"\xfe\0\0\x02\0".to_vec();
        let mut payloads = vec![vec![u8::try_from(names.len()).expect("few")]];
        for name in names {
            let parts = ["def", "", "t", "t", name, name].map(value).concat();
            payloads.push([&parts[..], b"\x0c\x2d\0\0\x01\0\0\xfd\0\0\0\0\0"].concat());
        }
        payloads.push(eof());
        for row in rows {
            let values = row.iter().map(|v| v.map_or_else(|| vec![0xfb], value));
            payloads.push(values.collect::<Vec<_>>().concat());
        }
        payloads.push(eof());
        payloads
    }

    #[test]
    fn rows_and_names() {
        let mut set = ResultSet::default();
        let payloads = result_set(
            &["Name", "Value"],
            &[&[Some("a"), Some("")], &[None, Some("b")]],
        );
        for (n, payload) in payloads.iter().enumerate() {
            assert_eq!(set.receive(payload), Ok(n + 1 == payloads.len()), "{n}");
        }
        assert_eq!(set.column(&["other", "VALUE"]), Some(1));
        assert_eq!(set.column(&["other"]), None);
        assert_eq!(set.rows()[0], [Some(b"a".to_vec()), Some(Vec::new())]);
        assert_eq!(set.rows()[1], [None, Some(b"b".to_vec())]);
    }

    #[test]
    fn wide_characters_are_read_as_narrow_ones() {
        let mut set = ResultSet::default();
        let payloads = result_set(&["\0V\0a"], &[&[Some("\0O\0N")], &[Some("O\0\0\0N\0\0\0")]]);
        for (n, payload) in payloads.iter().enumerate() {
            assert_eq!(set.receive(payload), Ok(n + 1 == payloads.len()), "{n}");
        }
        assert_eq!(set.column(&["va"]), Some(0));
        assert_eq!(set.rows(), vec![[Some(b"ON".to_vec())]; 2]);
    }

    #[test]
    fn what_is_no_result() {
        for first in [
            &b"\0\0\0\x02\0\0\0"[..],
            b"\xfbfile",
            b"\x01\x01",
            b"\xfd\xff\xff\xff",
        ] {
            assert!(ResultSet::default().receive(first).is_err(), "{first:?}");
        }
        let payloads = result_set(&["a", "b"], &[&[Some("1"), Some("2")]]);
        let mut set = ResultSet::default();
        payloads[..4]
            .iter()
            .for_each(|p| assert_eq!(set.receive(p), Ok(false)));
        assert!(set.receive(b"\x011").is_err(), "a column is missing");
        assert!(set.receive(b"\x011\x012\x013").is_err(), "one too many");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(payloads: Vec<Vec<u8>>, columns in 1..4u8) {
            let mut set = ResultSet::default();
            let _ = set.receive(&[columns]);
            for payload in payloads {
                let _ = set.receive(&payload);
            }
        }
    }
}
