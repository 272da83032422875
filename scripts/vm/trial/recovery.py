"""From a drive that comes back after a yank or a power cut to a mount that works again, and what must hold on the way."""
import os

from . import world
from .check import Found


def look_at_drive(findings, repair, also=lambda place: None):
    """The drive before anything of ours has touched it: no partial file under a final name. What fsck.exfat says."""
    code, said = world.fsck()
    findings.note('fsck.exfat -n', 'exit code %d: %s' % (code, ' | '.join(said[:12])))
    try:
        world.mount_drive(world.RAW, 'ro')
    except RuntimeError as error:
        findings.add('broken', 'the drive before recovery', str(error))
    else:
        findings.whole(Found(world.RAW), 'the drive before recovery')
        also(world.RAW)
        # A daemon may be looking whether it is its drive.
        busy = world.unmount(world.RAW)
        if busy:
            findings.add('broken', 'the drive before recovery', 'it stays busy: %s' % busy)
    if repair:
        code, said = world.fsck(repair=True)
        findings.note('fsck.exfat -y', 'exit code %d: %s' % (code, ' | '.join(said[:12])))


def attached(findings, trees):
    """The drive is attached and recovered; it is one of `trees` (None: not known which), nothing of it partial."""
    now = world.wait_for('attached')
    if now['last_error']:
        findings.note('after recovery', 'last error: %s' % now['last_error'])
    found = Found(world.DRIVE)
    if trees is None:
        findings.whole(found, 'the drive after recovery')
    else:
        findings.one_of(found, trees, 'the drive after recovery')


def flushed(findings, tree):
    """A flush carries everything, and leaves nothing of ours behind."""
    code, said = world.ferry('flush', world.LAB)
    if code:
        findings.add('broken', 'flush after recovery', 'exit code %d: %s' % (code, said))
    findings.same(Found(world.DRIVE), tree, 'the drive after the flush')
    for place in ('staging', 'batches'):
        if world.ours(place):
            findings.add('broken', 'the drive after the flush', 'left in %s: %s' % (place, world.ours(place)))
    # What could not be accounted for is kept there on purpose: for people to look at, as here.
    if world.ours('lost+found'):
        findings.note('the drive after the flush', 'in lost+found: %s' % world.ours('lost+found'))


def facts(findings):
    """What is needed to understand a finding."""
    lines = []
    log = os.path.join(world.CACHE, 'ferryfs.log')
    if os.path.exists(log):
        with open(log, errors='replace') as file:
            lines += ['--- ferryfs.log'] + file.read().splitlines()[-25:]
    lines += ['--- .ferryfs'] + world.run('ls', '-lR', os.path.join(world.DRIVE, '.ferryfs'))[1].splitlines()[:60]
    lines += ['--- kernel'] + world.run('sh', '-c', 'dmesg | grep -iE "exfat|ext4|ferryfs" | tail -15')[1].splitlines()
    findings.note('facts', '\n'.join(lines))
