//! The SSD below the index: objects, the lock of the cache, and the reserved space.

mod before_images;
mod block_lists;
mod damage;
mod fault;
mod lock;
pub mod private;
mod reserve;
mod store;

pub use block_lists::{BlockList, BlockLists, Cutter, MOST_BLOCKS, block_size};
pub use damage::Damage;
#[doc(hidden)]
#[cfg(any(test, feature = "testing"))]
pub use fault::ObjectFault;
pub use lock::{CacheLock, LockError};
pub use reserve::Reserve;
pub(crate) use store::id_of;
pub use store::{Store, StoreError};
