"""Files that say themselves whether they are whole.

A file begins with a header: which file it is, which version, how long, and the hash of the rest. The rest names its owner
and its place in every sector, so that a file that was put together of two can be told, and of which.
"""
import hashlib
import re

HEADER, SECTOR = 128, 512
PATTERN = re.compile(rb'ferryfs trial (\S+) v(\d+) length (\d+) sha1 ([0-9a-f]{40}) *\n')


def make(ident, version, length):
    """The content of version `version` of file `ident`: `length` bytes, at least a header."""
    length = max(length, HEADER)
    sectors = (('%s v%d @%d ' % (ident, version, at)).encode() for at in range(HEADER, length, SECTOR))
    rest = b''.join(sector * (SECTOR // len(sector)) + b'.' * (SECTOR % len(sector)) for sector in sectors)[:length - HEADER]
    digest = hashlib.sha1(rest).hexdigest()
    return ('ferryfs trial %s v%d length %d sha1 %s' % (ident, version, length, digest)).ljust(HEADER - 1).encode() + b'\n' + rest


def read(data):
    """Which (file, version) it is; or None and, in words, why it is none."""
    match = PATTERN.match(data[:HEADER])
    if not match:
        return None, '%d bytes without a header, beginning %r' % (len(data), bytes(data[:48]))
    name = '%s v%s' % (match[1].decode(), match[2].decode())
    if len(data) != int(match[3]):
        return None, '%s of %s bytes has %d' % (name, match[3].decode(), len(data))
    if hashlib.sha1(data[HEADER:]).hexdigest().encode() != match[4]:
        return None, '%s with bytes of %s' % (name, ', '.join(owners(data[HEADER:], name)[:4]))
    return (match[1].decode(), int(match[2])), None


def owners(data, name):
    """Whose the sectors are that are not of `name`."""
    found = []
    for at in range(0, len(data), SECTOR):
        sector = bytes(data[at:at + 24])
        if not sector.startswith(name.encode() + b' @%d ' % (at + HEADER)):
            words = sector.split(b' ')
            who = ' '.join(w.decode('ascii', 'replace') for w in words[:2]) if sector.strip(b'\0') else 'nobody (zeroes)'
            if who not in found:
                found.append(who)
    return found
