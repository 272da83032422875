//! What goes over the control socket: one JSON object a line, each with `"v":1`.
//!
//! A request gets any number of [`Reply::Progress`] lines and then exactly one [`Reply::Done`] or [`Reply::Error`].
//! Further requests may follow on the same connection. Fields that a side does not know are ignored, so fields may be
//! added within a version; taking one away or changing its meaning needs the next version.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The version that this program speaks.
pub const VERSION: u32 = 1;

/// Name of the socket in the cache directory.
pub const SOCKET_NAME: &str = "control.sock";

/// What a command asks of the daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum Request {
    /// Whether anybody is there.
    Ping,
    /// How things stand.
    Status,
    /// Carry over what waits, and answer when it is on the backend.
    Flush {
        /// How long to wait at most, in milliseconds; for ever if left out.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        timeout_ms: Option<u64>,
    },
    /// The same with wishes beyond that.
    FlushAs {
        /// What is wished for.
        wish: FlushWish,
    },
    /// Let what was being written when the daemon before died be carried as it is, from the next flush on.
    IncludeInterrupted,
    /// Flush, then let go of the backend; the mount goes on without it.
    Eject,
    /// Take the volume at this place, where it has been mounted.
    Attach {
        /// The backend's directory: an absolute path, as text.
        path: String,
        /// Take it though the file system under it is another one than before, or another drive carries its marker too.
        #[serde(default)]
        accept_copy: bool,
        /// Check its file system before, if it was not let go of in order.
        #[serde(default)]
        fsck: bool,
        /// Take it though another machine has it in use.
        #[serde(default)]
        take_over: bool,
    },
    /// The same for a volume whose marker has been deleted: it is written anew first.
    ReEnroll {
        /// The backend's directory: an absolute path, as text.
        path: String,
        /// Take it though it is empty, or on another file system than before.
        #[serde(default)]
        accept_copy: bool,
    },
    /// Look for what others have changed on the backend, and take it in.
    Refresh {
        /// Where to begin: a path from the mount's root, as text; empty for all of it.
        #[serde(default)]
        path: String,
    },
    /// End the mount and the daemon.
    Unmount {
        /// Flush before.
        flush: bool,
        /// Cut off whoever still uses it.
        #[serde(default, skip_serializing_if = "is_false")]
        force: bool,
    },
    /// Give up the request that this connection waits for, if that is still possible. It has no answer of its own: the request
    /// under way gets one. A connection that is closed cancels nothing.
    Cancel,
}

/// How a flush is to be done. What is left out is not wished for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FlushWish {
    /// How long to wait at most, in milliseconds; for ever if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// Read back what was written, and compare, before the cache lets go of it.
    pub verify: bool,
    /// If the backend is full, carry what was removed in the mount first, in a batch of its own.
    pub removals_first: bool,
}

/// One line of the daemon's answer.
// One at a time, never kept in numbers: its size does not matter.
#[allow(clippy::large_enum_variant)]
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Reply {
    /// How far it is; more follows.
    Progress(Progress),
    /// It is done; nothing follows.
    Done {
        /// What came of it.
        answer: Answer,
    },
    /// It failed; nothing follows.
    Error(ControlError),
}

/// What came of a request.
// One at a time, and gone with the line: a box would buy nothing.
#[allow(clippy::large_enum_variant)]
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Answer {
    /// To [`Request::Ping`].
    Pong {
        /// Version of the daemon's program.
        version: String,
        /// The daemon's process id.
        pid: u32,
    },
    /// To [`Request::Status`].
    Status(Status),
    /// To [`Request::IncludeInterrupted`].
    Included {
        /// How many files are no longer held back.
        files: u64,
    },
    /// To [`Request::Attach`].
    Attached(AttachReport),
    /// To [`Request::Refresh`].
    Refreshed(RefreshReport),
    /// To [`Request::Flush`], [`Request::Eject`] and [`Request::Unmount`].
    Report(FlushReport),
}

/// Where a batch is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// The set of changes is being fixed.
    Cut,
    /// Contents are being written beside their final place.
    Stage,
    /// What was written is being read back and compared.
    Verify,
    /// The record of the batch is being written.
    Commit,
    /// Files are being moved into place.
    Apply,
    /// What was done is being noted, and let go of.
    Confirm,
}

/// How far a batch is. The totals may grow while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Where it is on its way.
    pub phase: Phase,
    /// Files that this phase is through with.
    pub files_done: u64,
    /// Files that this phase has in all.
    pub files_total: u64,
    /// Bytes that this phase is through with.
    pub bytes_done: u64,
    /// Bytes that this phase has in all.
    pub bytes_total: u64,
    /// For how many seconds the backend has not answered; 0 if it does. The batch waits for it and then goes on.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub silent_seconds: u64,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

// serde hands over a reference.
fn is_false(flag: &bool) -> bool {
    !flag
}

/// Whether the backend is at hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BackendState {
    /// It is there, and it is the right one.
    Attached,
    /// It is unplugged, ejected, or does not answer.
    Detached,
}

/// How the bytes of cached files are read and written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IoPath {
    /// By the daemon.
    Daemon,
    /// By the kernel alone.
    Passthrough,
}

/// How things stand.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Where the mount is. As [`crate::base::ForeignText::to_text`] makes it, which is exact; so is every path of this protocol.
    pub mountpoint: String,
    /// The backend's directory.
    pub backend: String,
    /// Identity of the backend's volume.
    pub volume_id: String,
    /// Whether the backend is at hand.
    pub backend_state: BackendState,
    /// Since when the backend, although attached, has not answered: RFC 3339, UTC. `None` if it answers, as far as is known.
    #[serde(default)]
    pub stalled_since: Option<String>,
    /// Changed files, directories and names that wait to be carried over.
    pub dirty_files: u64,
    /// Bytes that wait to be carried over.
    pub dirty_bytes: u64,
    /// What the drive will take for them: whole clusters, a copy for each hard link where it has none, new directories.
    #[serde(default)]
    pub needed_bytes: u64,
    /// Files that are open for writing.
    pub open_for_write: u64,
    /// Bytes that the cache holds.
    pub cached_bytes: u64,
    /// The batch that ended last; `None` if there was none.
    pub last_batch: Option<LastBatch>,
    /// The last look for changes of others; `None` if there was none.
    #[serde(default)]
    pub last_refresh: Option<LastRefresh>,
    /// How many versions of others are in the mount beside its own, as `name.sync-conflict-...`.
    #[serde(default)]
    pub conflicts: u64,
    /// Whether the backend may be unplugged now without anything waiting for it or being written to it.
    pub safe_to_unplug: bool,
    /// Whether a batch is on its way.
    pub batch_in_progress: bool,
    /// Entries that the backend cannot hold (symbolic links, devices, ...) and that live in the index only.
    pub kept_local: u64,
    /// What should be known of the backend though it works, in one line each: that its file system needs to be checked.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// The last thing that went wrong and has not been put right since.
    pub last_error: Option<String>,
    /// What the owner must know and may have to act on: bytes that were lost, what is in lost+found. A line each.
    #[serde(default)]
    pub attention: Vec<String>,
    /// How far what the backend had before has been taken in.
    #[serde(default)]
    pub import: ImportStatus,
    /// How cached files are read and written.
    pub io: IoPath,
    /// Version of the daemon's program.
    pub version: String,
    /// The daemon's process id.
    pub pid: u32,
    /// The cache directory.
    #[serde(default)]
    pub cache: String,
    /// The mount is in the mount table of the daemon. If not, it was unmounted, and something keeps the file system in use.
    #[serde(default = "yes")]
    pub mounted: bool,
    /// If it is not mounted: what keeps it in use.
    #[serde(default)]
    pub users: Users,
    /// Since when the drive is ejected, if it was not seen to be away or attached again since.
    #[serde(default)]
    pub ejected: Option<Ejected>,
    /// What the last flush that ended has left behind; `None` if none has ended since the daemon started.
    #[serde(default)]
    pub last_flush: Option<LastFlush>,
    /// Space of the SSD that the cache is on; `None` if it cannot be told.
    #[serde(default)]
    pub ssd: Option<Space>,
    /// How much of it the cache may take, in bytes: 0 if unknown.
    #[serde(default)]
    pub cache_limit_bytes: u64,
    /// Space of the drive when it was last asked; `None` if it is not there.
    #[serde(default)]
    pub drive: Option<Space>,
}

fn yes() -> bool {
    true
}

/// Space of a file system, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Space {
    /// What a new file may take.
    pub free_bytes: u64,
    /// All of it.
    pub total_bytes: u64,
}

/// An eject that is in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ejected {
    /// When: RFC 3339, UTC.
    pub time: String,
    /// Where the drive is mounted still; `None` once it has been unmounted or unplugged.
    pub mounted_at: Option<String>,
}

/// What the flush that ended last has to say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastFlush {
    /// When it ended: RFC 3339, UTC.
    pub time: String,
    /// What it left behind, the first hundred.
    pub left_behind: Vec<LeftBehind>,
    /// How many that are in all.
    pub left_behind_count: u64,
    /// Files that both sides had changed.
    #[serde(default)]
    pub conflicts: Vec<Conflict>,
}

/// A file that was changed in the mount and on the drive. Both versions are kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conflict {
    /// The file, with the mount's version: a path below the mount.
    pub path: String,
    /// Where the drive's version is: a path below the mount.
    pub theirs: String,
}

/// What keeps a file system in use.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Users {
    /// What was found.
    pub found: Vec<UsedBy>,
    /// There may be more, of other users.
    pub some_unseen: bool,
}

impl Users {
    /// Whether there is nothing to be said.
    pub fn is_empty(&self) -> bool {
        self.found.is_empty() && !self.some_unseen
    }
}

/// A process or mount that keeps a file system in use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsedBy {
    /// The process; `None` for a mount in the daemon's own mount namespace.
    pub pid: Option<u32>,
    /// Its program.
    pub program: Option<String>,
    /// A path by which it uses it, as it sees it.
    pub path: String,
    /// That path is a mount, and no file.
    pub is_mount: bool,
}

/// How far what the backend had before has been taken in. All of it can be used meanwhile.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImportStatus {
    /// Every directory has been looked into.
    pub complete: bool,
    /// Directories that were looked into, by all daemons of this cache.
    pub directories_done: u64,
    /// Directories that are known of; grows as more are found.
    pub directories_known: u64,
    /// Files and directories that were found in them.
    pub files: u64,
    /// Directories that cannot be read; the first hundred.
    pub unreadable: Vec<LeftBehind>,
    /// How many there are of these.
    pub unreadable_count: u64,
}

/// How a batch ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BatchOutcome {
    /// All of it is on the backend.
    Complete,
    /// It is on the backend, but something could not be in it.
    LeftBehind,
    /// It was broken off and is to be tried again.
    Failed,
}

/// The batch that ended last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastBatch {
    /// Its number, counted per volume from 1.
    pub number: u64,
    /// When it ended: RFC 3339, UTC.
    pub time: String,
    /// How many files it carried.
    pub files: u64,
    /// How many bytes it carried.
    pub bytes: u64,
    /// How it ended.
    pub outcome: BatchOutcome,
}

/// Something that a flush could not carry over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftBehind {
    /// Its path below the mount.
    pub path: String,
    /// Why.
    pub reason: String,
}

/// What a flush did.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FlushReport {
    /// Number of the (last) batch; `None` if there was nothing to carry over.
    pub batch: Option<u64>,
    /// How many files were carried over.
    pub files: u64,
    /// How many bytes were carried over.
    pub bytes: u64,
    /// How many names were removed on the backend.
    #[serde(default)]
    pub removed: u64,
    /// How many names were moved on the backend.
    #[serde(default)]
    pub moved: u64,
    /// How long it took.
    pub seconds: f64,
    /// What was not carried over and should have been. Empty means: everything is on the backend, synced.
    pub left_behind: Vec<LeftBehind>,
    /// Entries that the backend cannot hold and that live in the index only.
    pub kept_local: u64,
    /// Files that both sides had changed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conflicts: Vec<Conflict>,
    /// After an unmount that has left the file system in use elsewhere: the daemon goes on for those that use it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub still_used: Option<Users>,
}

/// What a look for changes of others has found, counted by names.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RefreshReport {
    /// What had appeared.
    pub new: u64,
    /// Files with other bytes.
    pub changed: u64,
    /// What had been moved.
    pub moved: u64,
    /// What was gone.
    pub deleted: u64,
    /// What the mount had changed as well: both versions are kept.
    pub conflicts: u64,
    /// How long it took.
    pub seconds: f64,
    /// Directories that could not be read, a hundred of them at most. Nothing was concluded from them.
    pub skipped: Vec<Skipped>,
}

/// A directory of the backend that could not be looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// Its path on the backend.
    pub path: String,
    /// Why.
    pub reason: String,
}

/// The look for changes of others that ended last.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LastRefresh {
    /// When it ended: RFC 3339, UTC.
    pub time: String,
    /// What it has found.
    #[serde(flatten)]
    pub report: RefreshReport,
}

/// What an attach did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachReport {
    /// The backend's directory.
    pub backend: String,
    /// It was attached there before; nothing was done.
    pub already: bool,
    /// Its file system was checked.
    pub checked: bool,
    /// As in [`Status::warnings`].
    pub warnings: Vec<String>,
}

/// What kind of failure it was; decides the exit code of the command that asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// It was tried and did not work.
    Failed,
    /// The backend is not there.
    BackendAbsent,
    /// Something else is in the way; later it may work.
    Busy,
    /// The request makes no sense to this daemon.
    BadRequest,
    /// It was cancelled by the one who asked.
    Cancelled,
}

/// A request that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ControlError {
    /// What kind of failure.
    pub code: ErrorCode,
    /// What is wrong, in one line without a full stop.
    pub message: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl ControlError {
    /// A failure of kind `code`, without a hint.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> ControlError {
        ControlError {
            code,
            message: message.into(),
            hint: None,
        }
    }

    /// The same failure with what to do about it.
    pub fn with_hint(self, hint: impl Into<String>) -> ControlError {
        ControlError {
            hint: Some(hint.into()),
            ..self
        }
    }
}

/// Why a line could not be written or understood.
#[derive(Debug, thiserror::Error)]
pub enum ProtocolError {
    /// No JSON object with a version.
    #[error("not a line of the control protocol: {0}")]
    Malformed(#[source] serde_json::Error),
    /// Another version of the protocol.
    #[error("speaks version {theirs} of the control protocol, not {VERSION}")]
    Version {
        /// The version that the line names.
        theirs: u32,
    },
    /// The right version, but no message that this program knows.
    #[error("not a known message: {0}")]
    Unknown(#[source] serde_json::Error),
    /// A message that JSON cannot express.
    #[error("cannot be written as JSON: {0}")]
    Encode(#[source] serde_json::Error),
}

#[derive(Serialize)]
struct Outer<'a, T> {
    v: u32,
    #[serde(flatten)]
    message: &'a T,
}

#[derive(Deserialize)]
struct Version {
    v: u32,
}

/// `message` as a line, with its version and its newline.
///
/// # Errors
/// [`ProtocolError::Encode`] if JSON cannot express it.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, ProtocolError> {
    let outer = Outer {
        v: VERSION,
        message,
    };
    let mut line = serde_json::to_vec(&outer).map_err(ProtocolError::Encode)?;
    line.push(b'\n');
    Ok(line)
}

/// The message that `line` (without its newline) holds.
///
/// # Errors
/// [`ProtocolError`], which tells garbage, another version and an unknown message apart.
pub fn decode<T: DeserializeOwned>(line: &[u8]) -> Result<T, ProtocolError> {
    // The version first: what another version would mean by the other fields is not ours to guess.
    let version: Version = serde_json::from_slice(line).map_err(ProtocolError::Malformed)?;
    if version.v != VERSION {
        return Err(ProtocolError::Version { theirs: version.v });
    }
    serde_json::from_slice(line).map_err(ProtocolError::Unknown)
}

#[cfg(test)]
#[path = "protocol_tests.rs"]
mod tests;
