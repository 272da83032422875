//! What a mount is told: the command line, parsed once, with every path absolute.

use std::path::PathBuf;
use std::time::Duration;

/// What a mount is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountOptions {
    /// The backend's directory. Absolute; symbolic links in it are followed anew at each attach.
    pub backend: PathBuf,
    /// Where to mount. Absolute; after [`crate::daemon::preflight::check`] without symbolic links.
    pub mountpoint: PathBuf,
    /// The cache directory. Absolute; `None` for the usual place.
    pub cache: Option<PathBuf>,
    /// How much the cache may hold.
    pub cache_size: CacheSize,
    /// Flush once nothing has changed for this long.
    pub flush_after: Duration,
    /// Flush once the oldest change is this old, however busy it is.
    pub max_age: Duration,
    /// Whether to flush without being told to.
    pub auto_flush: bool,
    /// How long a read from the backend may go unanswered before whoever asked is given an error.
    pub io_timeout: Duration,
    /// How cached files are to be read and written.
    pub io: IoMode,
    /// Whether what a flush has written is read back.
    pub verify: Verify,
    /// How often changes of others are looked for.
    pub refresh: Refresh,
    /// What the kernel is told of the mount.
    pub fuse: FuseOptions,
    /// Check the drive's file system first, unless it says that it was let go of in order.
    pub fsck: bool,
    /// Take a drive with the volume's marker though it is on another file system than before.
    pub accept_copy: bool,
    /// Take a drive that may write later than it says.
    pub allow_write_back: bool,
    /// Which directories are held by a lease.
    pub lease: LeaseMode,
    /// How long this mount may be silent before another machine may take its directory over.
    pub lease_timeout: Duration,
    /// Take the directory though another machine has it at work.
    pub take_over: bool,
    /// Show what other systems keep for themselves on the drive.
    pub show_system: bool,
    /// Make a volume of a directory that looks like the mount point of a drive that is not mounted.
    pub enroll: bool,
    /// Write the volume's marker anew where it has been deleted from the drive.
    pub re_enroll: bool,
    /// Move what lies in the mount point into the mount.
    pub adopt: bool,
    /// How the bare mount point is kept from being written to.
    pub protect: Protect,
    /// Stay in the foreground.
    pub foreground: bool,
}

/// How the directory under the mount is kept from being written to while nothing is mounted there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protect {
    /// Its permission to be written is taken away; as root also made immutable where the system mounts something there.
    #[default]
    Auto,
    /// The same, and immutable in any case, which needs root.
    Immutable,
    /// Not at all; what was done before is undone.
    No,
}

/// How much the cache may hold. A bound on what is kept for reading; what has not been carried over is never dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheSize {
    /// This many bytes.
    Bytes(u64),
    /// This share, 1 to 100, of the space that is free where the cache is, counting what the cache itself takes as free.
    PercentOfFree(u8),
}

impl Default for CacheSize {
    fn default() -> CacheSize {
        CacheSize::PercentOfFree(80)
    }
}

/// When what was written to the drive is read back and compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Verify {
    /// Only when a flush asks for it.
    #[default]
    Off,
    /// In every flush, before the cache lets go of anything. Reads once more all that is written.
    AfterFlush,
}

/// How often it is looked what others have changed on the backend. When it is attached that is done in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Refresh {
    /// Every minute on a network file system, where others may be at work; else not: it would wake a drive.
    #[default]
    Auto,
    /// Not by itself, but for that.
    Off,
    /// This often.
    Every(Duration),
}

impl Refresh {
    /// On a network file system, where nobody says otherwise.
    const ON_NETWORK: Duration = Duration::from_secs(60);

    /// The time between two looks; `None` for none by itself.
    pub fn every(self, on_network: bool) -> Option<Duration> {
        match self {
            Refresh::Auto => on_network.then_some(Refresh::ON_NETWORK),
            Refresh::Off => None,
            Refresh::Every(time) => Some(time),
        }
    }
}

/// Which directories are held by a lease, so that only one machine works on them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LeaseMode {
    /// Those on network file systems.
    #[default]
    Auto,
    /// All: for containers that share a directory of one machine.
    Always,
}

/// How cached files are to be read and written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum IoMode {
    /// By the kernel alone where it can and lets us, else by the daemon.
    #[default]
    Auto,
    /// By the kernel alone (Linux 6.9, CAP_SYS_ADMIN); refuse to mount where that does not work.
    Passthrough,
    /// By the daemon.
    Daemon,
}

/// What the kernel is told of the mount, as in mount(8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FuseOptions {
    /// Other users may use the mount.
    pub allow_other: bool,
    /// Set-user-id bits count.
    pub suid: bool,
    /// Device files work.
    pub dev: bool,
    /// Programs may be run.
    pub exec: bool,
    /// Shown as everything's owner.
    pub uid: Option<u32>,
    /// Shown as everything's group.
    pub gid: Option<u32>,
    /// Permission bits that nothing is shown with; all others everything is.
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

/// A word of `-o` that is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("mount option '{word}' {reason}")]
pub struct OptionRefused {
    /// The word.
    pub word: String,
    /// What is the matter with it.
    pub reason: &'static str,
    /// What to do instead.
    pub hint: &'static str,
}

impl FuseOptions {
    /// Reads the comma lists of all `-o`; of two words that contradict each other the later one counts, as in mount(8).
    ///
    /// # Errors
    /// [`OptionRefused`] for the first word that is not taken.
    pub fn parse<'a>(
        lists: impl IntoIterator<Item = &'a str>,
    ) -> Result<FuseOptions, OptionRefused> {
        let mut options = FuseOptions::default();
        let words = lists.into_iter().flat_map(|list| list.split(','));
        for word in words.map(str::trim).filter(|word| !word.is_empty()) {
            // mount(8) notes who mounted it.
            let is_user = word.starts_with("user=");
            match word {
                "allow_other" => options.allow_other = true,
                "suid" => options.suid = true,
                "nosuid" => options.suid = false,
                "dev" => options.dev = true,
                "nodev" => options.dev = false,
                "exec" => options.exec = true,
                "noexec" => options.exec = false,
                // As in mount(8): what users mount gives no privileges.
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

    /// Takes a word with a value.
    fn parse_value(&mut self, word: &str) -> Result<(), OptionRefused> {
        let Some((key, value)) = word.split_once('=') else {
            return Err(refuse(word));
        };
        // The highest number means "nobody" to the system calls.
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
                reason: "has a value that makes no sense",
                hint: "uid and gid take a number (`id` tells yours), umask an octal one such as 022",
            });
        };
        *field = Some(number);
        Ok(())
    }
}

/// Options of mount(8) that change nothing here: what is so anyway, what has no meaning for this
/// file system (reading changes no access time), and what is meant for mount(8), fstab(5) and
/// systemd themselves.
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

/// Beginnings of words that are comments to the kernel.
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
            "makes no sense here: ferryfs is there to take writes",
            "to only read the drive, use its own directory",
        ),
        "uid" | "gid" | "umask" => (
            "needs a value",
            "such as uid=1000, gid=1000, umask=022; they are shown for every file",
        ),
        "fmask" | "dmask" => (
            "is not there",
            "umask= is shown for every file and directory; without it each has the mode that chmod gives it",
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
            "known are allow_other, suid, nosuid, dev, nodev, exec, noexec, uid=, gid=, umask=; options of mount(8) and fstab(5) that change nothing here, such as noatime and nofail, are ignored",
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
            ("ro", "its own directory"),
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
