//! How checks log in: to MariaDB, and to a server that does as MySQL 8 is documented to.

use crate::{
    checks_mysql::{CHECK, setup},
    harness::{
        certs::Authority,
        mariadb::MariaDb,
        mysql::{self, NONCE, greeting, is_left_politely, tell_role},
        ports,
        proc::{command, run_ok},
        secs,
        server::Server,
        temp::TempDir,
    },
};
use rustls::{
    ServerConfig, ServerConnection, StreamOwned,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use sha2::{Digest, Sha256};
use std::{
    io::{Read, Write},
    net::TcpStream,
    sync::{Arc, Mutex, mpsc},
};

const SECRET: &str = "xyzzy-plugh-4711";

/// A folder with the password in a file, and the keys that name it.
fn password(text: &str) -> (TempDir, String) {
    let dir = TempDir::new();
    let file = dir.write("password", &format!("{text}\n"));
    let keys = format!(
        "kind = \"mysql\"\nuser = \"known\"\npassword_file = \"{}\"",
        file.display()
    );
    (dir, keys)
}

#[test]
fn mariadb_accepts_known_users() {
    let authority = Authority::new("db-authority");
    let stranger = Authority::new("another-authority");
    let certificate = authority.issue("db", "DNS:db.example,IP:127.0.0.1", 2);
    let mut server = MariaDb::start_with(
        ports::free_addr(),
        &[
            &format!("--ssl-ca={}", authority.file().display()),
            &format!("--ssl-cert={}", certificate.certificate.display()),
            &format!("--ssl-key={}", certificate.key.display()),
        ],
    );
    server.sql(&format!(
        "{CHECK}; CREATE USER 'known'@'%' IDENTIFIED BY '{SECRET}'; \
         CREATE USER 'careful'@'%' IDENTIFIED BY '{SECRET}' REQUIRE SSL; CREATE USER 'locked'@'%' \
         ACCOUNT LOCK"
    ));
    let backend = server.addr.to_string();
    let (_dir, known) = password(SECRET);
    let (_other, wrong) = password("something-else");
    let careful = known.replace("known", "careful");
    let tls = |ca: &Authority, name: &str| {
        format!(
            "tls = \"verify\"\ntls_ca = \"{}\"\n{name}",
            ca.file().display()
        )
    };
    let denied = "login: error 1045: \"Access denied for user ";
    for (check, result, expected) in [
        (
            "kind = \"mysql\"\nuser = \"check\"",
            "ok",
            "read_only is off",
        ),
        (&known, "ok", "read_only is off"),
        (&wrong, "auth", denied),
        ("kind = \"mysql\"\nuser = \"nobody\"", "auth", denied),
        (
            "kind = \"mysql\"\nuser = \"locked\"",
            "auth",
            "login: error 4151: ",
        ),
        (&careful, "auth", denied),
        (
            &format!("{careful}\ntls = \"require\""),
            "ok",
            "read_only is off",
        ),
        (
            &format!("{careful}\n{}", tls(&authority, "")),
            "ok",
            "read_only is off",
        ),
        (
            &format!("{known}\n{}", tls(&authority, "tls_name = \"db.example\"")),
            "ok",
            "read_only is off",
        ),
        (
            &format!(
                "{known}\n{}",
                tls(&authority, "tls_name = \"other.example\"")
            ),
            "tls",
            "beginning TLS: ",
        ),
        (
            &format!("{known}\n{}", tls(&stranger, "")),
            "tls",
            "beginning TLS: ",
        ),
    ] {
        let setup = setup(&[&backend], "", check);
        let saw = setup.wait_result(&backend, result);
        println!("{result}: {saw}");
        assert!(saw.starts_with(expected), "{check}: {saw}");
    }
    for check in [&known, &wrong] {
        let setup = setup(&[&backend], "", &format!("{check}\ntls = \"require\""));
        setup.wait_result(&backend, if *check == known { "ok" } else { "auth" });
        setup.tembuku.assert_not_shown(&[SECRET, "something-else"]);
    }
    let unix = format!("unix:{}", server.socket().display());
    setup(&[&unix], "", &known).wait_result(&unix, "ok");

    let setup = setup(&[&backend], "", &known);
    setup.wait_state(&backend, "up");
    server.proc.kill();
    setup.wait_state(&backend, "down");
    assert_eq!(
        setup.wait_result(&backend, "refused"),
        "connecting: Connection refused"
    );
}

/// A server that sends back what it received, as the message of an error: once that contains the
/// password, nothing is shown.
#[test]
fn a_password_that_comes_back_is_not_shown() {
    let dir = TempDir::new();
    let socket = dir.file("sock");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let echo = move || -> std::io::Result<()> {
        loop {
            let (mut stream, _) = listener.accept()?;
            mysql::write(&mut stream, 0, &greeting("caching_sha2_password", false))?;
            mysql::read(&mut stream)?;
            mysql::write(&mut stream, 2, b"\x01\x04")?;
            let (_, secret) = mysql::read(&mut stream)?;
            assert_eq!(secret, [SECRET.as_bytes(), b"\0"].concat());
            mysql::write(
                &mut stream,
                4,
                &[b"\xff\x15\x04#28000", &secret[..]].concat(),
            )?;
        }
    };
    std::thread::spawn(echo);
    let backend = format!("unix:{}", socket.display());
    let (_dir, known) = password(SECRET);
    let setup = setup(&[&backend], "", &known);
    assert_eq!(setup.wait_result(&backend, "auth"), "login: error 1045");
    setup.tembuku.assert_not_shown(&[SECRET, "something-else"]);
}

/// The proof of a password that does not reveal it, as the documentation of MySQL describes it.
fn proof(password: &[u8]) -> Vec<u8> {
    let hash = Sha256::digest(password);
    let twice = Sha256::digest(hash);
    let mixed = Sha256::digest([&twice[..], NONCE].concat());
    hash.iter().zip(mixed).map(|(a, b)| a ^ b).collect()
}

/// The message to a server that has not cached the password, and whether QUIT followed.
type Received = mpsc::Receiver<(Vec<u8>, bool)>;

/// A server of which `tail` is what comes after the login packet; what that received is sent to the
/// test.
fn server(
    offers_tls: bool,
    inside: impl Fn(TcpStream) -> Box<dyn Stream> + Send + Sync + 'static,
    tail: impl Fn(&mut dyn Stream, u8) -> std::io::Result<Vec<u8>> + Send + Sync + 'static,
) -> (Server, Received) {
    let (sender, received) = mpsc::channel();
    let sender = Mutex::new(sender);
    let server = Server::start(move |mut stream| {
        let mut talk = || -> std::io::Result<(Vec<u8>, bool)> {
            mysql::write(
                &mut stream,
                0,
                &greeting("caching_sha2_password", offers_tls),
            )?;
            if offers_tls {
                let (number, request) = mysql::read(&mut stream)?;
                assert_eq!((number, request.len()), (1, 32), "a request for TLS");
            }
            let mut stream = inside(stream.try_clone()?);
            let (number, login) = mysql::read(&mut stream)?;
            let proof = [
                b"known\0\x20",
                &proof(SECRET.as_bytes())[..],
                b"caching_sha2_password\0",
            ]
            .concat();
            assert!(login.ends_with(&proof), "{login:?}");
            let secret = tail(&mut *stream, number + 1)?;
            tell_role(&mut stream)?;
            Ok((secret, is_left_politely(&mut stream)))
        };
        if let Ok(result) = talk() {
            let _ = sender.lock().unwrap().send(result);
        }
    });
    (server, received)
}

trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

fn plain(stream: TcpStream) -> Box<dyn Stream> {
    Box::new(stream)
}

#[track_caller]
fn assert_received(server: &Server, received: &Received, keys: &str, expected: &[u8]) {
    let backend = server.addr.to_string();
    let (_dir, known) = password(SECRET);
    let setup = setup(
        &[&backend],
        "",
        &format!("{known}\nrole = \"primary\"\n{keys}"),
    );
    let (secret, politely) = received.recv_timeout(secs(10)).unwrap();
    assert_eq!(secret, expected);
    assert!(politely);
    setup.wait_state(&backend, "up");
    assert_eq!(setup.wait_result(&backend, "ok"), "read_only is off");
}

#[test]
fn a_cached_password_is_not_sent_again() {
    let (server, received) = server(false, plain, |stream, number| {
        mysql::write(stream, number, b"\x01\x03")?;
        mysql::write(stream, number + 1, mysql::OK)?;
        Ok(Vec::new())
    });
    assert_received(&server, &received, "", b"");
}

#[test]
fn without_tls_the_password_is_sealed_with_the_key_of_the_server() {
    let dir = TempDir::new();
    for line in [
        "openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out key.pem",
        "openssl pkey -in key.pem -pubout -out public.pem",
    ] {
        let mut make = command(line);
        make.current_dir(dir.path());
        run_ok(secs(20), make);
    }
    let public = std::fs::read(dir.file("public.pem")).unwrap();
    let (server, received) = server(false, plain, move |stream, number| {
        mysql::write(stream, number, b"\x01\x04")?;
        assert_eq!(
            mysql::read(stream)?,
            (number + 1, vec![2]),
            "asks for the key"
        );
        mysql::write(stream, number + 2, &[b"\x01", &public[..]].concat())?;
        let (_, sealed) = mysql::read(stream)?;
        std::fs::write(dir.file("sealed"), sealed).unwrap();
        let mut open = command(
            "openssl pkeyutl -decrypt -inkey key.pem -pkeyopt rsa_padding_mode:oaep -in sealed \
             -out text",
        );
        open.current_dir(dir.path());
        run_ok(secs(20), open);
        let text = std::fs::read(dir.file("text")).unwrap();
        let text = text
            .iter()
            .zip(NONCE.iter().cycle())
            .map(|(a, b)| a ^ b)
            .collect();
        mysql::write(stream, number + 4, mysql::OK)?;
        Ok(text)
    });
    assert_received(&server, &received, "", &[SECRET.as_bytes(), b"\0"].concat());
}

#[test]
fn inside_tls_the_password_is_sent() {
    let authority = Authority::new("db-authority");
    let certificate = authority.issue("db", "IP:127.0.0.1", 2);
    let chain = vec![CertificateDer::from_pem_file(&certificate.certificate).unwrap()];
    let key = PrivateKeyDer::from_pem_file(&certificate.key).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let config = Arc::new(config);
    let inside = move |stream| -> Box<dyn Stream> {
        let connection = ServerConnection::new(config.clone()).unwrap();
        Box::new(StreamOwned::new(connection, stream))
    };
    let (server, received) = server(true, inside, |stream, number| {
        mysql::write(stream, number, b"\x01\x04")?;
        let (_, secret) = mysql::read(stream)?;
        mysql::write(stream, number + 2, mysql::OK)?;
        Ok(secret)
    });
    let tls = format!(
        "tls = \"verify\"\ntls_ca = \"{}\"",
        authority.file().display()
    );
    assert_received(
        &server,
        &received,
        &tls,
        &[SECRET.as_bytes(), b"\0"].concat(),
    );
}
