#!/usr/bin/env python3
"""table.md and LABEL.json from the result files of single calls.

  make_table.py OUT_DIR DIR...     (DIRs hold *.result.json)
Every number is the median over calls x directions, with (min..max) beside it."""
import glob, json, os, statistics as st, sys, collections

ORDER = ["lan", "metro", "wan", "wifi", "lossy10", "lossy20", "lossy30", "mobile", "narrow"]


def num(v):
    v = [x for x in v if x is not None]
    if not v:
        return None
    return dict(median=st.median(v), min=min(v), max=max(v), n=len(v))


def samples(r):
    """One row per direction of a call."""
    for d, q in r["dir"].items():
        rx = d[1]
        l, ps = r["link"].get(d) or {"sent_Bps": None, "sent_pps": None, "loss_pct": None}, r.get("peer_stats", {}).get(d, {})
        lat = q.get("latency_ms") or {}
        dead = "error" in q
        row = dict(
            latency_median_ms=lat.get("median"), latency_p95_ms=lat.get("p95"), latency_p5_ms=lat.get("p5"), latency_max_ms=lat.get("max"),
            damaged_pct=100.0 if dead else q.get("damaged_pct"), silent_pct=100.0 if dead else q.get("silent_pct"),
            pesq_wb=1.0 if dead else q.get("pesq_wb_mean"), stoi=0.0 if dead else q.get("stoi_mean"),
            matched_pct=100.0 * q["windows_matched"] / max(1, q["windows"]),
            join_ms=q.get("join_to_first_audio_ms"),
            cpu_s_per_min=r["cpu_s_per_min"].get(rx), peak_pss_mib=r["peak_pss_mib"].get(rx),
            sent_Bps=l["sent_Bps"], sent_pps=l["sent_pps"], link_loss_pct=l["loss_pct"],
        )
        for k in ("concealed_pct", "jitter_buffer_ms", "jitter_buffer_target_ms", "playout_delay_ms", "rtt_ms", "accelerated_pct", "decelerated_pct"):
            if k in ps:
                row["getstats_" + k] = ps[k]
        if ps.get("fecPacketsReceived") is not None:
            row["getstats_fec_packets"] = ps["fecPacketsReceived"]
        yield row


def main():
    out, dirs = sys.argv[1], sys.argv[2:]
    groups = collections.defaultdict(list)
    for d in dirs:
        for f in sorted(glob.glob(os.path.join(d, "*.result.json"))):
            r = json.load(open(f))
            groups[(r["label"], r["profile"])].append(r)
    if not groups:
        raise SystemExit("no results")
    os.makedirs(out, exist_ok=True)
    table = {}
    for (label, prof), rs in groups.items():
        rows = [x for r in rs for x in samples(r)]
        keys = sorted({k for x in rows for k in x})
        agg = {k: num([x.get(k) for x in rows]) for k in keys}
        agg["calls"] = len(rs)
        agg["machine_busy_pct"] = num([r["machine"]["cpu_busy_pct_of_both_cores"] for r in rs])
        agg["lab_xruns"] = num([r["xruns"] for r in rs])
        agg["version"] = next((r.get("version") for r in rs if r.get("version")), None)
        agg["opts"] = rs[0].get("opts")
        table.setdefault(label, {})[prof] = agg
    for label, v in table.items():
        json.dump(v, open(os.path.join(out, f"{label}.json"), "w"), indent=1)
    for name, t in (("", table),):
        if not t:
            continue
        L = []
        for label in sorted(t, key=lambda l: (not l.startswith("hallway"), not l.startswith("chromium"), l)):
            L.append(f"\n### {label}\n")
            L.append("| profile | calls | latency median ms | latency p95 ms | damaged % | silent % | concealed % (getStats) | PESQ-WB | STOI | sent B/s | CPU s/min | PSS MiB | first audio ms | link loss % |")
            L.append("|---|---|---|---|---|---|---|---|---|---|---|---|---|---|")
            def c(a, k, f="{:.0f}"):
                v = a.get(k)
                if not v:
                    return "-"
                m, lo, hi = (f.format(v[x]) for x in ("median", "min", "max"))
                return m if lo == hi else f"{m} ({lo}..{hi})"
            for p in ORDER:
                a = t[label].get(p)
                if a:
                    L.append(f"| {p} | {a['calls']} | {c(a,'latency_median_ms')} | {c(a,'latency_p95_ms')} | {c(a,'damaged_pct','{:.1f}')} | {c(a,'silent_pct','{:.1f}')} | "
                             f"{c(a,'getstats_concealed_pct','{:.1f}')} | {c(a,'pesq_wb','{:.2f}')} | {c(a,'stoi','{:.3f}')} | {c(a,'sent_Bps')} | {c(a,'cpu_s_per_min','{:.1f}')} | {c(a,'peak_pss_mib')} | {c(a,'join_ms')} | {c(a,'link_loss_pct','{:.1f}')} |")
        # where Chromium's latency goes
        rows = [(label, p, t[label][p]) for label in sorted(t) if label.startswith("chromium") for p in ORDER if p in t[label]]
        if rows:
            L.append("\n### Where Chromium's latency sits (its own getStats, same calls)\n")
            L.append("| peer | profile | mouth-to-ear median ms | jitter buffer ms | jitter buffer target ms | playout device ms | rest: framing, capture, link ms | accelerated % | decelerated % | packets/s | matched windows % |")
            L.append("|---|---|---|---|---|---|---|---|---|---|---|")
            for label, p, a in rows:
                m = lambda k: (a.get(k) or {}).get("median")
                if m("getstats_jitter_buffer_ms") is None or m("latency_median_ms") is None:
                    continue
                rest = m("latency_median_ms") - m("getstats_jitter_buffer_ms") - (m("getstats_playout_delay_ms") or 0)
                L.append(f"| {label} | {p} | {c(a,'latency_median_ms')} | {c(a,'getstats_jitter_buffer_ms')} | {c(a,'getstats_jitter_buffer_target_ms')} | {c(a,'getstats_playout_delay_ms')} | {rest:.0f} | "
                         f"{c(a,'getstats_accelerated_pct','{:.2f}')} | {c(a,'getstats_decelerated_pct','{:.2f}')} | {c(a,'sent_pps')} | {c(a,'matched_pct')} |")
        open(os.path.join(out, f"table{name}.md"), "w").write("\n".join(L) + "\n")
    print(open(os.path.join(out, "table.md")).read())


if __name__ == "__main__":
    main()
