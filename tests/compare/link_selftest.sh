#!/usr/bin/env bash
# Measures the emulated link itself: 20 s of 50 packets/s of 160 bytes one way through every profile.
# Also drives 64 kbit/s x 1.5 through 'narrow' to see the rate limit and the drop-tail queue.
. "$(dirname "$0")/lab_env.sh"
cd "$LAB_DIR"; ./ns_up.sh
one() { # file profile pps size label
  "$LAB_BIN/compare-link" link --ns-a "$NS_A" --ns-b "$NS_B" --addr-a 10.77.1.1 --addr-b 10.77.2.1 --profiles "$1" --profile "$2" \
    --seconds 60 --stats "$LAB_TMP/selftest.stats" >/dev/null & L=$!
  sleep 0.5
  "$LAB_BIN/compare-link" probe --ns-a "$NS_A" --ns-b "$NS_B" --from 10.77.1.1 --to 10.77.2.1 --seconds "${SECONDS_EACH:-20}" --pps "$3" --size "$4" > "$LAB_TMP/selftest.probe"
  kill "$L"; wait "$L" 2>/dev/null
  python3 - "$5" "$LAB_TMP" <<'P'
import json, sys
p = json.load(open(sys.argv[2] + "/selftest.probe")); s = json.loads(open(sys.argv[2] + "/selftest.stats").read().strip().split("\n")[-1])["ab"]
p["profile"] = sys.argv[1]; p["scheduler"] = {k: s[k] for k in ("late_mean_us", "late_max_us", "late_over_300us", "out_pkts")}
print(json.dumps(p))
P
}
for p in lan metro wan wifi lossy10 lossy20 lossy30 mobile narrow; do one profiles.toml $p 50 160 $p; done
one profiles.toml narrow 50 212 narrow-overload
