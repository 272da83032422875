//! Journals that no batch needs any more, and the files beside them.

use std::ffi::OsStr;
use std::fs;
use std::io;

use super::Flusher;
use crate::core::ForeignText;
use crate::error::{FlushError, Result};

impl Flusher {
    /// Removes the journals of ended batches with the backups beside them, and journals that were
    /// only half written. A daemon that dies between the end of a batch and the removal of its
    /// journal leaves one; no later batch has that number, so nothing else would find it.
    ///
    /// To be called while no batch is running. The journal of the open batch stays.
    pub(super) fn sweep_journals(&self) -> Result<()> {
        let open = self.parts.index.lock().active_batch().map(|it| it.batch);
        let open = open.map(|batch| format!("{:016x}", batch.0));
        let dir = &self.parts.journals;
        let failed = |operation: &str| {
            let operation = format!("{operation} {}", dir.escaped());
            move |source: io::Error| FlushError::Cache { operation, source }
        };
        for entry in fs::read_dir(dir).map_err(failed("list"))? {
            let path = entry.map_err(failed("list"))?.path();
            if path.file_stem() == open.as_deref().map(OsStr::new) {
                continue;
            }
            match path.extension().and_then(OsStr::to_str) {
                Some("journal" | "tmp") => fs::remove_file(&path),
                Some("keep") => fs::remove_dir_all(&path),
                _ => Ok(()),
            }
            .map_err(failed("tidy up"))?;
        }
        Ok(())
    }
}
