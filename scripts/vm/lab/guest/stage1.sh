#!/bin/busybox sh
# Stage 1, from the initrd: reach the host's root over 9p and put an overlay in RAM on it; disks
# come up meanwhile. So whatever is installed or built on the host runs in the guest, by the same
# path, and nothing it does there stays.
B=/bin/busybox
$B mkdir -p /proc /sys /dev /t /bin; $B --install -s /bin; PATH=/bin
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs devtmpfs /dev
( for m in $(cat /mods/late); do case $m in usb-storage.ko) insmod /mods/$m delay_use=0;; *) insmod /mods/$m;; esac; done ) &
for m in $(cat /mods/early); do insmod /mods/$m; done
mount -t tmpfs -o size=75% tmpfs /t
cd /t; mkdir host extra up up/vm up/vm/run wk new
O=trans=virtio,version=9p2000.L,cache=loose,msize=262144,ro,noatime
mount -t 9p -o $O host host && mount -t 9p -o $O extra extra || exec sh
cp -a /vm/. $B up/vm/
mount -t overlay -o lowerdir=/t/extra:/t/host,upperdir=/t/up,workdir=/t/wk,index=off,xino=off root new
wait
for m in proc sys dev; do mount -o move /$m new/$m; done
exec switch_root new /vm/busybox sh /vm/init
