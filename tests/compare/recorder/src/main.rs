//! compare-recorder: plays one mono signal per virtual microphone and records any number of ports, all in
//! one audio graph with one sample clock, so that differences between the recorded channels are
//! exact to the sample. Run it under `pw-jack` (it is a JACK client).
//!
//!   compare-recorder --play FILE.f32=PORT[,PORT..] ... --rec PORT ... --seconds S --out REC.f32 --meta REC.json
//!
//! Files are raw little-endian f32, 48 kHz, mono in; the recording has one channel per --rec,
//! interleaved. The .json maps sample 0 to CLOCK_MONOTONIC and CLOCK_REALTIME and lists skipped
//! cycles (xruns). Prints "STARTED <monotonic ns of sample 0>" once running.
use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::Arc;

static STOP: AtomicBool = AtomicBool::new(false);
extern "C" fn on_signal(_: i32) {
    STOP.store(true, Relaxed);
}

fn clock(id: i32) -> i64 {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    unsafe { libc::clock_gettime(id, &mut t) };
    t.tv_sec as i64 * 1_000_000_000 + t.tv_nsec as i64
}

fn load(p: &str) -> Vec<f32> {
    let b = std::fs::read(p).unwrap_or_else(|e| panic!("{p}: {e}"));
    b.chunks_exact(4).map(|c| f32::from_le_bytes(c.try_into().unwrap())).collect()
}

struct Shared {
    /// frame time (extended) of sample 0; -1 until the recorder's first cycle
    base: AtomicI64,
    cycles: AtomicU64,
}

/// JACK frame times are 32 bits: extend against the base.
fn rel(ft: u32, base: i64) -> i64 {
    ft.wrapping_sub(base as u32) as i32 as i64
}

fn main() {
    let argv: Vec<String> = std::env::args().skip(1).collect();
    let (mut plays, mut recs) = (vec![], vec![]);
    let (mut seconds, mut out, mut meta) = (10.0f64, String::new(), String::new());
    let mut i = 0;
    while i + 1 < argv.len() {
        let v = argv[i + 1].clone();
        match argv[i].as_str() {
            "--play" => {
                let (f, p) = v.split_once('=').expect("--play FILE=PORT");
                plays.push((load(f), p.split(',').map(String::from).collect::<Vec<_>>()));
            }
            "--rec" => recs.push(v),
            "--seconds" => seconds = v.parse().unwrap(),
            "--out" => out = v,
            "--meta" => meta = v,
            o => panic!("unknown option {o}"),
        }
        i += 2;
    }
    seconds = seconds.min(1800.0);
    unsafe {
        libc::signal(libc::SIGTERM, on_signal as *const () as usize);
        libc::signal(libc::SIGINT, on_signal as *const () as usize);
    }
    let total = (seconds * 48000.0) as usize;
    let nch = recs.len();
    let shared = Arc::new(Shared { base: AtomicI64::new(-1), cycles: AtomicU64::new(0) });

    let opts = || jack::ClientOptions::NO_START_SERVER;
    let (rc, _) = jack::Client::new("labrec", opts()).expect("audio server (run under pw-jack)");
    assert_eq!(rc.sample_rate() as u32, 48000, "graph must run at 48 kHz");
    let ins: Vec<_> =
        (0..nch).map(|k| rc.register_port(&format!("in{k}"), jack::AudioIn::default()).unwrap()).collect();
    let in_names: Vec<String> = ins.iter().map(|p| p.name().unwrap()).collect();
    // shared recording buffer, written only by the process callback
    let buf: &'static mut [f32] = Box::leak(vec![0f32; total * nch].into_boxed_slice());
    let bufp = buf.as_mut_ptr() as usize;
    let stamps: &'static mut Vec<(i64, i64, i64)> = Box::leak(Box::new(Vec::with_capacity(total / 32 + 16)));
    let stampp = stamps as *mut Vec<(i64, i64, i64)> as usize;
    let sh = shared.clone();
    let mut base: i64 = -1;
    let mut last: (i64, i64) = (0, 0); // end of the last cycle (frames), its time
    let rec_handler = jack::contrib::ClosureProcessHandler::new(move |_: &jack::Client, ps: &jack::ProcessScope| {
        let now = clock(libc::CLOCK_MONOTONIC);
        let ft = ps.last_frame_time();
        if base < 0 {
            base = ft as i64;
            sh.base.store(base, Relaxed);
        }
        let mut at = rel(ft, base);
        let n = ps.n_frames() as usize;
        if last.1 != 0 {
            // the graph may change its driver (and so its frame counter) when a peer's nodes come
            // or go: carry on where the real clock says
            let expect = last.0 + (((now - last.1) as f64 * 48e-6).round() as i64 - n as i64).max(0);
            if (at - expect).abs() > 4800 {
                base += at - expect;
                sh.base.store(base, Relaxed);
                at = expect;
            }
        }
        last = (at + n as i64, now);
        sh.cycles.fetch_add(1, Relaxed);
        unsafe {
            let st = &mut *(stampp as *mut Vec<(i64, i64, i64)>);
            if st.len() < st.capacity() {
                st.push((at, now, n as i64));
            }
            for (c, p) in ins.iter().enumerate() {
                let s = p.as_slice(ps);
                for (k, x) in s.iter().enumerate() {
                    let j = at + k as i64;
                    if j >= 0 && (j as usize) < total {
                        *((bufp as *mut f32).add(j as usize * nch + c)) = *x;
                    }
                }
            }
            let _ = n;
        }
        jack::Control::Continue
    });

    let (pc, _) = jack::Client::new("labplay", opts()).expect("audio server");
    let mut outs: Vec<_> =
        (0..plays.len()).map(|k| pc.register_port(&format!("out{k}"), jack::AudioOut::default()).unwrap()).collect();
    let out_names: Vec<String> = outs.iter().map(|p| p.name().unwrap()).collect();
    let sigs: Vec<Vec<f32>> = plays.iter().map(|p| p.0.clone()).collect();
    let sh2 = shared.clone();
    let play_handler = jack::contrib::ClosureProcessHandler::new(move |_: &jack::Client, ps: &jack::ProcessScope| {
        let base = sh2.base.load(Relaxed);
        for (p, sig) in outs.iter_mut().zip(&sigs) {
            let o = p.as_mut_slice(ps);
            if base < 0 {
                o.fill(0.0);
                continue;
            }
            let at = rel(ps.last_frame_time(), base);
            for (k, x) in o.iter_mut().enumerate() {
                let j = at + k as i64;
                *x = if j >= 0 { sig.get(j as usize).copied().unwrap_or(0.0) } else { 0.0 };
            }
        }
        jack::Control::Continue
    });

    let ap = pc.activate_async((), play_handler).unwrap();
    let ar = rc.activate_async((), rec_handler).unwrap();
    let mut missing = vec![];
    for (name, (_, ports)) in out_names.iter().zip(&plays) {
        for p in ports {
            if ap.as_client().connect_ports_by_name(name, p).is_err() {
                missing.push(p.clone());
            }
        }
    }
    for (name, p) in in_names.iter().zip(&recs) {
        if ar.as_client().connect_ports_by_name(p, name).is_err() {
            missing.push(p.clone());
        }
    }
    if !missing.is_empty() {
        eprintln!("compare-recorder: could not connect {missing:?}; ports there are:");
        for p in ar.as_client().ports(None, None, jack::PortFlags::empty()) {
            eprintln!("  {p}");
        }
        std::process::exit(1);
    }
    let t_give_up = clock(libc::CLOCK_MONOTONIC) + 5_000_000_000;
    while shared.cycles.load(Relaxed) < 4 {
        if clock(libc::CLOCK_MONOTONIC) > t_give_up {
            eprintln!("compare-recorder: the audio graph does not run");
            std::process::exit(1);
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let first = unsafe { (&*(stampp as *const Vec<(i64, i64, i64)>))[0] };
    println!("STARTED {}", first.1 - first.0 * 1_000_000_000 / 48000);
    let _ = std::io::stdout().flush();

    let end = first.1 + (seconds * 1e9) as i64 + 50_000_000;
    while !STOP.load(Relaxed) && clock(libc::CLOCK_MONOTONIC) < end {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let _ = ar.deactivate();
    let _ = ap.deactivate();

    let st = unsafe { &*(stampp as *const Vec<(i64, i64, i64)>) };
    // monotonic time of sample 0: the earliest wake-up seen relative to its frame (least-delayed cycle)
    let t0 = st.iter().map(|(a, t, _)| t - (*a as f64 * 1e9 / 48000.0) as i64).min().unwrap_or(0);
    let late: Vec<i64> = st.iter().map(|(a, t, _)| t - (*a as f64 * 1e9 / 48000.0) as i64 - t0).collect();
    let mut gaps = vec![];
    for w in st.windows(2) {
        let want = w[0].0 + w[0].2;
        if w[1].0 != want {
            gaps.push(serde_json::json!({"at": want, "skipped": w[1].0 - want}));
        }
    }
    let last = st.last().map(|s| s.0 + s.2).unwrap_or(0).clamp(0, total as i64) as usize;
    let data = unsafe { std::slice::from_raw_parts(bufp as *const u8, last * nch * 4) };
    std::fs::write(&out, data).expect("recording");
    let real_off = clock(libc::CLOCK_REALTIME) - clock(libc::CLOCK_MONOTONIC);
    std::fs::write(
        &meta,
        serde_json::json!({
            "rate": 48000, "channels": recs, "samples": last, "t0_monotonic_ns": t0, "realtime_minus_monotonic_ns": real_off,
            "quantum": st.last().map(|s| s.2), "gaps": gaps,
            "wakeup_late_max_ms": late.iter().max().copied().unwrap_or(0) as f64 / 1e6,
        })
        .to_string(),
    )
    .expect("meta");
    std::process::exit(0);
}
