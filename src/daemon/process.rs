//! The process of a daemon: its limit of open files, and the signals that end it.

use crossbeam_channel::{Receiver, Sender, unbounded};
use nix::sys::signal::{SigSet, Signal};

use crate::core::Failure;

/// The limit of open files if the system does not say it.
const USUAL_OPEN_FILES: u64 = 1024;

/// Raises the limit of open files and returns it. Each file of the mount that is in use takes a
/// descriptor, so the usual limit of 1024 is soon reached.
pub(super) fn raise_open_files() -> u64 {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (soft, hard) = match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok(limits) => limits,
        Err(errno) => {
            tracing::warn!(%errno, "the limit of open files is not known");
            return USUAL_OPEN_FILES;
        }
    };
    match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => hard,
        Err(errno) => {
            tracing::warn!(%errno, soft, "the limit of open files stays as it is");
            soft
        }
    }
}

/// Returns the channel on which the signals that end the daemon arrive. Called before any other
/// thread is started, so that all inherit the mask.
pub(super) fn block_signals() -> Result<Receiver<()>, Failure> {
    let mut set = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        set.add(signal);
    }
    set.thread_block()
        .map_err(|errno| Failure::failed(format!("cannot block signals: {errno}")))?;
    let (sender, receiver): (Sender<()>, _) = unbounded();
    std::thread::Builder::new()
        .name("ferryfs-signal".into())
        .spawn(move || {
            while set.wait().is_ok() {
                if sender.send(()).is_err() {
                    return;
                }
            }
        })
        .map_err(|error| Failure::failed(format!("cannot start a thread: {error}")))?;
    Ok(receiver)
}
