//! How a command talks to the daemon: a socket beside the cache, one JSON object a line.

mod address;
pub mod client;
mod connection;
mod lines;
pub mod protocol;
pub mod registry;
pub mod server;

pub use connection::Limits;
