//! What the kernel decides by what it was told: privileges, ACLs, file handles. Each is compared
//! with the machine's own file system, where every call runs as well.

mod acl;
mod handles;
mod options;
mod privileges;

use std::fs;
use std::path::PathBuf;

use crate::lab::{self, Backend, Lab, skip};

/// Everybody may do everything, as on a local file system.
const AS_GIVEN: &[&str] = &["-o", "allow_other,suid,dev"];

/// A mounted lab, and a directory beside it on the file system below. Both may be entered by
/// everybody.
fn stage(backend: Backend) -> Option<(Lab, PathBuf)> {
    if !nix::unistd::geteuid().is_root() {
        skip("being several users needs root");
        return None;
    }
    let mut lab = Lab::new(backend)?;
    lab.mount(AS_GIVEN);
    let native = lab.root().join("native");
    fs::create_dir(&native).expect("mkdir");
    Some((lab, native))
}

/// What the scripts share: calls by another user, in a process of his own.
const PRELUDE: &str = r#"
import ctypes, errno, os, stat, struct, subprocess, sys
def tell(e): return errno.errorcode.get(e.errno, str(e.errno))
def as_user(uid, call, groups=()):
    "What `call` returns, as text, when this user makes it; or the name of its error."
    back, forth = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setgroups(groups)
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            try: told = repr(call())
            except OSError as e: told = tell(e)
            os.write(forth, told.encode())
            code = 0
        finally:
            os._exit(code)
    os.close(forth)
    told = b''
    while part := os.read(back, 65536): told += part
    os.close(back)
    assert os.waitpid(pid, 0)[1] == 0, 'a call of user %d died' % uid
    return told.decode()
"#;

/// Runs a script after [`PRELUDE`]; it must end well.
#[track_caller]
fn python(script: &str, args: &[&std::path::Path]) -> lab::Done {
    lab::python(&format!("{PRELUDE}\n{script}"), args)
}
