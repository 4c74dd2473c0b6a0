//! The first packet of a server, and the answer to it. Pure.

use super::packet::{Reader, Wrong};

const LONG_PASSWORD: u32 = 1;
const PROTOCOL_41: u32 = 1 << 9;
pub(super) const SSL: u32 = 1 << 11;
const SECURE_CONNECTION: u32 = 1 << 15;
const PLUGIN_AUTH: u32 = 1 << 19;

/// Without these a server is older than any that is still in use.
const NEEDED: u32 = PROTOCOL_41 | SECURE_CONNECTION;
/// Not DEPRECATE_EOF: a client that does not offer it gets results in one form from all servers.
const OURS: u32 = LONG_PASSWORD | PROTOCOL_41 | SECURE_CONNECTION | PLUGIN_AUTH;
/// Of the largest packet that we would take; the server's own limits are lower.
const MOST: u32 = 1 << 24;
/// utf8mb4_general_ci: all servers have it since 5.5.
const CHARACTERS: u8 = 45;
/// Of what a password is mixed with.
pub(super) const NONCE: usize = 20;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Greeting {
    pub(super) nonce: Vec<u8>,
    /// How it would like us to log in; the account may want something else.
    pub(super) plugin: Vec<u8>,
    pub(super) is_mariadb: bool,
    capabilities: u32,
}

impl Greeting {
    pub(super) fn read(payload: &[u8]) -> Result<Self, Wrong> {
        let mut reader = Reader(payload);
        if reader.u8()? != 10 {
            return Err(Wrong("not version 10 of the protocol"));
        }
        let version = reader.text()?;
        reader.take(4)?; // the number of the connection
        let mut nonce = reader.take(8)?.to_vec();
        reader.take(1)?;
        let low = reader.u16()?;
        reader.take(3)?; // characters, status
        let capabilities = u32::from(reader.u16()?) << 16 | u32::from(low);
        if capabilities & NEEDED != NEEDED {
            return Err(Wrong("a protocol from before 4.1"));
        }
        let whole = usize::from(reader.u8()?);
        reader.take(10)?;
        // At least thirteen, the last of which is a zero that does not count.
        nonce.extend_from_slice(reader.take(whole.saturating_sub(8).max(13))?);
        nonce.truncate(NONCE);
        let plugin = match capabilities & PLUGIN_AUTH {
            0 => b"mysql_native_password".to_vec(),
            // Some servers forget the zero at the end.
            _ => (reader.0.split(|b| *b == 0).next().unwrap_or_default()).to_vec(),
        };
        Ok(Self {
            nonce,
            plugin,
            is_mariadb: version.windows(7).any(|part| part == b"MariaDB"),
            capabilities,
        })
    }

    pub(super) fn offers_tls(&self) -> bool {
        self.capabilities & SSL != 0
    }

    /// Announces TLS.
    pub(super) fn request_tls(&self) -> Vec<u8> {
        self.begin(SSL)
    }

    /// The login. `answer` is what `plugin` makes of the password.
    pub(super) fn log_in(
        &self,
        encrypted: bool,
        user: &str,
        plugin: &[u8],
        answer: &[u8],
    ) -> Vec<u8> {
        let mut payload = self.begin(if encrypted { SSL } else { 0 });
        payload.extend_from_slice(user.as_bytes());
        payload.push(0);
        // A plugin whose first answer is longer is not begun with.
        payload.push(u8::try_from(answer.len()).unwrap_or(0));
        payload.extend_from_slice(answer);
        if self.capabilities & PLUGIN_AUTH != 0 {
            payload.extend_from_slice(plugin);
            payload.push(0);
        }
        payload
    }

    fn begin(&self, more: u32) -> Vec<u8> {
        let capabilities = OURS & self.capabilities | NEEDED | more;
        let mut payload = capabilities.to_le_bytes().to_vec();
        payload.extend_from_slice(&MOST.to_le_bytes());
        payload.push(CHARACTERS);
        payload.extend_from_slice(&[0; 23]);
        payload
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// As a server would write it.
    pub(in super::super) fn greeting(version: &str, plugin: &str, capabilities: u32) -> Vec<u8> {
        let caps = capabilities.to_le_bytes();
        let mut payload = vec![10];
        payload.extend_from_slice(version.as_bytes());
        payload.extend_from_slice(b"\0\x07\0\0\0abcdefgh\0");
        payload.extend_from_slice(&[caps[0], caps[1], 45, 2, 0, caps[2], caps[3], 21]);
        payload.extend_from_slice(&[0; 10]);
        payload.extend_from_slice(b"ijklmnopqrst\0");
        payload.extend_from_slice(plugin.as_bytes());
        payload.push(0);
        payload
    }

    pub(in super::super) const ALL: u32 = OURS | SSL;

    #[test]
    fn greetings() {
        let text = "5.5.5-10.11.19-MariaDB-log";
        let read =
            Greeting::read(&greeting(text, "mysql_native_password", ALL)).expect("well-formed");
        assert_eq!(read.nonce, b"abcdefghijklmnopqrst");
        assert_eq!(read.plugin, b"mysql_native_password");
        assert!(read.is_mariadb && read.offers_tls());
        let old = Greeting::read(&greeting("5.1.73", "", NEEDED)).expect("well-formed");
        assert_eq!(old.plugin, b"mysql_native_password");
        assert!(!old.is_mariadb && !old.offers_tls());
        assert!(Greeting::read(&greeting("4.0", "", PROTOCOL_41)).is_err());
        let mut nine = greeting("3.22", "", ALL);
        nine[0] = 9;
        assert!(Greeting::read(&nine).is_err());
        let whole = greeting(text, "x", ALL);
        for n in 0..whole.len() - 2 {
            assert!(Greeting::read(&whole[..n]).is_err(), "{n}");
        }
    }

    #[test]
    fn a_greeting_of_a_real_server() {
        // MySQL 5.5.46, as it came over the wire; the number of the connection and the nonce are in
        // it.
        let bytes = b"\x0a5.5.46-0ubuntu0.14.04.2\0\x5f\0\0\0\x6cb+Fc@Te\0\
            \xff\xf7\x08\x02\0\x0f\x80\x15\0\0\0\0\0\0\0\0\0\0~m&p(p~K7s_a\0\
            mysql_native_password\0";
        let read = Greeting::read(bytes).expect("well-formed");
        assert_eq!(read.nonce, b"lb+Fc@Te~m&p(p~K7s_a");
        assert!(!read.offers_tls());
    }

    #[test]
    fn answers() {
        let read = Greeting::read(&greeting("8.0.36", "p", ALL)).expect("well-formed");
        let begin = [&[0x01, 0x82, 0x08, 0, 0, 0, 0, 1, 45][..], &[0; 23]].concat();
        let sent = read.log_in(false, "check", b"plugin", b"\x01\x02");
        assert_eq!(sent, [&begin[..], b"check\0\x02\x01\x02plugin\0"].concat());
        let tls = read.request_tls();
        assert_eq!((tls.len(), tls[1] & 0x08), (32, 0x08));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            let _ = Greeting::read(&bytes);
            let _ = Greeting::read(&[&b"\x0ax\0"[..], &bytes].concat());
        }
    }
}
