//! Who says which keys are new: a cluster, or a key set of this process.

use std::sync::Arc;

use keydb_client::{Client, Operation};
use keydb_core::{
    Arena, Bitmap, Claim, Clock, Expiry, FINGERPRINT_BYTES, Fingerprint, HashRange, HashSeed,
    KeySet, PackedFingerprints, Provisioner, Times, Ttl, random,
};
use keydb_node::SystemClock;
use tokio::runtime::Runtime;

use super::args::Run;
use crate::{exit::Failure, lines::Batch};

/// Answers batches, one after the other.
#[derive(Debug)]
pub(crate) enum Claimer {
    /// Through the nodes of a cluster.
    Cluster(Box<ClusterClaimer>),
    /// In this process.
    Embedded(Box<EmbeddedClaimer>),
}

impl Claimer {
    /// Claims the keys of batch `number`, counted from 1.
    pub(crate) fn claim(&mut self, batch: &Batch, number: u64) -> Result<Vec<Claim>, Failure> {
        if batch.key_count() == 0 {
            return Ok(Vec::new());
        }
        match self {
            Self::Cluster(claimer) => claimer.claim(batch, number),
            Self::Embedded(claimer) => claimer.claim(batch),
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

/// Claims in this process's memory.
#[derive(Debug)]
pub(crate) struct EmbeddedClaimer {
    keys: KeySet,
    seed: HashSeed,
    clock: SystemClock,
    ttl: Ttl,
    packed: Vec<u8>,
    /// Takes memory ahead of need for as long as it is there.
    _provisioner: Provisioner,
}

impl EmbeddedClaimer {
    /// An empty key set.
    pub(crate) fn new(ttl: Ttl) -> Self {
        let arena = Arena::new();
        Self {
            keys: KeySet::new(HashRange::ALL, &arena),
            seed: HashSeed::new(random::u64()),
            clock: SystemClock::new(),
            ttl,
            packed: Vec::new(),
            _provisioner: Provisioner::start(&Arc::clone(&arena)),
        }
    }

    fn claim(&mut self, batch: &Batch) -> Result<Vec<Claim>, Failure> {
        let failed = |error: &dyn std::fmt::Display| Failure::failed(error.to_string());
        self.packed.clear();
        self.packed.reserve(batch.key_count() * FINGERPRINT_BYTES);
        for key in batch.keys() {
            let fingerprint = Fingerprint::of(key, self.seed).map_err(|error| failed(&error))?;
            self.packed.extend_from_slice(&fingerprint.to_bytes());
        }
        let now = self.clock.now();
        let expiry = Expiry::after(now, self.ttl).map_err(|error| failed(&error))?;
        let packed = PackedFingerprints::new(&self.packed).map_err(|error| failed(&error))?;
        let mut first = Bitmap::new(packed.len());
        self.keys
            .claim(packed, expiry, Times::at(now), &mut first, 0)
            .map_err(|error| failed(&error))?;
        let claim = |index| {
            if first.get(index) {
                Claim::First
            } else {
                Claim::Duplicate
            }
        };
        Ok((0..packed.len()).map(claim).collect())
    }
}
