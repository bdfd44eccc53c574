//! A rendezvous server and the nodes that meet there, each with a home of its own in one scratch directory.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Instant;

use hallway::controls::Controls;
use hallway::ctl::{self, Call};
use hallway::invite::Invite;
use hallway::node::{self, PathChoice};
use hallway::trust::Trust;
use hallway::volumes::Volumes;
use libp2p::identity::Keypair;
use tempfile::TempDir;

use crate::process::Process;

/// QUIC on IPv4 loopback, a free port.
pub const QUIC4: &str = "/ip4/127.0.0.1/udp/0/quic-v1";
/// QUIC on IPv6 loopback, a free port.
pub const QUIC6: &str = "/ip6/::1/udp/0/quic-v1";
/// TCP on IPv4 loopback, a free port.
pub const TCP4: &str = "/ip4/127.0.0.1/tcp/0";

/// A scratch directory with a rendezvous server in it.
pub struct Hall {
    /// Where everything is kept until the test ends.
    pub dir: TempDir,
    /// The server.
    pub server: Process,
    /// Its address with its PeerId, for `--at`.
    pub at: String,
}

/// What a node is started with; the room is the first argument of [`Hall::node`].
pub struct NodeArgs<'a> {
    /// `--input`
    pub input: String,
    /// `--output`
    pub output: String,
    /// `--listen`
    pub listen: &'a str,
    /// Anything else.
    pub more: Vec<String>,
}

impl Default for NodeArgs<'_> {
    fn default() -> Self {
        Self { input: "silence".into(), output: "null".into(), listen: QUIC4, more: Vec::new() }
    }
}

impl NodeArgs<'_> {
    /// A node that hums and keeps what it hears.
    pub fn humming(hz: u32, heard: &Path) -> Self {
        Self { input: format!("tone:{hz}"), output: file(heard), ..Self::default() }
    }

    /// With these further arguments.
    pub fn with(mut self, more: &[&str]) -> Self {
        self.more.extend(more.iter().map(|arg| (*arg).to_owned()));
        self
    }
}

impl Hall {
    /// A server on QUIC over IPv4.
    pub fn open() -> Hall {
        Self::listening(QUIC4)
    }

    /// A server that listens there.
    pub fn listening(listen: &str) -> Hall {
        let dir = tempfile::tempdir().unwrap();
        let server = serve(dir.path(), "rendezvous", listen);
        let at = address(&server);
        Hall { dir, server, at }
    }

    /// Starts the server again where it was, as after a crash.
    pub fn reopen(&mut self) {
        let (listen, _) = self.at.split_once("/p2p/").expect("an address with an identity");
        self.server = serve(self.dir.path(), "rendezvous", listen);
        assert_eq!(address(&self.server), self.at, "the same server");
    }

    /// A path in the scratch directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Starts a node that knows this server.
    pub fn node(&self, room: &str, name: &str, args: NodeArgs<'_>) -> Process {
        let at = self.at.clone();
        node(self.dir.path(), room, name, args.with(&["--at", &at]))
    }
}

/// Starts a rendezvous server that calls itself by its events.
pub fn serve(dir: &Path, name: &str, listen: &str) -> Process {
    let home = dir.join(format!("home-{name}")).display().to_string();
    Process::start(dir, name, ["rendezvous", "--listen", listen, "--data-dir", &home, "--json"], &[])
}

/// The first address of a server, with its PeerId.
pub fn address(server: &Process) -> String {
    let (peer_id, listen) = (server.peer_id(), server.listen());
    format!("{}/p2p/{peer_id}", listen.first().expect("an address"))
}

/// Starts a node with a home of its own and no server but those in `args`.
pub fn node(dir: &Path, room: &str, name: &str, args: NodeArgs<'_>) -> Process {
    let home = dir.join(format!("home-{name}")).display().to_string();
    let mut all = ["join", room, "--name", name, "--data-dir", &home, "--json"].map(str::to_owned).to_vec();
    all.extend(["--input".into(), args.input, "--output".into(), args.output]);
    all.extend(["--listen".into(), args.listen.to_owned()]);
    all.extend(args.more);
    Process::start(dir, name, all, &[])
}

/// A connection to the control socket of the node of this name, which has the home that [`node`] gives it.
pub fn control(dir: &Path, name: &str) -> Call {
    let folder = ctl::folder(Some(&dir.join(format!("home-{name}"))));
    let mut calls = ctl::calls(&folder);
    assert_eq!(calls.len(), 1, "sockets in {}", folder.display());
    calls.remove(0)
}

/// What a node in this process is started with: on loopback, at no server, and nothing remembered.
pub fn config(keypair: Keypair, name: &str, invite: &Invite) -> node::Config {
    node::Config {
        keypair,
        name: name.into(),
        invite: invite.clone(),
        rendezvous: Vec::new(),
        listen: vec![QUIC4.parse().unwrap()],
        announce: Vec::new(),
        path: PathChoice::Auto,
        tcp: true,
        map_port: false,
        lan: false,
        channels: 1,
        max_kbps: None,
        dtx: false,
        started: Instant::now(),
        leave_after: None,
        require_peer: None,
        peers: Vec::new(),
        wait_anyway: true,
        input: String::new(),
        output: String::new(),
        controls: Controls::default(),
        volumes: Volumes::default(),
        trust: Trust::default(),
        history: None,
    }
}

/// A socket as an address of QUIC.
pub fn quic(socket: SocketAddr) -> String {
    format!("/ip4/{}/udp/{}/quic-v1", socket.ip(), socket.port())
}

/// The socket that an address names, whatever follows in it.
pub fn socket_in(addr: &str) -> SocketAddr {
    let mut parts = addr.split('/').skip(2).step_by(2);
    let (ip, port) = (parts.next().expect("an address"), parts.next().expect("a port"));
    SocketAddr::new(ip.parse().unwrap(), port.parse().unwrap())
}

/// The socket at which a program listens for QUIC.
pub fn socket_of(process: &Process) -> SocketAddr {
    socket_in(process.listen().iter().find(|addr| addr.contains("quic-v1")).expect("a QUIC address"))
}

/// A `file:` source or sink.
pub fn file(path: &Path) -> String {
    format!("file:{}", path.display())
}
