//! What operators and their tools see, over HTTP, and what they may do on the socket.

mod control;
mod format;
mod host;
mod http;
mod page;
mod readiness;
mod reload;
mod render;
mod scrape;
mod socket;
mod status;

pub use crate::admin::format::{availability, load, reasons, size};
pub use http::{AdminListener, serve};
pub use render::Renderer;
pub use scrape::scrape;
pub use socket::listen;
