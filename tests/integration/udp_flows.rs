//! The begin and the end of a flow, and what metrics and log report about it.

use crate::harness::{
    bounded, millis,
    net::PATIENCE,
    udp::{UdpServer, V4, ask, client, named, receive, receive_if_any, receive_text, serve},
};
use std::{
    net::{SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

/// Which backend answers.
#[track_caller]
pub(crate) fn answering_backend(client: &UdpSocket) -> String {
    let answer = ask(client, "who");
    answer.strip_suffix(" who").unwrap().to_owned()
}

#[test]
fn a_flow_stays_where_it_is() {
    let servers = named(3);
    let (front, tembuku) = serve("", "", &servers);
    let clients: Vec<UdpSocket> = (0..9).map(|_| client(front)).collect();
    let first: Vec<String> = clients.iter().map(answering_backend).collect();
    for server in ["b1", "b2", "b3"] {
        assert_eq!(first.iter().filter(|name| *name == server).count(), 3);
    }
    for _ in 0..5 {
        assert_eq!(
            clients.iter().map(answering_backend).collect::<Vec<_>>(),
            first
        );
    }
    tembuku.wait_flows(9.0);
    assert_eq!(tembuku.metric("listener_connections_total", &[]), 9.0);
}

#[test]
fn after_its_replies_it_is_over() {
    let servers = [UdpServer::on(
        SocketAddr::new(V4, 0),
        |socket, peer, bytes| {
            for part in ["1", "2"] {
                let answer = [part.as_bytes(), bytes].concat();
                socket.send_to(&answer, peer).unwrap();
            }
        },
    )];
    let (front, tembuku) = serve("responses = 2", "", &servers);
    let client = client(front);
    for n in 1..=5 {
        assert_eq!(ask(&client, "x"), "1x");
        assert_eq!(receive_text(&client), "2x");
        tembuku.wait_closed("ok", f64::from(n));
        tembuku.wait_flows(0.0);
    }
    assert_eq!(servers[0].peers().len(), 5, "a new flow each time");
    for record in tembuku.access_log(5) {
        assert_eq!(record["close_reason"], "ok", "{record}");
    }
}

/// Each datagram is owed its own: with several under way, the flow lives until the last.
#[test]
fn replies_are_owed_to_each_datagram() {
    let servers = named(1);
    let (front, tembuku) = serve("responses = 1", "", &servers);
    let client = client(front);
    servers[0].hold();
    for n in 0..4 {
        client.send(format!("{n}").as_bytes()).unwrap();
    }
    servers[0].wait_held(4);
    tembuku.wait_flows(1.0);
    servers[0].release();
    for n in 0..4 {
        assert_eq!(receive_text(&client), format!("b1 {n}"));
    }
    tembuku.wait_closed("ok", 1.0);
    assert_eq!(servers[0].peers().len(), 1);
}

#[test]
fn missing_replies_are_distinguished_from_idle_flows() {
    for (listener, reason, result, unanswered) in [
        (
            "responses = 1\nidle_timeout = \"200ms\"",
            "response_timeout",
            "no_reply",
            1,
        ),
        ("idle_timeout = \"200ms\"", "idle_timeout", "ok", 0),
    ] {
        let servers = [UdpServer::sink()];
        let (front, tembuku) = serve(listener, "", &servers);
        let client = client(front);
        client.send(b"hello").unwrap();
        tembuku.wait_closed(reason, 1.0);
        tembuku.wait_flows(0.0);
        let record = tembuku.access_log(1).remove(0);
        assert_eq!(record["close_reason"], reason, "{record}");
        assert_eq!(record["attempts"][0]["result"], result, "{record}");
        let took = record["session_time"].as_f64().unwrap();
        assert!(
            bounded(Duration::from_secs_f64(took), millis(199), PATIENCE),
            "{record}"
        );
        let listener = &tembuku.status()["listeners"][0];
        assert_eq!(listener["unanswered_flows"], unanswered, "{listener}");
    }
}

#[test]
fn after_so_many_datagrams_the_next_begins_another() {
    let servers = named(2);
    let (front, tembuku) = serve("requests = 3", "", &servers);
    let client = client(front);
    servers[0].hold();
    for n in 1..=3 {
        client.send(format!("{n}").as_bytes()).unwrap();
    }
    servers[0].wait_held(3);
    assert_eq!(ask(&client, "4"), "b2 4");
    // What the first was asked it may still answer.
    servers[0].release();
    for n in 1..=3 {
        assert_eq!(receive_text(&client), format!("b1 {n}"));
    }
    for (n, server) in [
        (5, "b2"),
        (6, "b2"),
        (7, "b1"),
        (8, "b1"),
        (9, "b1"),
        (10, "b2"),
    ] {
        assert_eq!(ask(&client, &n.to_string()), format!("{server} {n}"));
    }
    assert_eq!(tembuku.metric("listener_connections_total", &[]), 4.0);
}

#[test]
fn every_datagram_on_its_own() {
    let servers = named(2);
    let (front, tembuku) = serve("per_packet = true", "", &servers);
    let client = client(front);
    let counted = (0..20)
        .filter(|n| match ask(&client, &n.to_string()).split_once(' ') {
            Some(("b1", same)) | Some(("b2", same)) if same != n.to_string() => {
                panic!("{same} for {n}")
            }
            Some((server, _)) => server == "b1",
            None => panic!("an answer without a name"),
        })
        .count();
    assert_eq!(counted, 10);
    // Both may answer late, in whatever order.
    servers[0].hold();
    client.send(b"late").unwrap();
    assert_eq!(ask(&client, "soon"), "b2 soon");
    servers[0].wait_held(1);
    assert_eq!(receive_if_any(&client), None);
    servers[0].release();
    assert_eq!(receive_text(&client), "b1 late");
    assert_eq!(tembuku.metric("listener_dropped_datagrams_total", &[]), 0.0);
}

/// Either direction keeps it alive.
#[test]
fn datagrams_in_either_direction_keep_a_flow_alive() {
    let (sender, requests) = std::sync::mpsc::channel();
    let servers = [UdpServer::on(
        SocketAddr::new(V4, 0),
        move |socket, peer, _| {
            sender.send((socket.try_clone().unwrap(), peer)).unwrap();
        },
    )];
    let (front, tembuku) = serve("idle_timeout = \"1s\"", "", &servers);
    let client = client(front);
    client.send(b"begin").unwrap();
    let (socket, peer) = requests.recv_timeout(PATIENCE).unwrap();
    let began = Instant::now();
    let mut n: u32 = 0;
    while began.elapsed() < millis(2_500) {
        // The pace of the sender, far from the limit.
        std::thread::sleep(millis(100));
        socket.send_to(&n.to_be_bytes(), peer).unwrap();
        assert_eq!(receive(&client), n.to_be_bytes());
        n += 1;
    }
    let began = Instant::now();
    while began.elapsed() < millis(2_500) {
        std::thread::sleep(millis(100));
        client.send(b"more").unwrap();
        assert_eq!(requests.recv_timeout(PATIENCE).unwrap().1, peer);
    }
    assert_eq!(tembuku.metric("listener_connections_total", &[]), 1.0);
    tembuku.wait_closed("idle_timeout", 1.0);
}

#[test]
fn a_record_describes_the_whole_flow() {
    let servers = named(1);
    let (front, tembuku) = serve("responses = 1", "", &servers);
    let client = client(front);
    servers[0].hold();
    client.send(b"four").unwrap();
    client.send(b"sixsix").unwrap();
    servers[0].wait_held(2);
    servers[0].release();
    assert_eq!((receive(&client).len(), receive(&client).len()), (7, 9));
    let record = tembuku.access_log(1).remove(0);
    let own = client.local_addr().unwrap();
    for (key, wanted) in [
        ("listener", "l".into()),
        ("protocol", "udp".into()),
        ("remote_addr", own.ip().to_string().into()),
        ("remote_port", serde_json::json!(own.port())),
        ("upstream", "u".into()),
        ("backend", servers[0].addr.to_string().into()),
        ("bytes_received", serde_json::json!(10)),
        ("bytes_sent", serde_json::json!(16)),
        ("close_reason", "ok".into()),
    ] {
        assert_eq!(record[key], wanted, "{key} in {record}");
    }
    assert!(record["first_byte_time"].as_f64().is_some(), "{record}");
    let one = &record["attempts"][0];
    assert_eq!(one["backend"], servers[0].addr.to_string(), "{record}");
    let backend = servers[0].addr.to_string();
    let labels = [("backend", &backend[..])];
    for (name, wanted) in [
        ("backend_connections_total", 1.0),
        ("backend_active_connections", 0.0),
        ("backend_received_bytes_total", 16.0),
        ("backend_sent_bytes_total", 10.0),
    ] {
        assert_eq!(tembuku.metric(name, &labels), wanted, "{name}");
    }
    for (name, wanted) in [
        ("listener_received_datagrams_total", 2.0),
        ("listener_sent_datagrams_total", 2.0),
        ("session_duration_seconds_count", 1.0),
        ("first_byte_duration_seconds_count", 1.0),
    ] {
        assert_eq!(tembuku.metric(name, &[]), wanted, "{name}");
    }
}
