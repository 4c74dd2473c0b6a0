//! The channel to the other process, for the control thread: each call runs on a thread of its own.

use crate::{
    handover::{
        channel::{Channel, ChannelError},
        hello::Formats,
        message::{Kind, Message},
    },
    sys::blocking,
};
use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

/// What a call may take beyond its limit before its thread is given up.
const MARGIN: Duration = Duration::from_secs(5);

/// It is of no use after an error, nor after a call that was dropped.
pub(super) struct Link {
    channel: Option<Channel>,
    /// Of the other process.
    pub(super) formats: Formats,
}

impl Link {
    pub(super) fn new(channel: Channel) -> Self {
        Self {
            channel: Some(channel),
            formats: Formats::default(),
        }
    }

    /// Gives the descriptors back.
    pub(super) async fn send(
        &mut self,
        kind: Kind,
        body: Vec<u8>,
        descriptors: Vec<OwnedFd>,
        limit: Duration,
    ) -> Result<Vec<OwnedFd>, ChannelError> {
        let version = self.formats.common(kind);
        let version = version.or_else(|| kind.versions().first().copied());
        let send = move |channel: &mut Channel| {
            let deadline = Instant::now() + limit;
            let borrowed: Vec<BorrowedFd<'_>> = descriptors.iter().map(|fd| fd.as_fd()).collect();
            let version = version.unwrap_or_default();
            channel.send(kind, version, &body, &borrowed, deadline)?;
            drop(borrowed);
            Ok(descriptors)
        };
        self.call(limit, send).await
    }

    pub(super) async fn receive(&mut self, limit: Duration) -> Result<Message, ChannelError> {
        let receive = move |channel: &mut Channel| channel.receive(Instant::now() + limit);
        self.call(limit, receive).await
    }

    /// Runs `work` on a thread of its own. `limit`: how long it may take.
    pub(super) async fn call<T: Send + 'static>(
        &mut self,
        limit: Duration,
        work: impl FnOnce(&mut Channel) -> Result<T, ChannelError> + Send + 'static,
    ) -> Result<T, ChannelError> {
        let mut channel = self.channel.take().ok_or(ChannelError::Closed)?;
        let call = move || {
            let result = work(&mut channel);
            (channel, result)
        };
        let called = blocking::call(limit + MARGIN, call).await;
        let (channel, result) = called.map_err(|error| match error.kind() {
            io::ErrorKind::TimedOut => ChannelError::TimedOut,
            _ => ChannelError::Io(error),
        })?;
        self.channel = Some(channel);
        result
    }

    pub(super) fn into_channel(self) -> Option<Channel> {
        self.channel
    }
}
