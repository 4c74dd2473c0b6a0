//! The token by which the reactor reports a socket.

/// Which socket an event is about.
pub(super) enum Token {
    Port {
        listener: usize,
        port: u16,
    },
    Flow {
        listener: usize,
        serial: u32,
        number: u32,
    },
    /// No socket: a flow that waits before it begins.
    Waiting {
        listener: usize,
        serial: u32,
        number: u16,
    },
}

/// Bits of a serial: enough that none comes again while an event is on its way.
pub(super) const SERIAL: u32 = 20;
/// As many as the other bits can number. No token is one of the reactor: those of ports have no
/// serial.
pub const MOST_LISTENERS: usize = 1 << (32 - SERIAL);
/// From here on numbers are those of ports.
const PORTS: u32 = u32::MAX - u16::MAX as u32;
/// From here on up to those of ports they are those of flows that wait.
const WAITING: u32 = PORTS - u16::MAX as u32 - 1;

impl Token {
    pub(super) fn port(listener: usize, port: u16) -> u64 {
        Self::flow(listener, 0, PORTS + u32::from(port))
    }

    pub(super) fn flow(listener: usize, serial: u32, number: u32) -> u64 {
        (listener as u64) << (32 + SERIAL) | u64::from(serial) << 32 | u64::from(number)
    }

    pub(super) fn waiting(listener: usize, serial: u32, number: u16) -> u64 {
        Self::flow(listener, serial, WAITING + u32::from(number))
    }

    pub(super) fn of(bits: u64) -> Self {
        let listener = (bits >> (32 + SERIAL)) as usize;
        let serial = (bits >> 32) as u32 & ((1 << SERIAL) - 1);
        match bits as u32 {
            PORTS.. => Self::Port {
                listener,
                port: (bits as u32 - PORTS) as u16,
            },
            number @ WAITING..PORTS => Self::Waiting {
                listener,
                serial,
                number: (number - WAITING) as u16,
            },
            number => Self::Flow {
                listener,
                serial,
                number,
            },
        }
    }
}
