//! What load is put on: a cluster, or a key set of this process.

use std::sync::{Mutex, PoisonError};

use keydb_client::{Claim, Client, ClientCounters, GetError, WriteError};
use keydb_core::Ttl;

use super::{args::Kind, keys::Key};
use crate::embedded::{EmbeddedError, EmbeddedKeys};

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
    Embedded(Box<Mutex<EmbeddedKeys>>),
}

/// How the keys of one call were answered.
#[derive(Debug)]
pub(crate) enum Answers {
    Claims(Vec<Claim>),
    Present(Vec<bool>),
    Stored,
}

/// Why a call was not answered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    #[error(transparent)]
    Embedded(#[from] EmbeddedError),
    #[error(transparent)]
    Get(#[from] GetError),
    #[error(transparent)]
    Write(#[from] WriteError),
}

impl Target {
    /// A new, empty key set.
    pub(crate) fn embedded(ttl: Ttl) -> Self {
        Self::Embedded(Box::new(Mutex::new(EmbeddedKeys::new(ttl))))
    }

    /// How calls have waited for hash ranges that moved.
    pub(crate) fn hand_overs(&self) -> ClientCounters {
        match self {
            Self::Embedded(_) => ClientCounters::default(),
            Self::Cluster { client, .. } => client.counters(),
        }
    }

    /// Makes one call; a single key goes the way of single-key calls.
    pub(crate) async fn call(&self, kind: Kind, keys: &[Key]) -> Result<Answers, CallError> {
        let answers = match self {
            Self::Embedded(set) => {
                let mut set = set.lock().unwrap_or_else(PoisonError::into_inner);
                match kind {
                    Kind::Claim => Answers::Claims(set.claim(keys.iter())?),
                    Kind::Get => Answers::Present(set.get(keys.iter())?),
                    Kind::Put => set.put(keys.iter()).map(|()| Answers::Stored)?,
                }
            }
            Self::Cluster { client, ttl } => match (kind, keys) {
                (Kind::Claim, [key]) => Answers::Claims(vec![client.claim_one(key, *ttl).await?]),
                (Kind::Claim, keys) => Answers::Claims(client.claim(keys, *ttl).await?),
                (Kind::Get, [key]) => Answers::Present(vec![client.get_one(key).await?]),
                (Kind::Get, keys) => Answers::Present(client.get(keys).await?),
                (Kind::Put, [key]) => client.put_one(key, *ttl).await.map(|()| Answers::Stored)?,
                (Kind::Put, keys) => client.put(keys, *ttl).await.map(|()| Answers::Stored)?,
            },
        };
        Ok(answers)
    }
}
