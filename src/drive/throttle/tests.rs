use std::io;
use std::sync::atomic::AtomicBool;
use std::thread;

use super::rules::{LINGER, LOOK_EVERY};
use super::*;
use crate::core::{Metadata, Timestamp};
use crate::drive::{ReadFile, WriteFile, WriteOut};

const MIB: u64 = 1 << 20;
const HOUR: Duration = Duration::from_secs(3600);
const POLITE: Settings = Settings {
    polite: true,
    limit: None,
};

fn millis(count: u64) -> Duration {
    Duration::from_millis(count)
}

fn read_through_mount(bytes: u64) -> Counts {
    Counts {
        mount: bytes,
        ..Counts::default()
    }
}

fn read_from_disk(disk: u64, ours: u64) -> Counts {
    Counts {
        disk: Some(disk),
        ours,
        mount: 0,
    }
}

/// A flush of requests that take `took` each, on a clock that only they move.
struct Simulation {
    rules: Rules,
    now: Instant,
    settings: Settings,
}

impl Simulation {
    fn new(yields_for: Duration, settings: Settings) -> Simulation {
        let now = Instant::now();
        Simulation {
            rules: Rules::new(now, yields_for, Counts::default()),
            now,
            settings,
        }
    }

    /// Returns how long the request had to wait.
    fn request(&mut self, bytes: u64, took: Duration) -> Duration {
        let (wait, _) = self.rules.wait(self.now, &self.settings);
        self.now += wait;
        self.rules.begin(self.now, bytes, wait, &self.settings);
        self.now += took;
        self.rules.end(self.now, took, &self.settings);
        wait
    }
}

#[test]
fn a_limit_holds_over_any_time_and_not_beyond_what_the_requests_take_themselves() {
    let settings = Settings {
        polite: true,
        limit: Some(MIB),
    };
    let mut flush = Simulation::new(HOUR, settings);
    let begun = flush.now;
    for _ in 0..20 {
        flush.request(MIB / 4, millis(50));
    }
    // 5 MiB, of which the last quarter is paid for by the request that does not come any more.
    assert_eq!(flush.now - begun, millis(19 * 250 + 50));
    // A pause does not allow a burst.
    flush.now += HOUR;
    let begun = flush.now;
    for _ in 0..5 {
        flush.request(MIB / 4, millis(50));
    }
    assert_eq!(flush.now - begun, millis(4 * 250 + 50));
    let slow = flush.request(MIB / 4, millis(900));
    assert_eq!(slow, millis(200));
    assert_eq!(flush.request(MIB / 4, millis(900)), Duration::ZERO);
}

#[test]
fn readers_get_four_fifths_of_the_time() {
    let mut flush = Simulation::new(HOUR, POLITE);
    assert_eq!(flush.request(MIB, millis(10)), Duration::ZERO);
    assert_eq!(
        flush.request(MIB, millis(10)),
        Duration::ZERO,
        "nobody reads"
    );
    let begun = flush.now;
    let mut busy = Duration::ZERO;
    for count in 1..=200 {
        flush.rules.note(flush.now, read_through_mount(count * MIB));
        flush.request(MIB, millis(10));
        busy += millis(10);
    }
    let all = flush.now - begun;
    assert!(all >= busy * 49 / 10, "{all:?}");
    assert!(all <= busy * 5, "bounded: {all:?}");
}

#[test]
fn rests_that_are_too_short_are_taken_together_and_long_ones_are_bounded() {
    let mut flush = Simulation::new(HOUR, POLITE);
    flush.rules.note(flush.now, read_through_mount(1));
    let waits: Vec<_> = (0..7)
        .map(|_| flush.request(4096, millis(1)).as_millis())
        .collect();
    assert_eq!(waits, [0, 0, 0, 12, 0, 0, 12]);
    flush.request(MIB, Duration::from_secs(60));
    flush.rules.note(flush.now, read_through_mount(2));
    assert_eq!(
        flush.request(MIB, millis(1)),
        Duration::ZERO,
        "none read then"
    );
    flush.rules.note(flush.now, read_through_mount(3));
    flush.request(MIB, millis(1900));
    assert_eq!(flush.request(MIB, millis(1)), Duration::from_secs(1));
}

#[test]
fn a_flush_yields_until_a_while_after_the_last_read_and_never_longer_than_allowed() {
    let mut flush = Simulation::new(Duration::from_secs(10), POLITE);
    let yields = |flush: &Simulation| flush.rules.yields(flush.now, &POLITE);
    assert!(!yields(&flush));
    flush.rules.note(flush.now, read_through_mount(1));
    flush.now += LINGER - millis(1);
    assert!(yields(&flush));
    flush.now += millis(1);
    assert!(!yields(&flush));
    flush.now += Duration::from_secs(7);
    flush.rules.note(flush.now, read_through_mount(2));
    assert!(yields(&flush));
    assert!(!flush.rules.yields(
        flush.now,
        &Settings {
            polite: false,
            limit: None
        }
    ));
    flush.now += Duration::from_secs(1);
    flush.rules.note(flush.now, read_through_mount(3));
    assert!(!yields(&flush), "ten seconds are over");
    assert_eq!(flush.request(MIB, millis(10)), Duration::ZERO);
    assert_eq!(flush.request(MIB, millis(10)), Duration::ZERO);
}

#[test]
fn of_what_the_disk_counts_only_what_others_read_counts() {
    let yields = |counts: &[Counts]| {
        let mut flush = Simulation::new(HOUR, POLITE);
        flush.rules = Rules::new(flush.now, HOUR, counts[0]);
        for counts in &counts[1..] {
            flush.now += LOOK_EVERY;
            assert!(flush.rules.is_look_due(flush.now));
            flush.rules.note(flush.now, *counts);
            assert!(!flush.rules.is_look_due(flush.now));
        }
        flush.rules.yields(flush.now, &POLITE)
    };
    let at = read_from_disk;
    let film = [at(5 * MIB, 0), at(6 * MIB, 0), at(7 * MIB, 0)];
    assert!(yields(&film), "a film");
    assert!(!yields(&film[..2]), "a burst of the file system");
    let bursts = [film[0], film[1], film[1], film[2]];
    assert!(!yields(&bursts), "bursts of the file system");
    let metadata = [at(0, 0), at(8192, 0), at(16384, 0)];
    assert!(!yields(&metadata), "metadata");
    let own = [at(0, 0), at(10 * MIB, 10 * MIB), at(20 * MIB, 20 * MIB)];
    assert!(!yields(&own), "the flush itself");
    let cached = [at(0, 0), at(MIB, 10 * MIB), at(2 * MIB, 20 * MIB)];
    assert!(!yields(&cached), "the flush, from memory");
    let both = [at(0, 0), at(14 * MIB, 10 * MIB), at(28 * MIB, 20 * MIB)];
    assert!(yields(&both), "both");
    let uncounted = Counts::default();
    assert!(
        !yields(&[uncounted, at(9 * MIB, 0)]),
        "a disk that has just come"
    );
    assert!(
        !yields(&[at(9 * MIB, 0), uncounted]),
        "a disk that has gone"
    );
    assert!(!yields(&[at(9 * MIB, 0), at(0, 0)]), "another disk");
}

#[test]
fn little_in_a_long_time_is_no_reader_and_one_that_goes_on_needs_no_second_look() {
    let kib = |count: u64| read_from_disk(count << 10, 0);
    let mut flush = Simulation::new(HOUR, POLITE);
    flush.rules = Rules::new(flush.now, HOUR, kib(0));
    let look = |flush: &mut Simulation, after: Duration, counts: Counts| {
        flush.now += after;
        flush.rules.note(flush.now, counts);
        flush.rules.yields(flush.now, &POLITE)
    };
    for seconds in 1..5 {
        let counts = kib(seconds * 500);
        assert!(!look(&mut flush, Duration::from_secs(1), counts));
    }
    assert!(!look(&mut flush, LOOK_EVERY, kib(2500)));
    assert!(look(&mut flush, LOOK_EVERY, kib(3000)));
    assert!(look(&mut flush, LINGER / 2, kib(3000)));
    assert!(look(&mut flush, LOOK_EVERY, kib(3500)));
    assert!(look(&mut flush, LINGER * 3 / 4, kib(3500)), "read since");
}

/// What was done with a file, in order.
#[derive(Clone, Default)]
struct Calls(Arc<Mutex<Vec<String>>>);

impl Calls {
    fn add(&self, call: String) {
        self.0.lock().push(call);
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock())
    }
}

struct Recorded {
    calls: Calls,
    is_broken: bool,
}

impl WriteFile for Recorded {
    fn append(&mut self, data: &[u8]) -> io::Result<()> {
        self.calls.add(format!("append {}", data.len() >> 10));
        Ok(())
    }

    fn write_out(&mut self, how: WriteOut) -> io::Result<()> {
        self.calls.add(format!("{how:?}"));
        match self.is_broken {
            true => Err(io::Error::from_raw_os_error(libc::EIO)),
            false => Ok(()),
        }
    }

    fn finish(self: Box<Self>, _modified: Timestamp) -> io::Result<()> {
        self.calls.add("finish".into());
        Ok(())
    }
}

impl ReadFile for Recorded {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.calls.add(format!("read {} at {offset}", buf.len()));
        Ok(buf.len().min(5))
    }

    fn metadata(&self) -> io::Result<Metadata> {
        Err(io::Error::from_raw_os_error(libc::EIO))
    }
}

fn recorded(calls: &Calls) -> Box<Recorded> {
    Box::new(Recorded {
        calls: calls.clone(),
        is_broken: false,
    })
}

fn throttle(settings: Settings) -> Arc<Throttle> {
    let throttle = Arc::<Throttle>::default();
    throttle.set(settings);
    throttle
}

fn finish(file: Box<dyn WriteFile>) {
    file.finish(Timestamp::from_parts(0, 0)).unwrap();
}

/// Writes 9 MiB to a file that is opened now, and returns what became of it.
fn nine_mib(then: impl FnOnce()) -> Vec<String> {
    let calls = Calls::default();
    let mut file = over_write(recorded(&calls));
    for _ in 0..9 {
        file.append(&vec![0; MIB as usize]).unwrap();
    }
    then();
    finish(file);
    let calls = calls.take();
    let is_write = |call: &&String| !call.starts_with("append 1024");
    calls.iter().filter(is_write).cloned().collect()
}

#[test]
fn a_flush_keeps_little_in_memory_and_one_that_yields_nothing() {
    let throttle = throttle(POLITE);
    assert_eq!(nine_mib(|| {}), ["finish"], "no flush");
    let flush = throttle.enter(Manner::AtOnce);
    assert_eq!(nine_mib(|| {}), ["Begin", "Begin", "finish"]);
    drop(flush);
    let flush = throttle.enter(Manner::Background(HOUR));
    assert_eq!(nine_mib(|| {}), ["Begin", "Finish", "Begin", "finish"]);
    drop(flush);
    throttle.set(Settings {
        polite: false,
        limit: None,
    });
    let flush = throttle.enter(Manner::Background(HOUR));
    assert_eq!(nine_mib(|| {}), ["finish"]);
    drop(flush);
    throttle.set(POLITE);
    let flush = throttle.enter(Manner::Background(HOUR));
    read_by_another(&throttle);
    let why = |why: Option<Slowed>| assert_eq!(throttle.slowed(), why);
    let calls = nine_mib(|| why(Some(Slowed::OthersRead)));
    let mut expected = vec!["Finish"; 9];
    expected.push("finish");
    assert_eq!(calls, expected);
    drop(flush);
    why(None);
}

/// Has another thread read through the mount, so that the flush under way yields.
fn read_by_another(throttle: &Arc<Throttle>) {
    let theirs = throttle.clone();
    thread::spawn(move || theirs.note_read(1)).join().unwrap();
    thread::sleep(LOOK_EVERY);
}

/// Writes a file in parts of so many bytes, and returns how often it was written out.
fn written_out(parts: usize, bytes: usize) -> Vec<String> {
    let calls = Calls::default();
    let mut file = over_write(recorded(&calls));
    for _ in 0..parts {
        file.append(&vec![0; bytes]).unwrap();
    }
    finish(file);
    let calls = calls.take();
    let is_write_out = |call: &&String| !call.starts_with("append") && *call != "finish";
    calls.iter().filter(is_write_out).cloned().collect()
}

#[test]
fn a_flush_that_yields_waits_for_tiny_parts_together() {
    let throttle = throttle(POLITE);
    let _flush = throttle.enter(Manner::Background(HOUR));
    read_by_another(&throttle);
    assert_eq!(written_out(100, 4096), ["Finish", "Finish"]);
    assert_eq!(written_out(3, 16), ["Finish"], "at the end");
}

#[test]
fn the_files_of_a_flush_share_the_bound_of_what_is_on_its_way() {
    let throttle = throttle(POLITE);
    let _flush = throttle.enter(Manner::Background(HOUR));
    assert_eq!(written_out(5, 1 << 20), ["Begin", "Begin"]);
    assert_eq!(written_out(5, 1 << 20), ["Finish", "Begin"]);
    assert_eq!(written_out(5, 1 << 20), ["Begin", "Begin"]);
    let at_once = throttle.hurry();
    assert_eq!(written_out(5, 1 << 20), ["Begin"]);
    drop(at_once);
    assert_eq!(written_out(1, 16), ["Finish"], "of all that was written");
    assert_eq!(written_out(0, 1), [""; 0], "nothing was written");
}

/// Lowers the limit during the first write.
struct Reloading {
    calls: Calls,
    throttle: Arc<Throttle>,
}

impl WriteFile for Reloading {
    fn append(&mut self, data: &[u8]) -> io::Result<()> {
        self.calls.add(format!("append {}", data.len() >> 10));
        self.throttle.set(Settings {
            polite: false,
            limit: Some(MIB),
        });
        Ok(())
    }

    fn finish(self: Box<Self>, _modified: Timestamp) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_lower_limit_cuts_the_rest_of_a_write_into_smaller_requests() {
    let throttle = throttle(POLITE);
    let _flush = throttle.enter(Manner::Background(HOUR));
    let calls = Calls::default();
    let mut file = over_write(Box::new(Reloading {
        calls: calls.clone(),
        throttle: throttle.clone(),
    }));
    file.append(&vec![0; 3 << 19]).unwrap();
    assert_eq!(calls.take(), ["append 1024", "append 256", "append 256"]);
    // One that was cut before, and only now has its turn.
    let settings = Settings {
        polite: true,
        limit: Some(64 << 10),
    };
    throttle.set(settings);
    current().unwrap().run(LARGEST_REQUEST, |_| ());
    let state = throttle.state.lock();
    let (wait, why) = state
        .rules
        .as_ref()
        .unwrap()
        .wait(Instant::now(), &settings);
    assert!(wait <= Duration::from_secs(1), "{wait:?}");
    assert_eq!(why, Some(Slowed::Limit));
}

#[test]
fn an_error_of_writing_out_is_one_of_the_write() {
    let throttle = throttle(POLITE);
    let _flush = throttle.enter(Manner::Background(HOUR));
    let calls = Calls::default();
    let mut file = over_write(Box::new(Recorded {
        calls: calls.clone(),
        is_broken: true,
    }));
    let error = file.append(&vec![0; 5 << 20]).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    let mut small = over_write(Box::new(Recorded {
        calls,
        is_broken: true,
    }));
    small.append(b"small").unwrap();
    let error = small.finish(Timestamp::from_parts(0, 0)).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
}

#[test]
fn large_reads_are_cut_into_requests_and_end_with_the_file() {
    let throttle = throttle(POLITE);
    let _flush = throttle.enter(Manner::Background(HOUR));
    let calls = Calls::default();
    let file = over_read(recorded(&calls));
    let mut buffer = vec![0; 3 << 20];
    assert_eq!(file.read_at(&mut buffer, 7).unwrap(), 5);
    assert_eq!(calls.take(), ["read 1048576 at 7"]);
}

/// Starts a flush that writes more than its limit allows in a day. Returns whether it is done.
fn stuck(throttle: &Arc<Throttle>) -> (Arc<AtomicBool>, thread::JoinHandle<()>) {
    let done = Arc::new(AtomicBool::new(false));
    let (theirs, is_done) = (throttle.clone(), done.clone());
    let flush = thread::spawn(move || {
        let _flush = theirs.enter(Manner::Background(HOUR));
        let mut file = over_write(recorded(&Calls::default()));
        file.append(&vec![0; 2 << 20]).unwrap();
        is_done.store(true, Ordering::Release);
        finish(file);
    });
    while throttle.slowed() != Some(Slowed::Limit) {
        thread::sleep(millis(1));
    }
    thread::sleep(millis(50));
    assert!(!done.load(Ordering::Acquire));
    (done, flush)
}

#[test]
fn whoever_waits_for_a_flush_lifts_its_limit_at_once_and_only_for_so_long() {
    let settings = Settings {
        polite: true,
        limit: Some(1),
    };
    let throttle = throttle(settings);
    let (done, flush) = stuck(&throttle);
    let (one, other) = (throttle.hurry(), throttle.hurry());
    flush.join().unwrap();
    assert!(done.load(Ordering::Acquire));
    assert_eq!(throttle.slowed(), None);
    drop(one);
    assert_eq!(throttle.state.lock().hurried, 1);
    drop(other);
    let (_, flush) = stuck(&throttle);
    throttle.set(Settings {
        polite: false,
        limit: None,
    });
    flush.join().unwrap();
}

#[test]
fn whoever_needs_a_flush_only_for_a_while_hurries_it_only_for_so_long() {
    let throttle = throttle(POLITE);
    let mut held = None;
    let hurried = || throttle.state.lock().hurried;
    for (is_needed, expected) in [(false, 0), (true, 1), (true, 1), (false, 0), (true, 1)] {
        throttle.hurry_while(is_needed, &mut held);
        assert_eq!(hurried(), expected);
    }
    drop(held);
    assert_eq!(hurried(), 0);
}

/// Notes the priority of its writes.
struct Ranked(Arc<Mutex<Vec<IoPriority>>>);

impl WriteFile for Ranked {
    fn append(&mut self, _data: &[u8]) -> io::Result<()> {
        self.0.lock().push(priority::get()?);
        Ok(())
    }

    fn finish(self: Box<Self>, _modified: Timestamp) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn only_a_request_that_may_wait_has_the_lowest_priority_and_no_thread_inherits_it() {
    let ordinary = priority::get().unwrap();
    let lowest = {
        let _lowered = lower();
        priority::get().unwrap()
    };
    let throttle = throttle(POLITE);
    let _flush = throttle.enter(Manner::Background(HOUR));
    let seen = Arc::<Mutex<Vec<IoPriority>>>::default();
    let mut file = over_write(Box::new(Ranked(seen.clone())));
    file.append(b"x").unwrap();
    assert_eq!(priority::get().unwrap(), ordinary);
    let inherited = thread::spawn(|| priority::get().unwrap()).join().unwrap();
    assert_eq!(inherited, ordinary);
    let at_once = without_rests();
    file.append(b"x").unwrap();
    drop(at_once);
    file.append(b"x").unwrap();
    assert_eq!(*seen.lock(), [lowest, ordinary, lowest]);
}

#[test]
fn what_follows_a_commit_is_not_slowed() {
    let throttle = throttle(Settings {
        polite: true,
        limit: Some(1),
    });
    let _flush = throttle.enter(Manner::Background(HOUR));
    let at_once = without_rests();
    assert_eq!(nine_mib(|| {}), ["Begin", "Begin", "finish"]);
    drop(at_once);
}
