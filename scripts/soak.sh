#!/usr/bin/env bash
# Runs the seeded simulation: mixed work, flushes, crashes, full disks, a drive that comes and goes.
#   scripts/soak.sh [MINUTES]     fresh seeds, for so many minutes (default 10)
#   scripts/soak.sh --seed N      seed N again, with the daemon's own log (RUST_LOG, default info)
# Ends with the number of runs and of what happened in them. Fails at the first broken promise, and
# prints its seed, the step and the last operations.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
cd "$top"

usage() {
    sed -n '2,4s/^# \{0,1\}//p' "$0" >&2
    exit 2
}

number() {
    [[ $1 =~ ^[0-9]+$ ]] || usage
}

need_cargo
case "${1:-}" in
--seed)
    [ $# -eq 2 ] || usage
    number "$2"
    FERRYFS_SEED=$2 RUST_LOG=${RUST_LOG:-info} exec cargo test --test crash -- --exact --nocapture \
        simulation::mixed_work_with_crashes_keeps_every_promise
    ;;
-*) usage ;;
*)
    [ $# -le 1 ] || usage
    minutes=${1:-10}
    number "$minutes"
    FERRYFS_SOAK_MINUTES=$minutes exec cargo test --test crash -- --exact --ignored --nocapture simulation::soak
    ;;
esac
