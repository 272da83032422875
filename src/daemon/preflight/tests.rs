use super::*;
use crate::core::{Exit, Failure};
use crate::daemon::options::{CacheSize, FuseOptions, IoMode, Live};
use std::time::Duration;
use tempfile::TempDir;

struct Place(TempDir);

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("backend")).unwrap();
        fs::create_dir(dir.path().join("mnt")).unwrap();
        Place(dir)
    }

    fn at(&self, name: &str) -> PathBuf {
        fs::canonicalize(self.0.path()).unwrap().join(name)
    }

    fn check(
        &self,
        backend: &str,
        mountpoint: &str,
        cache: Option<&str>,
    ) -> Result<MountOptions, PreflightError> {
        check(MountOptions {
            backend: self.at(backend),
            mountpoint: self.at(mountpoint),
            cache: cache.map(|name| self.at(name)),
            cache_size: CacheSize::default(),
            live: Live {
                flush_after: Duration::ZERO,
                max_age: Duration::ZERO,
                auto_flush: true,
                polite: true,
                limit_rate: Default::default(),
                wait_closed: false,
                verify: Default::default(),
                refresh: Default::default(),
                schedule: None,
                quiet_hours: Vec::new(),
                scrub: None,
                scrub_rate: 20 << 20,
                only_on_mains: false,
                hooks: Default::default(),
                keeping: Default::default(),
            },
            origin: None,
            read_only: false,
            io_timeout: Duration::from_secs(10),
            io: IoMode::Auto,
            delta: Default::default(),
            versions: Default::default(),
            hold_if: None,
            fuse: FuseOptions::default(),
            keep_clean: false,
            fsck: false,
            accept_copy: false,
            allow_write_back: false,
            lease: crate::daemon::options::LeaseMode::Auto,
            lease_timeout: std::time::Duration::from_secs(60),
            take_over: false,
            show_system: false,
            enroll: false,
            re_enroll: false,
            adopt: false,
            protect: Default::default(),
            foreground: true,
            metrics: Default::default(),
        })
        .map(|checked| checked.options)
    }
}

#[test]
fn good_places_pass_and_links_of_the_mountpoint_are_resolved() {
    let place = Place::new();
    std::os::unix::fs::symlink(place.at("mnt"), place.at("link")).unwrap();
    let options = place
        .check("backend", "link", Some("cache/not/yet"))
        .unwrap();
    assert_eq!(options.mountpoint, place.at("mnt"));
}

#[test]
fn a_mountpoint_must_be_an_empty_directory() {
    let place = Place::new();
    fs::write(place.at("file"), "").unwrap();
    fs::create_dir(place.at("full")).unwrap();
    fs::write(place.at("full/x"), "").unwrap();
    let error = |mountpoint| place.check("backend", mountpoint, None).unwrap_err();
    assert!(matches!(
        error("absent"),
        PreflightError::MountpointMissing(_)
    ));
    assert!(matches!(
        error("file"),
        PreflightError::MountpointNotDirectory(_)
    ));
    assert!(matches!(
        error("full"),
        PreflightError::MountpointNotEmpty { .. }
    ));
    assert_eq!(error("full").code(), Exit::Failed);
}

#[test]
fn an_existing_mount_is_not_mounted_over() {
    let place = Place::new();
    let entry = |fstype: &[u8]| MountEntry {
        id: 1,
        dev: 1,
        root: "/".into(),
        user: None,
        mountpoint: place.at("mnt"),
        fstype: fstype.to_vec(),
        source: "/media/hdd".into(),
    };
    let ours = check_mountpoint(&place.at("mnt"), &[entry(mounts::FSTYPE)], |_| false).unwrap_err();
    assert!(
        matches!(ours, PreflightError::MountpointBusy { .. }),
        "{ours}"
    );
    assert!(ours.hint().contains("ferryfs unmount"));
    let foreign = check_mountpoint(&place.at("mnt"), &[entry(b"ext4")], |_| false).unwrap_err();
    assert!(!foreign.hint().contains("ferryfs"), "{}", foreign.hint());
}

#[test]
fn an_absent_backend_has_an_exit_code_of_its_own() {
    let place = Place::new();
    fs::write(place.at("file"), "").unwrap();
    let absent = place.check("absent", "mnt", None).unwrap_err();
    assert_eq!(absent.code(), Exit::BackendAbsent);
    for wrong in ["file", "file/below"] {
        let error = place.check(wrong, "mnt", None).unwrap_err();
        assert!(
            matches!(error, PreflightError::BackendNotDirectory(_)),
            "{error}"
        );
        assert_eq!(error.code(), Exit::Failed);
    }
}

#[test]
fn a_read_only_drive_and_a_foreign_drive_are_told_apart() {
    let path = Path::new("/b");
    let outcome = |read_only, allowed| check_writable(path, read_only, allowed);
    assert!(outcome(false, Ok(())).is_ok());
    for (read_only, allowed) in [(true, Ok(())), (false, Err(nix::Error::EROFS))] {
        let error = outcome(read_only, allowed).unwrap_err();
        assert!(
            matches!(error, PreflightError::BackendReadOnly(_)),
            "{error}"
        );
    }
    let error = outcome(false, Err(nix::Error::EACCES)).unwrap_err();
    assert!(
        matches!(error, PreflightError::BackendNotWritable { .. }),
        "{error}"
    );
}

#[test]
fn a_ferryfs_on_a_ferryfs_is_refused() {
    let place = Place::new();
    let table = [MountEntry {
        id: 1,
        dev: 1,
        root: "/".into(),
        user: None,
        mountpoint: place.at(""),
        fstype: mounts::FSTYPE.to_vec(),
        source: "/media/hdd".into(),
    }];
    let table = table.map(|mut mount| {
        mount.mountpoint = fs::canonicalize(&mount.mountpoint).unwrap();
        mount
    });
    let error = check_backend(&place.at("backend"), &table, Need::Files).unwrap_err();
    assert!(
        matches!(error, PreflightError::BackendIsFerryfs { .. }),
        "{error}"
    );
}

#[test]
fn no_directory_may_be_inside_another() {
    let place = Place::new();
    fs::create_dir(place.at("backend/sub")).unwrap();
    std::os::unix::fs::symlink(place.at("backend"), place.at("link")).unwrap();
    let nested = |backend, mountpoint, cache| match place.check(backend, mountpoint, cache) {
        Err(PreflightError::Nested { inner, outer, .. }) => (inner, outer),
        other => panic!("{other:?}"),
    };
    assert_eq!(
        nested("backend", "backend/sub", None),
        (Role::Mountpoint, Role::Backend)
    );
    assert_eq!(
        nested("mnt", "mnt", None),
        (Role::Mountpoint, Role::Backend)
    );
    assert_eq!(
        nested("backend", "mnt", Some("backend/c")),
        (Role::Cache, Role::Backend)
    );
    // A link is looked through, also where the rest does not exist yet.
    assert_eq!(
        nested("backend", "mnt", Some("link/a/b")),
        (Role::Cache, Role::Backend)
    );
    assert_eq!(
        nested("backend", "mnt", Some("mnt/c")),
        (Role::Cache, Role::Mountpoint)
    );
    assert_eq!(
        nested("backend", "mnt", Some("")),
        (Role::Backend, Role::Cache)
    );
}

#[test]
fn names_that_only_begin_alike_are_not_nested() {
    let place = Place::new();
    fs::create_dir(place.at("backend2")).unwrap();
    assert!(place.check("backend", "backend2", Some("backend3")).is_ok());
}

#[test]
fn every_refusal_is_one_line_with_a_hint() {
    let place = Place::new();
    for (backend, mountpoint) in [("absent", "mnt"), ("backend", "absent"), ("mnt", "mnt")] {
        let error = Failure::from(place.check(backend, mountpoint, None).unwrap_err());
        assert!(!error.message.contains('\n') && !error.message.ends_with('.'));
        assert!(error.hint.is_some_and(|hint| !hint.is_empty()));
    }
}
