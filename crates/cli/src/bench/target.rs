//! What load is put on: a cluster, or a key set of this process.

use std::sync::{Mutex, PoisonError};

use keydb_client::{Claim, Client};
use keydb_core::{
    Arena, Bitmap, Clock, Expiry, FINGERPRINT_BYTES, Fingerprint, HashRange, HashSeed, KeySet,
    PackedFingerprints, Provisioner, Times, Ttl, random,
};
use keydb_node::SystemClock;

use super::{args::Kind, keys::Key};

/// What load is put on.
#[derive(Debug)]
pub(crate) enum Target {
    /// A cluster, through the client library.
    Cluster {
        /// The way to it.
        client: Client,
        /// For what is stored.
        ttl: Ttl,
    },
    /// A key set of this process.
    Embedded(Box<Mutex<Embedded>>),
}

/// A key set and what is needed to ask it.
#[derive(Debug)]
pub(crate) struct Embedded {
    keys: KeySet,
    seed: HashSeed,
    clock: SystemClock,
    ttl: Ttl,
    packed: Vec<u8>,
    /// Takes memory ahead of need for as long as it is there.
    _provisioner: Provisioner,
}

/// How the keys of one call were answered. `bool`: the answer to a get.
#[derive(Debug)]
pub(crate) enum Answers {
    Claims(Vec<Claim>),
    Present(Vec<bool>),
    Stored,
}

impl Target {
    /// A new, empty key set.
    pub(crate) fn embedded(ttl: Ttl) -> Self {
        let arena = Arena::new();
        Self::Embedded(Box::new(Mutex::new(Embedded {
            keys: KeySet::new(HashRange::ALL, &arena),
            seed: HashSeed::new(random::u64()),
            clock: SystemClock::new(),
            ttl,
            packed: Vec::new(),
            _provisioner: Provisioner::start(&arena),
        })))
    }

    /// Makes one call; a single key goes the way of single-key calls.
    pub(crate) async fn call(&self, kind: Kind, keys: &[Key]) -> Result<Answers, String> {
        match self {
            Self::Embedded(set) => {
                let mut set = set.lock().unwrap_or_else(PoisonError::into_inner);
                set.call(kind, keys)
            }
            Self::Cluster { client, ttl } => {
                let answers = match (kind, keys) {
                    (Kind::Claim, [key]) => client
                        .claim_one(key, *ttl)
                        .await
                        .map(|claim| Answers::Claims(vec![claim])),
                    (Kind::Claim, keys) => client.claim(keys, *ttl).await.map(Answers::Claims),
                    (Kind::Put, [key]) => client.put_one(key, *ttl).await.map(|()| Answers::Stored),
                    (Kind::Put, keys) => client.put(keys, *ttl).await.map(|()| Answers::Stored),
                    (Kind::Get, [key]) => {
                        let present = client.get_one(key).await;
                        return present
                            .map(|present| Answers::Present(vec![present]))
                            .map_err(|error| error.to_string());
                    }
                    (Kind::Get, keys) => {
                        let present = client.get(keys).await;
                        return present
                            .map(Answers::Present)
                            .map_err(|error| error.to_string());
                    }
                };
                answers.map_err(|error| error.to_string())
            }
        }
    }
}

impl Embedded {
    fn call(&mut self, kind: Kind, keys: &[Key]) -> Result<Answers, String> {
        self.packed.clear();
        self.packed.reserve(keys.len() * FINGERPRINT_BYTES);
        for key in keys {
            let fingerprint = Fingerprint::of(key, self.seed).map_err(|error| error.to_string())?;
            self.packed.extend_from_slice(&fingerprint.to_bytes());
        }
        let packed = PackedFingerprints::new(&self.packed).map_err(|error| error.to_string())?;
        let now = self.clock.now();
        let times = Times::at(now);
        let expiry = Expiry::after(now, self.ttl).map_err(|error| error.to_string())?;
        let mut bits = Bitmap::new(packed.len());
        match kind {
            Kind::Claim => {
                let claimed = self.keys.claim(packed, expiry, times, &mut bits, 0);
                claimed.map_err(|error| error.to_string())?;
                let claim = |first| {
                    if first {
                        Claim::First
                    } else {
                        Claim::Duplicate
                    }
                };
                let claims = (0..packed.len()).map(|index| claim(bits.get(index)));
                Ok(Answers::Claims(claims.collect()))
            }
            Kind::Get => {
                self.keys.get(packed, times, &mut bits, 0);
                Ok(Answers::Present(
                    (0..packed.len()).map(|index| bits.get(index)).collect(),
                ))
            }
            Kind::Put => {
                let put = self.keys.put(packed, expiry, times);
                put.map_err(|error| error.to_string())?;
                Ok(Answers::Stored)
            }
        }
    }
}
