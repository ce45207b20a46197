//! KeyDB's rules, without any I/O.
//!
//! - A key is its [`Fingerprint`]: the top 96 bits of a seeded XXH3-128.
//! - It lives until an [`Expiry`], which a [`Ttl`] gives it.
//! - It belongs to one [`HashRange`], the unit of ownership.
//! - The [`ClusterMap`] says which node owns which range; [`scaling`] is how that changes.
//! - A [`KeySet`] holds the keys of one range and answers for them.
//!
//! Nothing here reads a file, a socket or the wall clock: time comes in as an argument, and what must be random comes from
//! [`random`].

mod answers_file;
mod backup;
mod bitmap;
mod bytes;
mod checked_json;
mod claim;
mod clock;
mod cluster_map;
mod date;
mod fingerprint;
mod hash_range;
mod hex;
mod hex_u64;
mod ids;
mod journal;
mod keyset;
mod lsn;
mod manifest;
pub mod metrics;
pub mod moving;
mod namespace;
mod operation_answers;
mod origin;
mod placement;
pub mod random;
pub mod scaling;
mod snapshot;
mod ttl;

pub use answers_file::{AnswerEntry, AnswersError, AnswersFile};
pub use backup::{Backup, BackupError, BackupNode, BackupObject};
pub use bitmap::Bitmap;
pub use claim::Claim;
pub use clock::{Clock, ManualClock, SinceBoot};
pub use cluster_map::{
    ClusterMap, Durability, HandedFrom, HashSpec, MapError, NewCluster, NodeEntry, NodeState,
    Phase, RangeEntry, Target,
};
pub use fingerprint::{
    FINGERPRINT_BYTES, Fingerprint, HashSeed, KEY_BYTES_MAX, KeyError, PackedFingerprints,
    PackedLengthError,
};
pub use hash_range::{HASH_RANGES_MAX, HashRange, RangeCountError, RangeId};
pub use hex::hex;
pub use ids::{ClusterId, CopyId, IdError, Incarnation, NodeId, OperationId};
pub use journal::{
    JournalError, RECORD_BYTES_MAX, Record, RecordBody, RecordError, RecordGroup,
    SEGMENT_HEADER_BYTES, SegmentHeader, Write, decode_record, encode_record, find_record,
    record_bytes_max,
};
pub use keyset::{Arena, Entry, InsertError, KeySet, Provisioner, Sweep, Times};
pub use lsn::Lsn;
pub use manifest::{Manifest, ManifestError, ManifestFile, ManifestRange, SnapshotKind};
pub use namespace::{NAMESPACE_BYTES_MAX, Namespace, NamespaceError};
pub use operation_answers::{AnswersDraft, OperationAnswers, RangeAnswers};
pub use origin::{Origin, OtherFile};
pub use placement::{PlacementError, place};
pub use snapshot::{
    BLOCK_ENTRIES, BlockEntry, Event, FileKind, Footer, FooterError, SectionEntry, SectionHeader,
    SnapshotDecoder, SnapshotError, SnapshotHeader, SnapshotWriter, TRAILER_BYTES, Totals,
};
pub use ttl::{Expiry, ExpiryError, TTL_MAX, Ttl, TtlError, UnixMillis, UnixSeconds};
