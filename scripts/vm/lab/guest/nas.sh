#!/bin/bash
# lab nas: servers for NFS 4.2 (the kernel's nfsd) and SMB 3 (Samba), in a network namespace of
# their own, 10.66.0.1
#   lab nas start DIR [nfs|smb|both]            serve DIR
#   lab nas mount-nfs MNT OPTIONS               mount it here
#   lab nas mount-smb MNT OPTIONS
#   lab nas unplug                              every packet is dropped: the server falls silent
#   lab nas plug                                no more
NS="ip netns exec nas"
die() { echo "lab nas: $*" >&2; exit 1; }
network() {
  modprobe -a veth nfsd nfsv4 cifs sch_netem 2>/dev/null
  ip netns add nas && ip link add nas0 type veth peer name eth0 netns nas || die "no network namespace"
  ip addr add 10.66.0.2/24 dev nas0; ip link set nas0 up
  ip -n nas addr add 10.66.0.1/24 dev eth0; ip -n nas link set eth0 up; ip -n nas link set lo up; }
smb_conf() { cat <<CONF
[global]
 interfaces = 10.66.0.1
 bind interfaces only = yes
 server role = standalone server
 map to guest = Bad User
 guest account = root
 private dir = /run/nas
 lock directory = /run/nas
 state directory = /run/nas
 cache directory = /run/nas
 pid directory = /run/nas
 ncalrpc dir = /run/nas
 log file = /run/nas/smb.log
 disable spoolss = yes
 load printers = no
 unix extensions = no
[nas]
 path = $1
 guest ok = yes
 writable = yes
 force user = root
 create mask = 0644
CONF
}
serve_nfs() { # $1: the directory
  [ -e /etc/netconfig ] || cp /usr/share/libtirpc*/netconfig /etc/ 2>/dev/null
  echo "$1 10.66.0.0/24(rw,sync,no_root_squash,no_subtree_check,fsid=0)" >/etc/exports
  $NS bash -c 'mountpoint -q /proc/fs/nfsd || mount -t nfsd nfsd /proc/fs/nfsd
    mountpoint -q /var/lib/nfs/rpc_pipefs || mount -t rpc_pipefs rpc_pipefs /var/lib/nfs/rpc_pipefs
    touch /var/lib/nfs/{etab,rmtab}
    exportfs -ra && { pidof rpc.mountd >/dev/null || rpc.mountd --no-nfs-version 2 --no-nfs-version 3; }
    pidof nfsdcld >/dev/null || nfsdcld 2>/dev/null
    rpc.nfsd -N 3 -V 4.2 -G 10 -L 10 4' || die "nfsd"; }
serve_smb() {
  smb_conf "$1" >/run/nas/smb.conf
  $NS smbd -D -s /run/nas/smb.conf || die "smbd"
  for ((i = 0; i < 100; i++)); do $NS ss -ltn | grep -q :445 && return; sleep 0.1; done; die "smbd does not listen"; }
case $1 in
  start)
    mkdir -p "$2" /run/nas /var/lib/nfs/rpc_pipefs /var/lib/nfs/nfsdcld /var/log/samba
    [ -e /run/nas/up ] || { network; touch /run/nas/up; }
    case ${3:-both} in nfs|both) serve_nfs "$2";; esac
    case ${3:-both} in smb|both) serve_smb "$2";; esac;;
  unplug) tc qdisc replace dev nas0 root netem loss 100% && exec /vm/lab outage;;
  plug) tc qdisc del dev nas0 root 2>/dev/null; true;;
  mount-nfs) mkdir -p "$2"; mount -t nfs4 -o "vers=4.2,$3" 10.66.0.1:/ "$2";;
  mount-smb) mkdir -p "$2"; mount -t cifs -o "guest,vers=3.1.1,$3" //10.66.0.1/nas "$2";;
  *) die "start|unplug|plug|mount-nfs|mount-smb";;
esac
