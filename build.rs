//! Notes from which commit the program is built, and when that was. Without git both are taken from
//! the environment (`FERRYFS_COMMIT`, `SOURCE_DATE_EPOCH`), or left out.

use std::env;
use std::path::Path;
use std::process::Command;

fn git(args: &[&str]) -> Option<String> {
    let output = Command::new("git").args(args).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    (output.status.success() && !text.trim().is_empty()).then(|| text.trim().to_owned())
}

/// Whether the repository that git finds from here is that of this program. An unpacked source
/// package may be in the repository of something else.
fn is_own_repository() -> bool {
    let Some(top) = git(&["rev-parse", "--show-toplevel"]) else {
        return false;
    };
    let here = env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    let real = |path: &str| Path::new(path).canonicalize().ok();
    real(&top).is_some() && real(&top) == real(&here)
}

fn main() {
    println!("cargo:rerun-if-env-changed=FERRYFS_COMMIT");
    println!("cargo:rerun-if-env-changed=SOURCE_DATE_EPOCH");
    println!("cargo:rerun-if-changed=build.rs");
    let is_ours = is_own_repository();
    if is_ours {
        // The commit changes with this file; a path that is missing would rebuild each time.
        for name in ["HEAD", "logs/HEAD"] {
            if let Some(path) = git(&["rev-parse", "--git-path", name])
                && Path::new(&path).exists()
            {
                println!("cargo:rerun-if-changed={path}");
            }
        }
    }
    let of_git = |args: &[&str]| is_ours.then(|| git(args)).flatten();
    let commit = env::var("FERRYFS_COMMIT")
        .ok()
        .or_else(|| of_git(&["rev-parse", "--short=12", "HEAD"]))
        .filter(|commit| commit.chars().all(|c| c.is_ascii_alphanumeric()));
    let time = env::var("SOURCE_DATE_EPOCH")
        .ok()
        .or_else(|| of_git(&["log", "-1", "--format=%ct"]))
        .and_then(|time| time.parse::<u64>().ok());
    let version = env::var("CARGO_PKG_VERSION").unwrap_or_default();
    let version = match commit.filter(|commit| !commit.is_empty()) {
        Some(commit) => format!("{version} ({commit})"),
        None => version,
    };
    println!("cargo:rustc-env=FERRYFS_VERSION={version}");
    println!("cargo:rustc-env=FERRYFS_TIME={}", time.unwrap_or(0));
}
