//! New processes that fail at each message: this test's own program speaks in their place.

use super::{Succession, front_of, streams::Streams};
use crate::harness::{
    load::Load,
    proc::{run_ok, text},
    secs,
    server::Server,
    tembuku::binary,
};
use std::{
    env, fs,
    io::stdin,
    os::fd::{AsFd as _, OwnedFd},
    process::Command,
    thread,
    time::{Duration, Instant},
};
use tembuku::internals::handover::{
    channel::{Channel, ChannelError},
    fields::Fields as _,
    hello::{Formats, Hello, Ready, Refusal},
    message::{Kind, Message},
};

/// How it behaves: what is given in place of a message, and where.
const BEHAVIOUR: &str = "TEMBUKU_TEST_FAKE";

/// Whatever comes first is that it has ended.
const DEAD: &str = "the other process has ended, at";

/// Runs `tembuku upgrade` with a program that behaves so; clients are served all the time.
#[track_caller]
fn fails(tembuku: &Succession, (load, streams): (&Load, &Streams), behaviour: &str, words: &str) {
    let script = format!(
        "#!/bin/sh\ncase $1 in check|handover-formats) exec {} \"$@\";; esac\n\
         {BEHAVIOUR}={behaviour} exec {} --exact --ignored --nocapture \
         upgrade::fake::fake_new_process\n",
        binary().display(),
        env::current_exe().unwrap().display(),
    );
    let script = tembuku.first.dir.write("fake", &script);
    run_ok(secs(5), {
        let mut chmod = Command::new("chmod");
        chmod.arg("755").arg(&script);
        chmod
    });
    let output = tembuku.try_upgrade(&["--binary", script.to_str().unwrap()]);
    let printed = text(&output);
    assert_eq!(output.status.code(), Some(1), "{behaviour}: {printed}");
    assert!(printed.contains(words), "{behaviour}: {printed}");
    assert_eq!(tembuku.pid(), tembuku.current, "{behaviour}");
    assert_eq!(streams.advance(behaviour), 0);
    let counts = load.take(behaviour);
    assert_eq!(
        (counts.refused, counts.cut),
        (0, 0),
        "{behaviour}: {counts:?}"
    );
}

#[test]
fn a_new_process_that_fails_at_any_message_changes_nothing() {
    let server = Server::named("a");
    let (front, config) = front_of(&server);
    let mut tembuku = Succession::start(&config);
    let load = Load::start(front, thread::spawn);
    let streams = Streams::start(front, 20);
    let descriptors = || {
        let folder = format!("/proc/{}/fd", tembuku.current);
        fs::read_dir(folder).unwrap().count()
    };
    load.take("before");
    fails(&tembuku, (&load, &streams), "die-at-start", DEAD);
    for message in ["hello", "ready", "accepting"] {
        fails(
            &tembuku,
            (&load, &streams),
            &format!("die-at-{message}"),
            DEAD,
        );
        fails(
            &tembuku,
            (&load, &streams),
            &format!("refuse-at-{message}"),
            "no, thank you",
        );
        let instead = format!("has sent journal instead of {message}");
        fails(
            &tembuku,
            (&load, &streams),
            &format!("confuse-at-{message}"),
            &instead,
        );
        let garbage = "the other process has sent no message";
        fails(
            &tembuku,
            (&load, &streams),
            &format!("garbage-at-{message}"),
            garbage,
        );
    }
    for message in ["hello", "ready"] {
        fails(
            &tembuku,
            (&load, &streams),
            &format!("empty-at-{message}"),
            "lacks field",
        );
    }
    fails(
        &tembuku,
        (&load, &streams),
        "poor-at-hello",
        "may open 10 files",
    );
    fails(
        &tembuku,
        (&load, &streams),
        "silent-at-accepting",
        "has not answered in time, at accepting",
    );
    // Nothing is left of all that, and the next one works.
    crate::harness::wait_until("descriptors are closed", secs(5), || descriptors() < 120);
    let before = descriptors();
    fails(&tembuku, (&load, &streams), "die-at-accepting", DEAD);
    crate::harness::wait_until("descriptors are closed", secs(5), || {
        descriptors() <= before + 3
    });
    tembuku.upgrade();
    let counts = load.take("after");
    assert_eq!((counts.refused, counts.cut), (0, 0), "{counts:?}");
    assert_eq!(streams.finish(), 0);
}

/// Runs as the new process, and not as a test.
#[test]
#[ignore = "it is started by another test"]
fn fake_new_process() {
    let Ok(behaviour) = env::var(BEHAVIOUR) else {
        return;
    };
    let socket: OwnedFd = stdin().as_fd().try_clone_to_owned().unwrap();
    let mut fake = Fake {
        channel: Channel::new(socket),
        behaviour,
    };
    let _ = fake.run();
}

struct Fake {
    channel: Channel,
    behaviour: String,
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

impl Fake {
    fn run(&mut self) -> Result<(), ChannelError> {
        if self.behaviour == "die-at-start" {
            return Ok(());
        }
        self.wait_for(Kind::Hello)?;
        let hello = Hello {
            program: "fake".to_owned(),
            pid: std::process::id(),
            hash: String::new(),
            workers: 1,
            open_descriptors: 10,
            most_descriptors: match self.behaviour == "poor-at-hello" {
                true => 10,
                false => 1 << 20,
            },
            formats: Formats::own(),
        };
        self.send(Kind::Hello, &hello.write())?;
        self.wait_for(Kind::Prepare)?;
        let ready = Ready {
            listeners: 1,
            unused: Vec::new(),
        };
        self.send(Kind::Ready, &ready.write())?;
        self.wait_for(Kind::Accept)?;
        self.send(Kind::Accepting, b"")
    }

    /// Keeps what comes with it to the end, as a real process does.
    fn wait_for(&mut self, kind: Kind) -> Result<Message, ChannelError> {
        loop {
            let message = self.channel.receive(soon())?;
            if message.kind == kind {
                return Ok(message);
            }
        }
    }

    /// Or what is to be done instead.
    fn send(&mut self, kind: Kind, body: &[u8]) -> Result<(), ChannelError> {
        let Some(instead) = self.behaviour.strip_suffix(&format!("-at-{kind}")) else {
            return self.channel.send(kind, 1, body, &[], soon()).map(drop);
        };
        match instead {
            "die" => std::process::exit(3),
            "silent" => thread::sleep(Duration::from_secs(20)),
            "refuse" => {
                let refusal = Refusal {
                    reason: "no, thank you".to_owned(),
                };
                self.channel
                    .send(Kind::Refusal, 1, &refusal.write(), &[], soon())?;
            }
            "confuse" => {
                self.channel.send(Kind::Journal, 1, b"", &[], soon())?;
            }
            "empty" => {
                self.channel.send(kind, 1, b"", &[], soon())?;
            }
            "garbage" => {
                rustix::net::send(&self.channel, b"garbage", rustix::net::SendFlags::empty())
                    .unwrap();
            }
            "poor" => {
                self.channel.send(kind, 1, body, &[], soon())?;
            }
            other => panic!("{other}"),
        }
        // Until the old process has noticed, and closes or kills.
        let _ = self.channel.receive(soon());
        Ok(())
    }
}
