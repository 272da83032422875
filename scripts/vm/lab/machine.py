"""A QEMU: started with our disks, listened to, killed. What may be done to a running one is in actions.py."""
import ctypes
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

from . import initrd, prepare
from .actions import Actions
from .common import CACHE, LabError, log
from .disk import Disk

MARKER = re.compile(rb'\0(READY|EXIT)(?: (\d+))?\n')
KERNEL_PARAMETERS = ('console=ttyS0 quiet panic=-1 mitigations=off nokaslr no_timer_check tsc=reliable audit=0 '
                     'random.trust_cpu=on')

BOOT_TRIES = 3


def virtualized():
    """Whether KVM can run a stock kernel here: a /dev/kvm without the processor's own flag (nested, PVM) cannot."""
    with open('/proc/cpuinfo') as file:
        flags = re.search(r'^flags.*\b(vmx|svm)\b', file.read(), re.M)
    return bool(flags) and os.access('/dev/kvm', os.R_OK | os.W_OK)


class Machine(Actions):
    """The disks live as long as this; a guest as long as a `boot`.

    `usb` and `ssd` are (image, size if it does not exist yet); `share` is the directory of the host that the guest sees at
    /run/share. After a boot, `why` says how it ended: 'exit', 'powercut', 'timeout' or 'died'.
    """

    def __init__(self, usb, ssd, share, memory='1536M'):
        super().__init__(os.path.abspath(share))
        self.kernel = prepare.kernel()
        if not self.kernel:
            raise LabError('no kernel in %s: prepare it first' % CACHE)
        self.memory = memory
        self.directory = tempfile.mkdtemp(prefix='ferryfs-vm.', dir='/tmp')     # paths of sockets are short
        self.initrd = initrd.base(self.kernel)
        self.boots, self.code, self.ready = 0, None, False
        for name, kind, (path, size) in (('usb', 'usb', usb), ('ssd', 'virtio', ssd)):
            self.disks[name] = Disk(name, path, kind, size, self.directory)
            self.disks[name].on_hit = self.at_write

    def close(self):
        self._kill()
        for disk in self.disks.values():
            disk.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def boot(self, command, timeout):
        """Boots a guest for `command` (of its shell) and waits for the end: its exit code, or None if it had none."""
        for _ in range(BOOT_TRIES):
            code = self._boot(command, timeout)
            if self.ready or self.why != 'died':        # an emulated kernel sometimes panics before it is up
                break
        return code

    def _boot(self, command, timeout):
        self.boots += 1
        self.why, self.code, self.ready, self.plugged = None, None, False, {'usb'}
        sockets = self._listen()
        with open(self.directory + '/initrd', 'wb') as file:
            file.write(initrd.build(self.initrd, dict(VM_COMMAND=command, VM_DISKS=' '.join(self.disks))))
        for disk in self.disks.values():
            disk.power_on()
        parent_death = ctypes.CDLL(None).prctl
        self.guest = subprocess.Popen(self._command_line(), stdin=subprocess.DEVNULL,
                                      preexec_fn=lambda: parent_death(1, signal.SIGKILL))
        connections = self._connect(sockets)
        self.start_qmp(connections['qmp'])
        threading.Thread(target=self.serve_guest, args=(connections['ctl'],), daemon=True).start()
        watchdog = threading.Timer(timeout, self._time_out, (timeout,))
        watchdog.daemon = True
        watchdog.start()
        self._listen_to(connections['out'])
        watchdog.cancel()
        self._power_off()
        for connection in connections.values():
            connection.close()
        if self.why == 'died':
            log('the guest died; the end of its console:\n' + self.console()[-3000:])
        return self.code

    def _power_off(self):
        """Once a guest has come to its end: what it wrote is on the images, unless the power was cut."""
        with self.action_lock:
            self.why = self.why or ('died' if self.code is None else 'exit')
            self._kill()
            if self.why != 'powercut':
                for disk in self.disks.values():
                    disk.power_off('none')

    def console(self):
        """What the guest's kernel said in this boot."""
        try:
            with open(self._path('console'), errors='replace') as file:
                return file.read()
        except OSError:
            return ''

    def _path(self, name):
        return '%s/%s%d' % (self.directory, name, self.boots)

    def _listen(self):
        sockets = {}
        for name in ('qmp', 'out', 'ctl'):
            sockets[name] = socket.socket(socket.AF_UNIX)
            sockets[name].bind(self._path(name))
            sockets[name].listen(1)
        return sockets

    def _connect(self, sockets):
        connections = {}
        for name, server in sockets.items():
            server.settimeout(30)
            try:
                connections[name] = server.accept()[0]
            except socket.timeout:
                self._kill()
                raise LabError('QEMU does not start') from None
            finally:
                server.close()
        return connections

    def _command_line(self):
        kvm = virtualized()
        image = self.kernel + '/vmlinux'
        if kvm or not os.path.exists(image):
            image = self.kernel + '/vmlinuz'
        line = ['qemu-system-x86_64', '-nodefaults', '-no-user-config', '-display', 'none', '-no-reboot',
                '-machine', 'pc', '-m', self.memory, '-smp', str(min(2, os.cpu_count() or 1)),
                '-accel', 'kvm' if kvm else 'tcg,thread=multi,tb-size=512', '-cpu', 'host' if kvm else 'max,la57=off',
                '-kernel', image, '-initrd', self.directory + '/initrd', '-append', KERNEL_PARAMETERS,
                '-serial', 'file:' + self._path('console'), '-qmp', 'unix:%s,server=off' % self._path('qmp'),
                '-device', 'qemu-xhci,id=xhci,p2=8,p3=8', '-device', 'virtio-serial-pci']
        for name in ('out', 'ctl'):
            line += ['-chardev', 'socket,id=c-%s,path=%s' % (name, self._path(name)),
                     '-device', 'virtserialport,chardev=c-%s,name=%s' % (name, name)]
        for tag, path, options in (('host', '/', ',readonly=on'), ('extra', prepare.EXTRA, ',readonly=on'), ('share', self.share, '')):
            line += ['-fsdev', 'local,id=f-%s,path=%s,security_model=none,multidevs=remap%s' % (tag, path, options),
                     '-device', 'virtio-9p-pci,fsdev=f-%s,mount_tag=%s' % (tag, tag)]
        for disk in self.disks.values():
            line += ['-blockdev', json.dumps(self.block_node(disk))]
            if disk.kind == 'virtio':
                line += ['-device', 'virtio-blk-pci,drive=n-%s,serial=%s,write-cache=on' % (disk.name, disk.name)]
            else:
                device = self.usb_device(disk)
                line += ['-device', ','.join([device.pop('driver')] + ['%s=%s' % pair for pair in device.items()])]
        return line

    def _listen_to(self, connection):
        """Copies what the guest says to stdout, less our markers, until it has exited or is gone."""
        data, started = b'', time.monotonic()
        while self.code is None:
            try:
                more = connection.recv(65536)
            except OSError:
                more = b''
            if not more:
                break
            data += more
            while data:
                at = data.find(b'\0')
                plain = data if at < 0 else data[:at]
                sys.stdout.buffer.write(plain)
                data = data[len(plain):]
                match = MARKER.match(data)
                if match:
                    data = data[match.end():]
                    if match[1] == b'READY':
                        self.ready = True
                        log('guest is up after %.1f s' % (time.monotonic() - started))
                    else:
                        self.code = int(match[2])
                elif len(data) < 16:                    # perhaps the rest of a marker is still to come
                    break
                else:
                    sys.stdout.buffer.write(data[:1])
                    data = data[1:]
            sys.stdout.buffer.flush()

    def _time_out(self, seconds):
        log('the guest did not come to an end in %d s; the end of its console:\n%s' % (seconds, self.console()[-3000:]))
        self.why = 'timeout'
        self._kill()

    def _kill(self):
        if self.guest:
            if self.guest.poll() is None:
                self.guest.kill()
            self.guest.wait()
