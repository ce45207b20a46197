//! A journal that is closed, or killed, and opened again.

use super::*;
use crate::disk::failpoint::{self, Action};

#[tokio::test]
async fn a_journal_that_was_closed_and_one_that_was_killed_have_the_same_records() {
    let rig = Rig::new(8192);
    let journal = rig.open();
    let model = fill(&journal, 200).await;
    let killed = rig.killed();
    journal.close().unwrap();
    assert!(rig.segments().len() > 1);
    assert_eq!(rig.replay().unwrap(), model);
    // As long as nothing follows it, the last one keeps its size.
    for rig in [&rig, &killed] {
        let segments = rig.segments();
        let (last, others) = segments.split_last().unwrap();
        assert_eq!(last.bytes, 8192);
        assert!(others.iter().all(|segment| segment.bytes < 8192));
    }
    // What was read may not have been synced before the kill: it is now.
    let synced = failpoint::arm("journal.end", &killed.path(), Action::Count, 0);
    assert_eq!(killed.replay().unwrap(), model);
    assert_eq!(failpoint::count(&synced), 1);

    for rig in [rig, killed] {
        let mut model = model.clone();
        for _ in 0..3 {
            let journal = rig.open();
            model.extend(fill(&journal, 10).await);
            assert_eq!(rig.killed().replay().unwrap(), model);
            drop(journal);
            assert_eq!(rig.replay().unwrap(), model);
        }
        assert!(model.iter().map(|kept| kept.0).eq(1..=230));
    }
}

#[tokio::test]
async fn a_close_writes_what_was_appended_and_nobody_waited_for() {
    let rig = Rig::new(8192);
    let journal = rig.open();
    let mut model = Vec::new();
    for number in 0..300 {
        model.push(append(&journal, &keys(number, 1)).await);
    }
    journal.close().unwrap();
    assert_eq!(journal.committed(), Lsn(300));
    assert_eq!(rig.replay().unwrap(), model);
    // A second close has nothing to do.
    journal.close().unwrap();
}

#[tokio::test]
async fn a_close_leaves_a_mark_and_only_what_is_used_counts() {
    let rig = Rig::new(8192);
    let journal = rig.open();
    fill(&journal, 3).await;
    eventually(async || journal.bytes() > SEGMENT_HEADER_BYTES as u64).await;
    journal.close().unwrap();
    let image = rig.images().pop().unwrap();
    let mark = image.places.last().unwrap();
    assert!(mark.is_mark);
    assert_eq!((mark.lsn, mark.synced), (3, 3));
    assert_eq!(journal.bytes(), mark.end as u64);
    let reopened = rig.open();
    eventually(async || reopened.bytes() == mark.end as u64).await;
}

#[tokio::test]
async fn what_an_earlier_process_had_prepared_is_removed() {
    let rig = Rig::new(8192);
    let journal = rig.open();
    fill(&journal, 100).await;
    let killed = rig.killed();
    fs::write(killed.path().join("prepared-99"), [0; 8192]).unwrap();
    let reopened = killed.open();
    assert!(!killed.path().join("prepared-99").exists());
    fill(&reopened, 1).await;
    reopened.close().unwrap();
    assert_eq!(killed.replayed(0).last, Lsn(101));
}

#[tokio::test]
async fn a_journal_that_nothing_was_written_to_has_no_segment() {
    let rig = Rig::new(8192);
    for _ in 0..3 {
        rig.open().close().unwrap();
        assert!(rig.segments().is_empty());
    }
    assert_eq!(rig.replay().unwrap(), []);
}

/// As it is when a process is killed between the making of a segment and its first record.
#[tokio::test]
async fn a_last_segment_without_records_is_replaced_and_its_successor_is_kept() {
    let rig = Rig::new(8192);
    let journal = rig.open();
    let mut model = fill(&journal, 3).await;
    let killed = rig.killed();
    journal.close().unwrap();
    let empty = SegmentHeader {
        cluster_id: IDENTITY.cluster_id,
        disk_id: IDENTITY.disk_id,
        node: IDENTITY.node,
        first_lsn: Lsn(4),
        previous_last_lsn: Lsn(3),
        prepared_bytes: 8192,
        created: START,
        required_features: 0,
    };
    let mut bytes = empty.encode();
    bytes.resize(8192, 0);
    let path = killed.path().join("00000000000000000004.journal");
    fs::write(path, bytes).unwrap();

    assert_eq!(killed.replay().unwrap(), model);
    let journal = killed.open();
    model.extend(fill(&journal, 2).await);
    // A snapshot has the first record of the new segment, not all of them.
    journal.cut(Lsn(4));
    model.extend(writer_is_done(&journal).await);
    let (_, found) = killed.replay_after(4).unwrap();
    assert_eq!(found, model[4..]);
    journal.close().unwrap();
    let (_, found) = killed.replay_after(4).unwrap();
    assert_eq!(found, model[4..]);
}
