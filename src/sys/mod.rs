//! System calls: the only module with `unsafe`. Thin, typed wrappers of calls that the standard
//! library does not have. Each returns a plain [`std::io::Error`]; callers add the operation and
//! the path.

pub mod behalf;
pub mod caller;
pub mod changeable;
pub mod dir;
pub mod direct;
pub mod disk;
pub mod fds;
pub mod file;
#[cfg(test)]
pub(crate) mod forbid;
pub mod holders;
pub mod host;
pub mod locks;
pub mod mounting;
pub mod mounts;
pub mod owners;
pub mod path;
pub mod priority;
pub mod remount;
pub mod signal;
pub mod superblock;
pub mod terminal;
pub mod time;
pub mod way;
pub mod xattr;
