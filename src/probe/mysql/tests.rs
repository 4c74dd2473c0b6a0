use super::{
    super::Dialogue as _,
    greeting::tests::{ALL, greeting},
    result_set::tests::result_set,
    *,
};
use proptest::prelude::*;

const PASSWORD: &str = "xyzzy";
const DENIED: &[u8] = b"\xff\x15\x04#28000Access denied";

fn secret() -> Secret {
    // The only way to a secret is the one that the program takes.
    let name = format!(
        "tembuku-mysql-{}-{:?}",
        std::process::id(),
        std::thread::current().id()
    );
    let path = std::env::temp_dir().join(name);
    std::fs::write(&path, PASSWORD).expect("writable");
    let secret = Secret::load(&crate::plan::PasswordFrom::File(path.clone()));
    std::fs::remove_file(path).expect("there");
    secret.expect("a password")
}

fn settings_with(role: Option<Role>) -> MysqlCheck {
    MysqlCheck {
        role,
        replicating: false,
        max_lag: None,
        user: "check".into(),
        secret: Some(secret()),
        encrypted: false,
        local: false,
        verified: false,
    }
}

/// One side of a conversation; the other is the test.
struct Side<'a> {
    dialogue: MysqlDialogue<'a>,
    bytes: Vec<u8>,
}

impl<'a> Side<'a> {
    fn new(settings: &'a MysqlCheck) -> Self {
        let dialogue = MysqlDialogue::new(settings);
        Self {
            dialogue,
            bytes: Vec::new(),
        }
    }

    /// Passes on a packet of the server, byte by byte, and returns the next step.
    fn receive(&mut self, number: u8, payload: &[u8]) -> Step {
        let frame = frame(number, payload);
        let (last, before) = frame.split_last().expect("a header");
        for byte in before {
            self.bytes.push(*byte);
            assert_eq!(self.dialogue.receive(&self.bytes, false), Step::Wait);
        }
        self.bytes.push(*last);
        let step = self.dialogue.receive(&self.bytes, false);
        if let Step::Send { consumed, .. } = &step {
            self.bytes.drain(..consumed);
        }
        step
    }

    /// The same where the step is to send; returns what is sent.
    #[track_caller]
    fn exchange(&mut self, number: u8, payload: &[u8]) -> Vec<u8> {
        let Step::Send { bytes, .. } = self.receive(number, payload) else {
            panic!("nothing is sent");
        };
        bytes
    }

    #[track_caller]
    fn answers(&mut self, number: u8, payload: &[u8]) -> Answer {
        match self.receive(number, payload) {
            Step::Done(answer) => answer,
            step => panic!("{step:?}"),
        }
    }

    /// As far as the login has gone well.
    fn logged_in(settings: &'a MysqlCheck, version: &str) -> Self {
        let mut side = Self::new(settings);
        let sent = side.exchange(0, &greeting(version, "mysql_native_password", ALL));
        assert_eq!(sent[3], 1);
        let sent = side.exchange(2, b"\0\0\0\x02\0\0\0");
        assert_eq!(sent, frame(0, &[b"\x03", ROLE.as_bytes()].concat()));
        side
    }

    /// Receives a result; returns the step after its last packet.
    #[track_caller]
    fn result(&mut self, payloads: &[Vec<u8>]) -> Step {
        for (payload, number) in payloads[..payloads.len() - 1].iter().zip(1..) {
            assert_eq!(self.exchange(number, payload), b"");
        }
        let number = u8::try_from(payloads.len()).expect("few");
        self.receive(number, &payloads[payloads.len() - 1])
    }

    #[track_caller]
    fn variables(&mut self, variables: &[(&str, &str)]) -> Step {
        let rows: Vec<[Option<&str>; 2]> = variables
            .iter()
            .map(|(n, v)| [Some(*n), Some(*v)])
            .collect();
        let rows: Vec<&[Option<&str>]> = rows.iter().map(|row| &row[..]).collect();
        self.result(&result_set(&["Variable_name", "Value"], &rows))
    }
}

#[track_caller]
fn answer(step: Step) -> Answer {
    match step {
        Step::Done(answer) => answer,
        step => panic!("{step:?}"),
    }
}

#[test]
fn roles() {
    let (primary, replica) = (Some(Role::Primary), Some(Role::Replica));
    let off = ("read_only", "OFF");
    for (variables, role) in [
        (&[off][..], primary),
        (
            &[off, ("super_read_only", "OFF"), ("innodb_read_only", "OFF")],
            primary,
        ),
        (&[("read_only", "ON")], replica),
        // MariaDB 12 knows more than on and off.
        (&[("read_only", "NO_LOCK_NO_ADMIN")], replica),
        (&[off, ("super_read_only", "ON")], replica),
        (&[("innodb_read_only", "1"), off], replica),
    ] {
        for wanted in [None, primary, replica] {
            let settings = settings_with(wanted);
            let answer = answer(Side::logged_in(&settings, "8.0.36").variables(variables));
            let expected = match wanted.is_none() || wanted == role {
                true => CheckResult::Ok,
                false => CheckResult::Standby,
            };
            assert_eq!(
                (answer.result, answer.finding.role),
                (expected, role),
                "{variables:?}"
            );
            assert_eq!(answer.last_message, b"\x01\0\0\0\x01");
        }
    }
    let settings = settings_with(None);
    let answer =
        answer(Side::logged_in(&settings, "8.0.36").variables(&[("super_read_only", "ON")]));
    assert_eq!(answer.result, CheckResult::Protocol, "{answer:?}");
    assert_eq!(answer.last_message, b"\x01\0\0\0\x01");
    // Numbers that are wrong, after a login.
    let mut side = Side::logged_in(&settings, "8.0.36");
    let answer = self::answer(side.dialogue.receive(&frame(7, b"\x02"), false));
    assert_eq!(answer.result, CheckResult::Protocol);
    assert_eq!(answer.last_message, b"\x01\0\0\0\x01");
}

#[test]
fn a_server_is_known_by_more_than_its_uuid() {
    let settings = settings_with(Some(Role::Primary));
    let server = |variables: &[(&str, &str)]| {
        answer(Side::logged_in(&settings, "8.4.0").variables(variables))
            .finding
            .server
    };
    let of = |uuid, host, port, datadir| {
        server(&[
            ("datadir", datadir),
            ("hostname", host),
            ("port", port),
            ("read_only", "OFF"),
            ("server_id", "1"),
            ("server_uuid", uuid),
        ])
    };
    let one = of("u", "a", "3306", "/data/");
    assert!(one.is_some());
    assert_eq!(of("u", "a", "3306", "/data/"), one);
    for other in [
        of("v", "a", "3306", "/data/"),
        of("u", "b", "3306", "/data/"),
        of("u", "a", "3307", "/data/"),
        of("u", "a", "3306", "/other/"),
    ] {
        assert!(other.is_some() && other != one, "{other:?}");
    }
    assert_eq!(server(&[("read_only", "OFF"), ("server_uuid", "u")]), None);
}

#[test]
fn lag() {
    let settings = MysqlCheck {
        max_lag: Some(Duration::from_secs(30)),
        ..settings_with(None)
    };
    let question = |text: &str| frame(0, &[b"\x03", text.as_bytes()].concat());
    let sent = |step| match step {
        Step::Send { bytes, .. } => bytes,
        step => panic!("{step:?}"),
    };
    let on = [("read_only", "ON")];
    type Rows<'a> = &'a [&'a [Option<&'a str>]];
    let cases: [(Rows<'_>, CheckResult, Option<u64>); 6] = [
        (&[&[Some("a"), Some("30")]], CheckResult::Ok, Some(30)),
        (&[&[Some("a"), Some("31")]], CheckResult::Lagging, Some(31)),
        (
            &[&[Some("a"), Some("0")], &[Some("b"), Some("40")]],
            CheckResult::Lagging,
            Some(40),
        ),
        (
            &[&[Some("a"), Some("0")], &[Some("b"), None]],
            CheckResult::Lagging,
            None,
        ),
        (&[&[Some("a"), None]], CheckResult::Lagging, None),
        (&[], CheckResult::Lagging, None),
    ];
    for (rows, result, lag) in cases {
        let mut side = Side::logged_in(&settings, "5.5.5-10.11.19-MariaDB");
        assert_eq!(sent(side.variables(&on)), question(LAG_MARIADB[0]));
        let answer = answer(side.result(&result_set(
            &["Connection_name", "Seconds_Behind_Master"],
            rows,
        )));
        assert_eq!(
            (answer.result, answer.finding.role),
            (result, Some(Role::Replica)),
            "{rows:?}"
        );
        assert_eq!(answer.finding.lag.time, lag.map(Duration::from_secs));
        assert_eq!(answer.last_message, b"\x01\0\0\0\x01");
    }
    // An old server does not have the new statement.
    let mut side = Side::logged_in(&settings, "5.7.44");
    assert_eq!(sent(side.variables(&on)), question(LAG[0]));
    assert_eq!(
        side.exchange(1, b"\xff\x28\x04#42000no such thing"),
        question(LAG[1])
    );
    let refused = side.answers(1, b"\xff\xcb\x04#42000you need REPLICATION CLIENT");
    assert_eq!(refused.result, CheckResult::Auth);
    assert_eq!(
        refused.transcript,
        "replication: error 1227: \"you need REPLICATION CLIENT\"; \
         grant REPLICATION CLIENT (MariaDB: REPLICA MONITOR)"
    );
    assert_eq!(refused.finding.role, Some(Role::Replica));
    // A primary has no source, which is not an error.
    let primary = answer(Side::logged_in(&settings, "8.4.0").variables(&[("read_only", "OFF")]));
    assert_eq!(primary.result, CheckResult::Ok);
    let wrong = MysqlCheck {
        role: Some(Role::Primary),
        ..settings
    };
    let replica = answer(Side::logged_in(&wrong, "8.4.0").variables(&on));
    assert_eq!(replica.result, CheckResult::Standby);
}

#[test]
fn replicas_that_do_not_replicate() {
    let settings = MysqlCheck {
        replicating: true,
        ..settings_with(Some(Role::Replica))
    };
    let mariadb = [
        "Slave_IO_Running",
        "Slave_SQL_Running",
        "Last_IO_Errno",
        "Last_SQL_Errno",
        "Seconds_Behind_Master",
    ];
    let mysql = [
        "Replica_IO_Running",
        "Replica_SQL_Running",
        "Last_IO_Errno",
        "Last_SQL_Errno",
        "Seconds_Behind_Source",
    ];
    let on = ("read_only", "ON");
    let row = |values: [&'static str; 5]| values.map(|v| Some(v).filter(|v| *v != "NULL"));
    let runs = row(["Yes", "Yes", "0", "0", "3"]);
    let cut_off = row(["Connecting", "Yes", "2003", "0", "NULL"]);
    let stopped = row(["No", "No", "0", "0", "NULL"]);
    let broken = row(["Yes", "No", "0", "1062", "NULL"]);
    let alone = row(["No", "Yes", "1236", "0", "NULL"]);
    type Rows<'a> = &'a [&'a [Option<&'a str>]];
    type Case<'a> = (Rows<'a>, &'a [(&'a str, &'a str)], Option<&'a str>);
    let cases: [Case<'_>; 8] = [
        (&[&runs], &[on], None),
        (
            &[&cut_off],
            &[on],
            Some("its link to its primary is down (error 2003)"),
        ),
        (&[&stopped], &[on], Some("its SQL thread has stopped")),
        (
            &[&broken],
            &[on],
            Some("its SQL thread has stopped (error 1062)"),
        ),
        (
            &[&runs, &alone],
            &[on],
            Some("its I/O thread has stopped (error 1236)"),
        ),
        (&[], &[on], Some("it follows no primary")),
        (
            &[],
            &[on, ("wsrep_on", "OFF")],
            Some("it follows no primary"),
        ),
        (
            &[],
            &[("read_only", "OFF"), ("innodb_read_only", "ON")],
            None,
        ),
    ];
    for (names, version) in [(mariadb, "5.5.5-10.11.19-MariaDB"), (mysql, "8.4.0")] {
        for (rows, variables, fault) in &cases {
            let mut side = Side::logged_in(&settings, version);
            assert!(matches!(side.variables(variables), Step::Send { .. }));
            let answer = answer(side.result(&result_set(&names, rows)));
            let expected = match fault {
                None => CheckResult::Ok,
                Some(_) => CheckResult::NotReplicating,
            };
            assert_eq!(answer.result, expected, "{rows:?}: {}", answer.transcript);
            assert_eq!(answer.finding.fault.as_deref(), *fault);
            assert_eq!(answer.last_message, b"\x01\0\0\0\x01");
        }
    }
    let mut side = Side::logged_in(&settings, "8.4.0");
    side.variables(&[on]);
    let refused = side.answers(1, b"\xff\xcb\x04#42000Access denied");
    assert_eq!(refused.result, CheckResult::Auth);
    assert_eq!(
        refused.transcript,
        "replication: error 1227: \"Access denied\"; \
         grant REPLICATION CLIENT (MariaDB: REPLICA MONITOR) or set replicating = false"
    );
}

#[test]
fn logins() {
    let settings = settings_with(None);
    let native = Plugin::Native.answer(PASSWORD.as_bytes(), b"abcdefghijklmnopqrst");
    let mut side = Side::new(&settings);
    let sent = side.exchange(0, &greeting("8.0.36", "mysql_native_password", ALL));
    let end = [b"check\0\x14", &native[..], b"mysql_native_password\0"].concat();
    assert!(sent.ends_with(&end), "{sent:?}");
    // The account wants another one.
    let sent = side.exchange(2, b"\xfecaching_sha2_password\0ABCDEFGHIJKLMNOPQRST\0");
    let caching = Plugin::CachingSha2.answer(PASSWORD.as_bytes(), b"ABCDEFGHIJKLMNOPQRST");
    assert_eq!(sent, frame(3, &caching));
    assert_eq!(side.exchange(4, b"\x01\x03"), b"");
    assert_eq!(side.exchange(5, b"\0\0\0\x02\0\0\0")[3], 0);
    // Once, and not again and again.
    let mut side = Side::new(&settings);
    side.exchange(0, &greeting("8.0.36", "dialog", ALL));
    side.exchange(2, b"\xfemysql_native_password\0ABCDEFGHIJKLMNOPQRST\0");
    let sent = side.exchange(4, b"\xfemysql_native_password\0ABCDEFGHIJKLMNOPQRST\0");
    assert_eq!(sent, frame(5, b""));
    let answer = side.answers(6, DENIED);
    assert_eq!(
        (answer.result, &answer.transcript[..]),
        (
            CheckResult::Auth,
            "login: it asks for one plugin after another"
        )
    );
    assert!(answer.last_message.is_empty());
}

#[test]
fn the_password_is_sent_in_the_clear_only_over_a_protected_connection() {
    let clear = [PASSWORD.as_bytes(), b"\0"].concat();
    let caching = greeting("8.0.36", "caching_sha2_password", ALL);
    let plain = settings_with(None);
    let mut side = Side::new(&plain);
    side.exchange(0, &caching);
    assert_eq!(
        side.exchange(2, b"\x01\x04"),
        frame(3, b"\x02"),
        "asks for the key"
    );
    assert_eq!(side.exchange(4, b"\x01no key"), frame(5, b""));
    let answer = side.answers(6, DENIED);
    assert_eq!(
        (answer.result, &answer.transcript[..]),
        (
            CheckResult::Auth,
            "login: the key of the server cannot be used"
        )
    );

    let local = MysqlCheck {
        local: true,
        ..settings_with(None)
    };
    let mut side = Side::new(&local);
    side.exchange(0, &caching);
    assert_eq!(side.exchange(2, b"\x01\x04"), frame(3, &clear));

    let encrypted = MysqlCheck {
        encrypted: true,
        ..settings_with(None)
    };
    let mut side = Side::new(&encrypted);
    let request = side.exchange(0, &caching);
    assert_eq!((request.len(), request[3]), (36, 1));
    assert_eq!(
        side.dialogue.receive(b"", false),
        Step::StartTls { consumed: 0 }
    );
    let Step::Send { consumed: 0, bytes } = side.dialogue.receive(b"", false) else {
        panic!("the login");
    };
    assert_eq!(bytes[3], 2);
    assert_eq!(bytes[4..36], request[4..], "the same beginning");
    assert_eq!(side.exchange(3, b"\x01\x04"), frame(4, &clear));

    // Any server may ask for this one.
    let wanted = b"\xfemysql_clear_password\0";
    for verified in [true, false] {
        let encrypted = MysqlCheck {
            encrypted: true,
            verified,
            ..settings_with(None)
        };
        let mut side = Side::new(&encrypted);
        side.exchange(0, &caching);
        side.dialogue.receive(b"", false);
        side.dialogue.receive(b"", false);
        let sent = if verified { &clear[..] } else { b"" };
        assert_eq!(side.exchange(3, wanted), frame(4, sent));
    }
    let mut side = Side::new(&local);
    side.exchange(0, &caching);
    assert_eq!(side.exchange(2, wanted), frame(3, &clear));
    let mut side = Side::new(&plain);
    side.exchange(0, &caching);
    assert_eq!(side.exchange(2, wanted), frame(3, b""));
    let refused = side.answers(4, DENIED);
    assert_eq!(
        (refused.result, &refused.transcript[..]),
        (
            CheckResult::Auth,
            "login: it asks for the password in the clear, which takes tls = \"verify\" or a \
             unix socket"
        )
    );
}

#[test]
fn a_server_without_tls_gets_no_credentials() {
    let encrypted = MysqlCheck {
        encrypted: true,
        ..settings_with(None)
    };
    let mut side = Side::new(&encrypted);
    let without = greeting("5.7.44", "mysql_native_password", ALL & !greeting::SSL);
    let answer = side.answers(0, &without);
    assert_eq!(
        (answer.result, &answer.transcript[..]),
        (CheckResult::Tls, "the server does not offer TLS")
    );
    // No user, and no password.
    assert!(
        answer
            .last_message
            .ends_with(b"\0\0\0mysql_native_password\0\x01\0\0\0\x01"),
        "{:?}",
        answer.last_message
    );
}

#[test]
fn refusals() {
    let settings = settings_with(None);
    for (payload, result, transcript) in [
        (
            &b"\xff\x10\x04Too many connections"[..],
            CheckResult::Unexpected,
            "error 1040: \"Too many connections\"",
        ),
        (
            b"\xff\x69\x04Host is blocked",
            CheckResult::Auth,
            "error 1129: \"Host is blocked\"",
        ),
        (
            b"\xff\x6a\x04Host is not allowed",
            CheckResult::Auth,
            "error 1130: \"Host is not allowed\"",
        ),
    ] {
        let answer = Side::new(&settings).answers(0, payload);
        assert_eq!(
            (answer.result, &answer.transcript[..]),
            (result, transcript)
        );
    }
    for (payload, result, transcript) in [
        (
            &b"\xff\x15\x04#28000Access denied"[..],
            CheckResult::Auth,
            "login: error 1045: \"Access denied\"",
        ),
        // Whatever the server makes of it.
        (
            b"\xff\x15\x04#28000not xyzzy!",
            CheckResult::Auth,
            "login: error 1045",
        ),
        (
            b"\xff\x57\x0c#HY000insecure",
            CheckResult::Tls,
            "login: error 3159: \"insecure\"",
        ),
    ] {
        let mut side = Side::new(&settings);
        side.exchange(0, &greeting("8.0.36", "mysql_native_password", ALL));
        let answer = side.answers(2, payload);
        assert_eq!(
            (answer.result, &answer.transcript[..]),
            (result, transcript)
        );
        assert!(answer.last_message.is_empty(), "it has closed already");
    }
}

/// A server counts clients that leave in the middle of a login, so the login goes on until the
/// server ends it.
#[test]
fn a_login_that_cannot_be_made_is_ended_by_the_server() {
    let settings = settings_with(None);
    for (payload, sent, transcript) in [
        (
            &b"\xfeclient_ed25519\0ABC\0"[..],
            &[0; 64][..],
            "login: it asks for the plugin \"client_ed25519\", which is not supported here",
        ),
        (
            b"\xfedialog\0Password: \0",
            b"",
            "login: it asks for the plugin \"dialog\", which is not supported here",
        ),
        (
            b"\xfe",
            b"",
            "login: the account has a password from before 4.1",
        ),
        (b"\x02dialog\0", b"", "login: it asks for a second factor"),
    ] {
        let begin = || {
            let mut side = Side::new(&settings);
            side.exchange(0, &greeting("8.0.36", "mysql_native_password", ALL));
            assert_eq!(side.exchange(2, payload), frame(3, sent), "{transcript}");
            side
        };
        let refused = begin().answers(4, DENIED);
        assert_eq!(
            (refused.result, &refused.transcript[..]),
            (CheckResult::Auth, transcript)
        );
        assert!(refused.last_message.is_empty(), "it has closed already");
        // It may ask for more, and in the end close without a message.
        let mut side = begin();
        assert_eq!(side.exchange(4, b"Second password: "), frame(5, b""));
        assert_eq!(
            answer(side.dialogue.receive(b"", true)),
            refused,
            "whatever it sends"
        );
        // Or accept the login, which proves nothing about the password.
        let welcome = begin().answers(4, b"\0\0\0\x02\0\0\0");
        assert_eq!(
            (welcome.result, &welcome.transcript[..]),
            (CheckResult::Auth, transcript)
        );
        assert_eq!(welcome.last_message, b"\x01\0\0\0\x01");
    }
}

#[test]
fn what_is_not_mysql() {
    let settings = settings_with(None);
    for (bytes, part) in [
        (&b"+PONG\r\n"[..], "too long; got \"+PONG\\r\\n\""),
        (b"SSH-2.0-OpenSSH", "too long"),
        (b"\x05\0\0\x01\x0a8.0\0", "out of order"),
        (b"\x04\0\0\0\x098.0", "not version 10"),
        (b"\0\0\0\0", "an empty packet"),
    ] {
        let answer = answer(MysqlDialogue::new(&settings).receive(bytes, false));
        assert_eq!(answer.result, CheckResult::Protocol);
        assert!(answer.transcript.contains(part), "{}", answer.transcript);
    }
}

/// After the password was sent, no answer is shown.
#[test]
fn an_echo_of_the_password_is_not_shown() {
    let settings = MysqlCheck {
        local: true,
        ..settings_with(None)
    };
    let mut side = Side::new(&settings);
    side.exchange(0, &greeting("8.0.36", "caching_sha2_password", ALL));
    let sent = side.exchange(2, b"\x01\x04");
    assert!(sent.windows(5).any(|part| part == PASSWORD.as_bytes()));
    assert_eq!(side.dialogue.show(&sent), "10 bytes");
    let answer = side.answers(4, &sent[4..]);
    assert_eq!(answer.result, CheckResult::Protocol);
    assert!(
        !answer.transcript.contains(PASSWORD),
        "{}",
        answer.transcript
    );
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(
        payloads: Vec<Vec<u8>>,
        version in "[a-zA-Z0-9.-]{0,9}",
        encrypted: bool,
        lags: bool,
        ok: bool,
    ) {
        let settings = MysqlCheck {
            max_lag: lags.then_some(Duration::from_secs(1)),
            encrypted,
            ..settings_with(None)
        };
        let mut dialogue = MysqlDialogue::new(&settings);
        let begin = greeting(&version, "caching_sha2_password", ALL);
        let begin = std::iter::once(begin).chain(ok.then(|| vec![0]));
        for payload in begin.chain(payloads) {
            let number = dialogue.number;
            for _ in 0..3 {
                let step = dialogue.receive(&frame(number, &payload), false);
                if !matches!(step, Step::StartTls { .. }) {
                    break;
                }
            }
        }
    }
}
