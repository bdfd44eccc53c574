#!/usr/bin/env python3
"""One measured call.

  run_call.py --peer hallway|chromium|gst|jamulus|jacktrip|wire --profile NAME [--rep N] [--label L]
              [--opt key=value ...] [--keep] [--no-analyze]

Writes OUT/<label>.<profile>.<rep>.result.json (OUT = $LAB_TMP/rec unless --out).
"""
import argparse, asyncio, importlib, json, os, signal, subprocess, sys, time
import lablib


async def call(a, opts):
    # Whoever ends this ends the programs that it started too.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asyncio.current_task().cancel)
    mod = importlib.import_module("peers." + a.peer)
    lay = lablib.layout()
    total = lay["total"] - 1.5
    label = a.label or a.peer
    os.makedirs(a.out, exist_ok=True)
    base = os.path.join(a.out, f"{label}.{a.profile}.{a.rep}")
    m0 = lay["pre"]; m1 = lay["pre"] + lay["block"] * lay["blocks"]
    link = peer = rec = None
    run = {"peer": a.peer, "label": label, "profile": a.profile, "rep": a.rep, "opts": opts, "started": time.strftime("%FT%TZ", time.gmtime()),
           "directions": opts.get("directions", "ab,ba").split(",")}
    try:
        link = lablib.Link(a.profile, a.rep, base)
        run["link_seed"] = link.seed
        peer = mod.Peer(opts)
        bd = lablib.base_delay(a.profile)
        run["base_delay_ms"] = bd
        await peer.prepare({"base_delay_ms": bd, "profile": a.profile})
        if a.settle:
            await asyncio.sleep(a.settle)
        rec = lablib.Recorder(base, total)
        at = lambda s: rec.t0 + int(s * 1e9)
        async def until(s):
            d = (at(s) - time.monotonic_ns()) / 1e9
            if d > 0:
                await asyncio.sleep(d)
        await until(1.0)
        run["t_join_ns"] = await peer.join()
        await until(m0)
        roots = peer.roots()
        use = {w: lablib.Usage(r) for w, r in roots.items()}
        s0 = await peer.stats()
        ml0, c0, tw0 = lablib.machine_load(), {w: u.cpu() for w, u in use.items()}, time.monotonic_ns()
        t = m0
        while t + 5 < m1:
            t += 5
            await until(t)
            for u in use.values():
                u.cpu(); u.mem()
        await until(m1)
        c1, tw1, ml1 = {w: u.cpu() for w, u in use.items()}, time.monotonic_ns(), lablib.machine_load()
        s1 = await peer.stats()
        dt = (tw1 - tw0) / 1e9
        run["cpu_s_per_min"] = {w: 60 * (c1[w] - c0[w]) / dt for w in use}
        run["peak_pss_mib"] = {w: u.peak_pss / 1024 for w, u in use.items()}
        run["peak_rss_mib"] = {w: u.peak_rss / 1024 for w, u in use.items()}
        run["machine"] = lablib.busy_between(ml0, ml1)
        run["peer_stats"] = mod.Peer.summarize(s0, s1)
        mk = await peer.marks()
        if mk:
            off = (time.time_ns() - time.monotonic_ns()) / 1e6
            run["join_marks_ms"] = {w: {k: round(v - off - run["t_join_ns"] / 1e6, 1) for k, v in m.items()} for w, m in mk.items()}
        run["version"] = getattr(peer, "version", None)
        rec.wait(total + 20)
        run["link"] = link.window(tw0, tw1)
    finally:
        if peer:
            try:
                await peer.close()
            except Exception as e:
                print("close:", e, file=sys.stderr)
        if rec:
            rec.stop()
        if link:
            link.stop()
    json.dump(run, open(base + ".run.json", "w"), indent=1)
    if a.raw:
        json.dump({"s0": s0, "s1": s1}, open(base + ".stats.json", "w"))
    return base


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--peer", required=True)
    p.add_argument("--profile", required=True)
    p.add_argument("--rep", type=int, default=0)
    p.add_argument("--label")
    p.add_argument("--opt", action="append", default=[])
    p.add_argument("--out", default=os.path.join(lablib.TMP, "rec"))
    p.add_argument("--keep", action="store_true", help="(default) keep the recording")
    p.add_argument("--discard", action="store_true", help="remove the recording after the analysis (41 MB)")
    p.add_argument("--settle", type=float, default=1.0)
    p.add_argument("--raw", action="store_true")
    p.add_argument("--no-analyze", action="store_true")
    a = p.parse_args()
    opts = {}
    for o in a.opt:
        k, _, v = o.partition("=")
        opts[k] = {"true": True, "false": False}.get(v, v)
    os.makedirs(os.path.join(lablib.TMP, "log"), exist_ok=True)
    for s in ("ns_up.sh", "audio_up.sh"):
        subprocess.run([os.path.join(lablib.HERE, s)], check=True, stdout=subprocess.DEVNULL)
    base = asyncio.run(call(a, opts))
    if not a.no_analyze:
        subprocess.run(["nice", "-n", "5", sys.executable, os.path.join(lablib.HERE, "analyze.py"), base], check=True)
        if a.discard:
            os.unlink(base + ".f32")


if __name__ == "__main__":
    main()
