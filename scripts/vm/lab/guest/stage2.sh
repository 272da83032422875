# Stage 2, in the merged root, still on busybox (the host's own tools are slow to load here): the
# rest of /dev and /run, the ports to the host, then the one command that this guest was booted for.
# The host kills the guest when it ends.
export HOME=/root TERM=dumb LANG=C.UTF-8
B=/vm/busybox; $B mkdir -p /vm/bb; $B --install -s /vm/bb; PATH=/vm/bb
mkdir -p /dev/pts /dev/shm; mount -t devpts devpts /dev/pts; mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run; mkdir -p /run/lock /run/mnt
mount -t fusectl fusectl /sys/fs/fuse/connections
ln -sf /proc/self/fd /dev/fd; ln -sf fd/0 /dev/stdin; ln -sf fd/1 /dev/stdout; ln -sf fd/2 /dev/stderr
exec </dev/null >/dev/console 2>&1
ip link set lo up; hostname vm
for p in /sys/class/virtio-ports/*/name; do read -r n <$p; d=${p%/name}; ln -sf /dev/${d##*/} /vm/run/$n; done
. /vm/job
# No cache: what a test writes there is on the host when the write returns, whatever becomes of the
# guest.
mkdir -p /run/share; mount -t 9p -o trans=virtio,version=9p2000.L,cache=none,msize=262144 share /run/share
for d in $VM_DISKS; do sh /vm/lab wait $d 10 >/dev/null; done
dmesg -n 8
cd /
mkfifo /vm/run/fifo; cat </vm/run/fifo >/vm/run/out &
exec 9>/vm/run/fifo
printf '\0READY\n' >&9
PATH=/vm:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin $B setsid sh -c "exec $VM_COMMAND" >&9 2>&9 9>&- ; rc=$?
printf '\0EXIT %d\n' $rc >&9
sleep 60
