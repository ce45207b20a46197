//! Ranges that come to the node and leave it.

use super::*;
use crate::{
    disk::failpoint::{self, Action},
    ranges::owned::Readiness,
};

/// The range that comes and goes.
const MOVING: RangeId = RangeId(2);

const FIRST: CopyId = CopyId::from_bytes([1; 16]);
const SECOND: CopyId = CopyId::from_bytes([2; 16]);

impl Run {
    fn moving(&self) -> Arc<OwnedRange> {
        self.table(|table| Arc::clone(&table.ranges()[table.find(MOVING, 2).unwrap()]))
    }

    /// Makes this the moving range; without one it leaves.
    fn replace(&self, range: Option<&Arc<OwnedRange>>) {
        let next = self.table(|table| {
            let mut ranges = table.ranges().to_vec();
            ranges.retain(|range| range.id != MOVING);
            ranges.extend(range.cloned());
            ranges.sort_unstable_by_key(|range| range.id);
            let map = Arc::clone(&table.current_map);
            OwnedRanges::with(NODE, map, ranges, HashMap::new())
        });
        self.node.membership.set(MembershipState::Serving(next));
    }

    /// A copy begins to come in.
    fn begin_copy(&self, rig: &Rig, copy: CopyId) -> Arc<OwnedRange> {
        let created = rig.table(&self.node.arena);
        let like = created
            .find(MOVING, 2)
            .map(|index| &created.ranges()[index]);
        let range = brought(like.unwrap(), copy, &self.node.arena);
        self.replace(Some(&range));
        range
    }

    async fn secure(&self) -> Result<(), String> {
        self.snapshots.secure(&[MOVING], far()).await
    }

    /// Why the moving range is closed.
    fn why_closed(&self) -> String {
        match self.moving().readiness() {
            Some(Readiness::Closed(reason)) => reason.clone(),
            other => panic!("it is {other:?}"),
        }
    }
}

impl Rig {
    /// Keys of these numbers that are of the moving range, or not.
    fn split(&self, numbers: Range<u32>) -> (Keys, Keys) {
        let range = &self.map.bounds(2);
        let keys = self.keys(numbers, EXPIRY).into_iter();
        keys.partition(|(key, _)| range.contains(key.top()))
    }

    /// The moving range comes by this copy, or is not here, at the next start.
    fn moved(mut self, copy: Option<CopyId>) -> Self {
        self.moved.insert(MOVING, copy);
        self
    }
}

/// What `manifest` has of the moving range: the copy, whether there is a base, and how many deltas.
fn parts(manifest: &Manifest) -> Option<(Option<CopyId>, bool, usize)> {
    let entry = manifest.range(MOVING)?;
    let (base, deltas) = manifest.parts(entry);
    Some((entry.copy, base.is_some(), deltas.count()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_that_has_left_is_in_no_manifest_any_more_and_its_files_go() {
    let rig = Rig::new().await;
    let run = rig.start().await;
    let (moving, others) = rig.split(0..1000);
    run.put(&rig.keys(0..500, EXPIRY)).await;
    run.full_snapshot().await;
    run.put(&rig.keys(500..1000, EXPIRY)).await;
    run.snapshot().await;
    assert_eq!(parts(&run.local()), Some((None, true, 1)));
    run.replace(None);
    run.snapshot().await;
    assert_eq!((parts(&run.local()), kinds(&run.local())), (None, (1, 3)));
    assert_eq!(parts(&rig.remote().await.unwrap()), None);
    eventually(async || rig.files().len() == 4).await;
    run.kill().await;

    // It was still named when the node ended.
    let run = rig.start().await;
    assert_eq!(run.moving().read().len(), 0);
    assert!(run.why_closed().contains("came from another node"));
    run.kill().await;
    let rig = rig.moved(None);
    let run = rig.start().await;
    assert_eq!(run.keys(), others);
    assert!(!moving.is_empty());
    run.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn at_a_start_a_range_that_is_not_here_any_more_is_left_out() {
    let rig = Rig::new().await;
    let run = rig.start().await;
    let (_, others) = rig.split(0..1000);
    run.put(&rig.keys(0..500, EXPIRY)).await;
    run.full_snapshot().await;
    run.put(&rig.keys(500..1000, EXPIRY)).await;
    run.kill().await;
    let rig = rig.moved(None);
    let run = rig.start().await;
    assert_eq!(run.keys(), others);
    run.snapshot().await;
    assert_eq!(parts(&run.local()), None);
    assert_eq!(parts(&rig.remote().await.unwrap()), None);
    eventually(async || rig.files().len() == 4).await;
    run.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_is_named_with_a_full_file_when_it_is_complete_and_holds_up_nothing_before() {
    for recent_bytes_max in [16 << 20, 1000] {
        let rig = Rig {
            recent_bytes_max,
            ..Rig::new().await
        };
        let run = rig.start().await;
        run.replace(None);
        run.snapshot().await;
        let range = run.begin_copy(&rig, FIRST);
        assert!(
            run.secure()
                .await
                .unwrap_err()
                .contains("not all of its keys")
        );
        let (moving, others) = rig.split(0..400);
        for (keys, deltas) in [(moving, 0), (others, 1)] {
            run.put(&keys).await;
            let made = failpoint::arm("snapshot.create", &rig.root(), Action::Count, 0);
            run.snapshot().await;
            assert_eq!(parts(&run.local()), None);
            assert_eq!(run.local().lsn, run.journal.committed());
            if recent_bytes_max > 1000 {
                assert_eq!(failpoint::count(&made), deltas as u64);
                assert_eq!(kinds(&run.local()), (deltas, 0));
            }
        }
        // The last of it comes after the last round.
        run.put(&rig.keys(400..450, EXPIRY)).await;
        range.end_loading();
        run.secure().await.unwrap();
        let named = Some((Some(FIRST), true, 0));
        assert_eq!(parts(&run.local()), named);
        assert_eq!(parts(&rig.remote().await.unwrap()), named);
        run.put(&rig.keys(450..455, EXPIRY)).await;
        run.snapshot().await;
        assert_eq!(rig.remote_keys().await, rig.keys(0..455, EXPIRY));
        run.put(&rig.keys(455..460, EXPIRY)).await;
        run.kill().await;
        let rig = rig.moved(Some(FIRST));
        let run = rig.start().await;
        assert!(run.moving().is_ready());
        assert_eq!(run.keys(), rig.keys(0..460, EXPIRY));
        run.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_journal_is_cut_while_a_copy_comes_in_of_a_range_that_could_not_take_it() {
    let rig = Rig {
        recent_bytes_max: 1000,
        unmerged: vec![MOVING],
        ..Rig::new().await
    };
    let run = rig.start().await;
    run.put(&rig.keys(0..200, EXPIRY)).await;
    run.kill().await;
    let run = rig.start().await;
    run.begin_copy(&rig, FIRST);
    run.snapshot().await;
    assert_eq!(run.local().lsn, run.journal.committed());
    run.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_is_not_in_files_yet_is_closed_by_a_restart_and_never_empty() {
    for is_stopped in [false, true] {
        let rig = Rig::new().await;
        let run = rig.start().await;
        run.replace(None);
        run.snapshot().await;
        let range = run.begin_copy(&rig, FIRST);
        run.put(&rig.keys(0..200, EXPIRY)).await;
        range.end_loading();
        if is_stopped {
            run.stop().await;
        } else {
            run.kill().await;
        }
        let rig = rig.moved(Some(FIRST));
        let run = rig.start().await;
        let reason = run.why_closed();
        assert!(reason.contains(&format!("copy {FIRST}")), "{reason}");
        assert!(reason.contains("do not have it"), "{reason}");
        run.kill().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_new_node_is_brought_is_not_taken_for_what_it_was_created_with() {
    let mut rig = Rig::new().await;
    for range in rig.map.ranges.clone() {
        rig.moved.insert(range.id, None);
    }
    rig.start().await.kill().await;
    let rig = rig.moved(Some(FIRST));
    let run = rig.start().await;
    assert!(run.why_closed().contains("do not have it"));
    run.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_that_left_and_came_back_does_not_have_its_former_files() {
    for with_round in [false, true] {
        let rig = Rig::new().await;
        let run = rig.start().await;
        run.put(&rig.keys(0..200, EXPIRY)).await;
        run.full_snapshot().await;
        run.put(&rig.keys(200..300, EXPIRY)).await;
        run.snapshot().await;
        run.replace(None);
        let range = run.begin_copy(&rig, FIRST);
        if with_round {
            run.snapshot().await;
            assert_eq!(parts(&run.local()), None);
        }
        let named = run.local();
        run.kill().await;
        let rig = rig.moved(Some(FIRST));
        let run = rig.start().await;
        assert!(run.why_closed().contains(&format!("copy {FIRST}")));
        // Files of a closed range stay as they are.
        run.snapshot().await;
        assert_eq!(parts(&run.local()), parts(&named));
        run.kill().await;
        drop(range);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_copy_has_nothing_of_the_first_ones_files() {
    for with_round in [false, true] {
        let rig = Rig::new().await;
        let run = rig.start().await;
        run.replace(None);
        let (moving, others) = rig.split(0..400);
        let first: Keys = moving.clone().into_iter().take(20).collect();
        run.begin_copy(&rig, FIRST).end_loading();
        run.put(&first).await;
        run.secure().await.unwrap();
        run.put(&others).await;
        run.put(&first).await;
        run.snapshot().await;
        assert_eq!(parts(&run.local()), Some((Some(FIRST), true, 1)));

        let second = run.begin_copy(&rig, SECOND);
        if with_round {
            run.snapshot().await;
            assert_eq!(parts(&run.local()), None);
        }
        let came: Keys = moving.clone().into_iter().skip(20).collect();
        run.put(&came).await;
        second.end_loading();
        run.secure().await.unwrap();
        assert_eq!(parts(&run.local()), Some((Some(SECOND), true, 0)));
        let there: Keys = came.into_iter().chain(others).collect();
        // The delta is still needed by the others.
        assert_eq!(kinds(&run.local()).0, 1);
        run.kill().await;
        let rig = rig.moved(Some(SECOND));
        let run = rig.start().await;
        assert!(run.moving().is_ready());
        assert_eq!(run.keys(), there);
        run.kill().await;
        let rig = rig.moved(Some(FIRST));
        let run = rig.start().await;
        assert!(
            run.why_closed()
                .contains(&format!("that came by copy {SECOND}"))
        );
        run.kill().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copied_range_that_loads_at_a_start_stays_named_and_keeps_what_the_journal_has_of_it() {
    let rig = Rig {
        recent_bytes_max: 1000,
        ..Rig::new().await
    };
    let run = rig.start().await;
    run.replace(None);
    run.begin_copy(&rig, FIRST).end_loading();
    run.put(&rig.keys(0..100, EXPIRY)).await;
    run.secure().await.unwrap();
    run.put(&rig.keys(100..400, EXPIRY)).await;
    run.kill().await;
    let rig = Rig {
        ready_ranges: 0,
        ..rig.moved(Some(FIRST))
    };
    let run = rig.start().await;
    run.snapshot().await;
    // What only the journal had is in a delta by now.
    assert_eq!(parts(&run.local()), Some((Some(FIRST), true, 1)));
    run.kill().await;
    let rig = Rig {
        ready_ranges: usize::MAX,
        ..rig
    };
    let run = rig.start().await;
    assert_eq!(run.keys(), rig.keys(0..400, EXPIRY));
    run.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_disk_goes_on_with_the_copy_that_it_took_over() {
    let rig = Rig::new().await;
    let run = rig.start().await;
    run.replace(None);
    run.begin_copy(&rig, FIRST).end_loading();
    let keys = rig.keys(0..400, EXPIRY);
    run.put(&keys).await;
    run.secure().await.unwrap();
    run.stop().await;
    std::fs::remove_dir_all(rig.root()).unwrap();
    let run = rig.start().await;
    assert_eq!(run.keys(), keys);
    run.snapshot().await;
    assert_eq!(parts(&run.local()), Some((Some(FIRST), true, 0)));
    run.put(&rig.keys(400..401, EXPIRY)).await;
    run.full_snapshot().await;
    assert_eq!(parts(&run.local()), Some((Some(FIRST), true, 0)));
    run.stop().await;
    let rig = rig.moved(Some(FIRST));
    let run = rig.start().await;
    assert_eq!(run.keys(), rig.keys(0..401, EXPIRY));
    run.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn securing_waits_for_object_storage_and_says_at_the_deadline_what_stood_in_the_way() {
    let rig = Rig::with(Durability::Snapshot, 4).await;
    let run = Arc::new(rig.start().await);
    run.replace(None);
    assert!(run.secure().await.unwrap_err().contains("is not here"));
    run.begin_copy(&rig, FIRST).end_loading();
    run.put(&rig.keys(0..400, EXPIRY)).await;
    rig.storage.goes_wrong(|_, _| Some(DOWN));
    let soon = Instant::now() + Duration::from_millis(300);
    let refused = run.snapshots.secure(&[MOVING], soon).await.unwrap_err();
    assert!(Instant::now() >= soon);
    for text in ["connection refused", "the local snapshot is made"] {
        assert!(refused.contains(text), "{refused}");
    }
    let waiting: Vec<_> = (0..3)
        .map(|_| {
            let run = Arc::clone(&run);
            tokio::spawn(async move { run.secure().await })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(waiting.iter().all(|it| !it.is_finished()));
    rig.storage.works();
    for waiting in waiting {
        waiting.await.unwrap().unwrap();
    }
    // It takes nothing more, also without storage.
    rig.storage.goes_wrong(|_, _| Some(DOWN));
    run.secure().await.unwrap();
    rig.storage.works();

    // What is asked for when the node stops does not wait for its deadline.
    run.begin_copy(&rig, SECOND).end_loading();
    rig.storage.goes_wrong(|_, _| Some(DOWN));
    let asked = tokio::spawn({
        let run = Arc::clone(&run);
        async move { run.secure().await }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    let deadline = Instant::now() + Duration::from_millis(100);
    run.snapshots.close(deadline).await.unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(5), asked).await;
    assert_eq!(ended.unwrap().unwrap(), Err(STOPPING.to_owned()));
}
