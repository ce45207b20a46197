//! Who says which keys are new: a cluster, or a key set of this process.

use keydb_client::{Client, Operation};
use keydb_core::{Claim, Ttl};
use tokio::runtime::Runtime;

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
    /// Claims the keys of batch `number`, counted from 1.
    pub(crate) fn claim(&mut self, batch: &Batch, number: u64) -> Result<Vec<Claim>, Failure> {
        if batch.key_count() == 0 {
            return Ok(Vec::new());
        }
        match self {
            Self::Cluster(claimer) => claimer.claim(batch, number),
            Self::Embedded(keys) => keys
                .claim(batch.keys())
                .map_err(|error| Failure::failed(error.to_string())),
        }
    }
}

/// Claims through a cluster.
#[derive(Debug)]
pub(crate) struct ClusterClaimer {
    pub(crate) runtime: Runtime,
    pub(crate) client: Client,
    pub(crate) ttl: Ttl,
    pub(crate) run: Option<Run>,
}

impl ClusterClaimer {
    fn claim(&mut self, batch: &Batch, number: u64) -> Result<Vec<Claim>, Failure> {
        let claims = match &self.run {
            None => self
                .runtime
                .block_on(self.client.claim(batch.keys(), self.ttl)),
            Some(run) => {
                let mut operation = Operation::with_id(run.operation.part(number));
                if run.is_repeat(number) {
                    operation = operation.again();
                }
                let call = self.client.claim_as(operation, batch.keys(), self.ttl);
                self.runtime.block_on(call)
            }
        };
        Ok(claims?)
    }
}
