//! HAProxy and nginx on either side.

use crate::harness::{
    net::{self, End, ask_from, connect_with, read_all, read_line},
    ports,
    proc::{command, run_ok},
    programs::{self, Haproxy, Nginx},
    proxy::{connect_saying, tlv, v1, v2},
    secs,
    server::{Server, list, named},
    tembuku::Tembuku,
};
use std::{
    collections::BTreeSet,
    io::Write,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr},
    os::unix::net::UnixStream,
    thread,
};

/// HAProxy in front of us, with these options on its `server` line.
fn haproxy_in_front(addr: SocketAddr, tembuku: SocketAddr, options: &str) -> Haproxy {
    Haproxy::start(
        &[addr],
        &format!(
            "listen front\n  mode tcp\n  bind {addr}\n  unique-id-format id-%ci-%cp\
             \n  server tembuku {tembuku} {options}\n"
        ),
    )
}

const SENDING: [&str; 3] = [
    "send-proxy",
    "send-proxy-v2",
    "send-proxy-v2 proxy-v2-options crc32c,unique-id,authority",
];

#[test]
fn behind_haproxy_the_client_is_the_real_one_and_gets_nginx_s_pick() {
    let servers = named(4);
    let (front, reference) = (ports::free_addr(), ports::free_addr());
    let backends: String = servers
        .iter()
        .map(|server| format!("server {}; ", server.addr))
        .collect();
    let _nginx = Nginx::start(
        reference,
        &format!(
            "stream {{ upstream u {{ hash $remote_addr consistent; {backends} }} server {{ listen \
             {reference}; proxy_pass u; }} }}"
        ),
    );
    let tembuku = Tembuku::start(&format!(
        "[log]\naccess = \"{{dir}}/access.log\"\n\
         [listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\n\
         accept_proxy = {{ trust = [\"127.0.0.1\"] }}\n\
         [upstreams.u]\nbalance = \"consistent_hash\"\nbackends = {}\n",
        list(&servers)
    ));
    let mut logged = 0;
    for options in SENDING {
        let addr = ports::free_addr();
        let _haproxy = haproxy_in_front(addr, front, options);
        let mut picked = BTreeSet::new();
        for n in 2..22 {
            let source = IpAddr::V4(Ipv4Addr::new(127, 0, 7, n));
            let mut client = connect_with(addr, Some(source), 0, 0).unwrap();
            let name = read_line(&mut client).unwrap();
            assert_eq!(
                name,
                ask_from(source, reference).unwrap(),
                "{source}, {options}"
            );
            picked.insert(name);
            let real = client.local_addr().unwrap();
            let payload = vec![n; 100_000];
            let mut writer = client.try_clone().unwrap();
            let sent = payload.clone();
            let writing = thread::spawn(move || {
                writer.write_all(&sent).unwrap();
                writer.shutdown(Shutdown::Write).unwrap();
            });
            assert_eq!(read_all(&mut client), (payload, End::Fin));
            writing.join().unwrap();
            let record = tembuku.access_log(logged + 1).remove(logged);
            logged += 1;
            assert_eq!(record["remote_addr"], source.to_string(), "{record}");
            assert_eq!(record["remote_port"], real.port(), "{record}");
            assert_eq!(
                record["proxy_protocol_addr"],
                source.to_string(),
                "{record}"
            );
            assert_eq!(record["realip_remote_addr"], "127.0.0.1", "{record}");
            assert_eq!(record["bytes_received"], 100_000, "{record}");
        }
        assert!(picked.len() > 1, "{picked:?}");
    }
    // HAProxy's own checks come as LOCAL, or with its own address.
    let addr = ports::free_addr();
    let _haproxy = haproxy_in_front(addr, front, "send-proxy-v2 check inter 50ms");
    tembuku.wait_metric("listener_connections_total", &[], |n| {
        n >= logged as f64 + 3.0
    });
    assert_eq!(tembuku.metric("listener_rejected_total", &[]), 0.0);
}

/// nginx and HAProxy, each of which answers with the client and the destination that the header
/// named.
fn answering() -> (Nginx, Haproxy, [SocketAddr; 2]) {
    let (nginx, haproxy) = (ports::free_addr(), ports::free_addr());
    let line = "$proxy_protocol_addr $proxy_protocol_port $proxy_protocol_server_addr \
        $proxy_protocol_server_port\\n";
    (
        Nginx::start(
            nginx,
            &format!("stream {{ server {{ listen {nginx} proxy_protocol; return \"{line}\"; }} }}"),
        ),
        Haproxy::start(
            &[haproxy],
            &format!(
                "listen back\n  mode http\n  bind {haproxy} accept-proxy\n  \
                 http-request return content-type text/plain lf-string \"%[src] %[src_port] %[dst] \
                 %[dst_port]\\n\"\n"
            ),
        ),
        [nginx, haproxy],
    )
}

/// The last line of the answer.
fn receive(mut stream: impl std::io::Read + Write) -> String {
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    let (answer, _) = read_all(&mut stream);
    String::from_utf8_lossy(&answer)
        .lines()
        .last()
        .unwrap_or_default()
        .to_owned()
}

#[test]
fn nginx_and_haproxy_behind_see_the_client_address() {
    let (_nginx, _haproxy, backends) = answering();
    for version in ["v1", "v2"] {
        for backend in backends {
            let (four, trusting) = (ports::free_addr(), ports::free_addr());
            let six = SocketAddr::from((Ipv6Addr::LOCALHOST, ports::free_port()));
            let tembuku = Tembuku::start(&format!(
                "[listeners.l]\nbind = [\"{four}\", \"{six}\", \"unix:{{dir}}/front\"]\n\
                 upstream = \"u\"\n\
                 [listeners.t]\nbind = [\"{trusting}\", \"unix:{{dir}}/trusting\"]\n\
                 upstream = \"u\"\naccept_proxy = true\n\
                 [upstreams.u]\nsend_proxy = \"{version}\"\nbackends = [\"{backend}\"]\n"
            ));
            for front in [four, six] {
                let client = net::connect(front).unwrap();
                let real = client.local_addr().unwrap();
                let expected = format!(
                    "{} {} {} {}",
                    real.ip(),
                    real.port(),
                    front.ip(),
                    front.port()
                );
                assert_eq!(receive(client), expected, "{version}");
            }
            // Through a unix socket, with a header that names the client.
            let headers = [
                (
                    v1("192.0.2.1:56324", "192.0.2.11:443"),
                    "192.0.2.1 56324 192.0.2.11 443",
                ),
                (
                    v2("[2001:db8::1]:1", "[2001:db8::2]:2", &[]),
                    "2001:db8::1 1 2001:db8::2 2",
                ),
            ];
            for (header, expected) in headers {
                let mut client = UnixStream::connect(tembuku.dir.file("trusting")).unwrap();
                client.set_read_timeout(Some(net::PATIENCE)).unwrap();
                client.write_all(&header).unwrap();
                assert_eq!(receive(client), expected, "{version}");
                assert_eq!(
                    receive(connect_saying(trusting, &header)),
                    expected,
                    "{version}"
                );
            }
            // A client without an address cannot be named, but its header is valid.
            let client = UnixStream::connect(tembuku.dir.file("front")).unwrap();
            client.set_read_timeout(Some(net::PATIENCE)).unwrap();
            assert!(!receive(client).is_empty(), "{version}");
        }
    }
}

#[test]
fn tlvs_go_from_haproxy_to_haproxy() {
    let (front, middle, back) = (ports::free_addr(), ports::free_addr(), ports::free_addr());
    let _behind = Haproxy::start(
        &[back],
        &format!(
            "listen back\n  mode http\n  bind {back} accept-proxy\n  \
             http-request return content-type text/plain lf-string \"%[src] %[fc_pp_authority] \
             %[fc_pp_unique_id]\\n\"\n"
        ),
    );
    let _tembuku = Tembuku::start(&format!(
        "[listeners.l]\nbind = \"{middle}\"\nupstream = \"u\"\naccept_proxy = true\n\
         [upstreams.u]\nsend_proxy = \"v2\"\nsend_proxy_tlvs = true\nbackends = [\"{back}\"]\n"
    ));
    let _before = haproxy_in_front(front, middle, SENDING[2]);
    let client = connect_with(front, Some([127, 0, 7, 7].into()), 0, 0).unwrap();
    let port = client.local_addr().unwrap().port();
    // HAProxy 2.6 has no authority to send where there is no TLS.
    assert_eq!(receive(client), format!("127.0.7.7  id-127.0.7.7-{port}"));
    let both = [tlv(2, b"example.com"), tlv(5, b"some-id")].concat();
    let client = connect_saying(middle, &v2("192.0.2.1:1", "192.0.2.2:2", &both));
    assert_eq!(receive(client), "192.0.2.1 example.com some-id");
}

#[test]
fn a_chain_of_three_names_the_first() {
    let (_nginx, _haproxy, backends) = answering();
    let fronts = [ports::free_addr(), ports::free_addr()];
    // Two of us in a row, of different versions.
    let _second = Tembuku::start(&format!(
        "[listeners.l]\nbind = \"{}\"\nupstream = \"u\"\naccept_proxy = true\n\
         [upstreams.u]\nsend_proxy = \"v1\"\nbackends = [\"{}\"]\n",
        fronts[1], backends[0]
    ));
    let _first = Tembuku::start(&format!(
        "[listeners.l]\nbind = \"{}\"\nupstream = \"u\"\n\
         [upstreams.u]\nsend_proxy = \"v2\"\nbackends = [\"{}\"]\n",
        fronts[0], fronts[1]
    ));
    let client = connect_with(fronts[0], Some([127, 0, 7, 8].into()), 0, 0).unwrap();
    let port = client.local_addr().unwrap().port();
    assert_eq!(
        receive(client),
        format!("127.0.7.8 {port} {} {}", fronts[0].ip(), fronts[0].port())
    );
}

/// The picks that nginx 1.22.1 makes with these very backends, for clients that only a header can
/// name here.
#[test]
fn picks_for_clients_in_a_header_are_those_of_nginx() {
    if programs::place().is_none() {
        let test = "proxy_programs::picks_for_clients_in_a_header_are_those_of_nginx";
        return programs::again_in_own_place(test);
    }
    let mut servers: Vec<Server> = (1..=3)
        .map(|n| {
            run_ok(
                secs(10),
                command(&format!("ip address add 10.0.0.{n}/32 dev lo")),
            );
            Server::named_on(&n.to_string(), &[SocketAddr::from(([10, 0, 0, n], 6379))])
        })
        .collect();
    let front = ports::free_addr();
    let _tembuku = Tembuku::start(&format!(
        "[listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\naccept_proxy = true\n\
         [upstreams.u]\nbalance = \"consistent_hash\"\n\
         backends = [\"10.0.0.1:6379\", \"10.0.0.2:6379\", {{ address = \"10.0.0.3:6379\", \
         weight = 2 }}]\n"
    ));
    let ask = |client: &str| {
        let destination = if client.starts_with('[') {
            "[2001:db8::b]:6379"
        } else {
            "192.0.2.11:6379"
        };
        let names = [v1(client, destination), v2(client, destination, &[])]
            .map(|header| read_line(&mut connect_saying(front, &header)).unwrap());
        assert_eq!(names[0], names[1], "{client}");
        names[0].clone()
    };
    for (client, backend) in [
        ("192.0.2.1:1", "3"),
        ("192.0.2.2:2", "1"),
        ("192.0.2.3:3", "2"),
        ("192.0.2.77:4", "2"),
        ("198.51.100.200:5", "3"),
        ("203.0.113.9:6", "3"),
        ("[2001:db8::1]:7", "2"),
    ] {
        assert_eq!(ask(client), backend, "{client}");
    }
    servers.pop();
    for client in ["192.0.2.1:1", "198.51.100.200:5", "203.0.113.9:6"] {
        assert_eq!(ask(client), "1", "{client} without the third");
    }
}
