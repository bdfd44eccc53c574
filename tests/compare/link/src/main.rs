//! compare-link: a small user-space link emulator.
//!
//! `compare-link link`  joins two network namespaces with a TUN each and forwards IP packets between
//!                them with configurable one-way delay, jitter, loss, rate limit, queue.
//! `compare-link probe` sends timestamped UDP between the two namespaces and prints what really happened
//!                (both ends share CLOCK_MONOTONIC: same machine).
//!
//! Everything is bounded in time (`--seconds`), and stops on SIGTERM/SIGINT.
mod link;
mod model;
mod probe;
mod sys;

use std::collections::HashMap;

pub struct Args {
    map: HashMap<String, String>,
}

impl Args {
    fn parse(argv: &[String]) -> Args {
        let mut map = HashMap::new();
        let mut i = 0;
        while i < argv.len() {
            if let Some(k) = argv[i].strip_prefix("--") {
                if i + 1 < argv.len() && !argv[i + 1].starts_with("--") {
                    map.insert(k.to_string(), argv[i + 1].clone());
                    i += 2;
                    continue;
                }
                map.insert(k.to_string(), "true".into());
            }
            i += 1;
        }
        Args { map }
    }
    pub fn get(&self, k: &str) -> Option<&str> {
        self.map.get(k).map(|s| s.as_str())
    }
    pub fn need(&self, k: &str) -> &str {
        self.get(k).unwrap_or_else(|| {
            eprintln!("compare-link: --{k} is needed");
            std::process::exit(2)
        })
    }
    pub fn f64(&self, k: &str, d: f64) -> f64 {
        self.get(k).map(|s| s.parse().expect("a number")).unwrap_or(d)
    }
    pub fn u64(&self, k: &str, d: u64) -> u64 {
        self.get(k).map(|s| s.parse().expect("a whole number")).unwrap_or(d)
    }
}

fn main() {
    let argv: Vec<String> = std::env::args().skip(1).collect();
    let cmd = argv.first().map(|s| s.as_str()).unwrap_or("");
    let args = Args::parse(argv.get(1..).unwrap_or(&[]));
    match cmd {
        "link" => link::run(&args),
        "probe" => probe::run(&args),
        "show" => {
            let p = model::load_profile(args.need("profiles"), args.need("profile"));
            println!("{}", serde_json::to_string_pretty(&p).unwrap());
        }
        "list" => {
            for n in model::list_profiles(args.need("profiles")) {
                println!("{n}");
            }
        }
        _ => {
            eprintln!(
                "usage:\n  compare-link link --ns-a A --ns-b B --addr-a 10.77.1.1 --addr-b 10.77.2.1 \
                 --profiles FILE --profile NAME [--seed N] --seconds S [--stats FILE] [--trace FILE]\n  \
                 compare-link probe --ns-a A --ns-b B --from 10.77.1.1 --to 10.77.2.1 [--pps 100] [--size 160] --seconds S [--csv FILE]\n  \
                 compare-link show|list --profiles FILE [--profile NAME]"
            );
            std::process::exit(2);
        }
    }
}
