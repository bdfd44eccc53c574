#!/usr/bin/env bash
# Ends the processes that audio_up.sh started, and removes the namespaces.
. "$(dirname "$0")/lab_env.sh"
[ -f "$LAB_RUN/audio.pids" ] && tac "$LAB_RUN/audio.pids" | while read -r p; do kill "$p" 2>/dev/null; done
rm -f "$LAB_RUN/audio.pids"
for n in "$NS_A" "$NS_B"; do ip netns del "$n" 2>/dev/null || true; done
