//! A write or a sync that fails: nothing is acknowledged any more, for good.

use super::*;
use crate::disk::failpoint::{self, Action};

/// What of a segment's making and writing can fail, and what is said then.
const POINTS: [(&str, &str); 5] = [
    ("journal.sync", "cannot sync"),
    ("journal.write", "cannot write"),
    ("journal.rename", "cannot create"),
    ("journal.sync_dir", "cannot sync directory"),
    ("*", "cannot create"),
];

#[tokio::test]
async fn a_failure_is_told_to_everybody_who_waits_and_nothing_is_committed_after_it() {
    for (point, message) in POINTS {
        let rig = Rig::new(1 << 20);
        let journal = Arc::new(rig.open());
        // A journal that has no room admits nothing, so there must be some before everything fails.
        let space = journal.admit(100_000).await.unwrap();
        let watching = tokio::spawn({
            let journal = Arc::clone(&journal);
            async move { journal.failed().await }
        });
        let _armed = failpoint::arm(point, &rig.path(), Action::Fail(EIO), 0);
        let blocker = space.begin();
        let waiting: Vec<_> = (0..50)
            .map(|number| {
                let lsn = Lsn(put(space.begin(), &keys(number, 1)).0);
                let journal = Arc::clone(&journal);
                tokio::spawn(async move { journal.wait_committed(lsn).await })
            })
            .collect();
        tokio::task::yield_now().await;
        assert!(!watching.is_finished(), "{point}");
        put(blocker, &keys(50, 1));

        let error = soon(watching).await.unwrap().to_string();
        assert!(error.contains(message), "{point}: {error}");
        assert!(error.contains("journal"), "{point}: {error}");
        for task in waiting {
            let told = soon(task).await.unwrap().unwrap_err().to_string();
            assert_eq!(told, error, "{point}");
        }
        // Nor anybody who comes later, also when the disk is well again.
        drop(_armed);
        let late = Lsn(put(space.begin(), &keys(60, 1)).0);
        soon(journal.wait_committed(late)).await.unwrap_err();
        assert_eq!(journal.committed(), Lsn(0), "{point}");
        assert_eq!(soon(journal.failed()).await.to_string(), error);
        assert_eq!(journal.close().unwrap_err().to_string(), error);
    }
}

#[tokio::test]
async fn what_was_committed_before_a_failure_stays_so() {
    let rig = Rig::new(1 << 20);
    let journal = rig.open();
    let _armed = failpoint::arm("journal.sync", &rig.path(), Action::Fail(EIO), 3);
    let model = fill(&journal, 3).await;
    let kept = append(&journal, &keys(9, 1)).await;
    soon(journal.wait_committed(Lsn(kept.0))).await.unwrap_err();
    assert_eq!((journal.appended(), journal.committed()), (Lsn(4), Lsn(3)));
    soon(journal.wait_committed(Lsn(3))).await.unwrap();
    let recent = journal.recent(Lsn(4));
    assert_eq!((recent.from, recent.to), (Lsn(0), Lsn(3)));
    assert_eq!(recent.records.len(), 3);
    journal.close().unwrap_err();
    // The last record was written. Whether it is on the disk, nobody knows, and nobody was told.
    let found = rig.replay().unwrap();
    assert_eq!(found[..3], model);
    assert!(found.len() <= 4);
}

#[tokio::test]
async fn a_segment_that_cannot_be_ended_fails_the_journal() {
    let rig = Rig::new(4096);
    let journal = rig.open();
    let mut model = fill(&journal, 3).await;
    // The next record is written to a new segment, for which this one is synced once more.
    let _armed = failpoint::arm("journal.sync", &rig.path(), Action::Fail(EIO), 0);
    let space = journal.admit(2800).await.unwrap();
    let kept = put(space.begin(), &keys(4, 150));
    let kept = [kept, put(space.begin(), &keys(5, 80))];
    soon(journal.wait_committed(Lsn(kept[1].0)))
        .await
        .unwrap_err();
    journal.close().unwrap_err();
    model.extend(kept);
    let found = rig.replay().unwrap();
    assert!(found.len() >= 3 && model.starts_with(&found));
}

#[tokio::test]
async fn a_journal_that_cannot_have_its_directory_or_clear_it_is_not_opened() {
    let rig = Rig::new(1 << 20);
    fs::write(rig.path(), b"a file").unwrap();
    let error = Journal::open(rig.config(), kept_behind(Lsn(0)))
        .unwrap_err()
        .to_string();
    assert!(error.contains("cannot create directory"), "{error}");
    fs::remove_file(rig.path()).unwrap();

    fs::create_dir(rig.path()).unwrap();
    fs::write(rig.path().join("prepared-7"), [0; 100]).unwrap();
    let armed = failpoint::arm("journal.remove", &rig.path(), Action::Fail(EIO), 0);
    let error = Journal::open(rig.config(), kept_behind(Lsn(0)))
        .unwrap_err()
        .to_string();
    assert!(error.contains("prepared-7"), "{error}");
    drop(armed);
    let journal = Journal::open(rig.config(), kept_behind(Lsn(0))).unwrap();
    assert!(!rig.path().join("prepared-7").exists());
    journal.close().unwrap();
}
