//! The words for why things ended. Each is at once the label of a metric and a word of the log.

/// Declares an enum whose variants carry their word.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name { $($(#[$vdoc])* $variant,)* }

        impl $name {
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];
            pub const COUNT: usize = Self::ALL.len();

            pub fn word(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }
        }
    };
}

words! {
    /// Why a session ended.
    CloseReason {
        /// Both sides said all they had to say.
        Ok = "ok",
        IdleTimeout = "idle_timeout",
        HalfCloseTimeout = "half_close_timeout",
        ClientReset = "client_reset",
        BackendReset = "backend_reset",
        /// The client went away before a backend had been reached.
        ClientLeft = "client_left",
        /// Every backend that was tried failed.
        ConnectFailed = "connect_failed",
        /// No backend could even be tried: all are down, failed or full.
        NoBackend = "no_backend",
        /// Cut when `drain_timeout` had passed.
        Drained = "drained",
        /// A client that is not trusted to say who it is began a PROXY protocol header.
        UntrustedHeader = "untrusted_proxy_header",
    }
}

words! {
    /// Why a connection was turned away before a backend was looked for.
    RejectReason {
        Access = "access",
        MaxConnections = "max_connections",
        ProcessMaxConnections = "process_max_connections",
        NoDescriptors = "no_descriptors",
        /// What came is no PROXY protocol header.
        ProxyHeader = "proxy_header",
        /// The end came before the header was complete.
        ProxyEnded = "proxy_ended",
        ProxyTimeout = "proxy_timeout",
        /// `drain_timeout` had passed before the header was complete.
        Drained = "drained",
    }
}

words! {
    /// Why a backend could not be reached.
    ConnectError {
        Refused = "refused",
        Timeout = "timeout",
        Unreachable = "unreachable",
        Reset = "reset",
        /// All source ports towards this backend are in use: not the backend's fault.
        NoPorts = "no_ports",
        NoDescriptors = "no_descriptors",
        Other = "other",
    }
}

words! {
    /// Why bytes that could have been spliced were copied.
    SpliceFallback {
        NoPipe = "no_pipe",
        Refused = "refused",
    }
}

impl ConnectError {
    pub fn of(error: &std::io::Error) -> Self {
        use std::io::ErrorKind as K;
        match error.kind() {
            K::ConnectionRefused => Self::Refused,
            K::TimedOut => Self::Timeout,
            K::ConnectionReset | K::ConnectionAborted => Self::Reset,
            K::HostUnreachable | K::NetworkUnreachable | K::NetworkDown => Self::Unreachable,
            // A unix socket that is not there is a backend that is not there.
            K::NotFound => Self::Refused,
            K::AddrNotAvailable | K::AddrInUse => Self::NoPorts,
            _ => match error.raw_os_error() {
                Some(libc::EMFILE | libc::ENFILE) => Self::NoDescriptors,
                _ => Self::Other,
            },
        }
    }

    /// Whether it says anything about the backend; a shortage of our own does not.
    pub fn blames_backend(self) -> bool {
        !matches!(self, Self::NoPorts | Self::NoDescriptors)
    }
}
