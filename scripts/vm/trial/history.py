"""Operations on a tree, the log of them, and what a power cut may leave.

An operation is a list: ['write', path, ident, version, length] (a file is made or rewritten in place), ['replace', ...]
(the same by way of a temporary file and a rename), ['fsync', path], ['rename', from, to], ['remove', path], ['mkdir', path],
['rmdir', path].
"""
import json
import os
import time

# An operation that is older than this when the power goes must have survived, without an fsync too.
# The promise is 5 s; an emulated machine takes its time.
SETTLED = 40.0


class Tree:
    """Which files (path -> (ident, version)) and which directories there are."""

    def __init__(self, files=None, dirs=None):
        self.files, self.dirs = dict(files or {}), set(dirs or ())

    def copy(self):
        return Tree(self.files, self.dirs)

    def __eq__(self, other):
        return self.files == other.files and self.dirs == other.dirs

    def apply(self, op):
        what, path = op[0], op[1] if len(op) > 1 else None
        if what in ('write', 'replace'):
            self.files[path] = (op[2], op[3])
        elif what == 'remove':
            del self.files[path]
        elif what == 'mkdir':
            self.dirs.add(path)
        elif what == 'rmdir':
            self.dirs.remove(path)
        elif what == 'rename' and path in self.files:
            self.files[op[2]] = self.files.pop(path)
        elif what == 'rename':
            self.files = {moved(p, path, op[2]): v for p, v in self.files.items()}
            self.dirs = {moved(p, path, op[2]) for p in self.dirs}


def moved(path, old, new):
    return new + path[len(old):] if path == old or path.startswith(old + '/') else path


class Log:
    """Each operation before it is begun and after it was acknowledged. It lies in the share: when a line is written, it is
    on the host, whatever becomes of the guest."""

    def __init__(self, path, base=None):
        if base is None:
            self.fd = os.open(path, os.O_WRONLY | os.O_APPEND)
            return
        self.fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        self._say(dict(files=base.files, dirs=sorted(base.dirs)))

    def _say(self, value):
        os.write(self.fd, json.dumps(value).encode() + b'\n')

    def begin(self, op):
        self._say(dict(begin=op))

    def done(self):
        self._say(dict(done=time.monotonic()))

    def flush(self, state):
        """'begun', or 'done': everything up to where it was begun is on the drive."""
        self._say(dict(flush=state))


class History:
    """A log, read: the tree after each operation, and from which on it must have survived.

    `trees[n]` is the tree after the first n operations; the last one is with the operation that was under way, if any."""

    def __init__(self, path):
        with open(path) as file:
            # A last line may be cut short: its operation was under way, or its acknowledgement was
            # not seen by anybody.
            lines = [json.loads(line) for line in file if line.endswith('\n')]
        base = lines[0]
        tree = Tree({p: tuple(v) for p, v in base['files'].items()}, base['dirs'])
        self.trees, self.ops, self.acknowledged = [tree], [], 0
        times, begun, self.flushed = [], None, 0
        # The tree at the cut of the last flush, unless operations went on beside it.
        self.cut = tree
        for line in lines[1:]:
            if 'begin' in line:
                self.ops.append(line['begin'])
                tree = tree.copy()
                tree.apply(line['begin'])
                self.trees.append(tree)
            elif 'done' in line:
                self.acknowledged = len(self.ops)
                times.append((line['done'], len(self.ops)))
            elif line['flush'] == 'begun':
                begun, self.cut = len(self.ops), tree
            else:
                self.flushed = begun
        if self.ops and begun is not None and begun < len(self.ops):
            self.cut = None
        last = times[-1][0] if times else 0.0
        settled = max([n for at, n in times if at < last - SETTLED], default=0)
        self.floor = max(settled, self.flushed)

    def floor_of(self, ident):
        """From which tree on file `ident` must have survived."""
        floor = self.floor
        for n, op in enumerate(self.ops[:self.acknowledged]):
            if op[0] == 'fsync' and self.trees[n].files.get(op[1], ('',))[0] == ident:
                floor = max(floor, n)
        return floor

    def allowed(self, ident):
        """Where file `ident` may be: a set of (path, version), and None if it may be absent."""
        places = set()
        for tree in self.trees[self.floor_of(ident):]:
            here = [(path, version) for path, (who, version) in tree.files.items() if who == ident]
            places.update(here or [None])
        return places

    def idents(self):
        return {ident for tree in self.trees for ident, _ in tree.files.values()}

    def unsynced(self, path):
        """Whether the file at `path` may be half of what it was to be: it was written in place, and no fsync has covered it."""
        for n, op in enumerate(self.ops):
            if op[0] == 'write' and n >= self.floor_of(op[2]):
                later = {p for tree in self.trees[n:] for p, (who, _) in tree.files.items() if who == op[2]}
                if path in later:
                    return True
        return False

    def dirs_lost(self, dirs):
        """Directories that must be there by every tree since the floor, and are not in `dirs`."""
        must = set.intersection(*[tree.dirs for tree in self.trees[self.floor:]])
        return sorted(must - set(dirs))
