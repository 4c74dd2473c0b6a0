use super::{
    super::Talk as _,
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

fn asked(role: Option<Role>) -> Asked {
    Asked {
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
    talk: Talk<'a>,
    bytes: Vec<u8>,
}

impl<'a> Side<'a> {
    fn new(asked: &'a Asked) -> Self {
        let talk = Talk::new(asked);
        Self {
            talk,
            bytes: Vec::new(),
        }
    }

    /// The server says this, byte by byte; what comes of it.
    fn hears(&mut self, number: u8, payload: &[u8]) -> Turn {
        let frame = frame(number, payload);
        let (last, before) = frame.split_last().expect("a header");
        for byte in before {
            self.bytes.push(*byte);
            assert_eq!(self.talk.hear(&self.bytes, false), Turn::Wait);
        }
        self.bytes.push(*last);
        let turn = self.talk.hear(&self.bytes, false);
        if let Turn::Say { read, .. } = &turn {
            self.bytes.drain(..read);
        }
        turn
    }

    /// The same where something is said, in one packet with this number.
    #[track_caller]
    fn says(&mut self, number: u8, payload: &[u8]) -> Vec<u8> {
        let Turn::Say { words, .. } = self.hears(number, payload) else {
            panic!("nothing is said");
        };
        words
    }

    #[track_caller]
    fn answers(&mut self, number: u8, payload: &[u8]) -> Answer {
        match self.hears(number, payload) {
            Turn::Answer(answer) => answer,
            turn => panic!("{turn:?}"),
        }
    }

    /// As far as the login has gone well.
    fn logged_in(asked: &'a Asked, version: &str) -> Self {
        let mut side = Self::new(asked);
        let said = side.says(0, &greeting(version, "mysql_native_password", ALL));
        assert_eq!(said[3], 1);
        let said = side.says(2, b"\0\0\0\x02\0\0\0");
        assert_eq!(said, frame(0, &[b"\x03", ROLE.as_bytes()].concat()));
        side
    }

    /// Hears a result; what comes after its last packet.
    #[track_caller]
    fn result(&mut self, payloads: &[Vec<u8>]) -> Turn {
        for (payload, number) in payloads[..payloads.len() - 1].iter().zip(1..) {
            assert_eq!(self.says(number, payload), b"");
        }
        let number = u8::try_from(payloads.len()).expect("few");
        self.hears(number, &payloads[payloads.len() - 1])
    }

    #[track_caller]
    fn variables(&mut self, variables: &[(&str, &str)]) -> Turn {
        let rows: Vec<[Option<&str>; 2]> = variables
            .iter()
            .map(|(n, v)| [Some(*n), Some(*v)])
            .collect();
        let rows: Vec<&[Option<&str>]> = rows.iter().map(|row| &row[..]).collect();
        self.result(&result_set(&["Variable_name", "Value"], &rows))
    }
}

#[track_caller]
fn answer(turn: Turn) -> Answer {
    match turn {
        Turn::Answer(answer) => answer,
        turn => panic!("{turn:?}"),
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
            let asked = asked(wanted);
            let answer = answer(Side::logged_in(&asked, "8.0.36").variables(variables));
            let expected = match wanted.is_none() || wanted == role {
                true => CheckResult::Ok,
                false => CheckResult::Standby,
            };
            assert_eq!(
                (answer.result, answer.finding.role),
                (expected, role),
                "{variables:?}"
            );
            assert_eq!(answer.goodbye, b"\x01\0\0\0\x01");
        }
    }
    let asked = asked(None);
    let answer = answer(Side::logged_in(&asked, "8.0.36").variables(&[("super_read_only", "ON")]));
    assert_eq!(answer.result, CheckResult::Protocol, "{answer:?}");
    assert_eq!(answer.goodbye, b"\x01\0\0\0\x01");
    // Numbers that are wrong, after a login.
    let mut side = Side::logged_in(&asked, "8.0.36");
    let answer = self::answer(side.talk.hear(&frame(7, b"\x02"), false));
    assert_eq!(answer.result, CheckResult::Protocol);
    assert_eq!(answer.goodbye, b"\x01\0\0\0\x01");
}

#[test]
fn a_server_is_known_by_more_than_its_uuid() {
    let asked = asked(Some(Role::Primary));
    let server = |variables: &[(&str, &str)]| {
        answer(Side::logged_in(&asked, "8.4.0").variables(variables))
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
    let asked = Asked {
        max_lag: Some(Duration::from_secs(30)),
        ..asked(None)
    };
    let question = |text: &str| frame(0, &[b"\x03", text.as_bytes()].concat());
    let say = |turn| match turn {
        Turn::Say { words, .. } => words,
        turn => panic!("{turn:?}"),
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
        let mut side = Side::logged_in(&asked, "5.5.5-10.11.19-MariaDB");
        assert_eq!(say(side.variables(&on)), question(LAG_MARIADB[0]));
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
        assert_eq!(answer.goodbye, b"\x01\0\0\0\x01");
    }
    // An old server does not know the new word.
    let mut side = Side::logged_in(&asked, "5.7.44");
    assert_eq!(say(side.variables(&on)), question(LAG[0]));
    assert_eq!(
        side.says(1, b"\xff\x28\x04#42000no such thing"),
        question(LAG[1])
    );
    let refused = side.answers(1, b"\xff\xcb\x04#42000you need REPLICATION CLIENT");
    assert_eq!(refused.result, CheckResult::Auth);
    assert_eq!(
        refused.heard,
        "replication: error 1227: \"you need REPLICATION CLIENT\"; \
         grant REPLICATION CLIENT (MariaDB: REPLICA MONITOR)"
    );
    assert_eq!(refused.finding.role, Some(Role::Replica));
    // Who is behind nobody is not asked.
    let primary = answer(Side::logged_in(&asked, "8.4.0").variables(&[("read_only", "OFF")]));
    assert_eq!(primary.result, CheckResult::Ok);
    let wrong = Asked {
        role: Some(Role::Primary),
        ..asked
    };
    let replica = answer(Side::logged_in(&wrong, "8.4.0").variables(&on));
    assert_eq!(replica.result, CheckResult::Standby);
}

#[test]
fn replicas_that_do_not_replicate() {
    let asked = Asked {
        replicating: true,
        ..asked(Some(Role::Replica))
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
            let mut side = Side::logged_in(&asked, version);
            assert!(matches!(side.variables(variables), Turn::Say { .. }));
            let answer = answer(side.result(&result_set(&names, rows)));
            let expected = match fault {
                None => CheckResult::Ok,
                Some(_) => CheckResult::NotReplicating,
            };
            assert_eq!(answer.result, expected, "{rows:?}: {}", answer.heard);
            assert_eq!(answer.finding.fault.as_deref(), *fault);
            assert_eq!(answer.goodbye, b"\x01\0\0\0\x01");
        }
    }
    let mut side = Side::logged_in(&asked, "8.4.0");
    side.variables(&[on]);
    let refused = side.answers(1, b"\xff\xcb\x04#42000Access denied");
    assert_eq!(refused.result, CheckResult::Auth);
    assert_eq!(
        refused.heard,
        "replication: error 1227: \"Access denied\"; \
         grant REPLICATION CLIENT (MariaDB: REPLICA MONITOR) or set replicating = false"
    );
}

#[test]
fn logins() {
    let asked = asked(None);
    let native = Plugin::Native.answer(PASSWORD.as_bytes(), b"abcdefghijklmnopqrst");
    let mut side = Side::new(&asked);
    let said = side.says(0, &greeting("8.0.36", "mysql_native_password", ALL));
    let end = [b"check\0\x14", &native[..], b"mysql_native_password\0"].concat();
    assert!(said.ends_with(&end), "{said:?}");
    // The account wants another one.
    let said = side.says(2, b"\xfecaching_sha2_password\0ABCDEFGHIJKLMNOPQRST\0");
    let caching = Plugin::CachingSha2.answer(PASSWORD.as_bytes(), b"ABCDEFGHIJKLMNOPQRST");
    assert_eq!(said, frame(3, &caching));
    assert_eq!(side.says(4, b"\x01\x03"), b"");
    assert_eq!(side.says(5, b"\0\0\0\x02\0\0\0")[3], 0);
    // Once, and not again and again.
    let mut side = Side::new(&asked);
    side.says(0, &greeting("8.0.36", "dialog", ALL));
    side.says(2, b"\xfemysql_native_password\0ABCDEFGHIJKLMNOPQRST\0");
    let said = side.says(4, b"\xfemysql_native_password\0ABCDEFGHIJKLMNOPQRST\0");
    assert_eq!(said, frame(5, b""));
    let answer = side.answers(6, DENIED);
    assert_eq!(
        (answer.result, &answer.heard[..]),
        (
            CheckResult::Auth,
            "login: it asks for one plugin after another"
        )
    );
    assert!(answer.goodbye.is_empty());
}

#[test]
fn the_password_itself_is_told_where_nobody_else_hears_it() {
    let clear = [PASSWORD.as_bytes(), b"\0"].concat();
    let caching = greeting("8.0.36", "caching_sha2_password", ALL);
    let plain = asked(None);
    let mut side = Side::new(&plain);
    side.says(0, &caching);
    assert_eq!(
        side.says(2, b"\x01\x04"),
        frame(3, b"\x02"),
        "asks for the key"
    );
    assert_eq!(side.says(4, b"\x01no key"), frame(5, b""));
    let answer = side.answers(6, DENIED);
    assert_eq!(
        (answer.result, &answer.heard[..]),
        (
            CheckResult::Auth,
            "login: the key of the server cannot be used"
        )
    );

    let local = Asked {
        local: true,
        ..asked(None)
    };
    let mut side = Side::new(&local);
    side.says(0, &caching);
    assert_eq!(side.says(2, b"\x01\x04"), frame(3, &clear));

    let encrypted = Asked {
        encrypted: true,
        ..asked(None)
    };
    let mut side = Side::new(&encrypted);
    let request = side.says(0, &caching);
    assert_eq!((request.len(), request[3]), (36, 1));
    assert_eq!(side.talk.hear(b"", false), Turn::Encrypt { read: 0 });
    let Turn::Say { read: 0, words } = side.talk.hear(b"", false) else {
        panic!("the login");
    };
    assert_eq!(words[3], 2);
    assert_eq!(words[4..36], request[4..], "the same beginning");
    assert_eq!(side.says(3, b"\x01\x04"), frame(4, &clear));

    // Whoever answers may ask for this one.
    let wanted = b"\xfemysql_clear_password\0";
    for verified in [true, false] {
        let encrypted = Asked {
            encrypted: true,
            verified,
            ..asked(None)
        };
        let mut side = Side::new(&encrypted);
        side.says(0, &caching);
        side.talk.hear(b"", false);
        side.talk.hear(b"", false);
        let said = if verified { &clear[..] } else { b"" };
        assert_eq!(side.says(3, wanted), frame(4, said));
    }
    let mut side = Side::new(&local);
    side.says(0, &caching);
    assert_eq!(side.says(2, wanted), frame(3, &clear));
    let mut side = Side::new(&plain);
    side.says(0, &caching);
    assert_eq!(side.says(2, wanted), frame(3, b""));
    let refused = side.answers(4, DENIED);
    assert_eq!(
        (refused.result, &refused.heard[..]),
        (
            CheckResult::Auth,
            "login: it asks for the password in the clear, which takes tls = \"verify\" or a unix socket"
        )
    );
}

#[test]
fn a_server_without_tls_is_not_told_anything() {
    let encrypted = Asked {
        encrypted: true,
        ..asked(None)
    };
    let mut side = Side::new(&encrypted);
    let without = greeting("5.7.44", "mysql_native_password", ALL & !greeting::SSL);
    let answer = side.answers(0, &without);
    assert_eq!(
        (answer.result, &answer.heard[..]),
        (CheckResult::Tls, "the server does not offer TLS")
    );
    // Nobody, and no password.
    assert!(
        answer
            .goodbye
            .ends_with(b"\0\0\0mysql_native_password\0\x01\0\0\0\x01"),
        "{:?}",
        answer.goodbye
    );
}

#[test]
fn refusals() {
    let asked = asked(None);
    for (payload, result, heard) in [
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
        let answer = Side::new(&asked).answers(0, payload);
        assert_eq!((answer.result, &answer.heard[..]), (result, heard));
    }
    for (payload, result, heard) in [
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
        let mut side = Side::new(&asked);
        side.says(0, &greeting("8.0.36", "mysql_native_password", ALL));
        let answer = side.answers(2, payload);
        assert_eq!((answer.result, &answer.heard[..]), (result, heard));
        assert!(answer.goodbye.is_empty(), "it has closed already");
    }
}

/// A server counts those that leave in the middle of a login, so it has the last word.
#[test]
fn a_login_that_cannot_be_made_is_ended_by_the_server() {
    let asked = asked(None);
    for (payload, said, heard) in [
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
            let mut side = Side::new(&asked);
            side.says(0, &greeting("8.0.36", "mysql_native_password", ALL));
            assert_eq!(side.says(2, payload), frame(3, said), "{heard}");
            side
        };
        let refused = begin().answers(4, DENIED);
        assert_eq!(
            (refused.result, &refused.heard[..]),
            (CheckResult::Auth, heard)
        );
        assert!(refused.goodbye.is_empty(), "it has closed already");
        // It may ask for more, and in the end close without a word.
        let mut side = begin();
        assert_eq!(side.says(4, b"Second password: "), frame(5, b""));
        assert_eq!(
            answer(side.talk.hear(b"", true)),
            refused,
            "whatever it says"
        );
        // Or let us in, which says nothing about the password.
        let welcome = begin().answers(4, b"\0\0\0\x02\0\0\0");
        assert_eq!(
            (welcome.result, &welcome.heard[..]),
            (CheckResult::Auth, heard)
        );
        assert_eq!(welcome.goodbye, b"\x01\0\0\0\x01");
    }
}

#[test]
fn what_is_not_mysql() {
    let asked = asked(None);
    for (bytes, part) in [
        (&b"+PONG\r\n"[..], "too long; got \"+PONG\\r\\n\""),
        (b"SSH-2.0-OpenSSH", "too long"),
        (b"\x05\0\0\x01\x0a8.0\0", "out of order"),
        (b"\x04\0\0\0\x098.0", "not version 10"),
        (b"\0\0\0\0", "an empty packet"),
    ] {
        let answer = answer(Talk::new(&asked).hear(bytes, false));
        assert_eq!(answer.result, CheckResult::Protocol);
        assert!(answer.heard.contains(part), "{}", answer.heard);
    }
}

/// From the moment it has been told, what comes back is not shown.
#[test]
fn an_echo_of_the_password_is_not_shown() {
    let asked = Asked {
        local: true,
        ..asked(None)
    };
    let mut side = Side::new(&asked);
    side.says(0, &greeting("8.0.36", "caching_sha2_password", ALL));
    let said = side.says(2, b"\x01\x04");
    assert!(said.windows(5).any(|part| part == PASSWORD.as_bytes()));
    assert_eq!(side.talk.show(&said), "10 bytes");
    let answer = side.answers(4, &said[4..]);
    assert_eq!(answer.result, CheckResult::Protocol);
    assert!(!answer.heard.contains(PASSWORD), "{}", answer.heard);
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(payloads: Vec<Vec<u8>>, version in "[a-zA-Z0-9.-]{0,9}", encrypted: bool, lags: bool, ok: bool) {
        let asked = Asked {
            max_lag: lags.then_some(Duration::from_secs(1)),
            encrypted,
            ..asked(None)
        };
        let mut talk = Talk::new(&asked);
        let begin = greeting(&version, "caching_sha2_password", ALL);
        let begin = std::iter::once(begin).chain(ok.then(|| vec![0]));
        for payload in begin.chain(payloads) {
            let number = talk.number;
            for _ in 0..3 {
                if !matches!(talk.hear(&frame(number, &payload), false), Turn::Encrypt { .. }) {
                    break;
                }
            }
        }
    }
}
