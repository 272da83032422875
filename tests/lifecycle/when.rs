//! When flushes begin by themselves: pauses, schedules, and commands that run after them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use crate::lab::{Backend, Lab, assert_content, exit, text, wait_until, write};

/// Longer than any of these waits takes on a loaded machine.
const LONG: Duration = Duration::from_secs(30);

fn plain() -> Option<Lab> {
    Lab::new(Backend::Ext4Dir)
}

/// What a command has written, once it is whole JSON.
fn report(path: &Path) -> Value {
    let parsed = || serde_json::from_slice(&fs::read(path).ok()?).ok();
    wait_until("the command to have run", LONG, || parsed().is_some());
    parsed().expect("JSON")
}

#[test]
fn a_pause_holds_automatic_flushes_also_after_a_new_mount() {
    let Some(mut lab) = plain() else { return };
    let quick = ["--flush-after", "100ms"];
    lab.mount(&quick);
    let mnt = text(&lab.mnt);
    let said = lab.ferryfs(&["pause", "1h", &mnt]).code(exit::DONE).stdout;
    assert!(said.contains("paused until"), "{said}");
    lab.ferryfs(&["pause", &mnt]).code(exit::DONE);
    write(&lab.m("waits"), b"waits");
    lab.unmount_with(&["--no-flush"]);
    lab.remount();
    let status = lab.status();
    assert_eq!(status["automatic"]["paused"], true);
    assert_eq!(status["automatic"]["paused_until"], Value::Null);
    // The daemon has considered a flush several times meanwhile.
    std::thread::sleep(Duration::from_secs(2));
    assert!(!lab.d("waits").exists());
    write(&lab.m("asked for"), b"asked for");
    lab.flush();
    assert_content(lab.d("asked for"), b"asked for");
    write(&lab.m("later"), b"later");
    lab.ferryfs(&["resume", &mnt]).code(exit::DONE);
    wait_until("the file to be flushed", LONG, || lab.d("later").exists());
    lab.finish();
}

#[test]
fn quiet_hours_hold_automatic_flushes_until_they_are_over() {
    let Some(mut lab) = plain() else { return };
    lab.mount(&[
        "--flush-after",
        "100ms",
        "--quiet-hours",
        "00:00-12:00,12:00-00:00",
    ]);
    write(&lab.m("a"), b"a");
    let held = lab.status()["automatic"]["held"].to_string();
    assert!(held.contains("quiet hours until"), "{held}");
    std::thread::sleep(Duration::from_secs(2));
    assert!(!lab.d("a").exists());
    lab.flush();
    assert_content(lab.d("a"), b"a");
    lab.finish();
}

#[test]
fn a_run_of_the_schedule_that_was_missed_is_made_up_once() {
    let Some(mut lab) = plain() else { return };
    let out = lab.root().join("ran");
    let note = format!("cat > {}; mv {0} {0}.whole", text(&out));
    let schedule = ["--schedule", "0 2 * * *", "--on-success", &note];
    lab.mount(&schedule);
    let next = lab.status()["automatic"]["next_run"].clone();
    assert!(next.is_string(), "{next}");
    write(&lab.m("a"), b"a");
    lab.unmount_with(&["--no-flush"]);
    // As after two days without a mount.
    let memory = lab.cache.join("when.json");
    let mut state: Value = serde_json::from_slice(&fs::read(&memory).expect("read")).expect("JSON");
    let done = state["done_until"].as_i64().expect("a time");
    state["done_until"] = (done - 2 * 86_400_000_000_000).into();
    fs::write(&memory, state.to_string()).expect("write");
    lab.remount();
    wait_until("the missed flush", LONG, || lab.d("a").exists());
    let report = report(&out.with_extension("whole"));
    assert_eq!(report["event"], "success");
    assert_eq!(report["flush"]["files"], 1);
    wait_until("the run to be noted", LONG, || {
        lab.status()["automatic"]["next_run"] == next
    });
    write(&lab.m("b"), b"b");
    std::thread::sleep(Duration::from_secs(2));
    assert!(!lab.d("b").exists(), "it is not due again");
    lab.finish();
}

#[test]
fn a_command_that_hangs_or_fails_delays_no_flush_and_is_seen_in_the_status() {
    let Some(mut lab) = plain() else { return };
    lab.mount(&["--on-success", "sleep 600", "--hook-timeout", "500ms"]);
    write(&lab.m("a"), b"a");
    lab.flush();
    write(&lab.m("b"), b"b");
    lab.flush();
    assert_content(lab.d("b"), b"b");
    let problems = || lab.status()["automatic"]["hook_problems"].to_string();
    wait_until("the command to be killed", LONG, || {
        problems().contains("was killed")
    });
    let said = lab
        .ferryfs(&["status", &text(&lab.mnt)])
        .code(exit::DONE)
        .stdout;
    assert!(
        said.contains("the command of on_success was killed"),
        "{said}"
    );
    lab.unmount();
    lab.mount(&["--on-success", "echo no network >&2; exit 3"]);
    write(&lab.m("c"), b"c");
    lab.flush();
    let problems = || lab.status()["automatic"]["hook_problems"].to_string();
    wait_until("the failure to be seen", LONG, || {
        problems().contains("failed with exit code 3: no network")
    });
    lab.finish();
}

#[test]
fn the_command_for_attention_names_what_is_new() {
    let Some(mut lab) = plain() else { return };
    let out = lab.root().join("told");
    lab.mount(&[
        "--wait-closed",
        "--on-attention",
        &format!("cat > {}", text(&out)),
    ]);
    let mut open = fs::File::create(lab.m("open")).expect("create");
    std::io::Write::write_all(&mut open, b"begun").expect("write");
    lab.flush_code(exit::LEFT_BEHIND);
    let report = report(&out);
    let lines = report["attention"].to_string();
    assert!(lines.contains("open was left behind"), "{lines}");
    assert_eq!(report["mountpoint"], text(&lab.mnt));
    drop(open);
    lab.finish();
}

/// A directory with a program that writes its arguments and its input to `out`.
fn fake(lab: &Lab, program: &str, out: &Path) -> PathBuf {
    let bin = lab.root().join("bin");
    fs::create_dir_all(&bin).expect("mkdir");
    let script = format!(
        "#!/bin/sh\n{{ printf '%s\\n' \"$@\"; cat; }} > {0}.part; mv {0}.part {0}\n",
        text(out)
    );
    fs::write(bin.join(program), script).expect("write");
    fs::set_permissions(bin.join(program), fs::Permissions::from_mode(0o755)).expect("chmod");
    bin
}

/// The command lines of a recipe: those of its TOML block that begin with `key`.
fn recipe(file: &str, key: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("docs/recipes")
        .join(file);
    let text = fs::read_to_string(path).expect("the recipe");
    let block = text
        .split("```toml\n")
        .nth(1)
        .expect("a block")
        .split("```")
        .next();
    let lines = block
        .expect("its end")
        .lines()
        .filter(|line| line.starts_with(key));
    lines.map(|line| format!("{line}\n")).collect()
}

/// Mounts the lab's drive with the recipe's lines and the fake program before all others, flushes
/// with something left behind and then without, and returns what the program was given.
fn try_recipe(program: &str, lines: &str, fails: bool) -> Option<String> {
    let mut lab = plain()?;
    let out = lab.root().join("out");
    let bin = fake(&lab, program, &out);
    let config = format!(
        "[drive.recipe]\ndrive = {:?}\nmountpoint = {:?}\ncache = {:?}\nauto_flush = false\nwait_closed = true\n{lines}",
        text(lab.drive.path()),
        text(&lab.mnt),
        text(&lab.cache),
    );
    write(
        &lab.root().join("config/ferryfs/config.toml"),
        config.as_bytes(),
    );
    lab.ferryfs(&["config", "check"]).code(exit::DONE);
    let path = format!(
        "{}:{}",
        text(&bin),
        std::env::var("PATH").unwrap_or_default()
    );
    let mut mount = lab.command(&["mount", "recipe"]);
    crate::lab::run(mount.env("PATH", path)).code(exit::DONE);
    lab.adopt();
    let mut file = fs::File::create(lab.m("it's open")).expect("create");
    std::io::Write::write_all(&mut file, b"begun").expect("write");
    if fails {
        lab.flush_code(exit::LEFT_BEHIND);
    }
    drop(file);
    if !fails {
        lab.flush();
    }
    wait_until("the program to have run", LONG, || out.exists());
    let given = fs::read_to_string(&out).expect("read");
    let problems = lab.status()["automatic"]["hook_problems"].clone();
    assert_eq!(problems, serde_json::json!([]));
    lab.finish();
    Some(given)
}

#[test]
fn the_recipe_for_the_desktop_shows_a_notification() {
    let lines = recipe("notify.md", "on_failure");
    let Some(given) = try_recipe("notify-send", &lines, true) else {
        return;
    };
    assert!(given.contains("ferryfs: recipe"), "{given}");
    assert!(given.contains("1 file was left behind"), "{given}");
}

#[test]
fn the_recipe_for_mail_sends_a_whole_message() {
    let lines = recipe("mail.md", "on_failure");
    let Some(given) = try_recipe("sendmail", &lines, true) else {
        return;
    };
    assert!(
        given.contains("\nSubject: ferryfs: failure of recipe\n"),
        "{given}"
    );
    let (_, body) = given.split_once("\n\n").expect("a body");
    let body: Value = serde_json::from_str(body.trim()).expect("the report");
    assert_eq!(body["flush"]["left_behind"][0]["path"], "it's open");
}

#[test]
fn the_recipe_for_a_ping_calls_the_address_of_the_outcome() {
    let lines = recipe("healthchecks.md", "on_");
    for (fails, address) in [(true, "/fail"), (false, "")] {
        let Some(given) = try_recipe("curl", &lines, fails) else {
            return;
        };
        let called = given
            .lines()
            .find(|line| line.starts_with("https://"))
            .expect("an address");
        assert_eq!(called, format!("https://hc-ping.com/YOUR-CHECK{address}"));
    }
}
