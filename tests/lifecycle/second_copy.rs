//! A second copy follows the drive, by the scripts of the recipe and the real programs.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::lab::{Backend, Lab, content, exit, has, run, sh, skip, text, wait_until, write};

const LONG: Duration = Duration::from_secs(120);

/// The scripts of the recipe: for rclone, and for restic.
fn scripts() -> (String, String) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/recipes/second-copy.md");
    let recipe = fs::read_to_string(path).expect("the recipe");
    let mut blocks = (recipe.split("```sh\n").skip(1)).map(|rest| {
        let block = rest.split("```").next();
        block.expect("its end").to_owned()
    });
    let mut next = || blocks.next().expect("a script");
    (next(), next())
}

/// A lab whose `on_batch` runs `script` with the argument `to`.
fn followed(script: &str, to: &str, environment: &[(&str, &str)]) -> Option<Lab> {
    let mut lab = Lab::new(Backend::Ext4Dir)?;
    let hook = lab.root().join("second-copy");
    let bin = crate::lab::ferryfs_binary();
    let bin = bin.parent().expect("its directory");
    let exports: String = (environment.iter())
        .map(|(name, value)| format!("export {name}='{value}'\n"))
        .collect();
    let home = format!(
        "#!/bin/sh\nunset AWS_CA_BUNDLE\nexport PATH='{}':\"$PATH\" XDG_STATE_HOME='{}'\n{exports}",
        text(bin),
        text(&lab.root().join("state"))
    );
    fs::write(&hook, home + script).expect("write");
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).expect("chmod");
    let command = format!("{} {to}", text(&hook));
    let more = ["--hook-timeout", "2m", "--on-batch", &command];
    lab.mount(&more);
    Some(lab)
}

/// The number of the batch up to which the copy has gone.
fn copied(lab: &Lab, name: &str) -> String {
    let file = lab.root().join("state/ferryfs").join(name);
    fs::read_to_string(file)
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// Flushes, and waits until the copy has followed.
fn flush_and_follow(lab: &Lab, name: &str) {
    lab.flush();
    let newest = lab
        .ferryfs(&["changes", "--newest", &text(&lab.mnt)])
        .ok()
        .stdout;
    wait_until("the second copy", LONG, || {
        let problems = &lab.status()["automatic"]["hook_problems"];
        assert_eq!(*problems, serde_json::json!([]));
        copied(lab, name) == newest.trim()
    });
}

/// Takes a lab through writes, removals and moves of files and directories. `follow` is called
/// after each flush.
fn live(lab: &Lab, mut follow: impl FnMut(&Lab)) {
    for n in 0..5 {
        write(&lab.m(format!("films/{n}.mkv")), &content(n, 100_000));
    }
    write(&lab.m("notes/a b"), b"with a space");
    follow(lab);
    write(&lab.m("notes/a b"), b"changed");
    write(&lab.m("films/5.mkv"), &content(5, 1000));
    fs::remove_file(lab.m("films/0.mkv")).expect("remove");
    fs::rename(lab.m("films/1.mkv"), lab.m("notes/one")).expect("rename");
    follow(lab);
    fs::rename(lab.m("films"), lab.m("cinema")).expect("rename");
    write(&lab.m("cinema/6.mkv"), b"six");
    // As editors and logrotate do.
    fs::rename(lab.m("notes/a b"), lab.m("notes/a b~")).expect("rename");
    write(&lab.m("notes/a b"), b"anew");
    follow(lab);
    sh(
        &lab.mnt,
        "mv cinema a; mv notes cinema; mv a notes; rm notes/2.mkv",
    )
    .ok();
    follow(lab);
}

/// The files of a tree with their contents, without what is ours.
fn files(root: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let found = sh(
        root,
        "find . -path ./.ferryfs -prune -o -type f -print0 | sort -z",
    )
    .ok();
    (found.stdout.split('\0'))
        .filter(|path| !path.is_empty())
        .map(|path| (path.into(), fs::read(root.join(path)).expect("read")))
        .collect()
}

#[test]
fn rclone_follows_to_a_directory_and_keeps_what_was_replaced() {
    if !has("rclone") {
        return skip("rclone is not installed (Debian: rclone)");
    }
    let place = tempfile::tempdir().expect("a directory");
    let to = text(&place.path().join("second"));
    let Some(lab) = followed(&scripts().0, &to, &[]) else {
        return;
    };
    live(&lab, |lab| {
        flush_and_follow(lab, "second-copy-");
        assert_eq!(files(Path::new(&to)), files(&lab.mnt));
    });
    // The second batch has replaced one and removed the other.
    let old = fs::read_dir(format!("{to}-old")).expect("old versions");
    let old = (old.map(|day| day.expect("a run").path()))
        .find(|run| text(run).ends_with("-batch-2"))
        .expect("what the second batch has replaced");
    assert_eq!(
        fs::read(old.join("films/0.mkv")).expect("removed"),
        content(0, 100_000)
    );
    assert_eq!(
        fs::read(old.join("notes/a b")).expect("replaced"),
        b"with a space"
    );
    lab.finish();
}

#[test]
fn a_copy_that_has_missed_what_is_not_known_any_more_compares_everything() {
    if !has("rclone") {
        return skip("rclone is not installed (Debian: rclone)");
    }
    let place = tempfile::tempdir().expect("a directory");
    let to = text(&place.path().join("second"));
    let Some(lab) = followed(&scripts().0, &to, &[]) else {
        return;
    };
    write(&lab.m("one"), b"one");
    flush_and_follow(&lab, "second-copy-");
    // The copy has been away; meanwhile a list was removed.
    let state = lab.root().join("state/ferryfs/second-copy-");
    let before = fs::read_to_string(&state).expect("the state");
    write(&lab.m("two"), b"two");
    flush_and_follow(&lab, "second-copy-");
    fs::write(&state, before).expect("write");
    fs::remove_file(Path::new(&to).join("two")).expect("remove");
    let list = format!("changes/{:016x}.jsonl", 2);
    fs::remove_file(lab.cache.join(list)).expect("remove the list of batch 2");
    write(&lab.m("three"), b"three");
    flush_and_follow(&lab, "second-copy-");
    assert_eq!(files(Path::new(&to)), files(&lab.mnt));
    let since = ["changes", "--since", "1", &text(&lab.mnt)];
    lab.ferryfs(&since).refuses(exit::FAILED, "batch 2");
    lab.finish();
}

#[test]
fn restic_saves_what_has_changed() {
    if !has("restic") {
        return skip("restic is not installed (Debian: restic)");
    }
    let place = tempfile::tempdir().expect("a directory");
    let repository = text(&place.path().join("repository"));
    let with = [
        ("RESTIC_REPOSITORY", &*repository),
        ("RESTIC_PASSWORD", "secret"),
        ("RESTIC_CACHE_DIR", &*text(place.path())),
    ];
    let restic = |args: &[&str]| {
        let mut command = Command::new("restic");
        run(command.args(args).envs(with)).code(0).stdout
    };
    restic(&["init"]);
    let Some(lab) = followed(&scripts().1, "", &with) else {
        return;
    };
    live(&lab, |lab| flush_and_follow(lab, "restic-"));
    let snapshots: serde_json::Value =
        serde_json::from_str(&restic(&["snapshots", "--json"])).expect("JSON");
    assert_eq!(snapshots.as_array().map(Vec::len), Some(4));
    let last = restic(&["ls", "latest"]);
    // The last batch has moved both directories.
    assert!(
        last.contains("/cinema/one") && last.contains("/notes/6.mkv"),
        "{last}"
    );
    restic(&["check"]);
    lab.finish();
}

/// A server of S3 on this machine.
struct S3(Child);

impl Drop for S3 {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// With a server of S3 that takes a while to install: scripts/suites.sh runs it.
#[test]
#[ignore = "scripts/suites.sh runs it"]
fn rclone_follows_to_s3() {
    let moto = std::env::var_os("FERRYFS_TEST_MOTO").map_or("moto_server".into(), PathBuf::from);
    if !has("rclone") || !has(&text(&moto)) {
        return skip("rclone or moto_server is missing (Debian: rclone; PyPI: moto[server])");
    }
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = free.local_addr().expect("a port").port();
    drop(free);
    let mut server = Command::new(moto);
    server.args(["-H", "127.0.0.1", "-p", &port.to_string()]);
    server.stdout(Stdio::null()).stderr(Stdio::null());
    let _server = S3(server.spawn().expect("a server"));
    wait_until("the server", LONG, || {
        std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
    });
    let endpoint = format!("http://127.0.0.1:{port}");
    let with = [
        ("RCLONE_CONFIG", "/dev/null"),
        ("RCLONE_CONFIG_S_TYPE", "s3"),
        ("RCLONE_CONFIG_S_PROVIDER", "Other"),
        ("RCLONE_CONFIG_S_ENDPOINT", &*endpoint),
        ("RCLONE_CONFIG_S_ACCESS_KEY_ID", "key"),
        ("RCLONE_CONFIG_S_SECRET_ACCESS_KEY", "secret"),
        ("RCLONE_CONFIG_S_FORCE_PATH_STYLE", "true"),
    ];
    let Some(lab) = followed(&scripts().0, "s:bucket/lab", &with) else {
        return;
    };
    let rclone = |args: &[&str]| {
        let mut command = Command::new("rclone");
        command.args(args).envs(with).env_remove("AWS_CA_BUNDLE");
        run(&mut command).code(0).stdout
    };
    rclone(&["mkdir", "s:bucket"]);
    let back = lab.root().join("back");
    live(&lab, |lab| {
        flush_and_follow(lab, "second-copy-");
        rclone(&["sync", "s:bucket/lab", &text(&back)]);
        assert_eq!(files(&back), files(&lab.mnt));
    });
    lab.finish();
}
