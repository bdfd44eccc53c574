//! The link of `scripts/compare`, between two network namespaces: `link PROFILE REP NS_A ADDR_A NS_B ADDR_B STATS`.
//! PROFILE is a name of `hallway bench`'s table or a spelt-out link. Says `READY`, then writes to STATS four times a second
//! what went through, until it is killed.

#![allow(clippy::print_stdout)]

#[cfg(not(target_os = "linux"))]
fn main() {
    println!("skipped: the link is made of Linux TUN devices");
}

#[cfg(target_os = "linux")]
fn main() -> anyhow::Result<()> {
    linux::main()
}

#[cfg(target_os = "linux")]
mod linux {
    use std::fs::File;
    use std::io::Write as _;
    use std::time::Duration;

    use anyhow::{Context as _, Result, bail};
    use hallway::bench::pipe::Pipe;
    use hallway::bench::profile::Profile;
    use hallway_tests::netlab::{Link, run};
    use serde_json::json;

    /// Largest packet, bytes.
    const MTU: u16 = 1_500;
    /// How often it tells what went through.
    const TELL_EVERY: Duration = Duration::from_millis(250);

    pub fn main() -> Result<()> {
        let args: Vec<String> = std::env::args().skip(1).collect();
        let [profile, rep, ns_a, a, ns_b, b, stats] = args.as_slice() else {
            bail!("link PROFILE REP NS_A ADDR_A NS_B ADDR_B STATS");
        };
        let (ab, ba) = profile.parse::<Profile>()?.links(rep.parse()?);
        // What a TUN device gives is whole packets: nothing is added to their length.
        let pipes = [ab, ba].map(|link| Pipe::with_overhead(link, 0));
        let link = Link::make(&format!("cmp{}-", std::process::id()), MTU, pipes)?;
        for (end, ns, own, other) in [(0, ns_a, a, b), (1, ns_b, b, a)] {
            let net = other.rsplit_once('.').context("not an IPv4 address")?.0;
            run("ip", &["link", "set", &link.ends()[end], "netns", ns, "name", "lab0"])?;
            run("ip", &["-n", ns, "addr", "add", &format!("{own}/24"), "dev", "lab0"])?;
            run("ip", &["-n", ns, "link", "set", "lab0", "txqueuelen", "5000", "up"])?;
            run("ip", &["-n", ns, "route", "replace", &format!("{net}.0/24"), "dev", "lab0"])?;
        }
        let mut file = File::create(stats).with_context(|| format!("writing {stats}"))?;
        println!("READY");
        loop {
            let [ab, ba] = link
                .counts()
                .map(|(counts, late)| json!({ "counts": counts, "late_most_us": late.as_micros() as u64 }));
            // In one piece: whoever reads meanwhile sees whole lines.
            let line = json!({ "t_ns": hallway::clock::now_ns(), "ab": ab, "ba": ba });
            file.write_all(format!("{line}\n").as_bytes())?;
            std::thread::sleep(TELL_EVERY);
        }
    }
}
