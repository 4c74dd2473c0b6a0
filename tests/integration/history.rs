//! The last ten minutes of listeners and backends, and the ages of sessions.

use crate::harness::{
    http, net, ports, secs,
    server::{listener_before, named},
    tembuku::Tembuku,
    wait_until,
};
use serde_json::Value;
use std::io::Write as _;

fn json(tembuku: &Tembuku, path: &str) -> Value {
    let response = tembuku.get(path);
    assert_eq!(response.status, 200, "{path}: {response:?}");
    serde_json::from_str(&response.body).unwrap()
}

fn length(list: &Value) -> usize {
    list.as_array().unwrap().len()
}

/// It is asked for often, and a reload that does not concern it leaves it as it is.
#[test]
fn samples_outlive_a_reload_and_end_with_their_backend() {
    let servers = named(3);
    let fronts = [ports::free_addr(), ports::free_addr()];
    let with = |backends: &str, second: &str| {
        format!(
            "[admin]\nsocket = \"{{dir}}/admin.sock\"\n\
             [listeners.first]\nbind = \"{}\"\nupstream = \"pool\"\n{second}\
             [upstreams.pool]\nbackends = [{backends}]\n",
            fronts[0]
        )
    };
    let both = format!("\"{}\", \"{}\"", servers[0].addr, servers[1].addr);
    let second = format!(
        "[listeners.second]\nbind = \"{}\"\nupstream = \"other\"\n\
         [upstreams.other]\nbackends = [\"{}\"]\n",
        fronts[1], servers[2].addr
    );
    let tembuku = Tembuku::start(&with(&both, &second));
    let (mut client, _) = net::session(fronts[0]).unwrap();
    client.write_all(&[b'x'; 10_000]).unwrap();
    let has_samples = |count: u64| {
        let history = json(&tembuku, "/api/v1/history");
        history["number"].as_u64() >= Some(count)
    };
    wait_until("the first sample", secs(15), || has_samples(1));
    let history = json(&tembuku, "/api/v1/history");
    assert_eq!(history["interval_seconds"], 5);
    assert_eq!(length(&history["listeners"]), 2, "{history}");
    assert_eq!(length(&history["backends"]), 3, "{history}");
    let first = &history["listeners"][0];
    assert_eq!(
        (&first["name"], &first["sessions"][0]),
        (&"first".into(), &1.into())
    );
    let received = first["received"][0].as_f64().unwrap();
    assert!(
        (1_000.0..2_100.0).contains(&received),
        "10,000 bytes in 5 s: {first}"
    );

    tembuku.reload(&with(&format!("\"{}\"", servers[0].addr), ""));
    wait_until("a sample after the reload", secs(15), || has_samples(2));
    let history = json(&tembuku, "/api/v1/history");
    assert_eq!(length(&history["listeners"]), 1, "{history}");
    assert_eq!(length(&history["backends"]), 1, "{history}");
    let number = history["number"].as_u64().unwrap();
    for series in [&history["listeners"][0], &history["backends"][0]] {
        assert_eq!(length(&series["sessions"]), number as usize, "{series}");
    }
    let last = json(&tembuku, &format!("/api/v1/history?after={}", number - 1));
    if last["number"] == number {
        assert_eq!(length(&last["times"]), 1, "{last}");
        assert_eq!(length(&last["backends"][0]["sent"]), 1, "{last}");
    }
    for wrong in ["after=x", "after=-1", "before=1"] {
        let response = tembuku.get(&format!("/api/v1/history?{wrong}"));
        assert_eq!(response.status, 400, "{wrong}: {response:?}");
        assert!(response.body.contains("hint"), "{response:?}");
    }
    for method in ["POST", "DELETE"] {
        let response = http::request(tembuku.admin, method, "/api/v1/history").unwrap();
        assert_eq!(response.status, 405, "{method}");
    }
}

#[test]
fn ages_of_sessions_name_no_client() {
    let servers = named(1);
    let front = ports::free_addr();
    let tembuku = Tembuku::start(&listener_before(&servers, front, ""));
    let clients: Vec<_> = (0..30).map(|_| net::session(front).unwrap().0).collect();
    let ages = json(&tembuku, "/api/v1/sessions/ages");
    let of_backend = &ages["backends"][0];
    assert_eq!(of_backend["backend"], servers[0].addr.to_string());
    let counts = of_backend["counts"].as_array().unwrap();
    let sum: u64 = counts.iter().map(|count| count.as_u64().unwrap()).sum();
    assert_eq!((sum, counts.len()), (30, 7), "{ages}");
    assert_eq!(length(&ages["oldest"]), 20, "{ages}");
    let text = ages.to_string();
    for client in &clients {
        let address = client.local_addr().unwrap().to_string();
        assert!(!text.contains(&address), "{address} in {text}");
    }
    // The sessions themselves are for the socket alone.
    assert_eq!(tembuku.get("/api/v1/sessions").status, 404);
}
