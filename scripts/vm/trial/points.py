"""Exact crash points: copies of both disks at each write of one small flush, as a power cut then would leave them, each
mounted, recovered and looked at. The copies are made while the flush runs; it notices nothing."""
import os

from . import cuts, lab, recovery, world
from .check import Findings
from .history import History, Log
from .writer import Writer

LOSE = ('none', 'all', 'random:%d')


def copies(seed, most):
    """A flush, copied at each of its writes, at most `most` times. The names of the copies."""
    tree = world.fresh(seed)
    log = Log(cuts.LOG, tree)
    Writer(world.LAB, tree, log, seed).run(10)
    log.flush('begun')
    # Every copy that is armed costs a name only; how many are made depends on how many writes there are.
    names = []
    for number in range(1, 121):
        lose = LOSE[number % 3] % () if number % 3 < 2 else LOSE[2] % (seed * 1000 + number)
        names.append((number, lose))
        lab.ask('at usb %d snap usb-%d.img ssd-%d.img lose=%s' % (number, number, number, lose))
    code, said = world.ferry('flush', world.LAB)
    lab.ask('at usb off')
    if code:
        raise RuntimeError('flush: exit code %d: %s' % (code, said))
    made = [(number, lose) for number, lose in names if os.path.exists('%s/ssd-%d.img' % (lab.SHARE, number))]
    world.must(world.FERRYFS, 'unmount', world.LAB)
    for place in (world.DRIVE, world.SSD):
        world.must('umount', place)
    # The end is where names are moved and the record goes: that part whole, the rest in steps.
    step = max(1, len(made) // most)
    return made if len(made) <= most else sorted(set(made[::step * 2] + made[-most // 2:]))


def main(name, seed, most, repair):
    findings = Findings(name, seed)
    points = copies(seed, most)
    for number, lose in points:
        findings.round, findings.bad = number, 0
        findings.note('copy', 'lose=%s at write %d' % (lose, number))
        files = {disk: '%s/%s-%d.img' % (lab.SHARE, disk, number) for disk in ('usb', 'ssd')}
        for disk, path in files.items():
            world.DEVICES[disk] = world.must('losetup', '-f', '--show', path)
        try:
            cuts.after(findings, History(cuts.LOG), repair)
        except (world.Hung, RuntimeError, OSError) as error:
            findings.add('broken', type(error).__name__, str(error))
        print('%s seed %d write %d lose=%s: %s' % (name, seed, number, lose, 'FAILED' if findings.bad else 'ok'), flush=True)
        if findings.bad:
            recovery.facts(findings)
        world.tear_down()
        for disk in files:
            world.run('losetup', '-d', world.DEVICES.pop(disk))
    print('%s seed %d: %d crash points' % (name, seed, len(points)), flush=True)
