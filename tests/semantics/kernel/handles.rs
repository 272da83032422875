//! File handles, as the kernel's NFS server and Samba keep them: good for as long as the file is
//! there, whatever the kernel has forgotten meanwhile.

use super::AS_GIVEN;
use super::{python, stage};
use crate::lab::{Backend, Lab};

/// `name_to_handle_at` and `open_by_handle_at`, which Python does not have.
const CALLS: &str = r#"
libc = ctypes.CDLL(None, use_errno=True)
def checked(n):
    if n < 0: raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return n
def handle_of(path):
    handle = ctypes.create_string_buffer(struct.pack('Ii', 128, 0), 8 + 128)
    mount = ctypes.c_int()
    checked(libc.name_to_handle_at(-100, path.encode(), handle, ctypes.byref(mount), 0))
    size = struct.unpack_from('I', handle)[0]
    return handle.raw[:8 + size]
def by_handle(mount, handle, flags=os.O_RDONLY):
    root = os.open(mount, os.O_RDONLY)
    try: return checked(libc.open_by_handle_at(root, ctypes.create_string_buffer(handle, len(handle)), flags))
    finally: os.close(root)
def read(mount, handle):
    f = by_handle(mount, handle)
    try: return os.read(f, 100)
    finally: os.close(f)
def listed(mount, handle):
    f = by_handle(mount, handle, os.O_RDONLY | os.O_DIRECTORY)
    try: return sorted(os.listdir(f)), os.path.realpath('/proc/self/fd/%d' % f)
    finally: os.close(f)
def fails(wanted, call, *args):
    try: call(*args)
    except OSError as e: assert e.errno == wanted, e
    else: raise AssertionError('%s should have failed' % (args,))
def forget():
    with open('/proc/sys/vm/drop_caches', 'w') as f: f.write('2')
HANDLES = sys.argv[2]
mount = sys.argv[1]
def keep(handles): open(HANDLES, 'w').write(repr(handles))
def kept(): return eval(open(HANDLES).read())
"#;

#[track_caller]
fn with_calls(lab: &Lab, script: &str) {
    let handles = lab.root().join("handles");
    python(&format!("{CALLS}\n{script}"), &[&lab.mnt, &handles]);
}

#[test]
fn a_file_handle_outlives_what_the_kernel_forgets() {
    let Some((lab, _)) = stage(Backend::Ext4Dir) else {
        return;
    };
    with_calls(
        &lab,
        r#"
os.makedirs(mount + '/a/b/c')
for path in 'a/b/c/file', 'a/gone', 'a/away': open(mount + '/' + path, 'w').write(path)
handles = {path: handle_of(mount + '/' + path) for path in ('a/b/c/file', 'a/b/c', 'a', '', 'a/gone', 'a/away')}
for attempt in 'known', 'forgotten':
    assert read(mount, handles['a/b/c/file']) == b'a/b/c/file', attempt
    assert listed(mount, handles['a/b/c']) == (['file'], mount + '/a/b/c'), attempt
    assert listed(mount, handles['']) == (['a'], mount), attempt
    forget()
# Renamed, it is the same; removed, it is no other.
os.rename(mount + '/a/b', mount + '/moved')
os.rename(mount + '/a/away', mount + '/moved/here')
os.unlink(mount + '/a/gone')
open(mount + '/a/gone', 'w').write('another')
forget()
assert read(mount, handles['a/away']) == b'a/away'
assert listed(mount, handles['a/b/c']) == (['file'], mount + '/moved/c')
fails(errno.ESTALE, by_handle, mount, handles['a/gone'])
f = by_handle(mount, handles['a/b/c/file'], os.O_WRONLY | os.O_TRUNC)
os.write(f, b'written')
os.close(f)
assert open(mount + '/moved/c/file').read() == 'written'
"#,
    );
    lab.finish();
}

#[test]
fn a_file_that_is_removed_while_it_is_open_has_no_handle_any_more() {
    let Some((lab, _)) = stage(Backend::Ext4Dir) else {
        return;
    };
    with_calls(
        &lab,
        r#"
path = mount + '/file'
f = os.open(path, os.O_RDWR | os.O_CREAT)
handle = handle_of(path)
os.unlink(path)
os.write(f, b'x')
os.close(f)
forget()
fails(errno.ESTALE, by_handle, mount, handle)
"#,
    );
    lab.finish();
}

#[test]
fn a_file_handle_outlives_the_daemon_and_means_nothing_to_another_cache() {
    let Some((mut lab, _)) = stage(Backend::Ext4Dir) else {
        return;
    };
    with_calls(
        &lab,
        r#"
os.mkdir(mount + '/dir')
for n in range(20): open('%s/dir/%d' % (mount, n), 'w').write(str(n))
keep({n: handle_of('%s/dir/%d' % (mount, n)) for n in range(20)})
"#,
    );
    let all_are_there =
        "for n, handle in kept().items(): assert read(mount, handle) == b'%d' % n, n";
    lab.unmount();
    lab.remount();
    with_calls(&lab, all_are_there);
    lab.kill9();
    lab.remount();
    with_calls(&lab, all_are_there);
    lab.unmount();
    lab.take_new_cache();
    lab.mount(AS_GIVEN);
    with_calls(
        &lab,
        r#"
for n in range(20): open('%s/other-%d' % (mount, n), 'w').write('other')
assert sorted(os.listdir(mount + '/dir')) == sorted(map(str, range(20)))
forget()
for n, handle in kept().items(): fails(errno.ESTALE, by_handle, mount, handle)
"#,
    );
    lab.finish();
}

#[test]
fn a_file_that_is_only_on_the_drive_is_found_by_its_handle() {
    let Some((mut lab, _)) = stage(Backend::EXFAT) else {
        return;
    };
    with_calls(
        &lab,
        r#"
os.makedirs(mount + '/deep/er')
open(mount + '/deep/er/file', 'w').write('bytes')
os.symlink('er/file', mount + '/deep/link')
"#,
    );
    lab.unmount();
    lab.take_new_cache();
    lab.mount(AS_GIVEN);
    with_calls(
        &lab,
        r#"
keep({path: handle_of(mount + '/' + path) for path in ('deep/er/file', 'deep/er')})
forget()
assert read(mount, kept()['deep/er/file']) == b'bytes'
assert listed(mount, kept()['deep/er']) == (['file'], mount + '/deep/er')
"#,
    );
    lab.finish();
}
