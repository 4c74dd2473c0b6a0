//! The status page in a browser: it is refreshed without being loaded again, and nothing that a
//! server sends becomes markup.
//!
//! With `TEMBUKU_TEST_SCREENSHOTS=FOLDER` these tests write the pictures of `docs/status-page.md`
//! there.

use crate::harness::{
    chromium::Chromium,
    http, millis, net, ports,
    programs::{Redis, call},
    secs,
    server::{Server, listener_before, named},
    tembuku::{Tembuku, cli},
    temp::TempDir,
    wait_until,
};
use crate::upgrade::Succession;
use rustix::process::Signal;
use serde_json::Value;
use std::{
    io::Write as _,
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    thread,
    time::Instant,
};

fn screenshot(name: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("TEMBUKU_TEST_SCREENSHOTS")?;
    Some(PathBuf::from(folder).join(name))
}

/// The row of a backend or listener whose name contains this.
fn row(name: &str) -> String {
    format!(
        "[...document.querySelectorAll('#live tbody tr')].find(r => r.innerText.includes('{name}'))"
    )
}

fn has_state(name: &str, state: &str) -> String {
    format!("!!{}?.querySelector('td.state > span.{state}')", row(name))
}

/// The names of the rows of backends, in their order.
const SHOWN: &str = "[...document.querySelectorAll('#backends tr')]\
    .map(r => r.cells[0].querySelector('span').textContent).join()";

/// As by hand.
fn set(browser: &mut Chromium, id: &str, property: &str, value: Value) {
    browser.evaluate(&setting(id, property, &value));
}

fn setting(id: &str, property: &str, value: &Value) -> String {
    format!(
        "(e => {{ e.{property} = {value}; e.dispatchEvent(new Event('input')); }})\
         (document.getElementById('{id}'))"
    )
}

/// Also of nothing that was refused by the policy.
#[track_caller]
fn assert_no_complaint(browser: &mut Chromium) {
    let complaints = browser.complaints();
    assert!(complaints.is_empty(), "{complaints:#?}");
}

#[test]
fn a_fail_over_is_seen_without_loading_the_page_again() {
    let mut primary = Redis::start(ports::free_addr());
    let replica = Redis::start_with(
        ports::free_addr(),
        &["--replicaof", "127.0.0.1", &primary.addr.port().to_string()],
    );
    let front = ports::free_addr();
    let tembuku = Tembuku::start(&format!(
        "[admin]\nsocket = \"{{dir}}/admin.sock\"\n\
         [listeners.cache]\nbind = \"{front}\"\nupstream = \"redis\"\n\
         [upstreams.redis]\non_down = \"close\"\nbackends = [\"{}\", \"{}\"]\n\
         [upstreams.redis.check]\nkind = \"redis\"\nrole = \"primary\"\ninterval = \"200ms\"\n\
         timeout = \"1s\"\nrise = 1\nfall = 2\n",
        primary.addr, replica.addr
    ));
    let (old, new) = (primary.addr.to_string(), replica.addr.to_string());
    wait_until("the replica has synced", secs(20), || {
        call(replica.addr, "ROLE").is_ok() && {
            let status = tembuku.get("/api/v1/status").body;
            status.contains("\"standby\"") && status.contains("\"up\"")
        }
    });
    let mut client = net::connect(front).unwrap();
    client.write_all(b"SET key 1\r\n").unwrap();
    assert_eq!(net::read_line(&mut client).unwrap(), "+OK\r");

    let mut browser = Chromium::start();
    browser.open(&format!("http://{}/", tembuku.admin));
    browser.wait("document.getElementById('live')?.hidden === false");
    browser.evaluate("window.sameDocument = true");
    browser.wait(&has_state(&old, "up"));
    browser.wait(&has_state(&new, "standby"));
    // The script has taken the place of what is there without it.
    assert_eq!(
        browser.evaluate("document.getElementById('plain').hidden"),
        true
    );
    let transcript = format!(
        "{}.querySelector('pre').textContent.includes('ROLE: ')",
        row(&old)
    );
    browser.wait(&transcript);
    // A sample of the history is drawn; the session of the client is in it.
    browser.wait(&format!(
        "{}.querySelector('path').getAttribute('d')?.startsWith('M')",
        row(&old)
    ));

    if screenshot("").is_some() {
        make_traffic(front);
    }
    primary.proc.signal(Signal::KILL);
    assert!(primary.proc.wait(secs(5)).is_some());
    browser.wait(&has_state(&old, "down"));
    browser.wait("document.querySelector('#upstreams li')?.className === 'failed'");
    assert_eq!(call(replica.addr, "REPLICAOF NO ONE").unwrap(), "+OK");
    browser.wait(&has_state(&new, "up"));
    let mut next = net::connect(front).unwrap();
    next.write_all(b"SET key 2\r\n").unwrap();
    assert_eq!(net::read_line(&mut next).unwrap(), "+OK\r");
    // The journal tells what happened, how long it took, and where the sessions went.
    let journal = "document.getElementById('journal').innerText";
    browser.wait(&format!(
        "{journal}.includes('{old}') && {journal}.includes('1 session was on it') && \
         {journal}.includes('the last ended after') && \
         {journal}.includes('the next session went to {new} after')"
    ));
    assert_eq!(browser.evaluate("window.sameDocument"), true);
    if let Some(path) = screenshot("status-page.png") {
        take_pictures(&mut browser, &path);
    }

    try_controls(&mut browser, &old, &new);
    tembuku.write("no configuration");
    tembuku.proc.signal(Signal::HUP);
    browser.wait(
        "[...document.querySelectorAll('#journal li.bad')].some(l => l.innerText.includes('reload'))",
    );

    // What an operator has set, and the ages of sessions.
    let socket = tembuku.dir.file("admin.sock");
    let target = format!("redis/{new}");
    let output = cli(&["weight", &target, "7", "--socket", socket.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0));
    browser.wait(&format!(
        "{}.innerText.includes('weight 7 by operator, 1 in the file')",
        row(&new)
    ));
    browser.evaluate("document.querySelector('#ages summary').click()");
    browser.wait(&format!(
        "document.getElementById('oldest').innerText.includes('redis/{new}')"
    ));
    assert_no_complaint(&mut browser);

    // It goes on by itself after the process has been away.
    let Tembuku { proc, .. } = &tembuku;
    proc.signal(Signal::STOP);
    browser.evaluate("document.getElementById('filter').value = ''");
    proc.signal(Signal::CONT);
    browser.wait("document.getElementById('alarm').innerText === ''");
}

/// The filter, the order, and what is not well, which is `old`.
fn try_controls(browser: &mut Chromium, old: &str, new: &str) {
    let shows = |rows: &str| format!("{SHOWN} === '{rows}'");
    set(browser, "filter", "value", new.into());
    browser.wait(&shows(&format!("redis/{new}")));
    set(browser, "filter", "value", "".into());
    set(browser, "unwell", "checked", true.into());
    browser.wait(&shows(&format!("redis/{old}")));
    set(browser, "unwell", "checked", false.into());
    set(browser, "sort", "value", "sessions".into());
    browser.wait(&shows(&format!("redis/{new},redis/{old}")));
    set(browser, "sort", "value", "file".into());
    browser.wait(&shows(&format!("redis/{old},redis/{new}")));
}

/// Something to see on a picture: a minute of clients, sometimes more and sometimes fewer.
fn make_traffic(front: SocketAddr) {
    for n in 0..600_u32 {
        let value = "x".repeat(20 + (n % 150) as usize * 10);
        for _ in 0..1 + n / 40 % 5 {
            let mut client = net::connect(front).unwrap();
            client
                .write_all(format!("SET key {value}\r\n").as_bytes())
                .unwrap();
            assert_eq!(net::read_line(&mut client).unwrap(), "+OK\r");
        }
        thread::sleep(millis(100));
    }
}

fn take_pictures(browser: &mut Chromium, path: &std::path::Path) {
    browser.photograph(path, 1200, 760, false);
    browser.photograph(
        &path.with_file_name("status-page-dark.png"),
        1200,
        760,
        true,
    );
    browser.photograph(
        &path.with_file_name("status-page-phone.png"),
        390,
        760,
        false,
    );
    browser.set_size(1200, 900);
}

/// Answers with markup, on a socket whose path is some as well.
#[test]
fn nothing_that_a_server_sends_becomes_markup() {
    const EVIL: &str =
        "<img src=x onerror=\"window.broken=1\"><script>window.broken=1</script>'\"&amp;";
    let server = Server::start(|mut stream| {
        let _ = stream.write_all(format!("{EVIL}\r\n").as_bytes());
    });
    let front = ports::free_addr();
    let tembuku = Tembuku::start(&format!(
        "[listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\n\
         [upstreams.u]\n\
         backends = [\"{}\", \"unix:{{dir}}/<script>window.broken=1<\\u002fscript><b>\"]\n\
         [upstreams.u.check]\nkind = \"send_expect\"\nexpect = \"never\"\ninterval = \"200ms\"\n\
         rise = 1\nfall = 1\n",
        server.addr
    ));
    let mut browser = Chromium::start();
    browser.open(&format!("http://{}/", tembuku.admin));
    browser.wait("document.getElementById('live')?.hidden === false");
    browser.wait(&has_state(&server.addr.to_string(), "down"));
    browser.wait("document.querySelector('#backends pre').textContent.includes('onerror=')");
    browser.wait("document.getElementById('journal').innerText.includes('onerror=')");
    browser.wait("document.getElementById('backends').innerText.includes('<b>')");
    let marks = "document.querySelectorAll('img, b, script').length";
    assert_eq!(
        browser.evaluate(marks),
        1,
        "its own script and nothing else"
    );
    assert_eq!(browser.evaluate("typeof window.broken"), "undefined");
    assert_no_complaint(&mut browser);
}

/// While it has sessions; the page goes on with the new process without being loaded again.
#[test]
fn the_process_before_an_upgrade_is_shown() {
    let servers = named(1);
    let front = ports::free_addr();
    let mut succession = Succession::start(&format!(
        "[process]\nhandover = \"listeners\"\n\
         [listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\n\
         [upstreams.u]\nbackends = [\"{}\"]\n",
        servers[0].addr
    ));
    let (client, _) = net::session(front).unwrap();
    let mut browser = Chromium::start();
    browser.open(&format!("http://{}/", succession.first.admin));
    browser.wait("document.getElementById('live')?.hidden === false");
    browser.evaluate("window.sameDocument = true");
    let before = succession.current;
    succession.upgrade();
    let previous = "document.getElementById('previous').innerText";
    browser.wait(&format!(
        "{previous}.includes('pid {before}, drains 1 connection and 0 flows, since')"
    ));
    drop(client);
    browser.wait(&format!("{previous} === ''"));
    assert_eq!(browser.evaluate("window.sameDocument"), true);
}

#[test]
fn without_its_script_the_page_is_loaded_again() {
    let servers = named(1);
    let front = ports::free_addr();
    let tembuku = Tembuku::start(&listener_before(&servers, front, ""));
    let mut browser = Chromium::start();
    browser.call(
        "Emulation.setScriptExecutionDisabled",
        serde_json::json!({ "value": true }),
    );
    browser.open(&format!("http://{}/", tembuku.admin));
    let is_shown = "document.getElementById('plain') !== null \
                    && getComputedStyle(document.getElementById('plain')).display !== 'none' \
                    && getComputedStyle(document.getElementById('live')).display === 'none'";
    browser.wait(is_shown);
    browser.evaluate("window.sameDocument = true");
    let page = "document.getElementById('plain')?.innerText.includes";
    let address = servers[0].addr;
    browser.wait(&format!("{page}('{address}')"));
    assert_eq!(net::ask(front).unwrap(), "b1");
    browser.wait(
        "document.querySelector('#plain table tr:nth-child(2) td:nth-child(6)')?.innerText === '1'",
    );
    assert_eq!(browser.evaluate("typeof window.sameDocument"), "undefined");
}

/// Connects are accepted at every address of the loopback network; returns the port.
fn accept_everywhere() -> u16 {
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || listener.incoming().for_each(drop));
    port
}

const COUNT: usize = 1_000;
const DEAD: usize = 10;

/// A line for each; those on the port `closed` are dead.
fn addresses(open: u16, closed: u16) -> String {
    let address = |n: usize| {
        let is_dead = n % (COUNT / DEAD) == 50;
        let port = if is_dead { closed } else { open };
        format!("127.1.{}.{}:{port}\n", n / 250, n % 250 + 1)
    };
    (0..COUNT).map(address).collect()
}

/// Another filter, order or choice asks at once, and what it asks for is soon shown. On a machine
/// that is busy with other tests one may be late, but not each time.
fn measure_controls(browser: &mut Chromium, open: u16, closed: u16) {
    const TRIES: usize = 5;
    let one = "web/127.1.3.7:";
    let shows = |count: usize| format!("{SHOWN}.split(',').length === {count}");
    let sort = browser.evaluate("document.getElementById('sort').value");
    let first = format!("{SHOWN}.split(',')[0].endsWith(':{open}')");
    let controls: [(_, _, Value, _); 5] = [
        (
            "filter",
            "value",
            one.into(),
            format!("{SHOWN} === '{one}{open}'"),
        ),
        ("filter", "value", "".into(), shows(100)),
        (
            "sort",
            "value",
            "state".into(),
            format!("{SHOWN}.split(',')[0].endsWith(':{closed}')"),
        ),
        ("unwell", "checked", true.into(), shows(DEAD)),
        ("unwell", "checked", false.into(), shows(100)),
    ];
    browser.evaluate(
        "{ const fetch = window.fetch; window.asked = 0; \
         window.fetch = (...all) => { window.asked += 1; return fetch(...all); }; }",
    );
    let mut least = [f64::INFINITY; 5];
    for _ in 0..TRIES {
        for ((id, property, value, then), least) in controls.iter().zip(&mut least) {
            browser.evaluate(&format!(
                "{{ const began = performance.now(); window.took = null; const look = () => {{ \
                 if ({then}) window.took = performance.now() - began; \
                 else setTimeout(look, 5); }}; \
                 setTimeout(look, 5); }}"
            ));
            let set = setting(id, property, value);
            let asked = browser.evaluate(&format!("window.asked = 0; {set}; window.asked"));
            assert_eq!(asked, 1, "{id}");
            browser.wait("window.took !== null");
            let took = browser.evaluate("window.took").as_f64().unwrap();
            println!("{id}: {took} ms");
            *least = least.min(took);
        }
        if least.iter().all(|took| *took < 1_500.0) {
            return;
        }
        set(browser, "sort", "value", sort.clone());
        browser.wait(&first);
    }
    panic!("never soon: {least:?} ms");
}

/// With a fail-over, and rows that answer quickly to filter and order. On a phone nothing is wider
/// than the screen.
#[test]
fn a_thousand_backends_stay_usable() {
    let (open, closed) = (accept_everywhere(), ports::free_addr().port());
    let dir = TempDir::new();
    let list = dir.write("backends", &addresses(open, closed));
    let mut primary = Redis::start(ports::free_addr());
    let port = primary.addr.port().to_string();
    let replica = Redis::start_with(ports::free_addr(), &["--replicaof", "127.0.0.1", &port]);
    let tembuku = Tembuku::start(&format!(
        "[listeners.web]\nbind = \"{}\"\nupstream = \"web\"\n\
         [upstreams.web.discover]\nkind = \"file\"\npath = \"{}\"\n\
         [upstreams.web.check]\nkind = \"tcp\"\ninterval = \"5s\"\ntimeout = \"4s\"\n\
         rise = 1\nfall = 3\n\
         [listeners.cache]\nbind = \"{}\"\nupstream = \"redis\"\n\
         [upstreams.redis]\nbackends = [\"{}\", \"{}\"]\n\
         [upstreams.redis.check]\nkind = \"redis\"\nrole = \"primary\"\ninterval = \"500ms\"\n",
        ports::free_addr(),
        list.display(),
        ports::free_addr(),
        primary.addr,
        replica.addr
    ));
    let count = |path: &str| {
        let began = Instant::now();
        let body = http::get(tembuku.admin, path).unwrap().body;
        println!("{path}: {} bytes in {:?}", body.len(), began.elapsed());
        body.len()
    };
    wait_until("a sample is there", secs(30), || {
        // On a machine that is busy with other tests an answer may come late.
        let overview = http::get(tembuku.admin, "/api/v1/overview?limit=1");
        overview.is_ok_and(|answer| {
            answer.body.contains("\"samples\":{") && !answer.body.contains("\"connects\":[]")
        })
    });
    let whole = count("/api/v1/status");
    let shown = count("/api/v1/overview?after=1");
    assert!(shown < 100_000 && shown * 8 < whole, "{shown} of {whole}");

    let mut browser = Chromium::start();
    browser.open(&format!("http://{}/", tembuku.admin));
    browser.wait("document.querySelectorAll('#backends tr').length === 100");
    let is_counted = format!(
        "document.getElementById('shown').innerText\
         .includes('{0} of {0} backends ({DEAD} not well)')",
        COUNT + 2
    );
    browser.wait(&is_counted);
    let source = "source file: 1000 backends";
    browser.wait(&format!(
        "document.getElementById('upstreams').innerText.includes('{source}')"
    ));
    measure_controls(&mut browser, open, closed);
    browser.evaluate("document.getElementById('more').click()");
    browser.wait("document.querySelectorAll('#backends tr').length === 200");

    // The worst come first, wherever they are in the file.
    let (old, new) = (primary.addr.to_string(), replica.addr.to_string());
    primary.proc.signal(Signal::KILL);
    assert!(primary.proc.wait(secs(5)).is_some());
    browser.wait(&has_state(&old, "down"));
    assert_eq!(call(replica.addr, "REPLICAOF NO ONE").unwrap(), "+OK");
    set(&mut browser, "filter", "value", "redis/".into());
    browser.wait(&has_state(&new, "up"));
    let journal = "document.getElementById('journal').innerText";
    browser.wait(&format!(
        "{journal}.includes('{new} ') && {journal}.includes('→ up')"
    ));
    browser.wait("document.getElementById('upstreams').innerText.includes('1 of 2 available')");
    let fresh = browser.evaluate("document.getElementById('fresh').innerText");
    println!("{fresh}");

    browser.set_size(390, 800);
    browser.wait("innerWidth === 390");
    let is_wide = "document.documentElement.scrollWidth > innerWidth";
    assert_eq!(browser.evaluate(is_wide), false);
    assert_no_complaint(&mut browser);
}
