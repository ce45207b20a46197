//! What load is put on: a cluster, or a key set of this process.

use std::sync::{Mutex, PoisonError};

use keydb_client::{Claim, Client};
use keydb_core::Ttl;

use super::{args::Kind, keys::Key};
use crate::embedded::EmbeddedKeys;

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

impl Target {
    /// A new, empty key set.
    pub(crate) fn embedded(ttl: Ttl) -> Self {
        Self::Embedded(Box::new(Mutex::new(EmbeddedKeys::new(ttl))))
    }

    /// Makes one call; a single key goes the way of single-key calls.
    pub(crate) async fn call(&self, kind: Kind, keys: &[Key]) -> Result<Answers, String> {
        match self {
            Self::Embedded(set) => {
                let mut set = set.lock().unwrap_or_else(PoisonError::into_inner);
                match kind {
                    Kind::Claim => set.claim(keys.iter()).map(Answers::Claims),
                    Kind::Get => set.get(keys.iter()).map(Answers::Present),
                    Kind::Put => set.put(keys.iter()).map(|()| Answers::Stored),
                }
                .map_err(|error| error.to_string())
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
