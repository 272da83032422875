# What the scripts here share: getting the tools they need, and where the checkout is. Sourced, not run.

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

say() { printf '== %s\n' "$*"; }

# need TOOL=PACKAGE...: installs the Debian packages of the tools that are missing, where we may.
need() {
    local pair missing=()
    for pair in "$@"; do
        PATH=$PATH:/usr/sbin:/sbin command -v "${pair%%=*}" >/dev/null 2>&1 || missing+=("${pair#*=}")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    local sudo=()
    if [ "$(id -u)" != 0 ]; then
        if ! sudo -n true 2>/dev/null; then
            echo "missing, and not to be installed without root: ${missing[*]}" >&2
            return 1
        fi
        sudo=(sudo -n)
    fi
    say "installing ${missing[*]}"
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get update -qq </dev/null
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        "${missing[@]}" </dev/null >/dev/null
}

# The file-system checkers live in sbin, which ordinary shells leave out.
export PATH="$PATH:/usr/sbin:/sbin"
if [ -d "${CARGO_HOME:-${HOME:-/root}/.cargo}/bin" ]; then
    export PATH="${CARGO_HOME:-${HOME:-/root}/.cargo}/bin:$PATH"
fi

# need_cargo: says how to get Rust where it is missing or too old.
need_cargo() {
    local wanted have
    wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$top/Cargo.toml")
    if ! command -v cargo >/dev/null 2>&1; then
        echo "cargo is missing: ferryfs is built with Rust ${wanted:-1.89} or later. Get it from https://rustup.rs, or by" >&2
        echo "\`apt-get install rustup && rustup default stable\` where your distribution has that, and run this again." >&2
        return 1
    fi
    have=$(cargo --version 2>/dev/null | cut -d' ' -f2)
    if [ -z "$have" ]; then
        echo "cargo does not run (\`cargo --version\` failed): try \`rustup default stable\`, and run this again." >&2
        return 1
    fi
    if [ -n "$wanted" ] && [ "$(printf '%s\n%s\n' "$wanted" "${have%%-*}" | sort -V | head -n 1)" != "$wanted" ]; then
        echo "cargo is $have, but ferryfs needs $wanted or later: \`rustup update stable\`, and run this again." >&2
        return 1
    fi
}

# alive COMMAND...: runs it, and says now and then that it is still at work if it is silent where nobody sees a progress bar.
alive() {
    if [ -t 2 ]; then
        "$@"
        return
    fi
    local start=$SECONDS status=0 teller
    # The shell's own words on how its sleep ended are nobody's business.
    (while sleep 20; do say "still at it, $((SECONDS - start)) s so far" >&3; done) 3>&2 2>/dev/null &
    teller=$!
    "$@" || status=$?
    # Its sleep goes with it, or whoever reads our output would wait for that.
    pkill -P "$teller" 2>/dev/null || true
    kill "$teller" 2>/dev/null || true
    wait "$teller" 2>/dev/null || true
    return $status
}

# build_release: the program, with signs of life.
build_release() {
    need_cargo
    say "building ferryfs (the first time takes some minutes)"
    # Without --quiet cargo names each crate, or draws a bar on a terminal.
    alive cargo build --release --locked
}
