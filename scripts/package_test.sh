#!/usr/bin/env bash
# Installs the Debian package in a clean Debian, uses it, upgrades it under a running mount, and
# purges it. Needs root, a network (debootstrap), and some minutes; not a part of scripts/test.sh.
#   scripts/package_test.sh PACKAGE.deb [SUITE]
# MIRROR names another mirror; CHROOT a clean Debian that is there already, which is copied.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

package=$(realpath "${1:?usage: scripts/package_test.sh PACKAGE.deb [SUITE]}")
suite=${2:-$(. /etc/os-release && echo "${VERSION_CODENAME:-bookworm}")}
[ "$(id -u)" = 0 ] || { echo "needs root" >&2; exit 1; }
need dpkg-deb=dpkg unshare=util-linux
[ -n "${CHROOT:-}" ] || need debootstrap=debootstrap

lab=$(mktemp -d /var/tmp/ferryfs-lab.XXXXXX)
root=$lab/debian
in_root() { PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C DEBIAN_FRONTEND=noninteractive chroot "$root" "$@"; }
leave() {
    in_root sh -c 'command -v ferryfs >/dev/null && ferryfs unmount --force /srv/lab' >/dev/null 2>&1 || true
    for mount in srv/lab dev/fuse proc; do umount -l "$root/$mount" 2>/dev/null || true; done
    rm -rf --one-file-system "$lab"
}
trap leave EXIT
check() {
    local what=$1
    shift
    if "$@"; then echo "ok: $what"; else echo "FAILED: $what" >&2; exit 1; fi
}

say "a clean Debian $suite"
if [ -n "${CHROOT:-}" ]; then
    cp -a "$CHROOT" "$root"
else
    debootstrap --variant=minbase "$suite" "$root" ${MIRROR:+"$MIRROR"} >"$lab/debootstrap.log" 2>&1 ||
        { tail -n 20 "$lab/debootstrap.log" >&2; exit 1; }
fi
mount -t proc proc "$root/proc"
: >"$root/dev/fuse" 2>/dev/null || true
mount --bind /dev/fuse "$root/dev/fuse"
mkdir -p "$root/tmp/p" "$root/srv/drive" "$root/srv/lab"
cp "$package" "$root/tmp/p/ferryfs.deb"

say "install"
in_root dpkg --install /tmp/p/ferryfs.deb
version=$(in_root ferryfs --version)
echo "$version"
check "its version is that of the package" \
    grep -q "^ferryfs $(dpkg-deb --field "$package" Version)" <<<"$version"
in_root dpkg --verify ferryfs | tee "$lab/verify"
# A minimal Debian may leave out manual pages and documents.
check "all files are as they were packed" sh -c "! grep -v '/usr/share/\(man\|doc\)' '$lab/verify' | grep -q ."
dpkg-deb --contents "$package" >"$lab/contents"
for file in man/man1/ferryfs.1.gz man/man1/ferryfs-mount.1.gz bash-completion/completions/ferryfs \
    zsh/vendor-completions/_ferryfs fish/vendor_completions.d/ferryfs.fish; do
    check "$file is in the package" grep -q "/usr/share/$file" "$lab/contents"
done
check "bash takes the completions" in_root bash -n /usr/share/bash-completion/completions/ferryfs
for where in system user; do
    check "a unit for the $where manager" test -s "$root/usr/lib/systemd/$where/ferryfs@.service"
done
if command -v systemd-analyze >/dev/null; then
    # A unit's program must be there; that of the package is in the other root.
    sed 's|/usr/bin/ferryfs|/bin/true|' "$root/usr/lib/systemd/system/ferryfs@.service" >"$lab/ferryfs@x.service"
    systemd-analyze verify --man=no "$lab/ferryfs@x.service" 2>&1 | grep ferryfs | tee "$lab/units" || true
    check "systemd finds no fault in the unit" sh -c "! grep -q . '$lab/units'"
fi

say "use"
in_root ferryfs doctor || [ $? = 3 ]
in_root mount -t ferryfs -o no_auto_flush /srv/drive /srv/lab
echo one >"$root/srv/lab/one"
check "mount -t ferryfs works" grep -q '/srv/lab fuse.ferryfs' "$root/proc/self/mounts"

say "upgrade under a running mount"
pid=$(in_root ferryfs status --json | sed -n 's/.*"pid": \([0-9]*\).*/\1/p')
in_root dpkg --install /tmp/p/ferryfs.deb
check "the daemon lives" kill -0 "$pid"
echo two >"$root/srv/lab/two"
in_root ferryfs flush
check "the drive has it" grep -q two "$root/srv/drive/two"

say "remove and purge under a running mount with changes that wait"
echo three >"$root/srv/lab/three"
in_root dpkg --remove ferryfs
check "the daemon lives" kill -0 "$pid"
check "the mount works" grep -q three "$root/srv/lab/three"
in_root dpkg --purge ferryfs 2>&1 | tee "$lab/purge"
cache=$(ls -d "$root"/root/.local/share/ferryfs/*-*)
check "the cache is kept, and named" sh -c "test -e '$cache/cache.json' && grep -q caches '$lab/purge'"
check "nothing of the package is left" sh -c "! ls '$root/usr/bin/ferryfs' '$root/usr/sbin/mount.ferryfs' '$root/etc/ferryfs' 2>/dev/null | grep -q ."
kill "$pid"
while kill -0 "$pid" 2>/dev/null; do sleep 0.1; done
check "a signal flushes what waited" grep -q three "$root/srv/drive/three"
say "all is well"
