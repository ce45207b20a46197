//! Segments that snapshots make superfluous.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::disk::failpoint::{self, Action};

/// A journal with a few closed segments, and the first LSN of each segment.
async fn some_segments(rig: &Rig) -> (Journal, Vec<Kept>, Vec<u64>) {
    let journal = rig.open();
    let model = fill(&journal, 40).await;
    let firsts: Vec<u64> = rig.segments().iter().map(|file| file.first.0).collect();
    assert!(firsts.len() >= 4, "{firsts:?}");
    (journal, model, firsts)
}

fn firsts(rig: &Rig) -> Vec<u64> {
    rig.segments().iter().map(|file| file.first.0).collect()
}

#[tokio::test]
async fn a_segment_is_removed_when_its_last_record_is_covered_and_not_before() {
    let rig = Rig::new(1024);
    let (journal, mut model, before) = some_segments(&rig).await;
    let bytes = journal.bytes();
    journal.cut(Lsn(before[1] - 2));
    model.extend(writer_is_done(&journal).await);
    assert!(firsts(&rig).starts_with(&before));

    journal.cut(Lsn(before[1] - 1));
    model.extend(writer_is_done(&journal).await);
    assert!(firsts(&rig).starts_with(&before[1..]));

    journal.cut(Lsn(before[3] - 2));
    // It has been further already.
    journal.cut(Lsn(1));
    model.extend(writer_is_done(&journal).await);
    assert!(firsts(&rig).starts_with(&before[2..]));
    assert!(journal.bytes() < bytes);

    for after in [before[2] - 1, before[3] - 2] {
        let found = rig.killed().replay_after(after).unwrap().1;
        assert_eq!(found, model[after as usize..]);
    }
    assert!(rig.killed().replay_after(before[2] - 2).is_err());
}

#[tokio::test]
async fn the_segment_that_is_written_to_stays_where_everything_is_covered() {
    let rig = Rig::new(1024);
    let (journal, mut model, before) = some_segments(&rig).await;
    journal.cut(Lsn(1_000_000));
    eventually(async || rig.segments().len() == 1).await;
    assert_eq!(firsts(&rig)[0], *before.last().unwrap());
    model.extend(fill(&journal, 5).await);
    journal.close().unwrap();
    let after = before.last().unwrap() - 1;
    assert_eq!(rig.replay_after(after).unwrap().1, model[after as usize..]);
}

#[tokio::test]
async fn before_anything_is_written_the_last_segment_stays_and_says_where_the_journal_ends() {
    let rig = Rig::new(1024);
    let (journal, _, before) = some_segments(&rig).await;
    journal.close().unwrap();
    let journal = rig.open();
    journal.cut(Lsn(40));
    eventually(async || rig.segments().len() == 1).await;
    assert_eq!(firsts(&rig), before[before.len() - 1..]);
    journal.close().unwrap();
    assert_eq!(rig.replay_after(40).unwrap().0.last, Lsn(40));
    assert_eq!(rig.open().committed(), Lsn(40));
}

#[tokio::test]
async fn a_large_segment_that_is_covered_goes_before_it_is_filled() {
    let rig = Rig::new(8 << 20);
    let journal = rig.open();
    for number in 0..5 {
        commit(&journal, &keys(number, 87_000)).await;
    }
    // One record is not covered yet.
    journal.cut(Lsn(4));
    let mut model = writer_is_done(&journal).await;
    assert_eq!(firsts(&rig), [1]);
    eventually(async || {
        journal.cut(Lsn(7));
        firsts(&rig) == [8]
    })
    .await;
    // A small one does not: its space is used up first.
    model.extend(writer_is_done(&journal).await);
    journal.cut(Lsn(9));
    model.extend(writer_is_done(&journal).await);
    assert_eq!(firsts(&rig), [8]);
    journal.close().unwrap();
    assert_eq!(rig.replay_after(7).unwrap().1, model[2..]);
}

/// As after every stop of a node that had written much: its last snapshot covers everything.
#[tokio::test]
async fn what_is_written_after_a_cut_of_everything_a_close_and_a_new_start_survives_the_next_cut() {
    let rig = Rig::new(8 << 20);
    let journal = rig.open();
    for number in 0..5 {
        commit(&journal, &keys(number, 87_000)).await;
    }
    eventually(async || {
        journal.cut(Lsn(5));
        firsts(&rig) == [6]
    })
    .await;
    journal.close().unwrap();
    let (replayed, _) = rig.replay_after(5).unwrap();
    assert_eq!(replayed.last, Lsn(5));

    let journal = Journal::open(rig.config(), kept_behind(Lsn(5))).unwrap();
    let mut model = fill(&journal, 3).await;
    // It covers one of the three.
    journal.cut(Lsn(6));
    model.extend(writer_is_done(&journal).await);
    assert_eq!(rig.killed().replay_after(6).unwrap().1, model[1..]);
    journal.close().unwrap();
    assert_eq!(rig.replay_after(6).unwrap().1, model[1..]);
}

#[tokio::test(flavor = "multi_thread")]
async fn cuts_while_many_write_never_take_what_is_not_covered() {
    let rig = Rig::new(4096);
    let journal = Arc::new(rig.open());
    let done = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..8_u64)
        .map(|writer| {
            let journal = Arc::clone(&journal);
            tokio::spawn(async move {
                let mut kept = Vec::new();
                for number in 0..100 {
                    kept.push(commit(&journal, &keys(writer * 100 + number, 5)).await);
                }
                kept
            })
        })
        .collect();
    let writing = tokio::spawn({
        let done = Arc::clone(&done);
        async move {
            let mut model = Vec::new();
            for writer in writers {
                model.extend(writer.await.unwrap());
            }
            done.store(true, Ordering::Release);
            model.sort();
            model
        }
    });
    let (mut covered, mut removed) = (Lsn(0), 0);
    while !done.load(Ordering::Acquire) {
        covered = Lsn(journal.committed().0.saturating_sub(10)).max(covered);
        journal.cut(covered);
        let first = rig.segments().first().map_or(Lsn(1), |file| file.first);
        assert!(first <= covered.next(), "{first} of {covered}");
        removed = first.0;
        tokio::task::yield_now().await;
    }
    let model = soon(writing).await.unwrap();
    assert!(removed > 1);
    let (killed, after) = (rig.killed(), covered.0);
    assert_eq!(
        killed.replay_after(after).unwrap().1,
        model[after as usize..]
    );
    journal.close().unwrap();
    assert_eq!(rig.replay_after(after).unwrap().1, model[after as usize..]);
    assert!(rig.replay_after(0).is_err());
}

#[tokio::test]
async fn a_segment_that_cannot_be_removed_disturbs_nobody_and_goes_with_a_later_cut() {
    let rig = Rig::new(1024);
    let (journal, mut model, before) = some_segments(&rig).await;
    // The second one: the first is gone then, and what is behind it stays.
    let armed = failpoint::arm("journal.remove", &rig.path(), Action::Fail(EIO), 1);
    journal.cut(Lsn(before[3] - 1));
    model.extend(writer_is_done(&journal).await);
    assert_eq!(failpoint::count(&armed), 2);
    assert!(firsts(&rig).starts_with(&before[1..]));
    let after = before[1] - 1;
    assert_eq!(
        rig.killed().replay_after(after).unwrap().1,
        model[after as usize..]
    );
    // Somebody has done it by hand.
    fs::remove_file(&rig.segments()[0].path).unwrap();
    drop(armed);
    journal.cut(Lsn(before[3] - 1));
    model.extend(writer_is_done(&journal).await);
    assert!(firsts(&rig).starts_with(&before[3..]));
    journal.close().unwrap();
    let after = before[3] - 1;
    assert_eq!(rig.replay_after(after).unwrap().1, model[after as usize..]);
}
