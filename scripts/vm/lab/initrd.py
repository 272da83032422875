"""Puts the guest's first file system together: busybox, a few modules, and our two stages of init (guest/)."""
import glob
import os
import shlex

from .common import CACHE

GUEST = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'guest')
EARLY = 'virtio_pci virtio_console 9pnet_virtio 9p overlay'.split()          # needed to reach the host's root
LATE = 'virtio_blk xhci_pci sd_mod usb_storage fuse exfat loop ext4'.split()   # inserted meanwhile


class Cpio:
    """An archive in the format that the kernel unpacks at boot (newc)."""

    def __init__(self):
        self.data, self.inode, self.directories = bytearray(), 0, set()

    def _entry(self, name, mode, data=b'', major=0, minor=0):
        self.inode += 1
        name = name.encode() + b'\0'
        fields = (self.inode, mode, 0, 0, 1, 0, len(data), 0, 0, major, minor, len(name), 0)
        self.data += b'070701' + b''.join(b'%08X' % field for field in fields) + name
        self.data += b'\0' * (-len(self.data) % 4) + data
        self.data += b'\0' * (-len(self.data) % 4)

    def mkdir(self, path):
        path = path.strip('/')
        if path and path not in self.directories:
            self.mkdir(os.path.dirname(path))
            self.directories.add(path)
            self._entry(path, 0o40755)

    def add(self, path, data, mode=0o644):
        self.mkdir(os.path.dirname(path))
        self._entry(path.strip('/'), 0o100000 | mode, data if isinstance(data, bytes) else data.encode())

    def copy(self, path, source, mode=0o644):
        with open(source, 'rb') as file:
            self.add(path, file.read(), mode)

    def done(self):
        self._entry('dev/console', 0o20600, b'', 5, 1)
        self._entry('TRAILER!!!', 0)
        return bytes(self.data)


def module_chain(modules, names):
    """Paths, relative to `modules`, of what to insert for `names`, dependencies first."""
    needs, by_name = {}, {}
    with open(modules + '/modules.dep') as file:
        for line in file:
            path, depends = line.rstrip('\n').split(':')
            needs[path] = depends.split()
            by_name[os.path.basename(path).split('.ko')[0].replace('-', '_')] = path
    chain = []

    def walk(path):
        for other in reversed(needs[path]):
            walk(other)
        if path not in chain:
            chain.append(path)
    for name in names:
        if name in by_name:                     # otherwise it is built in
            walk(by_name[name])
    return chain


def base(kernel):
    """What is the same for all guests of a kernel."""
    modules = '%s/extra/usr/lib/modules/%s' % (CACHE, os.path.basename(kernel))
    cpio, seen = Cpio(), set()
    cpio.copy('init', GUEST + '/stage1.sh', 0o755)
    cpio.copy('bin/busybox', glob.glob(CACHE + '/extra/usr/*bin/busybox')[0], 0o755)
    for part, names in (('early', EARLY), ('late', LATE)):
        chain = [path for path in module_chain(modules, names) if path not in seen]
        seen.update(chain)
        for path in chain:
            cpio.copy('mods/' + os.path.basename(path), os.path.join(modules, path))
        cpio.add('mods/' + part, ' '.join(os.path.basename(path) for path in chain))
    return cpio.done()


def build(first, job):
    """The whole initrd: `first` from base(), and what this boot is to do (`job`: variables for the shell)."""
    cpio = Cpio()
    cpio.copy('vm/init', GUEST + '/stage2.sh', 0o755)
    cpio.mkdir('vm/run')
    cpio.copy('vm/lab', GUEST + '/lab.sh', 0o755)
    cpio.copy('vm/nas', GUEST + '/nas.sh', 0o755)
    cpio.add('vm/job', ''.join('export %s=%s\n' % (name, shlex.quote(value)) for name, value in job.items()))
    return first + cpio.done()
