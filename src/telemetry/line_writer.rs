//! Lines to a file or a standard stream, written by a thread of their own.
//!
//! Writing a line never blocks: a stalled reader or a full disk costs lines, which are counted, and
//! never delays a session.

use crate::sys::files;
use std::{
    fs::File,
    io::{self, Write},
    os::fd::AsFd,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
        mpsc::{Receiver, SyncSender, TryRecvError, TrySendError, sync_channel},
    },
    time::{Duration, Instant},
};

/// Lines that may wait for the writer.
const QUEUE: usize = 8192;
/// Bytes of one write, about.
const BATCH: usize = 64 * 1024;
/// The interval between two batches under a steady stream of lines. Waking the writer for each line
/// costs the calling thread more than the line.
const BATCH_INTERVAL: Duration = Duration::from_millis(10);
/// How many batches may follow each other without that interval.
const BURST: u32 = 32;
/// How long a flush waits for a writer that makes no progress.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);
const FLUSH_RETRY_INTERVAL: Duration = Duration::from_millis(5);
/// How often a writer whose reader has stalled checks whether the file is to be reopened.
const STALL_CHECK_INTERVAL: Duration = Duration::from_millis(100);

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    Stdout,
    Stderr,
    File(PathBuf),
}

/// The queue of a writer; clones share it.
#[derive(Debug, Clone)]
pub struct Lines {
    queue: SyncSender<Message>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// May be shared with other writers.
    dropped: Arc<AtomicU64>,
    /// Lines that were put into the queue.
    accepted: AtomicU64,
    /// Those of them that were written or lost.
    finished: AtomicU64,
    reopen: AtomicBool,
}

#[derive(Debug)]
enum Message {
    Line(Vec<u8>),
    /// Answered when everything before it has been written.
    Flush(SyncSender<()>),
    /// Only wakes the writer, which then checks whether the file is to be reopened.
    Wake,
}

impl Lines {
    pub fn open(destination: Destination) -> io::Result<Self> {
        Self::open_counting(destination, Arc::default())
    }

    /// Lines that are not written are added to `dropped`.
    pub fn open_counting(destination: Destination, dropped: Arc<AtomicU64>) -> io::Result<Self> {
        let (to, mid_line) = open(&destination)?;
        let (queue, messages) = sync_channel(QUEUE);
        let shared = Arc::new(Shared {
            dropped,
            ..Shared::default()
        });
        let mut writer = Writer {
            destination,
            to,
            shared: Arc::clone(&shared),
            batch: Vec::new(),
            lines: 0,
            mid_line,
            failing: false,
            scheduled: Instant::now(),
        };
        std::thread::Builder::new()
            .name("log-writer".to_owned())
            .spawn(move || writer.run(&messages))?;
        Ok(Self { queue, shared })
    }

    /// `line` ends with a newline.
    pub fn write(&self, line: Vec<u8>) {
        if self.queue.try_send(Message::Line(line)).is_err() {
            self.shared.dropped.fetch_add(1, Relaxed);
        } else {
            self.shared.accepted.fetch_add(1, Relaxed);
        }
    }

    /// Lines that were not written.
    #[cfg(test)]
    fn dropped(&self) -> u64 {
        self.shared.dropped.load(Relaxed)
    }

    /// Lines that the writer has still to write.
    pub fn pending(&self) -> u64 {
        let finished = self.shared.finished.load(Relaxed);
        self.shared.accepted.load(Relaxed).saturating_sub(finished)
    }

    /// Writes to a new file of the same name: the old one has been moved away.
    pub fn reopen(&self) {
        self.shared.reopen.store(true, Relaxed);
        // A full queue will wake the writer as well.
        let _ = self.queue.try_send(Message::Wake);
    }

    /// Waits until all lines so far have been written, but not for a writer that is stuck.
    pub fn flush(&self) {
        let begun = Instant::now();
        let (done, written) = sync_channel(1);
        let mut message = Message::Flush(done);
        // A full queue is no reason to give up: the writer may be emptying it.
        while let Err(TrySendError::Full(back)) = self.queue.try_send(message) {
            if begun.elapsed() >= FLUSH_TIMEOUT {
                return;
            }
            message = back;
            std::thread::sleep(FLUSH_RETRY_INTERVAL);
        }
        let _ = written.recv_timeout(FLUSH_TIMEOUT);
    }
}

struct Writer {
    destination: Destination,
    /// Unbuffered.
    to: File,
    shared: Arc<Shared>,
    batch: Vec<u8>,
    /// How many lines are in the batch.
    lines: u64,
    /// The last write failed half-way through a line, here or in a process before this one.
    mid_line: bool,
    /// The last write failed.
    failing: bool,
    /// When the batches so far would have ended if each had taken [`BATCH_INTERVAL`].
    scheduled: Instant,
}

impl Writer {
    fn run(&mut self, messages: &Receiver<Message>) {
        loop {
            let message = match messages.try_recv() {
                Ok(message) => message,
                Err(TryRecvError::Disconnected) => {
                    self.write_batch();
                    return;
                }
                Err(TryRecvError::Empty) => {
                    if self.write_batch() {
                        self.pause();
                    }
                    match messages.recv() {
                        Ok(message) => message,
                        Err(_) => return,
                    }
                }
            };
            if self.shared.reopen.swap(false, Relaxed) {
                self.write_batch();
                let name = self.destination.name();
                match open(&self.destination) {
                    Ok((to, mid_line)) => {
                        (self.to, self.mid_line) = (to, mid_line);
                        tracing::info!(to = name, "log file reopened");
                    }
                    // The old file is better than none.
                    Err(error) => {
                        let to = name;
                        tracing::error!(%error, to, "cannot reopen, keeping the old file");
                    }
                }
            }
            match message {
                Message::Line(line) => {
                    self.batch.extend_from_slice(&line);
                    self.lines += 1;
                    if self.batch.len() >= BATCH {
                        self.write_batch();
                    }
                }
                Message::Flush(done) => {
                    self.write_batch();
                    let _ = done.try_send(());
                }
                Message::Wake => {}
            }
        }
    }

    /// Pauses after a batch if there were many.
    fn pause(&mut self) {
        let now = Instant::now();
        self.scheduled = self.scheduled.max(now) + BATCH_INTERVAL;
        if self.scheduled > now + BATCH_INTERVAL * BURST {
            std::thread::sleep(BATCH_INTERVAL);
        }
    }

    /// Waits until the file can be written. Returns false if the batch is to be given up: once the
    /// file is to be reopened, a stalled reader gets [`FLUSH_TIMEOUT`].
    fn wait(&self) -> bool {
        let mut reopen_since = None;
        loop {
            match files::wait_writable(&self.to, STALL_CHECK_INTERVAL) {
                Ok(true) => return true,
                Ok(false) => {}
                Err(_) => return false,
            }
            if self.shared.reopen.load(Relaxed) {
                let since: &Instant = reopen_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= FLUSH_TIMEOUT {
                    return false;
                }
            }
        }
    }

    /// Returns whether there was anything to write.
    fn write_batch(&mut self) -> bool {
        if self.batch.is_empty() {
            return false;
        }
        if self.mid_line {
            self.batch.insert(0, b'\n');
        }
        let mut at = 0;
        while at < self.batch.len() {
            match self.to.write(&self.batch[at..]) {
                Ok(0) => break,
                Ok(n) => at += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock && self.wait() => {}
                Err(_) => break,
            }
        }
        if at > 0 {
            self.mid_line = self.batch[at - 1] != b'\n';
        }
        let whole = at == self.batch.len();
        if !whole {
            let written = self.batch[..at].iter().filter(|b| **b == b'\n').count() as u64;
            let lost = self.lines.saturating_sub(written).max(1);
            self.shared.dropped.fetch_add(lost, Relaxed);
        }
        // Once, not for every batch; and not into itself.
        if !whole && !self.failing && !matches!(self.destination, Destination::Stderr) {
            let to = self.destination.name();
            tracing::error!(to, "cannot write, lines are lost and counted");
        }
        self.failing = !whole;
        self.shared.finished.fetch_add(self.lines, Relaxed);
        self.batch.clear();
        self.lines = 0;
        true
    }
}

impl Destination {
    fn name(&self) -> String {
        match self {
            Self::Stdout => "stdout".to_owned(),
            Self::Stderr => "stderr".to_owned(),
            Self::File(path) => path.display().to_string(),
        }
    }
}

/// The standard streams without their buffers and locks: another thread that writes to one must
/// not wait for a writer that is stuck. Also returns whether what is there ends within a line.
fn open(destination: &Destination) -> io::Result<(File, bool)> {
    let stream = match destination {
        Destination::Stdout => io::stdout().as_fd().try_clone_to_owned(),
        Destination::Stderr => io::stderr().as_fd().try_clone_to_owned(),
        Destination::File(path) => {
            files::make_folder_of(path);
            return Ok((files::append(path)?, files::ends_within_line(path)));
        }
    };
    Ok((File::from(stream?), false))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{FileType, Mode, OFlags, mknodat};
    use std::{io::Read as _, os::unix::fs::PermissionsExt as _};

    #[test]
    fn lines_arrive_in_order_and_a_reopened_file_is_a_new_one() {
        let folder = std::env::temp_dir().join(format!("tembuku-lines-{}", std::process::id()));
        let (path, moved) = (folder.join("log"), folder.join("log.1"));
        // The folder is made.
        let lines = Lines::open(Destination::File(path.clone())).expect("opened");
        (0..100).for_each(|i| lines.write(format!("{i}\n").into_bytes()));
        lines.flush();
        // It names clients.
        let mode = std::fs::metadata(&path).expect("a file").permissions();
        assert_eq!(mode.mode() & 0o137, 0, "{mode:?}");
        std::fs::rename(&path, &moved).expect("moved");
        lines.reopen();
        lines.write(b"new\n".to_vec());
        lines.flush();
        let old = std::fs::read_to_string(&moved).expect("read");
        let expected: String = (0..100).map(|i| format!("{i}\n")).collect();
        assert_eq!(old, expected);
        assert_eq!(std::fs::read_to_string(&path).expect("read"), "new\n");
        assert_eq!(lines.dropped(), 0);
        std::fs::remove_dir_all(folder).expect("removed");
    }

    #[test]
    fn a_reader_of_a_fifo_that_has_stalled_is_left_behind_when_reopened() {
        let name = format!("tembuku-lines-fifo-{}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&folder).expect("a folder");
        let path = folder.join("log");
        let mode = Mode::from_raw_mode(0o600);
        mknodat(rustix::fs::CWD, &path, FileType::Fifo, mode, 0).expect("a FIFO");
        let open = || Lines::open(Destination::File(path.clone()));
        assert!(open().is_err(), "it has no reader");
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let reader = rustix::fs::open(&path, flags, Mode::empty()).expect("a reader");
        let mut reader = File::from(reader);
        let lines = open().expect("opened");
        let line = [vec![b'x'; 1023], vec![b'\n']].concat();
        (0..200).for_each(|_| lines.write(line.clone()));
        lines.flush();
        assert!(lines.pending() > 0, "a pipe cannot hold 200 KiB");
        std::fs::rename(&path, folder.join("old")).expect("moved");
        lines.reopen();
        while lines.pending() > 0 {
            std::thread::sleep(FLUSH_RETRY_INTERVAL);
        }
        let mut read = Vec::new();
        let _ = reader.read_to_end(&mut read);
        read.extend(std::fs::read(&path).expect("a new file"));
        let written = read.iter().filter(|b| **b == b'\n').count() as u64;
        assert_eq!(written + lines.dropped(), 200);
        assert!(lines.dropped() > 0);
        std::fs::remove_dir_all(folder).expect("removed");
    }

    /// Its disk was full. The file is opened again by the next process, and at a reload.
    #[test]
    fn a_line_that_was_cut_off_takes_no_other_with_it() {
        let name = format!("tembuku-lines-cut-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, "whole\ncut o").expect("written");
        let lines = Lines::open(Destination::File(path.clone())).expect("opened");
        lines.write(b"next\n".to_vec());
        lines.flush();
        let read = || std::fs::read_to_string(&path).expect("read");
        assert_eq!(read(), "whole\ncut o\nnext\n");
        std::fs::write(&path, "cut o").expect("written");
        lines.reopen();
        lines.write(b"after\n".to_vec());
        lines.write(b"more\n".to_vec());
        lines.flush();
        assert_eq!(read(), "cut o\nafter\nmore\n");
        std::fs::remove_file(path).expect("removed");
    }

    #[test]
    fn what_cannot_be_written_is_counted() {
        let lines = Lines::open(Destination::File("/dev/full".into())).expect("opened");
        (0..10).for_each(|_| lines.write(b"gone\n".to_vec()));
        lines.flush();
        assert_eq!(lines.dropped(), 10);
    }
}
