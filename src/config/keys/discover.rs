//! Keys of [upstreams.NAME.discover], by the kinds that they are for.

use super::{
    applies::Applies::{Always, TlsVerify},
    row::{Form, Row, Rule, code, rows, value, when},
    scalar::Word,
    words::TlsMode,
};
use crate::{
    config::text::quote::{quoted, quoted_list, time},
    plan::{Discover, DiscoverKind, DiscoverSource, PasswordFrom, RedisLogin, Tls, Want},
};
use std::{path::Path, time::Duration};

/// More often than this a question is an attack.
const INTERVAL: Rule = Rule::AtLeast(Duration::from_millis(100));

/// The keys of this kind alone and those that it shares with others; those of all kinds are in
/// [`DISCOVER`].
pub(crate) fn rows_of(kind: DiscoverKind) -> impl Iterator<Item = &'static Row<Discover>> {
    let rows = OF_KINDS.iter();
    rows.filter(move |row| kind.keys().contains(&row.key.name))
}

pub(crate) fn kinds() -> Vec<&'static str> {
    DiscoverKind::ALL.iter().map(|kind| kind.word()).collect()
}

pub(crate) static DISCOVER: &[Row<Discover>] = rows! {
    "kind" Form::Word(kinds), "", Always,
        code!(|discover| Some(quoted(discover.source.kind().word()))),
        "Where the backends come from; those in `backends` are always there as well.";
    "interval" Form::Duration(INTERVAL), "2s", Always, value!(interval),
        "From one answer to the next question, of kinds that are polled; others are checked so \
         often.";
    "timeout" Form::Duration(Rule::AboveZero), "2s", Always, value!(timeout),
        "For one answer. Without one the backends stay as they are.";
    "empty_after" Form::Other("a duration or \"never\""), "30s", Always,
        code!(|discover| Some(discover.empty_after.map_or_else(|| quoted("never"), time))),
        "An answer without any backend counts when it has lasted for so long; \"0s\" = at once.";
    "max_removed" Form::Number(0, 100), "50", Always, value!(max_removed),
        "How many percent of the backends may vanish at once; more vanish only after `confirm`.";
    "confirm" Form::Duration(Rule::Any), "10s", Always, value!(confirm),
        "How long backends beyond `max_removed` must be missing before they are removed.";
};

/// Which kind takes which is in the plan: [`DiscoverKind::keys`].
pub(crate) static OF_KINDS: &[Row<Discover>] = rows! {
    "path" Form::Other("an absolute path"), "", Always,
        when!(source, DiscoverSource::File { path } => Some(path_text(path))),
        "A file, or a folder whose files are read: TOML (`.toml`), JSON (`.json`), otherwise a \
         backend in each line: \"ADDRESS [weight=N] [backup] [draining] [name=NAME]\".";
    "url" Form::Other("a URL"), "", Always,
        when!(source,
            DiscoverSource::Http { url, .. } | DiscoverSource::Consul { url, .. } =>
                Some(quoted(url)),
            DiscoverSource::Kubernetes { url, .. } => url.as_deref().map(quoted)
        ),
        "\"http://HOST:PORT/PATH\" or \"https://...\". Kubernetes: of the API server; left out: \
         that of the cluster in which this process runs.";
    "headers" Form::Other("a list of \"NAME: VALUE\""), "", Always,
        when!(source,
            DiscoverSource::Http { headers, .. } if !headers.is_empty() => {
                let text = |(name, value): &(String, String)| format!("{name}: {value}");
                Some(quoted_list(headers.iter().map(text)))
            }
        ),
        "Headers of the request.";
    "name" Form::Other("a name"), "", Always,
        when!(source, DiscoverSource::Srv { name, .. } => Some(quoted(name))),
        "The name with SRV records, as in \"_redis._tcp.example.com\".";
    "nameservers" Form::Other("a list of addresses"), "", Always,
        when!(source,
            DiscoverSource::Srv { nameservers, .. } if !nameservers.is_empty() => {
                Some(quoted_list(nameservers.iter().map(ToString::to_string)))
            }
        ),
        "Asked in this order, as in \"10.0.0.2:53\"; left out: those of resolv.conf.";
    "server" Form::Other("an address"), "", Always,
        when!(source, DiscoverSource::Redis { server, .. } => Some(quoted(&server.text))),
        "The Redis server: \"HOST:PORT\" or \"unix:/path\".";
    "sentinels" Form::Other("a list of addresses"), "", Always,
        when!(source,
            DiscoverSource::Sentinel { sentinels, .. } => {
                Some(quoted_list(sentinels.iter().map(|server| server.text.clone())))
            }
        ),
        "The Sentinels, as in \"10.0.0.1:26379\": all are asked, and the answers of most count.";
    "master" Form::Other("a name"), "", Always,
        when!(source, DiscoverSource::Sentinel { master, .. } => Some(quoted(master))),
        "The name of the group, as in `sentinel monitor NAME`.";
    "want" Form::Word(Want::words), "primary", Always,
        when!(source, DiscoverSource::Sentinel { want, .. } => Some(quoted(want.word()))),
        "Which servers of the group are backends.";
    "service" Form::Other("a name"), "", Always,
        when!(source,
            DiscoverSource::Consul { service, .. } => Some(quoted(service)),
            DiscoverSource::Kubernetes { namespace, service, .. } => {
                Some(quoted(&format!("{namespace}/{service}")))
            }
        ),
        "Consul: the name of the service; Kubernetes: \"NAMESPACE/NAME\".";
    "port" Form::Other("a name or a number"), "", Always,
        when!(source, DiscoverSource::Kubernetes { port, .. } => port.as_deref().map(quoted)),
        "Which port of the service; left out: the only one.";
    "tag" Form::Other("a name"), "", Always,
        when!(source, DiscoverSource::Consul { tag, .. } => tag.as_deref().map(quoted)),
        "Only instances with this tag.";
    "datacenter" Form::Other("a name"), "", Always,
        when!(source, DiscoverSource::Consul { datacenter, .. } =>
            datacenter.as_deref().map(quoted)),
        "Another datacenter than that of the agent.";
    "use_health" Form::Flag, "true", Always,
        when!(source, DiscoverSource::Consul { use_health, .. } => Some(use_health.to_string())),
        "Whether instances that Consul finds critical are left out.";
    "token_file" Form::Other("an absolute path"), "", Always,
        when!(source,
            DiscoverSource::Consul { token_file, .. }
            | DiscoverSource::Kubernetes { token_file, .. } => {
                token_file.as_deref().map(path_text)
            }
        ),
        "A file that holds the token alone; it is read for each request.";
    "endpoints" Form::Other("a list of URLs"), "", Always,
        when!(source, DiscoverSource::Etcd { endpoints, .. } =>
            Some(quoted_list(endpoints.iter().cloned()))),
        "The members of the cluster, as in \"http://10.0.0.1:2379\".";
    "prefix" Form::Other("text"), "", Always,
        when!(source, DiscoverSource::Etcd { prefix, .. } => Some(quoted(prefix))),
        "Every key that begins with it is a backend.";
    "cert" Form::Other("an absolute path"), "", Always,
        when!(source, DiscoverSource::Etcd { client: Some((cert, _)), .. } =>
            Some(path_text(cert))),
        "The certificate that this client shows, in PEM; needs `key`.";
    "key" Form::Other("text"), "", Always,
        when!(source,
            DiscoverSource::Redis { key, .. } => Some(quoted(key)),
            DiscoverSource::Etcd { client: Some((_, key)), .. } => Some(path_text(key))
        ),
        "Redis: the key of a list, a set, a sorted set (the scores are weights) or a hash (address \
         to weight). etcd: the file with the private key of `cert`, an absolute path.";
    "user" Form::Other("a name"), "", Always,
        when!(source,
            DiscoverSource::Redis { login, .. } | DiscoverSource::Sentinel { login, .. } =>
                login.user.as_deref().map(quoted),
            DiscoverSource::Etcd { user, .. } => user.as_deref().map(quoted)
        ),
        "The user that logs in; needs a password. Redis: left out, the default one.";
    "password_file" Form::Other("an absolute path"), "", Always,
        code!(|discover| match discover.source.password() {
            Some(PasswordFrom::File(path)) => Some(path_text(path)),
            Some(PasswordFrom::Variable(_)) | None => None,
        }),
        "A file that holds the password alone.";
    "password_env" Form::Other("a name"), "", Always,
        code!(|discover| match discover.source.password() {
            Some(PasswordFrom::Variable(name)) => Some(quoted(name)),
            Some(PasswordFrom::File(_)) | None => None,
        }),
        "The name of the environment variable that holds the password, instead of a file.";
    "tls" Form::Word(TlsMode::words), "off", Always,
        code!(|discover| login(discover).map(|login| quoted(match login.tls {
            Tls::Off => "off",
            Tls::Require => "require",
            Tls::Verify { .. } => "verify",
        }))),
        "\"require\": any certificate will do; \"verify\": it is verified.";
    "tls_ca" Form::Other("an absolute path"), "", TlsVerify,
        code!(|discover| discover.source.tls_ca().map(path_text)),
        "The certificates that are trusted, in PEM; left out: those of the system.";
    "tls_name" Form::Other("a name or an address"), "", TlsVerify,
        code!(|discover| match &login(discover)?.tls {
            Tls::Verify { name: Some(name), .. } => Some(quoted(name)),
            _ => None,
        }),
        "What the certificate must name; left out: the host of the server.";
};

fn login(discover: &Discover) -> Option<&RedisLogin> {
    match &discover.source {
        DiscoverSource::Redis { login, .. } | DiscoverSource::Sentinel { login, .. } => Some(login),
        _ => None,
    }
}

fn path_text(path: &Path) -> String {
    quoted(&path.to_string_lossy())
}
