//! A link that can be cut, slow or silent: a relay between a listener and an address.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{JoinHandle, JoinSet},
    time::sleep,
};

/// What becomes of what is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Link {
    Open,
    /// Connections end, and no new ones are accepted for longer than a moment.
    Cut,
    /// The same for all but this process: nodes are cut off from each other, and its clients reach them all.
    CutFromOthers,
    /// Nothing comes through, and nobody is told.
    Silent,
    /// Each piece comes so much later.
    Slow(Duration),
}

/// A relay. It ends, with all connections, when this is dropped.
#[derive(Debug)]
pub(crate) struct Relay {
    pub(crate) address: SocketAddr,
    link: Arc<watch::Sender<Link>>,
    task: JoinHandle<()>,
}

impl Relay {
    /// From `port`, any that is free for 0, to `to`.
    pub(crate) async fn start(port: u16, to: String) -> Self {
        let mut bound = TcpListener::bind(("127.0.0.1", port)).await;
        // It was free, and somebody else may have had it for a moment since.
        for _ in 0..100 {
            if bound.is_err() {
                sleep(Duration::from_millis(50)).await;
                bound = TcpListener::bind(("127.0.0.1", port)).await;
            }
        }
        let listener = bound.unwrap();
        let address = listener.local_addr().unwrap();
        let link = Arc::new(watch::Sender::new(Link::Open));
        let task = tokio::spawn({
            let link = Arc::clone(&link);
            async move {
                let mut connections = JoinSet::new();
                loop {
                    let Ok((from, _)) = listener.accept().await else {
                        sleep(Duration::from_millis(10)).await;
                        continue;
                    };
                    connections.spawn(relay(from, to.clone(), link.subscribe()));
                    while connections.try_join_next().is_some() {}
                }
            }
        });
        Self {
            address,
            link,
            task,
        }
    }

    pub(crate) fn be(&self, link: Link) {
        self.link.send_replace(link);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn relay(from: TcpStream, to: String, mut link: watch::Receiver<Link>) {
    let pieces = (link.clone(), link.clone());
    let ends = (from.peer_addr().unwrap(), from.local_addr().unwrap());
    let is_cut = |link: &Link| match link {
        Link::Cut => true,
        Link::CutFromOthers => !is_of_this_process(ends),
        Link::Open | Link::Silent | Link::Slow(_) => false,
    };
    let through = async {
        let to = TcpStream::connect(to).await?;
        let _ = (from.set_nodelay(true), to.set_nodelay(true));
        let ((from_read, from_write), (to_read, to_write)) = (from.into_split(), to.into_split());
        tokio::try_join!(
            pass_on(from_read, to_write, pieces.0),
            pass_on(to_read, from_write, pieces.1)
        )
    };
    tokio::select! {
        _ = through => {}
        _ = link.wait_for(is_cut) => {}
    }
}

/// Whether this process has the socket whose own address and whose peer's these are.
fn is_of_this_process((own, peer): (SocketAddr, SocketAddr)) -> bool {
    let [own, peer] = [own, peer].map(|address| format!(":{:04X}", address.port()));
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let sockets = table.lines().map(|line| line.split_whitespace().collect());
    let mut found = sockets
        .filter(|it: &Vec<&str>| it[1].ends_with(&own) && it[2].ends_with(&peer))
        .map(|it| format!("socket:[{}]", it[9]));
    let files = std::fs::read_dir("/proc/self/fd").unwrap();
    let mut files = files.filter_map(|file| std::fs::read_link(file.ok()?.path()).ok());
    found
        .next()
        .is_some_and(|socket| files.any(|file| file.as_os_str() == &*socket))
}

async fn pass_on(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut link: watch::Receiver<Link>,
) -> std::io::Result<()> {
    let mut piece = vec![0; 64 << 10];
    loop {
        let count = from.read(&mut piece).await?;
        if count == 0 {
            return to.shutdown().await;
        }
        let now = link.wait_for(|link| *link != Link::Silent).await;
        let now = *now.map_err(std::io::Error::other)?;
        if let Link::Slow(delay) = now {
            sleep(delay).await;
        }
        to.write_all(&piece[..count]).await?;
    }
}
