//! What rounds write, when, and what they leave alone.

use super::*;
use crate::disk::failpoint::{self, Action};

#[tokio::test(flavor = "multi_thread")]
async fn what_was_written_is_in_object_storage_and_found_again_at_a_start() {
    for durability in [Durability::Journal, Durability::Snapshot] {
        let rig = Rig::with(durability, 4).await;
        let run = rig.start().await;
        let mut keys = rig.keys(0..3000, EXPIRY);
        run.put(&keys).await;
        let made = run.snapshot().await;
        assert_eq!(made.objects, 1);
        assert_eq!(made.reach.complete_to, START);
        assert_eq!(rig.remote_keys().await, keys);

        // The later expiry counts, whichever was written last.
        run.put(&rig.keys(500..1500, EXPIRY + 9)).await;
        run.put(&rig.keys(1000..3500, EXPIRY - 9)).await;
        keys.extend(rig.keys(500..1500, EXPIRY + 9));
        keys.extend(rig.keys(3000..3500, EXPIRY - 9));
        run.snapshot().await;
        assert_eq!(kinds(&run.local()), (2, 0));
        assert_eq!(rig.remote_keys().await, keys);

        run.put(&rig.keys(4000..4100, EXPIRY)).await;
        keys.extend(rig.keys(4000..4100, EXPIRY));
        run.stop().await;
        assert_eq!(rig.remote_keys().await, keys);
        let run = rig.start().await;
        assert_eq!(run.keys(), keys);
        // The files have everything, so a delta goes on where the last one ended.
        run.put(&rig.keys(5000..5001, EXPIRY)).await;
        run.snapshot().await;
        assert_eq!(kinds(&run.local()), (4, 0));
        run.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rounds_are_made_and_uploaded_again_and_again_without_being_asked_for() {
    let rig = Rig {
        interval: Duration::from_millis(20),
        ..Rig::new().await
    };
    let run = rig.start().await;
    for round in 0..3 {
        let keys = rig.keys(round * 100..round * 100 + 100, EXPIRY);
        run.put(&keys).await;
        let written = run.journal.committed();
        eventually(async || {
            rig.remote()
                .await
                .is_some_and(|manifest| manifest.lsn >= written)
        })
        .await;
    }
    assert_eq!(rig.remote_keys().await, rig.keys(0..300, EXPIRY));
    run.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn full_files_on_demand_replace_everything_else_and_are_not_made_twice() {
    let rig = Rig::new().await;
    let run = rig.start().await;
    let keys = rig.keys(0..2000, EXPIRY);
    run.put(&keys).await;
    run.snapshot().await;
    let made = run.full_snapshot().await;
    assert_eq!(made.objects, 4);
    assert_eq!(kinds(&run.local()), (0, 4));
    assert_eq!(rig.remote_keys().await, keys);
    assert_eq!(run.full_snapshot().await.objects, 0);
    eventually(async || rig.files().len() == 4).await;
    run.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_records_were_too_many_to_keep_full_files_have_what_they_said() {
    let rig = Rig {
        recent_bytes_max: 20_000,
        ..Rig::new().await
    };
    let run = rig.start().await;
    run.put(&rig.keys(0..5000, EXPIRY)).await;
    run.snapshot().await;
    assert_eq!(kinds(&run.local()), (0, 4));
    run.put(&rig.keys(5000..5100, EXPIRY)).await;
    run.snapshot().await;
    assert_eq!(kinds(&run.local()), (1, 4));
    assert_eq!(rig.remote_keys().await, rig.keys(0..5100, EXPIRY));
    run.kill().await;
    assert_eq!(rig.start().await.keys(), rig.keys(0..5100, EXPIRY));
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_kill_a_delta_has_what_was_replayed_and_full_files_where_that_was_too_much() {
    for (recent_bytes_max, expected) in [(16 << 20, (3, 0)), (1000, (1, 4))] {
        let rig = Rig {
            recent_bytes_max,
            ..Rig::new().await
        };
        after_a_kill(&rig, expected).await;
    }
}

/// `expected` deltas and full files are there in the end.
async fn after_a_kill(rig: &Rig, expected: (usize, usize)) {
    let run = rig.start().await;
    run.put(&rig.keys(0..50, EXPIRY)).await;
    run.snapshot().await;
    run.put(&rig.keys(50..200, EXPIRY)).await;
    run.kill().await;
    let run = rig.start().await;
    assert_eq!(run.keys(), rig.keys(0..200, EXPIRY));
    run.snapshot().await;
    run.put(&rig.keys(200..250, EXPIRY)).await;
    run.snapshot().await;
    assert_eq!(kinds(&run.local()), expected);
    assert_eq!(rig.remote_keys().await, rig.keys(0..250, EXPIRY));
    run.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_round_while_keys_are_written_misses_nothing_that_was_acknowledged_before_it() {
    for full in [false, true] {
        let rig = Arc::new(Rig::with(Durability::Journal, 16).await);
        let run = Arc::new(rig.start().await);
        let (acknowledged, progress) = watch::channel(0);
        let writing = tokio::spawn({
            let (rig, run) = (Arc::clone(&rig), Arc::clone(&run));
            async move {
                for batch in 0..200 {
                    run.put(&rig.keys(batch * 500..batch * 500 + 500, EXPIRY + batch))
                        .await;
                    acknowledged.send_replace(batch + 1);
                }
            }
        });
        let mut rounds = 0;
        while !writing.is_finished() {
            let batches = *progress.borrow();
            run.snapshots.request(full, far()).await.unwrap();
            let there = rig.remote_keys().await;
            for batch in 0..batches {
                for (key, expiry) in rig.keys(batch * 500..batch * 500 + 500, EXPIRY + batch) {
                    assert_eq!(there.get(&key), Some(&expiry), "batch {batch} of {batches}");
                }
            }
            rounds += 1;
        }
        writing.await.unwrap();
        assert!(rounds > 1);
        let keys = run.keys();
        assert_eq!(keys.len(), 100_000);
        Arc::into_inner(run).unwrap().stop().await;
        assert_eq!(rig.start().await.keys(), keys);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_for_files_alone_gets_them_and_the_journal_is_not_cut() {
    let rig = Rig::new().await;
    let run = rig.start().await;
    // They are written before each cut.
    let answers = rig.root().join("answers.tmp");
    let cuts = failpoint::arm("data_dir.write", &answers, Action::Count, 0);
    run.put(&rig.keys(0..50, EXPIRY)).await;
    run.snapshots.request_files(far()).await.unwrap();
    assert_eq!(failpoint::count(&cuts), 0);
    assert_eq!(rig.remote_keys().await, rig.keys(0..50, EXPIRY));
    run.put(&rig.keys(50..60, EXPIRY)).await;
    run.snapshot().await;
    assert_eq!(failpoint::count(&cuts), 1);
    assert_eq!(rig.remote_keys().await, rig.keys(0..60, EXPIRY));
    run.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_file_with_a_key_that_is_not_committed_is_not_put_to_use() {
    let rig = Rig::new().await;
    let run = Arc::new(rig.start().await);
    run.put(&rig.keys(0..10, EXPIRY)).await;
    // Its LSN is taken and it is stored, but its record is not even appended.
    let space = run.journal.admit(10_000).await.unwrap();
    let reservation = space.begin();
    let stored = rig.key(77);
    let expiry = Expiry::from_unix_seconds(EXPIRY).unwrap();
    run.apply(&[stored], expiry);

    let written = failpoint::arm("snapshot.sync", &rig.root(), Action::Count, 0);
    let named = failpoint::arm("snapshot.rename", &rig.root(), Action::Count, 0);
    let request = tokio::spawn({
        let run = Arc::clone(&run);
        async move { run.snapshots.request(true, far()).await }
    });
    eventually(async || failpoint::count(&written) > 0).await;
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(failpoint::count(&named), 0);
    }
    run.store(reservation, &[stored], expiry);
    request.await.unwrap().unwrap();
    assert!(rig.remote_keys().await.contains_key(&stored));
    Arc::into_inner(run).unwrap().stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_stops_leaves_to_the_journal_what_only_full_files_could_have() {
    let rig = Rig {
        recent_bytes_max: 20_000,
        ..Rig::new().await
    };
    let run = rig.start().await;
    let keys = rig.keys(0..5000, EXPIRY);
    run.put(&keys).await;
    run.stop().await;
    assert_eq!(rig.files(), [] as [String; 0]);
    let run = rig.start().await;
    assert_eq!(run.keys(), keys);
    run.snapshot().await;
    assert_eq!(rig.remote_keys().await, keys);
    run.stop().await;

    // Without a journal they are made.
    let rig = Rig {
        recent_bytes_max: 20_000,
        ..Rig::with(Durability::Snapshot, 4).await
    };
    let run = rig.start().await;
    let keys = rig.keys(0..5000, EXPIRY);
    run.put(&keys).await;
    run.stop().await;
    assert_eq!(rig.start().await.keys(), keys);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_journal_new_records_are_not_taken_for_those_that_a_file_begun_later_has() {
    let rig = Rig::with(Durability::Snapshot, 1).await;
    let run = rig.start().await;
    for number in 0..50 {
        run.put(&rig.keys(number..number + 1, EXPIRY)).await;
    }
    run.full_snapshot().await;
    // The full file was begun behind the record that the round is for; then the node was killed.
    let mut manifest = Manifest::clone(&run.local());
    let base = manifest.files[0].lsn_to;
    manifest.lsn = Lsn(base.0 - 40);
    save(&run.data_dir, &manifest).unwrap();
    run.kill().await;
    let run = rig.start().await;
    run.put(&rig.keys(100..101, EXPIRY)).await;
    run.snapshot().await;
    assert_eq!(kinds(&run.local()), (1, 1));
    let mut keys = rig.keys(0..50, EXPIRY);
    keys.extend(rig.keys(100..101, EXPIRY));
    assert_eq!(rig.remote_keys().await, keys);
    run.kill().await;
    assert_eq!(rig.start().await.keys(), keys);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_mark_of_a_clean_stop_is_there_once() {
    let rig = Rig::new().await;
    let run = rig.start().await;
    let data_dir = Arc::clone(&run.data_dir);
    assert!(!take_clean_flag(&data_dir).unwrap());
    run.stop().await;
    assert!(take_clean_flag(&data_dir).unwrap());
    assert!(!take_clean_flag(&data_dir).unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_expired_an_hour_ago_is_left_out_while_the_clock_is_trusted() {
    let rig = Rig::new().await;
    let run = rig.start().await;
    let seconds = START.seconds().0;
    let mut keys = rig.keys(0..100, seconds + 60);
    keys.extend(rig.keys(100..200, seconds + 61));
    run.put(&keys).await;
    rig.clock.advance(Duration::from_secs(3660));
    run.node.clock.trust(false);
    run.full_snapshot().await;
    assert_eq!(rig.remote_keys().await, keys);
    run.node.clock.trust(true);
    // Something has to change, or the files would stay.
    let fresh = rig.keys(200..201, EXPIRY);
    run.put(&fresh).await;
    run.full_snapshot().await;
    keys.retain(|_, expiry| *expiry == seconds + 61);
    keys.extend(fresh);
    assert_eq!(rig.remote_keys().await, keys);
    run.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_that_is_not_ready_keeps_its_files() {
    let rig = Rig::new().await;
    let run = rig.start().await;
    let keys = rig.keys(0..1000, EXPIRY);
    run.put(&keys).await;
    run.full_snapshot().await;
    let before = run.local();
    run.kill().await;

    let run = rig.start().await;
    let table = OwnedRanges::new(
        CurrentMap::new(rig.map.clone()),
        NODE,
        &Arena::new(),
        run.node.membership.state().table(),
    );
    // As after a start at which a file of range 2 could not be read.
    let mut map = rig.map.clone();
    map.ranges[2].generation += 2;
    let table = OwnedRanges::new(CurrentMap::new(map), NODE, &Arena::new(), Some(&table));
    table.ranges()[2].close("its file is damaged".to_owned());
    run.node.membership.set(MembershipState::Serving(table));
    run.put(&rig.keys(5000..5001, EXPIRY)).await;
    run.full_snapshot().await;
    let after = run.local();
    assert_eq!(after.ranges[2], before.ranges[2]);
    assert_ne!(after.lsn, before.lsn);
    run.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_small_rounds_keep_the_number_of_files_bounded() {
    let rig = Rig::new().await;
    let run = rig.start().await;
    let mut most = 0;
    let mut keys = Keys::new();
    for round in 0..200 {
        // The same keys in several files, and not always the later expiry in the later one.
        let written = rig.keys(round..round + 5, EXPIRY + round * 7 % 11);
        run.put(&written).await;
        run.snapshot().await;
        most = most.max(run.local().files.len());
        for (key, expiry) in written {
            let later = keys.get(&key).copied().unwrap_or(0).max(expiry);
            keys.insert(key, later);
        }
    }
    // Not one full file was made for it.
    assert_eq!(most, DELTAS_MAX);
    assert_eq!(kinds(&run.local()).1, 0);
    assert_eq!(rig.remote_keys().await, keys);
    run.stop().await;
    assert_eq!(rig.start().await.keys(), keys);
}

#[tokio::test(flavor = "multi_thread")]
async fn deltas_that_cannot_be_merged_stay_until_full_files_take_their_place() {
    let rig = Rig::new().await;
    let run = rig.start().await;
    run.put(&rig.keys(0..100, EXPIRY)).await;
    run.snapshot().await;
    let path = file_path(&run.data_dir, &run.local().files[0].name);
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    for round in 0..DELTAS_MAX as u32 {
        run.put(&rig.keys(1000 + round..1100 + round, EXPIRY)).await;
        run.snapshot().await;
    }
    let warnings = run.node.warnings.all();
    assert!(
        warnings.iter().any(|it| it.contains("cannot be merged")),
        "{warnings:?}"
    );
    assert_eq!(kinds(&run.local()), (DELTAS_MAX + 1, 0));
    let mut rounds = 0;
    while run.node.warnings.all() != [] as [String; 0] {
        run.put(&rig.keys(2000 + rounds..2100 + rounds, EXPIRY))
            .await;
        run.snapshot().await;
        rounds += 1;
        assert!(rounds < 200);
    }
    assert!(kinds(&run.local()).1 > 0);
    run.full_snapshot().await;
    assert_eq!(rig.remote_keys().await, run.keys());
    run.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_that_is_not_ready_does_not_keep_the_files_of_the_others() {
    let rig = Rig {
        ready_ranges: 3,
        ..Rig::new().await
    };
    let run = rig.start().await;
    let last = run.table(|table| table.ranges()[3].bounds);
    let is_of_last = |key: &Fingerprint| last.contains(key.top());
    // What is written of the last range is in one file, which it needs from here on.
    let (kept, others): (Keys, Keys) = rig
        .keys(0..400, EXPIRY)
        .into_iter()
        .partition(|(key, _)| is_of_last(key));
    run.put(&kept).await;
    run.snapshot().await;
    let others: Keys = others.into_iter().take(200).collect();
    let mut most = 0;
    for (key, expiry) in &others {
        run.put(&Keys::from([(*key, *expiry)])).await;
        run.snapshot().await;
        most = most.max(run.local().files.len());
    }
    assert!(most <= DELTAS_MAX + 1, "{most}");
    run.full_snapshot().await;
    assert_eq!(kinds(&run.local()), (1, 3));
    eventually(async || rig.files().len() == 4).await;
    run.kill().await;
    let everything: Keys = kept.into_iter().chain(others).collect();
    let rig = Rig {
        ready_ranges: usize::MAX,
        ..rig
    };
    assert_eq!(rig.start().await.keys(), everything);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_round_for_which_there_is_no_room_is_made_when_there_is() {
    let rig = Rig::new().await;
    let run = rig.start().await;
    run.put(&rig.keys(0..100, EXPIRY)).await;
    run.snapshot().await;
    run.put(&rig.keys(100..200, EXPIRY)).await;
    for point in [
        "snapshot.create",
        "snapshot.write",
        "snapshot.sync",
        "data_dir.write",
    ] {
        let full = failpoint::arm(point, &rig.root(), Action::Fail(28), 0);
        let refused = run.snapshots.request(false, far()).await.unwrap_err();
        assert!(refused.contains("No space left"), "{point}: {refused}");
        drop(full);
    }
    run.snapshot().await;
    // What was kept of the records is a delta, and nothing of the attempts is left.
    assert_eq!(kinds(&run.local()), (2, 0));
    assert_eq!(rig.files().len(), 2);
    assert_eq!(rig.remote_keys().await, rig.keys(0..200, EXPIRY));
    run.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshot_files_without_a_manifest_are_refused_and_those_that_it_does_not_name_go() {
    let rig = Rig::new().await;
    let run = rig.start().await;
    run.put(&rig.keys(0..100, EXPIRY)).await;
    run.stop().await;
    let files = rig.files();
    let folder = rig.root().join("snapshots");
    std::fs::write(folder.join("stray.keydb"), "x").unwrap();
    std::fs::write(folder.join("stray.tmp"), "x").unwrap();
    rig.start().await.kill().await;
    assert_eq!(rig.files(), files);
    std::fs::remove_file(rig.root().join("manifest.json")).unwrap();
    let refused = rig.try_start().await.err().unwrap().to_string();
    assert!(
        refused.contains("manifest.json is damaged: it is missing"),
        "{refused}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_disks_first_round_names_all_ranges_though_some_are_still_loading() {
    let rig = Rig {
        ready_ranges: 1,
        ..Rig::new().await
    };
    let run = rig.start().await;
    run.put(&rig.keys(0..100, EXPIRY)).await;
    run.snapshot().await;
    // A range that is not named by then would be taken at the next start for one that came from another node.
    let named = run.local();
    let named: Vec<_> = named.ranges.iter().map(|range| range.id).collect();
    let owned = run.table(|table| table.ranges().iter().map(|it| it.id).collect::<Vec<_>>());
    assert_eq!(named, owned);
    run.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_room_that_is_left_to_snapshots_is_enough_for_all_keys_that_no_full_file_has() {
    let rig = Rig::new().await;
    let run = rig.start().await;
    run.put(&rig.keys(0..20_000, EXPIRY)).await;
    let room = || run.snapshots.shared.room_bytes() - run.journal.ahead_bytes();
    let before = room();
    assert!(before >= 20_000 * ENTRY_BYTES_MAX, "{before}");
    run.full_snapshot().await;
    // These are replaced a few at a time.
    let after = room();
    assert!(after + 19_000 * ENTRY_BYTES_MAX <= before, "{after}");
    // What the journal has room for comes on top.
    assert!(run.journal.ahead_bytes() >= 1 << 20);
    run.stop().await;
}
