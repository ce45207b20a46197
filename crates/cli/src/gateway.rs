//! Keys as text, beside a node's own services.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use keydb_client::{ClientConfig, FileError};
use keydb_core::metrics::MetricsText;
use keydb_gateway::{Cluster, SERVICE, router, services};
use keydb_node::{Guests, NodeConfig};
use tokio::task::JoinHandle;

use crate::logging::Logging;

/// How long calls that are being worked on have to end before the node begins to stop.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Keys as text at a node.
pub(crate) struct Gateway {
    cluster: Arc<Cluster>,
    finding: JoinHandle<()>,
}

impl Gateway {
    /// What a node serves of its cluster. That is found through the node itself, which listens at `own`, since nobody else is certainly
    /// of the same one. What is logged can be changed there, too.
    ///
    /// # Errors
    /// When the node's certificate is for nobody: the node could not be asked.
    pub(crate) fn of_node(
        node: &NodeConfig,
        own: SocketAddr,
        logging: &Logging,
    ) -> Result<(Self, Guests), FileError> {
        let id = node.id;
        let config = ClientConfig::new([own.to_string()]);
        let keys_per_request_max = config
            .keys_per_request_max
            .min(node.limits.request_keys_max);
        let config = config
            .with_keys_per_request_max(keys_per_request_max)
            .with_outgoing(node.outgoing.clone())
            .with_first_outgoing(Some(node.outgoing.to_itself()?));
        let cluster = Arc::new(Cluster::at_node(config, id));
        let measured = Arc::clone(&cluster);
        let guests = Guests {
            grpc: services(&cluster, id),
            grpc_names: vec![SERVICE],
            http: router(&cluster).merge(logging.router()),
            metrics: Some(Arc::new(move |text: &mut MetricsText| {
                measured.write_metrics(text);
            })),
        };
        let finds = Arc::clone(&cluster);
        let finding = tokio::spawn(async move {
            if let Err(error) = finds.find().await {
                tracing::error!(node = %id, "keys as text cannot be served: {error}");
            }
        });
        Ok((Self { cluster, finding }, guests))
    }

    /// Takes no new calls, and waits for a while until those that are being worked on have ended: before the node refuses their keys.
    pub(crate) async fn stop(self) {
        self.cluster.drain(DRAIN_TIMEOUT).await;
        self.cluster.close().await;
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.finding.abort();
    }
}
