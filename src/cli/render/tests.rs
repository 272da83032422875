use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use super::*;
use crate::control::protocol::{Conflict, LastFlush, ScrubStatus};
use crate::control::protocol::{UsedBy, Users};

pub(in crate::cli) fn sample() -> Status {
    Status {
        mountpoint: "/home/me/lab".into(),
        backend: "/media/me/HDD".into(),
        volume_id: "3f2c".into(),
        backend_state: BackendState::Attached,
        stalled_since: None,
        dirty_files: 12,
        dirty_bytes: 3 << 30,
        needed_bytes: 3 << 30,
        open_for_write: 1,
        cached_bytes: 120 << 30,
        last_batch: Some(LastBatch {
            number: 41,
            time: "2026-11-20T10:00:00Z".into(),
            files: 1,
            bytes: 512,
            outcome: BatchOutcome::Complete,
        }),
        last_refresh: None,
        conflicts: 0,
        safe_to_unplug: false,
        batch_in_progress: false,
        kept_local: 2,
        local: LocalCounts::default(),
        warnings: Vec::new(),
        last_error: None,
        attention: Vec::new(),
        import: ImportStatus {
            complete: true,
            ..ImportStatus::default()
        },
        io: IoPath::Daemon,
        version: "0.1.0".into(),
        pid: 99,
        cache: "/ssd/c".into(),
        mounted: true,
        users: Users::default(),
        ejected: None,
        last_flush: None,
        ssd: Some(Space {
            free_bytes: 57 << 30,
            total_bytes: 500 << 30,
        }),
        cache_limit_bytes: 300 << 30,
        drive: Some(Space {
            free_bytes: 1 << 40,
            total_bytes: 4 << 40,
        }),
        running: None,
        oldest_change: None,
        read_only: false,
        config: None,
        automatic: Automatic::default(),
        versions: false,
        scrub: ScrubStatus::default(),
        kept_clean: None,
    }
}

fn report(left: usize) -> FlushReport {
    let item = |n| LeftBehind {
        path: format!("db/{n}"),
        reason: "open for writing".into(),
    };
    FlushReport {
        batch: Some(42),
        files: 12,
        bytes: 3 << 30,
        seconds: 30.0,
        left_behind: (0..left).map(item).collect(),
        kept_local: 0,
        local: LocalCounts::default(),
        ..FlushReport::default()
    }
}

#[test]
fn status_begins_with_what_to_do_and_is_aligned() {
    let expected = format!(
        "\
NOT safe to unplug. To make it so: ferryfs eject /home/me/lab

mount         /home/me/lab
drive         /media/me/HDD (attached)
volume        3f2c
cache         /ssd/c
waiting       12 files, 3.00 GiB
open          1 file for writing
kept here     2 entries that the drive cannot hold (links, devices, ...)
last batch    41 at {}: 1 file, 512 B, complete
cached        120 GiB of at most 300 GiB; on the SSD 57.0 GiB of 500 GiB are free
on the drive  1.00 TiB of 4.00 TiB are free
daemon        version 0.1.0, pid 99, I/O by daemon
",
        times::date_and_time("2026-11-20T10:00:00Z")
    );
    assert_eq!(status(&sample()), expected);
}

#[test]
fn what_the_last_flush_left_behind_is_in_status_with_its_reason() {
    let mut left = sample();
    left.last_flush = Some(LastFlush {
        time: "2026-11-20T10:00:00Z".into(),
        left_behind: (report(LISTED + 1).left_behind),
        left_behind_count: LISTED as u64 + 7,
        conflicts: vec![Conflict {
            path: "notes".into(),
            theirs: "notes.sync-conflict-x".into(),
        }],
    });
    let text = status(&left);
    assert!(
        text.contains("left behind   db/0: open for writing\n"),
        "{text}"
    );
    assert!(text.contains("and 7 more"), "{text}");
    assert!(
        text.contains("notes: the drive's version is notes.sync-conflict-x"),
        "{text}"
    );
}

#[test]
fn after_an_eject_the_advice_is_to_attach_it_or_to_unplug_it() {
    let mut ejected = sample();
    ejected.backend_state = BackendState::Detached;
    ejected.ejected = Some(Ejected {
        time: "2026-11-20T10:00:00Z".into(),
        mounted_at: Some("/media/me/HDD".into()),
    });
    let text = status(&ejected);
    let when = times::at("2026-11-20T10:00:00Z", std::time::SystemTime::now().into());
    assert!(
        text.starts_with(&format!(
            "You ejected it {when}; it is still mounted at /media/me/HDD"
        )),
        "{text}"
    );
    assert!(text.contains("ferryfs attach /media/me/HDD\n"), "{text}");
    ejected.ejected = Some(Ejected {
        time: "2026-11-20T10:00:00Z".into(),
        mounted_at: None,
    });
    assert!(status(&ejected).contains("it is not there now"));
}

fn in_use(processes: u32) -> Users {
    let process = |pid| UsedBy {
        pid: Some(pid),
        program: Some("bash".into()),
        path: "/lab/a b".into(),
        is_mount: false,
    };
    Users {
        found: (1..=processes).map(process).collect(),
        some_unseen: false,
    }
}

#[test]
fn who_uses_a_file_system_is_named_by_process_program_and_path() {
    assert_eq!(users(&in_use(1)), "bash (pid 1: '/lab/a b')");
    assert!(users(&in_use(15)).ends_with("bash (pid 10: '/lab/a b') and 5 more"));
    let mut mount = in_use(1);
    mount.found[0].is_mount = true;
    assert_eq!(
        users(&mount),
        "bash (pid 1), which has it mounted at '/lab/a b'"
    );
    mount.found[0].pid = None;
    mount.found[0].program = None;
    mount.some_unseen = true;
    assert_eq!(
        users(&mount),
        "a mount at '/lab/a b' and perhaps processes that this user may not inspect"
    );
}

#[test]
fn an_unmount_that_leaves_the_file_system_in_use_does_not_say_unmounted() {
    let mut used = report(0);
    used.still_used = Some(in_use(1));
    let text = unmount_report(&used, true, Path::new("/lab"));
    assert!(text.contains("NOT ended: "), "{text}");
    assert!(text.contains("bash (pid 1"), "{text}");
    assert!(text.contains("ferryfs unmount --force /lab"), "{text}");
    let text = unmount_report(&report(0), true, Path::new("/lab"));
    assert!(text.ends_with("unmounted /lab\n"), "{text}");
    let mut gone = sample();
    gone.mounted = false;
    gone.users = in_use(1);
    let text = status(&gone);
    assert!(
        text.starts_with(
            "NOT safe to unplug. It was unmounted, but is still in use by bash (pid 1"
        ),
        "{text}"
    );
    assert!(
        text.contains("`ferryfs unmount --force --cache /ssd/c`"),
        "{text}"
    );
}

#[test]
fn safe_to_unplug_is_said_only_when_the_daemon_says_so() {
    let mut quiet = sample();
    quiet.dirty_files = 0;
    assert!(status(&quiet).contains("NOT safe"));
    quiet.safe_to_unplug = true;
    assert!(status(&quiet).starts_with("Safe to unplug"));
    quiet.backend_state = BackendState::Detached;
    assert!(status(&quiet).contains("nothing waits for it"));
    quiet.dirty_files = 1;
    assert!(status(&quiet).contains("is flushed when it is back"));
}

#[test]
fn what_was_left_behind_is_named_with_its_reason() {
    let text = flush_report(&report(1));
    let expected = "\
batch 42: 12 files, 3.00 GiB in 30 s (102 MiB/s)
NOT on the drive: 1 file
  db/0: open for writing
";
    assert_eq!(text, expected);
    assert!(!eject_report(&report(1)).contains("Safe to unplug"));
    assert!(eject_report(&report(0)).contains("Safe to unplug"));
}

#[test]
fn what_was_removed_and_moved_counts_too() {
    let mut names = report(0);
    (names.files, names.bytes, names.removed, names.moved) = (0, 0, 301, 2);
    assert_eq!(
        flush_report(&names),
        "batch 42: 0 files, 0 B, 301 removed, 2 moved in 30 s\n"
    );
}

#[test]
fn a_long_list_is_cut_and_says_so() {
    let text = flush_report(&report(LISTED + 5));
    assert_eq!(text.lines().count(), LISTED + 3);
    assert!(text.ends_with("  and 5 more (all of them: --json)\n"));
}

#[test]
fn an_empty_flush_claims_everything_is_there_only_if_it_is() {
    let mut none = report(0);
    none.batch = None;
    assert!(flush_report(&none).contains("everything is on the drive"));
    none.left_behind = report(1).left_behind;
    assert!(!flush_report(&none).contains("everything is on the drive"));
}

#[test]
fn a_file_name_cannot_command_the_terminal() {
    let mut evil = report(1);
    evil.left_behind[0].path = "a\x1b[2J\nbatch 1: fine".into();
    let text = flush_report(&evil);
    assert!(!text.contains('\x1b'));
    assert_eq!(text.lines().count(), 3);
}

#[test]
fn a_quoted_path_can_be_pasted() {
    assert_eq!(quoted(Path::new("/home/me/lab")), "/home/me/lab");
    assert_eq!(quoted(Path::new("/a b/it's")), "'/a b/it'\\''s'");
    assert_eq!(quoted(Path::new("$(x)")), "'$(x)'");
}

#[test]
fn a_quoted_path_with_what_a_terminal_obeys_is_the_same_path_to_a_shell() {
    let evil = b"a'\\\n\x1b[2J\xff \xc2\x9b2J\xe2\x80\xae$x\"";
    let shown = quoted(Path::new(OsStr::from_bytes(evil)));
    assert!(!shown.contains(crate::core::is_hidden), "{shown}");
    let script = format!("printf %s {shown}");
    let bash = std::process::Command::new("bash")
        .args(["-c", &script])
        .output();
    assert_eq!(bash.unwrap().stdout, evil, "{shown}");
}

#[test]
fn a_backend_that_does_not_answer_is_said_with_since_when() {
    let text = status(&Status {
        stalled_since: Some("2026-11-20T10:00:00Z".into()),
        ..sample()
    });
    let since = times::date_and_time("2026-11-20T10:00:00Z");
    assert!(text.contains(&format!(
        "(attached, stalled since {since}: it does not answer)"
    )));
    assert!(text.contains("The drive does not answer. Programs can continue"));
    assert!(!text.contains("unplug"), "{text}");
}

#[test]
fn an_import_under_way_is_told_with_what_is_in_its_way() {
    let mut status = sample();
    status.import = ImportStatus {
        complete: false,
        directories_done: 12,
        directories_known: 400,
        files: 6000,
        unreadable: vec![LeftBehind {
            path: "a\nb".into(),
            reason: "Permission denied".into(),
        }],
        unreadable_count: 1,
    };
    let text = super::status(&status);
    assert!(
        text.contains("12 of 400 known directories, 6000 files, 1 cannot be read"),
        "{text}"
    );
    assert!(
        text.contains("a\\nb cannot be read: Permission denied"),
        "{text}"
    );
}
