//! The I/O priority of a thread (ioprio_set(2)). The schedulers bfq and mq-deadline heed it; where
//! none does, and for what another process writes for this one, it has no effect.

use std::io;

use nix::errno::Errno;

/// `IOPRIO_WHO_PROCESS`; with the number 0 it is the calling thread.
const THIS_THREAD: libc::c_int = 1;

/// The bits of the level; the class is above them.
const CLASS_SHIFT: libc::c_int = 13;

/// `IOPRIO_CLASS_BE`.
const BEST_EFFORT: libc::c_int = 2;

/// `IOPRIO_CLASS_IDLE`.
const IDLE: libc::c_int = 3;

/// The lowest level of the class.
const LOWEST: libc::c_int = 7;

/// An I/O priority.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoPriority(libc::c_int);

impl IoPriority {
    fn class(self) -> libc::c_int {
        self.0 >> CLASS_SHIFT
    }
}

/// Returns the priority of this thread.
///
/// # Errors
/// What the system said.
pub fn get() -> io::Result<IoPriority> {
    // SAFETY: passes integers only.
    let result = unsafe { libc::syscall(libc::SYS_ioprio_get, THIS_THREAD, 0) };
    let value = Errno::result(result)?;
    libc::c_int::try_from(value)
        .map(IoPriority)
        .map_err(io::Error::other)
}

/// Sets the priority of this thread. Threads that it starts afterwards have it, too.
///
/// # Errors
/// What the system said.
pub fn set(priority: IoPriority) -> io::Result<()> {
    // SAFETY: passes integers only.
    let result = unsafe { libc::syscall(libc::SYS_ioprio_set, THIS_THREAD, 0, priority.0) };
    Errno::result(result)?;
    Ok(())
}

/// Gives this thread the lowest best-effort priority, and returns the one that it had. Returns
/// `None` if it has the idle class, which is lower.
///
/// # Errors
/// What the system said.
pub fn lower() -> io::Result<Option<IoPriority>> {
    let before = get()?;
    if before.class() == IDLE {
        return Ok(None);
    }
    set(IoPriority((BEST_EFFORT << CLASS_SHIFT) | LOWEST))?;
    Ok(Some(before))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lowered_thread_gets_its_priority_back_and_an_idle_one_stays_idle() {
        let before = lower().unwrap().unwrap();
        assert_eq!(
            get().unwrap(),
            IoPriority((BEST_EFFORT << CLASS_SHIFT) | LOWEST)
        );
        set(before).unwrap();
        assert_eq!(get().unwrap(), before);
        set(IoPriority(IDLE << CLASS_SHIFT)).unwrap();
        assert_eq!(lower().unwrap(), None);
        assert_eq!(get().unwrap().class(), IDLE);
    }
}
