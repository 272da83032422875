//! Root runs commands on a cache that another user prepared: links planted at each name in it, in
//! its place, and above it. Nothing that a link leads to is made, changed or cut short.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::path::{Path, PathBuf};

use crate::lab::{Backend, Done, Lab, exit, run, skip, text, write};

/// The other user. Root gives to a number without a name as well.
const SOMEBODY: u32 = 54_321;

/// What ferryfs opens for writing in a cache, and what it makes there beside that and renames.
const FILES: [&str; 16] = [
    "lock",
    "ferryfs.log",
    "cache.json",
    "cache.json.tmp",
    "mountpoint.json",
    "mountpoint.json.tmp",
    "index.db",
    "index.db-wal",
    "index.db-journal",
    "index.db-shm",
    "index.db-failed",
    "reserve",
    "control.sock",
    "batches/0000000000000001.journal",
    "batches/0000000000000001.tmp",
    "objects/00000000/0000000000000001",
];

const DIRECTORIES: [&str; 5] = [
    "objects",
    "batches",
    "lost+found",
    "objects/00000000",
    "batches/0000000000000001.keep",
];

/// A lab whose drive is enrolled, and what must stay as it is.
struct Scene {
    lab: Lab,
    victim: PathBuf,
    before: Vec<String>,
}

impl Scene {
    fn new() -> Option<Scene> {
        if !nix::unistd::geteuid().is_root() {
            skip("planting things for root needs root");
            return None;
        }
        let mut lab = Lab::new(Backend::Ext4Dir)?;
        lab.mount(&[]);
        write(&lab.m("a"), b"a");
        lab.unmount();
        let victim = lab.root().join("victim");
        fs::create_dir(&victim).expect("mkdir");
        fs::set_permissions(&victim, fs::Permissions::from_mode(0o755)).expect("chmod");
        write(&victim.join("precious"), b"precious");
        write(&victim.join("secret"), b"secret");
        let mut scene = Scene {
            lab,
            victim,
            before: Vec::new(),
        };
        scene.before = scene.look();
        Some(scene)
    }

    fn look(&self) -> Vec<String> {
        let mut seen: Vec<String> = (fs::read_dir(&self.victim).expect("list"))
            .map(|entry| {
                let path = entry.expect("list").path();
                let meta = fs::symlink_metadata(&path).expect("look");
                let times = (
                    meta.mtime(),
                    meta.mtime_nsec(),
                    meta.ctime(),
                    meta.ctime_nsec(),
                );
                format!("{path:?} {:o} {} {times:?}", meta.mode(), meta.size())
            })
            .collect();
        seen.sort();
        seen
    }

    /// A copy of the lab's own cache, as the other user has it.
    fn copy(&self, name: &str) -> PathBuf {
        let to = self.lab.root().join(name);
        run(std::process::Command::new("cp")
            .arg("-a")
            .arg(&self.lab.cache)
            .arg(&to))
        .ok();
        to
    }

    /// Root runs each command that takes a cache; the victim is as before. Gives what `mount` said.
    #[track_caller]
    fn root_runs_all(&self, cache: &Path, what: &str) -> Done {
        let (cache, mnt) = (text(cache), text(&self.lab.mnt));
        let drive = text(self.lab.drive.path());
        let out = text(&self.lab.root().join("out"));
        let mount = ["mount", "--no-auto-flush", "--cache", &cache, &drive, &mnt];
        let foreground = [&mount[..], &["--foreground"]].concat();
        let mounted = self.lab.ferryfs(&mount);
        if mounted.code != exit::DONE {
            self.lab.ferryfs(&foreground);
        }
        for command in ["status", "flush", "refresh", "eject", "unmount"] {
            self.lab.ferryfs(&[command, "--cache", &cache]);
        }
        self.lab
            .ferryfs(&["rescue", "--cache", &cache, "--to", &out]);
        let _ = fs::remove_dir_all(&out);
        self.lab.ferryfs(&["recover", &drive]);
        if self.lab.is_mounted() {
            self.lab.ferryfs(&["unmount", "--force", &mnt]);
        }
        assert_eq!(
            self.look(),
            self.before,
            "the victim, after {what}: {}",
            mounted.stderr
        );
        mounted
    }
}

/// A link at `path` to `target`, of the other user.
fn plant(path: &Path, target: &Path) {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path).expect("remove"),
        Ok(_) => fs::remove_file(path).expect("remove"),
        Err(_) => {}
    }
    fs::create_dir_all(path.parent().expect("a parent")).expect("mkdir");
    symlink(target, path).expect("symlink");
    lchown(path, Some(SOMEBODY), None).expect("lchown");
}

fn give_away(path: &Path) {
    run(std::process::Command::new("chown")
        .args(["-Rh", &SOMEBODY.to_string()])
        .arg(path))
    .ok();
}

#[test]
fn root_follows_no_link_in_a_cache_of_another_user() {
    let Some(scene) = Scene::new() else { return };
    for (number, name) in FILES.iter().enumerate() {
        // What is there would be cut short or appended to, what is not there would be made.
        for (target, theirs) in [
            ("precious", true),
            ("new", true),
            ("precious", false),
            ("new", false),
        ] {
            let cache = scene.copy(&format!("cache-{number}"));
            plant(&cache.join(name), &scene.victim.join(target));
            if theirs {
                give_away(&cache);
            }
            let what = format!("{name} -> {target}, theirs {theirs}");
            let mounted = scene.root_runs_all(&cache, &what);
            // What is of the other user's in a cache of root's was put there while that was not
            // private.
            if theirs || !name.starts_with("objects/") {
                mounted.refuses(exit::FAILED, "cache");
            }
            fs::remove_dir_all(&cache).expect("remove");
        }
    }
    for name in DIRECTORIES {
        for theirs in [true, false] {
            let cache = scene.copy("cache-dir");
            plant(&cache.join(name), &scene.victim);
            if theirs {
                give_away(&cache);
            }
            scene
                .root_runs_all(&cache, &format!("{name}, theirs {theirs}"))
                .refuses(exit::FAILED, "cache");
            fs::remove_dir_all(&cache).expect("remove");
        }
    }
    scene.lab.finish();
}

#[test]
fn root_uses_no_cache_that_another_user_can_exchange() {
    let Some(scene) = Scene::new() else { return };
    let theirs = scene.lab.root().join("theirs");
    fs::create_dir(&theirs).expect("mkdir");
    // Root's own cache below a directory of theirs; a new one; a link to the victim in its place.
    fs::rename(scene.copy("cache-of-root"), theirs.join("cache")).expect("rename");
    symlink(&scene.victim, theirs.join("link")).expect("symlink");
    chown(&theirs, Some(SOMEBODY), None).expect("chown");
    for path in ["cache", "new", "new/cache", "link", "link/cache"] {
        let done = scene.root_runs_all(&theirs.join(path), path);
        assert_eq!(done.code, exit::FAILED, "{path}: {}", done.stderr);
    }
    assert!(!theirs.join("new").exists());
    // In a directory like /tmp, too.
    let shared = scene.lab.root().join("shared");
    fs::create_dir(&shared).expect("mkdir");
    fs::set_permissions(&shared, fs::Permissions::from_mode(0o1777)).expect("chmod");
    plant(&shared.join("link"), &scene.victim);
    for path in ["link", "link/cache"] {
        let done = scene.root_runs_all(&shared.join(path), path);
        assert_eq!(done.code, exit::FAILED, "{path}: {}", done.stderr);
    }
    scene.lab.finish();
}

/// `sudo -E`, or `su` without a dash.
#[test]
fn root_in_another_users_environment_writes_nothing_where_that_user_leads() {
    let Some(scene) = Scene::new() else { return };
    let home = scene.lab.root().join("their-home");
    let data = home.join("data");
    fs::create_dir_all(&data).expect("mkdir");
    for (place, target) in [
        ("data/ferryfs", ""),
        ("data/ferryfs/known-caches", ""),
        ("data/ferryfs/running", ""),
        ("run", ""),
    ] {
        plant(&home.join(place), &scene.victim.join(target));
        give_away(&home);
        let (drive, mnt) = (text(scene.lab.drive.path()), text(&scene.lab.mnt));
        let cache = text(&scene.copy("cache-own"));
        for cache in [&["--cache", &*cache][..], &[]] {
            let args = [&["mount", "--no-auto-flush"], cache, &[&drive, &mnt]].concat();
            for args in [&args[..], &["status", &mnt], &["unmount", &mnt]] {
                let mut command = scene.lab.command(args);
                command.env("HOME", &home).env("XDG_DATA_HOME", &data);
                command.env("XDG_RUNTIME_DIR", home.join("run"));
                run(&mut command);
            }
            assert_eq!(scene.look(), scene.before, "{place}");
        }
        fs::remove_dir_all(scene.lab.root().join("cache-own")).expect("remove");
        fs::remove_file(home.join(place)).expect("remove");
    }
    scene.lab.finish();
}
