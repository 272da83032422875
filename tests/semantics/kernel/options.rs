//! `-o` as fstab(5) has it.

use crate::lab::{Backend, Lab};

#[test]
fn options_of_fstab_that_change_nothing_do_not_keep_a_mount_from_coming_up() {
    let Some(mut lab) = Lab::new(Backend::Ext4Dir) else {
        return;
    };
    lab.mount(&[
        "-o",
        "rw,relatime,nofail,_netdev,x-systemd.automount,comment=lab",
        "-o",
        "noatime,lazytime,noauto",
    ]);
    lab.finish();
}

#[test]
fn unmounting_right_after_mounting_meets_nobody() {
    let Some(mut lab) = Lab::new(Backend::Ext4Dir) else {
        return;
    };
    std::fs::create_dir_all(lab.d("a/b/c")).expect("mkdir");
    // Another program of the machine may look at all mounts just then; it does so rarely.
    let busy = (0..10).filter(|_| was_busy(&mut lab)).count();
    assert!(busy < 3, "{busy} of 10 were busy");
    lab.mount(&[]);
    lab.finish();
}

fn was_busy(lab: &mut Lab) -> bool {
    // The daemon before may be just ending; the next one waits for it.
    lab.try_mount(&[]).code(crate::lab::exit::DONE);
    let is_busy = nix::mount::umount(&lab.mnt) == Err(nix::errno::Errno::EBUSY);
    if is_busy {
        lab.unmount();
    }
    is_busy
}
