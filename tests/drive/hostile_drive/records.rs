//! Records that are whole, and what they say is not to be done.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use ferryfs::core::{BatchNo, ContentHash, RelPath, Timestamp};
use ferryfs::format::expectations::Expectations;
use ferryfs::format::record::{BatchRecord, CHECKSUM_BYTES};
use ferryfs::format::steps::{ClearStep, FileContent, PlaceStep, PlainKind, SlotNo, Steps};
use ferryfs::format::{marker, record};
use uuid::Uuid;

use super::stage::Stage;
use crate::lab::write;

const BATCH: BatchNo = BatchNo(0x63);
const RECORD: &str = ".ferryfs/batches/0000000000000063.rec";
const STAGED: &str = ".ferryfs/staging/0000000000000063";

fn volume(stage: &Stage) -> Uuid {
    let bytes = fs::read(stage.lab.d(".ferryfs/volume.json")).expect("read the marker");
    marker::decode(&bytes).expect("a marker").id
}

fn path(text: &str) -> RelPath {
    RelPath::parse(text.as_bytes()).expect("a path")
}

/// A record of some other cache's batch on the stage's volume.
fn of_another(stage: &Stage, clear: Vec<ClearStep>, place: Vec<PlaceStep<FileContent>>) -> Vec<u8> {
    record::encode(&BatchRecord {
        volume: volume(stage),
        batch: BATCH,
        created: Timestamp(0),
        origin: *b"of another cache",
        steps: Steps {
            clear,
            place,
            ..Steps::default()
        },
        known: Expectations::default(),
        catalog: None,
    })
}

fn install(to: &str, bytes: &[u8]) -> PlaceStep<FileContent> {
    PlaceStep::Install {
        slot: SlotNo(0),
        to: path(to),
        content: FileContent {
            size: bytes.len() as u64,
            hash: ContentHash(*blake3::hash(bytes).as_bytes()),
            modified: Timestamp(1_700_000_000_000_000_000),
        },
    }
}

fn take_away(path: &Path) {
    let _ = fs::remove_file(path);
    let _ = fs::remove_dir_all(path);
}

/// Every seed of the fuzzer, made out to this volume and this batch and sealed again, so that it is
/// really looked into.
#[test]
fn records_that_make_no_sense_are_refused_and_do_nothing() {
    let Some(mut stage) = Stage::new() else {
        return;
    };
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/record");
    // These would be carried out on the user's own files, which is what records are for.
    let sound = [
        "every-kind",
        "every-kind-2",
        "wrong-checksum",
        "many",
        "empty",
        "skippable-section",
    ];
    let mut tried = 0;
    for seed in fs::read_dir(seeds).expect("the seeds") {
        let seed = seed.expect("list");
        let name = seed.file_name().into_string().expect("names are UTF-8");
        let mut bytes = fs::read(seed.path()).expect("read");
        if sound.contains(&&*name) || bytes.len() < 64 + CHECKSUM_BYTES {
            continue;
        }
        bytes.truncate(bytes.len() - CHECKSUM_BYTES);
        bytes[16..32].copy_from_slice(volume(&stage).as_bytes());
        bytes[48..56].copy_from_slice(&BATCH.0.to_le_bytes());
        bytes.extend_from_slice(blake3::hash(&bytes.clone()).as_bytes());
        let refused = record::decode(&bytes).is_err_and(|error| !error.is_torn());
        write(&stage.lab.d(RECORD), &bytes);
        let mounted = stage.ends_well(&format!("the record {name}"));
        assert_eq!(mounted, !refused, "{name}");
        tried += 1;
    }
    assert!(tried >= 8, "{tried} seeds");
    take_away(&stage.lab.d(RECORD));
    stage.end_sound();
}

#[test]
fn a_record_of_another_volume_or_another_number_is_refused() {
    let Some(mut stage) = Stage::new() else {
        return;
    };
    let remove = || vec![ClearStep::RemoveFile { path: path("a") }];
    let sound = of_another(&stage, remove(), vec![]);
    let mut record = record::decode(&sound).expect("a record");
    record.volume = Uuid::from_u128(1);
    write(&stage.lab.d(RECORD), &record::encode(&record));
    assert!(!stage.ends_well("a record of another volume"));
    record.volume = volume(&stage);
    record.batch = BatchNo(7);
    write(&stage.lab.d(RECORD), &record::encode(&record));
    assert!(!stage.ends_well("a record of another number"));
    take_away(&stage.lab.d(RECORD));
    stage.end_sound();
}

/// On a drive with links in the user's tree, a record that names paths through them.
#[test]
fn no_step_of_a_record_goes_through_a_link() {
    let Some(mut stage) = Stage::new() else {
        return;
    };
    symlink(stage.outside(), stage.lab.d("link")).expect("symlink");
    let detach = |from: &str, kind| ClearStep::Detach {
        from: path(from),
        slot: SlotNo(1),
        kind,
    };
    let attach = |to: &str, kind| PlaceStep::Attach {
        slot: SlotNo(1),
        to: path(to),
        kind,
    };
    use PlainKind::{Directory, File};
    let removals = |path| {
        vec![
            ClearStep::RemoveFile { path },
            ClearStep::RemoveDir {
                path: RelPath::fixed("link/sub"),
            },
        ]
    };
    let touch = PlaceStep::Touch {
        path: path("link/secret"),
        modified: Timestamp(1),
    };
    let make = PlaceStep::MakeDir {
        path: path("link/made"),
    };
    for (what, clear, place) in [
        ("removals", removals(path("link/secret")), vec![]),
        (
            "a file taken from outside",
            vec![detach("link/secret", File)],
            vec![attach("stolen", File)],
        ),
        (
            "a directory taken from outside",
            vec![detach("link/sub", Directory)],
            vec![attach("stolen", Directory)],
        ),
        ("a new file", vec![], vec![install("link/new", b"planted")]),
        (
            "a file replaced",
            vec![],
            vec![install("link/secret", b"planted")],
        ),
        ("a new directory", vec![], vec![make]),
        ("a time", vec![], vec![touch]),
    ] {
        let record = of_another(&stage, clear, place);
        record::decode(&record).expect("a record that may be carried out");
        write(&stage.lab.d(RECORD), &record);
        fs::create_dir_all(stage.lab.d(STAGED)).expect("mkdir");
        write(&stage.lab.d(STAGED).join("s00000000"), b"planted");
        stage.ends_well(what);
        // A directory that is nowhere on the drive is made anew, empty.
        let taken = fs::read_dir(stage.lab.d("stolen")).map_or(0, Iterator::count);
        let is_file = stage.lab.d("stolen").is_file();
        assert!(taken == 0 && !is_file, "{what}");
        take_away(&stage.lab.d("stolen"));
        for left in [RECORD, STAGED, ".ferryfs/batches/0000000000000063.done"] {
            take_away(&stage.lab.d(left));
        }
        take_away(&stage.lab.d(".ferryfs/lost+found"));
    }
    take_away(&stage.lab.d("link"));
    stage.end_sound();
}

/// What is staged is a link to a file outside that has the very bytes of the record: taken in, it
/// would show them on the drive.
#[test]
fn a_staged_file_that_is_a_link_is_not_taken_for_its_target() {
    let Some(mut stage) = Stage::new() else {
        return;
    };
    let record = of_another(&stage, vec![], vec![install("wanted", b"outside")]);
    fs::create_dir_all(stage.lab.d(STAGED)).expect("mkdir");
    for target in [stage.outside().join("secret"), "/dev/zero".into()] {
        write(&stage.lab.d(RECORD), &record);
        symlink(target, stage.lab.d(STAGED).join("s00000000")).expect("symlink");
        stage.ends_well("a link as a staged file");
        assert!(fs::symlink_metadata(stage.lab.d("wanted")).is_err());
        take_away(&stage.lab.d(STAGED).join("s00000000"));
    }
    take_away(&stage.lab.d(STAGED));
    take_away(&stage.lab.d(RECORD));
    stage.end_sound();
}
