//! What a snapshot file says of itself.

use super::{
    SnapshotError,
    frame::{self, NO_SALT, Tag},
};
use crate::{
    ClusterId, HashSeed, Incarnation, Lsn, NodeId, SnapshotKind, UnixMillis, UnixSeconds,
    bytes::Reader,
};

/// How a file begins.
pub(super) const MAGIC: [u8; 8] = *b"KEYDBSNP";

const FORMAT: u32 = 1;
const KIND_FULL: u8 = 1;
const KIND_DELTA: u8 = 2;
const KIND_EXPORT: u8 = 3;

/// Fingerprints as Rice-coded gaps, expiries as byte planes of which zstd makes less, XXH3-64.
const CODECS: [u8; 3] = [1, 1, 1];
const FINGERPRINT_BITS: u16 = 96;
const EXPIRY_BITS: u16 = 32;

/// The longest header, in bytes of its payload.
pub(super) const HEADER_BYTES_MAX: usize = 1 << 20;

/// What a snapshot file is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// All keys of one range, named by a manifest.
    Full,
    /// What was written between two LSNs, a section for each range that changed, named by a manifest.
    Delta,
    /// Ranges to be carried elsewhere. No manifest names it, and it has the seed that its fingerprints were made with, so that
    /// they are not taken into a cluster with another one.
    Export {
        /// The cluster's hash seed.
        seed: HashSeed,
    },
}

impl From<SnapshotKind> for FileKind {
    fn from(kind: SnapshotKind) -> Self {
        match kind {
            SnapshotKind::Full => Self::Full,
            SnapshotKind::Delta => Self::Delta,
        }
    }
}

impl FileKind {
    /// As manifests have it; `None` for an export.
    pub const fn snapshot(self) -> Option<SnapshotKind> {
        match self {
            Self::Full => Some(SnapshotKind::Full),
            Self::Delta => Some(SnapshotKind::Delta),
            Self::Export { .. } => None,
        }
    }
}

/// What a snapshot file says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotHeader {
    /// What the file is for.
    pub kind: FileKind,
    /// Which cluster.
    pub cluster_id: ClusterId,
    /// The cluster map's lineage.
    pub lineage: u64,
    /// [`HashSeed::digest`] of the cluster's seed.
    pub seed_digest: u64,
    /// The node that made it.
    pub node: NodeId,
    /// The disk whose LSNs these are.
    pub disk_id: Incarnation,
    /// The life of the node in which it was made.
    pub incarnation: Incarnation,
    /// It holds what was written after this.
    pub lsn_from: Lsn,
    /// Up to this.
    pub lsn_to: Lsn,
    /// When it was made.
    pub created: UnixMillis,
    /// Entries that expired at or before this second were left out.
    pub purge_before: UnixSeconds,
    /// Names of the files that it was made from, if it was made from files.
    pub parents: Vec<String>,
}

impl SnapshotHeader {
    /// Appends the header's payload.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let kind = match self.kind {
            FileKind::Full => KIND_FULL,
            FileKind::Delta => KIND_DELTA,
            FileKind::Export { .. } => KIND_EXPORT,
        };
        let no_features = 0_u32;
        out.extend_from_slice(&FORMAT.to_le_bytes());
        out.extend_from_slice(&no_features.to_le_bytes());
        out.push(kind);
        out.extend_from_slice(&CODECS);
        out.extend_from_slice(&FINGERPRINT_BITS.to_le_bytes());
        out.extend_from_slice(&EXPIRY_BITS.to_le_bytes());
        out.extend_from_slice(&self.cluster_id.to_bytes());
        out.extend_from_slice(&self.lineage.to_le_bytes());
        out.extend_from_slice(&self.seed_digest.to_le_bytes());
        out.extend_from_slice(&self.node.0.to_le_bytes());
        out.extend_from_slice(&self.purge_before.0.to_le_bytes());
        out.extend_from_slice(&self.disk_id.to_bytes());
        out.extend_from_slice(&self.incarnation.to_bytes());
        out.extend_from_slice(&self.lsn_from.0.to_le_bytes());
        out.extend_from_slice(&self.lsn_to.0.to_le_bytes());
        out.extend_from_slice(&self.created.0.to_le_bytes());
        if let FileKind::Export { seed } = self.kind {
            out.extend_from_slice(&seed.value().to_le_bytes());
        }
        out.extend_from_slice(&(self.parents.len() as u32).to_le_bytes());
        for parent in &self.parents {
            out.extend_from_slice(&(parent.len() as u32).to_le_bytes());
            out.extend_from_slice(parent.as_bytes());
        }
    }

    /// Reads a header's payload. `offset` is where it lies, for errors.
    pub(super) fn decode(payload: &[u8], offset: u64) -> Result<Self, SnapshotError> {
        let damaged = |what: &str| SnapshotError::Damaged {
            offset,
            what: what.to_owned(),
        };
        let mut reader = Reader::new(payload);
        let supported =
            check_support(&mut reader).ok_or_else(|| damaged("the header ends early"))?;
        let kind = supported.map_err(|what| SnapshotError::Unsupported { what })?;
        let header = Self::read(kind, &mut reader)
            .ok_or_else(|| damaged("the header contradicts its length"))?;
        if !reader.rest().is_empty() {
            return Err(damaged("something lies behind the header's content"));
        }
        if header.lsn_from > header.lsn_to {
            return Err(damaged("the header's LSNs go backwards"));
        }
        Ok(header)
    }

    fn read(kind: u8, reader: &mut Reader<'_>) -> Option<Self> {
        let cluster_id = ClusterId::from_bytes(reader.array()?);
        let lineage = reader.u64()?;
        let seed_digest = reader.u64()?;
        let node = NodeId(reader.u32()?);
        let purge_before = UnixSeconds(reader.u32()?);
        let disk_id = Incarnation::from_bytes(reader.array()?);
        let incarnation = Incarnation::from_bytes(reader.array()?);
        let lsn_from = Lsn(reader.u64()?);
        let lsn_to = Lsn(reader.u64()?);
        let created = UnixMillis(reader.u64()?);
        let kind = match kind {
            KIND_FULL => FileKind::Full,
            KIND_DELTA => FileKind::Delta,
            _ => FileKind::Export {
                seed: HashSeed::new(reader.u64()?),
            },
        };
        let mut parents = Vec::new();
        for _ in 0..reader.u32()? {
            let length = usize::try_from(reader.u32()?).ok()?;
            let name = std::str::from_utf8(reader.take(length)?).ok()?;
            parents.push(name.to_owned());
        }
        Some(Self {
            kind,
            cluster_id,
            lineage,
            seed_digest,
            node,
            disk_id,
            incarnation,
            lsn_from,
            lsn_to,
            created,
            purge_before,
            parents,
        })
    }
}

/// Reads what says whether this build can read the file at all, and returns the kind or what is not supported. `None` when there
/// is too little.
fn check_support(reader: &mut Reader<'_>) -> Option<Result<u8, String>> {
    let format = reader.u32()?;
    let features = reader.u32()?;
    let kind = reader.u8()?;
    let codecs: [u8; 3] = reader.array()?;
    let widths = (reader.u16()?, reader.u16()?);
    let unsupported = if format != FORMAT {
        format!("format {format}")
    } else if features != 0 {
        format!("features {features:#x}")
    } else if ![KIND_FULL, KIND_DELTA, KIND_EXPORT].contains(&kind) {
        format!("kind {kind}")
    } else if codecs != CODECS {
        format!("codecs {codecs:?}")
    } else if widths != (FINGERPRINT_BITS, EXPIRY_BITS) {
        format!("entries of {} + {} bits", widths.0, widths.1)
    } else {
        return Some(Ok(kind));
    };
    Some(Err(unsupported))
}

/// What the checksums of the frames behind a header are salted with: the header frame's own checksum.
pub(super) fn salt(header_payload: &[u8]) -> u64 {
    let mut frame = Vec::with_capacity(header_payload.len() + frame::FRAME_BYTES);
    frame::begin(&mut frame, Tag::Header);
    frame.extend_from_slice(header_payload);
    frame::seal(&mut frame, NO_SALT)
}
