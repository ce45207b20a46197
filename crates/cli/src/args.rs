//! Arguments that several commands have.

use std::time::Duration;

use clap::Args;
use keydb_core::{Namespace, Ttl};

use crate::settings;

/// How a cluster is found and waited for.
#[derive(Debug, Args)]
pub(crate) struct ConnectArgs {
    /// Nodes of the cluster, host:port with commas between; one that answers is enough
    /// [default: KEYDB_NODE_ADDRESSES, or 127.0.0.1:50051]
    #[arg(long, value_name = "ADDRESSES", value_parser = addresses)]
    pub(crate) addresses: Option<Addresses>,
    /// How long a call to the cluster may take, retries included
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = settings::duration)]
    pub(crate) timeout: Duration,
}

/// Which of a cluster's key spaces is meant.
#[derive(Debug, Args)]
pub(crate) struct KeyspaceArgs {
    /// The key space: keys of different namespaces never meet [default: KEYDB_NAMESPACE, or the one without a name]
    #[arg(long, value_name = "NAME", value_parser = settings::namespace)]
    pub(crate) namespace: Option<Namespace>,
    #[command(flatten)]
    pub(crate) connect: ConnectArgs,
}

/// Checked addresses. A type of its own, since clap takes a plain list for a repeatable argument.
#[derive(Debug, Clone)]
pub(crate) struct Addresses(pub(crate) Vec<String>);

/// Reads addresses.
pub(crate) fn addresses(text: &str) -> Result<Addresses, String> {
    settings::addresses(text).map(Addresses)
}

#[derive(Debug, Args)]
pub(crate) struct TtlArg {
    /// How long the keys live: 1s to 50y, a whole number with a unit (s, m, h, d, w, y)
    #[arg(
        long,
        value_name = "TTL",
        default_value = "30d",
        allow_hyphen_values = true
    )]
    pub(crate) ttl: Ttl,
}
