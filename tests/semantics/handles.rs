//! Open files and directories: positions in a listing, many files open at once, and what a kill
//! right after a close means.

use crate::{lab, on_plain_directory};

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::lab::{Lab, assert_content, content, exit, run, wait_until, write};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

on_plain_directory!(
    positions_of_a_listing_mean_the_same_to_every_open_and_daemon,
    names_that_stay_are_listed_once_whatever_else_comes_and_goes,
    a_name_that_is_replaced_while_listing_is_listed,
    whoever_renames_each_entry_that_he_reads_comes_to_the_end,
    seeking_in_a_large_directory_takes_no_memory,
    many_more_files_than_descriptors_can_be_open_and_used,
    files_of_the_drive_are_read_with_few_descriptors,
    want_of_descriptors_is_no_loss_of_the_drive,
    files_deleted_from_the_drive_stay_readable_while_they_are_open,
    closed_right_before_a_kill_is_carried,
    synced_and_not_written_since_is_carried_after_a_kill,
    what_was_in_the_middle_of_being_written_is_named_and_released_by_a_close,
    a_child_that_closes_what_it_inherited_makes_no_whole_file,
    the_end_of_one_of_several_programs_that_write_a_file_makes_no_whole_file,
    what_was_written_through_a_mapping_survives_a_kill_after_the_close,
);

// ---- listings

/// One entry as getdents64 gives it: its name, and the position after it.
type Entry = (OsString, i64);

/// A directory read by the system calls themselves.
struct Dir(File);

impl Dir {
    fn open(path: &Path) -> Dir {
        Dir(File::open(path).expect("open the directory"))
    }

    fn seek(&self, to: i64) {
        // SAFETY: no memory is touched.
        let at = unsafe { libc::lseek(self.0.as_raw_fd(), to, libc::SEEK_SET) };
        assert_eq!(at, to, "{}", std::io::Error::last_os_error());
    }

    /// What one call gives with a buffer of `size`; empty at the end.
    fn some(&self, size: usize) -> Vec<Entry> {
        let mut buffer = vec![0u8; size];
        // SAFETY: the buffer is as long as is said.
        let got = unsafe {
            libc::syscall(
                libc::SYS_getdents64,
                self.0.as_raw_fd(),
                buffer.as_mut_ptr(),
                size,
            )
        };
        assert!(got >= 0, "{}", std::io::Error::last_os_error());
        let mut entries = Vec::new();
        let mut rest = &buffer[..got as usize];
        while !rest.is_empty() {
            let offset = i64::from_ne_bytes(rest[8..16].try_into().expect("8 bytes"));
            let length = u16::from_ne_bytes(rest[16..18].try_into().expect("2 bytes"));
            let name = &rest[19..length as usize];
            let end = name.iter().position(|b| *b == 0).expect("a NUL");
            entries.push((OsString::from_vec(name[..end].to_vec()), offset));
            rest = &rest[length as usize..];
        }
        entries
    }

    /// The rest of the listing, without `.` and `..`.
    fn rest(&self, size: usize) -> Vec<Entry> {
        let mut all = Vec::new();
        loop {
            let some = self.some(size);
            if some.is_empty() {
                return all;
            }
            all.extend(
                some.into_iter()
                    .filter(|(name, _)| name != "." && name != ".."),
            );
        }
    }
}

fn names(entries: &[Entry]) -> Vec<OsString> {
    entries.iter().map(|(name, _)| name.clone()).collect()
}

fn make_files(dir: &Path, prefix: &str, count: usize) {
    fs::create_dir_all(dir).expect("mkdir");
    for n in 0..count {
        File::create(dir.join(format!("{prefix}{n}"))).expect("create");
    }
}

fn positions_of_a_listing_mean_the_same_to_every_open_and_daemon(mut lab: Lab) {
    let dir = lab.m("d");
    make_files(&dir, "f", 300);
    let all = Dir::open(&dir).rest(2048);
    assert_eq!(all.len(), 300);
    let again = Dir::open(&dir);
    for at in [250, 3, 299, 120, 0, 121] {
        again.seek(all[at].1);
        assert_eq!(again.rest(1024), all[at + 1..], "sought to {at}");
        let other = Dir::open(&dir);
        other.seek(all[at].1);
        assert_eq!(other.rest(32768), all[at + 1..], "another open, to {at}");
    }
    // A position outlives the name before it.
    fs::remove_file(dir.join(&all[100].0)).expect("unlink");
    again.seek(all[100].1);
    assert_eq!(again.rest(4096), all[101..]);
    // And the daemon.
    drop(again);
    lab.unmount();
    lab.remount();
    let later = Dir::open(&dir);
    later.seek(all[200].1);
    assert_eq!(later.rest(4096), all[201..]);
    later.seek(0);
    assert_eq!(later.rest(4096).len(), 299);
    // Anything that is no position at all ends the listing, and is no error.
    later.seek(i64::MAX);
    assert_eq!(later.rest(4096), []);
    drop(later);
    lab.finish();
}

fn names_that_stay_are_listed_once_whatever_else_comes_and_goes(lab: Lab) {
    let dir = lab.m("d");
    make_files(&dir, "stays", 400);
    make_files(&dir, "goes", 400);
    let staying: BTreeSet<OsString> = (0..400).map(|n| format!("stays{n}").into()).collect();
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move |below: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed % below as u64) as usize
    };
    let mut gone = BTreeSet::new();
    let mut made = 0;
    for round in 0..6 {
        let listing = Dir::open(&dir);
        let mut seen: BTreeMap<OsString, i64> = BTreeMap::new();
        loop {
            let some = listing.some(512);
            let Some((_, last)) = some.last().cloned() else {
                break;
            };
            for (name, at) in some {
                assert_eq!(seen.insert(name.clone(), at), None, "{name:?} twice");
            }
            // Others are at work meanwhile, on names before and behind.
            for _ in 0..3 {
                let n = random(400);
                if gone.insert(n) {
                    fs::remove_file(dir.join(format!("goes{n}"))).expect("unlink");
                }
                File::create(dir.join(format!("comes{round}.{made}"))).expect("create");
                made += 1;
            }
            // And there is going back and forth in the listing itself.
            let known: Vec<i64> = seen.values().copied().collect();
            listing.seek(known[random(known.len())]);
            listing.some(512);
            listing.seek(last);
        }
        let listed: BTreeSet<OsString> = seen.into_keys().collect();
        assert!(
            staying.is_subset(&listed),
            "round {round}: some were passed by"
        );
    }
    // Emptied while it is read.
    let listing = Dir::open(&dir);
    loop {
        let some = listing.some(512);
        if some.is_empty() {
            break;
        }
        for (name, _) in some.iter().filter(|(name, _)| name != "." && name != "..") {
            fs::remove_file(dir.join(name)).expect("unlink");
        }
    }
    fs::remove_dir(&dir).expect("it is empty");
    drop(listing);
    lab.finish();
}

fn a_name_that_is_replaced_while_listing_is_listed(lab: Lab) {
    let dir = lab.m("d");
    make_files(&dir, "f", 200);
    fs::create_dir(lab.m("tmp")).expect("mkdir");
    let listing = Dir::open(&dir);
    let mut seen = names(&listing.some(512));
    for n in 0..200 {
        // As editors and package managers do.
        let (new, old) = (lab.m("tmp/new"), dir.join(format!("f{n}")));
        fs::write(&new, b"new").expect("write");
        fs::rename(&new, &old).expect("replace");
    }
    seen.extend(names(&listing.rest(512)));
    seen.retain(|name| name != "." && name != "..");
    let count = seen.len();
    let seen: BTreeSet<OsString> = seen.into_iter().collect();
    assert_eq!((seen.len(), count), (200, 200));
    // From the beginning again, what was made meanwhile is there too.
    File::create(dir.join("later")).expect("create");
    listing.seek(0);
    assert!(names(&listing.rest(4096)).contains(&"later".into()));
    drop(listing);
    lab.finish();
}

fn whoever_renames_each_entry_that_he_reads_comes_to_the_end(lab: Lab) {
    let dir = lab.m("d");
    make_files(&dir, "f", 500);
    let listing = Dir::open(&dir);
    let mut renamed = 0;
    loop {
        let some = listing.some(1024);
        if some.is_empty() {
            break;
        }
        for (name, _) in some.iter().filter(|(name, _)| name != "." && name != "..") {
            let mut new = name.clone();
            new.push("x");
            fs::rename(dir.join(name), dir.join(new)).expect("rename");
            renamed += 1;
            assert!(renamed <= 500, "what was renamed is listed again");
        }
    }
    assert_eq!(renamed, 500);
    drop(listing);
    lab.finish();
}

fn resident_kib(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the daemon runs");
    let line = status.lines().find(|line| line.starts_with("VmRSS"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
    kib.expect("VmRSS")
}

fn seeking_in_a_large_directory_takes_no_memory(lab: Lab) {
    let dir = lab.m("d");
    make_files(&dir, "some name of a file, not too short, ", 3000);
    let listing = Dir::open(&dir);
    let all = listing.rest(32768);
    assert_eq!(all.len(), 3000);
    let before = resident_kib(lab.pid());
    for n in 0..4000 {
        let at = (n * 1789) % 2900;
        listing.seek(all[at].1);
        assert_eq!(listing.some(4096).first(), Some(&all[at + 1]));
    }
    let grown = resident_kib(lab.pid()).saturating_sub(before);
    assert!(grown < 20 << 10, "4000 seeks took {grown} KiB");
    drop(listing);
    lab.finish();
}

// ---- descriptors

/// Mounts with so low a limit of open files.
fn mount_limited(lab: &mut Lab, limit: u32) {
    let args = lab.mount_args(&[]);
    let program = lab.command(&args);
    let mut command = Command::new("sh");
    command
        .arg("-c")
        .arg(format!("ulimit -n {limit} && exec \"$@\""))
        .arg("sh")
        .arg(program.get_program())
        .args(program.get_args());
    for (key, value) in program.get_envs() {
        match value {
            Some(value) => command.env(key, value),
            None => command.env_remove(key),
        };
    }
    run(&mut command).code(exit::DONE);
    lab.adopt();
}

/// This process has the files open too.
fn raise_own_limit() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("getrlimit");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("setrlimit");
}

fn descriptors(pid: i32) -> usize {
    let held = fs::read_dir(format!("/proc/{pid}/fd")).expect("the daemon runs");
    held.count()
}

fn many_more_files_than_descriptors_can_be_open_and_used(mut lab: Lab) {
    raise_own_limit();
    lab.unmount();
    mount_limited(&mut lab, 256);
    let options = || {
        let mut options = File::options();
        options.read(true).write(true).create_new(true);
        options
    };
    let mut files: Vec<File> = (0..1000)
        .map(|n| options().open(lab.m(format!("f{n}"))).expect("open"))
        .collect();
    let unlinked = options().open(lab.m("unlinked")).expect("open");
    unlinked.write_all_at(b"no name", 0).expect("write");
    fs::remove_file(lab.m("unlinked")).expect("unlink");
    for (n, file) in files.iter_mut().enumerate() {
        file.write_all(&content(n as u64, 3000)).expect("write");
    }
    assert!(descriptors(lab.pid()) < 256);
    for n in [0, 500, 999, 3] {
        files[n].sync_all().expect("fsync");
    }
    // Each by turns, so that none stays open for long.
    for (n, file) in files.iter().enumerate().rev() {
        let mut bytes = vec![0; 3000];
        file.read_exact_at(&mut bytes, 0).expect("read");
        assert!(bytes == content(n as u64, 3000), "f{n}");
        file.write_all_at(b"changed", 100).expect("write again");
        assert_eq!(file.metadata().expect("fstat").len(), 3000);
    }
    let mut bytes = [0; 7];
    unlinked.read_exact_at(&mut bytes, 0).expect("read");
    assert_eq!(&bytes, b"no name");
    // Others go on, and so does a flush.
    write(&lab.m("of others"), b"whole");
    let report = lab.flush_closed();
    assert_content(lab.d("of others"), b"whole");
    assert_eq!(report["left_behind"].as_array().map(Vec::len), Some(1000));
    let report = lab.flush();
    assert_eq!(report["copied_open"].as_array().map(Vec::len), Some(1000));
    let status = lab.status();
    assert_eq!(status["backend_state"], "attached", "{status}");
    assert!(status["last_error"].is_null(), "{status}");
    drop((files, unlinked));
    lab.flush();
    for n in [0, 77, 999] {
        let mut expected = content(n, 3000);
        expected[100..107].copy_from_slice(b"changed");
        assert_content(lab.d(format!("f{n}")), expected);
    }
    lab.assert_drive_is_mount();
    lab.finish();
}

fn files_of_the_drive_are_read_with_few_descriptors(mut lab: Lab) {
    raise_own_limit();
    for n in 0..400 {
        write(&lab.m(format!("f{n}")), &content(n, 2000));
    }
    lab.flush();
    lab.unmount();
    lab.take_new_cache();
    mount_limited(&mut lab, 128);
    let mut files: Vec<File> = (0..400)
        .map(|n| File::open(lab.m(format!("f{n}"))).expect("open"))
        .collect();
    for (n, file) in files.iter_mut().enumerate() {
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).expect("read");
        assert!(bytes == content(n as u64, 2000), "f{n}");
    }
    assert!(descriptors(lab.pid()) < 128);
    assert_eq!(lab.status()["backend_state"], "attached");
    drop(files);
    lab.finish();
}

fn files_deleted_from_the_drive_stay_readable_while_they_are_open(mut lab: Lab) {
    // So long that the kernel does not read ahead to the end.
    let bytes = content(1, 4 << 20);
    for name in ["read", "unread"] {
        write(&lab.m(name), &bytes);
    }
    lab.flush();
    lab.unmount();
    lab.take_new_cache();
    lab.mount(&[]);
    let [read, unread] = ["read", "unread"].map(|name| File::open(lab.m(name)).expect("open"));
    let mut part = vec![0; 4096];
    read.read_exact_at(&mut part, 0).expect("read");
    for name in ["read", "unread"] {
        fs::remove_file(lab.m(name)).expect("delete");
    }
    lab.flush();
    assert!(!lab.d("read").exists() && !lab.d("unread").exists());
    // Longer than idle files of the drive stay open.
    std::thread::sleep(Duration::from_secs(8));
    for file in [read, unread] {
        file.read_exact_at(&mut part, 3 << 20).expect("read on");
        assert!(part == bytes[3 << 20..][..4096]);
    }
    lab.assert_drive_is_mount();
    lab.finish();
}

/// Sets the limit of open files of a process that runs.
fn limit_process(pid: i32, limit: u64) {
    let new = libc::rlimit64 {
        rlim_cur: limit,
        rlim_max: getrlimit(Resource::RLIMIT_NOFILE).expect("getrlimit").1,
    };
    // SAFETY: `new` is read, nothing is written.
    let set = unsafe { libc::prlimit64(pid, libc::RLIMIT_NOFILE, &new, std::ptr::null_mut()) };
    assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
}

fn want_of_descriptors_is_no_loss_of_the_drive(lab: Lab) {
    write(&lab.m("before"), b"before");
    lab.flush();
    let mut open = File::options()
        .read(true)
        .append(true)
        .create(true)
        .open(lab.m("open"))
        .expect("create");
    open.write_all(b"one,").expect("write");
    // Nothing more can be opened, by any part of the daemon.
    limit_process(lab.pid(), 4);
    let refused = File::create(lab.m("refused")).expect_err("no descriptor");
    assert_eq!(refused.raw_os_error(), Some(libc::EMFILE), "{refused}");
    // Others go on, for longer than it takes to notice that a drive has gone.
    let end = std::time::Instant::now() + Duration::from_secs(3);
    let mut written = 4;
    while std::time::Instant::now() < end {
        open.write_all(b"more").expect("write");
        written += 4;
        let mut head = [0; 4];
        open.read_exact_at(&mut head, 0).expect("read");
        assert_eq!(&head, b"one,");
        fs::rename(lab.m("before"), lab.m("between")).expect("rename");
        fs::rename(lab.m("between"), lab.m("before")).expect("rename");
        std::thread::sleep(Duration::from_millis(20));
    }
    limit_process(lab.pid(), 1024);
    let status = lab.status();
    assert_eq!(status["backend_state"], "attached", "{status}");
    let error = status["last_error"].as_str().unwrap_or_default();
    assert!(error.contains("too many open files"), "{status}");
    assert!(error.contains("LimitNOFILE"), "says what to do: {error}");
    let log = fs::read_to_string(lab.cache.join("ferryfs.log")).expect("the log");
    assert!(!log.contains("the drive is gone"), "{log}");
    assert_eq!(open.metadata().expect("fstat").len(), written);
    drop(open);
    File::create(lab.m("not refused")).expect("create");
    lab.finish_flushed();
}

// ---- a kill right after a close

fn held_back(lab: &Lab) -> Vec<String> {
    let attention = lab.status()["attention"].clone();
    let lines = attention.as_array().expect("a list").iter();
    let lines = lines.map(|line| line.as_str().expect("text").to_owned());
    lines.filter(|line| line.contains("held back")).collect()
}

fn closed_right_before_a_kill_is_carried(mut lab: Lab) {
    write(&lab.m("old"), &content(1, 5000));
    lab.flush();
    for round in 0..50_u64 {
        fs::write(lab.m("new"), content(round, 4000)).expect("a new file, or a new version");
        let mut log = File::options()
            .append(true)
            .create(true)
            .open(lab.m("log"))
            .expect("open the log");
        log.write_all(format!("line {round}\n").as_bytes())
            .expect("write");
        drop(log);
        let edited = File::options()
            .write(true)
            .open(lab.m("old"))
            .expect("open");
        edited
            .write_all_at(&round.to_ne_bytes(), 100)
            .expect("write");
        drop(edited);
        lab.kill9();
        lab.remount();
        assert_eq!(held_back(&lab), [""; 0], "round {round}");
    }
    lab.flush();
    lab.assert_drive_is_mount();
    assert_content(lab.d("new"), content(49, 4000));
    let log: String = (0..50).map(|n| format!("line {n}\n")).collect();
    assert_content(lab.d("log"), log.as_bytes());
    lab.finish();
}

fn synced_and_not_written_since_is_carried_after_a_kill(mut lab: Lab) {
    let mut open: Vec<File> = (0..3)
        .map(|n| File::create(lab.m(format!("f{n}"))).expect("create"))
        .collect();
    for file in &mut open {
        file.write_all(b"synced").expect("write");
        file.sync_all().expect("fsync");
    }
    // The same length and, as far as clocks tell, the same time.
    open[1].write_all_at(b"torn  ", 0).expect("write");
    // Somebody else opens it and writes nothing: that makes it no whole file.
    drop(File::options().write(true).open(lab.m("f1")).expect("open"));
    lab.kill9();
    drop(open);
    lab.remount();
    let held = held_back(&lab);
    assert_eq!(held.len(), 1, "{held:?}");
    assert!(held[0].starts_with("f1 "), "{held:?}");
    let report = lab.flush_code(exit::LEFT_BEHIND).json();
    assert_eq!(report["left_behind"][0]["path"], "f1", "{report}");
    assert_content(lab.d("f0"), b"synced");
    assert_content(lab.d("f2"), b"synced");
    assert!(!lab.d("f1").exists());
    lab.flush_interrupted();
    assert_content(lab.d("f1"), b"torn  ");
    assert_eq!(held_back(&lab), [""; 0]);
    lab.finish();
}

fn what_was_in_the_middle_of_being_written_is_named_and_released_by_a_close(mut lab: Lab) {
    write(&lab.m("emptied"), b"the older version");
    lab.flush();
    let mut growing = File::create(lab.m("growing")).expect("create");
    growing.write_all(b"half").expect("write");
    let emptied = File::create(lab.m("emptied")).expect("empty it");
    let mut more: Vec<File> = (0..6)
        .map(|n| File::create(lab.m(format!("more{n}"))).expect("create"))
        .collect();
    for file in &mut more {
        file.write_all(b"x").expect("write");
    }
    lab.kill9();
    drop((growing, emptied, more));
    for round in 0..2 {
        // However often it is mounted.
        if round > 0 {
            lab.unmount_with(&["--no-flush"]);
        }
        lab.remount();
        let held = held_back(&lab);
        assert_eq!(held.len(), 6, "five by name, the rest by number: {held:?}");
        assert!(
            held[0].contains("ferryfs flush --include-interrupted"),
            "{held:?}"
        );
        assert!(held[5].contains("and 3 more"), "{held:?}");
    }
    lab.flush_code(exit::LEFT_BEHIND);
    assert_content(lab.d("emptied"), b"the older version");
    lab::sh(&lab.mnt, "touch growing emptied");
    assert_eq!(held_back(&lab).len(), 6);
    lab.flush_code(exit::LEFT_BEHIND);
    assert_content(lab.d("growing"), b"half");
    assert_content(lab.d("emptied"), b"");
    lab.flush_interrupted();
    lab.assert_drive_is_mount();
    wait_until("nothing to be held back", Duration::from_secs(5), || {
        held_back(&lab).is_empty()
    });
    lab.finish();
}

fn a_child_that_closes_what_it_inherited_makes_no_whole_file(mut lab: Lab) {
    let mut half = File::create(lab.m("half")).expect("create");
    half.write_all(b"half of").expect("write");
    // Born with a copy of the descriptor, and gone.
    lab::sh(Path::new("/"), "true");
    // Threads of one program are one writer.
    let mut whole = File::create(lab.m("whole")).expect("create");
    whole.write_all(b"whole").expect("write");
    let closed = std::thread::spawn(move || drop(whole)).join();
    closed.expect("close");
    lab.kill9();
    drop(half);
    lab.remount();
    let held = held_back(&lab);
    assert_eq!(held.len(), 1, "{held:?}");
    assert!(held[0].starts_with("half "), "{held:?}");
    lab.flush_code(exit::LEFT_BEHIND);
    assert_content(lab.d("whole"), b"whole");
    assert!(!lab.d("half").exists());
    lab.flush_interrupted();
    lab.finish();
}

/// Whether an object of the cache bears the mark of what is whole.
fn is_any_marked(lab: &Lab) -> bool {
    let found = lab::sh(&lab.cache, "find objects -type f -perm 0700");
    !found.stdout.is_empty()
}

fn the_end_of_one_of_several_programs_that_write_a_file_makes_no_whole_file(mut lab: Lab) {
    // The first of two programs that share a descriptor has ended; `up` is made by the shell
    // itself.
    let up = lab.root().join("up");
    let script = format!(
        "(/bin/echo half; : > '{}'; exec sleep 600) > half",
        up.display()
    );
    let mut group = Command::new("sh")
        .args(["-c", &script])
        .current_dir(&lab.mnt)
        .process_group(0)
        .spawn()
        .expect("start the programs");
    wait_until("the first to end", Duration::from_secs(30), || up.exists());
    wait_until("the mark to go", Duration::from_secs(30), || {
        !is_any_marked(&lab)
    });
    lab.kill9();
    let all = nix::unistd::Pid::from_raw(group.id() as i32);
    let _ = nix::sys::signal::killpg(all, nix::sys::signal::Signal::SIGKILL);
    let _ = group.wait();
    lab.remount();
    let held = held_back(&lab);
    assert_eq!(held.len(), 1, "{held:?}");
    assert!(held[0].starts_with("half "), "{held:?}");
    lab.flush_interrupted();
    assert_content(lab.d("half"), b"half\n");
    lab.finish();
}

fn what_was_written_through_a_mapping_survives_a_kill_after_the_close(mut lab: Lab) {
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(lab.m("mapped"))
        .expect("create");
    file.set_len(4096).expect("set the length");
    // SAFETY: a new mapping of 4096 bytes of a file that is so long, wherever there is room.
    let at = unsafe {
        let (access, shared) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        libc::mmap(
            std::ptr::null_mut(),
            4096,
            access,
            shared,
            file.as_raw_fd(),
            0,
        )
    };
    assert_ne!(at, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
    // SAFETY: the mapping is 4096 bytes long, and nobody else knows of it.
    unsafe { at.cast::<u8>().write_bytes(b'm', 4096) };
    drop(file);
    lab.kill9();
    // SAFETY: mapped above, and not used any more.
    unsafe { libc::munmap(at, 4096) };
    lab.remount();
    assert_content(lab.m("mapped"), [b'm'; 4096]);
    assert_eq!(held_back(&lab), [""; 0]);
    lab.flush();
    assert_content(lab.d("mapped"), [b'm'; 4096]);
    lab.finish();
}
