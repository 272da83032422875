//! For tests: a thread for which the kernel refuses a system call, as an old kernel or a sandbox
//! does.

use std::thread;

use nix::errno::Errno;

/// Runs `act` on a thread of its own on which `openat2` fails with `errno`.
pub(crate) fn without_openat2<T: Send>(errno: Errno, act: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let denied = scope.spawn(move || {
            deny(libc::SYS_openat2, errno);
            act()
        });
        denied.join().expect("the thread without openat2 panicked")
    })
}

/// Makes `call` fail with `errno` on this thread, for the rest of its life.
fn deny(call: libc::c_long, errno: Errno) {
    let load = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    let equal = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    let give = (libc::BPF_RET | libc::BPF_K) as u16;
    let instruction = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let number = u32::try_from(call).expect("numbers of calls are small");
    let mut program = [
        // The number of the call is the first word of the filter's input.
        instruction(load, 0, 0, 0),
        instruction(equal, 0, 1, number),
        instruction(give, 0, 0, libc::SECCOMP_RET_ERRNO | errno as u32),
        instruction(give, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let filter = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: integers only.
    let promised = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    assert_eq!(promised, 0, "no_new_privs");
    // SAFETY: the kernel copies the program, which lives on this stack until the call returns.
    let installed = unsafe {
        libc::prctl(
            libc::PR_SET_SECCOMP,
            libc::SECCOMP_MODE_FILTER,
            &raw const filter,
        )
    };
    assert_eq!(installed, 0, "seccomp: {}", Errno::last());
}
