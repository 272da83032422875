//! The end of a mount is the end: what keeps the file system in use is named, and the daemon that
//! goes on for it is reached. And what the commands say on the way there.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::lab::{
    self, Backend, Lab, assert_content, content, exit, only_mounts_of, text, wait_until, write,
};

/// Long against anything that is waited for here.
const SOON: Duration = Duration::from_secs(30);

/// A process that uses the mount; it goes with this. To be declared after its lab, which cleans up
/// only then.
struct Holder(Child);

impl Holder {
    fn start(command: &mut Command) -> Holder {
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .process_group(0)
            .spawn()
            .expect("start a holder");
        Holder(child)
    }

    /// A container, as far as mounts go: a mount namespace of its own, in which `lab`'s directory
    /// `app` is at `ctr`, and which writes the number `n` to `app/state` when the file `go` has it.
    fn container(lab: &Lab) -> Holder {
        let (app, ctr, go) = (lab.m("app"), lab.root().join("ctr"), lab.root().join("go"));
        fs::create_dir(&app).expect("mkdir app");
        fs::create_dir(&ctr).expect("mkdir ctr");
        let script = only_mounts_of(lab.root())
            + &format!(
                "mount --bind '{}' '{ctr}'; cd /; touch '{up}'; \
             while sleep 0.05; do [ ! -e '{go}' ] || {{ cat '{go}' >'{ctr}/state'; rm -f '{go}'; }}; done",
                app.display(),
                ctr = ctr.display(),
                up = lab.root().join("up").display(),
                go = go.display()
            );
        let holder = Holder::start(Command::new("unshare").args([
            "-m",
            "--propagation",
            "private",
            "bash",
            "-c",
            &script,
        ]));
        wait_until("the container to be up", SOON, || {
            lab.root().join("up").exists()
        });
        holder
    }

    fn pid(&self) -> String {
        self.0.id().to_string()
    }

    fn end(mut self) {
        self.kill();
    }

    fn kill(&mut self) {
        let group = nix::unistd::Pid::from_raw(self.0.id() as i32);
        let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
        let _ = self.0.wait();
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Has the container write `what` to `app/state`.
fn tell_container(lab: &Lab, what: &str) {
    let (fresh, go) = (lab.root().join("fresh"), lab.root().join("go"));
    fs::write(&fresh, what).expect("write");
    fs::rename(&fresh, &go).expect("rename");
    wait_until("the container to write", SOON, || !go.exists());
}

fn root_lab() -> Option<Lab> {
    if !nix::unistd::geteuid().is_root() {
        lab::skip("a mount namespace of its own needs root");
        return None;
    }
    Lab::mounted(Backend::Ext4Dir)
}

#[test]
fn unmount_names_a_container_that_keeps_it_alive_and_goes_on_for_it() {
    let Some(mut lab) = root_lab() else { return };
    let holder = Holder::container(&lab);
    tell_container(&lab, "one");
    let volume = lab.status()["volume_id"].as_str().expect("id").to_owned();
    let (mnt, cache) = (text(&lab.mnt), text(&lab.cache));

    let done = lab.ferryfs(&["unmount", &mnt]).code(exit::LEFT_BEHIND);
    assert!(!done.stdout.contains("\nunmounted "), "{}", done.stdout);
    for said in ["bash", &holder.pid(), "/ctr", "unmount --force"] {
        assert!(done.stdout.contains(said), "{said} in:\n{}", done.stdout);
    }
    assert!(!lab.is_mounted());
    assert_content(lab.d("app/state"), b"one");

    // It is reached by what is still known of it.
    let drive = text(lab.drive.path());
    for which in [
        ["--cache", cache.as_str()].as_slice(),
        &[mnt.as_str()],
        &[volume.as_str()],
        &[drive.as_str()],
    ] {
        let status = [&["status", "--json"], which].concat();
        let status = lab.ferryfs(&status).code(exit::DONE).json();
        assert_eq!(status["mounted"], false, "{which:?}");
        let users = &status["users"]["found"];
        assert_eq!(users[0]["pid"].to_string(), holder.pid(), "{which:?}");
        assert_eq!(users[0]["program"], "bash");
    }
    let said = lab.ferryfs(&["status", &mnt]).code(exit::DONE).stdout;
    assert!(said.contains("still in use by bash"), "{said}");

    // What is written there is flushed as before.
    tell_container(&lab, "two");
    lab.ferryfs(&["flush", "--cache", &cache]).code(exit::DONE);
    assert_content(lab.d("app/state"), b"two");
    tell_container(&lab, "three");
    let again = lab.ferryfs(&["unmount", &mnt]).code(exit::LEFT_BEHIND);
    assert!(again.stdout.contains(&holder.pid()), "{}", again.stdout);
    assert_content(lab.d("app/state"), b"three");
    let refused = lab
        .try_mount(&[])
        .refuses(exit::FAILED, "still in use by bash");
    assert!(
        refused.stderr.contains("--force --cache"),
        "{}",
        refused.stderr
    );

    // With its last user the daemon ends, and carries what came last.
    tell_container(&lab, "four");
    holder.end();
    wait_until("the daemon to end", SOON, || !lab::alive(lab.pid()));
    assert_content(lab.d("app/state"), b"four");
    lab.remount();
    assert_content(lab.m("app/state"), b"four");
    lab.finish();
}

#[test]
fn unmount_force_cuts_a_container_off_and_loses_nothing() {
    let Some(mut lab) = root_lab() else { return };
    let _holder = Holder::container(&lab);
    tell_container(&lab, "one");
    let mnt = text(&lab.mnt);
    lab.ferryfs(&["unmount", &mnt]).code(exit::LEFT_BEHIND);
    tell_container(&lab, "two");
    let done = lab.ferryfs(&["unmount", "--force", "--cache", &text(&lab.cache)]);
    let done = done.code(exit::DONE);
    assert!(done.stdout.contains("unmounted "), "{}", done.stdout);
    wait_until("the daemon to end", SOON, || !lab::alive(lab.pid()));
    assert_content(lab.d("app/state"), b"two");
    lab.remount();
    assert_content(lab.m("app/state"), b"two");
    lab.finish();
}

#[test]
fn an_unmount_that_is_refused_names_who_uses_the_mount() {
    let Some(lab) = Lab::mounted(Backend::Ext4Dir) else {
        return;
    };
    fs::create_dir(lab.m("sub")).expect("mkdir");
    let mut holders: Vec<Holder> = (0..12)
        .map(|_| Holder::start(Command::new("sleep").arg("600").current_dir(lab.m("sub"))))
        .collect();
    let mnt = text(&lab.mnt);
    let said = lab
        .ferryfs(&["unmount", &mnt])
        .refuses(exit::FAILED, "is in use by")
        .stderr;
    let first = format!("sleep (pid {}: {})", holders[0].pid(), text(&lab.m("sub")));
    assert!(said.contains(&first), "{first} in {said}");
    assert!(said.contains("2 more"), "{said}");
    assert!(lab.is_mounted());
    // Cut off, they keep nobody from mounting anew.
    let last = holders.pop();
    drop(holders);
    lab.ferryfs(&["unmount", "--force", &mnt]).code(exit::DONE);
    assert!(!lab.is_mounted());
    drop(last);
    lab.finish();
}

#[test]
fn a_bind_mount_beside_it_is_named() {
    let Some(mut lab) = root_lab() else { return };
    let beside = lab.root().join("beside");
    fs::create_dir(&beside).expect("mkdir");
    fs::create_dir(lab.m("app")).expect("mkdir");
    lab::run(
        Command::new("mount")
            .arg("--bind")
            .args([&lab.m("app"), &beside]),
    )
    .ok();
    // A path through it means the same mount.
    let status = lab
        .ferryfs(&["status", "--json", &text(&beside)])
        .code(exit::DONE);
    assert_eq!(status.json()["mountpoint"], text(&lab.mnt));
    let done = lab
        .ferryfs(&["unmount", &text(&lab.mnt)])
        .code(exit::LEFT_BEHIND);
    let named = format!("a mount at {}", text(&beside));
    assert!(done.stdout.contains(&named), "{}", done.stdout);
    lab::run(Command::new("umount").arg(&beside)).ok();
    wait_until("the daemon to end", SOON, || !lab::alive(lab.pid()));
    lab.remount();
    lab.finish();
}

#[test]
fn a_file_system_mounted_over_it_is_not_taken_for_it() {
    let Some(lab) = root_lab() else { return };
    lab::run(
        Command::new("mount")
            .args(["-t", "tmpfs", "over"])
            .arg(&lab.mnt),
    )
    .ok();
    fs::write(lab.m("precious"), "precious").expect("write to what is over it");
    lab.ferryfs(&["unmount", "--cache", &text(&lab.cache)])
        .refuses(exit::FAILED, "mounted over");
    assert_content(lab.m("precious"), b"precious");
    lab::run(Command::new("umount").arg(&lab.mnt)).ok();
    lab.finish();
}

#[test]
fn a_path_in_a_mount_and_the_working_directory_are_enough_for_every_command() {
    let Some(mut lab) = Lab::mounted(Backend::Ext4Dir) else {
        return;
    };
    let deep = lab.m("a/b/c");
    fs::create_dir_all(&deep).expect("mkdir");
    write(&deep.join("f"), b"f");
    let inside = text(&deep);
    for command in ["status", "flush", "refresh"] {
        lab.ferryfs(&[command, &inside]).code(exit::DONE);
    }
    assert_content(lab.d("a/b/c/f"), b"f");
    let here = lab::run(lab.command(&["status", "--json"]).current_dir(&deep)).code(exit::DONE);
    assert_eq!(here.json()["mountpoint"], text(&lab.mnt));
    lab.ferryfs(&["eject", &text(&deep.join("f"))])
        .code(exit::DONE);
    lab.ferryfs(&["attach", &text(lab.drive.path()), &inside])
        .code(exit::DONE);
    let done = lab.ferryfs(&["unmount", &inside]).code(exit::DONE);
    assert!(done.stdout.contains("unmounted "), "{}", done.stdout);
    assert!(!lab.is_mounted());
    lab.remount();
    lab.finish();
}

#[test]
fn refresh_of_what_is_nowhere_is_an_error_and_of_what_only_the_drive_has_is_none() {
    let Some(lab) = Lab::mounted(Backend::Ext4Dir) else {
        return;
    };
    lab.ferryfs(&["refresh", &text(&lab.m("not-there"))])
        .refuses(exit::FAILED, "there is no not-there");
    lab.ferryfs(&["refresh", &text(&lab.m("no/way"))])
        .refuses(exit::FAILED, "there is no no/way");
    fs::create_dir_all(lab.d("new")).expect("mkdir");
    fs::write(lab.d("new/film"), "film").expect("write");
    lab.ferryfs(&["refresh", &text(&lab.m("new"))])
        .code(exit::DONE);
    assert_content(lab.m("new/film"), b"film");
    lab.finish();
}

#[test]
fn the_daemon_is_called_ferryfs() {
    let Some(lab) = Lab::mounted(Backend::Ext4Dir) else {
        return;
    };
    let proc = format!("/proc/{}", lab.pid());
    let comm = fs::read_to_string(format!("{proc}/comm")).expect("comm");
    assert_eq!(comm, "ferryfs\n");
    let line = fs::read(format!("{proc}/cmdline")).expect("cmdline");
    assert!(line.starts_with(b"ferryfs\0mount\0"), "{line:?}");
    lab.finish();
}

#[test]
fn times_are_shown_in_local_time_and_told_to_programs_in_utc() {
    let Some(lab) = Lab::mounted(Backend::Ext4Dir) else {
        return;
    };
    write(&lab.m("f"), b"f");
    lab.flush();
    let told = lab.status()["last_batch"]["time"]
        .as_str()
        .expect("time")
        .to_owned();
    let shown = |zone: &str| {
        let mut status = lab.command(&["status", &text(&lab.mnt)]);
        lab::run(status.env("TZ", zone)).code(exit::DONE).stdout
    };
    let utc = format!("last batch    1 at {} {}:", &told[..10], &told[11..19]);
    assert!(shown("UTC").contains(&utc), "{utc} in {}", shown("UTC"));
    // Five hours and three quarters ahead, as in Nepal; spelled so that no database is needed.
    let minutes = |text: &str| {
        let number = |at: usize| text[at..at + 2].parse::<i64>().expect("a number");
        number(0) * 60 + number(3)
    };
    let ahead = shown("XXX-5:45");
    let line = ahead
        .lines()
        .find(|line| line.starts_with("last batch"))
        .expect("the batch");
    let clock = line
        .split(' ')
        .find(|word| word.matches(':').count() >= 2)
        .expect("a time");
    let difference = (minutes(clock) - minutes(&told[11..])).rem_euclid(24 * 60);
    assert_eq!(difference, 345, "{line}");
    lab.finish();
}

#[test]
fn after_an_unclean_end_mount_says_what_matters_and_logs_the_rest() {
    let Some(mut lab) = Lab::mounted(Backend::Ext4Dir) else {
        return;
    };
    write(&lab.m("f"), &content(3, 100_000));
    lab.kill9();
    let args = lab.mount_args(&[]);
    let done = lab.ferryfs(&args).code(exit::DONE);
    lab.adopt();
    for line in done.stderr.lines() {
        let is_plain = line.starts_with("mounted ") || line.starts_with("ferryfs: ");
        assert!(is_plain, "{line:?} is no word for a person");
    }
    let log = fs::read_to_string(lab.cache.join("ferryfs.log")).expect("the log");
    assert!(
        log.contains("repaired what an unclean end had left"),
        "{log}"
    );
    lab.flush_interrupted();
    lab.finish();
}

/// `chattr +i`, taken off again when this is dropped: nobody could remove the lab otherwise.
struct Immutable(std::path::PathBuf);

impl Immutable {
    fn set(path: std::path::PathBuf) -> Option<Immutable> {
        let set = lab::run(Command::new("chattr").arg("+i").arg(&path));
        if set.code != 0 {
            lab::skip("chattr +i needs root and a file system that has it");
            return None;
        }
        Some(Immutable(path))
    }
}

impl Drop for Immutable {
    fn drop(&mut self) {
        let _ = Command::new("chattr").arg("-i").arg(&self.0).status();
    }
}

#[test]
fn a_plain_flush_tries_at_once_what_the_drive_has_refused() {
    let Some(lab) = Lab::mounted(Backend::Ext4Dir) else {
        return;
    };
    write(&lab.m("file"), b"old");
    fs::create_dir_all(lab.m("box/inner")).expect("mkdir");
    write(&lab.m("box/inner/file"), b"old");
    lab.flush();
    let fixed = ["file", "box"].map(|name| Immutable::set(lab.d(name)));
    if fixed.iter().any(Option::is_none) {
        return;
    }
    write(&lab.m("file"), b"new");
    // The directory cannot be moved, which shows only when it is tried; so the file has no place.
    fs::rename(lab.m("box"), lab.m("moved")).expect("rename");
    write(&lab.m("moved/inner/file"), b"new");
    lab.flush_code(exit::LEFT_BEHIND);
    assert_content(lab.d("file"), b"old");
    assert_content(lab.d("box/inner/file"), b"old");
    drop(fixed);
    let mnt = text(&lab.mnt);
    lab.ferryfs(&["flush", &mnt]).code(exit::DONE);
    assert_content(lab.d("file"), b"new");
    assert_content(lab.d("moved/inner/file"), b"new");
    lab.assert_drive_is_mount();
    lab.finish();
}

#[test]
fn status_names_what_was_left_behind_and_where_there_is_room() {
    let Some(lab) = Lab::mounted(Backend::Ext4Dir) else {
        return;
    };
    let open = fs::File::create(lab.m("open one")).expect("create");
    std::io::Write::write_all(&mut &open, b"half").expect("write");
    lab.flush_closed();
    let status = lab.status();
    assert_eq!(status["last_flush"]["left_behind"][0]["path"], "open one");
    let said = lab
        .ferryfs(&["status", &text(&lab.mnt)])
        .code(exit::DONE)
        .stdout;
    let named = said
        .lines()
        .any(|line| line.starts_with("left behind") && line.contains("open one: "));
    assert!(named, "{said}");
    for space in ["ssd", "drive"] {
        assert!(
            status[space]["free_bytes"]
                .as_u64()
                .is_some_and(|free| free > 0),
            "{space}"
        );
    }
    drop(open);
    lab.flush();
    assert_eq!(
        lab.status()["last_flush"]["left_behind"],
        serde_json::json!([])
    );
    lab.finish();
}

#[test]
fn after_an_eject_status_says_when_and_what_to_do_about_it() {
    let Some(lab) = Lab::mounted(Backend::Ext4Dir) else {
        return;
    };
    lab.eject();
    let drive = text(lab.drive.path());
    let said = lab
        .ferryfs(&["status", &text(&lab.mnt)])
        .code(exit::DONE)
        .stdout;
    assert!(said.starts_with("You ejected it at "), "{said}");
    assert!(
        said.contains(&format!("it is still mounted at {drive}")),
        "{said}"
    );
    assert!(
        said.contains(&format!("ferryfs attach {drive}\n")),
        "{said}"
    );
    // What needs the drive says the same.
    for command in ["flush", "eject", "refresh"] {
        let done = lab.ferryfs(&[command, &text(&lab.mnt)]);
        let done = done.refuses(exit::NO_BACKEND, "ejected");
        assert!(
            done.stderr.contains(&format!("ferryfs attach {drive}\n")),
            "{}",
            done.stderr
        );
    }
    lab.ferryfs(&["attach", &drive, &text(&lab.mnt)])
        .code(exit::DONE);
    assert_eq!(lab.status()["ejected"], serde_json::Value::Null);
    lab.finish();
}

#[test]
fn a_cache_that_no_daemon_serves_is_said_to_be_so() {
    let Some(lab) = Lab::new(Backend::Ext4Dir) else {
        return;
    };
    for command in ["status", "flush", "eject", "unmount"] {
        lab.ferryfs(&[command, "--cache", &text(Path::new("/no/such/cache"))])
            .refuses(exit::FAILED, "no daemon serves");
    }
}
