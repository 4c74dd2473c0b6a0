//! The type-length-value fields after the addresses of a version 2 header.

use super::InvalidHeader;

pub(super) const CRC32C: u8 = 3;
const NOOP: u8 = 4;
const UNIQUE_ID: u8 = 5;
const MAX_UNIQUE_ID: usize = 128;
/// Type and length.
const HEAD: usize = 3;
pub(super) const CHECKSUM: usize = 4;

/// How far the TLVs were parsed.
#[derive(Debug, Default)]
pub(super) struct TlvReader {
    /// Where the next one begins.
    next: usize,
    checksum_at: Option<usize>,
}

impl TlvReader {
    /// Parses the TLVs that have arrived; they are at `start..end` of the header.
    pub(super) fn advance(
        &mut self,
        bytes: &[u8],
        start: usize,
        end: usize,
    ) -> Result<(), InvalidHeader> {
        let bytes = &bytes[..bytes.len().min(end)];
        self.next = self.next.max(start);
        while self.next < end {
            if end - self.next < HEAD {
                return Err(InvalidHeader::TlvOverrun);
            }
            let Some(&[kind, high, low]) = bytes.get(self.next..self.next + HEAD) else {
                return Ok(());
            };
            let length = usize::from(u16::from_be_bytes([high, low]));
            let value = self.next + HEAD;
            if end - value < length {
                return Err(InvalidHeader::TlvOverrun);
            }
            match kind {
                CRC32C if length != CHECKSUM => return Err(InvalidHeader::ChecksumLength),
                CRC32C if self.checksum_at.is_some() => return Err(InvalidHeader::TwoChecksums),
                CRC32C => self.checksum_at = Some(value),
                UNIQUE_ID if length > MAX_UNIQUE_ID => return Err(InvalidHeader::UniqueId),
                _ => {}
            }
            self.next = value + length;
        }
        Ok(())
    }

    /// Compares the checksum, if there is one, with that of the whole header.
    pub(super) fn verify(&self, header: &[u8]) -> Result<(), InvalidHeader> {
        let Some(at) = self.checksum_at else {
            return Ok(());
        };
        let (before, rest) = header.split_at(at);
        let (found, after) = rest.split_at(CHECKSUM);
        let expected = checksum(before, after).to_be_bytes();
        (found == expected)
            .then_some(())
            .ok_or(InvalidHeader::Checksum)
    }
}

/// The checksum of a header, with zeros in its own bytes.
pub(super) fn checksum(before: &[u8], after: &[u8]) -> u32 {
    let crc = crc32c::crc32c(before);
    let crc = crc32c::crc32c_append(crc, &[0; CHECKSUM]);
    crc32c::crc32c_append(crc, after)
}

/// The TLVs that are passed on: neither the checksum, which changes, nor padding. Those that do not
/// fit into `max` bytes are omitted.
pub(super) fn passed_on(mut tlvs: &[u8], max: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(tlvs.len().min(max));
    while let Some(&[kind, high, low]) = tlvs.first_chunk::<HEAD>() {
        let length = HEAD + usize::from(u16::from_be_bytes([high, low]));
        let Some((tlv, rest)) = tlvs.split_at_checked(length) else {
            break;
        };
        if !matches!(kind, CRC32C | NOOP) && out.len() + length <= max {
            out.extend_from_slice(tlv);
        }
        tlvs = rest;
    }
    out
}
