//! One table for the errors of socket calls: the meaning of each, wherever it is reported.
//!
//! The same number means the same at connect, send and receive, for connections, flows and checks.
//! The "peer" is the other end of the socket: a backend, or a client.

use super::ConnectError;
use std::io;

/// What an error is a property of, and thereby what follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Party {
    /// A shortage of this host or process. It shows nothing about the peer and passes by itself.
    Local,
    /// The one message that was to be sent. The next one may be fine.
    Message,
    /// The host or the program at the other end. Another backend may work.
    Peer,
    /// The way there: routes, firewalls, neighbours. Another backend may work.
    Path,
}

/// An error, as far as decisions depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ErrorCause {
    pub party: Party,
    pub word: ConnectError,
}

impl ErrorCause {
    pub fn of(error: &io::Error) -> Self {
        match error.raw_os_error() {
            Some(errno) => Self::of_errno(errno),
            None => Self::of_kind(error.kind()),
        }
    }

    /// The table.
    pub fn of_errno(errno: i32) -> Self {
        use ConnectError as E;
        use Party as P;
        let (party, word) = match errno {
            // ENOENT: a unix socket that is not there is a backend that is not there.
            libc::ECONNREFUSED | libc::ENOENT => (P::Peer, E::Refused),
            libc::ETIMEDOUT => (P::Peer, E::Timeout),
            libc::ECONNRESET | libc::ECONNABORTED | libc::EPIPE => (P::Peer, E::Reset),
            // Routes and ICMP. EINVAL is what a `blackhole` route makes of a connect or a send,
            // EAFNOSUPPORT a host without IPv6, ENODEV and ENXIO an interface that is gone.
            libc::EHOSTUNREACH
            | libc::ENETUNREACH
            | libc::ENETDOWN
            | libc::EHOSTDOWN
            | libc::ENONET
            | libc::ENETRESET
            | libc::ENOPROTOOPT
            | libc::EOPNOTSUPP
            | libc::EPROTO
            | libc::EINVAL
            | libc::EAFNOSUPPORT
            | libc::ENODEV
            | libc::ENXIO => (P::Path, E::Unreachable),
            // A firewall of this host, a `prohibit` route or a unix socket's mode; by ICMPv6 the
            // same of another host.
            libc::EPERM | libc::EACCES => (P::Path, E::Prohibited),
            // EAGAIN: a UDP connect without a free port. A send buffer that is full is no failed
            // connect, and no word is needed for it.
            libc::EADDRNOTAVAIL | libc::EADDRINUSE | libc::EAGAIN => (P::Local, E::NoPorts),
            libc::EMFILE | libc::ENFILE => (P::Local, E::NoDescriptors),
            libc::ENOBUFS | libc::ENOMEM | libc::ENOSPC => (P::Local, E::NoMemory),
            libc::EMSGSIZE => (P::Message, E::Other),
            _ => (P::Path, E::Other),
        };
        Self { party, word }
    }

    /// Errors of our own making.
    fn of_kind(kind: io::ErrorKind) -> Self {
        use io::ErrorKind as K;
        Self::of_errno(match kind {
            K::ConnectionRefused | K::NotFound => libc::ECONNREFUSED,
            K::TimedOut => libc::ETIMEDOUT,
            K::ConnectionReset | K::ConnectionAborted | K::BrokenPipe => libc::ECONNRESET,
            K::HostUnreachable | K::NetworkUnreachable | K::NetworkDown => libc::EHOSTUNREACH,
            K::PermissionDenied => libc::EACCES,
            K::AddrNotAvailable | K::AddrInUse | K::WouldBlock => libc::EADDRNOTAVAIL,
            K::OutOfMemory => libc::ENOMEM,
            _ => 0,
        })
    }

    /// Whether the backend at the other end cannot be reached or is not there: another one is
    /// tried, and it counts as a failure of this one.
    pub fn is_of_backend(self) -> bool {
        matches!(self.party, Party::Peer | Party::Path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::reason::CheckResult;

    #[test]
    fn every_error_has_one_meaning() {
        use ConnectError as E;
        use Party as P;
        for (errno, party, word, check) in [
            (
                libc::ECONNREFUSED,
                P::Peer,
                E::Refused,
                CheckResult::Refused,
            ),
            (libc::ENOENT, P::Peer, E::Refused, CheckResult::Refused),
            (libc::ETIMEDOUT, P::Peer, E::Timeout, CheckResult::Timeout),
            (libc::ECONNRESET, P::Peer, E::Reset, CheckResult::Reset),
            (libc::EPIPE, P::Peer, E::Reset, CheckResult::Reset),
            (
                libc::EHOSTUNREACH,
                P::Path,
                E::Unreachable,
                CheckResult::Unreachable,
            ),
            (
                libc::ENETDOWN,
                P::Path,
                E::Unreachable,
                CheckResult::Unreachable,
            ),
            (
                libc::EINVAL,
                P::Path,
                E::Unreachable,
                CheckResult::Unreachable,
            ),
            (
                libc::EPERM,
                P::Path,
                E::Prohibited,
                CheckResult::Unreachable,
            ),
            (
                libc::EACCES,
                P::Path,
                E::Prohibited,
                CheckResult::Unreachable,
            ),
            (
                libc::EADDRNOTAVAIL,
                P::Local,
                E::NoPorts,
                CheckResult::Local,
            ),
            (libc::EAGAIN, P::Local, E::NoPorts, CheckResult::Local),
            (libc::EMFILE, P::Local, E::NoDescriptors, CheckResult::Local),
            (libc::ENOBUFS, P::Local, E::NoMemory, CheckResult::Local),
            (libc::ENOMEM, P::Local, E::NoMemory, CheckResult::Local),
            (libc::EIO, P::Path, E::Other, CheckResult::Unreachable),
        ] {
            let error = io::Error::from_raw_os_error(errno);
            assert_eq!(
                ErrorCause::of(&error),
                ErrorCause { party, word },
                "{error}"
            );
            assert_eq!(CheckResult::of(&error), check, "{error}");
            // The word alone decides whether it counts against the backend.
            assert_eq!(
                word.is_of_backend(),
                ErrorCause::of(&error).is_of_backend(),
                "{error}"
            );
        }
        let too_large = ErrorCause::of_errno(libc::EMSGSIZE);
        assert!(!too_large.is_of_backend());
    }

    /// Errors that the program makes itself have no number.
    #[test]
    fn kinds_mean_what_their_numbers_mean() {
        for errno in [
            libc::ECONNREFUSED,
            libc::ETIMEDOUT,
            libc::ECONNRESET,
            libc::EHOSTUNREACH,
            libc::EACCES,
            libc::EADDRNOTAVAIL,
            libc::ENOMEM,
        ] {
            let error = io::Error::from_raw_os_error(errno);
            let same: io::Error = error.kind().into();
            assert_eq!(ErrorCause::of(&same), ErrorCause::of(&error), "{error}");
        }
    }
}
