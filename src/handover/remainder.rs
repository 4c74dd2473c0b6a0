//! What the old process still carries.

use super::fields::record;

record! {
    #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
    Remainder {
        sessions: u64 = 1,
        flows: u64 = 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handover::fields::Fields as _;

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
