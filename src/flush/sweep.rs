//! Journals that nobody needs any more.

use std::ffi::OsStr;
use std::fs;
use std::io;

use super::Flusher;
use super::report::{FlushError, Result};

impl Flusher {
    /// Removes the journals of ended batches, and what writing one has left half done. A daemon that dies between the end of
    /// a batch and the removal of its journal leaves one; no batch ever has that number again, so nobody else would find it.
    ///
    /// To be called while no batch is under way but the one that is open: its journal stays.
    pub(super) fn sweep_journals(&self) -> Result<()> {
        let open = self.parts.index.lock().active_batch().map(|it| it.batch);
        let open = open.map(|batch| format!("{:016x}.journal", batch.0));
        let dir = &self.parts.journals;
        let failed = |operation: &str| {
            let operation = format!("{operation} {}", dir.display());
            move |source: io::Error| FlushError::Cache { operation, source }
        };
        for entry in fs::read_dir(dir).map_err(failed("list"))? {
            let path = entry.map_err(failed("list"))?.path();
            let ours = path
                .extension()
                .is_some_and(|it| it == "journal" || it == "tmp");
            if ours && path.file_name() != open.as_deref().map(OsStr::new) {
                fs::remove_file(&path).map_err(failed("tidy up"))?;
            }
        }
        Ok(())
    }
}
