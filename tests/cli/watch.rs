//! `ferryfs status --watch`: on a terminal, on one that changes its size, and without one.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::pty::{Winsize, openpty};
use nix::sys::signal::{SigHandler, Signal, kill, signal};
use nix::unistd::Pid;

use crate::lab::{Backend, Lab, content, text, wait_until, write};

const SOON: Duration = Duration::from_secs(20);

/// Sees to it that programs started from here on take a Ctrl-C: a gate that runs in the background
/// of a shell has inherited that it is ignored.
fn take_interrupts() {
    // SAFETY: the default action is no handler of ours.
    unsafe { signal(Signal::SIGINT, SigHandler::SigDfl) }.expect("reset SIGINT");
}

fn interrupt(child: &mut Child) -> i32 {
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).expect("send SIGINT");
    let mut code = None;
    wait_until("the watcher to end", SOON, || {
        code = child.try_wait().expect("wait");
        code.is_some()
    });
    code.and_then(|status| status.code())
        .expect("it ends by itself")
}

#[test]
fn without_a_terminal_each_change_is_one_line_and_ctrl_c_ends_it_well() {
    take_interrupts();
    let Some(mut lab) = Lab::mounted(Backend::Ext4Dir) else {
        return;
    };
    let (plain, json) = (lab.root().join("plain"), lab.root().join("json"));
    let watch = |output: &std::path::Path, args: &[&str]| {
        let mut all = vec!["status", "--watch"];
        let mnt = text(&lab.mnt);
        all.extend(args);
        all.push(&mnt);
        let mut command = lab.command(&all);
        command.stdout(File::create(output).expect("make a file"));
        command.spawn().expect("start")
    };
    let mut one = watch(&plain, &[]);
    let mut two = watch(&json, &["--json"]);
    let has = |words: &str| {
        fs::read_to_string(&plain)
            .unwrap_or_default()
            .contains(words)
    };
    wait_until("the first line", SOON, || {
        has("safe to unplug now; waiting: nothing")
    });
    write(&lab.m("one"), &content(1, 5_000));
    wait_until("the change", SOON, || has("not safe yet: "));
    lab.flush();
    wait_until("the flush", SOON, || has("; batch 1"));
    let exits = |path: &std::path::Path| {
        let text = fs::read_to_string(path).unwrap_or_default();
        let mut lines = text.lines().map(|line| {
            serde_json::from_str::<serde_json::Value>(line).map(|line| line["last_batch"].clone())
        });
        lines.any(|line| line.is_ok_and(|batch| batch["number"] == 1))
    };
    wait_until("the flush in JSON", SOON, || exits(&json));
    assert_eq!(interrupt(&mut one), 0);
    assert_eq!(interrupt(&mut two), 0);
    let said = fs::read_to_string(&plain).expect("read");
    assert!(!said.contains('\x1b'), "{said:?}");
    assert!(said.starts_with("safe to unplug now"), "{said}");
    let lines: Vec<&str> = said.lines().collect();
    assert!(lines.windows(2).all(|two| two[0] != two[1]), "{said}");

    let mut last = watch(&plain, &[]);
    wait_until("the line", SOON, || has("; batch 1"));
    lab.unmount();
    wait_until("the end of the mount", SOON, || has("the mount has ended"));
    assert!(last.wait().expect("wait").success());
    lab.finish();
}

/// A program on a terminal, and what it has written there.
struct Terminal {
    child: Child,
    master: OwnedFd,
    output: Arc<Mutex<Vec<u8>>>,
}

impl Terminal {
    fn start(mut command: Command, columns: u16, rows: u16) -> Terminal {
        take_interrupts();
        let size = winsize(columns, rows);
        let pty = openpty(Some(&size), None).expect("a terminal");
        let of_slave = || Stdio::from(pty.slave.as_fd().try_clone_to_owned().expect("clone"));
        command
            .stdin(of_slave())
            .stdout(of_slave())
            .stderr(of_slave());
        let child = command.spawn().expect("start");
        let output = Arc::new(Mutex::new(Vec::new()));
        let mut reader = File::from(pty.master.try_clone().expect("clone"));
        let heard = output.clone();
        // Ends when the last copy of the other side is closed.
        std::thread::spawn(move || {
            let mut some = [0; 4096];
            while let Ok(got) = reader.read(&mut some) {
                if got == 0 {
                    break;
                }
                heard.lock().expect("lock").extend_from_slice(&some[..got]);
            }
        });
        Terminal {
            child,
            master: pty.master,
            output,
        }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.output.lock().expect("lock")).into_owned()
    }

    fn clear(&self) {
        self.output.lock().expect("lock").clear();
    }

    fn resize(&self, columns: u16, rows: u16) {
        let size = winsize(columns, rows);
        // SAFETY: the call reads a winsize, which outlives it.
        let done = unsafe { libc::ioctl(self.master.as_raw_fd(), libc::TIOCSWINSZ, &size) };
        assert_eq!(done, 0);
    }

    /// The lines without what moves the cursor or sets colors.
    fn lines(&self) -> Vec<String> {
        let text = self.text();
        let mut parts = text.split("\x1b[");
        let mut plain = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let end = part
                .find(|c: char| c.is_ascii_alphabetic())
                .expect("an end");
            plain.push_str(&part[end + 1..]);
        }
        plain.replace('\r', "").lines().map(str::to_owned).collect()
    }
}

fn winsize(columns: u16, rows: u16) -> Winsize {
    Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

#[test]
fn on_a_terminal_the_view_stays_in_its_place_and_fits_into_any_width() {
    let Some(lab) = Lab::mounted(Backend::Ext4Dir) else {
        return;
    };
    let mut command = lab.command(&["status", "--watch", &text(&lab.mnt)]);
    command.env("TERM", "xterm").env_remove("NO_COLOR");
    let mut terminal = Terminal::start(command, 60, 20);
    wait_until("the view", SOON, || terminal.text().contains("SSD"));
    let first = terminal.text();
    assert!(
        first.starts_with("\x1b[1;32msafe to unplug now\x1b[0m"),
        "{first:?}"
    );
    assert!(
        terminal
            .lines()
            .iter()
            .all(|line| line.chars().count() <= 60),
        "{first}"
    );
    write(&lab.m("one"), &content(1, 5_000));
    wait_until("the change", SOON, || {
        terminal.text().contains("not safe yet")
    });
    let second = terminal.text()[first.len()..].to_owned();
    assert!(
        second.starts_with("\x1b[") && second.contains("A\r\x1b[J"),
        "{second:?}"
    );
    terminal.resize(24, 5);
    terminal.clear();
    wait_until("the smaller view", SOON, || {
        terminal.text().contains("\x1b[2J\x1b[H")
    });
    wait_until("all of it", SOON, || terminal.text().contains("drive"));
    let lines = terminal.lines();
    assert!(
        lines.iter().all(|line| line.chars().count() <= 24),
        "{lines:?}"
    );
    assert_eq!(interrupt(&mut terminal.child), 0);
    lab.finish_flushed();
}

#[test]
fn no_color_is_kept_to() {
    let Some(lab) = Lab::mounted(Backend::Ext4Dir) else {
        return;
    };
    write(&lab.m("one"), &content(1, 5_000));
    lab.flush();
    let mut command = lab.command(&["status", "--watch", &text(&lab.mnt)]);
    command.env("TERM", "xterm").env("NO_COLOR", "1");
    let mut terminal = Terminal::start(command, 80, 24);
    wait_until("the view", SOON, || terminal.text().contains("batch 1"));
    assert!(
        terminal.text().starts_with("safe to unplug now\r\n"),
        "{:?}",
        terminal.text()
    );
    // Free space may have changed meanwhile, and is drawn again; colors end with an `m`.
    let text = terminal.text();
    let mut moves = text.split("\x1b[").skip(1);
    assert!(
        moves.all(|it| it
            .find(['m', 'A', 'J'])
            .is_some_and(|at| &it[at..=at] != "m")),
        "{text:?}"
    );
    assert_eq!(interrupt(&mut terminal.child), 0);
    lab.finish();
}
