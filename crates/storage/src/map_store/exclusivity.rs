//! The proof that conditional writes are exclusive, before a cluster trusts its map to them.
//!
//! Many S3-compatible servers ignore `If-None-Match` and `If-Match` silently, or check them and write in two steps. The first kind
//! shows with one stale write, the second only when writers race. So each round takes a fresh key and
//! 1. expects a conflict when an object that does not exist is replaced,
//! 2. lets writers race to create the object, then to replace that version: exactly one may win each time, and what it wrote
//!    must be what is read back,
//! 3. expects a conflict for the replaced version and for creating the object once more, and the object unchanged.
//!
//! Afterwards the probe objects are removed. Should that fail, they stay; each says that it may be deleted.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use keydb_core::OperationId;
use tokio::{sync::Barrier, task::JoinSet, time::timeout};

use crate::{InitError, Object, ObjectStorage, Put, StorageErrorKind, Version};

const ROUNDS: usize = 4;
const WRITERS: usize = 16;
/// How long the removal of the probe objects may hold up the creation of a cluster.
const REMOVAL_MAX: Duration = Duration::from_secs(10);

pub(super) async fn prove(storage: &Arc<dyn ObjectStorage>) -> Result<(), InitError> {
    let run = OperationId::random();
    let keys: Vec<_> = (1..=ROUNDS)
        .map(|round| format!("init-probe/{run}-{round}"))
        .collect();
    let mut proof = Ok(());
    for key in &keys {
        proof = prove_with(storage, key).await;
        if proof.is_err() {
            break;
        }
    }
    let removal = async {
        for key in &keys {
            for key in [key, &nothing(key)] {
                if let Err(error) = storage.delete(key).await {
                    tracing::debug!(%error, "a probe object stays");
                }
            }
        }
    };
    if timeout(REMOVAL_MAX, removal).await.is_err() {
        tracing::debug!("probe objects stay: removing them took too long");
    }
    proof
}

/// The key of an object that does not exist.
fn nothing(key: &str) -> String {
    format!("{key}-nothing")
}

async fn prove_with(storage: &Arc<dyn ObjectStorage>, key: &str) -> Result<(), InitError> {
    let created = race(storage, key, None).await?;
    let replaced = race(storage, key, Some(&created.version)).await?;

    let content = content("stale");
    expect_conflict(
        storage
            .put_if_match(&nothing(key), content.clone(), &created.version)
            .await?,
        "an object that does not exist was replaced",
    )?;
    expect_conflict(
        storage
            .put_if_match(key, content.clone(), &created.version)
            .await?,
        "an object was replaced on the strength of an outdated version",
    )?;
    expect_conflict(
        storage.put_if_absent(key, content).await?,
        "an object that exists was created again",
    )?;
    expect_content(storage, key, &replaced).await
}

/// Lets writers race for `key`, to create it or to replace `version`. The object that the only winner wrote.
async fn race(
    storage: &Arc<dyn ObjectStorage>,
    key: &str,
    version: Option<&Version>,
) -> Result<Object, InitError> {
    let start = Arc::new(Barrier::new(WRITERS));
    let mut writers = JoinSet::new();
    for writer in 1..=WRITERS {
        let (storage, start) = (storage.clone(), start.clone());
        let (key, version) = (key.to_owned(), version.cloned());
        writers.spawn(async move {
            let bytes = content(&format!("writer {writer}"));
            start.wait().await;
            let put = match &version {
                None => storage.put_if_absent(&key, bytes.clone()).await,
                Some(version) => storage.put_if_match(&key, bytes.clone(), version).await,
            };
            (bytes, put)
        });
    }
    let mut winners = Vec::new();
    let mut unavailable = None;
    while let Some(ended) = writers.join_next().await {
        let (bytes, put) =
            ended.map_err(|error| not_exclusive(format!("a writer broke off: {error}")))?;
        match put {
            Ok(Put::Done(version)) => winners.push(Object { bytes, version }),
            Ok(Put::Conflict) => {}
            // This writer wrote nothing, so the others' race is still a fair one.
            Err(error) if error.kind() == StorageErrorKind::Unavailable => {
                unavailable = Some(error)
            }
            Err(error) => return Err(InitError::Storage(error)),
        }
    }
    let action = if version.is_none() {
        "create"
    } else {
        "replace"
    };
    match (winners.pop(), winners.len(), unavailable) {
        (Some(winner), 0, _) => {
            expect_content(storage, key, &winner).await?;
            Ok(winner)
        }
        (None, _, Some(error)) => Err(InitError::Storage(error)),
        (None, _, None) => Err(not_exclusive(format!(
            "none of {WRITERS} writers could {action} object {key:?}"
        ))),
        (Some(_), others, _) => Err(not_exclusive(format!(
            "{} of {WRITERS} racing writers were told that they alone did {action} object {key:?}",
            others + 1
        ))),
    }
}

async fn expect_content(
    storage: &Arc<dyn ObjectStorage>,
    key: &str,
    expected: &Object,
) -> Result<(), InitError> {
    if storage.get(key).await?.as_ref() == Some(expected) {
        Ok(())
    } else {
        Err(not_exclusive(format!(
            "object {key:?} is not what the only successful writer wrote"
        )))
    }
}

fn expect_conflict(put: Put, otherwise: &str) -> Result<(), InitError> {
    match put {
        Put::Conflict => Ok(()),
        Put::Done(_) => Err(not_exclusive(otherwise.to_owned())),
    }
}

/// What a writer writes. No two writes are of the same bytes, as [`ObjectStorage::put_if_match`] asks for.
fn content(writer: &str) -> Bytes {
    let nonce = OperationId::random();
    format!("KeyDB proved with this object that conditional writes are exclusive. It may be deleted. ({writer}, {nonce})\n").into()
}

const fn not_exclusive(found: String) -> InitError {
    InitError::NotExclusive { found }
}
