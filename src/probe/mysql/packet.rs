//! Packets of the MySQL protocol, and what is in them: a header of four bytes, lengths of one to
//! nine. Pure.

/// What comes is not what the protocol has there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wrong(pub(super) &'static str);

const HEADER: usize = 4;

/// The first packet of `bytes`, if it is there as a whole, and how many bytes it takes.
pub(super) fn read(bytes: &[u8], number: u8, most: usize) -> Result<Option<(&[u8], usize)>, Wrong> {
    let Some(header) = bytes.first_chunk::<HEADER>() else {
        return Ok(None);
    };
    let length = u32::from_le_bytes([header[0], header[1], header[2], 0]) as usize;
    // Recognized by the header alone: the rest of anything else would never come.
    if length > most {
        return Err(Wrong("a packet that is too long"));
    }
    if length == 0 {
        return Err(Wrong("an empty packet"));
    }
    if header[3] != number {
        return Err(Wrong("packets out of order"));
    }
    let end = HEADER + length;
    Ok(bytes.get(HEADER..end).map(|payload| (payload, end)))
}

/// `payload` is shorter than 16 MiB: names and passwords are limited, and nothing else is sent.
pub(super) fn frame(number: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len())
        .unwrap_or(u32::MAX)
        .to_le_bytes();
    [&[length[0], length[1], length[2], number], payload].concat()
}

/// Reads a payload from its beginning to its end. Each method takes something off, or reports that
/// it is not there.
#[derive(Clone, Copy)]
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn take(&mut self, count: usize) -> Result<&'a [u8], Wrong> {
        let (taken, rest) =
            (self.0.split_at_checked(count)).ok_or(Wrong("a packet that is too short"))?;
        self.0 = rest;
        Ok(taken)
    }

    pub(super) fn u8(&mut self) -> Result<u8, Wrong> {
        Ok(self.take(1)?[0])
    }

    pub(super) fn u16(&mut self) -> Result<u16, Wrong> {
        let bytes = self.take(2)?;
        Ok(u16::from_le_bytes([bytes[0], bytes[1]]))
    }

    /// Up to a zero, which is taken off, too.
    pub(super) fn text(&mut self) -> Result<&'a [u8], Wrong> {
        let end = self.0.iter().position(|b| *b == 0);
        let text = self.take(end.ok_or(Wrong("a text without an end"))?)?;
        self.take(1)?;
        Ok(text)
    }

    pub(super) fn length(&mut self) -> Result<u64, Wrong> {
        let width = match self.u8()? {
            first @ 0..=0xfa => return Ok(u64::from(first)),
            0xfc => 2,
            0xfd => 3,
            0xfe => 8,
            _ => return Err(Wrong("a length that is none")),
        };
        let mut bytes = [0; 8];
        bytes[..width].copy_from_slice(self.take(width)?);
        Ok(u64::from_le_bytes(bytes))
    }

    /// A value with its length before it.
    pub(super) fn value(&mut self) -> Result<&'a [u8], Wrong> {
        let length = self.length()?;
        self.take(usize::try_from(length).unwrap_or(usize::MAX))
    }

    /// The same in a row of a result, where there may be none.
    pub(super) fn nullable(&mut self) -> Result<Option<&'a [u8]>, Wrong> {
        if self.0.first() == Some(&0xfb) {
            self.take(1)?;
            return Ok(None);
        }
        self.value().map(Some)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_packet_is_read_when_it_is_whole() {
        let bytes = [frame(3, b"abc"), frame(4, b"de")].concat();
        for n in 0..7 {
            assert_eq!(read(&bytes[..n], 3, 100), Ok(None), "{n}");
        }
        assert_eq!(read(&bytes, 3, 100), Ok(Some((&b"abc"[..], 7))));
        assert_eq!(read(&bytes[7..], 4, 100), Ok(Some((&b"de"[..], 6))));
        for (bytes, number, most) in [
            (&bytes[..], 2, 100),
            (&bytes, 3, 2),
            (&[0, 0, 0, 3], 3, 100),
        ] {
            assert!(read(bytes, number, most).is_err());
        }
    }

    #[test]
    fn lengths() {
        let mut reader = Reader(&[
            250, 0xfc, 1, 2, 0xfd, 1, 2, 3, 0xfe, 1, 0, 0, 0, 0, 0, 0, 0x80, 0xfb,
        ]);
        assert_eq!(reader.length(), Ok(250));
        assert_eq!(reader.length(), Ok(0x201));
        assert_eq!(reader.length(), Ok(0x30201));
        assert_eq!(reader.length(), Ok(0x8000_0000_0000_0001));
        assert!(reader.length().is_err());
        let mut reader = Reader(&[
            0xfb, 2, b'a', b'b', 0xfe, 255, 255, 255, 255, 255, 255, 255, 255, 1,
        ]);
        assert_eq!(reader.nullable(), Ok(None));
        assert_eq!(reader.nullable(), Ok(Some(&b"ab"[..])));
        assert!(reader.nullable().is_err(), "longer than what is there");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>, number: u8) {
            let _ = read(&bytes, number, 1000);
            let mut reader = Reader(&bytes);
            while !reader.is_empty() && reader.nullable().is_ok() {}
            let mut reader = Reader(&bytes);
            while reader.text().is_ok() {}
        }
    }
}
