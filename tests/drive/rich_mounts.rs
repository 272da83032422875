//! The real program over file systems made for Linux: what ordinary tools see on the backend is
//! what they see in the mount.

use std::path::Path;
use std::process::Command;

use crate::lab::{Backend, Lab, run, sh, skip, small_disk};

/// A tree with something of everything.
const GROW: &str = r#"
mkdir -p d/e "d/with space" empty closed
echo plain > plain; echo tool > tool; chmod 4755 tool
echo secret > secret; chmod 0 secret
echo theirs > theirs
echo one > one; ln one d/two; ln one d/e/three
printf 'a%.0s' $(seq 300) > d/many
ln -s nowhere/at/all d/dangling; ln -s /etc/passwd absolute; ln -s 'ü→☃' "d/snow ☃"
ln absolute d/again
mkfifo d/pipe; chmod 620 d/pipe
setfattr -n user.tag -v 0x00ff plain; setfattr -n user.dir -v x d
echo in > closed/in; chmod 700 closed; chmod 1777 empty
touch -h -d '1999-12-31 23:59:59.123456789' d/dangling
touch -d '2001-02-03 04:05:06.700000001' d/e plain
"#;

const AS_ROOT: &str = r#"
chown 12345:54321 theirs; chown -h 77:78 absolute
mknod null c 1 3; mknod block b 7 300
setfattr -n trusted.t -v t d; setfattr -h -n trusted.link -v l absolute
"#;

/// What may become of it.
const EDIT: &str = r#"
echo 'rewritten in place' >> d/two
ln plain d/e/plain-too; rm d/e/three; mv d/dangling moved; rm absolute; echo file > absolute
rm plain; mkfifo plain; rm d/pipe; ln -s instead d/pipe
chmod 755 tool; chmod 640 secret; setfattr -x user.dir d; setfattr -n user.new -v new d/e
mv d/e e; ln one "e/one more"; mkdir -p made; chmod 2711 made; ln tool made/tool; echo changed > made/tool
mv closed made/closed; chmod 755 .; touch -d '2010-01-01 00:00:00.5' .
"#;

/// What rsync would change on the backend to make it the mount: nothing.
#[track_caller]
fn assert_same(lab: &Lab, when: &str) {
    let flags = "-aHAXnc";
    let mut rsync = Command::new("rsync");
    rsync
        .args([
            flags,
            "--itemize-changes",
            "--delete",
            "--exclude=/.ferryfs",
            "--exclude=/lost+found",
        ])
        .args([
            format!("{}/", lab.mnt.display()),
            format!("{}/", lab.d("").display()),
        ]);
    let done = run(&mut rsync).ok();
    assert_eq!(done.stdout, "", "{when}: rsync {flags} finds differences");
}

fn carried(lab: &mut Lab, script: &str) {
    sh(&lab.mnt, &format!("set -e\n{script}")).ok();
    lab.flush();
    assert_same(lab, "after a flush");
    lab.unmount();
    lab.remount();
    assert_same(lab, "mounted again");
    lab.unmount();
    lab.take_new_cache();
    lab.mount(GIVEN);
    assert_same(lab, "with an empty cache");
    assert_eq!(
        lab.status()["dirty_files"],
        0,
        "looking makes nothing dirty"
    );
}

const GIVEN: &[&str] = &["-o", "allow_other,suid,dev"];

fn everything_is_carried(mut lab: Lab) -> Lab {
    lab.mount(GIVEN);
    carried(&mut lab, GROW);
    carried(&mut lab, AS_ROOT);
    carried(&mut lab, EDIT);
    let names = sh(&lab.d(""), "stat -c '%h %i' one d/two 'e/one more'")
        .ok()
        .stdout;
    let names: Vec<&str> = names.lines().collect();
    assert!(
        names[0].starts_with("3 ") && names.iter().all(|line| *line == names[0]),
        "{names:?}"
    );
    let owner = sh(&lab.d(""), "stat -c '%u:%g %a' theirs made").ok().stdout;
    assert_eq!(owner, "12345:54321 644\n0:0 2711\n");
    lab.unmount();
    lab
}

fn has_tools() -> bool {
    ["rsync", "setfattr"].iter().all(|tool| {
        let found = Command::new(tool).arg("--version").output().is_ok();
        if !found {
            skip(&format!("{tool} is not installed"));
        }
        found
    })
}

fn lab() -> Option<Lab> {
    if !nix::unistd::geteuid().is_root() {
        skip("owners and devices need root");
        return None;
    }
    has_tools().then(|| Lab::new(Backend::Ext4Dir))?
}

#[test]
fn a_directory_of_this_machine_holds_everything_itself() {
    if let Some(lab) = lab() {
        everything_is_carried(lab).finish();
    }
}

#[test]
fn an_ext4_drive_holds_everything_itself() {
    let Some(lab) = lab() else {
        return;
    };
    let Some(ssd) = small_disk(lab.root(), 64, 0) else {
        return;
    };
    bind(ssd.path(), lab.drive.path());
    // Whose place is a mount of its own, which cannot be moved away.
    drop(everything_is_carried(lab));
}

/// Has the drive's place show another directory; the lab takes it away with its other mounts.
fn bind(from: &Path, to: &Path) {
    run(Command::new("mount").arg("--bind").args([from, to])).ok();
}
