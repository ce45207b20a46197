//! How a segment begins.

use xxhash_rust::xxh3::xxh3_64;

use crate::{ClusterId, Incarnation, Lsn, NodeId, UnixMillis, bytes::Reader};

/// The size of an encoded [`SegmentHeader`]; the first record follows right behind it.
pub const SEGMENT_HEADER_BYTES: usize = 96;

const MAGIC: [u8; 8] = *b"KEYDBJNL";
const FORMAT: u32 = 1;

/// What a segment says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Which cluster.
    pub cluster_id: ClusterId,
    /// The disk that it was written on.
    pub disk_id: Incarnation,
    /// The node that it was written by.
    pub node: NodeId,
    /// The LSN of its first record that has one of its own.
    pub first_lsn: Lsn,
    /// The last LSN of the segment before it; [`Lsn::ZERO`] for a disk's first one.
    pub previous_last_lsn: Lsn,
    /// The size that its file was prepared with, and has as long as no other segment follows it.
    pub prepared_bytes: u64,
    /// When it was made.
    pub created: UnixMillis,
    /// Bits of features that a reader must know, or refuse the segment. This version has none: 0.
    pub required_features: u32,
}

/// Why a segment cannot be read at all.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JournalError {
    /// Its first bytes are not those that were written.
    #[error("the journal segment's header is damaged: {0}")]
    Damaged(String),
    /// Written by a build that is newer in a way that matters.
    #[error("the journal segment needs {what}, which this build does not have; upgrade it")]
    Unsupported {
        /// The unknown format or feature.
        what: String,
    },
}

impl SegmentHeader {
    /// The header's bytes, [`SEGMENT_HEADER_BYTES`] of them.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(SEGMENT_HEADER_BYTES);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&FORMAT.to_le_bytes());
        out.extend_from_slice(&self.required_features.to_le_bytes());
        out.extend_from_slice(&self.cluster_id.to_bytes());
        out.extend_from_slice(&self.disk_id.to_bytes());
        out.extend_from_slice(&u64::from(self.node.0).to_le_bytes());
        out.extend_from_slice(&self.first_lsn.0.to_le_bytes());
        out.extend_from_slice(&self.previous_last_lsn.0.to_le_bytes());
        out.extend_from_slice(&self.prepared_bytes.to_le_bytes());
        out.extend_from_slice(&self.created.0.to_le_bytes());
        out.extend_from_slice(&xxh3_64(&out).to_le_bytes());
        debug_assert_eq!(out.len(), SEGMENT_HEADER_BYTES);
        out
    }

    /// Reads and checks the header at the start of a segment's bytes.
    ///
    /// # Errors
    /// When it is damaged, cut short, or needs what this build does not have.
    pub fn decode(segment: &[u8]) -> Result<Self, JournalError> {
        let damaged = |what: String| JournalError::Damaged(what);
        let Some((head, sum)) = segment
            .get(..SEGMENT_HEADER_BYTES)
            .and_then(<[u8]>::split_last_chunk)
        else {
            return Err(damaged(format!(
                "the file has {} bytes, a header has {SEGMENT_HEADER_BYTES}",
                segment.len()
            )));
        };
        if !head.starts_with(&MAGIC) {
            return Err(damaged("it does not begin as a segment does".to_owned()));
        }
        if xxh3_64(head) != u64::from_le_bytes(*sum) {
            return Err(damaged("its checksum does not match".to_owned()));
        }
        let fields = Fields::read(&head[MAGIC.len()..])
            .ok_or_else(|| damaged("it ends early".to_owned()))?;
        fields.check()
    }
}

struct Fields {
    format: u32,
    node: u64,
    header: SegmentHeader,
}

impl Fields {
    fn read(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(bytes);
        let format = reader.u32()?;
        let required_features = reader.u32()?;
        let cluster_id = ClusterId::from_bytes(reader.array()?);
        let disk_id = Incarnation::from_bytes(reader.array()?);
        let node = reader.u64()?;
        let header = SegmentHeader {
            cluster_id,
            disk_id,
            node: NodeId(node as u32),
            first_lsn: Lsn(reader.u64()?),
            previous_last_lsn: Lsn(reader.u64()?),
            prepared_bytes: reader.u64()?,
            created: UnixMillis(reader.u64()?),
            required_features,
        };
        Some(Self {
            format,
            node,
            header,
        })
    }

    fn check(self) -> Result<SegmentHeader, JournalError> {
        let Self {
            format,
            node,
            header,
        } = self;
        if format != FORMAT {
            return Err(JournalError::Unsupported {
                what: format!("format {format}"),
            });
        }
        if header.required_features != 0 {
            return Err(JournalError::Unsupported {
                what: format!("features {:#x}", header.required_features),
            });
        }
        if u32::try_from(node).is_err() {
            return Err(JournalError::Damaged(format!(
                "{node} is not the number of a node"
            )));
        }
        if header.first_lsn <= header.previous_last_lsn {
            return Err(JournalError::Damaged(format!(
                "it begins with LSN {}, but the segment before it ended with {}",
                header.first_lsn, header.previous_last_lsn
            )));
        }
        Ok(header)
    }
}
