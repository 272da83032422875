//! The options of a mount: the parsed command line, with all paths absolute.

use std::path::PathBuf;
use std::time::Duration;

use super::metrics::MetricsOptions;
use crate::core::{Failure, printable};
use crate::drive::throttle::Settings;
use crate::flush::{HoldIf, VersionPolicy};
use crate::plan::patterns::{PatternError, Patterns};
use crate::plan::retention::Keep;
use serde::{Deserialize, Serialize};

pub use super::when::{QuietHours, Schedule};

/// The options of a mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountOptions {
    /// The drive's directory. Absolute; symbolic links in it are followed again at each attach.
    pub backend: PathBuf,
    /// The mount point. Absolute; after [`crate::daemon::preflight::check`] without symbolic links.
    pub mountpoint: PathBuf,
    /// The cache directory. Absolute; `None` for the default one.
    pub cache: Option<PathBuf>,
    /// How much the cache may hold.
    pub cache_size: CacheSize,
    /// The options that a running mount can change.
    pub live: Live,
    /// How long a read from the drive may take before it fails.
    pub io_timeout: Duration,
    /// Who reads and writes the bytes of cached files.
    pub io: IoMode,
    /// Whether large files are written as the blocks that have changed.
    pub delta: DeltaMode,
    /// What is kept of what flushes replace and remove.
    pub versions: VersionOptions,
    /// When a flush is held back.
    pub hold_if: Option<HoldIf>,
    /// The mount options for the kernel.
    pub fuse: FuseOptions,
    /// Keep the drive's file system read-only, and so clean, except during a batch.
    pub keep_clean: bool,
    /// Check the drive's file system first, unless it was unmounted cleanly.
    pub fsck: bool,
    /// Accept a drive with the volume's marker on another file system than before.
    pub accept_copy: bool,
    /// Accept a drive that may write later than its calls return.
    pub allow_write_back: bool,
    /// Which directories need a lease.
    pub lease: LeaseMode,
    /// How long this mount may be silent before another machine may take its directory over.
    pub lease_timeout: Duration,
    /// Take the directory over although another machine uses it.
    pub take_over: bool,
    /// Show the files that other systems keep for themselves on the drive.
    pub show_system: bool,
    /// Make a volume of a directory that looks like the mount point of a drive that is not mounted.
    pub enroll: bool,
    /// Write the volume's marker again after it was deleted from the drive.
    pub re_enroll: bool,
    /// Move the files in the mount point into the mount.
    pub adopt: bool,
    /// Change nothing, neither in the mount nor on the drive.
    pub read_only: bool,
    /// How the bare mount point is protected against writes.
    pub protect: Protect,
    /// Stay in the foreground.
    pub foreground: bool,
    /// Where metrics go.
    pub metrics: MetricsOptions,
    /// What the command that mounts says of the configuration that these options are from. It is
    /// passed on in the status, for a later `ferryfs reload`.
    pub origin: Option<Origin>,
}

/// What is kept on the drive of what flushes replace and remove.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VersionOptions {
    /// Whether anything is.
    pub is_on: bool,
    /// How many versions of each file.
    pub keep: Keep,
    /// How much of the drive they may take, in percent.
    pub share: u8,
    /// Patterns of files of which none are kept.
    pub exclude: Vec<String>,
}

impl Default for VersionOptions {
    fn default() -> VersionOptions {
        VersionOptions {
            is_on: false,
            keep: Keep::default(),
            share: 10,
            exclude: Vec::new(),
        }
    }
}

impl VersionOptions {
    /// Returns what the flusher does.
    ///
    /// # Errors
    /// If a pattern is not accepted.
    pub fn policy(&self) -> Result<VersionPolicy, Failure> {
        let exclude = Patterns::new(&self.exclude).map_err(|(pattern, error)| {
            Failure::usage(format!("the pattern '{}' {error}", printable(&pattern)))
        })?;
        Ok(VersionPolicy {
            is_on: self.is_on,
            keep: self.keep,
            share: self.share,
            exclude,
        })
    }
}

/// The part of the configuration that a mount was made from. The daemon only keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The name of the drive in the configuration.
    pub name: String,
    /// All that the command line and the configuration have set, and where each came from.
    pub settings: serde_json::Value,
}

/// The keys of the configuration that [`Live`] has.
pub const LIVE: [&str; 22] = [
    "auto_flush",
    "evict_after",
    "expire",
    "flush_after",
    "hook_timeout",
    "limit_rate",
    "local",
    "max_age",
    "on_attention",
    "on_batch",
    "on_failure",
    "on_success",
    "only_on_mains",
    "pin",
    "polite",
    "quiet_hours",
    "refresh",
    "schedule",
    "scrub",
    "scrub_rate",
    "verify",
    "wait_closed",
];

/// The options that a running mount can change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Live {
    /// Flush once nothing has changed for this long.
    pub flush_after: Duration,
    /// Flush once the oldest change is this old, even if changes go on.
    pub max_age: Duration,
    /// Whether to flush after quiet, by age and by amount.
    pub auto_flush: bool,
    /// Whether flushes that begin by themselves yield to those who read from the drive.
    pub polite: bool,
    /// How fast they may be.
    pub limit_rate: LimitRate,
    /// Whether flushes leave files that are open for writing behind until they are closed.
    pub wait_closed: bool,
    /// Whether a flush reads back what it has written.
    pub verify: Verify,
    /// How often to look for external changes.
    pub refresh: Refresh,
    /// Flush at these times.
    pub schedule: Option<Schedule>,
    /// Read and compare all files of the drive at these times.
    pub scrub: Option<Schedule>,
    /// How many bytes a second that reads.
    pub scrub_rate: u64,
    /// Begin no flush in these hours.
    pub quiet_hours: Vec<QuietHours>,
    /// Begin no flush on battery.
    pub only_on_mains: bool,
    /// The commands to run after a flush.
    pub hooks: HookCommands,
    /// What stays on the SSD, and what goes from it.
    pub keeping: Keeping,
}

impl Live {
    /// Returns how flushes are slowed down.
    pub fn throttle(&self) -> Settings {
        Settings {
            polite: self.polite,
            limit: match self.limit_rate {
                LimitRate::Off => None,
                LimitRate::PerSecond(bytes) => Some(bytes),
            },
        }
    }
}

/// How fast a flush that begins by itself may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum LimitRate {
    /// As fast as the drive.
    #[default]
    Off,
    /// So many bytes per second.
    PerSecond(u64),
}

/// What stays on the SSD, and what goes from it. The patterns are those of gitignore(5).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keeping {
    /// What is never written to the drive.
    pub local: Vec<String>,
    /// What is always in the cache.
    pub pin: Vec<String>,
    /// What is removed when it gets old: patterns that `local` has, too.
    pub expire: Vec<Expiry>,
    /// How long a file that the drive has may be unused before it leaves the cache.
    pub evict_after: Option<Duration>,
}

impl Keeping {
    /// Checks what the lists mean as a whole.
    ///
    /// # Errors
    /// What is wrong, with the name of the list.
    pub fn check(&self) -> Result<(), KeepingRefused> {
        let refuse = |list, (pattern, reason): (String, PatternError)| KeepingRefused {
            list,
            pattern,
            reason: reason.into(),
        };
        let everything = |lines: &[String]| (lines.join(", "), PatternError::Everything);
        let local = Patterns::new(&self.local).map_err(|bad| refuse("local", bad))?;
        if local.is_everything() {
            return Err(refuse("local", everything(&self.local)));
        }
        Patterns::new(&self.pin).map_err(|bad| refuse("pin", bad))?;
        for rule in &self.expire {
            let lines = std::slice::from_ref(&rule.pattern);
            let patterns = Patterns::new(lines).map_err(|bad| refuse("expire", bad))?;
            if patterns.is_everything() {
                return Err(refuse("expire", everything(lines)));
            }
            // One that includes again removes nothing. What travels is never removed by age.
            let is_negated = rule.pattern.starts_with('!');
            let reason = match is_negated {
                true => Some(KeepingError::Negated),
                false => (!self.local.contains(&rule.pattern)).then_some(KeepingError::NotLocal),
            };
            if let Some(reason) = reason {
                return Err(KeepingRefused {
                    list: "expire",
                    pattern: rule.pattern.clone(),
                    reason,
                });
            }
        }
        Ok(())
    }
}

/// Why a pattern of a list is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeepingError {
    /// It is none, or matches too much.
    #[error(transparent)]
    Pattern(#[from] PatternError),
    /// A rule for what expires begins with `!`.
    #[error("begins with \"!\": a rule says what expires, not what does not")]
    Negated,
    /// A rule for what expires is about files that travel.
    #[error("is not in local, in the same words: only what stays on this computer expires")]
    NotLocal,
}

/// A list of patterns that is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{list}: {pattern:?} {reason}")]
pub struct KeepingRefused {
    /// The key of the configuration.
    pub list: &'static str,
    /// The pattern.
    pub pattern: String,
    /// What is wrong with it.
    pub reason: KeepingError,
}

/// When files that match a pattern are removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expiry {
    /// The pattern.
    pub pattern: String,
    /// How long after their last change.
    pub after: Duration,
}

/// The commands to run after a flush, for the shell.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookCommands {
    /// When a flush has failed or left something behind.
    pub on_failure: Option<String>,
    /// When a flush has succeeded.
    pub on_success: Option<String>,
    /// When a flush has changed the drive.
    pub on_batch: Option<String>,
    /// When there is something that the user must look at.
    pub on_attention: Option<String>,
    /// How long each may take.
    pub timeout: Duration,
}

/// How the directory under the mount is protected against writes while nothing is mounted there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protect {
    /// Its write permission is removed. As root it is also made immutable, if the system mounts
    /// something there.
    #[default]
    Auto,
    /// The same, and immutable in any case, which needs root.
    Immutable,
    /// Not at all; an earlier protection is removed.
    No,
}

/// How much the cache may hold. This bounds what is kept for reading; what has not been flushed is
/// never dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheSize {
    /// This many bytes.
    Bytes(u64),
    /// This share, 1 to 100, of the free space on the cache's file system, where the cache itself
    /// counts as free.
    PercentOfFree(u8),
}

impl Default for CacheSize {
    fn default() -> CacheSize {
        CacheSize::PercentOfFree(80)
    }
}

/// When to read back and compare what was written to the drive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
pub enum Verify {
    /// Only if the flush command asks for it.
    #[default]
    Off,
    /// In every flush, before anything may be evicted. Reads all written bytes once more.
    AfterFlush,
}

/// How large files that have changed are written to the drive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum DeltaMode {
    /// Where little has changed, only the changed blocks, into the file on the drive. A crash in
    /// the moment of writing leaves the file torn until the batch is finished.
    #[default]
    Auto,
    /// Always whole, as a new file that replaces the old one.
    Never,
}

/// How often to look for external changes. After an attach that is done in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refresh {
    /// Every minute on a network file system, which other machines may change; otherwise never,
    /// because it would wake the drive.
    #[default]
    Auto,
    /// Only after an attach.
    Off,
    /// This often.
    Every(Duration),
}

impl Refresh {
    /// The time between two looks on a network file system by default.
    const ON_NETWORK: Duration = Duration::from_secs(60);

    /// The time between two looks; `None` for none.
    pub fn every(self, on_network: bool) -> Option<Duration> {
        match self {
            Refresh::Auto => on_network.then_some(Refresh::ON_NETWORK),
            Refresh::Off => None,
            Refresh::Every(time) => Some(time),
        }
    }
}

/// Which directories need a lease, so that only one machine uses them at a time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LeaseMode {
    /// Those on network file systems.
    #[default]
    Auto,
    /// All: for containers that share a directory of one machine.
    Always,
}

/// Who reads and writes the bytes of cached files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum IoMode {
    /// The kernel alone if it supports and permits that, else the daemon.
    #[default]
    Auto,
    /// The kernel alone (Linux 6.9, CAP_SYS_ADMIN); the mount is refused if that does not work.
    Passthrough,
    /// The daemon.
    Daemon,
}

/// The mount options for the kernel, as in mount(8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FuseOptions {
    /// Other users may use the mount.
    pub allow_other: bool,
    /// Set-user-id bits take effect.
    pub suid: bool,
    /// Device files work.
    pub dev: bool,
    /// Programs may be run.
    pub exec: bool,
    /// The owner that all files are shown with.
    pub uid: Option<u32>,
    /// The group that all files are shown with.
    pub gid: Option<u32>,
    /// The permission bits that no file is shown with; all files have all other ones.
    pub umask: Option<u32>,
}

impl Default for FuseOptions {
    fn default() -> FuseOptions {
        FuseOptions {
            allow_other: false,
            suid: false,
            dev: false,
            exec: true,
            uid: None,
            gid: None,
            umask: None,
        }
    }
}

/// A word of `-o` that is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("mount option '{word}' {reason}")]
pub struct OptionRefused {
    /// The word.
    pub word: String,
    /// What is wrong with it.
    pub reason: &'static str,
    /// What the user can do.
    pub hint: &'static str,
}

impl FuseOptions {
    /// Parses the comma-separated lists of all `-o`. Of two contradicting words the later one
    /// counts, as in mount(8).
    ///
    /// # Errors
    /// [`OptionRefused`] for the first word that is not accepted.
    pub fn parse<'a>(
        lists: impl IntoIterator<Item = &'a str>,
    ) -> Result<FuseOptions, OptionRefused> {
        let mut options = FuseOptions::default();
        let words = lists.into_iter().flat_map(|list| list.split(','));
        for word in words.map(str::trim).filter(|word| !word.is_empty()) {
            // mount(8) notes the user that mounts it.
            let is_user = word.starts_with("user=");
            match word {
                "allow_other" => options.allow_other = true,
                "suid" => options.suid = true,
                "nosuid" => options.suid = false,
                "dev" => options.dev = true,
                "nodev" => options.dev = false,
                "exec" => options.exec = true,
                "noexec" => options.exec = false,
                // As in mount(8): a mount of an ordinary user gives no privileges.
                _ if is_user || ["user", "users"].contains(&word) => {
                    (options.exec, options.suid, options.dev) = (false, false, false);
                }
                "owner" | "group" => (options.suid, options.dev) = (false, false),
                _ if is_ignored(word) => {}
                _ => options.parse_value(word)?,
            }
        }
        Ok(options)
    }

    /// Parses a word with a value.
    fn parse_value(&mut self, word: &str) -> Result<(), OptionRefused> {
        let Some((key, value)) = word.split_once('=') else {
            return Err(refuse(word));
        };
        // The highest number means no user or group to the system calls.
        let id = || value.parse().ok().filter(|&id| id != u32::MAX);
        let is_octal = !value.is_empty() && value.bytes().all(|b| matches!(b, b'0'..=b'7'));
        let (field, number) = match key {
            "uid" => (&mut self.uid, id()),
            "gid" => (&mut self.gid, id()),
            "umask" => {
                let mask = u32::from_str_radix(value, 8).ok();
                let number = mask.filter(|&mask| is_octal && mask <= 0o777);
                (&mut self.umask, number)
            }
            _ => return Err(refuse(word)),
        };
        let Some(number) = number else {
            return Err(OptionRefused {
                word: word.into(),
                reason: "has an invalid value",
                hint: "uid and gid take a number (`id` shows yours), umask an octal one such as \
                       022",
            });
        };
        *field = Some(number);
        Ok(())
    }
}

/// Options of mount(8) that have no effect here: those that are always in effect, those without
/// meaning for this file system (reading changes no access time), and those for mount(8), fstab(5)
/// and systemd themselves.
const IGNORED: [&str; 30] = [
    "_netdev",
    "_rnetdev",
    "async",
    "atime",
    "auto",
    "comment",
    "default_permissions",
    "defaults",
    "diratime",
    "iversion",
    "lazytime",
    "loud",
    "noatime",
    "noauto",
    "nodiratime",
    "nofail",
    "nogroup",
    "noiversion",
    "nolazytime",
    "nomand",
    "noowner",
    "norelatime",
    "nostrictatime",
    "nouser",
    "nousers",
    "relatime",
    "rw",
    "silent",
    "strictatime",
    "symfollow",
];

/// The beginnings of words that are comments to the kernel.
const COMMENTS: [&str; 2] = ["x-", "X-"];

fn is_ignored(word: &str) -> bool {
    let key = word.split('=').next().unwrap_or(word);
    let is_comment = COMMENTS.iter().any(|comment| key.starts_with(comment));
    is_comment || IGNORED.contains(&key)
}

fn refuse(word: &str) -> OptionRefused {
    let key = word.split('=').next().unwrap_or(word);
    let (reason, hint) = match key {
        "ro" => (
            "is not accepted: ferryfs is a cache for writes",
            "to only read the drive, use --read-only",
        ),
        "uid" | "gid" | "umask" => (
            "needs a value",
            "such as uid=1000, gid=1000, umask=022; they are shown for every file",
        ),
        "fmask" | "dmask" => (
            "is not there",
            "umask= is shown for every file and directory; without it each has the mode that chmod \
             gives it",
        ),
        "sync" | "dirsync" => (
            "is not there",
            "fsync makes a file and all names durable at once; without it all is within 5 seconds",
        ),
        "remount" => (
            "is not there",
            "unmount, and mount with the options you want",
        ),
        _ => (
            "is unknown",
            "known are allow_other, suid, nosuid, dev, nodev, exec, noexec, uid=, gid=, umask=; \
             options of mount(8) and fstab(5) that change nothing here, such as noatime and \
             nofail, are ignored",
        ),
    };
    OptionRefused {
        word: word.into(),
        reason,
        hint,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_nosuid_and_nodev_unless_told_otherwise() {
        let options = FuseOptions::parse([]).unwrap();
        assert!(!options.suid && !options.dev && options.exec && !options.allow_other);
        let options = FuseOptions::parse(["suid,dev", "noexec,allow_other"]).unwrap();
        assert!(options.suid && options.dev && !options.exec && options.allow_other);
    }

    #[test]
    fn owner_and_mode_for_all_are_numbers() {
        let options = FuseOptions::parse(["uid=1000,gid=0", "umask=0027,uid=7"]).unwrap();
        assert_eq!(options.uid, Some(7));
        assert_eq!((options.gid, options.umask), (Some(0), Some(0o27)));
    }

    #[test]
    fn the_later_of_two_words_counts() {
        let options = FuseOptions::parse(["suid,nosuid,,rw", "noexec", "exec"]).unwrap();
        assert_eq!(options, FuseOptions::default());
    }

    #[test]
    fn what_changes_nothing_is_ignored() {
        let lists = [
            "rw,relatime,nodiratime,lazytime,async,defaults,auto,nouser,nofail,_netdev",
            "x-systemd.automount,x-gvfs-show,X-mount.mkdir=0755,comment=mine,strictatime,noatime",
        ];
        assert_eq!(FuseOptions::parse(lists), Ok(FuseOptions::default()));
    }

    #[test]
    fn what_users_mount_gives_no_privileges_unless_asked_to() {
        let options = FuseOptions::parse(["suid,dev,user=me"]).unwrap();
        assert!(!options.suid && !options.dev && !options.exec);
        let options = FuseOptions::parse(["users,exec", "owner"]).unwrap();
        assert!(options.exec && !options.suid);
    }

    #[test]
    fn what_is_refused_comes_with_what_to_do() {
        for (word, part) in [
            ("ro", "--read-only"),
            ("umask=8", "octal"),
            ("umask=1777", "octal"),
            ("umask=+22", "octal"),
            ("uid=me", "number"),
            ("gid=4294967295", "number"),
            ("uid", "uid=1000"),
            ("dmask=022", "umask="),
            ("sync", "fsync"),
            ("remount", "unmount"),
            ("context=x", "known are"),
            ("noatme", "known are"),
        ] {
            let error = FuseOptions::parse([format!("exec,{word}").as_str()]).unwrap_err();
            assert_eq!(error.word, word);
            assert!(error.hint.contains(part), "{error}: {}", error.hint);
        }
    }
}
