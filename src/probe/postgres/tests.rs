use super::{super::Dialogue as _, *};
use crate::plan::PasswordFrom;
use proptest::prelude::*;

const WELCOME: &[u8] = b"R\0\0\0\x08\0\0\0\0";
const READY: &[u8] = b"Z\0\0\0\x05I";

fn message(kind: u8, inside: &[u8]) -> Vec<u8> {
    let length = u32::try_from(inside.len() + 4).expect("short");
    [&[kind], &length.to_be_bytes()[..], inside].concat()
}

fn authentication(method: u32, inside: &[u8]) -> Vec<u8> {
    message(b'R', &[&method.to_be_bytes(), inside].concat())
}

fn error(code: &str, text: &str) -> Vec<u8> {
    let fields = format!("SFEHLER\0VFATAL\0C{code}\0M{text}\0\0");
    message(b'E', fields.as_bytes())
}

/// The answer to a question: a description, a row, and that it is over.
fn rows(columns: &[Option<&str>]) -> Vec<u8> {
    let mut row = u16::try_from(columns.len())
        .expect("few")
        .to_be_bytes()
        .to_vec();
    for column in columns {
        let length = column.map_or(-1, |text| i32::try_from(text.len()).expect("short"));
        row.extend_from_slice(&length.to_be_bytes());
        row.extend_from_slice(column.unwrap_or_default().as_bytes());
    }
    let parts = [
        message(b'T', b"\0\0"),
        message(b'D', &row),
        message(b'C', b"SELECT 1\0"),
        READY.to_vec(),
    ];
    parts.concat()
}

fn secret() -> Secret {
    // The only way to a secret is the one that the program takes.
    let path = std::env::temp_dir().join(format!(
        "tembuku-postgres-{}-{:?}",
        std::process::id(),
        std::thread::current().id()
    ));
    std::fs::write(&path, "xyzzy").expect("writable");
    let secret = Secret::load(&PasswordFrom::File(path.clone()));
    std::fs::remove_file(path).expect("there");
    secret.expect("a password")
}

fn settings(wanted: Option<Role>) -> PostgresCheck {
    PostgresCheck {
        wanted,
        user: Some(User {
            name: "monitor".into(),
            database: "postgres".into(),
            secret: None,
        }),
        startup: None,
        replicating: false,
        limit: LagLimit::default(),
        encrypted: false,
        local: false,
    }
}

fn with_password(wanted: Option<Role>) -> PostgresCheck {
    let mut settings = settings(wanted);
    let user = settings.user.as_mut().expect("a user");
    user.secret = Some(secret());
    settings
}

/// Plays the server: returns the messages to it, and the last step. Pieces come a byte at a time.
fn play(settings: &PostgresCheck, pieces: &[Vec<u8>]) -> (Vec<Vec<u8>>, Step) {
    let mut dialogue = settings.dialogue();
    let (mut sent, mut received) = (Vec::new(), Vec::new());
    let mut bytes = pieces.concat().into_iter();
    loop {
        match dialogue.receive(&received, false) {
            Step::Send { consumed, bytes } => {
                assert!(consumed > 0 || !bytes.is_empty(), "no end of this");
                received.drain(..consumed);
                sent.extend(Some(bytes).filter(|bytes| !bytes.is_empty()));
            }
            Step::StartTls { consumed } => {
                received.drain(..consumed);
                dialogue.encrypted(Some(vec![7; 32]));
            }
            Step::Wait => match bytes.next() {
                Some(byte) => received.push(byte),
                None => return (sent, Step::Wait),
            },
            answer @ Step::Done(_) => return (sent, answer),
        }
    }
}

fn check(settings: &PostgresCheck, pieces: &[Vec<u8>]) -> Answer {
    match play(settings, pieces).1 {
        Step::Done(answer) => answer,
        step => panic!("{step:?}"),
    }
}

const PRIMARY: [&[Option<&str>]; 2] = [
    &[Some("f")],
    &[
        Some("0000000A"),
        Some("f"),
        None,
        None,
        None,
        Some("f"),
        Some("1795960251.723727"),
        Some("5432"),
    ],
];

#[test]
fn a_login_in_all_its_length() {
    let chatter = [
        message(b'S', b"server_version\x0018.1\0"),
        message(b'N', b"SNOTICE\0VNOTICE\0C00000\0Mhello\0\0"),
        message(b'v', b"\0\x03\0\0\0\0\0\0"),
        message(b'K', b"\0\0\0\x01\0\0\0\x02"),
    ]
    .concat();
    let [role, position] = PRIMARY.map(rows);
    let pieces = [
        chatter.clone(),
        WELCOME.to_vec(),
        chatter.clone(),
        READY.to_vec(),
        chatter.clone(),
        role,
        chatter,
        position,
    ];
    let (sent, last) = play(&settings(Some(Role::Primary)), &pieces);
    let Step::Done(answer) = last else {
        panic!("{last:?}")
    };
    assert_eq!(
        (answer.result, answer.transcript.as_str()),
        (CheckResult::Ok, "primary, timeline 10")
    );
    assert_eq!(answer.finding.epoch, Some(Epoch::Timeline(10)));
    assert_eq!(answer.last_message, b"X\0\0\0\x04");
    let [hello, questions] = &sent[..] else {
        panic!("{sent:?}")
    };
    assert_eq!(hello[4..8], [0, 3, 0, 0]);
    let parameters = b"user\0monitor\0database\0postgres\0application_name\0tembuku\0\0";
    assert!(hello.ends_with(parameters), "{}", hello.escape_ascii());
    assert!(questions.starts_with(b"Q\0\0\0\x2aSELECT pg_catalog.pg_is_in_recovery()\0Q"));
}

#[test]
fn a_check_of_the_role_alone_asks_nothing_else() {
    let pieces = [WELCOME.to_vec(), READY.to_vec(), rows(&[Some("t")])];
    let answer = check(&settings(None), &pieces);
    assert_eq!(
        (answer.result, answer.transcript.as_str()),
        (CheckResult::Ok, "replica")
    );
    assert_eq!(answer.finding.role, Some(Role::Replica));
}

const IN_STEP: &str = "replica, 0 bytes and 0.0 s behind";
const BEHIND: &str = "replica, 4096 bytes and 12.2 s behind";
const ALONE: &str = "replica, receives nothing, its last transaction is 12.2 s old";

#[test]
fn roles_and_lag() {
    let (any, primary, replica) = (None, Some(Role::Primary), Some(Role::Replica));
    let seconds = |n| (Some(Duration::from_secs(n)), None);
    let bytes = |n| (None, Some(n));
    let position = |receives, behind, age| {
        let (paused, archive) = (Some("f"), Some("f"));
        [
            None,
            Some(receives),
            behind,
            age,
            paused,
            archive,
            None,
            None,
        ]
    };
    let in_step = position("t", Some("-8"), Some("3600.5"));
    let behind = position("t", Some("4096"), Some("12.25"));
    let alone = position("f", Some("0"), Some("12.25"));
    let new = position("t", None, None);
    let (ok, lagging) = (CheckResult::Ok, CheckResult::Lagging);
    let none = (None, None);
    for (wanted, limit, position, result, transcript) in [
        (primary, none, in_step, CheckResult::Standby, IN_STEP),
        (replica, none, behind, ok, BEHIND),
        (replica, seconds(13), behind, ok, BEHIND),
        (replica, seconds(12), behind, lagging, BEHIND),
        (any, seconds(12), behind, lagging, BEHIND),
        (replica, bytes(4096), behind, ok, BEHIND),
        (replica, bytes(4095), behind, lagging, BEHIND),
        // Nothing has been written for an hour.
        (replica, seconds(1), in_step, ok, IN_STEP),
        // It has replayed all that it has, and that is not all there is.
        (replica, seconds(1), alone, lagging, ALONE),
        (replica, bytes(1 << 40), alone, lagging, ALONE),
        (replica, none, alone, ok, ALONE),
        // It does not know.
        (replica, seconds(100), new, lagging, "replica"),
        (replica, bytes(100), new, lagging, "replica"),
        (replica, none, new, ok, "replica"),
    ] {
        let mut settings = settings(wanted);
        settings.limit = LagLimit {
            time: limit.0,
            bytes: limit.1,
        };
        let pieces = [
            WELCOME.to_vec(),
            READY.to_vec(),
            rows(&[Some("t")]),
            rows(&position),
        ];
        let answer = check(&settings, &pieces);
        assert_eq!(
            (answer.result, answer.transcript.as_str()),
            (result, transcript),
            "{limit:?} {position:?}"
        );
    }
    // A primary has no lag.
    let mut settings = settings(any);
    settings.limit.bytes = Some(1);
    let [role, position] = PRIMARY.map(rows);
    let pieces = [WELCOME.to_vec(), READY.to_vec(), role, position];
    assert_eq!(check(&settings, &pieces).result, CheckResult::Ok);
}

#[test]
fn a_running_server_has_a_name() {
    let [role, position] = PRIMARY.map(rows);
    let pieces = [WELCOME.to_vec(), READY.to_vec(), role, position];
    let server = check(&settings(Some(Role::Primary)), &pieces)
        .finding
        .server;
    assert_eq!(server.as_deref(), Some("5432 since 1795960251.723727"));
}

#[test]
fn a_replica_that_does_not_replicate() {
    let position = |receives, age, paused, archive| {
        let behind = Some("0").filter(|_| receives == "t");
        [
            None,
            Some(receives),
            behind,
            age,
            Some(paused),
            Some(archive),
            None,
            None,
        ]
    };
    let down = "its link to its primary is down";
    let paused = "its replay is paused";
    let age = Some("12.25");
    for (position, fault, transcript) in [
        (
            position("t", age, "f", "f"),
            None,
            "replica, 0 bytes and 0.0 s behind",
        ),
        (
            position("f", None, "f", "f"),
            Some(down),
            "replica, receives nothing",
        ),
        (
            position("f", age, "f", "f"),
            Some(down),
            "replica, receives nothing, its last transaction is 12.2 s old",
        ),
        (
            position("t", age, "t", "f"),
            Some(paused),
            "replica, 0 bytes and 0.0 s behind, its replay is paused",
        ),
        // It has no primary to receive from.
        (
            position("f", age, "f", "t"),
            None,
            "replica, restores an archive, its last transaction is 12.2 s old",
        ),
        (
            position("f", None, "t", "t"),
            Some(paused),
            "replica, restores an archive, its replay is paused",
        ),
    ] {
        let pieces = [
            WELCOME.to_vec(),
            READY.to_vec(),
            rows(&[Some("t")]),
            rows(&position),
        ];
        for (wanted, replicating, good, bad) in [
            (
                Role::Replica,
                true,
                CheckResult::Ok,
                CheckResult::NotReplicating,
            ),
            (Role::Replica, false, CheckResult::Ok, CheckResult::Ok),
            (
                Role::Primary,
                false,
                CheckResult::Standby,
                CheckResult::WrongRole,
            ),
        ] {
            let settings = PostgresCheck {
                replicating,
                ..settings(Some(wanted))
            };
            let answer = check(&settings, &pieces);
            let expected = if fault.is_some() { bad } else { good };
            assert_eq!(
                (answer.result, answer.transcript.as_str()),
                (expected, transcript)
            );
            assert_eq!(answer.finding.fault.as_deref(), fault);
        }
    }
}

/// Relatives of PostgreSQL lack some of its functions.
#[test]
fn the_role_does_not_hang_on_the_rest() {
    let refusal = [error("42883", "function does not exist"), READY.to_vec()].concat();
    let transcript = "replica, and does not report its lag: FATAL 42883: function does not exist";
    for (limit, replicating, result) in [
        (None, false, CheckResult::Ok),
        (None, true, CheckResult::Unexpected),
        (Some(1), false, CheckResult::Unexpected),
    ] {
        let mut settings = settings(Some(Role::Replica));
        settings.limit.bytes = limit;
        settings.replicating = replicating;
        let pieces = [
            WELCOME.to_vec(),
            READY.to_vec(),
            rows(&[Some("t")]),
            refusal.clone(),
        ];
        let answer = check(&settings, &pieces);
        assert_eq!(
            (answer.result, answer.transcript.as_str()),
            (result, transcript)
        );
    }
}

#[test]
fn errors_are_distinguished() {
    for (code, result) in [
        ("28P01", CheckResult::Auth),
        ("28000", CheckResult::Auth),
        ("42501", CheckResult::Auth),
        ("57P03", CheckResult::Loading),
        ("53300", CheckResult::Unexpected),
        ("3D000", CheckResult::Unexpected),
    ] {
        let answer = check(&settings(None), &[error(code, "so it is")]);
        assert_eq!(answer.result, result, "{code}");
        assert_eq!(answer.transcript, format!("FATAL {code}: so it is"));
    }
}

/// What is answered to the server's way of asking, by its first byte and its end.
#[test]
fn passwords() {
    let mut covered = with_password(None);
    covered.local = true;
    let hash = b"md5cbc01ac3ba0cec0d9a4a1f0e4c6a0f5b\0".len();
    let (sent, _) = play(&covered, &[authentication(3, b"")]);
    assert_eq!(sent[1], message(b'p', b"xyzzy\0"));
    let (sent, _) = play(&with_password(None), &[authentication(5, b"salt")]);
    assert_eq!((sent[1][0], sent[1].len()), (b'p', 5 + hash));
    assert!(sent[1][5..].starts_with(b"md5"));
    for (method, inside) in [
        (3, &b""[..]),
        (2, b""),
        (7, b""),
        (9, b""),
        (6, b""),
        (99, b""),
        (10, b"SCRAM-SHA-1\0\0"),
        // Only inside TLS.
        (10, b"SCRAM-SHA-256-PLUS\0\0"),
    ] {
        let answer = check(&with_password(None), &[authentication(method, inside)]);
        assert_eq!(
            answer.result,
            CheckResult::Auth,
            "{method}: {}",
            answer.transcript
        );
    }
    for pieces in [
        authentication(5, b"sal"),
        authentication(11, b"r=x"),
        authentication(12, b"v=x"),
        message(b'R', b"\0"),
        [WELCOME, &authentication(3, b"")].concat(),
        READY.to_vec(),
        rows(&[Some("t")]),
    ] {
        let answer = check(&with_password(None), std::slice::from_ref(&pieces));
        assert_eq!(
            answer.result,
            CheckResult::Protocol,
            "{}",
            pieces.escape_ascii()
        );
    }
}

/// Bound to the certificate where that is offered, and otherwise as libpq does it.
#[test]
fn the_login_is_bound_to_the_certificate() {
    let both = authentication(10, b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0");
    let one = authentication(10, b"SCRAM-SHA-256\0\0");
    for (encrypted, offer, begins) in [
        (
            true,
            &both,
            &b"SCRAM-SHA-256-PLUS\0\0\0\0\x35p=tls-server-end-point,,n=,r="[..],
        ),
        (true, &one, b"SCRAM-SHA-256\0\0\0\0\x20y,,n=,r="),
        (false, &both, b"SCRAM-SHA-256\0\0\0\0\x20n,,n=,r="),
        (false, &one, b"SCRAM-SHA-256\0\0\0\0\x20n,,n=,r="),
    ] {
        let mut settings = with_password(None);
        settings.encrypted = encrypted;
        let mut pieces = vec![offer.clone()];
        if encrypted {
            pieces.insert(0, b"S".to_vec());
        }
        let (sent, _) = play(&settings, &pieces);
        let last = sent.last().expect("an answer");
        assert!(last[5..].starts_with(begins), "{}", last.escape_ascii());
    }
}

/// A server that does not know the password cannot pretend to.
#[test]
fn a_server_has_to_prove_itself() {
    let settings = with_password(None);
    let mut dialogue = settings.dialogue();
    let mut receive = |bytes: &[u8]| dialogue.receive(bytes, false);
    assert!(matches!(receive(b""), Step::Send { .. }));
    let offer = authentication(10, b"SCRAM-SHA-256\0\0");
    let Step::Send { bytes, .. } = receive(&offer) else {
        panic!("no answer")
    };
    let (_, nonce) = String::from_utf8_lossy(&bytes)
        .split_once("r=")
        .map(|(a, b)| (a.to_owned(), b.to_owned()))
        .expect("a nonce");
    let first = format!("r={nonce}more,s=c2FsdA==,i=4096");
    let Step::Send { bytes, .. } = receive(&authentication(11, first.as_bytes())) else {
        panic!("no answer")
    };
    assert!(bytes.starts_with(b"p") && !bytes.windows(5).any(|part| part == b"xyzzy"));
    let wrong = authentication(12, b"v=rmF9pqV8S7suAoZWja4dJRkFsKQ=");
    let Step::Done(answer) = receive(&wrong) else {
        panic!("no answer")
    };
    assert_eq!(answer.result, CheckResult::Auth);
    assert_eq!(
        answer.transcript,
        "it cannot prove that it knows the password"
    );
    // Nor will it keep us busy.
    for (asks, result, transcript) in [
        (
            "100001",
            CheckResult::Auth,
            "it asks for 100001 iterations of SCRAM, more than the 100000 that are done here",
        ),
        (
            "4294967296",
            CheckResult::Auth,
            "it asks for 4294967296 iterations of SCRAM, more than the 100000 that are done here",
        ),
        (
            "x",
            CheckResult::Protocol,
            "its half of SCRAM makes no sense",
        ),
    ] {
        let mut dialogue = settings.dialogue();
        dialogue.receive(b"", false);
        let Step::Send { bytes, .. } = dialogue.receive(&offer, false) else {
            panic!("no answer")
        };
        let at = bytes.windows(2).position(|part| part == b"r=");
        let nonce = String::from_utf8_lossy(&bytes[at.expect("a nonce")..]).into_owned();
        let first = authentication(11, format!("{nonce}more,s=c2FsdA==,i={asks}").as_bytes());
        let Step::Done(answer) = dialogue.receive(&first, false) else {
            panic!("no answer")
        };
        assert_eq!(
            (answer.result, answer.transcript.as_str()),
            (result, transcript)
        );
    }
    // Nor can it leave that out.
    for pieces in [
        vec![offer.clone(), WELCOME.to_vec()],
        vec![offer, authentication(11, b"r=else,s=c2FsdA==,i=4096")],
    ] {
        let answer = self::check(&settings, &pieces);
        assert!(matches!(
            answer.result,
            CheckResult::Auth | CheckResult::Protocol
        ));
    }
}

#[test]
fn no_answer_repeats_the_password() {
    let answer = check(&with_password(None), &[error("28P01", "not xyzzy, please")]);
    assert_eq!(answer.transcript, "ERROR 28P01: (not shown)");
    let echo = check(&with_password(None), &[b"Rxyzzyxyzzy".to_vec()]);
    assert!(!echo.transcript.contains("xyz"), "{}", echo.transcript);
    let settings = with_password(None);
    assert_eq!(settings.dialogue().show(b"xyzzy"), "5 bytes");
}

#[test]
fn without_a_login_any_way_of_asking_for_one_is_alive() {
    let named = Some(("monitor".to_owned(), "app".to_owned()));
    let scram = authentication(10, b"SCRAM-SHA-256\0\0");
    let chatter = message(b'N', b"SNOTICE\0VNOTICE\0C00000\0Mhello\0\0");
    let (alive, loading) = (CheckResult::Ok, CheckResult::Loading);
    let asks = "it asks for a password";
    for (bytes, unnamed, of_user, transcript) in [
        (WELCOME.to_vec(), alive, alive, "it lets in"),
        (authentication(3, b""), alive, alive, asks),
        (authentication(5, b"salt"), alive, alive, asks),
        (scram.clone(), alive, alive, asks),
        ([chatter, scram].concat(), alive, alive, asks),
        (
            error("57P03", "starting up"),
            loading,
            loading,
            "FATAL 57P03: starting up",
        ),
        (
            error("28000", "no entry"),
            alive,
            CheckResult::Auth,
            "FATAL 28000: no entry",
        ),
        (
            error("3D000", "none"),
            alive,
            CheckResult::Unexpected,
            "FATAL 3D000: none",
        ),
        (
            error("08P01", "none"),
            alive,
            CheckResult::Unexpected,
            "FATAL 08P01: none",
        ),
    ] {
        let bytes = std::slice::from_ref(&bytes);
        for (startup, result) in [(None, unnamed), (named.clone(), of_user)] {
            let (user, database) = match startup {
                None => ("postgres", "postgres"),
                Some(_) => ("monitor", "app"),
            };
            let (sent, last) = play(
                &PostgresCheck {
                    startup,
                    ..looks_in(false)
                },
                bytes,
            );
            let text = format!("user\0{user}\0database\0{database}\0");
            assert!(
                String::from_utf8_lossy(&sent[0]).contains(&text),
                "{sent:?}"
            );
            let Step::Done(answer) = last else {
                panic!("{last:?}")
            };
            assert_eq!(
                (answer.result, answer.transcript.as_str()),
                (result, transcript)
            );
            // A client that was asked for a password may leave: all else is an error in the log.
            assert_eq!(answer.last_message.is_empty(), transcript != "it lets in");
        }
    }
}

#[test]
fn without_a_login_other_answers_are_failures() {
    for bytes in [
        error("53300", "too many"),
        error("57P01", "stopping"),
        error("XX000", "broken"),
        b"Ecould not fork\n\0".to_vec(),
    ] {
        let answer = check(&looks_in(false), std::slice::from_ref(&bytes));
        assert_eq!(
            answer.result,
            CheckResult::Unexpected,
            "{}",
            answer.transcript
        );
    }
    for bytes in [&b"+OK\r\n"[..], b"Z\0\0\0\x05I", b"R\0\0\0\x06\0\0"] {
        let answer = check(&looks_in(false), &[bytes.to_vec()]);
        assert_eq!(
            answer.result,
            CheckResult::Protocol,
            "{}",
            answer.transcript
        );
    }
    let request = b"\0\0\0\x08\x04\xd2\x16\x2f";
    let (sent, _) = play(&looks_in(true), &[b"S".to_vec(), WELCOME.to_vec()]);
    assert_eq!((sent.len(), &sent[0][..]), (2, &request[..]));
    let answer = check(&looks_in(true), &[b"N".to_vec()]);
    assert_eq!(answer.result, CheckResult::Tls);
}

fn looks_in(encrypted: bool) -> PostgresCheck {
    let mut settings = settings(None);
    (settings.user, settings.encrypted) = (None, encrypted);
    settings
}

/// A greeting of MySQL that is 78 bytes long begins with N, too.
#[test]
fn one_byte_and_more_is_not_the_answer_about_tls() {
    for encrypted in [false, true] {
        for bytes in [&b"N\0\0\0\x0a5.7.44-log\0"[..], b"NOTICE what is this?\r\n"] {
            let settings = looks_in(encrypted);
            let mut dialogue = settings.dialogue();
            assert!(matches!(dialogue.receive(b"", false), Step::Send { .. }));
            let Step::Done(answer) = dialogue.receive(bytes, false) else {
                panic!("no answer")
            };
            assert_eq!(
                answer.result,
                CheckResult::Protocol,
                "{}",
                answer.transcript
            );
        }
    }
}

#[test]
fn errors_of_the_old_protocol_are_shown() {
    let text = b"Ecould not fork new process\n\0".to_vec();
    let answer = check(&settings(None), std::slice::from_ref(&text));
    assert_eq!(answer.result, CheckResult::Unexpected);
    assert_eq!(answer.transcript, "ERROR: could not fork new process");
    // Only at the beginning is it one.
    for first in [WELCOME, b"A\0\0\0\x04"] {
        let late = check(&settings(None), &[first.to_vec(), text.clone()]);
        assert_eq!(late.result, CheckResult::Protocol);
    }
    let echo = check(&with_password(None), &[b"Enot xyzzy, please\n\0".to_vec()]);
    assert_eq!(echo.transcript, "ERROR: (not shown)");
}

#[test]
fn long_notices_are_not_read() {
    let notice = message(b'N', &[b'x'; 30_000]);
    let setting = message(b'S', &[b'x'; 20_000]);
    let pieces = [
        notice,
        WELCOME.to_vec(),
        setting,
        READY.to_vec(),
        rows(&[Some("f")]),
    ];
    let answer = check(&settings(None), &pieces);
    assert_eq!(answer.result, CheckResult::Ok, "{}", answer.transcript);
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(
        bytes: Vec<u8>,
        before in 0usize..5,
        kind in prop::sample::select(b"RSNEZDTCKv".to_vec()),
        method in 0u8..14,
    ) {
        let mut settings = with_password(Some(Role::Primary));
        settings.local = true;
        let [role, position] = PRIMARY.map(rows);
        let all = [WELCOME.to_vec(), READY.to_vec(), role, position];
        let scram = authentication(10, b"SCRAM-SHA-256\0\0");
        for next in [
            bytes.clone(),
            message(kind, &bytes),
            authentication(method.into(), &bytes),
            [scram, authentication(method.into(), &bytes)].concat(),
        ] {
            let mut pieces = all[..before.min(all.len())].to_vec();
            pieces.push(next);
            let _ = play(&settings, &pieces);
        }
    }
}
