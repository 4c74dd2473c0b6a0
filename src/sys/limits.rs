//! What the operating system allows this process.

use rustix::{
    io::Errno,
    process::{Resource, Rlimit, getrlimit, setrlimit},
};
use std::{ops::RangeInclusive, sync::OnceLock};

/// Raises the soft limit of descriptors to the hard one, and returns what is allowed now.
pub fn raise_descriptors() -> u64 {
    let before = getrlimit(Resource::Nofile);
    if before.current < before.maximum || (before.current.is_some() && before.maximum.is_none()) {
        // Where this is refused, the old limit is read back.
        let _ = setrlimit(
            Resource::Nofile,
            Rlimit {
                current: before.maximum,
                maximum: before.maximum,
            },
        );
    }
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Whether a file can be opened now: neither the process nor the system has used up its
/// descriptors.
pub fn can_open() -> bool {
    std::fs::File::open("/dev/null").is_ok()
}

/// What an operator can do about an error that comes from the limits of open files, or of threads
/// and processes; empty for other errors.
pub fn describe_shortage(error: &std::io::Error) -> String {
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::MFILE) => {
            let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
            format!(
                "; this process may have {limit} files and sockets open: raise LimitNOFILE= of its \
                 systemd unit, or `ulimit -n` before the start"
            )
        }
        Some(Errno::NFILE) => {
            "; the machine has no place for another open file: raise the sysctl fs.file-max"
                .to_owned()
        }
        Some(Errno::AGAIN) => "; no more threads or processes may be started: raise TasksMax= of \
             the systemd unit, the limit of processes of the container, or LimitNPROC="
            .to_owned(),
        _ => String::new(),
    }
}

/// The first port that every process may listen on.
pub fn first_unprivileged_port() -> u16 {
    let first = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start");
    let first = first.ok().and_then(|text| text.trim().parse().ok());
    first.unwrap_or(1024)
}

/// CPUs that this process may use; affinity and cgroup quotas are respected.
pub fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// How many local ports the kernel assigns by itself. Each can be used by one UDP socket only,
/// whatever that is connected to.
pub fn local_ports() -> u64 {
    let range = local_port_range();
    (u64::from(*range.end()) + 1)
        .saturating_sub(u64::from(*range.start()))
        .max(1)
}

/// Whether the kernel may assign that port by itself. The range is read once.
pub fn is_local_port(port: u16) -> bool {
    static RANGE: OnceLock<RangeInclusive<u16>> = OnceLock::new();
    RANGE.get_or_init(local_port_range).contains(&port)
}

fn local_port_range() -> RangeInclusive<u16> {
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range");
    let range = range.ok().and_then(|text| {
        let mut ports = text.split_whitespace().map(str::parse::<u16>);
        Some(ports.next()?.ok()?..=ports.next()?.ok()?)
    });
    // The kernel's default.
    range.unwrap_or(32_768..=60_999)
}
