//! What stays on this computer, what is always there, and what goes by itself: as the user sets it
//! and sees it.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::lab::{
    Backend, Lab, assert_content, content, exit, has, run_for, sh, text, wait_until, write,
};

/// Longer than any of these waits takes on a loaded machine.
const LONG: Duration = Duration::from_secs(40);

fn plain() -> Option<Lab> {
    Lab::new(Backend::Ext4Dir)
}

fn configure(lab: &Lab, name: &str, more: &str) {
    let section = format!(
        "[drive.{name}]\ndrive = {:?}\nmountpoint = {:?}\ncache = {:?}\nauto_flush = false\n{more}\n",
        text(lab.drive.path()),
        text(&lab.mnt),
        text(&lab.cache),
    );
    write(
        &lab.root().join("config/ferryfs/config.toml"),
        section.as_bytes(),
    );
}

/// A name that no other lab of this machine has.
fn name(lab: &Lab) -> String {
    let root = lab.root().file_name().expect("a name").to_string_lossy();
    format!("lab-{}", root.trim_start_matches("ferryfs-lab."))
}

fn batch(lab: &Lab) -> Value {
    lab.status()["last_batch"]["number"].clone()
}

fn cached(lab: &Lab) -> u64 {
    lab.status()["cached_bytes"].as_u64().expect("a number")
}

#[test]
fn what_stays_here_makes_no_flush_due_and_no_drive_unsafe_to_unplug() {
    let Some(mut lab) = Lab::new(Backend::Exfat(64)) else {
        return;
    };
    lab.mount(&[
        "--local",
        "tmp/",
        "--local",
        "*.part",
        "--flush-after",
        "200ms",
    ]);
    write(&lab.m("tmp/scratch"), b"scratch");
    write(&lab.m("film.mkv.part"), b"half of it");
    write(&lab.m("travels"), b"travels");
    wait_until("the other file to be flushed", LONG, || {
        lab.d("travels").exists() && lab.status()["safe_to_unplug"] == true
    });
    assert!(!lab.d("tmp").exists() && !lab.d("film.mkv.part").exists());
    let before = batch(&lab);
    write(&lab.m("tmp/deep/more"), b"more");
    fs::write(lab.m("film.mkv.part"), b"nearly all of it").expect("write");
    let status = lab.status();
    assert_eq!(status["dirty_files"], 0, "{status}");
    assert_eq!(status["local"]["files"], 3);
    assert_eq!(status["local"]["bytes"], 7 + 4 + 16);
    // The daemon has considered a flush several times meanwhile.
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(batch(&lab), before, "a flush for local files");
    let said = lab
        .ferryfs(&["flush", &text(&lab.mnt)])
        .code(exit::DONE)
        .stdout;
    assert!(
        said.contains("3 files stay on this computer (local)"),
        "{said}"
    );
    let said = lab
        .ferryfs(&["eject", &text(&lab.mnt)])
        .code(exit::DONE)
        .stdout;
    assert!(
        said.contains("3 files stay on this computer (local)"),
        "{said}"
    );
    lab.unmount();
    lab.remount();
    assert_content(lab.m("tmp/deep/more"), b"more");
    fs::rename(lab.m("film.mkv.part"), lab.m("film.mkv")).expect("rename");
    lab.flush_code(exit::DONE);
    assert_content(lab.d("film.mkv"), b"nearly all of it");
    assert!(!lab.d("tmp").exists());
    lab.finish();
}

#[test]
fn other_patterns_say_what_they_would_do_before_they_do_it() {
    let Some(mut lab) = plain() else { return };
    let name = name(&lab);
    configure(&lab, &name, "local = [\"tmp/\"]");
    lab.ferryfs(&["mount", &name]).code(exit::DONE);
    lab.adopt();
    write(&lab.m("tmp/a"), b"12345");
    write(&lab.m("b.log"), b"old");
    write(&lab.m("c"), b"c");
    lab.flush_code(exit::DONE);
    let listed = lab.ferryfs(&["local", &name]).code(exit::DONE).stdout;
    assert!(listed.contains("tmp: 1 file (5 B)"), "{listed}");
    let json = lab
        .ferryfs(&["local", "--json", "--if", "*.log", &name])
        .code(exit::DONE)
        .json();
    let one = |bytes: u64| serde_json::json!({ "files": 1, "bytes": bytes });
    let wanted = serde_json::json!({
        "becomes_local": one(3), "kept_on_drive": one(3), "travels": one(5),
    });
    assert_eq!(json["change"], wanted);
    configure(&lab, &name, "local = [\"*.log\"]");
    let said = lab
        .ferryfs(&["reload", "--dry-run", &name])
        .code(exit::DONE)
        .stdout;
    assert!(
        said.contains("1 file (3 B) would stay on this computer"),
        "{said}"
    );
    assert!(
        said.contains("1 file (5 B) would be written to the drive"),
        "{said}"
    );
    assert_eq!(lab.flush()["files"], 0, "nothing has changed yet");
    lab.ferryfs(&["reload", &name]).code(exit::DONE);
    write(&lab.m("b.log"), b"new and longer");
    lab.flush_code(exit::DONE);
    assert_content(lab.d("tmp/a"), b"12345");
    assert_content(lab.d("b.log"), b"old");
    assert_content(lab.m("b.log"), b"new and longer");
    configure(&lab, &name, "");
    lab.ferryfs(&["reload", &name]).code(exit::DONE);
    lab.flush_code(exit::DONE);
    assert_content(lab.d("b.log"), b"new and longer");
    lab.finish();
}

#[test]
fn a_configuration_that_keeps_or_removes_everything_is_refused() {
    let Some(lab) = plain() else { return };
    let name = name(&lab);
    for (line, word) in [
        ("local = \"*\"", "matches everything"),
        ("local = [\"/**\", \"x\"]", "matches everything"),
        ("local = [\"[z-a]\"]", "no pattern"),
        ("local = \"\"", "empty"),
        ("expire = { \"*\" = \"1d\" }", "matches everything"),
        (
            "expire = { \"tmp/\" = \"soon\" }",
            "does not begin with a number",
        ),
        ("expire = { \"tmp/\" = 1 }", "table such as"),
        ("expire = { \"tmp/\" = \"1d\" }", "is not in local"),
        (
            "local = \"tmp/\"\nexpire = { \"/tmp/\" = \"1d\" }",
            "is not in local",
        ),
        (
            "local = [\"tmp/\", \"!tmp/x\"]\nexpire = { \"!tmp/x\" = \"1d\" }",
            "begins with",
        ),
        ("expire = \"tmp/\"", "needs a pattern and a time"),
        ("evict_after = \"0s\"", "at least 1s"),
        ("pin = [\"#\"]", "empty"),
    ] {
        configure(&lab, &name, line);
        let said = lab.ferryfs(&["config", "check"]).code(exit::FAILED).stdout;
        assert!(said.contains(word), "{line}: {said}");
    }
    let good = "local = [\"*\", \"!*.mkv\", \"tmp/\", \"*.bak\"]\nexpire = { \"tmp/\" = \"1d\", \"*.bak\" = \"30d\" }\n\
        pin = \"*.nfo\"\nevict_after = \"7d\"";
    configure(&lab, &name, good);
    lab.ferryfs(&["config", "check"]).code(exit::DONE);
    lab.finish();
}

#[test]
fn a_film_that_is_moved_to_scratch_leaves_the_drive_once_it_is_here() {
    let Some(lab) = Lab::mounted(Backend::Ext4Dir) else {
        return;
    };
    let lab = lab.with_an_uncached_film(300_000, &["--local", "tmp/"]);
    fs::create_dir(lab.m("tmp")).expect("mkdir");
    fs::rename(lab.m("shelf/film"), lab.m("tmp/film")).expect("rename");
    wait_until("its bytes to be here", LONG, || {
        lab.ferryfs(&["flush", &text(&lab.mnt)]);
        !lab.d("shelf/film").exists()
    });
    assert!(!lab.d("tmp").exists());
    assert_eq!(lab.status()["local"]["held"], 0);
    assert_eq!(lab.status()["local"]["files"], 1);
    lab.eject();
    assert_content(lab.m("tmp/film"), content(1, 300_000));
    lab.finish();
}

#[test]
fn pinned_files_are_brought_here_and_stay_when_others_go() {
    let Some(mut lab) = plain() else { return };
    lab.mount(&[]);
    write(&lab.m("film.nfo"), &[1; 50_000]);
    write(&lab.m("dir/library.db"), &[2; 60_000]);
    write(&lab.m("film.mkv"), &[3; 500_000]);
    lab.flush();
    lab.unmount();
    lab.take_new_cache();
    lab.mount(&[
        "--pin",
        "*.nfo",
        "--pin",
        "library.db",
        "--evict-after",
        "2s",
    ]);
    wait_until("the pinned files to be here", LONG, || {
        cached(&lab) >= 110_000
    });
    assert_eq!(fs::read(lab.m("film.mkv")).expect("read").len(), 500_000);
    let film = fs::OpenOptions::new().append(true).open(lab.m("film.mkv"));
    std::io::Write::write_all(&mut film.expect("open"), b"x").expect("write");
    lab.flush();
    wait_until("the film to go", LONG, || cached(&lab) < 500_000);
    lab.eject();
    assert_content(lab.m("film.nfo"), [1; 50_000]);
    assert_content(lab.m("dir/library.db"), [2; 60_000]);
    assert!(
        fs::read(lab.m("film.mkv")).is_err(),
        "it is on the drive only"
    );
    lab.finish();
}

#[test]
fn scratch_cleans_itself_but_not_what_is_open_or_young_or_on_the_drive() {
    let Some(mut lab) = plain() else { return };
    lab.mount(&[]);
    write(&lab.m("on-drive.bak"), b"on the drive");
    lab.flush();
    lab.unmount();
    lab.mount(&[
        "--local",
        "tmp/",
        "--local",
        "tmp/kept/",
        "--local",
        "*.bak",
        "--expire",
        "tmp/=2s",
        "--expire",
        "tmp/kept/=1h",
        "--expire",
        "*.bak=2s",
    ]);
    write(&lab.m("tmp/deep/old"), b"old");
    write(&lab.m("tmp/kept/x"), b"kept longer");
    write(&lab.m("tmp/open"), b"open");
    write(&lab.m("tmp/lab.db"), b"a database");
    write(&lab.m("tmp/lab.db-wal"), b"its journal");
    write(&lab.m("scratch.bak"), b"scratch");
    write(&lab.m("other"), b"other");
    let open = fs::File::open(lab.m("tmp/open")).expect("open");
    let journal = fs::File::open(lab.m("tmp/lab.db-wal")).expect("open");
    wait_until("scratch to go", LONG, || {
        !lab.m("tmp/deep").exists() && !lab.m("scratch.bak").exists()
    });
    assert!(lab.m("tmp/open").exists(), "it is open");
    assert_content(lab.m("tmp/lab.db"), b"a database");
    assert_content(lab.m("tmp/kept/x"), b"kept longer");
    assert_content(lab.m("other"), b"other");
    drop((open, journal));
    wait_until("the closed files to go", LONG, || {
        ["open", "lab.db", "lab.db-wal"]
            .iter()
            .all(|name| !lab.m(format!("tmp/{name}")).exists())
    });
    assert!(lab.m("tmp").is_dir(), "the directory of the rule stays");
    assert!(lab.status()["local"]["expired"].as_u64() >= Some(6));
    lab.flush();
    assert_content(lab.m("on-drive.bak"), b"on the drive");
    assert_content(lab.d("on-drive.bak"), b"on the drive");
    assert_content(lab.d("other"), b"other");
    lab.finish();
}

#[test]
fn a_project_travels_without_what_its_tools_make() {
    let Some(mut lab) = plain() else { return };
    lab.mount(&["--local", ".venv/", "--local", "node_modules/"]);
    if !has("git") || !has("python3") {
        return lab.finish();
    }
    let source = lab.root().join("source");
    fs::create_dir(&source).expect("mkdir");
    let git = "git -c user.name=a -c user.email=a@b";
    sh(
        &source,
        &format!("git init -q . && echo x > a.py && git add . && {git} commit -qm a"),
    )
    .ok();
    sh(&lab.mnt, &format!("git clone -q {} work", text(&source))).ok();
    let venv = ["-m", "venv", "--without-pip", "work/.venv"];
    run_for(
        Command::new("python3").args(venv).current_dir(&lab.mnt),
        LONG,
    )
    .ok();
    sh(
        &lab.mnt,
        "mkdir -p work/node_modules/x && cd work/node_modules/x && touch $(seq 100)",
    )
    .ok();
    sh(&lab.mnt, "git -C work status --porcelain").ok();
    lab.flush_code(exit::DONE);
    assert!(lab.d("work/.git/HEAD").exists() && lab.d("work/a.py").exists());
    assert!(!lab.d("work/.venv").exists() && !lab.d("work/node_modules").exists());
    let use_them = "work/.venv/bin/python -c pass && echo x > work/node_modules/x/new";
    sh(&lab.mnt, use_them).ok();
    let again = lab.flush();
    assert_eq!(again["files"], 0, "{again}");
    lab.finish();
}

#[test]
fn rescue_takes_local_files_along() {
    let Some(mut lab) = plain() else { return };
    lab.mount(&["--local", "tmp/"]);
    write(&lab.m("tmp/a"), b"only here");
    write(&lab.m("waits"), b"waits");
    lab.unmount_with(&["--no-flush"]);
    let to: PathBuf = lab.root().join("rescued");
    let (cache, out) = (text(&lab.cache), text(&to));
    lab.ferryfs(&["rescue", "--cache", &cache, "--to", &out])
        .code(exit::DONE);
    let found = sh(&to, "find . -type f -name a -o -type f -name waits")
        .ok()
        .stdout;
    assert!(
        found.contains("tmp/a") && found.contains("waits"),
        "{found}"
    );
    lab.finish();
}
