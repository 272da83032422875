# What the scripts here share: getting the tools they need, and where the checkout is. Sourced, not
# run.

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

# is_new_enough WANTED HAVE: compares two versions. A beta or nightly counts as its release.
is_new_enough() {
    [ "$(printf '%s\n%s\n' "$1" "${2%%-*}" | sort -V | head -n 1)" = "$1" ]
}

# need_cargo: sees to it that cargo is there and new enough. That of Debian stable is too old:
# rustup then installs the current stable Rust beside it, in ~/.cargo and ~/.rustup.
need_cargo() {
    local wanted have
    wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$top/Cargo.toml")
    have=$(cargo --version 2>/dev/null | cut -d' ' -f2) || true
    if [ -n "$have" ] && is_new_enough "$wanted" "$have"; then
        return 0
    fi
    if [ -n "$have" ]; then
        say "cargo is $have, but ferryfs needs Rust $wanted or later"
    else
        say "there is no cargo that runs"
    fi
    if ! command -v rustup >/dev/null 2>&1; then
        say "getting rustup and the current stable Rust from https://rustup.rs"
        need curl=curl
        curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs |
            RUSTUP_INIT_SKIP_PATH_CHECK=yes sh -s -- -y --quiet --profile minimal --no-modify-path >/dev/null
        export PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
    fi
    have=$(RUSTUP_AUTO_INSTALL=0 rustup run stable cargo --version 2>/dev/null | cut -d' ' -f2) || true
    if [ -z "$have" ] || ! is_new_enough "$wanted" "$have"; then
        say "rustup installs the current stable Rust"
        rustup --quiet toolchain install stable --profile minimal --no-self-update
    fi
    # For this script only: a default or a pin of the user's stays as it is.
    export RUSTUP_TOOLCHAIN=stable
    hash -r
    have=$(cargo --version 2>/dev/null | cut -d' ' -f2) || true
    if [ -z "$have" ] || ! is_new_enough "$wanted" "$have"; then
        echo "cargo is ${have:-missing} still: install Rust $wanted or later from https://rustup.rs" >&2
        return 1
    fi
}

# alive COMMAND...: runs it, and says now and then that it is still at work if it is silent where
# nobody sees a progress bar.
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
