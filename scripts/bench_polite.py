#!/usr/bin/env python3
"""Whether a film stutters while a flush writes to the drive that it is read from.

    scripts/bench_polite.py [--ferryfs PATH] [--fs ext4,exfat] [--rates 8,40] [--mib 256]

The drive is simulated: a disk that serves one request after another at 100 MB/s, and needs 8 ms to
move its head to another place. It takes up to `--depth` requests at a time, and serves these in the
order in which they came: 32 as a disk with SATA or UAS, 1 as one with usb-storage. What it does not
take waits in a queue as mq-deadline keeps it: batches of up to 16 requests of up to 512 KiB, in the
order of their places, reads first, writes after two batches of reads. All of this is a file of a
FUSE file system in this program, in memory, under a loop device. The file system on it is ext4, or
exFAT by exfat-fuse. I/O priorities do not reach it.

The player reads a file in blocks of 128 KiB, as a film of so many MB/s, two seconds ahead. A block
that is not there when it is due is late, and the film stops until it is (a stall). Meanwhile so
many MiB are written to the drive: by an automatic flush as it is by default, one with
`--no-polite`, or `rsync` and `sync -f`. Needs root, rsync, e2fsprogs, exfatprogs and exfat-fuse,
and 3 GiB of memory. Prints rows of a table in Markdown. Measure with a release build.
"""
import argparse
import ctypes
import json
import mmap
import os
import queue
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time

MIB = 1 << 20
BLOCK = 128 << 10
AHEAD = 2.0
READ, WRITE = 'read', 'write'


def run(*words):
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        sys.exit('%s: exit code %d: %s' % (' '.join(words), done.returncode, done.stdout))
    return done.stdout.strip()


# ---- the disk

class Queue:
    """The requests that wait, and which of them is served next."""
    BATCH, STARVED = 16, 2

    def __init__(self):
        self.waiting = {READ: [], WRITE: []}
        self.lock = threading.Condition()
        self.kind, self.left, self.starved = READ, 0, 0

    def add(self, kind, request):
        with self.lock:
            self.waiting[kind].append(request)
            self.lock.notify()

    def next(self, head):
        with self.lock:
            while not (self.waiting[READ] or self.waiting[WRITE]):
                self.lock.wait()
            if not self.left or not self.waiting[self.kind]:
                self.turn()
            self.left -= 1
            requests = self.waiting[self.kind]
            # The next one in this direction, or else the first.
            beyond = [request for request in requests if request[0] >= head]
            request = min(beyond or requests)
            requests.remove(request)
            return self.kind, request

    def turn(self):
        reads, writes = self.waiting[READ], self.waiting[WRITE]
        if reads and (not writes or self.starved < self.STARVED):
            self.kind, self.starved = READ, self.starved + 1 if writes else 0
        else:
            self.kind, self.starved = WRITE, 0
        self.left = self.BATCH


class Disk:
    """Serves the requests of the kernel for the one file of a FUSE file system, whose root it is."""

    def __init__(self, fuse, size, speed, seek, depth):
        self.fuse, self.size, self.speed, self.seek = fuse, size, speed, seek
        self.bytes = mmap.mmap(-1, size)
        self.queue = Queue()
        self.taken, self.slots = queue.Queue(), threading.Semaphore(depth)

    def serve(self):
        threading.Thread(target=self.take, daemon=True).start()
        threading.Thread(target=self.spin, daemon=True).start()
        while True:
            try:
                data = os.read(self.fuse, MIB + 4096)
            except OSError:
                return
            opcode, unique, node = struct.unpack_from('<IQQ', data, 4)
            self.dispatch(opcode, unique, data)

    def reply(self, unique, *parts, error=0):
        length = 16 + sum(len(part) for part in parts)
        os.writev(self.fuse, [struct.pack('<IiQ', length, -error, unique), *parts])

    def attributes(self):
        return struct.pack('<QQQQQQIIIIIIIIII', 1, self.size, self.size // 512, 0, 0, 0, 0, 0, 0,
                           0o100600, 1, 0, 0, 0, 4096, 0)

    def dispatch(self, opcode, unique, data):
        if opcode in (2, 36, 42):  # FORGET, INTERRUPT, BATCH_FORGET
            return
        if opcode == 26:  # INIT
            _, _, ahead, flags = struct.unpack_from('<IIII', data, 40)
            flags &= 1 | 1 << 5 | 1 << 15 | 1 << 22  # ASYNC_READ, BIG_WRITES, ASYNC_DIO, MAX_PAGES
            self.reply(unique, struct.pack('<IIIIHHIIHHII24x', 7, 31, ahead, flags, 1024, 1023, MIB, 1,
                                           256, 0, 0, 0))
        elif opcode in (3, 4):  # GETATTR, SETATTR
            self.reply(unique, struct.pack('<QII', 3600, 0, 0), self.attributes())
        elif opcode == 14:  # OPEN
            self.reply(unique, struct.pack('<QII', 1, 0, 0))
        elif opcode == 15:  # READ
            _, offset, size = struct.unpack_from('<QQI', data, 40)
            self.queue.add(READ, (offset, size, unique, None))
        elif opcode == 16:  # WRITE
            _, offset, size = struct.unpack_from('<QQI', data, 40)
            self.queue.add(WRITE, (offset, size, unique, data[80:80 + size]))
        elif opcode in (18, 20, 25, 38):  # RELEASE, FSYNC, FLUSH, DESTROY
            self.reply(unique)
        else:
            self.reply(unique, error=38)

    def take(self):
        head = 0
        while True:
            self.slots.acquire()
            kind, request = self.queue.next(head)
            head = request[0] + request[1]
            self.taken.put((kind, request))

    def spin(self):
        head, free = 0, time.monotonic()
        while True:
            kind, (offset, size, unique, data) = self.taken.get()
            cost = size / self.speed + (self.seek if offset != head else 0)
            free = max(free, time.monotonic()) + cost
            time.sleep(max(0, free - time.monotonic()))
            head = offset + size
            self.slots.release()
            if kind == READ:
                self.reply(unique, memoryview(self.bytes)[offset:offset + size])
            else:
                self.bytes[offset:offset + size] = data
                self.reply(unique, struct.pack('<II', size, 0))


class Drive:
    """A file system on the simulated disk."""

    def __init__(self, place, fs, size, speed, seek, depth, wbt):
        self.file, self.mount, self.fs = place + '/disk', place + '/drive', fs
        open(self.file, 'w').close()
        os.makedirs(self.mount)
        fuse = os.open('/dev/fuse', os.O_RDWR)
        libc = ctypes.CDLL(None, use_errno=True)
        options = b'fd=%d,rootmode=100600,user_id=0,group_id=0,max_read=%d' % (fuse, MIB)
        if libc.mount(b'disk', self.file.encode(), b'fuse', 0, options):
            sys.exit('mount: ' + os.strerror(ctypes.get_errno()))
        self.server = os.fork()
        if self.server == 0:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            try:
                Disk(fuse, size, speed, seek, depth).serve()
            finally:
                os._exit(0)
        os.close(fuse)
        self.device = run('losetup', '--find', '--show', '--direct-io=on', self.file)
        for name, value in (('rotational', 1), ('max_sectors_kb', 512), ('read_ahead_kb', 128),
                            ('wbt_lat_usec', wbt)):
            with open('/sys/block/%s/queue/%s' % (os.path.basename(self.device), name), 'w') as file:
                file.write(str(value))
        if fs == 'ext4':
            run('mkfs.ext4', '-q', '-E', 'lazy_itable_init=0,lazy_journal_init=0,nodiscard', self.device)
        else:
            run('mkfs.exfat', self.device)
        self.attach()

    def attach(self):
        if self.fs == 'ext4':
            run('mount', self.device, self.mount)
        else:
            run('mount.exfat-fuse', self.device, self.mount)

    def detach(self):
        run('umount', self.mount)
        # exfat-fuse ends a moment later, and with it what the kernel has in memory of the device.
        while self.is_in_use():
            time.sleep(0.1)

    def is_in_use(self):
        try:
            os.close(os.open(self.device, os.O_RDWR | os.O_EXCL))
            return False
        except OSError:
            return True

    def end(self):
        subprocess.run(('umount', '-l', self.mount), stderr=subprocess.DEVNULL)
        time.sleep(0.5)
        subprocess.run(('losetup', '-d', self.device))
        subprocess.run(('umount', '-l', self.file))
        os.kill(self.server, signal.SIGKILL)
        os.waitpid(self.server, 0)


# ---- the player

class Player(threading.Thread):
    """Plays a film until it is told to stop."""

    def __init__(self, film, rate):
        super().__init__()
        self.film, self.rate = film, rate
        self.stop, self.blocks, self.late, self.stall, self.read = False, 0, 0, 0.0, 0.0
        # Before it was told to stop: a longer film is needed.
        self.is_over = False

    def run(self):
        with open(self.film, 'rb', buffering=0) as film:
            begun = time.monotonic() + AHEAD
            while not self.stop:
                due = begun + self.blocks * BLOCK / self.rate
                time.sleep(max(0, due - AHEAD - time.monotonic()))
                asked = time.monotonic()
                if not film.read(BLOCK):
                    self.is_over = True
                    return
                now = time.monotonic()
                self.read = max(self.read, now - asked)
                if now > due:
                    self.late += 1
                    self.stall = max(self.stall, now - due)
                    # The film stops, and goes on from here.
                    begun += now - due
                self.blocks += 1


def fill(path, mib):
    """Bytes that no disk and no hash takes for zeros."""
    some = os.urandom(MIB)
    with open(path, 'wb') as file:
        for at in range(mib):
            file.write(at.to_bytes(8, 'little') + some[8:])


# ---- what is measured

class Bench:
    def __init__(self, options, drive, place, source):
        self.options, self.drive, self.place, self.source = options, drive, place, source
        self.mnt = place + '/mnt'
        os.makedirs(self.mnt, exist_ok=True)
        self.count = 0

    def status(self):
        return json.loads(run(self.options.ferryfs, 'status', '--json', self.mnt))

    def measure(self, way, rate, through_mount):
        """Returns the player, and the seconds that the writing took."""
        self.count += 1
        self.drive.detach()
        self.drive.attach()
        is_mounted = through_mount or way in ('polite', 'not polite')
        if is_mounted:
            words = [self.options.ferryfs, 'mount', '--cache', '%s/cache%d' % (self.place, self.count),
                     '--flush-after', '1s', '--max-age', '1h', self.drive.mount, self.mnt]
            run(*words, *(['--no-polite'] if way == 'not polite' else []))
        try:
            film = (self.mnt if through_mount else self.drive.mount) + '/film'
            player = Player(film, rate * 1_000_000)
            player.start()
            time.sleep(4)
            seconds = self.write(way)
            # What the kernel writes later counts, too.
            time.sleep(4)
            player.stop = True
            player.join()
        finally:
            if is_mounted:
                run(self.options.ferryfs, 'unmount', self.mnt)
        return player, seconds

    def write(self, way):
        target = 'new%d' % self.count
        if way == 'nothing':
            time.sleep(10)
            return 0
        began = time.monotonic()
        if way == 'rsync':
            run('rsync', '-a', '--whole-file', self.source, self.drive.mount + '/' + target)
            run('sync', '-f', self.drive.mount)
            os.remove(self.drive.mount + '/' + target)
            return time.monotonic() - began
        run('cp', self.source, self.mnt + '/' + target)
        while not self.status()['batch_in_progress']:
            time.sleep(0.05)
        began = time.monotonic()
        while self.status()['dirty_files']:
            time.sleep(0.1)
        return time.monotonic() - began


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--ferryfs', default='target/release/ferryfs')
    parser.add_argument('--dir', default=None, help='where the cache is, on a fast disk')
    parser.add_argument('--fs', default='ext4,exfat')
    parser.add_argument('--rates', default='8,40', help='of the film, in MB/s')
    parser.add_argument('--ways', default='nothing,not polite,polite,rsync')
    parser.add_argument('--places', default='mount,drive', help='where the film is read')
    parser.add_argument('--mib', type=int, default=256, help='what is written')
    parser.add_argument('--film', type=int, default=2048, help='the length of the film in MiB')
    parser.add_argument('--speed', type=float, default=100, help='of the disk, in MB/s')
    parser.add_argument('--seek', type=float, default=8, help='in milliseconds')
    parser.add_argument('--depth', type=int, default=32, help='how many requests the disk takes')
    parser.add_argument('--wbt', type=int, default=75000, help="the kernel's wbt_lat_usec; 0 for none")
    options = parser.parse_args()
    if not os.environ.get('BENCH_ALONE'):
        # Mounts of its own, which nothing else on the machine can keep in use.
        os.environ['BENCH_ALONE'] = 'yes'
        os.execvp('unshare', ['unshare', '--mount', sys.executable, *sys.argv])
    options.ferryfs = os.path.abspath(options.ferryfs)
    print('| file system, film, read | written by | late blocks | longest stall | longest read | seconds |')
    print('|---|---|---|---|---|---|')
    for fs in options.fs.split(','):
        with tempfile.TemporaryDirectory(prefix='ferryfs-lab.', dir=options.dir) as place:
            source = place + '/source'
            fill(source, options.mib)
            size = (options.film + 12 * options.mib + 512) * MIB
            drive = Drive(place, fs, size, options.speed * 1e6, options.seek / 1000,
                          options.depth, options.wbt)
            try:
                fill(drive.mount + '/film', options.film)
                run('sync', '-f', drive.mount)
                bench = Bench(options, drive, place, source)
                for rate in (int(rate) for rate in options.rates.split(',')):
                    for through_mount in (where == 'mount' for where in options.places.split(',')):
                        for way in options.ways.split(','):
                            if way == 'rsync' and through_mount:
                                continue
                            player, seconds = bench.measure(way, rate, through_mount)
                            print('| %s, %d MB/s, %s | %s | %d of %d%s | %.0f ms | %.0f ms | %s |' % (
                                fs, rate, 'mount' if through_mount else 'drive', way, player.late,
                                player.blocks, ' (film over)' if player.is_over else '',
                                player.stall * 1000, player.read * 1000,
                                '%.1f' % seconds if seconds else ''), flush=True)
            finally:
                subprocess.run(('umount', '-l', place + '/mnt'), stderr=subprocess.DEVNULL)
                drive.end()


main()
