#!/usr/bin/env python3
"""An announcer: plays a recording into a hallway room when somebody writes "announce NAME" there.

    mkfifo /tmp/announcer
    hallway join lobby --name announcer --input pipe:/tmp/announcer --output null --ctl /tmp/announcer.sock &
    scripts/examples/announcer.py /tmp/announcer.sock /tmp/announcer SOUNDS

SOUNDS is a folder of NAME.wav: 48 kHz, 16 bits, mono. Ends with the call.
"""

import json
import pathlib
import socket
import sys
import wave


def load(path):
    """The samples of a recording, as the pipe wants them."""
    with wave.open(str(path)) as recording:
        shape = (recording.getframerate(), recording.getsampwidth(), recording.getnchannels())
        if shape != (48000, 2, 1):
            sys.exit(f"{path}: wanted 48 kHz, 16 bits, mono")
        return recording.readframes(recording.getnframes())


class Call:
    """The control socket: one JSON object a line, both ways (docs/scripting.md)."""

    def __init__(self, path):
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(path)
        self.lines = connection.makefile("rw", encoding="utf-8")
        self.next()  # "hello"

    def next(self):
        """The next object; None when the call has ended."""
        line = self.lines.readline()
        return json.loads(line) if line else None

    def send(self, **request):
        """Asks. The reply comes among the events."""
        self.lines.write(json.dumps(request) + "\n")
        self.lines.flush()


def main():
    control, pipe, folder = sys.argv[1:]
    sounds = {path.stem: load(path) for path in pathlib.Path(folder).glob("*.wav")}
    call = Call(control)
    call.send(command="subscribe", events=["chat", "input_finished"])
    playing = None
    while (event := call.next()) is not None:
        if event.get("event") == "input_finished" and playing:
            call.send(command="chat", text=f"that was {playing}")
            playing = None
        if event.get("event") != "chat" or not event["text"].startswith("announce "):
            continue
        name = event["text"].removeprefix("announce ").strip()
        if playing or name not in sounds:
            answer = f"still busy with {playing}" if playing else f"there is no {name}; there is: {', '.join(sorted(sounds))}"
            call.send(command="chat", text=answer)
            continue
        playing = name
        # The call takes sound at its own pace. Its end is told when the last of it was spoken.
        with open(pipe, "wb") as voice:
            voice.write(sounds[name])


if __name__ == "__main__":
    main()
