//! Units of systemd and lines of fstab: what the service manager hears, and `mount -t ferryfs`.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::lab::{
    Backend, Lab, content, exit, ferryfs_binary, only_mounts_of, run, skip, text, write,
};

const SOON: Duration = Duration::from_secs(20);

/// A socket such as the service manager has, and what it has heard.
struct Manager {
    socket: UnixDatagram,
    heard: Vec<String>,
}

impl Manager {
    fn at(path: &Path) -> Manager {
        let socket = UnixDatagram::bind(path).expect("bind");
        let slice = Duration::from_millis(100);
        socket.set_read_timeout(Some(slice)).expect("set a timeout");
        Manager {
            socket,
            heard: Vec::new(),
        }
    }

    /// Listens until a line begins with `words`.
    #[track_caller]
    fn hears(&mut self, words: &str) {
        let end = Instant::now() + SOON;
        while !self.heard.iter().any(|line| line.starts_with(words)) {
            assert!(Instant::now() < end, "no {words:?} in {:?}", self.heard);
            let mut bytes = [0; 4096];
            if let Ok(got) = self.socket.recv(&mut bytes) {
                let text = String::from_utf8_lossy(&bytes[..got]).into_owned();
                self.heard.extend(text.lines().map(str::to_owned));
            }
        }
    }
}

fn signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(child.id() as i32), signal).expect("send a signal");
}

#[test]
fn the_service_manager_hears_of_the_start_the_state_and_the_end() {
    let Some(lab) = Lab::new(Backend::Ext4Dir) else {
        return;
    };
    let path = lab.root().join("notify");
    let mut manager = Manager::at(&path);
    let mut args = lab.mount_args(&["--foreground"]);
    args.retain(|arg| arg != "--io");
    let mut child = lab
        .command(&args)
        .env("NOTIFY_SOCKET", &path)
        .env("WATCHDOG_USEC", "1000000")
        .stdin(Stdio::null())
        .spawn()
        .expect("start");
    manager.hears("READY=1");
    assert!(lab.is_mounted(), "ready before it is mounted");
    manager.hears(&format!("MAINPID={}", child.id()));
    manager.hears("STATUS=safe to unplug");
    manager.hears("WATCHDOG=1");
    write(&lab.m("one"), &content(1, 5_000));
    manager.hears("STATUS=not safe to unplug, 4.88 KiB wait");
    lab.flush();
    lab.eject();
    manager.hears("STATUS=the drive is away, nothing waits");
    manager.heard.clear();
    signal(&child, Signal::SIGTERM);
    manager.hears("STOPPING=1");
    manager.hears("EXTEND_TIMEOUT_USEC=");
    assert!(child.wait().expect("wait").success());
    assert!(!lab.is_mounted());
    lab.finish();
}

#[test]
fn a_mount_that_fails_is_never_ready_and_no_manager_is_needed() {
    let Some(mut lab) = Lab::new(Backend::Ext4Dir) else {
        return;
    };
    let path = lab.root().join("notify");
    let manager = Manager::at(&path);
    write(&lab.mnt.join("in the way"), b"x");
    let args = lab.mount_args(&["--foreground"]);
    run(lab.command(&args).env("NOTIFY_SOCKET", &path)).refuses(exit::FAILED, "not empty");
    let mut bytes = [0; 256];
    assert!(
        manager.socket.recv(&mut bytes).is_err(),
        "it has reported something"
    );
    fs::remove_file(lab.mnt.join("in the way")).expect("remove");
    let gone = lab.root().join("gone");
    let args = lab.mount_args(&[]);
    run(lab.command(&args).env("NOTIFY_SOCKET", &gone)).ok();
    lab.adopt();
    lab.finish();
}

/// Runs `script` with mount(8) in a mount namespace in which `mount -t ferryfs` finds the program.
fn with_helper(lab: &Lab, script: &str) {
    let root = text(lab.root());
    for dir in ["upper", "work"] {
        fs::create_dir(lab.root().join(dir)).expect("make a directory");
    }
    let whole = format!(
        "set -e\n\
         {others}\
         mount -t tmpfs tmpfs {root}/upper\n\
         mkdir {root}/upper/up {root}/upper/work\n\
         mount -t overlay -o lowerdir=/usr/sbin,upperdir={root}/upper/up,workdir={root}/upper/work \
         overlay /usr/sbin\n\
         ln -s {program} /usr/sbin/mount.ferryfs\n\
         ln -s {program} /usr/sbin/mount.fuse.ferryfs\n\
         {script}",
        others = only_mounts_of(lab.root()),
        program = ferryfs_binary().display(),
    );
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--propagation", "private", "sh", "-c", &whole])
        // As a unit of systemd has it.
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    run(&mut command).ok();
}

#[test]
fn mount_takes_a_line_of_fstab_and_needs_no_home() {
    if !nix::unistd::geteuid().is_root() {
        return skip("a mount namespace with the helper in it needs root");
    }
    if !Path::new("/sbin").is_symlink() {
        return skip("/sbin is a directory of its own here");
    }
    let Some(lab) = Lab::new(Backend::Ext4Dir) else {
        return;
    };
    write(&lab.d("theirs"), b"before");
    let (drive, mnt, cache) = (text(lab.drive.path()), text(&lab.mnt), text(&lab.cache));
    let program = ferryfs_binary().display().to_string();
    let fstab = text(&lab.root().join("fstab"));
    let options = format!(
        "noauto,nofail,_netdev,user,exec,x-systemd.automount,x-systemd.requires-mounts-for=/x,\
         no_auto_flush,cache={cache},no_protect_mountpoint"
    );
    fs::write(&fstab, format!("{drive} {mnt} ferryfs {options} 0 0\n")).expect("write fstab");
    with_helper(
        &lab,
        &format!(
            "mount -T {fstab} {mnt}\n\
             grep -q ' {mnt} fuse.ferryfs ' /proc/self/mounts\n\
             test \"$(cat {mnt}/theirs)\" = before\n\
             echo new >{mnt}/new\n\
             {program} unmount {mnt}\n\
             test \"$(cat {drive}/new)\" = new\n\
             mount -t fuse.ferryfs -o cache={cache},no_auto_flush {drive} {mnt}\n\
             test \"$(cat {mnt}/new)\" = new\n\
             {program} unmount {mnt}\n\
             set +e\n\
             mount -t ferryfs -o cache={cache},ro {drive} {mnt} 2>{root}/refused\n\
             test $? = 1 || exit 1\n\
             grep -q \"mount option 'ro'\" {root}/refused || exit 1\n\
             mount -t ferryfs -o cache={cache} /no/such/drive {mnt} 2>{root}/absent\n\
             test $? = 32 || exit 1\n",
            root = text(lab.root()),
        ),
    );
    assert!(lab.cache.join("cache.json").exists());
    lab.finish();
}
