"""A large file of which little changes between flushes: what of it is in the mount, and on the drive.

A flush writes its changed blocks into the file on the drive, and what it has grown by behind them.
Until recovery it may be neither version there, so what is on the drive is looked at afterwards.
"""
import hashlib
import os

from . import world
from .database import PREFIX

NAME = PREFIX + 'large'
SIZE = 9 << 20          # files of 8 MiB and more are patched


class Large:
    """The bytes that were written in the mount, and which of them a flush has carried."""

    def __init__(self, chance):
        self.bytes = bytearray(chance.randbytes(SIZE))
        self.program = os.open(os.path.join(world.LAB, NAME), os.O_CREAT | os.O_RDWR)
        os.pwrite(self.program, self.bytes, 0)
        os.fsync(self.program)
        os.close(self.program)
        self.on_drive = None            # not there yet

    def state(self):
        return hashlib.blake2b(self.bytes).hexdigest()

    def change(self, chance):
        """Some bytes in the middle, and, more often than not, some more at the end."""
        file = os.open(os.path.join(world.LAB, NAME), os.O_RDWR)
        for _ in range(chance.randrange(1, 6)):
            self._write(file, chance.randbytes(chance.randrange(1, 9000)), chance.randrange(len(self.bytes) - 9000))
        if chance.random() < 0.7:
            self._write(file, chance.randbytes(chance.randrange(1, 300000)), len(self.bytes))
        os.close(file)

    def _write(self, file, some, at):
        os.pwrite(file, some, at)
        self.bytes[at:at + len(some)] = some

    def flushed(self, state):
        """A flush is done that began at `state`."""
        self.on_drive = state

    def look(self, findings, directory, states):
        """Notes what of it is in `directory` before recovery, where it may be none of `states`."""
        found, error = self._found(directory)
        is_begun = any(name.endswith('.begun') for _, _, names in os.walk(os.path.join(directory, '.ferryfs/staging'))
                       for name in names)
        findings.note('the large file before recovery', '%s%s' % (
            error or ('absent' if found is None else 'whole' if found in states else 'torn'),
            ', its patch was begun' if is_begun else ''))

    def check(self, findings, directory, states, when):
        """In `directory` it is one of `states`."""
        found, error = self._found(directory)
        if error:
            findings.add('lost', when, '%s cannot be read: %s' % (NAME, error))
        elif found not in states:
            findings.add('torn' if found else 'lost', when, '%s is none of its %d versions' % (NAME, len(states)))

    def _found(self, directory):
        """The state of it in `directory`, `None` if it is absent; and the error of reading it, if there is one."""
        try:
            with open(os.path.join(directory, NAME), 'rb', buffering=0) as file:
                return hashlib.blake2b(file.readall()).hexdigest(), None
        except FileNotFoundError:
            return None, None
        except OSError as error:
            return None, error.strerror
