//! The daemon dies, in every way that a daemon can: nothing acknowledged is lost, the next mount
//! clears up and goes on. A panic in one request is that request's failure and nobody else's.

use crate::{engine, lab};

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Child, Stdio};
use std::time::Duration;

use crate::engine::{Kind, World};
use crate::lab::{Backend, Lab, Tree, assert_content, content, exit, text, wait_until, write};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn start(lab: &Lab, args: &[&str]) -> Child {
    let mut args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
    args.push(text(&lab.mnt));
    lab.command(&args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("start")
}

fn ended(mut child: Child) {
    wait_until("the command to end", Duration::from_secs(60), || {
        child.try_wait().expect("wait").is_some()
    });
}

fn fill(lab: &Lab, round: u64) {
    for file in 0..40 {
        write(
            &lab.m(format!("d{}/{file}", file % 4)),
            &content(round * 1000 + file, 40_000),
        );
    }
}

fn is_over(lab: &Lab, pid: i32) -> bool {
    !lab.is_mounted() && !fs::exists(format!("/proc/{pid}/fd/0")).unwrap_or(false)
}

#[test]
fn killed_while_unmounting_keeps_everything() {
    let Some(mut lab) = Lab::mounted(Backend::Ext4Dir) else {
        return;
    };
    for (round, pause) in [0, 15, 40, 90, 200, 500].into_iter().enumerate() {
        fill(&lab, round as u64);
        let tree = Tree::read(&lab.mnt);
        let unmount = start(&lab, &["unmount"]);
        std::thread::sleep(Duration::from_millis(pause));
        lab.kill9();
        ended(unmount);
        lab.remount();
        tree.assert_same(&Tree::read(&lab.mnt), "the mount before", "the mount after");
    }
    lab.finish_flushed();
}

#[test]
fn sigterm_with_work_in_progress_carries_it_and_ends() {
    let Some(mut lab) = Lab::mounted(Backend::Ext4Dir) else {
        return;
    };
    for round in 0..3 {
        fill(&lab, round);
        // In the middle of a file, and in the middle of a flush.
        let open = fs::File::create(lab.m("open")).expect("create");
        std::io::Write::write_all(&mut &open, b"half").expect("write");
        let flush = start(&lab, &["flush"]);
        let pid = lab.pid();
        kill(Pid::from_raw(pid), Signal::SIGTERM).expect("kill");
        wait_until("the daemon to end", Duration::from_secs(60), || {
            is_over(&lab, pid)
        });
        ended(flush);
        drop(open);
        for file in 0..40 {
            assert_content(
                lab.d(format!("d{}/{file}", file % 4)),
                content(round * 1000 + file, 40_000),
            );
        }
        lab.remount();
        assert_content(lab.m("open"), b"half");
    }
    lab.flush_interrupted();
    lab.assert_drive_is_mount();
    lab.finish();
}

#[test]
fn sigterm_and_then_sigkill_is_a_death_like_another() {
    let Some(mut lab) = Lab::mounted(Backend::Ext4Dir) else {
        return;
    };
    for (round, pause) in [0, 30, 120].into_iter().enumerate() {
        fill(&lab, round as u64);
        let tree = Tree::read(&lab.mnt);
        kill(Pid::from_raw(lab.pid()), Signal::SIGTERM).expect("kill");
        std::thread::sleep(Duration::from_millis(pause));
        lab.kill9();
        lab.remount();
        tree.assert_same(&Tree::read(&lab.mnt), "the mount before", "the mount after");
    }
    lab.finish_flushed();
}

/// The stale mount point is busy: somebody works in it, and has files open. It is taken away under
/// him.
#[test]
fn dead_mount_that_is_in_use_is_cleared_by_the_next_mount() {
    let Some(mut lab) = Lab::mounted(Backend::Ext4Dir) else {
        return;
    };
    write(&lab.m("d/kept"), b"kept");
    let open = fs::File::open(lab.m("d/kept")).expect("open");
    let mut inside = std::process::Command::new("sleep")
        .arg("60")
        .current_dir(lab.m("d"))
        .spawn()
        .expect("sleep");
    for _ in 0..3 {
        lab.kill9();
        lab.remount();
        assert_content(lab.m("d/kept"), b"kept");
    }
    assert!(open.metadata().is_err() || open.metadata().is_ok_and(|meta| meta.len() == 4));
    inside
        .kill()
        .and_then(|()| inside.wait())
        .expect("end sleep");
    drop(open);
    // It may have been killed before it knew that the file was closed.
    lab.flush_interrupted();
    lab.finish();
}

#[test]
fn killed_again_and_again_while_it_starts() {
    let Some(mut lab) = Lab::mounted(Backend::Ext4Dir) else {
        return;
    };
    fill(&lab, 0);
    let tree = Tree::read(&lab.mnt);
    lab.kill9();
    for pause in [0, 5, 10, 20, 40, 80, 160] {
        let mut mount = lab
            .command(&{
                let mut args = lab.mount_args(&["--foreground"]);
                args.dedup();
                args
            })
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("start");
        std::thread::sleep(Duration::from_millis(pause));
        mount.kill().expect("kill");
        mount.wait().expect("wait");
    }
    lab.remount();
    tree.assert_same(&Tree::read(&lab.mnt), "the mount before", "the mount after");
    lab.finish_flushed();
}

/// Mounted by hand, as the variable is for the daemon only.
fn mounted_to_panic_at(request: &str) -> Option<Lab> {
    let mut lab = Lab::new(Backend::Ext4Dir)?;
    let args = lab.mount_args(&[]);
    let mut command = lab.command(&args);
    lab::run(command.env("FERRYFS_TEST_PANIC", request)).code(exit::DONE);
    lab.adopt();
    Some(lab)
}

#[test]
fn panic_in_one_request_is_eio_for_it_and_nothing_for_others() {
    let Some(mut lab) = mounted_to_panic_at("mkdir") else {
        return;
    };
    write(&lab.m("before"), b"before");
    for _ in 0..20 {
        let error = fs::create_dir(lab.m("d")).expect_err("asked to panic");
        assert_eq!(error.raw_os_error(), Some(libc::EIO), "{error}");
    }
    write(&lab.m("after"), b"after");
    assert_content(lab.m("before"), b"before");
    fs::File::open(lab.m("after"))
        .and_then(|file| file.sync_all())
        .expect("fsync");
    let log = fs::read_to_string(lab.cache.join("ferryfs.log")).expect("the log");
    assert!(log.contains("a request panicked"), "{log}");
    let pid = lab.pid();
    lab.flush();
    assert_eq!(lab.status()["pid"].as_i64(), Some(i64::from(pid)));
    lab.assert_drive_is_mount();
    lab.unmount();
    lab.mount(&[]);
    fs::create_dir(lab.m("d")).expect("without the panic it works");
    assert!(fs::metadata(lab.m("d")).expect("stat").mode() & libc::S_IFDIR != 0);
    lab.finish();
}

#[test]
fn panic_under_the_lock_of_the_index_leaves_nothing_half_done() {
    let world = World::new(Kind::Exfat);
    let engine = world.start(false);
    engine.put("kept", b"kept");
    // Closed, and its row not committed yet.
    let kept = engine.find("kept").expect("kept");
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        let mut state = engine.index.lock();
        let (parent, name) = (ferryfs::core::Ino::ROOT, engine::script::name("kept"));
        state.remove_name(parent, &name).expect("remove");
        let mut inode = state.inode(kept.ino).expect("read").expect("there");
        inode.nlink = 0;
        state.add_orphan(inode.ino);
        state.put_inode(inode);
        panic!("in the middle of an unlink");
    }));
    assert!(panicked.is_err());
    // The name is there still, and forgetting the inode does not take it away.
    engine.fs.forget(kept.ino).expect("forget");
    assert_eq!(engine.read("kept"), b"kept");
    engine.fs.finish_pending().expect("tick");
    engine.put("more", b"goes on");
    engine.flush_all();
    assert_eq!(world.on_drive("kept").as_deref(), Some(&b"kept"[..]));
    world.check(&engine);
    engine.die();
    let engine = world.start(true);
    assert_eq!(engine.read("kept"), b"kept");
    world.check(&engine);
}

#[test]
fn closing_a_written_file_asks_for_a_commit_and_nothing_else_does() {
    let world = World::new(Kind::Plain);
    let engine = world.start(false);
    let closed = || engine.fs.wait_for_close(Duration::ZERO);
    let handle = engine.open("f", engine::script::REWRITE);
    engine.write_at(handle, 0, b"bytes");
    assert!(!closed(), "it is open still");
    engine.close_handle(handle);
    assert!(closed());
    engine.read("f");
    assert!(!closed(), "reading changes nothing");
    for n in 0..10 {
        engine.put(&format!("f{n}"), b"bytes");
    }
    assert!(closed());
    assert!(!closed(), "one commit serves for all");
}

/// A kill right after a close must not find the file as one that was still being written.
#[test]
fn killed_soon_after_a_close_the_file_is_known_to_be_closed() {
    let Some(mut lab) = Lab::mounted(Backend::Ext4Dir) else {
        return;
    };
    let mut open = 0;
    for round in 0..5 {
        write(&lab.m(format!("{round}")), &content(round, 5000));
        std::thread::sleep(Duration::from_millis(60));
        lab.kill9();
        open += rusqlite::Connection::open(lab.cache.join("index.db"))
            .and_then(|conn| {
                conn.query_row("SELECT count(*) FROM inodes WHERE flags & 4", [], |row| {
                    row.get::<_, i64>(0)
                })
            })
            .expect("look");
        lab.remount();
        assert_content(lab.m(format!("{round}")), content(round, 5000));
    }
    // With commits at the tick only it would be three of four; a busy machine may be late now and
    // then.
    assert!(open <= 2, "{open} of 5 were not known to be closed");
    lab.finish();
}

#[test]
fn file_that_was_being_written_at_the_kill_is_not_carried_until_somebody_says_so() {
    let Some(mut lab) = Lab::mounted(Backend::Ext4Dir) else {
        return;
    };
    write(&lab.m("rewritten"), b"whole version");
    lab.flush();
    let files = ["new", "rewritten", "finished later"]
        .map(|name| fs::File::create(lab.m(name)).expect("create"));
    for file in &files {
        std::io::Write::write_all(&mut &*file, b"half of").expect("write");
    }
    write(&lab.m("closed"), b"closed");
    std::thread::sleep(Duration::from_millis(600));
    lab.kill9();
    drop(files);
    lab.remount();
    // In the mount, as far as they got; on the drive, what was closed last.
    assert_content(lab.m("new"), b"half of");
    assert_content(lab.m("rewritten"), b"half of");
    let report = lab.flush_code(exit::LEFT_BEHIND).json();
    let left = report["left_behind"].to_string();
    for name in ["new", "rewritten", "finished later"] {
        assert!(left.contains(name), "{report}");
    }
    assert!(left.contains("--include-interrupted"), "{report}");
    assert_content(lab.d("rewritten"), b"whole version");
    assert_content(lab.d("closed"), b"closed");
    assert!(!lab.d("new").exists() && !lab.d("finished later").exists());
    // Another kill changes nothing about it.
    lab.kill9();
    lab.remount();
    lab.flush_code(exit::LEFT_BEHIND);
    // Written anew and closed, it is a version like another.
    fs::OpenOptions::new()
        .append(true)
        .open(lab.m("finished later"))
        .and_then(|mut file| std::io::Write::write_all(&mut file, b" it, and the rest"))
        .expect("append");
    lab.flush_code(exit::LEFT_BEHIND);
    assert_content(lab.d("finished later"), b"half of it, and the rest");
    lab.flush_interrupted();
    assert_content(lab.d("new"), b"half of");
    lab.assert_drive_is_mount();
    lab.finish();
}

#[test]
fn interrupted_files_that_are_included_wait_for_the_next_automatic_flush() {
    let world = World::new(Kind::Exfat);
    let engine = world.start(false);
    engine.put("half", b"half");
    let mut inode = engine.find("half").expect("half");
    inode.flags.set(ferryfs::index::Flags::INTERRUPTED);
    engine.index.lock().put_inode(inode);
    let began = std::time::Instant::now();
    let report = engine.flush().expect("flush");
    assert_eq!(report.left_behind.len(), 1, "{report:?}");
    engine.index.lock().note_flushed(began);
    assert_eq!(engine.index.lock().dirty_since(), None, "held back");
    let included = engine.index.lock().include_interrupted();
    assert_eq!(included.expect("include"), 1);
    assert!(engine.index.lock().dirty_since().is_some());
    engine.flush_all();
    world.check(&engine);
}
