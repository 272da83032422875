//! `ferryfs mount`

use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use clap::Parser;

use super::config::{CACHE, DRIVE, MOUNTPOINT, Setting, Settings};
use super::metrics_args::MetricsArgs;
use super::units::{UnitError, parse_cache_size, parse_duration, parse_rate};
use super::{complain_of, config, reach, usage};
use crate::control::mounts;
use crate::core::{Exit, Failure, ForeignText};
use crate::daemon::background::{CHILD_FLAG, Ready};
use crate::daemon::find_drive::DriveName;
use crate::daemon::options::{
    CacheSize, DeltaMode, Expiry, FuseOptions, HookCommands, IoMode, Keeping, KeepingError,
    LeaseMode, LimitRate, Live, MountOptions, Origin, Protect, QuietHours, Refresh, Schedule,
    Verify, VersionOptions,
};
use crate::daemon::{background, find_drive};
use crate::flush::HoldIf;
use crate::plan::patterns::{self, PatternError, Patterns};
use crate::plan::retention::Keep;
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
    /// Flush at full speed also while others read from the drive. Without this, a flush that begins
    /// by itself leaves most of the drive to them, for up to --max-age, and none fills the drive's
    /// queue
    #[arg(long)]
    no_polite: bool,
    /// Read and write no more than this in a second in a flush that begins by itself: "30M", at
    /// least 64K, or "off". Flushes on request, `eject` and `unmount` take no notice of it
    #[arg(long, value_name = "SIZE", value_parser = parse_limit_rate, default_value = "off")]
    limit_rate: LimitRate,
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
    /// What to write of large files in which little has changed: "auto": only the changed blocks,
    /// or "never" less than all. If the drive is pulled out while blocks are written into a file,
    /// it is neither the old nor the new version until the drive is back, or `ferryfs recover` was
    /// run
    #[arg(long, value_enum, default_value_t)]
    delta: DeltaMode,
    /// Keep what flushes replace and delete on the drive, in .ferryfs/versions, for `ferryfs
    /// versions`, `restore` and `undo`. Files of up to 1 GiB are then written whole, whatever
    /// --delta says
    #[arg(long)]
    versions: bool,
    /// How many versions of each file to keep, in the words of restic: last, hourly, daily, weekly,
    /// monthly, yearly, within
    #[arg(
        long,
        value_name = "RULES",
        default_value = "last=3,daily=7,weekly=4,within=7d"
    )]
    versions_keep: Keep,
    /// The share of the drive that versions may take; beyond it the oldest are removed. A flush
    /// that needs their space removes them, too
    #[arg(long, value_name = "SHARE", value_parser = parse_share, default_value = "10%")]
    versions_share: u8,
    /// Keep no versions of files that match this pattern of gitignore(5); may be repeated
    #[arg(long, value_name = "PATTERN", value_parser = parse_pattern)]
    versions_exclude: Vec<String>,
    /// Hold a flush back that changes a large share of the files on the drive, and never fewer than
    /// 20: "more than 50% of files removed or rewritten", or "50%". `ferryfs flush --release` lets
    /// it go
    #[arg(long, value_name = "CONDITION")]
    hold_if: Option<HoldIf>,
    /// Keep the drive's file system read-only except while a flush writes to it, so that a drive
    /// that is pulled at any other moment is clean for a TV or a Mac. Needs root, and a drive with
    /// exFAT, FAT or ext4 of the kernel, not behind FUSE and not on a network; other programs
    /// cannot write to the drive between flushes
    #[arg(long)]
    keep_clean: bool,
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
    /// Only read: the mount answers EROFS, and nothing is written to the drive. It must have been
    /// mounted without this before, with the same cache; what waits in that stays there
    #[arg(long, conflicts_with_all = ["adopt", "enroll", "re_enroll", "fsck", "take_over"])]
    read_only: bool,
    /// Make the bare mount point immutable (chattr +i), so that not even root can write to it while
    /// nothing is mounted; needs root. Without this it loses its write permission only, unless
    /// fstab or a systemd unit names it
    #[arg(long, conflicts_with = "no_protect_mountpoint")]
    protect_mountpoint: bool,
    /// Leave the bare mount point writable, and undo an earlier protection
    #[arg(long)]
    no_protect_mountpoint: bool,
    #[command(flatten)]
    metrics: MetricsArgs,
    /// Flush at these times, in the syntax of crontab(5) and local time, also with
    /// --no-auto-flush: "0 2 * * *", "30 6 * * mon-fri", "@daily". A run that was missed is made up
    /// once, when the machine is awake and the drive is there
    #[arg(long, value_name = "CRON")]
    schedule: Option<Schedule>,
    /// Begin no flush in these hours of the day, "19:00-23:30", unless the SSD is nearly full;
    /// flushes on request go on
    #[arg(long, value_name = "FROM-TO", value_delimiter = ',')]
    quiet_hours: Vec<QuietHours>,
    /// Begin no flush while the machine runs on its battery, unless the SSD is nearly full
    #[arg(long)]
    only_on_mains: bool,
    /// Read all files of the drive at these times, in the syntax of --schedule, compare them with
    /// their hashes, and repair what is damaged, see `ferryfs scrub --help`: "0 3 1 * *". A run
    /// that was missed is made up once
    #[arg(long, value_name = "CRON")]
    scrub: Option<Schedule>,
    /// How many bytes a second a scrub reads: "20M"
    #[arg(long, value_name = "SIZE", value_parser = parse_rate, default_value = "20M")]
    scrub_rate: u64,
    /// Run this command for the shell when a flush has failed or left something behind. It gets a
    /// report in JSON on stdin
    #[arg(long, value_name = "COMMAND")]
    on_failure: Option<String>,
    /// Run this command when a flush has succeeded, or the schedule has found nothing to flush
    #[arg(long, value_name = "COMMAND")]
    on_success: Option<String>,
    /// Run this command when a flush has changed the drive, also if it has left something behind:
    /// for a second copy, with `ferryfs changes`
    #[arg(long, value_name = "COMMAND")]
    on_batch: Option<String>,
    /// Run this command when there is something new that you must look at
    #[arg(long, value_name = "COMMAND")]
    on_attention: Option<String>,
    /// Kill a command that runs after a flush, and what it has started, after this long
    #[arg(long, value_name = "DUR", value_parser = parse_duration, default_value = "1m")]
    hook_timeout: Duration,
    /// Never write to the drive what matches this pattern of gitignore(5), until it is renamed to
    /// something that does not: "tmp/", "*.part", "node_modules/". May be given several times
    #[arg(long, value_name = "PATTERN", value_parser = parse_pattern)]
    local: Vec<String>,
    /// Remove what matches this pattern when it has not changed for this long: "tmp/=1d". Only what
    /// stays on this computer expires: --local must have the same pattern. Where several match the
    /// longest time counts. In a file it may be a table: { "tmp/" = "1d" }
    #[arg(long, value_name = "PATTERN=DUR", value_parser = parse_expiry)]
    expire: Vec<Expiry>,
    /// Keep in the cache what matches this pattern, and bring it there: "*.nfo", "library.db"
    #[arg(long, value_name = "PATTERN", value_parser = parse_pattern)]
    pin: Vec<String>,
    /// Remove a file from the cache, never from the drive, when it has not been used for this long,
    /// also while there is space [default: only when space is needed]
    #[arg(long, value_name = "DUR", value_parser = parse_evict_after)]
    evict_after: Option<Duration>,
    /// Mount all drives of the configuration
    #[arg(long, conflicts_with_all = ["backend", "mountpoint", "foreground"])]
    all: bool,
    /// Stay in the foreground
    #[arg(long)]
    foreground: bool,
    /// Set by the first process for the one in the background
    #[arg(long, hide = true)]
    background_child: bool,
    /// Set by a mount from the configuration: what it says, in JSON
    #[arg(long, hide = true, value_parser = parse_origin)]
    origin: Option<Origin>,
    /// The drive's directory; or alone: the name of a drive in the configuration
    #[arg(value_name = "DRIVE", required_unless_present = "all")]
    backend: Option<PathBuf>,
    /// Where to mount it: an empty directory
    mountpoint: Option<PathBuf>,
}

const EXAMPLES: &str = "\
Examples:
  ferryfs mount /media/me/HDD ~/lab
  ferryfs mount --cache /ssd/ferry --cache-size 200G /mnt/nas ~/nas
  ferryfs mount --no-auto-flush -o allow_other,noexec /media/me/HDD /srv/lab
  ferryfs mount hdd                  # the drive [drive.hdd] of the configuration
  ferryfs mount --all                # all of them

Each option may be set in the configuration, see `ferryfs config --help`. What the command line says
counts more; every --OPTION without a value there has its opposite --no-OPTION.";

/// Runs the command. `given` is what the command line has set itself.
pub(super) fn run(
    args: MountArgs,
    given: &Settings,
    command_line: &[OsString],
) -> Result<Exit, Failure> {
    if args.background_child {
        return in_background(args.into_options()?);
    }
    if args.all {
        return mount_all(given);
    }
    let name = match (&args.backend, &args.mountpoint) {
        (Some(name), None) => name,
        _ => return start(args.into_options()?, command_line),
    };
    if name.as_os_str().as_encoded_bytes().contains(&b'/') {
        return Err(
            Failure::usage("the mount point is missing: where to mount the drive").hint(
                "usage: ferryfs mount [OPTIONS] DRIVE MOUNTPOINT; or the NAME of a drive in the \
                   configuration, which has no slash",
            ),
        );
    }
    let config = config::load()?;
    let drive = config.drive(&name.to_string_lossy())?;
    let settings = config.settings_for(drive, given)?;
    start_configured(&drive.name, &settings, args.foreground)
}

/// Mounts what the configuration and the command line have `settings` for.
fn start_configured(name: &str, settings: &Settings, foreground: bool) -> Result<Exit, Failure> {
    let line = command_line(name, settings, foreground)?;
    start(parsed(&line)?.into_options()?, &line)
}

/// Mounts every drive of the configuration that is not mounted yet. One that fails does not keep
/// the others from being mounted; the exit code is that of the first failure.
fn mount_all(given: &Settings) -> Result<Exit, Failure> {
    let config = config::load()?;
    if config.drives.is_empty() {
        return Err(
            Failure::failed(format!("{} names no drive", config.path.escaped()))
                .hint("add a section such as [drive.hdd], see `ferryfs config --help`"),
        );
    }
    let mut outcome = Exit::Done;
    let mut fail = |code: Exit| {
        if outcome == Exit::Done {
            outcome = code;
        }
    };
    for problem in &config.problems {
        complain(&problem.to_string());
        fail(Exit::Failed);
    }
    for drive in &config.drives {
        if config.is_broken(drive) {
            complain(&format!("ferryfs: {} was not mounted", drive.name));
            continue;
        }
        let mounted =
            (config.settings_for(drive, given)).and_then(|settings| match is_mounted(&settings) {
                true => Ok(Exit::Done),
                false => start_configured(&drive.name, &settings, false),
            });
        match mounted {
            Ok(Exit::Done) => {}
            Ok(code) => fail(code),
            Err(failure) => {
                complain_of(&failure);
                fail(failure.code);
            }
        }
    }
    Ok(outcome)
}

/// Whether a daemon serves the mount point already.
fn is_mounted(settings: &Settings) -> bool {
    let mountpoint = settings.get(MOUNTPOINT).and_then(Setting::text);
    let Some(place) = mountpoint.and_then(|path| mounts::resolve(Path::new(path)).ok()) else {
        return false;
    };
    let mount = mounts::find(Some(&place));
    mount.is_ok_and(|mount| mount.mountpoint == place && reach::daemon_of(&mount).is_ok())
}

/// The command line that mounts a drive of the configuration with these settings.
fn command_line(
    name: &str,
    settings: &Settings,
    foreground: bool,
) -> Result<Vec<OsString>, Failure> {
    let text = |key| {
        settings
            .get(key)
            .and_then(Setting::text)
            .unwrap_or_default()
    };
    let drive = text(DRIVE)
        .parse::<DriveName>()
        .map_err(|error| Failure::usage(format!("drive {error}")))?;
    let cache = settings.get(CACHE).and_then(Setting::text).map(Path::new);
    let place = find_drive::find(&drive, cache)?;
    let origin = Origin {
        name: name.into(),
        settings: serde_json::to_value(settings)
            .map_err(|error| Failure::failed(format!("the settings are no JSON: {error}")))?,
    };
    let origin = serde_json::to_string(&origin)
        .map_err(|error| Failure::failed(format!("the settings are no JSON: {error}")))?;
    let mut line = vec!["ferryfs".into(), "mount".into()];
    line.extend(config::arguments(settings));
    line.push(format!("--origin={origin}").into());
    if foreground {
        line.push("--foreground".into());
    }
    line.extend(["--".into(), place.into(), text(MOUNTPOINT).into()]);
    Ok(line)
}

/// A command line as an ordinary one is parsed, after the program's name and the command's.
fn parsed(line: &[OsString]) -> Result<MountArgs, Failure> {
    let words = line.iter().skip(1);
    Line::try_parse_from(words)
        .map(|line| line.mount)
        .map_err(|error| usage::failure(&error))
}

/// The options of a mount with these settings, without looking for its drive.
///
/// # Errors
/// If a value is not accepted.
pub(super) fn options_of(settings: &Settings) -> Result<MountOptions, Failure> {
    let mut line = vec!["ferryfs".into(), "mount".into()];
    line.extend(config::arguments(settings));
    line.extend(["--", "/", "/"].map(OsString::from));
    parsed(&line)?.into_options()
}

/// A command line that is only this command.
#[derive(Debug, Parser)]
#[command(name = "mount", no_binary_name = false)]
pub(super) struct Line {
    #[command(flatten)]
    mount: MountArgs,
}

fn in_background(options: MountOptions) -> Result<Exit, Failure> {
    background::begin_child()
        .map_err(|error| Failure::failed(format!("cannot go to the background: {error}")))?;
    if let Err(failure) = serve(options, Ready::background()) {
        complain_of(&failure);
        background::give_up(failure.code);
        return Ok(failure.code);
    }
    Ok(Exit::Done)
}

fn start(options: MountOptions, command_line: &[OsString]) -> Result<Exit, Failure> {
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
        let (Some(backend), Some(mountpoint)) = (&self.backend, &self.mountpoint) else {
            return Err(Failure::usage("a drive and a mount point are needed"));
        };
        let keeping = Keeping {
            local: self.local,
            pin: self.pin,
            expire: self.expire,
            evict_after: self.evict_after,
        };
        keeping.check().map_err(|error| {
            let hint = match (error.list, &error.reason) {
                ("local", _) => {
                    "nothing would ever be written to the drive; name what is to stay here, or add \
                     a pattern such as \"!*.mkv\" for what is not"
                }
                (_, KeepingError::NotLocal) => {
                    "add the pattern to local as well, or remove the rule; what travels to the \
                     drive is never removed by age"
                }
                (_, KeepingError::Negated) => {
                    "remove the rule; for what is to stay longer, add its pattern with a longer time"
                }
                (_, KeepingError::Pattern(_)) => "name the files that are meant",
            };
            Failure::usage(error.to_string()).hint(hint)
        })?;
        Ok(MountOptions {
            backend: absolute("drive", backend)?,
            mountpoint: absolute("mount point", mountpoint)?,
            cache: cache.transpose()?,
            cache_size: self.cache_size.unwrap_or_default(),
            live: Live {
                flush_after: self.flush_after,
                max_age: self.max_age,
                auto_flush: !self.no_auto_flush,
                polite: !self.no_polite,
                limit_rate: self.limit_rate,
                wait_closed: self.wait_closed,
                verify: self.verify,
                refresh: self.refresh.unwrap_or_default(),
                schedule: self.schedule,
                scrub: self.scrub,
                scrub_rate: self.scrub_rate,
                quiet_hours: self.quiet_hours,
                only_on_mains: self.only_on_mains,
                hooks: HookCommands {
                    on_failure: self.on_failure,
                    on_success: self.on_success,
                    on_batch: self.on_batch,
                    on_attention: self.on_attention,
                    timeout: self.hook_timeout,
                },
                keeping,
            },
            io_timeout: self.io_timeout,
            io: self.io,
            delta: self.delta,
            versions: VersionOptions {
                is_on: self.versions,
                keep: self.versions_keep,
                share: self.versions_share,
                exclude: self.versions_exclude,
            },
            hold_if: self.hold_if,
            fuse,
            keep_clean: self.keep_clean,
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
            read_only: self.read_only,
            protect: match (self.protect_mountpoint, self.no_protect_mountpoint) {
                (true, _) => Protect::Immutable,
                (_, true) => Protect::No,
                _ => Protect::Auto,
            },
            foreground: self.foreground,
            metrics: self.metrics.into_options()?,
            origin: self.origin,
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
    #[error("must be at least 1s")]
    Age,
    #[error("must be 1s to 2m")]
    LeaseTimeout,
}

/// The shortest time after which a file expires or leaves the cache.
const SHORTEST_AGE: Duration = Duration::from_secs(1);

/// Parses a pattern.
fn parse_pattern(text: &str) -> Result<String, PatternError> {
    patterns::check(text).map(|()| text.to_owned())
}

/// Why a rule for files that expire is not accepted.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum ExpiryError {
    #[error("needs a pattern and a time, such as tmp/=1d")]
    NoTime,
    #[error("the pattern {0}")]
    Pattern(#[from] PatternError),
    #[error("the time {0}")]
    Time(#[from] UnitError),
    #[error("the time must be at least 1s")]
    Short,
}

/// Parses a pattern and a time, with `=` in between.
fn parse_expiry(text: &str) -> Result<Expiry, ExpiryError> {
    let (pattern, time) = text.rsplit_once('=').ok_or(ExpiryError::NoTime)?;
    patterns::check(pattern)?;
    let after = parse_duration(time.trim())?;
    if after < SHORTEST_AGE {
        return Err(ExpiryError::Short);
    }
    let pattern = pattern.to_owned();
    let lines = std::slice::from_ref(&pattern);
    if Patterns::new(lines).is_ok_and(|it| it.is_everything()) {
        return Err(ExpiryError::Pattern(PatternError::Everything));
    }
    Ok(Expiry { pattern, after })
}

/// Parses a duration that is at least [`SHORTEST_AGE`].
fn parse_evict_after(text: &str) -> Result<Duration, DurationError> {
    let after = parse_duration(text)?;
    match after < SHORTEST_AGE {
        true => Err(DurationError::Age),
        false => Ok(after),
    }
}

/// Parses what [`command_line`] passes on.
fn parse_origin(text: &str) -> Result<Origin, serde_json::Error> {
    serde_json::from_str(text)
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

/// Why a limit is not accepted.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}; or \"off\"")]
struct RateError(UnitError);

/// Parses "off", or a limit of bytes per second.
fn parse_limit_rate(text: &str) -> Result<LimitRate, RateError> {
    match text {
        "off" => Ok(LimitRate::Off),
        rate => parse_rate(rate)
            .map(LimitRate::PerSecond)
            .map_err(RateError),
    }
}

/// Parses a share of the drive.
fn parse_share(text: &str) -> Result<u8, UnitError> {
    let percent = text
        .trim()
        .strip_suffix('%')
        .and_then(|it| it.trim_end().parse().ok());
    match percent {
        Some(percent @ 1..=100) => Ok(percent),
        _ => Err(UnitError::Share),
    }
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
pub(super) fn absolute(what: &str, path: &Path) -> Result<PathBuf, Failure> {
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
    use crate::daemon::metrics::MetricsOptions;

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
            live: Live {
                flush_after: Duration::from_secs(30),
                max_age: Duration::from_secs(900),
                auto_flush: true,
                polite: true,
                limit_rate: LimitRate::Off,
                wait_closed: false,
                verify: Verify::Off,
                refresh: Refresh::Auto,
                schedule: None,
                quiet_hours: Vec::new(),
                scrub: None,
                scrub_rate: 20 << 20,
                only_on_mains: false,
                hooks: HookCommands {
                    timeout: Duration::from_secs(60),
                    ..HookCommands::default()
                },
                keeping: Keeping::default(),
            },
            io_timeout: Duration::from_secs(10),
            io: IoMode::Auto,
            delta: DeltaMode::Auto,
            versions: VersionOptions::default(),
            hold_if: None,
            fuse: FuseOptions::default(),
            keep_clean: false,
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
            read_only: false,
            protect: Protect::Auto,
            foreground: false,
            metrics: MetricsOptions::default(),
            origin: None,
        };
        assert_eq!(options, expected);
    }

    #[test]
    fn every_option_arrives() {
        let options = options(
            "--cache /c --cache-size 10G --flush-after 2h --max-age 1d --no-auto-flush --no-polite --limit-rate 30M --wait-closed --io-timeout 1.5s --io daemon \
             --verify after-flush --delta never --refresh 5m --keep-clean --fsck --accept-copy --lease always --lease-timeout 90s --take-over --show-system --enroll --re-enroll --adopt \
             --schedule @daily --quiet-hours 19:00-23:30,1:00-2:00 --only-on-mains --on-failure false --on-success true --on-batch id --on-attention date --hook-timeout 5s \
             --local tmp/ --local *.part --pin *.nfo --expire tmp/=1d --evict-after 7d \
             --versions --versions-keep last=1 --versions-share 5% --versions-exclude *.tmp --versions-exclude a/ --hold-if 30% \
             --no-protect-mountpoint -o allow_other -o noexec,suid --foreground rel /m",
        )
        .unwrap();
        assert!(options.backend.is_absolute() && options.backend.ends_with("rel"));
        assert_eq!(options.cache.as_deref(), Some(Path::new("/c")));
        assert_eq!(options.cache_size, CacheSize::Bytes(10 << 30));
        assert_eq!(options.live.flush_after, Duration::from_secs(7200));
        assert_eq!(options.live.max_age, Duration::from_secs(86_400));
        assert_eq!(
            options.live.refresh,
            Refresh::Every(Duration::from_secs(300))
        );
        assert!(!options.live.auto_flush && options.live.wait_closed && options.foreground);
        assert!(!options.live.polite);
        assert_eq!(options.live.limit_rate, LimitRate::PerSecond(30 << 20));
        assert_eq!(options.io_timeout, Duration::from_millis(1500));
        assert!(
            options.keep_clean
                && options.fsck
                && options.accept_copy
                && options.take_over
                && options.show_system
        );
        assert!(options.enroll && options.re_enroll && options.adopt);
        assert_eq!(options.protect, Protect::No);
        assert_eq!(options.lease, LeaseMode::Always);
        assert_eq!(options.lease_timeout, Duration::from_secs(90));
        assert_eq!(options.io, IoMode::Daemon);
        assert_eq!(options.live.verify, Verify::AfterFlush);
        assert_eq!(options.live.schedule, Some("@daily".parse().unwrap()));
        assert_eq!(options.live.quiet_hours.len(), 2);
        let hooks = HookCommands {
            on_failure: Some("false".into()),
            on_success: Some("true".into()),
            on_batch: Some("id".into()),
            on_attention: Some("date".into()),
            timeout: Duration::from_secs(5),
        };
        assert!(options.live.only_on_mains && options.live.hooks == hooks);
        let keeping = Keeping {
            local: vec!["tmp/".into(), "*.part".into()],
            pin: vec!["*.nfo".into()],
            expire: vec![Expiry {
                pattern: "tmp/".into(),
                after: Duration::from_secs(86_400),
            }],
            evict_after: Some(Duration::from_secs(7 * 86_400)),
        };
        assert_eq!(options.live.keeping, keeping);
        assert_eq!(options.delta, DeltaMode::Never);
        let versions = VersionOptions {
            is_on: true,
            keep: Keep {
                last: 1,
                ..Keep::NOTHING
            },
            share: 5,
            exclude: vec!["*.tmp".into(), "a/".into()],
        };
        assert_eq!(options.versions, versions);
        assert_eq!(options.hold_if, Some(HoldIf { percent: 30 }));
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
            "--local * /b /m",
            "--local / /b /m",
            "--local [z-a] /b /m",
            "--pin # /b /m",
            "--expire tmp/ /b /m",
            "--expire *=1d /b /m",
            "--expire tmp/=soon /b /m",
            "--expire tmp/=10ms /b /m",
            "--evict-after 0 /b /m",
            "--max-age soon /b /m",
            "--limit-rate 12 /b /m",
            "--limit-rate 0 /b /m",
            "--limit-rate fast /b /m",
            "--limit-rate 50% /b /m",
            "--limit-rate 30Q /b /m",
            "--io-timeout 0 /b /m",
            "--refresh 10ms /b /m",
            "--refresh never /b /m",
            "--lease-timeout 3m /b /m",
            "--versions-keep all /b /m",
            "--versions-share 0% /b /m",
            "--versions-exclude [z-a] /b /m",
            "--hold-if much /b /m",
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
