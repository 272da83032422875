"""The laboratory: a real Debian kernel in QEMU with a USB drive to pull, an SSD, a plug to pull and a NAS to lose.

    prepare.py   fetches the kernel and the tools of the guest, once, into the cache
    initrd.py    puts the guest's first file system together
    guest/       what runs in the guest: two stages of init, and the commands `lab` and `lab nas`
    disk.py      a drive: its image, and the volatile write cache before it
    nbd.py       how QEMU reads and writes it
    machine.py   a QEMU: started, listened to, killed
    actions.py   what may be asked of a running one: pull the drive, cut the power, copy what a cut would leave
"""
