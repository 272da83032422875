//! An ordinary user mounts by fusermount3, with no privilege of ours: root starts these commands
//! only to become that user.

mod paths;
mod volumes;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::lab::{self, Backend, Done, Lab, assert_content, content, exit, run, skip, text};

/// On every Linux there is a user `nobody`, who owns nothing.
struct User {
    uid: u32,
    gid: u32,
}

fn nobody() -> Option<User> {
    if !nix::unistd::geteuid().is_root() {
        skip("becoming another user needs root");
        return None;
    }
    let nobody = nix::unistd::User::from_name("nobody").ok().flatten();
    if nobody.is_none() {
        skip("there is no user nobody");
    }
    let nobody = nobody?;
    Some(User {
        uid: nobody.uid.as_raw(),
        gid: nobody.gid.as_raw(),
    })
}

/// Distributions give /dev/fuse mode 0666; a bare devtmpfs does not. Put back on drop; one test at
/// a time has it.
struct OpenFuse {
    before: Option<u32>,
    _turn: MutexGuard<'static, ()>,
}

static FUSE: Mutex<()> = Mutex::new(());

impl OpenFuse {
    fn new() -> OpenFuse {
        let turn = FUSE.lock().unwrap_or_else(PoisonError::into_inner);
        let mode = fs::metadata("/dev/fuse").expect("/dev/fuse").mode() & 0o777;
        if mode & 0o006 == 0o006 {
            return OpenFuse {
                before: None,
                _turn: turn,
            };
        }
        eprintln!(
            "NOTE: /dev/fuse has mode {mode:o}, no user could mount; it is 666 for the time of this test"
        );
        fs::set_permissions("/dev/fuse", fs::Permissions::from_mode(0o666))
            .expect("chmod /dev/fuse");
        OpenFuse {
            before: Some(mode),
            _turn: turn,
        }
    }
}

impl Drop for OpenFuse {
    fn drop(&mut self) {
        if let Some(mode) = self.before {
            let _ = fs::set_permissions("/dev/fuse", fs::Permissions::from_mode(mode));
        }
    }
}

/// Whether users other than root can mount here; said loudly if not.
fn users_can_mount() -> bool {
    let can = fs::metadata("/usr/bin/fusermount3").map_or(0, |m| m.mode()) & 0o4000 != 0;
    if !can {
        skip("fusermount3 is not installed setuid");
    }
    can
}

/// What has setpriv(1) become the user.
fn becoming(user: &User) -> [String; 4] {
    [
        format!("--reuid={}", user.uid),
        format!("--regid={}", user.gid),
        "--clear-groups".into(),
        "--inh-caps=-all".into(),
    ]
}

/// A copy of the program where any user can reach it.
fn program_in(lab: &Lab) -> PathBuf {
    let program = lab.root().join("ferryfs");
    fs::copy(lab::ferryfs_binary(), &program).expect("copy the program");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("chmod");
    program
}

/// A lab whose directories are the user's, and a copy of the program where the user can reach it.
fn lab_of(user: &User) -> Option<(Lab, PathBuf)> {
    let lab = Lab::new(Backend::Ext4Dir)?;
    for dir in ["mnt", "drive", "home"] {
        chown(lab.root().join(dir), Some(user.uid), Some(user.gid)).expect("chown");
    }
    let program = program_in(&lab);
    Some((lab, program))
}

fn as_user(lab: &Lab, user: &User, program: &Path, args: &[&str]) -> Done {
    let home = lab.root().join("home");
    let mut command = Command::new("setpriv");
    command
        .args(becoming(user))
        .arg("--")
        .arg(program)
        .args(args)
        .current_dir("/")
        .env("XDG_DATA_HOME", home.join("data"))
        .env("HOME", home);
    // The bounding set stays: fusermount3 gains root by its own setuid bit.
    run(&mut command)
}

/// A lab of an ordinary user, who can mount here.
struct UserLab {
    lab: Lab,
    user: User,
    program: PathBuf,
    // Last: the lab's daemon still needs the device.
    _fuse: OpenFuse,
}

impl UserLab {
    /// `None`, and said loudly, where no user can mount.
    fn new() -> Option<UserLab> {
        let user = nobody()?;
        if !users_can_mount() {
            return None;
        }
        let fuse = OpenFuse::new();
        let (lab, program) = lab_of(&user)?;
        Some(UserLab {
            lab,
            user,
            program,
            _fuse: fuse,
        })
    }

    /// The program, run by the user.
    fn ferryfs(&self, args: &[&str]) -> Done {
        as_user(&self.lab, &self.user, &self.program, args)
    }

    fn mount(&self) -> Done {
        let (drive, mnt) = (text(self.lab.drive.path()), text(&self.lab.mnt));
        self.ferryfs(&["mount", "--no-auto-flush", &drive, &mnt])
    }

    fn unmount(&self) {
        self.ferryfs(&["unmount", &text(&self.lab.mnt)])
            .code(exit::DONE);
    }

    /// A shell's script, run by the user in the mount.
    fn sh(&self, script: &str) -> Done {
        let script = format!("cd {}; {script}", text(&self.lab.mnt));
        let shell = Path::new("/bin/sh");
        as_user(&self.lab, &self.user, shell, &["-euc", &script])
    }

    /// `status --json`.
    fn status(&self) -> serde_json::Value {
        self.ferryfs(&["status", "--json", &text(&self.lab.mnt)])
            .code(exit::DONE)
            .json()
    }

    /// The daemon's process.
    fn daemon(&self) -> i32 {
        self.status()["pid"].as_i64().expect("pid") as i32
    }
}

#[test]
fn ordinary_user_mounts_writes_flushes_and_unmounts() {
    let Some(theirs) = UserLab::new() else { return };
    theirs.mount().code(exit::DONE);
    assert!(theirs.lab.is_mounted());
    theirs
        .sh(
            "mkdir -p a/b; echo text > a/b/file; cp a/b/file a/copy; mv a/copy moved; echo more >> moved
             ln -s moved link; chmod 600 moved; test \"$(stat -c %U moved)\" = nobody; ls -la > listing; rm listing",
        )
        .ok();
    let big = theirs.lab.root().join("home/big");
    fs::write(&big, content(1, 2 << 20)).expect("write");
    fs::set_permissions(&big, fs::Permissions::from_mode(0o644)).expect("chmod");
    let big = text(&big);
    theirs.sh(&format!("cp {big} big; cmp {big} big")).ok();

    let lab = &theirs.lab;
    theirs.ferryfs(&["flush", &text(&lab.mnt)]).code(exit::DONE);
    assert_content(lab.d("a/b/file"), b"text\n");
    assert_content(lab.d("moved"), b"text\nmore\n");
    assert!(fs::read(lab.d("big")).expect("read") == content(1, 2 << 20));
    let owner = fs::metadata(lab.d("big")).expect("stat").uid();
    assert_eq!(owner, theirs.user.uid);

    let status = theirs.status();
    assert_eq!(status["safe_to_unplug"], true, "{status}");
    theirs.unmount();
    assert!(!lab.is_mounted());
    theirs.lab.finish();
}

#[test]
fn dead_mount_of_a_user_is_cleared_by_the_same_user() {
    let Some(mut theirs) = UserLab::new() else {
        return;
    };
    theirs.mount().code(exit::DONE);
    theirs.sh("echo kept > file").ok();
    let pid = theirs.daemon();
    theirs.lab.kill(pid);
    theirs.mount().code(exit::DONE);
    assert_eq!(theirs.sh("cat file").ok().stdout, "kept\n");
    theirs.unmount();
    assert_content(theirs.lab.d("file"), b"kept\n");
    theirs.lab.finish();
}

/// By fusermount3 the dead mount cannot be replaced without a gap: the bare directory is protected,
/// and what gets in all the same is moved into the mount.
#[test]
fn a_users_program_that_retries_across_a_kill_and_a_remount_loses_nothing() {
    let Some(mut theirs) = UserLab::new() else {
        return;
    };
    theirs.mount().code(exit::DONE);
    let mut daemon = theirs.daemon();
    let stop = theirs.lab.root().join("home/stop");
    let script = r#"n=0; while [ ! -e "$2" ]; do
        mkdir -p "$1/out" 2>/dev/null && echo "data $n" 2>/dev/null > "$1/out/$n" && n=$((n+1))
        sleep 0.002; done 2>/dev/null; echo $n"#;
    let writer = std::thread::spawn({
        let mut command = Command::new("setpriv");
        command
            .args(becoming(&theirs.user))
            .args(["--", "/bin/sh", "-c", script, "sh"])
            .args([&theirs.lab.mnt, &stop]);
        move || run(&mut command)
    });
    let mut ends = Vec::new();
    for _ in 0..4 {
        std::thread::sleep(std::time::Duration::from_millis(300));
        theirs.lab.kill(daemon);
        std::thread::sleep(std::time::Duration::from_millis(100));
        ends.push(theirs.mount());
        if !theirs.lab.is_mounted() {
            break;
        }
        daemon = theirs.daemon();
    }
    std::thread::sleep(std::time::Duration::from_millis(200));
    fs::write(&stop, "").expect("stop the writer");
    let written: u64 = (writer.join().expect("the writer").ok().stdout.trim())
        .parse()
        .expect("a number");
    for end in ends {
        end.code(exit::DONE);
    }
    assert!(written > 10, "the writer got nowhere");
    let count = format!(
        "cd out; for n in $(seq 0 {}); do test \"$(cat $n)\" = \"data $n\" || ls -l $n $n.* 2>&1; done",
        written - 1
    );
    let lost = theirs.sh(&count).ok().stdout;
    assert_eq!(lost.trim(), "", "acknowledged and not in the mount");
    let mnt = text(&theirs.lab.mnt);
    theirs
        .ferryfs(&["unmount", "--no-flush", &mnt])
        .code(exit::DONE);
    assert_eq!(fs::read_dir(&mnt).expect("list").count(), 0);
    // Nobody writes into it by accident, and its owner can remove it.
    let refused = theirs.sh("echo x > stray");
    assert_ne!(refused.code, 0, "the bare mount point could be written to");
    theirs.lab.finish();
}

#[test]
fn another_user_cannot_command_the_daemon() {
    let Some(user) = nobody() else { return };
    let Some(mut lab) = Lab::new(Backend::Ext4Dir) else {
        return;
    };
    // Others may use the files here, and still not flush, eject or unmount.
    lab.mount(&["-o", "allow_other"]);
    let program = program_in(&lab);
    let mnt = text(&lab.mnt);
    for command in ["status", "flush", "eject", "unmount"] {
        let done = as_user(&lab, &user, &program, &[command, &mnt]);
        assert_eq!(
            done.code,
            exit::FAILED,
            "{command} by another user: {}{}",
            done.stdout,
            done.stderr
        );
    }
    assert!(lab.is_mounted());
    assert_eq!(lab.status()["backend_state"], "attached");
    lab.finish();
}

/// What `stat` says of a file: mode, owner, group.
fn stat(path: &Path) -> (u32, u32, u32) {
    let meta = fs::symlink_metadata(path).expect("stat");
    (meta.mode() & 0o7777, meta.uid(), meta.gid())
}

#[test]
fn one_owner_and_mode_are_shown_for_all_and_what_files_have_is_kept() {
    if nobody().is_none() {
        return;
    }
    let Some(mut lab) = Lab::new(Backend::Ext4Dir) else {
        return;
    };
    fs::write(lab.d("old"), "x").expect("write on the drive");
    lab.mount(&[]);
    lab::sh(
        &lab.mnt,
        "echo x > made; chmod 4711 made; chown 12:34 made; mkdir dir; chmod 700 dir; ln -s made link",
    );
    let before = ["made", "dir", "old"].map(|name| stat(&lab.m(name)));
    lab.unmount();
    lab.mount(&["-o", "uid=1000,gid=1001,umask=027"]);
    for name in ["made", "dir", "old", ""] {
        assert_eq!(stat(&lab.m(name)), (0o750, 1000, 1001), "{name:?}");
    }
    assert_eq!(stat(&lab.m("link")), (0o777, 1000, 1001));
    // What would not be seen succeeds and changes nothing; another owner is refused.
    lab::sh(
        &lab.mnt,
        "chmod 600 made; chown 1000:1001 made; ! chown 12 made 2>/dev/null; ! chgrp 34 made 2>/dev/null; \
         echo y > new; cp -p new copied; tar c new dir | tar x --same-permissions --no-same-owner -C dir; rm -r dir/dir",
    );
    assert_eq!(stat(&lab.m("new")), (0o750, 1000, 1001));
    lab.flush();
    lab.unmount();
    lab.mount(&[]);
    assert_eq!(
        ["made", "dir", "old"].map(|name| stat(&lab.m(name))),
        before
    );
    assert_eq!(stat(&lab.m("new")), (0o644, 0, 0), "as its maker had it");
    lab.finish();
}

#[test]
fn the_kernel_goes_by_what_is_shown() {
    let Some(user) = nobody() else { return };
    let Some(mut lab) = Lab::new(Backend::Ext4Dir) else {
        return;
    };
    let uid = format!("uid={}", user.uid);
    lab.mount(&["-o", "allow_other", "-o", &uid, "-o", "gid=0,umask=077"]);
    lab::sh(&lab.mnt, "echo secret > a");
    let cat = |uid: u32| {
        let mut command = Command::new("setpriv");
        command
            .args([format!("--reuid={uid}"), format!("--regid={uid}")])
            .args(["--clear-groups", "cat"])
            .arg(lab.m("a"));
        run(&mut command).code
    };
    assert_eq!(cat(user.uid), 0);
    assert_ne!(cat(12345), 0);
    lab.finish();
}

#[test]
fn a_user_is_shown_what_he_asks_for_too() {
    let Some(theirs) = UserLab::new() else { return };
    let mut args = theirs.lab.mount_args(&["-o", "gid=4242,umask=0"]);
    let cache = theirs.lab.root().join("home/cache");
    let at = args
        .iter()
        .position(|arg| arg == "--cache")
        .expect("--cache")
        + 1;
    args[at] = text(&cache);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    theirs.ferryfs(&args).code(exit::DONE);
    let told = theirs
        .sh("echo x > a; chmod 600 a; stat -c '%a %u %g' a")
        .ok();
    assert_eq!(told.stdout.trim(), format!("777 {} 4242", theirs.user.uid));
    theirs.unmount();
}

#[test]
fn a_users_acls_come_back_and_lock_nobody_out_of_the_drive() {
    let Some(theirs) = UserLab::new() else { return };
    if Command::new("setfacl").arg("--version").output().is_err() {
        return skip("setfacl is not installed");
    }
    theirs.mount().code(exit::DONE);
    theirs
        .sh(
            "umask 022; mkdir dir; echo x > dir/file; setfacl -m u:1002:rw dir/file; setfacl -d -m u::-,u:1002:rwx dir; \
             mkdir dir/below; : > dir/made; setfacl -m u::-,g:1003:r dir/made",
        )
        .ok();
    let told = || {
        theirs
            .sh("getfacl --numeric dir dir/file dir/below dir/made")
            .ok()
            .stdout
    };
    let made = told();
    assert!(made.contains("default:user:1002:rwx"), "{made}");
    theirs.unmount();
    for name in ["dir", "dir/below", "dir/made"] {
        let mode = fs::metadata(theirs.lab.d(name)).expect("stat").mode();
        assert_eq!(mode & 0o600, 0o600, "{name} is of no use to its owner");
    }
    fs::remove_dir_all(theirs.lab.root().join("home/data")).expect("remove the cache");
    theirs.mount().code(exit::DONE);
    assert_eq!(told(), made, "with an empty cache");
    theirs.unmount();
    theirs.lab.finish();
}

/// Names of directories that would be options of the mount, or hide some, if they were not escaped.
const NAMES: [&str; 7] = [
    "disk,ro,nosuch=1",
    r"disk\",
    r"a\,ro\\,dev",
    "allow_other",
    "x,allow_other,suid",
    "two words\tand a tab",
    "line\nend # \\040",
];

/// The mount at `lab.mnt` is of `drive`, with none of the options that its name asks for.
fn assert_unharmed(lab: &Lab, drive: &Path) {
    let table = fs::read("/proc/self/mountinfo").expect("mount table");
    let table = ferryfs::sys::mounts::parse(&table);
    let entry = table.iter().find(|entry| entry.mount_point == lab.mnt);
    let entry = entry.expect("the mount");
    assert_eq!(Path::new(&entry.source), drive);
    assert_eq!(entry.fs_type, "fuse.ferryfs");
    for option in ["rw", "nosuid", "nodev"] {
        assert!(entry.options.split(',').any(|found| found == option));
    }
    assert!(!entry.super_options.contains("allow_other"), "{entry:?}");
    // What other programs read is one line for it.
    let table = fs::read_to_string("/proc/mounts").expect("mount table");
    let mnt = format!(" {} fuse.ferryfs ", text(&lab.mnt));
    assert_eq!(table.lines().filter(|line| line.contains(&mnt)).count(), 1);
}

/// Who names the drive's directory must not choose options of the mount with it.
#[test]
fn no_part_of_a_drives_path_becomes_an_option_of_the_mount() {
    let Some(theirs) = UserLab::new() else { return };
    let (lab, user) = (&theirs.lab, &theirs.user);
    let mnt = text(&lab.mnt);
    for name in NAMES {
        let drive = lab.root().join(name);
        fs::create_dir(&drive).expect("mkdir");
        chown(&drive, Some(user.uid), Some(user.gid)).expect("chown");
        let mount = ["mount", "--no-auto-flush", "--enroll", &text(&drive), &mnt];
        theirs.ferryfs(&mount).code(exit::DONE);
        assert_unharmed(lab, &drive);
        theirs.sh("echo text > file").ok();
        // Commands find it by that path.
        for command in ["status", "flush", "unmount"] {
            theirs.ferryfs(&[command, &text(&drive)]).code(exit::DONE);
        }
        assert!(!lab.is_mounted());
        assert_content(drive.join("file"), b"text\n");
    }
    theirs.lab.finish();
}

#[test]
fn nor_where_root_mounts_it() {
    if nobody().is_none() {
        return;
    }
    let Some(mut lab) = Lab::new(Backend::Ext4Dir) else {
        return;
    };
    let drives: Vec<PathBuf> = NAMES.iter().map(|name| lab.root().join(name)).collect();
    for drive in &drives {
        fs::create_dir(drive).expect("mkdir");
        let mut args: Vec<std::ffi::OsString> = vec!["mount".into(), "--no-auto-flush".into()];
        args.extend(["--enroll".into(), drive.into(), lab.mnt.clone().into()]);
        lab.ferryfs(&args).code(exit::DONE);
        assert_unharmed(&lab, drive);
        // A dead mount is replaced in another way than one is made.
        let status: &[&std::ffi::OsStr] =
            &["status".as_ref(), "--json".as_ref(), drive.as_os_str()];
        let pid = lab.ferryfs(status).json()["pid"].as_i64().expect("pid");
        lab.kill(pid as i32);
        lab.ferryfs(&args).code(exit::DONE);
        assert_unharmed(&lab, drive);
        fs::write(lab.m("file"), "text\n").expect("write");
        for command in ["status", "flush", "unmount"] {
            lab.ferryfs(&[command.as_ref(), drive.as_os_str()])
                .code(exit::DONE);
        }
        assert!(!lab.is_mounted());
        assert_content(drive.join("file"), b"text\n");
    }
    lab.finish();
}

/// Makes files with as many attributes as a file can have. Prints what ended it for the first.
const STORM: &str = r#"
import errno, os, sys
for file in range(int(sys.argv[2])):
    path = "%s/%d" % (sys.argv[1], file)
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o644))
    try:
        for attribute in range(20):
            os.setxattr(path, "user.%d" % attribute, b"x" * 65536)
    except OSError as error:
        if file == 0:
            print(attribute, errno.errorcode[error.errno])
"#;

/// The peak of a process's memory, in KiB.
fn peak(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let number = line.and_then(|line| line.trim().strip_suffix(" kB"));
    number.expect("a peak").parse().expect("a number")
}

#[test]
fn one_users_attributes_do_not_keep_the_files_of_others_from_the_drive() {
    let Some(user) = nobody() else { return };
    let Some(mut lab) = Lab::new(Backend::Ext4Dir) else {
        return;
    };
    lab.mount(&["-o", "allow_other"]);
    let theirs = lab.m("theirs");
    fs::create_dir(&theirs).expect("mkdir");
    chown(&theirs, Some(user.uid), Some(user.gid)).expect("chown");
    let mut storm = Command::new("setpriv");
    storm
        .arg(format!("--reuid={}", user.uid))
        .arg(format!("--regid={}", user.gid))
        .args(["--clear-groups", "python3", "-c", STORM])
        .arg(&theirs)
        // More than one batch holds, as each byte of an attribute counts four times.
        .arg("72")
        .env("PATH", "/usr/bin:/bin")
        .current_dir("/");
    let done = run(&mut storm).ok();
    assert_eq!(done.stdout.trim(), "15 ENOSPC");
    // And one whose attributes are told of under each of many names.
    for link in 0..90 {
        fs::hard_link(theirs.join("0"), theirs.join(format!("link{link}"))).expect("link");
    }
    fs::write(lab.m("ours"), b"ours").expect("write");
    let flushed = lab.flush_code(exit::LEFT_BEHIND);
    let told = format!("{}{}", flushed.stdout, flushed.stderr);
    assert!(told.contains("theirs/link0"), "{told}");
    assert!(told.contains("extended attributes"), "{told}");
    assert_eq!(fs::read(lab.d("ours")).expect("it is carried"), b"ours");
    for file in 1..72 {
        assert!(lab.d(format!("theirs/{file}")).exists(), "{file}");
    }
    assert!(!lab.d("theirs/0").exists());
    let peak = peak(lab.pid());
    assert!(peak < 1536 << 10, "{peak} KiB at most");
    for link in 0..90 {
        fs::remove_file(theirs.join(format!("link{link}"))).expect("unlink");
    }
    lab.flush_code(exit::DONE);
    lab.finish();
}
