//! The machine: FUSE, the kernel, the clock.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use nix::unistd::geteuid;

use super::{Finding, Findings};
use crate::core::ForeignText;

/// The first kernel with passthrough for FUSE.
const PASSTHROUGH: (u32, u32) = (6, 9);

/// The oldest kernel that is tested with.
const OLDEST: (u32, u32) = (5, 4);

/// So many seconds after the build of this program a clock is believed to be wrong: 20 years.
const FAR: u64 = 20 * 365 * 86_400;

/// The time of the commit from which this program was built; 0 if unknown.
const BUILT: &str = env!("FERRYFS_TIME");

pub(super) fn examine() -> Vec<Finding> {
    let mut findings = Findings::of("machine");
    let is_root = geteuid().is_root();
    device(&mut findings);
    helper(&mut findings, is_root);
    kernel(&mut findings);
    allow_other(&mut findings, is_root);
    let built = BUILT.parse().unwrap_or(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    clock(&mut findings, now.map_or(0, |now| now.as_secs()), built);
    findings.found
}

fn device(findings: &mut Findings) {
    let path = Path::new("/dev/fuse");
    match fs::metadata(path) {
        Ok(meta) if !meta.file_type().is_char_device() => findings.problem(
            "/dev/fuse is no device",
            "remove it, and run `modprobe fuse` as root",
        ),
        Ok(_) => match fs::OpenOptions::new().read(true).write(true).open(path) {
            Ok(_) => findings.ok("/dev/fuse can be used"),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => findings.problem(
                "/dev/fuse may not be used by this user",
                "it needs mode 0666: `chmod 666 /dev/fuse` as root; in a container, pass the \
                 device in",
            ),
            Err(error) => findings.problem(
                format!("/dev/fuse cannot be opened: {error}"),
                "run `modprobe fuse` as root",
            ),
        },
        Err(_) => findings.problem(
            "/dev/fuse is missing",
            "run `modprobe fuse` as root; in a container, pass the device in",
        ),
    }
}

/// The program that mounts for ordinary users.
fn helper(findings: &mut Findings, is_root: bool) {
    const SET_USER_ID: u32 = 0o4000;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found: Option<PathBuf> = std::env::split_paths(&path)
        .map(|dir| dir.join("fusermount3"))
        .find(|program| program.is_file());
    match found {
        _ if is_root => findings.ok("root needs no fusermount3 to mount"),
        None => findings.problem(
            "fusermount3 is missing, so ordinary users cannot mount",
            "install it (Debian, Fedora, Arch: the package fuse3)",
        ),
        Some(program) => {
            let mode = fs::metadata(&program).map_or(0, |meta| meta.permissions().mode());
            match mode & SET_USER_ID {
                // With capabilities of the file it may work all the same.
                0 => findings.warn(
                    format!("{} has no set-user-id bit", program.escaped()),
                    "if mounting fails, reinstall the package fuse3",
                ),
                _ => findings.ok(format!("{} mounts for this user", program.escaped())),
            }
        }
    }
}

fn kernel(findings: &mut Findings) {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = crate::core::printable(release.trim());
    match version_of(&release) {
        None => findings.warn(
            format!("the version of the kernel is unknown ({release:?})"),
            "ferryfs needs Linux 5.4 or later",
        ),
        Some(version) if version < OLDEST => findings.warn(
            format!("Linux {release} is old"),
            "ferryfs is tested with Linux 5.4 and later",
        ),
        Some(version) => {
            let passthrough = match version >= PASSTHROUGH {
                true => "has FUSE passthrough",
                false => "has no FUSE passthrough (6.9), which only costs speed",
            };
            findings.ok(format!("Linux {release}; {passthrough}"));
        }
    }
}

fn version_of(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn allow_other(findings: &mut Findings, is_root: bool) {
    let text = fs::read_to_string("/etc/fuse.conf").unwrap_or_default();
    let allowed = text.lines().any(|line| line.trim() == "user_allow_other");
    findings.ok(match (is_root, allowed) {
        (true, _) => "-o allow_other may be used by root",
        (false, true) => "-o allow_other may be used by ordinary users",
        (false, false) => {
            "-o allow_other is for root only here (user_allow_other in /etc/fuse.conf permits it)"
        }
    });
}

/// A clock before the build of the program, or far after it, is wrong. Times of files would be,
/// too, and an exFAT drive cannot hold times before 1980.
fn clock(findings: &mut Findings, now: u64, built: u64) {
    const SET_IT: &str = "set the clock (`timedatectl`), before files get wrong times";
    if now < built {
        findings.problem("the clock is before the build of this program", SET_IT);
    } else if built > 0 && now - built > FAR {
        findings.warn(
            "the clock is decades after the build of this program",
            SET_IT,
        );
    } else {
        findings.ok("the clock is plausible");
    }
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    #[test]
    fn versions_of_kernels_are_read_as_distributions_write_them() {
        for (release, version) in [
            ("6.1.0-18-amd64", Some((6, 1))),
            ("6.9.3", Some((6, 9))),
            ("5.15.167.4-microsoft-standard-WSL2", Some((5, 15))),
            ("", None),
            ("unknown", None),
        ] {
            assert_eq!(version_of(release), version, "{release}");
        }
    }

    #[test]
    fn a_clock_before_the_build_is_a_problem_and_one_far_after_it_a_warning() {
        let level = |now, built| {
            let mut findings = Findings::of("machine");
            clock(&mut findings, now, built);
            findings.found[0].level
        };
        assert_eq!(level(999, 1000), Level::Problem);
        assert_eq!(level(1000, 1000), Level::Ok);
        assert_eq!(level(1000 + FAR + 1, 1000), Level::Warning);
        // Without a known time of the build any clock will do.
        assert_eq!(level(5, 0), Level::Ok);
    }
}
