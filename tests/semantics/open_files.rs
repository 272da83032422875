//! Files that never close: databases, logs, images. Each flush writes them as they were at one
//! moment, and what is on the drive is opened there by programs that know nothing of ferryfs.

use crate::{lab, on_both_drives, on_plain_directory};

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use crate::lab::{
    Lab, Yank, assert_content, content, exit, python, run, skip, text, wait_until, write,
};

on_both_drives!(
    databases_are_whole_on_the_drive_at_every_flush,
    a_database_is_deleted_renamed_and_made_anew_meanwhile,
    two_places_of_a_large_file_are_of_one_moment,
    a_log_travels_while_it_grows_and_is_rotated,
);

on_plain_directory!(
    a_database_that_is_locked_without_a_journal_waits,
    lmdb_and_duckdb_are_whole_on_the_drive,
    a_file_system_in_an_image_is_whole_on_the_drive,
    what_only_looks_like_a_database_is_a_file,
);

const WRITER: &str = include_str!("open_files/sqlite_writer.py");
const CHECK: &str = include_str!("open_files/sqlite_check.py");
const ENGINES: &str = include_str!("open_files/engines.py");

/// Processes that write to one database, each with a file of what was acknowledged.
struct Writers {
    processes: Vec<Child>,
    database: PathBuf,
    acknowledged: Vec<PathBuf>,
    stop: PathBuf,
}

impl Writers {
    fn start(lab: &Lab, database: &Path, mode: &str, count: usize) -> Writers {
        let name = database.file_name().expect("a name").to_string_lossy();
        let stop = lab.root().join(format!("stop.{name}"));
        let acknowledged: Vec<PathBuf> = (0..count)
            .map(|n| lab.root().join(format!("acknowledged.{name}.w{n}")))
            .collect();
        let start = |(n, log): (usize, &PathBuf)| {
            Command::new("python3")
                .args(["-c", WRITER])
                .arg(database)
                .args([mode, &format!("w{n}")])
                .args([log, &stop])
                .stdout(Stdio::null())
                .spawn()
                .expect("python3")
        };
        let writers = Writers {
            database: database.to_path_buf(),
            processes: acknowledged.iter().enumerate().map(start).collect(),
            acknowledged,
            stop,
        };
        wait_until("all writers to write", Duration::from_secs(60), || {
            let has_begun = |log: &PathBuf| fs::metadata(log).is_ok_and(|meta| meta.len() > 0);
            writers.acknowledged.iter().all(has_begun)
        });
        writers
    }

    /// A copy of the database in `drive`, made there and opened elsewhere, so that opening it
    /// changes nothing on the drive.
    #[track_caller]
    fn check(&self, drive: &Path, name: &str, before: SystemTime, scratch: &Path) {
        let _ = fs::remove_dir_all(scratch);
        fs::create_dir(scratch).expect("mkdir");
        for suffix in ["", "-wal", "-journal"] {
            let file = format!("{name}{suffix}");
            if drive.join(&file).exists() {
                fs::copy(drive.join(&file), scratch.join(&file)).expect("copy");
            }
        }
        assert!(!drive.join(format!("{name}-shm")).exists());
        let since = before.duration_since(SystemTime::UNIX_EPOCH).expect("now");
        let before = since.as_secs_f64().to_string();
        let mut args: Vec<&Path> = vec![];
        let database = scratch.join(name);
        args.extend([database.as_path(), before.as_ref()]);
        args.extend(self.acknowledged.iter().map(PathBuf::as_path));
        python(CHECK, &args);
    }

    #[track_caller]
    fn stop(mut self) {
        write(&self.stop, b"");
        for process in &mut self.processes {
            assert!(process.wait().expect("wait").success());
        }
        // Two that end at the same moment may leave the journal to each other.
        let close = "import sqlite3, sys\nc = sqlite3.connect(sys.argv[1])\nc.execute('select count(*) from rows').fetchone()\nc.close()";
        python(close, &[&self.database]);
    }
}

impl Drop for Writers {
    fn drop(&mut self) {
        for process in &mut self.processes {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

fn databases_are_whole_on_the_drive_at_every_flush(mut lab: Lab) {
    let modes = ["wal", "delete", "truncate", "persist"];
    let writers = modes.map(|mode| {
        let count = if mode == "wal" { 4 } else { 1 };
        Writers::start(&lab, &lab.m(format!("{mode}.db")), mode, count)
    });
    let scratch = lab.root().join("scratch");
    for round in 0..5 {
        let before = SystemTime::now();
        let report = lab.flush();
        let copied = report["copied_open"].as_array().expect("a list");
        let of_databases = copied.iter().filter(|it| it["database"] == true).count();
        assert!(of_databases >= 4, "{report}");
        for (mode, writers) in modes.iter().zip(&writers) {
            let name = format!("{mode}.db");
            writers.check(lab.drive.path(), &name, before, &scratch);
        }
        if round == 2 {
            // The last copy before the drive is pulled; work goes on without it.
            let before = SystemTime::now();
            let mnt = text(&lab.mnt);
            let done = lab.ferryfs(&["eject", &mnt]).code(exit::DONE);
            assert!(done.stdout.contains("Safe to unplug"), "{}", done.stdout);
            for (mode, writers) in modes.iter().zip(&writers) {
                let name = format!("{mode}.db");
                writers.check(lab.drive.path(), &name, before, &scratch);
            }
            thread::sleep(Duration::from_millis(300));
            let drive = text(lab.drive.path());
            lab.ferryfs(&["attach", &drive, &mnt]).code(exit::DONE);
        }
        thread::sleep(Duration::from_millis(200));
    }
    writers.into_iter().for_each(Writers::stop);
    lab.unmount();
    let check = "import sqlite3, sys\nassert sqlite3.connect(sys.argv[1]).execute('pragma integrity_check').fetchone()[0] == 'ok'";
    for mode in modes {
        python(check, &[&lab.d(format!("{mode}.db"))]);
        assert!(!lab.d(format!("{mode}.db-wal")).exists(), "{mode}");
    }
    lab.finish();
}

fn a_database_is_deleted_renamed_and_made_anew_meanwhile(lab: Lab) {
    let script = r"
import os, sqlite3, sys, time
path, stop = sys.argv[1:]
round = 0
while not os.path.exists(stop):
    for mode in ('wal', 'delete', 'wal'):
        c = sqlite3.connect(path, isolation_level=None)
        c.execute(f'pragma journal_mode={mode}')
        c.execute('create table if not exists t(n, check_sum, b blob)')
        for n in range(20):
            c.execute('begin')
            c.execute('insert into t values(?,?,randomblob(5000))', (n, -n))
            c.execute('insert into t values(?,?,randomblob(5000))', (-n, n))
            c.execute('commit')
        c.execute('delete from t where n in (select n from t limit 10)')
        c.execute('vacuum')
        c.close()
    other = f'{path}.{round % 3}'
    if os.path.exists(other):
        os.remove(other)
    os.rename(path, other)
    round += 1
";
    let stop = lab.root().join("stop");
    let check = r"
import glob, shutil, sqlite3, sys
drive, scratch = sys.argv[1:]
for name in glob.glob(drive + '/lab.db*'):
    shutil.copy(name, scratch)
for name in glob.glob(scratch + '/lab.db*'):
    if name.endswith(('-wal', '-journal')):
        continue
    c = sqlite3.connect(name)
    assert c.execute('pragma integrity_check').fetchone()[0] == 'ok', name
    if c.execute('select count(*) from sqlite_master').fetchone()[0]:
        c.execute('select count(*), sum(n + check_sum) from t').fetchone()
    c.close()
";
    let mut program = Command::new("python3")
        .args(["-c", script])
        .args([lab.m("lab.db"), stop.clone()])
        .spawn()
        .expect("python3");
    for round in 0..12 {
        thread::sleep(Duration::from_millis(150));
        lab.flush();
        let scratch = lab.root().join(format!("scratch{round}"));
        fs::create_dir(&scratch).expect("mkdir");
        python(check, &[lab.drive.path(), &scratch]);
    }
    write(&stop, b"");
    assert!(program.wait().expect("wait").success());
    lab.finish_flushed();
}

/// A program writes a number to one place of a file, and then to another far away. A copy of one
/// moment has the same number at both, or the first is one ahead.
fn two_places_of_a_large_file_are_of_one_moment(lab: Lab) {
    const FAR: u64 = 30 << 20;
    let file = File::create(lab.m("image.raw")).expect("create");
    file.set_len(40 << 20).expect("truncate");
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut number = 1_u64;
            while !stop.load(Ordering::Relaxed) {
                for place in [4096, FAR] {
                    file.write_all_at(&number.to_le_bytes(), place)
                        .expect("write");
                }
                // Elsewhere, so that blocks change all over the file.
                let elsewhere = 8192 + number.wrapping_mul(7_919_777) % (28 << 20);
                file.write_all_at(&[7; 512], elsewhere).expect("write");
                number += 1;
            }
        });
        let mut last = 0;
        for _ in 0..6 {
            let report = lab.flush();
            assert_eq!(report["copied_open"][0]["path"], "image.raw", "{report}");
            let copy = File::open(lab.d("image.raw")).expect("open");
            let [first, second] = [4096, FAR].map(|place| {
                let mut bytes = [0; 8];
                copy.read_exact_at(&mut bytes, place).expect("read");
                u64::from_le_bytes(bytes)
            });
            assert!(
                first == second || first == second + 1,
                "{first} and {second} are of two moments"
            );
            assert!(second > last, "the copy did not go on");
            last = second;
            thread::sleep(Duration::from_millis(100));
        }
        stop.store(true, Ordering::Relaxed);
    });
    drop(file);
    lab.finish_flushed();
}

fn a_log_travels_while_it_grows_and_is_rotated(lab: Lab) {
    let mut log = OpenOptions::new()
        .append(true)
        .create(true)
        .open(lab.m("app.log"))
        .expect("open");
    let mut expected = Vec::new();
    for line in 0..300 {
        let line = format!("line {line}\n");
        log.write_all(line.as_bytes()).expect("write");
        expected.extend_from_slice(line.as_bytes());
    }
    let report = lab.flush();
    assert_eq!(report["copied_open"][0]["path"], "app.log", "{report}");
    assert_eq!(report["copied_open"][0]["database"], false, "{report}");
    assert_content(lab.d("app.log"), &expected);
    // Rotated as logrotate does by default: renamed, and the program goes on writing to it.
    fs::rename(lab.m("app.log"), lab.m("app.log.1")).expect("rename");
    log.write_all(b"the last line\n").expect("write");
    expected.extend_from_slice(b"the last line\n");
    lab.flush();
    assert_content(lab.d("app.log.1"), &expected);
    assert!(!lab.d("app.log").exists());
    // And with copytruncate.
    fs::copy(lab.m("app.log.1"), lab.m("app.log.2")).expect("copy");
    log.set_len(0).expect("truncate");
    log.write_all(b"anew\n").expect("write");
    lab.flush();
    assert_content(lab.d("app.log.1"), b"anew\n");
    assert_content(lab.d("app.log.2"), &expected);
    drop(log);
    lab.finish_flushed();
}

fn a_database_that_is_locked_without_a_journal_waits(lab: Lab) {
    let script = r"
import os, sqlite3, sys, time
path, begun, go_on = sys.argv[1:]
c = sqlite3.connect(path, isolation_level=None)
c.execute('pragma journal_mode=memory')
c.execute('pragma cache_size=5')
c.execute('create table t(b blob)')
c.execute('begin exclusive')
for _ in range(200):
    c.execute('insert into t values(randomblob(5000))')
open(begun, 'w').close()
while not os.path.exists(go_on):
    time.sleep(0.01)
c.execute('commit')
open(begun + '.2', 'w').close()
while os.path.exists(go_on):
    time.sleep(0.01)
";
    let (begun, go_on) = (lab.root().join("begun"), lab.root().join("go on"));
    let mut program = Command::new("python3")
        .args(["-c", script])
        .args([lab.m("lab.db"), begun.clone(), go_on.clone()])
        .spawn()
        .expect("python3");
    let patience = Duration::from_secs(60);
    wait_until("the transaction", patience, || begun.exists());
    write(&lab.m("other"), b"other");
    let report = lab.flush_code(exit::LEFT_BEHIND).json();
    assert_eq!(report["left_behind"][0]["path"], "lab.db", "{report}");
    let reason = report["left_behind"][0]["reason"].as_str().expect("text");
    assert!(reason.contains("exclusive lock"), "{reason}");
    assert_content(lab.d("other"), b"other");
    write(&go_on, b"");
    let committed = begun.with_extension("2");
    wait_until("the commit", patience, || committed.exists());
    lab.flush();
    let check = "import sqlite3, sys\nc = sqlite3.connect(sys.argv[1])\nassert c.execute('select count(*) from t').fetchone()[0] == 200";
    python(check, &[&lab.d("lab.db")]);
    fs::remove_file(&go_on).expect("rm");
    assert!(program.wait().expect("wait").success());
    lab.finish_flushed();
}

fn lmdb_and_duckdb_are_whole_on_the_drive(lab: Lab) {
    let venv = lab.root().join("venv");
    run(Command::new("python3").args(["-m", "venv"]).arg(&venv)).ok();
    let interpreter = venv.join("bin/python");
    let installed = run(Command::new(&interpreter).args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "lmdb",
        "duckdb",
    ]));
    if installed.code != 0 {
        return skip("PyPI cannot be reached, LMDB and DuckDB were not tried");
    }
    let engines = |what: &str, directory: &Path, stop: &Path| {
        let mut command = Command::new(&interpreter);
        command
            .args(["-c", ENGINES, what])
            .args([directory, stop])
            .stdout(Stdio::null());
        command
    };
    let stop = lab.root().join("stop");
    let mut program = engines("write", &lab.mnt, &stop).spawn().expect("python");
    let patience = Duration::from_secs(60);
    wait_until("the databases", patience, || lab.m("tree.lmdb").exists());
    for round in 0..8 {
        thread::sleep(Duration::from_millis(300));
        lab.flush();
        let scratch = lab.root().join(format!("scratch{round}"));
        fs::create_dir(&scratch).expect("mkdir");
        for file in ["lab.duckdb", "lab.duckdb.wal", "tree.lmdb"] {
            if lab.d(file).exists() {
                fs::copy(lab.d(file), scratch.join(file)).expect("copy");
            }
        }
        run(&mut engines("check", &scratch, &stop)).ok();
    }
    write(&stop, b"");
    assert!(program.wait().expect("wait").success());
    lab.finish_flushed();
}

/// An ext4 in an image, mounted on a loop device over the mount: its journal and its blocks must be
/// of one moment.
fn a_file_system_in_an_image_is_whole_on_the_drive(lab: Lab) {
    if !nix::unistd::geteuid().is_root() || !lab::has("mkfs.ext4") {
        return skip("a loop mount needs root and mkfs.ext4");
    }
    let (image, inner) = (lab.m("disk.img"), lab.root().join("inner"));
    File::create(&image)
        .expect("create")
        .set_len(64 << 20)
        .expect("truncate");
    run(Command::new("mkfs.ext4").arg("-q").arg(&image)).ok();
    fs::create_dir(&inner).expect("mkdir");
    run(Command::new("mount")
        .args(["-o", "loop"])
        .args([&image, &inner]))
    .ok();
    let busy = AtomicBool::new(true);
    thread::scope(|scope| {
        scope.spawn(|| {
            for n in (0..200).cycle() {
                if !busy.load(Ordering::Relaxed) {
                    return;
                }
                let dir = inner.join(format!("d{}", n % 7));
                let _ = fs::create_dir(&dir);
                fs::write(dir.join(format!("f{n}")), vec![n as u8; 20_000]).expect("write");
                if n % 5 == 0 {
                    let _ = fs::remove_dir_all(&dir);
                }
            }
        });
        for round in 0..4 {
            thread::sleep(Duration::from_millis(400));
            lab.flush();
            let copy = lab.root().join(format!("copy{round}.img"));
            fs::copy(lab.d("disk.img"), &copy).expect("copy");
            // Mounting replays the journal; after that nothing may be left to repair.
            let check = lab.root().join("check");
            let _ = fs::create_dir(&check);
            run(Command::new("mount")
                .args(["-o", "loop"])
                .args([&copy, &check]))
            .ok();
            run(Command::new("umount").arg(&check)).ok();
            run(Command::new("fsck.ext4").args(["-f", "-n"]).arg(&copy)).ok();
        }
        busy.store(false, Ordering::Relaxed);
    });
    run(Command::new("umount").arg(&inner)).ok();
    lab.finish_flushed();
}

fn what_only_looks_like_a_database_is_a_file(lab: Lab) {
    write(&lab.m("fake.db"), b"SQLite format 3\0 and nothing else");
    write(&lab.m("fake.db-wal"), b"no journal");
    write(&lab.m("alone-journal"), b"notes");
    fs::create_dir(lab.m("dir")).expect("mkdir");
    write(&lab.m("dir-wal"), b"beside a directory");
    let open = File::options()
        .write(true)
        .open(lab.m("fake.db-wal"))
        .expect("open");
    open.write_all_at(b"NO", 0).expect("write");
    lab.flush();
    assert_content(lab.d("fake.db-wal"), b"NO journal");
    assert_content(lab.d("dir-wal"), b"beside a directory");
    fs::remove_file(lab.m("fake.db")).expect("rm");
    lab.flush();
    assert!(!lab.d("fake.db").exists());
    assert_content(lab.d("fake.db-wal"), b"NO journal");
    drop(open);
    lab.finish_flushed();
}

/// The number of the last batch.
fn last_batch(lab: &Lab) -> u64 {
    lab.status()["last_batch"]["batch"].as_u64().unwrap_or(0)
}

#[test]
fn an_open_file_makes_the_daemon_flush_when_it_has_changed_and_not_else() {
    let Some(mut lab) = Lab::new(lab::Backend::Ext4Dir) else {
        return;
    };
    lab.mount(&["--flush-after", "300ms", "--max-age", "2s"]);
    let idle = File::create(lab.m("idle")).expect("create");
    idle.write_all_at(b"once", 0).expect("write");
    let patience = Duration::from_secs(20);
    let has = |name: &str, bytes: &[u8]| fs::read(lab.d(name)).is_ok_and(|there| there == bytes);
    wait_until("the idle file on the drive", patience, || {
        has("idle", b"once")
    });
    let before = last_batch(&lab);
    thread::sleep(Duration::from_secs(3));
    assert_eq!(last_batch(&lab), before, "nothing has changed");
    idle.write_all_at(b"more", 4).expect("write");
    wait_until("what it got since", patience, || has("idle", b"oncemore"));
    // One that never rests is written once it is old enough.
    let mut busy = File::create(lab.m("busy")).expect("create");
    let begun = Instant::now();
    while !lab.d("busy").exists() {
        assert!(begun.elapsed() < patience, "it never came to the drive");
        busy.write_all(b"line\n").expect("write");
        thread::sleep(Duration::from_millis(20));
    }
    assert!(begun.elapsed() > Duration::from_millis(1500), "too early");
    drop((idle, busy));
    lab.finish_flushed();
}

#[test]
fn a_drive_pulled_in_a_flush_of_open_databases_has_them_of_one_moment() {
    let Some(mut lab) = Lab::mounted(lab::Backend::Exfat(512)) else {
        return;
    };
    let patience = Duration::from_secs(60);
    let modes = ["wal", "delete"];
    let writers = modes.map(|mode| {
        let database = lab.m(format!("{mode}.db"));
        Writers::start(&lab, &database, mode, 2)
    });
    let scratch = lab.root().join("scratch");
    let mut flushed = SystemTime::now();
    lab.flush();
    for round in 0..6_u64 {
        // So that the flush takes a while.
        for n in 0..30 {
            write(
                &lab.m(format!("big{n}")),
                &content(round * 100 + n, 700_000),
            );
        }
        let mut flush = lab
            .command(&["flush", &text(&lab.mnt)])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("flush");
        thread::sleep(Duration::from_millis(20 + 120 * round));
        lab.drive.yank(Yank::StaleMount);
        let _ = flush.wait();
        let is = |state: &str| lab.status()["backend_state"] == state;
        wait_until("the drive to be away", patience, || is("detached"));
        let place = lab.drive.path().to_path_buf();
        lab.drive.plug_in_at(&place, true);
        let is = |state: &str| lab.status()["backend_state"] == state;
        wait_until("the drive to be back", patience, || is("attached"));
        for (mode, writers) in modes.iter().zip(&writers) {
            let name = format!("{mode}.db");
            writers.check(lab.drive.path(), &name, flushed, &scratch);
        }
        flushed = SystemTime::now();
        lab.flush();
        for (mode, writers) in modes.iter().zip(&writers) {
            let name = format!("{mode}.db");
            writers.check(lab.drive.path(), &name, flushed, &scratch);
        }
    }
    writers.into_iter().for_each(Writers::stop);
    lab.finish_flushed();
}
