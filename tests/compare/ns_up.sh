#!/usr/bin/env bash
# Makes the two network namespaces (joined later by the link only; no other link exists).
. "$(dirname "$0")/lab_env.sh"
for n in "$NS_A" "$NS_B"; do
  ip netns list | grep -qw "$n" || ip netns add "$n"
  ip -n "$n" link set lo up
  ip netns exec "$n" sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1 2>/dev/null
done
