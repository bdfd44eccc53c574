//! A member of a room at a server, as far as the forwarder knows: registered, bound, and silent otherwise.

use std::time::Duration;

use futures::StreamExt;
use hallway::forward::wire::bind;
use hallway::forward::{Link, LinkConfig, LinkEvent};
use hallway::node::swarm;
use hallway::rendezvous::{Behaviour, Client, ClientConfig, ClientEvent, Target};
use libp2p::identity::Keypair;
use libp2p::{Multiaddr, PeerId};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::process::SOON;

/// See the module's text. Leaves when it is dropped.
pub struct Guest {
    /// Who.
    pub peer: PeerId,
    /// To the server; datagrams of the room come and go on it.
    pub connection: quinn::Connection,
    /// Names the room in datagrams.
    pub handle: u32,
    /// Everybody in the room, with the number that datagrams name.
    pub members: Vec<(u8, PeerId)>,
    _link: Link,
    _client: Client,
}

impl Guest {
    /// Enters a namespace at a server and waits until so many are there, itself included.
    pub async fn enter(keypair: Keypair, at: &str, namespace: &str, wanted: usize) -> Guest {
        Self::enter_after(Duration::ZERO, keypair, at, namespace, wanted).await
    }

    /// The same, but is registered only so long after it has asked for the room.
    pub async fn enter_after(
        late: Duration,
        keypair: Keypair,
        at: &str,
        namespace: &str,
        wanted: usize,
    ) -> Guest {
        let entering = Self::entering(late, keypair, at, namespace, wanted);
        timeout(SOON, entering).await.unwrap_or_else(|_| panic!("the server does not let {wanted} in"))
    }

    async fn entering(late: Duration, keypair: Keypair, at: &str, namespace: &str, wanted: usize) -> Guest {
        let peer = keypair.public().to_peer_id();
        let (behaviour, opener) = Behaviour::client();
        let setup = swarm::Setup::plain(behaviour);
        let (mut swarm, mut connections) = swarm::build(&keypair, setup).unwrap();
        tokio::spawn(async move {
            loop {
                swarm.select_next_some().await;
            }
        });
        let target = Target::from_multiaddr(&at.parse::<Multiaddr>().unwrap());
        let config = ClientConfig::new(target.clone(), keypair, namespace.to_owned(), None);
        let (news, mut told) = mpsc::channel(16);
        let (data, namespace, by) = (Box::new(|_, _| ()), namespace.to_owned(), opener.clone());
        let link = Link::spawn(LinkConfig { key: 0, news, data, target, namespace, opener: by, seed: 1 });
        let connection = connections.recv().await.expect("a connection").connection;
        // That the room was asked for shows nowhere before the answer, which is what is put off here.
        tokio::time::sleep(late).await;
        let (client, mut events) = Client::spawn(config, opener).unwrap();
        while !matches!(events.recv().await.expect("the server"), ClientEvent::Registered { .. }) {}
        tokio::spawn(async move { while events.recv().await.is_some() {} });
        let (mut handle, mut members) = (0, Vec::new());
        while members.len() < wanted {
            match told.recv().await.expect("news").1 {
                LinkEvent::Up { handle: opened, .. } => {
                    handle = opened;
                    connection.send_datagram(bind(handle)).unwrap();
                }
                LinkEvent::Members { members: now, .. } => members = now,
                LinkEvent::Down { .. } | LinkEvent::Refused { .. } => panic!("the forwarder refuses"),
                LinkEvent::Draining { .. } => {}
            }
        }
        tokio::spawn(async move { while told.recv().await.is_some() {} });
        Guest { peer, connection, handle, members, _link: link, _client: client }
    }

    /// The number of somebody else who is there.
    pub fn number_of(&self, peer: &PeerId) -> u8 {
        self.members.iter().find(|(_, member)| member == peer).expect("it is there").0
    }
}
