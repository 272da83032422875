"""Yanks, power cuts and NAS outages on a real kernel: runs the scenarios, counts what happened, says what was lost.

    scripts/vm/run.sh                       all of it
    scripts/vm/run.sh --short               some of each, in a few minutes
    scripts/vm/run.sh --only NAME           one scenario (--list says which); may be repeated
    scripts/vm/run.sh --seed N              another course of events; the seed is printed
    scripts/vm/run.sh --rounds N            more or fewer rounds of each than usual

The last line is `N yanks, N power cuts, N nas outages: N lost, N torn`. The exit code is 0 if nothing was lost or torn and no
other promise was broken, 1 if one was, 99 if the laboratory failed.
"""
import argparse
import collections
import concurrent.futures
import json
import os
import shlex
import shutil
import signal
import sys
import tempfile
import time

from lab import prepare
from lab.common import LabError, log
from lab.machine import Machine

HERE = os.path.dirname(os.path.abspath(__file__))

# name -> (what the guest is asked for, rounds in full, rounds in the short form)
SCENARIOS = {
    'yanks': (dict(scenario='yanks'), 36, 3),
    'nas-nfs': (dict(scenario='outages', kind='nfs'), 4, 1),
    'cuts': (dict(scenario='cuts'), 32, 2),
    'points': (dict(scenario='points'), 60, 2),
    'yanks-clean': (dict(scenario='yanks', keep_clean='yes'), 12, 0),
    'day': (dict(scenario='day'), 1, 0),
    'yanks-unrepaired': (dict(scenario='yanks', repair='no'), 12, 0),
    'cuts-unrepaired': (dict(scenario='cuts', repair='no'), 8, 0),
    'points-unrepaired': (dict(scenario='points', repair='no'), 30, 0),
    'nas-smb': (dict(scenario='outages', kind='smb'), 4, 0),
}
ROUNDS_PER_BOOT = 12
# Guests at a time: each has much to wait for.
GUESTS = 2


class Run:
    def __init__(self, directory, ferryfs):
        self.directory, self.ferryfs = directory, ferryfs
        self.counts = collections.Counter()
        self.table, self.broken_lab = [], []

    def machine(self, name):
        """A machine with disks of its own, in a place of its own."""
        place = os.path.join(self.directory, name)
        shutil.rmtree(place, ignore_errors=True)
        os.makedirs(place + '/share')
        return Machine((place + '/usb.img', '192M'), (place + '/ssd.img', '384M'), place + '/share')

    def command(self, options):
        words = ['env', 'PYTHONDONTWRITEBYTECODE=1', 'PYTHONPATH=' + HERE, 'FERRYFS=' + self.ferryfs,
                 'python3', '-u', '-S', '-m', 'trial.inside', options['scenario']]
        return shlex.join(words + ['%s=%s' % pair for pair in options.items() if pair[0] != 'scenario'])

    def scenario(self, name, options, rounds, seed):
        start, machine = time.monotonic(), self.machine(name)
        log('%s: seed %d, %d rounds' % (name, seed, rounds))
        options = dict(options, name=name, seed=seed)
        try:
            {'yanks': self.yanks, 'cuts': self.cuts, 'points': self.points, 'outages': self.outages, 'day': self.day}[options['scenario']](
                machine, options, rounds)
        except LabError as error:
            log('%s: %s' % (name, error))
            self.broken_lab.append(name)
        finally:
            machine.close()
        self.table.append((name, seed, machine.counts, self.findings(machine.share), time.monotonic() - start))

    def boot(self, machine, options, timeout, ends=('exit',)):
        code = machine.boot(self.command(options), timeout)
        if machine.why not in ends or (machine.why == 'exit' and code != 0):
            raise LabError('the guest ended by %s, exit code %s' % (machine.why, code))

    def yanks(self, machine, options, rounds):
        for first in range(0, rounds, ROUNDS_PER_BOOT):
            last = min(rounds, first + ROUNDS_PER_BOOT)
            self.boot(machine, dict(options, first=first, last=last), 300 + 240 * (last - first))

    def cuts(self, machine, options, rounds):
        for number in range(rounds + 1):
            end = number == rounds
            self.boot(machine, dict(options, round=number, end='yes' if end else 'no'), 600, ('exit',) if end else ('powercut',))

    def points(self, machine, options, rounds):
        self.boot(machine, dict(options, most=rounds), 300 + 120 * rounds)

    def outages(self, machine, options, rounds):
        self.boot(machine, dict(options, rounds=rounds), 300 + 300 * rounds)

    def day(self, machine, options, rounds):
        self.boot(machine, options, 2400)

    @staticmethod
    def findings(share):
        kinds = collections.Counter()
        try:
            with open(share + '/findings.jsonl') as file:
                kinds.update(json.loads(line)['kind'] for line in file)
        except FileNotFoundError:
            pass
        return kinds

    def report(self):
        for _, _, counts, found, _ in self.table:
            self.counts.update(counts)
            self.counts.update(found)
        print('%-18s %8s %6s %6s %8s %8s %5s %5s %7s %6s' % (
            'scenario', 'seed', 'yanks', 'cuts', 'outages', 'copies', 'lost', 'torn', 'broken', 'time'))
        for name, seed, counts, found, seconds in self.table:
            print('%-18s %8d %6d %6d %8d %8d %5d %5d %7d %5ds' % (
                name, seed, counts['yanks'], counts['cuts'], counts['outages'], counts['snaps'], found['lost'], found['torn'],
                found['broken'], seconds))
        bad = self.counts['lost'] + self.counts['torn'] + self.counts['broken']
        if bad:
            print('what was found, and the disks as they were: %s/*/share/{findings.jsonl,kept}' % self.directory)
        if self.counts['broken']:
            print('%d other promises broken' % self.counts['broken'])
        if self.broken_lab:
            print('the laboratory failed in: %s' % ' '.join(self.broken_lab))
        print('%d yanks, %d power cuts, %d nas outages: %d lost, %d torn' % (
            self.counts['yanks'], self.counts['cuts'], self.counts['outages'], self.counts['lost'], self.counts['torn']), flush=True)
        return 1 if bad else 99 if self.broken_lab else 0


def arguments():
    parser = argparse.ArgumentParser(prog='scripts/vm/run.sh', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--prepare', action='store_true', help='only fetch the kernel and the tools of the guest')
    parser.add_argument('--list', action='store_true')
    parser.add_argument('--short', action='store_true')
    parser.add_argument('--only', action='append', metavar='NAME', choices=sorted(SCENARIOS))
    parser.add_argument('--seed', type=int, default=1)
    parser.add_argument('--rounds', type=int)
    parser.add_argument('--ferryfs', help='the program')
    parser.add_argument('--dir', help='where disks and findings go [default: a temporary directory, kept if something was found]')
    return parser.parse_args()


def main():
    options = arguments()
    if options.list:
        for name, (_, full, short) in SCENARIOS.items():
            print('%-18s %3d rounds, %d in the short form' % (name, full, short))
        return 0
    prepare.prepare()
    if options.prepare:
        return 0
    directory = options.dir or tempfile.mkdtemp(prefix='ferryfs-vm-run.')
    run = Run(os.path.abspath(directory), os.path.abspath(options.ferryfs))
    with concurrent.futures.ThreadPoolExecutor(GUESTS) as pool:
        jobs = []
        for name, (what, full, short) in SCENARIOS.items():
            rounds = short if options.short else full
            if rounds and (not options.only or name in options.only):
                jobs.append(pool.submit(run.scenario, name, what, options.rounds or rounds, options.seed))
        for job in jobs:
            job.result()
    code = run.report()
    if code == 0 and not options.dir:
        shutil.rmtree(directory, ignore_errors=True)
    return code


if __name__ == '__main__':
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        sys.exit(main())
    except LabError as error:
        log(str(error))
        sys.exit(99)
