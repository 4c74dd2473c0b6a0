//! Why bytes are no header.

use std::fmt;

/// Its text is for the operator of the sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InvalidHeader {
    NoHeader,
    LineTooLong,
    Kind,
    Ipv4,
    Ipv6,
    Port,
    LineEnd,
    Version,
    Command,
    Family,
    Protocol,
    TooShort,
    TlvOverrun,
    ChecksumLength,
    TwoChecksums,
    Checksum,
    UniqueId,
}

impl fmt::Display for InvalidHeader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoHeader => "its first bytes are no PROXY protocol header",
            Self::LineTooLong => "the v1 line does not end within 107 bytes",
            Self::Kind => "the v1 line speaks of neither TCP4, TCP6 nor UNKNOWN",
            Self::Ipv4 => "the v1 line has a wrong IPv4 address",
            Self::Ipv6 => "the v1 line has a wrong IPv6 address",
            Self::Port => "the v1 line has a wrong port",
            Self::LineEnd => "the v1 line does not end with CR and LF after the second port",
            Self::Version => "the binary header is of another version than 2",
            Self::Command => "the v2 header's command is neither LOCAL nor PROXY",
            Self::Family => "the v2 header's address family is unknown",
            Self::Protocol => "the v2 header's transport protocol is unknown",
            Self::TooShort => "the v2 header is shorter than its addresses",
            Self::TlvOverrun => "the v2 header's TLVs do not end where the header ends",
            Self::ChecksumLength => "the v2 header's checksum does not have four bytes",
            Self::TwoChecksums => "the v2 header has two checksums",
            Self::Checksum => "the v2 header's checksum is wrong",
            Self::UniqueId => "the v2 header's unique id is longer than 128 bytes",
        })
    }
}

impl std::error::Error for InvalidHeader {}
