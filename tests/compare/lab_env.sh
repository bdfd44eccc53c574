# Settings of the laboratory; sourced by its scripts. What it builds and records goes under $LAB_TMP.
LAB_DIR="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
LAB_TMP="${LAB_TMP:-$LAB_DIR/../../target/compare}"
mkdir -p "$LAB_TMP"
LAB_TMP="$(cd "$LAB_TMP" && pwd)"
export LAB_DIR LAB_TMP
export LAB_BIN="$LAB_TMP/build/release"
export LAB_PY="$LAB_TMP/venv/bin/python"
# Sockets have short names: a path of more than 107 bytes is none.
export LAB_RUN="${LAB_RUN:-/run/hallway-compare}"
export XDG_RUNTIME_DIR="$LAB_RUN"
export XDG_CONFIG_HOME="$LAB_TMP/cfg"
export PIPEWIRE_RUNTIME_DIR="$LAB_RUN"
export PULSE_SERVER="unix:$LAB_RUN/pulse/native"
export DBUS_SESSION_BUS_ADDRESS="unix:path=$LAB_RUN/bus"
NS_A="${NS_A:-hw-cmp-a}"; NS_B="${NS_B:-hw-cmp-b}"
export NS_A NS_B
