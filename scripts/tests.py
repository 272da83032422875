#!/usr/bin/env python3
"""Builds all tests and runs their programs in parts, several at once: most of them wait for mounts,
daemons and clocks, or use one thread.

    scripts/tests.py             all of them
    scripts/tests.py NAME...     only these: a group (`crash`, all that is in tests/crash/), or a
                                 module of a group (`crash_loop`, in tests/crash/crash_loop/)

Each tests/GROUP/main.rs is one program, as linking takes time. Each module of a group is run as a
process of its own, so that what it does to its process concerns no other module. What a process
prints is shown when it ends, as a whole.

A test that fails is run once more, by itself: on a busy machine a mount, a signal or a clock can
come later than any limit that is worth waiting for. What fails only beside others is named at the
end as UNSTABLE, with what it printed above; more than three of them count as failures. The exit
code is 1 if a test failed twice, was not run, or does not build.
"""
import concurrent.futures
import json
import os
import pathlib
import re
import subprocess
import sys
import time

TOP = pathlib.Path(__file__).resolve().parent.parent
# Those that take longest begin first, so that none is left alone at the end.
LONG = ['crash_loop', 'faithful', 'elsewhere', 'open_files', 'hostile_drive', 'kernel', 'rich_drive',
        'described', 'stall', 'fuse_drive', 'full', 'ferryfs', 'parsers', 'as_user', 'posix', 'bad_input',
        'index_damage', 'simulation', 'apps', 'handles', 'refusals', 'daemon_dies']
# Those that hold the mounts of everybody in mount namespaces of their own run after the others.
ALONE = ['lease']
# Processes at once, and tests at once in each of them.
AT_ONCE = os.environ.get('FERRYFS_TESTS_AT_ONCE', '3')
THREADS = '2'
# So many tests may fail beside others, if they pass by themselves.
UNSTABLE = 3


def group_of(name):
    """The group that is called so, or has a module that is called so."""
    for main in sorted(TOP.glob('tests/*/main.rs')):
        group = main.parent
        if name == group.name or (group / (name + '.rs')).exists() or (group / name / 'mod.rs').exists():
            return group.name
    sys.exit('there is no group and no module of tests called %s' % name)


def build(groups):
    """The programs of these groups, or of all and of the crate itself, by name."""
    which = [word for group in sorted(set(groups)) for word in ('--test', group)]
    command = ['cargo', 'test', '--no-run', '--message-format=json-render-diagnostics', *which]
    built = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if built.returncode:
        sys.exit(1)
    messages = map(json.loads, built.stdout.splitlines())
    programs = {}
    for message in messages:
        if message.get('executable') and message['profile']['test']:
            kind = message['target']['kind'][0]
            name = message['target']['name']
            programs[name if kind != 'bin' else name + '(bin)'] = message['executable']
    return programs


class Part:
    """Some tests of a program, which one process runs: those of a module, or all of them."""

    def __init__(self, group, module, program):
        self.group = group
        self.module = module
        self.program = program
        self.tests = []

    def __str__(self):
        return self.group if self.group == self.module else '%s/%s' % (self.group, self.module)

    def order(self):
        """Its place among all."""
        return LONG.index(self.module) if self.module in LONG else len(LONG), self.module

    def run(self, tests):
        """Runs these tests of it. The tests that did not pass, and what it printed."""
        begun = time.monotonic()
        # Whole names: a part of a name would be found in the names of other modules as well.
        command = [self.program, '--test-threads', THREADS, '--exact', *tests]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, check=False)
        took = time.monotonic() - begun
        head = '     Running %s (%.0f s, exit code %d)\n' % (self, took, done.returncode)
        said = head.encode() + done.stdout
        counts = re.findall(rb'^test result: .*?(\d+) passed', done.stdout, re.M)
        if done.returncode == 0 and counts and int(counts[-1]) == len(tests):
            return [], said
        passed = set(re.findall(r'^test (\S+).* \.\.\. (?:ok|ignored.*)$', done.stdout.decode(errors='replace'), re.M))
        return [test for test in tests if test not in passed], said


def parts_of(group, program):
    """The parts of a program: one for each module of a group, one for the whole of any other."""
    listed = subprocess.run([program, '--list', '--format', 'terse'], stdin=subprocess.DEVNULL,
                            stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
    parts = {}
    for line in listed:
        test, kind = line.rsplit(': ', 1)
        assert kind == 'test', line
        in_module = '::' in test and (TOP / 'tests' / group).is_dir()
        module = test.split('::')[0] if in_module else group
        parts.setdefault(module, Part(group, module, program)).tests.append(test)
    return list(parts.values())


def run_all(parts, at_once):
    """Runs parts in this order, so many at once, and shows what they print. The tests that did not
    pass, with their parts."""
    failed = []
    with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
        runs = {pool.submit(part.run, part.tests): part for part in parts}
        for done in concurrent.futures.as_completed(runs):
            tests, said = done.result()
            show(said)
            failed += [(runs[done], test) for test in tests]
    return failed


def again(failed):
    """Runs each of these tests by itself. Those that fail once more, and those that pass."""
    twice, once = [], []
    for part, test in failed:
        tests, said = part.run([test])
        show(said)
        (twice if tests else once).append('%s %s' % (part, test))
    return twice, once


def show(said):
    """Shows what a test program printed."""
    sys.stdout.buffer.write(said)
    sys.stdout.flush()


def main():
    names = sys.argv[1:]
    programs = build([group_of(name) for name in names])
    parts = [part for group, program in programs.items() for part in parts_of(group, program)]
    parts = [part for part in parts if not names or part.group in names or part.module in names]
    parts.sort(key=Part.order)
    empty = set(names) - {name for part in parts for name in (part.group, part.module)}
    if empty:
        sys.exit('without a test: ' + ', '.join(sorted(empty)))
    failed = run_all([part for part in parts if part.module not in ALONE], int(AT_ONCE))
    failed += run_all([part for part in parts if part.module in ALONE], 1)
    failed, unstable = again(failed) if len(failed) <= UNSTABLE else (['%s %s' % one for one in failed], [])
    count = sum(len(part.tests) for part in parts)
    print('%d tests in %d parts of %d programs' % (count, len(parts), len(programs)))
    if not names and subprocess.run(['cargo', 'test', '--doc'], check=False).returncode:
        failed.append('examples in the documentation')
    for name in unstable:
        print('UNSTABLE: failed beside others, and passed by itself: ' + name)
    if failed:
        print('failed: ' + ', '.join(sorted(failed)))
        sys.exit(1)


if __name__ == '__main__':
    main()
