#!/usr/bin/env bash
# Measures ferryfs against the machine's own file system and what else is installed, all in one run,
# interleaved, so that a ratio means something on any machine. Never part of the tests: a timed test
# is a test that fails.
#   scripts/bench.sh [--one-cpu] [--rounds N] [--quick] [--only NAME,...] [--dir DIR]   see --help
set -euo pipefail
. "$(dirname "$0")/lib.sh"
cd "$top"
need cc=build-essential fusermount3=fuse3 python3=python3 git=git rsync=rsync tar=tar
[ "$(id -u)" != 0 ] || need mkfs.exfat=exfatprogs mount.exfat-fuse=exfat-fuse losetup=mount
for peer in rclone mergerfs fuse-overlayfs; do
    command -v "$peer" >/dev/null || say "$peer is not installed: not compared (apt-get install $peer)"
done
build_release
say "building the floor of FUSE, to compare with"
alive cargo build --release --locked --example floor
release=${CARGO_TARGET_DIR:-target}/release
exec python3 scripts/bench.py --ferryfs "$release/ferryfs" --floor "$release/examples/floor" "$@"
