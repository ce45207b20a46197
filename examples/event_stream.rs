//! Passes on each event of a stream that was not seen before. An event is a line of JSON; its field `id` says which one it is.
//!
//! ```sh
//! tail -F events.jsonl | cargo run --release --example event-stream -- localhost:50051 events > new-events.jsonl
//! ```
//!
//! The arguments are the addresses of nodes, with commas between, and a namespace. Any number of these programs may run at a time, on
//! any number of machines: each event comes out of exactly one of them.

use std::{
    env,
    error::Error,
    io::{Write, stdin, stdout},
    thread,
    time::Duration,
};

use keydb_client::{Claim, Client, ClientConfig, Namespace, Operation, Ttl, WriteError};
use serde_json::Value;
use tokio::sync::mpsc;

/// How many events are claimed at a time, at most. While few come they are claimed one by one, without delay.
const BATCH_EVENTS_MAX: usize = 1000;
/// How long one call may take: that is how long an outage is waited out.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);
/// How often a claim is sent again that may have been applied.
const REPEATS_MAX: u32 = 3;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut args = env::args().skip(1);
    let addresses = args.next().unwrap_or_else(|| "localhost:50051".to_owned());
    let namespace = args.next().unwrap_or_else(|| "events".to_owned());
    let config = ClientConfig::new(addresses.split(','))
        .with_namespace(Namespace::new(&namespace)?)
        .with_call_timeout(CALL_TIMEOUT);
    let client = Client::connect(config).await?;
    let ttl = "7d".parse()?;

    let (sender, mut incoming) = mpsc::channel(2 * BATCH_EVENTS_MAX);
    // It ends with the input, or when nobody takes lines any more.
    let _reading = thread::spawn(move || {
        for line in stdin().lines() {
            if sender.blocking_send(line).is_err() {
                break;
            }
        }
    });

    let mut received = Vec::new();
    // Takes all events that are there, so that batches grow with the load.
    while incoming.recv_many(&mut received, BATCH_EVENTS_MAX).await > 0 {
        let events: Vec<String> = received.drain(..).collect::<Result<_, _>>()?;
        let ids: Vec<Option<String>> = events.iter().map(|event| id_of(event)).collect();
        let keys: Vec<&String> = ids.iter().flatten().collect();
        let mut claims = claim(&client, &keys, ttl).await?.into_iter();
        let mut out = stdout().lock();
        for (event, id) in events.iter().zip(&ids) {
            let answer = id.as_ref().and_then(|_| claims.next());
            // What has no id cannot be a duplicate. `Unknown` is passed on as well: to lose an event is worse here than to have it
            // twice.
            if answer != Some(Claim::Duplicate) {
                writeln!(out, "{event}")?;
            }
        }
        out.flush()?;
    }
    client.close(Duration::from_secs(5)).await;
    Ok(())
}

fn id_of(event: &str) -> Option<String> {
    let event: Value = serde_json::from_str(event).ok()?;
    let id = event.get("id")?.as_str()?;
    (!id.is_empty()).then(|| id.to_owned())
}

/// Claims these keys. Where the reply was lost, the same operation is repeated, so that what it was first to store is first again.
async fn claim(client: &Client, keys: &[&String], ttl: Ttl) -> Result<Vec<Claim>, WriteError> {
    let operation = Operation::new();
    let mut claims = client.claim_as(operation, keys, ttl).await;
    for _ in 0..REPEATS_MAX {
        if !matches!(claims, Err(WriteError::MaybeApplied(_))) {
            break;
        }
        claims = client.claim_as(operation.again(), keys, ttl).await;
    }
    claims
}
