//! Somebody else works on the drive while a flush runs: one act just before its n-th call, for
//! every n, on every kind of drive.
//!
//! Each version has a mark of its own in its bytes. What the other has written, and what the mount
//! has, is on the drive and in the mount in the end, under whatever name; only what the other has
//! removed or replaced there himself may be gone. A version that makes way gets a name that says
//! so, and the flush that made it give way names it.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use ferryfs::core::{FileKind, RelPath, Timestamp};
use ferryfs::drive::faulty::Fault;
use ferryfs::drive::memory::{Crash, MemNode, MemoryBackend};
use ferryfs::drive::{Backend, BackendError};
use ferryfs::flush::Report;

use super::at_rest;
use super::engine::script::rel;
use super::engine::tree::user_part;
use super::engine::{Engine, Kind, World};

const KINDS: [Kind; 3] = [Kind::Plain, Kind::Exfat, Kind::Linux];

/// What one batch does.
type Batch = fn(&Engine);

/// What the other does at one moment, if what he does it to is there then.
#[derive(Clone, Copy, Debug)]
enum Act {
    Append(&'static str),
    Create(&'static str),
    MakeDir(&'static str),
    Delete(&'static str),
    Rename(&'static str, &'static str),
    /// A directory in place of a file, with a file in it.
    IntoDir(&'static str),
    PutInto(&'static str),
}

/// What is on the drive before, with the marks of its versions.
const BEFORE: [(&str, &str); 10] = [
    ("edited.txt", "<edited 1>"),
    ("gone", "<gone 1>"),
    ("moved", "<moved 1>"),
    ("victim", "<victim 1>"),
    ("one", "<one 1>"),
    ("two", "<two 1>"),
    ("d/known", "<known 1>"),
    ("old/x", "<x 1>"),
    ("dead/z", "<z 1>"),
    ("still", "<still 1>"),
];

fn edits(engine: &Engine) {
    engine.put("edited.txt", b"<edited 2> ours");
}

fn grows(engine: &Engine) {
    engine.edit("edited.txt", 10, b"<edited 2> in place");
}

fn creates(engine: &Engine) {
    engine.put("fresh", b"<fresh 2>");
    engine.put("d/fresh", b"<d fresh 2>");
}

fn creates_dirs(engine: &Engine) {
    engine.mkdir("made");
    engine.mkdir("made/deep");
    engine.put("made/deep/f", b"<made 2>");
}

fn deletes(engine: &Engine) {
    engine.unlink("gone");
}

fn renames(engine: &Engine) {
    engine.rename("moved", "d/moved");
}

fn renames_and_edits(engine: &Engine) {
    engine.rename("moved", "d/moved");
    engine.put("d/moved", b"<moved 2> ours, longer");
}

fn renames_over(engine: &Engine) {
    engine.rename("moved", "victim");
}

fn swaps(engine: &Engine) {
    engine.rename("one", "spare");
    engine.rename("two", "one");
    engine.rename("spare", "two");
}

fn removes_dir(engine: &Engine) {
    engine.unlink("dead/z");
    engine.rmdir("dead");
}

fn renames_dir(engine: &Engine) {
    engine.rename("old", "new");
}

fn renames_dir_and_writes(engine: &Engine) {
    engine.rename("old", "new");
    engine.put("new/x", b"<x 2> ours, longer");
    engine.put("new/y", b"<y 2>");
}

fn file_to_dir(engine: &Engine) {
    engine.unlink("gone");
    engine.mkdir("gone");
    engine.put("gone/f", b"<gone 2>");
}

/// Each act, and the batch that it meets.
const MEETINGS: &[(Batch, &[Act])] = {
    use Act::{Append, Create, Delete, IntoDir, MakeDir, PutInto, Rename};
    &[
        (
            edits,
            &[
                Append("edited.txt"),
                Delete("edited.txt"),
                Rename("edited.txt", "elsewhere"),
                Rename("still", "edited.txt"),
                IntoDir("edited.txt"),
            ],
        ),
        (
            grows,
            &[
                Append("edited.txt"),
                Delete("edited.txt"),
                Rename("edited.txt", "d/elsewhere"),
            ],
        ),
        (
            creates,
            &[
                Create("fresh"),
                MakeDir("fresh"),
                Create("d/fresh"),
                MakeDir("d/fresh"),
                Rename("still", "fresh"),
                Rename("d", "d2"),
                PutInto("d"),
            ],
        ),
        (
            creates_dirs,
            &[
                Create("made"),
                MakeDir("made"),
                Create("made/deep"),
                PutInto("made"),
                Rename("made", "elsewhere"),
            ],
        ),
        (
            deletes,
            &[
                Append("gone"),
                Delete("gone"),
                Rename("gone", "elsewhere"),
                IntoDir("gone"),
            ],
        ),
        (
            renames,
            &[
                Append("moved"),
                Append("d/moved"),
                Create("d/moved"),
                MakeDir("d/moved"),
                Delete("moved"),
                Rename("moved", "elsewhere"),
                Rename("d", "d2"),
                IntoDir("moved"),
            ],
        ),
        (
            renames_and_edits,
            &[
                Append("moved"),
                Append("d/moved"),
                Create("d/moved"),
                Delete("moved"),
                Rename("moved", "elsewhere"),
                IntoDir("moved"),
            ],
        ),
        (
            renames_over,
            &[
                Append("moved"),
                Append("victim"),
                Delete("victim"),
                Delete("moved"),
                Rename("victim", "elsewhere"),
                IntoDir("victim"),
            ],
        ),
        (
            swaps,
            &[
                Append("one"),
                Delete("one"),
                Create("one"),
                Rename("one", "elsewhere"),
                IntoDir("two"),
            ],
        ),
        (
            removes_dir,
            &[
                PutInto("dead"),
                Append("dead/z"),
                Create("dead/z"),
                Rename("dead", "elsewhere"),
                Rename("dead/z", "dead/elsewhere"),
                Create("dead"),
            ],
        ),
        (
            renames_dir,
            &[
                PutInto("old"),
                PutInto("new"),
                Append("old/x"),
                Append("new/x"),
                Create("new"),
                MakeDir("new"),
                Delete("old/x"),
                Rename("old", "elsewhere"),
                Rename("old/x", "elsewhere"),
            ],
        ),
        (
            renames_dir_and_writes,
            &[
                PutInto("old"),
                PutInto("new"),
                Append("old/x"),
                Append("new/x"),
                Create("new/y"),
                Create("new"),
                Rename("old", "elsewhere"),
                Rename("new", "elsewhere"),
            ],
        ),
        (
            file_to_dir,
            &[
                Append("gone"),
                Create("gone"),
                PutInto("gone"),
                Delete("gone"),
            ],
        ),
    ]
};

/// The other, and what he has done.
#[derive(Default)]
struct Other {
    /// Marks of what he has written.
    wrote: Vec<String>,
    /// Bytes that he has removed himself.
    removed: Vec<String>,
    acted: bool,
}

const WHEN: Timestamp = Timestamp(1_650_000_000_000_000_000);

impl Other {
    fn act(&mut self, drive: &MemoryBackend, act: Act) {
        let done = self.attempt(drive, act);
        self.acted = done.is_ok();
        if self.acted {
            // What he did is not lost with the power.
            drive.sync().expect("sync");
        } else {
            self.wrote.clear();
        }
    }

    fn write(
        &mut self,
        drive: &MemoryBackend,
        path: &RelPath,
        old: &[u8],
    ) -> Result<(), BackendError> {
        let mark = format!("<theirs {}>", self.wrote.len());
        let mut file = drive.create(path)?;
        file.append(old).expect("append");
        file.append(mark.as_bytes()).expect("append");
        file.finish(WHEN).expect("finish");
        self.wrote.push(mark);
        Ok(())
    }

    fn attempt(&mut self, drive: &MemoryBackend, act: Act) -> Result<(), BackendError> {
        match act {
            Act::Append(path) => {
                let path = rel(path);
                let old = bytes_of(drive, &path)?;
                drive.remove_file(&path)?;
                self.write(drive, &path, &old)
            }
            Act::Create(path) => {
                let path = rel(path);
                if let Ok(old) = bytes_of(drive, &path) {
                    drive.remove_file(&path)?;
                    self.removed.push(text(&old));
                }
                self.write(drive, &path, b"anew ")
            }
            Act::MakeDir(path) => {
                let path = rel(path);
                drive.make_dir(&path)?;
                self.write(drive, &path.join_path(&rel("inside")), b"")
            }
            Act::Delete(path) => {
                let path = rel(path);
                let old = bytes_of(drive, &path)?;
                drive.remove_file(&path)?;
                self.removed.push(text(&old));
                Ok(())
            }
            Act::Rename(from, to) => {
                let replaced = bytes_of(drive, &rel(to));
                drive.rename(&rel(from), &rel(to))?;
                self.removed.extend(replaced.ok().map(|old| text(&old)));
                Ok(())
            }
            Act::IntoDir(path) => {
                self.attempt(drive, Act::Delete(path))?;
                self.attempt(drive, Act::MakeDir(path))
            }
            Act::PutInto(dir) => self.write(drive, &rel(dir).join_path(&rel("theirs")), b""),
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn bytes_of(drive: &MemoryBackend, path: &RelPath) -> Result<Vec<u8>, BackendError> {
    if drive.metadata(path)?.kind != FileKind::Regular {
        let source = std::io::Error::from_raw_os_error(libc::EISDIR);
        return Err(BackendError::new("open", path, source));
    }
    match drive.tree().get(path) {
        Some(MemNode::File { bytes, .. }) => Ok(bytes.to_vec()),
        _ => panic!("{path} is spelled in another way"),
    }
}

/// The marks in some bytes.
fn marks(bytes: &str) -> Vec<String> {
    let parts = bytes.split('<').skip(1);
    parts
        .filter_map(|part| Some(format!("<{}>", part.split_once('>')?.0)))
        .collect()
}

/// What becomes of the daemon and the drive after the act.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    /// Nothing.
    GoesOn,
    /// So many calls later every call fails, the daemon dies, and the drive keeps everything.
    Dies(u64),
    /// The same, and the drive loses what was not synced.
    Loses(u64),
    /// The same, and the drive loses some of what was not synced.
    LosesSome(u64),
    /// The same without the daemon's death.
    Fails(u64),
}

struct Scene {
    world: World,
    engine: Engine,
    /// The marks that the mount has, and the batch is to bring, or leaves alone.
    ours: BTreeSet<String>,
}

impl Scene {
    fn new(kind: Kind, batch: Batch) -> Scene {
        let world = World::new(kind);
        let engine = world.start(false);
        for dir in ["d", "old", "dead"] {
            engine.mkdir(dir);
        }
        for (path, bytes) in BEFORE {
            engine.put(path, bytes.as_bytes());
        }
        // Of two files of one size and about one age nobody could tell that one was renamed over
        // the other.
        engine.utimes("still", WHEN);
        engine.flush_all();
        batch(&engine);
        engine.index.commit().expect("commit");
        let ours = mount_marks(&engine);
        Scene {
            world,
            engine,
            ours,
        }
    }
}

fn mount_marks(engine: &Engine) -> BTreeSet<String> {
    let tree = engine.mount_tree();
    let bytes = tree.values().filter_map(|seen| seen.bytes.as_ref());
    bytes.flat_map(|bytes| marks(&text(bytes))).collect()
}

fn drive_marks(world: &World) -> BTreeSet<String> {
    let tree = user_part(world.memory.tree());
    tree.values()
        .filter_map(|node| match node {
            MemNode::File { bytes, .. } => Some(marks(&text(bytes))),
            _ => None,
        })
        .flatten()
        .collect()
}

/// The conflicts on the drive, by the names of the kept versions.
fn kept(world: &World) -> BTreeSet<String> {
    let paths = world.drive_tree().into_keys().map(|path| path.to_string());
    paths
        .filter(|path| {
            path.rsplit('/')
                .next()
                .is_some_and(|name| name.contains(".sync-conflict-"))
        })
        .collect()
}

fn named(report: &Report) -> impl Iterator<Item = String> + '_ {
    let conflicts = report.conflicts.iter().map(|(_, kept)| kept.clone());
    conflicts.chain(report.left_behind.iter().map(|(path, _)| path.clone()))
}

/// One meeting. False if the flush was over before the call.
fn meet(kind: Kind, batch: Batch, act: Act, n: u64, then: Then) -> Result<bool, String> {
    let mut scene = Scene::new(kind, batch);
    let other = Arc::new(Mutex::new(Other::default()));
    let at = scene.world.faulty.calls() + n;
    let (drive, hand) = (scene.world.memory.clone(), other.clone());
    scene
        .world
        .faulty
        .before_call(at, move || hand.lock().expect("lock").act(&drive, act));
    if let Then::Dies(more) | Then::Loses(more) | Then::LosesSome(more) | Then::Fails(more) = then {
        scene.world.faulty.arm(Fault {
            stays_dead: true,
            ..Fault::at(at + more, libc::EIO)
        });
    }
    let first = scene.engine.flush();
    let over = scene.world.faulty.calls() < at;
    scene.world.faulty.heal();
    if over || !other.lock().expect("lock").acted {
        return Ok(!over);
    }
    let mut told = String::new();
    let mut names = BTreeSet::new();
    let mut note = |told: &mut String, report: &Report| {
        *told += &format!("\n    {report:?}");
        names.extend(named(report));
    };
    match (&first, then) {
        (Ok(report), _) => note(&mut told, report),
        (Err(error), Then::GoesOn) => {
            return Err(format!("the flush failed: {error}"));
        }
        (Err(error), _) => told += &format!("\n    {error}"),
    }
    match then {
        Then::Loses(_) => scene.world.memory.crash_to_durable(),
        Then::LosesSome(_) => {
            let story = scene.world.memory.crash(Crash::Random(n));
            told += &format!("\n    {story:?}");
        }
        _ => {}
    }
    if !matches!(then, Then::GoesOn | Then::Fails(_)) {
        scene.engine.die();
        scene.engine = scene.world.start(true);
    }
    let (world, engine) = (&scene.world, &scene.engine);
    if then != Then::GoesOn {
        engine
            .flusher
            .recover()
            .map_err(|error| format!("recovery: {error}{told}"))?;
        told += "\n    recovered";
        let report = engine
            .flush()
            .map_err(|error| format!("the second flush: {error}{told}"))?;
        note(&mut told, &report);
    }
    let unnamed: Vec<String> = (kept(world).into_iter())
        .filter(|kept| !names.contains(kept))
        .collect();
    // A recovery tells the log, and the next status, of what it kept.
    if then == Then::GoesOn && !unnamed.is_empty() {
        return Err(format!("not named: {unnamed:?}{told}"));
    }
    let changes = engine.refresh();
    told += &format!("\n    {changes:?}");
    let report = engine
        .flush()
        .map_err(|error| format!("the last flush: {error}{told}"))?;
    told += &format!("\n    {report:?}");
    let other = other.lock().expect("lock");
    let gone: BTreeSet<String> = other.removed.iter().flat_map(|old| marks(old)).collect();
    // Without a journal a rename may leave neither name, and of what the other has done nobody has
    // a second copy.
    let all_is_kept = kind == Kind::Linux || !matches!(then, Then::LosesSome(_));
    let wanted = scene.ours.difference(&gone).chain(&other.wrote);
    let (there, here) = (drive_marks(world), mount_marks(engine));
    for mark in wanted.filter(|mark| all_is_kept || mark.ends_with(" 2>")) {
        for (place, found) in [("drive", &there), ("mount", &here)] {
            if !found.contains(mark) {
                let all: Vec<String> = world.memory.tree().keys().map(|p| p.to_string()).collect();
                return Err(format!("{mark} is not on the {place}{told}\n    {all:?}"));
            }
        }
    }
    let left = world.left_of_batches(engine);
    if !left.is_empty() {
        return Err(format!("left behind: {left:?}{told}"));
    }
    let rest = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| at_rest(world, engine)));
    rest.map_err(|_| format!("not at rest{told}"))?;
    Ok(true)
}

fn number(variable: &str) -> Option<usize> {
    std::env::var(variable).ok()?.parse().ok()
}

/// Every act at every `stride`-th call, or at each with FERRYFS_DURING_STRIDE=1; all that goes
/// wrong is told.
fn meet_at_calls(kinds: &[Kind], stride: usize, thens: &[Then]) {
    let wrong: Vec<String> = (kinds.iter())
        .flat_map(|kind| meet_on(*kind, stride, thens))
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn meet_on(kind: Kind, stride: usize, thens: &[Then]) -> Vec<String> {
    let stride = number("FERRYFS_DURING_STRIDE").unwrap_or(stride) as u64;
    let (mut met, mut wrong) = (0, Vec::new());
    for (number, (batch, acts)) in MEETINGS.iter().enumerate() {
        for (turn, act) in acts.iter().enumerate() {
            let mut n = 1 + (number + turn) as u64 % stride;
            loop {
                let then = thens[(n as usize + turn) % thens.len()];
                match meet(kind, *batch, *act, n, then) {
                    Ok(true) => met += 1,
                    Ok(false) => break,
                    Err(problem) => {
                        wrong.push(format!(
                            "{kind:?}, batch {number}, {act:?}, call {n}, {then:?}: {problem}"
                        ));
                    }
                }
                n += stride;
            }
        }
    }
    assert!(met > 100, "only {met}");
    wrong
}

#[test]
fn whatever_somebody_does_at_any_call_of_a_flush_is_kept_on_a_plain_drive() {
    meet_at_calls(&[Kind::Plain], 13, &[Then::GoesOn]);
}

#[test]
fn whatever_somebody_does_at_any_call_of_a_flush_is_kept_on_exfat() {
    meet_at_calls(&[Kind::Exfat], 13, &[Then::GoesOn]);
}

#[test]
fn whatever_somebody_does_at_any_call_of_a_flush_is_kept_on_a_linux_drive() {
    meet_at_calls(&[Kind::Linux], 13, &[Then::GoesOn]);
}

#[test]
fn what_somebody_does_just_before_the_daemon_dies_is_kept() {
    let thens = [
        Then::Dies(0),
        Then::Loses(1),
        Then::Fails(1),
        Then::Dies(2),
        Then::Loses(0),
        Then::Fails(4),
        Then::Dies(6),
        Then::Loses(5),
    ];
    meet_at_calls(&KINDS, 29, &thens);
}

#[test]
fn what_somebody_does_just_before_the_drive_loses_some_of_the_batch_is_kept() {
    let thens = [0, 1, 2, 3, 5].map(Then::LosesSome);
    meet_at_calls(&KINDS, 31, &thens);
}
