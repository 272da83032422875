//! The daemon is killed in the middle of things. Whatever a close or a rename had acknowledged is there after the
//! next mount, the next flush carries it, and the drive is never left with a torn file.

#[path = "support/lab/mod.rs"]
mod lab;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lab::{Drive, Lab, Tree, content, exit, text, write};

on_both_drives!(
    kill_while_writing_keeps_everything_acknowledged,
    kill_while_flushing_keeps_everything_acknowledged,
    kill_while_flushing_and_writing_keeps_everything_acknowledged,
    recover_without_the_cache_gives_one_cut_or_the_other,
    dead_mount_point_is_cleared_by_the_next_mount,
);

const ROUNDS: usize = 5;

/// Random moments that can be had again: `FERRYFS_TEST_SEED` repeats a run.
struct Moments(u64);

impl Moments {
    fn new() -> Moments {
        let seed = std::env::var("FERRYFS_TEST_SEED")
            .ok()
            .and_then(|s| s.parse().ok())
            .unwrap_or_else(|| {
                let now = SystemTime::now()
                    .duration_since(UNIX_EPOCH)
                    .expect("a clock after 1970");
                u64::from(now.subsec_nanos()) | 1
            });
        eprintln!("FERRYFS_TEST_SEED={seed}");
        Moments(seed)
    }

    /// A pause of up to `most` milliseconds, short ones as likely as long ones.
    fn pause(&mut self, most: u64) {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        let pause = Duration::from_millis(self.0 % most);
        eprintln!("kill after {pause:?}");
        std::thread::sleep(pause);
    }
}

/// Writes files for ever, in the ways that scripts do. Before each step it logs what it is about to do, after it that
/// it was acknowledged; the log lies outside the mount. It ends quietly when the mount dies under it.
const WRITER: &str = r#"
import os, random, sys
root, log, seed = sys.argv[1], os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT | os.O_APPEND), int(sys.argv[3])
random.seed(seed)
version = seed * 1000000
def body(name, version):
    return (f'{name}:{version};' * (1 + version * 37 % 4000)).encode()
def say(*words):
    os.write(log, (' '.join(map(str, words)) + '\n').encode())
def put(path, data):
    with open(path, 'wb', buffering=0) as f:
        view = memoryview(data)
        while view:
            view = view[f.write(view):]
names = [f'd{n % 4}/f{n}' for n in range(40)]
try:
    for d in range(4):
        os.makedirs(f'{root}/d{d}', exist_ok=True)
    while True:
        version += 1
        name, how = random.choice(names), random.random()
        path = f'{root}/{name}'
        if how < 0.15:
            if not os.path.exists(path):
                continue
            say('begin', 'remove', name, version)
            os.unlink(path)
        elif how < 0.6:
            say('begin', 'replace', name, version)
            put(path + '.new', body(name, version))
            os.rename(path + '.new', path)
        else:
            say('begin', 'rewrite', name, version)
            put(path, body(name, version))
        say('done')
except OSError as e:
    say('ended', e.errno)
"#;

fn body(name: &str, version: u64) -> Vec<u8> {
    format!("{name}:{version};")
        .repeat(1 + (version * 37 % 4000) as usize)
        .into_bytes()
}

/// What a writer's log says must be there.
struct Expected {
    /// The acknowledged version of each file that exists.
    files: BTreeMap<String, u64>,
    /// The step that was under way: how, which file, which version.
    pending: Option<(String, String, u64)>,
    /// How many steps were acknowledged.
    acknowledged: usize,
}

fn expected(log: &Path) -> Expected {
    let mut all = Expected {
        files: BTreeMap::new(),
        pending: None,
        acknowledged: 0,
    };
    for line in fs::read_to_string(log).unwrap_or_default().lines() {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["begin", how, name, version] => {
                // A begin after a begin is a new writer's first step: what the old one had under way is settled by now.
                all.pending = Some((how.into(), name.into(), version.parse().expect("version")));
            }
            ["done"] => {
                let (how, name, version) = all.pending.take().expect("a step was begun");
                all.acknowledged += 1;
                if how == "remove" {
                    all.files.remove(&name);
                } else {
                    all.files.insert(name, version);
                }
            }
            _ => {}
        }
    }
    all
}

impl Expected {
    /// Checks the mount, and settles the pending step the way it turned out.
    fn check(&mut self, lab: &Lab, log: &Path) {
        let pending = self.pending.take();
        if let Some((how, name, version)) = &pending {
            self.settle(lab, log, how, name, *version);
        }
        for (name, version) in &self.files {
            let bytes =
                fs::read(lab.m(name)).unwrap_or_else(|e| panic!("{name} was acknowledged: {e}"));
            assert!(
                bytes == body(name, *version),
                "{name} is not version {version}, which was acknowledged"
            );
        }
        for entry in Tree::read(&lab.mnt)
            .plain()
            .0
            .keys()
            .filter(|path| path.contains('/'))
        {
            let known = self.files.contains_key(entry) || entry.ends_with(".new");
            let pending = pending.as_ref().is_some_and(|(_, name, _)| name == entry);
            assert!(
                known || pending,
                "{entry} was removed, and that was acknowledged"
            );
        }
    }

    /// A step that was not acknowledged may have happened or not; only a rewrite in place may be half done.
    fn settle(&mut self, lab: &Lab, log: &Path, how: &str, name: &str, version: u64) {
        let old = self.files.get(name).copied();
        let now = fs::read(lab.m(name)).ok();
        let is_new = if how == "remove" {
            now.is_none()
        } else {
            now == Some(body(name, version))
        };
        let is_old = now == old.map(|old| body(name, old));
        assert!(
            how == "rewrite" || is_new || is_old,
            "{how} of {name} is neither done nor undone"
        );
        // Whatever it is, it is removed, and that is logged, so that the next round starts from what is known.
        if now.is_some() {
            fs::remove_file(lab.m(name)).expect("unlink");
        }
        self.files.remove(name);
        let line = format!("begin remove {name} 0\ndone\n");
        let mut all = fs::read_to_string(log).expect("read the log");
        all.push_str(&line);
        fs::write(log, all).expect("write the log");
    }
}

/// A writer that is ended with the test, whatever happens.
struct Writer(Child);

impl Writer {
    fn start(lab: &Lab, log: &Path, seed: usize) -> Writer {
        let child = Command::new("python3")
            .args(["-c", WRITER])
            .arg(&lab.mnt)
            .arg(log)
            .arg(seed.to_string())
            .stdin(Stdio::null())
            .spawn()
            .expect("start the writer");
        Writer(child)
    }

    /// Waits until it ends by itself, as it does when the mount dies.
    fn ended(mut self) {
        lab::wait_until(
            "the writer to notice that the mount died",
            Duration::from_secs(20),
            || self.0.try_wait().expect("wait").is_some(),
        );
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn log_path(lab: &Lab) -> PathBuf {
    lab.root().join("acknowledged.log")
}

fn wait_for_steps(log: &Path, more_than: usize) {
    lab::wait_until("the writer to get going", Duration::from_secs(30), || {
        expected(log).acknowledged > more_than
    });
}

fn flush_and_compare(lab: Lab) {
    lab.flush();
    lab.assert_drive_is_mount();
    lab.finish();
}

fn kill_while_writing_keeps_everything_acknowledged(mut lab: Lab) {
    let mut moments = Moments::new();
    let log = log_path(&lab);
    for round in 1..=ROUNDS {
        let before = expected(&log).acknowledged;
        let writer = Writer::start(&lab, &log, round);
        wait_for_steps(&log, before + 3);
        moments.pause(400);
        lab.kill9();
        writer.ended();
        lab.remount();
        expected(&log).check(&lab, &log);
    }
    flush_and_compare(lab);
}

/// A flush in a process of its own, so that the daemon can be killed under it.
fn start_flush(lab: &Lab) -> Child {
    lab.command(&["flush", &text(&lab.mnt)])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("start the flush")
}

/// The flush must end soon after its daemon did; whether it had been done before that is told by its code.
fn flush_ended(mut flush: Child) {
    let mut code = None;
    lab::wait_until(
        "the flush to notice that the daemon died",
        Duration::from_secs(20),
        || {
            code = flush.try_wait().expect("wait");
            code.is_some()
        },
    );
    let code = code.and_then(|status| status.code());
    assert!(
        matches!(code, Some(exit::DONE | exit::FAILED | exit::LEFT_BEHIND)),
        "flush ended with {code:?}"
    );
}

fn kill_while_flushing_keeps_everything_acknowledged(mut lab: Lab) {
    let mut moments = Moments::new();
    for round in 0..ROUNDS as u64 {
        for file in 0..60 {
            write(
                &lab.m(format!("d{}/{file}", file % 5)),
                &content(round * 1000 + file, 30_000),
            );
        }
        fs::rename(lab.m("d0"), lab.m(format!("moved{round}"))).expect("rename");
        let tree = Tree::read(&lab.mnt);
        let flush = start_flush(&lab);
        moments.pause(250);
        lab.kill9();
        flush_ended(flush);
        lab.remount();
        tree.assert_same(&Tree::read(&lab.mnt), "the mount before", "the mount after");
    }
    flush_and_compare(lab);
}

fn kill_while_flushing_and_writing_keeps_everything_acknowledged(mut lab: Lab) {
    let mut moments = Moments::new();
    let log = log_path(&lab);
    for round in 1..=ROUNDS {
        let before = expected(&log).acknowledged;
        let writer = Writer::start(&lab, &log, 100 + round);
        wait_for_steps(&log, before + 10);
        let flush = start_flush(&lab);
        moments.pause(250);
        lab.kill9();
        writer.ended();
        flush_ended(flush);
        assert_no_torn_file(&lab.drive);
        lab.remount();
        expected(&log).check(&lab, &log);
    }
    flush_and_compare(lab);
}

/// Every file of the writer that is on the drive is one whole version.
fn assert_no_torn_file(drive: &Drive) {
    for path in Tree::read(drive.path())
        .without(".ferryfs")
        .plain()
        .0
        .keys()
    {
        let full = drive.path().join(path);
        if full.is_dir() {
            continue;
        }
        let bytes = fs::read(&full).expect("read");
        let head: String = bytes
            .iter()
            .take_while(|b| **b != b';')
            .map(|b| *b as char)
            .collect();
        let (name, version) = head
            .rsplit_once(':')
            .unwrap_or_else(|| panic!("{path} is torn: starts {head:?}"));
        let whole = body(name, version.parse().expect("version"));
        assert!(
            bytes == whole,
            "{path} is torn: {} of {} bytes of {head}",
            bytes.len(),
            whole.len()
        );
    }
}

fn recover_without_the_cache_gives_one_cut_or_the_other(mut lab: Lab) {
    let mut moments = Moments::new();
    for file in 0..50 {
        write(
            &lab.m(format!("d{}/{file}", file % 5)),
            &content(file, 20_000),
        );
    }
    lab.flush();
    for round in 1..=ROUNDS as u64 {
        let before = Tree::read(lab.drive.path()).without(".ferryfs");
        for file in 0..50 {
            write(
                &lab.m(format!("d{}/{file}", (file + round) % 5)),
                &content(round * 1000 + file, 25_000),
            );
        }
        let _ = fs::remove_dir_all(lab.m(format!("d{}", round % 5)));
        let cut = Tree::read(&lab.mnt).plain();
        let flush = start_flush(&lab);
        moments.pause(250);
        lab.kill9();
        flush_ended(flush);
        // The mount point is dead and the cache is out of reach, as on another machine.
        lab.ferryfs(&["recover", &text(lab.drive.path())]).ok();
        let after = Tree::read(lab.drive.path()).without(".ferryfs");
        if after != before {
            cut.assert_same(&after, "the cut", "the recovered drive");
        }
        // Twice is once.
        lab.ferryfs(&["recover", &text(lab.drive.path())]).ok();
        after.assert_same(
            &Tree::read(lab.drive.path()).without(".ferryfs"),
            "recovered once",
            "recovered twice",
        );
        lab.remount();
        cut.assert_same(
            &Tree::read(&lab.mnt).plain(),
            "the mount before",
            "the mount after",
        );
        lab.flush();
    }
    flush_and_compare(lab);
}

fn dead_mount_point_is_cleared_by_the_next_mount(mut lab: Lab) {
    write(&lab.m("kept"), b"kept");
    lab.kill9();
    let error = fs::read_dir(&lab.mnt)
        .map(|_| ())
        .expect_err("nobody answers");
    assert_eq!(error.raw_os_error(), Some(libc::ENOTCONN), "{error}");
    let done = lab.ferryfs(&["status", &text(&lab.mnt)]).code(exit::FAILED);
    assert!(
        done.stderr.contains("ferryfs mount"),
        "says what to do: {}",
        done.stderr
    );
    lab.remount();
    assert_eq!(fs::read(lab.m("kept")).expect("read"), b"kept");
    lab.finish();
}
