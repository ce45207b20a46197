//! What a round finds of the answers to claims.

use std::sync::atomic::{AtomicBool, Ordering};

use keydb_core::{AnswersFile, OperationId};
use keydb_proto::shard::{ClaimRequest, RangeKeys, RequestHeader};

use super::*;
use crate::requests;

/// A claim of one key, under an operation of its own.
fn claim_of_one(rig: &Rig, key: Fingerprint) -> ClaimRequest {
    let range = &rig.map.ranges[rig.map.range_index_of(key.top())];
    ClaimRequest {
        header: Some(RequestHeader {
            cluster_id: rig.map.cluster_id.to_bytes().to_vec().into(),
            lineage: rig.map.lineage,
            epoch: rig.map.epoch,
            target_node: NODE.0,
            not_after_unix_ms: START.plus(Duration::from_secs(10)).0,
        }),
        ranges: vec![RangeKeys {
            range_id: range.id.0,
            generation: range.generation,
            key_count: 1,
            attempt: 0,
        }],
        fingerprints: key.to_bytes().to_vec().into(),
        ttl_seconds: 60,
        operation_id: OperationId::random().to_bytes().to_vec().into(),
        only_remembered: false,
    }
}

/// A round writes the answers that are remembered, and then cuts the records that the journal had before it looked.
#[tokio::test(flavor = "multi_thread")]
async fn the_answers_of_every_record_that_the_journal_has_are_remembered() {
    let rig = Rig {
        // A small memory is quickly looked through; it has the latest answers.
        answer_memory_bytes: 4 << 10,
        ..Rig::with(Durability::Snapshot, 4).await
    };
    let run = rig.start().await;
    let ended = Arc::new(AtomicBool::new(false));
    let looking = std::thread::spawn({
        let (node, journal) = (Arc::clone(&run.node), Arc::clone(&run.journal));
        let ended = Arc::clone(&ended);
        move || {
            let mut missing = 0;
            while !ended.load(Ordering::Acquire) {
                let appended = journal.appended();
                let answers = node.answers.entries(|| {});
                let newest = answers.iter().map(|entry| entry.lsn).max();
                missing += usize::from(newest.unwrap_or_default() < appended);
            }
            missing
        }
    });
    for number in 0..100_000 {
        let claim = claim_of_one(&rig, rig.key(number));
        requests::claim(&run.node, &claim).await.unwrap();
    }
    ended.store(true, Ordering::Release);
    assert_eq!(run.journal.appended(), Lsn(100_000));
    assert_eq!(looking.join().unwrap(), 0);
    run.snapshots.abandon();
}

#[tokio::test(flavor = "multi_thread")]
async fn remembered_answers_do_not_wait_for_records_that_the_disk_has_lost() {
    let rig = Rig::new().await;
    let run = rig.start().await;
    let claim = claim_of_one(&rig, rig.key(1));
    requests::claim(&run.node, &claim).await.unwrap();
    run.snapshot().await;
    run.kill().await;
    let path = rig.root().join("answers");
    let mut file = AnswersFile::decode(&std::fs::read(&path).unwrap()).unwrap();
    file.entries[0].lsn = Lsn(1000);
    std::fs::write(&path, file.encode()).unwrap();

    let run = rig.start().await;
    let repeated = requests::claim(&run.node, &claim);
    let in_time = tokio::time::timeout(Duration::from_secs(5), repeated).await;
    in_time.expect("it waits for a record").unwrap_err();
    let mut repeat = claim;
    repeat.ranges[0].attempt = 1;
    let repeated = requests::claim(&run.node, &repeat);
    let in_time = tokio::time::timeout(Duration::from_secs(5), repeated).await;
    let reply = in_time.expect("it waits for a record").unwrap();
    assert_eq!(reply.repeated_ranges.len(), 1);
    assert_eq!(&*reply.first, [1]);
    run.snapshot().await;
    run.stop().await;
}
