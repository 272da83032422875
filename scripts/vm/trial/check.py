"""A tree as it is found, compared with what must be there. What does not fit is a finding."""
import json
import os

from . import content, database, lab
from .history import Tree

OURS = ('.ferryfs', 'LOST+FOUND')
TEMPORARY = '.new~'


class Found:
    """What stands below a directory: `tree` of the whole files, and what is not whole, path -> why."""

    def __init__(self, root):
        self.tree, self.torn, self.unreadable = Tree(), {}, {}
        self._walk(root, '')

    def _walk(self, root, below):
        try:
            entries = sorted(os.scandir(os.path.join(root, below)), key=lambda entry: entry.name)
        except OSError as error:
            self.unreadable[below + '/'] = error.strerror
            return
        for entry in entries:
            path = os.path.join(below, entry.name)
            if path in OURS or path.startswith(database.PREFIX):
                continue
            try:
                if entry.is_dir(follow_symlinks=False):
                    self.tree.dirs.add(path)
                    self._walk(root, path)
                else:
                    self._file(root, path)
            except OSError as error:
                self.unreadable[path] = error.strerror

    def _file(self, root, path):
        with open(os.path.join(root, path), 'rb', buffering=0) as file:
            data = file.readall()
        version, why = content.read(data)
        if version:
            self.tree.files[path] = version
        else:
            self.torn[path] = why

    def temporary(self):
        """Files that a writer was about to rename when it was stopped."""
        return [path for path in list(self.torn) + list(self.tree.files) if os.path.basename(path) == TEMPORARY]


class Findings:
    """Written to the share as they are made: the host counts them. `kind` is 'lost', 'torn', 'broken' (another promise), or
    'note' (a fact, no failure)."""

    def __init__(self, scenario, seed):
        self.scenario, self.seed, self.round, self.bad = scenario, seed, 0, 0

    def add(self, kind, when, what):
        if kind != 'note':
            self.bad += 1
            print('%s seed %d round %d: %s: %s: %s' % (self.scenario, self.seed, self.round, kind.upper(), when, what), flush=True)
        line = dict(scenario=self.scenario, seed=self.seed, round=self.round, kind=kind, when=when, what=what)
        with open(os.path.join(lab.SHARE, 'findings.jsonl'), 'a') as file:
            file.write(json.dumps(line) + '\n')

    def note(self, when, what):
        self.add('note', when, what)

    # ---- comparisons

    def whole(self, found, when):
        """No file under a final name is partial."""
        for path, why in sorted(found.torn.items()):
            self.add('torn', when, '%s: %s' % (path, why))
        for path, why in sorted(found.unreadable.items()):
            self.note(when, '%s cannot be read: %s' % (path, why))

    def same(self, found, tree, when):
        """It is exactly `tree`."""
        for path, why in sorted(found.unreadable.items()):
            self.add('lost', when, '%s cannot be read: %s' % (path, why))
        for path, why in sorted(found.torn.items()):
            self.add('torn', when, '%s: %s' % (path, why))
        for path, version in sorted(tree.files.items()):
            here = found.tree.files.get(path)
            if here is None and path not in found.torn and path not in found.unreadable:
                elsewhere = [p for p, v in found.tree.files.items() if v[0] == version[0]]
                self.add('lost', when, '%s (%s v%d) is absent%s' % (path, *version, '; it is at %s' % elsewhere if elsewhere else ''))
            elif here and here != version:
                self.add('lost', when, '%s is %s v%d, not %s v%d' % (path, *here, *version))
        for path in sorted(set(found.tree.files) - set(tree.files)):
            self.add('broken', when, '%s (%s v%d) should not be there' % (path, *found.tree.files[path]))
        for path in sorted(tree.dirs - found.tree.dirs):
            self.add('lost', when, '%s/ is absent' % path)
        for path in sorted(found.tree.dirs - tree.dirs):
            self.add('broken', when, '%s/ should not be there' % path)

    def one_of(self, found, trees, when):
        """It is one of `trees`: all of a batch or none of it."""
        if found.torn or found.unreadable or not any(found.tree == tree for tree in trees):
            near = min(trees, key=lambda tree: len(set(tree.files.items()) ^ set(found.tree.files.items())))
            here, there = set(found.tree.files.items()), set(near.files.items())
            self.add('broken', when, 'the tree of no cut: besides %s, without %s; directories %s; torn %s, unreadable %s' % (
                sorted(here - there), sorted(there - here), sorted(found.tree.dirs ^ near.dirs), found.torn, found.unreadable))

    def survived(self, found, history, when):
        """After a power cut: everything that was acknowledged as durable is there, whole."""
        for path, why in sorted(found.torn.items()):
            if history.unsynced(path):
                self.note(when, '%s, not synced: %s' % (path, why))
            else:
                self.add('torn', when, '%s: %s' % (path, why))
        for path, why in sorted(found.unreadable.items()):
            self.add('lost', when, '%s cannot be read: %s' % (path, why))
        places = {}
        for path, (ident, version) in found.tree.files.items():
            places.setdefault(ident, []).append((path, version))
        for ident in sorted(history.idents() | set(places)):
            self._survived(ident, places.get(ident, []), found, history, when)
        for path in history.dirs_lost(found.tree.dirs):
            self.add('lost', when, '%s/ is absent' % path)

    def _survived(self, ident, here, found, history, when):
        allowed = history.allowed(ident)
        if len(here) > 1:
            self.add('broken', when, '%s is there %d times: %s' % (ident, len(here), here))
        elif here and here[0] not in allowed:
            self.add('lost', when, '%s is at %s v%d; allowed: %s' % (ident, *here[0], sorted(map(str, allowed))))
        elif not here and None not in allowed and not any(place[0] in found.torn for place in allowed):
            self.add('lost', when, '%s is absent; allowed: %s' % (ident, sorted(map(str, allowed))))
