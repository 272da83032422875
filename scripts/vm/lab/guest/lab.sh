#!/vm/busybox sh
# lab: what a test says to its laboratory.
#   lab dev NAME                                the device node of disk NAME (usb, ssd) now; a
#                                               drive that is plugged in again has another
#   lab wait NAME [SECS]                        the same, once it is there
#   lab yank [lose=none|all|random:SEED]        the USB drive is pulled without asking the guest
#   lab plug                                    it is back, as a new device; prints its node
#   lab powercut [lose=all|none|random:SEED]    all power goes, now
#   lab snap USBFILE SSDFILE lose=...           copies, in the share on the host, of what a power
#                                               cut now would leave
#   lab keep LABEL                              copies of both disks for people to look at, with
#                                               what the last yank left
#   lab spare FILE                              a copy of FILE in the share, into `kept` beside it
#   lab set NAME rate=10M                       how fast the disk is (0: as fast as it goes)
#   lab stat NAME                               writes and flushes so far
#   lab in SECS ACTION...                       any of the above later, without waiting
#   lab at NAME N ACTION...                     ... when N more writes have arrived, before the last
#                                               of them is acknowledged
#   lab at NAME off
#   lab nas ...                                 see nas.sh
S=/vm/run
die() { echo "lab: $*" >&2; exit 1; }
ask() { # one line to the host, one line back: "ok ..." or "err ..."
  until mkdir $S/lock 2>/dev/null; do /vm/busybox usleep 2000
    o=; { read -r o <$S/owner; } 2>/dev/null; [ -z "$o" ] || [ -d /proc/$o ] || rmdir $S/lock 2>/dev/null; done
  echo $$ >$S/owner; exec 7<>$S/ctl || die "no control port"
  printf '%s\n' "$*" >&7; IFS= read -r r <&7; exec 7>&-; rmdir $S/lock
  case $r in ok*) r=${r#ok}; [ -z "${r# }" ] || echo "${r# }";; *) die "${r#err }";; esac; }
dev() { finddev "$1" 2>/dev/null; }
finddev() { # the disk NAME, found by its serial number
  for b in /sys/block/vd* /sys/block/sd*; do
    n=/dev/${b##*/}; [ -b "$n" ] || continue
    s=; [ ! -e $b/serial ] || read -r s <$b/serial; [ "$s" != "$1" ] || { echo $n; return 0; }
    [ -e $b/device ] || continue; p=$(cd -P $b/device && pwd) || continue
    while [ ${#p} -gt 12 ]; do
      if [ -e $p/serial ]; then
        read -r s <$p/serial; z=0; read -r z <$b/size; [ "$s" != "$1" ] || [ "$z" = 0 ] || { echo $n; return 0; }; break; fi
      p=${p%/*}; done
  done; return 1; }
waitdev() { i=0; while [ $i -lt $((${2:-10}*50)) ]; do dev $1 && return 0; /vm/busybox usleep 20000; i=$((i+1)); done; die "disk $1 did not appear"; }
case $1 in
  dev) dev $2;;
  wait) waitdev $2 $3;;
  plug) ask "$@" >/dev/null && waitdev usb 20;;
  nas) shift; exec bash /vm/nas "$@";;
  *) ask "$@";;
esac
