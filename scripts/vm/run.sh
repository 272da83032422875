#!/usr/bin/env bash
# Yanks, power cuts and NAS outages on a real kernel, in QEMU. See README.md and `run.sh --help`.
#   scripts/vm/run.sh             all of it (about an hour where the processor has to be emulated)
#   scripts/vm/run.sh --short     some of each, in a few minutes
# Installs QEMU, fetches a Debian kernel once, builds ferryfs unless FERRYFS names one. Where that
# cannot be had, --short says SKIPPED and ends with 0.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/../lib.sh"

short=false
for word in "$@"; do
    case $word in
        --short) short=true ;;
        --list | --help | -h) exec python3 -B "$here/run.py" "$@" ;;
    esac
done
cannot() {
    if $short; then
        echo "SKIPPED: yanks, power cuts and NAS outages on a real kernel: $*"
        exit 0
    fi
    echo "scripts/vm/run.sh: $*" >&2
    exit 99
}
[ "$(id -u)" = 0 ] || cannot "the guest sees this machine's root directory, so they need root"
[ "$(uname -m)" = x86_64 ] || cannot "they need an x86_64 machine"
need qemu-system-x86_64=qemu-system-x86 mkfs.exfat=exfatprogs mkfs.ext4=e2fsprogs losetup=mount python3=python3 xz=xz-utils \
    zstd=zstd dpkg-deb=dpkg || cannot "QEMU is not to be had"
python3 -B "$here/run.py" --prepare || cannot "a kernel for the guest is not to be had"

if [ -z "${FERRYFS:-}" ]; then
    (cd "$top" && cargo build --release --quiet)
    FERRYFS=${CARGO_TARGET_DIR:-$top/target}/release/ferryfs
fi
exec python3 -B "$here/run.py" --ferryfs "$FERRYFS" "$@"
