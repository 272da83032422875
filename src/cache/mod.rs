//! The SSD side below the index: objects, their lock, the space they take.

mod lock;
mod store;

pub use lock::{CacheLock, LockError};
pub(crate) use store::id_of;
pub use store::{Store, StoreError};
