"""The power goes in the middle of a flush: one boot each. A boot first looks at what the last cut left, then makes the next."""
import os
import random
import subprocess
import time

from . import lab, recovery, world
from .check import Findings, Found
from .history import History, Log
from .writer import Writer

LOG = lab.SHARE + '/cut.log'


def after(findings, history, repair):
    """What a power cut has left, mounted and recovered: everything that was acknowledged as durable. The tree then."""
    world.mount_ssd()
    recovery.look_at_drive(findings, repair)
    world.mount_drive()
    world.start()
    cut = history.cut
    recovery.attached(findings, None if cut is None else [history.trees[history.flushed], cut])
    found = Found(world.LAB)
    # What the cut has caught half done, and may: it goes, so that the rest can be compared exactly.
    halves = [path for path in found.torn if history.unsynced(path)]
    for path in found.temporary():
        os.unlink(os.path.join(world.LAB, path))
        found.torn.pop(path, None)
        found.tree.files.pop(path, None)
    findings.survived(found, history, 'the mount after the cut')
    for path in halves:
        if path in found.torn:
            os.unlink(os.path.join(world.LAB, path))
    recovery.flushed(findings, found.tree)
    return found.tree


def before(name, seed, number, tree, writes):
    """Operations and a flush, with the power going at a chosen write of it; never returns."""
    chance = random.Random('%d %d' % (seed, number))
    lose = ('none', 'all', 'random:%d' % chance.randrange(10000))[number % 3]
    log = Log(LOG, tree)
    writer = Writer(world.LAB, tree, log, seed * 1000 + number)
    # At a write to the drive; or to the SSD while programs write beside the flush; or before there
    # is one.
    disk, beside = chance.choice((('usb', False), ('usb', False), ('usb', True), ('ssd', True), ('ssd', None)))
    share = chance.choice((chance.random(), chance.uniform(0.6, 1.05)))
    at = max(1, int(writes * share)) if disk == 'usb' else chance.randrange(1, 80)
    note = Findings(name, seed)
    note.round = number
    note.note('cut', 'lose=%s at write %d to the %s%s' % (lose, at, disk, {
        False: ', nobody writing', True: ', programs writing beside the flush', None: ' from before the flush on'}[beside]))
    arm = 'at %s %d powercut lose=%s' % (disk, at, lose)
    if beside is None:
        lab.ask(arm)
    writer.run(chance.randrange(8, 25))
    if beside is not None:
        lab.ask(arm)
    count = lab.stat('usb')['writes']
    log.flush('begun')
    flush = subprocess.Popen((world.FERRYFS, 'flush', world.LAB), stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + world.PATIENCE
    while flush.poll() is None and time.monotonic() < deadline:
        if beside:
            writer.step()
        else:
            time.sleep(0.05)
    if flush.poll() == 0:
        log.flush('done')
        remember(lab.stat('usb')['writes'] - count)
    lab.ask('powercut lose=' + lose)


def remember(writes=None):
    """How many writes a flush does, about, from boot to boot."""
    path = lab.SHARE + '/flush-writes'
    if writes is not None:
        with open(path, 'w') as file:
            file.write('%d' % max(4, writes))
    try:
        with open(path) as file:
            return int(file.read())
    except (OSError, ValueError):
        return 60


def main(name, seed, number, last, repair):
    """Boot `number`: 0 begins, `last` only looks."""
    findings = Findings(name, seed)
    findings.round = number - 1
    tree = None
    if number > 0:
        try:
            tree = after(findings, History(LOG), repair)
        except (world.Hung, RuntimeError, OSError) as error:
            findings.add('broken', type(error).__name__, str(error))
        print('%s seed %d round %d: %s' % (name, seed, number - 1, 'FAILED' if findings.bad else 'ok'), flush=True)
        if findings.bad:
            recovery.facts(findings)
            lab.ask('keep %s-seed%d-round%d' % (name, seed, number - 1))
            world.tear_down()
            tree = None
    if not last:
        if tree is None:
            tree = world.fresh(seed + 7919 * number)
        before(name, seed, number, tree, remember())
