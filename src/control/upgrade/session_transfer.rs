//! Live sessions on their way to the new process.

use super::link::Link;
use crate::{
    control::{HandedPlaces, OtherProcess, Server, SessionSender, SessionsReport},
    handover::{
        channel::{Channel, ChannelError},
        message::Kind,
        places::PlacesRecord,
    },
};
use std::{sync::Arc, time::Duration};

/// All sessions may take so long. Each message has a limit of its own.
const ALL: Duration = Duration::from_secs(600);
/// How long sessions that begin to be relayed are waited for before this process reports what is
/// left.
const LATER: Duration = Duration::from_millis(100);

/// `None` once the call that had it has been given up.
pub(super) struct SessionTransfer(Option<Box<SessionSender>>);

impl SessionTransfer {
    /// `None`: the new process does not understand the sessions of this one.
    pub(super) fn begin(server: &Server, link: &Link) -> Option<Self> {
        let version = link.formats.common(Kind::Sessions)?;
        link.formats.common(Kind::SessionsTaken)?;
        let sessions = &server.state.process.sessions;
        let sender = SessionSender::new(sessions, server.carriers(), version);
        Some(Self(Some(Box::new(sender))))
    }

    /// The new process gives places from now on, and knows `sent` of them.
    pub(super) fn set_places(&mut self, places: &Arc<HandedPlaces>, sent: Vec<PlacesRecord>) {
        if let Some(sender) = &mut self.0 {
            sender.set_places(places, sent);
        }
    }

    /// Sends the sessions that wait for a backend.
    pub(super) async fn send_waiting(&mut self, link: &mut Link) -> Result<(), ChannelError> {
        self.send(link, SessionSender::send_waiting).await
    }

    /// Sends the sessions that are relayed.
    pub(super) async fn send_all(&mut self, link: &mut Link) -> Result<(), ChannelError> {
        self.send(link, SessionSender::send_all).await
    }

    /// The same for sessions that begin to be relayed now.
    pub(super) async fn follow(&mut self, link: &mut Link) -> Result<(), ChannelError> {
        let send = |sender: &mut SessionSender, channel: &mut Channel| {
            sender.wait(LATER);
            sender.send_all(channel)
        };
        self.send(link, send).await
    }

    async fn send<F>(&mut self, link: &mut Link, send: F) -> Result<(), ChannelError>
    where
        F: FnOnce(&mut SessionSender, &mut Channel) -> Result<(), ChannelError> + Send + 'static,
    {
        let Some(mut sender) = self.0.take() else {
            return Err(ChannelError::Closed);
        };
        let send = move |channel: &mut Channel| {
            let sent = send(&mut sender, channel);
            // It comes back in any case: without it sessions would go on in this process.
            Ok((sender, sent))
        };
        let (sender, sent) = link.call(ALL, send).await?;
        self.0 = Some(sender);
        sent
    }

    pub(super) fn report(&self) -> SessionsReport {
        let report = self.0.as_ref().map(|sender| sender.report().clone());
        report.unwrap_or_default()
    }

    /// Those that were not taken go on in this process.
    pub(super) async fn end(self, link: &mut Link, other: OtherProcess) {
        let Some(sender) = self.0 else {
            return;
        };
        let end = move |channel: &mut _| Ok((*sender).end(Some(channel), other));
        match (link.call(ALL, end).await, other) {
            (Ok(report), OtherProcess::Dead) => {
                tracing::info!(lost = report.taken, "sessions go on in this process");
            }
            (Ok(_), OtherProcess::Alive) => {}
            (Err(error), _) => tracing::warn!(%error, "sessions may not go on"),
        }
    }
}
