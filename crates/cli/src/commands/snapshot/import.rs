//! `keydb snapshot import`: an export's keys into a running cluster.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

use keydb_client::{AdminClient, WriteError};
use keydb_core::{Entry, Event, FileKind, HashSeed, SnapshotDecoder, SnapshotHeader, UnixMillis};
use serde_json::json;
use tokio::task::{JoinError, JoinSet};

use super::args::ImportArgs;
use crate::{
    connect,
    exit::{Code, Failure},
    output::{Stdout, say, thousands},
    progress::Progress,
};

const CHUNK_BYTES: usize = 256 << 10;
/// What one call has.
const CALL_ENTRIES: usize = 8192;
/// How many calls are on their way.
const CALLS_MAX: usize = 8;

pub(super) fn run(args: &ImportArgs) -> Result<ExitCode, Failure> {
    let config = connect::config(&args.connect)?;
    let name = args.file.display().to_string();
    let input: Box<dyn Read> = if args.file == Path::new("-") {
        Box::new(io::stdin())
    } else {
        let file = File::open(&args.file);
        Box::new(file.map_err(|error| Failure::failed(format!("cannot open {name}: {error}")))?)
    };
    let started = Instant::now();
    let imported = connect::runtime()?.block_on(async {
        let admin = AdminClient::from(connect::connect(config).await?);
        let imported = import(&admin, input, &name).await;
        admin.close(Duration::ZERO).await;
        imported
    })?;
    if args.json {
        let mut out = Stdout::open()?;
        out.json(&json!({"imported": imported.entries, "expired": imported.expired}))?;
    } else {
        say(&format!(
            "imported {} keys in {:.1} s; {} had expired and were left out",
            thousands(imported.entries),
            started.elapsed().as_secs_f64(),
            thousands(imported.expired)
        ));
    }
    Ok(ExitCode::SUCCESS)
}

#[derive(Debug, Default)]
struct Imported {
    entries: u64,
    expired: u64,
}

async fn import(
    admin: &AdminClient,
    mut input: Box<dyn Read>,
    name: &str,
) -> Result<Imported, Failure> {
    let unusable = |error: &dyn std::fmt::Display| Failure::failed(format!("{name}: {error}"));
    let seed = admin.cluster_map().hash.seed;
    let mut decoder = SnapshotDecoder::new().map_err(|error| unusable(&error))?;
    let mut sending = Sending::new(admin);
    let now = cluster_time(admin).await?.0 / 1000;
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let read = match input.read(&mut chunk) {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(unusable(&error)),
        };
        if read == 0 {
            break;
        }
        decoder.feed(&chunk[..read]);
        loop {
            match decoder.next_event().map_err(|error| unusable(&error))? {
                None => break,
                Some(Event::Header(header)) => check(header, seed, name)?,
                Some(Event::Entries(entries)) => sending.add(entries, now),
                Some(Event::Section(_) | Event::End(_)) => {}
            }
            sending.send(CALL_ENTRIES).await?;
        }
    }
    decoder.finish().map_err(|error| {
        unusable(&error)
            .with_line("what came before that is in the cluster; to import it again does no harm")
    })?;
    sending.send(1).await?;
    sending.finish().await
}

/// What the clock of the cluster shows that is furthest behind: no key that is alive for a node is over by it. This machine's clock
/// may be wrong.
async fn cluster_time(admin: &AdminClient) -> Result<UnixMillis, Failure> {
    let statuses = admin.node_info().await;
    let times = statuses
        .into_iter()
        .filter_map(|(_, status)| Some(status.ok()?.time));
    times
        .min()
        .ok_or_else(|| Failure::new(Code::Unreachable, "no node of the cluster answers"))
}

/// An export is taken into a cluster whose fingerprints mean the same.
fn check(header: &SnapshotHeader, seed: HashSeed, name: &str) -> Result<(), Failure> {
    match header.kind {
        FileKind::Export { seed: of_file } if of_file == seed => Ok(()),
        FileKind::Export { .. } => Err(Failure::failed(format!(
            "{name} comes from cluster {}, which has another hash seed: its fingerprints mean nothing here, and nothing was imported",
            header.cluster_id
        ))),
        _ => Err(Failure::failed(format!(
            "{name} is a node's own snapshot file, not an export; `keydb snapshot export` writes one"
        ))),
    }
}

/// Calls on their way.
struct Sending<'a> {
    admin: &'a AdminClient,
    waiting: Vec<Entry>,
    calls: JoinSet<Result<usize, WriteError>>,
    imported: Imported,
    progress: Progress,
}

impl<'a> Sending<'a> {
    fn new(admin: &'a AdminClient) -> Self {
        Self {
            admin,
            waiting: Vec::new(),
            calls: JoinSet::new(),
            imported: Imported::default(),
            progress: Progress::new("imported"),
        }
    }

    fn add(&mut self, entries: &[Entry], now: u64) {
        let before = self.waiting.len();
        let live = |entry: &&Entry| u64::from(entry.expiry().as_unix_seconds()) > now;
        self.waiting.extend(entries.iter().filter(live));
        self.imported.expired += (entries.len() - (self.waiting.len() - before)) as u64;
    }

    /// Sends what waits, in calls of `least` entries or more.
    async fn send(&mut self, least: usize) -> Result<(), Failure> {
        while self.waiting.len() >= least && !self.waiting.is_empty() {
            while self.calls.len() >= CALLS_MAX {
                self.one().await?;
            }
            let rest = self.waiting.split_off(CALL_ENTRIES.min(self.waiting.len()));
            let entries = std::mem::replace(&mut self.waiting, rest);
            let admin = self.admin.clone();
            self.calls.spawn(async move {
                admin.put_entries(&entries).await?;
                Ok(entries.len())
            });
        }
        Ok(())
    }

    /// Waits for one call.
    async fn one(&mut self) -> Result<(), Failure> {
        if let Some(ended) = self.calls.join_next().await {
            self.imported.entries += stored(ended)? as u64;
            self.progress.at(self.imported.entries);
        }
        Ok(())
    }

    async fn finish(mut self) -> Result<Imported, Failure> {
        while !self.calls.is_empty() {
            self.one().await?;
        }
        Ok(self.imported)
    }
}

fn stored(ended: Result<Result<usize, WriteError>, JoinError>) -> Result<usize, Failure> {
    let ended = ended.map_err(|error| Failure::failed(format!("a call failed: {error}")))?;
    ended.map_err(|error| {
        Failure::from(error).with_line("to import the file again, from its beginning, does no harm")
    })
}
