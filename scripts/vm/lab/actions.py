"""What may be asked of a running guest's surroundings, by `lab` in the guest: see guest/lab.sh for the words."""
import json
import os
import shlex
import subprocess
import threading
import time

from .common import LabError, log, number
from .disk import check_lose


class Actions:
    """One action at a time. Counts what really happened: `counts`."""

    def __init__(self, share):
        self.share = share
        self.disks, self.plugged = {}, set()
        self.guest, self.why = None, None
        self.action_lock, self.qmp_lock = threading.RLock(), threading.RLock()
        self.kept = os.path.join(self.share, 'kept')
        self.counts = dict(yanks=0, cuts=0, outages=0, snaps=0)
        self.actions = dict(powercut=self._powercut, yank=self._yank, plug=self._plug, set=self._set, at=self._at,
                            stat=self._stat, snap=self._snap, outage=self._outage,
                            keep=self._keep, spare=self._spare)

    # ---- QEMU's own control connection

    def start_qmp(self, connection):
        self.qmp_file = connection.makefile('rwb')
        self.qmp_file.readline()
        self.qmp('qmp_capabilities')

    def qmp(self, command, **arguments):
        with self.qmp_lock:
            self.qmp_file.write(json.dumps({'execute': command, 'arguments': arguments}).encode() + b'\n')
            self.qmp_file.flush()
            while True:                                 # events in between are not needed
                line = self.qmp_file.readline()
                if not line:
                    raise LabError('QEMU is gone')
                answer = json.loads(line)
                if 'error' in answer:
                    raise LabError('%s: %s' % (command, answer['error']['desc']))
                if 'return' in answer:
                    return answer['return']

    @staticmethod
    def block_node(disk):
        return {'driver': 'nbd', 'node-name': 'n-' + disk.name, 'server': {'type': 'unix', 'path': disk.socket}}

    @staticmethod
    def usb_device(disk):
        return {'driver': 'usb-storage', 'id': 'dev-' + disk.name, 'bus': 'xhci.0', 'drive': 'n-' + disk.name,
                'serial': disk.name, 'removable': 'off', 'write-cache': 'on'}

    # ---- requests

    def serve_guest(self, connection):
        stream = connection.makefile('rwb')
        try:
            for line in stream:
                stream.write(self.answer(line.decode().strip()).encode() + b'\n')
                stream.flush()
        except (OSError, ValueError):                   # the guest is gone
            pass

    def answer(self, line):
        try:
            return 'ok ' + (self.act(line) or '')
        except (LabError, OSError, ValueError, KeyError, IndexError, TypeError, subprocess.SubprocessError) as error:
            log('%s: %s' % (line, error))
            return 'err %s' % error

    def at_write(self, disk, line):
        """The moment of an `at`: the write has arrived at the disk and is not acknowledged."""
        if line.startswith('yank'):                     # QEMU waits for this write while it removes the drive
            with disk.lock:
                disk.gone = True
            threading.Thread(target=self.answer, args=(line,), daemon=True).start()
        else:
            self.answer(line)

    def act(self, line):
        words = shlex.split(line)
        if words[0] == 'in':
            later = threading.Timer(float(words[1]), self.answer, (shlex.join(words[2:]),))
            later.daemon = True
            later.start()
            return ''
        if words[0] not in self.actions:
            raise LabError('no such action')
        with self.action_lock:
            if self.why:
                raise LabError('the power is off')
            if words[0] == 'at':
                return self._at(words[1], words[2], shlex.join(words[3:]))
            options = dict(word.split('=', 1) for word in words[1:] if '=' in word)
            return self.actions[words[0]](*[word for word in words[1:] if '=' not in word], **options)

    def _powercut(self, lose='all'):
        check_lose(lose)
        for disk in self.disks.values():
            with disk.lock:
                disk.on = False                         # from here on nothing is acknowledged
        self.why = 'powercut'
        self.guest.kill()
        self.guest.wait()
        self.counts['cuts'] += 1
        log('POWER CUT lose=%s: %s' % (lose, '; '.join(disk.power_off(lose) for disk in self.disks.values())))

    def _yank(self, lose='none'):
        disk = self.disks['usb']
        if 'usb' not in self.plugged:
            raise LabError('the drive is not plugged in')
        check_lose(lose)
        with disk.lock:
            disk.gone = True        # what is in flight fails; QEMU's own flush on closing must not count
        self.qmp('device_del', id='dev-usb')
        self._release(disk)
        said = disk.power_off(lose)
        self.plugged.discard('usb')
        self.counts['yanks'] += 1
        disk.snap(os.path.join(self.share, 'usb-at-yank.img'), 'all')       # for _keep
        log('YANK lose=%s: %s' % (lose, said))
        return said

    def _release(self, disk):
        for _ in range(1000):
            try:
                self.qmp('blockdev-del', **{'node-name': 'n-' + disk.name})
                return
            except LabError:
                time.sleep(0.01)
        raise LabError('QEMU keeps the drive')

    def _plug(self):
        disk = self.disks['usb']
        if 'usb' in self.plugged:
            raise LabError('the drive is plugged in')
        disk.power_on()
        self.qmp('blockdev-add', **self.block_node(disk))
        self.qmp('device_add', **self.usb_device(disk))
        self.plugged.add('usb')
        log('PLUG')

    def _set(self, name, rate):
        self.disks[name].rate = number(rate)

    def _at(self, name, count, line):
        disk = self.disks[name]
        with disk.lock:
            if count == 'off':
                disk.armed = []
            else:
                disk.armed = disk.armed + [(disk.writes + int(count), line)]

    def _stat(self, name):
        disk = self.disks[name]
        return json.dumps(dict(writes=disk.writes, flushes=disk.flushes, unflushed=disk.dirty, armed=len(disk.armed),
                               plugged=disk.kind != 'usb' or name in self.plugged))

    def _snap(self, usb, ssd, lose='all'):
        # Both disks. Called at a write to the drive, which waits meanwhile: so the two copies are
        # one instant of it.
        for disk, name in ((self.disks['usb'], usb), (self.disks['ssd'], ssd)):
            disk.snap(os.path.join(self.share, os.path.basename(name)), lose)
        self.counts['snaps'] += 1

    def _keep(self, label):
        """Something was found: the drive as it is and as the last yank left it, for people to look at."""
        os.makedirs(self.kept, exist_ok=True)
        self.disks['usb'].snap(os.path.join(self.kept, label + '-usb-now.img'), 'none')
        self.disks['ssd'].snap(os.path.join(self.kept, label + '-ssd-now.img'), 'none')
        at_yank = os.path.join(self.share, 'usb-at-yank.img')
        if os.path.exists(at_yank):
            os.replace(at_yank, os.path.join(self.kept, label + '-usb-at-yank.img'))

    def _spare(self, name):
        """A copy of a copy, which is going to be changed."""
        os.makedirs(self.kept, exist_ok=True)
        subprocess.run(['cp', '--sparse=always', os.path.join(self.share, os.path.basename(name)), self.kept], check=True)

    def _outage(self):
        self.counts['outages'] += 1
        log('NAS OUTAGE')
