//! Looking at the snapshots of a cluster in object storage, without being one of its nodes.

use futures_util::StreamExt;
use keydb_core::{
    ClusterMap, Event, Footer, FooterError, Manifest, ManifestError, ManifestFile, NodeId,
    SectionHeader, SnapshotDecoder, SnapshotError, Totals,
};
use keydb_storage::{ObjectStorage, StorageError};

use super::{garbage::list_all, names::MANIFESTS, object_key};
use crate::load::{Origin, check_header};

/// How much of an object's end is read at first for its footer.
const TAIL_BYTES: u64 = 64 << 10;

/// A manifest in object storage.
#[derive(Debug)]
pub struct StoredManifest {
    /// Its object's key.
    pub key: String,
    /// What it says, or why it cannot be read.
    pub manifest: Result<Manifest, ManifestError>,
}

/// What an object holds that was read as a whole and found sound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckedObject {
    /// How much there is.
    pub totals: Totals,
    /// The ranges that it has keys of.
    pub sections: Vec<SectionHeader>,
}

/// Why a snapshot object cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ObjectError {
    /// There is none.
    #[error("object {key:?} is missing")]
    Missing {
        /// Where it should be.
        key: String,
    },
    /// The storage failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// Its bytes are not those of a snapshot file, or not of one that this build can read.
    #[error("object {key:?}: {error}")]
    Unusable {
        /// The object.
        key: String,
        /// What is wrong with it.
        error: SnapshotError,
    },
    /// It is not what the manifest says.
    #[error("object {key:?}: {reason}")]
    Foreign {
        /// The object.
        key: String,
        /// What is different.
        reason: String,
    },
}

/// The manifests of all nodes, in the order of their keys.
///
/// # Errors
/// When the storage fails.
pub async fn list_manifests(
    storage: &dyn ObjectStorage,
) -> Result<Vec<StoredManifest>, StorageError> {
    let mut manifests = Vec::new();
    for info in list_all(storage, MANIFESTS).await? {
        if let Some(object) = storage.get(&info.key).await? {
            manifests.push(StoredManifest {
                key: info.key,
                manifest: Manifest::from_json(&object.bytes),
            });
        }
    }
    Ok(manifests)
}

/// Reads what a snapshot object holds and where, without reading all of it.
///
/// # Errors
/// When it is missing, or its end is not that of a snapshot file.
pub async fn read_footer(storage: &dyn ObjectStorage, key: &str) -> Result<Footer, ObjectError> {
    let missing = || ObjectError::Missing {
        key: key.to_owned(),
    };
    let info = storage.head(key).await?.ok_or_else(missing)?;
    let mut tail_bytes = TAIL_BYTES;
    loop {
        let start = info.size_bytes.saturating_sub(tail_bytes);
        let mut object = storage
            .get_range(key, start..info.size_bytes)
            .await?
            .ok_or_else(missing)?;
        let mut tail = Vec::new();
        while let Some(chunk) = object.bytes.next().await {
            tail.extend_from_slice(&chunk?);
        }
        match Footer::decode(&tail, info.size_bytes) {
            Ok(footer) => return Ok(footer),
            // It is never longer than the object.
            Err(FooterError::TailTooShort { needed_bytes }) if needed_bytes > tail_bytes => {
                tail_bytes = needed_bytes;
            }
            Err(FooterError::TailTooShort { .. }) => {
                return Err(ObjectError::Foreign {
                    key: key.to_owned(),
                    reason: "it has become shorter while it was read".to_owned(),
                });
            }
            Err(FooterError::Unusable(error)) => {
                return Err(ObjectError::Unusable {
                    key: key.to_owned(),
                    error,
                });
            }
        }
    }
}

/// Reads the whole object of `file`, which the manifest of `node` names, and checks every byte of it.
///
/// # Errors
/// What is wrong with it.
pub async fn check_object(
    storage: &dyn ObjectStorage,
    map: &ClusterMap,
    node: NodeId,
    file: &ManifestFile,
) -> Result<CheckedObject, ObjectError> {
    let key = object_key(node, &file.name);
    let foreign = |reason: String| ObjectError::Foreign {
        key: key.clone(),
        reason,
    };
    let unusable = |error: SnapshotError| ObjectError::Unusable {
        key: key.clone(),
        error,
    };
    let origin = Origin {
        cluster_id: map.cluster_id,
        seed_digest: map.hash.seed.digest(),
    };
    let Some(mut object) = storage.get_range(&key, 0..u64::MAX).await? else {
        return Err(ObjectError::Missing { key });
    };
    let mut decoder = SnapshotDecoder::new().map_err(|error| foreign(error.to_string()))?;
    let mut sections = Vec::new();
    while let Some(chunk) = object.bytes.next().await {
        decoder.feed(&chunk?);
        while let Some(event) = decoder.next_event().map_err(unusable)? {
            match event {
                Event::Header(header) => check_header(header, file, origin)
                    .map_err(|error| foreign(error.to_string()))?,
                Event::Section(section) => sections.push(section),
                Event::Entries(_) | Event::End(_) => {}
            }
        }
    }
    let totals = decoder.finish().map_err(unusable)?;
    if totals.bytes != file.size_bytes || totals.entries != file.entries {
        return Err(foreign(format!(
            "it has {} entries in {} bytes, and the manifest says {} in {}",
            totals.entries, totals.bytes, file.entries, file.size_bytes
        )));
    }
    Ok(CheckedObject { totals, sections })
}
