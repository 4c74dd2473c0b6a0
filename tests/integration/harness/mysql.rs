//! The MySQL protocol, as little of it as a writing client and a server that is not one need.

use super::net;
use std::{
    io::{self, Read, Write},
    net::SocketAddr,
};

/// A packet: its number and what is in it.
pub(crate) fn read(stream: &mut (impl Read + ?Sized)) -> io::Result<(u8, Vec<u8>)> {
    let mut header = [0; 4];
    stream.read_exact(&mut header)?;
    let length = u32::from_le_bytes([header[0], header[1], header[2], 0]);
    let mut payload = vec![0; length as usize];
    stream.read_exact(&mut payload)?;
    Ok((header[3], payload))
}

pub(crate) fn write(
    stream: &mut (impl Write + ?Sized),
    number: u8,
    payload: &[u8],
) -> io::Result<()> {
    let length = u32::try_from(payload.len()).unwrap().to_le_bytes();
    let header = [length[0], length[1], length[2], number];
    stream.write_all(&[&header, payload].concat())?;
    stream.flush()
}

/// A connection of an account without a password.
pub(crate) struct Client<S>(S);

impl Client<std::net::TcpStream> {
    pub(crate) fn connect(addr: SocketAddr, user: &str) -> io::Result<Self> {
        let mut stream = net::connect(addr)?;
        stream.set_nodelay(true)?;
        refused(&read(&mut stream)?.1)?;
        // Protocol 4.1, with the name of a plugin.
        let begin = [0, 0x82, 0x08, 0, 0, 0, 0, 1, 45];
        let answer = b"\0\0mysql_native_password\0";
        let login = [&begin[..], &[0; 23], user.as_bytes(), answer].concat();
        write(&mut stream, 1, &login)?;
        let mut client = Client(stream);
        client.answer()?;
        Ok(client)
    }

    /// A statement without rows.
    pub(crate) fn run(&mut self, sql: &str) -> io::Result<()> {
        write(&mut self.0, 0, &[b"\x03", sql.as_bytes()].concat())?;
        self.answer()
    }

    /// Until it is closed.
    pub(crate) fn wait(mut self) -> net::End {
        net::read_all(&mut self.0).1
    }

    fn answer(&mut self) -> io::Result<()> {
        refused(&read(&mut self.0)?.1)
    }
}

fn refused(payload: &[u8]) -> io::Result<()> {
    match payload[0] {
        0xff => Err(io::Error::other(
            String::from_utf8_lossy(&payload[3..]).into_owned(),
        )),
        _ => Ok(()),
    }
}

/// The first message of a server. The second byte of its capabilities has the bit for TLS.
pub(crate) fn greeting(plugin: &str, speaks_tls: bool) -> Vec<u8> {
    let tls = if speaks_tls { 0x08 } else { 0 };
    [
        &b"\x0a8.0.99-test\0\x01\0\0\0abcdefgh\0"[..],
        &[
            0x01,
            0x82 | tls,
            45,
            2,
            0,
            0x08,
            0,
            21,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
        ],
        b"ijklmnopqrst\0",
        plugin.as_bytes(),
        b"\0",
    ]
    .concat()
}

/// What is mixed with passwords.
pub(crate) const NONCE: &[u8; 20] = b"abcdefghijklmnopqrst";

pub(crate) const OK: &[u8] = b"\0\0\0\x02\0\0\0";

/// Answers the question for the role: a primary.
pub(crate) fn tell_role(stream: &mut (impl Read + Write + ?Sized)) -> io::Result<()> {
    let (number, question) = read(stream)?;
    assert_eq!((number, question[0]), (0, 3), "a question");
    let column = b"\x03def\0\x01t\x01t\x01n\x01n\x0c\x2d\0\0\x01\0\0\xfd\0\0\0\0\0";
    let eof = b"\xfe\0\0\x02\0";
    for (payload, number) in [
        &b"\x02"[..],
        column,
        column,
        eof,
        b"\x09read_only\x03OFF",
        eof,
    ]
    .iter()
    .zip(1..)
    {
        write(stream, number, payload)?;
    }
    Ok(())
}

/// Whether a goodbye comes, and then the end.
pub(crate) fn is_left_politely(stream: &mut (impl Read + ?Sized)) -> bool {
    read(stream).is_ok_and(|packet| packet == (0, vec![1]))
        && matches!(stream.read(&mut [0]), Ok(0))
}
