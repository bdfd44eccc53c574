# Sourced by the other scripts: goes to the repository's root and makes sure that what a build needs is there.
# On Debian and its kin, as root or with sudo, missing packages are installed; elsewhere they are named.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '%s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

# install_packages PACKAGE...
install_packages() {
    local as_root=()
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null || die "Missing: $*. Install them, or run this as root or with sudo."
        as_root=(sudo)
    fi
    command -v apt-get >/dev/null || die "Missing: $* (Debian's names). Install them with your system's package manager."
    say "Installing $* ..."
    "${as_root[@]}" apt-get update -qq
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-remove --no-install-recommends "$@" >/dev/null \
        || die "Could not install: $*. Nothing was removed to make room for it; apt-get install $* says what is in the way."
}

# missing TEST PACKAGE...: adds the packages to $wanted where the test fails
wanted=()
unless() {
    local test=$1
    shift
    eval "$test" >/dev/null 2>&1 || wanted+=("$@")
}

# ensure_build_needs: compiler, cmake (libopus), headers of ALSA and JACK, cargo
ensure_build_needs() {
    wanted=()
    unless 'command -v cc' gcc libc6-dev
    unless 'command -v c++' g++
    unless 'command -v make' make
    unless 'command -v cmake' cmake
    unless 'command -v pkg-config' pkg-config
    unless 'pkg-config --exists alsa' libasound2-dev
    unless 'pkg-config --exists jack' libjack-jackd2-dev
    [ ${#wanted[@]} -eq 0 ] || install_packages "${wanted[@]}"
    command -v cargo >/dev/null || die "Missing: cargo. Install Rust 1.91 or newer from https://rustup.rs."
}

# ensure_test_needs: a sound server without a card, a terminal without a person, and network namespaces with NAT
ensure_test_needs() {
    ensure_build_needs
    wanted=()
    unless 'command -v pulseaudio' pulseaudio
    unless 'command -v pactl' pulseaudio-utils
    unless 'command -v tmux' tmux
    [ ${#wanted[@]} -eq 0 ] || install_packages "${wanted[@]}"
    ensure_netlab_needs
}

# ensure_netlab_needs: network namespaces with NAT
ensure_netlab_needs() {
    ensure_build_needs
    wanted=()
    unless 'command -v ip' iproute2
    unless 'command -v nft' nftables
    unless 'command -v miniupnpd' miniupnpd
    [ ${#wanted[@]} -eq 0 ] || install_packages "${wanted[@]}"
}

# ensure_demo_needs: recorded speech, and sox to put it together
ensure_demo_needs() {
    ensure_build_needs
    wanted=()
    unless '[ -f /usr/share/sounds/alsa/Front_Center.wav ]' alsa-utils
    unless 'command -v sox' sox
    [ ${#wanted[@]} -eq 0 ] || install_packages "${wanted[@]}"
}

# ensure_compare_needs PEERS: PipeWire, a browser and the other programs that hallway is compared with
ensure_compare_needs() {
    wanted=()
    unless 'command -v pipewire && command -v wireplumber && command -v pw-jack' pipewire pipewire-bin pipewire-jack wireplumber
    unless 'command -v pipewire-pulse' pipewire-pulse
    unless 'command -v pactl' pulseaudio-utils
    unless 'command -v dbus-daemon' dbus-daemon
    unless 'command -v ip' iproute2
    unless 'command -v chrt && command -v nsenter' util-linux
    unless 'command -v ffmpeg' ffmpeg
    unless 'python3 -c "import venv, ensurepip"' python3-venv
    # pesq is compiled where it is installed.
    unless '[ -f "$(python3 -c "import sysconfig; print(sysconfig.get_path(\"include\"))")/Python.h" ]' python3-dev
    unless '[ -d /usr/share/asterisk/sounds/en_US_f_Allison ]' asterisk-core-sounds-en-g722 asterisk-core-sounds-fr-g722 \
        asterisk-core-sounds-es-g722 asterisk-core-sounds-ru-g722
    case " $1 " in *" chromium"*) unless 'command -v chromium' chromium ;; esac
    case " $1 " in *" jamulus "*) unless 'command -v Jamulus' jamulus ;; esac
    case " $1 " in *" jacktrip "*) unless 'command -v jacktrip' jacktrip ;; esac
    case " $1 " in *" gst"*)
        unless 'command -v gst-launch-1.0' gstreamer1.0-tools gstreamer1.0-plugins-base gstreamer1.0-plugins-good gstreamer1.0-plugins-bad
    esac
    [ ${#wanted[@]} -eq 0 ] || install_packages "${wanted[@]}"
}
