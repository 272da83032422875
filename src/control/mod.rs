//! The protocol between a command and the daemon: a socket in the cache directory, one JSON object
//! per line.

mod address;
pub mod client;
mod connection;
mod failure;
mod lines;
pub mod mounts;
pub mod protocol;
pub mod registry;
pub mod server;

pub use connection::Limits;
pub mod users;
