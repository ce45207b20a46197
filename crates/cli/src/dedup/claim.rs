//! Who says which keys are new: a cluster, or a key set of this process.

use keydb_client::{Client, ErrorKind, Operation};
use keydb_core::{Claim, Ttl};
use tokio::runtime::Runtime;
use xxhash_rust::xxh3::Xxh3Default;

use super::args::Run;
use crate::{embedded::EmbeddedKeys, exit::Failure, lines::Batch};

/// Answers batches, one after the other.
#[derive(Debug)]
pub(crate) enum Claimer {
    /// Through the nodes of a cluster.
    Cluster(Box<ClusterClaimer>),
    /// In this process.
    Embedded(Box<EmbeddedKeys>),
}

impl Claimer {
    /// Claims the keys of a batch, whose first line is `line` of the input, counted from 0.
    pub(crate) fn claim(&mut self, batch: &Batch, line: u64) -> Result<Vec<Claim>, Failure> {
        if batch.key_count() == 0 {
            return Ok(Vec::new());
        }
        match self {
            Self::Cluster(claimer) => claimer.claim(batch, line),
            Self::Embedded(keys) => keys
                .claim(batch.keys())
                .map_err(|error| Failure::failed(error.to_string())),
        }
    }

    /// Whether a batch was refused because the run's ID was used before.
    pub(crate) fn was_used(&self) -> bool {
        matches!(self, Self::Cluster(claimer) if claimer.was_used)
    }
}

/// What tells a batch's keys from others in its place.
fn digest(batch: &Batch) -> u64 {
    let mut hasher = Xxh3Default::new();
    for key in batch.keys() {
        hasher.update(&(key.len() as u32).to_le_bytes());
        hasher.update(key);
    }
    hasher.digest()
}

/// Claims through a cluster.
#[derive(Debug)]
pub(crate) struct ClusterClaimer {
    pub(crate) runtime: Runtime,
    pub(crate) client: Client,
    pub(crate) ttl: Ttl,
    pub(crate) run: Run,
    /// The run's ID was used before, for this input.
    pub(crate) was_used: bool,
}

impl ClusterClaimer {
    fn claim(&mut self, batch: &Batch, line: u64) -> Result<Vec<Claim>, Failure> {
        let id = self.run.operation.part(line).part(digest(batch));
        let operation = if self.run.is_repeat(line) {
            Operation::with_id(id)
        } else {
            Operation::first(id)
        };
        let call = self.client.claim_as(operation, batch.keys(), self.ttl);
        self.runtime.block_on(call).map_err(|error| {
            if error.kind() != ErrorKind::OperationIdUsed {
                return error.into();
            }
            self.was_used = true;
            Failure::failed(format!(
                "run {:?} was used before, and claimed a batch of just these keys: to repeat that run on the same input give it a bare --again; another input takes another ID",
                self.run.id
            ))
        })
    }
}
