//! What operators and their tools see, over HTTP, and what they may do on the socket.

mod ages;
mod control;
mod events;
mod fields;
mod format;
mod history;
mod host;
mod http;
mod lifetime;
mod overview;
mod page;
mod readiness;
mod reload;
mod render;
mod request;
mod scrape;
mod sessions;
mod socket;
mod status;
mod stream;
mod terminate;
mod upgrade;

pub use crate::admin::format::{
    Availability, OperatorSettings, SourceFigures, availability, earlier_settings, explain,
    is_good, is_well, listener_name, load, reasons, size, source_text, span, state_rank,
};
pub use http::{AdminListener, serve};
pub use render::Renderer;
pub use scrape::scrape;
pub use socket::{check as check_socket, listen};
