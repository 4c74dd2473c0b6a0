//! Backends that get the address of the client.

use crate::{
    harness::{
        net::{self, connect, connect_with, echo, read_line, session, set_buffers},
        ports,
        proxy::{
            self, ask_saying, client_naming_server, connect_saying, read_header, tell_and_echo, tlv,
        },
        rng::Rng,
        server::{Server, listen},
        tembuku::Tembuku,
    },
    proxy_accept::start,
};
use socket2::SockRef;
use std::{
    io::{Read, Write},
    net::{Ipv6Addr, SocketAddr},
    os::unix::net::{UnixListener, UnixStream},
    sync::mpsc,
    thread,
};

#[test]
fn the_header_comes_before_any_byte() {
    for version in ["v1", "v2"] {
        let (front, servers) = (ports::free_addr(), [client_naming_server()]);
        let tembuku = start(front, "", &format!("send_proxy = \"{version}\""), &servers);
        // Also when the client sends nothing.
        let (mut client, named) = session(front).unwrap();
        let real = client.local_addr().unwrap();
        assert_eq!(named, format!("{real}>{front}"));
        echo(&mut client, "payload").unwrap();
        drop(client);
        let record = tembuku.access_log(1).remove(0);
        assert_eq!(record["bytes_received"], 8, "{record}");
        tembuku.wait_idle();
        assert_eq!(tembuku.metric("backend_sent_bytes_total", &[]), 8.0);
        assert_eq!(
            tembuku.metric("relayed_bytes_total", &[]),
            8.0 + named.len() as f64 + 1.0 + 8.0
        );
    }
}

#[test]
fn ipv6_and_a_listener_on_every_address() {
    let server = client_naming_server();
    let port = ports::free_port();
    let _tembuku = Tembuku::start(&format!(
        "[listeners.l]\nbind = [\"[::]:{port}\", \"0.0.0.0:{port}\"]\nupstream = \"u\"\n\
         [upstreams.u]\nsend_proxy = \"v2\"\nbackends = [\"{}\"]\n",
        server.addr
    ));
    // The destination is where the client went, not where we listen.
    for front in [
        SocketAddr::from((Ipv6Addr::LOCALHOST, port)),
        SocketAddr::from(([127, 3, 3, 3], port)),
    ] {
        let (client, named) = session(front).unwrap();
        assert_eq!(named, format!("{}>{front}", client.local_addr().unwrap()));
    }
}

#[test]
fn unix_sockets_on_either_side() {
    for version in ["v1", "v2"] {
        let dir = crate::harness::temp::TempDir::new();
        let back = dir.file("back");
        let listener = UnixListener::bind(&back).unwrap();
        thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                thread::spawn(move || {
                    let header = read_header(&mut stream);
                    stream
                        .write_all(format!("{}\n", header.client()).as_bytes())
                        .unwrap();
                    let mut other = stream.try_clone().unwrap();
                    let _ = std::io::copy(&mut stream, &mut other);
                });
            }
        });
        let front = ports::free_addr();
        let tembuku = Tembuku::start(&format!(
            "[listeners.l]\nbind = [\"{front}\", \"unix:{{dir}}/front\"]\nupstream = \"u\"\n\
             [upstreams.u]\nsend_proxy = \"{version}\"\nbackends = [\"unix:{}\"]\n",
            back.display()
        ));
        let path = tembuku.dir.file("front");
        let mut client = UnixStream::connect(&path).unwrap();
        client.set_read_timeout(Some(net::PATIENCE)).unwrap();
        assert_eq!(read_line(&mut client).unwrap(), "nobody");
        let (mut client, named) = session(front).unwrap();
        assert_eq!(named, format!("{}>{front}", client.local_addr().unwrap()));
        echo(&mut client, "through").unwrap();
    }
}

#[test]
fn the_contents_of_a_header_are_passed_on() {
    for (version, mixed) in [
        ("v1", "[::ffff:192.0.2.1]:1>[2001:db8::1]:2"),
        ("v2", "[::ffff:192.0.2.1]:1>[2001:db8::1]:2"),
    ] {
        let (front, servers) = (ports::free_addr(), [client_naming_server()]);
        let _tembuku = start(
            front,
            "accept_proxy = true",
            &format!("send_proxy = \"{version}\""),
            &servers,
        );
        for header in [proxy::v1, |source: &str, destination: &str| {
            proxy::v2(source, destination, &tlv(2, b"x"))
        }] {
            assert_eq!(
                ask_saying(front, &header("192.0.2.1:1", "192.0.2.2:2")),
                "192.0.2.1:1>192.0.2.2:2"
            );
            assert_eq!(
                ask_saying(front, &header("[2001:db8::1]:1", "[2001:db8::2]:2")),
                "[2001:db8::1]:1>[2001:db8::2]:2"
            );
            assert_eq!(
                ask_saying(front, &header("192.0.2.1:1", "[2001:db8::1]:2")),
                mixed
            );
        }
        // A header that names no client: the connection that it came on counts.
        let mut client = connect_saying(front, b"PROXY UNKNOWN\r\nhello\n");
        let real = client.local_addr().unwrap();
        assert_eq!(read_line(&mut client).unwrap(), format!("{real}>{front}"));
        assert_eq!(read_line(&mut client).unwrap(), "hello");
    }
}

/// A backend that passes the header that it got to the test.
fn recording() -> (Server, mpsc::Receiver<proxy::ReceivedHeader>) {
    let (sender, headers) = mpsc::channel();
    let server = Server::start(move |mut stream| {
        sender.send(read_header(&mut stream)).unwrap();
        crate::harness::server::greet_and_echo(&stream, "received\n");
    });
    (server, headers)
}

#[test]
fn tlvs_go_on_when_asked_to() {
    let all = [
        tlv(2, b"example.com"),
        tlv(4, &[0; 9]),
        tlv(5, b"id-1"),
        tlv(0xe3, &[7; 40_000]),
    ]
    .concat();
    let kept = [
        tlv(2, b"example.com"),
        tlv(5, b"id-1"),
        tlv(0xe3, &[7; 40_000]),
    ]
    .concat();
    for on in [true, false] {
        let front = ports::free_addr();
        let (server, headers) = recording();
        let servers = [server];
        let _tembuku = start(
            front,
            "accept_proxy = true",
            &format!("send_proxy = \"v2\"\nsend_proxy_tlvs = {on}"),
            &servers,
        );
        let header = proxy::v2("192.0.2.1:1", "192.0.2.2:2", &all);
        let mut client = connect_saying(front, &[&header[..], b"payload\n"].concat());
        assert_eq!(read_line(&mut client).unwrap(), "received");
        assert_eq!(read_line(&mut client).unwrap(), "payload");
        let received = headers.recv().unwrap();
        // The first seven bytes are the checksum, which the parser has verified.
        assert_eq!(&received.tlvs[7..], if on { &kept[..] } else { &[] });
        assert_eq!(
            received.header,
            proxy::v2("192.0.2.1:1", "192.0.2.2:2", if on { &all } else { &[] })
        );
        // A client without TLVs gets none.
        assert_eq!(
            ask_saying(front, b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n"),
            "received"
        );
    }
}

#[test]
fn the_backend_that_is_reached_in_the_end_gets_a_header_of_its_own() {
    let (front, refusing, server) = (
        ports::free_addr(),
        ports::free_addr(),
        client_naming_server(),
    );
    let _tembuku = Tembuku::start(&format!(
        "[listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\naccept_proxy = true\n\
         [upstreams.u]\nbalance = \"first\"\nsend_proxy = \"v2\"\n\
         backends = [{{ address = \"{refusing}\", max_fails = 0 }}, \"{}\"]\n",
        server.addr
    ));
    for n in 1..=3 {
        let header = proxy::v1(&format!("192.0.2.{n}:1"), "192.0.2.2:2");
        let mut client = connect_saying(front, &[&header[..], b"payload\n"].concat());
        assert_eq!(
            read_line(&mut client).unwrap(),
            format!("192.0.2.{n}:1>192.0.2.2:2")
        );
        assert_eq!(read_line(&mut client).unwrap(), "payload");
    }
}

#[test]
fn a_server_that_speaks_first_is_relayed_at_once() {
    let front = ports::free_addr();
    let servers = [Server::start(|mut stream| {
        stream.write_all(b"220 hello\n").unwrap();
        tell_and_echo(stream);
    })];
    let _tembuku = start(front, "", "send_proxy = \"v1\"", &servers);
    let mut client = connect(front).unwrap();
    assert_eq!(read_line(&mut client).unwrap(), "220 hello");
    let real = client.local_addr().unwrap();
    assert_eq!(read_line(&mut client).unwrap(), format!("{real}>{front}"));
    echo(&mut client, "EHLO").unwrap();
}

/// More than the backend takes at once: the rest of the header waits for it, and what follows waits
/// behind it.
#[test]
fn a_header_that_does_not_go_out_at_once_goes_out_whole() {
    let front = ports::free_addr();
    let listener = listen(SocketAddr::from(([127, 0, 0, 1], 0)));
    set_buffers(SockRef::from(&listener), 4096, 0).unwrap();
    let backend = listener.local_addr().unwrap();
    let _tembuku = Tembuku::start(&format!(
        "[listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\naccept_proxy = true\n\
         [upstreams.u]\nsend_proxy = \"v2\"\nsend_proxy_tlvs = true\nbackends = [\"{backend}\"]\n"
    ));
    let tlvs = tlv(0xe0, &[3; 65_000]);
    let header = proxy::v2("192.0.2.1:1", "192.0.2.2:2", &tlvs);
    let mut rng = Rng::new(7);
    let payload: Vec<u8> = (0..6 << 20).map(|_| rng.below(256) as u8).collect();
    let mut client = connect_with(front, None, 0, 0).unwrap();
    let all = [&header[..], &payload].concat();
    let writing = thread::spawn(move || {
        client.write_all(&all).unwrap();
        client
    });
    let (mut stream, _) = listener.accept().unwrap();
    // It reads slowly at first: small buffers and small pieces keep the proxy waiting.
    let mut got = vec![0; header.len() + payload.len()];
    let (slow, fast) = got.split_at_mut(100_000);
    for piece in slow.chunks_mut(500) {
        stream.read_exact(piece).unwrap();
        thread::yield_now();
    }
    stream.read_exact(fast).unwrap();
    assert!(got[..header.len()] == header && got[header.len()..] == payload);
    drop(writing.join().unwrap());
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
}
