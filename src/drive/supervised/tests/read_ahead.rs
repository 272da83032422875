//! Files that are read ahead of their readers.

use std::sync::OnceLock;

use super::*;
use crate::drive::supervised::ahead::{BLOCK, LARGEST_WINDOW, MOST_BYTES};

/// A file whose bytes say where they are, and in which version of the file.
struct Film {
    size: u64,
    version: AtomicUsize,
    /// The end of the furthest read, and the number of bytes that were read.
    furthest: Mutex<(u64, u64)>,
    gate: Arc<Gate>,
}

/// Returns bytes of a pattern that repeats at no multiple of a block; another version begins
/// elsewhere in it.
fn film_bytes(version: usize, at: u64, length: usize) -> Vec<u8> {
    static PATTERN: OnceLock<Vec<u8>> = OnceLock::new();
    let pattern = PATTERN.get_or_init(|| {
        let mixed = |n: u64| (n.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 37) % 256;
        (0..(1 << 20) + 7)
            .map(|n| u8::try_from(mixed(n)).unwrap())
            .collect()
    });
    let mut at = (usize::try_from(at).unwrap() + version * 1000) % pattern.len();
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() < length {
        let part = (pattern.len() - at).min(length - bytes.len());
        bytes.extend_from_slice(&pattern[at..at + part]);
        at = 0;
    }
    bytes
}

impl Film {
    fn new(size: u64) -> Arc<Film> {
        Arc::new(Film {
            size,
            version: AtomicUsize::new(0),
            furthest: Mutex::default(),
            gate: Arc::default(),
        })
    }

    fn furthest(&self) -> u64 {
        self.furthest.lock().0
    }

    fn amount(&self) -> u64 {
        self.furthest.lock().1
    }
}

impl ReadFile for Film {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.gate.read()?;
        let rest = usize::try_from(self.size.saturating_sub(offset)).unwrap();
        let length = rest.min(buf.len());
        let version = self.version.load(Ordering::SeqCst);
        buf[..length].copy_from_slice(&film_bytes(version, offset, length));
        let mut seen = self.furthest.lock();
        *seen = (seen.0.max(offset + length as u64), seen.1 + length as u64);
        Ok(length)
    }

    fn metadata(&self) -> io::Result<Metadata> {
        let version = self.version.load(Ordering::SeqCst);
        Ok(Metadata {
            kind: FileKind::Regular,
            size: self.size,
            modified: Timestamp(i64::try_from(version).unwrap()),
            permissions: 0o644,
            target: None,
            uid: 0,
            gid: 0,
            rdev: 0,
            nlink: 1,
            file: None,
        })
    }
}

fn opened(watch: &Watch, film: &Arc<Film>) -> GuardedFile {
    let ahead = Ahead::new(film.metadata().unwrap(), watch.shared.budget.clone());
    GuardedFile {
        inner: Some(film.clone()),
        shared: watch.shared.clone(),
        ahead: Some(Arc::new(ahead)),
    }
}

/// Reads as a request does: what is at hand, or else all of it with waiting.
fn read(file: &GuardedFile, offset: u64, length: usize) -> io::Result<Vec<u8>> {
    let mut buf = vec![0; length];
    let mut done = file.read_ready(&mut buf, offset).unwrap_or(0);
    while done < length {
        match file.read_on(&mut buf[done..], offset + done as u64)? {
            0 => break,
            got => done += got,
        }
    }
    buf.truncate(done);
    Ok(buf)
}

#[track_caller]
fn reads_right(file: &GuardedFile, film: &Film, offset: u64, length: usize) {
    let rest = usize::try_from(film.size.saturating_sub(offset)).unwrap();
    let expected = film_bytes(0, offset, length.min(rest));
    let found = read(file, offset, length).unwrap();
    assert!(found == expected, "{length} bytes at {offset} are wrong");
}

fn has_job(watch: &Watch) -> bool {
    *watch.shared.closing.lock() > 0
}

/// Reads the first blocks in sequence until the file is read ahead, and waits until the window is
/// full. Returns the end of what was read.
fn begin_in_sequence(watch: &Watch, file: &GuardedFile, film: &Film) -> u64 {
    for block in 0..3 {
        reads_right(file, film, block * BLOCK as u64, BLOCK);
    }
    eventually("the window to be full", || !has_job(watch));
    3 * BLOCK as u64
}

#[test]
fn readers_in_sequence_at_random_and_beside_each_other_get_the_right_bytes() {
    let watch = Watch::start(SOON).unwrap();
    let film = Film::new(9 * BLOCK as u64 + 4321);
    let file = opened(&watch, &film);
    thread::scope(|scope| {
        for reader in 0..4_u64 {
            let (file, film) = (&file, &film);
            scope.spawn(move || {
                let mut random = 77 + reader;
                for round in 0..8 {
                    let length = [BLOCK, 5000, 3 * BLOCK + 17, 64 << 10][round % 4];
                    let mut at = 0;
                    while at < film.size {
                        reads_right(file, film, at, length);
                        at += length as u64;
                        random = random.wrapping_mul(6_364_136_223_846_793_005) + 1;
                        if random >> 60 == reader {
                            reads_right(file, film, (random >> 20) % film.size, 4096);
                        }
                    }
                }
            });
        }
    });
    assert_eq!(read(&file, film.size, 10).unwrap(), b"");
}

#[test]
fn what_is_read_in_sequence_is_at_hand_before_it_is_asked_for() {
    let watch = Watch::start(SOON).unwrap();
    let film = Film::new(64 << 20);
    let file = opened(&watch, &film);
    let next = begin_in_sequence(&watch, &file, &film);
    let mut buf = vec![0; BLOCK];
    assert_eq!(file.read_ready(&mut buf, next), Some(BLOCK));
    assert!(buf == film_bytes(0, next, BLOCK));
    // Requests may overtake each other.
    reads_right(&file, &film, next + 2 * BLOCK as u64, BLOCK);
    reads_right(&file, &film, next + BLOCK as u64, BLOCK);
    eventually("the window to be full", || !has_job(&watch));
    assert_eq!(
        file.read_ready(&mut buf, next + 3 * BLOCK as u64),
        Some(BLOCK)
    );
    // Nothing was read twice.
    eventually("the window to be full", || !has_job(&watch));
    assert_eq!(film.amount(), film.furthest());
}

#[test]
fn a_reader_that_stops_or_seeks_costs_the_drive_a_bounded_amount() {
    let watch = Watch::start(SOON).unwrap();
    let film = Film::new(64 << 20);
    let file = opened(&watch, &film);
    reads_right(&file, &film, 0, BLOCK);
    eventually("no job", || !has_job(&watch));
    assert_eq!(film.furthest(), BLOCK as u64, "one read is no sequence");
    let next = begin_in_sequence(&watch, &file, &film);
    assert!(
        film.furthest() <= next + 4 * BLOCK as u64,
        "a small window first"
    );
    let mut at = next;
    while at < 32 << 20 {
        reads_right(&file, &film, at, BLOCK);
        at += BLOCK as u64;
        assert!(film.furthest() <= at + LARGEST_WINDOW + BLOCK as u64);
    }
    eventually("the window to be full", || !has_job(&watch));
    // Far from each other: nothing is read that was not asked for, and no memory is kept.
    let before = film.amount();
    for n in 0..20 {
        reads_right(&file, &film, (n % 2) * (40 << 20) + n * 100_000, 4096);
    }
    eventually("no job", || !has_job(&watch));
    assert_eq!(film.amount() - before, 20 * 4096);
    assert_eq!(watch.shared.budget.bytes(), 0);
}

#[test]
fn a_file_that_changes_is_not_read_ahead_any_more() {
    let watch = Watch::start(SOON).unwrap();
    let film = Film::new(64 << 20);
    let file = opened(&watch, &film);
    let mut at = begin_in_sequence(&watch, &file, &film);
    film.version.store(1, Ordering::SeqCst);
    // At the latest the next job notices: until then there is the rest of the window.
    let mut old = 0;
    loop {
        let found = read(&file, at, BLOCK).unwrap();
        if found == film_bytes(1, at, BLOCK) {
            break;
        }
        assert!(found == film_bytes(0, at, BLOCK), "a mixture at {at}");
        at += BLOCK as u64;
        old += 1;
        eventually("the window to be full", || !has_job(&watch));
    }
    assert!(old * BLOCK as u64 <= LARGEST_WINDOW);
    for _ in 0..10 {
        at += BLOCK as u64;
        let before = film.amount();
        assert!(read(&file, at, BLOCK).unwrap() == film_bytes(1, at, BLOCK));
        assert_eq!(film.amount() - before, BLOCK as u64, "it is read ahead");
    }
    assert_eq!(watch.shared.budget.bytes(), 0);
}

#[test]
fn a_reader_of_a_drive_that_hangs_gets_what_is_at_hand_and_then_an_error_in_time() {
    let watch = Watch::start(TIMEOUT).unwrap();
    let film = Film::new(64 << 20);
    let file = opened(&watch, &film);
    let mut at = begin_in_sequence(&watch, &file, &film);
    film.gate.set(Hangs::Everything);
    // There is no backend, so nothing counts as stalled before.
    let hanging = Hanging::default();
    let _open = OpenAtEnd(hanging.clone());
    hanging.gate.set(Hangs::Everything);
    let _faces = watch.over(Arc::new(hanging.clone()));
    let begun = Instant::now();
    let error = loop {
        match read(&file, at, BLOCK) {
            Ok(found) => assert!(found == film_bytes(0, at, BLOCK)),
            Err(error) => break error,
        }
        at += BLOCK as u64;
    };
    assert_eq!(error.raw_os_error(), Some(libc::ETIMEDOUT));
    assert!(begun.elapsed() >= TIMEOUT / 2 && begun.elapsed() < SOON);
    assert!(at > 3 * BLOCK as u64, "nothing was at hand");
    assert!(watch.stalled().is_some());
    assert_eq!(watch.stuck(), 1);
    // The next one fails at once, and a released file is closed when the call returns.
    assert!(read(&file, at, BLOCK).is_err());
    drop(file);
    assert!(!watch.wait_for_closes(Duration::from_millis(10)));
    film.gate.set(Hangs::Nothing);
    assert!(watch.wait_for_closes(SOON));
    eventually("the stuck thread to return", || watch.stuck() == 0);
    assert_eq!(Arc::strong_count(&film), 1, "it is still open");
    assert_eq!(watch.shared.budget.bytes(), 0);
}

#[test]
fn a_job_that_fails_is_no_error_of_a_reader_that_can_read() {
    let watch = Watch::start(SOON).unwrap();
    let film = Film::new(64 << 20);
    let file = opened(&watch, &film);
    let at = begin_in_sequence(&watch, &file, &film);
    *film.gate.errno.lock() = Some(libc::EIO);
    film.gate.set(Hangs::Everything);
    reads_right(&file, &film, at, BLOCK);
    reads_right(&file, &film, at + BLOCK as u64, BLOCK);
    eventually("a job to hang", || film.gate.hung() == 1);
    film.gate.set(Hangs::Nothing);
    for block in 5..20 {
        reads_right(&file, &film, block * BLOCK as u64, BLOCK);
    }
    assert!(watch.stalled().is_none());
}

#[test]
fn the_memory_of_all_files_together_is_bounded_and_given_back() {
    let watch = Watch::start(SOON).unwrap();
    let films: Vec<_> = (0..20).map(|_| Film::new(24 << 20)).collect();
    let files: Vec<_> = films.iter().map(|film| opened(&watch, film)).collect();
    let mut most = 0;
    for block in 0..80 {
        for (file, film) in files.iter().zip(&films) {
            reads_right(file, film, block * BLOCK as u64, BLOCK);
            most = most.max(watch.shared.budget.bytes());
        }
    }
    assert!(most > MOST_BYTES / 4, "hardly anything was read ahead");
    assert!(most <= MOST_BYTES, "{most}");
    drop(files);
    assert!(watch.wait_for_closes(SOON));
    assert_eq!(watch.shared.budget.bytes(), 0);
}

#[test]
fn an_open_for_a_reader_is_one_call_with_the_first_bytes() {
    let (hanging, watch, guard, _) = guarded();
    let opened = guard.open_at(&path("film"), 3, 100).unwrap();
    assert_eq!(opened.metadata.size, 10);
    assert_eq!(opened.first.unwrap(), b"3456789");
    let file = opened.file.expect("it has more bytes");
    // The end of the file is known without a call.
    hanging.gate.set(Hangs::Everything);
    assert_eq!(file.read_on(&mut [0; 4], 10).unwrap(), 0);
    hanging.gate.set(Hangs::Nothing);
    assert_eq!(file.read_on(&mut [0; 4], 2).unwrap(), 4);
    assert!(guard.open_at(&path("film"), 0, 0).unwrap().file.is_some());
    assert!(guard.open_at(&path("missing"), 0, 1).is_err());
    assert_eq!(watch.stuck(), 0);
}

#[test]
fn a_file_that_is_read_as_a_whole_does_not_stay_open() {
    let (hanging, watch, guard, _) = guarded();
    let opened = guard.open_at(&path("film"), 0, 4096).unwrap();
    assert_eq!(opened.first.unwrap(), b"0123456789");
    assert!(opened.file.is_none());
    assert!(watch.wait_for_closes(SOON));
    assert_eq!(hanging.gate.open.load(Ordering::SeqCst), 0);
}
