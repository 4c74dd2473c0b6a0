//! What operators and their tools see, over HTTP.

mod http;
mod page;
mod status;

pub use http::serve;
