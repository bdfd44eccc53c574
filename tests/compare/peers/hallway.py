"""hallway: a node per endpoint on the laboratory's sound devices, a rendezvous server beside a, so that b's discovery
crosses the link. 'Join' is the start of the processes: discovery is in it.

Options: profile (talk, music), bin (the program), args (further arguments for both nodes), host=jack (JACK ports instead of
PulseAudio's protocol)."""
import json, os, subprocess, time
import lablib
from . import command


class Peer(command.Peer):
    name = "hallway"

    async def prepare(self, call):
        await super().prepare(call)
        self.bin = self.opts.get("bin") or os.environ["HALLWAY"]
        self.version = subprocess.run([self.bin, "--version"], capture_output=True, text=True).stdout.strip()
        self.home = os.path.join(lablib.TMP, "homes", f"{time.time_ns()}")
        os.makedirs(self.home)
        listen = f"/ip4/{lablib.ADDR['a']}/udp/4001/quic-v1"
        argv = [self.bin, "rendezvous", "--listen", listen, "--data-dir", f"{self.home}/rendezvous", "--json"]
        self.server = subprocess.Popen(lablib.in_ns("a", argv), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        ready = json.loads(self.server.stdout.readline())
        self.at = f"{listen}/p2p/{ready['peer_id']}"

    def commands(self, who):
        o = self.opts
        device = lambda pulse, port: f"jack:{port}" if o.get("host") == "jack" else pulse
        jack = "pw-jack " if o.get("host") == "jack" else ""
        return [f"{jack}{self.bin} join compare --at {self.at} --name {who} --data-dir {self.home}/{who} --json --headless "
                f"--profile {o.get('profile', 'talk')} --input {device('{mic}', '{mic_port}')} --output {device('{spk}', '{spk_port}')} "
                f"{o.get('args', '')}"]


    async def close(self):
        await super().close()
        self.server.terminate()
        self.server.wait()
