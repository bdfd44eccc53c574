//! libp2p's view of a QUIC connection: streams, and nothing about datagrams.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures::{AsyncRead, AsyncWrite, FutureExt, future::BoxFuture};
use libp2p::core::muxing::{StreamMuxer, StreamMuxerEvent};

use super::Error;

type Opening = BoxFuture<'static, Result<(quinn::SendStream, quinn::RecvStream), quinn::ConnectionError>>;

/// Streams of one connection. Closing it closes the media on it too.
pub struct Muxer {
    connection: quinn::Connection,
    incoming: Option<Opening>,
    outgoing: Option<Opening>,
    closing: Option<BoxFuture<'static, quinn::ConnectionError>>,
}

impl Muxer {
    pub(super) fn new(connection: quinn::Connection) -> Self {
        Self { connection, incoming: None, outgoing: None, closing: None }
    }
}

impl StreamMuxer for Muxer {
    type Substream = Stream;
    type Error = Error;

    fn poll_inbound(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<Stream, Error>> {
        let connection = self.connection.clone();
        let opening =
            self.incoming.get_or_insert_with(|| async move { connection.accept_bi().await }.boxed());
        let result = ready!(opening.poll_unpin(cx));
        self.incoming = None;
        Poll::Ready(result.map(Stream::new).map_err(Error::from))
    }

    fn poll_outbound(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<Stream, Error>> {
        let connection = self.connection.clone();
        let opening = self.outgoing.get_or_insert_with(|| async move { connection.open_bi().await }.boxed());
        let result = ready!(opening.poll_unpin(cx));
        self.outgoing = None;
        Poll::Ready(result.map(Stream::new).map_err(Error::from))
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let connection = self.connection.clone();
        let closing = self.closing.get_or_insert_with(|| {
            connection.close(0u32.into(), &[]);
            async move { connection.closed().await }.boxed()
        });
        match ready!(closing.poll_unpin(cx)) {
            quinn::ConnectionError::LocallyClosed => Poll::Ready(Ok(())),
            error => Poll::Ready(Err(error.into())),
        }
    }

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<StreamMuxerEvent, Error>> {
        // A migrated connection keeps its identity; the path's statistics show the new address.
        Poll::Pending
    }
}

/// One bidirectional stream.
pub struct Stream {
    send: quinn::SendStream,
    recv: quinn::RecvStream,
    closed: Option<Result<(), io::ErrorKind>>,
}

impl Stream {
    fn new((send, recv): (quinn::SendStream, quinn::RecvStream)) -> Self {
        Self { send, recv, closed: None }
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        AsyncRead::poll_read(Pin::new(&mut self.recv), cx, buf)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        AsyncWrite::poll_write(Pin::new(&mut self.send), cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        AsyncWrite::poll_flush(Pin::new(&mut self.send), cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // libp2p may ask again after the end; quinn would call that an error.
        if let Some(result) = self.closed {
            return Poll::Ready(result.map_err(Into::into));
        }
        let result = ready!(AsyncWrite::poll_close(Pin::new(&mut self.send), cx));
        self.closed = Some(result.as_ref().map_err(io::Error::kind).copied());
        Poll::Ready(result)
    }
}
