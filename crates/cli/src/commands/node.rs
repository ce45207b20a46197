//! `keydb node`: one node of a cluster.

use std::{future::Future, io, net::Ipv6Addr, process::ExitCode, sync::Arc, time::Duration};

use clap::Args;
use keydb_core::NodeId;
use keydb_node::{Listeners, NodeConfig, NodeError, SystemClock, saved_map};
use keydb_storage::{Init, MapStore, ObjectStorage};
use serde_json::json;
use tokio::net::TcpListener;

use crate::{
    connect,
    exit::Failure,
    gateway::Gateway,
    logging::Logging,
    output::{Align, answer, say, table},
    settings::{self, Effective, Listening, Reader, Security, Settings},
    signals::StopSignals,
};

const EXAMPLES: &str = "\
Examples:
  keydb node --check
  KEYDB_NODE_ID=0 KEYDB_STORAGE_URL=file:///srv/keydb keydb node
  KEYDB_NODE_ID=0 KEYDB_CLUSTER_SIZE=3 KEYDB_PORT=50051 \\
    KEYDB_NODE_ADDRESSES='[\"localhost:50051\",\"localhost:50052\",\"localhost:50053\"]' keydb node

  KEYDB_NODE_ID=0 KEYDB_STORAGE_BUCKET=keydb KEYDB_STORAGE_REGION=us-east-1 KEYDB_STORAGE_ENDPOINT=http://localhost:9000 \\
    KEYDB_STORAGE_ACCESSKEYID=minioadmin KEYDB_STORAGE_ACCESSKEY=minioadmin KEYDB_SNAPSHOT_INTERVAL=60s keydb node";

/// The end of the help, after the single settings.
const CREATING: &str = "  KEYDB_INIT                    true: node 0 creates the cluster at its start, by the three below
  KEYDB_NODE_ADDRESSES, KEYDB_TOTAL_HASH_RANGES (128), KEYDB_DURABILITY (journal); KEYDB_CLUSTER_SIZE is checked against the
  list. What the cluster map says wins over these.

SIGINT (Ctrl-C) and SIGTERM stop the node once its requests in progress have ended; a second one stops it at once.";

fn help_end() -> String {
    format!("{EXAMPLES}\n\nSettings:\n{}{CREATING}", settings::help())
}

#[derive(Debug, Args)]
#[command(after_help = help_end())]
pub(crate) struct NodeArgs {
    /// Check the settings, print the ones in force, and do nothing else
    #[arg(long)]
    pub(crate) check: bool,
    /// Print the settings as JSON
    #[arg(long, requires = "check")]
    pub(crate) json: bool,
}

/// How often a node looks for the map that its settings are compared with.
const MAP_WAIT: Duration = Duration::from_secs(1);

pub(crate) fn run(args: &NodeArgs) -> Result<ExitCode, Failure> {
    let settings = settings::load()?;
    let id = settings.required_node_id()?;
    if settings.init.value {
        settings.required_addresses()?;
    }
    let security = settings.security()?;
    if args.check {
        return check(
            &settings.effective(Reader::Node),
            &[&settings.warnings[..], &security.warnings].concat(),
            args.json,
        );
    }
    connect::runtime()?.block_on(async {
        let logging = Logging::start(&settings.logging(), "info", "keydb-node")?;
        for warning in &settings.warnings {
            tracing::warn!("{warning}");
        }
        settings.warn_of_exposure(&security);
        let ended = serve(&settings, security, id, &logging).await;
        logging.stop().await;
        ended
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Prints the settings in force.
pub(super) fn check(
    effective: &[Effective],
    warnings: &[String],
    json: bool,
) -> Result<ExitCode, Failure> {
    for warning in warnings {
        say(&format!("warning: {warning}"));
    }
    let as_json = || json!({"settings": effective, "warnings": warnings});
    answer(json, as_json, || as_text(effective))?;
    Ok(ExitCode::SUCCESS)
}

fn as_text(effective: &[Effective]) -> String {
    let rows = effective.iter().map(|setting| {
        let source = match (setting.given, setting.value.is_empty()) {
            (true, _) => "set",
            (false, true) => "not set",
            (false, false) => "default",
        };
        [setting.name, &setting.value, source]
            .map(str::to_owned)
            .to_vec()
    });
    let header = ["SETTING", "VALUE", "FROM"].map(|name| (name, Align::Left));
    table(&header, &rows.collect::<Vec<_>>())
}

async fn serve(
    settings: &Settings,
    security: Security,
    id: NodeId,
    logging: &Logging,
) -> Result<(), Failure> {
    let mut signals = StopSignals::listen()?;
    if !settings.storage_is_given() {
        tracing::info!(
            "neither KEYDB_STORAGE_URL nor KEYDB_STORAGE_BUCKET is set; object storage is {}",
            settings.storage_text()
        );
    }
    let mut config = config(settings, id)?;
    config.outgoing = security.outgoing;
    let storage = settings.open_storage()?;
    let listening = settings.listening();
    let (gateway, guests) = Gateway::of_node(&config, listening.own_address(), logging)?;
    let listeners = Listeners {
        guests,
        grpc: listen(&listening).await?,
        http: match settings.http_listening() {
            Some(listening) => Some(listen(&listening).await?),
            None => None,
        },
        security: security.listeners,
    };
    // One that was a member goes by the map that it kept, should the storage have lost its own.
    let was_member = !matches!(saved_map(&config.data_dir), Ok(None));
    if settings.init.value && id == NodeId(0) && !was_member {
        match super::init::create(settings).await? {
            Init::Created(map) => {
                tracing::info!(cluster = %map.cluster_id, nodes = map.nodes.len(), durability = %map.durability, "created the cluster");
            }
            Init::Existing(map) => {
                tracing::info!(cluster = %map.cluster_id, "the cluster exists already");
            }
        }
    }
    let comparison = tokio::spawn(warn_of_differences(settings.clone(), Arc::clone(&storage)));
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let signals = tokio::spawn(async move {
        let name = signals.next().await;
        tracing::info!("{name}: stopping");
        // An error means that the node has ended by itself.
        let _ = stop.send(());
        signals.exit_at_next().await;
    });
    let result = run_node(config, listeners, storage, async {
        let _ = stopped.await;
        gateway.stop().await;
    })
    .await;
    comparison.abort();
    signals.abort();
    result
}

/// What the node goes by.
fn config(settings: &Settings, id: NodeId) -> Result<NodeConfig, Failure> {
    let mut config = NodeConfig::new(id);
    config.data_dir.clone_from(&settings.data_dir.value);
    config.snapshot_interval = settings.snapshot_interval.value;
    config.map_poll_interval = settings.map_poll_interval.value;
    config.disk_hang_limit = settings.disk_hang_limit.value;
    config.moves.cpu_percent = settings.move_cpu_percent.value;
    config.moves.bytes_per_second = settings.move_bytes_per_second.value;
    config.storage_url = Some(settings.storage().clone());
    config.s3 = settings.s3_options();
    config.limits.request_keys_max = settings.request_keys_max.value;
    config.limits.requests_in_flight_max = settings.requests_in_flight_max.value;
    config.limits.answer_memory_bytes = settings.answer_memory_bytes.value;
    config.limits.answer_memory_age = settings.answer_memory_age.value;
    let limit = settings.memory_limit.value;
    config.limits.memory_bytes = limit
        .bytes(settings::available_memory_bytes())
        .map_err(|problem| Failure::usage(format!("KEYDB_MEMORY_LIMIT={limit}: {problem}")))?;
    config.limits.memory_policy = settings.memory_policy.value;
    Ok(config)
}

/// Runs a node with this machine's clock.
async fn run_node(
    config: NodeConfig,
    listeners: Listeners,
    storage: Arc<dyn ObjectStorage>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), Failure> {
    let id = config.id;
    let clock = Arc::new(SystemClock::new());
    keydb_node::run(config, listeners, storage, clock, shutdown)
        .await
        .map_err(|error| failure(id, &error))
}

/// Why node `id` ended. Where its disk does not answer, its threads would hold up an end in order: the process ends here.
pub(super) fn failure(id: NodeId, error: &NodeError) -> Failure {
    let failure = Failure::failed(format!("node {id} had to stop: {error}"));
    if matches!(error, NodeError::DiskHangs { .. }) {
        say(&format!("keydb: {failure}"));
        std::process::exit(failure.code().into());
    }
    failure
}

/// Listens where settings say. Every interface is those of IPv4 where the machine has no IPv6.
pub(super) async fn listen(listening: &Listening) -> Result<TcpListener, Failure> {
    let Listening {
        address,
        port_setting,
        ..
    } = listening;
    let port = address.port();
    let listener = match TcpListener::bind(address).await {
        Err(error)
            if address.ip() == Ipv6Addr::UNSPECIFIED
                && (matches!(
                    error.kind(),
                    io::ErrorKind::AddrNotAvailable | io::ErrorKind::Unsupported
                ) || error.raw_os_error() == Some(ADDRESS_FAMILY_NOT_SUPPORTED)) =>
        {
            TcpListener::bind(("0.0.0.0", port)).await
        }
        other => other,
    };
    listener.map_err(|error| {
        Failure::failed(format!(
            "cannot listen on port {port} ({port_setting}) of {}: {error}",
            address.ip()
        ))
    })
}

/// `EAFNOSUPPORT` on Linux; it has no `io::ErrorKind`.
const ADDRESS_FAMILY_NOT_SUPPORTED: i32 = 97;

/// Waits for the cluster map and says once where it differs from the settings.
async fn warn_of_differences(settings: Settings, storage: Arc<dyn ObjectStorage>) {
    let maps = MapStore::new(storage);
    loop {
        // What stands in the way of reading it is the node's to report.
        if let Ok(Some(map)) = maps.load().await {
            for difference in settings.differences(&map) {
                tracing::warn!("{difference}");
            }
            return;
        }
        tokio::time::sleep(MAP_WAIT).await;
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_help_speaks_of_every_setting() {
        let help = help_end();
        let settings = Settings::read([], Path::new("/somewhere")).unwrap();
        for setting in settings.effective(Reader::Node) {
            assert!(help.contains(&format!(" {}", setting.name)), "{help}");
        }
    }
}
