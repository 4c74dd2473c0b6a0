#!/bin/sh
# On every node: it has the address without telling anyone, so that clients come to the director.
set -eu
sysctl -q -w net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2
ip addr replace 192.0.2.100/32 dev lo
