//! Records come back in order, whatever order they were written in.

use std::{collections::BTreeMap, sync::Mutex};

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn what_many_write_at_once_comes_back_in_order_and_without_gaps_over_many_segments() {
    let rig = Rig::new(16 << 10);
    let journal = Arc::new(rig.open());
    let model: Arc<Mutex<BTreeMap<u64, Option<Vec<u8>>>>> = Arc::default();
    let writers = (0..16_u64).map(|writer| {
        let (journal, model) = (Arc::clone(&journal), Arc::clone(&model));
        tokio::spawn(async move {
            for round in 0..20 {
                let number = writer * 1000 + round;
                let count = (number * 7 % 40) as usize;
                let space = journal.admit(3 * size_of_record(count)).await.unwrap();
                let (first, unused, second) = (space.begin(), space.begin(), space.begin());
                let kept = [
                    (unused.lsn().0, None),
                    put(second, &keys(number, count)),
                    put(first, &keys(number + 500, count)),
                ];
                drop(unused);
                let last = kept.iter().map(|kept| kept.0).max().unwrap();
                model.lock().unwrap().extend(kept);
                journal.wait_committed(Lsn(last)).await.unwrap();
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        soon(writer).await.unwrap();
    }
    journal.close().unwrap();
    let model: Vec<Kept> = Arc::into_inner(model)
        .unwrap()
        .into_inner()
        .unwrap()
        .into_iter()
        .collect();
    assert!(model.iter().map(|kept| kept.0).eq(1..=16 * 20 * 3));
    assert!(rig.segments().len() > 5, "{:?}", rig.segments());
    let (replayed, found) = rig.replay_after(0).unwrap();
    assert!(found == model);
    assert_eq!(
        replayed,
        Replayed {
            last: Lsn(960),
            last_written: START,
            records: 960,
        }
    );
    for after in [1, 500, 959, 960] {
        let (replayed, found) = rig.replay_after(after).unwrap();
        assert!(found == model[after as usize..], "behind {after}");
        assert_eq!(replayed.last, Lsn(960));
    }
}

#[tokio::test]
async fn reservations_that_are_given_up_in_any_order_become_empty_records() {
    let rig = Rig::new(1 << 20);
    let journal = rig.open();
    let space = journal.admit(10_000).await.unwrap();
    let mut open: Vec<Option<Reservation>> = (0..10).map(|_| Some(space.begin())).collect();
    let mut model = Vec::new();
    for at in [7, 3, 9, 1, 0, 8, 2, 6, 5, 4] {
        let reservation = open[at].take().unwrap();
        assert_eq!(reservation.lsn(), Lsn(at as u64 + 1));
        if at % 3 == 0 {
            model.push(put(reservation, &keys(at as u64, at)));
        } else {
            model.push((reservation.lsn().0, None));
        }
    }
    model.sort();
    soon(journal.wait_committed(Lsn(10))).await.unwrap();
    assert_eq!(rig.killed().replay().unwrap(), model);
    let kinds = |rig: &Rig| {
        let mut kinds = Vec::new();
        inspect(&rig.path(), |found| {
            if let Found::Record { kind, keys, .. } = found {
                kinds.push((kind, keys));
            }
        })
        .unwrap();
        kinds
    };
    journal.close().unwrap();
    let mut expected: Vec<_> = (0..10)
        .map(|at| {
            if at % 3 == 0 {
                ("write", at)
            } else {
                ("empty", 0)
            }
        })
        .collect();
    expected.push(("mark", 0));
    assert_eq!(kinds(&rig), expected);
}

#[tokio::test]
async fn a_reservation_that_a_panic_drops_does_not_hold_up_the_others() {
    let rig = Rig::new(1 << 20);
    let journal = Arc::new(rig.open());
    let panicking = tokio::spawn({
        let journal = Arc::clone(&journal);
        async move {
            let space = journal.admit(1000).await.unwrap();
            let _reservation = space.begin();
            panic!("as a defect would");
        }
    });
    assert!(panicking.await.unwrap_err().is_panic());
    let kept = soon(commit(&journal, &keys(1, 1))).await;
    journal.close().unwrap();
    assert_eq!(rig.replay().unwrap(), [(1, None), kept]);
}

#[tokio::test]
async fn the_latest_time_of_the_records_behind_a_snapshot_is_told() {
    let rig = Rig::new(1 << 20);
    let journal = rig.open();
    let space = journal.admit(10_000).await.unwrap();
    for advance in [5, 0, 7] {
        rig.clock.advance(Duration::from_millis(advance));
        drop(space.begin());
    }
    drop(space);
    journal.close().unwrap();
    assert_eq!(rig.replayed(1).last_written, UnixMillis(START.0 + 12));
    assert_eq!(rig.replayed(3).last_written, UnixMillis(0));
    assert_eq!(rig.replayed(1).records, 2);
}

#[tokio::test]
async fn what_a_record_cannot_be_used_for_is_an_error_that_names_file_and_offset() {
    let rig = Rig::new(1 << 20);
    let journal = rig.open();
    fill(&journal, 3).await;
    journal.close().unwrap();
    let error = replay(&rig.path(), &IDENTITY, Lsn(1), Lsn(1), |record| {
        if record.lsn == Lsn(3) {
            Err("nobody knows its range".to_owned())
        } else {
            Ok(())
        }
    })
    .unwrap_err();
    let image = &rig.images()[0];
    assert!(
        matches!(&error, JournalError::Damaged { path, offset, reason }
            if *path == image.path
                && *offset == image.places[2].start as u64
                && reason == "nobody knows its range"),
        "{error}"
    );
}
