"""What the rooms of the laboratory share: where the cache is, the log, the error, numbers with units."""
import os
import re
import sys
import time

CACHE = os.environ.get('FERRYFS_VM_CACHE') or os.path.join(
    os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache'), 'ferryfs-vm')
START = time.monotonic()


class LabError(Exception):
    """The laboratory itself failed: nothing is known about what it was to show."""


def log(message):
    sys.stderr.write('[vm %7.2f s] %s\n' % (time.monotonic() - START, message))
    sys.stderr.flush()


def number(text):
    """'100M' -> 100 * 2**20 (K, M, G are binary)."""
    match = re.fullmatch(r'([\d.]+)([KMG]?)', text.strip(), re.I)
    if not match:
        raise LabError('not a number: %r' % text)
    return int(float(match[1]) * 1024 ** ' KMG'.index(match[2].upper() or ' '))
