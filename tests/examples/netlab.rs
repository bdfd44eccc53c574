//! The whole matrix of networks: a call in each cell, one table at the end. `scripts/netlab` runs it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

#[cfg(not(target_os = "linux"))]
fn main() {
    println!("skipped: the NAT laboratory is made of Linux network namespaces");
}

#[cfg(target_os = "linux")]
fn main() -> anyhow::Result<()> {
    linux::main()
}

#[cfg(target_os = "linux")]
mod linux {
    use std::collections::HashMap;
    use std::fmt::Write;
    use std::path::PathBuf;
    use std::sync::Mutex;
    use std::time::Duration;

    use anyhow::{Context, Result, bail};
    use hallway_tests::netlab::kind::Rung;
    use hallway_tests::netlab::{Kind, Lab, Outcome, cell, unavailable};

    struct Options {
        kinds: Vec<Kind>,
        delay_ms: u64,
        length: Duration,
        jobs: usize,
        out: Option<PathBuf>,
    }

    fn options() -> Result<Options> {
        let mut options = Options {
            kinds: Kind::ALL.to_vec(),
            delay_ms: 15,
            length: Duration::from_secs(12),
            jobs: 1,
            out: None,
        };
        let mut args = std::env::args().skip(1);
        while let Some(arg) = args.next() {
            let value = args.next().with_context(|| format!("{arg} needs a value"))?;
            match arg.as_str() {
                "--kinds" => {
                    let named = |name| Kind::named(name).with_context(|| format!("no kind is called {name}"));
                    options.kinds = value.split(',').map(named).collect::<Result<_>>()?;
                }
                "--delay" => options.delay_ms = value.parse()?,
                "--for" => options.length = Duration::from_secs(value.parse()?),
                "--jobs" => options.jobs = value.parse()?,
                "--out" => options.out = Some(value.into()),
                _ => bail!("unknown option {arg}"),
            }
        }
        Ok(options)
    }

    pub fn main() -> Result<()> {
        let mut options = options()?;
        if !Lab::has_upnp() {
            println!("skipped: upnp (no miniupnpd)");
            options.kinds.retain(|kind| *kind != Kind::Upnp);
        }
        if let Some(why) = unavailable() {
            bail!("no cell can be tried: {why}");
        }
        anyhow::ensure!(!options.kinds.is_empty(), "no network is left to be tried");
        let mut cells = Vec::new();
        for (i, a) in options.kinds.iter().enumerate() {
            cells.extend(options.kinds[i..].iter().map(|b| [*a, *b]));
        }
        cells.reverse();
        let (waiting, done) = (Mutex::new(cells), Mutex::new(HashMap::new()));
        std::thread::scope(|scope| {
            for _ in 0..options.jobs {
                scope.spawn(|| {
                    loop {
                        let Some(kinds) = waiting.lock().unwrap().pop() else { return };
                        let delay = Duration::from_millis(options.delay_ms);
                        match cell::call(kinds, delay, options.length) {
                            Ok(outcome) => {
                                println!("{}", line(kinds, &outcome));
                                done.lock().unwrap().insert(kinds, outcome);
                            }
                            Err(error) => println!("{} {}: {error:#}", kinds[0], kinds[1]),
                        }
                    }
                });
            }
        });
        let done = done.into_inner().unwrap();
        let text = table(&options, &done);
        match &options.out {
            Some(out) => std::fs::write(out, text).with_context(|| format!("writing {}", out.display()))?,
            None => println!("\n{text}"),
        }
        let (right, summary) = summary(&options, &done);
        println!("{summary}");
        // Whoever runs it by a script is to notice.
        anyhow::ensure!(right, "not every cell is as it should be");
        Ok(())
    }

    /// No longer than this may a call stay above the rung that is possible.
    const ABOVE_AT_MOST: Duration = Duration::from_secs(10);

    /// Whether every cell is on the best rung in time, and what is to be said of all of them.
    fn summary(options: &Options, done: &HashMap<[Kind; 2], Outcome>) -> (bool, String) {
        let cells = options.kinds.len() * (options.kinds.len() + 1) / 2;
        let best =
            |(kinds, outcome): &(&[Kind; 2], &Outcome)| outcome.rung() == Some(kinds[0].best_with(kinds[1]));
        let right = done.iter().filter(best).count();
        let longest = done.values().filter_map(|outcome| outcome.settled).max().unwrap_or_default();
        let mut text = format!(
            "{right} of {cells} cells are on the best rung that is possible, at the latest {:.2} s after launch.",
            longest.as_secs_f64()
        );
        for rung in [Rung::Direct, Rung::Punched, Rung::Relayed, Rung::Tcp] {
            let of_rung = done.values().filter(|outcome| outcome.rung() == Some(rung));
            let mut times: Vec<Duration> = of_rung.filter_map(|outcome| outcome.first_audio).collect();
            times.sort();
            if let (Some(median), Some(last)) = (times.get(times.len() / 2), times.last()) {
                let (median, last) = (median.as_secs_f64(), last.as_secs_f64());
                let _ = write!(
                    text,
                    " First audio where it ends {}: {median:.2} s in the middle, {last:.2} s at most.",
                    rung.name()
                );
            }
        }
        (right == cells && longest <= ABOVE_AT_MOST, text)
    }

    fn seconds(time: Option<Duration>) -> String {
        time.map_or("–".into(), |time| format!("{:.2}", time.as_secs_f64()))
    }

    fn rung(outcome: &Outcome) -> String {
        let [a, b] = outcome.rungs.map(|rung| rung.map_or("none", |rung| rung.name()));
        outcome.rung().map_or_else(|| format!("{a}, {b}"), |rung| rung.name().to_owned())
    }

    fn line(kinds: [Kind; 2], outcome: &Outcome) -> String {
        format!(
            "{} {}: possible {}, reached {}, first audio {} s, settled {} s{}",
            kinds[0],
            kinds[1],
            kinds[0].best_with(kinds[1]).name(),
            rung(outcome),
            seconds(outcome.first_audio),
            seconds(outcome.settled),
            outcome.why.as_ref().map_or(String::new(), |why| format!(" ({why})")),
        )
    }

    fn table(options: &Options, done: &HashMap<[Kind; 2], Outcome>) -> String {
        let mut text = format!(
            "# Networks: what two people reach\n\nMade by `scripts/netlab`: real routers (nftables in network namespaces), \
             the real program, {} ms one way\nfrom one host to the other ({} to the server). Each cell: the rung reached; \
             seconds from the launch of the second person\nuntil both hear each other; seconds until both are on that rung. \
             **Bold**: not the best rung that the two networks allow.\n\n| |",
            2 * options.delay_ms,
            options.delay_ms,
        );
        for kind in &options.kinds {
            let _ = write!(text, " {kind} |");
        }
        text.push_str("\n| --- |");
        text.push_str(&" --- |".repeat(options.kinds.len()));
        for (i, a) in options.kinds.iter().enumerate() {
            let _ = write!(text, "\n| **{a}** |{}", " |".repeat(i));
            for b in &options.kinds[i..] {
                let Some(outcome) = done.get(&[*a, *b]) else {
                    text.push_str(" not run |");
                    continue;
                };
                let right = outcome.rung() == Some(a.best_with(*b));
                let (name, mark) = (rung(outcome), if right { "" } else { "**" });
                let (first, settled) = (seconds(outcome.first_audio), seconds(outcome.settled));
                let _ = write!(text, " {mark}{name}{mark} {first} / {settled} |");
            }
        }
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let build = if cfg!(debug_assertions) { "debug" } else { "release" };
        let _ = write!(text, "\n\n{} ({build} build, {cores} cores.)", summary(options, done).1);
        text.push_str(KINDS);
        text
    }

    const KINDS: &str = "

| network | what its router does |
| --- | --- |
| open | nothing: public IPv4 addresses |
| cone | NAT; keeps ports; everybody may come in at them. A node cannot know that: with another NAT it counts as punched |
| upnp | preserving, and the router gives a port to who asks (miniupnpd) |
| preserving | NAT; keeps ports; only who was written to may come in (address and port) |
| rewriting | NAT; another port, the same one towards everybody; only who was written to may come in |
| double | a preserving router at home behind a rewriting one of the carrier |
| mtu-1280 | preserving, over a link whose largest packet is 1280 bytes |
| symmetric | NAT; another random port for each destination |
| ipv6-only | IPv6 without NAT, no IPv4; only who was written to may come in: counts as direct, nothing is translated |
| no-udp | preserving; UDP is dropped silently |
| only-443 | all but TCP to port 443 is dropped silently |
";
}
