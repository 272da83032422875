//! Keeps the machine from going to sleep in the middle of a batch.
//!
//! While something is written, a lock of logind delays the sleep, by 5 seconds at most
//! (`InhibitDelayMaxSec` in logind.conf(5)): most batches end in that time. A longer one goes on
//! after the sleep, when the drive has been looked at ([`crate::drive::revocable`]).
//!
//! `systemd-inhibit` takes the lock, so this needs no library for D-Bus, and works for users, too.
//! The lock is held for as long as the program that it starts lives, which reads a pipe of ours: it
//! ends with the batch, and with this process. A crash leaves nothing. Without logind there is no
//! lock.

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use parking_lot::Mutex;

/// Takes and releases the lock.
#[derive(Default)]
pub(super) struct Inhibitor {
    state: Mutex<State>,
    /// There is no logind: not tried again.
    is_useless: Arc<AtomicBool>,
}

#[derive(Default)]
struct State {
    writers: usize,
    holder: Option<Child>,
}

impl Inhibitor {
    /// Something is about to be written. Does not wait for the lock.
    pub(super) fn begin(&self) {
        let mut state = self.state.lock();
        state.writers += 1;
        if state.writers > 1 || self.is_useless.load(Ordering::Acquire) {
            return;
        }
        match holder() {
            Ok(child) => state.holder = Some(child),
            Err(error) => {
                tracing::debug!(%error, "no lock keeps the machine from sleeping in a batch");
                self.is_useless.store(true, Ordering::Release);
            }
        }
    }

    /// Everything has been written. Does not wait for the end of the lock.
    pub(super) fn end(&self) {
        let mut state = self.state.lock();
        state.writers = state.writers.saturating_sub(1);
        if state.writers > 0 {
            return;
        }
        let Some(mut child) = state.holder.take() else {
            return;
        };
        drop(child.stdin.take());
        let is_useless = self.is_useless.clone();
        let wait = move || {
            let has_held = child.wait().is_ok_and(|status| status.success());
            if !has_held {
                tracing::debug!("systemd-inhibit has failed");
                is_useless.store(true, Ordering::Release);
            }
        };
        // Without a thread a zombie stays until the end of the process.
        let _ = thread::Builder::new()
            .name("ferryfs-inhibit".into())
            .spawn(wait);
    }
}

/// Starts the program that holds the lock until its input ends.
fn holder() -> std::io::Result<Child> {
    Command::new("systemd-inhibit")
        .args(["--what=sleep", "--mode=delay", "--who=ferryfs"])
        .arg("--why=a batch is being written to the drive")
        .arg("cat")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
}
