//! The SSD side below the index: objects, their lock, the space they take.

mod damage;
mod fault;
mod lock;
pub mod private;
mod reserve;
mod store;

pub use damage::Damage;
#[doc(hidden)]
pub use fault::Fault;
pub use lock::{CacheLock, LockError};
pub use reserve::Reserve;
pub(crate) use store::id_of;
pub use store::{Store, StoreError};
