//! `keydb bench`: puts load on a cluster, or on a key set of this process, and measures it.

mod args;
mod keys;
mod load;
mod record;
mod report;
mod target;

use std::{
    io::{self, IsTerminal, Write},
    process::ExitCode,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use keydb_client::Client;
use keydb_core::{Namespace, random};

pub(crate) use args::BenchArgs;
use load::Load;
use report::Report;
use target::Target;

use crate::{
    connect,
    exit::Failure,
    output::{answer, thousands},
};

/// Whose keys a measurement takes where nobody says: nobody else's.
const NAMESPACE: &str = "keydb-bench";

const LIVE_INTERVAL: Duration = Duration::from_secs(1);

pub(crate) fn run(args: BenchArgs) -> Result<ExitCode, Failure> {
    let plan = args.plan(random::u64() >> 32)?;
    let ttl = args.ttl;
    let (config, runtime) = if args.embedded {
        (None, connect::runtime()?)
    } else {
        let mut config = connect::config(&args.connect)?;
        config.namespace = match args.namespace {
            Some(namespace) => namespace,
            None => {
                Namespace::new(NAMESPACE).map_err(|error| Failure::failed(error.to_string()))?
            }
        };
        (Some(config), connect::runtime()?)
    };
    let report = runtime.block_on(async {
        let target = match config {
            None => Target::embedded(ttl),
            Some(config) => {
                let client = connect::connect(config).await?;
                if plan.is_writing() && !args.yes {
                    ask_before_writing(&client).await?;
                }
                Target::Cluster { client, ttl }
            }
        };
        let load = Arc::new(Load::new(plan.clone(), target));
        if plan.preload > 0 {
            live("preload", &load, load.preload()).await?;
        }
        let ran = live("load", &load, load.run()).await?;
        Ok::<_, Failure>(Report::new(&load.recorder, ran, load.target.hand_overs()))
    })?;
    answer(args.json, || report.json(&plan), || report.text(&plan))?;
    let failed = report.counts().failed_calls;
    match report.first_error() {
        Some(error) if failed > 0 => Err(Failure::failed(format!(
            "{} calls failed; the first: {error}",
            thousands(failed)
        ))),
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// Where the cluster has keys, asks whether others may come to them.
async fn ask_before_writing(client: &Client) -> Result<(), Failure> {
    let statuses = client.node_statuses().await;
    let mut keys = 0;
    for (node, status) in &statuses {
        let status = status.as_ref().map_err(|error| {
            Failure::failed(format!(
                "node {} does not say whether it has keys: {error}; --yes goes on all the same",
                node.id
            ))
        })?;
        keys += status.keys;
    }
    if keys == 0 {
        return Ok(());
    }
    let what = format!("the cluster has {} keys", thousands(keys));
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Err(Failure::usage(format!(
            "{what}, and bench would store more beside them; give --yes if that is meant"
        )));
    }
    let _ = write!(io::stderr(), "{what}. Store more beside them? [y/N] ");
    let mut answer = String::new();
    io::stdin()
        .read_line(&mut answer)
        .map_err(|error| Failure::failed(format!("cannot read the answer: {error}")))?;
    if matches!(answer.trim(), "y" | "Y" | "yes") {
        Ok(())
    } else {
        Err(Failure::usage("nothing was stored"))
    }
}

/// Waits for `work`, and meanwhile shows on a terminal how it goes.
async fn live<T>(name: &str, load: &Load, work: impl Future<Output = T>) -> T {
    if !io::stderr().is_terminal() {
        return work.await;
    }
    let mut work = std::pin::pin!(work);
    let mut ticks = tokio::time::interval(LIVE_INTERVAL);
    let started = Instant::now();
    let (mut before, mut at) = (0, started);
    ticks.tick().await;
    loop {
        tokio::select! {
            result = &mut work => {
                let _ = write!(io::stderr(), "\r\x1b[K");
                return result;
            }
            _ = ticks.tick() => {
                let keys = load.keys_answered.load(Ordering::Relaxed);
                let now = Instant::now();
                let rate = keys.saturating_sub(before) as f64 / (now - at).as_secs_f64().max(1e-9);
                (before, at) = (keys, now);
                let _ = write!(
                    io::stderr(),
                    "\r\x1b[K{name}: {:.0} s, {} keys, {} keys/s",
                    (now - started).as_secs_f64(),
                    thousands(keys),
                    thousands(rate as u64),
                );
            }
        }
    }
}
