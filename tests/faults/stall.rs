//! The backend hangs: calls to it do not return, as on a hard NFS mount whose server is silent.
//! Here the driver of an exFAT drive, a process in userspace, is stopped and sent on its way again;
//! a call to it can meanwhile not even be killed.

use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::lab::{Backend, Lab, assert_content, content, exit, text, wait_until, write};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Long against anything that does not wait for the backend.
const SOON: Duration = Duration::from_secs(30);

/// The longest that a thing may take that ends by the time the tests give it.
const BOUND: Duration = Duration::from_secs(60);

/// The process behind the drive, stopped until this is dropped. To be declared after its lab, which
/// cleans up only then.
struct Frozen(Pid);

impl Frozen {
    #[track_caller]
    fn freeze(lab: &Lab) -> Frozen {
        let pid = driver(&text(lab.drive.path())).expect("the drive has a driver");
        kill(pid, Signal::SIGSTOP).expect("stop the driver");
        Frozen(pid)
    }

    fn thaw(self) {}
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGCONT);
    }
}

fn driver(place: &str) -> Option<Pid> {
    let entries = fs::read_dir("/proc").ok()?;
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .find(|pid| {
            let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let mut words = command.split(|byte| *byte == 0);
            words
                .next()
                .is_some_and(|word| word.ends_with(b"mount.exfat-fuse"))
                && words.any(|word| word == place.as_bytes())
        })
        .map(Pid::from_raw)
}

/// A command of ours that runs beside the test; what it says on stderr goes to a file.
struct Beside {
    child: Child,
    stderr: std::path::PathBuf,
}

impl Beside {
    fn start(lab: &Lab, args: &[&str]) -> Beside {
        let stderr = lab.root().join(format!("stderr-{}", args.join("-")));
        let file = fs::File::create(&stderr).expect("a file for stderr");
        let mut words = args.to_vec();
        let mount = text(&lab.mnt);
        words.push(&mount);
        let child = lab
            .command(&words)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file)
            .spawn()
            .expect("start ferryfs");
        Beside { child, stderr }
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.stderr).unwrap_or_default()
    }

    fn runs(&mut self) -> bool {
        self.child.try_wait().expect("wait").is_none()
    }

    #[track_caller]
    fn ends_with(&mut self, code: i32) {
        wait_until("a command to end", BOUND, || !self.runs());
        let status = self.child.wait().expect("wait");
        assert_eq!(status.code(), Some(code), "{}", self.said());
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A lab with a film of 8 MiB that only the drive has.
fn lab_with_a_film(extra: &[&str]) -> Option<Lab> {
    let lab = Lab::mounted(Backend::EXFAT)?;
    Some(lab.with_an_uncached_film(8 << 20, extra))
}

/// Begins a flush and stops the drive while it writes contents. `kept2` is small and of the batch.
fn frozen_in_stage(lab: &Lab, args: &[&str]) -> (Beside, Frozen) {
    write(&lab.m("batch/kept2"), &content(4, 30_000));
    for n in 0..8 {
        write(&lab.m(format!("batch/{n}")), &content(10 + n, 24 << 20));
    }
    let flush = Beside::start(lab, args);
    let staging = lab.d(".ferryfs/staging");
    let staged = || {
        let batches = fs::read_dir(&staging).into_iter().flatten().flatten();
        batches
            .filter_map(|batch| fs::read_dir(batch.path()).ok())
            .any(|slots| slots.count() >= 2)
    };
    wait_until_now("something to be staged", staged);
    (flush, Frozen::freeze(lab))
}

/// The same while it moves files to their places.
fn frozen_in_apply(lab: &Lab, args: &[&str]) -> (Beside, Frozen) {
    for n in 0..3000 {
        write(&lab.m(format!("many/{n:04}")), &content(n, 200));
    }
    let flush = Beside::start(lab, args);
    wait_until_now("the first file to be in its place", || {
        lab.d("many/0000").exists()
    });
    let frozen = Frozen::freeze(lab);
    (flush, frozen)
}

/// As [`wait_until`], but without a pause: what comes next must happen while it is still so.
#[track_caller]
fn wait_until_now(what: &str, mut ready: impl FnMut() -> bool) {
    let end = Instant::now() + BOUND;
    while !ready() {
        assert!(Instant::now() < end, "waited in vain for {what}");
        thread::sleep(Duration::from_micros(200));
    }
}

#[track_caller]
fn wait_stalled(lab: &Lab) {
    wait_until("the stall to show", BOUND, || {
        lab.status()["stalled_since"].is_string()
    });
}

#[track_caller]
fn wait_answering(lab: &Lab) {
    wait_until("the drive to answer", BOUND, || {
        lab.status()["stalled_since"].is_null()
    });
}

/// Everything that the cache can do alone; fails if any of it waits.
#[track_caller]
fn work_from_the_cache(lab: &Lab, name: &str) {
    let begun = Instant::now();
    assert_content(lab.m("shelf/kept"), content(3, 20_000));
    assert_eq!(
        fs::metadata(lab.m("shelf/film")).expect("stat").len(),
        8 << 20
    );
    assert_eq!(fs::read_dir(lab.m("shelf")).expect("list").count(), 2);
    let dir = lab.m(name);
    fs::create_dir(&dir).expect("mkdir");
    let mut file = fs::File::create(dir.join("a")).expect("create");
    file.write_all(&content(7, 300_000)).expect("write");
    file.sync_all().expect("fsync");
    drop(file);
    fs::File::open(&dir)
        .expect("open")
        .sync_all()
        .expect("fsync of a directory");
    fs::rename(dir.join("a"), dir.join("b")).expect("rename");
    fs::write(dir.join("gone"), b"gone").expect("write");
    fs::remove_file(dir.join("gone")).expect("unlink");
    assert_content(dir.join("b"), content(7, 300_000));
    assert!(begun.elapsed() < SOON, "it took {:?}", begun.elapsed());
}

/// Reads of what only the drive has fail in time, and when that is known, at once.
#[track_caller]
fn reads_fail_in_time(lab: &Lab) {
    let read = || {
        let mut film = fs::File::open(lab.m("shelf/film"))?;
        // Where nothing has been read before, so that the kernel has nothing of it.
        film.seek(SeekFrom::Start(4 << 20))?;
        film.read(&mut [0; 100])
    };
    let begun = Instant::now();
    let error = read().expect_err("the drive does not answer");
    assert_eq!(error.raw_os_error(), Some(libc::ETIMEDOUT), "{error}");
    assert!(begun.elapsed() < SOON, "it took {:?}", begun.elapsed());
    wait_stalled(lab);
    // Each for its own two seconds, these would take minutes.
    let begun = Instant::now();
    for _ in 0..100 {
        read().expect_err("the drive does not answer");
    }
    assert!(begun.elapsed() < SOON, "they took {:?}", begun.elapsed());
}

#[test]
fn reads_of_what_is_not_cached_fail_in_time_and_work_again_when_the_drive_answers() {
    let Some(lab) = lab_with_a_film(&["--io-timeout", "2s"]) else {
        return;
    };
    let frozen = Frozen::freeze(&lab);
    reads_fail_in_time(&lab);
    work_from_the_cache(&lab, "meanwhile");
    let begun = Instant::now();
    let said = lab.ferryfs(&["status", &text(&lab.mnt)]).ok().stdout;
    assert!(said.contains("stalled since 2"), "{said}");
    assert!(said.contains("The drive does not answer"), "{said}");
    assert_eq!(lab.status()["backend_state"], "attached");
    assert!(begun.elapsed() < SOON);
    frozen.thaw();
    wait_answering(&lab);
    assert_content(lab.m("shelf/film"), content(1, 8 << 20));
    lab.finish_flushed();
}

#[test]
fn what_is_cached_never_waits_behind_readers_of_what_is_not() {
    // With this long a time, whoever waits for the backend is caught.
    let Some(lab) = lab_with_a_film(&["--io-timeout", "5m"]) else {
        return;
    };
    let (mut flush, frozen) = frozen_in_stage(&lab, &["flush"]);
    let film = fs::File::open(lab.m("shelf/film")).expect("open");
    thread::scope(|scope| {
        // More than there are workers of any kind.
        let readers: Vec<_> = (0..48_u64)
            .map(|n| {
                let film = &film;
                scope.spawn(move || film.read_at(&mut [0; 10], n * 170_000))
            })
            .collect();
        thread::sleep(Duration::from_secs(1));
        work_from_the_cache(&lab, "meanwhile");
        // Of the batch that is under way, so that it must be copied within the SSD first.
        let begun = Instant::now();
        let mut kept = fs::File::options()
            .append(true)
            .open(lab.m("batch/kept2"))
            .expect("open");
        kept.write_all(b"more").expect("append");
        drop(kept);
        assert!(begun.elapsed() < SOON, "it took {:?}", begun.elapsed());
        assert!(flush.runs(), "the flush was over too soon for this test");
        frozen.thaw();
        for reader in readers {
            assert_eq!(reader.join().expect("join").expect("read"), 10);
        }
    });
    drop(film);
    flush.ends_with(exit::DONE);
    assert_content(lab.d("batch/kept2"), content(4, 30_000));
    lab.finish_flushed();
}

#[test]
fn a_flush_that_hangs_while_it_stages_says_so_and_goes_on_by_itself() {
    let Some(lab) = lab_with_a_film(&["--io-timeout", "2s"]) else {
        return;
    };
    let (mut flush, frozen) = frozen_in_stage(&lab, &["flush"]);
    wait_until("the flush to say what it waits for", BOUND, || {
        flush.said().contains("the drive has not answered for")
    });
    let status = lab.status();
    assert!(status["stalled_since"].is_string(), "{status}");
    assert_eq!(status["batch_in_progress"], true, "{status}");
    assert_eq!(status["safe_to_unplug"], false, "{status}");
    // Another one keeps its time.
    let begun = Instant::now();
    lab.ferryfs(&["flush", "--timeout", "1s", &text(&lab.mnt)])
        .code(exit::FAILED);
    assert!(begun.elapsed() < SOON);
    reads_fail_in_time(&lab);
    work_from_the_cache(&lab, "meanwhile");
    assert!(flush.runs(), "{}", flush.said());
    frozen.thaw();
    flush.ends_with(exit::DONE);
    wait_answering(&lab);
    lab.finish_flushed();
}

#[test]
fn the_time_given_to_a_flush_is_kept_also_in_a_call_that_hangs() {
    let Some(lab) = lab_with_a_film(&["--io-timeout", "2s"]) else {
        return;
    };
    let (mut flush, frozen) = frozen_in_stage(&lab, &["flush", "--timeout", "5s"]);
    let begun = Instant::now();
    flush.ends_with(exit::FAILED);
    assert!(begun.elapsed() < SOON);
    assert!(
        flush.said().contains("has not answered for"),
        "{}",
        flush.said()
    );
    frozen.thaw();
    wait_until("the flush to come to its end", BOUND, || {
        lab.status()["batch_in_progress"] == false
    });
    lab.finish_flushed();
}

#[test]
fn a_flush_that_hangs_while_it_moves_names_goes_on_by_itself() {
    let Some(lab) = lab_with_a_film(&["--io-timeout", "2s"]) else {
        return;
    };
    let (mut flush, frozen) = frozen_in_apply(&lab, &["flush"]);
    reads_fail_in_time(&lab);
    work_from_the_cache(&lab, "meanwhile");
    assert!(flush.runs(), "the flush was over too soon for this test");
    frozen.thaw();
    flush.ends_with(exit::DONE);
    wait_answering(&lab);
    assert_content(lab.m("shelf/film"), content(1, 8 << 20));
    lab.finish_flushed();
}

#[test]
fn eject_ends_without_ejecting_and_does_not_eject_later() {
    let Some(lab) = lab_with_a_film(&["--io-timeout", "1s"]) else {
        return;
    };
    let (mut eject, frozen) = frozen_in_stage(&lab, &["eject"]);
    eject.ends_with(exit::NO_BACKEND);
    assert!(
        eject.said().contains("has not answered for"),
        "{}",
        eject.said()
    );
    frozen.thaw();
    wait_until("the flush to come to its end", BOUND, || {
        lab.status()["batch_in_progress"] == false
    });
    assert_eq!(lab.status()["backend_state"], "attached");
    lab.finish_flushed();
}

/// Ends the mount while a flush hangs; then the drive answers, and the next mount finds all.
fn ends_while_a_flush_hangs(
    freeze: fn(&Lab, &[&str]) -> (Beside, Frozen),
    end: impl FnOnce(&mut Lab),
) {
    let Some(mut lab) = lab_with_a_film(&["--io-timeout", "1s"]) else {
        return;
    };
    let (mut flush, frozen) = freeze(&lab, &["flush"]);
    wait_stalled(&lab);
    let pid = lab.pid();
    let begun = Instant::now();
    end(&mut lab);
    wait_until("the mount to go", BOUND, || !lab.is_mounted());
    wait_until("the daemon to end", BOUND, || !runs(pid));
    assert!(begun.elapsed() < BOUND, "it took {:?}", begun.elapsed());
    wait_until("whoever waited for the flush to be told", BOUND, || {
        !flush.runs()
    });
    assert_ne!(flush.child.wait().expect("wait").code(), Some(exit::DONE));
    frozen.thaw();
    // Its last thread comes back from the call only now.
    wait_until("the process to be gone", BOUND, || {
        !Path::new(&format!("/proc/{pid}/task")).exists()
            || fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count) <= 1
    });
    lab.remount();
    assert_content(lab.m("shelf/film"), content(1, 8 << 20));
    lab.finish_flushed();
}

/// Whether a process runs. One whose first thread has ended does not, although another may still
/// hang.
fn runs(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        let state = stat.rsplit(')').next().unwrap_or("").trim_start();
        !state.starts_with('Z') && !state.starts_with('X')
    })
}

fn unmount(lab: &mut Lab) {
    let said = lab
        .ferryfs(&["unmount", &text(&lab.mnt)])
        .code(exit::LEFT_BEHIND)
        .stdout;
    assert!(said.contains("the drive does not answer"), "{said}");
}

#[test]
fn unmount_ends_while_a_flush_hangs_as_it_stages() {
    ends_while_a_flush_hangs(frozen_in_stage, unmount);
}

#[test]
fn unmount_ends_while_a_flush_hangs_as_it_moves_names() {
    ends_while_a_flush_hangs(frozen_in_apply, unmount);
}

#[test]
fn unmount_without_a_flush_ends_at_once_while_one_hangs() {
    ends_while_a_flush_hangs(frozen_in_apply, |lab| {
        lab.ferryfs(&["unmount", "--no-flush", &text(&lab.mnt)])
            .code(exit::DONE);
    });
}

#[test]
fn a_signal_ends_the_daemon_while_a_flush_hangs() {
    ends_while_a_flush_hangs(frozen_in_stage, |lab| {
        kill(Pid::from_raw(lab.pid()), Signal::SIGTERM).expect("signal");
    });
}

#[test]
fn a_second_signal_ends_the_daemon_at_once() {
    // The backend would be waited for much longer than this test does.
    let Some(mut lab) = lab_with_a_film(&["--io-timeout", "5m"]) else {
        return;
    };
    let frozen = Frozen::freeze(&lab);
    write(&lab.m("new"), b"new");
    let pid = lab.pid();
    kill(Pid::from_raw(pid), Signal::SIGTERM).expect("signal");
    wait_until("the flush to begin", BOUND, || {
        lab.status()["batch_in_progress"] == true
    });
    kill(Pid::from_raw(pid), Signal::SIGTERM).expect("signal");
    wait_until("the mount to go", SOON, || !lab.is_mounted());
    wait_until("the daemon to end", SOON, || !runs(pid));
    frozen.thaw();
    wait_until("the process to be gone", BOUND, || {
        fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count) <= 1
    });
    lab.remount();
    assert_content(lab.m("new"), b"new");
    lab.finish_flushed();
}

#[test]
fn a_drive_that_hangs_does_not_keep_a_mount_from_coming_up() {
    let Some(mut lab) = lab_with_a_film(&[]) else {
        return;
    };
    lab.unmount();
    let frozen = Frozen::freeze(&lab);
    let begun = Instant::now();
    let done = lab.try_mount(&["--io-timeout", "1s"]).code(exit::DONE);
    assert!(begun.elapsed() < SOON);
    assert!(done.stdout.contains("does not answer"), "{done:?}");
    lab.adopt();
    assert_eq!(lab.status()["backend_state"], "detached");
    write(&lab.m("shelf/new"), b"new");
    assert!(fs::metadata(lab.m("shelf/film")).is_ok());
    frozen.thaw();
    wait_until("the drive to be taken up", BOUND, || {
        lab.status()["backend_state"] == "attached"
    });
    assert_content(lab.m("shelf/film"), content(1, 8 << 20));
    lab.finish_flushed();
}

#[test]
fn the_close_of_what_was_not_written_does_not_wait_for_a_drive_that_hangs() {
    let Some(lab) = lab_with_a_film(&["--io-timeout", "30s"]) else {
        return;
    };
    let open = || {
        let mut both = fs::File::options();
        both.read(true).write(true).open(lab.m("shelf/film"))
    };
    let written = open().expect("open");
    // Many, as nothing tells from outside when the write has begun to wait.
    let idle: Vec<_> = (0..100).map(|_| open().expect("open")).collect();
    let frozen = Frozen::freeze(&lab);
    // The first write fetches the file.
    let writer = thread::spawn(move || written.write_all_at(b"first", 0));
    for file in idle {
        drop(file);
        assert!(!writer.is_finished(), "a close has waited for the drive");
        thread::sleep(Duration::from_millis(10));
    }
    frozen.thaw();
    writer.join().expect("join").expect("write");
    lab.finish_flushed();
}

/// A mount with something to carry to a drive whose driver has been stopped, and a flush that sits
/// in a call to it.
fn flush_in_a_call(lab: &Lab) -> (Frozen, Beside) {
    write(&lab.m("new"), &content(5, 1 << 20));
    let frozen = Frozen::freeze(lab);
    let flush = Beside::start(lab, &["flush"]);
    wait_until("the flush to be under way", SOON, || {
        lab.status()["batch_in_progress"] == true
    });
    (frozen, flush)
}

fn interrupt(command: &Beside) {
    let pid = Pid::from_raw(command.child.id() as i32);
    kill(pid, Signal::SIGINT).expect("Ctrl-C");
}

#[test]
fn ctrl_c_cancels_a_flush_and_nothing_of_it_is_carried() {
    let Some(lab) = lab_with_a_film(&[]) else {
        return;
    };
    let (frozen, mut flush) = flush_in_a_call(&lab);
    interrupt(&flush);
    flush.ends_with(exit::CANCELLED);
    let said = flush.said();
    assert!(said.contains("ferryfs: cancelling"), "{said}");
    assert!(
        said.contains("the flush was cancelled; nothing was changed"),
        "{said}"
    );
    frozen.thaw();
    wait_until("the flush to give up", SOON, || {
        lab.status()["batch_in_progress"] == false
    });
    assert!(!lab.d("new").exists(), "it was cancelled");
    assert_eq!(lab.status()["last_error"], serde_json::Value::Null);
    lab.flush();
    assert_content(lab.d("new"), content(5, 1 << 20));
    lab.finish();
}

#[test]
fn ctrl_c_leaves_the_drive_attached_and_the_mount_mounted() {
    let Some(lab) = lab_with_a_film(&[]) else {
        return;
    };
    write(&lab.m("new"), b"new");
    for (command, said) in [("eject", "not ejected"), ("unmount", "not unmounted")] {
        let frozen = Frozen::freeze(&lab);
        let mut beside = Beside::start(&lab, &[command]);
        wait_until("the flush to be under way", SOON, || {
            lab.status()["batch_in_progress"] == true
        });
        interrupt(&beside);
        beside.ends_with(exit::CANCELLED);
        assert!(beside.said().contains(said), "{}", beside.said());
        frozen.thaw();
        wait_until("the flush to give up", SOON, || {
            lab.status()["batch_in_progress"] == false
        });
        assert!(lab.is_mounted());
        assert_eq!(lab.status()["backend_state"], "attached", "{command}");
    }
    lab.flush();
    lab.finish();
}

#[test]
fn ctrl_c_after_the_commit_says_that_the_batch_is_finished_in_the_background() {
    let Some(lab) = lab_with_a_film(&[]) else {
        return;
    };
    for n in 0..500 {
        write(&lab.m(format!("new/{n}")), &content(n, 2000));
    }
    let mut flush = Beside::start(&lab, &["flush"]);
    let is_committed =
        || fs::read_dir(lab.d(".ferryfs/batches")).is_ok_and(|mut b| b.next().is_some());
    while !is_committed() {
        assert!(flush.runs(), "the flush was over before it was seen");
        thread::sleep(Duration::from_millis(2));
    }
    let frozen = Frozen::freeze(&lab);
    interrupt(&flush);
    flush.ends_with(exit::CANCELLED);
    let said = flush.said();
    assert!(
        said.contains("the batch is committed already, and is finished in the background"),
        "{said}"
    );
    assert!(said.contains("ferryfs status"), "{said}");
    frozen.thaw();
    wait_until("the batch to be finished", BOUND, || {
        lab.status()["safe_to_unplug"] == true
    });
    assert_eq!(fs::read_dir(lab.d("new")).expect("list").count(), 500);
    lab.finish();
}

#[test]
fn a_command_that_is_killed_cancels_nothing() {
    let Some(lab) = lab_with_a_film(&[]) else {
        return;
    };
    let (frozen, mut flush) = flush_in_a_call(&lab);
    flush.child.kill().expect("kill");
    flush.child.wait().expect("wait");
    frozen.thaw();
    wait_until("the flush to be done", SOON, || lab.d("new").exists());
    lab.flush();
    lab.finish();
}

#[test]
fn a_flush_beside_an_unmount_without_one_is_told_how_it_ended() {
    let Some(mut lab) = lab_with_a_film(&[]) else {
        return;
    };
    let (frozen, mut flush) = flush_in_a_call(&lab);
    lab.unmount_with(&["--no-flush"]);
    flush.ends_with(exit::FAILED);
    let said = flush.said();
    assert!(
        said.contains("the mount was ended before the flush was done"),
        "{said}"
    );
    assert!(said.contains("changed files and names wait"), "{said}");
    assert!(said.contains("is flushed after the next mount"), "{said}");
    frozen.thaw();
    lab.remount();
    lab.flush();
    assert_content(lab.d("new"), content(5, 1 << 20));
    lab.finish();
}
