//! A KeyDB node through the client library: batches of 1,000 keys, 16 calls in flight.

use std::{
    io,
    ops::Range,
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use keydb_client::{Claim, Client, ClientConfig, Ttl};
use tokio::{runtime::Runtime, task::JoinSet};

use crate::{
    keys::Keys,
    load::{Store, TASKS, check},
    process::{Server, free_port},
};

const BATCH: usize = 1000;
const IN_FLIGHT: usize = 16;

pub(crate) struct KeyDb {
    runtime: Runtime,
    client: Client,
    server: Server,
    ttl: Ttl,
    _directory: tempfile::TempDir,
}

impl KeyDb {
    /// Starts a node of a new cluster with this durability; its disk and its object storage are temporary directories.
    pub(crate) fn start(binary: &Path, durability: &str) -> io::Result<Self> {
        let port = free_port()?;
        let directory = tempfile::tempdir()?;
        let settings = |command: &mut Command| {
            command
                .env(
                    "KEYDB_STORAGE_URL",
                    format!("file://{}/storage", directory.path().display()),
                )
                .env("KEYDB_DATA_DIR", directory.path().join("data"))
                .env("KEYDB_DURABILITY", durability)
                .env("KEYDB_HTTP_PORT", "off")
                .env("KEYDB_NODE_ADDRESSES", format!("127.0.0.1:{port}"))
                .env("KEYDB_NODE_ID", "0")
                .env("KEYDB_PORT", port.to_string())
                .env("KEYDB_INIT", "true");
        };
        let mut command = Command::new(binary);
        command.arg("node");
        settings(&mut command);
        let server = Server::start(&mut command, port)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()?;
        let client = runtime
            .block_on(Client::connect(ClientConfig::new([format!(
                "127.0.0.1:{port}"
            )])))
            .map_err(io::Error::other)?;
        let ttl = Ttl::from_seconds(3600).map_err(io::Error::other)?;
        Ok(Self {
            runtime,
            client,
            server,
            ttl,
            _directory: directory,
        })
    }

    /// Runs `call` on each piece of `piece` items, in `tasks` tasks at once, and adds up what it returns.
    fn spread<F>(
        &self,
        total: usize,
        piece: usize,
        tasks: usize,
        call: impl Fn(Client, Range<usize>) -> F + Clone + Send + 'static,
    ) -> io::Result<usize>
    where
        F: Future<Output = io::Result<usize>> + Send,
    {
        let next = Arc::new(AtomicUsize::new(0));
        self.runtime.block_on(async {
            let mut workers = JoinSet::new();
            for _ in 0..tasks {
                let (next, call, client) = (Arc::clone(&next), call.clone(), self.client.clone());
                workers.spawn(async move {
                    let mut sum = 0;
                    loop {
                        let start = next.fetch_add(piece, Ordering::Relaxed);
                        if start >= total {
                            return Ok::<usize, io::Error>(sum);
                        }
                        sum += call(client.clone(), start..(start + piece).min(total)).await?;
                    }
                });
            }
            let mut sum = 0;
            while let Some(worker) = workers.join_next().await {
                sum += worker.map_err(io::Error::other)??;
            }
            Ok(sum)
        })
    }

    /// Claims in batches, and counts the answers that are `wanted`.
    fn claim(&self, keys: &Arc<Keys>, range: Range<usize>, wanted: Claim) -> io::Result<usize> {
        let (keys, ttl, first) = (Arc::clone(keys), self.ttl, range.start);
        self.spread(range.len(), BATCH, IN_FLIGHT, move |client, piece| {
            let keys = Arc::clone(&keys);
            async move {
                let batch = keys.range(first + piece.start..first + piece.end);
                let claims = client.claim(batch, ttl).await.map_err(io::Error::other)?;
                Ok(claims.into_iter().filter(|claim| *claim == wanted).count())
            }
        })
    }
}

impl Store for KeyDb {
    fn claim_new(&mut self, keys: &Arc<Keys>, range: Range<usize>) -> io::Result<()> {
        check(
            "new keys claimed first",
            range.len(),
            self.claim(keys, range, Claim::First)?,
        )
    }

    fn claim_again(&mut self, keys: &Arc<Keys>, range: Range<usize>) -> io::Result<()> {
        check(
            "present keys claimed as duplicates",
            range.len(),
            self.claim(keys, range, Claim::Duplicate)?,
        )
    }

    fn get(&mut self, keys: &Arc<Keys>) -> io::Result<()> {
        let shared = Arc::clone(keys);
        let right = self.spread(keys.len(), BATCH, IN_FLIGHT, move |client, piece| {
            let keys = Arc::clone(&shared);
            async move {
                let present = client
                    .get(keys.range(piece))
                    .await
                    .map_err(io::Error::other)?;
                let answers = present.into_iter().enumerate();
                Ok(answers
                    .filter(|(at, present)| (at % 2 == 0) == *present)
                    .count())
            }
        })?;
        check("right answers to gets", keys.len(), right)
    }

    fn claim_single(&mut self, keys: &Arc<Keys>, range: Range<usize>) -> io::Result<()> {
        let (keys, ttl, first) = (Arc::clone(keys), self.ttl, range.start);
        let firsts = self.spread(range.len(), 1, TASKS, move |client, piece| {
            let keys = Arc::clone(&keys);
            async move {
                let key = keys.get(first + piece.start);
                let claim = client.claim_one(key, ttl).await.map_err(io::Error::other)?;
                Ok(usize::from(claim == Claim::First))
            }
        })?;
        check("new keys claimed first one by one", range.len(), firsts)
    }

    fn resident_bytes(&self) -> io::Result<u64> {
        self.server.resident_bytes()
    }
}
