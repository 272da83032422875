"""The two disks, the daemon between them, and the commands that people would type."""
import json
import os
import signal
import subprocess
import time

from . import lab, writer

MOUNTS = '/run/mnt'
SSD, DRIVE, RAW, LAB = (MOUNTS + '/' + name for name in ('ssd', 'drive', 'raw', 'lab'))
CACHE = SSD + '/cache'
FERRYFS = os.environ.get('FERRYFS', 'ferryfs')
PATIENCE = 240          # seconds until a command counts as hung
OPTIONS = []            # more of them for `ferryfs mount`
DEVICES = {}            # what stands in for a disk: a loop device


class Hung(Exception):
    """A command of ferryfs did not come to an end."""


def run(*words, patience=PATIENCE):
    """Exit code and output of a command."""
    try:
        done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                              timeout=patience, text=True, errors='replace')
    except subprocess.TimeoutExpired:
        raise Hung('%s: no end after %d s' % (' '.join(words), patience)) from None
    return done.returncode, done.stdout.strip()


def must(*words):
    code, said = run(*words)
    if code:
        raise RuntimeError('%s: exit code %d: %s' % (' '.join(words), code, said))
    return said


def ferry(*words, patience=PATIENCE):
    return run(FERRYFS, *words, patience=patience)


def device(name):
    return DEVICES.get(name) or lab.device(name)


def fresh(seed):
    """New file systems on both disks, the drive filled elsewhere; nothing of it is in the cache. The tree on the drive."""
    for path in (SSD, DRIVE, RAW, LAB):
        os.makedirs(path, exist_ok=True)
    # Clusters of one sector's size make chains and directories long; those of 32 KiB are what small
    # drives have.
    must('mkfs.exfat', '-c', ('4K', '32K')[seed % 2], device('usb'))
    make_ssd()
    mount_drive()
    tree = writer.populate(DRIVE, seed)
    must('sync', '-f', DRIVE)
    start()
    return tree


def make_ssd():
    """A new ext4: small tables and a small journal make small copies."""
    must('mkfs.ext4', '-qF', '-N', '8192', '-J', 'size=8', '-E', 'lazy_itable_init=0,lazy_journal_init=0', device('ssd'))
    must('mount', device('ssd'), SSD)


def mount_ssd():
    """After a power cut: the SSD's file system replays its journal."""
    for path in (SSD, DRIVE, RAW, LAB):
        os.makedirs(path, exist_ok=True)
    must('mount', device('ssd'), SSD)


def mount_drive(place=DRIVE, options='rw'):
    must('mount', '-t', 'exfat', '-o', options, device('usb'), place)


def unmount(place):
    """Unmounts a file system of a drive that is gone; what keeps it busy for more than some seconds is a finding."""
    deadline = time.monotonic() + 20
    while True:
        code, said = run('umount', place)
        if code == 0:
            return None
        if time.monotonic() > deadline:
            run('umount', '-l', place)
            return said
        time.sleep(0.3)


def start():
    """`ferryfs mount`; raises where it does not mount."""
    code, said = ferry('mount', '--no-auto-flush', *OPTIONS, '--cache', CACHE, DRIVE, LAB)
    if code:
        raise RuntimeError('ferryfs mount: exit code %d: %s' % (code, said))


def status():
    code, said = ferry('status', '--json', LAB, patience=60)
    if code:
        raise RuntimeError('ferryfs status: exit code %d: %s' % (code, said))
    return json.loads(said[said.index('{'):])


def wait_for(state, patience=90):
    """Waits until the daemon says that the backend is `state` and no batch is under way. Its last status."""
    deadline = time.monotonic() + patience
    while True:
        now = status()
        if now['backend_state'] == state and not now['batch_in_progress']:
            return now
        if time.monotonic() > deadline:
            raise Hung('the daemon says %s after %d s, not %s: %s' % (now['backend_state'], patience, state, now['last_error']))
        time.sleep(0.3)


def kill():
    """The daemon dies: SIGKILL."""
    pid = status()['pid']
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while os.path.exists('/proc/%d' % pid) and time.monotonic() < deadline:
        time.sleep(0.1)


def fsck(repair=False):
    """What fsck.exfat says, less its banner."""
    code, said = run('fsck.exfat', '-y' if repair else '-n', device('usb'))
    lines = [line for line in said.splitlines() if line and 'exfatprogs version' not in line]
    return code, lines


def ours(place):
    """What stands in a directory of ours on the drive, with its size. A finished record may stay."""
    try:
        return ['%s (%d)' % (entry.name, entry.stat().st_size) for entry in os.scandir(os.path.join(DRIVE, '.ferryfs', place))
                if not entry.name.endswith('.done')]
    except FileNotFoundError:
        return []


def tear_down():
    """Ends everything, in whatever state it is: for the next fresh()."""
    run('umount', '-l', LAB)
    run('sh', '-c', 'kill -9 $(pidof ferryfs)')
    time.sleep(0.5)
    for place in (RAW, DRIVE, SSD):
        while run('umount', '-l', place)[0] == 0:
            pass
