//! `tembuku import`: the configuration of another program as one of this program.

mod document;
mod haproxy;
mod nginx;
mod report;

use super::{complain, print};
use crate::{
    config,
    sys::{blocking, files},
};
use clap::{Args, Subcommand};
use document::{Document, List};
use std::{
    fs::File,
    io::{self, IsTerminal as _, Read as _, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

const OUTPUT: &str = "The configuration goes to standard output, or with `-o tembuku.toml` to that \
                      file. What became of \
                      each directive goes to standard error. Exit code 1: nothing can be imported, \
                      or `tembuku check` refuses the result.";
/// Larger files, with all that they include, are no configuration.
const MOST_BYTES: u64 = 16 << 20;

#[derive(Debug, Args)]
pub(super) struct Import {
    #[command(subcommand)]
    from: From,
}

#[derive(Debug, Subcommand)]
enum From {
    /// The `stream` block, or an `http` block with `upstream` and `proxy_pass`; includes are read.
    /// Also what `nginx -T` prints
    #[command(after_help = OUTPUT)]
    Nginx(Input),
    /// The `frontend`, `backend` and `listen` sections of `mode tcp`
    #[command(after_help = OUTPUT)]
    Haproxy(Input),
}

#[derive(Debug, Args)]
struct Input {
    /// The file, or `-` for standard input
    file: PathBuf,
    /// Exit with 1 if a directive is not carried over
    #[arg(long)]
    strict: bool,
    /// Only sections of listeners and upstreams, to be appended to another configuration:
    /// `>> tembuku.toml`
    #[arg(long)]
    sections: bool,
    /// Write the configuration to this file, which must not be there yet
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Overwrite the file of --output
    #[arg(long, requires = "output")]
    force: bool,
}

impl Input {
    /// The file that is written, if it is not standard output.
    fn target(&self) -> Option<&Path> {
        let file = self.output.as_deref();
        file.filter(|file| *file != Path::new("-"))
    }
}

/// From a text and the name of its file. An error is a whole message.
type Convert = fn(&str, &str) -> Result<Document, String>;

/// The configuration goes to standard output, the lists go to standard error.
pub(super) fn run(arguments: &Import) -> ExitCode {
    let (input, convert, program): (_, Convert, _) = match &arguments.from {
        From::Nginx(input) => (input, nginx::import, "nginx"),
        From::Haproxy(input) => (input, haproxy::import, "HAProxy"),
    };
    let name = input.file.display().to_string();
    let command = format!("tembuku import {} {name}", program.to_lowercase());
    if let Some(there) = input
        .target()
        .filter(|file| file.symlink_metadata().is_ok())
        && !input.force
    {
        complain(&format!("{}\n", is_there(there, &command)));
        return ExitCode::FAILURE;
    }
    let result = read(&input.file).and_then(|text| {
        convert(&text, &name).map_err(|why| format!("{why}{}", other_program(&text, program)))
    });
    match result.and_then(|document| write(document, program, &command, input)) {
        Ok(has_lost) => match has_lost && input.strict {
            true => ExitCode::FAILURE,
            false => ExitCode::SUCCESS,
        },
        Err(why) => {
            let why = why.trim_end();
            let is_marked = why.starts_with("error: ");
            complain(&format!(
                "{}{why}\n",
                if is_marked { "" } else { "error: " }
            ));
            ExitCode::FAILURE
        }
    }
}

/// What the text of an nginx configuration becomes, for fuzz targets.
pub fn import_nginx(text: &str) -> Option<String> {
    imported(text, nginx::import, "nginx")
}

/// The same of HAProxy.
pub fn import_haproxy(text: &str) -> Option<String> {
    imported(text, haproxy::import, "HAProxy")
}

fn imported(text: &str, convert: Convert, program: &str) -> Option<String> {
    let mut document = convert(text, "f").ok()?;
    let _ = document.report().to_string();
    document.complete(program);
    Some(document.toml())
}

/// What the text is, if not of this program.
fn other_program(text: &str, program: &str) -> &'static str {
    const OF_HAPROXY: [&str; 5] = ["global", "defaults", "frontend", "backend", "listen"];
    let begins = |line: &str| {
        line.split_whitespace()
            .next()
            .unwrap_or_default()
            .to_owned()
    };
    let is_haproxy =
        |line: &str| OF_HAPROXY.contains(&begins(line).as_str()) && !line.contains([';', '{', '=']);
    let is_nginx = |line: &str| line.trim_end().ends_with(['{', ';']);
    match program {
        _ if text.trim().is_empty() => "\n  hint: there is nothing in it: has a command failed?",
        "nginx" if text.lines().any(is_haproxy) => {
            "\n  hint: is it of HAProxy? `tembuku import haproxy FILE`"
        }
        "HAProxy" if text.lines().any(is_nginx) => {
            "\n  hint: is it of nginx? `tembuku import nginx FILE`"
        }
        _ => "",
    }
}

/// Returns whether anything is not carried over.
fn write(
    mut document: Document,
    program: &str,
    command: &str,
    input: &Input,
) -> Result<bool, String> {
    let report = document.report();
    complain(&report.to_string());
    if !document.has_listener() {
        return Err(
            "error: nothing can be imported as a listener: the lists say why\n  hint: the file \
                    is meant that has the `stream` block of nginx, or a `frontend` or `listen` \
                    section of HAProxy with `mode tcp`"
                .to_owned(),
        );
    }
    match input.sections {
        true => document.complete_sections(program),
        false => document.complete(program),
    }
    let toml = format!("{}{}", report.comments(command), document.toml());
    let file = input.target();
    match file {
        Some(file) => create(file, &toml, input.force, command)?,
        None => print(&toml)?,
    }
    let name = file.map_or("the result".into(), Path::to_string_lossy);
    // What was valid there may be refused here: then its position is named.
    if let Err(problems) = config::parse(&toml, &name) {
        return Err(format!("{problems}"));
    }
    if file.is_some() {
        complain(&format!("next: tembuku check --probe -c {name}\n"));
    }
    Ok(report.has(List::Lost))
}

fn is_there(file: &Path, command: &str) -> String {
    let file = file.display();
    format!(
        "error: {file} is there already\n  hint: --force overwrites it; `{command} --sections >> \
         {file}` appends to it"
    )
}

fn create(file: &Path, toml: &str, may_replace: bool, command: &str) -> Result<(), String> {
    let create = || File::create_new(file)?.write_all(toml.as_bytes());
    let result = match may_replace {
        true => files::replace(file, toml.as_bytes()),
        false => create(),
    };
    result.map_err(|e| match e.kind() {
        io::ErrorKind::AlreadyExists => is_there(file, command),
        _ => format!("error: cannot write {}: {e}", file.display()),
    })
}

fn read(path: &Path) -> Result<String, String> {
    let bytes = match path == Path::new("-") {
        true => {
            let mut bytes = Vec::new();
            if io::stdin().is_terminal() {
                complain("reading standard input up to Ctrl-D\n");
            }
            let input = io::stdin().lock().take(MOST_BYTES + 1);
            let read = { input }.read_to_end(&mut bytes);
            read.and_then(|_| match bytes.len() as u64 > MOST_BYTES {
                true => Err(files::too_large(MOST_BYTES)),
                false => Ok(bytes),
            })
        }
        false => {
            let path = path.to_owned();
            let call = move || files::read(&path, MOST_BYTES);
            blocking::call_and_wait(blocking::LIMIT, call).and_then(|read| read)
        }
    };
    let bytes = bytes.map_err(|e| {
        let hint = match e.kind() {
            io::ErrorKind::FileTooLarge => "\n  hint: name the file of the configuration",
            io::ErrorKind::IsADirectory => "\n  hint: this is a directory: name a file in it",
            _ => "",
        };
        format!("error: cannot read {}: {e}{hint}", path.display())
    })?;
    // Comments of old files are often not UTF-8.
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::{collection::vec, prelude::*};

    /// The first block in this language of a page.
    fn block(page: &str, language: &str) -> String {
        let path = format!("{}/docs/{page}", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(path).expect("a page");
        let begin = format!("```{language}\n");
        let block = text.split(&begin).nth(1).expect("a block");
        block.split("\n```").next().unwrap_or_default().to_owned()
    }

    const PROGRAMS: [(&str, &str, Convert, &str); 2] = [
        (
            "coming-from-nginx.md",
            "nginx",
            nginx::import as Convert,
            "nginx",
        ),
        (
            "coming-from-haproxy.md",
            "haproxy",
            haproxy::import as Convert,
            "HAProxy",
        ),
    ];

    #[test]
    fn the_pages_show_what_an_import_makes() {
        for (page, language, convert, program) in PROGRAMS {
            let mut document = convert(&block(page, language), "f").expect("an import");
            document.complete(program);
            let made: toml::Table = document.toml().parse().expect("TOML");
            let shown: toml::Table = block(page, "toml").parse().expect("TOML");
            assert_eq!(made, shown, "{page}");
            let report = document.report();
            assert!(!report.has(List::Lost), "{report}");
        }
    }

    /// A file that is found later says what it lacks.
    #[test]
    fn comments_at_the_head_say_what_is_lost() {
        let servers = "server { listen 1 ssl; proxy_pass a:1; }\n".repeat(120);
        let text = format!(
            "stream {{\nserver {{ listen 2; proxy_pass a:1; \u{1}; proxy_bind \u{2}; }}\n\
             log_format x;\n{servers}}}\n"
        );
        let document = nginx::import(&text, "f").expect("an import");
        let head = document.report().comments("tembuku import nginx f");
        for part in [
            "# Made by `tembuku import nginx f`; each line",
            "\n#\n# nothing will listen at 0.0.0.0:1 (f:4)\n#\n# not carried over: 122\n#   f:2: `?`: ",
            "#   f:2: `proxy_bind ?`: backends see",
            "#   f:4: `server`: left out: TLS",
            "#   and 22 more, which",
            "\n#\n# differs: 2\n",
            "#   f:3: `log_format x`: a record",
        ] {
            assert!(head.contains(part), "{part} in\n{head}");
        }
        let made = format!("{head}{}", document.toml());
        config::parse(&made, "f").unwrap_or_else(|e| panic!("{made}\n{e}"));
    }

    #[test]
    fn a_file_of_the_other_program_is_recognised() {
        for (page, language, convert, program) in PROGRAMS {
            let text = block(page, language);
            assert_eq!(other_program(&text, program), "");
            let (_, _, other, of) = PROGRAMS.into_iter().find(|p| p.3 != program).expect("two");
            assert!(other(&text, "f").is_err() && convert(&text, "f").is_ok());
            assert!(
                other_program(&text, of).contains("`tembuku import "),
                "{page}"
            );
        }
    }

    /// A text that ends somewhere, lacks a line, or has bytes of something else in it.
    #[test]
    fn no_part_of_a_configuration_makes_an_import_panic() {
        for (page, language, convert, program) in PROGRAMS {
            let text = block(page, language);
            let try_it = |text: &str| {
                if let Ok(mut document) = convert(text, "f") {
                    document.complete(program);
                    let _ = (document.toml(), document.report().to_string());
                }
            };
            for (n, _) in text.char_indices() {
                try_it(&text[..n]);
                try_it(&text[n..]);
                for inserted in [
                    "\0", "{", "}", ";", "\"", "\\", "é", "\n", " ", "$", ":", "[", "-1",
                ] {
                    try_it(&format!("{}{inserted}{}", &text[..n], &text[n..]));
                }
            }
            let words: Vec<&str> = text.split(' ').collect();
            for n in 0..words.len() {
                let without: Vec<&str> = [&words[..n], &words[n + 1..]].concat();
                try_it(&without.join(" "));
            }
        }
    }

    /// What is no number, or has bytes that TOML knows in no comment, is refused at its place.
    #[test]
    fn words_that_are_no_toml_do_not_spoil_the_rest() {
        let of_haproxy = "listen a\n mode tcp\n bind :1\n balance source\n hash-type consistent\n \
                          hash-balance-factor 1-\n maxconn 9\u{1}\n retries ]\n option tcp-check\n \
                          acl x src \u{7}\n tcp-request connection reject if x\n \
                          server a 10.0.0.1:1 check rise 3- fall {\u{0} weight x maxconn 0x\n";
        let of_nginx = "stream { server { listen 1; proxy_pass u; deny \u{7}; limit_conn z x; }\n\
                        upstream u { hash $remote_addr; server 10.0.0.1:1 weight=3-; } }";
        for (text, imported) in [
            (of_haproxy, import_haproxy(of_haproxy)),
            (of_nginx, import_nginx(of_nginx)),
        ] {
            let made = imported.unwrap_or_else(|| panic!("no import of {text}"));
            let table = made.parse::<toml::Table>();
            assert!(table.is_ok(), "{table:?}\n{made}");
        }
    }

    /// The lines that entries of the report stand for, each as often as it is in one.
    fn reported(report: &str) -> Vec<usize> {
        let entries = report.lines().filter_map(|line| line.strip_prefix("  f:"));
        let range = |entry: &str| {
            let range = entry.split_once(": ").expect("a place").0;
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let [first, last] = [first, last].map(|n| n.parse::<usize>().expect("a line"));
            first..=last
        };
        let mut lines: Vec<usize> = entries.flat_map(range).collect();
        lines.sort_unstable();
        lines
    }

    /// Each line is a directive, or what ends a block.
    #[track_caller]
    fn assert_reported_once(convert: Convert, text: &str) {
        let Ok(mut document) = convert(text, "f") else {
            return;
        };
        let report = document.report().to_string();
        let numbered = text.lines().enumerate().map(|(n, line)| (n + 1, line));
        let is_directive = |(_, line): &(usize, &str)| !["", "}"].contains(&line.trim());
        let wanted = numbered.filter(is_directive).map(|(n, _)| n);
        // Ends of blocks are within the ranges of what is left out.
        let is_end = |n: &usize| text.lines().nth(n - 1).is_some_and(|l| l.trim() == "}");
        let found = reported(&report).into_iter().filter(|n| !is_end(n));
        assert_eq!(
            found.collect::<Vec<_>>(),
            wanted.collect::<Vec<_>>(),
            "{text}\n{report}"
        );
        assert!(
            !report.contains("nothing is known of it"),
            "{text}\n{report}"
        );
        document.complete("the other program");
        let table = document.toml().parse::<toml::Table>();
        assert!(table.is_ok(), "{text}\n{table:?}");
    }

    const OF_HAPROXY: [&str; 65] = [
        "mode tcp",
        "mode http",
        "bind :1",
        "bind :2 accept-proxy",
        "bind :3 ssl crt x",
        "log global",
        "log /dev/log local0",
        "no log",
        "option tcplog",
        "option httplog",
        "option dontlognull",
        "no option dontlognull",
        "log-format x",
        "log-tag y",
        "option logasap",
        "balance source",
        "balance leastconn",
        "balance uri",
        "hash-type consistent",
        "nbthread 2",
        "stick on src",
        "stick-table type ip size 1m",
        "timeout client 5s",
        "timeout server 1m",
        "timeout connect 3s",
        "timeout queue 1m",
        "timeout check 1s",
        "timeout tunnel 1h",
        "timeout client-fin 3s",
        "timeout http-request 3s",
        "timeout connect x",
        "retries 3",
        "option redispatch",
        "option tcpka",
        "option clitcpka",
        "clitcpka-idle 3s",
        "maxconn 300",
        "backlog 5",
        "rate-limit sessions 9",
        "default_backend b",
        "use_backend b",
        "use_backend b if x",
        "acl x src 10.0.0.0/8",
        "acl y src -f /list",
        "tcp-request connection reject if x",
        "tcp-request connection reject if y",
        "tcp-request content accept if x",
        "tcp-request content accept if z",
        "tcp-request inspect-delay 5s",
        "tcp-request connection track-sc0 src",
        "option tcp-check",
        "tcp-check send PING",
        "tcp-check expect string +PONG",
        "tcp-check connect port 5",
        "option httpchk GET /primary",
        "http-check expect status 200",
        "option mysql-check user a",
        "default-server inter 3s maxconn 9 maxqueue 3",
        "server a 10.0.0.1:1 check",
        "server b 10.0.0.2:1 backup weight x",
        "server c d:1 frob 3 observe layer4",
        "server a 10.0.0.1:1",
        "server e 10.0.0.3",
        "stats enable",
        "frobnicate now",
    ];
    const SECTIONS: [&str; 12] = [
        "defaults",
        "global",
        "listen a",
        "listen c :5",
        "frontend f",
        "frontend g",
        "backend b",
        "backend unused",
        "resolvers r",
        "peers p",
        "userlist u",
        "cache c",
    ];
    const OF_NGINX: [&str; 64] = [
        "listen 1;",
        "listen 2 udp;",
        "listen 3 ssl;",
        "listen 4 proxy_protocol so_keepalive=on;",
        "proxy_pass u;",
        "proxy_pass v;",
        "proxy_pass a.example:1;",
        "proxy_pass $x;",
        "proxy_timeout 1h;",
        "proxy_timeout 0;",
        "proxy_connect_timeout 1s;",
        "proxy_protocol on;",
        "proxy_protocol off;",
        "proxy_responses 1;",
        "proxy_responses 0;",
        "proxy_requests 2;",
        "proxy_half_close on;",
        "proxy_half_close off;",
        "proxy_socket_keepalive on;",
        "proxy_next_upstream off;",
        "proxy_next_upstream on;",
        "proxy_next_upstream_tries 3;",
        "proxy_upload_rate 1m;",
        "proxy_download_rate 0;",
        "set_real_ip_from 10.0.0.0/8;",
        "proxy_protocol_timeout 3s;",
        "tcp_nodelay on;",
        "tcp_nodelay off;",
        "allow 10.0.0.1/8;",
        "deny all;",
        "deny x.example;",
        "allow unix:;",
        "limit_conn z 3;",
        "limit_conn none 3;",
        "limit_conn_zone $remote_addr zone=z:1m;",
        "limit_conn_dry_run on;",
        "access_log /var/log/a basic;",
        "access_log off;",
        "error_log /var/log/e warn;",
        "log_format basic '$status';",
        "ssl_preread on;",
        "ssl_certificate /c;",
        "server_name a.example;",
        "resolver 10.0.0.1;",
        "set $x a:1;",
        "proxy_bind 10.0.0.1;",
        "js_access a;",
        "return 1;",
        "frobnicate on;",
        "include not-here.conf;",
        "include not-here/*;",
        "hash $remote_addr consistent;",
        "hash $request_uri;",
        "least_conn;",
        "random two;",
        "ip_hash;",
        "zone a 1m;",
        "keepalive 3;",
        "server 10.0.0.1:1;",
        "server 10.0.0.1:1 weight=2;",
        "server a.example:1 backup frob=1;",
        "server b.example service=x;",
        "worker_processes 2;",
        "auth_basic x;",
    ];
    const BLOCKS: [&str; 8] = [
        "server {",
        "upstream u {",
        "upstream v {",
        "map $remote_addr $x {",
        "events {",
        "location / {",
        "location /x {",
        "if ($x) {",
    ];

    proptest! {
        #[test]
        fn every_line_of_haproxy_is_reported_once(
            sections in vec((0..SECTIONS.len(), vec(0..OF_HAPROXY.len(), 0..9)), 1..8),
        ) {
            let mut text = String::new();
            for (section, lines) in sections {
                text.push_str(&format!("{}\n", SECTIONS[section]));
                for line in lines {
                    text.push_str(&format!("  {}\n", OF_HAPROXY[line]));
                }
            }
            assert_reported_once(haproxy::import, &text);
        }

        #[test]
        fn every_line_of_nginx_is_reported_once(
            outer in prop::sample::select(&["stream {", "http {", "server {"][..]),
            main in vec(0..OF_NGINX.len(), 0..3),
            blocks in vec((0..BLOCKS.len(), vec(0..OF_NGINX.len(), 0..9), 0..BLOCKS.len()), 1..8),
        ) {
            let lines = |lines: Vec<usize>| {
                let lines = lines.into_iter().map(|line| format!("{}\n", OF_NGINX[line]));
                lines.collect::<String>()
            };
            let mut text = format!("{}{outer}\n", lines(main.clone()));
            for (block, inside, inner) in blocks {
                text.push_str(&format!("{}\n{}", BLOCKS[block], lines(inside.clone())));
                text.push_str(&format!("{}\n{}}}\n}}\n", BLOCKS[inner], lines(inside)));
            }
            text.push_str(&lines(main));
            text.push_str("}\nhttp {\nserver {\nlisten 80;\n}\n}\n");
            assert_reported_once(nginx::import, &text);
        }
    }
}
