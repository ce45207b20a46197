//! Connections in: how many, their TLS handshakes, and an end to them.

use std::{
    collections::{HashMap, hash_map::Entry},
    future::Future,
    io::{self, IoSlice},
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use futures_util::stream::{Stream as Items, unfold};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
    time::{Sleep, sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, TlsStream};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;
use tracing::{debug, warn};

use crate::{access::Access, stream::Stream, tls::ServerTls};

/// Connections of a listener at the same time; more wait to be accepted.
pub const CONNECTIONS_MAX: usize = 8192;
/// The same from one IP address; more are closed at once, so that one host does not keep all others out.
pub const PEER_CONNECTIONS_MAX: usize = 1024;
/// TLS handshakes of a listener at the same time.
const HANDSHAKES_MAX: usize = 1024;
/// How long a TLS handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection may take to say the first bytes of its protocol.
const FIRST_WORD_TIMEOUT: Duration = Duration::from_secs(5);
/// HTTP/2 begins with so many (RFC 9113, 3.4), and a request of HTTP/1.1 has more.
const FIRST_WORD_BYTES: usize = 16;

/// How long no connection is accepted after a failure, for want of file descriptors perhaps.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What protects a listener; nothing unless something is said.
#[derive(Debug, Clone, Default)]
pub struct ListenerSecurity {
    /// Connections are encrypted.
    pub tls: Option<Arc<ServerTls>>,
    /// Who may do what.
    pub access: Access,
}

impl ListenerSecurity {
    /// Whether nobody but those who are known can do anything, and nobody can read along.
    pub fn is_protected(&self) -> bool {
        self.tls
            .as_ref()
            .is_some_and(|tls| tls.asks_for_certificates() || self.access.asks_for_tokens())
    }
}

/// What is spoken on connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/2. Where certificates are asked for, a connection without one comes to nothing.
    Grpc,
    /// HTTP/1.1. A connection without a certificate can ask what probes ask.
    Http,
}

/// The connections that a listener accepts.
#[derive(Debug)]
pub struct Incoming {
    listener: TcpListener,
    tls: Option<Arc<ServerTls>>,
    protocol: Protocol,
    room: Arc<Semaphore>,
    peers: Peers,
    cut: CancellationToken,
    handshakes: JoinSet<Option<Connection>>,
    /// Whether the last try to accept a connection failed, and whether it had to wait for room.
    trouble: (bool, bool),
}

/// How many connections each IP address has.
type Peers = Arc<Mutex<HashMap<IpAddr, usize>>>;

/// One connection of a peer, until it is dropped.
#[derive(Debug)]
struct OfPeer(Peers, IpAddr);

impl OfPeer {
    /// Nothing where it has as many as it may.
    fn enter(peers: &Peers, peer: IpAddr) -> Option<Self> {
        let mut counts = peers.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(peer).or_default();
        (*count < PEER_CONNECTIONS_MAX).then(|| {
            *count += 1;
            Self(Arc::clone(peers), peer)
        })
    }
}

impl Drop for OfPeer {
    fn drop(&mut self) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Occupied(mut count) = counts.entry(self.1) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

impl Incoming {
    /// Those of `listener`, which end when `cut` does.
    pub fn new(
        listener: TcpListener,
        tls: Option<Arc<ServerTls>>,
        protocol: Protocol,
        cut: CancellationToken,
    ) -> Self {
        Self {
            listener,
            tls,
            protocol,
            room: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            peers: Peers::default(),
            cut,
            handshakes: JoinSet::new(),
            trouble: (false, false),
        }
    }

    /// The next one whose handshake is done.
    pub async fn accept(&mut self) -> Connection {
        loop {
            let has_room = self.handshakes.len() < HANDSHAKES_MAX;
            let (room, listener, trouble) = (&self.room, &self.listener, &mut self.trouble);
            let (stream, peer, place) = tokio::select! {
                Some(done) = self.handshakes.join_next() => match done {
                    Ok(Some(connection)) => return connection,
                    _ => continue,
                },
                accepted = accept(room, listener, trouble), if has_room => accepted,
            };
            let Some(of_peer) = OfPeer::enter(&self.peers, peer.ip()) else {
                debug!(%peer, "it has {PEER_CONNECTIONS_MAX} connections, which is the limit");
                continue;
            };
            let cut = Box::pin(self.cut.clone().cancelled_owned());
            let connection = move |stream| Connection {
                stream,
                peer,
                has_certificate: false,
                first_word: Some((0, Box::pin(sleep(FIRST_WORD_TIMEOUT)))),
                cut,
                _place: (place, of_peer),
            };
            let Some(tls) = self.tls.clone() else {
                return connection(Stream::Plain(stream));
            };
            let handshake = handshake(stream, tls, self.protocol);
            self.handshakes.spawn(async move {
                let stream = match timeout(HANDSHAKE_TIMEOUT, handshake).await {
                    Ok(Ok(stream)) => stream,
                    Ok(Err(error)) => {
                        debug!(%peer, "a TLS handshake failed: {error}");
                        return None;
                    }
                    Err(_) => {
                        debug!(%peer, "a TLS handshake took more than {HANDSHAKE_TIMEOUT:?}");
                        return None;
                    }
                };
                let has_certificate = stream.get_ref().1.peer_certificates().is_some();
                let mut connection = connection(Stream::Tls(Box::new(stream)));
                connection.has_certificate = has_certificate;
                Some(connection)
            });
        }
    }

    /// All of them, as a server of gRPC takes them.
    pub fn into_stream(self) -> impl Items<Item = io::Result<Connection>> {
        unfold(self, async |mut incoming| {
            let connection = incoming.accept().await;
            Some((Ok(connection), incoming))
        })
    }
}

async fn accept(
    room: &Arc<Semaphore>,
    listener: &TcpListener,
    (has_failed, has_waited): &mut (bool, bool),
) -> (TcpStream, SocketAddr, OwnedSemaphorePermit) {
    const OPEN: &str = "the semaphore is never closed";
    let place = match Arc::clone(room).try_acquire_owned() {
        Ok(place) => {
            *has_waited = false;
            place
        }
        Err(_) => {
            if !std::mem::replace(has_waited, true) {
                warn!(
                    "{CONNECTIONS_MAX} connections are open, which is the limit; more have to wait"
                );
            }
            Arc::clone(room).acquire_owned().await.expect(OPEN)
        }
    };
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                *has_failed = false;
                // Requests are written whole, so waiting for more only delays them. Without it they still arrive.
                if let Err(error) = stream.set_nodelay(true) {
                    debug!(%error, "cannot set TCP_NODELAY");
                }
                return (stream, peer, place);
            }
            // Each of these failures concerns one connection, or passes when other files are closed.
            Err(error) => {
                if !std::mem::replace(has_failed, true) {
                    warn!(%error, "cannot accept a connection, trying again");
                }
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// What the first byte of a TLS connection is.
const TLS_HANDSHAKE: u8 = 0x16;

async fn handshake(
    mut stream: TcpStream,
    tls: Arc<ServerTls>,
    protocol: Protocol,
) -> io::Result<TlsStream<TcpStream>> {
    let mut first = [0];
    if stream.peek(&mut first).await? == 1 && first[0] != TLS_HANDSHAKE {
        stream.write_all(&plain_refusal(protocol)).await?;
        stream.shutdown().await?;
        // What was sent is read, or else the answer would be lost with it.
        tokio::io::copy(&mut stream, &mut tokio::io::sink()).await?;
        return Err(io::Error::other("it is not TLS"));
    }
    let config = match protocol {
        Protocol::Grpc => tls.grpc(),
        Protocol::Http => tls.http(),
    };
    let stream = TlsAcceptor::from(config).accept(stream).await?;
    Ok(TlsStream::Server(stream))
}

/// What those hear who do not speak TLS, in their own protocol.
fn plain_refusal(protocol: Protocol) -> Vec<u8> {
    const REASON: &str = "this port speaks TLS";
    match protocol {
        Protocol::Http => format!(
            "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{REASON}\n",
            REASON.len() + 1
        )
        .into_bytes(),
        // RFC 9113: empty SETTINGS (6.5), then GOAWAY (6.8) with no stream worked on, INADEQUATE_SECURITY (7), and the reason.
        Protocol::Grpc => {
            let length = 8 + REASON.len() as u8;
            let mut frames = vec![0, 0, 0, 4, 0, 0, 0, 0, 0];
            frames.extend([0, 0, length, 7, 0, 0, 0, 0, 0]);
            frames.extend([0, 0, 0, 0, 0, 0, 0, 0xc]);
            frames.extend(REASON.as_bytes());
            frames
        }
    }
}

/// A connection that can be cut off from this side.
#[derive(Debug)]
pub struct Connection {
    stream: Stream,
    peer: SocketAddr,
    has_certificate: bool,
    /// While its first word is not complete: how many bytes of it there are, and until when the rest has to come.
    first_word: Option<(usize, Pin<Box<Sleep>>)>,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    _place: (OwnedSemaphorePermit, OfPeer),
}

impl Connection {
    /// Whether its other end has shown a certificate, and that one is trusted.
    pub(crate) fn has_certificate(&self) -> bool {
        self.has_certificate
    }

    /// The connection's stream, unless it has been cut.
    fn stream(&mut self, context: &mut Context<'_>) -> io::Result<Pin<&mut Stream>> {
        match self.cut.as_mut().poll(context) {
            Poll::Ready(()) => Err(io::ErrorKind::ConnectionAborted.into()),
            Poll::Pending => Ok(Pin::new(&mut self.stream)),
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = self.stream(context)?.poll_read(context, buffer)?;
        if let Some((bytes, deadline)) = &mut self.first_word {
            *bytes += buffer.filled().len() - before;
            if *bytes >= FIRST_WORD_BYTES {
                self.first_word = None;
            } else if deadline.as_mut().poll(context).is_ready() {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
        }
        read.map(Ok)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.stream(context)?.poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.stream(context)?.poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream(context)?.poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream(context)?.poll_shutdown(context)
    }
}

impl Connected for Connection {
    type ConnectInfo = SocketAddr;

    fn connect_info(&self) -> SocketAddr {
        self.peer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_has_so_many_connections_and_others_have_theirs() {
        let peers = Peers::default();
        let [one, other] = ["10.0.0.1", "10.0.0.2"].map(|it| it.parse::<IpAddr>().unwrap());
        let enter = |peer| OfPeer::enter(&peers, peer);
        let mut all: Vec<_> = (0..PEER_CONNECTIONS_MAX).map(|_| enter(one)).collect();
        assert!(all.iter().all(Option::is_some));
        assert!(enter(one).is_none());
        assert!(enter(other).is_some());
        all.pop();
        assert!(enter(one).is_some());
        drop(all);
        assert!(peers.lock().unwrap().is_empty());
    }
}
