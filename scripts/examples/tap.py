#!/usr/bin/env python3
"""A tap for a transcriber: what a hallway room says, in pieces that another program can read.

    mkfifo /tmp/tap
    hallway join lobby --name transcriber --input silence --output pipe:/tmp/tap --ctl /tmp/tap.sock &
    scripts/examples/tap.py /tmp/tap.sock /tmp/tap OUT

OUT/00000.wav, OUT/00001.wav, ... hold ten seconds of the room each (48 kHz, 16 bits, mono), each complete when the next
one begins. OUT/said.jsonl holds who came, went and wrote, with `at_s`: seconds from the first sample. Tell people that
you run this. Ends with the call.
"""

import json
import pathlib
import socket
import sys
import threading
import time
import wave

RATE = 48000
PIECE_S = 10


def follow(control, log, began_ns):
    """Writes what is told until the call ends."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(control)
    lines = connection.makefile("rw", encoding="utf-8")
    lines.write(json.dumps({"command": "subscribe", "events": ["chat", "peer"]}) + "\n")
    lines.flush()
    with open(log, "a", encoding="utf-8") as out:
        for line in lines:
            event = json.loads(line)
            if event.get("event") not in ("chat", "peer") or event.get("state") == "connecting":
                continue
            # at_ns is CLOCK_MONOTONIC, one timeline for all programs of a machine.
            keep = {key: event[key] for key in ("event", "name", "peer_id", "state", "text") if key in event}
            keep["at_s"] = (event["at_ns"] - began_ns) / 1e9
            out.write(json.dumps(keep, ensure_ascii=False) + "\n")
            out.flush()


def main():
    control, pipe, folder = sys.argv[1:]
    out = pathlib.Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    step = RATE // 10 * 2
    with open(pipe, "rb") as sound:
        samples = sound.read(step)
        began_ns = time.monotonic_ns() - len(samples) // 2 * 10**9 // RATE
        threading.Thread(target=follow, args=(control, out / "said.jsonl", began_ns), daemon=True).start()
        for number in range(10**5):
            with wave.open(str(out / f"{number:05}.wav"), "wb") as piece:
                piece.setparams((1, 2, RATE, 0, "NONE", ""))
                for _ in range(PIECE_S * 10):
                    piece.writeframes(samples)
                    if len(samples) < step:
                        return
                    samples = sound.read(step)


if __name__ == "__main__":
    main()
