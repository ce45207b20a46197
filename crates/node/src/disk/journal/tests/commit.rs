//! Group commit: who waits is woken when its record is synced, and many records share a sync.

use super::*;
use crate::disk::failpoint::{self, Action};

#[tokio::test]
async fn records_that_wait_together_share_one_sync() {
    let rig = Rig::new(1 << 20);
    let journal = Arc::new(rig.open());
    let syncs = failpoint::arm("journal.sync", &rig.path(), Action::Count, 0);
    // All others have to wait behind this one.
    let first = journal.admit(size_of_record(1)).await.unwrap();
    let reservation = first.begin();
    let mut waiting = Vec::new();
    for number in 0..500 {
        let kept = append(&journal, &keys(number, 1)).await;
        let journal = Arc::clone(&journal);
        waiting.push(tokio::spawn(async move {
            journal.wait_committed(Lsn(kept.0)).await.unwrap();
            kept
        }));
    }
    tokio::task::yield_now().await;
    assert_eq!((journal.taken(), journal.appended()), (Lsn(501), Lsn(0)));
    assert_eq!((journal.committed(), failpoint::count(&syncs)), (Lsn(0), 0));

    let mut model = vec![put(reservation, &keys(1000, 1))];
    for task in waiting {
        model.push(soon(task).await.unwrap());
    }
    assert_eq!(failpoint::count(&syncs), 1);
    assert_eq!(
        (journal.appended(), journal.committed()),
        (Lsn(501), Lsn(501))
    );
    journal.close().unwrap();
    assert_eq!(rig.replay().unwrap(), model);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_writers_at_once_need_far_fewer_syncs_than_they_write_records() {
    let rig = Rig::new(1 << 20);
    let journal = Arc::new(rig.open());
    let syncs = failpoint::arm("journal.sync", &rig.path(), Action::Count, 0);
    let writers = (0..64_u64).map(|writer| {
        let journal = Arc::clone(&journal);
        tokio::spawn(async move {
            let mut kept = Vec::new();
            for number in 0..20 {
                kept.push(commit(&journal, &keys(writer * 20 + number, 3)).await);
                assert!(journal.committed() >= Lsn(kept[kept.len() - 1].0));
            }
            kept
        })
    });
    let mut model = Vec::new();
    for writer in writers.collect::<Vec<_>>() {
        model.extend(soon(writer).await.unwrap());
    }
    let syncs = failpoint::count(&syncs);
    assert!(syncs * 4 <= 64 * 20, "{syncs} syncs");
    model.sort();
    // Before it is closed: what was acknowledged is there, whatever comes then.
    assert_eq!(rig.killed().replay().unwrap(), model);
}

#[tokio::test]
async fn nobody_is_woken_before_the_sync() {
    let rig = Rig::new(1 << 20);
    let journal = rig.open();
    let syncs = failpoint::arm("journal.sync", &rig.path(), Action::Count, 0);
    for number in 1..=20 {
        commit(&journal, &keys(number, 1)).await;
        assert_eq!(failpoint::count(&syncs), number);
    }
}

#[tokio::test]
async fn unhurried_records_share_a_sync_and_are_committed_whether_somebody_waits_or_not() {
    let rig = Rig::new(1 << 20);
    let journal = rig.open();
    let syncs = failpoint::arm("journal.sync", &rig.path(), Action::Count, 0);
    for number in 1..=50 {
        let space = journal.admit(size_of_record(1)).await.unwrap();
        put_by(
            Reservation::append_unhurried,
            space.begin(),
            &keys(number, 1),
        );
        tokio::time::sleep(Duration::from_micros(100)).await;
    }
    soon(journal.wait_committed(Lsn(50))).await.unwrap();
    assert!(failpoint::count(&syncs) < 50);

    let space = journal.admit(size_of_record(1)).await.unwrap();
    put_by(Reservation::append_unhurried, space.begin(), &keys(51, 1));
    soon(async {
        while journal.committed() < Lsn(51) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_wait_for_what_is_committed_returns_at_once_and_one_that_is_given_up_disturbs_nobody() {
    let rig = Rig::new(1 << 20);
    let journal = Arc::new(rig.open());
    fill(&journal, 3).await;
    soon(journal.wait_committed(Lsn(2))).await.unwrap();
    soon(journal.wait_committed(Lsn(0))).await.unwrap();

    let space = journal.admit(size_of_record(1)).await.unwrap();
    let reservation = space.begin();
    let given_up = tokio::spawn({
        let journal = Arc::clone(&journal);
        async move { journal.wait_committed(Lsn(4)).await }
    });
    let other = tokio::spawn({
        let journal = Arc::clone(&journal);
        async move { journal.wait_committed(Lsn(4)).await }
    });
    tokio::task::yield_now().await;
    given_up.abort();
    assert!(given_up.await.unwrap_err().is_cancelled());
    assert!(!other.is_finished());
    put(reservation, &keys(9, 1));
    soon(other).await.unwrap().unwrap();
}

#[tokio::test]
async fn without_a_disk_a_record_is_committed_when_it_is_appended() {
    let rig = Rig::new(1 << 20);
    let config = JournalConfig {
        synced: false,
        ..rig.config()
    };
    let journal = Journal::open(config, kept_behind(Lsn(10))).unwrap();
    assert!(!journal.is_synced());
    let space = journal.admit(usize::MAX).await.unwrap();
    let (first, second) = (space.begin(), space.begin());
    put(second, &keys(2, 1));
    assert_eq!(journal.committed(), Lsn(10));
    put(first, &keys(1, 1));
    assert_eq!(journal.committed(), Lsn(12));
    soon(journal.wait_committed(Lsn(12))).await.unwrap();
    let recent = journal.recent(Lsn(12));
    assert_eq!((recent.from, recent.to), (Lsn(10), Lsn(12)));
    assert_eq!(recent.records.len(), 2);
    journal.close().unwrap();
    assert!(!rig.path().exists());
}

#[tokio::test]
async fn recent_records_are_those_that_were_written_and_only_committed_ones() {
    let rig = Rig::new(1 << 20);
    let journal = rig.open();
    let mut model = fill(&journal, 3).await;
    let space = journal.admit(size_of_record(1) * 2).await.unwrap();
    let (open, parked) = (space.begin(), space.begin());
    let parked = put(parked, &keys(5, 1));
    let recent = |up_to| {
        let recent = journal.recent(Lsn(up_to));
        let decode = |bytes: &bytes::Bytes| {
            let (record, length) = keydb_core::decode_record(bytes, IDENTITY.disk_id).unwrap();
            assert_eq!(length, bytes.len());
            keep(&record)
        };
        journal.recent_written(recent.to);
        let records = recent.records.iter().map(decode);
        (recent.from.0, recent.to.0, records.collect::<Vec<_>>())
    };
    assert_eq!(recent(2), (0, 2, model[..2].to_vec()));
    assert_eq!(recent(100), (2, 3, model[2..].to_vec()));
    model.push(put(open, &keys(4, 1)));
    model.push(parked);
    soon(journal.wait_committed(Lsn(5))).await.unwrap();
    assert_eq!(recent(100), (3, 5, model[3..].to_vec()));
    assert_eq!(journal.recent_bytes().0, 0);
}
