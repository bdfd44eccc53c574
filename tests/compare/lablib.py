"""Shared pieces of the lab: the emulated link, the audio recorder, process accounting."""
import json, os, re, signal, subprocess, threading, time, tomllib

HERE = os.path.dirname(os.path.abspath(__file__))
TMP = os.environ["LAB_TMP"]
RUN = os.environ["LAB_RUN"]
BIN = os.environ["LAB_BIN"]
SIG = os.path.join(TMP, "signal")
NS = {"a": os.environ["NS_A"], "b": os.environ["NS_B"]}
ADDR = {"a": "10.77.1.1", "b": "10.77.2.1"}
LAYOUT = None


def layout():
    global LAYOUT
    if LAYOUT is None:
        LAYOUT = json.load(open(os.path.join(SIG, "layout.json")))
    return LAYOUT


def env():
    e = dict(os.environ)
    run = RUN
    e.update(XDG_RUNTIME_DIR=run, PIPEWIRE_RUNTIME_DIR=run, XDG_CONFIG_HOME=os.path.join(TMP, "cfg"),
             PULSE_SERVER=f"unix:{run}/pulse/native", DBUS_SESSION_BUS_ADDRESS=f"unix:path={run}/bus")
    return e


def in_ns(who, cmd):
    """The command line that runs `cmd` inside an endpoint's namespace."""
    return ["nsenter", f"--net=/run/netns/{NS[who]}", "--"] + cmd


PROFILES = os.path.join(HERE, "../../node/src/bench/profiles.toml")


def profile(name):
    """Of the same table that `hallway bench` has built in."""
    return tomllib.load(open(PROFILES, "rb"))["profile"][name]


def base_delay(name):
    p = profile(name)
    ab = p.get("ab", p.get("both", {})); ba = p.get("ba", p.get("both", {}))
    return {"ab": ab.get("delay_ms", 0.0), "ba": ba.get("delay_ms", 0.0)}


class Link:
    def __init__(self, name, rep, out):
        self.seed = profile(name)["seed"] + 7919 * rep
        self.statsf = out + ".link.jsonl"
        self.p = subprocess.Popen(
            ["chrt", "-f", "60", os.environ["LAB_LINK"], name, str(rep), NS["a"], ADDR["a"], NS["b"], ADDR["b"], self.statsf],
            stdout=subprocess.PIPE, text=True)
        line = self.p.stdout.readline()
        if not line.startswith("READY"):
            raise RuntimeError("the link did not start")

    def stop(self):
        if self.p.poll() is None:
            self.p.terminate()
            self.p.wait(5)

    def window(self, t0, t1):
        """Totals per direction between two monotonic instants."""
        rows = [json.loads(l) for l in open(self.statsf) if l.strip()]
        def near(t):
            return min(rows, key=lambda r: abs(r["t_ns"] - t))
        x, y = near(t0), near(t1)
        dt = (y["t_ns"] - x["t_ns"]) / 1e9
        res = {"seconds": dt}
        for d in ("ab", "ba"):
            k = {n: y[d]["counts"][n] - x[d]["counts"][n]
                 for n in ("sent", "sent_bytes", "delivered", "delivered_bytes", "lost_random", "lost_burst", "lost_queue")}
            lost = k["lost_random"] + k["lost_burst"] + k["lost_queue"]
            res[d] = dict(k, sent_Bps=k["sent_bytes"] / dt, delivered_Bps=k["delivered_bytes"] / dt, sent_pps=k["sent"] / dt,
                          loss_pct=100.0 * lost / max(1, k["sent"]), late_most_us=y[d]["late_most_us"])
        return res


class Recorder:
    PORTS = ["micA:capture_MONO", "spkA:monitor_MONO", "micB:capture_MONO", "spkB:monitor_MONO"]

    def __init__(self, out, seconds):
        self.out, self.meta = out + ".f32", out + ".rec.json"
        cmd = ["chrt", "-f", "47", "pw-jack", f"{BIN}/compare-recorder", "--play", f"{SIG}/a.f32=micA:input_MONO", "--play", f"{SIG}/b.f32=micB:input_MONO"]
        for p in self.PORTS:
            cmd += ["--rec", p]
        cmd += ["--seconds", str(seconds), "--out", self.out, "--meta", self.meta]
        self.p = subprocess.Popen(cmd, stdout=subprocess.PIPE, text=True, env=env())
        line = self.p.stdout.readline()
        if not line.startswith("STARTED"):
            raise RuntimeError("the recorder did not start")
        self.t0 = int(line.split()[1])

    def wait(self, timeout):
        self.p.wait(timeout)

    def stop(self):
        if self.p.poll() is None:
            self.p.terminate()
            self.p.wait(5)


def children_map():
    m = {}
    for d in os.listdir("/proc"):
        if d.isdigit():
            try:
                s = open(f"/proc/{d}/stat").read()
                m.setdefault(int(s[s.rindex(")") + 2:].split()[1]), []).append(int(d))
            except (OSError, ValueError):
                pass
    return m


def tree(roots):
    m = children_map()
    seen, todo = [], list(roots)
    while todo:
        p = todo.pop()
        if p in seen:
            continue
        seen.append(p)
        todo += m.get(p, [])
    return seen


class Usage:
    """CPU seconds and memory of a process tree. CPU of children that ended is kept."""
    TCK = os.sysconf("SC_CLK_TCK")

    def __init__(self, roots):
        self.roots = roots
        self.last = {}
        self.peak_pss = 0
        self.peak_rss = 0

    def cpu(self):
        for p in tree(self.roots):
            try:
                s = open(f"/proc/{p}/stat").read()
                f = s[s.rindex(")") + 2:].split()
                self.last[p] = (int(f[11]) + int(f[12])) / self.TCK
            except (OSError, ValueError):
                pass
        return sum(self.last.values())

    def mem(self):
        pss = rss = 0
        for p in tree(self.roots):
            try:
                for l in open(f"/proc/{p}/smaps_rollup"):
                    if l.startswith("Pss:"):
                        pss += int(l.split()[1])
                    elif l.startswith("Rss:"):
                        rss += int(l.split()[1])
            except OSError:
                pass
        self.peak_pss = max(self.peak_pss, pss)
        self.peak_rss = max(self.peak_rss, rss)
        return pss


def machine_load():
    la = open("/proc/loadavg").read().split()[:3]
    st = open("/proc/stat").readline().split()[1:]
    v = [int(x) for x in st]
    return {"loadavg": [float(x) for x in la], "busy": sum(v) - v[3] - v[4], "total": sum(v), "steal": v[7] if len(v) > 7 else 0}


def busy_between(a, b):
    t = b["total"] - a["total"]
    return {"cpu_busy_pct_of_both_cores": 100.0 * (b["busy"] - a["busy"]) / max(1, t), "steal_pct": 100.0 * (b["steal"] - a["steal"]) / max(1, t),
            "loadavg_end": b["loadavg"]}


def kill_tree(pids):
    for sig in (signal.SIGTERM, signal.SIGKILL):
        alive = [p for p in tree(pids) if os.path.exists(f"/proc/{p}")]
        for p in alive:
            try:
                os.kill(p, sig)
            except OSError:
                pass
        time.sleep(0.6)
