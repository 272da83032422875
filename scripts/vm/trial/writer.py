"""Random operations on the mount, each logged before and after. What is done is a function of the seed."""
import errno
import os
import random

from . import content
from .history import Tree

# Lengths of files: mostly small, some of many clusters.
LENGTHS = (128, 700, 4096, 4097, 9000, 30000, 70000, 200000)


class Writer:
    """`tree` is what the mount must show. `sync` is how often, of ten, what was written is fsynced at once."""

    def __init__(self, root, tree, log, seed, sync=5):
        self.root, self.tree, self.log, self.sync = root, tree, log, sync
        self.random = random.Random(seed)
        self.serial = 0
        self.prefix = 'f%d' % (seed % 100000)

    # ---- one operation, with its log

    def do(self, op):
        self.log.begin(op)
        getattr(self, '_' + op[0])(*op[1:])
        self.log.done()
        self.tree.apply(op)

    def _at(self, path):
        return os.path.join(self.root, path)

    def _put(self, path, data, sync):
        fd = os.open(self._at(path), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view):]
            if sync:
                os.fsync(fd)
        finally:
            os.close(fd)

    def _write(self, path, ident, version, length):
        self._put(path, content.make(ident, version, length), False)

    def _replace(self, path, ident, version, length):
        temporary = os.path.join(os.path.dirname(path), '.new~')
        self._put(temporary, content.make(ident, version, length), True)
        os.rename(self._at(temporary), self._at(path))

    def _fsync(self, path):
        try:
            fd = os.open(self._at(path), os.O_RDONLY)
        except OSError as error:
            if error.errno == errno.ENOMEDIUM:          # the drive is away, and only it has the bytes: as promised
                return
            raise
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def _rename(self, old, new):
        os.rename(self._at(old), self._at(new))

    def _remove(self, path):
        os.unlink(self._at(path))

    def _mkdir(self, path):
        os.mkdir(self._at(path))

    def _rmdir(self, path):
        os.rmdir(self._at(path))

    # ---- what to do next

    def run(self, count, stop=None):
        """About `count` operations, or until `stop` is set."""
        for _ in range(count):
            if stop is not None and stop.is_set():
                return
            self.step()

    def step(self):
        pick = self.random.choices(
            (self.new, self.rewrite, self.replace, self.rename, self.rename_over, self.swap, self.remove, self.new_dir, self.move_dir,
             self.remove_dir, self.change_case), (18, 14, 14, 14, 8, 5, 8, 5, 7, 3, 4))[0]
        pick()

    def name(self):
        """A name that is not taken: short, long, or of other letters."""
        self.serial += 1
        tail = self.random.choice(('', '', '', '-' + 'long name ' * 8, '-größe-名前', '.JSON'))
        return '%s-%d%s' % (self.prefix, self.serial, tail.rstrip())

    def some_file(self):
        return self.random.choice(sorted(self.tree.files)) if self.tree.files else None

    def some_dir(self):
        return self.random.choice(['', ''] + sorted(self.tree.dirs))

    def place(self):
        return os.path.join(self.some_dir(), self.name())

    def synced(self, op):
        self.do(op)
        if self.random.randrange(10) < self.sync:
            self.do(['fsync', op[2] if op[0] == 'rename' else op[1]])

    def new(self):
        path = self.place()
        self.synced(['write', path, 'n%d-%s' % (self.serial, self.prefix), 1, self.random.choice(LENGTHS)])

    def again(self, what):
        path = self.some_file()
        if path:
            ident, version = self.tree.files[path]
            self.synced([what, path, ident, version + 1, self.random.choice(LENGTHS)])

    def rewrite(self):
        self.again('write')

    def replace(self):
        self.again('replace')

    def rename(self):
        path = self.some_file()
        if path:
            self.synced(['rename', path, self.place()])

    def rename_over(self):
        old, new = self.some_file(), self.some_file()
        if old and old != new:
            self.synced(['rename', old, new])

    def swap(self):
        one, other = self.some_file(), self.some_file()
        if one and one != other:
            between = self.place()
            for old, new in ((one, between), (other, one), (between, other)):
                self.do(['rename', old, new])

    def change_case(self):
        path = self.some_file()
        if path:
            head, tail = os.path.split(path)
            new = os.path.join(head, tail.swapcase())
            if new != path and new not in self.tree.files:
                self.synced(['rename', path, new])

    def remove(self):
        path = self.some_file()
        if path and len(self.tree.files) > 12:
            self.do(['remove', path])

    def new_dir(self):
        if len(self.tree.dirs) < 12:
            self.do(['mkdir', self.place()])

    def move_dir(self):
        if self.tree.dirs:
            old = self.random.choice(sorted(self.tree.dirs))
            new = self.place()
            if not (new + '/').startswith(old + '/') and new.count('/') + old.count('/') < 6:
                self.do(['rename', old, new])

    def remove_dir(self):
        """A directory with all that is in it."""
        if len(self.tree.dirs) < 4:
            return
        top = self.random.choice(sorted(self.tree.dirs))
        if sum(path.startswith(top + '/') for path in self.tree.files) > 6:
            return
        for path in sorted(self.tree.files):
            if path.startswith(top + '/'):
                self.do(['remove', path])
        for path in sorted(self.tree.dirs, reverse=True):
            if path == top or path.startswith(top + '/'):
                self.do(['rmdir', path])


def populate(root, seed, files=24):
    """A tree as a drive has it that was filled elsewhere: written straight to `root`, not by way of a cache."""
    chance, tree = random.Random(seed), Tree()
    for n in range(5):
        tree.dirs.add('d%d' % n if n < 3 else 'd%d/s%d' % (n - 3, n))
    for path in sorted(tree.dirs):
        os.mkdir(os.path.join(root, path))
    for n in range(files):
        path = os.path.join(chance.choice([''] + sorted(tree.dirs)), 'old-%d' % n)
        with open(os.path.join(root, path), 'wb') as file:
            file.write(content.make('o%d' % n, 1, chance.choice(LENGTHS)))
        tree.files[path] = ('o%d' % n, 1)
    return tree
