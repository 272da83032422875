//! `ferryfs mount`

use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::complain_of;
use super::units::{UnitError, parse_cache_size, parse_duration};
use crate::core::{Exit, Failure, ForeignText};
use crate::daemon::background;
use crate::daemon::background::{CHILD_FLAG, Ready};
use crate::daemon::options::{
    CacheSize, DeltaMode, FuseOptions, IoMode, LeaseMode, MountOptions, Protect, Refresh, Verify,
};
use crate::sys::terminal::complain;

/// This program, also after its file has been replaced.
const THIS_PROGRAM: &str = "/proc/self/exe";

/// A working drive now and then takes nearly this long for a read.
const SHORTEST_IO_TIMEOUT: Duration = Duration::from_millis(100);

/// Looking for changes reads every known directory of the drive.
const SHORTEST_REFRESH: Duration = Duration::from_secs(1);

/// The holder of a lease looks at it twelve times in this time.
const SHORTEST_LEASE: Duration = Duration::from_secs(1);

/// How long another machine waits at most.
const LONGEST_LEASE: Duration = Duration::from_secs(120);

/// Mount a drive's directory, with the SSD in front of it
///
/// The mount shows everything that is on the drive. Every write goes to the SSD, and is flushed to
/// the drive in atomic batches: when nothing has changed for a while, when the oldest change gets
/// too old, or on `ferryfs flush`. The drive may be unplugged after `ferryfs eject`; the mount
/// stays usable without it.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct MountArgs {
    /// The cache directory, on an SSD [default: $XDG_DATA_HOME/ferryfs/<volume id>]
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// How much the cache may hold: "10G", "512M", "1.5T", or a share of the free space such as
    /// "80%" [default: 80%]
    #[arg(long, value_name = "SIZE", value_parser = parse_cache_size)]
    cache_size: Option<CacheSize>,
    /// Flush once nothing has changed for this long: "500ms", "30s", "15m", "2h", "1d"
    #[arg(long, value_name = "DUR", value_parser = parse_duration, default_value = "30s")]
    flush_after: Duration,
    /// Flush once the oldest change is this old, even if changes go on
    #[arg(long, value_name = "DUR", value_parser = parse_duration, default_value = "15m")]
    max_age: Duration,
    /// Flush only on `ferryfs flush`, `eject` and `unmount`
    #[arg(long)]
    no_auto_flush: bool,
    /// Leave files that are open for writing behind at each flush until they are closed, instead of
    /// writing them as they are at one moment
    #[arg(long)]
    wait_closed: bool,
    /// Give up on a read from the drive that has not been answered for this long, at least 100ms;
    /// writes never wait for it
    #[arg(long, value_name = "DUR", value_parser = parse_io_timeout, default_value = "10s")]
    io_timeout: Duration,
    /// Who reads and writes the bytes of cached files
    #[arg(long, value_enum, default_value_t)]
    io: IoMode,
    /// When to read back what was written to the drive, past the kernel's memory, and compare it
    #[arg(long, value_enum, default_value_t)]
    verify: Verify,
    /// How to write large files of which little has changed: "auto" only the changed blocks,
    /// "never" whole. If the drive is pulled out while blocks are written into a file, it is
    /// neither the old nor the new version until the drive is back
    #[arg(long, value_enum, default_value_t)]
    delta: DeltaMode,
    /// How often to look for changes by other machines and programs: "30s", "5m", or "off"; after
    /// the drive was plugged in that is done in any case [default: 1m on network file systems, else
    /// off]
    #[arg(long, value_name = "DUR", value_parser = parse_refresh)]
    refresh: Option<Refresh>,
    /// Mount options as in mount(8): allow_other, suid, dev, exec, noexec; nosuid and nodev are the
    /// default; uid=N, gid=N, umask=OCTAL: shown for every file instead of its own
    #[arg(short = 'o', value_name = "OPTS")]
    options: Vec<String>,
    /// Check the drive's file system first, unless it was unmounted cleanly; needs root
    #[arg(long)]
    fsck: bool,
    /// Mount the drive although it is on another file system than before: it looks like a copy of
    /// the one that was enrolled
    #[arg(long)]
    accept_copy: bool,
    /// Accept an `rclone mount` that uploads files later (--vfs-cache-mode writes or full): a flush
    /// may then be reported as done before the upload is
    #[arg(long)]
    allow_write_back_drive: bool,
    /// Which directories only one machine at a time may use: "auto" those on network file systems,
    /// "always" also local ones, for containers that share one
    #[arg(long, value_enum, default_value_t)]
    lease: LeaseMode,
    /// How long this mount may be silent before another machine may take the directory over, 1s to
    /// 2m
    #[arg(long, value_name = "DUR", value_parser = parse_lease_timeout, default_value = "1m")]
    lease_timeout: Duration,
    /// Take the directory over although another machine uses it; that machine continues without it
    #[arg(long)]
    take_over: bool,
    /// Show also what other systems keep for themselves at the root of the drive: "System Volume
    /// Information", ".Trashes" and the like. What was shown once stays shown with this cache
    #[arg(long)]
    show_system: bool,
    /// Make a new volume of the directory, although it looks like the mount point of a drive that
    /// is not mounted, or another volume was mounted there
    #[arg(long)]
    enroll: bool,
    /// The folder .ferryfs was deleted from the drive: write its marker again and keep the cache
    #[arg(long)]
    re_enroll: bool,
    /// Move the files in the mount point into the mount, instead of refusing a mount point that is
    /// not empty
    #[arg(long)]
    adopt: bool,
    /// Make the bare mount point immutable (chattr +i), so that not even root can write to it while
    /// nothing is mounted; needs root. Without this it loses its write permission only, unless
    /// fstab or a systemd unit names it
    #[arg(long, conflicts_with = "no_protect_mountpoint")]
    protect_mountpoint: bool,
    /// Leave the bare mount point writable, and undo an earlier protection
    #[arg(long)]
    no_protect_mountpoint: bool,
    /// Stay in the foreground
    #[arg(long)]
    foreground: bool,
    /// Set by the first process for the one in the background
    #[arg(long, hide = true)]
    background_child: bool,
    /// The drive's directory
    #[arg(value_name = "DRIVE")]
    backend: PathBuf,
    /// Where to mount it: an empty directory
    mountpoint: PathBuf,
}

const EXAMPLES: &str = "\
Examples:
  ferryfs mount /media/me/HDD ~/lab
  ferryfs mount --cache /ssd/ferry --cache-size 200G /mnt/nas ~/nas
  ferryfs mount --no-auto-flush -o allow_other,noexec /media/me/HDD /srv/lab";

pub(super) fn run(args: MountArgs, command_line: &[OsString]) -> Result<Exit, Failure> {
    let child = args.background_child;
    let options = args.into_options()?;
    if child {
        background::begin_child()
            .map_err(|error| Failure::failed(format!("cannot go to the background: {error}")))?;
        if let Err(error) = serve(options, Ready::background()) {
            let failure = error;
            complain_of(&failure);
            background::give_up(failure.code);
            return Ok(failure.code);
        }
        return Ok(Exit::Done);
    }
    if options.foreground {
        let ready = Ready::foreground(&options.backend, &options.mountpoint);
        serve(options, ready)?;
        return Ok(Exit::Done);
    }
    let exit = background::launch(second_process(command_line))?;
    if exit == Exit::Done {
        complain(&background::mounted(&options.backend, &options.mountpoint));
    }
    Ok(exit)
}

fn serve(options: MountOptions, ready: Ready) -> Result<(), Failure> {
    let checked = crate::daemon::check(options)?;
    crate::daemon::run(checked, ready)
}

/// The same command with the flag that marks the second process. The flag is directly after the
/// command's name, because after a `--` it would be a path.
fn second_process(command_line: &[OsString]) -> Command {
    let mut command = Command::new(THIS_PROGRAM);
    // The name that `ps` shows.
    command.arg0("ferryfs");
    for (place, argument) in command_line.iter().enumerate().skip(1) {
        command.arg(argument);
        if place == 1 {
            command.arg(CHILD_FLAG);
        }
    }
    command
}

impl MountArgs {
    fn into_options(self) -> Result<MountOptions, Failure> {
        let fuse = FuseOptions::parse(self.options.iter().map(String::as_str))
            .map_err(|error| Failure::usage(error.to_string()).hint(error.hint))?;
        let cache = self.cache.as_deref().map(|path| absolute("cache", path));
        Ok(MountOptions {
            backend: absolute("drive", &self.backend)?,
            mountpoint: absolute("mount point", &self.mountpoint)?,
            cache: cache.transpose()?,
            cache_size: self.cache_size.unwrap_or_default(),
            flush_after: self.flush_after,
            max_age: self.max_age,
            auto_flush: !self.no_auto_flush,
            wait_closed: self.wait_closed,
            io_timeout: self.io_timeout,
            io: self.io,
            verify: self.verify,
            delta: self.delta,
            refresh: self.refresh.unwrap_or_default(),
            fuse,
            fsck: self.fsck,
            accept_copy: self.accept_copy,
            allow_write_back: self.allow_write_back_drive,
            lease: self.lease,
            lease_timeout: self.lease_timeout,
            take_over: self.take_over,
            show_system: self.show_system,
            enroll: self.enroll,
            re_enroll: self.re_enroll,
            adopt: self.adopt,
            protect: match (self.protect_mountpoint, self.no_protect_mountpoint) {
                (true, _) => Protect::Immutable,
                (_, true) => Protect::No,
                _ => Protect::Auto,
            },
            foreground: self.foreground,
        })
    }
}

/// Why a duration is not accepted by an option that takes only some.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum DurationError {
    #[error(transparent)]
    Unit(#[from] UnitError),
    #[error("{0}; or \"off\"")]
    UnitOrOff(UnitError),
    #[error("must be at least 100ms")]
    IoTimeout,
    #[error("must be at least 1s, or \"off\"")]
    Refresh,
    #[error("must be 1s to 2m")]
    LeaseTimeout,
}

/// Parses a duration that is at least [`SHORTEST_IO_TIMEOUT`].
fn parse_io_timeout(text: &str) -> Result<Duration, DurationError> {
    let timeout = parse_duration(text)?;
    if timeout < SHORTEST_IO_TIMEOUT {
        return Err(DurationError::IoTimeout);
    }
    Ok(timeout)
}

/// Parses "off", or a duration that is at least [`SHORTEST_REFRESH`].
fn parse_refresh(text: &str) -> Result<Refresh, DurationError> {
    if text == "off" {
        return Ok(Refresh::Off);
    }
    let every = parse_duration(text).map_err(DurationError::UnitOrOff)?;
    if every < SHORTEST_REFRESH {
        return Err(DurationError::Refresh);
    }
    Ok(Refresh::Every(every))
}

/// Parses a duration from [`SHORTEST_LEASE`] to [`LONGEST_LEASE`].
fn parse_lease_timeout(text: &str) -> Result<Duration, DurationError> {
    let timeout = parse_duration(text)?;
    if !(SHORTEST_LEASE..=LONGEST_LEASE).contains(&timeout) {
        return Err(DurationError::LeaseTimeout);
    }
    Ok(timeout)
}

/// `path` made absolute now, because the daemon leaves the working directory.
fn absolute(what: &str, path: &Path) -> Result<PathBuf, Failure> {
    if path.as_os_str() == OsStr::new("") {
        return Err(Failure::usage(format!("the {what} is an empty path")));
    }
    std::path::absolute(path).map_err(|error| {
        Failure::failed(format!("cannot make {} absolute: {error}", path.escaped()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        mount: MountArgs,
    }

    fn options(line: &str) -> Result<MountOptions, Failure> {
        let words = std::iter::once("mount").chain(line.split_whitespace());
        let line =
            Line::try_parse_from(words).map_err(|error| Failure::usage(error.to_string()))?;
        line.mount.into_options()
    }

    #[test]
    fn the_defaults_are_those_of_the_contract() {
        let options = options("/b /m").unwrap();
        let expected = MountOptions {
            backend: "/b".into(),
            mountpoint: "/m".into(),
            cache: None,
            cache_size: CacheSize::PercentOfFree(80),
            flush_after: Duration::from_secs(30),
            max_age: Duration::from_secs(900),
            auto_flush: true,
            wait_closed: false,
            io_timeout: Duration::from_secs(10),
            io: IoMode::Auto,
            verify: Verify::Off,
            delta: DeltaMode::Auto,
            refresh: Refresh::Auto,
            fuse: FuseOptions::default(),
            fsck: false,
            accept_copy: false,
            allow_write_back: false,
            lease: LeaseMode::Auto,
            lease_timeout: Duration::from_secs(60),
            take_over: false,
            show_system: false,
            enroll: false,
            re_enroll: false,
            adopt: false,
            protect: Protect::Auto,
            foreground: false,
        };
        assert_eq!(options, expected);
    }

    #[test]
    fn every_option_arrives() {
        let options = options(
            "--cache /c --cache-size 10G --flush-after 2h --max-age 1d --no-auto-flush --wait-closed --io-timeout 1.5s --io daemon \
             --verify after-flush --delta never --refresh 5m --fsck --accept-copy --lease always --lease-timeout 90s --take-over --show-system --enroll --re-enroll --adopt \
             --no-protect-mountpoint -o allow_other -o noexec,suid --foreground rel /m",
        )
        .unwrap();
        assert!(options.backend.is_absolute() && options.backend.ends_with("rel"));
        assert_eq!(options.cache.as_deref(), Some(Path::new("/c")));
        assert_eq!(options.cache_size, CacheSize::Bytes(10 << 30));
        assert_eq!(options.flush_after, Duration::from_secs(7200));
        assert_eq!(options.max_age, Duration::from_secs(86_400));
        assert_eq!(options.refresh, Refresh::Every(Duration::from_secs(300)));
        assert!(!options.auto_flush && options.wait_closed && options.foreground);
        assert_eq!(options.io_timeout, Duration::from_millis(1500));
        assert!(options.fsck && options.accept_copy && options.take_over && options.show_system);
        assert!(options.enroll && options.re_enroll && options.adopt);
        assert_eq!(options.protect, Protect::No);
        assert_eq!(options.lease, LeaseMode::Always);
        assert_eq!(options.lease_timeout, Duration::from_secs(90));
        assert_eq!(options.io, IoMode::Daemon);
        assert_eq!(options.verify, Verify::AfterFlush);
        assert_eq!(options.delta, DeltaMode::Never);
        assert!(options.fuse.allow_other && options.fuse.suid && !options.fuse.exec);
    }

    #[test]
    fn what_makes_no_sense_is_wrong_usage() {
        for line in [
            "",
            "/b",
            "/b /m /x",
            "-o ro /b /m",
            "--io both /b /m",
            "--max-age soon /b /m",
            "--io-timeout 0 /b /m",
            "--refresh 10ms /b /m",
            "--refresh never /b /m",
            "--lease-timeout 3m /b /m",
            "--protect-mountpoint --no-protect-mountpoint /b /m",
        ] {
            assert_eq!(options(line).unwrap_err().code, Exit::Usage, "{line}");
        }
    }

    #[test]
    fn the_second_process_gets_its_flag_before_a_double_dash() {
        let line = ["ferryfs", "mount", "--", "-b", "m"].map(OsString::from);
        let command = second_process(&line);
        let args: Vec<_> = command.get_args().collect();
        assert_eq!(args, ["mount", CHILD_FLAG, "--", "-b", "m"]);
    }
}
