//! A backend whose calls hang on demand, and the guard's reaction. A test waits for time to pass
//! only if it is the guard's own timeout, which is short; every other order of events is forced.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::drive::connection::{Drive, Withheld};
use crate::drive::memory::MemoryBackend;
use crate::format::steps::{ClearStep, PlaceStep, PlainKind, SlotNo, Steps};
use crate::plan::touched::Touched;

mod read_ahead;

const TIMEOUT: Duration = Duration::from_millis(400);

/// Long compared with anything that must happen soon, on a slow machine too.
const SOON: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Hangs {
    #[default]
    Nothing,
    Everything,
    /// All but the probe, as if one file could not be read.
    AllButProbe,
    Changes,
}

#[derive(Default)]
struct Gate {
    hangs: Mutex<Hangs>,
    opened: Condvar,
    hung: AtomicUsize,
    /// The number of open files.
    open: AtomicUsize,
    /// The result of a call that has hung, instead of its answer.
    errno: Mutex<Option<i32>>,
}

impl Gate {
    fn set(&self, hangs: Hangs) {
        *self.hangs.lock() = hangs;
        self.opened.notify_all();
    }

    fn pass(&self, caught: impl Fn(Hangs) -> bool) -> io::Result<()> {
        let mut hangs = self.hangs.lock();
        if !caught(*hangs) {
            return Ok(());
        }
        self.hung.fetch_add(1, Ordering::SeqCst);
        while caught(*hangs) {
            self.opened.wait(&mut hangs);
        }
        self.hung.fetch_sub(1, Ordering::SeqCst);
        match *self.errno.lock() {
            Some(errno) => Err(io::Error::from_raw_os_error(errno)),
            None => Ok(()),
        }
    }

    fn read(&self) -> io::Result<()> {
        self.pass(|hangs| matches!(hangs, Hangs::Everything | Hangs::AllButProbe))
    }

    fn change(&self) -> io::Result<()> {
        self.pass(|hangs| !matches!(hangs, Hangs::Nothing))
    }

    fn probe(&self) -> io::Result<()> {
        self.pass(|hangs| hangs == Hangs::Everything)
    }

    fn hung(&self) -> usize {
        self.hung.load(Ordering::SeqCst)
    }
}

#[derive(Clone, Default)]
struct Hanging {
    inner: MemoryBackend,
    gate: Arc<Gate>,
}

struct HangingFile(Box<dyn ReadFile>, Arc<Gate>);

impl ReadFile for HangingFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.1.read()?;
        self.0.read_at(buf, offset)
    }
    fn metadata(&self) -> io::Result<Metadata> {
        self.1.read()?;
        self.0.metadata()
    }
}

impl Drop for HangingFile {
    fn drop(&mut self) {
        let _ = self.1.read();
        self.1.open.fetch_sub(1, Ordering::SeqCst);
    }
}

fn caught<T>(path: &RelPath, gate: io::Result<()>, work: impl FnOnce() -> Result<T>) -> Result<T> {
    gate.map_err(|error| BackendError::new("hang", path, error))?;
    work()
}

impl Backend for Hanging {
    fn read_dir(&self, dir: &RelPath) -> Result<Vec<Entry>> {
        caught(dir, self.gate.read(), || self.inner.read_dir(dir))
    }
    fn metadata(&self, path: &RelPath) -> Result<Metadata> {
        caught(path, self.gate.read(), || self.inner.metadata(path))
    }
    fn open(&self, path: &RelPath) -> Result<Box<dyn ReadFile>> {
        let file = caught(path, self.gate.read(), || self.inner.open(path))?;
        self.gate.open.fetch_add(1, Ordering::SeqCst);
        Ok(Box::new(HangingFile(file, self.gate.clone())))
    }
    fn modify(&self, path: &RelPath) -> Result<Box<dyn ModifyFile>> {
        caught(path, self.gate.change(), || self.inner.modify(path))
    }

    fn create(&self, path: &RelPath) -> Result<Box<dyn WriteFile>> {
        caught(path, self.gate.change(), || self.inner.create(path))
    }
    fn make_dir(&self, path: &RelPath) -> Result<()> {
        caught(path, self.gate.change(), || self.inner.make_dir(path))
    }
    fn rename(&self, from: &RelPath, to: &RelPath) -> Result<()> {
        caught(from, self.gate.change(), || self.inner.rename(from, to))
    }
    fn remove_file(&self, path: &RelPath) -> Result<()> {
        caught(path, self.gate.change(), || self.inner.remove_file(path))
    }
    fn remove_dir(&self, path: &RelPath) -> Result<()> {
        caught(path, self.gate.change(), || self.inner.remove_dir(path))
    }
    fn set_modified(&self, path: &RelPath, modified: Timestamp) -> Result<()> {
        caught(path, self.gate.change(), || {
            self.inner.set_modified(path, modified)
        })
    }
    fn sync(&self) -> Result<()> {
        caught(&RelPath::root(), self.gate.change(), || self.inner.sync())
    }
    fn space(&self) -> Result<Space> {
        caught(&RelPath::root(), self.gate.read(), || self.inner.space())
    }
    fn answers(&self) -> Result<()> {
        caught(&RelPath::root(), self.gate.probe(), || Ok(()))
    }
}

fn path(text: &str) -> RelPath {
    RelPath::parse(text.as_bytes()).unwrap()
}

fn put(backend: &dyn Backend, name: &str, bytes: &[u8]) {
    let mut file = backend.create(&path(name)).unwrap();
    file.append(bytes).unwrap();
    file.finish(Timestamp(0)).unwrap();
}

fn guarded() -> (Hanging, Watch, Guard, Patient) {
    let hanging = Hanging::default();
    put(&hanging, "film", b"0123456789");
    let watch = Watch::start(TIMEOUT).unwrap();
    let (guard, patient) = watch.over(Arc::new(hanging.clone()));
    (hanging, watch, guard, patient)
}

#[track_caller]
fn eventually(what: &str, mut ready: impl FnMut() -> bool) {
    let end = Instant::now() + SOON;
    while !ready() {
        assert!(Instant::now() < end, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

#[track_caller]
fn stalls<T>(outcome: Result<T>) {
    let error = outcome.err().expect("the backend hangs");
    assert!(error.is_stalled() && !error.is_gone(), "{error}");
}

/// Opens the gate at the end of the test in every case, so that no thread stays stuck in it.
struct OpenAtEnd(Hanging);

impl Drop for OpenAtEnd {
    fn drop(&mut self) {
        self.0.gate.set(Hangs::Nothing);
    }
}

#[test]
fn a_read_that_hangs_ends_in_time_and_the_next_ones_fail_at_once() {
    let (hanging, watch, guard, _) = guarded();
    let _open = OpenAtEnd(hanging.clone());
    let file = guard.open(&path("film")).unwrap();
    hanging.gate.set(Hangs::Everything);
    let begun = Instant::now();
    let error = file.read_at(&mut [0; 4], 0).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ETIMEDOUT));
    assert!(begun.elapsed() >= TIMEOUT && begun.elapsed() < SOON);
    let stall = watch.stalled().expect("it does not answer");
    assert!(stall.lasts() >= TIMEOUT);
    // A thousand of these in sequence would take minutes if each waited for its own timeout.
    let begun = Instant::now();
    for _ in 0..1000 {
        stalls(guard.metadata(&path("film")));
        stalls(guard.read_dir(&RelPath::root()));
    }
    assert!(begun.elapsed() < SOON);
    assert_eq!(watch.stuck(), 1, "only the first one is stuck");
}

#[test]
fn it_works_again_as_soon_as_the_backend_answers() {
    let (hanging, watch, guard, _) = guarded();
    let _open = OpenAtEnd(hanging.clone());
    hanging.gate.set(Hangs::Everything);
    stalls(guard.metadata(&path("film")));
    eventually("a probe", || hanging.gate.hung() == 2);
    assert!(watch.stalled().is_some());
    hanging.gate.set(Hangs::Nothing);
    eventually("it to answer", || watch.stalled().is_none());
    assert_eq!(guard.metadata(&path("film")).unwrap().size, 10);
    eventually("the stuck thread to return", || watch.stuck() == 0);
}

#[test]
fn one_file_that_cannot_be_read_does_not_stall_the_others() {
    let (hanging, watch, guard, _) = guarded();
    let _open = OpenAtEnd(hanging.clone());
    hanging.gate.set(Hangs::AllButProbe);
    stalls(guard.metadata(&path("film")));
    eventually("the probe to be answered", || watch.stalled().is_none());
    assert_eq!(watch.stuck(), 1, "the first call is still stuck");
}

#[test]
fn stuck_threads_are_bounded_in_number_and_then_calls_fail_at_once() {
    let (hanging, watch, guard, _) = guarded();
    let _open = OpenAtEnd(hanging.clone());
    hanging.gate.set(Hangs::AllButProbe);
    let callers: Vec<_> = (0..3 * threads::MAX_THREADS)
        .map(|_| {
            let guard = guard.clone();
            thread::spawn(move || stalls(guard.metadata(&path("film"))))
        })
        .collect();
    for caller in callers {
        caller.join().unwrap();
    }
    while watch.stuck() < threads::MAX_THREADS {
        stalls(guard.metadata(&path("film")));
    }
    assert_eq!(hanging.gate.hung(), threads::MAX_THREADS);
    eventually("the probe to be answered", || watch.stalled().is_none());
    stalls(guard.metadata(&path("film")));
    assert_eq!(hanging.gate.hung(), threads::MAX_THREADS);
    // A call that was abandoned before it began never begins.
    hanging.gate.set(Hangs::Nothing);
    eventually("the threads to return", || watch.stuck() == 0);
    assert_eq!(guard.metadata(&path("film")).unwrap().size, 10);
}

#[test]
fn an_answer_that_comes_too_late_goes_nowhere_and_its_file_is_closed() {
    let (hanging, watch, guard, _) = guarded();
    let _open = OpenAtEnd(hanging.clone());
    let file = guard.open(&path("film")).unwrap();
    hanging.gate.set(Hangs::AllButProbe);
    let mut buffer = [b'-'; 4];
    assert!(file.read_at(&mut buffer, 0).is_err());
    eventually("the probe to be answered", || watch.stalled().is_none());
    stalls(guard.open(&path("film")));
    hanging.gate.set(Hangs::Nothing);
    eventually("both threads to return", || watch.stuck() == 0);
    assert_eq!(&buffer, b"----");
    drop(file);
    assert!(watch.wait_for_closes(SOON));
    assert_eq!(hanging.gate.open.load(Ordering::SeqCst), 0);
}

#[test]
fn closing_a_file_waits_for_nobody() {
    let (hanging, watch, guard, _) = guarded();
    let _open = OpenAtEnd(hanging.clone());
    let file = guard.open(&path("film")).unwrap();
    hanging.gate.set(Hangs::Everything);
    drop(file);
    eventually("the close to hang", || hanging.gate.hung() == 1);
    assert!(!watch.wait_for_closes(Duration::from_millis(10)));
    hanging.gate.set(Hangs::Nothing);
    assert!(watch.wait_for_closes(SOON));
}

#[test]
fn a_change_is_never_given_up_and_takes_effect_once_before_its_caller_goes_on() {
    let (hanging, watch, _, patient) = guarded();
    let _open = OpenAtEnd(hanging.clone());
    hanging.gate.set(Hangs::Everything);
    let flush = thread::spawn(move || {
        patient.rename(&path("film"), &path("seen"))?;
        patient.make_dir(&path("film"))
    });
    eventually("the stall to show", || watch.stalled().is_some());
    thread::sleep(3 * TIMEOUT);
    assert!(!flush.is_finished(), "it was given up");
    assert_eq!(watch.stuck(), 0, "it takes no reader's thread");
    hanging.gate.set(Hangs::Nothing);
    flush.join().unwrap().expect("in this order they succeed");
    eventually("it to answer", || watch.stalled().is_none());
    assert_eq!(hanging.inner.metadata(&path("seen")).unwrap().size, 10);
}

#[test]
fn a_sync_that_takes_long_is_no_stall_while_readers_are_answered() {
    let (hanging, watch, guard, patient) = guarded();
    let _open = OpenAtEnd(hanging.clone());
    hanging.gate.set(Hangs::Changes);
    let flush = thread::spawn(move || patient.sync());
    eventually("the sync to begin", || hanging.gate.hung() == 1);
    let end = Instant::now() + 4 * TIMEOUT;
    while Instant::now() < end {
        assert!(watch.stalled().is_none());
        assert_eq!(guard.metadata(&path("film")).unwrap().size, 10);
        thread::sleep(Duration::from_millis(20));
    }
    hanging.gate.set(Hangs::Nothing);
    flush.join().unwrap().unwrap();
}

#[test]
fn a_late_error_is_no_sign_that_the_backend_is_well() {
    let (hanging, watch, guard, _) = guarded();
    let _open = OpenAtEnd(hanging.clone());
    *hanging.gate.errno.lock() = Some(libc::EIO);
    hanging.gate.set(Hangs::Everything);
    stalls(guard.metadata(&path("film")));
    eventually("a probe", || hanging.gate.hung() == 2);
    // The probe has taken longer than half the timeout; otherwise its error would count as an
    // answer.
    thread::sleep(TIMEOUT);
    hanging.gate.set(Hangs::Nothing);
    eventually("the stuck thread to return", || watch.stuck() == 0);
    // The next probe succeeds at once.
    eventually("it to answer", || watch.stalled().is_none());
}

#[test]
fn a_listing_that_gets_on_may_take_longer_than_a_single_call() {
    #[derive(Default)]
    struct Slow;
    impl ReadFile for Slow {
        fn read_at(&self, _: &mut [u8], _: u64) -> io::Result<usize> {
            let end = Instant::now() + 3 * TIMEOUT;
            while Instant::now() < end {
                thread::sleep(TIMEOUT / 10);
                sign_of_life();
            }
            Ok(0)
        }
        fn metadata(&self) -> io::Result<Metadata> {
            Err(io::Error::from_raw_os_error(libc::EIO))
        }
    }
    let (_, watch, guard, _) = guarded();
    let file = GuardedFile {
        inner: Some(Arc::new(Slow)),
        shared: guard.patient.shared.clone(),
        ahead: None,
    };
    assert_eq!(file.read_at(&mut [0], 0).unwrap(), 0);
    assert!(watch.stalled().is_none());
}

#[test]
fn a_call_that_panics_is_an_error_and_costs_no_thread() {
    struct Broken;
    impl ReadFile for Broken {
        fn read_at(&self, _: &mut [u8], _: u64) -> io::Result<usize> {
            panic!("as the test wants it")
        }
        fn metadata(&self) -> io::Result<Metadata> {
            panic!("as the test wants it")
        }
    }
    let (hanging, _, _, _) = guarded();
    // Reporting a panic takes time.
    let watch = Watch::start(Duration::from_secs(60)).unwrap();
    let (guard, _) = watch.over(Arc::new(hanging));
    let file = GuardedFile {
        inner: Some(Arc::new(Broken)),
        shared: guard.patient.shared.clone(),
        ahead: None,
    };
    for _ in 0..2 * threads::MAX_THREADS {
        let error = file.read_at(&mut [0], 0).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EIO));
    }
    assert_eq!(watch.stuck(), 0);
    assert_eq!(guard.metadata(&path("film")).unwrap().size, 10);
}

#[test]
fn both_faces_tell_of_renames_what_the_backend_does() {
    let dir = tempfile::tempdir().unwrap();
    let inner = crate::drive::mounted::MountedDir::open(dir.path()).unwrap();
    let expected = inner.renames_atomically();
    let watch = Watch::start(TIMEOUT).unwrap();
    let (guard, patient) = watch.over(Arc::new(inner));
    assert_eq!(guard.renames_atomically(), expected);
    assert_eq!(patient.renames_atomically(), expected);
}

#[test]
fn readers_do_not_wait_for_names_that_a_stuck_batch_holds() {
    let hanging = Hanging::default();
    let _open = OpenAtEnd(hanging.clone());
    put(&hanging, "film", b"x");
    let drive = Arc::new(Drive::guarded(TIMEOUT).unwrap());
    drive.attach(Arc::new(hanging.clone()));
    hanging.gate.set(Hangs::Everything);
    let theirs = drive.clone();
    let flush = thread::spawn(move || {
        theirs.withhold(Withheld::Everything);
        theirs.withhold(moving());
        let backend = theirs.get_patient().unwrap();
        backend.rename(&path("film"), &path("seen"))?;
        theirs.withhold(Withheld::Nothing);
        Ok::<(), BackendError>(())
    });
    eventually("the rename to hang", || hanging.gate.hung() >= 1);
    // The stall ends the wait, long before the patience is over.
    let begun = Instant::now();
    let hold = |name: &'static str| {
        let find = || path(name);
        let held = drive.hold_names(2 * SOON, find, |touched, path| touched.concerns(path));
        held.is_some()
    };
    assert!(!hold("film") && !hold("seen"));
    assert!(hold("another film"), "no batch is at it");
    assert!(begun.elapsed() < SOON);
    hanging.gate.set(Hangs::Nothing);
    flush.join().unwrap().unwrap();
    assert!(hold("film"));
}

/// Returns what a batch that renames `film` to `seen` withholds.
fn moving() -> Withheld {
    let steps: Steps<()> = Steps {
        clear: vec![ClearStep::Detach {
            from: path("film"),
            slot: SlotNo(0),
            kind: PlainKind::File,
        }],
        place: vec![PlaceStep::Attach {
            slot: SlotNo(0),
            to: path("seen"),
            kind: PlainKind::File,
        }],
        ..Steps::default()
    };
    Withheld::Moving(Touched::of(&steps))
}

#[test]
fn what_is_attached_anew_is_not_blamed_for_what_was_there_before() {
    let hanging = Hanging::default();
    let _open = OpenAtEnd(hanging.clone());
    let drive = Drive::guarded(TIMEOUT).unwrap();
    drive.attach(Arc::new(hanging.clone()));
    hanging.gate.set(Hangs::Everything);
    stalls(drive.get().unwrap().metadata(&path("film")));
    drive.detach();
    assert!(drive.stalled().is_none());
    let other = MemoryBackend::default();
    put(&other, "film", b"abc");
    drive.attach(Arc::new(other));
    assert_eq!(
        drive.get().unwrap().metadata(&path("film")).unwrap().size,
        3
    );
}
