//! What the old process still carries.

use super::record::{Malformed, Record, Tag, Writer};

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Remainder {
    pub sessions: u64,
    pub flows: u64,
}

const SESSIONS: Tag = Tag::new(1);
const FLOWS: Tag = Tag::new(2);

impl Remainder {
    pub fn write(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.u64(SESSIONS, self.sessions).u64(FLOWS, self.flows);
        writer.into_bytes()
    }

    pub fn read(bytes: &[u8]) -> Result<Self, Malformed> {
        let record = Record::parse(bytes, &[SESSIONS, FLOWS])?;
        Ok(Self {
            sessions: record.u64(SESSIONS)?,
            flows: record.u64(FLOWS)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let rest = Remainder {
            sessions: 3,
            flows: 4,
        };
        assert_eq!(Remainder::read(&rest.write()), Ok(rest));
        assert!(Remainder::read(b"").is_err());
    }
}
