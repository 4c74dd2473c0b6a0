//! Where the backends of an upstream come from besides the file.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{PasswordFrom, Target, Tls, reason::words};

/// A source of backends, and how its answers are taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Discover {
    pub source: DiscoverSource,
    /// Of polling kinds, and how often a watch is checked; never zero.
    pub interval: Duration,
    /// For one answer; never zero.
    pub timeout: Duration,
    /// So long an answer without backends must last before it counts; `None`: it never counts.
    pub empty_after: Option<Duration>,
    /// In percent: how many backends may vanish at once.
    pub max_removed: u32,
    /// How long more than those must be missing before they are removed.
    pub confirm: Duration,
}

words! {
    /// A kind of source. Its keys are declared by [`DiscoverKind::keys`], read by
    /// `config::discover`, and its protocol is in `discover`. The word is that of the
    /// configuration.
    DiscoverKind {
        File = "file",
        Http = "http",
        Srv = "srv",
        Redis = "redis",
        Sentinel = "sentinel",
        Consul = "consul",
        Etcd = "etcd",
        Kubernetes = "kubernetes",
    }
}

impl DiscoverKind {
    /// The keys that are not for all kinds.
    pub fn keys(self) -> &'static [&'static str] {
        match self {
            Self::File => &["path"],
            Self::Http => &["url", "headers", "tls_ca"],
            Self::Srv => &["name", "nameservers"],
            Self::Redis => &[
                "server",
                "key",
                "user",
                "password_file",
                "password_env",
                "tls",
                "tls_ca",
                "tls_name",
            ],
            Self::Sentinel => &[
                "sentinels",
                "master",
                "want",
                "user",
                "password_file",
                "password_env",
                "tls",
                "tls_ca",
                "tls_name",
            ],
            Self::Consul => &[
                "url",
                "service",
                "tag",
                "datacenter",
                "token_file",
                "use_health",
                "tls_ca",
            ],
            Self::Etcd => &[
                "endpoints",
                "prefix",
                "user",
                "password_file",
                "password_env",
                "tls_ca",
                "cert",
                "key",
            ],
            Self::Kubernetes => &["service", "port", "url", "token_file", "tls_ca"],
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiscoverSource {
    File {
        /// Of a file or a folder; absolute.
        path: PathBuf,
    },
    Http {
        url: String,
        headers: Vec<(String, String)>,
        tls_ca: Option<PathBuf>,
    },
    Srv {
        name: String,
        /// Empty: those of resolv.conf.
        nameservers: Vec<SocketAddr>,
    },
    Redis {
        server: ServerAddress,
        key: String,
        login: RedisLogin,
    },
    Sentinel {
        /// At least one.
        sentinels: Vec<ServerAddress>,
        master: String,
        want: Want,
        login: RedisLogin,
    },
    Consul {
        url: String,
        service: String,
        tag: Option<String>,
        datacenter: Option<String>,
        token_file: Option<PathBuf>,
        use_health: bool,
        tls_ca: Option<PathBuf>,
    },
    Etcd {
        /// At least one URL.
        endpoints: Vec<String>,
        prefix: String,
        user: Option<String>,
        password: Option<PasswordFrom>,
        tls_ca: Option<PathBuf>,
        /// The files of certificate and key of this client.
        client: Option<(PathBuf, PathBuf)>,
    },
    Kubernetes {
        namespace: String,
        service: String,
        /// A name or a number; `None`: the only one of the service.
        port: Option<String>,
        /// `None`: that of the cluster in which this process runs.
        url: Option<String>,
        token_file: Option<PathBuf>,
        tls_ca: Option<PathBuf>,
    },
}

/// A server that is asked for backends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerAddress {
    /// As configured.
    pub text: String,
    pub target: Target,
}

/// How a server that speaks the protocol of Redis is reached.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RedisLogin {
    pub user: Option<String>,
    pub password: Option<PasswordFrom>,
    pub tls: Tls,
}

/// Which servers of a group that Sentinel watches are backends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Want {
    #[default]
    Primary,
    Replicas,
    All,
}

impl DiscoverSource {
    pub fn kind(&self) -> DiscoverKind {
        match self {
            Self::File { .. } => DiscoverKind::File,
            Self::Http { .. } => DiscoverKind::Http,
            Self::Srv { .. } => DiscoverKind::Srv,
            Self::Redis { .. } => DiscoverKind::Redis,
            Self::Sentinel { .. } => DiscoverKind::Sentinel,
            Self::Consul { .. } => DiscoverKind::Consul,
            Self::Etcd { .. } => DiscoverKind::Etcd,
            Self::Kubernetes { .. } => DiscoverKind::Kubernetes,
        }
    }

    /// Distinguishes what is asked from what others are asked. Not by credentials and files, which
    /// are replaced, and the same in all versions of the program. It may hold what is secret.
    pub fn identity(&self) -> String {
        let word = self.kind().word();
        let parts: Vec<String> = match self {
            Self::File { path } => vec![path.display().to_string()],
            Self::Http { url, headers, .. } => {
                let headers = headers
                    .iter()
                    .map(|(name, value)| format!("{name}: {value}"));
                std::iter::once(url.clone()).chain(headers).collect()
            }
            Self::Srv { name, nameservers } => {
                let servers = nameservers.iter().map(ToString::to_string);
                std::iter::once(name.clone()).chain(servers).collect()
            }
            Self::Redis { server, key, .. } => vec![server.text.clone(), key.clone()],
            Self::Sentinel {
                sentinels,
                master,
                want,
                ..
            } => {
                let sentinels = sentinels.iter().map(|sentinel| sentinel.text.clone());
                let want = match want {
                    Want::Primary => "primary",
                    Want::Replicas => "replicas",
                    Want::All => "all",
                };
                let group = [master.clone(), want.to_owned()];
                group.into_iter().chain(sentinels).collect()
            }
            Self::Consul {
                url,
                service,
                tag,
                datacenter,
                use_health,
                ..
            } => vec![
                url.clone(),
                service.clone(),
                tag.clone().unwrap_or_default(),
                datacenter.clone().unwrap_or_default(),
                use_health.to_string(),
            ],
            Self::Etcd {
                endpoints, prefix, ..
            } => {
                let endpoints = endpoints.iter().cloned();
                std::iter::once(prefix.clone()).chain(endpoints).collect()
            }
            Self::Kubernetes {
                namespace,
                service,
                port,
                url,
                ..
            } => vec![
                namespace.clone(),
                service.clone(),
                port.clone().unwrap_or_default(),
                url.clone().unwrap_or_default(),
            ],
        };
        format!("{word}\n{}", parts.join("\n"))
    }

    /// How many servers may be asked one after the other.
    pub fn servers(&self) -> u32 {
        /// The C library reads no more of resolv.conf.
        const OF_SYSTEM: usize = 3;
        let count = match self {
            Self::Srv { nameservers, .. } if nameservers.is_empty() => OF_SYSTEM,
            Self::Srv { nameservers, .. } => nameservers.len(),
            Self::Etcd { endpoints, .. } => endpoints.len(),
            Self::File { .. }
            | Self::Http { .. }
            | Self::Redis { .. }
            | Self::Sentinel { .. }
            | Self::Consul { .. }
            | Self::Kubernetes { .. } => 1,
        };
        u32::try_from(count).unwrap_or(u32::MAX)
    }

    /// The password of its user, which is read whenever it connects.
    pub fn password(&self) -> Option<&PasswordFrom> {
        match self {
            Self::Redis { login, .. } | Self::Sentinel { login, .. } => login.password.as_ref(),
            Self::Etcd { password, .. } => password.as_ref(),
            Self::File { .. }
            | Self::Http { .. }
            | Self::Srv { .. }
            | Self::Consul { .. }
            | Self::Kubernetes { .. } => None,
        }
    }

    /// The certificates that are trusted.
    pub fn tls_ca(&self) -> Option<&Path> {
        match self {
            Self::Redis { login, .. } | Self::Sentinel { login, .. } => match &login.tls {
                Tls::Verify { ca, .. } => ca.as_deref(),
                Tls::Off | Tls::Require => None,
            },
            Self::Http { tls_ca, .. }
            | Self::Consul { tls_ca, .. }
            | Self::Etcd { tls_ca, .. }
            | Self::Kubernetes { tls_ca, .. } => tls_ca.as_deref(),
            Self::File { .. } | Self::Srv { .. } => None,
        }
    }
}

/// Whether a backend is configured or discovered.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Origin {
    /// The file lists it.
    #[default]
    Configured,
    Discovered {
        /// For display alone.
        name: Option<String>,
        /// Whether its source wants it to take nothing new.
        draining: bool,
    },
}

impl Origin {
    pub fn is_discovered(&self) -> bool {
        matches!(self, Self::Discovered { .. })
    }

    pub fn is_draining(&self) -> bool {
        matches!(self, Self::Discovered { draining: true, .. })
    }
}
