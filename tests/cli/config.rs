//! Drives that are mounted by their name in the configuration.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use crate::lab::{Backend, Lab, assert_content, exit, text, wait_until, write};

/// The file of the lab's user.
fn file(lab: &Lab) -> PathBuf {
    lab.root().join("config/ferryfs/config.toml")
}

fn configure(lab: &Lab, text: &str) {
    write(&file(lab), text.as_bytes());
}

/// A section for the lab's drive, with further lines.
fn section(lab: &Lab, name: &str, more: &str) -> String {
    format!(
        "[drive.{name}]\ndrive = {:?}\nmountpoint = {:?}\ncache = {:?}\n{more}\n",
        text(lab.drive.path()),
        text(&lab.mnt),
        text(&lab.cache),
    )
}

fn plain() -> Option<Lab> {
    Lab::new(Backend::Ext4Dir)
}

/// A name that no other lab of this machine has.
fn name(lab: &Lab) -> String {
    let root = lab.root().file_name().expect("a name").to_string_lossy();
    format!("lab-{}", root.trim_start_matches("ferryfs-lab."))
}

fn setting<'a>(status: &'a Value, key: &str) -> &'a Value {
    &status["config"]["settings"][key]
}

#[test]
fn the_configuration_of_a_whole_lab_is_right() {
    let Some(lab) = plain() else { return };
    let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/recipes/lab.md");
    let recipe = fs::read_to_string(recipe).expect("the recipe");
    let block = recipe.split("```toml\n").nth(1).expect("a block");
    configure(&lab, block.split("```").next().expect("its end"));
    lab.ferryfs(&["config", "check"]).code(exit::DONE);
    let shown = lab.ferryfs(&["config", "show"]).code(exit::DONE).stdout;
    for said in ["drive.hdd", "drive.nas", "drive.tools", "*.crdownload"] {
        assert!(shown.contains(said), "no {said} in {shown}");
    }
}

#[test]
fn a_drive_is_mounted_and_commanded_by_its_name() {
    let Some(mut lab) = plain() else { return };
    let name = name(&lab);
    let defaults = "[defaults]\nauto_flush = false\nmax_age = \"1h\"\nio_timeout = \"7s\"\n";
    let own = section(&lab, &name, "max_age = \"2h\"\nverify = \"after-flush\"");
    configure(&lab, &format!("{defaults}{own}"));
    lab.ferryfs(&["config", "check"]).code(exit::DONE);
    lab.ferryfs(&["status", &name])
        .refuses(exit::FAILED, "not mounted");
    lab.ferryfs(&["mount", "--verify", "off", &name])
        .code(exit::DONE);
    lab.adopt();
    let status = lab
        .ferryfs(&["status", "--json", &name])
        .code(exit::DONE)
        .json();
    assert_eq!(status["mountpoint"], text(&lab.mnt));
    assert_eq!(status["config"]["name"], name);
    assert_eq!(setting(&status, "max_age")["value"][0], "2h", "the section");
    assert_eq!(setting(&status, "max_age")["source"]["file"]["line"], 9);
    assert_eq!(
        setting(&status, "io_timeout")["value"][0],
        "7s",
        "the defaults"
    );
    assert_eq!(
        setting(&status, "verify")["value"][0],
        "off",
        "the command line"
    );
    assert_eq!(setting(&status, "verify")["source"], "command_line");
    assert_eq!(status["automatic"]["enabled"], false);
    write(&lab.m("a"), b"by name");
    lab.ferryfs(&["flush", &name]).code(exit::DONE);
    assert_content(lab.d("a"), b"by name");
    lab.ferryfs(&["eject", &name]).code(exit::DONE);
    // The section is gone, and the name of the mount stays.
    configure(&lab, "");
    lab.ferryfs(&["status", &name]).code(exit::DONE);
    lab.ferryfs(&["unmount", &name]).code(exit::DONE);
    assert!(!lab.is_mounted());
    lab.finish();
}

#[test]
fn a_drive_is_found_by_the_id_of_its_volume_wherever_it_is() {
    let Some(mut lab) = plain() else { return };
    let name = name(&lab);
    lab.mount(&["--default-cache"]);
    let volume = lab.status()["volume_id"]
        .as_str()
        .expect("an id")
        .to_owned();
    lab.unmount();
    configure(
        &lab,
        &format!(
            "[drive.{name}]\ndrive = \"{volume}\"\nmountpoint = {:?}\nauto_flush = false\n",
            text(&lab.mnt)
        ),
    );
    lab.ferryfs(&["mount", &name]).code(exit::DONE);
    lab.adopt();
    assert_eq!(lab.status()["backend"], text(lab.drive.path()));
    lab.unmount();
    let unknown = "00000000-0000-4000-8000-000000000000";
    configure(
        &lab,
        &format!(
            "[drive.{name}]\ndrive = \"{unknown}\"\nmountpoint = {:?}\n",
            text(&lab.mnt)
        ),
    );
    lab.ferryfs(&["mount", &name])
        .refuses(exit::NO_BACKEND, unknown);
    lab.finish();
}

#[test]
fn all_drives_are_mounted_but_those_with_a_mistake() {
    let Some(mut lab) = plain() else { return };
    let name = name(&lab);
    let good = section(&lab, &name, "auto_flush = false");
    let bad = "[drive.bad]\ndrive = \"/nowhere\"\nmountpoint = \"relative\"\n";
    let away = format!(
        "[drive.away]\ndrive = \"{0}/nowhere\"\nmountpoint = \"{0}/mnt2\"\n",
        lab.root().display()
    );
    configure(&lab, &format!("{bad}{away}{good}"));
    lab.ferryfs(&["mount", "--all", "--foreground"])
        .code(exit::USAGE);
    let done = lab.ferryfs(&["mount", "--all"]).code(exit::FAILED);
    assert!(
        done.stderr
            .contains("config.toml:3:14: mountpoint is a relative path"),
        "{}",
        done.stderr
    );
    assert!(done.stderr.contains("mnt2"), "{}", done.stderr);
    lab.adopt();
    let pid = lab.pid();
    lab.ferryfs(&["mount", "--all"]).code(exit::FAILED);
    configure(&lab, &good);
    // What is mounted stays as it is.
    lab.ferryfs(&["mount", "--all"]).code(exit::DONE);
    assert_eq!(lab.status()["pid"], pid);
    configure(&lab, &format!("{away}{good}"));
    let status = lab.ferryfs(&["status"]).code(exit::DONE);
    assert!(
        status.stdout.contains("away: not mounted at"),
        "{}",
        status.stdout
    );
    assert!(status.stdout.contains(&name), "{}", status.stdout);
    let all = lab.ferryfs(&["status", "--all", "--json"]).json();
    let mounts: Vec<&Value> = all.as_array().expect("an array").iter().collect();
    assert!(mounts.iter().any(|status| status["config"]["name"] == name));
    lab.finish();
}

#[test]
fn mistakes_are_named_with_their_place_and_nothing_is_mounted() {
    let Some(lab) = plain() else { return };
    let name = name(&lab);
    lab.ferryfs(&["mount", &name])
        .refuses(exit::FAILED, "there is no configuration");
    lab.ferryfs(&["config", "check"])
        .refuses(exit::FAILED, "there is no configuration");
    configure(
        &lab,
        &section(&lab, &name, "flush_aftr = \"1m\"\nio_timeout = \"1ms\""),
    );
    let check = lab.ferryfs(&["config", "check"]).code(exit::FAILED);
    let place = text(&file(&lab));
    for line in [
        format!("{place}:5:1: unknown key \"flush_aftr\"\n  hint: did you mean \"flush_after\"?"),
        format!("{place}:6:14: io_timeout = \"1ms\": must be at least 100ms"),
    ] {
        assert!(check.stdout.contains(&line), "{line}\n{}", check.stdout);
    }
    lab.ferryfs(&["mount", &name])
        .refuses(exit::FAILED, "flush_aftr");
    configure(&lab, &section(&lab, &name, ""));
    let unknown = lab
        .ferryfs(&["mount", "other"])
        .refuses(exit::USAGE, "no drive");
    assert!(
        unknown.stderr.contains(&format!("it has: {name}")),
        "{}",
        unknown.stderr
    );
    configure(&lab, "[drive.x\n");
    lab.ferryfs(&["config", "check"]).code(exit::FAILED);
    lab.ferryfs(&["config", "show"]).code(exit::DONE);
    fs::write(file(&lab), b"[defaults]\n\xff").expect("write");
    let check = lab.ferryfs(&["config", "check"]).code(exit::FAILED);
    assert!(check.stdout.contains(":2:1: not UTF-8"), "{}", check.stdout);
    assert!(!lab.is_mounted());
    lab.finish();
}

#[test]
fn show_says_what_is_in_force_and_where_it_comes_from() {
    let Some(lab) = plain() else { return };
    let name = name(&lab);
    configure(
        &lab,
        &format!(
            "[defaults]\nmax_age = \"1h\"\n{}",
            section(&lab, &name, "fsck = true")
        ),
    );
    let show = lab
        .ferryfs(&["config", "show", &name])
        .code(exit::DONE)
        .stdout;
    let row = |key: &str| {
        let line = show
            .lines()
            .find(|line| line.starts_with(&format!("{key} = ")));
        line.unwrap_or_else(|| panic!("{key} in {show}")).to_owned()
    };
    let place = text(&file(&lab));
    assert!(row("max_age").starts_with("max_age = \"1h\""));
    assert!(row("max_age").ends_with(&format!("# {place}:2")));
    assert!(row("fsck").ends_with(&format!("# {place}:7")));
    assert!(row("flush_after").ends_with("# built in"));
    let json = lab
        .ferryfs(&["config", "show", "--json"])
        .code(exit::DONE)
        .json();
    assert_eq!(json[&name]["fsck"]["value"], true);
    lab.finish();
}

#[test]
fn a_file_that_another_user_may_have_written_is_refused() {
    let Some(lab) = plain() else { return };
    let name = name(&lab);
    configure(&lab, &section(&lab, &name, ""));
    let set_mode = |mode| {
        fs::set_permissions(file(&lab), fs::Permissions::from_mode(mode)).expect("chmod");
    };
    set_mode(0o666);
    for command in [&["mount", &name][..], &["config", "check"]] {
        lab.ferryfs(command)
            .refuses(exit::FAILED, "can be written to by everybody");
    }
    set_mode(0o644);
    if nix::unistd::geteuid().is_root() {
        let dir = file(&lab).parent().expect("a directory").to_owned();
        chown(&dir, Some(12_345), None).expect("chown");
        lab.ferryfs(&["mount", &name])
            .refuses(exit::FAILED, "user 12345");
        chown(&dir, Some(0), None).expect("chown");
    }
    lab.ferryfs(&["config", "check"]).code(exit::DONE);
    assert!(!lab.is_mounted());
    lab.finish();
}

#[test]
fn a_reload_changes_the_limit_of_a_flush_under_way() {
    let Some(mut lab) = plain() else { return };
    let name = name(&lab);
    let limited = "flush_after = \"100ms\"\nlimit_rate = \"64K\"\npolite = false";
    configure(&lab, &section(&lab, &name, limited));
    lab.ferryfs(&["mount", &name]).code(exit::DONE);
    lab.adopt();
    // Ten minutes at this rate.
    write(&lab.m("large"), &vec![7; 40 << 20]);
    wait_until("the flush to be slow", Duration::from_secs(20), || {
        lab.status()["running"]["slowed"] == "limit"
    });
    configure(
        &lab,
        &section(&lab, &name, "flush_after = \"100ms\"\nlimit_rate = \"off\""),
    );
    let said = lab.ferryfs(&["reload", &name]).code(exit::DONE).stdout;
    assert!(
        said.contains("limit_rate = \"off\" now (was \"64K\")"),
        "{said}"
    );
    assert!(
        said.contains("polite = what is built in now (was false)"),
        "{said}"
    );
    wait_until("the file to be flushed", Duration::from_secs(30), || {
        lab.d("large").exists()
    });
    configure(&lab, &section(&lab, &name, "limit_rate = \"slow\""));
    let said = lab.ferryfs(&["reload", &name]).code(exit::FAILED).stderr;
    assert!(
        said.contains("limit_rate = \"slow\": does not begin with a number"),
        "{said}"
    );
    lab.finish();
}

#[test]
fn a_reload_takes_up_what_it_can_and_names_the_rest() {
    let Some(mut lab) = plain() else { return };
    let name = name(&lab);
    configure(
        &lab,
        &section(&lab, &name, "flush_after = \"1h\"\nmax_age = \"1h\""),
    );
    lab.ferryfs(&["reload", &name])
        .refuses(exit::FAILED, "not mounted");
    lab.ferryfs(&["mount", "--verify", "after-flush", &name])
        .code(exit::DONE);
    lab.adopt();
    let unchanged = lab.ferryfs(&["reload", &name]).code(exit::DONE);
    assert!(
        unchanged.stdout.contains("nothing has changed"),
        "{}",
        unchanged.stdout
    );
    write(&lab.m("a"), b"a");
    let more = "flush_after = \"100ms\"\nverify = \"off\"\nio_timeout = \"20s\"";
    configure(&lab, &section(&lab, &name, more));
    let reload = |options: &[&str]| {
        let args: Vec<&str> = [&["reload"][..], options, &[&name]].concat();
        lab.ferryfs(&args).code(exit::LEFT_BEHIND).stdout
    };
    let said = reload(&["--dry-run"]);
    assert!(
        said.contains("flush_after = \"100ms\" with a reload (was \"1h\")"),
        "{said}"
    );
    assert!(
        said.contains("io_timeout = \"20s\" from its next mount on"),
        "{said}"
    );
    assert!(
        !said.contains("verify"),
        "the command line counts more: {said}"
    );
    assert_eq!(setting(&lab.status(), "flush_after")["value"][0], "1h");
    assert!(!lab.d("a").exists());
    let said = reload(&[]);
    assert!(said.contains("flush_after = \"100ms\" now"), "{said}");
    assert!(said.contains("max_age = what is built in now"), "{said}");
    wait_until("the file to be flushed", Duration::from_secs(20), || {
        lab.d("a").exists()
    });
    // What needs a new mount is named until there is one.
    assert!(reload(&[]).contains("io_timeout = \"20s\" from its next mount on"));
    lab.ferryfs(&["unmount", &name]).code(exit::DONE);
    lab.ferryfs(&["mount", &name]).code(exit::DONE);
    lab.adopt();
    lab.ferryfs(&["reload", &name]).code(exit::DONE);
    lab.finish();
}
