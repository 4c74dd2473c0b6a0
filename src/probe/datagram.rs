//! A question in one datagram, and the wait for its reply.

use super::{CheckReport, dialogue::Answer, dns::DnsCheck, transcript};
use crate::{
    plan::{Addr, reason::CheckResult},
    runtime::net::connect_datagrams,
};
use std::{io, time::Duration};
use tokio::{
    net::UdpSocket,
    time::{Instant, timeout_at},
};

/// What is longer is cut off: only the beginning is looked at.
const LONGEST: usize = 2048;

/// One question under one deadline; there is no connection to end.
pub(super) async fn ask(
    settings: &DnsCheck,
    addr: &Addr,
    id: u16,
    timeout: Duration,
) -> CheckReport {
    let began = Instant::now();
    let mut ignored = Ignored::default();
    let asked = timeout_at(began + timeout, converse(settings, addr, id, &mut ignored)).await;
    let answer = match asked {
        Ok(Ok(answer)) => answer,
        Ok(Err(e)) => {
            let text = format!("{}{}", transcript::error(&e), ignored.describe());
            Answer::new(CheckResult::of(&e), text)
        }
        Err(_) => {
            let text = format!("no answer within {timeout:?}{}", ignored.describe());
            Answer::new(CheckResult::Timeout, text)
        }
    };
    CheckReport {
        result: answer.result,
        finding: answer.finding,
        transcript: format!("{}: {}", settings.shown, answer.transcript),
        took: began.elapsed(),
    }
}

/// Datagrams that were received and are no reply.
#[derive(Default)]
struct Ignored {
    count: usize,
    last: String,
}

impl Ignored {
    fn describe(&self) -> String {
        match self.count {
            0 => String::new(),
            count => format!("; ignored {count}, the last: {}", self.last),
        }
    }
}

/// From a socket of its own, so that the kernel chooses a port that cannot be guessed, and reports
/// a port that is closed.
async fn converse(
    settings: &DnsCheck,
    addr: &Addr,
    id: u16,
    ignored: &mut Ignored,
) -> io::Result<Answer> {
    let socket = UdpSocket::from_std(connect_datagrams(addr)?)?;
    socket.send(&settings.ask(id)).await?;
    let mut bytes = [0; LONGEST];
    loop {
        let length = socket.recv(&mut bytes).await?;
        match settings.receive(id, &bytes[..length]) {
            Ok(answer) => return Ok(answer),
            // A late reply to another question, or a forged one.
            Err(why) => {
                ignored.count += 1;
                ignored.last = format!("{why}, {}", transcript::quote(&bytes[..length]));
            }
        }
    }
}
