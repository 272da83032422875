//! POSIX ACLs are those of a local file system: set, checked, inherited, changed along with the
//! mode, and carried.

use std::path::Path;
use std::process::Command;

use super::{AS_GIVEN, python, stage};
use crate::lab;
use crate::lab::{Backend, Lab, run, sh, skip};

/// ACLs made by hand, so that wrong ones can be made as well.
const FORMAT: &str = r#"
import random
ACCESS, DEFAULT = 'system.posix_acl_access', 'system.posix_acl_default'
NO_ID = 0xffffffff
def packed(entries): return struct.pack('<I', 2) + b''.join(struct.pack('<HHI', *entry) for entry in entries)
def some_acl(r):
    def bits(): return r.choice((0, 1, 2, 3, 4, 5, 6, 7))
    entries = [(1, bits(), NO_ID)]
    entries += [(2, bits(), uid) for uid in (1002, 1003) if r.random() < 0.4]
    entries += [(4, bits(), NO_ID)]
    entries += [(8, bits(), gid) for gid in (1002, 1003) if r.random() < 0.3]
    if len(entries) > 2 or r.random() < 0.2: entries += [(16, bits(), NO_ID)]
    entries += [(32, bits(), NO_ID)]
    if r.random() < 0.08: entries.pop(r.randrange(len(entries)))
    if r.random() < 0.05: r.shuffle(entries)
    if r.random() < 0.03: entries = []
    return packed(entries)
def said(path):
    st = os.lstat(path)
    acls = {}
    for name in ACCESS, DEFAULT:
        try: acls[name] = os.getxattr(path, name, follow_symlinks=False).hex()
        except OSError as e: acls[name] = tell(e)
    listed = [name for name in os.listxattr(path, follow_symlinks=False) if name.startswith('system.')]
    return '%o' % st.st_mode, st.st_uid, st.st_gid, acls, sorted(listed)
def tree(base):
    found = {}
    for dir, dirs, files in os.walk(base):
        for name in [''] + dirs + files:
            path = os.path.join(dir, name)
            found[os.path.relpath(path, base)] = said(path)
    return found
"#;

/// The same calls by the same users on both sides: every answer, mode and ACL must be the same.
const RANDOM: &str = r#"
native, mount, seed = sys.argv[1], sys.argv[2], int(os.path.basename(sys.argv[3]))
r = random.Random(seed)
os.chmod(native, 0o777); os.chmod(mount, 0o777)
names = ['f%d' % n for n in range(6)] + ['d%d' % n for n in range(4)]
paths = names + ['d%d/%s' % (n, name) for n in range(4) for name in names]
def made(path, umask, make):
    os.umask(umask)
    return make(path)
def create(mode): return lambda path: os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))
def step():
    path, who = r.choice(paths), r.choice((0, 0, 1002, 1003))
    mode, umask = r.choice((0o777, 0o666, 0o640, 0o2770, 0o1777, 0o4755, 0)), r.choice((0, 0o22, 0o77, 0o27))
    acl, name = some_acl(r), r.choice((ACCESS, DEFAULT))
    calls = {
        'setacl': lambda p: os.setxattr(p, name, acl),
        'delacl': lambda p: os.removexattr(p, name),
        'chmod': lambda p: os.chmod(p, mode),
        'chown': lambda p: os.chown(p, r2.choice((0, 1002, 1003)), r2.choice((0, 1002, 1003))),
        'create': lambda p: made(p, umask, create(mode)),
        'mkdir': lambda p: made(p, umask, lambda p: os.mkdir(p, mode)),
        'fifo': lambda p: made(p, umask, lambda p: os.mkfifo(p, mode)),
        'symlink': lambda p: os.symlink('x', p),
        'remove': lambda p: os.rmdir(p) if os.path.isdir(p) and not os.path.islink(p) else os.unlink(p),
        'read': lambda p: sorted(os.listdir(p)) if os.path.isdir(p) else os.close(os.open(p, os.O_RDONLY | os.O_NONBLOCK)),
        'write': lambda p: os.close(os.open(p, os.O_WRONLY | os.O_NONBLOCK)),
        'access': lambda p: [os.access(p, how) for how in (os.R_OK, os.W_OK, os.X_OK)],
        'rename': lambda p: os.rename(p, p + 'x') or os.rename(p + 'x', p),
    }
    weights = {'setacl': 12, 'create': 6, 'mkdir': 6, 'chmod': 3, 'remove': 1, 'delacl': 1}
    kind = r.choices(list(calls), [weights.get(kind, 2) for kind in calls])[0]
    groups = r.choice(((), (1002,), (1003, 0)))
    seed2 = r.random()
    told = []
    for base in native, mount:
        r2 = random.Random(seed2)
        told.append(as_user(who, lambda: calls[kind](base + '/' + path), groups))
    what = '%s %s by %d %s (mode %o, umask %o, %s %s)' % (kind, path, who, groups, mode, umask, name, acl.hex())
    assert told[0] == told[1], '%s: natively %s, here %s' % (what, *told)
    return path, what
seen = 0
for n in range(700):
    path, what = step()
    for path in {path, os.path.dirname(path)}:
        if os.path.lexists(native + '/' + path):
            wanted, found = said(native + '/' + path), said(mount + '/' + path)
            seen += len(found[4])
            assert wanted == found, 'step %d, %s: natively %s, here %s' % (n, what, wanted, found)
wanted, found = tree(native), tree(mount)
assert wanted == found, (wanted, found)
assert seen > 20, 'an ACL was seen only %d times' % seen
"#;

fn random_calls(seed: &str) {
    let Some((lab, native)) = stage(Backend::Ext4Dir) else {
        return;
    };
    python(
        &format!("{FORMAT}\n{RANDOM}"),
        &[&native, &lab.mnt, Path::new(seed)],
    );
    lab.finish();
}

#[test]
fn random_calls_of_several_users_are_answered_as_on_ext4() {
    for seed in ["1", "2", "3"] {
        random_calls(seed);
    }
}

#[test]
fn values_that_are_no_acl_are_refused_as_on_ext4() {
    let Some((lab, native)) = stage(Backend::Ext4Dir) else {
        return;
    };
    let script = r#"
native, mount = sys.argv[1:3]
r = random.Random(5)
values = [b'', b'\2', b'\2\0\0\0', b'\1\0\0\0', packed([]), packed([(1, 8, NO_ID), (4, 0, NO_ID), (32, 0, NO_ID)])]
values += [packed([(1, 7, NO_ID)] + [(2, 5, n) for n in range(count)] + [(4, 5, NO_ID), (16, 5, NO_ID), (32, 0, NO_ID)])
           for count in (1, 100)]
values += [some_acl(r)[:-1] for n in range(5)] + [r.randbytes(28) for n in range(20)]
for base in native, mount: open(base + '/f', 'w').close(); os.mkdir(base + '/d'); os.symlink('f', base + '/l')
for value in values:
    for name in ACCESS, DEFAULT:
        for path in 'f', 'd', 'l':
            for flags in 0, os.XATTR_CREATE, os.XATTR_REPLACE:
                def call(base): return lambda: os.setxattr(base + '/' + path, name, value, flags, follow_symlinks=False)
                told = [as_user(0, call(base)) for base in (native, mount)]
                assert told[0] == told[1], (value, name, path, told)
                assert said(native + '/' + path) == said(mount + '/' + path), (value, name, path)
"#;
    python(&format!("{FORMAT}\n{script}"), &[&native, &lab.mnt]);
    lab.finish();
}

/// What `getfacl` tells of a tree, and what `stat` tells beside it.
fn survey(dir: &Path) -> String {
    let script = r#"
all() { find . \( -path ./.ferryfs -o -path ./lost+found \) -prune -o "$@"; }
all ! -type l -print0 | sort -z | xargs -0 getfacl --numeric
all -printf '%p %m %U %G\n' | sort
"#;
    sh(dir, script).ok().stdout
}

const GROW: &str = r#"
umask 022
mkdir -p plain given/inside; echo x > plain/file; echo x > given/file
setfacl -m u:1002:rw,g:1003:r plain/file
setfacl -m u:1002:rwx,m::rx -d -m u:1003:rwx,g::r,o::- given
echo x > given/inherits; mkdir given/below; echo x > given/below/inherits; mkfifo given/fifo; ln -s file given/link
mv plain/file given/moved; echo x > given/outside; mv given/outside plain/came
mkdir plain/dir; mv plain/dir given/dir
setfacl -m u:1002:- given/file; chmod 0470 given/file; setfacl -m u::-,u:1002:rwx given/moved
"#;

fn has_tools() -> bool {
    let lacks = |tool: &&str| Command::new(tool).arg("--version").output().is_err();
    let missing = ["getfacl", "rsync", "tar"].into_iter().find(lacks);
    if let Some(tool) = missing {
        skip(&format!("{tool} is not installed"));
    }
    missing.is_none()
}

fn round_trip(backend: Backend) -> Option<Lab> {
    if !has_tools() {
        return None;
    }
    let (mut lab, native) = stage(backend)?;
    sh(&lab.mnt, GROW).ok();
    sh(&native, GROW).ok();
    let made = survey(&native);
    assert!(made.contains("user:1002:rwx"), "{made}");
    assert_eq!(made, survey(&lab.mnt), "in the mount");
    lab.flush();
    lab.unmount();
    lab.remount();
    assert_eq!(made, survey(&lab.mnt), "mounted again");
    lab.unmount();
    lab.take_new_cache();
    lab.mount(AS_GIVEN);
    assert_eq!(made, survey(&lab.mnt), "on another machine");
    // What came from the drive is changed like any other.
    let change = "umask 022; setfacl -b given/moved; setfacl -x u:1002 plain/../given/file; setfacl -k given/below; chmod 751 given; echo x > given/late; setfacl -R -m g:7:x plain";
    sh(&lab.mnt, change).ok();
    sh(&native, change).ok();
    lab.flush();
    lab.unmount();
    lab.take_new_cache();
    lab.mount(AS_GIVEN);
    assert_eq!(survey(&native), survey(&lab.mnt), "changed");
    assert_eq!(
        lab.status()["dirty_files"],
        0,
        "looking makes nothing dirty"
    );
    Some(lab)
}

#[test]
fn acls_go_to_a_drive_that_has_none_and_come_back() {
    if let Some(lab) = round_trip(Backend::EXFAT) {
        lab.finish();
    }
}

#[test]
fn a_drive_that_has_acls_is_given_them() {
    let Some(lab) = round_trip(Backend::Ext4Dir) else {
        return;
    };
    assert_eq!(survey(&lab.d("")), survey(&lab.mnt), "on the drive itself");
    lab.finish();
}

#[test]
fn a_drive_whose_directory_has_a_default_acl_gives_nothing_what_it_was_not_given() {
    if !has_tools() || !nix::unistd::geteuid().is_root() {
        return skip("needs root and getfacl");
    }
    let Some(mut lab) = Lab::new(Backend::Ext4Dir) else {
        return;
    };
    sh(
        &lab.d(""),
        "setfacl -d -m u:1002:rwx,o::- .; mkdir old; echo x > old/file",
    )
    .ok();
    lab.mount(AS_GIVEN);
    assert_eq!(survey(&lab.d("")), survey(&lab.mnt), "as it was found");
    let script = "umask 022; setfacl -k .; mkdir new; echo x > new/file; mkdir old/in; setfacl -b old/in; echo x > old/in/file; mv new/file old/moved; echo x > old/made";
    sh(&lab.mnt, script).ok();
    lab.flush();
    assert_eq!(survey(&lab.d("")), survey(&lab.mnt), "after a flush");
    assert!(!survey(&lab.d("new")).contains("1002"));
    lab.finish();
}

#[test]
fn rsync_and_tar_lose_no_acl() {
    if !has_tools() {
        return;
    }
    let Some((lab, native)) = stage(Backend::EXFAT) else {
        return;
    };
    sh(&native, GROW).ok();
    let (from, mount) = (lab::text(&native), lab::text(&lab.mnt));
    sh(
        &lab.mnt,
        &format!("rsync -aAX {from}/ {mount}/rsync/; mkdir tar; tar -C {from} --acls -cf - . | tar -C tar --acls -xpf -"),
    )
    .ok();
    for copy in ["rsync", "tar"] {
        assert_eq!(survey(&native), survey(&lab.m(copy)), "{copy}");
    }
    let mut again = Command::new("rsync");
    again.args(["-aAXnc", "--itemize-changes", "--delete"]);
    again.args([format!("{from}/"), format!("{mount}/rsync/")]);
    assert_eq!(run(&mut again).ok().stdout, "");
    let back = lab.root().join("back");
    std::fs::create_dir(&back).expect("mkdir");
    let (back_text, script) = (lab::text(&back), "rsync -aAX");
    sh(&lab.mnt, &format!("{script} {mount}/tar/ {back_text}/")).ok();
    assert_eq!(survey(&native), survey(&back), "and back");
    lab.finish();
}

#[test]
fn where_one_mode_is_shown_for_all_acls_are_kept_and_not_in_force() {
    if !has_tools() {
        return;
    }
    let Some((mut lab, _)) = stage(Backend::Ext4Dir) else {
        return;
    };
    sh(&lab.mnt, GROW).ok();
    let made = survey(&lab.mnt);
    lab.unmount();
    lab.mount(&["-o", "allow_other,umask=022"]);
    let script = r#"
path = sys.argv[1] + '/given/file'
assert [name for name in os.listxattr(path) if name.startswith('system.')] == []
for call in lambda: os.getxattr(path, ACCESS), lambda: os.setxattr(path, ACCESS, some_acl(random.Random(1))):
    assert as_user(0, call) in ('EOPNOTSUPP', 'ENOTSUP'), as_user(0, call)
assert as_user(1005, lambda: open(path).read()) == repr('x\n')
"#;
    python(&format!("{FORMAT}\n{script}"), &[&lab.mnt]);
    lab.unmount();
    lab.mount(AS_GIVEN);
    assert_eq!(made, survey(&lab.mnt));
    lab.finish();
}
