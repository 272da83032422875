"""Exact crash points: copies of both disks at each write of one small flush, as a power cut then would leave them, each
mounted, recovered and looked at. The copies are made while the flush runs; it notices nothing."""
import os
import random

from . import cuts, lab, recovery, world
from .check import Findings
from .history import History, Log
from .writer import Writer

# Which unflushed writes are lost: none, all, and random ones, which find the most.
LOSE = ('none', 'all', 'random:%d', 'random:%d')
MOST_WRITES = 150


def copies(seed, most):
    """A flush, copied at each of its writes in four ways. Which of the copies to look at: [(name, write, lose)], at most `most`."""
    tree = world.fresh(seed)
    log = Log(cuts.LOG, tree)
    Writer(world.LAB, tree, log, seed).run(10)
    log.flush('begun')
    code, said, writes, armed = flush(seed)
    if code:
        raise RuntimeError('flush: exit code %d: %s' % (code, said))
    world.must(world.FERRYFS, 'unmount', world.LAB)
    for place in (world.DRIVE, world.SSD):
        world.must('umount', place)
    made = [copy for copy in armed if copy[1] <= writes]
    chance = random.Random(seed)
    # The second half is where names are moved and the record goes.
    late = [copy for copy in made if copy[1] > writes // 2]
    early = [copy for copy in made if copy[1] <= writes // 2]
    picked = chance.sample(late, min(len(late), most - most // 4)) + chance.sample(early, min(len(early), most // 4))
    for copy in made:
        if copy not in picked:
            remove(copy[0])
    return sorted(picked, key=lambda copy: copy[1])


def flush(seed):
    """A flush with copies armed at each write. Exit code, output, how many writes it did, the copies that were armed."""
    before, armed = lab.stat('usb')['writes'], []
    for write in range(1, MOST_WRITES + 1):
        for way, lose in enumerate(LOSE):
            if way >= 2:
                lose = lose % (seed * 10000 + write * 10 + way)
            name = '%03d-%d.img' % (write, way)
            armed.append((name, write, lose))
            lab.ask('at usb %d snap usb-%s ssd-%s lose=%s' % (write, name, name, lose))
    code, said = world.ferry('flush', world.LAB)
    lab.ask('at usb off')
    return code, said, lab.stat('usb')['writes'] - before, armed


def remove(name):
    for disk in ('usb', 'ssd'):
        os.unlink('%s/%s-%s' % (lab.SHARE, disk, name))


def main(name, seed, most, repair):
    findings = Findings(name, seed)
    points = copies(seed, most)
    for name, write, lose in points:
        findings.round, findings.bad = write, 0
        findings.note('copy', 'lose=%s at write %d' % (lose, write))
        for disk in ('usb', 'ssd'):
            lab.ask('spare %s-%s' % (disk, name))
            world.DEVICES[disk] = world.must('losetup', '-f', '--show', '%s/%s-%s' % (lab.SHARE, disk, name))
        try:
            cuts.after(findings, History(cuts.LOG), repair)
        except (world.Hung, RuntimeError, OSError) as error:
            findings.add('broken', type(error).__name__, str(error))
        print('%s seed %d write %d lose=%s: %s' % (findings.scenario, seed, write, lose, 'FAILED' if findings.bad else 'ok'), flush=True)
        if findings.bad:
            recovery.facts(findings)
        world.tear_down()
        for disk in ('usb', 'ssd'):
            world.run('losetup', '-d', world.DEVICES.pop(disk))
            if not findings.bad:
                os.unlink('%s/kept/%s-%s' % (lab.SHARE, disk, name))
        remove(name)
    print('%s seed %d: %d crash points' % (findings.scenario, seed, len(points)), flush=True)
