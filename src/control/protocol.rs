//! The messages of the control socket: one JSON object per line, each with `"v":1`.
//!
//! A request gets any number of [`Reply::Progress`] lines and then exactly one [`Reply::Done`] or
//! [`Reply::Error`]. Further requests may follow on the same connection. Both sides ignore unknown
//! fields, so fields may be added within a version. The removal of a field or a change of its
//! meaning needs the next version.

use crate::core::{Progress, Slowed, path_of_text, quoted};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The protocol version of this program.
pub const VERSION: u32 = 1;

/// Name of the socket in the cache directory.
pub const SOCKET_NAME: &str = "control.sock";

/// A request of a command to the daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum Request {
    /// Checks that a daemon answers.
    Ping,
    /// Returns the status.
    Status,
    /// Flushes pending changes, and answers when they are on the backend.
    Flush(FlushWish),
    /// Allows the files that were being written when the previous daemon died to be flushed as they
    /// are, from the next flush on.
    IncludeInterrupted,
    /// Flushes, then releases the backend; the mount stays usable without it.
    Eject,
    /// Attaches the volume at this path, where it has been mounted.
    Attach {
        /// The backend's directory: an absolute path, as text.
        path: String,
        /// Attaches it although its file system differs from before, or another drive has the same
        /// marker.
        #[serde(default)]
        accept_copy: bool,
        /// Checks its file system first if it was not unmounted cleanly.
        #[serde(default)]
        fsck: bool,
        /// Attaches it although another machine uses it.
        #[serde(default)]
        take_over: bool,
    },
    /// The same for a volume whose marker has been deleted: the marker is written again first.
    ReEnroll {
        /// The backend's directory: an absolute path, as text.
        path: String,
        /// Attaches it although it is empty, or on a different file system than before.
        #[serde(default)]
        accept_copy: bool,
    },
    /// Scans the backend for external changes and imports them.
    Refresh {
        /// The directory where the scan begins: a path from the mount's root, as text; empty for
        /// all of it.
        #[serde(default)]
        path: String,
    },
    /// Ends the mount and the daemon.
    Unmount {
        /// Flushes first.
        flush: bool,
        /// Also cuts off the processes that still use the mount.
        #[serde(default, skip_serializing_if = "is_false")]
        force: bool,
    },
    /// Pauses the flushes that begin by themselves.
    Pause {
        /// For how long, in milliseconds; until [`Request::Resume`] if left out.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        time_ms: Option<u64>,
    },
    /// Ends a pause.
    Resume,
    /// Replaces the options that a running mount can change.
    Reload {
        /// The options, as the daemon's program encodes them.
        live: serde_json::Value,
        /// What [`Status::config`] says from now on.
        config: ConfigOrigin,
    },
    /// Reads the files of the drive and compares them with their hashes. Goes on where an earlier
    /// scrub was stopped, and answers at the end of it. A cancelled one stops.
    Scrub(ScrubWish),
    /// Stops the scrub under way. It can go on later.
    StopScrub,
    /// Says what an end of the volume would remove, and what is in its way. Changes nothing.
    LeavePlan,
    /// Lists what stays local, and says what other patterns would change.
    Local {
        /// The other patterns; `None` for none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        instead: Option<Vec<String>>,
    },
    /// Cancels the request that this connection waits for, if that is still possible. It has no
    /// answer of its own; the request in progress gets one. Closing a connection cancels nothing.
    Cancel,
}

/// The options of a flush. An option that is left out is off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FlushWish {
    /// The longest wait, in milliseconds; no limit if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// Reads back the written files and compares them before the cache evicts them.
    #[serde(skip_serializing_if = "is_false")]
    pub verify: bool,
    /// If the backend is full, first flushes the removals of the mount, in a batch of their own.
    #[serde(skip_serializing_if = "is_false")]
    pub removals_first: bool,
    /// Lets a flush go that is held back.
    #[serde(skip_serializing_if = "is_false")]
    pub release: bool,
    /// Leaves files that are open for writing behind until they are closed.
    #[serde(skip_serializing_if = "is_false")]
    pub wait_closed: bool,
}

/// The options of a scrub. An option that is left out is off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ScrubWish {
    /// How many bytes a second are read; that of the configuration if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<u64>,
    /// Begins again, with the first file.
    #[serde(skip_serializing_if = "is_false")]
    pub restart: bool,
    /// Repairs nothing.
    #[serde(skip_serializing_if = "is_false")]
    pub only_look: bool,
    /// Also repairs files that somebody may have changed and kept the time of, if the drive keeps
    /// no version of them.
    #[serde(skip_serializing_if = "is_false")]
    pub repair_steady: bool,
}

/// One line of the daemon's answer.
// Only one exists at a time, so its size does not matter.
#[allow(clippy::large_enum_variant)]
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Reply {
    /// The progress of the request; more lines follow.
    Progress(Progress),
    /// The request is done; no line follows.
    Done {
        /// The result.
        answer: Answer,
    },
    /// The request failed; no line follows.
    Error(ControlError),
}

/// The result of a request.
// Only one exists at a time, and only until its line is written: a box would gain nothing.
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
        /// The number of files that are no longer held back.
        files: u64,
    },
    /// To [`Request::Attach`].
    Attached(AttachReport),
    /// To [`Request::Refresh`].
    Refreshed(RefreshReport),
    /// To [`Request::Pause`], [`Request::Resume`] and [`Request::Reload`].
    Automatic(Automatic),
    /// To [`Request::Scrub`] and [`Request::StopScrub`].
    Scrubbed(ScrubStatus),
    /// To [`Request::LeavePlan`].
    LeavePlan(LeavePlan),
    /// To [`Request::Local`].
    Local(LocalReport),
    /// To [`Request::Flush`], [`Request::Eject`] and [`Request::Unmount`].
    Report(FlushReport),
}

// serde passes a reference.
fn is_false(flag: &bool) -> bool {
    !flag
}

/// Whether the backend is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BackendState {
    /// It is attached, and it is the right volume.
    Attached,
    /// It is unplugged, ejected, or does not answer.
    Detached,
}

/// How programs read and write the bytes of cached files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IoPath {
    /// Through the daemon.
    Daemon,
    /// Through the kernel alone.
    Passthrough,
}

/// The status of a daemon and its mount.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The mount point, in the exact encoding of [`crate::core::ForeignText::to_text`]. All paths
    /// of this protocol use it.
    pub mountpoint: String,
    /// The backend's directory.
    pub backend: String,
    /// The id of the backend's volume.
    pub volume_id: String,
    /// Whether the backend is attached.
    pub backend_state: BackendState,
    /// Since when the attached backend has not answered: RFC 3339, UTC. `None` if it answers, as
    /// far as is known.
    pub stalled_since: Option<String>,
    /// Changed files, directories and names that wait for a flush.
    pub dirty_files: u64,
    /// Bytes that wait for a flush.
    pub dirty_bytes: u64,
    /// The space that they need on the drive: whole clusters, a copy for each hard link if the
    /// drive has none, new directories.
    pub needed_bytes: u64,
    /// Files that are open for writing.
    pub open_for_write: u64,
    /// Bytes in the cache.
    pub cached_bytes: u64,
    /// The last batch that ended; `None` if there was none.
    pub last_batch: Option<LastBatch>,
    /// The last scan for external changes; `None` if there was none.
    pub last_refresh: Option<LastRefresh>,
    /// The number of conflicts in the mount: other versions beside its own, as
    /// `name.sync-conflict-...`.
    pub conflicts: u64,
    /// Whether the backend may be unplugged now: no change waits for it, and no batch is being
    /// written.
    pub safe_to_unplug: bool,
    /// Whether a batch is in progress.
    pub batch_in_progress: bool,
    /// Entries that the backend cannot store (symbolic links, devices, ...) and that exist in the
    /// index only.
    pub kept_local: u64,
    /// What stays on this computer because it matches the patterns for that.
    #[serde(default)]
    pub local: LocalCounts,
    /// Problems of an attached backend, one line each, such as a file system that needs a check.
    pub warnings: Vec<String>,
    /// The last error that has not been resolved since.
    pub last_error: Option<String>,
    /// Facts that the owner must know and may have to act on: lost bytes, files in lost+found. One
    /// line each.
    pub attention: Vec<String>,
    /// The progress of the import of the backend's earlier contents.
    pub import: ImportStatus,
    /// How programs read and write cached files.
    pub io: IoPath,
    /// Version of the daemon's program.
    pub version: String,
    /// The daemon's process id.
    pub pid: u32,
    /// The cache directory.
    pub cache: String,
    /// Whether the mount is in the daemon's mount table. If not, it was unmounted, and something
    /// keeps the file system in use.
    pub mounted: bool,
    /// If it is not mounted: what keeps it in use.
    pub users: Users,
    /// The eject in force, if the drive was not seen to be away or attached again since.
    pub ejected: Option<Ejected>,
    /// What the last flush that ended left behind; `None` if none has ended since the daemon
    /// started.
    pub last_flush: Option<LastFlush>,
    /// Space of the SSD that the cache is on; `None` if unknown.
    pub ssd: Option<Space>,
    /// The space that the cache may use, in bytes; 0 if unknown.
    pub cache_limit_bytes: u64,
    /// Space of the drive at the last query; `None` if it is not there.
    pub drive: Option<Space>,
    /// The flush under way, as far as it has reported its progress; `None` if none is.
    pub running: Option<RunningFlush>,
    /// When the oldest change that makes a flush due was made: RFC 3339, UTC.
    pub oldest_change: Option<String>,
    /// The mount changes nothing, neither in itself nor on the drive.
    #[serde(default)]
    pub read_only: bool,
    /// The part of the configuration that the mount was made from; `None` if its command named a
    /// drive and a mount point.
    #[serde(default)]
    pub config: Option<ConfigOrigin>,
    /// When flushes begin by themselves.
    #[serde(default)]
    pub automatic: Automatic,
    /// Whether flushes keep what they replace and delete on the drive.
    #[serde(default)]
    pub versions: bool,
    /// When the drive's files were last compared with their hashes, and what was found.
    #[serde(default)]
    pub scrub: ScrubStatus,
    /// How the drive's file system is kept clean between batches; `None` if it is not, or the drive
    /// is not attached.
    #[serde(default)]
    pub kept_clean: Option<KeptClean>,
}

/// How the drive's file system is kept clean between batches.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct KeptClean {
    /// It is read-only now, and clean.
    pub read_only: bool,
    /// Why it could not be made read-only or writable, and what to do.
    pub problem: Option<String>,
}

/// What an end of the volume would remove, and what is in its way.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LeavePlan {
    /// The mount point.
    pub mountpoint: String,
    /// The drive's directory.
    pub drive: String,
    /// The cache directory.
    pub cache: String,
    /// The drive's name in the configuration.
    pub name: Option<String>,
    /// Changed files and names that a flush writes first.
    pub waiting: u64,
    /// What is in the cache only, because it stays local.
    pub local: Amount,
    /// The first of these files.
    pub local_files: Vec<String>,
    /// Old versions that are kept on the drive.
    pub versions: Amount,
    /// What only `.ferryfs` knows, a line each.
    pub lost: Vec<String>,
    /// Why it cannot be done now, a line each.
    pub in_the_way: Vec<String>,
}

/// What is known of the scrubs of a drive.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ScrubStatus {
    /// The last one that came to its end.
    pub last: Option<ScrubReport>,
    /// The one that did not come to its end yet.
    pub current: Option<ScrubReport>,
    /// Whether that goes on by itself; if not, it was stopped.
    pub running: bool,
    /// What it waits for, if it does.
    pub waits_for: Option<String>,
    /// All files that it is about, and their bytes.
    pub total: Amount,
    /// When the schedule begins one: RFC 3339, UTC. A time that has passed is a run that is made up
    /// as soon as it can be.
    pub next_run: Option<String>,
}

/// What a scrub has found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ScrubReport {
    /// When it began: RFC 3339, UTC.
    pub started: String,
    /// When it ended.
    pub ended: Option<String>,
    /// Files that were read to their end, and their bytes.
    pub read: Amount,
    /// Those that were compared with a known hash.
    pub compared: u64,
    /// Those of which no hash was known; it is now.
    pub recorded: u64,
    /// Files that were left out: the mount has newer versions, or others have changed them.
    pub left_out: u64,
    /// Files with wrong bytes, or with bytes that the medium does not return.
    pub damaged: u64,
    /// Damaged files that were marked to be written again by a flush.
    pub repaired: u64,
    /// Those of them that still wait for the flush.
    pub waiting: u64,
    /// Files that were read wrongly at first, and rightly the second time. They are not damaged;
    /// the drive or its cable may be.
    pub unsteady: u64,
    /// Files that could not be opened or read for another reason.
    pub unreadable: u64,
    /// Damaged, unreadable and unsteady files, the first two hundred.
    pub problems: Vec<ScrubProblem>,
}

impl ScrubReport {
    /// Returns how many files need the user.
    pub fn unresolved(&self) -> u64 {
        self.damaged.saturating_sub(self.repaired) + self.unreadable
    }
}

/// A file that a scrub has found to be damaged or unreadable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubProblem {
    /// Its path on the drive.
    pub path: String,
    /// What is wrong, and what was done.
    pub problem: String,
    /// Nothing more needs to be done.
    pub repaired: bool,
}

/// How much stays on this computer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LocalCounts {
    /// Files and other entries that are no directories.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Files and directories that were moved to such names, and that the drive still has under the
    /// old ones because their bytes are not on this computer yet.
    pub held: u64,
    /// Files that were removed because they had expired, since the start.
    pub expired: u64,
}

/// Files, and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Amount {
    /// Their number.
    pub files: u64,
    /// Their sizes together.
    pub bytes: u64,
}

impl Amount {
    /// Adds a file of this size.
    pub fn add(&mut self, bytes: u64) {
        self.files += 1;
        self.bytes = self.bytes.saturating_add(bytes);
    }
}

/// What stays local.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalReport {
    /// The patterns.
    pub patterns: Vec<String>,
    /// All that stays on this computer.
    pub all: Amount,
    /// The first of the names that it is under, with what is below them.
    pub entries: Vec<LocalEntry>,
    /// The number of all of them.
    pub entries_count: u64,
    /// What the other patterns would change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub change: Option<LocalChange>,
}

/// A name that stays local, with all below it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalEntry {
    /// Its path in the mount.
    pub path: String,
    /// What is there.
    pub amount: Amount,
    /// The drive still has it under an old name, because its bytes are not on this computer yet.
    pub held: bool,
}

/// What other patterns would change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalChange {
    /// What would stay local from then on.
    pub becomes_local: Amount,
    /// Those of them that the drive has: it keeps them as they are.
    pub kept_on_drive: Amount,
    /// What would be written to the drive by the next flush.
    pub travels: Amount,
}

/// A flush under way.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunningFlush {
    /// Its last step.
    pub progress: Progress,
    /// For how long it has been under way.
    pub seconds: f64,
    /// Why it is slow; `None` if it is as fast as the drive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slowed: Option<Slowed>,
}

/// The part of the configuration that a mount was made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigOrigin {
    /// The name of the drive in the configuration.
    pub name: String,
    /// What the commands have set, and where each value came from.
    pub settings: serde_json::Value,
}

/// When flushes begin by themselves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Automatic {
    /// They do after quiet, by age and by amount.
    pub enabled: bool,
    /// The user has paused them.
    pub paused: bool,
    /// When the pause ends: RFC 3339, UTC; `None` if it does not end by itself.
    pub paused_until: Option<String>,
    /// Why none begins now, in words; `None` if one may.
    pub held: Option<String>,
    /// The schedule.
    pub schedule: Option<String>,
    /// Its next run: RFC 3339, UTC. A time that has passed is a run that is made up as soon as it
    /// can be.
    pub next_run: Option<String>,
    /// How the commands that run after flushes have failed the last time, a line each.
    pub hook_problems: Vec<String>,
}

/// Space of a file system, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Space {
    /// Bytes that a new file may use.
    pub free_bytes: u64,
    /// All bytes.
    pub total_bytes: u64,
}

/// An eject that is in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ejected {
    /// Its time: RFC 3339, UTC.
    pub time: String,
    /// Where the drive is still mounted; `None` once it has been unmounted or unplugged.
    pub mounted_at: Option<String>,
}

impl Ejected {
    /// What to do to use the drive again, or to take it away.
    pub fn advice(&self) -> String {
        match &self.mounted_at {
            Some(path) => format!(
                "Unmount it there and unplug it, or attach it again: ferryfs attach {}",
                quoted(&path_of_text(path))
            ),
            None => "When it is mounted again, the mount attaches it without a command.".into(),
        }
    }
}

/// The result of the last flush that ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastFlush {
    /// When it ended: RFC 3339, UTC.
    pub time: String,
    /// The first hundred entries that it left behind.
    pub left_behind: Vec<LeftBehind>,
    /// The number of all entries that it left behind.
    pub left_behind_count: u64,
    /// Files that were changed on both sides.
    pub conflicts: Vec<Conflict>,
}

/// A file that was changed in the mount and on the drive. Both versions are kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conflict {
    /// The file, with the mount's version: a path below the mount.
    pub path: String,
    /// The copy with the drive's version: a path below the mount.
    pub theirs: String,
}

/// What keeps a file system in use.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Users {
    /// The processes and mounts that were found.
    pub found: Vec<UsedBy>,
    /// Other users' processes may use it too.
    pub some_unseen: bool,
}

impl Users {
    /// Returns whether nothing uses it, as far as is known.
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
    /// A path that it uses, as the process sees it.
    pub path: String,
    /// That path is a mount, and no file.
    pub is_mount: bool,
}

/// The progress of the import of the backend's earlier contents. All of them can be used meanwhile.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportStatus {
    /// Every directory has been read.
    pub complete: bool,
    /// Directories read so far, by all daemons of this cache.
    pub directories_done: u64,
    /// Directories known so far; grows as more are found.
    pub directories_known: u64,
    /// Files and directories found in them.
    pub files: u64,
    /// Directories that cannot be read; the first hundred.
    pub unreadable: Vec<LeftBehind>,
    /// The number of all unreadable directories.
    pub unreadable_count: u64,
}

/// The outcome of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BatchOutcome {
    /// All of it is on the backend.
    Complete,
    /// It is on the backend, but some entries are missing from it.
    LeftBehind,
    /// It was aborted and will be tried again.
    Failed,
}

/// The last batch that ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastBatch {
    /// Its number, counted per volume from 1.
    pub number: u64,
    /// When it ended: RFC 3339, UTC.
    pub time: String,
    /// The number of files it wrote.
    pub files: u64,
    /// The number of bytes it wrote.
    pub bytes: u64,
    /// Its outcome.
    pub outcome: BatchOutcome,
}

/// An entry that a flush could not write to the backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftBehind {
    /// Its path below the mount.
    pub path: String,
    /// The reason.
    pub reason: String,
}

/// The result of a flush.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FlushReport {
    /// Number of the (last) batch; `None` if nothing was pending.
    pub batch: Option<u64>,
    /// The number of files written.
    pub files: u64,
    /// The number of bytes written.
    pub bytes: u64,
    /// The number of names removed on the backend.
    pub removed: u64,
    /// The number of names moved on the backend.
    pub moved: u64,
    /// The duration in seconds.
    pub seconds: f64,
    /// Entries that should have been written and were not. If it is empty, everything is on the
    /// backend, synced.
    pub left_behind: Vec<LeftBehind>,
    /// Files that were written as they were at one moment, while programs had them open for
    /// writing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub copied_open: Vec<CopiedOpen>,
    /// Entries that the backend cannot store and that exist in the index only.
    pub kept_local: u64,
    /// What stays on this computer because it matches the patterns for that.
    #[serde(default)]
    pub local: LocalCounts,
    /// Files that were changed on both sides.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conflicts: Vec<Conflict>,
    /// After an unmount, the users that keep the file system in use elsewhere: the daemon continues
    /// to serve them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub still_used: Option<Users>,
}

/// A file that was written to the drive while a program had it open for writing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopiedOpen {
    /// Its path in the mount.
    pub path: String,
    /// The moment of which the copy is: RFC 3339, UTC.
    pub as_of: String,
    /// It is a database or a journal of one; the copies of both are of the same moment.
    pub database: bool,
}

/// The external changes that a scan found, counted by names.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RefreshReport {
    /// New names.
    pub new: u64,
    /// Files with other bytes.
    pub changed: u64,
    /// Moved names.
    pub moved: u64,
    /// Deleted names.
    pub deleted: u64,
    /// Names that the mount had changed as well: both versions are kept.
    pub conflicts: u64,
    /// The duration in seconds.
    pub seconds: f64,
    /// Directories that could not be read, at most a hundred. The scan draws no conclusion from
    /// them.
    pub skipped: Vec<Skipped>,
}

/// A directory of the backend that could not be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// Its path on the backend.
    pub path: String,
    /// The reason.
    pub reason: String,
}

/// The last scan for external changes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LastRefresh {
    /// When it ended: RFC 3339, UTC.
    pub time: String,
    /// The changes that it found.
    #[serde(flatten)]
    pub report: RefreshReport,
}

/// The result of an attach.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachReport {
    /// The backend's directory.
    pub backend: String,
    /// It was already attached there; nothing was done.
    pub already: bool,
    /// Its file system was checked.
    pub checked: bool,
    /// As in [`Status::warnings`].
    pub warnings: Vec<String>,
}

/// The kind of a failure; it decides the exit code of the command that asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The operation failed.
    Failed,
    /// The backend is not there.
    BackendAbsent,
    /// Something else prevents it now; a later attempt may succeed.
    Busy,
    /// The request makes no sense to this daemon.
    BadRequest,
    /// The client cancelled it.
    Cancelled,
}

/// A request that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ControlError {
    /// The kind of failure.
    pub code: ErrorCode,
    /// The problem, in one line without a full stop.
    pub message: String,
    /// What the user can do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl ControlError {
    /// Returns a failure of kind `code`, without a hint.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> ControlError {
        ControlError {
            code,
            message: message.into(),
            hint: None,
        }
    }

    /// Returns the same failure with a hint.
    pub fn with_hint(self, hint: impl Into<String>) -> ControlError {
        ControlError {
            hint: Some(hint.into()),
            ..self
        }
    }
}

/// The reason why a line could not be written or understood.
#[derive(Debug, thiserror::Error)]
pub enum ProtocolError {
    /// The line is no JSON object with a version.
    #[error("not a line of the control protocol: {0}")]
    Malformed(#[source] serde_json::Error),
    /// The line has another version of the protocol.
    #[error("speaks version {theirs} of the control protocol, not {VERSION}")]
    Version {
        /// The version in the line.
        theirs: u32,
    },
    /// The version is right, but this program does not know the message.
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

/// Encodes `message` as a line, with its version and its newline.
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

/// Decodes the message in `line` (without its newline).
///
/// # Errors
/// [`ProtocolError`], which distinguishes garbage, another version and an unknown message.
pub fn decode<T: DeserializeOwned>(line: &[u8]) -> Result<T, ProtocolError> {
    // The version comes first: another version may give the other fields another meaning.
    let version: Version = serde_json::from_slice(line).map_err(ProtocolError::Malformed)?;
    if version.v != VERSION {
        return Err(ProtocolError::Version { theirs: version.v });
    }
    serde_json::from_slice(line).map_err(ProtocolError::Unknown)
}

#[cfg(test)]
mod tests;
