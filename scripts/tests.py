#!/usr/bin/env python3
"""Builds all tests and runs their programs, several at once: most of them wait for mounts, daemons and clocks, or use one thread.

    scripts/tests.py             all of them
    scripts/tests.py NAME...     only these test files (as in `cargo test --test NAME`)

What a program prints is shown when it ends, as a whole. The exit code is 1 if one failed, or does not build.
"""
import concurrent.futures
import json
import os
import subprocess
import sys
import time

# Those that take longest begin first, so that none is left alone at the end.
LONG = ['crash_loop', 'rich_drive', 'elsewhere', 'simulation', 'catalog_format', 'ferryfs', 'parsers', 'bad_input', 'kernel', 'refusals', 'posix']
# Those that hold the mounts of everybody in mount namespaces of their own run one by one, after the others.
ALONE = ['detach', 'ending', 'lease', 'mounting']
# Programs at once, and tests at once in each of them.
AT_ONCE = os.environ.get('FERRYFS_TESTS_AT_ONCE', '3')
THREADS = '2'


def build(names):
    """The programs of the tests, by name."""
    which = [word for name in names for word in ('--test', name)]
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


def run(name, program):
    """Runs one. Whether it passed, and what it printed."""
    begun = time.monotonic()
    done = subprocess.run([program, '--test-threads', THREADS], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, check=False)
    took = time.monotonic() - begun
    head = '     Running %s (%.0f s, exit code %d)\n' % (name, took, done.returncode)
    return done.returncode == 0, head.encode() + done.stdout


def run_all(programs, at_once):
    """Runs programs in this order, so many at once, and shows what they print. The names of those that failed."""
    failed = []
    with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
        runs = {pool.submit(run, name, program): name for name, program in programs.items()}
        for done in concurrent.futures.as_completed(runs):
            passed, said = done.result()
            sys.stdout.buffer.write(said)
            sys.stdout.flush()
            if not passed:
                failed.append(runs[done])
    return failed


def main():
    programs = build(sys.argv[1:])
    order = sorted(programs, key=lambda name: (LONG.index(name) if name in LONG else len(LONG), name))
    failed = run_all({name: programs[name] for name in order if name not in ALONE}, int(AT_ONCE))
    failed += run_all({name: programs[name] for name in order if name in ALONE}, 1)
    if not sys.argv[1:] and subprocess.run(['cargo', 'test', '--doc'], check=False).returncode:
        failed.append('examples in the documentation')
    if failed:
        print('failed: ' + ', '.join(sorted(failed)))
        sys.exit(1)


if __name__ == '__main__':
    main()
