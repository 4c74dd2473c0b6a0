//! `fail_on_reset`: what accepts and resets is no better than what refuses.

use crate::harness::{
    net, ports, secs,
    server::{Server, greet_and_echo},
    tembuku::Tembuku,
    wait_until,
};
use std::{
    io::{Read, Write},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
};

struct Setup {
    tembuku: Tembuku,
    front: SocketAddr,
    sick: Arc<AtomicBool>,
    moody: Server,
    _well: Server,
}

/// One backend that resets its connections while it is sick, after it has read a byte, and one that
/// is well.
fn setup(keys: &str) -> Setup {
    let sick = Arc::new(AtomicBool::new(true));
    let mood = Arc::clone(&sick);
    let moody = Server::start(move |mut stream| {
        let _ = stream.read(&mut [0; 1]);
        if mood.load(SeqCst) {
            net::reset(stream);
        } else {
            greet_and_echo(&stream, "moody\n");
        }
    });
    let well = Server::start(|stream| {
        let _ = (&stream).read(&mut [0; 1]);
        greet_and_echo(&stream, "well\n");
    });
    let front = ports::free_addr();
    let tembuku = Tembuku::start(&format!(
        "[listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\n[upstreams.u]\n{keys}\n\
         backends = [{{ address = \"{}\", max_fails = 2, fail_timeout = \"2s\" }}, \"{}\"]\n",
        moody.addr, well.addr
    ));
    Setup {
        tembuku,
        front,
        sick,
        moody,
        _well: well,
    }
}

impl Setup {
    /// The backend that answers a session; `None`: it was reset.
    fn ask(&self) -> Option<String> {
        let mut client = net::connect(self.front).unwrap();
        client.write_all(b"?").unwrap();
        net::read_line(&mut client)
            .ok()
            .filter(|line| !line.is_empty())
    }

    fn state(&self) -> String {
        let status = self.tembuku.status();
        status["upstreams"][0]["backends"][0]["state"]
            .as_str()
            .unwrap()
            .to_owned()
    }

    /// From where to where and why, in order.
    fn events(&self) -> Vec<String> {
        let one = |e: &serde_json::Value| {
            let value = |key: &str| e[key].as_str().unwrap().to_owned();
            format!("{} {} {}", value("from"), value("to"), value("reason"))
        };
        self.tembuku.events().iter().map(one).collect()
    }
}

#[test]
fn resets_before_an_answer_take_a_backend_out_and_an_answer_brings_it_back() {
    let setup = setup("fail_on_reset = true");
    // It is picked for every other session, until it has failed twice.
    let answers: Vec<_> = (0..6).map(|_| setup.ask()).collect();
    assert_eq!(
        answers.iter().filter(|a| a.is_none()).count(),
        2,
        "{answers:?}"
    );
    assert_eq!(setup.state(), "failed");
    // Left out: nothing goes there until its time has passed, and then one session, whose connect
    // proves nothing.
    wait_until("it is tried again", secs(10), || setup.ask().is_none());
    assert_eq!(setup.events(), ["up failed reset"]);
    assert_eq!(setup.state(), "failed");
    // That was the one try; until the next it is left alone.
    let tried = setup.moody.accepted();
    assert_eq!(setup.ask().as_deref(), Some("well"));
    assert_eq!(setup.moody.accepted(), tried);

    setup.sick.store(false, SeqCst);
    wait_until("it answers", secs(10), || {
        setup.ask().as_deref() == Some("moody")
    });
    wait_until("it is back", secs(10), || setup.state() == "up");
    assert_eq!(setup.events(), ["up failed reset", "failed up answered"]);
    let answers: Vec<_> = (0..10).map(|_| setup.ask().unwrap()).collect();
    assert_eq!(answers.iter().filter(|a| *a == "moody").count(), 5);
}

/// A reset after an answer has begun, one that the client began, and a clean end prove nothing
/// about the backend.
#[test]
fn what_else_ends_a_session_does_not_count() {
    let well = Server::start(|mut stream| {
        let mut command = [0; 1];
        let _ = stream.read(&mut command);
        match &command {
            b"r" => {
                let _ = stream.write_all(b"some");
                // When the client has it, and has confirmed that.
                let _ = stream.read(&mut [0; 1]);
                net::reset(stream);
            }
            b"e" => {}
            _ => {
                let _ = stream.read(&mut [0; 1]);
            }
        }
    });
    let front = ports::free_addr();
    let other = ports::free_addr();
    let tembuku = Tembuku::start(&format!(
        "[listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\n[upstreams.u]\nfail_on_reset = true\n\
         backends = [\"{}\", {{ address = \"{other}\", backup = true }}]\n",
        well.addr
    ));
    for _ in 0..3 {
        let mut client = net::connect(front).unwrap();
        client.write_all(b"r").unwrap();
        client.read_exact(&mut [0; 4]).unwrap();
        client.write_all(b"+").unwrap();
        assert_eq!(net::read_all(&mut client), (Vec::new(), net::End::Reset));

        let mut client = net::connect(front).unwrap();
        client.write_all(b"e").unwrap();
        assert_eq!(net::read_all(&mut client), (Vec::new(), net::End::Fin));

        let mut client = net::connect(front).unwrap();
        client.write_all(b"c").unwrap();
        wait_until("it is there", secs(10), || well.live() > 0);
        net::reset(client);
        wait_until("it is gone", secs(10), || well.live() == 0);
    }
    tembuku.wait_idle();
    let closed = |reason| tembuku.metric("sessions_closed_total", &[("reason", reason)]);
    assert_eq!(closed("backend_reset"), 3.0);
    assert_eq!(closed("client_reset"), 3.0);
    assert_eq!(closed("ok"), 3.0);
    let events = tembuku.get("/api/v1/events").body;
    assert!(!events.contains("failed"), "{events}");
}

/// As it is without the key: only connects count.
#[test]
fn off_by_default() {
    let setup = setup("");
    let answers: Vec<_> = (0..20).map(|_| setup.ask()).collect();
    assert_eq!(
        answers.iter().filter(|a| a.is_none()).count(),
        10,
        "{answers:?}"
    );
    assert_eq!(setup.events(), [""; 0]);
}
