//! A process that writes for ever and keeps a log, outside the mount, of what was acknowledged; and
//! what must be there by that log after the daemon was killed.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::lab::{self, Lab, Tree};

/// Writes files for ever, in the ways that scripts do. Before each step it logs what it is about to
/// do, after it that it was acknowledged; the log lies outside the mount. It ends quietly when the
/// mount dies under it.
const WRITER: &str = r#"
import os, random, sys
root, log, seed = sys.argv[1], os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT | os.O_APPEND), int(sys.argv[3])
random.seed(seed)
version = seed * 1000000
def body(name, version):
    return (f'{name}:{version};' * (1 + version * 37 % 4000)).encode()
def say(*words):
    os.write(log, (' '.join(map(str, words)) + '\n').encode())
def put(path, data):
    with open(path, 'wb', buffering=0) as f:
        view = memoryview(data)
        while view:
            view = view[f.write(view):]
names = [f'd{n % 4}/f{n}' for n in range(40)]
try:
    for d in range(4):
        os.makedirs(f'{root}/d{d}', exist_ok=True)
    while True:
        version += 1
        name, how = random.choice(names), random.random()
        path = f'{root}/{name}'
        if how < 0.15:
            if not os.path.exists(path):
                continue
            say('begin', 'remove', name, version)
            os.unlink(path)
        elif how < 0.6:
            say('begin', 'replace', name, version)
            put(path + '.new', body(name, version))
            os.rename(path + '.new', path)
        else:
            say('begin', 'rewrite', name, version)
            put(path, body(name, version))
        say('done')
except OSError as e:
    say('ended', e.errno)
"#;

pub(crate) fn body(name: &str, version: u64) -> Vec<u8> {
    format!("{name}:{version};")
        .repeat(1 + (version * 37 % 4000) as usize)
        .into_bytes()
}

/// What a writer's log says must be there.
pub(crate) struct Expected {
    /// The acknowledged version of each file that exists.
    pub(crate) files: BTreeMap<String, u64>,
    /// The step that was under way: how, which file, which version.
    pending: Option<(String, String, u64)>,
    /// How many steps were acknowledged.
    pub(crate) acknowledged: usize,
}

pub(crate) fn expected(log: &Path) -> Expected {
    let mut all = Expected {
        files: BTreeMap::new(),
        pending: None,
        acknowledged: 0,
    };
    for line in fs::read_to_string(log).unwrap_or_default().lines() {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["begin", how, name, version] => {
                // A begin after a begin is a new writer's first step: what the old one had under
                // way is settled by now.
                all.pending = Some((how.into(), name.into(), version.parse().expect("version")));
            }
            ["done"] => {
                let (how, name, version) = all.pending.take().expect("a step was begun");
                all.acknowledged += 1;
                if how == "remove" {
                    all.files.remove(&name);
                } else {
                    all.files.insert(name, version);
                }
            }
            _ => {}
        }
    }
    all
}

impl Expected {
    /// Checks the mount, and settles the pending step the way it turned out.
    pub(crate) fn check(&mut self, lab: &Lab, log: &Path) {
        let pending = self.pending.take();
        if let Some((how, name, version)) = &pending {
            self.settle(lab, log, how, name, *version);
        }
        for (name, version) in &self.files {
            let bytes =
                fs::read(lab.m(name)).unwrap_or_else(|e| panic!("{name} was acknowledged: {e}"));
            assert!(
                bytes == body(name, *version),
                "{name} is not version {version}, which was acknowledged"
            );
        }
        for entry in Tree::read(&lab.mnt)
            .plain()
            .0
            .keys()
            .filter(|path| path.contains('/'))
        {
            let known = self.files.contains_key(entry) || entry.ends_with(".new");
            let pending = pending.as_ref().is_some_and(|(_, name, _)| name == entry);
            assert!(
                known || pending,
                "{entry} was removed, and that was acknowledged"
            );
        }
    }

    /// A step that was not acknowledged may have happened or not; only a rewrite in place may be
    /// half done.
    fn settle(&mut self, lab: &Lab, log: &Path, how: &str, name: &str, version: u64) {
        let old = self.files.get(name).copied();
        let now = fs::read(lab.m(name)).ok();
        let is_new = if how == "remove" {
            now.is_none()
        } else {
            now == Some(body(name, version))
        };
        let is_old = now == old.map(|old| body(name, old));
        assert!(
            how == "rewrite" || is_new || is_old,
            "{how} of {name} is neither done nor undone"
        );
        // Whatever it is, it is removed, and that is logged, so that the next round starts from
        // what is known.
        if now.is_some() {
            fs::remove_file(lab.m(name)).expect("unlink");
        }
        self.files.remove(name);
        let line = format!("begin remove {name} 0\ndone\n");
        let mut all = fs::read_to_string(log).expect("read the log");
        all.push_str(&line);
        fs::write(log, all).expect("write the log");
    }
}

/// A writer that is ended with the test, whatever happens.
pub(crate) struct Writer(Child);

impl Writer {
    pub(crate) fn start(lab: &Lab, log: &Path, seed: usize) -> Writer {
        let child = Command::new("python3")
            .args(["-c", WRITER])
            .arg(&lab.mnt)
            .arg(log)
            .arg(seed.to_string())
            .stdin(Stdio::null())
            .spawn()
            .expect("start the writer");
        Writer(child)
    }

    /// Waits until it ends by itself, as it does when the mount dies.
    pub(crate) fn ended(mut self) {
        lab::wait_until(
            "the writer to notice that the mount died",
            Duration::from_secs(20),
            || self.0.try_wait().expect("wait").is_some(),
        );
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
