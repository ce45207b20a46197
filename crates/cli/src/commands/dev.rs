//! `keydb dev`: a whole cluster in this process, on real sockets.

use std::{fmt::Write, io, net::Ipv4Addr, path::Path, process::ExitCode, sync::Arc};

use keydb_core::{Clock, Durability, NewCluster, NodeId};
use keydb_node::{NodeConfig, SystemClock};
use keydb_storage::{MapStore, MemoryStorage, ObjectStorage};
use tokio::{net::TcpListener, sync::watch, task::JoinSet};

use super::durability_meaning;
use crate::{
    args::DevArgs,
    connect,
    exit::Failure,
    logging,
    output::{Stdout, shell_word},
    settings::{ClientSettings, HASH_RANGES_DEFAULT, PORT_DEFAULT, environment},
    signals::StopSignals,
};

pub(crate) fn run(args: &DevArgs) -> Result<ExitCode, Failure> {
    // A dev cluster has nothing to set, but an unknown setting is an error here as well.
    let settings = ClientSettings::read(environment()?)?;
    // A node's log line is worth reading here only when something is wrong: what matters is printed.
    logging::start(settings.log.as_deref().unwrap_or("info"));
    connect::runtime()?.block_on(serve(args.nodes))?;
    Ok(ExitCode::SUCCESS)
}

async fn serve(node_count: u16) -> Result<(), Failure> {
    let cannot = |what: &str, error: &dyn std::fmt::Display| {
        Failure::failed(format!("cannot {what}: {error}"))
    };
    let mut signals =
        StopSignals::listen().map_err(|error| cannot("listen for signals", &error))?;
    let listeners = listen(node_count)
        .await
        .map_err(|error| cannot("listen on 127.0.0.1", &error))?;
    let mut ports = Vec::new();
    for listener in &listeners {
        let address = listener.local_addr();
        ports.push(
            address
                .map_err(|error| cannot("listen on 127.0.0.1", &error))?
                .port(),
        );
    }
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let storage: Arc<dyn ObjectStorage> = Arc::new(MemoryStorage::new(Arc::clone(&clock)));
    let new = NewCluster {
        addresses: ports
            .iter()
            .map(|port| format!("127.0.0.1:{port}"))
            .collect(),
        range_count: HASH_RANGES_DEFAULT,
        durability: Durability::Memory,
    };
    MapStore::new(Arc::clone(&storage))
        .init(&new)
        .await
        .map_err(|error| cannot("create the cluster", &error))?;

    let (stop, stopped) = watch::channel(());
    let mut nodes = JoinSet::new();
    for (id, listener) in (0..).map(NodeId).zip(listeners) {
        let mut stopped = stopped.clone();
        let node = keydb_node::run(
            NodeConfig::new(id),
            listener,
            Arc::clone(&storage),
            Arc::clone(&clock),
            async move {
                // An error means that the sender is gone, which is a reason to stop as well.
                let _ = stopped.changed().await;
            },
        );
        nodes.spawn(async move { (id, node.await) });
    }
    Stdout::open()?.write(greeting(&ports).as_bytes())?;

    let first_ended = tokio::select! {
        name = signals.next() => {
            tracing::info!("{name}: stopping");
            None
        }
        ended = nodes.join_next() => ended,
    };
    drop(stop);
    let impatient = tokio::spawn(signals.exit_at_next());
    let mut failure = None;
    let mut ended = first_ended;
    loop {
        let reason = match ended {
            Some(Ok((_, Ok(())))) => None,
            Some(Ok((id, Err(error)))) => Some(format!("node {id} had to stop: {error}")),
            Some(Err(error)) => Some(format!("a node failed: {error}")),
            None => None,
        };
        failure = failure.or(reason);
        if nodes.is_empty() {
            break;
        }
        ended = nodes.join_next().await;
    }
    impatient.abort();
    failure.map_or(Ok(()), |message| Err(Failure::failed(message)))
}

/// Listens once a node: at the ports from the default on, or where one is taken, at any free one.
async fn listen(count: u16) -> io::Result<Vec<TcpListener>> {
    let mut listeners = Vec::new();
    for port in (PORT_DEFAULT..).take(usize::from(count)) {
        let listener = match TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?
            }
            other => other?,
        };
        listeners.push(listener);
    }
    Ok(listeners)
}

/// What runs where, and what to try next.
fn greeting(ports: &[u16]) -> String {
    let mut text = format!(
        "KeyDB {}: a cluster of {} in this process\n",
        env!("CARGO_PKG_VERSION"),
        match ports.len() {
            1 => "1 node".to_owned(),
            count => format!("{count} nodes"),
        }
    );
    for (id, (port, default)) in ports.iter().zip(PORT_DEFAULT..).enumerate() {
        let note = if *port == default {
            String::new()
        } else {
            format!("  (port {default} was taken)")
        };
        let _ = writeln!(text, "  node {id}  127.0.0.1:{port}{note}");
    }
    let durability = Durability::Memory;
    let _ = writeln!(
        text,
        "durability {durability}: {}",
        durability_meaning(durability)
    );
    let keydb = this_command();
    let address = match ports {
        [PORT_DEFAULT, ..] => String::new(),
        [port, ..] => format!(" --addresses 127.0.0.1:{port}"),
        [] => String::new(),
    };
    let _ = write!(
        text,
        "
Try in another terminal:
  {keydb} claim{address} --ttl 10m alice bob alice
  {keydb} get{address} alice carol
  {keydb} dedup{address} FILE > FILE.unique
  {keydb} status{address}

Ctrl-C stops it.
"
    );
    text
}

/// How this program was called, so that what is printed can be pasted.
fn this_command() -> String {
    let called = std::env::args_os().next().unwrap_or_default();
    match called.to_str() {
        Some(path) if Path::new(path).components().count() > 1 => shell_word(path),
        _ => "keydb".to_owned(),
    }
}
