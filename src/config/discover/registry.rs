//! Sources that are asked by HTTP or by DNS: `http`, `srv`, `consul`, `etcd`, `kubernetes`.

use super::{optional, optional_file, required};
use crate::{
    config::{
        check::{dns, read_password},
        section::{Section, Text},
        text::{report::fault, suggestions::shorten},
        value::url::Url,
    },
    plan::DiscoverSource,
};
use std::net::{IpAddr, SocketAddr};

const URL: &str = "as in \"http://10.0.0.1:8500\" or \"https://registry.example.com/path\"";
/// Of DNS.
const PORT: u16 = 53;

pub(super) fn read_http(section: &Section<'_>) -> Option<DiscoverSource> {
    let url = required_url(section);
    let tls_ca = optional_file(section, "tls_ca");
    let headers = read_headers(section);
    Some(DiscoverSource::Http {
        url: url?,
        headers,
        tls_ca,
    })
}

pub(super) fn read_srv(section: &Section<'_>) -> Option<DiscoverSource> {
    const NAME: &str = "as in \"_redis._tcp.example.com\"";
    let name = required(section, "name", NAME);
    if let Some(Text { text, span }) = section.text("name")
        && !text.is_empty()
        && !dns::is_name(text)
    {
        let shown = shorten(&format!("{text:?}"));
        let fault = fault!("`name` = {shown} is no name of DNS");
        section.report.add(&span, fault.hint(NAME));
    }
    let nameservers = read_nameservers(section);
    Some(DiscoverSource::Srv {
        name: name?,
        nameservers,
    })
}

pub(super) fn read_consul(section: &Section<'_>) -> Option<DiscoverSource> {
    let url = required_url(section);
    let service = required(section, "service", "the name of the service, as in \"web\"");
    Some(DiscoverSource::Consul {
        tag: optional(section, "tag"),
        datacenter: optional(section, "datacenter"),
        token_file: optional_file(section, "token_file"),
        use_health: section.flag("use_health", true),
        tls_ca: optional_file(section, "tls_ca"),
        url: url?,
        service: service?,
    })
}

pub(super) fn read_etcd(section: &Section<'_>) -> Option<DiscoverSource> {
    if section.get("endpoints").is_none() {
        section.missing("endpoints", "as in [\"http://10.0.0.1:2379\"]");
    }
    let texts = section.texts("endpoints").unwrap_or_default();
    let endpoints: Vec<String> = texts
        .iter()
        .filter_map(|text| read_url(text, section))
        .collect();
    let prefix = required(section, "prefix", "as in \"/services/web/\"");
    let (cert, key) = (
        optional_file(section, "cert"),
        optional_file(section, "key"),
    );
    let client = match (cert, key) {
        (Some(cert), Some(key)) => Some((cert, key)),
        (None, None) => None,
        (Some(_), None) => {
            section.missing("key", "the file with the private key of `cert`");
            None
        }
        (None, Some(_)) => {
            section.missing(
                "cert",
                "the file with the certificate that `key` belongs to",
            );
            None
        }
    };
    let (user, password) = (optional(section, "user"), read_password(section));
    match (&user, &password) {
        (Some(_), None) => section.missing("password_file", "the file with the password of `user`"),
        (None, Some(_)) => section.missing("user", "the name that the password belongs to"),
        (Some(_), Some(_)) | (None, None) => {}
    }
    Some(DiscoverSource::Etcd {
        user,
        password,
        tls_ca: optional_file(section, "tls_ca"),
        client,
        endpoints: Some(endpoints).filter(|all| !all.is_empty())?,
        prefix: prefix?,
    })
}

pub(super) fn read_kubernetes(section: &Section<'_>) -> Option<DiscoverSource> {
    const SERVICE: &str = "as in \"default/web\"";
    let name = required(section, "service", SERVICE);
    let parts = name.as_deref().and_then(|name| name.split_once('/'));
    let is_name = |part: &str| !part.is_empty() && !part.contains('/');
    let parts = parts.filter(|(namespace, name)| is_name(namespace) && is_name(name));
    if let (Some(Text { text, span }), None) = (section.text("service"), parts)
        && !text.is_empty()
    {
        let shown = shorten(&format!("{text:?}"));
        let fault = fault!("`service` = {shown} is not NAMESPACE/NAME");
        section.report.add(&span, fault.hint(SERVICE));
    }
    let url = section
        .text("url")
        .and_then(|text| read_url(&text, section));
    let (namespace, service) = parts?;
    Some(DiscoverSource::Kubernetes {
        namespace: namespace.to_owned(),
        service: service.to_owned(),
        port: optional(section, "port"),
        url,
        token_file: optional_file(section, "token_file"),
        tls_ca: optional_file(section, "tls_ca"),
    })
}

fn required_url(section: &Section<'_>) -> Option<String> {
    required(section, "url", URL)?;
    section
        .text("url")
        .and_then(|text| read_url(&text, section))
}

/// `None`: what is no URL of HTTP has been reported.
fn read_url(text: &Text<'_>, section: &Section<'_>) -> Option<String> {
    let url = Url::parse(text.text);
    if let Err(e) = &url
        && !text.text.is_empty()
    {
        let shown = shorten(&format!("{:?}", text.text));
        let fault = fault!("{shown}: {e}").hint(URL);
        section.report.add(&text.span, fault);
    }
    url.is_ok().then(|| text.text.to_owned())
}

fn read_headers(section: &Section<'_>) -> Vec<(String, String)> {
    let texts = section.texts("headers").unwrap_or_default();
    let header = |text: Text<'_>| {
        let pair = text
            .text
            .split_once(':')
            .map(|(name, value)| (name.trim(), value.trim()));
        let valid = pair.filter(|(name, value)| {
            name.parse::<hyper::header::HeaderName>().is_ok()
                && value.parse::<hyper::header::HeaderValue>().is_ok()
        });
        if valid.is_none() {
            let shown = shorten(&format!("{:?}", text.text));
            let fault =
                fault!("{shown} is no header").hint("as in \"Authorization: Bearer TOKEN\"");
            section.report.add(&text.span, fault);
        }
        valid.map(|(name, value)| (name.to_owned(), value.to_owned()))
    };
    texts.into_iter().filter_map(header).collect()
}

fn read_nameservers(section: &Section<'_>) -> Vec<SocketAddr> {
    let texts = section.texts("nameservers").unwrap_or_default();
    let server = |text: Text<'_>| {
        let with_port = text.text.parse().ok();
        let alone = || text.text.parse::<IpAddr>().ok();
        let server = with_port.or_else(|| Some(SocketAddr::new(alone()?, PORT)));
        if server.is_none() {
            let shown = shorten(&format!("{:?}", text.text));
            let fault = fault!("{shown} is no address of a name server")
                .hint("as in \"10.0.0.2:53\" or \"[2001:db8::2]:53\"");
            section.report.add(&text.span, fault);
        }
        server
    };
    texts.into_iter().filter_map(server).collect()
}
