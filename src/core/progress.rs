//! The progress of a batch.

use serde::{Deserialize, Serialize};

/// The phase of a batch, or a scrub.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// The set of changes is being determined.
    Cut,
    /// Contents are written to the staging directory.
    Stage,
    /// The written contents are read back and compared.
    Verify,
    /// The record of the batch is written.
    Commit,
    /// Files are moved to their names.
    Apply,
    /// The result is noted in the index, and the record is removed.
    Confirm,
    /// No phase of a batch: files of the drive are read and compared with their hashes.
    Scrub,
}

/// The progress of a batch or a scrub. The totals may grow while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// The current phase.
    pub phase: Phase,
    /// Files completed in this phase.
    pub files_done: u64,
    /// Files of this phase in total.
    pub files_total: u64,
    /// Bytes completed in this phase.
    pub bytes_done: u64,
    /// Bytes of this phase in total.
    pub bytes_total: u64,
    /// The number of seconds without an answer of the drive; 0 if it answers. The batch waits for
    /// the drive and then continues.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub silent_seconds: u64,
}

/// Why a flush writes more slowly than it could.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Slowed {
    /// Others read from the drive.
    OthersRead,
    /// The user has set a limit.
    Limit,
}

impl Slowed {
    /// Returns the reason in words.
    pub fn in_words(self) -> &'static str {
        match self {
            Slowed::OthersRead => "writing slowly: the drive is being read by others",
            Slowed::Limit => "writing slowly: limit_rate is reached",
        }
    }
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}
