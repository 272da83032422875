"""Fetches what the guest needs, once: a stock Debian kernel, and the tools that the host lacks.

Both come from the Debian archive that this machine's apt already knows, through an apt state of our own below the cache:
the host's packages and lists stay as they are. The tools are unpacked, not installed; the guest sees them as a layer over
the host's root.
"""
import fcntl
import glob
import lzma
import os
import re
import shutil
import struct
import subprocess

from .common import CACHE, LabError, log

PACKAGES = ('busybox-static kmod nfs-kernel-server nfs-common samba cifs-utils keyutils iproute2 netbase '
            'e2fsprogs exfatprogs util-linux procps python3').split()
# Big driver trees that no test here can use; dropped before the modules are decompressed.
PRUNE = ('drivers/gpu drivers/media drivers/net/ethernet drivers/net/wireless drivers/infiniband '
         'drivers/staging drivers/iio drivers/isdn drivers/hwmon drivers/input drivers/accel '
         'drivers/thunderbolt drivers/bluetooth drivers/crypto sound').split()
# The kernel of this release first: it is the one whose exFAT the design was measured with.
SUITE = 'trixie'
KEYRING = '/usr/share/keyrings/debian-archive-keyring.gpg'
EXTRA = os.path.join(CACHE, 'extra')


def run(command, **options):
    try:
        return subprocess.run(command, check=True, **options)
    except (OSError, subprocess.CalledProcessError) as error:
        raise LabError('%s: %s' % (command[0], error)) from error


def prepare():
    """Makes the cache complete. Raises LabError where that cannot be done (no network, no Debian)."""
    os.makedirs(CACHE, exist_ok=True)
    with open(os.path.join(CACHE, 'lock'), 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not os.path.isdir(EXTRA):
            fetch_tools()
        if kernel():
            return
        suites = [SUITE] + [suite for suite in [archive()[1]] if suite != SUITE]
        for suite in suites:
            try:
                fetch_kernel(suite)
                return
            except LabError as error:
                log('kernel of %s: %s' % (suite, error))
    raise LabError('no kernel to be had')


def kernel():
    """The directory of the newest kernel in the cache, or None."""
    ready = [os.path.dirname(path) for path in glob.glob(CACHE + '/kernels/*/ok')
             if os.path.isdir(os.path.join(EXTRA, 'usr/lib/modules', os.path.basename(os.path.dirname(path))))]
    return max(ready, key=lambda path: [int(x) for x in re.findall(r'\d+', os.path.basename(path))[:3]], default=None)


def apt_state(name, sources=None):
    """A directory for a private state of apt, and the options that make apt-get use it."""
    state = os.path.join(CACHE, 'apt', name)
    for part in ('lists/partial', 'cache/archives/partial'):
        os.makedirs(os.path.join(state, part), exist_ok=True)
    options = ['-o', 'Dir::State::lists=' + state + '/lists', '-o', 'Dir::Cache=' + state + '/cache',
               '-o', 'APT::Sandbox::User=root', '-o', 'Debug::NoLocking=1', '-qq']
    if sources is not None:
        with open(state + '/sources.list', 'w') as file:
            file.write(sources)
        open(state + '/status', 'w').close()
        options += ['-o', 'Dir::Etc::sourcelist=' + state + '/sources.list', '-o', 'Dir::Etc::sourceparts=/dev/null',
                    '-o', 'Dir::State::status=' + state + '/status']
    return state, options


def archive():
    """Address and release name of the Debian main archive that this machine uses."""
    with open('/etc/os-release') as file:
        match = re.search(r'VERSION_CODENAME=(\w+)', file.read())
    if not match:
        raise LabError('this is no Debian')
    targets = run(['apt-get', 'indextargets', '--format', '$(REPO_URI) $(RELEASE) $(COMPONENT)', 'Identifier: Packages'],
                  stdout=subprocess.PIPE, text=True).stdout
    for line in targets.splitlines():
        address, release, component = line.split()
        if release == match[1] and component == 'main':
            return address, match[1]
    raise LabError('no Debian main archive in the configuration of apt')


# ---- the tools

def fetch_tools():
    state, options = apt_state('host')
    log('tools of the guest: fetching')
    run(['apt-get'] + options + ['update'], stdout=subprocess.DEVNULL)
    run(['apt-get'] + options + ['install', '--download-only', '--no-install-recommends', '-y', '--allow-downgrades'] + PACKAGES,
        stdout=subprocess.DEVNULL)
    work = EXTRA + '.new'
    shutil.rmtree(work, ignore_errors=True)
    for part in ('bin', 'sbin', 'lib', 'lib64'):
        os.makedirs(os.path.join(work, 'usr', part))
        os.symlink('usr/' + part, os.path.join(work, part))
    packages = sorted(glob.glob(state + '/cache/archives/*.deb'))
    for package in packages:
        unpack(package, work)
    # What the host has already was not downloaded, and is seen through the layer; but these two are
    # needed before it is.
    for tool in ('busybox', 'kmod'):
        found = shutil.which(tool)
        if not glob.glob(work + '/usr/*bin/' + tool) and found:
            shutil.copy(found, work + '/usr/bin/' + tool)
    shutil.rmtree(EXTRA, ignore_errors=True)
    os.rename(work, EXTRA)
    shutil.rmtree(state + '/cache/archives')
    log('tools of the guest: %d packages unpacked' % len(packages))


def unpack(package, target):
    """`dpkg -x` that follows the symlinks of merged /usr that `target` has."""
    with subprocess.Popen(['dpkg-deb', '--fsys-tarfile', package], stdout=subprocess.PIPE) as tar:
        run(['tar', '-x', '--keep-directory-symlink', '-C', target], stdin=tar.stdout)
    if tar.returncode:
        raise LabError('cannot unpack ' + package)


# ---- the kernel

def fetch_kernel(suite):
    address, _ = archive()
    _, options = apt_state(suite, 'deb [signed-by=%s] %s %s main\n' % (KEYRING, address, suite))
    log('kernel: fetching that of ' + suite)
    run(['apt-get'] + options + ['update'], stdout=subprocess.DEVNULL)
    packages = depends_on_kernel(options, 'linux-image-amd64')[:1]
    if not packages:
        raise LabError('no linux-image-amd64 in ' + suite)
    version = packages[0][len('linux-image-'):]
    packages += depends_on_kernel(options, packages[0])         # newer kernels come in several packages
    final = os.path.join(CACHE, 'kernels', version)
    work = final + '.new'
    shutil.rmtree(work, ignore_errors=True)
    os.makedirs(work + '/deb')
    run(['apt-get'] + options + ['download'] + packages, cwd=work + '/deb', stdout=subprocess.DEVNULL)
    for package in glob.glob(work + '/deb/*.deb'):
        run(['dpkg-deb', '-x', package, work + '/x'])
    modules = (glob.glob(work + '/x/usr/lib/modules/*') + glob.glob(work + '/x/lib/modules/*'))[0]
    image = (glob.glob(work + '/x/boot/vmlinuz-*') + glob.glob(modules + '/vmlinuz'))[0]
    os.rename(image, work + '/vmlinuz')
    install_modules(modules, version, work)
    unpack_kernel(work + '/vmlinuz', work + '/vmlinux')
    for part in ('x', 'deb'):
        shutil.rmtree(work + '/' + part)
    open(work + '/ok', 'w').close()
    shutil.rmtree(final, ignore_errors=True)
    os.rename(work, final)
    log('kernel %s is ready' % version)


def depends_on_kernel(options, package):
    shown = subprocess.run(['apt-cache'] + options + ['show', '--no-all-versions', package], stdout=subprocess.PIPE, text=True).stdout
    depends = re.findall(r'^Depends:.*', shown, re.M) or ['']
    return re.findall(r'linux-(?:image|binary|modules)-[\w.+~-]+', depends[0])


def install_modules(modules, version, work):
    """The modules, decompressed (inserting them is then quick) and with their dependencies, into the layer of tools."""
    root = work + '/root'
    os.makedirs(root + '/usr/lib/modules')
    os.rename(modules, root + '/usr/lib/modules/' + version)
    for part in PRUNE:
        shutil.rmtree(root + '/usr/lib/modules/%s/kernel/%s' % (version, part), ignore_errors=True)
    log('kernel: decompressing its modules')
    run(['sh', '-c', "find . -name '*.ko.xz' -print0 | xargs -0 -r -P 4 -n 64 xz -d; "
         "find . -name '*.ko.zst' -print0 | xargs -0 -r -P 4 -n 64 zstd -dq --rm"], cwd=root)
    os.symlink('usr/lib', root + '/lib')
    run(['depmod', '-b', root, version], executable=glob.glob(EXTRA + '/usr/*bin/kmod')[0])
    target = EXTRA + '/usr/lib/modules/' + version
    shutil.rmtree(target, ignore_errors=True)
    os.makedirs(os.path.dirname(target), exist_ok=True)
    os.rename(root + '/usr/lib/modules/' + version, target)
    shutil.rmtree(root)


def unpack_kernel(image, out):
    """The ELF kernel out of a bzImage: QEMU boots it directly (PVH), which saves a second of emulation. Else there is none."""
    with open(image, 'rb') as file:
        data = file.read()
    start = ((data[0x1f1] or 4) + 1) * 512 + struct.unpack_from('<I', data, 0x248)[0]
    payload = data[start:start + struct.unpack_from('<I', data, 0x24c)[0]]
    if payload[:4] == b'\x28\xb5\x2f\xfd' and shutil.which('zstd'):
        elf = subprocess.run(['zstd', '-dcq'], input=payload[:-4], stdout=subprocess.PIPE).stdout
    elif payload[:6] == b'\xfd7zXZ\0':
        elf = lzma.LZMADecompressor().decompress(payload)
    else:
        return
    if elf[:4] == b'\x7fELF':
        with open(out, 'wb') as file:
            file.write(elf)
