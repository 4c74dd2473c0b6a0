//! What this process uses, from /proc: what every exporter for Prometheus shows of its process; and
//! the process that this one has started.

use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    param::{clock_ticks_per_second, page_size},
    process::{
        Pid, PidfdFlags, Resource, Signal, WaitId, WaitIdOptions, getegid, geteuid, getgroups,
        getrlimit, kill_process, pidfd_open, waitid,
    },
};
use std::{fs, os::fd::OwnedFd};

/// `None` where the system does not report it.
#[derive(Debug, Default)]
pub struct Usage {
    pub cpu_seconds: Option<f64>,
    pub descriptors: Option<u64>,
    /// The soft limit; `u64::MAX` where there is none.
    pub most_descriptors: Option<u64>,
    pub resident_bytes: Option<u64>,
    pub virtual_bytes: Option<u64>,
    /// `u64::MAX` where there is no limit.
    pub most_virtual_bytes: Option<u64>,
    pub threads: Option<u64>,
    /// Seconds since 1970.
    pub start_time: Option<f64>,
}

/// How a child has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChildEnd {
    /// With exit code 0.
    Regular,
    /// With another one, or by a signal.
    Failure,
}

pub fn usage() -> Usage {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // Of the start, the kernel gives the time since it has booted itself.
    let booted = fs::read_to_string("/proc/stat").unwrap_or_default();
    Usage {
        // Without the descriptor that the folder is read with.
        descriptors: (fs::read_dir("/proc/self/fd").ok()).map(|fds| fds.count() as u64 - 1),
        most_descriptors: Some(getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)),
        most_virtual_bytes: Some(getrlimit(Resource::As).current.unwrap_or(u64::MAX)),
        ..read(&stat, &booted, clock_ticks_per_second(), page_size() as u64)
    }
}

/// Whether the process has the capability of this number, as in capability(7). Where the system
/// does not say, it is taken to have it.
pub fn has_capability(number: u32) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|set| u64::from_str_radix(set.trim(), 16).ok());
    effective.is_none_or(|set| set >> number & 1 == 1)
}

/// The user, and the groups that a file can be given to without a privilege.
pub fn identity() -> (u32, Vec<u32>) {
    let groups = getgroups().unwrap_or_default().into_iter();
    let groups = groups.chain([getegid()]).map(|group| group.as_raw());
    (geteuid().as_raw(), groups.collect())
}

/// Sends HUP to another process.
pub fn hang_up(pid: u32) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // It may have ended.
        let _ = kill_process(pid, Signal::HUP);
    }
}

/// Another process, whose end can be waited for. `None`: it has ended.
pub fn watch(pid: u32) -> Option<OwnedFd> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw)?;
    pidfd_open(pid, PidfdFlags::empty()).ok()
}

/// Waits until the process has ended: all its descriptors are closed then.
pub fn wait_for_end(process: &OwnedFd) {
    let mut ended = [PollFd::new(process, PollFlags::IN)];
    while poll(&mut ended, None) == Err(Errno::INTR) {}
}

/// How a child has ended; its parent's parent may still learn of it. `None`: it runs.
pub fn end_of_child(pid: u32) -> Option<ChildEnd> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw)?;
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    let status = waitid(WaitId::Pid(pid), options).ok()??;
    Some(match status.exit_status() {
        Some(0) => ChildEnd::Regular,
        _ => ChildEnd::Failure,
    })
}

/// `tick`: how many of them are a second. `page`: bytes.
fn read(stat: &str, booted: &str, tick: u64, page: u64) -> Usage {
    // The name of the program, in parentheses, may hold spaces and parentheses.
    let fields: Vec<&str> = stat
        .rsplit_once(')')
        .map(|(_, rest)| rest.split_whitespace().collect())
        .unwrap_or_default();
    // As numbered in proc_pid_stat(5), where the first after the name is the third.
    let field = |n: usize| fields.get(n - 3)?.parse::<u64>().ok();
    let seconds = |ticks: u64| ticks as f64 / tick as f64;
    let boot: Option<u64> = booted
        .lines()
        .find_map(|line| line.strip_prefix("btime "))
        .and_then(|text| text.trim().parse().ok());
    Usage {
        cpu_seconds: (field(14).zip(field(15))).map(|(user, system)| seconds(user + system)),
        threads: field(20),
        start_time: (boot.zip(field(22))).map(|(boot, ticks)| boot as f64 + seconds(ticks)),
        virtual_bytes: field(23),
        resident_bytes: field(24).map(|pages| pages * page),
        ..Usage::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_the_program_may_hold_anything() {
        let stat = "71 (a) b (c) S 1 1 1 0 -1 4194560 9 0 0 0 150 50 7 7 20 0 12 0 3000 8192 5 9";
        let usage = read(stat, "cpu 1 2\nbtime 1000\n", 100, 4096);
        assert_eq!(usage.cpu_seconds, Some(2.0));
        assert_eq!(usage.threads, Some(12));
        assert_eq!(usage.start_time, Some(1030.0));
        assert_eq!(usage.virtual_bytes, Some(8192));
        assert_eq!(usage.resident_bytes, Some(5 * 4096));
        let none = read("", "", 100, 4096);
        assert!(none.cpu_seconds.is_none() && none.start_time.is_none());
    }

    #[test]
    fn this_process_is_read() {
        let usage = usage();
        assert!(usage.resident_bytes > Some(1 << 20) && usage.resident_bytes < usage.virtual_bytes);
        assert!(usage.threads >= Some(1) && usage.descriptors >= Some(3));
        assert!(usage.most_descriptors >= usage.descriptors);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let now = now.expect("after 1970").as_secs_f64();
        let start = usage.start_time.expect("a time");
        assert!(
            start > now - 86_400.0 && start <= now + 1.0,
            "{start} {now}"
        );
    }
}
