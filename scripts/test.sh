#!/usr/bin/env bash
# All tests: format, lints, unit tests, and the program on real mounts. Installs what is missing.
#   scripts/test.sh            everything
#   scripts/test.sh NAME...    only these tests: a group (`crash`) or a module (`crash_loop`)
# Fails on leftover mounts, loop devices and daemons, too. In CI (CI=true) no test may be skipped
# when run as root.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
cd "$top"

need cc=build-essential mkfs.exfat=exfatprogs mount.exfat-fuse=exfat-fuse mergerfs=mergerfs fusermount3=fuse3 rsync=rsync getfacl=acl sqlite3=sqlite3 \
    setfattr=attr git=git python3=python3 mkfs.ext4=e2fsprogs losetup=mount setpriv=util-linux tar=tar rclone=rclone restic=restic
# A check of the metrics that is not ours; without it the test says SKIPPED.
need promtool=prometheus || say "no promtool: the metrics are checked by our own parser only"
need_cargo
python3 -c 'import ensurepip, venv' 2>/dev/null || need python3-venv-is-missing=python3-venv
# A version of the suites that the list of exceptions was made with.
command -v pjdfstest >/dev/null || alive cargo install --quiet --locked pjdfstest@0.2.2
command -v fsx >/dev/null || alive cargo install --quiet --locked fsx@0.3.2
cargo fmt --version >/dev/null 2>&1 || rustup component add rustfmt
cargo clippy --version >/dev/null 2>&1 || rustup component add clippy

if [ ! -e /dev/fuse ] && [ "$(id -u)" = 0 ]; then
    modprobe fuse 2>/dev/null || mknod -m 666 /dev/fuse c 10 229 || true
fi
if [ "${CI:-}" = true ] && [ "$(id -u)" = 0 ]; then
    if [ -e /dev/fuse ] && losetup --find >/dev/null 2>&1; then
        export FERRYFS_TEST_NO_SKIP=1
    else
        say "this machine has no FUSE or no loop devices: tests that need them will say SKIPPED"
    fi
fi

# Only ours: what a lab mounts or attaches has its directory's name in it.
leftovers() {
    grep -F ferryfs-lab. /proc/mounts || true
    losetup --list --noheadings --output NAME,BACK-FILE 2>/dev/null | grep -F ferryfs-lab. || true
    pgrep -af 'ferryfs.* mount .*ferryfs-lab\.' || true
}
before=$(leftovers)
[ -z "$before" ] || { printf 'left over from an earlier run, clean this up first:\n%s\n' "$before" >&2; exit 1; }

log=$(mktemp)
trap 'rm -f "$log"' EXIT
failed=()
step() {
    local name=$1 start=$SECONDS
    shift
    say "$name"
    if "$@" </dev/null 2>&1 | tee -a "$log"; then
        summary+=("ok      $name ($((SECONDS - start)) s)")
    else
        failed+=("$name")
        summary+=("FAILED  $name ($((SECONDS - start)) s)")
    fi
}
summary=()
# The checks themselves first. A cargo-deny that is there and reaches the network knows more.
check_dependencies() { scripts/dependencies.py --test && scripts/dependencies.py; }
check_width() { scripts/width.py --test && scripts/width.py; }
check_pages() { scripts/docs.py --test && scripts/docs.py && scripts/screens.py --test; }
check_docs() {
    RUSTDOCFLAGS='-D warnings' cargo doc --no-deps --document-private-items --quiet
}

if [ $# -gt 0 ]; then
    for name in "$@"; do
        step "test $name" scripts/tests.py "$name"
    done
else
    # What the tests simulate takes half the time then, and building takes less than that longer.
    export CARGO_PROFILE_DEV_OPT_LEVEL=1 CARGO_INCREMENTAL=0
    step "dependencies" check_dependencies
    step "format" cargo fmt --check
    step "width" check_width
    step "pages" check_pages
    step "lints" cargo clippy --all-targets -- -D warnings
    step "documentation" alive check_docs
    # A step of its own, so that the summary says how long building took, and how long the tests.
    step "build of the tests" alive cargo test --no-run
    step "tests" alive scripts/tests.py
    # Last, as it takes some minutes and tells the least about where a mistake is.
    # With the program of the tests, as another build would take longer than the guests.
    step "yanks, power cuts, outages" \
        env FERRYFS="${CARGO_TARGET_DIR:-$top/target}/debug/ferryfs" scripts/vm/run.sh --short
fi

after=$(leftovers)
if [ -n "$after" ]; then
    failed+=("leftovers")
    summary+=("FAILED  left behind: $after")
fi
say "summary"
printf '%s\n' "${summary[@]}"
printf '%s tests passed, %s failed, %s skipped\n' \
    "$(grep -cE '^test .* \.\.\. ok$' "$log" || true)" \
    "$(grep -cE '^test .* \.\.\. FAILED$' "$log" || true)" \
    "$(grep -c '^SKIPPED: ' "$log" || true)"
grep '^UNSTABLE: ' "$log" || true
grep '^SKIPPED: ' "$log" | sort | uniq -c || true
[ ${#failed[@]} -eq 0 ] || { printf 'failed: %s\n' "${failed[*]}" >&2; exit 1; }
