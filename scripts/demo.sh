#!/usr/bin/env bash
# Shows in a minute what ferryfs does: a scraper works in the mount, the drive gets all of it at
# once, as plain files. Installs what is missing; leaves nothing behind but the build.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
cd "$top"

root=false
[ "$(id -u)" = 0 ] && root=true
need cc=build-essential fusermount3=fuse3 python3=python3
$root && need mkfs.exfat=exfatprogs mount.exfat-fuse=exfat-fuse losetup=mount

build_release
ferryfs=${CARGO_TARGET_DIR:-target}/release/ferryfs

place=$(mktemp -d "${TMPDIR:-/tmp}/ferryfs-demo.XXXXXX")
drive=$place/drive lab=$place/lab cache=$place/cache loop=""
mkdir "$drive" "$lab"
clean_up() {
    if mountpoint -q "$lab"; then
        "$ferryfs" unmount --no-flush "$lab" >/dev/null 2>&1 || umount -l "$lab" 2>/dev/null || fusermount3 -uz "$lab" || true
    fi
    mountpoint -q "$drive" && umount "$drive" 2>/dev/null || true
    [ -z "$loop" ] || losetup -d "$loop" || true
    if mountpoint -q "$lab" || mountpoint -q "$drive"; then
        echo "still mounted below $place, left alone" >&2
    else
        rm -rf "$place"
    fi
}
trap clean_up EXIT

if $root && truncate -s 256M "$place/drive.img" && loop=$(losetup --find --show "$place/drive.img" 2>/dev/null); then
    say "the drive: an exFAT image on $loop"
    mkfs.exfat "$loop" >/dev/null
    mount.exfat-fuse "$loop" "$drive" 2>/dev/null
else
    loop=""
    say "the drive: a plain directory (an exFAT image would need root and a loop device)"
fi

say "ferryfs mount $drive $lab"
"$ferryfs" mount --cache "$cache" --no-auto-flush "$drive" "$lab"

say "a scraper works in the mount: 200 pages and a database"
python3 - "$lab" <<'SCRAPER'
import os, sqlite3, sys, time
lab = sys.argv[1]
start = time.monotonic()
os.makedirs(f'{lab}/pages')
db = sqlite3.connect(f'{lab}/scraped.db')
db.execute('pragma journal_mode=wal')
db.execute('create table page(id integer primary key, title text, bytes int)')
for n in range(200):
    html = f'<html><title>page {n}</title>{"text " * (n * 7 % 900)}</html>'
    with open(f'{lab}/pages/{n:03}.html.part', 'w') as page:
        page.write(html)
    os.rename(f'{lab}/pages/{n:03}.html.part', f'{lab}/pages/{n:03}.html')
    with db:
        db.execute('insert into page values(?,?,?)', (n, f'page {n}', len(html)))
pages, size = db.execute('select count(*), sum(bytes) from page').fetchone()
db.close()
print(f'{pages} pages, {size} bytes of text, in {time.monotonic() - start:.2f} s')
SCRAPER

say "ferryfs status: what waits, what is safe"
"$ferryfs" status "$lab"
say "on the drive so far: $(find "$drive" -path "$drive/.ferryfs" -prune -o -type f -print | wc -l) files"
say "ferryfs flush: returns when all of it is on the drive"
"$ferryfs" flush "$lab"
say "ferryfs unmount"
"$ferryfs" unmount "$lab"

say "the drive, by plain ls, with no software of ours"
ls -lR "$drive" | sed -n '1,14p'
echo "... $(find "$drive/pages" -type f | wc -l) pages in all"
say "the database, opened on the drive: $(python3 -c '
import sqlite3, sys
db = sqlite3.connect(f"file:{sys.argv[1]}/scraped.db?mode=ro&immutable=1", uri=True)
print(db.execute("pragma integrity_check").fetchone()[0], db.execute("select count(*) from page").fetchone()[0], "rows")
' "$drive")"
if [ -n "$loop" ]; then
    umount "$drive"
    say "fsck.exfat"
    fsck.exfat -n "$loop"
fi
say "done"
