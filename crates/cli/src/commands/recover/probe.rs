//! Whether one node answers.

use std::time::Duration;

use keydb_client::{Client, ClientConfig, ConnectError};

/// How long a node has to answer, connecting included.
const TIMEOUT: Duration = Duration::from_secs(3);

/// Connects through the node at `address` only.
pub(super) async fn connect(address: &str) -> Result<Client, ConnectError> {
    Client::connect(ClientConfig::new([address]).with_call_timeout(TIMEOUT)).await
}
