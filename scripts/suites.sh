#!/usr/bin/env bash
# The suites that compare the mount with what Linux promises, for longer than the gate has time for.
#   scripts/suites.sh [SCALE]     fsx with SCALE times 100,000 operations, random calls with SCALE
#                                 times 50 seeds; then the tree of everything through a drive and
#                                 back (default 1: about an hour); before that a second copy to
#                                 S3, the documents as a site, and other file systems as drives
set -euo pipefail
. "$(dirname "$0")/lib.sh"
cd "$top"

scale=${1:-1}
[[ $scale =~ ^[1-9][0-9]*$ ]] || { sed -n '2,6s/^# \{0,1\}//p' "$0" >&2; exit 2; }
need mkfs.exfat=exfatprogs mount.exfat-fuse=exfat-fuse rsync=rsync setfattr=attr python3=python3 mkfs.ext4=e2fsprogs losetup=mount
need_cargo
command -v pjdfstest >/dev/null || cargo install --quiet --locked pjdfstest@0.2.2
command -v fsx >/dev/null || cargo install --quiet --locked fsx@0.3.2
moto=${CARGO_TARGET_DIR:-target}/moto
if [ ! -x "$moto/bin/moto_server" ]; then
    say "installing moto, a server of S3"
    python3 -m venv "$moto" && "$moto/bin/pip" install --quiet 'moto[server]==5.2.5'
fi
need rclone=rclone
FERRYFS_TEST_NO_SKIP=1 FERRYFS_TEST_MOTO=$(realpath "$moto")/bin/moto_server \
    cargo test --test lifecycle -- --ignored second_copy::
# The documents as a site.
command -v mdbook >/dev/null || alive cargo install --quiet --locked mdbook@0.5.4
mdbook build
# What people have below it: other file systems, pools, clusters.
if [ "$(id -u)" = 0 ]; then
    scripts/drives.py
else
    say "no root: the tests on other file systems are left out"
fi
# Each call to the drive fails, where the gate takes every third one or so.
FERRYFS_CRASH_DRAWS=2 cargo test --test crash -- --test-threads=2 crash_loop::
FERRYFS_DURING_STRIDE=1 cargo test --test external -- --test-threads=2 elsewhere::during::
export FERRYFS_FSX_OPERATIONS=$((scale * 100000)) FERRYFS_NATIVE_SEEDS=$((scale * 50))
# Seeds and operations take their time one after the other within a test; two tests at a time is
# what the machine is for.
cargo test --test semantics -- --test-threads=2 --include-ignored posix:: faithful::
