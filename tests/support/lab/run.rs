//! Running commands with a deadline, and knowing whether a process is there.
//!
//! Output goes to files, never to pipes: a background process that keeps a pipe open must not hang
//! a test.

use std::fs;
use std::io::{Read, Seek};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// A command that has ended.
#[derive(Debug)]
pub struct Done {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
    what: String,
}

impl Done {
    /// It ended with this code.
    #[track_caller]
    pub fn code(self, code: i32) -> Done {
        assert_eq!(
            self.code, code,
            "exit code of {}\nstdout: {}\nstderr: {}",
            self.what, self.stdout, self.stderr
        );
        self
    }

    /// It ended well.
    #[track_caller]
    pub fn ok(self) -> Done {
        self.code(0)
    }

    /// It failed with `code`, in one clear line and one hint, and the line has `word` in it.
    #[track_caller]
    pub fn refuses(self, code: i32, word: &str) -> Done {
        let done = self.code(code);
        let lines: Vec<&str> = done.stderr.lines().collect();
        let clear = lines.len() == 2
            && lines[0].starts_with("ferryfs: ")
            && lines[1].trim_start().starts_with("hint: ");
        assert!(
            clear,
            "{} should say one line `ferryfs: ...` and one `hint: ...`, said:\n{}",
            done.what, done.stderr
        );
        assert!(
            lines[0].to_lowercase().contains(&word.to_lowercase()),
            "{:?} does not name {word:?}",
            lines[0]
        );
        done
    }

    /// Its output as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|e| panic!("{} did not print JSON ({e}): {}", self.what, self.stdout))
    }
}

/// Runs `command` to its end, for at most three minutes.
#[track_caller]
pub fn run(command: &mut Command) -> Done {
    run_for(command, Duration::from_secs(180))
}

/// Runs `command` to its end; one that takes longer than `limit` is killed, and the test fails.
#[track_caller]
pub fn run_for(command: &mut Command, limit: Duration) -> Done {
    let what = format!("{command:?}");
    let mut out = tempfile::tempfile().expect("a file for stdout");
    let mut err = tempfile::tempfile().expect("a file for stderr");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(out.try_clone().expect("dup"))
        .stderr(err.try_clone().expect("dup"))
        .spawn()
        .unwrap_or_else(|e| panic!("cannot start {what}: {e}"));
    let deadline = Instant::now() + limit;
    let status = loop {
        if let Some(status) = child.try_wait().expect("wait") {
            break status;
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            let _ = child.wait();
            panic!(
                "{what} did not end within {limit:?}\nstderr: {}",
                read_all(&mut err)
            );
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    Done {
        code: status.code().unwrap_or(-1),
        stdout: read_all(&mut out),
        stderr: read_all(&mut err),
        what,
    }
}

fn read_all(file: &mut fs::File) -> String {
    let mut bytes = Vec::new();
    file.rewind().expect("rewind");
    file.read_to_end(&mut bytes).expect("read output");
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Runs a shell script in `dir`; it must end well.
#[track_caller]
pub fn sh(dir: &Path, script: &str) -> Done {
    run_for(
        Command::new("bash")
            .args(["-euo", "pipefail", "-c", script])
            .current_dir(dir),
        Duration::from_secs(300),
    )
    .ok()
}

/// Returns the beginning of a script for a mount namespace without propagation: lets go of the
/// mounts of other labs, which it would otherwise keep alive.
pub fn only_mounts_of(root: &Path) -> String {
    format!(
        "for place in $(cut -d' ' -f2 /proc/self/mounts); do case $place in \
         '{root}' | '{root}'/*) ;; */ferryfs-lab.*) umount -l \"$place\" || : ;; esac; done\n",
        root = root.display()
    )
}

/// Runs a Python script with `args`; it must end well.
#[track_caller]
pub fn python(script: &str, args: &[&Path]) -> Done {
    run(Command::new("python3").arg("-c").arg(script).args(args)).ok()
}

/// Waits until `ready`, and fails naming `what` if that takes longer than `limit`.
#[track_caller]
pub fn wait_until(what: &str, limit: Duration, mut ready: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !ready() {
        assert!(Instant::now() < deadline, "waited {limit:?} for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Whether the shell finds `tool`; system directories are looked at even where PATH leaves them
/// out.
pub fn has(tool: &str) -> bool {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':')
        .chain(["/usr/sbin", "/sbin"])
        .any(|dir| Path::new(dir).join(tool).is_file())
}

/// Whether a process runs. A zombie does not: it only waits for a parent that may never look. A
/// process whose first thread has ended does, as long as another one has not: that one may still
/// have files open.
pub fn alive(pid: i32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return false;
    };
    // proc_pid_stat(5): the name is in parentheses, the state follows, and 17 fields later the
    // number of threads.
    let after_name = stat.rsplit(')').next().unwrap_or("");
    let mut fields = after_name.split_whitespace();
    let state = fields.next();
    let threads = fields.nth(16).and_then(|number| number.parse::<u32>().ok());
    state != Some("Z") || threads.is_some_and(|number| number > 1)
}

/// Kills a process and waits until it is gone.
pub fn kill9(pid: i32) {
    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    let deadline = Instant::now() + Duration::from_secs(10);
    while alive(pid) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Processes of `binary` that have `root` on their command line: a lab's own, and nobody else's.
pub fn processes_of(binary: &Path, root: &Path) -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let root = root.to_str().expect("lab paths are UTF-8");
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| {
            let cmdline = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let exe = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
            String::from_utf8_lossy(&cmdline).contains(root)
                && exe.file_name() == binary.file_name()
        })
        .collect()
}
