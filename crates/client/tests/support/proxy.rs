//! A network that fails on command: forwards connections to a node until told otherwise.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicUsize, Ordering::SeqCst},
    },
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Mode {
    /// Bytes go both ways.
    Pass,
    /// Requests arrive; the next reply is lost, and the connection with it. Later connections pass.
    LoseNextReply,
    /// Like `LoseNextReply`, each time.
    LoseReplies,
    /// Nothing goes either way, and nothing is closed.
    Hang,
}

pub struct Proxy {
    pub address: String,
    state: Arc<State>,
    _accepting: JoinSet<()>,
}

struct State {
    target: SocketAddr,
    mode: AtomicU8,
    lost: AtomicUsize,
}

impl Proxy {
    pub async fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let state = Arc::new(State {
            target,
            mode: AtomicU8::new(Mode::Pass as u8),
            lost: AtomicUsize::new(0),
        });
        let mut accepting = JoinSet::new();
        let accepted = Arc::clone(&state);
        accepting.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                connections.spawn(connection(Arc::clone(&accepted), client));
            }
        });
        Self {
            address,
            state,
            _accepting: accepting,
        }
    }

    pub fn set(&self, mode: Mode) {
        self.state.mode.store(mode as u8, SeqCst);
    }

    /// How many replies were lost.
    pub fn lost(&self) -> usize {
        self.state.lost.load(SeqCst)
    }
}

impl State {
    fn is(&self, mode: Mode) -> bool {
        self.mode.load(SeqCst) == mode as u8
    }

    async fn hang(&self) {
        if self.is(Mode::Hang) {
            std::future::pending().await
        }
    }
}

async fn connection(state: Arc<State>, mut client: TcpStream) {
    state.hang().await;
    let Ok(mut node) = TcpStream::connect(state.target).await else {
        return;
    };
    let (mut from_client, mut to_client) = client.split();
    let (mut from_node, mut to_node) = node.split();
    let requests = async {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(count @ 1..) = from_client.read(&mut buffer).await {
            state.hang().await;
            if to_node.write_all(&buffer[..count]).await.is_err() {
                break;
            }
        }
    };
    let replies = async {
        while let Ok(frame) = read_frame(&mut from_node).await {
            state.hang().await;
            // An HTTP/2 DATA frame from a node is a reply: the request has been applied by now.
            if frame[3] == 0 {
                if state.is(Mode::LoseNextReply) {
                    state.mode.store(Mode::Pass as u8, SeqCst);
                    state.lost.fetch_add(1, SeqCst);
                    return;
                }
                if state.is(Mode::LoseReplies) {
                    state.lost.fetch_add(1, SeqCst);
                    return;
                }
            }
            if to_client.write_all(&frame).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = requests => {}
        () = replies => {}
    }
}

/// One HTTP/2 frame: a length of 3 bytes, a type, flags, a stream of 4 bytes, the payload.
async fn read_frame(from: &mut (impl AsyncReadExt + Unpin)) -> std::io::Result<Vec<u8>> {
    let mut frame = vec![0; 9];
    from.read_exact(&mut frame).await?;
    let length = u32::from_be_bytes([0, frame[0], frame[1], frame[2]]) as usize;
    frame.resize(9 + length, 0);
    from.read_exact(&mut frame[9..]).await?;
    Ok(frame)
}
