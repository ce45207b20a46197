//! `keydb dev`: a whole cluster in this process, on real sockets.

mod home;

use std::{
    fmt::Write,
    future::pending,
    io,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use clap::Args;
use keydb_client::{Client, ClientConfig, NodeStatus, RangeState};
use keydb_core::{Clock, NodeId};
use keydb_node::{Listeners, NodeError, SystemClock};
use keydb_operator::{OperatorConfig, OperatorError};
use keydb_transport::ListenerSecurity;
use tokio::{
    net::TcpListener,
    sync::watch,
    task::{JoinError, JoinSet},
};

use self::home::Home;
use super::{durability_meaning, node, operator};
use crate::{
    connect,
    exit::Failure,
    gateway::Gateway,
    logging::Logging,
    output::{Stdout, say, shell_word},
    settings::{
        ClientSettings, HTTP_PORT_DEFAULT, OPERATOR_PORT_DEFAULT, PORT_DEFAULT, environment,
    },
    signals::StopSignals,
};

const EXAMPLES: &str = "\
Examples:
  keydb dev
  keydb dev --nodes 5
  keydb dev --dir ./my-keys                  the same keys again after a restart

It listens on 127.0.0.1 only, at the ports from 50051 on, from 50080 on for HTTP, and 8080 for its operator, where they are free. Ctrl-C stops it, and all keys are forgotten, unless
there is a --dir.";

/// The most nodes of a cluster in one process.
const NODES_MAX: i64 = 100;

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct DevArgs {
    /// How many nodes
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=NODES_MAX))]
    pub(crate) nodes: u16,
    /// Keep the keys in this directory, across restarts; it belongs to the cluster that is created in it
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
}

/// How long the nodes of this process may take to come up.
const READY_DEADLINE: Duration = Duration::from_secs(10);
const READY_POLL: Duration = Duration::from_millis(10);

pub(crate) fn run(args: &DevArgs) -> Result<ExitCode, Failure> {
    // A dev cluster has nothing to set, but an unknown setting is an error here as well.
    let settings = ClientSettings::read(environment()?)?;
    if settings.outgoing.has_tls() || settings.outgoing.authorization().is_some() {
        say(
            "warning: `keydb dev` has neither TLS nor tokens; the settings for those are for other commands, which will not reach it with them",
        );
    }
    // What matters is printed; the nodes' logs are worth a look when something is wrong.
    connect::runtime()?.block_on(async {
        let logging = Logging::start(&settings.logging, "warn", "keydb-dev")?;
        let ended = serve(args, &logging).await;
        logging.stop().await;
        ended
    })?;
    Ok(ExitCode::SUCCESS)
}

async fn serve(args: &DevArgs, logging: &Logging) -> Result<(), Failure> {
    let mut signals = StopSignals::listen()?;
    let cannot_listen =
        |error: io::Error| Failure::failed(format!("cannot listen on 127.0.0.1: {error}"));
    let mut listeners = Vec::new();
    for port in (PORT_DEFAULT..).take(usize::from(args.nodes)) {
        listeners.push(listen(port).await.map_err(cannot_listen)?);
    }
    let mut http_listeners = Vec::new();
    for port in (HTTP_PORT_DEFAULT..).take(usize::from(args.nodes)) {
        http_listeners.push(listen(port).await.map_err(cannot_listen)?);
    }
    let of_operator = listen(OPERATOR_PORT_DEFAULT).await.map_err(cannot_listen)?;
    let ports = |listeners: &[TcpListener]| {
        let ports = listeners.iter().map(|it| Ok(it.local_addr()?.port()));
        ports
            .collect::<Result<Vec<u16>, _>>()
            .map_err(cannot_listen)
    };
    let http_ports = ports(&http_listeners)?;
    let operator_port = ports(std::slice::from_ref(&of_operator))?[0];
    let ports = ports(&listeners)?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let addresses: Vec<String> = ports
        .iter()
        .map(|port| format!("127.0.0.1:{port}"))
        .collect();
    let home = match &args.dir {
        Some(dir) => Home::open(dir)?,
        None => Home::in_memory(&clock),
    };
    let storage = Arc::clone(&home.storage);
    home.create(&addresses).await?;

    let (stop, stopped) = watch::channel(());
    let mut nodes = JoinSet::new();
    for ((id, grpc), http) in (0..).map(NodeId).zip(listeners).zip(http_listeners) {
        let mut stopped = stopped.clone();
        let config = home.node_config(id);
        let port = ports[id.0 as usize];
        let own = (Ipv4Addr::LOCALHOST, port).into();
        let (gateway, guests) = Gateway::of_node(&config, own, logging)?;
        let listeners = Listeners {
            grpc,
            http: Some(http),
            guests,
            security: ListenerSecurity::default(),
        };
        let node = keydb_node::run(
            config,
            listeners,
            Arc::clone(&storage),
            Arc::clone(&clock),
            async move {
                // An error means that the sender is gone, which is a reason to stop as well.
                let _ = stopped.changed().await;
                gateway.stop().await;
            },
        );
        nodes.spawn(async move { Ended::Node(id, node.await) });
    }
    let mut stop_operator = stopped.clone();
    let of_operator = (of_operator, ListenerSecurity::default());
    let mut config = OperatorConfig::new(&addresses);
    config.guests = logging.router();
    let operator = keydb_operator::run(config, of_operator, async move {
        let _ = stop_operator.changed().await;
    });
    nodes.spawn(async move { Ended::Operator(operator.await) });
    // Ends only when something is wrong.
    let greet = async {
        wait_until_ready(&addresses).await?;
        Stdout::open()?.write(greeting(&ports, &http_ports, operator_port, &home).as_bytes())?;
        pending::<Result<(), Failure>>().await
    };
    let mut failure = tokio::select! {
        result = greet => result.err(),
        name = signals.next() => {
            say(&format!("{name}: stopping"));
            None
        }
        failure = first_failure(&mut nodes) => failure,
    };
    drop(stop);
    let impatient = tokio::spawn(signals.exit_at_next());
    while let Some(ended) = nodes.join_next().await {
        failure = failure.or(failure_of(ended));
    }
    impatient.abort();
    match failure {
        None => {
            say("stopped");
            Ok(())
        }
        Some(failure) => Err(failure),
    }
}

/// What runs here, when it has ended.
enum Ended {
    Node(NodeId, Result<(), NodeError>),
    Operator(Result<(), OperatorError>),
}

/// Waits until something fails. A node that has left the cluster ends well, and the others go on.
async fn first_failure(running: &mut JoinSet<Ended>) -> Option<Failure> {
    while let Some(ended) = running.join_next().await {
        match ended {
            Ok(Ended::Node(id, Ok(()))) => say(&format!("node {id} has left the cluster")),
            ended => return failure_of(ended),
        }
    }
    None
}

/// What was wrong with an end, if anything.
fn failure_of(ended: Result<Ended, JoinError>) -> Option<Failure> {
    match ended {
        Ok(Ended::Node(id, ended)) => ended.err().map(|error| node::failure(id, &error)),
        Ok(Ended::Operator(ended)) => ended.err().map(|error| operator::failure(&error)),
        Err(error) => Some(Failure::failed(format!(
            "a node or the operator failed: {error}"
        ))),
    }
}

/// Waits until every node has its place in the cluster and answers.
async fn wait_until_ready(addresses: &[String]) -> Result<(), Failure> {
    let client = Client::connect(ClientConfig::new(addresses)).await?;
    let deadline = Instant::now() + READY_DEADLINE;
    loop {
        let statuses = client.node_statuses().await;
        let is_loading = statuses
            .iter()
            .any(|(_, status)| status.as_ref().is_ok_and(is_loading));
        let unready = statuses.into_iter().find_map(|(_, status)| status.err());
        match unready {
            None if !is_loading => break,
            Some(error) if Instant::now() >= deadline => return Err(error.into()),
            // Loading takes its time and comes to an end.
            None | Some(_) => tokio::time::sleep(READY_POLL).await,
        }
    }
    client.close(Duration::ZERO).await;
    Ok(())
}

fn is_loading(status: &NodeStatus) -> bool {
    let mut ranges = status.ranges.iter();
    ranges.any(|range| range.state == RangeState::Loading)
}

/// Listens at a port, or where it is taken, at any free one.
async fn listen(port: u16) -> io::Result<TcpListener> {
    match TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await
        }
        other => other,
    }
}

/// What runs where, and what to try next.
fn greeting(ports: &[u16], http_ports: &[u16], operator_port: u16, home: &Home) -> String {
    let mut text = format!(
        "KeyDB {}: a cluster of {} in this process\n",
        env!("CARGO_PKG_VERSION"),
        match ports.len() {
            1 => "1 node".to_owned(),
            count => format!("{count} nodes"),
        }
    );
    let all = ports.iter().zip(http_ports).zip(PORT_DEFAULT..);
    for (id, ((port, http), default)) in all.enumerate() {
        let note = if *port == default {
            String::new()
        } else {
            format!("  (port {default} was taken)")
        };
        let _ = writeln!(
            text,
            "  node {id}  127.0.0.1:{port}{note}  http://127.0.0.1:{http}"
        );
    }
    let _ = writeln!(text, "  operator  http://127.0.0.1:{operator_port}");
    let durability = home.durability();
    let _ = writeln!(
        text,
        "durability {durability}: {}",
        durability_meaning(durability)
    );
    if let Some(dir) = &home.dir {
        let _ = writeln!(text, "kept in {}", dir.display());
    }
    let keydb = this_command();
    let http = http_ports.first().unwrap_or(&operator_port);
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
  curl http://127.0.0.1:{http}/v1/claim -d '{{\"keys\":[\"dave\"],\"ttl\":\"10m\"}}'
  curl http://127.0.0.1:{operator_port}/info

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
