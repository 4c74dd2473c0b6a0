//! A question in one datagram, and the wait for its reply.

use super::{Answer, Report, dns::Talk, transcript};
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

/// One question under one deadline; nobody is to be taken leave of.
pub(super) async fn ask(talk: &Talk, addr: &Addr, id: u16, timeout: Duration) -> Report {
    let began = Instant::now();
    let mut course = Course::default();
    let asked = timeout_at(began + timeout, converse(talk, addr, id, &mut course)).await;
    let answer = match asked {
        Ok(Ok(answer)) => answer,
        Ok(Err(e)) => {
            let text = format!("{}{}", transcript::error(&e), course.ignored());
            Answer::new(CheckResult::of(&e), text)
        }
        Err(_) => {
            let text = format!("no answer within {timeout:?}{}", course.ignored());
            Answer::new(CheckResult::Timeout, text)
        }
    };
    Report {
        result: answer.result,
        finding: answer.finding,
        transcript: answer.heard,
        took: began.elapsed(),
    }
}

/// What has come and was no reply.
#[derive(Default)]
struct Course {
    ignored: usize,
    last: String,
}

impl Course {
    fn ignored(&self) -> String {
        match self.ignored {
            0 => String::new(),
            count => format!("; ignored {count}, the last: {}", self.last),
        }
    }
}

/// From a socket of its own, so that the kernel chooses a port that nobody can guess, and tells of
/// a port that is closed.
async fn converse(talk: &Talk, place: &Addr, id: u16, course: &mut Course) -> io::Result<Answer> {
    let socket = UdpSocket::from_std(connect_datagrams(place)?)?;
    socket.send(&talk.ask(id)).await?;
    let mut bytes = [0; LONGEST];
    loop {
        let length = socket.recv(&mut bytes).await?;
        match talk.hear(id, &bytes[..length]) {
            Ok(answer) => return Ok(answer),
            // Somebody else's, or somebody who would like it to be taken for the reply.
            Err(why) => {
                course.ignored += 1;
                course.last = format!("{why}, {}", transcript::quote(&bytes[..length]));
            }
        }
    }
}
