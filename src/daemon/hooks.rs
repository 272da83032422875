//! What a flush needs of the file system that is served.

use std::sync::Arc;

use super::lease::Keeper;
use crate::backend::Backend;
use crate::base::Ino;
use crate::flush::{FlushError, Hooks};
use crate::fs::{Fs, FsError};
use crate::rules::merge::Changes;

pub(super) struct FlushHooks {
    pub(super) fs: Arc<Fs>,
    pub(super) lease: Arc<Keeper>,
}

impl Hooks for FlushHooks {
    fn sync_cache(&self) -> Result<(), String> {
        self.fs.sync().map_err(|error| error.to_string())
    }

    fn settle(&self) -> Result<(), String> {
        self.fs
            .settle_for_batch()
            .map_err(|error| error.to_string())
    }

    fn look_at(&self, backend: &dyn Backend, dir: Ino) -> Result<(bool, Vec<Ino>), FlushError> {
        let look = self.fs.look_at(backend, dir).map_err(flush_error)?;
        Ok((look.differs, look.dirs))
    }

    fn take_in(
        &self,
        backend: &dyn Backend,
        dirs: &[Ino],
        still_right: &mut dyn FnMut() -> bool,
    ) -> Result<Changes, FlushError> {
        let taken = self.fs.take_in(backend, dirs, still_right);
        taken.map_err(flush_error)
    }

    fn catalog_changed(&self) -> Result<(), String> {
        self.fs.believe_anew().map_err(|error| error.to_string())
    }

    fn hold_open(&self, inos: &[Ino]) {
        self.fs.hold_open_for_readers(inos);
    }

    fn may_write(&self, backend: &dyn Backend) -> Result<(), String> {
        let checked = self.lease.check(backend);
        checked.map_err(|error| error.to_string())
    }

    fn give_up_reserve(&self) -> bool {
        self.fs.give_up_reserve()
    }
}

fn flush_error(error: FsError) -> FlushError {
    match error {
        FsError::Backend(error) => FlushError::Backend(error),
        FsError::Index(error) => FlushError::Index(error),
        FsError::Store(error) => FlushError::Store(error),
        FsError::Detached => FlushError::Detached,
        other => FlushError::Cache {
            operation: "take in what others have changed".into(),
            source: std::io::Error::other(other.to_string()),
        },
    }
}
