//! The core without a kernel mount: file system, index, store and flusher over a cache in a
//! temporary directory and a backend in memory that fails on command.
//!
//! A [`World`] is what outlives the daemon: the cache directory, the drive, the clock. An
//! [`Engine`] is one life of the daemon in it, wired as `daemon::run` does.

// Each test file takes what it needs of this, the rest is unused there.
#![allow(dead_code, unreachable_pub, unused_imports)]

pub mod attempt;
pub mod check;
pub mod grow;
pub mod mirror;
pub mod rng;
pub mod script;
pub mod tree;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use ferryfs::cache::Store;
use ferryfs::core::{Capabilities, Clock, Ino, Progress, RelPath, Timestamp, WhileOpen};
use ferryfs::drive::Backend;
use ferryfs::drive::connection::Drive;
use ferryfs::drive::faulty::FaultyBackend;
use ferryfs::drive::memory::{MemNode, MemoryBackend, MemoryOptions};
use ferryfs::error::FlushError;
use ferryfs::flush::{Flusher, FlusherParts, HoldIf, Hooks, Patching, Report, VersionPolicy, Wish};
use ferryfs::format::marker::Marker;
use ferryfs::format::versions::{VersionList, VersionsId};
use ferryfs::format::{layout, marker};
use ferryfs::index::{Index, IndexWriter, LeftOut};
use ferryfs::plan::merge::Changes;
use ferryfs::plan::names::NameRules;
use ferryfs::plan::space::Allocation;
use ferryfs::vfs::{CacheLimits, Ctx, Fs, FsError, FsParts};
use tempfile::TempDir;
use uuid::Uuid;

/// Which drive a world has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Case counts, times are exact; there is nothing but files and directories.
    Plain,
    /// As ext4 with root's rights: everything is there, and a journal.
    Linux,
    /// As exFAT under the kernel's driver.
    Exfat,
}

impl Kind {
    /// How such a drive behaves.
    pub fn options(self) -> MemoryOptions {
        match self {
            Kind::Plain => MemoryOptions::default(),
            Kind::Linux => MemoryOptions::linux_like(),
            Kind::Exfat => MemoryOptions::exfat_like(),
        }
    }

    /// What a probe of such a drive finds; of a plain one, as if it had not found links and
    /// permissions.
    pub fn capabilities(self) -> Capabilities {
        let mut options = self.options();
        options.symlinks &= self == Kind::Linux;
        options.permissions &= self == Kind::Linux;
        Capabilities {
            forbidden: options.forbidden,
            case_insensitive: options.case_insensitive,
            utf8_only: options.utf8_only,
            no_trailing_dot: options.drops_trailing_dots,
            no_trailing_space: self == Kind::Exfat,
            form_insensitive: false,
            max_utf16: options.max_utf16,
            max_bytes: 255,
            symlinks: options.symlinks,
            target_bytes: if options.symlinks { 4095 } else { 0 },
            permissions: options.permissions,
            time_granularity_ns: options.time_granularity_ns,
            ..match options.rich {
                true => Capabilities::everything(),
                false => Capabilities::plain(),
            }
        }
    }
}

/// A clock that only moves when asked to, a microsecond more at each look.
#[derive(Debug)]
pub struct TestClock(AtomicI64);

impl TestClock {
    pub fn advance(&self, by: Duration) {
        self.0.fetch_add(by.as_nanos() as i64, Ordering::Relaxed);
    }
}

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.0.fetch_add(1000, Ordering::Relaxed))
    }
}

struct FsHooks(Arc<Fs>);

impl Hooks for FsHooks {
    fn sync_cache(&self) -> Result<(), FlushError> {
        let synced = self.0.sync();
        synced.map_err(|error| FlushError::Sync(Box::new(error)))
    }

    fn settle(&self) -> Result<(), FlushError> {
        self.0.settle_for_batch().map_err(flush_error)
    }

    fn catalog_changed(&self) -> Result<(), FlushError> {
        self.0.believe_anew().map_err(flush_error)
    }

    fn at_rest(
        &self,
        while_open: WhileOpen,
        cut: &mut dyn FnMut(LeftOut, &mut IndexWriter) -> Result<(), FlushError>,
    ) -> Result<(), FlushError> {
        self.0.at_rest(while_open, &HashSet::new, cut)
    }

    fn look_at(&self, backend: &dyn Backend, dir: Ino) -> Result<(bool, Vec<Ino>), FlushError> {
        let look = self.0.look_at(backend, dir).map_err(flush_error)?;
        Ok((look.differs, look.dirs))
    }

    fn take_in(
        &self,
        backend: &dyn Backend,
        dirs: &[Ino],
        still_right: &mut dyn FnMut() -> bool,
    ) -> Result<Changes, FlushError> {
        let taken = self.0.take_in(backend, dirs, still_right);
        taken.map_err(flush_error)
    }

    fn hold_open(&self, inos: &[Ino]) {
        self.0.hold_open_for_readers(inos);
    }

    fn give_up_reserve(&self) -> bool {
        self.0.give_up_reserve()
    }
}

fn flush_error(error: FsError) -> FlushError {
    match error {
        FsError::Backend(error) => FlushError::Backend(error),
        FsError::Index(error) => FlushError::Index(error),
        FsError::Store(error) => FlushError::Store(error),
        other => FlushError::Sync(Box::new(other)),
    }
}

/// What outlives a daemon.
pub struct World {
    pub kind: Kind,
    pub memory: MemoryBackend,
    pub faulty: FaultyBackend<MemoryBackend>,
    pub clock: Arc<TestClock>,
    pub limits: CacheLimits,
    pub volume: Uuid,
    /// The daemon dies within its operations, so a start may find bytes without a row.
    pub may_set_aside: bool,
    /// Large files are patched. Here that is every file of more than one block.
    pub patches: bool,
    /// What batches keep of what they replace and remove.
    pub versions: VersionPolicy,
    /// When a flush is held back.
    pub hold_if: Option<HoldIf>,
    /// Bytes of a block of a patch.
    pub block: u32,
    origin: [u8; 16],
    cache: TempDir,
}

/// Bytes of a block of a patch, unless a world has others.
pub const BLOCK: u32 = 4096;

/// Of every enrollment here.
const NONCE: [u8; 16] = [7; 16];

/// Everything may stay in the cache.
pub const ROOMY: CacheLimits = CacheLimits {
    max_bytes: u64::MAX,
    keep_free: 0,
    reserve: 0,
};

impl World {
    /// An enrolled, empty drive and an empty cache.
    pub fn new(kind: Kind) -> World {
        World::on(kind, MemoryBackend::new(kind.options()))
    }

    /// A new cache for `memory`, which is enrolled if it is not.
    pub fn on(kind: Kind, memory: MemoryBackend) -> World {
        // In memory where there is such a place: these tests lose nothing when the power goes.
        let shm = Path::new("/dev/shm");
        let cache = if shm.is_dir() {
            tempfile::tempdir_in(shm)
        } else {
            tempfile::tempdir()
        };
        let volume = enroll(&memory);
        World {
            kind,
            faulty: FaultyBackend::new(memory.clone()),
            memory,
            clock: Arc::new(TestClock(AtomicI64::new(1_700_000_000_000_000_000))),
            limits: ROOMY,
            volume,
            may_set_aside: false,
            patches: true,
            versions: VersionPolicy::off(),
            hold_if: None,
            block: BLOCK,
            origin: *Uuid::new_v4().as_bytes(),
            cache: cache.expect("a temporary directory"),
        }
    }

    pub fn cache_dir(&self) -> &Path {
        self.cache.path()
    }

    /// A daemon's start on this cache; `unclean` as after kill -9. The drive is attached, nothing
    /// is recovered on it yet.
    pub fn start(&self, unclean: bool) -> Engine {
        let rules = || NameRules::new(&self.kind.capabilities());
        let dir = self.cache.path();
        let index = Arc::new(Index::open(&dir.join("index.db"), rules()).expect("open the index"));
        let store = Arc::new(Store::open(dir).expect("open the store"));
        let drive = Arc::new(Drive::detached());
        let fs = Fs::new(FsParts {
            index: index.clone(),
            store: store.clone(),
            drive: drive.clone(),
            clock: self.clock.clone(),
            capabilities: self.kind.capabilities(),
            owner: (1000, 1000),
            limits: self.limits,
            io_timeout: Duration::from_millis(50),
            cache_path: Vec::new(),
        });
        let fs = Arc::new(fs.expect("make the file system"));
        if unclean {
            let recovered = fs.recover().expect("recover the cache");
            let again = fs.recover().expect("recover the cache twice");
            assert_eq!((again.orphans, again.quarantined.len()), (0, 0));
            assert!(
                self.may_set_aside || recovered.quarantined.is_empty(),
                "bytes without a row: {:?}",
                recovered.quarantined
            );
            // The tick that notes a close does not run here, so what was just closed looks as if it
            // were being written still.
            let held_back = index.lock().include_interrupted();
            held_back.expect("take what was interrupted");
        }
        drive.attach(Arc::new(self.faulty.clone()));
        let allocation = Allocation {
            unit: 4096,
            hard_links: self.kind.capabilities().hard_links,
        };
        let noted = index.lock().set_allocation(allocation);
        noted.expect("note how the drive allocates space");
        let journals = dir.join("batches");
        std::fs::create_dir_all(&journals).expect("make the journals' directory");
        let flusher = Flusher::new(FlusherParts {
            index: index.clone(),
            store: store.clone(),
            drive: drive.clone(),
            clock: self.clock.clone(),
            volume: self.volume,
            nonce: NONCE,
            origin: self.origin,
            rules: rules(),
            capabilities: self.kind.capabilities(),
            time_granularity_ns: self.kind.capabilities().time_granularity_ns,
            journals: journals.clone(),
            patching: Patching::new(dir.join("blocks"), self.patches).sized(1, self.block),
            versions: self.versions.clone(),
            hold_if: self.hold_if,
            hooks: Arc::new(FsHooks(fs.clone())),
        });
        Engine {
            fs,
            index,
            store,
            drive,
            flusher,
            dir: dir.to_path_buf(),
            journals,
            granularity: self.kind.capabilities().time_granularity_ns as i64,
        }
    }

    /// The kept versions: of which directory, of which path, and their bytes.
    pub fn kept_versions(&self) -> Vec<(VersionsId, RelPath, Vec<u8>)> {
        let tree = self.memory.tree();
        let below = |path: &RelPath| {
            let rest = path.as_bytes().strip_prefix(layout::VERSIONS.as_bytes())?;
            let rest = RelPath::parse(rest.strip_prefix(b"/")?).ok()?;
            let dir = rest.components().next()?.to_vec();
            let path = rest.as_bytes().strip_prefix(&dir[..])?.strip_prefix(b"/")?;
            Some((VersionsId::parse(&dir)?, RelPath::parse(path).ok()?))
        };
        (tree.iter())
            .filter_map(|(path, node)| match node {
                MemNode::File { bytes, .. } => {
                    let (id, path) = below(path)?;
                    Some((id, path, bytes.to_vec()))
                }
                _ => None,
            })
            .collect()
    }

    /// The lists of the kept versions.
    pub fn version_lists(&self) -> Vec<(VersionsId, VersionList)> {
        let tree = self.memory.tree();
        (tree.iter())
            .filter_map(|(path, node)| match node {
                MemNode::File { bytes, .. } if path.depth() == 3 => {
                    let id = VersionsId::parse_list(&path.split_last()?.1)?;
                    Some((id, VersionList::decode(bytes).expect("a whole list")))
                }
                _ => None,
            })
            .collect()
    }

    /// Every name that is left in our own directory beyond what always stands there.
    pub fn leftovers(&self) -> Vec<String> {
        let always = [
            layout::DIR,
            layout::MARKER,
            layout::NOMEDIA,
            layout::NO_INDEX,
            layout::STAGING,
            layout::BATCHES,
            layout::RESERVE,
        ];
        let tree = self.memory.tree();
        let ours = tree.keys().filter(|path| layout::is_reserved(path));
        // What the catalog's log has to be, `assert_mirrored` says.
        let in_log = |path: &&RelPath| path.to_string().starts_with(layout::CATALOG);
        // So may kept versions; what they have to be, `version_findings` says.
        let is_version = |path: &&RelPath| path.to_string().starts_with(layout::VERSIONS);
        ours.filter(|path| !in_log(path) && !is_version(path))
            .map(ToString::to_string)
            .filter(|path| !always.contains(&path.as_str()))
            .collect()
    }
}

/// Writes what an enrolled drive carries, unless it does already; tells its volume.
fn enroll(memory: &MemoryBackend) -> Uuid {
    let write = |path: &RelPath, bytes: &[u8]| {
        let mut file = memory.create(path).expect("create");
        file.append(bytes).expect("append");
        file.finish(Timestamp(0)).expect("finish");
    };
    if let Ok(file) = memory.open(&layout::marker_path()) {
        let mut bytes = vec![0; marker::MAX_BYTES];
        let got = file.read_at(&mut bytes, 0).expect("read the marker");
        return marker::decode(&bytes[..got]).expect("a marker").id;
    }
    for dir in [layout::dir(), layout::staging_root(), layout::batches_dir()] {
        memory.make_dir(&dir).expect("make our directory");
    }
    for path in [layout::NOMEDIA, layout::NO_INDEX] {
        write(&RelPath::fixed(path), b"");
    }
    let marker = Marker::new(Uuid::new_v4(), NONCE, Timestamp(0));
    write(&layout::marker_path(), &marker::encode(&marker));
    memory.sync().expect("sync");
    marker.id
}

/// One life of the daemon.
pub struct Engine {
    pub fs: Arc<Fs>,
    pub index: Arc<Index>,
    pub store: Arc<Store>,
    pub drive: Arc<Drive>,
    pub flusher: Flusher,
    pub dir: PathBuf,
    pub journals: PathBuf,
    pub granularity: i64,
}

/// A caller who may wait.
pub const CTX: Ctx = Ctx {
    uid: 1000,
    gid: 1000,
    pid: 0,
    umask: 0,
    may_block: true,
    may_wait: true,
};

/// Runs an operation as the kernel room does: first without the permission to wait, then, if it
/// would have to, with it.
pub fn call<T>(mut operation: impl FnMut(&Ctx) -> Result<T, FsError>) -> Result<T, FsError> {
    let hasty = Ctx {
        may_block: false,
        may_wait: false,
        ..CTX
    };
    match operation(&hasty) {
        Err(FsError::WouldBlock | FsError::WouldWait) => operation(&CTX),
        result => result,
    }
}

impl Engine {
    /// A flush without a deadline.
    pub fn flush(&self) -> Result<Report, FlushError> {
        self.flush_with(&|_| {})
    }

    /// A flush that calls `hook` with each step of its progress.
    pub fn flush_with(&self, hook: &dyn Fn(Progress)) -> Result<Report, FlushError> {
        self.flush_as(WhileOpen::Copy(Duration::ZERO), hook)
    }

    /// A flush that leaves behind what is open for writing.
    pub fn flush_closed(&self) -> Result<Report, FlushError> {
        self.flush_while_open(WhileOpen::Leave)
    }

    /// A flush that does this with what is open for writing.
    pub fn flush_while_open(&self, while_open: WhileOpen) -> Result<Report, FlushError> {
        self.flush_as(while_open, &|_| {})
    }

    fn flush_as(
        &self,
        while_open: WhileOpen,
        hook: &dyn Fn(Progress),
    ) -> Result<Report, FlushError> {
        let wish = Wish {
            while_open,
            ..Wish::asked_for()
        };
        self.flusher.flush(&wish, hook, || {})
    }

    /// A flush that must carry everything.
    pub fn flush_all(&self) -> Report {
        let report = self.flush().expect("flush");
        assert_eq!(report.left_behind, []);
        report
    }

    /// A look for what others have changed, at all that is known.
    pub fn refresh(&self) -> Changes {
        let refreshed = self.flusher.refresh(Ino::ROOT, true, &|| false);
        refreshed.expect("refresh")
    }

    /// The daemon's orderly end.
    pub fn close(self) {
        self.fs.close_all().expect("close");
    }

    /// The daemon's death, with everything that was committed before it.
    pub fn die(self) {
        drop(self);
    }
}
