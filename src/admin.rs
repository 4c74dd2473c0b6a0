//! What operators and their tools see, over HTTP, and what they may do on the socket.

mod control;
mod http;
mod page;
mod socket;
mod status;

pub use http::{Door, serve};
pub use page::size;
pub use socket::listen;
