//! Raw system calls that no crate wraps safely. The only room with `unsafe` in it.

pub mod fds;
pub mod xattr;
