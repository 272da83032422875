//! The slow side of a lab: a plain directory, an exFAT image on a loop device, or a drive that the
//! environment names. It can be taken away and put back.

mod given;
mod yank;

pub use yank::Yank;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::mount::{MntFlags, umount2};

use super::run::run;
use super::{Backend, text};

/// The drive of a lab.
pub struct Drive {
    path: PathBuf,
    kind: Kind,
    /// Device nodes that it had before it was pulled; a stale mount may still hold them.
    stale: Vec<String>,
    /// Whether it stores as little as exFAT does.
    exfat: bool,
}

enum Kind {
    /// While away, the directory waits under another name and an empty one stands in its place, as
    /// after a yank.
    Plain {
        away: PathBuf,
    },
    /// The image, and the loop device while there is one.
    Exfat {
        device: Option<String>,
        image: PathBuf,
    },
    Given(given::Given),
}

impl Drive {
    /// A new, empty drive at `root`/drive, mounted. The error is why this machine cannot have one.
    pub(super) fn new(root: &Path, backend: Backend) -> Result<Drive, String> {
        let exfat = matches!(backend, Backend::Exfat(_) | Backend::ExfatClusters(..));
        if let Some(path) = given::path() {
            let kind = Kind::Given(given::Given::of_the_environment(&path)?);
            return Ok(Drive {
                path,
                kind,
                stale: Vec::new(),
                exfat,
            });
        }
        let path = root.join("drive");
        fs::create_dir(&path).map_err(|e| e.to_string())?;
        let mut mkfs = Command::new("mkfs.exfat");
        let mib = match backend {
            Backend::Exfat(mib) => mib,
            Backend::ExfatClusters(mib, kib) => {
                mkfs.args(["-c", &format!("{kib}K")]);
                mib
            }
            Backend::Any => {
                let kind = Kind::Given(given::Given::small_ext4(&path)?);
                return Ok(Drive {
                    path,
                    kind,
                    stale: Vec::new(),
                    exfat,
                });
            }
            Backend::Ext4Dir => {
                let away = root.join("drive-away");
                return Ok(Drive {
                    path,
                    kind: Kind::Plain { away },
                    stale: Vec::new(),
                    exfat,
                });
            }
        };
        let image = root.join("drive.img");
        let file = fs::File::create(&image).map_err(|e| e.to_string())?;
        file.set_len(mib << 20).map_err(|e| e.to_string())?;
        drop(file);
        let made = run(mkfs.arg(&image));
        if made.code != 0 {
            return Err(format!("mkfs.exfat: {}", made.stderr));
        }
        let mut drive = Drive {
            path,
            kind: Kind::Exfat {
                device: None,
                image,
            },
            stale: Vec::new(),
            exfat,
        };
        match drive.try_put_back() {
            Ok(()) => Ok(drive),
            Err(why) => {
                drive.clean_up();
                Err(why)
            }
        }
    }

    /// Where it is, or would be.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is exFAT, or a drive in its place.
    pub fn is_exfat(&self) -> bool {
        self.exfat
    }

    /// Removes all that is on it.
    #[track_caller]
    pub fn empty(&self) {
        given::empty(&self.path).expect("empty the drive");
    }

    /// Plugs it in again.
    #[track_caller]
    pub fn put_back(&mut self) {
        self.try_put_back().expect("put the drive back");
    }

    fn try_put_back(&mut self) -> Result<(), String> {
        match &mut self.kind {
            Kind::Plain { away } => {
                if away.exists() {
                    fs::remove_dir(&self.path)
                        .map_err(|e| format!("something wrote into the empty place: {e}"))?;
                    fs::rename(&away, &self.path).map_err(|e| e.to_string())?;
                }
                Ok(())
            }
            Kind::Exfat { device, image } => {
                let node = match device {
                    Some(node) => node.clone(),
                    None => device.insert(attach(image)?).clone(),
                };
                // As Linux mounts exFAT for root: nobody else may write there.
                let mounted = run(Command::new("mount.exfat-fuse")
                    .args(["-o", "umask=022"])
                    .arg(node)
                    .arg(&self.path));
                // exfat-fuse warns and goes on, so only the mount table tells.
                if is_mount(&self.path) {
                    Ok(())
                } else {
                    Err(format!("mount.exfat-fuse: {}", mounted.stderr))
                }
            }
            Kind::Given(given) => given.put_back(&self.path),
        }
    }

    /// Unmounts it, which works only if nobody holds it any more.
    #[track_caller]
    pub fn take_away(&mut self) {
        match &self.kind {
            Kind::Plain { away } => {
                fs::rename(&self.path, away).expect("move the drive away");
                fs::create_dir(&self.path).expect("leave an empty place");
                // No mount table tells of this, and nobody pulls and plugs a drive faster than
                // this.
                std::thread::sleep(std::time::Duration::from_millis(500));
            }
            Kind::Exfat { .. } => {
                if is_mount(&self.path) {
                    self.unmount();
                }
            }
            Kind::Given(given) => given.take_away(&self.path),
        }
    }

    /// A call that is under way holds it for a moment.
    #[track_caller]
    fn unmount(&self) {
        for _ in 0..20 {
            if run(Command::new("umount").arg(&self.path)).code == 0 {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        run(Command::new("umount").arg(&self.path)).ok();
    }

    /// The checker of the drive's file system finds nothing wrong. The drive is away.
    #[track_caller]
    pub fn assert_clean(&self) {
        if let Kind::Given(given) = &self.kind {
            given.assert_clean();
        }
        if let Kind::Exfat {
            device: Some(device),
            ..
        } = &self.kind
        {
            let checked = run(Command::new("fsck.exfat").args(["-n", device]));
            assert!(
                checked.code == 0 && checked.stdout.contains("clean"),
                "fsck.exfat on the drive: exit {}\n{}{}",
                checked.code,
                checked.stdout,
                checked.stderr
            );
        }
    }

    pub(super) fn clean_up(&mut self) {
        if let Kind::Given(given) = &self.kind {
            return given.clean_up(&self.path);
        }
        // Stale mounts may be stacked.
        for _ in 0..8 {
            if !is_mount(&self.path) || umount2(&self.path, MntFlags::MNT_DETACH).is_err() {
                break;
            }
        }
        let mut nodes = std::mem::take(&mut self.stale);
        if let Kind::Exfat { device, .. } = &mut self.kind {
            nodes.extend(device.take());
        }
        for node in nodes {
            // A lazily unmounted drive may take a moment to let go of its device.
            let gone = (0..50).any(|_| {
                let gone = detach_loop(&node);
                if !gone {
                    std::thread::sleep(Duration::from_millis(100));
                }
                gone
            });
            if !gone {
                eprintln!("the loop device {node} could not be detached");
            }
        }
    }
}

impl Drop for Drive {
    fn drop(&mut self) {
        self.clean_up();
    }
}

fn attach(image: &Path) -> Result<String, String> {
    // Two labs may be offered the same free device; the loser asks again.
    let mut why = String::new();
    for _ in 0..20 {
        let done = run(Command::new("losetup")
            .args(["--find", "--show"])
            .arg(image));
        if done.code == 0 {
            return Ok(done.stdout.trim().to_owned());
        }
        why = done.stderr;
        std::thread::sleep(Duration::from_millis(50));
    }
    Err(format!("losetup: {why}"))
}

/// Runs while a test may be panicking already, so it must not panic itself.
fn detach_loop(node: &str) -> bool {
    Command::new("losetup")
        .args(["--detach", node])
        .output()
        .is_ok_and(|done| done.status.success())
}

/// [`SmallSsd::with_reserved`]; `None`, and said loudly, where the machine cannot have one.
pub fn small_disk(root: &Path, mib: u64, percent: u64) -> Option<SmallSsd> {
    if !nix::unistd::geteuid().is_root() {
        super::skip("a small disk on a loop device needs root");
        return None;
    }
    SmallSsd::with_reserved(root, mib, percent)
        .inspect_err(|why| super::skip(why))
        .ok()
}

/// A small ext4 of its own for a cache, so that a test can fill it.
pub struct SmallSsd {
    path: PathBuf,
}

impl SmallSsd {
    /// An ext4 of `mib` MiB at `root`/ssd, with `percent` of its blocks reserved for root. The
    /// error is why this machine cannot have one.
    fn with_reserved(root: &Path, mib: u64, percent: u64) -> Result<SmallSsd, String> {
        let path = root.join("ssd");
        let image = root.join("ssd.img");
        fs::create_dir(&path).map_err(|e| e.to_string())?;
        fs::File::create(&image)
            .and_then(|file| file.set_len(mib << 20))
            .map_err(|e| e.to_string())?;
        for command in [
            Command::new("mkfs.ext4")
                .args(["-q", "-F", "-m", &percent.to_string()])
                .arg(&image),
            Command::new("mount")
                .args(["-o", "loop"])
                .arg(&image)
                .arg(&path),
        ] {
            let done = run(command);
            if done.code != 0 {
                return Err(done.stderr);
            }
        }
        Ok(SmallSsd { path })
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Mounts it once more, as after a power cut. Nobody may hold it.
    pub fn mount_anew(&self) -> Result<(), String> {
        // Whoever has just been killed may take a moment to let go.
        let mut tries = 0;
        while let Err(error) = umount2(&self.path, MntFlags::empty()) {
            tries += 1;
            if tries == 50 {
                return Err(error.to_string());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        let image = self.path.with_extension("img");
        let mut mount = Command::new("mount");
        let done = run(mount.args(["-o", "loop"]).arg(&image).arg(&self.path));
        match done.code {
            0 => Ok(()),
            _ => Err(done.stderr),
        }
    }
}

impl Drop for SmallSsd {
    fn drop(&mut self) {
        let _ = umount2(&self.path, MntFlags::MNT_DETACH);
    }
}

/// Mount points, from the mount table. Lab paths hold nothing that the table would escape.
fn mount_points() -> Vec<String> {
    fs::read_to_string("/proc/self/mountinfo")
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.split(' ').nth(4).map(str::to_owned))
        .collect()
}

/// Whether `path` is a mount point.
pub(super) fn is_mount(path: &Path) -> bool {
    mount_points().contains(&text(path))
}

/// Lets go of every mount at or below `place`, which lies in `root`, the innermost first.
pub(super) fn detach_below(root: &Path, place: &Path) {
    assert!(place.starts_with(root) && root != Path::new("/"));
    let mut points: Vec<String> = mount_points();
    points.retain(|point| Path::new(point).starts_with(place));
    points.sort_by_key(|point| std::cmp::Reverse(point.len()));
    for point in points {
        if umount2(point.as_str(), MntFlags::MNT_DETACH).is_err() {
            let _ = Command::new("fusermount3").args(["-uz", &point]).output();
        }
    }
}
