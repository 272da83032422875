//! The command line as scripts see it: exit codes, where output goes, the form of errors. Needs no
//! mount.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use ferryfs::daemon::Ready;

fn ferryfs(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ferryfs"))
        .args(args)
        .output()
        .expect("the binary runs")
}

fn code(output: &Output) -> i32 {
    output.status.code().expect("it ends by itself")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

const COMMANDS: [&str; 6] = ["mount", "status", "flush", "eject", "unmount", "recover"];

#[test]
fn help_goes_to_stdout_names_every_command_and_every_exit_code() {
    let output = ferryfs(&["--help"]);
    assert_eq!(code(&output), 0);
    let text = stdout(&output);
    for command in COMMANDS {
        assert!(
            text.contains(&format!("\n  {command} ")),
            "{command} in:\n{text}"
        );
    }
    for code in [
        "0 done",
        "1 failed",
        "2 wrong usage",
        "3 flushed",
        "4 the drive",
    ] {
        assert!(text.contains(code), "{code} in:\n{text}");
    }
    assert!(stderr(&output).is_empty());
}

#[test]
fn every_command_teaches_by_an_example() {
    for command in COMMANDS {
        let output = ferryfs(&[command, "--help"]);
        assert_eq!(code(&output), 0, "{command}");
        let text = stdout(&output);
        assert!(text.contains("Example"), "{text}");
        assert!(text.contains(&format!("  ferryfs {command}")), "{text}");
        assert!(!text.contains("background-child"), "{text}");
    }
}

#[test]
fn wrong_usage_ends_with_2_one_line_and_a_hint() {
    let cases: [&[&str]; 8] = [
        &["mount"],
        &["mount", "/a"],
        &["flsh"],
        &["flush", "--timeout", "soon"],
        &["flush", "--nonsense"],
        &["mount", "-o", "ro", "/a", "/b"],
        &["mount", "--cache-size", "0%", "/a", "/b"],
        &["recover"],
    ];
    for args in cases {
        let output = ferryfs(args);
        assert_eq!(code(&output), 2, "{args:?}");
        let text = stderr(&output);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2, "{args:?}:\n{text}");
        assert!(lines[0].starts_with("ferryfs: "), "{args:?}:\n{text}");
        assert!(lines[1].starts_with("  hint: "), "{args:?}:\n{text}");
        assert!(output.stdout.is_empty(), "{args:?}");
    }
    assert_eq!(code(&ferryfs(&[])), 2);
}

#[test]
fn a_command_on_what_is_no_mount_ends_with_1() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    for command in ["status", "flush", "eject", "unmount"] {
        let output = ferryfs(&[command, path]);
        assert_eq!(code(&output), 1, "{command}");
        assert!(
            stderr(&output).contains("is not a ferryfs mount\n  hint: "),
            "{command}"
        );
        assert!(output.stdout.is_empty(), "{command}");
    }
}

#[test]
fn no_mount_at_all_ends_with_1_and_says_how_to_make_one() {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    if table.contains(" fuse.ferryfs ") {
        eprintln!("skipped: this machine has a ferryfs mount");
        return;
    }
    let output = ferryfs(&["status", "--json"]);
    assert_eq!(code(&output), 1);
    assert_eq!(
        stderr(&output),
        "ferryfs: there is no ferryfs mount\n  hint: mount one with `ferryfs mount DRIVE MOUNTPOINT`\n"
    );
}

#[test]
fn an_absent_backend_ends_with_4_in_the_foreground_and_from_the_background() {
    let dir = tempfile::tempdir().unwrap();
    let absent = dir.path().join("absent");
    let (absent, mnt) = (absent.to_str().unwrap(), dir.path().to_str().unwrap());
    let cases: [&[&str]; 3] = [
        &["mount", "--foreground", absent, mnt],
        // Here the process in the background says why, and the one in front passes it on.
        &["mount", absent, mnt],
        &["recover", absent],
    ];
    for args in cases {
        let output = ferryfs(args);
        assert_eq!(code(&output), 4, "{args:?}: {}", stderr(&output));
        let text = stderr(&output);
        assert_eq!(
            text.matches("ferryfs: the drive").count(),
            1,
            "{args:?}:\n{text}"
        );
        assert!(text.contains("\n  hint: "), "{args:?}:\n{text}");
    }
}

#[test]
fn a_relative_path_means_the_callers_directory_also_in_the_background() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("both/inner")).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_ferryfs"))
        .args(["mount", "both", "both/inner"])
        .current_dir(dir.path())
        .output()
        .unwrap();
    assert_eq!(code(&output), 1);
    assert!(
        stderr(&output).contains("both/inner is inside the drive"),
        "{}",
        stderr(&output)
    );
}

/// Where the next test starts itself anew as a daemon, this names the log.
const LOG_VARIABLE: &str = "FERRYFS_TEST_READY_LOG";

#[test]
fn after_ready_the_daemons_words_go_to_the_log_and_no_longer_to_the_caller() {
    if let Some(log) = std::env::var_os(LOG_VARIABLE) {
        eprintln!("before");
        Ready::background()
            .signal(Path::new(&log))
            .expect("somebody waits");
        eprintln!("after, in {}", std::env::current_dir().unwrap().display());
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("daemon.log");
    let myself =
        "cli_contract::after_ready_the_daemons_words_go_to_the_log_and_no_longer_to_the_caller";
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture", "--test-threads=1", myself])
        .env(LOG_VARIABLE, &log)
        .output()
        .unwrap();
    let logged = fs::read_to_string(&log).unwrap();
    // The test harness writes to the same pipe, and does not end its line.
    assert!(stdout(&output).contains("ready\n"), "{}", stdout(&output));
    assert!(stderr(&output).contains("before") && !stderr(&output).contains("after"));
    assert!(logged.contains("after, in /\n"), "{logged}");
}

#[test]
fn a_log_that_cannot_be_opened_is_told_before_anybody_is_told_ready() {
    let dir = tempfile::tempdir().unwrap();
    let error = Ready::background().signal(&dir.path().join("no/such/log"));
    assert_eq!(error.unwrap_err().kind(), std::io::ErrorKind::NotFound);
}
