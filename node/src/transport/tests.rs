//! Two endpoints on loopback: streams for libp2p and datagrams for media on one connection.

use futures::{AsyncReadExt, AsyncWriteExt, future::poll_fn};
use libp2p::{
    core::{Endpoint, muxing::StreamMuxerExt},
    identity::Keypair,
};

use super::*;

fn transport(keypair: &Keypair) -> (QuicTransport, mpsc::Receiver<Authenticated>) {
    QuicTransport::new(Config::new(keypair).unwrap())
}

async fn listen(transport: &mut QuicTransport, addr: &str) -> Multiaddr {
    transport.listen_on(ListenerId::next(), addr.parse().unwrap()).unwrap();
    match poll_fn(|cx| Pin::new(&mut *transport).poll(cx)).await {
        TransportEvent::NewAddress { listen_addr, .. } => listen_addr,
        _ => panic!("a listener first tells its address"),
    }
}

const DIAL: DialOpts = DialOpts { role: Endpoint::Dialer, port_use: PortUse::Reuse };

/// A connected pair: (peer seen by the dialler, its muxer), (peer seen by the listener, its muxer).
async fn connect(listen_on: &str) -> (Pair, Pair) {
    let (ana, ben) = (Keypair::generate_ed25519(), Keypair::generate_ed25519());
    let (mut dialler, mut dialler_media) = transport(&ana);
    let (mut listener, mut listener_media) = transport(&ben);
    let addr = listen(&mut listener, listen_on).await;
    let dial = dialler.dial(addr, DIAL).unwrap();
    let accept = async {
        loop {
            let event = poll_fn(|cx| Pin::new(&mut listener).poll(cx)).await;
            if let Some((upgrade, _)) = event.into_incoming() {
                return upgrade.await.unwrap();
            }
        }
    };
    let (dialled, accepted) = tokio::join!(dial, accept);
    let dialled = dialled.unwrap();
    assert_eq!(dialled.0, ben.public().to_peer_id());
    assert_eq!(accepted.0, ana.public().to_peer_id());
    let (a, b) = (dialler_media.recv().await.unwrap(), listener_media.recv().await.unwrap());
    assert!(a.dialer && !b.dialer);
    ((dialled.1, a, dialler), (accepted.1, b, listener))
}

type Pair = (Muxer, Authenticated, QuicTransport);

#[tokio::test]
async fn streams_and_datagrams_share_one_authenticated_connection_on_ipv4_and_ipv6() {
    for local in ["/ip4/127.0.0.1/udp/0/quic-v1", "/ip6/::1/udp/0/quic-v1"] {
        let ((mut a_mux, a, _at), (mut b_mux, b, _bt)) = connect(local).await;
        let outbound = async {
            let mut stream = poll_fn(|cx| a_mux.poll_outbound_unpin(cx)).await.unwrap();
            stream.write_all(b"hello").await.unwrap();
            stream.close().await.unwrap();
            stream
        };
        let inbound = async {
            let mut stream = poll_fn(|cx| b_mux.poll_inbound_unpin(cx)).await.unwrap();
            let mut heard = Vec::new();
            stream.read_to_end(&mut heard).await.unwrap();
            heard
        };
        let (_, heard) = tokio::join!(outbound, inbound);
        assert_eq!(heard, b"hello");
        a.connection.send_datagram(bytes::Bytes::from_static(b"voice")).unwrap();
        assert_eq!(&b.connection.read_datagram().await.unwrap()[..], b"voice");
        assert!(a.connection.max_datagram_size().unwrap() >= 1100);
    }
}

#[tokio::test]
async fn the_connection_runs_under_the_media_controller() {
    let ((_am, a, _at), (_bm, _b, _bt)) = connect("/ip4/127.0.0.1/udp/0/quic-v1").await;
    let controller = a.connection.congestion_state().into_any().downcast::<MediaController>().unwrap();
    assert!(controller.path_metrics().window >= 64 * 1024);
}

#[tokio::test]
async fn closing_the_streams_closes_the_media_too() {
    let ((mut a_mux, _a, _at), (_bm, b, _bt)) = connect("/ip4/127.0.0.1/udp/0/quic-v1").await;
    poll_fn(|cx| a_mux.poll_close_unpin(cx)).await.unwrap();
    assert!(matches!(b.connection.closed().await, quinn::ConnectionError::ApplicationClosed(_)));
}

#[tokio::test]
async fn a_dial_ends_where_a_connection_from_that_place_was_there_first() {
    let (mut ana, _ana_media) = transport(&Keypair::generate_ed25519());
    let (mut ben, _ben_media) = transport(&Keypair::generate_ed25519());
    let ana_addr = listen(&mut ana, "/ip4/127.0.0.1/udp/0/quic-v1").await;
    let ben_addr = listen(&mut ben, "/ip4/127.0.0.1/udp/0/quic-v1").await;
    // Nobody polls Ben, so he answers no dial; his own goes through.
    let outrun = ana.dial(ben_addr, DIAL).unwrap();
    let dialled = ben.dial(ana_addr, DIAL).unwrap();
    let accepted = async {
        loop {
            let event = poll_fn(|cx| Pin::new(&mut ana).poll(cx)).await;
            if let Some((upgrade, _)) = event.into_incoming() {
                return upgrade.await;
            }
        }
    };
    let (outrun, dialled, accepted) = tokio::join!(outrun, dialled, accepted);
    assert!(matches!(outrun, Err(Error::Outrun)));
    assert!(dialled.is_ok() && accepted.is_ok());
}

#[test]
fn addresses_of_other_transports_are_handed_back() {
    let (mut transport, _media) = transport(&Keypair::generate_ed25519());
    let tcp: Multiaddr = "/ip4/127.0.0.1/tcp/1".parse().unwrap();
    assert!(
        matches!(transport.dial(tcp.clone(), DIAL), Err(TransportError::MultiaddrNotSupported(a)) if a == tcp)
    );
    let nowhere: Multiaddr = "/ip4/0.0.0.0/udp/1/quic-v1".parse().unwrap();
    assert!(matches!(transport.dial(nowhere, DIAL), Err(TransportError::MultiaddrNotSupported(_))));
}
