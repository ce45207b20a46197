// A cluster in this process, for tests and for the examples in the documentation.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use keydb_client::{Client, ClientConfig};
use keydb_core::{Durability, NewCluster, NodeId};
use keydb_node::{NodeConfig, SystemClock};
use keydb_storage::{MapStore, MemoryStorage};
use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle};

pub struct Cluster {
    clock: Arc<SystemClock>,
    storage: Arc<MemoryStorage>,
    pub sockets: Vec<SocketAddr>,
    running: Vec<Option<Running>>,
}

struct Running {
    stop: oneshot::Sender<()>,
    ended: JoinHandle<Result<(), keydb_node::NodeError>>,
}

impl Cluster {
    /// As many nodes, each on a free port.
    pub async fn start(nodes: usize) -> Self {
        let mut listeners = Vec::new();
        for _ in 0..nodes {
            listeners.push(TcpListener::bind("127.0.0.1:0").await.unwrap());
        }
        let addresses = listeners
            .iter()
            .map(|listener| listener.local_addr().unwrap().to_string())
            .collect();
        Self::start_as(listeners, addresses).await
    }

    /// Nodes that listen here and are reached under `addresses`.
    pub async fn start_as(listeners: Vec<TcpListener>, addresses: Vec<String>) -> Self {
        let clock = Arc::new(SystemClock::new());
        let storage = Arc::new(MemoryStorage::new(clock.clone()));
        let new = NewCluster {
            addresses,
            range_count: 128,
            durability: Durability::Memory,
        };
        MapStore::new(storage.clone()).init(&new).await.unwrap();
        let mut cluster = Self {
            clock,
            storage,
            sockets: Vec::new(),
            running: Vec::new(),
        };
        for listener in listeners {
            cluster.sockets.push(listener.local_addr().unwrap());
            let running = cluster.run(cluster.running.len(), listener);
            cluster.running.push(Some(running));
        }
        cluster
    }

    fn run(&self, index: usize, listener: TcpListener) -> Running {
        let (stop, stopped) = oneshot::channel::<()>();
        let mut config = NodeConfig::new(NodeId(index as u32));
        config.map_poll_interval = Duration::from_millis(20);
        config.drain_deadline = Duration::from_secs(2);
        let node = keydb_node::run(
            config,
            listener,
            self.storage.clone(),
            self.clock.clone(),
            async {
                let _ = stopped.await;
            },
        );
        Running {
            stop,
            ended: tokio::spawn(node),
        }
    }

    /// Stops a node and waits until it has stopped.
    pub async fn stop(&mut self, index: usize) {
        let running = self.running[index].take().unwrap();
        let _ = running.stop.send(());
        running.ended.await.unwrap().unwrap();
    }

    /// Starts a stopped node again, on its old port.
    pub async fn restart(&mut self, index: usize) {
        let listener = TcpListener::bind(self.sockets[index]).await.unwrap();
        self.running[index] = Some(self.run(index, listener));
    }

    /// The nodes that have not been stopped.
    pub fn running(&self) -> Vec<usize> {
        let running = self.running.iter().enumerate();
        running
            .filter_map(|(index, node)| node.is_some().then_some(index))
            .collect()
    }

    pub fn map_store(&self) -> MapStore {
        MapStore::new(self.storage.clone())
    }

    /// Settings that find the cluster.
    pub fn config(&self) -> ClientConfig {
        ClientConfig::new(self.sockets.iter().map(SocketAddr::to_string))
    }

    pub async fn client(&self) -> Client {
        Client::connect(self.config()).await.unwrap()
    }
}

/// Runs an example against a cluster of one node.
pub fn example(example: impl AsyncFnOnce(Client)) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut cluster = Cluster::start(1).await;
        example(cluster.client().await).await;
        cluster.stop(0).await;
    });
}
