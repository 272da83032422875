//! What a script wrote is what any machine with ferryfs reads back: a tree with something of
//! everything that Linux allows goes through a flush, the cache is thrown away, and another machine
//! looks at the drive.

mod calls;
mod native;
mod survey;

use crate::lab::{self, Backend, Lab, skip};
use survey::{Open, Survey, build};

/// What may differ on exFAT after a round trip, and why. What is listed and does not differ is an
/// error, too.
const OPEN_ON_EXFAT: Open = &[];

/// The same on a directory that keeps modes and links itself.
const OPEN_ON_EXT4: Open = &[];

/// Everybody may do everything, as on a local file system.
const AS_GIVEN: &[&str] = &["-o", "allow_other,suid,dev"];

/// Unmounts, and has the drive come anew: what its driver still had in mind, such as times that it
/// cannot write, is forgotten.
fn plug_in_again(lab: &mut Lab) {
    lab.unmount();
    lab.drive.take_away();
    lab.drive.put_back();
}

/// The drive goes to a machine that has never seen it.
fn become_another_machine(lab: &mut Lab) {
    plug_in_again(lab);
    lab.take_new_cache();
    lab.mount(AS_GIVEN);
}

/// Gives what looks for changes made elsewhere the time to find some that are none.
fn look_for_changes(lab: &Lab) {
    let looked = lab.ferryfs(&["refresh", &lab::text(&lab.mnt)]);
    looked.code(lab::exit::DONE);
}

fn round_trip(backend: Backend, open: Open) {
    if !nix::unistd::geteuid().is_root() {
        return skip("owners and devices need root");
    }
    let Some(mut lab) = Lab::new(backend) else {
        return;
    };
    lab.mount(AS_GIVEN);
    let refused = build(&lab.mnt, &[]);
    let written = Survey::of(&lab.mnt, &[]);
    assert!(written.len() > 2000, "only {} entries", written.len());
    lab.flush();
    written.assert_same(&Survey::of(&lab.mnt, &[]), "after a flush");
    plug_in_again(&mut lab);
    lab.remount();
    look_for_changes(&lab);
    written.assert_same(&Survey::of(&lab.mnt, &[]), "after a remount");
    become_another_machine(&mut lab);
    look_for_changes(&lab);
    let mut found = written.differences(&Survey::of(&lab.mnt, &[]));
    if !refused.is_empty() {
        found.0.insert("cannot be made".into(), refused);
    }
    found.assert_only(open, "on another machine");
    let outlived: Vec<_> = open
        .iter()
        .filter(|(listed, _)| !found.0.contains_key(*listed))
        .collect();
    assert!(outlived.is_empty(), "listed as differing: {outlived:?}");
    let dirty = lab.status()["dirty_files"].clone();
    assert_eq!(dirty, 0, "looking makes nothing dirty");
    lab.finish();
}

/// Changes of every kind to what came from the drive and is not in the cache.
const CHANGES: &str = r#"
chmod 0600 contents/4096; chmod 4711 contents/512; chown 77:88 contents/511; chmod 2770 contents
touch -d '2001-02-03 04:05:06.789012345' contents/1
printf more >> contents/4095; : > contents/4097
mv contents/65536 'moved: away?'; mv scripts Scripts; mv contents/fan fan
ln contents/131071 'another name'; ln -s 'another name' 'points: there'
setfattr -n user.new -v value contents/131073; setfattr -n user.of -v changed xattrs/directory; setfattr -x user.colour xattrs/some
rm -r empties; rm hardlinks/many/name-00*; printf changed > hardlinks/many/name-500
mv hardlinks/d2 hardlinks/moved; rm symlinks/relative symlinks/longest; ln -sf elsewhere symlinks/dangling
rm special/fifo; mkfifo -m 0604 special/pipe; mv special/null special/renamed
rm -r owners/dir-1-0; echo file > owners/dir-1-0; rm modes/file-0755; mkdir modes/file-0755; echo x > modes/file-0755/inside
mkdir case/dIR; echo yes > case/dIR/same; rm case/README
touch -d '1999-12-31 23:59:59.5' contents fan owners
"#;

fn changes_after_a_round_trip(backend: Backend, open: Open) {
    if !nix::unistd::geteuid().is_root() {
        return skip("owners and devices need root");
    }
    let Some(mut lab) = Lab::new(backend) else {
        return;
    };
    lab.mount(AS_GIVEN);
    build(&lab.mnt, &[]);
    lab.unmount();
    for round in ["changed", "changed again"] {
        lab.take_new_cache();
        lab.mount(AS_GIVEN);
        // What another machine does not see yet cannot be changed there.
        for line in CHANGES.lines() {
            let mut shell = std::process::Command::new("bash");
            shell.args(["-c", line]).current_dir(&lab.mnt);
            lab::run(&mut shell);
        }
        let left = Survey::of(&lab.mnt, &[]);
        lab.flush();
        left.assert_same(&Survey::of(&lab.mnt, &[]), round);
        become_another_machine(&mut lab);
        let found = left.differences(&Survey::of(&lab.mnt, &[]));
        found.assert_only(open, round);
        lab.unmount();
    }
    lab.drive.take_away();
    lab.drive.assert_clean();
}

#[test]
fn what_another_machine_changes_comes_back_from_exfat() {
    changes_after_a_round_trip(Backend::EXFAT, OPEN_ON_EXFAT);
}

#[test]
#[ignore = "a minute; scripts/suites.sh runs it"]
fn what_another_machine_changes_comes_back_from_a_plain_directory() {
    changes_after_a_round_trip(Backend::Ext4Dir, OPEN_ON_EXT4);
}

/// `rsync -aHAXnc` between the two shows no difference: by way of a copy on a file system that
/// holds everything.
fn rsync_finds_no_difference(backend: Backend) {
    if !nix::unistd::geteuid().is_root() {
        return skip("owners and devices need root");
    }
    let Some(mut lab) = Lab::new(backend) else {
        return;
    };
    let copy = lab.root().join("copy");
    // Attributes of 64 KiB need ea_inode; and a path of 4,000 bytes does not fit behind the name of
    // the copy.
    let script = "mkdir copy && truncate -s 512M copy.img && mkfs.ext4 -q -F -O ea_inode copy.img && mount -o loop copy.img copy && \
                  rmdir copy/lost+found";
    lab::sh(lab.root(), script);
    lab.mount(AS_GIVEN);
    build(&lab.mnt, &[]);
    // Before 1901 ext4 has no times, nor room for hundreds of attributes; beyond PATH_MAX rsync has
    // no paths.
    let skipped = [
        "--exclude=/times/1[789]00*",
        "--exclude=beyond-*",
        "--exclude=/xattrs/many",
        "--exclude=/deep/0*",
    ];
    let rsync = |lab: &Lab, options: &[&str]| {
        let mut command = std::process::Command::new("rsync");
        command
            .args(["-aHAX", "--numeric-ids"])
            .args(skipped)
            .args(options);
        let (from, to) = (
            format!("{}/", lab::text(&lab.mnt)),
            format!("{}/", lab::text(&copy)),
        );
        lab::run(command.args([from, to])).ok().stdout
    };
    rsync(&lab, &[]);
    let compare = ["-nc", "--itemize-changes", "--delete"];
    let differences = rsync(&lab, &compare);
    assert_eq!(differences, "", "the copy itself");
    become_another_machine(&mut lab);
    let differences = rsync(&lab, &compare);
    assert_eq!(differences, "", "on another machine");
    lab.unmount();
    lab::run(std::process::Command::new("umount").arg(&copy)).ok();
    lab.finish();
}

#[test]
fn rsync_finds_no_difference_between_two_machines_over_exfat() {
    rsync_finds_no_difference(Backend::EXFAT);
}

#[test]
#[ignore = "a minute; scripts/suites.sh runs it"]
fn rsync_finds_no_difference_between_two_machines_over_a_plain_directory() {
    rsync_finds_no_difference(Backend::Ext4Dir);
}

#[test]
fn everything_comes_back_from_exfat() {
    round_trip(Backend::EXFAT, OPEN_ON_EXFAT);
}

#[test]
fn everything_comes_back_from_a_plain_directory() {
    round_trip(Backend::Ext4Dir, OPEN_ON_EXT4);
}
