//! Memory that the allocator keeps although it is not used any more.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Less than this is kept for the next burst of load.
const WORTH: u64 = 8 << 20;

/// The least that was ever resident since the start.
static LEAST_RESIDENT: AtomicU64 = AtomicU64::new(u64::MAX);
/// The least that was unused since memory was last given back, which counts as unused, too.
static LEAST_UNUSED: AtomicU64 = AtomicU64::new(u64::MAX);

/// Keeps glibc from raising its thresholds whenever a large block is freed, after which later
/// large blocks would stay with the process for good. To be called before there are threads.
pub fn prepare() {
    if let Some(resident) = resident() {
        LEAST_RESIDENT.fetch_min(resident, Relaxed);
    }
    #[cfg(target_env = "gnu")]
    {
        for (setting, bytes) in [
            (libc::M_MMAP_THRESHOLD, 256 << 10),
            (libc::M_TRIM_THRESHOLD, 1 << 20),
        ] {
            // SAFETY: it takes two integers and changes the allocator's own settings under its
            // own lock.
            unsafe {
                libc::mallopt(setting, bytes);
            }
        }
    }
}

/// Whether so much more is resident than was once that [`give_back`] may be worth the time.
pub fn has_grown() -> bool {
    resident().is_some_and(|resident| {
        let least = LEAST_RESIDENT.fetch_min(resident, Relaxed).min(resident);
        resident - least >= WORTH
    })
}

/// Gives memory back to the kernel after a burst of load. May block for milliseconds.
pub fn give_back() {
    let unused = unused();
    let least = match LEAST_UNUSED.fetch_min(unused, Relaxed) {
        u64::MAX => 0,
        least => least.min(unused),
    };
    if unused - least >= WORTH {
        trim();
        LEAST_UNUSED.store(unused, Relaxed);
    }
}

/// The same once after a burst that does not come again, however little it is.
pub fn give_back_all() {
    trim();
    LEAST_UNUSED.store(unused(), Relaxed);
}

/// Bytes of this process that are in memory.
fn resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kilobytes * 1024)
}

/// Free bytes that the allocator holds.
fn unused() -> u64 {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: it takes nothing, and returns a struct of integers.
        let info = unsafe { libc::mallinfo2() };
        info.fordblks as u64
    }
    #[cfg(not(target_env = "gnu"))]
    {
        0
    }
}

fn trim() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: it takes an integer, locks what it changes, and touches only pages that hold no
        // live block.
        unsafe {
            libc::malloc_trim(0);
        }
    }
}
