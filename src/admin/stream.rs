//! A body that is made while its client reads it: it takes the memory of a few pieces, however long
//! it gets, and ends with its connection.

use super::lifetime::Lifetime;
use crate::sys::task::boxed;
use hyper::body::{Body, Bytes, Frame};
use serde::Serialize;
use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

/// Pieces that wait for the client; then the maker waits.
const WAITING: usize = 2;
/// Of a piece that is not flushed earlier.
const PIECE: usize = 16 * 1024;

/// The response's side. Dropping it ends the maker at its next wait.
pub(super) struct Stream {
    pieces: mpsc::Receiver<Bytes>,
    lifetime: Arc<Lifetime>,
    _maker: AbortOnDropHandle<()>,
}

/// The maker's side.
pub(super) struct Writer {
    pieces: mpsc::Sender<Bytes>,
    piece: String,
}

/// The client has disconnected.
#[derive(Debug)]
pub(super) struct Disconnected;

impl Stream {
    pub(super) fn start<F>(lifetime: &Arc<Lifetime>, make: impl FnOnce(Writer) -> F) -> Self
    where
        F: Future<Output = Result<(), Disconnected>> + Send + 'static,
    {
        let (send, receive) = mpsc::channel(WAITING);
        let made = make(Writer {
            pieces: send,
            piece: String::new(),
        });
        let maker = tokio::spawn(boxed(async move {
            // A client that has disconnected needs no answer.
            let _ = made.await;
        }));
        Self {
            pieces: receive,
            lifetime: Arc::clone(lifetime),
            _maker: AbortOnDropHandle::new(maker),
        }
    }
}

impl Writer {
    /// Returns once there is memory for more.
    pub(super) async fn write(&mut self, text: &str) -> Result<(), Disconnected> {
        self.piece.push_str(text);
        match self.piece.len() >= PIECE {
            true => self.flush().await,
            false => Ok(()),
        }
    }

    /// At once.
    pub(super) async fn write_line(&mut self, line: &impl Serialize) -> Result<(), Disconnected> {
        let line = serde_json::to_string(line).unwrap_or_default();
        self.write(&(line + "\n")).await?;
        self.flush().await
    }

    pub(super) async fn flush(&mut self) -> Result<(), Disconnected> {
        let piece = std::mem::take(&mut self.piece);
        match piece.is_empty() {
            true => Ok(()),
            false => {
                let sent = self.pieces.send(Bytes::from(piece)).await;
                sent.map_err(|_| Disconnected)
            }
        }
    }
}

impl Body for Stream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let piece = ready!(self.pieces.poll_recv(context));
        // What goes on is no connection that was forgotten.
        self.lifetime.extend();
        Poll::Ready(piece.map(|piece| Ok(Frame::data(piece))))
    }
}
