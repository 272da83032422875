//! The state of the drive's own file system after an unclean end, and its check.
//!
//! A pulled drive may have damaged directories. Only the checker of its file system can repair
//! them, and writing to a damaged file system makes the damage worse. Recovery verifies the files
//! of an interrupted batch in any case; for the rest the user is warned.

use std::fmt;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::unistd::Uid;

use crate::core::{ForeignText, printable, quoted};
use crate::sys::mounts::Mount;
use crate::sys::superblock::Kind;
use crate::sys::{mounts, superblock};

/// What a file system says of its own state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FsState {
    /// It was unmounted cleanly.
    Clean,
    /// It was not unmounted cleanly, or has errors.
    Dirty,
    /// It can be damaged when it is pulled, and its state is unknown: this user may not read the
    /// device, or the driver sets the flag at every mount.
    Unknown,
    /// It cannot be damaged that way: a network share, or a file system with a journal.
    Irrelevant,
}

/// The facts about a drive that is about to be attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Case {
    /// What its file system says.
    pub(super) state: FsState,
    /// This daemon saw it go away without an eject.
    pub(super) vanished: bool,
    /// A batch was under way.
    pub(super) batch_open: bool,
    /// The user asks for a check.
    pub(super) fsck: bool,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// Attach it.
    Go,
    /// Attach it, and warn until the state is clean.
    Warn(Concern),
    /// Run the checker first.
    Check,
}

/// A concern about the state of a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Concern {
    /// Its flag is set.
    Marked,
    /// It went away without an eject, and its state is unknown.
    Vanished,
    /// A batch was interrupted, and it is unknown whether the drive went away or only the daemon
    /// ended.
    Interrupted,
}

/// Decides what to do. No drive is refused: a user who cannot run a checker must still reach the
/// files.
pub(super) fn decide(case: Case) -> Decision {
    let unclean = case.vanished || case.batch_open;
    match case.state {
        FsState::Irrelevant => Decision::Go,
        FsState::Clean if !unclean => Decision::Go,
        // A kernel that clears the flag at every sync says clean of a drive that was pulled a
        // moment later.
        _ if case.fsck => Decision::Check,
        FsState::Clean => Decision::Go,
        FsState::Dirty => Decision::Warn(Concern::Marked),
        FsState::Unknown if case.vanished => Decision::Warn(Concern::Vanished),
        FsState::Unknown if unclean => Decision::Warn(Concern::Interrupted),
        FsState::Unknown => Decision::Go,
    }
}

impl Concern {
    /// A line for status and log.
    pub(super) fn words(self, mount: &Mount, path: &Path) -> String {
        let what = match self {
            Concern::Marked => {
                "the drive's file system is marked as not cleanly unmounted, or as damaged"
            }
            Concern::Vanished => "the drive went away without being ejected",
            Concern::Interrupted => {
                "a batch was interrupted, perhaps because the drive was pulled or the machine lost \
                 power"
            }
        };
        let by_hand = match checker_commands(mount) {
            Ok(commands) => format!(" (or by hand, after `ferryfs eject`: {commands})"),
            Err(_) => String::new(),
        };
        format!(
            "{what}; ferryfs verifies what it was writing, but other files may be damaged: have it \
             checked with `ferryfs attach --fsck {}` as root{by_hand}",
            quoted(path)
        )
    }
}

/// What the mounted file system of `mount` says of its state.
pub(super) fn state_of(mount: &Mount) -> FsState {
    match superblock::read(mount.block_device().unwrap_or(mount.dev)) {
        Ok(Some(found)) if found.speaks_while_mounted(&mount.fs_type) && found.dirty => {
            FsState::Dirty
        }
        Ok(Some(found)) if found.speaks_while_mounted(&mount.fs_type) => FsState::Clean,
        // A driver that sets the flag at the mount found it clear if it is clear now.
        Ok(Some(found)) if !found.dirty => FsState::Clean,
        Ok(Some(_)) => FsState::Unknown,
        Ok(None) => FsState::Irrelevant,
        Err(_) if is_fragile(&mount.fs_type) => FsState::Unknown,
        Err(_) => FsState::Irrelevant,
    }
}

/// Whether file systems of this type are damaged when the drive is pulled. For devices that cannot
/// be read.
fn is_fragile(fs_type: &str) -> bool {
    matches!(fs_type, "exfat" | "vfat" | "msdos" | "fuseblk" | "ext2")
}

/// Three commands that unmount a drive, check it, and mount it again with the same options.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CheckCommands {
    unmount: Vec<String>,
    check: Vec<String>,
    mount: Vec<String>,
}

impl fmt::Display for CheckCommands {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = |words: &[String]| {
            let words: Vec<String> = words.iter().map(|w| quoted(Path::new(w))).collect();
            words.join(" ")
        };
        write!(
            f,
            "{}; {}; {}",
            line(&self.unmount),
            line(&self.check),
            line(&self.mount)
        )
    }
}

/// Why a drive was not checked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum CheckError {
    /// No checker for it is known, or it cannot be unmounted and mounted again.
    #[error("cannot check the drive: {0}")]
    NotPossible(String),
    /// Only root can check it.
    #[error("checking the drive needs root")]
    NotRoot(CheckCommands),
    /// One of the commands failed.
    #[error("`{command}` failed: {words}")]
    Failed {
        /// The command.
        command: String,
        /// Its output.
        words: String,
    },
}

impl CheckError {
    /// What the user can do.
    pub(super) fn hint(&self) -> String {
        match self {
            CheckError::NotPossible(_) => "attach it without --fsck".into(),
            CheckError::NotRoot(commands) => {
                format!("run `ferryfs eject`, and as root: {commands}")
            }
            CheckError::Failed { .. } => "nothing is lost: what waits is in the cache. Repair the \
                                          drive by hand, mount it, and run `ferryfs attach` \
                                          without --fsck"
                .into(),
        }
    }
}

/// The commands that check the file system of `mount`.
fn checker_commands(mount: &Mount) -> Result<CheckCommands, CheckError> {
    let not = |why: &str| CheckError::NotPossible(why.to_owned());
    let node = superblock::device_node(mount.dev)
        .ok_or_else(|| not("it is on no block device of this machine"))?;
    let kind = match superblock::read(mount.dev) {
        Ok(Some(found)) => found.kind,
        Ok(None) => {
            return Err(not("ferryfs knows no checker for its file system"));
        }
        Err(_) => match &*mount.fs_type {
            "exfat" => Kind::Exfat,
            "vfat" | "msdos" => Kind::Fat,
            "ext2" | "ext3" | "ext4" => Kind::Ext,
            _ => return Err(not("this user may not read its device")),
        },
    };
    commands_for(mount, &node.to_string_lossy(), kind)
}

fn commands_for(mount: &Mount, node: &str, kind: Kind) -> Result<CheckCommands, CheckError> {
    let point = mount.mount_point.to_str().ok_or_else(|| {
        CheckError::NotPossible("its mount point's name is not plain text".into())
    })?;
    if mount.root != Path::new("/") {
        return Err(CheckError::NotPossible(
            "only a directory of it is mounted there (a bind mount)".into(),
        ));
    }
    let fs_type = match (&*mount.fs_type, kind) {
        ("fuseblk", Kind::Exfat) => "exfat-fuse",
        ("fuseblk", _) => {
            return Err(CheckError::NotPossible(
                "the FUSE driver behind it is not known".into(),
            ));
        }
        (other, _) => other,
    };
    let (checker, repair) = kind.checker();
    let words = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect();
    Ok(CheckCommands {
        unmount: words(&["umount", "--", point]),
        check: words(&[checker, repair, node]),
        mount: words(&["mount", "-t", fs_type, "-o", &options(mount), node, point]),
    })
}

/// The options to mount it with again: those of the mount table, without those that the kernel adds
/// to FUSE mounts.
fn options(mount: &Mount) -> String {
    const OF_FUSE: [&str; 7] = [
        "fd",
        "rootmode",
        "user_id",
        "group_id",
        "blksize",
        "default_permissions",
        "max_read",
    ];
    let is_fuse = mount.fs_type.starts_with("fuse");
    // A file system that was made read-only after the mount, by an error or to keep it clean.
    let is_made_read_only = !mount.is_read_only_itself();
    let mut all: Vec<&str> = Vec::new();
    for option in mount
        .options
        .split(',')
        .chain(mount.super_options.split(','))
    {
        let key = option.split('=').next().unwrap_or(option);
        let is_added = is_fuse && OF_FUSE.contains(&key);
        let is_over = is_made_read_only && option == "ro";
        if !is_added && !is_over && !all.contains(&option) {
            all.push(option);
        }
    }
    all.join(",")
}

/// Unmounts the drive of `mount`, checks it, and mounts it again with the same options. If the
/// checker finds errors that it cannot repair, the drive stays unmounted, so that nothing is
/// written to it.
///
/// # Errors
/// [`CheckError`]; after [`CheckError::Failed`] it may be unmounted.
pub(super) fn check(mount: &Mount) -> Result<(), CheckError> {
    let commands = checker_commands(mount)?;
    if !Uid::effective().is_root() {
        return Err(CheckError::NotRoot(commands));
    }
    if superblock::vanishes_when_unmounted(mount.dev) {
        return Err(CheckError::NotPossible(
            "its loop device goes away when it is unmounted".into(),
        ));
    }
    if let Ok(table) = mounts::mounts()
        && let Some(other) = table
            .iter()
            .find(|m| m.dev == mount.dev && m.id != mount.id)
    {
        return Err(CheckError::NotPossible(format!(
            "it is also mounted at {}",
            other.mount_point.escaped()
        )));
    }
    tracing::info!(%commands, "checking the drive");
    run(&commands.unmount, 0)?;
    // 1 and 2 mean that errors were found and repaired.
    let words = run(&commands.check, 3)?;
    tracing::info!(words, "the drive was checked");
    run_quietly(&commands.mount)
}

fn failed(words: &[String], said: String) -> CheckError {
    CheckError::Failed {
        command: words.join(" "),
        words: said,
    }
}

fn command(words: &[String]) -> Command {
    let mut command = Command::new(words.first().map_or("", String::as_str));
    command.args(words.iter().skip(1)).stdin(Stdio::null());
    command
}

/// Runs a command whose exit code may have the bits `fine`. Returns its output in one line.
fn run(words: &[String], fine: i32) -> Result<String, CheckError> {
    let output = command(words)
        .output()
        .map_err(|error| failed(words, error.to_string()))?;
    let said = [output.stdout, output.stderr].concat();
    let said = said.to_text();
    let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
    let said = printable(&said);
    match output.status.code() {
        Some(code) if code & !fine == 0 => Ok(said),
        _ => Err(failed(words, said)),
    }
}

/// Runs a command that may leave a process behind, which would keep a pipe open for ever.
fn run_quietly(words: &[String]) -> Result<(), CheckError> {
    let status = command(words)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .map_err(|error| failed(words, error.to_string()))?;
    if status.success() {
        Ok(())
    } else {
        Err(failed(words, status.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(state: FsState) -> Case {
        Case {
            state,
            vanished: false,
            batch_open: false,
            fsck: false,
        }
    }

    #[test]
    fn a_set_flag_is_always_said_and_a_clear_one_believed() {
        assert_eq!(
            decide(case(FsState::Dirty)),
            Decision::Warn(Concern::Marked)
        );
        assert_eq!(decide(case(FsState::Clean)), Decision::Go);
        let yanked = Case {
            vanished: true,
            batch_open: true,
            ..case(FsState::Clean)
        };
        assert_eq!(decide(yanked), Decision::Go);
    }

    #[test]
    fn where_nothing_tells_it_is_said_only_after_an_unclean_end() {
        let unknown = case(FsState::Unknown);
        assert_eq!(decide(unknown), Decision::Go);
        let interrupted = Case {
            batch_open: true,
            ..unknown
        };
        assert_eq!(decide(interrupted), Decision::Warn(Concern::Interrupted));
        let vanished = Case {
            vanished: true,
            ..interrupted
        };
        assert_eq!(decide(vanished), Decision::Warn(Concern::Vanished));
    }

    #[test]
    fn the_checker_runs_when_asked_for_unless_there_is_nothing_to_check() {
        let asked = |state, vanished| Case {
            fsck: true,
            vanished,
            ..case(state)
        };
        assert_eq!(decide(asked(FsState::Dirty, false)), Decision::Check);
        assert_eq!(decide(asked(FsState::Unknown, false)), Decision::Check);
        assert_eq!(decide(asked(FsState::Clean, true)), Decision::Check);
        assert_eq!(decide(asked(FsState::Clean, false)), Decision::Go);
        assert_eq!(decide(asked(FsState::Irrelevant, true)), Decision::Go);
    }

    #[test]
    fn a_drive_is_mounted_again_as_it_was() {
        let table = mounts::parse(
            b"40 27 8:17 / /media/My\\040Disk rw,nosuid,relatime shared:2 - fuseblk /dev/sdb1 rw,user_id=0,group_id=0,allow_other,blksize=4096
41 27 8:17 / /m rw,relatime - exfat /dev/sdb1 rw,uid=1000,errors=remount-ro
42 27 8:17 /sub /s rw - exfat /dev/sdb1 rw
43 27 8:17 / /k rw - exfat /dev/sdb1 ro,uid=1000
",
        );
        let told = commands_for(&table[0], "/dev/sdb1", Kind::Exfat).unwrap();
        assert_eq!(
            told.to_string(),
            "umount -- '/media/My Disk'; fsck.exfat -y /dev/sdb1; \
             mount -t exfat-fuse -o rw,nosuid,relatime,allow_other /dev/sdb1 '/media/My Disk'"
        );
        let told = commands_for(&table[1], "/dev/sdb1", Kind::Exfat).unwrap();
        assert!(
            told.to_string()
                .contains("uid=1000,errors=remount-ro' /dev/sdb1 /m")
        );
        assert!(commands_for(&table[2], "/dev/sdb1", Kind::Exfat).is_err());
        let kept_clean = commands_for(&table[3], "/dev/sdb1", Kind::Exfat).unwrap();
        assert!(kept_clean.to_string().contains("'rw,uid=1000' /dev/sdb1"));
        assert!(commands_for(&table[0], "/dev/sdb1", Kind::Fat).is_err());
    }
}
