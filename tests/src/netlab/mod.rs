//! The NAT laboratory: two private sides, each behind its router, and an internet between them with a rendezvous server.
//!
//! ```text
//! host a | router a ~~ link ~~ internet (server) ~~ link ~~ router b | host b
//! ```
//!
//! Each is a network namespace of this machine; the routers are real ones: nftables decides what passes and what it is
//! renamed to. The links add delay in user space, since many kernels lack `tc netem`.
//!
//! 1. [`kind`] says what kinds of networks there are, what their routers do, and what is possible between two of them.
//! 2. [`link`] joins two namespaces by a link with delay and a largest packet.
//! 3. [`Lab`] puts a pair of sides together.
//! 4. [`cell`] makes a call between them and says how it went.

pub mod cell;
pub mod kind;
pub mod link;

use std::ffi::OsStr;
use std::io::Write;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::process::Process;
pub use cell::Outcome;
use hallway::bench::{self, link::LinkConfig, pipe::Pipe};
pub use kind::Kind;
pub use link::Link;

/// IPv4 addresses of the server: the second one is another observer.
pub const SERVERS_V4: [&str; 2] = ["192.0.2.10", "192.0.2.20"];
/// The server's IPv6 address.
pub const SERVER_V6: &str = "2001:db8:5::10";
/// Largest packet of a link where nothing else is said, bytes.
const MTU: u16 = 1500;

/// miniupnpd's configuration.
const UPNP: &str = "ext_ifname=wan
listening_ip=lan
enable_natpmp=yes
enable_upnp=yes
secure_mode=yes
uuid=6e7a3d1c-8d3f-4f55-9d3e-2f1b5a6c7d8e
upnp_table_name=filter
upnp_nat_table_name=filter
upnp_forward_chain=miniupnpd
upnp_nat_chain=prerouting_miniupnpd
upnp_nat_postrouting_chain=postrouting_miniupnpd
allow 1024-65535 0.0.0.0/0 1024-65535
deny 0-65535 0.0.0.0/0 0-65535
";

/// One side's addresses.
#[derive(Clone, Debug)]
struct Plan {
    /// The router on the internet.
    wan: Ipv4Addr,
    /// The first three octets of the network that the host is in.
    lan: &'static str,
    /// The host's network where there is no NAT.
    public_lan: &'static str,
    /// The host's IPv6 network.
    lan6: &'static str,
}

/// Nothing leaves the machine. miniupnpd does not take the addresses reserved for examples for public ones.
const PLANS: [Plan; 3] = [
    Plan { wan: Ipv4Addr::new(11, 10, 1, 2), lan: "192.168.1", public_lan: "11.10.1", lan6: "2001:db8:a" },
    Plan { wan: Ipv4Addr::new(11, 10, 2, 2), lan: "192.168.2", public_lan: "11.10.2", lan6: "2001:db8:b" },
    // Where side A goes on the way.
    Plan { wan: Ipv4Addr::new(11, 10, 3, 2), lan: "192.168.3", public_lan: "11.10.3", lan6: "2001:db8:c" },
];

/// Two sides and the internet. Its namespaces are gone when it is dropped.
pub struct Lab {
    prefix: String,
    namespaces: Vec<String>,
    // The links end with the namespaces that hold their ends.
    links: Vec<Link>,
    /// What side A's host is told when it moves.
    mobile: Vec<String>,
    /// What runs on routers.
    daemons: Vec<std::process::Child>,
    scratch: tempfile::TempDir,
}

/// Why this machine cannot hold a laboratory; `None` where it can.
pub fn unavailable() -> Option<String> {
    let probe = || -> Result<()> {
        for tool in ["ip", "nft"] {
            ensure!(
                Command::new(tool).arg("-V").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok(),
                "no {tool} (Debian: iproute2, nftables)"
            );
        }
        let lab = Lab::empty()?;
        lab.nft("net", "add table ip t; add chain ip t c { type nat hook postrouting priority 100; }")
            .context("no NAT in this kernel")?;
        Link::make(&lab.device("p"), MTU, delayed(Duration::ZERO)).map(drop).context("no TUN devices")
    };
    probe().err().map(|error| format!("no network namespaces here: {error:#}"))
}

impl Lab {
    /// An internet, and nothing else.
    fn empty() -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let prefix = format!("h{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let mut lab = Self {
            prefix,
            namespaces: Vec::new(),
            links: Vec::new(),
            mobile: Vec::new(),
            daemons: Vec::new(),
            scratch: tempfile::tempdir()?,
        };
        lab.add_namespace("net")?;
        Ok(lab)
    }

    /// Two sides whose links delay each packet by `delay` one way: a packet from one host to the other takes twice that.
    pub fn new(kinds: [Kind; 2], delay: Duration) -> Result<Self> {
        let mut lab = Self::empty()?;
        for server in SERVERS_V4 {
            lab.ip("net", &format!("addr add {server}/32 dev lo"))?;
        }
        lab.ip("net", &format!("addr add {SERVER_V6}/128 dev lo nodad"))?;
        for ((kind, plan), side) in kinds.into_iter().zip(&PLANS).zip(["a", "b"]) {
            let host = format!("{side}-host");
            lab.add_namespace(&host)?;
            let settings = lab.add_access(side, &host, "eth", (kind, plan), delay);
            for setting in settings.with_context(|| format!("side {side}, {kind}"))? {
                lab.ip(&host, &setting)?;
            }
        }
        Ok(lab)
    }

    /// Puts another network within reach of side A, for [`Lab::roam`].
    ///
    /// # Errors
    /// Where it cannot be built.
    pub fn add_mobile(&mut self, kind: Kind, delay: Duration) -> Result<()> {
        let [_, _, plan] = &PLANS;
        let settings = self.add_access("m", "a-host", "mobile", (kind, plan), delay);
        self.mobile = settings.with_context(|| format!("the mobile network, {kind}"))?;
        Ok(())
    }

    /// Side A leaves its network and is in the other one, under another address, as from Wi-Fi to mobile.
    ///
    /// # Errors
    /// Where the system refuses.
    pub fn roam(&self) -> Result<()> {
        self.ip("a-host", "addr flush dev eth")?;
        self.ip("a-host", "link set eth down")?;
        self.mobile.iter().try_for_each(|setting| self.ip("a-host", setting))
    }

    /// Puts a router and its link between a host's device and the internet. Gives what the host is to be told, in the
    /// words of ip(8).
    fn add_access(
        &mut self,
        side: &str,
        host: &str,
        device_of_host: &str,
        (kind, plan): (Kind, &Plan),
        delay: Duration,
    ) -> Result<Vec<String>> {
        let router = format!("{side}-router");
        let mut settings = Vec::new();
        self.add_namespace(&router)?;
        let mtu = if kind == Kind::SmallMtu { 1280 } else { MTU };
        let to_side = format!("to-{side}");
        let device = self.device(side);
        let link = Link::make(&device, mtu, delayed(delay))?;
        self.adopt(&link.ends()[0], &router, "wan")?;
        self.adopt(&link.ends()[1], "net", &to_side)?;
        self.links.push(link);
        if kind.has_ipv4() {
            self.ip(&router, &format!("addr add {}/32 dev wan", plan.wan))?;
            self.ip(&router, "route add default dev wan")?;
            self.ip("net", &format!("route add {}.0/24 dev {to_side}", plan.public_lan))?;
        }
        if kind.has_ipv6() {
            self.ip(&router, &format!("addr add {}::2/128 dev wan nodad", plan.lan6))?;
            self.ip(&router, "-6 route add default dev wan")?;
            self.ip("net", &format!("-6 route add {}::/48 dev {to_side}", plan.lan6))?;
        }
        let mut inner = router.clone();
        if kind == Kind::Double {
            // The carrier's router stands between the home's and the internet.
            let home = format!("{side}-home");
            self.add_namespace(&home)?;
            self.cable(&router, "lan", &home, "wan")?;
            self.ip(&router, "addr add 100.64.0.1/24 dev lan")?;
            self.ip(&home, "addr add 100.64.0.2/24 dev wan")?;
            self.ip(&home, "route add default via 100.64.0.1")?;
            self.nft(&home, &Kind::Preserving.rules(""))?;
            inner = home;
        }
        self.cable(&inner, "lan", host, device_of_host)?;
        let lan = if kind.is_public_v4() { plan.public_lan } else { plan.lan };
        let address = format!("{lan}.130");
        if kind.has_ipv4() {
            self.ip(&inner, &format!("addr add {lan}.129/25 dev lan"))?;
            settings.push(format!("addr add {address}/25 dev {device_of_host}"));
            settings.push(format!("route add default via {lan}.129"));
        }
        if kind.has_ipv6() {
            self.ip(&inner, &format!("addr add {}:1::1/64 dev lan nodad", plan.lan6))?;
            settings.push(format!("addr add {}:1::130/64 dev {device_of_host} nodad", plan.lan6));
            settings.push(format!("-6 route add default via {}:1::1", plan.lan6));
        }
        self.nft(&router, &kind.rules(&address))?;
        if kind == Kind::Upnp {
            self.start_upnp(&router)?;
        }
        Ok(settings)
    }

    /// Whether this machine can stand for a router with UPnP.
    pub fn has_upnp() -> bool {
        Command::new("miniupnpd").arg("--version").output().is_ok()
    }

    fn start_upnp(&mut self, router: &str) -> Result<()> {
        let file = |end: &str| self.scratch.path().join(format!("{router}.{end}"));
        std::fs::write(file("conf"), UPNP)?;
        let daemon = Command::new("ip")
            .args(["netns", "exec", &self.name(router), "miniupnpd", "-d", "-f"])
            .arg(file("conf"))
            .arg("-P")
            .arg(file("pid"))
            .stdin(Stdio::null())
            .stdout(std::fs::File::create(file("log"))?)
            .stderr(std::fs::File::create(file("err"))?)
            .spawn()
            .context("starting miniupnpd")?;
        self.daemons.push(daemon);
        Ok(())
    }

    /// The rules that a router has now, in nftables' words.
    ///
    /// # Errors
    /// Where nft cannot be started.
    pub fn rules_of(&self, machine: &str) -> Result<String> {
        let out = Command::new("ip")
            .args(["netns", "exec", &self.name(machine), "nft", "list", "ruleset"])
            .output()?;
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    }

    /// Starts `hallway ARGS` on a machine of the laboratory: `net`, `a-host`, `b-host`.
    pub fn hallway(
        &self,
        machine: &str,
        name: &str,
        args: impl IntoIterator<Item = impl AsRef<OsStr>>,
    ) -> Process {
        Process::start_in(&self.name(machine), self.scratch.path(), name, args)
    }

    /// The link between side A's or B's router and the internet.
    pub fn link(&self, side: usize) -> &Link {
        &self.links[side]
    }

    /// The router of side A has these rules too, in nftables' words.
    ///
    /// # Errors
    /// Where nft refuses them.
    pub fn add_rules(&self, rules: &str) -> Result<()> {
        self.nft("a-router", rules)
    }

    /// Files of this laboratory.
    pub fn scratch(&self) -> &Path {
        self.scratch.path()
    }

    fn name(&self, machine: &str) -> String {
        format!("{}-{machine}", self.prefix)
    }

    /// A name for a link's devices: at most 15 bytes with the digit at the end.
    fn device(&self, end: &str) -> String {
        format!("{}{end}", self.prefix)
    }

    fn add_namespace(&mut self, machine: &str) -> Result<()> {
        let name = self.name(machine);
        run("ip", &["netns", "add", &name])?;
        self.namespaces.push(name);
        self.ip(machine, "link set lo up")?;
        for family in ["ipv4", "ipv6"] {
            let all = if family == "ipv4" { "ip_forward" } else { "conf/all/forwarding" };
            let set = format!("echo 1 > /proc/sys/net/{family}/{all}");
            run("ip", &["netns", "exec", &self.name(machine), "sh", "-c", &set])?;
        }
        Ok(())
    }

    /// Moves a device of this machine into a namespace, under another name, and switches it on.
    fn adopt(&self, device: &str, machine: &str, name: &str) -> Result<()> {
        run("ip", &["link", "set", device, "netns", &self.name(machine), "name", name])?;
        self.ip(machine, &format!("link set {name} up"))
    }

    fn cable(&self, one: &str, one_end: &str, other: &str, other_end: &str) -> Result<()> {
        let ns = self.name(other);
        self.ip(one, &format!("link add {one_end} type veth peer name {other_end} netns {ns}"))?;
        self.ip(one, &format!("link set {one_end} up"))?;
        self.ip(other, &format!("link set {other_end} up"))
    }

    fn ip(&self, machine: &str, words: &str) -> Result<()> {
        let name = self.name(machine);
        let args: Vec<&str> = ["-n", &name].into_iter().chain(words.split(' ')).collect();
        run("ip", &args)
    }

    fn nft(&self, machine: &str, rules: &str) -> Result<()> {
        let mut nft = Command::new("ip")
            .args(["netns", "exec", &self.name(machine), "nft", "-f", "-"])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        nft.stdin.take().context("no pipe to nft")?.write_all(rules.as_bytes())?;
        let done = nft.wait_with_output()?;
        ensure!(done.status.success(), "nft: {}", String::from_utf8_lossy(&done.stderr));
        Ok(())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for daemon in &mut self.daemons {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        for name in &self.namespaces {
            let _ = run("ip", &["netns", "del", name]);
        }
    }
}

/// A steady link, the same both ways.
fn delayed(delay: Duration) -> [Pipe; 2] {
    let config = LinkConfig::delayed(delay.as_secs_f64() * 1000.0);
    [1, 2].map(|seed| Pipe::new(bench::link::Link::new(config.clone(), seed)))
}

/// Runs a program that should succeed.
///
/// # Errors
/// What it said.
pub fn run(program: &str, args: &[&str]) -> Result<()> {
    let done = Command::new(program).args(args).stdin(Stdio::null()).output();
    let done = done.with_context(|| format!("starting {program}"))?;
    if !done.status.success() {
        bail!("{program} {}: {}", args.join(" "), String::from_utf8_lossy(&done.stderr).trim());
    }
    Ok(())
}
