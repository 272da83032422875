//! The suites that other file systems are measured by: pjdfstest for calls and their errors, fsx
//! for bytes.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::lab::{self, Backend, Lab, run_for, skip, text, write};

const EXCEPTIONS: &str = include_str!("posix-exceptions.txt");

/// All that Linux has. The two users are on every Debian; pjdfstest's own default would want one to
/// be made.
const PJDFSTEST: &str = r#"
[features]
posix_fallocate = {}
rename_ctime = {}
utime_now = {}
utimensat = {}
[settings]
naptime = 0.02
[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"]]
"#;

/// Longer than any run that is asked for takes, an hour of it included.
const FSX_LIMIT: Duration = Duration::from_secs(4000);

const FSX: &str = r"
flen = 262144
[weights]
close_open = 1
read = 10
write = 10
mapread = 10
mapwrite = 10
invalidate = 1
truncate = 5
fsync = 1
fdatasync = 1
posix_fallocate = 3
punch_hole = 3
sendfile = 2
posix_fadvise = 1
copy_file_range = 3
";

/// The names that may fail, and why: a name without a reason is refused.
fn exceptions() -> BTreeSet<String> {
    EXCEPTIONS
        .lines()
        .filter(|line| !line.starts_with('#') && !line.trim().is_empty())
        .map(|line| {
            let (name, reason) = line.split_once('#').unwrap_or((line, ""));
            assert!(
                !reason.trim().is_empty(),
                "{name} is excepted without a reason"
            );
            name.trim().to_owned()
        })
        .collect()
}

/// Whether the list marks the test as one that passes or fails by chance.
fn depends_on_timing(name: &str) -> bool {
    EXCEPTIONS
        .lines()
        .filter_map(|line| line.split_once('#'))
        .any(|(listed, reason)| listed.trim() == name && reason.trim().starts_with("by chance: "))
}

fn installed(tool: &str) -> bool {
    let found = Command::new(tool)
        .arg("--version")
        .output()
        .is_ok_and(|out| out.status.success());
    if !found {
        skip(&format!("{tool} is not installed (cargo install {tool})"));
    }
    found
}

#[test]
fn pjdfstest_passes_but_for_the_listed_exceptions() {
    pjdfstest(Backend::Ext4Dir);
}

/// The drive can hold hardly anything of what is asked here, and none of that may show.
#[test]
fn pjdfstest_passes_on_exfat_but_for_the_listed_exceptions() {
    pjdfstest(Backend::EXFAT);
}

fn pjdfstest(backend: Backend) {
    if !nix::unistd::geteuid().is_root() {
        return skip("pjdfstest changes users, which needs root");
    }
    let (true, Some(mut lab)) = (installed("pjdfstest"), Lab::new(backend)) else {
        return;
    };
    lab.mount(&["-o", "allow_other,suid,dev"]);
    let config = lab.root().join("pjdfstest.toml");
    write(&config, PJDFSTEST.as_bytes());
    // pjdfstest 0.2.2 underflows where its base path has one certain length modulo 127; step aside
    // if we hit it.
    let mut place = lab.m("suite");
    let base = text(&place).len() + 2 * "/.tmpXXXXXX".len();
    if (4095 - base).is_multiple_of(127) {
        place = lab.m("suites");
    }
    fs::create_dir(&place).expect("mkdir");
    let mut command = Command::new("pjdfstest");
    command
        .arg("-c")
        .arg(&config)
        .arg("-p")
        .arg(&place)
        .env("NO_COLOR", "1");
    if Path::new("/dev/shm").is_dir() {
        command.args(["-s", "/dev/shm"]);
    }
    let done = run_for(&mut command, Duration::from_secs(600));

    let failed: BTreeSet<String> = done
        .stdout
        .lines()
        .filter_map(|line| {
            line.strip_suffix("FAILED")
                .map(|name| name.trim().to_owned())
        })
        .collect();
    let summary = done
        .stdout
        .lines()
        .find(|line| line.starts_with("Summary"))
        .unwrap_or("");
    assert!(
        summary.contains("total"),
        "pjdfstest did not come to its end:\n{}{}",
        done.stdout,
        done.stderr
    );
    eprintln!("{summary}");
    let allowed = exceptions();
    let unexpected: Vec<_> = failed.difference(&allowed).collect();
    let reasons: Vec<_> = unexpected
        .iter()
        .map(|name| reason(&done.stdout, name))
        .collect();
    assert!(
        unexpected.is_empty(),
        "{} tests failed:\n{}",
        unexpected.len(),
        reasons.join("\n")
    );
    let outlived: Vec<_> = allowed
        .difference(&failed)
        .filter(|name| !depends_on_timing(name))
        .collect();
    assert!(
        outlived.is_empty(),
        "listed in posix-exceptions.txt but passing: {outlived:?}"
    );
    lab.flush();
    lab.finish();
}

/// The line of a failed test and the one after it, which says why.
fn reason(output: &str, name: &str) -> String {
    let mut lines = output
        .lines()
        .skip_while(|line| !(line.ends_with("FAILED") && line.starts_with(name)));
    let (line, why) = (lines.next().unwrap_or(name), lines.next().unwrap_or(""));
    format!(
        "{} {}",
        line.split_whitespace().next().unwrap_or(name),
        why.trim()
    )
}

#[test]
fn fsx_finds_every_byte_where_it_was_put() {
    fsx(Backend::Ext4Dir, &["1", "20261120", "987654321"]);
}

#[test]
fn fsx_finds_every_byte_where_it_was_put_over_exfat() {
    fsx(Backend::EXFAT, &["2", "20261121"]);
}

fn fsx(backend: Backend, seeds: &[&str]) {
    let (true, Some(mut lab)) = (installed("fsx"), Lab::new(backend)) else {
        return;
    };
    lab.mount(&[]);
    let config = lab.root().join("fsx.toml");
    write(&config, FSX.as_bytes());
    for seed in seeds {
        let file = lab.m(format!("fsx-{seed}"));
        let mut command = Command::new("fsx");
        command
            .arg("-f")
            .arg(&config)
            .args(["-N", &fsx_operations(), "-S", seed, "-q", "-P"])
            .arg(lab.root())
            .arg(&file);
        let done = run_for(&mut command, FSX_LIMIT);
        assert!(
            done.code == 0,
            "fsx, seed {seed}:\n{}{}",
            tail(&done.stdout),
            tail(&done.stderr)
        );
    }
    lab.finish_flushed();
}

/// How many operations a run of fsx has; more with `FERRYFS_FSX_OPERATIONS`.
fn fsx_operations() -> String {
    std::env::var("FERRYFS_FSX_OPERATIONS").unwrap_or_else(|_| "5000".into())
}

#[test]
fn fsx_finds_every_byte_while_batches_are_cut() {
    fsx_while_batches_are_cut(Backend::Ext4Dir);
}

/// Whenever it is closed for a moment, it may be carried to the drive, let go of, and fetched
/// again.
#[test]
fn fsx_finds_every_byte_while_batches_are_cut_over_exfat() {
    fsx_while_batches_are_cut(Backend::EXFAT);
}

fn fsx_while_batches_are_cut(backend: Backend) {
    let (true, Some(mut lab)) = (installed("fsx"), Lab::new(backend)) else {
        return;
    };
    lab.mount(&["--cache-size", "1K"]);
    let config = lab.root().join("fsx.toml");
    // Often closed: only a closed file is pinned by a batch, and its next write must go to a copy.
    write(
        &config,
        FSX.replace("close_open = 1", "close_open = 20").as_bytes(),
    );
    std::thread::scope(|scope| {
        let fsx = scope.spawn(|| {
            let mut command = Command::new("fsx");
            command
                .arg("-f")
                .arg(&config)
                .args(["-N", &fsx_operations(), "-S", "42", "-q", "-P"])
                .arg(lab.root());
            run_for(command.arg(lab.m("fsx")), FSX_LIMIT)
        });
        while !fsx.is_finished() {
            let done = lab.ferryfs(&["flush", &text(&lab.mnt)]);
            let fair = [lab::exit::DONE, lab::exit::LEFT_BEHIND].contains(&done.code);
            assert!(
                fair,
                "flush beside fsx: exit {}: {}",
                done.code, done.stderr
            );
        }
        let done = fsx.join().expect("fsx ran");
        assert!(
            done.code == 0,
            "fsx:\n{}{}",
            tail(&done.stdout),
            tail(&done.stderr)
        );
    });
    lab.finish_flushed();
}

fn tail(output: &str) -> String {
    let lines: Vec<&str> = output.lines().collect();
    lines[lines.len().saturating_sub(25)..].join("\n") + "\n"
}
