use super::*;
use crate::core::Phase;

#[test]
fn requests_keep_the_form_that_scripts_may_rely_on() {
    let cases = [
        (Request::Ping, r#"{"v":1,"request":"ping"}"#),
        (
            Request::Flush(FlushWish::default()),
            r#"{"v":1,"request":"flush"}"#,
        ),
        (
            Request::Flush(FlushWish {
                timeout_ms: Some(5),
                ..FlushWish::default()
            }),
            r#"{"v":1,"request":"flush","timeout_ms":5}"#,
        ),
        (
            Request::Flush(FlushWish {
                timeout_ms: None,
                verify: true,
                removals_first: true,
                release: true,
                wait_closed: true,
            }),
            r#"{"v":1,"request":"flush","verify":true,"removals_first":true,"release":true,"wait_closed":true}"#,
        ),
        (
            Request::Unmount {
                flush: true,
                force: false,
            },
            r#"{"v":1,"request":"unmount","flush":true}"#,
        ),
        (Request::Cancel, r#"{"v":1,"request":"cancel"}"#),
    ];
    for (request, text) in cases {
        assert_eq!(encode(&request).unwrap(), format!("{text}\n").into_bytes());
        assert_eq!(decode::<Request>(text.as_bytes()).unwrap(), request);
    }
}

#[test]
fn every_reply_survives_the_way_over_the_wire() {
    let report = FlushReport {
        batch: None,
        files: u64::MAX,
        bytes: 0,
        seconds: 0.25,
        left_behind: vec![LeftBehind {
            path: "a\nb".into(),
            reason: "open".into(),
        }],
        kept_local: 1,
        local: LocalCounts::default(),
        ..FlushReport::default()
    };
    let progress = Progress {
        phase: Phase::Stage,
        files_done: 1,
        files_total: 2,
        bytes_done: 3,
        bytes_total: 4,
        silent_seconds: 0,
    };
    let error = ControlError::new(ErrorCode::BackendAbsent, "gone").with_hint("plug it in");
    for reply in [
        Reply::Progress(progress),
        Reply::Done {
            answer: Answer::Report(report),
        },
        Reply::Done {
            answer: Answer::Pong {
                version: "0".into(),
                pid: 7,
            },
        },
        Reply::Error(error),
    ] {
        let line = encode(&reply).unwrap();
        assert_eq!(
            line.iter().filter(|&&b| b == b'\n').count(),
            1,
            "one line each"
        );
        assert_eq!(decode::<Reply>(&line[..line.len() - 1]).unwrap(), reply);
    }
}

#[test]
fn another_version_is_named_rather_than_misread() {
    let error = decode::<Request>(br#"{"v":2,"request":"status"}"#).unwrap_err();
    assert!(
        matches!(error, ProtocolError::Version { theirs: 2 }),
        "{error}"
    );
    let error = decode::<Request>(br#"{"request":"status"}"#).unwrap_err();
    assert!(matches!(error, ProtocolError::Malformed(_)), "{error}");
    let error = decode::<Request>(br#"{"v":1,"request":"format"}"#).unwrap_err();
    assert!(matches!(error, ProtocolError::Unknown(_)), "{error}");
}
