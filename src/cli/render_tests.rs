use super::*;

fn sample() -> Status {
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
    }
}

#[test]
fn status_is_aligned_and_ends_with_what_to_do() {
    let expected = "\
mount       /home/me/lab
backend     /media/me/HDD (attached)
volume      3f2c
waiting     12 files, 3.00 GiB
open        1 file for writing
cached      120 GiB
kept here   2 entries that the drive cannot hold (links, devices, ...)
last batch  41 at 2026-11-20T10:00:00Z: 1 file, 512 B, complete
daemon      version 0.1.0, pid 99, I/O by daemon

NOT safe to unplug. To make it so: ferryfs eject /home/me/lab
";
    assert_eq!(status(&sample()), expected);
}

#[test]
fn safe_to_unplug_is_said_only_when_the_daemon_says_so() {
    let mut quiet = sample();
    quiet.dirty_files = 0;
    assert!(status(&quiet).contains("NOT safe"));
    quiet.safe_to_unplug = true;
    assert!(status(&quiet).contains("\nSafe to unplug"));
    quiet.backend_state = BackendState::Detached;
    assert!(status(&quiet).contains("nothing waits for it"));
    quiet.dirty_files = 1;
    assert!(status(&quiet).contains("carried over when it is back"));
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
fn a_backend_that_does_not_answer_is_said_with_since_when() {
    let text = status(&Status {
        stalled_since: Some("2026-11-20T10:00:00Z".into()),
        ..sample()
    });
    assert!(text.contains("(attached, stalled since 2026-11-20T10:00:00Z: it does not answer)"));
    assert!(text.contains("The backend does not answer. Go on working"));
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
        text.contains("12 of 400 directories that are known so far, 6000 files, 1 cannot be read"),
        "{text}"
    );
    assert!(
        text.contains("a\\nb cannot be read: Permission denied"),
        "{text}"
    );
}
