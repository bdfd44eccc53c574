#!/usr/bin/env bash
# Starts the lab's private audio server (PipeWire + pulse and JACK interfaces) with two virtual
# microphones micA/micB and two virtual loudspeakers spkA/spkB, all on one clock.
# Pids go to $LAB_RUN/audio.pids; audio_down.sh ends exactly those.
set -euo pipefail
. "$(dirname "$0")/lab_env.sh"
QUANTUM="${QUANTUM:-256}"
mkdir -p "$LAB_RUN" "$LAB_TMP/cfg/pipewire/pipewire.conf.d" "$LAB_TMP/log"
chmod 700 "$LAB_RUN"
if [ -s "$LAB_RUN/audio.pids" ] && kill -0 $(head -1 "$LAB_RUN/audio.pids") 2>/dev/null; then
  echo "audio server is up"; exit 0
fi
node() { # name, class, description
  cat <<N
  { factory = adapter
    args = {
      factory.name = support.null-audio-sink
      node.name = "$1"
      node.description = "$3"
      media.class = $2
      audio.position = [ MONO ]
      object.linger = true
      monitor.channel-volumes = false
      node.pause-on-idle = false
      session.suspend-timeout-seconds = 0
    }
  }
N
}
{
  cat <<N
context.properties = {
  default.clock.rate = 48000
  default.clock.allowed-rates = [ 48000 ]
  default.clock.quantum = $QUANTUM
  default.clock.min-quantum = $QUANTUM
  default.clock.max-quantum = $QUANTUM
}
context.objects = [
N
  node micA Audio/Source/Virtual micA
  node micB Audio/Source/Virtual micB
  node spkA Audio/Sink spkA
  node spkB Audio/Sink spkB
  echo "]"
} > "$LAB_TMP/cfg/pipewire/pipewire.conf.d/lab.conf"
rm -f "$LAB_RUN/bus" "$LAB_RUN/audio.pids"
P="$LAB_RUN/audio.pids"
setsid dbus-daemon --session --address="$DBUS_SESSION_BUS_ADDRESS" --nofork --nopidfile >"$LAB_TMP/log/dbus.log" 2>&1 & echo $! >> "$P"
sleep 0.3
# SCHED_FIFO: the audio graph must keep its clock whatever else runs on the machine
setsid chrt -f 50 pipewire >"$LAB_TMP/log/pipewire.log" 2>&1 & echo $! >> "$P"
sleep 0.6
setsid wireplumber >"$LAB_TMP/log/wireplumber.log" 2>&1 & echo $! >> "$P"
setsid chrt -f 48 pipewire-pulse >"$LAB_TMP/log/pulse.log" 2>&1 & echo $! >> "$P"
for i in $(seq 50); do
  sleep 0.2
  if pactl list short sources 2>/dev/null | grep -q micB && pactl list short sinks 2>/dev/null | grep -q spkB; then
    echo "audio server is up"; exit 0
  fi
done
echo "audio server did not come up; see $LAB_TMP/log" >&2; exit 1
