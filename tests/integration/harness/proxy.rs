//! PROXY protocol headers, written by hand, and backends that want one.

use super::{
    net::{self, PATIENCE},
    server::Server,
};
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
};
use tembuku::internals::proxy_protocol::{Addresses, Parser, encode_v1, encode_v2};

fn addresses(source: &str, destination: &str) -> Addresses {
    Addresses::Ip {
        source: source.parse().unwrap(),
        destination: destination.parse().unwrap(),
    }
}

pub(crate) fn v1(source: &str, destination: &str) -> Vec<u8> {
    encode_v1(&addresses(source, destination))
}

pub(crate) fn v2(source: &str, destination: &str, tlvs: &[u8]) -> Vec<u8> {
    encode_v2(&addresses(source, destination), tlvs)
}

pub(crate) fn tlv(kind: u8, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(value.len()).unwrap().to_be_bytes();
    [&[kind][..], &length, value].concat()
}

/// A PROXY protocol header as a backend got it.
#[derive(Debug)]
pub(crate) struct ReceivedHeader {
    pub(crate) header: Vec<u8>,
    pub(crate) addresses: Addresses,
    pub(crate) tlvs: Vec<u8>,
}

impl ReceivedHeader {
    /// "source>destination", or a word for what else it names.
    pub(crate) fn client(&self) -> String {
        match &self.addresses {
            Addresses::Own => "nobody".to_owned(),
            Addresses::Ip {
                source,
                destination,
            } => format!("{source}>{destination}"),
            Addresses::Unix(_) => "unix".to_owned(),
        }
    }
}

/// Reads a header, and not a byte more.
pub(crate) fn read_header(stream: &mut impl Read) -> ReceivedHeader {
    let mut parser = Parser::default();
    let mut bytes = Vec::new();
    loop {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        bytes.push(byte[0]);
        if let Some(found) = parser.parse(&bytes).unwrap() {
            return ReceivedHeader {
                addresses: found.addresses.clone(),
                tlvs: found.tlvs.to_vec(),
                header: bytes.clone(),
            };
        }
    }
}

/// Requires a header, sends a line with the client that it names, and then echoes all bytes.
pub(crate) fn client_naming_server() -> Server {
    Server::start(tell_and_echo)
}

pub(crate) fn tell_and_echo(mut stream: TcpStream) {
    let header = read_header(&mut stream);
    super::server::greet_and_echo(&stream, &format!("{}\n", header.client()));
}

/// A connection that begins with these bytes.
#[track_caller]
pub(crate) fn connect_saying(addr: SocketAddr, bytes: &[u8]) -> TcpStream {
    let mut stream = net::connect(addr).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(bytes).unwrap();
    stream
}

/// The line that comes back on a connection that begins with these bytes.
#[track_caller]
pub(crate) fn ask_saying(addr: SocketAddr, bytes: &[u8]) -> String {
    net::read_line(&mut connect_saying(addr, bytes)).unwrap()
}
