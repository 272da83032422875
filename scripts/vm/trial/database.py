"""SQLite databases that a program keeps open all the time: what of them is in the mount, and on the drive."""
import os
import shutil
import sqlite3
import tempfile

from . import world

# The names of theirs begin so, at the top. They are compared here, not by check.
PREFIX = 'live-'
MODES = ('wal', 'delete')


class Database:
    """A program that adds rows 1, 2, 3... and remembers how many were acknowledged."""

    def __init__(self, mode):
        self.mode, self.name, self.acknowledged, self.program = mode, '%s%s.db' % (PREFIX, mode), 0, None
        self.flushed = 0                # acknowledged before the last flush that was done had begun

    def open(self):
        """Opens it, or opens it again after the daemon has died."""
        if self.program:
            self.program.close()
        self.program = sqlite3.connect(os.path.join(world.LAB, self.name), isolation_level=None, timeout=60)
        self.program.execute('PRAGMA journal_mode=%s' % self.mode)
        self.program.execute('CREATE TABLE IF NOT EXISTS t(n INTEGER PRIMARY KEY, text)')

    def add(self):
        """Adds a row."""
        self.program.execute('INSERT INTO t VALUES(?, ?)', (self.acknowledged + 1, 'x' * (self.acknowledged * 977 % 6000)))
        self.acknowledged += 1

    def check(self, findings, directory, least, when):
        """In a copy of what is in a directory: whole, and rows 1 to `least` at least, without a gap."""
        with tempfile.TemporaryDirectory() as away:
            for tail in ('', '-wal', '-journal'):
                try:
                    shutil.copy(os.path.join(directory, self.name + tail), away)
                except FileNotFoundError:
                    pass
            if least == 0 and self.name not in os.listdir(away):
                return
            try:
                copy = sqlite3.connect(os.path.join(away, self.name))
                said = copy.execute('PRAGMA integrity_check').fetchall()
                if said != [('ok',)]:
                    findings.add('torn', when, '%s: %s' % (self.name, said))
                rows, last = copy.execute('SELECT count(*), coalesce(max(n), 0) FROM t').fetchone()
                copy.close()
            except sqlite3.DatabaseError as error:
                # Before its first flush the drive may have it as it was made, without the table.
                if least or 'no such table' not in str(error):
                    findings.add('torn', when, '%s: %s' % (self.name, error))
                return
            if rows != last or not least <= last <= self.acknowledged:
                findings.add('lost', when, '%s: %d rows up to %d; acknowledged %d to %d' % (
                    self.name, rows, last, least, self.acknowledged))


class Databases:
    """One of each mode."""

    def __init__(self):
        self.all = [Database(mode) for mode in MODES]
        self.open()

    def open(self):
        for database in self.all:
            database.open()

    def add(self, rows=1):
        for database in self.all:
            for _ in range(rows):
                database.add()

    def state(self):
        """What is acknowledged now, for `flushed`."""
        return [database.acknowledged for database in self.all]

    def flushed(self, state):
        """A flush is done that began at `state`."""
        for database, acknowledged in zip(self.all, state):
            database.flushed = acknowledged

    def check_drive(self, findings, when):
        for database in self.all:
            database.check(findings, world.DRIVE, database.flushed, when)

    def check_mount(self, findings, when):
        for database in self.all:
            database.check(findings, world.LAB, database.acknowledged, when)
