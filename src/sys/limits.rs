//! What the operating system allows this process.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the soft limit of descriptors to the hard one, and returns what is allowed now.
pub fn raise_descriptors() -> u64 {
    let before = getrlimit(Resource::Nofile);
    if before.current < before.maximum || (before.current.is_some() && before.maximum.is_none()) {
        // Where raising is refused the old limit still stands, and is what is read back.
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

/// CPUs that this process may use; affinity and cgroup quotas are respected.
pub fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
