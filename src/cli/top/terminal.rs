//! The terminal while it belongs to `tembuku top`, and as it was before, afterwards: at every end
//! but that by SIGKILL.

use crate::sys::mutex::Mutex;
use rustix::{
    fd::AsFd,
    process::{Signal, getpid, kill_process},
    termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr},
};
use std::{
    io::{self, Write as _},
    sync::Once,
};

/// The alternate screen, without a cursor and without wrapped lines.
const ENTER: &str = "\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[2J";
const LEAVE: &str = "\x1b[?7h\x1b[?25h\x1b[0m\x1b[?1049l";

/// The settings to go back to; `None`: the terminal is as it was.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// The terminal is restored when this is dropped, and before the message of a panic.
pub(super) struct Terminal(());

/// Columns and lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Size {
    pub(super) columns: usize,
    pub(super) lines: usize,
}

impl Terminal {
    pub(super) fn enter() -> io::Result<Self> {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let report = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                restore();
                report(panic);
            }));
        });
        take()?;
        Ok(Self(()))
    }

    /// As it is now.
    pub(super) fn size(&self) -> Size {
        let size = tcgetwinsize(io::stdout()).ok();
        let of = |n: u16, or| if n == 0 { or } else { usize::from(n) };
        size.map_or((80, 24).into(), |size| {
            (of(size.ws_col, 80), of(size.ws_row, 24)).into()
        })
    }

    /// One that takes nothing any more is an error.
    pub(super) fn write(&mut self, bytes: &str) -> io::Result<()> {
        let mut out = io::stdout().lock();
        out.write_all(bytes.as_bytes())?;
        out.flush()
    }

    /// Stops as other programs do at Ctrl-Z; returns when the shell has continued it.
    pub(super) fn suspend(&mut self) -> io::Result<()> {
        restore();
        kill_process(getpid(), Signal::TSTP)?;
        take()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        restore();
    }
}

impl From<(usize, usize)> for Size {
    fn from((columns, lines): (usize, usize)) -> Self {
        Self { columns, lines }
    }
}

fn take() -> io::Result<()> {
    let settings = set_raw(io::stdin())?;
    *BEFORE.lock() = Some(settings);
    let mut out = io::stdout().lock();
    out.write_all(ENTER.as_bytes())?;
    out.flush()
}

/// What happens before.
fn restore() {
    let mut before = BEFORE.lock();
    if let Some(settings) = before.take() {
        // It may be gone.
        let mut out = io::stdout().lock();
        let _ = out.write_all(LEAVE.as_bytes()).and_then(|()| out.flush());
        let _ = tcsetattr(io::stdin(), OptionalActions::Flush, &settings);
    }
}

/// Every key comes at once, unchanged, and without an echo. The settings before.
fn set_raw(input: impl AsFd) -> io::Result<Termios> {
    let before = tcgetattr(&input)?;
    let mut raw = before.clone();
    raw.make_raw();
    tcsetattr(&input, OptionalActions::Flush, &raw)?;
    Ok(before)
}
