//! What goes into the journal, and in which order.

use std::sync::Arc;

use keydb_core::{
    Arena, ClusterMap, Durability, Incarnation, ManualClock, NewCluster, NodeId, Record,
    RecordBody, UnixMillis,
};

use super::*;
use crate::{
    disk::journal::{self, Identity, JournalConfig, Recent},
    ranges::owned::{CurrentMap, OwnedRanges},
};

const NOW: UnixMillis = UnixMillis(1_700_000_000_000);

/// What a record of the journal has: its LSN, whether it has answers, and how many keys.
type Found = (u64, bool, usize);

#[tokio::test]
async fn answers_come_behind_the_writes_of_others_that_they_rest_on() {
    let map = ClusterMap::create(&NewCluster {
        addresses: vec!["a:1".to_owned()],
        range_count: 1,
        durability: Durability::Journal,
    })
    .unwrap();
    let identity = Identity {
        cluster_id: map.cluster_id,
        node: NodeId(0),
        disk_id: Incarnation::from_bytes([7; 16]),
    };
    let ranges = OwnedRanges::new(CurrentMap::new(map), NodeId(0), &Arena::new(), None);
    let range = &ranges.ranges()[0];
    let dir = tempfile::tempdir().unwrap();
    let config = JournalConfig::new(
        dir.path().join("journal"),
        identity,
        true,
        Arc::new(ManualClock::new(NOW)),
    );
    let read = |config: &JournalConfig| -> (Lsn, Vec<Found>) {
        let mut found = Vec::new();
        let replayed = journal::replay(
            &config.dir,
            &config.identity,
            Lsn::ZERO,
            Lsn::ZERO,
            |record: &Record<'_>| {
                if let RecordBody::Write(write) = &record.body {
                    found.push((
                        record.lsn.0,
                        write.operation.is_some(),
                        write.fingerprints.len(),
                    ));
                }
                Ok(())
            },
        );
        (replayed.unwrap().last, found)
    };
    let (last, _) = read(&config);
    let journal = Journal::open(config.clone(), Recent::new(last, 1 << 20)).unwrap();

    let keys: Vec<u8> = [1, 2]
        .map(|number| Fingerprint::from_parts(number << 32, 0).to_bytes())
        .concat();
    let keys = PackedFingerprints::new(&keys).unwrap();
    let expiry = Expiry::from_unix_seconds(2_000_000_000).unwrap();
    let claim = |commit: &mut Commit<'_>, first: &mut Bitmap| {
        let mut set = range.write();
        set.claim(keys, expiry, Times::at(NOW), first, 0).unwrap();
        commit.claimed(range, keys, first, 0);
    };
    let operation = || Some(OperationId::random());

    let mut early = Commit::of_write(Some(&journal), 2, 1, 1).await.unwrap();
    let mut late = Commit::of_write(Some(&journal), 2, 1, 1).await.unwrap();
    early.begin();
    late.begin();
    let mut first = Bitmap::new(2);
    claim(&mut late, &mut first);
    assert_eq!(first.count(), 2);
    // It finds what the other has stored under a later LSN than its own.
    claim(&mut early, &mut Bitmap::new(2));
    let early_lsn = early.answers_lsn();
    early.append(expiry, operation(), b"both are duplicates", NOW);
    let late_lsn = late.answers_lsn();
    late.append(expiry, operation(), b"both are first", NOW);
    assert_eq!((early_lsn, late_lsn), (Lsn(3), Lsn(2)));
    early.committed().await.unwrap();
    late.committed().await.unwrap();
    journal.close().unwrap();

    let (_, found) = read(&config);
    assert_eq!(found, [(1, false, 0), (2, true, 2), (3, true, 0)]);
}
