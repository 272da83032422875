//! The SSD side below the index: objects, their lock, the space they take.

mod lock;
mod store;

pub use lock::{CacheLock, LockError};
pub use store::{Store, StoreError};
