//! The seeds: real ones of every kind, and hostile ones.

use std::collections::BTreeMap;

use ferryfs::control::protocol::{
    Answer, ControlError, ErrorCode, FlushReport, FlushWish, LeftBehind, LocalCounts, Reply,
    Request, encode,
};
use ferryfs::core::{BatchNo, ContentHash, Phase, Progress, RelPath, Timestamp};
use ferryfs::format::expectations::{Expectations, ExpectedFile};
use ferryfs::format::marker::Marker;
use ferryfs::format::record::BatchRecord;
use ferryfs::format::steps::{
    ClearStep, FileContent, PatchFile, PlaceStep, PlainKind, SlotNo, Steps,
};
use ferryfs::format::{marker, record};
use uuid::Uuid;

use crate::checks::resealed;
use crate::drive::kind;
use crate::pieces::piece;

pub type Seeds = Vec<(&'static str, Vec<u8>)>;

pub fn all() -> BTreeMap<&'static str, Seeds> {
    BTreeMap::from([
        ("record", records()),
        ("segment", segments()),
        ("marker", markers()),
        ("names", names()),
        ("control", control()),
        ("drive", drives()),
        ("server", conversations()),
        ("rows", indexes()),
    ])
}

fn path(text: &str) -> RelPath {
    RelPath::parse(text.as_bytes()).expect("a path")
}

fn with(clear: Vec<ClearStep>, place: Vec<PlaceStep<FileContent>>) -> BatchRecord {
    BatchRecord {
        volume: Uuid::from_u128(0x6f1d_3a52_8c0e_4b7a_9d24_51c3_e07f_88b1),
        batch: BatchNo(42),
        created: Timestamp(1_763_661_600_123_456_789),
        origin: *b"origin of record",
        steps: Steps {
            clear,
            place,
            ..Steps::default()
        },
        known: Expectations::default(),
        catalog: None,
    }
}

fn install(slot: u32, to: &str, size: u64) -> PlaceStep<FileContent> {
    PlaceStep::Install {
        slot: SlotNo(slot),
        to: path(to),
        content: FileContent {
            size,
            hash: ContentHash([slot as u8; 32]),
            modified: Timestamp(1_763_661_600_000_000_000),
        },
    }
}

/// A step of each kind.
fn every_kind() -> BatchRecord {
    let swap = |slot, kind, from: &str| ClearStep::Detach {
        from: path(from),
        slot: SlotNo(slot),
        kind,
    };
    let put = |slot, kind, to: &str| PlaceStep::Attach {
        slot: SlotNo(slot),
        to: path(to),
        kind,
    };
    let mut record = with(
        vec![
            swap(1, PlainKind::File, "films/a.mkv"),
            swap(2, PlainKind::Directory, "old"),
            ClearStep::RemoveFile {
                path: path("gone/\u{fc}.txt"),
            },
            ClearStep::RemoveDir { path: path("gone") },
        ],
        vec![
            PlaceStep::MakeDir { path: path("new") },
            install(0, "new/b.db", 4096),
            put(1, PlainKind::File, "new/a.mkv"),
            put(2, PlainKind::Directory, "films"),
            PlaceStep::Touch {
                path: path("kept"),
                modified: Timestamp(-1),
            },
            PlaceStep::Patch {
                slot: SlotNo(3),
                to: path("vm.img"),
                content: FileContent {
                    size: 1,
                    hash: ContentHash([3; 32]),
                    modified: Timestamp(0),
                },
                patch: PatchFile {
                    size: 4096,
                    hash: ContentHash([4; 32]),
                },
            },
        ],
    );
    let before = ExpectedFile {
        size: 1,
        modified: Timestamp(0),
        hash: None,
    };
    record.known.replaced.insert(SlotNo(3), before);
    record
}

fn section(number: u32, flags: u32, length: u64, payload: &[u8]) -> Vec<u8> {
    let mut bytes = number.to_le_bytes().to_vec();
    bytes.extend(flags.to_le_bytes());
    bytes.extend(length.to_le_bytes());
    bytes.extend(payload);
    bytes
}

/// A record of these sections under a right checksum.
fn sealed_sections(sections: &[Vec<u8>]) -> Vec<u8> {
    let header = record::encode(&with(vec![], vec![]))[..64].to_vec();
    resealed(&[header, sections.concat()].concat())
}

/// A record that removes a file at a path of these bytes, `claimed` bytes long as it says.
fn removing(raw: &[u8], claimed: u32) -> Vec<u8> {
    let mut payload = 1_u64.to_le_bytes().to_vec();
    payload.push(2);
    payload.extend(claimed.to_le_bytes());
    payload.extend(raw);
    sealed_sections(&[
        section(1, 0, payload.len() as u64, &payload),
        section(2, 0, 8, &[0; 8]),
    ])
}

fn records() -> Seeds {
    let good = record::encode(&every_kind());
    let absurd = |count: u64| {
        sealed_sections(&[
            section(1, 0, 8, &count.to_le_bytes()),
            section(2, 0, 8, &[0; 8]),
        ])
    };
    let skippable = [
        good[64..good.len() - 32].to_vec(),
        section(3, 1, 7, b"catalog"),
    ];
    let deep = vec!["d"; 10_000].join("/");
    let many = (0..60).map(|n| install(n, &format!("many/{n}"), u64::from(n)));
    let unfinished = with(vec![], vec![install(0, "huge", u64::MAX)]);
    let ours = with(
        vec![],
        vec![PlaceStep::MakeDir {
            path: path(".FerryFS/x"),
        }],
    );
    let mut newer = good[..good.len() - 32].to_vec();
    newer[8] = 4;
    vec![
        ("every-kind", good.clone()),
        (
            "every-kind-2",
            include_bytes!("../fixtures/record-full-v3.bin").to_vec(),
        ),
        ("empty", record::encode(&with(vec![], vec![]))),
        ("many", record::encode(&with(vec![], many.collect()))),
        ("skippable-section", sealed_sections(&skippable)),
        ("torn", good[..good.len() / 2].to_vec()),
        (
            "wrong-checksum",
            [&good[..good.len() - 1], &[0x55]].concat(),
        ),
        ("newer", resealed(&newer)),
        ("absurd-count", absurd(u64::MAX)),
        ("absurd-count-signed", absurd(1 << 63)),
        (
            "absurd-section",
            sealed_sections(&[section(1, 0, u64::MAX, &[0; 8])]),
        ),
        ("absurd-path", removing(b"a", u32::MAX)),
        ("dotdot", removing(b"a/../../etc/passwd", 18)),
        ("absolute", removing(b"/etc/passwd", 11)),
        ("nul", removing(b"a\0b", 3)),
        ("deep", removing(deep.as_bytes(), deep.len() as u32)),
        ("huge-file", record::encode(&unfinished)),
        ("reserved", record::encode(&ours)),
        ("magic-only", b"ferryrec".to_vec()),
    ]
}

/// A segment whose changes are these bytes, and as many.
fn segment_of(count: u64, changes: &[u8]) -> Vec<u8> {
    let fixture = include_bytes!("../fixtures/segment-v1.bin");
    let mut bytes = fixture[..80].to_vec();
    bytes[72..].copy_from_slice(&count.to_le_bytes());
    bytes.extend(changes);
    resealed(&bytes)
}

/// A change that forgets a path: what it shares with the one before, and the rest.
fn forgetting(shared: usize, rest: &[u8]) -> Vec<u8> {
    let mut change = vec![3];
    change.extend((shared as u16).to_le_bytes());
    change.extend((rest.len() as u32).to_le_bytes());
    change.extend(rest);
    change
}

/// Little that stands for much: each path is as long as the first, of which it has all but the last
/// byte.
fn expanding() -> Vec<u8> {
    let long = vec!["x".repeat(255); 20].join("/").into_bytes();
    let shared = long.len() - 1;
    let mut changes = forgetting(0, &long);
    for n in 0..20_usize {
        changes.extend(forgetting(shared, if n % 2 == 0 { b"y" } else { b"x" }));
    }
    segment_of(21, &changes)
}

fn segments() -> Seeds {
    let log = include_bytes!("../fixtures/segment-v1.bin").to_vec();
    let full = include_bytes!("../fixtures/segment-full-v1.bin").to_vec();
    let patched = |at: usize, byte: u8| {
        let mut bytes = log[..log.len() - 32].to_vec();
        bytes[at] = byte;
        resealed(&bytes)
    };
    vec![
        ("every-kind", log.clone()),
        ("full", full),
        ("empty", segment_of(0, &[])),
        ("torn", log[..log.len() / 2].to_vec()),
        ("newer", patched(8, 2)),
        ("newer-flag", patched(10, 0x80)),
        ("neither", patched(10, 0)),
        ("absurd-count", segment_of(u64::MAX, &[3])),
        ("absurd-path", segment_of(1, &[3, 0, 0, 255, 255, 255, 255])),
        ("dotdot", segment_of(1, &forgetting(0, b"a/../../b"))),
        ("shares-nothing", segment_of(1, &forgetting(5, b"a"))),
        (
            "shares-less",
            segment_of(2, &[forgetting(0, b"ab"), forgetting(0, b"ac")].concat()),
        ),
        ("reserved", segment_of(1, &forgetting(0, b".FerryFS/x"))),
        (
            "never-put-back",
            segment_of(1, &[1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, b'a']),
        ),
        ("expanding", expanding()),
        ("magic-only", b"ferrycat".to_vec()),
    ]
}

fn markers() -> Seeds {
    let id = Uuid::from_u128(0x6f1d_3a52_8c0e_4b7a_9d24_51c3_e07f_88b1);
    let real = marker::encode(&Marker {
        id,
        nonce: [0xa5; 16],
        created: Timestamp(1_763_661_600_000_000_000),
        version: "0.1.0".into(),
    });
    let text = |from: &str, to: &str| {
        let marker = String::from_utf8_lossy(&real);
        assert!(marker.contains(from));
        marker.replacen(from, to, 1).into_bytes()
    };
    vec![
        ("real", real.clone()),
        (
            "fixture",
            include_bytes!("../fixtures/volume-v1.json").to_vec(),
        ),
        (
            "newer",
            text("\"format\": 1", "\"format\": 18446744073709551615"),
        ),
        ("negative-format", text("\"format\": 1", "\"format\": -1")),
        ("fraction", text("\"format\": 1", "\"format\": 1.0")),
        ("late", text("1763661600000000000", "9223372036854775808")),
        ("nonce", text("a5a5", "a5\\u0000\\u001b")),
        ("escape", text("0.1.0", "\\u001b[2J\\u202e")),
        ("id", text("6f1d3a52", "\u{1b}[2Jxxxx")),
        ("cut", real[..real.len() / 2].to_vec()),
        ("zeros", vec![0; 300]),
        ("nothing", vec![]),
        ("array", b"[1,2]".to_vec()),
        ("deep", vec![b'['; 5000]),
        ("deep-object", b"{\"ferryfs\":".repeat(500)),
        ("other", br#"{"ferryfs":"catalog","format":1}"#.to_vec()),
        ("twice", text("{", "{\"format\": 2,")),
        (
            "not-utf8",
            text("0.1.0", "\u{fc}")
                .iter()
                .map(|&b| if b == 0xc3 { 0xff } else { b })
                .collect(),
        ),
    ]
}

fn names() -> Seeds {
    vec![
        ("plain", b"films/a.mkv".to_vec()),
        ("dotdot", b"a/../b".to_vec()),
        ("dots", b"a/.../b..".to_vec()),
        ("absolute", b"/etc".to_vec()),
        ("root", b"".to_vec()),
        ("nul", b"a\0".to_vec()),
        ("longest", vec![0xff; 255]),
        ("longer", vec![b'x'; 256]),
        ("longest-stored", "\u{20ac}".repeat(255).into_bytes()),
        ("look-alike", "a\u{ff1a}b\u{2401}\u{ff0e}".into()),
        (
            "quoted",
            "\u{201b}\u{201b}x\u{201b}\u{ff1a}\u{201b}FF".into(),
        ),
        ("suffix", "stem\u{201b}~0123abcd.ext".into()),
        ("ours-spelled", "\u{201b}\u{ff0e}FERRYFS".into()),
        ("record", b"000000000000002a.rec".to_vec()),
        ("record-above", b"../../x.rec".to_vec()),
        ("record-last", b"ffffffffffffffff.rec".to_vec()),
        ("staging", b"000000000000002a".to_vec()),
        ("slot", b"s0000001f".to_vec()),
        ("segment", b"000000000000002a.seg".to_vec()),
        ("segment-zero", b"0000000000000000.seg".to_vec()),
        ("ours", b".FERRYFS/staging/x".to_vec()),
        ("escape", b"\x1b[2J\r\n\xe2\x80\xae".to_vec()),
        ("deep", b"d/".repeat(10_000)),
    ]
}

fn control() -> Seeds {
    let line = |message: &Request| encode(message).expect("a request");
    let reply = |message: Reply| encode(&message).expect("a reply");
    let mut seeds = vec![
        ("ping", line(&Request::Ping)),
        ("status", line(&Request::Status)),
        (
            "flush",
            line(&Request::Flush(FlushWish {
                timeout_ms: Some(u64::MAX),
                ..FlushWish::default()
            })),
        ),
        ("flush-forever", line(&Request::Flush(FlushWish::default()))),
        ("eject", line(&Request::Eject)),
        (
            "unmount",
            line(&Request::Unmount {
                flush: true,
                force: false,
            }),
        ),
        ("reply-report", reply(done(Answer::Report(a_report())))),
        ("reply-progress", reply(progress())),
        (
            "reply-error",
            reply(Reply::Error(
                ControlError::new(ErrorCode::BackendAbsent, "gone\n\x1b[2J").with_hint("back"),
            )),
        ),
    ];
    // As the socket hands them out: without the line's end.
    for (_, line) in &mut seeds {
        let _ = line.pop();
    }
    let hostile: [(&'static str, &[u8]); 8] = [
        ("huge", br#"{"v":1,"request":"flush","timeout_ms":1e400}"#),
        ("twice", br#"{"v":1,"v":1,"request":"ping"}"#),
        ("version", br#"{"v":4294967296,"request":"ping"}"#),
        (
            "unknown",
            br#"{"v":1,"request":"format","all":[{},[],null,-0.0]}"#,
        ),
        (
            "extra",
            br#"{"request":"ping","v":1,"later":{"a":[1,2,{"b":null}]}}"#,
        ),
        ("surrogate", br#"{"v":1,"request":"\ud800","x":"\u0000"}"#),
        ("not-utf8", b"{\"v\":1,\"request\":\"ping\",\"x\":\"\xff\"}"),
        ("nothing", b""),
    ];
    seeds.extend(hostile.map(|(name, bytes)| (name, bytes.to_vec())));
    seeds.push(("reply-status", STATUS.as_bytes().to_vec()));
    seeds.push(("deep", [&b"{\"v\":1,\"x\":"[..], &[b'['; 4000]].concat()));
    seeds
}

fn done(answer: Answer) -> Reply {
    Reply::Done { answer }
}

fn progress() -> Reply {
    Reply::Progress(Progress {
        phase: Phase::Stage,
        files_done: 1,
        files_total: 2,
        bytes_done: 3,
        bytes_total: u64::MAX,
        silent_seconds: 0,
    })
}

fn a_report() -> FlushReport {
    FlushReport {
        batch: Some(7),
        files: 2,
        bytes: 1 << 40,
        seconds: 1.5,
        left_behind: vec![LeftBehind {
            path: "\u{1b}[2J/\u{fc}".into(),
            reason: "open".into(),
        }],
        kept_local: 1,
        local: LocalCounts::default(),
        ..FlushReport::default()
    }
}

/// As text, so that a new member of it is no change here.
const STATUS: &str = concat!(
    r#"{"v":1,"reply":"done","answer":{"kind":"status","mountpoint":"/home/me/lab","#,
    r#""backend":"/media/me/HDD","volume_id":"6f1d3a52-8c0e-4b7a-9d24-51c3e07f88b1","#,
    r#""backend_state":"detached","dirty_files":1,"dirty_bytes":2,"needed_bytes":4096,"#,
    r#""open_for_write":3,"cached_bytes":4,"last_batch":{"number":9,"#,
    r#""time":"2025-11-20T18:00:00Z","files":1,"bytes":2,"outcome":"failed"},"conflicts":0,"#,
    r#""safe_to_unplug":false,"batch_in_progress":true,"kept_local":5,"warnings":["w"],"#,
    r#""last_error":"e","attention":[],"import":{"complete":false,"directories_done":1,"#,
    r#""directories_known":2,"files":3,"unreadable":[{"path":"p","reason":"r"}],"#,
    r#""unreadable_count":1},"io":"daemon","version":"0.1.0","pid":6,"cache":"/c","#,
    r#""mounted":true,"users":{"found":[],"some_unseen":true},"cache_limit_bytes":7}}"#,
);

/// What hostile drives hold.
fn drives() -> Seeds {
    let log = include_bytes!("../fixtures/segment-v1.bin");
    let full = include_bytes!("../fixtures/segment-full-v1.bin");
    let record = record::encode(&every_kind());
    let rich = include_bytes!("../fixtures/record-full-v3.bin");
    let file = |number, bytes: &[u8]| piece(kind::FILE, number, bytes);
    let links: Vec<u8> = (0..10).flat_map(|n| piece(kind::LINK, n, b"")).collect();
    let slots: Vec<u8> = (0..4)
        .flat_map(|n| piece(kind::SLOT, n, &[n; 4096]))
        .collect();
    let committed = [
        piece(kind::RECORD, 0, &record),
        slots.clone(),
        file(2, b"a"),
        file(5, b"films"),
    ]
    .concat();
    let segments = |first: u8, all: &[&[u8]]| -> Vec<u8> {
        let numbered = all.iter().zip(first..);
        numbered
            .flat_map(|(bytes, n)| piece(kind::SEGMENT, n, bytes))
            .collect()
    };
    vec![
        ("nothing", vec![]),
        ("catalog", segments(0, &[full, log])),
        (
            "catalog-of-files",
            [
                segments(0, &[full]),
                file(0, b"a"),
                file(2, b"da"),
                file(3, b"db"),
            ]
            .concat(),
        ),
        ("catalog-without-a-head", segments(3, &[log, log])),
        ("catalog-unchained", segments(129, &[log, full])),
        ("catalog-expanding", segments(0, &[full, &expanding()])),
        ("catalog-raw", piece(kind::RAW_SEGMENT, 0, full)),
        ("record", committed.clone()),
        (
            "record-cleared",
            [committed.clone(), piece(kind::BARRIER, 0, b"")].concat(),
        ),
        (
            "record-rich",
            [piece(kind::RECORD, 1, rich), slots.clone()].concat(),
        ),
        (
            "record-raw",
            [piece(kind::RAW_RECORD, 0, &record), slots.clone()].concat(),
        ),
        (
            "records",
            [
                piece(kind::RECORD, 0, &record),
                piece(kind::RECORD, 7, rich),
                segments(0, &[log]),
            ]
            .concat(),
        ),
        ("staged", slots),
        ("links", links.clone()),
        ("links-and-record", [committed, links].concat()),
        ("no-marker", piece(kind::OURS, 0, b"{}")),
        (
            "files-for-directories",
            (0..10).flat_map(|n| piece(kind::OURS, n, b"x")).collect(),
        ),
    ]
}

/// What clients of the control socket send.
fn conversations() -> Seeds {
    let line = |message: &Request| encode(message).expect("a request");
    let (ping, status) = (line(&Request::Ping), line(&Request::Status));
    let flush = line(&Request::Flush(FlushWish {
        timeout_ms: Some(1),
        ..FlushWish::default()
    }));
    let end = line(&Request::Unmount {
        flush: false,
        force: true,
    });
    vec![
        ("nothing", vec![]),
        ("ping", ping.clone()),
        ("many", ping.repeat(200)),
        (
            "several",
            [
                &ping[..],
                &status,
                &flush,
                &line(&Request::Eject),
                &end,
                &ping,
            ]
            .concat(),
        ),
        (
            "cancelled",
            [&flush[..], &line(&Request::Cancel), &ping].concat(),
        ),
        ("only-cancel", line(&Request::Cancel)),
        ("cut", [&ping[..], &status[..status.len() / 2]].concat()),
        ("blank", b"\n\n\n".to_vec()),
        (
            "long",
            [&b"{\"v\":1,\"x\":\""[..], &vec![b'a'; 70_000], b"\"}\n"].concat(),
        ),
        ("binary", (0..=255).collect()),
        (
            "deep",
            [
                &b"{\"v\":1,\"request\":\"ping\",\"x\":"[..],
                &[b'['; 4000],
                b"\n",
            ]
            .concat(),
        ),
        (
            "attach",
            line(&Request::Attach {
                path: "/\u{1b}[2J".into(),
                accept_copy: true,
                fsck: true,
                take_over: true,
            }),
        ),
        (
            "refresh",
            line(&Request::Refresh {
                path: "../..".into(),
            }),
        ),
    ]
}

/// A value of a row, as `rows::values` reads it.
fn int(value: i64) -> Vec<u8> {
    [&[2][..], &value.to_le_bytes()].concat()
}

fn blob(bytes: &[u8]) -> Vec<u8> {
    [&[4, bytes.len() as u8][..], bytes].concat()
}

fn inode_row(ino: i64, mode: u32, object: Option<i64>) -> Vec<u8> {
    let mut row = vec![int(ino), int(mode.into())];
    row.extend((0..10).map(|_| int(1)));
    row.push(object.map_or(vec![0], int));
    row.extend((0..4).map(|_| int(1)));
    row.push(blob(b"/etc/passwd"));
    piece(0, 0, &row.concat())
}

fn name_row(parent: i64, name: &[u8], ino: i64) -> Vec<u8> {
    piece(1, 0, &[int(parent), blob(name), int(ino)].concat())
}

/// Rows of edited indexes.
fn indexes() -> Seeds {
    let (file, dir, link) = (libc::S_IFREG, libc::S_IFDIR, libc::S_IFLNK);
    let root = inode_row(1, dir | 0o755, None);
    let deep = (2..600).flat_map(|n| name_row(n - 1, &[b'd'; 40], n));
    let circle = [
        name_row(2, b"a", 3),
        name_row(3, b"b", 2),
        name_row(3, b"f", 4),
    ];
    let hostile: [&[u8]; 8] = [
        b"..",
        b".",
        b"a/b",
        b"/etc",
        b"a\0b",
        b"",
        b"\x1b[2J\xff",
        &[b'n'; 255],
    ];
    let hostile = hostile.iter().zip(10..).flat_map(|(name, ino)| {
        [
            name_row(1, name, ino),
            inode_row(ino, file | 0o6777, Some(ino - 10)),
        ]
        .concat()
    });
    vec![
        ("nothing", vec![]),
        (
            "real",
            [
                root.clone(),
                inode_row(2, dir | 0o700, None),
                name_row(1, b"d", 2),
                inode_row(3, file | 0o644, Some(0)),
                name_row(2, b"f", 3),
            ]
            .concat(),
        ),
        ("hostile-names", [root.clone(), hostile.collect()].concat()),
        (
            "deep",
            [
                root.clone(),
                deep.collect(),
                inode_row(600, file, Some(1)),
                name_row(599, b"f", 600),
            ]
            .concat(),
        ),
        ("circle", circle.concat()),
        (
            "through-a-link",
            [
                inode_row(2, link | 0o777, None),
                name_row(1, b"l", 2),
                inode_row(3, file, Some(1)),
                name_row(2, b"passwd", 3),
            ]
            .concat(),
        ),
        (
            "set-user-id",
            [
                inode_row(2, file | 0o6755, Some(1)),
                name_row(1, b"root", 2),
                inode_row(3, dir | 0o7777, None),
                name_row(1, b"d", 3),
            ]
            .concat(),
        ),
        (
            "devices",
            [
                inode_row(2, libc::S_IFBLK | 0o666, None),
                name_row(1, b"sda", 2),
                inode_row(3, libc::S_IFIFO, None),
                name_row(1, b"p", 3),
            ]
            .concat(),
        ),
        (
            "extremes",
            [
                inode_row(i64::MAX, file, Some(i64::MAX)),
                inode_row(i64::MIN, file, Some(-1)),
                name_row(i64::MIN, b"x", i64::MAX),
                name_row(1, b"y", -1),
            ]
            .concat(),
        ),
        (
            "one-object-many-files",
            (2..50)
                .flat_map(|n| {
                    [
                        inode_row(n, file | 0o644, Some(1)),
                        name_row(1, format!("{n}").as_bytes(), n),
                    ]
                    .concat()
                })
                .collect(),
        ),
        (
            "dead",
            [
                piece(2, 0, &int(1)),
                piece(2, 0, &int(-1)),
                piece(2, 0, &blob(b"1")),
            ]
            .concat(),
        ),
        (
            "wrong-types",
            [
                piece(0, 0, &[blob(b"1"), blob(b"x")].concat()),
                piece(1, 0, &[blob(b"a"), int(1), blob(b"b")].concat()),
                piece(0, 0, &[3, 0, 0, 0, 0, 0, 0, 0xf8, 0x7f]),
            ]
            .concat(),
        ),
    ]
}
