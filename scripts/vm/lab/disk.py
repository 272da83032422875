"""A drive: an image file (the platter) and, before it, a volatile write cache.

A write is acknowledged when it is in the cache; only a flush by the guest (or forced unit access) moves it to the image.
`power_off` decides what becomes of the rest, so "acknowledged, but lost" is exact. QEMU's own cache modes cannot do this:
what a killed QEMU has written is safe in the page cache of the host.
"""
import fcntl
import os
import random
import re
import threading
import time

from . import nbd
from .common import LabError, number

BLOCK = 4096


def check_lose(lose):
    """'none', 'all', 'random:SEED' -> (which, seed)."""
    match = re.fullmatch(r'(none|all|random)(?::(\d+))?', lose)
    if not match:
        raise LabError('lose= must be none, all or random:SEED')
    return match[1], int(match[2] or 0)


def read_at(fd, length, offset):
    data = os.pread(fd, length, offset)
    return data if len(data) == length else data + bytes(length - len(data))


class Disk:
    """`kind` is 'usb' (can be pulled) or 'virtio'. Made if the image does not exist: then `size` says how large."""

    def __init__(self, name, path, kind, size, sockets):
        self.name, self.kind = name, kind
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise LabError(path + ' is in use') from None
        if os.fstat(self.fd).st_size == 0:
            os.ftruncate(self.fd, number(size))
        self.size = os.fstat(self.fd).st_size // BLOCK * BLOCK
        self.map = bytearray(self.size // BLOCK)        # which blocks the cache holds
        self.dirty = 0                                  # how many
        self.low, self.high = len(self.map), 0          # between which they are
        self.cache = os.memfd_create('cache-' + name)
        os.ftruncate(self.cache, self.size)
        self.lock = threading.RLock()
        self.on, self.gone = True, False
        self.rate, self.free_at = 0, 0.0                # bytes per second (0: as fast as it goes)
        self.armed = []                                 # [(number of a write, what to do at it)]
        self.on_hit = None
        self.writes = self.flushes = 0
        self.socket = os.path.join(sockets, name + '.nbd')
        nbd.serve(self, self.socket)

    def close(self):
        os.close(self.fd)
        os.close(self.cache)

    # ---- requests of the guest

    def request(self, kind, offset, length, data, forced):
        """Does what QEMU asks. (error, data), or None where the power went meanwhile and nothing is to be answered."""
        error, out, hits = 0, b'', []
        with self.lock:
            if not self.on:
                return None
            if self.gone:
                error = nbd.EIO
            elif kind in (nbd.READ, nbd.WRITE) and offset + length > self.size:
                error = nbd.EINVAL
            elif kind == nbd.READ:
                out = self._read(offset, length)
            elif kind == nbd.WRITE:
                self._write(offset, data)
                self.writes += 1
                hits = [action for at, action in self.armed if at <= self.writes]
                self.armed = [(at, action) for at, action in self.armed if at > self.writes]
            if not error and (kind == nbd.FLUSH or (kind == nbd.WRITE and forced)):
                self._destage(self.fd, 'none')
                self._clean()
                self.flushes += kind == nbd.FLUSH
        for action in hits:                             # before this write is acknowledged
            self.on_hit(self, action)
        if self.rate and kind in (nbd.READ, nbd.WRITE):
            self._spend(length / self.rate)
        return (error, out) if self.on else None

    def _spend(self, seconds):
        self.free_at = max(self.free_at, time.monotonic() - 0.05) + seconds
        pause = self.free_at - time.monotonic()
        if pause > 0:
            time.sleep(pause)

    def _runs(self, start, end, held):
        """Runs of blocks in [start, end) that the cache holds, or does not."""
        this, other = (b'\1', b'\0') if held else (b'\0', b'\1')
        while start < end:
            first = self.map.find(this, start, end)
            if first < 0:
                return
            past = self.map.find(other, first, end)
            past = end if past < 0 else past
            yield first, past
            start = past

    def _read(self, offset, length):
        start, end = offset // BLOCK, -(-(offset + length) // BLOCK)
        if not self.dirty or self.map.find(1, start, end) < 0:
            return read_at(self.fd, length, offset)
        data = bytearray((end - start) * BLOCK)
        for held, fd in ((True, self.cache), (False, self.fd)):
            for first, past in self._runs(start, end, held):
                data[(first - start) * BLOCK:(past - start) * BLOCK] = read_at(fd, (past - first) * BLOCK, first * BLOCK)
        skip = offset - start * BLOCK
        return memoryview(data)[skip:skip + length]

    def _write(self, offset, data):
        length = len(data)
        start, end = offset // BLOCK, -(-(offset + length) // BLOCK)
        for block in {start, end - 1}:                  # a partly written block needs its old content first
            partly = offset > block * BLOCK or offset + length < (block + 1) * BLOCK
            if partly and not self.map[block]:
                os.pwrite(self.cache, read_at(self.fd, BLOCK, block * BLOCK), block * BLOCK)
        os.pwrite(self.cache, data, offset)
        self.dirty += (end - start) - self.map.count(1, start, end)
        self.map[start:end] = b'\1' * (end - start)
        self.low, self.high = min(self.low, start), max(self.high, end)

    # ---- what becomes of the cache

    def _copy(self, target, first, past):
        offset, end = first * BLOCK, past * BLOCK
        while offset < end:
            data = os.pread(self.cache, min(end - offset, 8 << 20), offset)
            os.pwrite(target, data, offset)
            offset += len(data)

    def _destage(self, target, lose):
        """Writes blocks of the cache to `target`, less those that `lose` drops. How many were (kept, lost)."""
        which, seed = check_lose(lose)
        chance = random.Random('%d %s' % (seed, self.name))
        kept = 0
        if which != 'all' and self.dirty:
            for first, past in self._runs(self.low, self.high, True):
                if which == 'none':
                    self._copy(target, first, past)
                    kept += past - first
                    continue
                share = chance.choice((0.1, 0.5, 0.9, 0.0, 1.0))        # whole extents and torn ones
                for block in range(first, past):
                    if chance.random() < share:
                        self._copy(target, block, block + 1)
                        kept += 1
        return kept, self.dirty - kept

    def _clean(self):
        if self.dirty:
            self.map[self.low:self.high] = bytes(self.high - self.low)
            os.ftruncate(self.cache, 0)
            os.ftruncate(self.cache, self.size)
        self.dirty, self.low, self.high = 0, len(self.map), 0

    def power_off(self, lose):
        """The power goes: what was not flushed is kept or lost as `lose` says. What happened, in words."""
        with self.lock:
            self.on = False
            kept, lost = self._destage(self.fd, lose)
            self._clean()
        return '%s lost %d KiB of unflushed writes, kept %d' % (self.name, lost * BLOCK >> 10, kept * BLOCK >> 10)

    def power_on(self):
        with self.lock:
            self.on, self.gone, self.free_at, self.armed = True, False, 0.0, []

    def snap(self, path, lose):
        """A sparse copy of what the image would be after a power cut now."""
        with self.lock, open(path, 'wb') as out:
            out.truncate(self.size)
            offset = 0
            while True:
                try:
                    start = os.lseek(self.fd, offset, os.SEEK_DATA)
                except OSError:                         # no data behind
                    break
                offset = os.lseek(self.fd, start, os.SEEK_HOLE)
                while start < offset:
                    data = os.pread(self.fd, min(offset - start, 8 << 20), start)
                    os.pwrite(out.fileno(), data, start)
                    start += len(data)
            self._destage(out.fileno(), lose)
