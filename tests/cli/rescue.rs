//! `ferryfs rescue`: what a cache holds comes out under its names, with nothing written into the
//! cache.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::lab::{self, Backend, Done, Lab, content, exit, text, write};

fn rescue(lab: &Lab, out: &Path) -> Done {
    lab.ferryfs(&[
        "rescue",
        "--json",
        "--cache",
        &text(&lab.cache),
        "--to",
        &text(out),
    ])
}

/// Every file below `dir` with its bytes and time of change.
fn state_of(dir: &Path) -> Vec<(PathBuf, Vec<u8>, SystemTime)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).expect("list").flatten() {
        let path = entry.path();
        let meta = fs::symlink_metadata(&path).expect("stat");
        if meta.is_dir() {
            found.extend(state_of(&path));
        } else if meta.is_file() {
            let bytes = fs::read(&path).expect("read");
            found.push((path, bytes, meta.modified().expect("mtime")));
        }
    }
    found.sort();
    found
}

#[test]
fn everything_comes_out_with_names_modes_times_links_and_holes() {
    let Some(mut lab) = Lab::mounted(Backend::Ext4Dir) else {
        return;
    };
    write(&lab.m("clean/on the drive"), &content(1, 50_000));
    lab.flush();
    write(&lab.m("deep/er/dirty"), &content(2, 70_000));
    write(&lab.m("empty"), b"");
    fs::create_dir(lab.m("empty directory")).expect("mkdir");
    fs::set_permissions(lab.m("deep/er/dirty"), fs::Permissions::from_mode(0o4750)).expect("chmod");
    fs::hard_link(lab.m("deep/er/dirty"), lab.m("second name")).expect("link");
    std::os::unix::fs::symlink("deep/er/dirty", lab.m("symlink")).expect("symlink");
    let sparse = fs::File::create(lab.m("sparse")).expect("create");
    sparse.write_all_at(b"end", 32 << 20).expect("write");
    drop(sparse);
    let before = fs::metadata(lab.m("deep/er/dirty")).expect("stat");
    std::thread::sleep(Duration::from_millis(600));

    let out = lab.root().join("out");
    // While a daemon has it, it is left alone.
    let pid = lab.pid().to_string();
    rescue(&lab, &out).refuses(
        exit::FAILED,
        &format!("in use by another ferryfs (pid {pid})"),
    );
    assert!(!out.exists());
    lab.kill9();
    // Neither the drive nor a mount is needed.
    fs::rename(lab.drive.path(), lab.root().join("unplugged")).expect("rename");
    let cache = state_of(&lab.cache);
    let report = rescue(&lab, &out).code(exit::DONE).json();
    assert!(state_of(&lab.cache) == cache, "the cache was written to");
    fs::rename(lab.root().join("unplugged"), lab.drive.path()).expect("rename");

    assert_eq!(report["files"], 5, "{report}");
    assert_eq!(report["links"], 1, "{report}");
    let files = out.join("files");
    assert!(fs::read(files.join("clean/on the drive")).expect("read") == content(1, 50_000));
    assert!(fs::read(files.join("deep/er/dirty")).expect("read") == content(2, 70_000));
    assert_eq!(fs::metadata(files.join("empty")).expect("stat").len(), 0);
    assert!(files.join("empty directory").is_dir());
    let after = fs::metadata(files.join("deep/er/dirty")).expect("stat");
    assert_eq!(
        (after.mode(), after.mtime_nsec(), after.mtime()),
        (before.mode() & !0o7000, before.mtime_nsec(), before.mtime())
    );
    assert_eq!(
        after.ino(),
        fs::metadata(files.join("second name")).expect("stat").ino()
    );
    assert_eq!(
        fs::read_link(files.join("symlink")).expect("readlink"),
        Path::new("deep/er/dirty")
    );
    let sparse = fs::metadata(files.join("sparse")).expect("stat");
    assert_eq!(sparse.len(), (32 << 20) + 3);
    assert!(sparse.blocks() * 512 < 1 << 20, "the hole was filled");

    // Once is enough: a second run would mix with the first.
    rescue(&lab, &out).refuses(exit::FAILED, "not empty");
    rescue(&lab, &lab.cache.join("inside")).refuses(exit::FAILED, "in the cache");
    assert!(!lab.cache.join("inside").exists());
    let no_cache = ["rescue", "--cache", "/proc", "--to", "/nonexistent/x"];
    lab.ferryfs(&no_cache).refuses(exit::FAILED, "no cache");
    lab.remount();
    lab.finish();
}

#[test]
fn corrupt_index_is_refused_by_mount_and_its_files_come_out_by_rescue() {
    let Some(mut lab) = Lab::mounted(Backend::Ext4Dir) else {
        return;
    };
    for n in 0..30 {
        write(&lab.m(format!("d/{n}")), &content(n, 10_000));
    }
    lab.unmount_with(&["--no-flush"]);
    // All of it into the database, then the pages with the names, and with what is derived from
    // them, are lost.
    let pages: Vec<u32> = rusqlite::Connection::open(lab.cache.join("index.db"))
        .and_then(|conn| {
            conn.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)")?;
            let sql = "SELECT rootpage FROM sqlite_schema WHERE tbl_name='dirents'";
            let mut statement = conn.prepare(sql)?;
            let pages = statement.query_map([], |row| row.get(0))?;
            pages.collect()
        })
        .expect("find the pages");
    let index = fs::File::options()
        .write(true)
        .open(lab.cache.join("index.db"))
        .expect("open the index");
    for page in pages {
        index
            .write_all_at(&[0xa5; 4096], u64::from(page - 1) * 4096)
            .expect("damage");
    }
    let cache = state_of(&lab.cache);
    let refused = lab.try_mount(&[]).refuses(exit::FAILED, "is damaged");
    assert!(
        refused.stderr.contains("ferryfs rescue --cache"),
        "{}",
        refused.stderr
    );
    let touched: Vec<_> = state_of(&lab.cache)
        .into_iter()
        .filter(|file| {
            !cache.contains(file)
                && file.0.file_name() != Some("lock".as_ref())
                && !file.1.is_empty()
        })
        .map(|file| file.0)
        .collect();
    assert_eq!(
        touched,
        Vec::<PathBuf>::new(),
        "a refused mount touches nothing"
    );
    assert!(!lab.is_mounted());

    let out = lab.root().join("out");
    let report = rescue(&lab, &out).code(exit::LEFT_BEHIND).json();
    assert!(
        report["index"]
            .as_array()
            .is_some_and(|lines| !lines.is_empty()),
        "{report}"
    );
    assert_eq!(report["unnamed"], 30, "{report}");
    let rescued: Vec<Vec<u8>> = state_of(&out).into_iter().map(|file| file.1).collect();
    for n in 0..30 {
        assert!(
            rescued.contains(&content(n, 10_000)),
            "file {n} is missing: {report}"
        );
    }
    // A new cache in its place serves what the drive has.
    fs::rename(&lab.cache, lab.root().join("old cache")).expect("rename");
    lab.mount(&[]);
    lab.finish();
}

#[test]
fn objects_of_nobody_are_kept_and_status_tells() {
    let Some(mut lab) = Lab::mounted(Backend::Ext4Dir) else {
        return;
    };
    write(&lab.m("file"), b"bytes");
    assert_eq!(lab.status()["attention"].as_array().map(Vec::len), Some(0));
    lab.kill9();
    let shard = fs::read_dir(lab.cache.join("objects"))
        .expect("list")
        .flatten()
        .next()
        .expect("a shard")
        .path();
    fs::write(shard.join("00000000000fffff"), b"precious").expect("write");
    lab.remount();
    let kept = lab.cache.join("lost+found/00000000000fffff");
    assert_eq!(fs::read(&kept).expect("read"), b"precious");
    let status = lab.status();
    let told = status["attention"][0].as_str().expect("a line");
    assert!(
        told.contains("lost+found") && told.contains('1'),
        "{status}"
    );
    let shown = lab.ferryfs(&["status", &text(&lab.mnt)]).ok().stdout;
    assert!(shown.contains("lost+found"), "{shown}");
    lab.unmount();
    let out = lab.root().join("out");
    let report = rescue(&lab, &out).code(exit::DONE).json();
    assert_eq!(report["lost_and_found"], 1, "{report}");
    assert_eq!(
        fs::read(out.join("lost+found/00000000000fffff")).expect("read"),
        b"precious"
    );
    lab.finish();
}

#[test]
fn rows_without_objects_are_what_the_drive_has_and_named() {
    let Some(mut lab) = Lab::mounted(Backend::Ext4Dir) else {
        return;
    };
    write(&lab.m("clean"), &content(1, 9000));
    write(&lab.m("changed"), b"old version");
    lab.flush();
    write(&lab.m("changed"), b"new version, which is lost");
    write(&lab.m("new"), b"never carried");
    std::thread::sleep(Duration::from_millis(600));
    lab.kill9();
    for file in state_of(&lab.cache.join("objects")) {
        fs::remove_file(file.0).expect("remove");
    }
    lab.remount();
    assert!(fs::read(lab.m("clean")).expect("read") == content(1, 9000));
    assert_eq!(fs::read(lab.m("changed")).expect("read"), b"old version");
    assert_eq!(fs::read(lab.m("new")).expect("read"), b"");
    let status = lab.status();
    let lines: Vec<&str> = status["attention"]
        .as_array()
        .expect("lines")
        .iter()
        .filter_map(|line| line.as_str())
        .collect();
    for (path, now) in [
        ("clean", "drive has"),
        ("changed", "drive has"),
        ("new", "empty now"),
    ] {
        assert!(
            lines
                .iter()
                .any(|line| line.contains(&format!(" {path} ")) && line.contains(now)),
            "{path}: {lines:?}"
        );
    }
    lab.finish_flushed();
}

/// The owner of a cache can write anything into its index, and put anything into the cache; then he
/// asks root for a rescue.
#[test]
fn rescue_by_root_gives_the_owner_of_the_cache_nothing_that_is_not_his() {
    use std::os::unix::fs::{chown, symlink};
    if !nix::unistd::geteuid().is_root() {
        return lab::skip("giving files to another user needs root");
    }
    let Some(mut lab) = Lab::mounted(Backend::Ext4Dir) else {
        return;
    };
    const USER: u32 = 12_345;
    write(&lab.m("dir/shell"), b"a shell");
    write(&lab.m("dir/other"), b"other bytes");
    for name in ["memory", "disk", "climbs"] {
        write(&lab.m(format!("dir/{name}")), name.as_bytes());
    }
    symlink("/etc", lab.m("dir/link")).expect("symlink");
    lab.unmount_with(&["--no-flush"]);
    rusqlite::Connection::open(lab.cache.join("index.db"))
        .and_then(|conn| {
            conn.execute_batch(
                "UPDATE inodes SET uid=0, gid=0, mode=mode|3565 WHERE mode & 61440 = 32768;
                 UPDATE inodes SET uid=0, gid=0, mode=mode|3072 WHERE mode & 61440 = 16384;
                 UPDATE inodes SET mode=8630, rdev=257 WHERE ino=(SELECT ino FROM dirents WHERE name=CAST('memory' AS BLOB));
                 UPDATE inodes SET mode=25014, rdev=2049 WHERE ino=(SELECT ino FROM dirents WHERE name=CAST('disk' AS BLOB));
                 UPDATE dirents SET name=CAST('../../../climbed' AS BLOB) WHERE name=CAST('climbs' AS BLOB);
                 UPDATE dirents SET parent=(SELECT ino FROM dirents WHERE name=CAST('link' AS BLOB)) WHERE name=CAST('other' AS BLOB);",
            )
        })
        .expect("edit the index");
    let secret = lab.root().join("secret");
    fs::create_dir(&secret).expect("mkdir");
    write(&secret.join("shadow"), b"of root");
    fs::set_permissions(secret.join("shadow"), fs::Permissions::from_mode(0o600)).expect("chmod");
    symlink(&secret, lab.cache.join("objects/0badcafe")).expect("symlink");
    symlink(&secret, lab.cache.join("batches/7.keep")).expect("symlink");
    fs::hard_link(secret.join("shadow"), lab.cache.join("lost+found/linked")).expect("link");
    for (file, ..) in state_of(&lab.cache) {
        if !file.ends_with("lost+found/linked") {
            chown(&file, Some(USER), Some(USER)).expect("chown");
        }
    }
    chown(&lab.cache, Some(USER), Some(USER)).expect("chown");

    let out = lab.root().join("out");
    let report = rescue(&lab, &out).code(exit::LEFT_BEHIND).json();
    assert_eq!(report["special"], 2, "{report}");
    assert!(!lab.root().join("climbed").exists(), "a name led upwards");
    assert!(
        !Path::new("/etc/other").exists(),
        "a symbolic link was followed"
    );
    assert_eq!(
        fs::read(out.join("files/dir/shell")).expect("read"),
        b"a shell"
    );
    let mode = |path: &Path| fs::symlink_metadata(path).expect("stat").mode() & 0o7777;
    for dir in ["", "files", "lost+found"] {
        assert_eq!(mode(&out.join(dir)), 0o700, "{dir}");
    }
    let mut seen = vec![out.join("files/dir")];
    seen.extend(state_of(&out).into_iter().map(|file| file.0));
    for path in &seen {
        let meta = fs::symlink_metadata(path).expect("stat");
        assert_eq!(meta.mode() & 0o7000, 0, "{}", path.display());
        assert!(meta.is_file() || meta.is_dir(), "{}", path.display());
        if meta.is_file() && fs::read(path).expect("read") == b"of root" {
            assert_eq!(
                (meta.uid(), meta.mode() & 0o777),
                (0, 0o600),
                "{}",
                path.display()
            );
        } else {
            assert_eq!(meta.uid(), USER, "{}", path.display());
        }
    }
    let leaked = seen.iter().filter(|path| path.ends_with("shadow")).count();
    assert_eq!(leaked, 0, "a symbolic link was followed");

    // Where others may write the copies could be led elsewhere.
    let open = lab.root().join("open");
    fs::create_dir(&open).expect("mkdir");
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).expect("chmod");
    rescue(&lab, &open).refuses(exit::FAILED, "others may write");
    lab.finish();
}
