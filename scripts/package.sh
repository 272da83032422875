#!/usr/bin/env bash
# Makes a Debian package: the program, manual pages, completions, systemd units, and the helper for
# mount(8).
#   scripts/package.sh [DIR]           into DIR (default: target/package)
#   scripts/package.sh --static [DIR]  also static programs for x86_64 and arm64, and a package of
#                                      the one for arm64
# CARGO names another cargo, FERRYFS_BIN a program that is built already, FERRYFS_ARCH its Debian
# architecture. Static programs need rustup, for the standard library of musl, and a network: zig,
# from PyPI, compiles and links their C.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
cd "$top"

static=
if [ "${1:-}" = --static ]; then
    static=yes
    shift
fi
out=${1:-target/package}
cargo=${CARGO:-cargo}
need dpkg-deb=dpkg gzip=gzip readelf=binutils
[ -n "${CARGO:-}" ] || need_cargo

version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
arch=${FERRYFS_ARCH:-$(dpkg --print-architecture)}
mkdir -p "$out"
out=$(cd "$out" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$work/root

# Those of git, so that the same commit makes the same package.
if [ -z "${SOURCE_DATE_EPOCH:-}" ]; then
    SOURCE_DATE_EPOCH=$(git log -1 --format=%ct 2>/dev/null || date +%s)
fi
export SOURCE_DATE_EPOCH

if [ -n "${FERRYFS_BIN:-}" ]; then
    program=$FERRYFS_BIN
else
    say "building the program"
    "$cargo" build --quiet --release --locked --bin ferryfs
    program=${CARGO_TARGET_DIR:-target}/release/ferryfs
fi

say "manual pages and completions"
"$cargo" run --quiet --locked --example manual -- "$work/manual"

install -Dm755 "$program" "$root/usr/bin/ferryfs"
# Of another architecture it was stripped as it was linked.
strip --strip-unneeded "$root/usr/bin/ferryfs" 2>/dev/null || true
mkdir -p "$root/usr/sbin"
for name in mount.ferryfs mount.fuse.ferryfs; do
    ln -s ../bin/ferryfs "$root/usr/sbin/$name"
done
for page in "$work"/manual/man1/*.1; do
    install -Dm644 "$page" "$root/usr/share/man/man1/$(basename "$page")"
done
gzip -9n "$root"/usr/share/man/man1/*.1
install -Dm644 "$work/manual/completions/ferryfs.bash" "$root/usr/share/bash-completion/completions/ferryfs"
install -Dm644 "$work/manual/completions/_ferryfs" "$root/usr/share/zsh/vendor-completions/_ferryfs"
install -Dm644 "$work/manual/completions/ferryfs.fish" "$root/usr/share/fish/vendor_completions.d/ferryfs.fish"

unit() {
    local to=$1 file=$2 target=$3 flag=$4
    mkdir -p "$(dirname "$root/$to")"
    sed -e "s|@FILE@|$file|; s|@TARGET@|$target|; s|@USERFLAG@|$flag|" \
        "scripts/package/ferryfs@.service.in" >"$root/$to"
    chmod 644 "$root/$to"
}
unit usr/lib/systemd/system/ferryfs@.service /etc/ferryfs/config.toml multi-user.target ""
unit usr/lib/systemd/user/ferryfs@.service '~/.config/ferryfs/config.toml' default.target " --user"
install -dm755 "$root/etc/ferryfs"

docs=$root/usr/share/doc/ferryfs
install -Dm644 -t "$docs" README.md CHANGELOG.md SECURITY.md LICENSE-MIT LICENSE-APACHE docs/*.md
install -Dm644 -t "$docs/metrics" docs/metrics/*
install -Dm644 -t "$docs/images" docs/images/*
cat >"$docs/copyright" <<END
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: ferryfs

Files: *
Copyright: the ferryfs contributors
License: Expat or Apache-2.0
 The texts are in LICENSE-MIT and LICENSE-APACHE in this directory.
END
chmod 644 "$docs/copyright"

mkdir -p "$root/DEBIAN"
for script in postinst prerm postrm; do
    install -m755 "scripts/package/$script" "$root/DEBIAN/$script"
done
# The oldest C library that has all symbols of the program; none for a static one.
depends=
if LC_ALL=C readelf --program-headers "$program" | grep -q INTERP; then
    libc=$(objdump -T "$program" 2>/dev/null | grep -o 'GLIBC_2\.[0-9.]*' | sort -uV | tail -n 1 || true)
    libc=${libc#GLIBC_}
    depends="Depends: libc6 (>= ${libc:-2.34}), libgcc-s1"$'\n'
fi
cat >"$root/DEBIAN/control" <<END
Package: ferryfs
Version: $version
Architecture: $arch
Maintainer: the ferryfs contributors <ferryfs@localhost>
Installed-Size: $(du -sk --exclude=DEBIAN "$root" | cut -f1)
${depends}Recommends: fuse3
Suggests: exfatprogs, prometheus-node-exporter
Section: utils
Priority: optional
Description: SSD cache in front of a slow drive, as one directory
 Programs write to a directory on the SSD. ferryfs writes the changes to the
 drive in atomic batches, goes on when the drive is unplugged, and says when
 it is safe to unplug it. The drive stays a plain tree of files.
END
(cd "$root" && find . -path ./DEBIAN -prune -o -type f -printf '%P\0' | sort -z | xargs -0 md5sum) >"$root/DEBIAN/md5sums"

find "$root" -newermt "@$SOURCE_DATE_EPOCH" -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +
package=$out/ferryfs_${version}_$arch.deb
dpkg-deb --root-owner-group -Zxz --build "$root" "$package" >/dev/null
say "made $package"

static_program() {
    local target=$1-unknown-linux-musl
    say "building the static program for $1"
    rustup target add "$target"
    cargo-zigbuild zigbuild --quiet --release --locked --bin ferryfs --target "$target" \
        --config 'profile.release.strip="symbols"'
    install -m755 "${CARGO_TARGET_DIR:-target}/$target/release/ferryfs" "$out/ferryfs-$target"
    say "made $out/ferryfs-$target"
}
if [ -n "$static" ]; then
    need python3=python3
    command -v rustup >/dev/null || { echo "static programs need rustup: https://rustup.rs" >&2; exit 1; }
    zig=$(realpath "${CARGO_TARGET_DIR:-target}")/zig
    if [ ! -x "$zig/bin/cargo-zigbuild" ]; then
        python3 -m venv "$zig" && "$zig/bin/pip" install --quiet cargo-zigbuild==0.24.1 ziglang==0.17.1
    fi
    PATH=$zig/bin:$PATH
    static_program x86_64
    static_program aarch64
    FERRYFS_ARCH=arm64 FERRYFS_BIN=$out/ferryfs-aarch64-unknown-linux-musl "$0" "$out"
fi
