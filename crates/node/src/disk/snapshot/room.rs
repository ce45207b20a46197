//! How much room on the disk snapshots need, and may take.

use keydb_core::{Manifest, SnapshotKind};

use super::{rounds::is_arriving, shared::Shared};
use crate::disk::journal;

/// What an entry takes in a snapshot file at most, on average: a fingerprint's gap and an expiry.
pub(super) const ENTRY_BYTES_MAX: u64 = 12;

/// A delta's records are kept up to this size.
const DELTA_BYTES_MAX: u64 = journal::RECENT_BYTES_MAX as u64;

/// More than a manifest, as it is written beside the one before.
const MANIFEST_BYTES: u64 = 4 << 20;

impl Shared {
    /// How much room on the disk a round needs at most until it has removed what it replaces. That is what the files grow by: the keys
    /// that no full file has, also those that the journal has room for already and will have with its next segment; and what is
    /// there twice meanwhile: full files that are not named yet, a delta, the remembered answers, a manifest.
    pub(super) fn room_bytes(&self) -> u64 {
        let manifest = self.manifest();
        let (in_bases, in_deltas) = entries(&manifest);
        let loaded = self.key_count();
        // While keys are loaded there are more: what the journal has, in no more bytes than it takes.
        let keys = match self.is_loading(&manifest) {
            true => loaded.max(in_bases + in_deltas + self.journal.bytes() / ENTRY_BYTES_MAX),
            false => loaded,
        };
        let growth = keys.saturating_sub(in_bases) * ENTRY_BYTES_MAX + self.journal.ahead_bytes();
        growth + twice_bytes(keys, &manifest) + self.node.answers.bytes() as u64 + MANIFEST_BYTES
    }

    fn is_loading(&self, manifest: &Manifest) -> bool {
        let membership_state = self.node.membership.state();
        membership_state.table().is_none_or(|table| {
            let mut ranges = table.ranges().iter();
            ranges.any(|range| range.readiness().is_none() && !is_arriving(manifest, range))
        })
    }
}

/// How much room the first round after a start may need, besides as much as the journal has.
pub(crate) fn room_at_start(manifest: &Manifest) -> u64 {
    let (in_bases, in_deltas) = entries(manifest);
    in_deltas * ENTRY_BYTES_MAX + twice_bytes(in_bases + in_deltas, manifest) + MANIFEST_BYTES
}

/// After full files of so many bytes, of `files` altogether, the manifest names them, so that those that they replace can go.
pub(super) fn unnamed_bytes_max(files: u64) -> u64 {
    (files / 8).clamp(4 << 20, 64 << 20)
}

/// How many entries full files and deltas have.
fn entries(manifest: &Manifest) -> (u64, u64) {
    let count = |kind| {
        let files = manifest.files.iter().filter(|file| file.kind == kind);
        files.map(|file| file.entries).sum()
    };
    (count(SnapshotKind::Full), count(SnapshotKind::Delta))
}

/// What a round that writes full files of `keys` keys has on the disk twice at most: those that are not named yet, a delta.
fn twice_bytes(keys: u64, manifest: &Manifest) -> u64 {
    let files = keys * ENTRY_BYTES_MAX;
    let ranges = manifest.ranges.len().max(1) as u64;
    let twice = unnamed_bytes_max(files) + files / ranges + DELTA_BYTES_MAX;
    twice.min(files)
}
