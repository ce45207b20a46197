//! An S3 server in the test's own process.

use std::net::SocketAddr;

use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use s3s::{auth::SimpleAuth, service::S3ServiceBuilder};
use tokio::{
    net::TcpListener,
    task::{JoinHandle, JoinSet},
};

use super::objects::Objects;

/// An S3 server whose buckets are in memory. It ends, with all connections, when this is dropped.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) address: SocketAddr,
    task: JoinHandle<()>,
}

impl Server {
    /// A server without buckets that knows one access key, on a port of its own.
    pub(super) async fn start(access_key: &(String, String)) -> Self {
        let (id, secret) = access_key;
        let mut builder = S3ServiceBuilder::new(Objects::default());
        builder.set_auth(SimpleAuth::from_single(id.as_str(), secret.as_str()));
        let service = builder.build();
        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let connection =
                    http1::Builder::new().serve_connection(TokioIo::new(stream), service.clone());
                // A client that went away is nothing to tell of.
                connections.spawn(async move { connection.await.unwrap_or_default() });
                while connections.try_join_next().is_some() {}
            }
        });
        Self { address, task }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}
